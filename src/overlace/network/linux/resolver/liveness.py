"""Whether the resolver's process still answers: asked every few seconds, and one that hangs is ended.

Owns telling a process that hangs (stopped, deadlocked, waiting for a dead disk) from one that is busy. Must not start
another: who speaks with it notices that it is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
from pathlib import Path

import structlog

from overlace.network.linux.resolver.channel import Channel, Hello, connect

log = structlog.get_logger(__name__)
EVERY_SECONDS = 2.0
PATIENCE_SECONDS = 3.0  # without an answer and without work done
BUSY_SECONDS = 60.0  # without an answer at all: it takes in a hundred thousand names in a tenth of that
_PEER = struct.Struct("iII")  # struct ucred, unix(7)


async def keep_alive(folder: Path) -> None:
    """For ever: end the folder's resolver whenever it hangs."""
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        try:
            pid = await find_hanging(folder)
        except OSError:
            continue  # there is none, or it has just ended
        if pid:
            log.error("the resolver of containers hangs: ending it, another one takes its place", pid=pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


async def find_hanging(folder: Path, patience: float = PATIENCE_SECONDS, busy: float = BUSY_SECONDS) -> int:
    """The process that listens in the folder, when it gives no answer; 0: it does. Raises OSError: nobody listens."""
    connection = connect(folder)
    pid, _, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    channel = Channel(connection)
    answer = asyncio.create_task(_ask(channel))
    try:
        waited, work = 0.0, _work_of(pid)
        while waited < busy:
            done, _ = await asyncio.wait((answer,), timeout=patience)
            if done:
                answer.result()
                return 0
            waited += patience
            before, work = work, _work_of(pid)
            if work == before:
                break
        return int(pid)
    finally:
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)
        channel.close()


async def _ask(channel: Channel) -> None:
    """Raises Closed."""
    await channel.send(Hello())
    await channel.receive()


def _work_of(pid: int) -> int:
    """Processor time it has had, in clock ticks: utime and stime of proc_pid_stat(5). Raises OSError: it is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
