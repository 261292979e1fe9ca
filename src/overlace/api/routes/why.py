"""/overlace/v1/why: what the docker CLI has no word for. Owns the route; the answer is manager.why's."""

from __future__ import annotations

import time

import msgspec
from aiohttp import web

from overlace.api.call import Call, Route, answer
from overlace.manager.paths import explain_paths_of
from overlace.manager.why import explain
from overlace.model.errors import InvalidArgument


async def why(call: Call) -> web.StreamResponse:
    manager = call.manager()
    ref = call.text("of")
    if not ref:
        raise InvalidArgument("say what to explain: /overlace/v1/why?of=TASK or ?of=SERVICE")
    view = manager.store.view()
    found = explain(view, ref, time.time_ns())
    broken = explain_paths_of(view, (t.node for t in found.tasks), manager.paths.all())
    if broken:
        found = msgspec.structs.replace(found, note=f"{broken}\n{found.note}".strip())
    return answer(found)


ROUTES = [Route("GET", "/overlace/v1/why", why)]
