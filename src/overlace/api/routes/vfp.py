"""/overlace/v1/vfp: what is programmed on this very host. Outside Docker's API, hence its own path.

Owns the routes and how a container names its ports; the answers are network.switch's.
"""

from __future__ import annotations

from aiohttp import web

from overlace.api.backend import Switch
from overlace.api.call import Call, Route, answer
from overlace.model.errors import Unavailable


def _switch(call: Call) -> Switch:
    switch = call.backend.switch
    if switch is None:
        raise Unavailable(
            "this host takes part in no swarm, so its switch has no ports: docker swarm init, or join one"
        )
    return switch


async def ports(call: Call) -> web.StreamResponse:
    return answer(_switch(call).ports())


async def layers(call: Call) -> web.StreamResponse:
    """`port`: see Switch.layers; also a container's id or the beginning of it. Empty: every port."""
    switch, text = _switch(call), call.text("port")
    names = _of_container(call, text) or [text]
    return answer([port for name in names for port in switch.layers(name)])


def _of_container(call: Call, text: str) -> list[str]:
    """Endpoint GUIDs of the one container of that id."""
    if len(text) < 12:
        return []
    found = [
        (e.container_id, e.endpoint_id)
        for network in call.backend.local_networks()
        for e in network.endpoints
        if e.container_id.startswith(text)
    ]
    return [guid for _, guid in found] if len({id for id, _ in found}) == 1 else []


async def counters(call: Call) -> web.StreamResponse:
    return answer(await _switch(call).counters())


ROUTES = [
    Route("GET", "/overlace/v1/vfp/ports", ports),
    Route("GET", "/overlace/v1/vfp/layers", layers),
    Route("GET", "/overlace/v1/vfp/counters", counters),
]
