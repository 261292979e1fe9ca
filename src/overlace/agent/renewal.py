"""This node's certificate, renewed while it lives: at a random moment in good time, or when the node's role changed.

Owns the newest identity and when the next one is due. Must not know the session: it asks whoever it is given for
managers' addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from overlace.agent.enrol import renew_identity
from overlace.model.errors import OverlaceError
from overlace.security.ca import ns_text
from overlace.security.identity import Identity, renew_at

log = structlog.get_logger(__name__)
SECOND = 1_000_000_000
RENEW_RETRY = (10.0, 3600.0)  # seconds


class Renewal:
    """`run` for as long as the node is in the swarm. `managers`: those to ask, in turn; `on_identity` hears of each new
    one."""

    def __init__(
        self,
        data_root: Path,
        identity: Identity,
        managers: Callable[[], Sequence[str]],
        *,
        clock: Callable[[], int],
        rng: random.Random,
        on_identity: Callable[[Identity], None] | None,
        advertise: str,
    ) -> None:
        self.identity = identity
        self._data_root = data_root
        self._managers = managers
        self._clock = clock
        self._rng = rng
        self._on_identity = on_identity
        self._advertise = advertise
        self._now = asyncio.Event()

    def hurry(self) -> None:
        """Renew at once: the certificate does not say what it must."""
        self._now.set()

    async def run(self) -> None:
        """Renew at a random moment between 50 and 80 % of the certificate's life, or when told to hurry."""
        while True:
            facts = self.identity.facts
            due = renew_at(facts.not_before, facts.not_after, self._rng)
            while not self._now.is_set() and (left := (due - self._clock()) / SECOND) > 0:
                # in short steps: the host may sleep, its clock may be set
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, 600.0)):
                        await self._now.wait()
            self._now.clear()
            pause = RENEW_RETRY[0]
            while not await self._once():
                life = max(0.0, (facts.not_after - self._clock()) / SECOND)
                await asyncio.sleep(min(pause, max(1.0, life / 10)) * self._rng.uniform(0.5, 1.0))
                pause = min(2 * pause, RENEW_RETRY[1])

    async def _once(self) -> bool:
        for address in list(self._managers()):
            try:
                identity = await renew_identity(self._data_root, self.identity, address, self._advertise)
            except OverlaceError as e:
                log.warning("certificate not renewed", manager=address, reason=e.message)
                continue
            except Exception:
                log.exception("certificate not renewed", manager=address)
                continue
            log.info("certificate renewed", until=ns_text(identity.facts.not_after), role=identity.role)
            self.identity = identity
            if self._on_identity is not None:
                self._on_identity(identity)
            return True
        return False
