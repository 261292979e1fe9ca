"""Who leads: one key in etcd, held by a lease that its holder keeps alive.

Owns campaigning, the lease and the moment leadership ends. A leader whose lease could not be renewed in time stops
before etcd gives the key to another; what it might still send is refused by the fence (store.py). Must not know what
leading means: `gained` and `lost` are told. `gained` is given the fence and may take its time; `lost` is always called
after it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog

from overlace.store.etcd.client import EtcdClient, EtcdError, created_at, delete, get, put
from overlace.store.etcd.store import LEADER

log = structlog.get_logger(__name__)
TTL = 4  # seconds; etcd takes no less than 3 with its election timeout (member.py)
RENEWALS = 5  # attempts within the lease's life
LOOK_SECONDS = 0.5  # how often a follower asks who leads: what a quorum answers is known to hold
PATIENCE = 2.5  # seconds for the answer, before nobody is known to lead


class Leader(msgspec.Struct, frozen=True):
    node_id: str
    addr: str  # host:port of its manager port


class Election:
    """`run` until cancelled; then `resign`."""

    def __init__(
        self,
        client: EtcdClient,
        me: Leader,
        gained: Callable[[int], Awaitable[None]],
        lost: Callable[[], Awaitable[None]],
    ) -> None:
        self._client = client
        self._me = me
        self._gained = gained
        self._lost = lost
        self._lease = 0
        self._stand_down = asyncio.Event()
        self._held_back_until = 0.0
        self._leader: Leader | None = None
        self.changed = asyncio.Event()  # set whenever `leader` changes; whoever waits clears it

    @property
    def leader(self) -> Leader | None:
        """As far as this manager knows; None: nobody, or no quorum to ask."""
        return self._leader

    def step_down(self, seconds: float = 0.0) -> None:
        """Give leadership up now, if this manager has it, and do not campaign again for a while."""
        self._held_back_until = max(self._held_back_until, _now() + seconds)
        self._stand_down.set()

    async def run(self) -> None:
        while True:
            try:
                fence, ends = await self._campaign()
                if fence:
                    await self._lead(fence, ends)
                    continue
            except EtcdError as e:
                if self._leader is not None:
                    log.warning("no leader is known: etcd has no quorum", reason=e.message)
                self._know(None)
            except Exception:
                log.exception("the election failed, will try again")
                self._know(None)
            await asyncio.sleep(LOOK_SECONDS)

    async def resign(self) -> None:
        """Let another lead at once; no error when etcd cannot be told: the lease ends by itself."""
        lease, self._lease = self._lease, 0
        self._know(None)
        if lease:
            with contextlib.suppress(EtcdError):
                await self._client.revoke(lease, timeout=2.0)

    # -- one round -------------------------------------------------------------------------------------------

    async def _campaign(self) -> tuple[int, float]:
        """(fence, when the lease ends) of a won election; (0, 0) when another leads."""
        _, found = await self._client.range(LEADER, timeout=PATIENCE)
        if found:
            leader = msgspec.json.decode(found[0].value, type=Leader)
            if leader.node_id != self._me.node_id:
                self._know(leader)
                return 0, 0.0
            # our own key, of a life that ended with a crash: its lease is not known any more
            await self._client.txn([created_at(LEADER, found[0].create_revision)], [delete(LEADER)])
        self._know(None)
        if _now() < self._held_back_until:
            return 0, 0.0
        asked = _now()
        lease, ttl = await self._client.grant(TTL)
        value = msgspec.json.encode(self._me)
        result = await self._client.txn([created_at(LEADER, 0)], [put(LEADER, value, lease)], [get(LEADER)])
        if not result.succeeded:
            with contextlib.suppress(EtcdError):
                await self._client.revoke(lease)
            return 0, 0.0
        self._lease = lease
        return result.revision, asked + ttl

    async def _lead(self, fence: int, ends: float) -> None:
        self._stand_down.clear()
        log.info("this manager leads", fence=fence)
        gaining = asyncio.ensure_future(self._gained(fence))
        try:
            await self._hold(gaining, ends)
        finally:
            gaining.cancel()
            await asyncio.gather(gaining, return_exceptions=True)
            self._know(None)
            await self._lost()
            await self.resign()

    async def _hold(self, gaining: asyncio.Future[None], ends: float) -> None:
        """Keep the lease until it is lost or given up."""
        ttl = float(TTL)
        down = asyncio.create_task(self._stand_down.wait())
        try:
            while True:
                renewal = _now() + ttl / RENEWALS
                awaited: set[asyncio.Future[Any]] = {down} if gaining.done() else {down, gaining}
                done, _ = await asyncio.wait(
                    awaited,
                    timeout=max(0.0, min(renewal, ends) - _now()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if down in done:
                    log.info("this manager gives leadership up")
                    return
                if gaining in done:
                    gaining.result()  # raise what went wrong
                    self._know(self._me)
                asked = _now()
                if asked >= ends:
                    log.warning("leadership is lost: its lease could not be renewed in time")
                    return
                try:
                    if not await self._client.keep_alive(self._lease, timeout=min(ttl / 2, ends - asked)):
                        log.warning("leadership is lost: its lease has ended")
                        return
                    ends = asked + ttl
                except EtcdError as e:
                    log.warning("the leader's lease was not renewed", reason=e.message)
        finally:
            down.cancel()

    def _know(self, leader: Leader | None) -> None:
        if leader != self._leader:
            self._leader = leader
            self.changed.set()


def _now() -> float:
    return asyncio.get_running_loop().time()
