"""What every home of the store promises: in memory, on SQLite and on a real etcd."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import msgspec
import pytest
from etcd_bed import EtcdBed, leading_store

from overlace.model.errors import Conflict, OutOfSequence, Unavailable
from overlace.model.objects import Network, NetworkAttachment, Node, Secret, Service, Task, TaskStatus
from overlace.model.specs import NetworkAttachmentConfig, NetworkSpec, SecretSpec, ServiceSpec, TaskSpec
from overlace.model.states import TaskState
from overlace.store.base import Batch, Delete, Lagged, Put, Store
from overlace.store.memory import MemoryStore
from overlace.store.sqlite import SqliteStore
from overlace.store.watch import History


class Clock:
    def __init__(self) -> None:
        self.now = 1_000

    def __call__(self) -> int:
        self.now += 1
        return self.now


@pytest.fixture(params=["memory", "sqlite", "etcd"])
async def store(request: pytest.FixtureRequest, tmp_path: object) -> AsyncIterator[Store]:
    if request.param == "etcd":
        bed: EtcdBed = request.getfixturevalue("etcd_bed")
        await bed.empty()
        async with leading_store(bed, Clock()) as on_etcd:
            yield on_etcd
        return
    made: Store = (
        MemoryStore(Clock())
        if request.param == "memory"
        else SqliteStore(f"{tmp_path}/state.db", clock=Clock())
    )
    yield made
    await made.close()


def service(id: str, name: str | None = None, networks: tuple[str, ...] = ()) -> Service:
    attachments = [NetworkAttachmentConfig(target=n) for n in networks]
    return Service(id=id, spec=ServiceSpec(name=name or id, task_template=TaskSpec(networks=attachments)))


def task(id: str, service_id: str = "s1", node_id: str = "", networks: tuple[str, ...] = ()) -> Task:
    attached = tuple(NetworkAttachment(network_id=n, addresses=("10.0.1.3/24",)) for n in networks)
    return Task(id=id, service_id=service_id, node_id=node_id, spec=TaskSpec(), networks=attached)


async def test_commit_sets_version_and_times(store: Store) -> None:
    await store.commit([Put(service("s1"), expect=0)])
    first = store.view().get(Service, "s1")
    assert first is not None and first.version == 1 and first.created_at == first.updated_at > 0
    await store.commit([Put(msgspec.structs.replace(first, spec_version=7), expect=first.version)])
    second = store.view().get(Service, "s1")
    assert second is not None
    assert (second.version, second.spec_version, second.created_at) == (2, 7, first.created_at)
    assert second.updated_at > first.updated_at


async def test_a_stale_version_changes_nothing(store: Store) -> None:
    await store.commit([Put(service("s1")), Put(service("s2"))])
    before = store.view()
    with pytest.raises(OutOfSequence, match="update out of sequence"):
        await store.commit([Put(service("s3")), Delete("service", "s2"), Put(service("s1"), expect=99)])
    after = store.view()
    assert after.revision == before.revision
    assert {s.id for s in after.all(Service)} == {"s1", "s2"}


async def test_writing_over_something_deleted_is_refused(store: Store) -> None:
    await store.commit([Put(service("s1"))])
    await store.commit([Delete("service", "s1", expect=1)])
    with pytest.raises(OutOfSequence):
        await store.commit([Put(service("s1"), expect=1)])
    with pytest.raises(OutOfSequence):
        await store.commit([Delete("service", "s1", expect=1)])
    assert await store.commit([Delete("service", "s1")]) == 2, "deleting what is gone changes nothing"
    assert await store.commit([]) == 2


async def test_names_are_unique_and_say_who_holds_them(store: Store) -> None:
    network = Network(id="n1", spec=NetworkSpec(name="net"))
    secret = Secret(id="x1", spec=SecretSpec(name="s1"))
    await store.commit([Put(service("s1", "p1")), Put(network), Put(secret)])
    with pytest.raises(
        Conflict, match=r"^name conflicts with an existing object: service P1 already exists$"
    ):
        await store.commit([Put(service("s2", "P1"))])
    with pytest.raises(Conflict, match=r"^secret s1 already exists$"):
        await store.commit([Put(msgspec.structs.replace(secret, id="x2"), expect=0)])
    with pytest.raises(Conflict, match=r"^network with name net already exists$"):
        await store.commit([Put(msgspec.structs.replace(network, id="n2"), expect=0)])
    with pytest.raises(Conflict):
        await store.commit([Put(service("s3", "twin")), Put(service("s4", "twin"))])
    await store.commit([Delete("service", "s1"), Put(service("s2", "p1"))])
    found = store.view().by_name(Service, "p1")
    assert found is not None and found.id == "s2"


async def test_hostnames_need_not_be_unique(store: Store) -> None:
    await store.commit([Put(Node(id="a")), Put(Node(id="b"))])
    assert len(list(store.view().all(Node))) == 2


async def test_a_view_does_not_change(store: Store) -> None:
    await store.commit([Put(service("s1")), Put(task("t1", node_id="n1"))])
    view = store.view()
    await store.commit(
        [Delete("service", "s1"), Put(task("t1", node_id="n2")), Put(task("t2", node_id="n1"))]
    )
    assert view.get(Service, "s1") is not None and view.by_name(Service, "s1") is not None
    assert [t.id for t in view.tasks_of_node("n1")] == ["t1"]
    assert [t.id for t in store.view().tasks_of_node("n1")] == ["t2"]
    assert [t.id for t in store.view().tasks_of_node("n2")] == ["t1"]


async def test_indexes_follow_the_objects(store: Store) -> None:
    await store.commit(
        [
            Put(service("s1", networks=("net1", "net2"))),
            Put(task("t1", networks=("net1",))),
            Put(
                Task(
                    id="t2", service_id="s1", spec=TaskSpec(networks=[NetworkAttachmentConfig(target="net1")])
                )
            ),
        ]
    )
    view = store.view()
    assert {t.id for t in view.tasks_of_service("s1")} == {"t1", "t2"}
    assert {t.id for t in view.tasks_of_network("net1")} == {"t1", "t2"}, "attached, or waiting to be"
    assert [s.id for s in view.services_of_network("net2")] == ["s1"]
    await store.commit([Put(service("s1", networks=("net1",))), Delete("task", "t1")])
    view = store.view()
    assert list(view.services_of_network("net2")) == []
    assert {t.id for t in view.tasks_of_network("net1")} == {"t2"}


@pytest.mark.parametrize(
    "prefix,expected",
    [
        ("ab", {"abc1", "abc2"}),
        ("a", {"abc1", "abc2", "ax"}),
        ("abc1", {"abc1"}),
        ("z", set()),
        ("", {"abc1", "abc2", "ax", "b"}),
    ],
)
async def test_by_prefix(store: Store, prefix: str, expected: set[str]) -> None:
    await store.commit([Put(service(id)) for id in ("abc1", "abc2", "ax", "b")])
    assert {s.id for s in store.view().by_prefix(Service, prefix)} == expected


async def test_watch_misses_nothing(store: Store) -> None:
    watch = store.watch()
    await store.commit([Put(service("s1"))])
    await store.commit([Put(service("s2")), Delete("service", "s1")])
    first = await watch.next(timeout=1)
    assert first is not None and [e.id for e in first.events] == ["s1"]
    assert [b.revision for b in watch.drain()] == [2]
    assert await watch.next(timeout=0.01) is None
    again = store.watch(since=1)
    [batch] = again.drain()
    assert [(e.id, e.old is None, e.new is None) for e in batch.events] == [
        ("s2", True, False),
        ("s1", False, True),
    ]


async def test_watch_wakes_and_ends_with_the_store(store: Store) -> None:
    seen: list[Batch] = []

    async def collect() -> None:
        async for batch in store.watch():
            seen.append(batch)

    collector = asyncio.create_task(collect())
    await asyncio.sleep(0)
    await store.commit([Put(service("s1"))])
    await asyncio.sleep(0.01)
    assert [b.revision for b in seen] == [1]
    await store.close()
    await asyncio.wait_for(collector, 1)
    with pytest.raises(Unavailable):
        await store.commit([Put(service("s2"))])


async def test_a_closed_watch_ends() -> None:
    store = MemoryStore()
    watch = store.watch()
    waiting = asyncio.create_task(watch.next())
    await asyncio.sleep(0)
    watch.close()
    assert await asyncio.wait_for(waiting, 1) is None


async def test_a_watcher_that_lags_is_told() -> None:
    store = MemoryStore(history=History(keep_batches=3))
    slow = store.watch()
    for n in range(5):
        await store.commit([Put(service(f"s{n}"))])
    with pytest.raises(Lagged):
        await slow.next()
    with pytest.raises(Lagged):
        store.watch(since=0).drain()
    with pytest.raises(Lagged):
        store.watch(since=99).drain()
    assert [b.revision for b in store.watch(since=2).drain()] == [3, 4, 5]


async def test_history_is_bounded_by_events() -> None:
    store = MemoryStore(history=History(keep_events=10))
    for n in range(4):
        await store.commit([Put(service(f"s{n}-{i}")) for i in range(5)])
    assert [b.revision for b in store.watch(since=2).drain()] == [3, 4]
    with pytest.raises(Lagged):
        store.watch(since=1).drain()


@pytest.mark.parametrize("seed", range(5))
async def test_agrees_with_plain_dicts(seed: int) -> None:
    """Random commits against a model; old views keep their content while tables grow over several shard
    sizes."""
    rng = random.Random(seed)
    store = MemoryStore()
    model: dict[str, Task] = {}
    kept: list[tuple[object, dict[str, Task]]] = []
    for _ in range(60):
        changes: list[Put | Delete] = []
        for _ in range(rng.randint(1, 120)):
            if model and rng.random() < 0.25:
                gone = rng.choice(sorted(model))
                del model[gone]
                changes.append(Delete("task", gone))
            else:
                id = f"{rng.randrange(40_000):05d}"
                made = task(id, f"s{rng.randrange(4)}", f"n{rng.randrange(9)}", (f"net{rng.randrange(3)}",))
                model[id] = made
                changes.append(Put(made))
        await store.commit(changes)
        if rng.random() < 0.2:
            kept.append((store.view(), dict(model)))
    kept.append((store.view(), dict(model)))
    for view, expected in kept:
        assert {t.id for t in view.all(Task)} == set(expected)  # type: ignore[attr-defined]
        for key in range(9):
            got = {t.id for t in view.tasks_of_node(f"n{key}")}  # type: ignore[attr-defined]
            assert got == {i for i, t in expected.items() if t.node_id == f"n{key}"}
        for key in range(3):
            got = {t.id for t in view.tasks_of_network(f"net{key}")}  # type: ignore[attr-defined]
            assert got == {i for i, t in expected.items() if t.networks[0].network_id == f"net{key}"}
        some = next(iter(expected))[:3]
        got = {t.id for t in view.by_prefix(Task, some)}  # type: ignore[attr-defined]
        assert got == {i for i in expected if i.startswith(some)}


async def test_order_does_not_depend_on_hashing(store: Store) -> None:
    """Seeded simulations need the same order for the same history: insertion order for small tables."""
    await store.commit([Put(task(f"t{n}")) for n in range(20)])
    moved = store.view().get(Task, "t3")
    assert moved is not None
    await store.commit([Put(msgspec.structs.replace(moved, status=TaskStatus(state=TaskState.RUNNING)))])
    assert [t.id for t in store.view().tasks_of_service("s1")] == [f"t{n}" for n in range(20)]
