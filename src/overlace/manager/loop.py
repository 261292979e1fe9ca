"""The one loop that drives the manager's decisions: watch, decide, commit.

Owns the watch, the dirty set, timers, retries. Level-triggered: everything is dirty at the start and
whenever events were missed, so any lost step is made up for. Must not decide anything itself (plan.py does).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from overlace.manager.index import Index
from overlace.manager.orchestrate.work import SECOND, NewId
from overlace.manager.plan import Dirty, Subject, Tick, plan_tick
from overlace.model.errors import Conflict, OutOfSequence, OverlaceError
from overlace.model.ids import new_id as random_id
from overlace.store.base import Batch, Lagged, Store, View, Watch

_FIRST_RETRY = SECOND // 2
_LAST_RETRY = 30 * SECOND
_HOUSEKEEPING = 60 * SECOND
_LATE = 1.0  # seconds to wait for a batch the view already has

log = structlog.get_logger(__name__)


class ManagerLoop:
    """Runs on the leading manager, once per store.

    `run()` until cancelled; or `step()` by hand, with any clock (tests, simulation), then `next_wake` says
    when the next step is due if nothing changes in the store.
    """

    def __init__(
        self, store: Store, *, clock: Callable[[], int] = time.time_ns, new_id: NewId = random_id
    ) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id
        self._watch: Watch | None = None
        self._revision = 0  # of the last batch observed
        self._index = Index()
        self._dirty = Dirty()
        self._wakes: dict[Subject, int] = {}  # -> ns
        self._errors: dict[Subject, int] = {}  # -> failures in a row
        self._commit_failures = 0
        self._housekeeping = 0

    # -- running ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Drive the decisions until cancelled. Store trouble is waited out, never raised."""
        try:
            while True:
                try:
                    changed = await self.step()
                except OverlaceError as error:  # the store refuses: disk, lease
                    self._commit_failures += 1
                    pause = min(_FIRST_RETRY << min(self._commit_failures, 6), _LAST_RETRY) / SECOND
                    log.warning("manager cannot commit", error=error.message, retry_in=pause)
                    await asyncio.sleep(pause)
                    continue
                if not changed:
                    await self._wait()
                else:
                    await asyncio.sleep(0)  # a busy store must not starve the other tasks of this process
        finally:
            self.close()

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    @property
    def next_wake(self) -> int | None:
        """When a decision is due by time alone, ns since the epoch."""
        return min(self._wakes.values(), default=None)

    async def step(self) -> bool:
        """Catch up with the store, decide, commit. True when it committed something or must decide again.

        Raises what the store raises, other than conflicts.
        """
        view = await self._catch_up()
        now = self._clock()
        for kind, id in [subject for subject, when in self._wakes.items() if when <= now]:
            del self._wakes[kind, id]
            if kind == "service":
                self._dirty.services[id] = None
            else:
                self._dirty.nodes[id] = None
                self._index.nodes_to_address[id] = None
        if now >= self._housekeeping:
            self._housekeeping = now + _HOUSEKEEPING
            self._index.occupancy.forget_failures(now)
        index = self._index
        if not (self._dirty or index.freed or index.fresh or index.nodes_to_address):
            return False
        dirty, self._dirty = self._dirty, Dirty()
        try:
            tick = plan_tick(view, index, dirty, now, self._new_id)
        except Exception:
            # Not within one service: start over from a fresh index rather than from a half-applied one.
            log.exception("manager decision failed")
            self._forget()
            self._commit_failures += 1
            await asyncio.sleep(min(_FIRST_RETRY << min(self._commit_failures, 6), _LAST_RETRY) / SECOND)
            return True
        changes = tick.draft.changes()
        if changes:
            try:
                await self._store.commit(changes)
            except BaseException as error:
                tick.draft.undo()
                self._dirty.merge(dirty)
                if not isinstance(error, (OutOfSequence, Conflict)):
                    raise
                self._commit_failures += 1
                log.debug("manager decides again", reason=error.message, failures=self._commit_failures)
                if self._commit_failures > 3:
                    await asyncio.sleep(0.005 * min(self._commit_failures, 20))
                return True
        self._commit_failures = 0
        self._note(tick, dirty, now)
        return bool(changes)

    # -- parts -----------------------------------------------------------------------------------------------

    async def _catch_up(self) -> View:
        """A view, with the index and the dirty set at exactly its revision."""
        for _ in range(10):
            if self._watch is None:
                view = self._store.view()
                self._watch = self._store.watch(since=view.revision)
                self._revision = view.revision
                self._index = Index.of(view)
                self._dirty = Dirty()
                self._dirty.everything(view)
                self._wakes.clear()
                return view
            try:
                for batch in self._watch.drain():
                    self._observe(batch)
                view = self._store.view()
                if view.revision == self._revision:
                    return view
                late = await self._watch.next(timeout=_LATE)
                if late is not None:
                    self._observe(late)
            except Lagged:
                log.info("manager missed events, deciding everything again")
                self._forget()
        self._forget()
        return await self._catch_up()

    def _observe(self, batch: Batch) -> None:
        for event in batch.events:
            self._index.observe(event.kind, event.id, event.new)
            self._dirty.observe(event)
        self._revision = batch.revision

    def _note(self, tick: Tick, dirty: Dirty, now: int) -> None:
        decided = [("service", id) for id in dirty.services] + [("node", id) for id in dirty.nodes]
        for subject in decided:
            self._wakes.pop(subject, None)
            if subject not in tick.errors:
                self._errors.pop(subject, None)
        self._wakes |= tick.wakes
        for network in tick.warned:
            log.warning("network nearly full", network=network.spec.name, says=network.warning)
        for subject, error in tick.errors.items():
            failures = self._errors[subject] = self._errors.get(subject, 0) + 1
            retry = min(_FIRST_RETRY << min(failures - 1, 10), _LAST_RETRY)
            self._wakes[subject] = now + retry
            log.error(
                "decision failed",
                kind=subject[0],
                id=subject[1],
                retry_in=retry / SECOND,
                failures=failures,
                exc_info=error,
            )

    async def _wait(self) -> None:
        """Until the store changes or a timer is due."""
        if self._watch is None:
            return
        wake = self.next_wake
        timeout = None if wake is None else max(wake - self._clock(), 0) / SECOND
        try:
            batch = await self._watch.next(timeout=timeout)
        except Lagged:
            self._forget()
            return
        if batch is not None:
            self._observe(batch)

    def _forget(self) -> None:
        """Drop what was derived; the next step starts from a fresh view with everything dirty."""
        self.close()
