"""Has the data path say when one of its tables is full.

Owns how often it is asked. Must not judge what it counts.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from overlace.network.vfp.flows import TableFill

log = structlog.get_logger(__name__)
FILL_SECONDS = 60


class Filled(Protocol):
    """What is needed of a data path."""

    async def fill(self) -> list[TableFill]: ...


class FillWatch:
    """From `start` to `end`; may be started again."""

    def __init__(self, datapath: Filled) -> None:
        self._datapath = datapath
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.end()
        self._running = asyncio.get_running_loop().create_task(self._run())

    async def end(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
            self._running = None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FILL_SECONDS)
            try:
                await self._datapath.fill()
            except OSError as e:
                log.warning("the data path's tables cannot be counted", error=str(e))
