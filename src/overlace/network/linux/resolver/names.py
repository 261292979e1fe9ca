"""The daemon's side of the resolver's process: it runs, is of our version, knows the names, and answers whom it should.

Owns starting it, adopting one that runs, replacing one of another version, and telling it what differs: one loop compares
what should be with what the process says it has. Must not answer questions itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import structlog

from overlace.model.errors import Unavailable
from overlace.model.netview import NetView, NodeEntry
from overlace.network.dns import Upstream
from overlace.network.linux.netns import namespace_number
from overlace.network.linux.resolver import process
from overlace.network.linux.resolver.channel import (
    Channel,
    Closed,
    Configure,
    Done,
    Drop,
    Hello,
    Names,
    Quit,
    Serve,
    Served,
    State,
    build,
    close_all,
    connect,
)
from overlace.network.linux.resolver.liveness import keep_alive
from overlace.network.naming import Binder, Client

log = structlog.get_logger(__name__)
LOG = "resolver.log"
ANSWER_SECONDS = 5.0  # for one that runs to say what it has
START_SECONDS = 30.0  # for a new one: a slow machine, and what it takes over
RETRY_SECONDS = (0.1, 10.0)  # first and longest pause before it is started again
_LOG_LIMIT = 1 << 20


class ResolverProcess:
    """Implements NameService. `folder`: of what runs, its own; the process is found there by later daemons."""

    def __init__(self, binder: Binder, upstreams: Sequence[str], folder: Path) -> None:
        self._binder, self._folder = binder, folder
        self._upstreams = tuple(upstreams)
        self._wanted: dict[str, Client] = {}
        self._served: dict[str, Served] = {}  # as the process says
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}  # for their task to be answered
        self._view: NetView | None = None
        self._changed: set[str] | None = None  # names to tell; None: all
        self._touched: set[str] = set()  # tasks to look at
        self._hearing: list[asyncio.Future[None]] = []  # for what was told to be heard
        self._event = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._alive: asyncio.Task[None] | None = None
        self._channel: Channel | None = None
        self._children: set[int] = set()  # the newest, and those it replaced that have not ended

    @property
    def upstreams(self) -> list[str]:
        return [Upstream.parse(u).address for u in self._upstreams]

    # what should be

    async def open(self, clients: Iterable[Client]) -> None:
        self._wanted = {client.task_id: client for client in clients}
        self._folder.mkdir(parents=True, exist_ok=True)
        self._loop = asyncio.create_task(self._work(), name="the resolver's process")
        self._alive = asyncio.create_task(keep_alive(self._folder), name="whether the resolver answers")
        for result in await asyncio.gather(
            *(self.ensure(client) for client in self._wanted.values()), return_exceptions=True
        ):
            if isinstance(result, OSError | Unavailable):
                # after a reboot the sandbox is gone; attach makes it anew
                log.info("no DNS for a kept task yet", error=str(result))
            elif isinstance(result, BaseException):
                raise result

    def update(self, view: NetView, changed: set[str] | None) -> None:
        self._view = view
        self._changed = None if self._changed is None or changed is None else self._changed | changed
        self._event.set()

    async def told(self) -> None:
        heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hearing.append(heard)
        self._event.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                await heard

    async def ensure(self, client: Client) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted[client.task_id] = client
        self._waiting.setdefault(client.task_id, []).append(done)
        self._touch(client.task_id)
        try:
            async with asyncio.timeout(START_SECONDS + ANSWER_SECONDS):
                await done
        except TimeoutError:
            raise Unavailable(
                f"the resolver of containers does not start; its log: {self._folder / LOG}"
            ) from None

    def drop(self, task_id: str) -> None:
        self._wanted.pop(task_id, None)
        self._touch(task_id)

    async def close(self) -> None:
        """The process goes on."""
        await self._stop()
        self._let_go()

    async def _stop(self) -> None:
        working = [task for task in (self._loop, self._alive) if task is not None]
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        self._loop = self._alive = None
        for waiting in self._waiting.values():
            for done in waiting:
                done.cancel()

    async def leave(self) -> None:
        await self._stop()
        if self._channel is not None:  # of one that is only starting it is the only way to it
            await _end(self._channel)
        else:
            await end_resolver(self._folder)
        self._let_go()
        for child in self._children:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(child, signal.SIGKILL)  # it has ended, or had its time
                await asyncio.to_thread(os.waitpid, child, 0)
        self._children = set()

    # making it so

    async def _work(self) -> None:
        pause, now = RETRY_SECONDS[0], asyncio.get_running_loop().time
        while True:
            began = now()
            try:
                await self._adopt()
                while True:
                    await self._pass()
                    await self._next()
            except (Closed, TimeoutError, OSError) as e:
                log.warning("the resolver of containers is gone: starting it again", error=str(e))
            except Exception:
                log.exception("the resolver of containers cannot be told, will retry")
            self._let_go()
            self._reap()
            pause = RETRY_SECONDS[0] if now() - began > RETRY_SECONDS[1] else min(2 * pause, RETRY_SECONDS[1])
            await asyncio.sleep(pause)

    async def _next(self) -> None:
        """Until there is something to tell. Raises Closed when nobody listens any more."""
        assert self._channel is not None
        hear = asyncio.create_task(self._channel.receive())
        told = asyncio.create_task(self._event.wait())
        try:
            await asyncio.wait((hear, told), return_when=asyncio.FIRST_COMPLETED)
            if hear.done():
                message, _ = hear.result()
                raise Closed(f"unexpected: {message}")
        finally:
            for task in (hear, told):
                task.cancel()
            await asyncio.gather(hear, told, return_exceptions=True)

    def _let_go(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._served = {}

    def _reap(self) -> None:
        for child in tuple(self._children):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(child, os.WNOHANG) == (0, 0):
                    continue
            self._children.discard(child)

    async def _adopt(self) -> None:
        """Speak to the process that runs, or to a new one when none of our version does."""
        state = await self._found()
        if state is None or state.build != build():
            if state is not None:
                log.info("the resolver of containers is of another version: replacing it")
            self._let_go()
            self._channel = Channel(self._start())
            async with asyncio.timeout(START_SECONDS):
                state = await self._hello(self._channel)
        self._served = dict(state.served)
        await self._channel_().send(Configure(self._upstreams))
        self._changed = None
        self._touched = set(self._wanted) | set(self._served)

    def _channel_(self) -> Channel:
        assert self._channel is not None
        return self._channel

    async def _found(self) -> State | None:
        try:
            self._channel = Channel(connect(self._folder))
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._hello(self._channel)
        except (OSError, TimeoutError):
            return None

    @staticmethod
    async def _hello(channel: Channel) -> State:
        await channel.send(Hello())
        message, _ = await channel.receive()
        if not isinstance(message, State):
            raise Closed(f"unexpected: {message}")
        return message

    def _start(self) -> socket.socket:
        """A new process, which takes over from one that runs; a connection to it. It is in a session of its own."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        logged = self._folder / LOG
        if logged.exists() and logged.stat().st_size > _LOG_LIMIT:
            logged.unlink()
        with theirs:
            self._reap()
            child = os.posix_spawn(
                sys.executable,
                [sys.executable, "-m", process.__name__, str(self._folder)],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(logged), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), process.FIRST_CONNECTION),
                ],
                setsid=True,
            )
        self._children.add(child)
        return ours

    async def _pass(self) -> None:
        self._event.clear()
        self._reap()
        await self._tell_names()
        await self._have_heard()
        touched, self._touched = self._touched, set()
        while touched:
            task_id = touched.pop()
            try:
                await self._settle(task_id)
            except Closed:
                raise
            except Exception as e:  # its namespace is not there, or refuses
                self._failed(task_id, e)

    def _failed(self, task_id: str, error: Exception) -> None:
        """Who waits is told, and will ask again; for one that was answered before it is tried again."""
        if task_id in self._waiting:
            self._resolve(task_id, error)
            return
        log.warning("a task's names are not answered yet, will retry", task=task_id, error=str(error))
        asyncio.get_running_loop().call_later(RETRY_SECONDS[1], self._touch, task_id)

    def _touch(self, task_id: str) -> None:
        self._touched.add(task_id)
        self._event.set()

    async def _have_heard(self) -> None:
        """It answers in order: what was sent before, it has heard."""
        hearing, self._hearing = self._hearing, []
        if not hearing:
            return
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._hello(self._channel_())
        except TimeoutError as e:
            raise Closed(f"no answer within {ANSWER_SECONDS:g} s") from e
        for heard in hearing:
            if not heard.done():
                heard.set_result(None)

    async def _tell_names(self) -> None:
        view, changed = self._view, self._changed
        if view is None:
            return
        self._changed = set()
        if changed is None:
            for names in process.told(view):
                await self._channel_().send(names)
            return
        entries = [(key, view.get(key)) for key in changed]
        put = [
            msgspec.Raw(msgspec.msgpack.encode(e)) for _, e in entries if e and not isinstance(e, NodeEntry)
        ]
        remove = [key for key, e in entries if e is None]
        for at in range(0, max(len(put), len(remove)), process.CHUNK):
            part = slice(at, at + process.CHUNK)
            await self._channel_().send(Names(put[part], remove[part]))

    async def _settle(self, task_id: str) -> None:
        """Have the process answer this task, or not."""
        client, served = self._wanted.get(task_id), self._served.get(task_id)
        if client is None:
            if served is not None:
                await self._channel_().send(Drop(task_id))
                del self._served[task_id]
            self._resolve(task_id, None)
            return
        sandbox = Path(client.sandbox)
        number = await asyncio.to_thread(namespace_number, sandbox)
        wanted = Served(client.networks, client.nameservers, number)
        if served != wanted:
            await self._serve(task_id, sandbox, wanted)
        self._resolve(task_id, None)

    async def _serve(self, task_id: str, sandbox: Path, wanted: Served) -> None:
        namespace = os.open(sandbox, os.O_RDONLY | os.O_CLOEXEC)
        try:
            udp, tcp = await self._binder.bind_dns(sandbox)
            with udp, tcp:
                message = Serve(task_id, wanted)
                await self._channel_().send(message, (udp.fileno(), tcp.fileno(), namespace))
        finally:
            os.close(namespace)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer, _ = await self._channel_().receive()
        except TimeoutError as e:
            raise Closed(f"no answer within {ANSWER_SECONDS:g} s") from e
        if not isinstance(answer, Done) or answer.task_id != task_id:
            raise Closed(f"unexpected: {answer}")
        if answer.error:
            raise OSError(f"the resolver of containers: {answer.error}")
        self._served[task_id] = wanted

    def _resolve(self, task_id: str, error: Exception | None) -> None:
        for done in self._waiting.pop(task_id, ()):
            if not done.done():
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)


async def end_resolver(folder: Path) -> None:
    """Have the resolver of this folder end, if there is one. Never raises."""
    with contextlib.suppress(OSError):
        channel = Channel(connect(folder))
        await _end(channel)
        channel.close()


async def _end(channel: Channel) -> None:
    """Back when it has ended, or does not in time."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(START_SECONDS):
            await channel.send(Quit())
            while True:
                _, descriptors = await channel.receive()
                close_all(descriptors)
