"""/tasks. Owns the routes; rules are manager.control's."""

from __future__ import annotations

import msgspec
from aiohttp import web

from overlace.api.backend import ManagerHandle
from overlace.api.call import Call, Route, answer
from overlace.api.convert.task import task as show_task
from overlace.api.logs import stream_task_logs
from overlace.manager.control import lookup
from overlace.model.objects import Network, Task
from overlace.store.base import View


def _show(call: Call, view: View, found: Task) -> msgspec.Raw:
    networks = [view.get(Network, a.network_id) for a in found.networks]
    there = {n.id: n for n in networks if n is not None}
    return call.shared.rendered.get("task", found.id, (found, *networks), lambda: show_task(found, there))


def find(call: Call) -> tuple[ManagerHandle, Task]:
    manager = call.manager()
    return manager, lookup.find(manager.store.view(), Task, call.args["id"])


async def list_tasks(call: Call) -> web.StreamResponse:
    manager = call.manager()
    view = manager.store.view()
    return answer([_show(call, view, t) for t in lookup.list_tasks(view, call.filters())])


async def inspect(call: Call) -> web.StreamResponse:
    manager, found = find(call)
    return answer(_show(call, manager.store.view(), found))


async def logs(call: Call) -> web.StreamResponse:
    manager, found = find(call)
    container = found.spec.container_spec
    return await stream_task_logs(call, manager, task_id=found.id, tty=bool(container and container.tty))


ROUTES = [
    Route("GET", "/tasks", list_tasks),
    Route("GET", "/tasks/{id}", inspect),
    Route("GET", "/tasks/{id}/logs", logs),
]
