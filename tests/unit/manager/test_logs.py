"""Log streams over several nodes: order, following, and what happens when a node is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from overlace.manager.logs import IncompleteLogs, LogBroker, LogRecord
from overlace.model.objects import ContainerStatus, Node, NodeStatus, Service, Task, TaskStatus
from overlace.model.specs import ServiceSpec, TaskSpec
from overlace.model.states import NodeState, TaskState
from overlace.runtime.base import LogOptions
from overlace.store.base import Delete, Put
from overlace.store.memory import MemoryStore
from overlace.wire.messages import LogChunk, LogSubscribe, LogUnsubscribe, ManagerMessage


class Nodes:
    """Plays dispatcher and agents: what each node was told, and which have no session."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ManagerMessage]] = []
        self.absent: set[str] = set()

    def send(self, node_id: str, message: ManagerMessage) -> bool:
        self.told.append((node_id, message))
        return node_id not in self.absent

    def asked(self, node_id: str) -> list[LogSubscribe]:
        return [m for n, m in self.told if n == node_id and isinstance(m, LogSubscribe)]


class Kit:
    def __init__(self, **limits: float) -> None:
        self.store = MemoryStore()
        self.nodes = Nodes()
        self.broker = LogBroker(self.store, self.nodes, new_id=lambda: "sub", **limits)  # type: ignore[arg-type]

    async def cluster(self) -> None:
        ready = NodeStatus(state=NodeState.READY)
        await self.store.commit(
            [
                Put(Service(id="s", spec=ServiceSpec(name="web"))),
                Put(Node(id="n1", status=ready)),
                Put(Node(id="n2", status=ready)),
                Put(task("t1", "n1")),
                Put(task("t2", "n2")),
            ]
        )

    def says(
        self, id: str, *lines: tuple[int, str], end: bool = False, node: str = "", error: str = ""
    ) -> None:
        chunk = LogChunk("sub", id, tuple((at, "stdout", text.encode()) for at, text in lines), end, error)
        self.broker.on_log(node or {"t1": "n1", "t2": "n2", "t3": "n1"}[id], chunk)


def task(id: str, node_id: str, state: TaskState = TaskState.RUNNING) -> Task:
    status = TaskStatus(state=state, container=ContainerStatus("c-" + id))
    return Task(id=id, service_id="s", node_id=node_id, spec=TaskSpec(), name=f"web.{id}", status=status)


async def read(lines: AsyncIterator[LogRecord]) -> list[str]:
    return [f"{r.task_id}@{r.node_id} {r.timestamp} {r.stream} {r.data.decode()}" async for r in lines]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_lines_of_several_nodes_come_in_order_of_time() -> None:
    kit = Kit()
    await kit.cluster()
    options = LogOptions(since=5, until=9, tail=3, stderr=False)
    reading = asyncio.create_task(read(kit.broker.subscribe([], options, service_id="s")))
    await settle()
    assert kit.nodes.asked("n1") == [LogSubscribe("sub", ("t1",), True, False, False, 5, 9, 3)]
    kit.says("t2", (2, "b"), (4, "d"), end=True)
    kit.says("t1", (1, "a"))
    kit.says("t1", (3, "c"), (5, "e"), end=True)
    assert await asyncio.wait_for(reading, 1) == [
        "t1@n1 1 stdout a",
        "t2@n2 2 stdout b",
        "t1@n1 3 stdout c",
        "t2@n2 4 stdout d",
        "t1@n1 5 stdout e",
    ]
    assert ("n1", LogUnsubscribe("sub")) in kit.nodes.told


async def test_lines_go_out_before_everything_is_there() -> None:
    kit = Kit()
    await kit.cluster()
    lines = kit.broker.subscribe(["t1", "t2"], LogOptions())
    first = asyncio.ensure_future(anext(lines))
    await settle()
    kit.says("t1", (1, "a"), (9, "z"))
    await settle()
    assert not first.done(), "t2 may have an older one"
    kit.says("t2", (2, "b"))
    assert (await asyncio.wait_for(first, 1)).data == b"a"
    await lines.aclose()  # type: ignore[attr-defined]


async def test_a_node_that_is_down_is_named_after_all_lines() -> None:
    kit = Kit()
    await kit.cluster()
    await kit.store.commit([Put(Node(id="n2", status=NodeStatus(state=NodeState.DOWN)))])
    got: list[LogRecord] = []

    async def collect() -> None:
        async for record in kit.broker.subscribe([], LogOptions(), service_id="s"):
            got.append(record)

    reading = asyncio.create_task(collect())
    await settle()
    assert kit.nodes.asked("n2") == []
    kit.says("t1", (1, "a"), end=True)
    with pytest.raises(IncompleteLogs) as caught:
        await asyncio.wait_for(reading, 1)
    assert [r.data for r in got] == [b"a"]
    assert caught.value.message == (
        "warning: incomplete log stream. some logs could not be retrieved for the following reasons:"
        " node n2 is not available"
    )


@pytest.mark.parametrize("without_session", [True, False])
async def test_a_silent_node_ends(without_session: bool) -> None:
    kit = Kit(silence=0.05)
    await kit.cluster()
    if without_session:
        kit.nodes.absent.add("n2")
    reading = asyncio.create_task(read(kit.broker.subscribe(["t1", "t2"], LogOptions())))
    await settle()
    kit.says("t1", (1, "a"), end=True)
    with pytest.raises(IncompleteLogs, match="node n2 is not available"):
        await asyncio.wait_for(reading, 2)


async def test_tasks_that_never_started_are_not_asked_for() -> None:
    kit = Kit()
    await kit.cluster()
    waiting = msgspec.structs.replace(task("t1", "n1"), status=TaskStatus(state=TaskState.PREPARING))
    rejected = task("t2", "n2", TaskState.REJECTED)
    await kit.store.commit([Put(waiting), Put(rejected)])
    assert await asyncio.wait_for(read(kit.broker.subscribe(["t1", "t2", "gone"], LogOptions())), 1) == []
    assert kit.nodes.told == []


async def test_follow_takes_up_new_tasks_and_ends_with_the_service() -> None:
    kit = Kit()
    await kit.cluster()
    reading = asyncio.create_task(
        read(kit.broker.subscribe([], LogOptions(follow=True, tail=0), service_id="s"))
    )
    await settle()
    kit.says("t2", (9, "late"))
    kit.says("t1", (1, "early"))
    await kit.store.commit([Put(task("t3", "n1", TaskState.STARTING))])
    await settle()
    assert len(kit.nodes.asked("n1")) == 1
    await kit.store.commit([Put(task("t3", "n1"))])
    await settle()
    assert kit.nodes.asked("n1")[-1].task_ids == ("t3",)
    assert kit.nodes.asked("n1")[-1].tail == -1, "all a new task says is news"
    kit.says("t3", (10, "new"), end=True)
    kit.says("t1", end=True)
    kit.says("t2", end=True)
    await settle()
    assert not reading.done(), "the service may get another task"
    await kit.store.commit([Delete("service", "s")])
    assert await asyncio.wait_for(reading, 1) == [
        "t2@n2 9 stdout late",
        "t1@n1 1 stdout early",
        "t3@n1 10 stdout new",
    ]


async def test_following_one_task_ends_with_it() -> None:
    kit = Kit()
    await kit.cluster()
    reading = asyncio.create_task(read(kit.broker.subscribe(["t1"], LogOptions(follow=True))))
    await settle()
    kit.says("t1", (1, "a"))
    kit.says("t1", (2, "b"), end=True)
    assert await asyncio.wait_for(reading, 1) == ["t1@n1 1 stdout a", "t1@n1 2 stdout b"]


async def test_following_over_a_new_session_goes_on_where_it_stopped() -> None:
    kit = Kit()
    await kit.cluster()
    lines = kit.broker.subscribe(["t1"], LogOptions(follow=True, tail=5))
    first = asyncio.ensure_future(anext(lines))
    await settle()
    kit.says("t1", (7, "a"))
    await asyncio.wait_for(first, 1)
    kit.broker.on_connect("n1")
    assert kit.nodes.told[-2:] == [
        ("n1", LogUnsubscribe("sub")),
        ("n1", LogSubscribe("sub", ("t1",), follow=True, since=8, tail=-1)),
    ]
    await lines.aclose()  # type: ignore[attr-defined]


async def test_following_a_node_that_dies() -> None:
    kit = Kit()
    await kit.cluster()
    reading = asyncio.create_task(read(kit.broker.subscribe(["t1"], LogOptions(follow=True))))
    await settle()
    await kit.store.commit([Put(Node(id="n1", status=NodeStatus(state=NodeState.DOWN)))])
    with pytest.raises(IncompleteLogs, match="node n1 is not available"):
        await asyncio.wait_for(reading, 1)


async def test_a_reader_that_goes_away_stops_the_nodes() -> None:
    kit = Kit()
    await kit.cluster()
    lines = kit.broker.subscribe(["t1"], LogOptions(follow=True))
    first = asyncio.ensure_future(anext(lines))
    await settle()
    kit.says("t1", (1, "a"))
    await asyncio.wait_for(first, 1)
    await lines.aclose()  # type: ignore[attr-defined]
    assert kit.nodes.told[-1] == ("n1", LogUnsubscribe("sub"))
    kit.says("t1", (2, "b"))
    assert kit.nodes.told[-1] == ("n1", LogUnsubscribe("sub")), "a node that goes on is told again"


async def test_a_node_cannot_speak_for_another() -> None:
    kit = Kit()
    await kit.cluster()
    reading = asyncio.create_task(read(kit.broker.subscribe(["t1"], LogOptions())))
    await settle()
    kit.says("t1", (1, "forged"), end=True, node="n2")
    kit.says("t1", (1, "true"), end=True)
    assert await asyncio.wait_for(reading, 1) == ["t1@n1 1 stdout true"]


async def test_an_error_of_a_node_is_told() -> None:
    kit = Kit()
    await kit.cluster()
    reading = asyncio.create_task(read(kit.broker.subscribe(["t1"], LogOptions())))
    await settle()
    kit.says("t1", end=True, error="log file is gone")
    with pytest.raises(IncompleteLogs, match=r"task web\.t1: log file is gone"):
        await asyncio.wait_for(reading, 1)


async def test_a_slow_reader_does_not_fill_the_memory() -> None:
    kit = Kit(most_bytes=100)
    await kit.cluster()
    lines = kit.broker.subscribe(["t1"], LogOptions(follow=True))
    first = asyncio.ensure_future(anext(lines))
    await settle()
    for n in range(30):
        kit.says("t1", (n, "x" * 10))
    got = [await first]
    with pytest.raises(IncompleteLogs, match="faster than they are read"):
        async for record in lines:
            got.append(record)
    assert 1 < len(got) < 30
    assert ("n1", LogUnsubscribe("sub")) in kit.nodes.told
