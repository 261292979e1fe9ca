"""Indexes the decisions need and the store lacks, kept from events: occupancy, addresses, waiting tasks.

Owns the sum of these indexes and their rebuilding from a view. Observing is idempotent. Must not decide
anything.
"""

from __future__ import annotations

from collections import Counter

from overlace.manager.allocate.book import AddressBook
from overlace.manager.schedule.occupancy import Occupancy
from overlace.model.objects import Base, Network, Node, Service, Task
from overlace.model.states import TaskState
from overlace.store.base import View


class Index:
    """Derived from the store's objects alone; `Index.of(view)` is the same as having observed every event."""

    def __init__(self) -> None:
        self.occupancy = Occupancy()
        self.book = AddressBook()
        self.unallocated: dict[str, None] = {}  # ids of live tasks in NEW, oldest first
        self.unassigned: dict[str, None] = {}  # ids of live tasks in PENDING
        self.globals: dict[str, None] = {}  # ids of services with a task per node
        self.nodes_to_address: dict[str, None] = {}  # nodes whose set of networks changed
        self.short_of_address: dict[str, None] = {}  # nodes a network had no address for
        self.freed = False  # a node, a port or an address has more room than before
        self.fresh = False  # a task waits that was not tried yet
        self._node_networks: dict[str, Counter[str]] = {}
        self._task_networks: dict[str, tuple[str, tuple[str, ...]]] = {}

    @classmethod
    def of(cls, view: View) -> Index:
        index = cls()
        for kind in (
            Node,
            Service,
            Task,
            Network,
        ):  # networks last: they look where to go on giving addresses
            for thing in view.all(kind):
                index.observe(kind.kind, thing.id, thing)
        return index

    def observe(self, kind: str, id: str, new: Base | None) -> None:
        """Note an object as it is now (None: deleted)."""
        if kind == "task":
            self._observe_task(id, new if isinstance(new, Task) else None)
        elif kind == "service":
            if isinstance(new, Service) and (new.spec.mode.global_ or new.spec.mode.global_job) is not None:
                self.globals[id] = None
            else:
                self.globals.pop(id, None)
        elif kind == "node":
            self.nodes_to_address[id] = None
        if kind in ("task", "service", "node", "network") and self.book.observe(kind, id, new):
            self.freed = True

    def networks_of_node(self, node_id: str) -> list[str]:
        """Networks the node's tasks are on."""
        return list(self._node_networks.get(node_id, ()))

    def _observe_task(self, id: str, task: Task | None) -> None:
        if self.occupancy.observe(id, task):
            self.freed = True
        live = task is not None and task.desired_state.wanted
        state = task.status.state if task is not None and live else TaskState.RUNNING
        self._wait(self.unallocated, id, state == TaskState.NEW)
        self._wait(self.unassigned, id, state == TaskState.PENDING)
        new: tuple[str, tuple[str, ...]] | None = None
        if task is not None and task.node_id and TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING:
            new = task.node_id, tuple(a.network_id for a in task.networks)
        old = self._task_networks.get(id)
        if old == new:
            return
        if old is not None:
            self._count(old, -1)
            del self._task_networks[id]
        if new is not None:
            self._count(new, 1)
            self._task_networks[id] = new

    def _count(self, entry: tuple[str, tuple[str, ...]], sign: int) -> None:
        node_id, networks = entry
        counts = self._node_networks.setdefault(node_id, Counter())
        for network_id in networks:
            before = counts[network_id]
            counts[network_id] += sign
            if not counts[network_id]:
                del counts[network_id]
            if not before or not before + sign:
                self.nodes_to_address[node_id] = None

    def _wait(self, ids: dict[str, None], id: str, waits: bool) -> None:
        if not waits:
            ids.pop(id, None)
        elif id not in ids:
            ids[id] = None
            self.fresh = True
