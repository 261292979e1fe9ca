"""The resolver as a process of its own: what it is told, what it answers, and one version after another."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import dns.message
import dns.rcode
import msgspec
import pytest

from overlace.model.netview import EndpointEntry, Entry, NetView, NetworkEntry, ServiceEntry
from overlace.network.linux.resolver import channel as words
from overlace.network.linux.resolver import process
from overlace.network.linux.resolver.channel import (
    Channel,
    Closed,
    Configure,
    Done,
    Drop,
    HandOver,
    Hello,
    Names,
    Quit,
    Serve,
    Served,
    State,
    build,
    connect,
)
from overlace.network.linux.resolver.liveness import find_hanging
from overlace.network.linux.resolver.names import ResolverProcess

BACK = NetworkEntry("back", "back", 4097, ("10.0.1.0/24",), ("10.0.1.1",))
WEB = ServiceEntry("webid", "back", "web", "10.0.1.2")
SERVED = Served(("back",), (), 7)


def endpoint(n: int) -> EndpointEntry:
    return EndpointEntry(
        f"t{n}", "back", "node", "webid", "web", f"web{n}", f"10.0.1.{n + 10}", "02:42:0a:00:01:0a"
    )


def entries(*some: Entry) -> list[msgspec.Raw]:
    return [msgspec.Raw(msgspec.msgpack.encode(e)) for e in some]


class Container:
    """Two sockets of a sandbox, and who asks there."""

    def __init__(self) -> None:
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        for made in (self.udp, self.tcp):
            made.bind(("127.0.0.1", 0))
        self.tcp.listen(8)
        self.namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
        self.descriptors = (self.udp.fileno(), self.tcp.fileno(), self.namespace)
        self.at, self.tcp_at = self.udp.getsockname(), self.tcp.getsockname()

    def close(self) -> None:
        """The daemon's own are closed once they were given."""
        self.udp.close()
        self.tcp.close()
        os.close(self.namespace)

    async def ask(self, name: str, seconds: float = 5.0) -> list[str]:
        """Addresses; the code when it is not NOERROR."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.setblocking(False)
            asking.connect(self.at)
            await loop.sock_sendall(asking, dns.message.make_query(name, "A").to_wire())
            data = await asyncio.wait_for(loop.sock_recv(asking, 4096), seconds)
        answer = dns.message.from_wire(data)
        if answer.rcode():
            return [dns.rcode.to_text(answer.rcode())]
        return sorted(record.to_text() for found in answer.answer for record in found)


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[Channel, asyncio.Task[None]]]:
    """A resolver in this process, and a connection to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    task = asyncio.create_task(process.Process(folder).run(theirs))
    told = Channel(ours)
    await told.send(Hello())
    answer, _ = await told.receive()
    assert isinstance(answer, State) and answer.build == build()
    try:
        yield told, task
    finally:
        told.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def give(told: Channel, container: Container, task_id: str = "t0") -> None:
    await told.send(Serve(task_id, SERVED), container.descriptors)
    assert (await told.receive())[0] == Done(task_id)
    container.close()


async def test_answers_what_it_was_told(tmp_path: Path) -> None:
    one = Container()
    async with running(tmp_path) as (told, task):
        await told.send(Configure(()))
        await give(told, one)
        assert await one.ask("web") == ["SERVFAIL"], "asked before it was told what there is"
        await told.send(Names(entries(BACK, WEB), first=True))
        await told.send(Names(entries(endpoint(0)), last=True))
        await told.send(Names(entries(endpoint(1)), ["nothing/of/this"]))
        await told.send(Hello())
        assert (await told.receive())[0] == State(build(), {"t0": SERVED})
        assert await one.ask("web") == ["10.0.1.2"]
        assert await one.ask("web1") == ["10.0.1.11"]
        assert await one.ask("web7") == ["NXDOMAIN"]
        # all there is, again: what is not among it goes
        await told.send(Names(entries(BACK, WEB, endpoint(1)), first=True, last=True))
        await told.send(Names([msgspec.Raw(msgspec.msgpack.encode({"type": "of a later version"}))]))
        await told.send(Hello())
        await told.receive()
        assert await one.ask("web0") == ["NXDOMAIN"]
        assert await one.ask("web1") == ["10.0.1.11"]
        await told.send(Drop("t0"))
        await told.send(Hello())
        assert (await told.receive())[0] == State(build(), {})
        await told.send(Quit())
        await asyncio.wait_for(task, 5)
    assert list(tmp_path.iterdir()) == []


class Asking:
    """Asks all the time; counts what failed."""

    def __init__(self, container: Container, name: str, expected: list[str]) -> None:
        self.container, self.name, self.expected = container, name, expected
        self.good = 0
        self.bad: list[object] = []
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        while True:
            try:
                said: object = await self.container.ask(self.name)
            except (OSError, TimeoutError) as e:
                said = repr(e)
            async with self._changed:
                if said == self.expected:
                    self.good += 1
                else:
                    self.bad.append(said)
                self._changed.notify_all()

    async def enough(self) -> None:
        want = self.good + 20
        async with self._changed:
            await self._changed.wait_for(lambda: self.good >= want or bool(self.bad))

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_one_version_after_another_loses_no_question(tmp_path: Path) -> None:
    containers = [Container() for _ in range(5)]
    async with running(tmp_path) as (told, first):
        await told.send(Names(entries(BACK, WEB, endpoint(0)), first=True, last=True))
        for n, container in enumerate(containers):
            await give(told, container, f"t{n}")
        askers = [Asking(container, "web", ["10.0.1.2"]) for container in containers]
        await askers[0].enough()
        reader, writer = await asyncio.open_connection(*containers[0].tcp_at)
        async with running(tmp_path) as (next_told, second):
            await next_told.send(Hello())
            state, _ = await next_told.receive()
            assert isinstance(state, State) and sorted(state.served) == [f"t{n}" for n in range(5)]
            for asker in askers:
                await asker.enough()
            # a connection made to the old one is still answered by it
            question = dns.message.make_query("web", "A").to_wire()
            writer.write(len(question).to_bytes(2, "big") + question)
            length = int.from_bytes(await reader.readexactly(2), "big")
            assert dns.message.from_wire(await reader.readexactly(length)).answer
            writer.close()
            await asyncio.wait_for(asyncio.shield(first), 15)
            for asker in askers:
                await asker.enough()
                await asker.stop()
                assert not asker.bad
            await next_told.send(Names(entries(endpoint(3))))
            await next_told.send(Quit())
            await asyncio.wait_for(second, 5)


async def test_a_successor_that_dies_has_taken_nothing(tmp_path: Path) -> None:
    one = Container()
    async with running(tmp_path) as (told, _):
        await told.send(Names(entries(BACK, WEB), first=True, last=True))
        await give(told, one)
        asking = Asking(one, "web", ["10.0.1.2"])
        await asking.enough()
        successor = Channel(connect(tmp_path))
        await successor.send(HandOver())
        descriptors: list[int] = []
        while not descriptors:
            _, descriptors = await successor.receive()
        words.close_all(descriptors)
        successor.close()
        await asking.enough()
        await asking.stop()
        assert not asking.bad


async def test_it_ends_when_nobody_can_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOOK_SECONDS", 0.01)
    async with running(tmp_path) as (_, task):
        (tmp_path / words.SOCKET).unlink()
        await asyncio.wait_for(asyncio.shield(task), 5)


async def test_garbage_ends_a_connection_and_nothing_else(tmp_path: Path) -> None:
    one = Container()
    async with running(tmp_path) as (told, _):
        await told.send(Names(entries(BACK, WEB), first=True, last=True))
        await give(told, one)
        for data in (b"\xff" * 40, b"\x03\0\0\0\0\0\0\0\0abc", b"\x01\0\0\0\x02\0\0\0\xc0"):
            with connect(tmp_path) as hostile:
                hostile.sendall(data[:5] + data[5:])
                hostile.shutdown(socket.SHUT_WR)
                hostile.setblocking(False)
                assert await asyncio.get_running_loop().sock_recv(hostile, 10) == b""
        assert await one.ask("web") == ["10.0.1.2"]


async def test_a_large_view_goes_through_in_parts(tmp_path: Path) -> None:
    one = Container()
    view = NetView([BACK, WEB, *(endpoint(n) for n in range(200))])
    many = [e for e in view]
    assert len(process.told(view)) == 1
    async with running(tmp_path) as (told, _):
        size = 7
        parts = [many[i : i + size] for i in range(0, len(many), size)]
        for i, part in enumerate(parts):
            await told.send(Names(entries(*part), first=i == 0, last=i == len(parts) - 1))
        await give(told, one)
        assert await one.ask("web199") == ["10.0.1.209"]


async def test_a_closed_connection_is_said(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    told = Channel(ours)
    theirs.close()
    with pytest.raises(Closed):
        await told.send(Hello())
        await told.receive()
    told.close()


async def test_one_that_hangs_is_told_from_one_that_answers(tmp_path: Path) -> None:
    async with running(tmp_path):
        assert await find_hanging(tmp_path, 5) == 0
    with pytest.raises(OSError):
        await find_hanging(tmp_path, 0.01)


LISTENS = """
import sys, time
from pathlib import Path
from typing import Any, cast
from overlace.network.linux.resolver.channel import listen
made = listen(Path(sys.argv[1]))
print("listens", flush=True)
while True:
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("rest", ["600", "0"])
def test_one_that_gives_no_answer_is_found_at_once_when_it_does_nothing(tmp_path: Path, rest: str) -> None:
    """One that works all the time is given longer, not for ever."""
    command = [sys.executable, "-c", LISTENS, str(tmp_path), rest]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        try:
            assert asyncio.run(find_hanging(tmp_path, 0.3, 1.0)) == other.pid
        finally:
            other.kill()


class Interrupted(Channel):
    """A successor that goes before it has said that it has all; `meanwhile` is done as the first task is given."""

    def __init__(self, connection: socket.socket, meanwhile: Callable[[], Awaitable[None]]) -> None:
        super().__init__(connection)
        self._meanwhile = meanwhile
        self.given: list[str] = []

    async def send(self, message: words.Message, descriptors: Sequence[int] = ()) -> None:
        if isinstance(message, Serve):
            assert all(os.fstat(fd) for fd in descriptors)
            self.given.append(message.task_id)
            if len(self.given) == 1:
                await self._meanwhile()

    async def receive(self) -> tuple[words.Message, list[int]]:
        raise Closed("gone")


async def test_tasks_that_come_and_go_while_it_gives_over_lose_nothing(tmp_path: Path) -> None:
    """The daemon goes on speaking to it: one task ends, one comes, one comes again with other sockets."""
    old = {name: Container() for name in ("t0", "t1", "t2")}
    new = {name: Container() for name in ("t2", "t3")}
    resolver = process.Process(tmp_path)
    ours, theirs = socket.socketpair()
    resolver._names(Names(entries(BACK, WEB), first=True, last=True))

    async def serve(name: str, container: Container) -> None:
        descriptors = [os.dup(fd) for fd in container.descriptors]
        container.close()
        assert await resolver._serve(name, SERVED, descriptors) == ""

    async def meanwhile() -> None:
        resolver._drop("t0")
        for name, container in new.items():
            await serve(name, container)

    for name, container in old.items():
        await serve(name, container)
    with ours, theirs:
        successor = Interrupted(ours, meanwhile)
        await resolver._hand_over(successor)
    assert {"t1", "t2", "t3"} <= set(successor.given)
    assert set(resolver._tasks) == {"t1", "t2", "t3"}
    for container in (old["t1"], new["t2"], new["t3"]):
        assert await container.ask("web") == ["10.0.1.2"]
    assert not resolver._ended.is_set()
    for name in tuple(resolver._tasks):
        resolver._drop(name)
    for late in resolver._late:
        late.close()
    await resolver._resolver.close()


async def test_without_descriptors_for_a_moment_it_can_be_spoken_to_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "PAUSE_SECONDS", 0)
    loop = asyncio.get_running_loop()
    accept, refused = loop.sock_accept, [OSError(24, "Too many open files"), ConnectionAbortedError()]

    async def scarce(listener: socket.socket) -> tuple[socket.socket, object]:
        if refused:
            raise refused.pop()
        return await accept(listener)

    monkeypatch.setattr(loop, "sock_accept", scarce)
    async with running(tmp_path) as (_, task):
        other = Channel(connect(tmp_path))
        await other.send(Hello())
        assert isinstance((await other.receive())[0], State)
        other.close()
        assert not task.done()
    assert not refused


async def test_a_part_that_fails_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that speaks to it notices, and starts another."""

    async def broken(_: process.Process, listener: socket.socket) -> None:
        listener.close()
        raise RuntimeError("broken")

    monkeypatch.setattr(process.Process, "_accept", broken)
    async with running(tmp_path) as (_, task):
        await asyncio.wait_for(task, 10)


def test_every_process_it_started_is_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was replaced while it hung ends later than its successor began."""
    monkeypatch.setattr(sys, "executable", "/bin/cat")  # refuses its options and ends
    resolver = ResolverProcess(cast(Any, None), [], folder=tmp_path)
    for _ in range(3):
        resolver._start().close()
    pids = set(resolver._children)
    for pid in pids:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    resolver._reap()
    assert not resolver._children
    for pid in pids:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
