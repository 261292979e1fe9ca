"""Names of images, and which manifest of an index a host takes."""

from __future__ import annotations

from typing import Any

import pytest

from overlace.model.errors import InvalidArgument, NotFound
from overlace.runtime.base import Platform
from overlace.runtime.oci.platforms import choose_manifest, is_index, platform_text, runs_on
from overlace.runtime.oci.refs import is_insecure, parse_reference

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "source", "familiar"),
    [
        ("busybox", "docker://docker.io/library/busybox:latest", "busybox"),
        ("docker.io/busybox:1", "docker://docker.io/library/busybox:1", "busybox"),
        ("team/app", "docker://docker.io/team/app:latest", "team/app"),
        ("registry:5000/app:v1", "docker://registry:5000/app:v1", "registry:5000/app"),
        ("localhost/app", "docker://localhost/app:latest", "localhost/app"),
        (
            "172.28.1.250:5000/shop/web:1",
            "docker://172.28.1.250:5000/shop/web:1",
            "172.28.1.250:5000/shop/web",
        ),
        (f"app:1@{DIGEST}", f"docker://docker.io/library/app@{DIGEST}", "app"),
        ("[::1]:5000/app", "docker://[::1]:5000/app:latest", "[::1]:5000/app"),
    ],
)
def test_references(text: str, source: str, familiar: str) -> None:
    reference = parse_reference(text).with_default_tag()
    assert reference.docker_source() == source
    assert reference.familiar == familiar


@pytest.mark.parametrize(
    "text", ["", "App", "a b", "a:b:c", "a@sha256:12", "a@md5:x", "-a", "a//b", "f" * 64, "a:" + "t" * 129]
)
def test_bad_references(text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid re"):
        parse_reference(text)


def test_loopback_and_listed_registries_are_insecure() -> None:
    listed = frozenset(("172.28.0.250:5000", "plain.example"))
    for domain in (
        "127.0.0.1:5000",
        "127.9.9.9",
        "localhost:1",
        "[::1]:5000",
        "172.28.0.250:5000",
        "plain.example:80",
    ):
        assert is_insecure(domain, listed), domain
    for domain in ("docker.io", "172.28.0.250", "127.0.0.1.example"):
        assert not is_insecure(domain, listed), domain


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
