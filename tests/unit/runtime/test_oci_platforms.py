"""Names of images, and which manifest of an index a host takes."""

from __future__ import annotations

from typing import Any

import pytest

from overlace.model.errors import NotFound
from overlace.model.reference import parse_reference
from overlace.runtime.base import Platform
from overlace.runtime.oci.platforms import choose_manifest, is_index, platform_text, runs_on
from overlace.runtime.oci.skopeo import source_name

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("busybox", "docker://docker.io/library/busybox:latest"),
        ("docker.io/busybox:1", "docker://docker.io/library/busybox:1"),
        ("registry:5000/app:v1", "docker://registry:5000/app:v1"),
        (f"app:1@{DIGEST}", f"docker://docker.io/library/app@{DIGEST}"),
        ("[::1]:5000/app", "docker://[::1]:5000/app:latest"),
    ],
)
def test_names_for_skopeo(text: str, source: str) -> None:
    assert source_name(parse_reference(text)) == source


def _index(*platforms: str) -> dict[str, Any]:
    """`os/arch[/variant][@os.version]` entries whose digest is their own text."""
    manifests = []
    for text in platforms:
        name, _, version = text.partition("@")
        os, architecture, *variant = name.split("/")
        platform = {
            "os": os,
            "architecture": architecture,
            "os.version": version,
            "variant": "".join(variant),
        }
        manifests.append({"digest": text, "platform": {k: v for k, v in platform.items() if v}})
    return {"schemaVersion": 2, "manifests": manifests}


WINDOWS = _index(
    "windows/amd64@10.0.17763.5000",
    "linux/amd64",
    "windows/amd64@10.0.20348.100",
    "windows/amd64@10.0.20348.2527",
    "windows/amd64@10.0.26100.1",
    "unknown/unknown",
)


@pytest.mark.parametrize(
    ("build", "chosen"),
    [
        ("10.0.20348.2527", "windows/amd64@10.0.20348.2527"),
        ("10.0.20348.9999", "windows/amd64@10.0.20348.2527"),
        ("10.0.20348.200", "windows/amd64@10.0.20348.100"),
        ("10.0.20348.1", "windows/amd64@10.0.20348.2527"),
        ("10.0.22621.5", "windows/amd64@10.0.20348.2527"),
        ("10.0.17763.1", "windows/amd64@10.0.17763.5000"),
        ("10.0.30000.0", "windows/amd64@10.0.26100.1"),
    ],
)
def test_windows_takes_its_own_build_else_the_highest_not_newer(build: str, chosen: str) -> None:
    assert choose_manifest(WINDOWS, Platform("windows", "x86_64", build), "app")["digest"] == chosen


def test_windows_entry_without_a_build_comes_last() -> None:
    host = Platform("windows", "amd64", "10.0.20348.1")
    assert choose_manifest(_index("windows/amd64"), host, "a")["digest"] == "windows/amd64"
    both = _index("windows/amd64", "windows/amd64@10.0.17763.1")
    assert choose_manifest(both, host, "a")["digest"] == "windows/amd64@10.0.17763.1"


def test_windows_too_old_is_refused_with_its_build() -> None:
    with pytest.raises(
        NotFound, match=r"no matching manifest for windows\(10.0.14393.1\)/amd64 in the manifest list"
    ):
        choose_manifest(WINDOWS, Platform("windows", "amd64", "10.0.14393.1"), "app")


def test_linux_by_architecture_and_variant() -> None:
    index = _index("linux/arm/v6", "linux/arm/v7", "linux/arm64/v8", "linux/amd64", "windows/amd64@10.0.1.1")
    pick = lambda *p: choose_manifest(index, Platform(*p), "a")["digest"]  # noqa: E731
    assert pick("linux", "x86_64") == "linux/amd64"
    assert pick("linux", "aarch64") == "linux/arm64/v8"
    assert pick("linux", "arm", "", "v7") == "linux/arm/v7"
    assert pick("linux", "arm", "", "v6") == "linux/arm/v6"
    with pytest.raises(NotFound):
        pick("linux", "s390x")


def test_what_is_an_index_and_what_runs() -> None:
    assert is_index({"mediaType": "application/vnd.docker.distribution.manifest.list.v2+json"})
    assert is_index({"manifests": []}) and not is_index({"config": {}, "layers": []})
    assert not runs_on(Platform("windows", "amd64", "10.0.1.1"), Platform("linux", "amd64"))
    assert platform_text(Platform("linux", "arm", "", "v7")) == "linux/arm/v7"
