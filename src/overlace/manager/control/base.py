"""What all verbs share: the store, the lock that makes check-then-commit one step, and the mark on errors.

Errors the swarm's control API makes in Docker reach clients as `rpc error: code = X desc = Y`. Such errors
are raised here through `swarm(...)`, which sets `error.swarm = True`; the API puts the words around them
(`model.errors.rpc_text`). Errors Docker's daemon makes itself, before the control API, stay unmarked and are
shown bare.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

import msgspec

from overlace.model.errors import Conflict, OutOfSequence, OverlaceError
from overlace.model.ids import new_id
from overlace.model.objects import Network
from overlace.runtime.base import Platform, RegistryAuth
from overlace.store.base import Change, Put, Store

E = TypeVar("E", bound=OverlaceError)


def swarm(error: E) -> E:
    """Mark an error as the control API's."""
    error.swarm = True
    return error


class ImageFacts(Protocol):
    """What control reads of `manager.registry.Distribution`."""

    @property
    def digest(self) -> str: ...

    @property
    def platforms(self) -> tuple[Platform, ...]: ...


class ImageResolver(Protocol):
    """`manager.registry.Resolver`."""

    async def inspect(self, reference: str, auth: RegistryAuth | None = None) -> ImageFacts:
        """Raises NotFound, Unauthenticated, PermissionDenied or Unavailable, within a bounded time."""


class Core:
    """The parts of `Control` know each other only through this."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], int] = time.time_ns,
        new_id: Callable[[], str] = new_id,
        resolver: ImageResolver | None = None,
        check_promotion: Callable[[], None] | None = None,
    ) -> None:
        self.store = store
        self._clock = clock
        self._new_id = new_id
        self._resolver = resolver
        self._check_promotion = (
            check_promotion  # raises why no second manager can be had; None: never possible
        )
        # Checks over several objects (ports, names, "in use") hold between the look and the commit only
        # under it. Nothing slow may be awaited inside but the commit.
        self._lock = asyncio.Lock()

    async def _commit(self, changes: Sequence[Change]) -> int:
        """Commit, with the store's refusals marked as Docker shows them (a taken network name is the daemon's
        own)."""
        try:
            return await self.store.commit(changes)
        except (OutOfSequence, Conflict) as error:
            network = any(isinstance(c, Put) and isinstance(c.object, Network) for c in changes)
            raise error if network and isinstance(error, Conflict) else swarm(error) from None


def check_version(current: int, given: int) -> None:
    """Raises OutOfSequence when the caller has not seen the object as it is."""
    if current != given:
        raise swarm(OutOfSequence())


def merged(document: msgspec.Struct, **changes: object) -> msgspec.Struct:
    return msgspec.structs.replace(document, **changes)


def label_map(filters: Sequence[str]) -> Mapping[str, str | None]:
    """`key` or `key=value` filters; None asks for the key alone."""
    found: dict[str, str | None] = {}
    for text in filters:
        key, equals, value = text.partition("=")
        found[key] = value if equals else None
    return found
