"""Notices that HNS went away and came back: its word for it, a call that found nobody, and a look now and then.

Owns the registration with HNS and the pace of trying again. Must not know what has to be done then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from overlace.model.errors import OverlaceError
from overlace.network.hns.events import Notification
from overlace.network.windows.errors import is_away
from overlace.network.windows.library import Hcn

log = structlog.get_logger(__name__)
SHORTEST, LONGEST = 0.5, 30.0  # seconds between tries
LOOK_SECONDS = 300.0  # between comparisons of everything, whatever HNS says


class HnsWatch:
    """`again(whole)` brings HNS up to what is wanted, comparing everything or what was refused, and returns whether
    something is refused (still); it is called until nothing is. `run`: where blocking calls go."""

    def __init__(
        self,
        hcn: Hcn,
        run: Callable[[Callable[[], object]], Awaitable[object]],
        again: Callable[[bool], Awaitable[bool]],
    ) -> None:
        self._hcn = hcn
        self._run = run
        self._again = again
        self._wake = asyncio.Event()
        self._gone = False
        self._refused = False
        self._callback = 0
        self._registered = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._register()
        self._task = asyncio.create_task(self._watch(), name="watch HNS")

    async def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        await self._unregister()

    def lost(self) -> None:
        """A call found no HNS."""
        self._gone = True
        self._wake.set()

    def refused(self) -> None:
        """HNS did not take everything: try again in a while."""
        self._refused = True
        self._wake.set()

    # -- HNS's own word --------------------------------------------------------------------------------------

    async def _register(self) -> None:
        loop = asyncio.get_running_loop()

        def hear(kind: int, status: int, document: str) -> None:  # on a thread of the library's
            if kind == Notification.SERVICE_DISCONNECT:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(self.lost)

        if not self._hcn.library.has("HcnRegisterServiceCallback"):
            return  # an old one: calls that fail tell
        try:
            await self._run(lambda: self._keep(self._hcn.register(hear)))
        except OverlaceError as e:
            log.info("HNS takes no callback", error=str(e))

    async def _unregister(self) -> None:
        if self._registered:
            self._registered = False
            with contextlib.suppress(OverlaceError):  # of a service that has ended
                await self._run(lambda: self._hcn.unregister(self._callback))

    def _keep(self, callback: int) -> None:
        self._callback, self._registered = callback, True

    # -- the loop --------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        pause = SHORTEST
        while True:
            look = False
            if not (self._gone or self._refused):
                pause = SHORTEST
                self._wake.clear()
                try:
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._wake.wait()
                except TimeoutError:
                    look = True
            if self._gone or self._refused:
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST)
            gone, self._gone, self._refused = self._gone, False, False
            try:
                if gone:
                    await self._unregister()
                self._refused = await self._again(gone or look) or self._refused
                if gone:
                    await self._register()
                    log.info("HNS is back, and has been compared")
            except OverlaceError as e:
                if is_away(e) and not gone:
                    log.warning("HNS went away", error=str(e))
                self._gone, self._refused = gone or is_away(e), True
            except Exception:  # a mistake of ours must not end the watching
                log.exception("HNS could not be brought up to date, will retry")
                self._gone, self._refused = gone, True
