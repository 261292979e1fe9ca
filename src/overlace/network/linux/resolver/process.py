"""The resolver's process: answers containers' questions on the sockets it is given, whether or not a daemon runs.

    python -m overlace.network.linux.resolver.process FOLDER

FOLDER holds its socket; descriptor 3 is a first connection to it. Owns taking over from a resolver of another
version, giving over to one, and its own end: when told so, or when its socket is gone from FOLDER. What is answered is
dns.py's and names.py's. Must not bind sockets: it is given them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Coroutine
from pathlib import Path
from sys import intern

import msgspec
from msgspec.structs import force_setattr

from overlace.model.netview import EndpointEntry, Entry, NetView, NodeEntry
from overlace.network.dns import OwnUpstreams, Resolver, Upstream
from overlace.network.linux.dns import client_socket
from overlace.network.linux.resolver.channel import (
    SOCKET,
    Channel,
    Closed,
    Configure,
    Done,
    Drop,
    HandOver,
    Hello,
    Message,
    Names,
    Quit,
    Ready,
    Serve,
    Served,
    State,
    Taken,
    build,
    close_all,
    connect,
    listen,
)

log = logging.getLogger("resolver")
FIRST_CONNECTION = 3
CHUNK = 2000  # entries in one message
TAKE_OVER_SECONDS = 10.0
LINGER_SECONDS = (
    12.0  # at most, for what is being answered: longer than a forwarded question or an idle connection
)
LOOK_SECONDS = 5.0
PAUSE_SECONDS = 1.0


class _Task(msgspec.Struct):
    """One whose questions are answered; `namespace`: its descriptor."""

    served: Served
    namespace: int


class Process:
    """One resolver and those who speak to it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._resolver = Resolver()
        self._upstreams: tuple[str, ...] = ()
        self._view = NetView()
        self._fresh: set[str] | None = None  # keys told since `first`
        self._tasks: dict[str, _Task] = {}
        self._ended = asyncio.Event()
        self._others: set[asyncio.Task[None]] = set()
        self._late: list[socket.socket] = []  # given over, with questions of before still to be answered
        self._inode = 0

    async def run(self, first: socket.socket) -> None:
        """Until it is told to end; another version has all answered that was asked until then."""
        try:
            async with asyncio.timeout(TAKE_OVER_SECONDS):
                await self._take_over()
        except (OSError, TimeoutError) as e:
            log.warning("nothing taken over from the resolver before: %s", e)
        listener = listen(self._folder)
        self._inode = (self._folder / SOCKET).stat().st_ino
        self._aside(self._accept(listener))
        self._aside(self._watch())
        self._aside(self._speak(Channel(first)))
        log.info("answers %d tasks, version %s", len(self._tasks), build())
        try:
            await self._ended.wait()
            if self._late:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LINGER_SECONDS):
                        await self._resolver.finish()
        finally:
            for task in self._others:
                task.cancel()
            await asyncio.gather(*self._others, return_exceptions=True)
            await self._resolver.close()
            for late in self._late:
                late.close()
            for served in self._tasks.values():
                close_all([served.namespace])

    def _aside(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._others.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._others.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error(
                "a part of it failed: it ends, for its daemon to start another", exc_info=task.exception()
            )
            self._ended.set()

    async def _watch(self) -> None:
        """End when nobody can find us any more."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if not self._is_found():
                break
        log.warning("its socket is gone: it ends")
        self._ended.set()

    def _is_found(self) -> bool:
        try:
            return (self._folder / SOCKET).stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    async def _accept(self, listener: socket.socket) -> None:
        with listener:
            while not self._ended.is_set():
                try:
                    connection, _ = await asyncio.get_running_loop().sock_accept(listener)
                except OSError as e:  # out of descriptors or memory, or the other side has gone again
                    log.warning("cannot be spoken to, will retry: %s", e)
                    await asyncio.sleep(PAUSE_SECONDS)
                    continue
                self._aside(self._speak(Channel(connection)))

    async def _speak(self, channel: Channel) -> None:
        try:
            while True:
                message, descriptors = await channel.receive()
                await self._hear(channel, message, descriptors)
        except Closed:
            pass
        except Exception:
            log.exception("a connection ends")
        finally:
            channel.close()

    async def _hear(self, channel: Channel, message: Message, descriptors: list[int]) -> None:
        match message:
            case Hello():
                served = {task_id: task.served for task_id, task in self._tasks.items()}
                await channel.send(State(build(), served))
            case Configure(upstreams):
                self._configure(upstreams)
            case Names():
                self._names(message)
            case Serve(task_id, served):
                error = await self._serve(task_id, served, descriptors)
                await channel.send(Done(task_id, error))
                return
            case Drop(task_id):
                self._drop(task_id)
            case Quit():
                log.info("told to end")
                with contextlib.suppress(FileNotFoundError):
                    if self._is_found():
                        (self._folder / SOCKET).unlink()
                self._ended.set()
            case HandOver():
                await self._hand_over(channel)
            case _:
                log.warning("a message for somebody else: %s", type(message).__name__)
        close_all(descriptors)

    def _configure(self, upstreams: tuple[str, ...]) -> None:
        self._upstreams = upstreams
        self._resolver.configure(upstreams)

    def _names(self, message: Names) -> None:
        if message.first:
            self._fresh = set()
        changed = set(message.remove)
        for key in message.remove:
            self._view.remove(key)
        for raw in message.put:
            try:
                entry = msgspec.msgpack.decode(raw, type=Entry)
            except msgspec.MsgspecError as e:
                log.warning("an entry is not understood: %s", e)
                continue
            key = intern(entry.key)
            if self._fresh is not None:
                self._fresh.add(key)
            if self._view.get(key) != entry:
                self._view.put(compact(entry))
                changed.add(key)
        if message.last and self._fresh is not None:
            gone = [e.key for e in self._view if e.key not in self._fresh]
            for key in gone:
                self._view.remove(key)
            changed.update(gone)
            self._fresh = None
        # until all was told for the first time, what is not known may yet come
        if self._resolver.ready or message.last:
            self._resolver.update(self._view, changed if self._resolver.ready else None)

    async def _serve(self, task_id: str, served: Served, descriptors: list[int]) -> str:
        """What went wrong, or nothing."""
        try:
            udp_fd, tcp_fd, namespace = descriptors
        except ValueError:
            close_all(descriptors)
            return f"{len(descriptors)} descriptors came, not 3"
        self._drop(task_id)
        udp, tcp = socket.socket(fileno=udp_fd), socket.socket(fileno=tcp_fd)
        own = None
        if served.nameservers:

            async def open_socket(tcp: bool) -> socket.socket:
                return await asyncio.to_thread(client_socket, namespace, socket.AF_INET, tcp=tcp)

            own = OwnUpstreams(tuple(Upstream(address) for address in served.nameservers), open_socket)
        try:
            await self._resolver.serve(task_id, served.networks, udp, tcp, own)
        except OSError as e:
            udp.close()
            tcp.close()
            close_all([namespace])
            return str(e)
        self._tasks[task_id] = _Task(served, namespace)
        return ""

    def _drop(self, task_id: str) -> None:
        task = self._tasks.pop(task_id, None)
        if task is not None:
            self._resolver.drop(task_id)
            close_all([task.namespace])

    # from one version to the next

    async def _hand_over(self, channel: Channel) -> None:
        """Give all to the successor; go on when it does not say that it has it."""
        log.info("gives over to another version")
        given: dict[str, tuple[_Task, socket.socket, socket.socket]] = {}
        try:
            await channel.send(Configure(self._upstreams))
            if self._resolver.ready:
                for names in told(self._view):
                    await channel.send(names)
            while (left := self._not_among(given)) is not None:  # they come and go meanwhile
                task_id, task = left
                if task_id in given:
                    _, udp, tcp = given.pop(task_id)
                    tcp.close()
                    self._late.append(udp)
                udp, tcp = self._resolver.release(task_id)
                given[task_id] = task, udp, tcp
                await channel.send(Serve(task_id, task.served), (udp.fileno(), tcp.fileno(), task.namespace))
            await channel.send(Ready())
            async with asyncio.timeout(TAKE_OVER_SECONDS):
                while not isinstance((await channel.receive())[0], Taken):
                    pass
        except OSError as e:  # Closed and TimeoutError are, too
            log.warning("the other version did not take over (%s): goes on", e)
            for task_id, (task, udp, tcp) in given.items():
                await self._resume(task_id, task, udp, tcp)
            return
        for _, udp, tcp in given.values():
            tcp.close()
            self._late.append(udp)
        log.info("gave over")
        self._ended.set()

    def _not_among(
        self, given: dict[str, tuple[_Task, socket.socket, socket.socket]]
    ) -> tuple[str, _Task] | None:
        """A task that is answered here still."""
        for task_id, task in self._tasks.items():
            if task_id not in given or given[task_id][0] is not task:
                return task_id, task
        return None

    async def _resume(self, task_id: str, task: _Task, udp: socket.socket, tcp: socket.socket) -> None:
        """Answer again on what was given over in vain, unless it was dropped or given anew meanwhile."""
        if self._tasks.get(task_id) is not task:
            udp.close()
            tcp.close()
            return
        del self._tasks[task_id]  # its descriptor goes on with the new one
        error = await self._serve(task_id, task.served, [udp.detach(), tcp.detach(), task.namespace])
        if error:
            log.error("task %s is not answered: %s", task_id, error)

    async def _take_over(self) -> None:
        """From who answers now, if anybody does. Raises OSError, TimeoutError; nothing is half taken then."""
        try:
            channel = Channel(connect(self._folder))
        except (FileNotFoundError, ConnectionRefusedError):
            return
        offered: list[tuple[Serve, list[int]]] = []
        try:
            await channel.send(HandOver())
            while True:
                message, descriptors = await channel.receive()
                match message:
                    case Configure(upstreams):
                        self._configure(upstreams)
                    case Names():
                        self._names(message)
                    case Serve():
                        offered.append((message, descriptors))
                    case Ready():
                        break
            while offered:
                serve, descriptors = offered.pop(0)  # they are the server's from here on
                error = await self._serve(serve.task_id, serve.served, descriptors)
                if error:
                    log.error("task %s is not answered: %s", serve.task_id, error)
            await channel.send(Taken())
        finally:
            for _, descriptors in offered:
                close_all(descriptors)
            channel.close()


def compact(entry: Entry) -> Entry:
    """The same, with one copy of what many entries say: a network's, service's and node's ids and names."""
    if isinstance(entry, EndpointEntry):
        for field in ("network_id", "node_id", "service_id", "service_name"):
            force_setattr(entry, field, intern(getattr(entry, field)))
        force_setattr(entry, "aliases", tuple(map(intern, entry.aliases)))
    return entry


def told(view: NetView) -> list[Names]:
    """All names of a view, in messages of a size."""
    raw = [msgspec.Raw(msgspec.msgpack.encode(e)) for e in view if not isinstance(e, NodeEntry)]
    parts = [raw[i : i + CHUNK] for i in range(0, len(raw), CHUNK)] or [[]]
    return [Names(part, first=i == 0, last=i == len(parts) - 1) for i, part in enumerate(parts)]


def main() -> None:
    """The process: its folder is the argument, the connection to its daemon descriptor `FIRST_CONNECTION`."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s resolver[%(process)d] %(message)s", stream=sys.stderr
    )
    first = socket.socket(fileno=FIRST_CONNECTION)
    os.set_inheritable(FIRST_CONNECTION, False)
    asyncio.run(Process(Path(sys.argv[1])).run(first))


if __name__ == "__main__":
    main()
