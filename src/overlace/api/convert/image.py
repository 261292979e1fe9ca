"""Images as `docker image ls` and `docker image inspect` expect them. Pure."""

from __future__ import annotations

from overlace.api.codec import parse_time
from overlace.api.convert.common import Json
from overlace.model.errors import InvalidArgument
from overlace.runtime.base import Image


def created_at(found: Image) -> int:
    """ns since the epoch; 0 when the image does not say."""
    try:
        return parse_time(found.created, "created")
    except InvalidArgument:
        return 0


def _labels(found: Image) -> dict[str, str]:
    labels = found.config.get("Labels")
    return {str(k): str(v) for k, v in labels.items()} if isinstance(labels, dict) else {}


def summary(found: Image) -> Json:
    return {
        "Id": found.id,
        "ParentId": "",
        "RepoTags": list(found.tags),
        "RepoDigests": list(found.digests),
        "Created": created_at(found) // 1_000_000_000,
        "Size": found.size,
        "VirtualSize": found.size,
        "SharedSize": -1,
        "Labels": _labels(found) or None,
        "Containers": -1,
    }


def inspect(found: Image) -> Json:
    platform = found.platform
    shown: Json = {
        "Id": found.id,
        "RepoTags": list(found.tags),
        "RepoDigests": list(found.digests),
        "Parent": "",
        "Comment": "",
        "Created": found.created or "0001-01-01T00:00:00Z",
        "DockerVersion": "",
        "Author": "",
        "Config": found.config,
        "Architecture": platform.architecture,
        "Os": platform.os,
        "Size": found.size,
        "VirtualSize": found.size,
        "GraphDriver": {"Name": "overlayfs", "Data": None},
        "RootFS": {"Type": "layers", "Layers": list(found.layers)},
        "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"},
    }
    if platform.os_version:
        shown["OsVersion"] = platform.os_version
    if platform.variant:
        shown["Variant"] = platform.variant
    return shown
