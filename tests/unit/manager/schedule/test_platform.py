"""Which host runs which image."""

from __future__ import annotations

import pytest

from overlace.manager.schedule.platform import runs_any, windows_compatible
from overlace.model.objects import NodeDescription
from overlace.model.specs import Platform

LINUX = NodeDescription(hostname="l", os="linux", architecture="x86_64", os_version="6.1.0")
ARM = NodeDescription(hostname="a", os="linux", architecture="aarch64")
WINDOWS = NodeDescription(
    hostname="w",
    os="windows",
    architecture="x86_64",
    os_version="10.0.20348.2527",
    isolation=("process", "hyperv"),
)

S2016, S2019, S2022, S2025 = "10.0.14393.100", "10.0.17763.5329", "10.0.20348.2227", "10.0.26100.1"


@pytest.mark.parametrize(
    ("host", "image", "process", "hyperv"),
    [
        (S2019, S2019, True, True),
        (S2019, "10.0.17763.1", True, True),  # the revision does not matter
        (S2019, S2016, False, True),
        (S2019, S2022, False, False),
        (S2022, S2022, True, True),
        (S2022, S2019, False, True),
        (S2022, S2025, False, False),
        (S2025, S2022, True, True),
        (S2025, S2025, True, True),
        (S2025, S2019, False, True),
        ("10.0.22621.1", S2022, True, True),  # Windows 11 runs Server 2022 images
        ("10.0.29000.1", S2022, False, True),  # only back to the stable release before the host's
        ("10.0.29000.1", S2025, True, True),
        (S2022, "", True, True),
        ("", S2022, False, False),
    ],
)
def test_windows_builds(host: str, image: str, process: bool, hyperv: bool) -> None:
    assert windows_compatible(host, image, hyperv=False) is process
    assert windows_compatible(host, image, hyperv=True) is hyperv


def test_no_platforms_means_any_node() -> None:
    assert all(runs_any(node, (), "") for node in (LINUX, ARM, WINDOWS))


@pytest.mark.parametrize(
    ("platform", "nodes"),
    [
        (Platform("amd64", "linux"), [LINUX]),
        (Platform("x86_64", "linux"), [LINUX]),
        (Platform("arm64", "linux"), [ARM]),
        (Platform("", "linux"), [LINUX, ARM]),
        (Platform("amd64", ""), [LINUX, WINDOWS]),
        (Platform("amd64", "windows", S2022), [WINDOWS]),
        (Platform("amd64", "windows", S2019), []),
        (Platform("amd64", "windows"), [WINDOWS]),
    ],
)
def test_os_and_architecture(platform: Platform, nodes: list[NodeDescription]) -> None:
    assert [node for node in (LINUX, ARM, WINDOWS) if runs_any(node, (platform,), "")] == nodes


def test_one_platform_of_a_manifest_list_is_enough() -> None:
    platforms = (Platform("amd64", "windows", S2019), Platform("amd64", "windows", S2022))
    assert runs_any(WINDOWS, platforms, "")
    assert not runs_any(LINUX, platforms, "")


def test_hyperv_isolation_takes_an_older_image_where_the_host_offers_it() -> None:
    old = (Platform("amd64", "windows", S2019),)
    assert not runs_any(WINDOWS, old, "process")
    assert runs_any(WINDOWS, old, "hyperv")
    without = NodeDescription(hostname="w", os="windows", architecture="x86_64", os_version=S2022)
    assert not runs_any(without, old, "hyperv")
