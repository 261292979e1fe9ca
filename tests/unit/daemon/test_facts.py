"""What a host says of itself."""

from __future__ import annotations

import os
import platform

import pytest

from overlace.api.backend import EngineOptions
from overlace.api.info import operating_system
from overlace.daemon import facts
from overlace.daemon.facts import System, engine_labels, member_addresses, this_system
from overlace.daemon.host import platform_of
from overlace.model.errors import InvalidArgument
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


@pytest.fixture
def two_families(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "interfaces", lambda: {"eth0": "172.28.1.11"})
    monkeypatch.setattr(facts, "six_hosts", lambda: {"fd00::11": "eth0", "fd00::12": "eth0"})
    monkeypatch.setattr(facts, "_default_route_link", lambda: "eth0")


@pytest.mark.usefixtures("two_families")
@pytest.mark.parametrize(
    ("advertise", "data_path", "underlay", "found"),
    [
        ("", "", "", ("172.28.1.11:2377", "172.28.1.11")),
        ("", "", "fd00::11", ("[fd00::11]:2377", "fd00::11")),
        ("[fd00::11]:99", "", "", ("[fd00::11]:99", "fd00::11")),
        ("[fd00::11]:99", "172.28.1.11", "", ("[fd00::11]:99", "172.28.1.11")),
        ("172.28.1.11:99", "fd00::12", "", ("172.28.1.11:99", "fd00::12")),
    ],
)
def test_tunnels_end_where_the_host_is_advertised_unless_it_is_said(
    advertise: str, data_path: str, underlay: str, found: tuple[str, str]
) -> None:
    assert member_addresses(advertise, data_path, "0.0.0.0:2377", underlay) == found


@pytest.mark.usefixtures("two_families")
def test_a_windows_hosts_tunnels_stay_on_ipv4() -> None:
    asked = ("[fd00::11]:99", "", "0.0.0.0:2377", "")
    assert member_addresses(*asked, windows=True) == ("[fd00::11]:99", "172.28.1.11")
    with pytest.raises(InvalidArgument, match="the HNS of a Windows host tunnels over IPv4 alone"):
        member_addresses("", "fd00::11", "0.0.0.0:2377", "", windows=True)


@pytest.mark.usefixtures("two_families")
def test_an_address_of_another_host_is_refused() -> None:
    with pytest.raises(
        InvalidArgument, match=r"fd00::9 is not on any interface .* 172.28.1.11, fd00::11, fd00::12"
    ):
        member_addresses("", "fd00::9", "0.0.0.0:2377", "")


def test_a_host_without_ipv4_addresses_is_found_by_its_ipv6_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "interfaces", dict)
    monkeypatch.setattr(facts, "_source_address", lambda family: "")
    monkeypatch.setattr(facts, "six_hosts", lambda: {"fd00::11": "eth0"})
    assert member_addresses("", "", "0.0.0.0:2377", "") == ("[fd00::11]:2377", "fd00::11")
    monkeypatch.setattr(facts, "six_hosts", lambda: {"fd00::11": "eth0", "fd00::12": "eth0"})
    with pytest.raises(InvalidArgument, match=r"eth0 \(fd00::11\), eth0 \(fd00::12\)"):
        member_addresses("", "", "0.0.0.0:2377", "")
