"""/services. Owns the routes; rules are manager.control's."""

from __future__ import annotations

import msgspec
from aiohttp import web

from overlace.api.backend import ManagerHandle
from overlace.api.call import Call, Route, answer, empty
from overlace.api.convert.service import service as show_service
from overlace.api.convert.service import service_status
from overlace.api.logs import stream_task_logs
from overlace.manager.control import lookup
from overlace.model.capabilities import explain_clients
from overlace.model.objects import Node, Service
from overlace.model.specs import ServiceSpec
from overlace.model.states import NodeState, TaskState
from overlace.store.base import View


def _show(call: Call, found: Service, defaults: bool = False) -> msgspec.Raw:
    form = "service+defaults" if defaults else "service"
    return call.shared.rendered.get(form, found.id, (found,), lambda: show_service(found, defaults))


def find(call: Call) -> tuple[ManagerHandle, Service]:
    manager = call.manager()
    return manager, lookup.find(manager.store.view(), Service, call.args["id"])


async def list_services(call: Call) -> web.StreamResponse:
    manager = call.manager()
    view = manager.store.view()
    found = lookup.list_services(view, call.filters())
    if not (call.flag("status") and call.version >= (1, 41)):
        return answer([_show(call, s) for s in found])
    live = frozenset(n.id for n in view.all(Node) if n.status.state != NodeState.DOWN and not n.removed)
    shown = []
    for service in found:
        status = service_status(service, view.tasks_of_service(service.id), live)
        # the rendered document with one more member: its last byte is the closing brace
        head = bytes(_show(call, service))[:-1]
        shown.append(msgspec.Raw(head + b',"ServiceStatus":' + msgspec.json.encode(status) + b"}"))
    return answer(shown)


async def inspect(call: Call) -> web.StreamResponse:
    manager, found = find(call)
    shown = _show(call, found, call.flag("insertDefaults"))
    notes = _notes(manager.store.view(), found)
    if notes:  # as in list_services
        shown = msgspec.Raw(bytes(shown)[:-1] + b',"Notes":' + msgspec.json.encode(notes) + b"}")
    return answer(shown)


def _notes(view: View, found: Service) -> list[str]:
    """What a service as it runs now has otherwise than its spec makes one expect; ours, not Docker's."""
    ports = found.endpoint.ports if found.endpoint is not None else ()
    if not any(p.publish_mode == "ingress" for p in ports):
        return []
    if not any(t.status.state == TaskState.RUNNING for t in view.tasks_of_service(found.id)):
        return []
    # clients come in by every node, whether it runs a task or not
    where = explain_clients(n for n in view.all(Node) if n.status.state == NodeState.READY and not n.removed)
    return [where] if where else []


async def create(call: Call) -> web.StreamResponse:
    spec = await call.body(ServiceSpec)
    id, warnings = await call.manager().control.create_service(spec, _auth(call))
    return answer({"ID": id, "Warnings": warnings or None}, 201)


async def update(call: Call) -> web.StreamResponse:
    version = call.object_version("service")
    spec = await call.body(ServiceSpec)
    manager, found = find(call)
    warnings = await manager.control.update_service(
        found.id,
        version,
        spec,
        registry_auth=_auth(call),
        registry_auth_from=call.text("registryAuthFrom", "spec"),
        rollback=call.text("rollback"),
    )
    return answer({"Warnings": warnings or None})


def _auth(call: Call) -> str:
    return call.request.headers.get("X-Registry-Auth", "")


async def remove(call: Call) -> web.StreamResponse:
    manager, found = find(call)
    await manager.control.remove_service(found.id)
    return empty()


async def logs(call: Call) -> web.StreamResponse:
    manager, found = find(call)
    container = found.spec.task_template.container_spec
    return await stream_task_logs(call, manager, service_id=found.id, tty=bool(container and container.tty))


ROUTES = [
    Route("GET", "/services", list_services),
    Route("POST", "/services/create", create),
    Route("GET", "/services/{id}", inspect),
    Route("DELETE", "/services/{id}", remove),
    Route("POST", "/services/{id}/update", update),
    Route("GET", "/services/{id}/logs", logs),
]
