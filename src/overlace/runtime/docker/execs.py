"""Another program in a container that a Docker Engine runs: `docker exec` through the engine.

Owns one such program's streams over the connection the engine hands over. Must not know containers' records.
Docker Engine API, "Exec": POST /containers/ID/exec, POST /exec/ID/start (the connection becomes the program's).
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

from overlace.model.errors import Conflict, OverlaceError
from overlace.runtime.base import ExecConfig, ExecOutput
from overlace.runtime.docker.client import EngineClient
from overlace.runtime.docker.output import frames

_BLOCK = 32768
_LOOK_AGAIN = 0.02  # the engine closes the connection a moment before it knows the exit code


def exec_body(config: ExecConfig) -> dict[str, Any]:
    """The body that makes the program. Pure."""
    body: dict[str, Any] = {
        "Cmd": list(config.argv),
        "Env": list(config.env),
        "User": config.user,
        "Privileged": config.privileged,
        "Tty": config.tty,
        "AttachStdin": config.stdin,
        "AttachStdout": config.stdout,
        "AttachStderr": config.stderr,
    }
    return body | ({"WorkingDir": config.workdir} if config.workdir else {})


class _Streams(abc.ABC):
    """The standard streams of a program over a connection that the engine handed over, and the size of its terminal."""

    _no_terminal: str  # what a person who sets the size of none is told

    def __init__(self, tty: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tty = tty
        self._reader, self._writer = reader, writer
        self._sizes: set[asyncio.Task[None]] = set()

    async def output(self) -> AsyncIterator[ExecOutput]:
        rest = b""
        with contextlib.suppress(OSError):  # of a pipe too, whose errors are no ConnectionError
            while data := await self._reader.read(_BLOCK):
                if self._tty:
                    yield ExecOutput("stdout", data)
                    continue
                whole, rest = frames(rest + data)
                for stream, piece in whole:
                    yield ExecOutput(stream, piece)

    async def write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._writer.write(data)
            await self._writer.drain()

    def close_stdin(self) -> None:
        if self._writer.can_write_eof():
            with contextlib.suppress(OSError):
                self._writer.write_eof()

    def resize(self, height: int, width: int) -> None:
        """Raises Conflict when it has no terminal."""
        if not self._tty:
            raise Conflict(self._no_terminal)
        task = asyncio.ensure_future(self._set_size(height, width))
        self._sizes.add(task)
        task.add_done_callback(self._sizes.discard)

    @abc.abstractmethod
    async def _set_size(self, height: int, width: int) -> None: ...

    async def close(self) -> None:
        for task in tuple(self._sizes):
            task.cancel()
        await asyncio.gather(*self._sizes, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class DockerAttach(_Streams):
    """Implements `runtime.base.Exec` on a container's own program; `ended` waits for it, `resized` sets its size."""

    pid = 0
    _no_terminal = "the container has no terminal: create it with one (-t)"

    def __init__(
        self,
        tty: bool,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        ended: Callable[[], Awaitable[int]],
        resized: Callable[[int, int], Coroutine[Any, Any, None]],
    ) -> None:
        super().__init__(tty, *streams)
        self._ended, self._resized = ended, resized

    async def _set_size(self, height: int, width: int) -> None:
        await self._resized(height, width)

    async def wait(self) -> int:
        return await self._ended()


class DockerExec(_Streams):
    """Implements `runtime.base.Exec`."""

    def __init__(
        self,
        engine: EngineClient,
        exec_id: str,
        config: ExecConfig,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        super().__init__(config.tty, reader, writer)
        self._engine = engine
        self._id = exec_id
        self._pid = 0
        self._no_terminal = f"exec {exec_id} has no terminal: start it with one (-t)"

    @classmethod
    async def start(cls, engine: EngineClient, docker_id: str, config: ExecConfig) -> DockerExec:
        """Raises NotFound, Conflict (the container does not run), InvalidArgument: the engine's words."""
        made = await engine.call("POST", f"/containers/{docker_id}/exec", body=exec_body(config))
        exec_id = str(made["Id"])
        body = {"Detach": False, "Tty": config.tty}
        reader, writer = await engine.hijack(f"/exec/{exec_id}/start", body)
        started = cls(engine, exec_id, config, reader, writer)
        with contextlib.suppress(OverlaceError):
            started._pid = int((await started._inspect()).get("Pid") or 0)
        if config.tty and config.size is not None:
            started.resize(*config.size)
        return started

    async def _inspect(self) -> dict[str, Any]:
        found: dict[str, Any] = await self._engine.call("GET", f"/exec/{self._id}/json")
        return found

    @property
    def pid(self) -> int:
        return self._pid

    async def _set_size(self, height: int, width: int) -> None:
        with contextlib.suppress(OverlaceError):  # it has ended
            params = {"h": str(height), "w": str(width)}
            await self._engine.call("POST", f"/exec/{self._id}/resize", params=params)

    async def wait(self) -> int:
        while (found := await self._inspect()).get("Running") or found.get("ExitCode") is None:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_AGAIN)
        return int(found["ExitCode"])
