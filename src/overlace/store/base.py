"""The store interface: view, update with optimistic versions, watch from a revision.

Owns the words every home of the store (memory, sqlite, etcd) offers. Must not know managers, HTTP or policy.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Protocol, TypeVar

import msgspec

from overlace.model.objects import Base, Object, Service, Task

T = TypeVar("T", bound=Base)


class Put(msgspec.Struct, frozen=True):
    """Create or replace. `expect` is the version the writer read: 0 = must not exist, None = whatever is there."""

    object: Object
    expect: int | None = None


class Delete(msgspec.Struct, frozen=True):
    kind: str
    id: str
    expect: int | None = None


Change = Put | Delete


class Event(msgspec.Struct, frozen=True):
    """One object's change; `old` is None for a create, `new` is None for a delete."""

    kind: str
    id: str
    old: Object | None
    new: Object | None


class Batch(msgspec.Struct, frozen=True):
    """All that one commit changed, in order."""

    revision: int
    events: tuple[Event, ...]


class View(Protocol):
    """A consistent, immutable snapshot. Lookups by index cost what they return."""

    revision: int

    def get(self, kind: type[T], id: str) -> T | None: ...

    def all(self, kind: type[T]) -> Iterable[T]: ...

    def by_name(self, kind: type[T], name: str) -> T | None:
        """Nodes by hostname are not here: names of services, networks, secrets, configs are unique, hostnames not."""

    def by_prefix(self, kind: type[T], prefix: str) -> list[T]: ...

    def tasks_of_service(self, service_id: str) -> Iterable[Task]: ...

    def tasks_of_node(self, node_id: str) -> Iterable[Task]: ...

    def tasks_of_network(self, network_id: str) -> Iterable[Task]: ...

    def services_of_network(self, network_id: str) -> Iterable[Service]: ...


class Store(Protocol):
    def view(self) -> View: ...

    async def commit(self, changes: Sequence[Change]) -> int:
        """All or nothing; durable when it returns. Returns the new revision (the old one for no changes).

        Raises OutOfSequence (an `expect` does not hold, or a Put over something deleted), Conflict (expect 0 and
        the id or the unique name exists: `name conflicts with an existing object`), Unavailable (the disk refuses:
        nothing changed).
        """

    def watch(self, since: int | None = None) -> Watch:
        """Batches after revision `since` (None: from now), in order, none missed; a watcher that lags too far gets
        Lagged and must take a fresh view."""

    async def close(self) -> None: ...


class Lagged(Exception):
    """The watcher fell behind the queue or asked for a revision no longer kept: take a view and watch from it."""


class Watch(Protocol):
    def __aiter__(self) -> AsyncIterator[Batch]: ...

    async def next(self, timeout: float | None = None) -> Batch | None:
        """The next batch, or None after `timeout` seconds."""

    def drain(self) -> list[Batch]:
        """All batches that are there now, without waiting."""

    def close(self) -> None: ...
