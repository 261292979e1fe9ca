"""`--flow-log FILE`: connections that were opened and ended on this host, and what was dropped, one JSON object a line.

Owns how often is looked, the file and its rotation. What happened is network.vfp.flow_log's.
"""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from overlace.daemon.host import NodeHost
from overlace.model.errors import InvalidArgument, OverlaceError
from overlace.network.switch import Switch
from overlace.network.vfp.flow_log import FlowLog, Happened, see

log = structlog.get_logger(__name__)
SECONDS = 2.0  # between looks
SHARE = 20  # a look that takes long makes the next one wait so many times as long: at most 5 % of a processor
FILE_BYTES, FILES = 16 << 20, 5  # of one file; older ones that are kept


class _File(logging.handlers.RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk is the caller's to tell; logging would print it."""
        raise


def lines(happened: Sequence[Happened], at: datetime) -> list[str]:
    """A line of JSON for each; `at` in UTC."""
    time = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return [
        msgspec.json.encode(
            {"time": time, "event": h.event, **h.facts, "packets": h.packets}
            | ({} if h.event in ("dropped", "limited") else {"bytes": h.bytes})
            | ({"seconds": h.seconds, "why": h.why} if h.event == "ended" else {})
        ).decode()
        for h in happened
    ]


class FlowLogger:
    """From `start` to `stop`. `host`: this node's half, None while it is in no swarm."""

    def __init__(self, path: Path, host: Callable[[], NodeHost | None]) -> None:
        self._path, self._host = path, host
        self._log = FlowLog()
        self._switch_of: NodeHost | None = None
        self._file: _File | None = None
        self._running: asyncio.Task[None] | None = None
        self._told = ""

    def start(self) -> None:
        """Raises InvalidArgument when the file cannot be written."""
        if self._path.is_fifo():  # opening waits for a reader, and so would the daemon
            raise InvalidArgument(f"cannot write --flow-log {self._path}: it is a pipe; choose another file")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _File(self._path, maxBytes=FILE_BYTES, backupCount=FILES, encoding="utf-8")
        except OSError as e:
            raise InvalidArgument(
                f"cannot write --flow-log {self._path}: {e.strerror}; choose another file"
            ) from e
        self._running = asyncio.create_task(self._run(), name="flow log")

    async def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self._running = None
        if self._file is not None:
            self._file.close()
            self._file = None

    async def _run(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            began = now()
            try:
                await self.look()
                self._told = ""
            except (OverlaceError, OSError) as e:
                if str(e) != self._told:
                    log.warning("the flow log cannot be written, will retry", error=str(e))
                self._told = str(e)
            except Exception:
                log.exception("looking for the flow log failed, will retry")
            await asyncio.sleep(max(SECONDS, SHARE * (now() - began)))

    async def look(self) -> None:
        """Write down what happened since the last time."""
        host = self._host()
        if host is not self._switch_of:  # another membership has other tables
            self._switch_of, self._log = host, FlowLog()
        if host is None:
            return
        await self._write(host.driver.switch)

    async def _write(self, switch: Switch) -> None:
        happened = self._log.look([see(flow) for flow in await switch.flows()])
        happened += self._log.drops(await switch.drops())
        if happened:
            await asyncio.to_thread(self._append, lines(happened, datetime.now(UTC)))

    def _append(self, text: list[str]) -> None:
        assert self._file is not None
        for line in text:
            self._file.handle(logging.makeLogRecord({"msg": "%s", "args": (line,)}))
