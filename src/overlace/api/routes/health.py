"""/overlace/v1/networks/{name}/health: what the nodes measured of the ways between them.

Owns the route; the answer is manager.paths'.
"""

from __future__ import annotations

from aiohttp import web

from overlace.api.call import Call, Route, answer
from overlace.manager.control.lookup import find
from overlace.model.objects import Network


async def health(call: Call) -> web.StreamResponse:
    manager = call.manager()
    network = find(manager.store.view(), Network, call.args["name"])
    return answer(manager.paths.health(network))


ROUTES = [Route("GET", "/overlace/v1/networks/{name}/health", health)]
