"""Log streams: Docker's frames, prefixes and parameters.

Owns how a line goes on the wire (8-byte stdcopy frames, moby pkg/stdcopy; raw with a terminal). Must not
know where lines come from.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import TypeVar
from urllib.parse import quote

from aiohttp import web

from overlace.api import codec
from overlace.api.backend import ManagerHandle
from overlace.api.call import Call, error_text
from overlace.model import labels
from overlace.model.errors import InvalidArgument, OverlaceError
from overlace.model.objects import Task
from overlace.runtime.base import LogOptions

T = TypeVar("T")
_STREAM_NUMBER = {"stdout": 1, "stderr": 2}
_SYSTEM_ERROR = 3  # a frame docker's client prints as an error and stops at (stdcopy.Systemerr)
Line = tuple[int, str, bytes, str]  # timestamp ns, stream, data, details


@contextlib.asynccontextmanager
async def closing(source: AsyncIterator[T]) -> AsyncGenerator[AsyncIterator[T], None]:
    """Close `source` when done, if it can be closed: the subscription behind it ends then."""
    try:
        yield source
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()


def frame(number: int, data: bytes) -> bytes:
    return struct.pack(">BxxxI", number, len(data)) + data


def details(attributes: Mapping[str, str]) -> str:
    """`k=v,k=v` as `details=1` puts in front of a line (moby router/swarm/helpers.go, backend.LogAttr)."""
    return ",".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in sorted(attributes.items()))


def task_details(task: Task) -> str:
    return details(
        {
            labels.NODE_ID: task.node_id,
            labels.SERVICE_ID: task.service_id,
            labels.TASK_ID: task.id,
        }
    )


def parameters(call: Call) -> LogOptions:
    """Raises InvalidArgument."""
    stdout, stderr = call.flag("stdout"), call.flag("stderr")
    if not (stdout or stderr):
        raise InvalidArgument("must specify at least one of 'stdout' or 'stderr'")
    return LogOptions(
        stdout=stdout,
        stderr=stderr,
        follow=call.flag("follow"),
        since=codec.parse_time(call.text("since"), "since"),
        until=codec.parse_time(call.text("until"), "until"),
        tail=codec.tail(call.text("tail")),
    )


async def stream_lines(call: Call, lines: AsyncGenerator[Line, None], tty: bool) -> web.StreamResponse:
    """Write `lines` until they end or the client goes; then the source is closed."""
    framed = not tty
    kind = "multiplexed" if framed and call.version >= (1, 42) else "raw"
    response = web.StreamResponse(headers={"Content-Type": f"application/vnd.docker.{kind}-stream"})
    response.enable_chunked_encoding()
    stamps, details_wanted = call.flag("timestamps"), call.flag("details")
    async with contextlib.aclosing(lines):
        await response.prepare(call.request)
        try:
            async for timestamp, stream, data, about in lines:
                if details_wanted:
                    data = about.encode() + b" " + data
                if stamps:
                    data = codec.rfc3339_padded(timestamp).encode() + b" " + data
                await response.write(frame(_STREAM_NUMBER[stream], data) if framed else data)
        except ConnectionError:
            return response
        except OverlaceError as error:  # the status is gone out already: say it in the stream
            text = f"Error grabbing logs: {error_text(error)}\n".encode()
            await response.write(frame(_SYSTEM_ERROR, text) if framed else text)
        await response.write_eof()
    return response


async def stream_task_logs(
    call: Call, manager: ManagerHandle, *, tty: bool, task_id: str = "", service_id: str = ""
) -> web.StreamResponse:
    """The log of one task, or of all tasks of a service."""
    options = parameters(call)
    source = manager.logs  # before anything is answered: another manager may have to
    tasks = [task_id] if task_id else []

    async def lines() -> AsyncGenerator[Line, None]:
        async with closing(source.subscribe(tasks, options, service_id=service_id)) as records:
            async for record in records:
                yield record.timestamp, record.stream, record.data, task_details(record.task)

    return await stream_lines(call, lines(), tty)
