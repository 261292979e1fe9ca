"""/volumes of this host: those its tasks made. Named ones stay until they are removed here."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from overlace.api import codec
from overlace.api.call import Call, Route, answer
from overlace.model.errors import NotFound, Unimplemented
from overlace.runtime.base import StoredVolume

FILTERS = frozenset(("dangling", "driver", "label", "name"))


def _shown(volume: StoredVolume) -> dict[str, Any]:
    return {
        "CreatedAt": codec.rfc3339(volume.created_at // 10**9 * 10**9),
        "Driver": "local",
        "Labels": None,
        "Mountpoint": volume.path,
        "Name": volume.name,
        "Options": None,
        "Scope": "local",
    }


async def list_volumes(call: Call) -> web.StreamResponse:
    filters = call.filters(FILTERS)
    runtime = call.backend.runtime
    used = {volume.name for container in await runtime.list() for volume in container.volumes}
    names, drivers = filters.get("name"), filters.get("driver")
    shown = []
    for volume in await runtime.volumes():
        if names and not any(part in volume.name for part in names):
            continue
        if filters.get("label") or (drivers and "local" not in drivers):
            continue
        if any(codec.flag(value) == (volume.name in used) for value in filters.get("dangling", ())):
            continue
        shown.append(_shown(volume))
    return answer({"Volumes": shown, "Warnings": None})


async def inspect(call: Call) -> web.StreamResponse:
    name = call.args["name"]
    for volume in await call.backend.runtime.volumes():
        if volume.name == name:
            return answer(_shown(volume))
    raise NotFound(f"get {name}: no such volume")


async def remove(call: Call) -> web.StreamResponse:
    try:
        await call.backend.runtime.remove_volume(call.args["name"])
    except NotFound:
        if not call.flag("force"):
            raise
    return web.Response(status=204)


async def create(call: Call) -> web.StreamResponse:
    raise Unimplemented(
        "docker volume create is not supported yet: a service's volumes are made where its tasks run"
    )


async def prune(call: Call) -> web.StreamResponse:
    raise Unimplemented("docker volume prune is not supported yet: remove volumes by name")


async def update(call: Call) -> web.StreamResponse:
    raise Unimplemented("cluster volumes are not supported")


ROUTES = [
    Route("GET", "/volumes", list_volumes),
    Route("POST", "/volumes/create", create),
    Route("POST", "/volumes/prune", prune),
    Route("GET", "/volumes/{name}", inspect),
    Route("PUT", "/volumes/{name}", update),
    Route("DELETE", "/volumes/{name}", remove),
]
