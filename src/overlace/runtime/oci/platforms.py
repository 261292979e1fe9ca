"""Which manifest of an image index a host takes.

Pure. Must not know registries. Rules: image-spec `image-index.md`; for Windows Docker's own (the host's build
decides: Microsoft's "Windows container version compatibility"), here without Hyper-V isolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from overlace.model.architecture import fold_architecture
from overlace.model.errors import NotFound
from overlace.runtime.base import Platform

INDEX_TYPES = frozenset(
    {
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    }
)


def normal(platform: Platform) -> Platform:
    """The platform with its architecture in OCI's words."""
    return Platform(
        platform.os.lower(), fold_architecture(platform.architecture), platform.os_version, platform.variant
    )


def platform_text(platform: Platform) -> str:
    """As Docker prints it: `linux/amd64`, `windows(10.0.20348.2527)/amd64`."""
    version = f"({platform.os_version})" if platform.os_version else ""
    variant = f"/{platform.variant}" if platform.variant else ""
    return f"{platform.os}{version}/{platform.architecture}{variant}"


def platform_of(document: dict[str, Any]) -> Platform:
    """From an index descriptor's `platform` or from an image config (same keys)."""
    return Platform(
        os=str(document.get("os") or "linux"),
        architecture=fold_architecture(str(document.get("architecture") or "amd64")),
        os_version=str(document.get("os.version") or ""),
        variant=str(document.get("variant") or ""),
    )


def is_index(manifest: dict[str, Any]) -> bool:
    """An index names itself by media type; OCI allows leaving it out, then `manifests` tells."""
    media_type = manifest.get("mediaType")
    return media_type in INDEX_TYPES or (not media_type and "manifests" in manifest)


def _version(text: str) -> tuple[int, ...]:
    parts = []
    for part in text.split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)


def runs_on(image: Platform, host: Platform) -> bool:
    """Whether a host can run an image of this platform at all."""
    if image.os != host.os or image.architecture != host.architecture:
        return False
    if host.os == "windows" and host.os_version and image.os_version:
        return _version(image.os_version)[:3] <= _version(host.os_version)[:3]
    return not (host.variant and image.variant) or _variant_rank(image.variant) <= _variant_rank(host.variant)


def _variant_rank(variant: str) -> tuple[int, ...]:
    return _version(variant.removeprefix("v"))


def choose_manifest(index: dict[str, Any], host: Platform, name: str) -> dict[str, Any]:
    """The descriptor of `index` this host takes.

    Windows: the entry with the host's own build (first three parts of os.version; among several the highest
    revision not above the host's, else the highest), otherwise the highest build not newer; an entry without
    os.version comes last. Others: the highest variant the host can run, the first of equals. Raises NotFound
    in Docker's words when there is none.
    """
    host = normal(host)
    fitting: list[tuple[Platform, dict[str, Any]]] = []
    descriptors: Sequence[dict[str, Any]] = index.get("manifests") or ()
    for descriptor in descriptors:
        stated = descriptor.get("platform")
        if stated is None or stated.get("os") in (None, "", "unknown"):
            continue  # attestations and signatures, not something to run
        candidate = platform_of(stated)
        if runs_on(candidate, host):
            fitting.append((candidate, descriptor))
    if not fitting:
        raise NotFound(
            f"no matching manifest for {platform_text(host)} in the manifest list entries of {name}"
        )
    if host.os != "windows":
        return max(fitting, key=lambda pair: _variant_rank(pair[0].variant))[1]
    build = _version(host.os_version)

    def rank(pair: tuple[Platform, dict[str, Any]]) -> tuple[bool, tuple[int, ...], bool, tuple[int, ...]]:
        version = _version(pair[0].os_version)
        not_above = not build or version <= build
        return (bool(version), version[:3], not_above, version)

    return max(fitting, key=rank)[1]
