"""/overlace/v1/trace: what one packet would experience. Answered by a manager from what hosts were told, and
what those on the way say of themselves.

Owns the route; the answer is manager.trace's.
"""

from __future__ import annotations

from aiohttp import web

from overlace.api.call import Call, Route, answer
from overlace.manager.trace import Question, trace_hosts
from overlace.model.errors import InvalidArgument


async def trace(call: Call) -> web.StreamResponse:
    """Query: from, to, proto (tcp), port (0: the target's own), via (the node a client talks to), size (bytes of the IP
    packet, 0: a small one), ipv6 (1: over IPv6 where neither end says), live (1: send a marked packet too)."""
    manager = call.manager()
    for name in ("from", "to"):
        if not call.text(name):
            raise InvalidArgument(f"query parameter {name} is missing: ?from=web&to=db")
    port = call.text("port", "0") or "0"
    if not port.isdigit():
        raise InvalidArgument(f"query parameter port={port!r} is no number")
    size = call.text("size", "0") or "0"
    if not size.isdecimal() or len(size) > 9 or int(size) > 65535:
        raise InvalidArgument(f"query parameter size={size!r} is no size of an IP packet: use 0 to 65535")
    question = Question(
        source=call.text("from"),
        target=call.text("to"),
        protocol=call.text("proto", "tcp").lower() or "tcp",
        port=int(port),
        via=call.text("via"),
        size=int(size),
        ipv6=call.text("ipv6") in ("1", "true"),
    )
    live = call.text("live") in ("1", "true")
    found = await trace_hosts(
        manager.store.view(), question, manager.paths.all(), manager.ask_node, live=live
    )
    return answer(found)


ROUTES = [Route("GET", "/overlace/v1/trace", trace)]
