"""/overlace/v1/trace: what one packet would experience. Answered by a manager from what hosts were told.

Owns the route; the answer is manager.trace's.
"""

from __future__ import annotations

from aiohttp import web

from overlace.api.call import Call, Route, answer
from overlace.manager.trace import Question, explain_trace
from overlace.model.errors import InvalidArgument


async def trace(call: Call) -> web.StreamResponse:
    """Query: from, to, proto (tcp), port (0: the target's own), via (the node a client talks to)."""
    manager = call.manager()
    for name in ("from", "to"):
        if not call.text(name):
            raise InvalidArgument(f"query parameter {name} is missing: ?from=web&to=db")
    port = call.text("port", "0") or "0"
    if not port.isdigit():
        raise InvalidArgument(f"query parameter port={port!r} is no number")
    question = Question(
        source=call.text("from"),
        target=call.text("to"),
        protocol=call.text("proto", "tcp").lower() or "tcp",
        port=int(port),
        via=call.text("via"),
    )
    return answer(explain_trace(manager.store.view(), question))


ROUTES = [Route("GET", "/overlace/v1/trace", trace)]
