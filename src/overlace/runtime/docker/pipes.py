"""A connection over one of Windows' named pipes that may end one of its directions.

Owns how that is said: Docker's pipe carries messages and is read as bytes; a message without bytes is the end of what
one side has to say (go-winio, MessageMode). asyncio's pipe transport (the proactor loop's) reads such a one as the end,
but has no way to write one.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any


class PipeWriter(asyncio.StreamWriter):
    """A StreamWriter over a pipe, with `write_eof`."""

    _ending: asyncio.Task[None] | None = None

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """After what was written. Once."""
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._end())

    async def _end(self) -> None:
        transport: Any = self.transport
        loop: Any = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            await self.drain()  # the buffer's limit is nothing: all is out then
            await loop._proactor.send(transport.get_extra_info("pipe"), b"")

    async def wait_closed(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            await asyncio.gather(self._ending, return_exceptions=True)
        await super().wait_closed()


async def open_pipe(path: str) -> tuple[asyncio.StreamReader, PipeWriter]:
    """Connect to `\\\\.\\pipe\\NAME`. Raises OSError."""
    loop: Any = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.create_pipe_connection(lambda: protocol, path)
    transport.set_write_buffer_limits(high=0)
    return reader, PipeWriter(transport, protocol, reader, loop)
