"""This host looks after itself while it runs: what stands for its traffic is made again, full tables are told of.

Owns how often it looks and what it says when (`plan_full`, `plan_mended`). Looking and mending are the data path's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

import msgspec
import structlog

from overlace.model.findings import Finding
from overlace.model.paths import Notice
from overlace.network.notices import Notices
from overlace.network.vfp.flows import TableFill

log = structlog.get_logger(__name__)
FILL_SECONDS = 60.0
MEND_SECONDS = 3.0
LOWER = 0.8  # of a table's room: who is told that it is full is told again once it was emptier than this
AGAIN_SECONDS = 6 * 3600.0  # or after so long
EVICTS = "the oldest entries give way to new ones: connections that were idle longest have to be begun again"
REFUSES = "new entries are refused: what was programmed goes on, what is new on this host is not reached"


class Mended(msgspec.Struct, frozen=True):
    """What a look at the host came to."""

    mended: tuple[str, ...] = ()
    left: tuple[Finding, ...] = ()  # what could not be made good from here


class Watched(Protocol):
    """What is needed of a data path."""

    async def fill(self) -> list[TableFill]: ...
    async def mend(self) -> Mended: ...


def plan_full(
    found: Iterable[TableFill], told: Mapping[str, float], now: float
) -> tuple[list[Notice], dict[str, float]]:
    """What is to be said of full tables, and of which that was said when. A table that evicts stays full for long: it is
    told of again after it was emptier, or after AGAIN_SECONDS. `now`: seconds."""
    said, kept = [], {}
    for fill in found:
        before = told.get(fill.name)
        if fill.is_full and (before is None or now - before >= AGAIN_SECONDS):
            kept[fill.name] = now
            facts = {
                "table": fill.name,
                "rows": str(fill.rows),
                "capacity": str(fill.capacity),
                "consequence": EVICTS if fill.evicts else REFUSES,
            }
            said.append(Notice(action="table_full", id=fill.name, attributes=facts))
        elif before is not None and fill.rows >= LOWER * fill.capacity:
            kept[fill.name] = before
    return said, kept


def plan_mended(found: Mended, told: frozenset[str]) -> tuple[list[Notice], frozenset[str]]:
    """What is to be said after a look, and what of the things that stay wrong has been said: each once."""
    said = [
        Notice(action="repaired", id=what, attributes={"what": f"{what}: made again"})
        for what in found.mended
    ]
    said += [
        Notice(action="broken", id=f.what, attributes={"what": f.what, "remedy": f.remedy})
        for f in found.left
        if f.what not in told
    ]
    return said, frozenset(f.what for f in found.left)


class HostWatch:
    """From `start` to `end`; may be started again."""

    def __init__(self, datapath: Watched, notices: Notices) -> None:
        self._datapath = datapath
        self._notices = notices
        self._full: dict[str, float] = {}
        self._wrong: frozenset[str] = frozenset()
        self._running: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self.end()
        loop = asyncio.get_running_loop()
        self._running = [
            loop.create_task(every(MEND_SECONDS, self._mend, "the host cannot be looked after")),
            loop.create_task(every(FILL_SECONDS, self._fill, "the data path's tables cannot be counted")),
        ]

    async def end(self) -> None:
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        self._running = []

    async def _mend(self) -> None:
        said, self._wrong = plan_mended(await self._datapath.mend(), self._wrong)
        for notice in said:
            self._notices.put(notice)

    async def _fill(self) -> None:
        now = asyncio.get_running_loop().time()
        said, self._full = plan_full(await self._datapath.fill(), self._full, now)
        for notice in said:
            self._notices.put(notice)


async def every(seconds: float, work: Callable[[], Awaitable[None]], failing: str) -> None:
    """Again and again; a failure is told once until it is another."""
    told = ""
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
            told = ""
        except Exception as e:
            if (text := str(e) or type(e).__name__) != told:
                log.warning(failing, error=text)
            told = text
