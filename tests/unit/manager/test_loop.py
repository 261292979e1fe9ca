"""The loop under trouble: conflicts, lag, a failing store, a failing decision, real time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

import overlace.manager.plan as plan
from overlace.manager.loop import ManagerLoop
from overlace.model.errors import OutOfSequence, Unavailable
from overlace.model.objects import Cluster, Network, Node, NodeDescription, NodeStatus, Service, Task
from overlace.model.specs import (
    EndpointSpec,
    Ipam,
    IpamConfig,
    NetworkAttachmentConfig,
    NetworkSpec,
    ReplicatedService,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)
from overlace.model.states import NodeState, TaskState
from overlace.store.base import Change, Delete, Put
from overlace.store.memory import MemoryStore
from overlace.store.watch import History


def node(id: str) -> Node:
    about = NodeDescription(hostname=id, os="linux", architecture="x86_64")
    return Node(id=id, description=about, status=NodeStatus(NodeState.READY))


def service(name: str, replicas: int = 2) -> Service:
    mode = ServiceMode(replicated=ReplicatedService(replicas))
    return Service(id=name, spec_version=1, spec=ServiceSpec(name=name, mode=mode))


async def a_store(store: MemoryStore | None = None) -> MemoryStore:
    store = store or MemoryStore()
    ingress = Network(id="ing", spec=NetworkSpec(name="ingress", ingress=True))
    await store.commit([Put(Cluster(id="c"), 0), Put(ingress, 0), Put(node("n1"), 0), Put(node("n2"), 0)])
    return store


def assigned(store: MemoryStore, id: str) -> int:
    return sum(t.status.state == TaskState.ASSIGNED for t in store.view().tasks_of_service(id))


async def rest(loop: ManagerLoop) -> None:
    for _ in range(50):
        if not await loop.step():
            return
    raise AssertionError("the loop does not come to rest")


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_run_decides_as_things_happen_and_stops_when_cancelled() -> None:
    store = await a_store()
    loop = ManagerLoop(store)
    running = asyncio.create_task(loop.run())
    try:
        await asyncio.sleep(0.01)
        await store.commit([Put(service("a"), 0)])
        await until(lambda: assigned(store, "a") == 2)
        await store.commit([Delete("service", "a")])
        await until(
            lambda: {t.desired_state for t in store.view().tasks_of_service("a")} == {TaskState.REMOVE}
        )
        for one in list(store.view().tasks_of_service("a")):  # as their agents would
            status = msgspec.structs.replace(one.status, state=TaskState.SHUTDOWN)
            await store.commit([Put(msgspec.structs.replace(one, status=status))])
        await asyncio.sleep(0.05)
        # `docker stack rm --detach=false` must get to see that they ended
        assert {t.status.state for t in store.view().all(Task)} == {TaskState.SHUTDOWN}
        await until(lambda: not list(store.view().all(Task)))
    finally:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


class Flaky(MemoryStore):
    """Refuses some commits of the manager's."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Exception] = []

    async def commit(self, changes: Sequence[Change]) -> int:
        if self.errors:
            raise self.errors.pop(0)
        return await super().commit(changes)


async def test_conflicts_are_decided_again_without_leaking_addresses() -> None:
    store = Flaky()
    await a_store(store)
    loop = ManagerLoop(store)
    await rest(loop)
    await store.commit([Put(service("a", 5), 0)])
    store.errors = [OutOfSequence(), OutOfSequence(), OutOfSequence()]
    await rest(loop)
    assert assigned(store, "a") == 5
    assert loop._index.unassigned == {} and loop._index.unallocated == {}


async def test_a_refusing_disk_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlace.manager.loop._FIRST_RETRY", 1_000_000)
    store = Flaky()
    await a_store(store)
    await store.commit([Put(service("a"), 0)])
    store.errors = [Unavailable("disk full")] * 3
    loop = ManagerLoop(store)
    running = asyncio.create_task(loop.run())
    await asyncio.sleep(0.2)
    running.cancel()
    assert assigned(store, "a") == 2


async def test_a_loop_that_missed_events_looks_at_everything() -> None:
    store = MemoryStore(history=History(keep_batches=2))
    await a_store(store)
    loop = ManagerLoop(store)
    await rest(loop)
    for name in ("a", "b", "c", "d", "e"):
        await store.commit([Put(service(name), 0)])
    await rest(loop)
    assert [assigned(store, name) for name in "abcde"] == [2] * 5


async def test_one_service_that_cannot_be_decided_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1_000_000_000_000]
    store = await a_store()
    loop = ManagerLoop(store, clock=lambda: now[0])
    decide = plan.plan_service
    broken = True

    def sometimes(view: Any, id: str, when: int, new_id: Any) -> Any:
        if id == "bad" and broken:
            raise RuntimeError("a bug")
        return decide(view, id, when, new_id)

    monkeypatch.setattr(plan, "plan_service", sometimes)
    await store.commit([Put(service("bad"), 0), Put(service("good"), 0)])
    await rest(loop)
    assert (assigned(store, "good"), assigned(store, "bad")) == (2, 0)
    first = loop.next_wake
    assert first is not None and first > now[0], "it is tried again"
    now[0] = first
    await rest(loop)
    second = loop.next_wake
    assert second is not None and second - now[0] > first - 1_000_000_000_000, "with growing pauses"
    broken = False
    now[0] = second
    await rest(loop)
    assert assigned(store, "bad") == 2


async def test_task_progress_alone_makes_the_manager_write_nothing() -> None:
    store = await a_store()
    loop = ManagerLoop(store)
    await store.commit([Put(service("a", 20), 0)])
    await rest(loop)
    for state in (TaskState.ACCEPTED, TaskState.PREPARING, TaskState.STARTING, TaskState.RUNNING):
        for one in list(store.view().tasks_of_service("a")):
            status = msgspec.structs.replace(one.status, state=state)
            await store.commit([Put(msgspec.structs.replace(one, status=status))])
    before = store.view().revision
    await rest(loop)
    assert store.view().revision == before


async def test_a_network_says_that_it_fills_up_before_a_task_waits_for_an_address() -> None:
    store = await a_store()
    small = NetworkSpec(name="small", ipam=Ipam(config=[IpamConfig(subnet="10.7.0.0/28")]))
    wish = TaskSpec(networks=[NetworkAttachmentConfig(target="small")])

    def of(replicas: int) -> Service:
        made = service("web", replicas)
        return msgspec.structs.replace(
            made,
            spec=msgspec.structs.replace(made.spec, task_template=wish, endpoint_spec=EndpointSpec("dnsrr")),
        )

    def said() -> str:
        found = store.view().get(Network, "small")
        assert found is not None
        return found.warning

    loop = ManagerLoop(store)
    await store.commit([Put(Network(id="small", spec=small), 0), Put(of(6), 0)])
    await rest(loop)
    assert said() == ""
    for replicas, warns in ((9, True), (20, True), (2, False)):
        now = store.view().get(Service, "web")
        assert now is not None
        await store.commit([Put(msgspec.structs.replace(of(replicas), version=now.version))])
        await rest(loop)
        waiting = [t.status.err for t in store.view().tasks_of_service("web") if t.status.err]
        if warns:
            assert "% or more of its 13 addresses are in use" in said()
        if replicas == 20:
            assert waiting and all("no address left for task" in err for err in waiting)
        if replicas == 2:
            stopped = [
                Put(
                    msgspec.structs.replace(
                        t, status=msgspec.structs.replace(t.status, state=TaskState.SHUTDOWN)
                    )
                )
                for t in store.view().tasks_of_service("web")
                if not t.desired_state.wanted
            ]
            await store.commit(stopped)
            await rest(loop)
            assert said() == ""
    loop.close()
