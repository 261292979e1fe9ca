"""A view with a tick's decisions on top: later stages see what earlier ones decided, and all is one commit.

Owns the overlay and the changes it amounts to. Must not decide anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar, cast

from overlace.manager.index import Index
from overlace.model.objects import KINDS, Base, Object, Service, Task
from overlace.store.base import Change, Delete, Put, View

T = TypeVar("T", bound=Base)


class Draft:
    """See `overlace.store.base.View`. `apply` keeps the index in step; `undo` takes it back after a failed
    commit.
    """

    def __init__(self, view: View, index: Index) -> None:
        self._view = view
        self._index = index
        self._over: dict[str, dict[str, Base | None]] = {kind: {} for kind in KINDS}
        # tasks whose index keys this draft added: they are not in the base view's answer for that key
        self._by_service: dict[str, dict[str, None]] = {}
        self._by_node: dict[str, dict[str, None]] = {}
        self._by_network: dict[str, dict[str, None]] = {}
        self.revision = view.revision

    # -- reading ---------------------------------------------------------------------------------------------

    def get(self, kind: type[T], id: str) -> T | None:
        over = self._over[kind.kind]
        if id in over:
            return cast("T | None", over[id])
        return self._view.get(kind, id)

    def all(self, kind: type[T]) -> Iterable[T]:
        seen = self._current(kind, self._view.all(kind))
        fresh = [
            thing
            for id, thing in self._over[kind.kind].items()
            if thing is not None and self._view.get(kind, id) is None
        ]
        return seen + cast("list[T]", fresh)

    def by_name(self, kind: type[T], name: str) -> T | None:
        found = self._view.by_name(kind, name)  # no decision renames anything
        return self.get(kind, found.id) if found is not None else None

    def by_prefix(self, kind: type[T], prefix: str) -> list[T]:
        return [thing for thing in self.all(kind) if thing.id.startswith(prefix)]

    def tasks_of_service(self, service_id: str) -> Iterable[Task]:
        return self._tasks(self._view.tasks_of_service(service_id), self._by_service.get(service_id, {}))

    def tasks_of_node(self, node_id: str) -> Iterable[Task]:
        return self._tasks(self._view.tasks_of_node(node_id), self._by_node.get(node_id, {}))

    def tasks_of_network(self, network_id: str) -> Iterable[Task]:
        return self._tasks(self._view.tasks_of_network(network_id), self._by_network.get(network_id, {}))

    def services_of_network(self, network_id: str) -> Iterable[Service]:
        return self._current(Service, self._view.services_of_network(network_id))

    def _tasks(self, base: Iterable[Task], added: Iterable[str]) -> list[Task]:
        tasks = {task.id: task for task in self._current(Task, base)}
        for id in added:
            task = self.get(Task, id)
            if task is not None:
                tasks[id] = task
        return list(tasks.values())

    def _current(self, kind: type[T], things: Iterable[T]) -> list[T]:
        over = self._over[kind.kind]
        if not over:
            return list(things)
        now = (over.get(thing.id, thing) for thing in things)
        return [cast(T, thing) for thing in now if thing is not None]

    # -- writing ---------------------------------------------------------------------------------------------

    def apply(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change, Put):
                thing: Base = change.object
                self._over[thing.kind][thing.id] = thing
                if isinstance(thing, Task):
                    self._note(thing)
                self._index.observe(thing.kind, thing.id, thing)
            else:
                self._over[change.kind][change.id] = None
                self._index.observe(change.kind, change.id, None)

    def _note(self, task: Task) -> None:
        if task.service_id:
            self._by_service.setdefault(task.service_id, {})[task.id] = None
        if task.node_id:
            self._by_node.setdefault(task.node_id, {})[task.id] = None
        for attachment in task.networks:
            self._by_network.setdefault(attachment.network_id, {})[task.id] = None

    def changes(self) -> list[Change]:
        """One change per object, expecting the versions the base view has."""
        changes: list[Change] = []
        for kind, over in self._over.items():
            for id, thing in over.items():
                base = self._view.get(KINDS[kind], id)
                if thing is not None:
                    changes.append(Put(cast(Object, thing), expect=base.version if base is not None else 0))
                elif base is not None:
                    changes.append(Delete(kind, id, expect=base.version))
        return changes

    def undo(self) -> None:
        """Put the index back to the base view; the draft is of no use afterwards."""
        for kind, over in self._over.items():
            for id in over:
                self._index.observe(kind, id, self._view.get(KINDS[kind], id))
            over.clear()
        self._index.freed = True  # whoever this tick gave up on is tried again
