"""One standalone container in memory: its record, who waits for it, what is to come. Must not act on anything."""

from __future__ import annotations

import asyncio

import msgspec

from overlace.agent.standalone.records import Joined, Record
from overlace.network.base import Attached


class Waiting(msgspec.Struct):
    """Somebody waits for the end of a run (`next-exit`) or of the container (`removed`)."""

    removed: bool
    told: asyncio.Future[tuple[int, str]]


class Slot:
    """`lock` is held by every effect on the container."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.lock = asyncio.Lock()
        self.attached: Attached | None = None
        self.pending: asyncio.Task[None] | None = None  # a start to come
        self.told: tuple[Joined, ...] = ()  # the networks it is on, as far as was told
        self.exit_code = 0
        self.kept = False  # it ends to be started again: no reason to remove it
        self._waiting: list[Waiting] = []

    @property
    def id(self) -> str:
        return self.record.wish.id

    def forget_pending(self) -> None:
        pending, self.pending = self.pending, None
        if pending is not None and pending is not asyncio.current_task():
            pending.cancel()

    def moved(self, now: tuple[Joined, ...]) -> list[tuple[str, Joined]]:
        """Which networks it came off and on (disconnect, connect) since it was last asked; `now`: those it is on."""
        before, self.told = self.told, now
        here, there = {j.name for j in now}, {j.name for j in before}
        off = [("disconnect", j) for j in before if j.name not in here]
        return off + [("connect", j) for j in now if j.name not in there]

    def wait(self, *, removed: bool) -> asyncio.Future[tuple[int, str]]:
        """(exit code, error) once the next run ends, or once the container is removed. Cancel it to give up."""
        waiting = Waiting(removed, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        waiting.told.add_done_callback(
            lambda _: self._waiting.remove(waiting) if waiting in self._waiting else None
        )
        return waiting.told

    def answer(self, *, removed: bool, error: str) -> None:
        """A run has ended, or the container is gone."""
        for waiting in list(self._waiting):
            if (removed or not waiting.removed) and not waiting.told.done():
                waiting.told.set_result((self.exit_code, error))
