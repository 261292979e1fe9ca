"""/containers/{id}/attach and resize: being with a container while it runs, or from its start on."""

from __future__ import annotations

import asyncio

from aiohttp import web

from overlace.api.call import Call, Route, empty
from overlace.api.detach import parse_keys
from overlace.api.hijack import RawStream, upgrade_head, wants_upgrade
from overlace.api.logs import frame
from overlace.api.routes.containers import find
from overlace.api.routes.execs import cells, feed
from overlace.model.errors import InvalidArgument, Unimplemented
from overlace.runtime.base import Exec

_NUMBER = {"stdout": 1, "stderr": 2}


async def attach(call: Call) -> web.StreamResponse:
    """From now on; what was said before is in the logs."""
    found = await find(call, call.args["id"])
    keys = parse_keys(call.text("detachKeys"))
    if call.flag("logs"):
        raise Unimplemented("attach: logs=1 is not supported yet: docker logs shows what was said before")
    wanted = {name: call.flag(name) for name in ("stdin", "stdout", "stderr")}
    if not wants_upgrade(call.request):
        raise InvalidArgument("attach: upgrade the connection (Connection: Upgrade, Upgrade: tcp)")
    early = call.backend.containers.record(found.config.id) is not None  # docker run attaches, then starts
    running = await call.backend.runtime.attach(found.config.id, early=early)
    tty = found.config.tty
    kind = "raw" if tty or call.version < (1, 42) else "multiplexed"
    stream = RawStream(call.request)
    stream.take_over(upgrade_head(f"application/vnd.docker.{kind}-stream", call.shared.headers))
    try:
        doing = [
            asyncio.create_task(_copy(running, stream, wanted, tty)),
            asyncio.create_task(_gone(stream)),
        ]
        if wanted["stdin"]:
            doing.append(
                asyncio.create_task(_typed(stream, running, keys if tty else b"", found.config.open_stdin))
            )
        await asyncio.wait(doing, return_when=asyncio.FIRST_COMPLETED)
        for one in doing:
            one.cancel()
        await asyncio.gather(*doing, return_exceptions=True)
    finally:
        await running.close()
    return stream.finish()


async def _copy(running: Exec, stream: RawStream, wanted: dict[str, bool], tty: bool) -> None:
    async for piece in running.output():
        if wanted[piece.stream]:
            await stream.write(piece.data if tty else frame(_NUMBER[piece.stream], piece.data))


async def _gone(stream: RawStream) -> None:
    await stream.closed.wait()


async def _typed(stream: RawStream, running: Exec, keys: bytes, reads: bool) -> None:
    """Ends when the client leaves by the detach keys; the end of its input is not the end of its listening."""
    if reads:
        left = await feed(stream, running, keys)
    else:
        while await stream.read():
            """The container reads nothing."""
        left = False
    if not left:
        await stream.closed.wait()


async def resize(call: Call) -> web.StreamResponse:
    found = await find(call, call.args["id"])
    height, width = cells(call)
    await call.backend.runtime.resize(found.config.id, height, width)
    return empty()


ROUTES = [
    Route("POST", "/containers/{id}/attach", attach, streams=True),
    Route("POST", "/containers/{id}/resize", resize),
]
