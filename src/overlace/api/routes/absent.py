"""Plugins, which cannot exist here: lists are empty, lookups say 404 (`docker inspect` goes on then), making
one says 501."""

from __future__ import annotations

from aiohttp import web

from overlace.api.call import Call, Handler, Route, answer
from overlace.model.errors import NotFound, Unimplemented


async def plugins(call: Call) -> web.StreamResponse:
    return answer([])


async def plugin(call: Call) -> web.StreamResponse:
    raise NotFound(f'plugin "{call.args["name"]}" not found')


def _refused(reason: str) -> Handler:
    async def refuse(call: Call) -> web.StreamResponse:
        raise Unimplemented(reason)

    return refuse


_PLUGINS = "plugins are not supported"

ROUTES = [
    Route("GET", "/plugins", plugins),
    Route("GET", "/plugins/privileges", _refused(_PLUGINS)),
    Route("POST", "/plugins/pull", _refused(_PLUGINS)),
    Route("POST", "/plugins/create", _refused(_PLUGINS)),
    Route("GET", "/plugins/{name:*}/json", plugin),
    Route("DELETE", "/plugins/{name:*}", plugin),
]
