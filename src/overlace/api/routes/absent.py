"""Kinds of objects that cannot exist here yet: lists are empty, lookups say 404 (`docker inspect` goes on
then), making one says 501."""

from __future__ import annotations

from aiohttp import web

from overlace.api.call import Call, Handler, Route, answer
from overlace.model.errors import NotFound, Unimplemented


async def volumes(call: Call) -> web.StreamResponse:
    return answer({"Volumes": [], "Warnings": None})


async def volume(call: Call) -> web.StreamResponse:
    raise NotFound(f"get {call.args['name']}: no such volume")


async def plugins(call: Call) -> web.StreamResponse:
    return answer([])


async def plugin(call: Call) -> web.StreamResponse:
    raise NotFound(f'plugin "{call.args["name"]}" not found')


def _refused(reason: str) -> Handler:
    async def refuse(call: Call) -> web.StreamResponse:
        raise Unimplemented(reason)

    return refuse


_VOLUMES = "docker volume is not supported yet: a service's volumes are made where its tasks run"
_PLUGINS = "plugins are not supported"

ROUTES = [
    Route("GET", "/volumes", volumes),
    Route("POST", "/volumes/create", _refused(_VOLUMES)),
    Route("POST", "/volumes/prune", _refused(_VOLUMES)),
    Route("GET", "/volumes/{name}", volume),
    Route("PUT", "/volumes/{name}", volume),
    Route("DELETE", "/volumes/{name}", volume),
    Route("GET", "/plugins", plugins),
    Route("GET", "/plugins/privileges", _refused(_PLUGINS)),
    Route("POST", "/plugins/pull", _refused(_PLUGINS)),
    Route("POST", "/plugins/create", _refused(_PLUGINS)),
    Route("GET", "/plugins/{name:*}/json", plugin),
    Route("DELETE", "/plugins/{name:*}", plugin),
]
