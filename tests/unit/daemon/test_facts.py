"""What a host says of itself."""

from __future__ import annotations

import os
import platform

import pytest

from overlace.api.backend import EngineOptions
from overlace.api.info import operating_system
from overlace.daemon.facts import System, engine_labels, this_system
from overlace.daemon.host import platform_of
from overlace.runtime.base import Platform

BUILD = "10.0.20348.2527"


def test_a_linux_host_is_its_kernel() -> None:
    found = this_system()
    assert (found.os, found.version, found.emulated) == ("linux", platform.release(), False)
    assert found.memory == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert engine_labels({"rack": "a"}, found) == {"rack": "a"}
    assert platform_of(found).os == "linux" and platform_of(found).os_version == ""


def test_an_emulated_windows_host_says_on_what_it_runs() -> None:
    found = this_system(BUILD)
    assert (found.os, found.version, found.emulated) == ("windows", BUILD, True)
    assert platform.release() in found.kernel
    assert engine_labels({}, found) == {
        "com.overlace.emulated": "windows",
        "com.overlace.os-version": BUILD,
    }


@pytest.mark.parametrize(
    ("name", "emulated", "shown"),
    [
        ("Windows Server 2022 Datacenter", False, f"Windows Server 2022 Datacenter (build {BUILD})"),
        ("Wine 8.0", True, f"Microsoft Windows (build {BUILD}), emulated on Wine 8.0: no Windows kernel"),
    ],
)
def test_a_real_windows_and_one_under_wine(name: str, emulated: bool, shown: str) -> None:
    system = System(os="windows", version=BUILD, architecture="x86_64", name=name, emulated=emulated)
    options = EngineOptions(
        id="x", hostname="w", data_root="", os="windows", os_version=BUILD, system=name, emulated=emulated
    )
    assert operating_system(options) == shown
    assert ("com.overlace.emulated" in engine_labels({}, system)) is emulated
    assert platform_of(system) == Platform("windows", "amd64", BUILD)
