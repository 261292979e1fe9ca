"""Which nodes count as alive, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import msgspec
import pytest

from overlace.manager.deadlines import Deadlines
from overlace.manager.dispatch import Dispatcher
from overlace.model.errors import Unavailable
from overlace.model.objects import Cluster, Node, NodeDescription, Task, TaskStatus
from overlace.model.specs import TaskSpec
from overlace.model.states import NodeState, TaskState
from overlace.store.base import Delete, Put
from overlace.store.memory import MemoryStore
from overlace.wire.messages import (
    Ack,
    AgentMessage,
    Assignments,
    Heartbeat,
    Hello,
    Leaving,
    LogChunk,
    ManagerMessage,
    NetworkUpdate,
    Refused,
    Reports,
    TaskReport,
    Welcome,
)

pytestmark = pytest.mark.looptime
HELLO = Hello(NodeDescription(hostname="h", os="linux", architecture="x86_64"))


class Channel:
    """The manager's end of a connection, without one."""

    def __init__(self) -> None:
        self.sent: list[ManagerMessage] = []
        self.inbox: asyncio.Queue[AgentMessage | None] = asyncio.Queue()

    async def send(self, message: ManagerMessage) -> None:
        self.sent.append(message)

    async def receive(self) -> AgentMessage | None:
        return await self.inbox.get()

    async def close(self) -> None:
        self.inbox.put_nowait(None)

    def kinds(self) -> list[type]:
        return [type(m) for m in self.sent]


class Peer:
    cluster_id = "c"

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id


class Manager:
    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.dispatcher = Dispatcher(store, clock=lambda: int(asyncio.get_running_loop().time() * 1e9))
        self.sessions: list[asyncio.Task[None]] = []

    def connect(self, node_id: str, hello: AgentMessage = HELLO) -> Channel:
        channel = Channel()
        channel.inbox.put_nowait(hello)
        self.sessions.append(
            asyncio.create_task(self.dispatcher.session(Peer(node_id), "1.2.3.4", channel))  # type: ignore[arg-type]
        )
        return channel

    def state(self, node_id: str) -> NodeState:
        node = self.store.view().get(Node, node_id)
        assert node is not None
        return node.status.state

    async def close(self) -> None:
        await self.dispatcher.close()
        for s in self.sessions:
            s.cancel()
        await asyncio.gather(*self.sessions, return_exceptions=True)


def clock() -> int:
    return int(asyncio.get_running_loop().time() * 1e9)


@pytest.fixture
async def manager() -> AsyncIterator[Manager]:
    store = MemoryStore(clock)
    await store.commit([Put(Cluster(id="c")), Put(Node(id="a")), Put(Node(id="b"))])
    made = Manager(store)
    yield made  # not started: virtual time begins with the test
    await made.close()


async def test_a_session_begins_with_welcome_and_everything_the_node_needs(manager: Manager) -> None:
    await manager.dispatcher.start()
    channel = manager.connect("a")
    await asyncio.sleep(0.2)
    assert channel.kinds() == [Welcome, NetworkUpdate, Assignments]
    welcome = channel.sent[0]
    assert isinstance(welcome, Welcome) and 4.5e9 <= welcome.heartbeat <= 5.5e9
    assert manager.state("a") == NodeState.READY and manager.dispatcher.connected() == ["a"]
    channel.inbox.put_nowait(Heartbeat())
    await asyncio.sleep(0.2)
    assert channel.sent[-1] == Ack(0)  # the manager lives, too


async def test_nodes_are_down_15_seconds_after_their_last_word(manager: Manager) -> None:
    await manager.dispatcher.start()
    channel = manager.connect("a")
    for _ in range(6):
        await asyncio.sleep(10)
        assert manager.state("a") == NodeState.READY
        channel.inbox.put_nowait(Heartbeat())
    await asyncio.sleep(14.5)
    assert manager.state("a") == NodeState.READY
    await asyncio.sleep(1)
    assert manager.state("a") == NodeState.DOWN
    assert isinstance(channel.sent[-1], Refused) and not channel.sent[-1].final
    assert manager.dispatcher.connected() == []
    # any message is a sign of life
    channel = manager.connect("a")
    await asyncio.sleep(10)
    channel.inbox.put_nowait(LogChunk("s", "t"))
    await asyncio.sleep(10)
    assert manager.state("a") == NodeState.READY


async def test_a_closed_connection_alone_means_nothing(manager: Manager) -> None:
    await manager.dispatcher.start()
    channel = manager.connect("a")
    await asyncio.sleep(1)
    await channel.close()
    await asyncio.sleep(1)
    assert manager.dispatcher.connected() == [] and manager.state("a") == NodeState.READY
    manager.connect("a")
    await asyncio.sleep(14)
    assert manager.state("a") == NodeState.READY


async def test_nodes_that_never_say_hello_are_down_after_30_seconds(manager: Manager) -> None:
    """After a start, and after a join."""
    await manager.dispatcher.start()
    await asyncio.sleep(10)
    await manager.store.commit([Put(Node(id="new"))])
    await asyncio.sleep(19.5)
    assert manager.state("a") == NodeState.UNKNOWN
    await asyncio.sleep(1)
    assert (manager.state("a"), manager.state("new")) == (NodeState.DOWN, NodeState.UNKNOWN)
    await asyncio.sleep(10)
    assert manager.state("new") == NodeState.DOWN


async def test_tasks_of_a_node_down_for_a_day_are_given_up(manager: Manager) -> None:
    await manager.dispatcher.start()
    running = Task(id="t", service_id="s", node_id="a", spec=TaskSpec(), status=TaskStatus(TaskState.RUNNING))
    ended = Task(id="e", service_id="s", node_id="a", spec=TaskSpec(), status=TaskStatus(TaskState.FAILED))
    await manager.store.commit([Put(running), Put(ended)])

    def states() -> list[TaskState]:
        found = [manager.store.view().get(Task, i) for i in ("t", "e")]
        return [t.status.state for t in found if t is not None]

    await asyncio.sleep(31)
    assert manager.state("a") == NodeState.DOWN
    await asyncio.sleep(20 * 3600)
    assert states() == [TaskState.RUNNING, TaskState.FAILED]
    # a restart of the manager does not start the day anew
    await manager.dispatcher.close()
    manager.dispatcher = Manager(manager.store).dispatcher
    await manager.dispatcher.start()
    assert manager.state("a") == NodeState.DOWN
    await asyncio.sleep(4 * 3600 + 1)
    assert states() == [TaskState.ORPHANED, TaskState.FAILED]


async def test_a_day_is_forgotten_when_the_node_comes_back(manager: Manager) -> None:
    await manager.dispatcher.start()
    t = Task(id="t", service_id="s", node_id="a", spec=TaskSpec(), status=TaskStatus(TaskState.RUNNING))
    await manager.store.commit([Put(t)])
    await asyncio.sleep(20 * 3600)
    channel = manager.connect("a")
    for _ in range(8 * 360):
        await asyncio.sleep(10)
        channel.inbox.put_nowait(Heartbeat())
    found = manager.store.view().get(Task, "t")
    assert found is not None and found.status.state == TaskState.RUNNING


async def test_a_manager_that_stood_still_blames_nobody(manager: Manager) -> None:
    await manager.dispatcher.start()
    channel = manager.connect("a")
    await asyncio.sleep(1)
    liveness = manager.dispatcher._liveness
    real = liveness._now
    liveness._now = lambda: real() + 60  # type: ignore[method-assign]  # a minute passed within one step
    await asyncio.sleep(14.3)
    assert manager.state("a") == NodeState.READY
    channel.inbox.put_nowait(Heartbeat())
    await asyncio.sleep(14)
    assert manager.state("a") == NodeState.READY


async def test_leaving_is_down_at_once_and_other_nodes_stay(manager: Manager) -> None:
    await manager.dispatcher.start()
    one, two = manager.connect("a"), manager.connect("b")
    await asyncio.sleep(1)
    one.inbox.put_nowait(Leaving())
    await asyncio.sleep(0.1)
    assert (manager.state("a"), manager.state("b")) == (NodeState.DOWN, NodeState.READY)
    assert manager.dispatcher.connected() == ["b"] and not [m for m in two.sent if isinstance(m, Refused)]


async def test_strangers_and_babblers_are_turned_away(manager: Manager) -> None:
    await manager.dispatcher.start()
    unknown = manager.connect("stranger")
    future = manager.connect("a", Hello(HELLO.description, protocol=99))
    rude = manager.connect("b", Heartbeat())
    await asyncio.sleep(1)
    assert unknown.sent == [Refused("node stranger was removed from the swarm", final=True)]
    (refusal,) = future.sent
    assert isinstance(refusal, Refused) and "protocol 99" in refusal.reason and not refusal.final
    assert rude.sent == [] and "starts with Hello" in str(manager.sessions[2].exception())
    assert manager.dispatcher.connected() == [] and manager.state("a") == NodeState.UNKNOWN


async def test_a_removed_node_loses_its_session(manager: Manager) -> None:
    await manager.dispatcher.start()
    channel = manager.connect("a")
    await asyncio.sleep(1)
    await manager.store.commit([Delete("node", "a")])
    await asyncio.sleep(1)
    assert isinstance(channel.sent[-1], Refused) and channel.sent[-1].final
    await asyncio.sleep(100)  # and no deadline brings it back


async def test_a_store_that_refuses_delays_acks_and_loses_nothing(manager: Manager) -> None:
    await manager.dispatcher.start()
    await manager.store.commit([Put(Task(id="t", service_id="s", node_id="a", spec=TaskSpec()))])
    channel = manager.connect("a")
    await asyncio.sleep(1)
    real, failures = manager.store.commit, 5

    async def commit(changes):  # type: ignore[no-untyped-def]
        nonlocal failures
        if failures:
            failures -= 1
            raise Unavailable("disk full")
        return await real(changes)

    manager.store.commit = commit  # type: ignore[method-assign]
    channel.inbox.put_nowait(Reports(1, (TaskReport("t", TaskStatus(TaskState.STARTING, 1)),)))
    await asyncio.sleep(0.15)
    channel.inbox.put_nowait(Reports(2, (TaskReport("t", TaskStatus(TaskState.RUNNING, 2)),)))
    await asyncio.sleep(0.1)
    assert Ack(1) not in channel.sent and Ack(2) not in channel.sent
    for _ in range(3):
        await asyncio.sleep(5)
        channel.inbox.put_nowait(Heartbeat())
    assert Ack(2) in channel.sent
    task = manager.store.view().get(Task, "t")
    assert task is not None and task.status == TaskStatus(TaskState.RUNNING, 2)


async def test_what_the_operator_changed_meanwhile_is_kept(manager: Manager) -> None:
    """Node and task writes race with everybody else's; neither side's change may be lost."""
    await manager.dispatcher.start()
    await manager.store.commit(
        [Put(Task(id=f"t{i}", service_id="s", node_id="a", spec=TaskSpec())) for i in range(40)]
    )
    channel = manager.connect("a")
    await asyncio.sleep(1)
    real = manager.store.commit
    raced = 0

    async def commit(changes):  # type: ignore[no-untyped-def]
        """Somebody writes one of the tasks between our look and our commit, three times."""
        nonlocal raced
        if raced < 3 and len(changes) > 1:
            raced += 1
            task = manager.store.view().get(Task, "t7")
            await real([Put(msgspec.structs.replace(task, desired_state=TaskState(576 + 64 * raced)))])
        return await real(changes)

    manager.store.commit = commit  # type: ignore[method-assign]
    reports = tuple(TaskReport(f"t{i}", TaskStatus(TaskState.RUNNING, 1)) for i in range(40))
    channel.inbox.put_nowait(Reports(1, reports))
    await asyncio.sleep(1)
    assert raced == 3 and Ack(1) in channel.sent
    tasks = list(manager.store.view().all(Task))
    assert {t.status.state for t in tasks} == {TaskState.RUNNING}
    assert next(t for t in tasks if t.id == "t7").desired_state > TaskState.RUNNING


def test_deadlines_come_in_order_and_can_move_both_ways() -> None:
    d: Deadlines[str] = Deadlines()
    d.set("a", 10)
    d.set("b", 5)
    d.set("a", 3)  # earlier
    d.set("b", 20)  # later
    assert d.next() == 3 and d.due(2) == []
    assert d.due(5) == ["a"] and d.due(19) == []
    d.extend(5)
    assert d.due(20) == [] and d.due(25) == ["b"]
    d.set("c", 1)
    d.drop("c")
    assert "c" not in d and d.due(100) == []
    assert d.next() is None


def test_deadlines_agree_with_a_plain_table() -> None:
    for seed in range(100):
        rng = random.Random(seed)
        d: Deadlines[int] = Deadlines()
        table: dict[int, float] = {}
        now = 0.0
        for _ in range(200):
            key = rng.randrange(6)
            match rng.randrange(4):
                case 0 | 1:
                    table[key] = now + rng.randrange(1, 30)
                    d.set(key, table[key])
                case 2:
                    table.pop(key, None)
                    d.drop(key)
                case 3:
                    now += rng.randrange(10)
                    due = {k for k, at in table.items() if at <= now}
                    soonest = d.next()
                    assert not table or (soonest is not None and soonest <= min(table.values()))
                    assert set(d.due(now)) == due
                    table = {k: at for k, at in table.items() if k not in due}
