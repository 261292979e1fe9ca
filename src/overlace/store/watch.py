"""The watch queue: the batches of the last commits, and the cursors that read them.

Owns the history and its bounds. A watcher is a cursor into the shared history, so a slow one costs nothing;
once the history no longer holds its next batch it gets `Lagged`. Must not know tables or disks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from overlace.store.base import Batch, Lagged

KEEP_BATCHES = 4096
KEEP_EVENTS = 200_000


class History:
    """The last batches by revision. `publish` wakes every waiting watcher."""

    def __init__(
        self, revision: int = 0, keep_batches: int = KEEP_BATCHES, keep_events: int = KEEP_EVENTS
    ) -> None:
        self.revision = revision
        self.closed = False
        self._batches: dict[int, Batch] = {}  # consecutive revisions, oldest first
        self._oldest = revision + 1
        self._events = 0
        self._keep_batches = keep_batches
        self._keep_events = keep_events
        self._waiting: set[asyncio.Future[None]] = set()

    def publish(self, batch: Batch) -> None:
        assert batch.revision == self.revision + 1, "revisions are consecutive"
        self.revision = batch.revision
        self._batches[batch.revision] = batch
        self._events += len(batch.events)
        while len(self._batches) > 1 and (
            len(self._batches) > self._keep_batches or self._events > self._keep_events
        ):
            self._events -= len(self._batches.pop(self._oldest).events)
            self._oldest += 1
        self._wake()

    def after(self, revision: int) -> Batch | None:
        """The batch that follows `revision`, None when there is none yet. Raises Lagged when it is gone."""
        if revision == self.revision:
            return None
        if revision + 1 < self._oldest:
            raise Lagged(f"revision {revision + 1} is no longer kept, the oldest is {self._oldest}")
        if revision > self.revision:
            raise Lagged(f"revision {revision} is ahead of the store's {self.revision}")
        return self._batches[revision + 1]

    def reset(self, revision: int) -> None:
        """Forget all batches: the store is at `revision` now, by a way nobody can be told."""
        if revision == self.revision:
            return
        self.revision = revision
        self._batches.clear()
        self._oldest = revision + 1
        self._events = 0
        self._wake()

    def close(self) -> None:
        self.closed = True
        self._wake()

    def waiter(self) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        return future

    def _wake(self) -> None:
        for future in list(self._waiting):
            if not future.done():
                future.set_result(None)
        self._waiting.clear()


class HistoryWatch:
    """One watcher. After `close` (its own or the store's) `next` answers None and iteration ends."""

    def __init__(self, history: History, since: int) -> None:
        self._history = history
        self._at = since
        self._closed = False
        self._future: asyncio.Future[None] | None = None

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Batch]:
        while (batch := await self.next()) is not None:
            yield batch

    async def next(self, timeout: float | None = None) -> Batch | None:
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        while not self._closed:
            batch = self._history.after(self._at)
            if batch is not None:
                self._at = batch.revision
                return batch
            if self._history.closed:
                return None
            left = None if deadline is None else deadline - asyncio.get_running_loop().time()
            if left is not None and left <= 0:
                return None
            self._future = self._history.waiter()
            try:
                await asyncio.wait((self._future,), timeout=left)
            finally:
                self._future.cancel()
        return None

    def drain(self) -> list[Batch]:
        batches: list[Batch] = []
        while not self._closed and (batch := self._history.after(self._at)) is not None:
            self._at = batch.revision
            batches.append(batch)
        return batches

    def close(self) -> None:
        self._closed = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)
