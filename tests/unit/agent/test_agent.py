"""The agent's network view against a disk that is full and deltas that do not fit: no change is lost for the host."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from test_state import TASK, disk_full
from test_worker import FACTS, FakeNetwork, FakeRuntime

from overlace.agent.agent import Agent
from overlace.agent.state import AgentState
from overlace.model.errors import Unavailable
from overlace.model.netview import NetDelta, NetView, NodeEntry
from overlace.model.objects import NodeDescription
from overlace.wire.messages import Assignments

HOST = NodeDescription(hostname="one", os="linux", architecture="x86_64")


class Network(FakeNetwork):
    """Knows what the host was made to follow."""

    def __init__(self):
        super().__init__()
        self.nodes: dict[str, NodeEntry] = {}
        self.news = asyncio.Event()

    async def open(self, node_id):
        pass

    async def close(self):
        pass

    async def apply_view(self, view, changed):
        for key in changed or ():
            entry = view.get(key)
            if entry is None:
                self.nodes.pop(key, None)
            else:
                self.nodes[key] = entry
        self.news.set()

    async def until(self, *nodes: NodeEntry) -> None:
        async with asyncio.timeout(5):
            while self.nodes != {n.key: n for n in nodes}:
                self.news.clear()
                await self.news.wait()


class Session(SimpleNamespace):
    def __init__(self):
        super().__init__(report=print, report_paths=print, send_log=print, start=lambda: None)

    async def close(self):
        pass


def node(name: str, address: str) -> NodeEntry:
    return NodeEntry(name, name, address, "linux")


def delta(*entries: NodeEntry, base: int, revision: int, before: tuple[NodeEntry, ...] = (), off: int = 0):
    """What leads from a view of `before` to one that has `entries`, too; `off`: how wrong its checksum is."""
    after = NetView([*before, *entries])
    return NetDelta(base=base, revision=revision, put=entries, checksum=after.checksum + off)


@pytest.fixture
async def bed(tmp_path):
    path, network = tmp_path / "agent.db", Network()
    agent = Agent(
        FACTS, FakeRuntime(), network, AgentState(path), lambda: HOST, lambda a: Session(), print, print
    )
    await agent.open()
    yield SimpleNamespace(agent=agent, network=network, path=path)
    await agent.close()


def written(bed) -> set[str]:
    state = AgentState(bed.path)
    try:
        return {e.key for e in state.view()}
    finally:
        state.close()


A, B = node("a", "192.0.2.1"), node("b", "192.0.2.2")


async def test_on_a_full_disk_the_host_follows_and_what_is_unwritten_is_written_later(bed):
    with disk_full(), pytest.raises(Unavailable):
        await bed.agent.on_network(delta(A, base=0, revision=1))
    await bed.network.until(A)
    assert written(bed) == set()
    await bed.agent.on_network(delta(A, base=0, revision=1))  # asked for again: no difference
    assert written(bed) == {A.key}


async def test_what_a_wrong_delta_brought_is_settled_with_the_complete_view(bed):
    await bed.agent.on_network(delta(A, base=0, revision=1))
    await bed.network.until(A)
    with pytest.raises(ValueError, match="checksum"):
        await bed.agent.on_network(delta(B, base=1, revision=2, before=(A,), off=1))
    await bed.agent.on_network(delta(A, B, base=0, revision=2))
    await bed.network.until(A, B)
    assert written(bed) == {A.key, B.key}


async def test_while_the_disk_refuses_the_nodes_description_says_so(bed):
    assert bed.agent.description() == HOST
    told = Assignments(sequence=1, complete=True, tasks=(TASK,))
    with disk_full():
        with pytest.raises(Unavailable):
            await bed.agent.on_assignments(told)
        assert "free some disk space" in bed.agent.description().trouble
        with pytest.raises(Unavailable):
            await bed.agent.on_network(delta(A, base=0, revision=1))
    await bed.agent.on_network(delta(A, base=0, revision=1))
    assert bed.agent.description().trouble, "its tasks are not kept yet"
    await bed.agent.on_assignments(told)
    assert bed.agent.description() == HOST
