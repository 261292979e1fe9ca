"""One tick of the manager: from what changed to all that follows from it, as one list of store changes.

Owns what makes what dirty and the order of the stages: networks, constraint enforcement, services,
allocation, scheduling, node addresses, warnings. Each stage sees the ones before (draft.py). Pure: no clock,
randomness, I/O. An error in one service's decision is returned, not raised, and stops nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from overlace.manager.allocate.attachments import plan_attachment
from overlace.manager.allocate.networks import plan_networks
from overlace.manager.allocate.room import plan_warning
from overlace.manager.allocate.services import Blocked, plan_endpoint
from overlace.manager.allocate.tasks import plan_node_addresses, plan_task_blocked, plan_task_networks
from overlace.manager.draft import Draft
from overlace.manager.index import Index
from overlace.manager.orchestrate.service import plan_service
from overlace.manager.orchestrate.work import NewId
from overlace.manager.schedule.enforce import plan_enforcement
from overlace.manager.schedule.place import GroupKey, group_key, plan_placement
from overlace.model.objects import Network, Node, Service, Task
from overlace.model.states import TaskState
from overlace.store.base import Delete, Event, Put, View


class Dirty:
    """What changed since the last tick, reduced to what must be decided again."""

    def __init__(self) -> None:
        self.services: dict[str, None] = {}
        self.nodes: dict[str, None] = {}  # whose state, availability, labels or description changed
        self.networks = False
        self.capacity = False  # a node appeared or changed: tasks that found none may find one

    def __bool__(self) -> bool:
        return bool(self.services or self.nodes or self.networks or self.capacity)

    def everything(self, view: View) -> None:
        self.services |= {service.id: None for service in view.all(Service)}
        self.services |= {task.service_id: None for task in view.all(Task) if task.service_id}
        self.nodes |= {node.id: None for node in view.all(Node)}
        self.networks = self.capacity = True

    def merge(self, other: Dirty) -> None:
        self.services |= other.services
        self.nodes |= other.nodes
        self.networks |= other.networks
        self.capacity |= other.capacity

    def observe(self, event: Event) -> None:
        """Mark what an event concerns. Task progress nobody decides upon (preparing, starting …) marks
        nothing.
        """
        old, new = event.old, event.new
        match event.kind:
            case "task":
                task = new if isinstance(new, Task) else old
                before = old if isinstance(old, Task) else None
                after = new if isinstance(new, Task) else None
                if isinstance(task, Task) and task.service_id and task_matters(before, after):
                    self.services[task.service_id] = None
            case "service":
                self.services[event.id] = None
            case "node":
                before_node = old if isinstance(old, Node) else None
                after_node = new if isinstance(new, Node) else None
                if node_matters(before_node, after_node):
                    self.nodes[event.id] = None
                    self.capacity = True
            case "network" | "cluster":
                self.networks = True


def task_matters(old: Task | None, new: Task | None) -> bool:
    """Whether an orchestrator may decide differently: created, deleted, wanted otherwise, running or over."""
    if old is None or new is None:
        return True
    before, after = old.status.state, new.status.state
    return old.desired_state != new.desired_state or (
        before != after and (after >= TaskState.RUNNING or before >= TaskState.RUNNING)
    )


def node_matters(old: Node | None, new: Node | None) -> bool:
    if old is None or new is None:
        return True
    return (
        old.spec != new.spec
        or old.status.state != new.status.state
        or old.status.addr != new.status.addr
        or old.removed != new.removed
        or old.description != new.description
    )


Subject = tuple[str, str]  # (kind, id) of what a decision is about: a service or a node


class Tick(msgspec.Struct, frozen=True):
    """What one tick decided. `wakes`: when to look at something again, ns, if nothing marks it before."""

    draft: Draft
    wakes: dict[Subject, int]
    errors: dict[Subject, Exception]
    warned: tuple[Network, ...] = ()  # networks that are nearly full from now on


def plan_tick(view: View, index: Index, dirty: Dirty, now: int, new_id: NewId) -> Tick:
    """Decide all that `dirty` asks for on top of `view`; `index` follows (undo the draft if the commit fails).

    Cost: the dirty services' tasks, the waiting tasks, and the nodes once per group of tasks to place.
    """
    return _Planner(view, index, dirty, now, new_id).run()


class _Planner:
    def __init__(self, view: View, index: Index, dirty: Dirty, now: int, new_id: NewId) -> None:
        self.draft = Draft(view, index)
        self.index = index
        self.dirty = dirty
        self.now = now
        self.new_id = new_id
        self.services = dict(dirty.services)
        self.waiting: dict[str, list[Task]] = {}  # tasks without addresses by service
        self.wakes: dict[Subject, int] = {}
        self.errors: dict[Subject, Exception] = {}
        self.warned: list[Network] = []

    def run(self) -> Tick:
        if self.dirty.networks:
            self._networks()
        for id in self.dirty.nodes:
            self._guard("node", id, self._node)
        for id in self.services:
            self._guard("service", id, self._service)
        self._gather_unallocated()
        for id in (*self.services, *(id for id in self.waiting if id not in self.services)):
            self._guard("service", id, self._allocate)
        self._guard("service", "", self._attach)
        self._schedule()
        self._node_addresses()
        self._warnings()
        self.index.freed = self.index.fresh = False
        return Tick(self.draft, self.wakes, self.errors, tuple(self.warned))

    def _guard(self, kind: str, id: str, stage: Callable[[str], None]) -> None:
        """An error stays with its subject; what the stage had applied until then is whole and stays."""
        if (kind, id) in self.errors:
            return
        try:
            stage(id)
        except Exception as error:
            self.errors[kind, id] = error

    # -- stages ----------------------------------------------------------------------------------------------

    def _networks(self) -> None:
        self.draft.apply(plan_networks(self.draft))
        for network in self.draft.all(Network):
            for service in self.draft.services_of_network(network.id):
                self.services[service.id] = None
            if network.spec.ingress:
                for node in self.draft.all(Node):
                    self.index.nodes_to_address[node.id] = None

    def _node(self, id: str) -> None:
        node = self.draft.get(Node, id)
        if node is not None:
            self.draft.apply(plan_enforcement(self.draft, node, self.now))
        if node is None or node.removed:  # its containers outside of services went with it
            gone = [t for t in self.draft.tasks_of_node(id) if t.attachment]
            self.draft.apply([Delete("task", t.id, expect=t.version) for t in gone])
        for task in self.draft.tasks_of_node(id):
            if task.service_id:
                self.services[task.service_id] = None
        self.services |= self.index.globals

    def _service(self, id: str) -> None:
        decision = plan_service(self.draft, id, self.now, self.new_id)
        self.draft.apply(decision.changes)
        if decision.wake is not None:
            self.wakes["service", id] = decision.wake

    def _gather_unallocated(self) -> None:
        for task_id in self.index.unallocated:
            task = self.draft.get(Task, task_id)
            if task is not None:
                self.waiting.setdefault(task.service_id, []).append(task)

    def _attach(self, id: str) -> None:
        """Addresses of containers outside of services."""
        tasks = [t for t in self.waiting.get("", []) if t.attachment]
        for task in sorted(tasks, key=lambda t: (t.created_at, t.id)):
            try:
                self.draft.apply([plan_attachment(self.draft, self.index.book, task, self.now)])
            except Blocked as why:
                self.draft.apply(plan_task_blocked(task, str(why), self.now))

    def _allocate(self, id: str) -> None:
        service = self.draft.get(Service, id)
        if service is None:
            return
        waiting = self.waiting.get(id, [])
        waiting.sort(key=lambda t: (t.slot, t.created_at, t.id))
        blocked = ""
        try:
            allocated = plan_endpoint(self.draft, self.index.book, service)
            if allocated is not None:
                self.draft.apply([Put(allocated, expect=service.version)])
                service = allocated
        except Blocked as why:
            blocked = str(why)
        for task in waiting:
            if not blocked:
                try:
                    self.draft.apply(
                        [plan_task_networks(self.draft, self.index.book, service, task, self.now)]
                    )
                    continue
                except Blocked as why:
                    blocked = str(why)
            self.draft.apply(plan_task_blocked(task, blocked, self.now))

    def _schedule(self) -> None:
        groups: dict[GroupKey, list[Task]] = {}
        retry = self.dirty.capacity or self.index.freed
        for id in self.index.unassigned:
            task = self.draft.get(Task, id)
            if task is not None:
                groups.setdefault(group_key(task), []).append(task)
        if not groups:
            return
        nodes = list(self.draft.all(Node))
        for (service_id, _, _), tasks in groups.items():
            if not retry and all(task.status.err for task in tasks):
                continue  # tried before, and nothing has changed for them
            tasks.sort(key=lambda t: (t.slot, t.created_at, t.id))

            def place(_: str, tasks: list[Task] = tasks) -> None:
                self.draft.apply(plan_placement(nodes, self.index.occupancy, tasks, self.now))

            self._guard("service", service_id, place)

    def _node_addresses(self) -> None:
        nodes = self.index.nodes_to_address
        if self.index.freed:
            nodes |= self.index.short_of_address
            self.index.short_of_address.clear()
        for id in list(nodes):
            self._guard("node", id, self._address_node)
        nodes.clear()

    def _warnings(self) -> None:
        book = self.index.book
        for id in book.moved:
            network = self.draft.get(Network, id)
            if network is None:
                continue
            self.draft.apply(plan_warning(network, *book.capacity(id)))
            after = self.draft.get(Network, id)
            if after is not None and after.warning and after.warning != network.warning:
                self.warned.append(after)
        book.moved = {}

    def _address_node(self, id: str) -> None:
        node = self.draft.get(Node, id)
        if node is None:
            return
        in_use = self.index.networks_of_node(id)
        self.draft.apply(plan_node_addresses(self.draft, self.index.book, node, in_use))
        after = self.draft.get(Node, id)
        if after is not None and any(network_id not in after.network_addresses for network_id in in_use):
            self.index.short_of_address[id] = None
