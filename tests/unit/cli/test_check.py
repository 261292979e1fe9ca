"""`overlace check` names what is missing and the package that brings it."""

from __future__ import annotations

import pytest

from overlace.cli import check


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.18.44-fc", (6, 18)),
        ("6.1.0-35-amd64", (6, 1)),
        ("5.15", (5, 15)),
        ("6.6-rc1", (6, 6)),
        ("odd", (0, 0)),
    ],
)
def test_kernel_versions(release: str, version: tuple[int, int]) -> None:
    assert check.kernel_version(release) == version


def test_an_old_kernel_is_no_host() -> None:
    assert not check.check_kernel("4.19.0").ok
    assert "clsact" in check.check_kernel("6.1.0").text
    assert check.check_kernel("6.18.1").ok


def test_missing_programs_are_named_with_their_package() -> None:
    found = check.check_tools(lambda name: None if name in ("nft", "crun") else f"/usr/bin/{name}")
    assert [finding.ok for finding in found] == [False]
    assert "nft is missing" in found[0].text and "nftables" in found[0].text


def test_one_container_runtime_is_enough_and_none_is_not() -> None:
    assert all(f.ok for f in check.check_tools(lambda name: None if name == "runc" else "/x"))
    assert not all(f.ok for f in check.check_tools(lambda name: None if name in check.RUNTIMES else "/x"))
