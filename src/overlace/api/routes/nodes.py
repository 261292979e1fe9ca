"""/nodes. Owns the routes; rules are manager.control's."""

from __future__ import annotations

import msgspec
from aiohttp import web

from overlace.api.backend import ManagerHandle
from overlace.api.call import Call, Route, answer, empty
from overlace.api.convert.node import node as show_node
from overlace.manager.control import lookup
from overlace.model.objects import Cluster, ManagerStatus, Node
from overlace.model.specs import NodeSpec
from overlace.store.base import View


def trust_root(view: View) -> str:
    return next((c.ca_cert_pem for c in view.all(Cluster)), "")


def _show(call: Call, found: Node, trust: str) -> msgspec.Raw:
    if call.manager().leader() is None and found.manager_status is not None:
        # what was last known of the managers may be long past
        unknown = ManagerStatus(leader=False, reachability="unknown", addr=found.manager_status.addr)
        stale = msgspec.structs.replace(found, manager_status=unknown)
        return call.shared.rendered.get(
            "node without leader", found.id, (found, trust), lambda: show_node(stale, trust)
        )
    return call.shared.rendered.get("node", found.id, (found, trust), lambda: show_node(found, trust))


def find(call: Call) -> tuple[ManagerHandle, Node]:
    manager = call.manager()
    return manager, lookup.find(manager.store.view(), Node, call.args["id"])


async def list_nodes(call: Call) -> web.StreamResponse:
    manager = call.manager()
    view = manager.store.view()
    trust = trust_root(view)
    found = lookup.list_nodes(view, call.filters())
    return answer([_show(call, n, trust) for n in found])


async def inspect(call: Call) -> web.StreamResponse:
    manager, found = find(call)
    return answer(_show(call, found, trust_root(manager.store.view())))


async def update(call: Call) -> web.StreamResponse:
    version = call.object_version("node")
    spec = await call.body(NodeSpec)
    manager, found = find(call)
    await manager.control.update_node(found.id, version, spec)
    return empty()


async def remove(call: Call) -> web.StreamResponse:
    manager, found = find(call)
    await manager.control.remove_node(found.id, call.flag("force"))
    return empty()


ROUTES = [
    Route("GET", "/nodes", list_nodes),
    Route("GET", "/nodes/{id}", inspect),
    Route("DELETE", "/nodes/{id}", remove),
    Route("POST", "/nodes/{id}/update", update),
]
