"""GET /system/df: what images, containers and volumes of this host take on its disk.

Owns the counting of volumes; sizes of images and layers are the runtime's. Must not remove anything.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from typing import Any

from aiohttp import web

from overlace.api.call import Call, Route, answer
from overlace.api.convert import container as show_container
from overlace.api.convert import image as show_image
from overlace.api.routes.containers import image_config, sizes
from overlace.api.routes.volumes import show_volume
from overlace.model.errors import InvalidArgument
from overlace.runtime.base import Container

KINDS = ("container", "image", "volume", "build-cache")


def folder_size(path: str) -> int:
    """Bytes of the files below `path`, each once however many names it has; what goes away meanwhile counts nothing."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for folder, _, names in os.walk(path, onerror=None):
        for name in names:
            try:
                found = os.lstat(os.path.join(folder, name))
            except OSError:
                continue
            if (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                total += found.st_size
    return total


async def disk_usage(call: Call) -> web.StreamResponse:
    """Below API 1.52: four lists; `type=` (1.42) leaves the others out."""
    wanted = call.request.query.getall("type", []) or KINDS
    for kind in wanted:
        if kind not in KINDS:
            raise InvalidArgument(f"unknown object type: {kind}")
    there = await call.backend.runtime.list()
    found: dict[str, Any] = {"LayersSize": 0, "Images": None, "Containers": None, "Volumes": None}
    if "image" in wanted:
        images = await call.backend.runtime.images()
        users = Counter(container.image_id for container in there)
        found["Images"] = [
            show_image.summary(image) | {"Containers": users[image.id], "SharedSize": 0} for image in images
        ]
        found["LayersSize"] = sum(image.size for image in images)
    if "container" in wanted:
        found["Containers"] = [await _container(call, container) for container in there]
    if "volume" in wanted:
        users = Counter(volume.name for container in there for volume in container.volumes)
        found["Volumes"] = [
            show_volume(volume)
            | {
                "UsageData": {
                    "Size": await asyncio.to_thread(folder_size, volume.path),
                    "RefCount": users[volume.name],
                }
            }
            for volume in await call.backend.runtime.volumes()
        ]
    found["BuildCache"] = [] if "build-cache" in wanted else None  # nothing is built here
    if call.version < (1, 42):
        found["BuilderSize"] = 0
    return answer(found)


async def _container(call: Call, found: Container) -> dict[str, Any]:
    ports = await call.backend.container_ports(found.config.id)
    addresses = await call.backend.container_addresses(found.config.id)
    image = await image_config(call, found)
    shown = show_container.summary(found, addresses, time.time_ns(), ports, image)
    return shown | await sizes(call, found)


ROUTES = [Route("GET", "/system/df", disk_usage)]
