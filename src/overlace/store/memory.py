"""The store in memory: indexed tables, O(1) snapshots, planned commits, a watch queue.

Owns the state every home of the store works on (sqlite.py and etcd/ write it elsewhere first). A commit is planned first
(all expectations and unique names checked, final objects made) and applied after, so a refused commit changes
nothing. Must not know policy: what may be written is manager/control's business.

`asyncio.wait` and friends aside there is no concurrency here: all calls come from one event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar, cast

import msgspec

from overlace.model.errors import Conflict, OutOfSequence, Unavailable
from overlace.model.objects import KINDS, Base, Config, Network, Object, Secret, Service, Task
from overlace.store.base import Batch, Change, Delete, Event, Put
from overlace.store.tables import Index, Table
from overlace.store.watch import History, HistoryWatch

T = TypeVar("T", bound=Base)

Clock = Callable[[], int]
_PREFIX = 2  # characters of an id the prefix index groups by


def unique_name(thing: Base) -> str | None:
    """The name that must be unique within the kind (without regard to case, as in SwarmKit's store), or
    None."""
    if isinstance(thing, Service | Network | Secret | Config):
        return thing.spec.name.lower()
    return None


def name_conflict(thing: Base) -> Conflict:
    """Docker's words for a taken name (swarmkit controlapi, moby router/network)."""
    name = thing.spec.name if isinstance(thing, Service | Network | Secret | Config) else thing.id
    if isinstance(thing, Service):
        return Conflict(f"name conflicts with an existing object: service {name} already exists")
    if isinstance(thing, Network):
        return Conflict(f"network with name {name} already exists")
    return Conflict(f"{thing.kind} {name} already exists")


def _task_networks(task: Task) -> set[str]:
    return {a.network_id for a in task.networks} | {n.target for n in task.spec.networks}


def _service_networks(service: Service) -> set[str]:
    spec = service.spec
    return {n.target for n in spec.task_template.networks or spec.networks}


class MemoryView:
    """A snapshot; see `overlace.store.base.View`. Tasks of a network are those attached and those that ask to
    be."""

    __slots__ = ("_indexes", "_tables", "revision")

    def __init__(self, revision: int, tables: dict[str, Table[Base]], indexes: dict[str, Index]) -> None:
        self.revision = revision
        self._tables = tables
        self._indexes = indexes

    def get(self, kind: type[T], id: str) -> T | None:
        return cast("T | None", self._tables[kind.kind].get(id))

    def all(self, kind: type[T]) -> Iterator[T]:
        return cast("Iterator[T]", self._tables[kind.kind].values())

    def count(self, kind: type[Base]) -> int:
        return len(self._tables[kind.kind])

    def by_name(self, kind: type[T], name: str) -> T | None:
        for id in self._indexes[f"{kind.kind}/name"].ids(name.lower()):
            return self.get(kind, id)
        return None

    def by_prefix(self, kind: type[T], prefix: str) -> list[T]:
        index = self._indexes[f"{kind.kind}/prefix"]
        if len(prefix) >= _PREFIX:
            keys: Iterable[str] = (prefix[:_PREFIX],)
        else:
            keys = (key for key in index if key.startswith(prefix))
        ids = (id for key in keys for id in index.ids(key) if id.startswith(prefix))
        return [found for id in ids if (found := self.get(kind, id)) is not None]

    def tasks_of_service(self, service_id: str) -> Iterator[Task]:
        return self._of(Task, "task/service", service_id)

    def tasks_of_node(self, node_id: str) -> Iterator[Task]:
        return self._of(Task, "task/node", node_id)

    def tasks_of_network(self, network_id: str) -> Iterator[Task]:
        return self._of(Task, "task/network", network_id)

    def services_of_network(self, network_id: str) -> Iterator[Service]:
        return self._of(Service, "service/network", network_id)

    def _of(self, kind: type[T], index: str, key: str) -> Iterator[T]:
        table = self._tables[kind.kind]
        for id in self._indexes[index].ids(key):
            yield cast(T, table.get(id))


def _same_keys(old: Base | None, new: Base | None) -> bool:
    """The quick answer for most writes, a task whose status moved: unchanged parts are the same objects."""
    return (
        isinstance(old, Task)
        and isinstance(new, Task)
        and old.node_id == new.node_id
        and old.service_id == new.service_id
        and old.networks is new.networks
        and old.spec is new.spec
    )


def _index_keys(thing: Base) -> dict[str, set[str]]:
    """What an object is found by, beyond its id: index name -> keys. Depends on the object alone."""
    keys: dict[str, set[str]] = {}
    if isinstance(thing, Task):
        keys["task/service"] = {thing.service_id} if thing.service_id else set()
        keys["task/node"] = {thing.node_id} if thing.node_id else set()
        keys["task/network"] = _task_networks(thing)
    elif isinstance(thing, Service):
        keys["service/network"] = _service_networks(thing)
    name = unique_name(thing)
    if name is not None:
        keys[f"{thing.kind}/name"] = {name}
    return keys


class State:
    """The tables as of `revision`, and the history behind them."""

    def __init__(self, revision: int = 0, history: History | None = None) -> None:
        self.revision = revision
        self.history = history or History(revision)
        self._tables: dict[str, Table[Base]] = {kind: Table() for kind in KINDS}
        self._indexes = {
            name: Index()
            for name in (
                *(f"{kind}/prefix" for kind in KINDS),
                *(f"{kind}/name" for kind in KINDS),
                "task/service",
                "task/node",
                "task/network",
                "service/network",
            )
        }
        self._generation = 0
        self._view: MemoryView | None = None

    def view(self) -> MemoryView:
        if self._view is None:
            self._view = MemoryView(self.revision, self._tables, self._indexes)
            self._generation += 1
        return self._view

    def get(self, kind: str, id: str) -> Base | None:
        return self._tables[kind].get(id)

    def id_of_name(self, kind: str, name: str) -> str | None:
        for id in self._indexes[f"{kind}/name"].ids(name):
            return id
        return None

    def load(self, things: Iterable[Base]) -> None:
        """Fill an empty state without events (from disk)."""
        for thing in things:
            self._change(None, thing)

    def reload(self, things: Iterable[Base], revision: int) -> None:
        """Become exactly these objects. Watchers that were elsewhere get Lagged: nobody knows the way there."""
        wanted = {(thing.kind, thing.id): thing for thing in things}
        self._let_go_of_view()
        for table in list(self._tables.values()):
            for old in list(table.values()):
                new = wanted.pop((old.kind, old.id), None)
                if new != old:
                    self._change(old, new)
        for thing in wanted.values():
            self._change(None, thing)
        self.revision = revision
        self.history.reset(revision)

    def skip_to(self, revision: int) -> None:
        """Revisions up to this one brought nothing of their own."""
        while self.revision < revision:
            self.apply(Batch(revision=self.revision + 1, events=()))

    def apply(self, batch: Batch) -> None:
        self._let_go_of_view()
        for event in batch.events:
            self._change(event.old, event.new)
        self.revision = batch.revision
        self.history.publish(batch)

    def _let_go_of_view(self) -> None:
        """Before a change: tables a view shares are copied as they are written."""
        if self._view is not None:
            self._view = None
            self._tables = self._tables.copy()
            self._indexes = self._indexes.copy()

    def _change(self, old: Base | None, new: Base | None) -> None:
        generation = self._generation
        thing = new if new is not None else old
        assert thing is not None
        kind, id = thing.kind, thing.id
        table = self._tables[kind]
        if new is None:
            self._tables[kind] = table.delete(id, generation)
        else:
            self._tables[kind] = table.put(id, new, generation)
        if old is None:
            self._add(f"{kind}/prefix", id[:_PREFIX], id)
        elif new is None:
            self._discard(f"{kind}/prefix", id[:_PREFIX], id)
        if _same_keys(old, new):
            return
        before = _index_keys(old) if old is not None else {}
        after = _index_keys(new) if new is not None else {}
        if before == after:
            return
        for name in before.keys() | after.keys():
            was, now = before.get(name, set()), after.get(name, set())
            for key in was - now:
                self._discard(name, key, id)
            for key in sorted(now - was):
                self._add(name, key, id)

    def _add(self, index: str, key: str, id: str) -> None:
        self._indexes[index] = self._indexes[index].add(key, id, self._generation)

    def _discard(self, index: str, key: str, id: str) -> None:
        self._indexes[index] = self._indexes[index].discard(key, id, self._generation)


class Planner:
    """Plans commits on top of a state, and on top of each other, without changing the state: one planner,
    several commits, is how sqlite writes a group of commits in one transaction."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._objects: dict[tuple[str, str], Base | None] = {}
        self._names: dict[tuple[str, str], str | None] = {}
        self.revision = state.revision

    def plan(self, changes: Sequence[Change], now: int) -> Batch | None:
        """The batch these changes make; None when they change nothing. Raises OutOfSequence or Conflict (see
        `Store.commit`), and then nothing of them is remembered."""
        objects: dict[tuple[str, str], Base | None] = {}
        names: dict[tuple[str, str], str | None] = {}
        events: list[Event] = []
        revision = self.revision + 1

        def current(kind: str, id: str) -> Base | None:
            key = (kind, id)
            if key in objects:
                return objects[key]
            if key in self._objects:
                return self._objects[key]
            return self._state.get(kind, id)

        def holder(kind: str, name: str) -> str | None:
            key = (kind, name)
            if key in names:
                return names[key]
            if key in self._names:
                return self._names[key]
            return self._state.id_of_name(kind, name)

        for change in changes:
            if isinstance(change, Delete):
                old = current(change.kind, change.id)
                if old is None:
                    if change.expect:
                        raise OutOfSequence
                    continue
                if change.expect is not None and change.expect != old.version:
                    raise OutOfSequence
                if (name := unique_name(old)) is not None:
                    names[old.kind, name] = None
                objects[old.kind, old.id] = None
                events.append(Event(kind=old.kind, id=old.id, old=cast(Object, old), new=None))
                continue
            thing: Base = change.object
            old = current(thing.kind, thing.id)
            _check_expectation(change, old)
            name = unique_name(thing)
            if name is not None and (old is None or unique_name(old) != name):
                if holder(thing.kind, name) is not None:
                    raise name_conflict(thing)
                if old is not None and (freed := unique_name(old)) is not None:
                    names[thing.kind, freed] = None
                names[thing.kind, name] = thing.id
            new = msgspec.structs.replace(
                thing, version=revision, created_at=old.created_at if old is not None else now, updated_at=now
            )
            objects[thing.kind, thing.id] = new
            events.append(
                Event(kind=thing.kind, id=thing.id, old=cast("Object | None", old), new=cast(Object, new))
            )
        if not events:
            return None
        self._objects.update(objects)
        self._names.update(names)
        self.revision = revision
        return Batch(revision=revision, events=tuple(events))


def _check_expectation(change: Put, old: Base | None) -> None:
    expect = change.expect
    if expect is None:
        return
    if expect == 0:
        if old is not None:
            raise Conflict(f"{old.kind} {old.id} already exists")
    elif old is None or old.version != expect:
        raise OutOfSequence


class MemoryStore:
    """`overlace.store.base.Store` without a disk: for tests, simulations and benchmarks."""

    def __init__(self, clock: Clock = time.time_ns, history: History | None = None) -> None:
        self._clock = clock
        self._state = State(0, history)

    def view(self) -> MemoryView:
        return self._state.view()

    async def commit(self, changes: Sequence[Change]) -> int:
        if self._state.history.closed:
            raise Unavailable("the store is closed")
        batch = Planner(self._state).plan(changes, self._clock())
        if batch is not None:
            self._state.apply(batch)
        return self._state.revision

    def watch(self, since: int | None = None) -> HistoryWatch:
        return HistoryWatch(self._state.history, self._state.revision if since is None else since)

    async def close(self) -> None:
        self._state.history.close()
