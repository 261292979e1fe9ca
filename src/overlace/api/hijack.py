"""A connection that stops being HTTP: what `docker exec` talks over once its request is answered.

Owns the upgrade (moby httputils.HijackConnection: 101 and raw bytes both ways, each side may end its own) and the
frames of two output streams on one connection. Must not know what runs at the other end.
"""

from __future__ import annotations

import asyncio
from typing import cast

from aiohttp import web

_WAITING = 16  # pieces of input that wait before the client is held back


class RawStream(asyncio.Protocol):
    """The bytes after the upgrade. `read` gives b"" at the client's end, `gone` says that it hung up."""

    def __init__(self, request: web.Request) -> None:
        self._http = request.protocol
        self._transport = cast(asyncio.Transport, request.transport)
        self._input: asyncio.Queue[bytes] = asyncio.Queue()
        self._writable = asyncio.Event()
        self._writable.set()
        self.gone = False
        self.closed = asyncio.Event()
        self._finished = False

    def take_over(self, head: bytes) -> None:
        """Answer with `head` and have the connection."""
        early = self._http._message_tail  # sent before our answer
        self._http._message_tail = b""
        self._transport.set_protocol(self)
        self._transport.write(head)
        if early:
            self.data_received(early)

    # -- asyncio's side --

    def data_received(self, data: bytes) -> None:
        self._input.put_nowait(data)
        if self._input.qsize() >= _WAITING:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._input.put_nowait(b"")
        return True  # the client has said all; it still listens

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self.closed.set()
        self._writable.set()
        self._input.put_nowait(b"")
        if self._finished:
            self._http.connection_lost(exc)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # -- our side --

    async def read(self) -> bytes:
        data = await self._input.get()
        if not self.gone and self._input.qsize() < _WAITING // 2:
            self._transport.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        """Nothing is said when the client has hung up: what runs goes on, as in Docker."""
        if self.gone:
            return
        self._transport.write(data)
        await self._writable.wait()

    def finish(self) -> web.StreamResponse:
        """End the connection; what the handler returns to the server then."""
        self._finished = True
        self._http.close()
        if self.gone:
            self._http.connection_lost(None)
        else:
            self._transport.close()
        return _Answered()


class _Answered(web.StreamResponse):
    """An answer that is out already."""

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


def wants_upgrade(request: web.Request) -> bool:
    return request.headers.get("Upgrade", "").lower() == "tcp"


def upgrade_head(content_type: str, headers: dict[str, str]) -> bytes:
    lines = ["HTTP/1.1 101 UPGRADED", f"Content-Type: {content_type}", "Connection: Upgrade", "Upgrade: tcp"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
