"""/volumes of this host: those its tasks made or somebody made here. Named ones stay until they are removed."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from overlace.api import codec
from overlace.api.call import Call, Route, answer
from overlace.api.routes.networks import label_matches
from overlace.model.errors import Conflict, NotFound, Unimplemented
from overlace.model.specs import Doc
from overlace.model.volumes import ANONYMOUS_LABEL
from overlace.runtime.base import StoredVolume

FILTERS = frozenset(("dangling", "driver", "label", "name"))
PRUNE_FILTERS = frozenset(("all", "label", "label!"))


def show_volume(volume: StoredVolume) -> dict[str, Any]:
    return {
        "CreatedAt": codec.rfc3339(volume.created_at // 10**9 * 10**9),
        "Driver": "local",
        "Labels": volume.labels or None,
        "Mountpoint": volume.path,
        "Name": volume.name,
        "Options": volume.options or None,
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
        if not label_matches(volume.labels, filters.get("label", [])):
            continue
        if drivers and "local" not in drivers:
            continue
        if any(codec.flag(value) == (volume.name in used) for value in filters.get("dangling", ())):
            continue
        shown.append(show_volume(volume))
    return answer({"Volumes": shown, "Warnings": None})


async def inspect(call: Call) -> web.StreamResponse:
    name = call.args["name"]
    for volume in await call.backend.runtime.volumes():
        if volume.name == name:
            return answer(show_volume(volume))
    raise NotFound(f"get {name}: no such volume")


async def remove(call: Call) -> web.StreamResponse:
    try:
        await call.backend.runtime.remove_volume(call.args["name"])
    except NotFound:
        if not call.flag("force"):
            raise
    return web.Response(status=204)


class CreateRequest(Doc, frozen=True):
    """POST /volumes/create."""

    name: str = ""
    driver: str = ""
    driver_opts: dict[str, str] = msgspec.field(default_factory=dict)
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    cluster_volume_spec: dict[str, Any] | None = None


async def create(call: Call) -> web.StreamResponse:
    asked = await call.body(CreateRequest)
    if asked.cluster_volume_spec is not None:
        raise Unimplemented("cluster volumes are not supported: there are no CSI plugins")
    if asked.driver not in ("", "local"):
        raise NotFound(f'error looking up volume plugin {asked.driver}: plugin "{asked.driver}" not found')
    labels = asked.labels if asked.name else {ANONYMOUS_LABEL: "", **asked.labels}
    made = await call.backend.runtime.create_volume(asked.name, labels, asked.driver_opts)
    return answer(show_volume(made), 201)


async def prune(call: Call) -> web.StreamResponse:
    """Volumes no container has: from API 1.42 the anonymous ones unless `all` is asked for."""
    filters = call.filters(PRUNE_FILTERS)
    everything = call.version < (1, 42) or any(codec.flag(value) for value in filters.get("all", ()))
    runtime = call.backend.runtime
    used = {volume.name for container in await runtime.list() for volume in container.volumes}
    removed, freed = [], 0
    for volume in await runtime.volumes():
        if volume.name in used or not (everything or ANONYMOUS_LABEL in volume.labels):
            continue
        if not label_matches(volume.labels, filters.get("label", [])):
            continue
        if any(label_matches(volume.labels, [value]) for value in filters.get("label!", ())):
            continue
        try:
            size = await runtime.remove_volume(volume.name)
        except (Conflict, NotFound):  # taken, or removed, meanwhile
            continue
        removed.append(volume.name)
        freed += size
    return answer({"VolumesDeleted": removed, "SpaceReclaimed": freed})


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
