"""Names of a host whose sockets cannot be handed over: a process waits beside the agent and answers when it has ended."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from overlace.agent.state import AgentState
from overlace.daemon.standby import PLACE, SETTINGS, Settings, Standby
from overlace.model.netview import EndpointEntry, NetView, NetworkEntry, ServiceEntry, container_mac
from overlace.model.objects import NetworkAttachment
from overlace.network.base import TaskNetwork
from overlace.network.endpoints import LocalTask
from overlace.network.records import Record, Records
from overlace.network.windows.names import HostNames

HERE = "127.0.0.1"
ENTRIES = (
    NetworkEntry("back", "back", 4097, ("127.0.0.0/8",), ("127.0.0.254",)),
    ServiceEntry("web", "back", "web", "10.0.1.5"),
    EndpointEntry("t1", "back", "me", "web", "web", "web.1.t1", HERE, container_mac(HERE), (), True),
)


def settings(folder: Path, port: int) -> Settings:
    """What an agent has on its disk, which knows service web and has one task, that asks from this machine."""
    state = AgentState(folder / "agent.db")
    state.put_view(NetView(ENTRIES, 1), [e.key for e in ENTRIES])
    state.close()
    task = TaskNetwork(
        task_id="t1", task_name="web.1.t1", service_id="web", service_name="web",
        attachments=(NetworkAttachment("back", (f"{HERE}/8",)),),
    )  # fmt: skip
    records = Records(folder / "tasks")
    records.load()
    records.put(Record(asked=task, local=LocalTask(task=task)))
    return Settings(
        address=HERE, port=port, datagrams_at="", upstreams=(), search=(),
        state=str(folder / "agent.db"), tasks=str(folder / "tasks"),
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as tcp:
        tcp.bind((HERE, 0))
        return int(tcp.getsockname()[1])


def answered(port: int) -> str:
    """The address that a question for web is answered with; empty: nobody answers."""
    question = struct.pack("!HHHHHH", 7, 0x100, 1, 0, 0, 0) + b"\3web\0" + struct.pack("!HH", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(0.2)
        udp.connect((HERE, port))
        try:
            udp.send(question)
            answer = udp.recv(512)
        except OSError:
            return ""
        return socket.inet_ntoa(answer[-4:])


async def until(what: str, ready: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(ready):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_it_answers_from_the_end_of_one_agent_to_the_start_of_the_next(tmp_path: Path) -> None:
    port = free_port()
    told = settings(tmp_path, port)
    folder = tmp_path / "standby"
    own = HostNames(HERE, port, (), ())
    assert await own.serve()  # the agent's
    first = Standby(folder, told)
    await first.relieve()  # nobody is there
    first.start()
    await until("held", lambda: first.held)
    await own.close()
    waiting = first.process
    assert waiting is not None
    await first.close()
    await until("answered while no agent runs", lambda: answered(port) == "10.0.1.5")
    second = Standby(folder, told)
    await second.relieve()
    assert not answered(port) and not (folder / PLACE).exists()
    await asyncio.to_thread(waiting.wait, 30)
    own = HostNames(HERE, port, (), ())
    assert await own.serve(), "the port is free at once"
    second.start()
    await until("held again", lambda: second.held)
    process = second.process
    assert process is not None
    await second.leave()
    await own.close()
    await asyncio.to_thread(process.wait, 30)
    assert not answered(port) and not (folder / SETTINGS).exists()


async def test_one_that_is_killed_is_followed_by_another(tmp_path: Path) -> None:
    one = Standby(tmp_path / "standby", settings(tmp_path, free_port()))
    one.start()
    await until("held", lambda: one.held)
    before = one.process
    assert before is not None
    before.kill()
    await until("another", lambda: one.held and one.process is not before)
    after = one.process
    assert after is not None
    await one.leave()
    await asyncio.to_thread(after.wait, 30)
