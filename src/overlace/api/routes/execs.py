"""/exec and /containers/{id}/exec: programs people run in a task's container to look at it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from overlace.api.call import Call, Route, answer, empty
from overlace.api.detach import DetachKeys, parse_keys
from overlace.api.execs import Instance
from overlace.api.hijack import RawStream, upgrade_head, wants_upgrade
from overlace.api.logs import frame
from overlace.api.routes.containers import find
from overlace.model.errors import Conflict, InvalidArgument, OverlaceError
from overlace.model.specs import Doc
from overlace.runtime.base import Exec, ExecConfig

_NUMBER = {"stdout": 1, "stderr": 2}


class CreateRequest(Doc, frozen=True):
    """POST /containers/{id}/exec."""

    user: str = ""
    privileged: bool = False
    tty: bool = msgspec.field(default=False, name="Tty")
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    detach_keys: str = ""
    env: list[str] = msgspec.field(default_factory=list)
    working_dir: str = ""
    cmd: list[str] = msgspec.field(default_factory=list)
    console_size: list[int] = msgspec.field(default_factory=list)


class StartRequest(Doc, frozen=True):
    detach: bool = False
    tty: bool = msgspec.field(default=False, name="Tty")
    console_size: list[int] = msgspec.field(default_factory=list)


async def create(call: Call) -> web.StreamResponse:
    found = await find(call, call.args["id"])
    asked = await call.body(CreateRequest)
    keys = parse_keys(asked.detach_keys)
    if not asked.cmd or not asked.cmd[0]:
        raise InvalidArgument("No exec command specified")
    _check_running(found.config.id, found.status)
    config = ExecConfig(
        argv=tuple(asked.cmd),
        env=tuple(asked.env),
        workdir=asked.working_dir,
        user=asked.user,
        privileged=asked.privileged,
        tty=asked.tty,
        stdin=asked.attach_stdin,
        stdout=asked.attach_stdout,
        stderr=asked.attach_stderr,
        size=_size(asked.console_size),
    )
    instance = Instance(found.config.id, config, asked.detach_keys, keys)
    call.shared.execs.add(instance, [c.config.id for c in await call.backend.runtime.list()])
    return answer({"Id": instance.id}, 201)


def _check_running(container_id: str, status: str) -> None:
    if status != "running":
        raise Conflict(f"container {container_id} is not running")


def _size(given: list[int]) -> tuple[int, int] | None:
    if not given:
        return None
    if len(given) != 2 or not all(0 <= one <= 65535 for one in given):
        raise InvalidArgument(f"ConsoleSize {given}: use [height, width]")
    return (given[0], given[1]) if any(given) else None


async def start(call: Call) -> web.StreamResponse:
    asked = await call.body(StartRequest) if call.request.body_exists else StartRequest()
    instance = call.shared.execs.find(call.args["exec"])
    config = instance.config
    if asked.tty != config.tty and not asked.detach:
        raise InvalidArgument("exec: Tty differs from what the exec was created with")
    size = _size(asked.console_size) or config.size
    container = await call.backend.runtime.inspect(instance.container_id)
    _check_running(instance.container_id, container.status)
    instance.claim()
    if asked.detach:
        config = msgspec.structs.replace(config, stdin=False)
    try:
        running = await call.backend.runtime.exec(
            instance.container_id, msgspec.structs.replace(config, size=size)
        )
    except OverlaceError:
        instance.ended(126)
        raise
    instance.running = running
    if asked.detach:
        call.shared.carry(_drain(instance, running))
        return empty()
    kind = "raw" if config.tty or call.version < (1, 42) else "multiplexed"
    content_type = f"application/vnd.docker.{kind}-stream"
    if wants_upgrade(call.request):
        stream = RawStream(call.request)
        stream.take_over(upgrade_head(content_type, call.shared.headers))
        copying = asyncio.create_task(_copy(instance, running, stream.write))
        feeder = None
        if config.stdin:
            feeder = asyncio.create_task(feed(stream, running, instance.keys if config.tty else b""))
            await asyncio.wait({copying, feeder}, return_when=asyncio.FIRST_COMPLETED)
            if not copying.done() and feeder.result():
                call.shared.carry(_finish(copying))  # it goes on without its client
                return stream.finish()
        try:
            await copying
        finally:
            if feeder is not None:
                feeder.cancel()
        return stream.finish()
    running.close_stdin()  # a plain answer carries output alone
    response = web.StreamResponse(headers={"Content-Type": content_type})
    await response.prepare(call.request)

    async def write(data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            await response.write(data)

    await _copy(instance, running, write)
    return response


async def feed(stream: RawStream, running: Exec, keys: bytes = b"") -> bool:
    """Hand on what the client says, to its end; True when it left with the detach keys."""
    watched = DetachKeys(keys) if keys else None
    while data := await stream.read():
        left = False
        if watched is not None:
            data, left = watched.feed(data)
        if data:
            await running.write(data)
        if left:
            return True
    running.close_stdin()
    return False


async def _finish(copying: asyncio.Task[None]) -> None:
    await copying


async def _copy(instance: Instance, running: Exec, write: Callable[[bytes], Awaitable[None]]) -> None:
    """Output to the client until the program ends; also when it hung up: a program nobody listens to goes on."""
    config = instance.config
    wanted = {"stdout": config.stdout or config.tty, "stderr": config.stderr}
    try:
        async for piece in running.output():
            if wanted[piece.stream]:
                await write(piece.data if config.tty else frame(_NUMBER[piece.stream], piece.data))
        instance.ended(await running.wait())
    finally:
        await running.close()


async def _drain(instance: Instance, running: Exec) -> None:
    async def nowhere(data: bytes) -> None:
        """Nobody listens."""

    await _copy(instance, running, nowhere)


async def inspect(call: Call) -> web.StreamResponse:
    instance = call.shared.execs.find(call.args["exec"])
    config = instance.config
    return answer(
        {
            "ID": instance.id,
            "Running": instance.running is not None,
            "ExitCode": instance.exit_code,
            "ProcessConfig": {
                "tty": config.tty,
                "entrypoint": config.argv[0],
                "arguments": list(config.argv[1:]),
                "privileged": config.privileged,
                **({"user": config.user} if config.user else {}),
            },
            "OpenStdin": config.stdin,
            "OpenStderr": config.stderr,
            "OpenStdout": config.stdout,
            "CanRemove": False,
            "ContainerID": instance.container_id,
            "DetachKeys": instance.detach_keys,
            "Pid": instance.running.pid if instance.running is not None else 0,
        }
    )


def cells(call: Call) -> tuple[int, int]:
    """The parameters h and w. Raises InvalidArgument."""
    numbers = []
    for key in ("h", "w"):
        text = call.text(key)
        if not text.isdecimal() or len(text) > 9 or int(text) > 65535:
            raise InvalidArgument(f"invalid resize {key} {text!r}: use a number of cells")
        numbers.append(int(text))
    return numbers[0], numbers[1]


async def resize(call: Call) -> web.StreamResponse:
    instance = call.shared.execs.find(call.args["exec"])
    height, width = cells(call)
    if instance.running is None:
        raise Conflict(f"exec {instance.id} is not running")
    instance.running.resize(height, width)
    return empty()


ROUTES = [
    Route("POST", "/containers/{id}/exec", create),
    Route("POST", "/exec/{exec}/start", start),
    Route("POST", "/exec/{exec}/resize", resize),
    Route("GET", "/exec/{exec}/json", inspect),
]
