"""One pass at a time over what changed; changes that come meanwhile share the next.

Owns collecting them, who waits for which pass, and that a pass that failed is followed by one over everything. Must not
know what a pass does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

Changed = set[str] | None  # keys of the view; None: any of them
Pass = Callable[[Changed, set[str], bool], Awaitable[None]]


class Passes:
    """`run(changed, touched, doubt)`: look at these view keys and tasks; `doubt`: an earlier one failed, so what is
    there may be anything."""

    def __init__(self, run: Pass) -> None:
        self._run = run
        self._changed: Changed = None  # the first pass compares everything
        self._touched: set[str] = set()
        self._doubt = False
        self._next: asyncio.Future[None] | None = None
        self._running: asyncio.Task[None] | None = None

    async def follow(self, changed: Changed, touched: Iterable[str] = ()) -> None:
        """Have a pass look at these; returns when it is done. Raises what it raised."""
        if changed is None or self._changed is None:
            self._changed = None
        else:
            self._changed |= changed
        self._touched.update(touched)
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        waiting = self._next
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().create_task(self._passes())
        await asyncio.shield(waiting)

    def suspect(self) -> None:
        """The next pass compares everything with what is there."""
        self._doubt, self._changed = True, None

    async def ended(self) -> None:
        """The passes that were asked for are over."""
        if self._running is not None:
            await asyncio.wait([self._running])

    async def _passes(self) -> None:
        while self._next is not None:
            done, self._next = self._next, None
            changed, self._changed = self._changed, set()
            touched, self._touched = self._touched, set()
            doubt, self._doubt = self._doubt, False
            try:
                await self._run(changed, touched, doubt)
            except Exception as e:  # handed to whoever waits
                self.suspect()
                self._touched |= touched
                if not done.cancelled():
                    done.set_exception(e)
                    done.exception()  # nobody may be waiting any more
            else:
                if not done.cancelled():
                    done.set_result(None)
