"""What a store that writes outside memory needs, wherever that is: objects as bytes, and commits written in groups.

Owns who waits, what is written together and who hears what became of it. A commit is planned in memory, written, and
only then applied in memory and published; commits that wait at the same time share a write. Must not know where it is
written, nor policy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from overlace.model.errors import OverlaceError, Unavailable
from overlace.model.objects import KINDS, Base
from overlace.store.base import Batch, Change
from overlace.store.memory import Clock, Planner, State

encode = msgspec.msgpack.Encoder().encode
DECODERS = {kind: msgspec.msgpack.Decoder(struct).decode for kind, struct in KINDS.items()}


def last_of_each(batches: Sequence[Batch]) -> dict[tuple[str, str], Base | None]:
    """What these batches come to, by kind and id; None: deleted."""
    final: dict[tuple[str, str], Base | None] = {}
    for batch in batches:
        for event in batch.events:
            final[event.kind, event.id] = event.new
    return final


class GroupCommits:
    """Commits to `state`. `write` has them where they are kept when it returns, all of them, or raises why none is;
    `check` may refuse a caller's changes before they are planned."""

    def __init__(
        self,
        state: State,
        clock: Clock,
        write: Callable[[Sequence[Batch]], Awaitable[None]],
        check: Callable[[Sequence[Change]], None] = lambda changes: None,
    ) -> None:
        self._state = state
        self._clock = clock
        self._write = write
        self._check = check
        self._waiting: list[tuple[Sequence[Change], asyncio.Future[int]]] = []
        self._drain: asyncio.Task[None] | None = None
        self._ended: OverlaceError = Unavailable("the store is closed")

    async def commit(self, changes: Sequence[Change]) -> int:
        """The store's revision with them. Raises what `check`, the plan or `write` raised."""
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((changes, done))
        if self._drain is None or self._drain.done():
            self._drain = asyncio.create_task(self._write_waiting())
        return await done

    async def finish(self) -> None:
        """Until nobody waits."""
        if self._drain is not None:
            await asyncio.gather(self._drain, return_exceptions=True)

    async def stop(self, error: OverlaceError) -> None:
        """Write no more: who waits gets `error`, though what is being written may get through."""
        self._ended = error
        if self._drain is not None:
            self._drain.cancel()
            await asyncio.gather(self._drain, return_exceptions=True)
            self._drain = None
        for _, done in self._waiting:
            _fail(done, error)
        self._waiting.clear()

    async def _write_waiting(self) -> None:
        """Write group after group until nobody waits. The group's fate is the write's: a caller that gave up
        waiting does not take its commit back."""
        while self._waiting:
            group, self._waiting = self._waiting, []
            planner = Planner(self._state)
            planned: list[tuple[Batch | None, asyncio.Future[int]]] = []
            for changes, done in group:
                try:
                    self._check(changes)
                    planned.append((planner.plan(changes, self._clock()), done))
                except Exception as error:  # a value that cannot be stored is that caller's trouble alone
                    _fail(done, error)
            batches = [batch for batch, _ in planned if batch is not None]
            try:
                if batches:
                    await self._write(batches)
            except asyncio.CancelledError:
                for _, done in planned:
                    _fail(done, self._ended)
                raise
            except Exception as error:
                for _, done in planned:
                    _fail(done, error)
                continue
            for batch, done in planned:
                if batch is not None:
                    self._state.apply(batch)
                if not done.done():
                    done.set_result(batch.revision if batch is not None else self._state.revision)


def _fail(done: asyncio.Future[int], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)
