"""A unix socket for the API of a daemon that listens on loopback TCP in its host's namespace: `door.py SOCKET PORT`.

Owns moving bytes both ways, and each side's own end. Runs in the host's namespace, so that this machine reaches the
daemon as it reaches every other host's. Must not know what goes through.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

PIECE = 65536


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(PIECE):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def serve(path: Path, port: int) -> None:
    """Until cancelled. A daemon that is away: the connection ends at once."""

    async def passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await asyncio.gather(_pour(reader, far_writer), _pour(far_reader, writer))
            finally:
                far_writer.close()
        writer.close()

    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(passed, path)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
