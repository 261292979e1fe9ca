"""/networks/{id}/connect and disconnect: a standalone container's networks, also while it runs."""

from __future__ import annotations

from aiohttp import web

from overlace.api.backend import LocalNetwork
from overlace.api.call import Call, Route, empty
from overlace.api.convert.create import plan_joined
from overlace.api.convert.create_request import EndpointConfig
from overlace.api.routes.containers import find as find_container
from overlace.api.routes.networks import find
from overlace.model.errors import Conflict, InvalidArgument, NotFound
from overlace.model.specs import Doc
from overlace.runtime.base import Container


class ConnectRequest(Doc, frozen=True):
    container: str = ""
    endpoint_config: EndpointConfig = EndpointConfig()


class DisconnectRequest(Doc, frozen=True):
    container: str = ""
    force: bool = False


async def _standalone(call: Call, container: str) -> Container:
    """Raises NotFound, Conflict for a service's: its networks are its service's."""
    found = await find_container(call, container)
    if call.backend.containers.record(found.config.id) is None:
        raise Conflict(
            f"container {found.config.name} belongs to a service: use docker service update --network-add or --network-rm"
        )
    return found


def _named(call: Call, ref: str) -> str:
    """A network by name; what this host does not know is a manager's to find."""
    try:
        found = find(call, ref)
    except NotFound:
        return ref
    return found.name if isinstance(found, LocalNetwork) else found.spec.name


async def connect(call: Call) -> web.StreamResponse:
    """One more network for a standalone container."""
    asked = await call.body(ConnectRequest)
    name = _named(call, call.args["id"])
    found = await _standalone(call, asked.container)
    if name in ("host", "none"):
        raise InvalidArgument(
            f"container cannot be connected to network {name}: it is chosen when it is made"
        )
    await call.backend.containers.connect(found.config.id, plan_joined(name, asked.endpoint_config))
    return empty()


async def disconnect(call: Call) -> web.StreamResponse:
    asked = await call.body(DisconnectRequest)
    name = _named(call, call.args["id"])
    found = await _standalone(call, asked.container)
    await call.backend.containers.disconnect(found.config.id, name)
    return empty()


ROUTES = [
    Route("POST", "/networks/{id}/connect", connect),
    Route("POST", "/networks/{id}/disconnect", disconnect),
]
