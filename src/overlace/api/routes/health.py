"""/overlace/v1/networks/{name}/health: what the nodes measured of the ways between them.

Owns the route; the answer is manager.paths'.
"""

from __future__ import annotations

import difflib

from aiohttp import web

from overlace.api.call import Call, Route, answer
from overlace.manager.control.lookup import find
from overlace.model.errors import NotFound
from overlace.model.objects import Network
from overlace.store.base import View


async def health(call: Call) -> web.StreamResponse:
    manager = call.manager()
    return answer(manager.paths.health(_find(manager.store.view(), call.args["name"])))


def _find(view: View, ref: str) -> Network:
    """As docker finds a network: id, name, or beginning of one id alone. Raises NotFound with names that are near,
    InvalidArgument where several ids begin so."""
    try:
        return find(view, Network, ref)
    except NotFound as e:
        names = sorted(n.spec.name for n in view.all(Network))
        near = [n for n in names if n.endswith(f"_{ref}")] or difflib.get_close_matches(ref, names, 3, 0.6)
        hint = (
            f"did you mean {' or '.join(near)}?" if near else f"the swarm's networks: {', '.join(names[:10])}"
        )
        raise NotFound(f"{e}; {hint}") from None


ROUTES = [Route("GET", "/overlace/v1/networks/{name}/health", health)]
