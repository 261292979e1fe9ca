"""Runtime docker in another process, with the verbs of one in this process. See tests/host/runtime_worker.py."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from runtime_worker import LENGTH

from overlace.model import errors
from overlace.runtime.base import Platform


class Worker:
    """The connection to one worker process."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._task = asyncio.create_task(self._read())

    async def call(self, handle: int, verb: str, *args: Any, **named: Any) -> Any:
        self._number += 1
        future = self._waiting[self._number] = asyncio.get_running_loop().create_future()
        data = pickle.dumps((self._number, handle, verb, args, named))
        self._writer.write(len(data).to_bytes(LENGTH, "big") + data)
        error, value = await future
        if error is not None:
            raise getattr(errors, error[0], AssertionError)(error[1])
        return value

    async def _read(self) -> None:
        try:
            while head := await self._reader.read(LENGTH):
                number, error, value = pickle.loads(
                    await self._reader.readexactly(int.from_bytes(head, "big"))
                )
                self._waiting.pop(number).set_result((error, value))
        finally:
            for future in self._waiting.values():
                future.set_exception(AssertionError("the worker is gone"))

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.close()
        await self._writer.wait_closed()


class RemoteExec:
    pid = 0

    def __init__(self, worker: Worker, handle: int) -> None:
        self._worker, self._handle = worker, handle

    def output(self) -> AsyncIterator[Any]:
        return _each(self._worker, self._worker.call(self._handle, "output"))

    async def write(self, data: bytes) -> None:
        await self._worker.call(self._handle, "write", data)

    def close_stdin(self) -> None:
        self._closing = asyncio.ensure_future(self._worker.call(self._handle, "close_stdin"))

    async def wait(self) -> int:
        return int(await self._worker.call(self._handle, "wait"))

    async def close(self) -> None:
        await self._worker.call(self._handle, "close")


async def _each(worker: Worker, asked: Any) -> AsyncIterator[Any]:
    handle = await asked
    while (item := await worker.call(handle, "next")) is not None:
        yield item


class RemoteRuntime:
    """Verbs go through; only `open` makes it."""

    gated = False

    def __init__(self, worker: Worker, host: str, data: str, run: str, platform: Platform) -> None:
        self._worker, self._asked = (
            worker,
            (host, data, run, (platform.os, platform.architecture, platform.os_version)),
        )
        self._handle = 0

    async def open(self) -> None:
        self._handle = await self._worker.call(0, "make", *self._asked)
        await self._worker.call(self._handle, "open")

    async def hold(self, container_id: str) -> Path | None:
        found = await self._worker.call(self._handle, "hold", container_id)
        return Path(found) if found is not None else None

    async def exec(self, container_id: str, config: Any) -> RemoteExec:
        return RemoteExec(self._worker, await self._worker.call(self._handle, "exec", container_id, config))

    async def attach(self, container_id: str) -> RemoteExec:
        return RemoteExec(self._worker, await self._worker.call(self._handle, "attach", container_id))

    def logs(self, container_id: str, options: Any) -> AsyncIterator[Any]:
        return _each(self._worker, self._worker.call(self._handle, "logs", container_id, options))

    def __getattr__(self, verb: str) -> Any:
        async def call(*args: Any, **named: Any) -> Any:
            return await self._worker.call(self._handle, verb, *args, **named)

        return call
