"""Sends containers' log lines to the manager for as long as somebody asks.

Owns the running log streams of this node. Must not know who asked or how lines are shown.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable

import structlog

from overlace.agent.container import container_id
from overlace.model.errors import OverlaceError
from overlace.runtime.base import LogLine, LogOptions, Runtime
from overlace.wire.messages import LogChunk, LogSubscribe

log = structlog.get_logger(__name__)
_CHUNK = 200  # lines a message


class LogStreams:
    """`send` may wait: that is the back-pressure a slow reader of logs exerts on us."""

    def __init__(self, runtime: Runtime, send: Callable[[LogChunk], Awaitable[None]]) -> None:
        self._runtime = runtime
        self._send = send
        self._running: dict[str, list[asyncio.Task[None]]] = {}

    def subscribe(self, wish: LogSubscribe) -> None:
        options = LogOptions(wish.stdout, wish.stderr, wish.follow, wish.since, wish.until, wish.tail)
        streams = self._running.setdefault(wish.subscription, [])
        for task_id in wish.task_ids:
            stream = asyncio.create_task(self._stream(wish.subscription, task_id, options))
            streams.append(stream)
            stream.add_done_callback(functools.partial(_forget, streams))

    def unsubscribe(self, subscription: str) -> None:
        for stream in self._running.pop(subscription, []):
            stream.cancel()

    async def close(self) -> None:
        streams = [s for group in self._running.values() for s in group]
        self._running.clear()
        for s in streams:
            s.cancel()
        await asyncio.gather(*streams, return_exceptions=True)

    async def _stream(self, subscription: str, task_id: str, options: LogOptions) -> None:
        error = ""
        try:
            lines: list[LogLine] = []
            pending = self._runtime.logs(container_id(task_id), options).__aiter__()
            ahead: asyncio.Future[LogLine] | None = None
            try:
                while True:
                    ahead = asyncio.ensure_future(pending.__anext__())
                    # a full chunk goes at once; a short one as soon as no further line is at hand
                    done, _ = await asyncio.wait({ahead}, timeout=0.02 if lines else None)
                    if not done or len(lines) >= _CHUNK:
                        await self._flush(subscription, task_id, lines)
                        lines = []
                    lines.append(await ahead)
            except StopAsyncIteration:
                await self._flush(subscription, task_id, lines)
            finally:
                if ahead is not None and not ahead.done():
                    ahead.cancel()
                    await asyncio.gather(ahead, return_exceptions=True)
        except asyncio.CancelledError:
            raise
        except OverlaceError as e:
            error = e.message
        except Exception as e:
            log.exception("log stream broke", task=task_id)
            error = str(e)
        await self._send(LogChunk(subscription, task_id, (), True, error))

    async def _flush(self, subscription: str, task_id: str, lines: list[LogLine]) -> None:
        if lines:
            chunk = tuple((ln.timestamp, ln.stream, ln.data) for ln in lines)
            await self._send(LogChunk(subscription, task_id, chunk))


def _forget(streams: list[asyncio.Task[None]], done: asyncio.Task[None]) -> None:
    if done in streams:
        streams.remove(done)
