"""A container's own standard streams, while it runs: `docker attach`.

Owns conmon's attach socket (one packet a message: a byte for the stream, then its data) and the terminal's size
(conmon's control pipe). Must not know HTTP; leaving touches nothing of the container.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

import structlog

from overlace.model.errors import Conflict, Internal
from overlace.runtime.base import ExecOutput
from overlace.runtime.oci.slots import Slot

log = structlog.get_logger(__name__)
_PACKET = 65536
_PIECE = 8192  # conmon reads its standard input in pieces of this size
_STREAMS = {2: "stdout", 3: "stderr"}


class OciAttach:
    """Implements `runtime.base.Exec`: the program is the container's first one."""

    def __init__(self, slot: Slot, connection: socket.socket | None = None) -> None:
        """Without a connection: `connect` it when the container is about to start."""
        self._slot = slot
        self._connection = connection
        self._settled = asyncio.Event()
        self._over = False
        self._closed_early = False  # its input ended before it was connected
        if connection is not None:
            self._settled.set()

    async def connect(self) -> None:
        """See `slots.Early`. One that fails ends its streams: a start does not depend on who looks."""
        try:
            connection = await _connect(self._slot)
        except Internal as error:
            log.warning("an attached client sees nothing", id=self._slot.id, reason=error.message)
        else:
            if self._over:
                connection.close()
            else:
                self._connection = connection
        self._settled.set()
        if self._closed_early:
            self.close_stdin()

    def give_up(self) -> None:
        self._settled.set()

    @property
    def pid(self) -> int:
        return self._slot.container.pid

    async def output(self) -> AsyncIterator[ExecOutput]:
        loop = asyncio.get_running_loop()
        await self._settled.wait()
        if self._connection is None:
            return
        with contextlib.suppress(OSError):
            while packet := await loop.sock_recv(self._connection, _PACKET):
                stream = _STREAMS.get(packet[0])
                if stream is not None:
                    yield ExecOutput(stream, packet[1:])  # type: ignore[arg-type]  # one of the two words

    async def write(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        await self._settled.wait()
        if self._connection is None:
            return
        with contextlib.suppress(OSError):
            for start in range(0, len(data), _PIECE):
                await loop.sock_sendall(self._connection, data[start : start + _PIECE])

    def close_stdin(self) -> None:
        if self._connection is None:
            self._closed_early = True
            return
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def resize(self, height: int, width: int) -> None:
        resize_terminal(self._slot, height, width)

    async def wait(self) -> int:
        await self._settled.wait()
        await self._slot.stopped.wait()
        return self._slot.container.exit_code

    async def close(self) -> None:
        self._over = True
        if self in self._slot.early:
            self._slot.early.remove(self)
        self._settled.set()
        if self._connection is not None:
            self._connection.close()


def resize_terminal(slot: Slot, height: int, width: int) -> None:
    """Raises Conflict when the container has no terminal."""
    if not slot.container.config.tty:
        raise Conflict(f"cannot resize: container {slot.id[:12]} has no terminal")
    try:
        descriptor = os.open(slot.places.bundle / "ctl", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "wb", buffering=0) as control:
            control.write(f"1 {height} {width}\n".encode())
    except OSError as error:
        raise Internal(f"cannot resize the terminal of {slot.id[:12]}: {error.strerror}") from error


async def attach(slot: Slot) -> OciAttach:
    """Raises Internal when its shim does not answer."""
    return OciAttach(slot, await _connect(slot))


def attach_early(slot: Slot) -> OciAttach:
    """To one that does not run yet."""
    waiting = OciAttach(slot)
    slot.early.append(waiting)
    return waiting


async def _connect(slot: Slot) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    connection.setblocking(False)
    # by way of the folder's descriptor: a socket's path has at most 107 bytes (unix(7))
    folder = os.open(slot.places.bundle, os.O_PATH | os.O_CLOEXEC)
    try:
        await asyncio.get_running_loop().sock_connect(connection, f"/proc/self/fd/{folder}/attach")
    except OSError as error:
        connection.close()
        raise Internal(f"cannot attach to container {slot.id[:12]}: {error.strerror}") from error
    finally:
        os.close(folder)
    return connection
