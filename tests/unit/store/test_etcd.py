"""What only the store on etcd promises: one writer at a time, followers that see every commit, nothing lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial

import msgspec
import pytest
from etcd_bed import EtcdBed, leading_store, take_lead

from overlace.model.errors import InvalidArgument, NoLeader
from overlace.model.objects import Config, Service
from overlace.model.specs import ConfigSpec, ServiceSpec
from overlace.store.base import Batch, Event, Lagged, Put, View
from overlace.store.etcd.client import EtcdClient, EtcdError, TxnResult
from overlace.store.etcd.election import Election, Leader
from overlace.store.etcd.store import MAX_OBJECT, MAX_OPERATIONS, MAX_PART, EtcdStore, plan_parts

pytestmark = pytest.mark.slow


def service(id: str) -> Service:
    return Service(id=id, spec=ServiceSpec(name=id))


def config(id: str, size: int) -> Config:
    return Config(id=id, spec=ConfigSpec(name=id, data=b"x" * size))


def ids(view: View) -> set[str]:
    return {s.id for s in view.all(Service)}


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110  what is awaited is another process's doing
            await asyncio.sleep(0.01)


@pytest.fixture
async def open_store(etcd_bed: EtcdBed) -> AsyncIterator[Callable[[], object]]:
    """Makes stores over the same etcd, as several managers have."""
    await etcd_bed.empty()
    async with AsyncExitStack() as stack:

        async def opened() -> EtcdStore:
            client = etcd_bed.client()
            stack.push_async_callback(client.close)
            store = await EtcdStore.open(client)
            stack.push_async_callback(store.close)
            return store

        yield opened


async def test_a_follower_sees_each_commit_and_may_not_write(open_store: Callable) -> None:
    leader, follower = await open_store(), await open_store()
    watch = follower.watch()
    await leader.lead(await take_lead(leader._client))
    await leader.commit([Put(service("s1")), Put(service("s2"))])
    # these wait together and go in one transaction: the follower's revisions still have no gap
    await asyncio.gather(*(leader.commit([Put(service(f"t{i}"), expect=0)]) for i in range(5)))
    await until(lambda: follower.view().revision == leader.view().revision)
    assert follower.view().revision == 6
    assert list(follower.view().all(Service)) and ids(follower.view()) == ids(leader.view())
    assert {s.id: s for s in follower.view().all(Service)} == {s.id: s for s in leader.view().all(Service)}
    events = [e.id for batch in watch.drain() for e in batch.events]
    assert events == ["s1", "s2", "t0", "t1", "t2", "t3", "t4"]
    with pytest.raises(NoLeader, match="The swarm does not have a leader"):
        await follower.commit([Put(service("s3"))])


async def test_a_leader_that_was_replaced_can_write_nothing(open_store: Callable) -> None:
    old, new = await open_store(), await open_store()
    await old.lead(await take_lead(old._client))
    await old.commit([Put(service("before"))])
    fenced = asyncio.Event()
    old.on_fenced = fenced.set
    await new.lead(await take_lead(new._client))  # the old one does not know yet
    assert ids(new.view()) == {"before"}
    with pytest.raises(NoLeader):
        await old.commit([Put(service("too-late"))])
    assert fenced.is_set() and not old.leading
    await new.commit([Put(service("after"))])
    await old.follow()
    await until(lambda: ids(old.view()) == {"before", "after"})


async def test_a_new_leader_has_everything_acknowledged(open_store: Callable) -> None:
    first, second = await open_store(), await open_store()
    await first.lead(await take_lead(first._client))
    await first.commit([Put(service(f"s{i}")) for i in range(50)])
    await second.lead(await take_lead(second._client))  # its watch may not have brought all of it yet
    assert len(ids(second.view())) == 50
    await second.commit([Put(service("s50"))])
    assert second.view().revision == 2


class LosesAnswers(EtcdClient):
    """What is asked is done, but the first answers get lost on the way back."""

    lose = 0

    async def txn(self, *args: object, **kwargs: object) -> TxnResult:
        result = await super().txn(*args, **kwargs)  # type: ignore[arg-type]
        if self.lose:
            self.lose -= 1
            raise EtcdError("the connection broke")
        return result


async def test_a_lost_answer_is_no_lost_commit_and_no_second_one(etcd_bed: EtcdBed) -> None:
    await etcd_bed.empty()
    client = LosesAnswers(etcd_bed.files.socket)
    store = await EtcdStore.open(client)
    try:
        await store.lead(await take_lead(client))
        client.lose = 2
        assert await store.commit([Put(service("s1"), expect=0)]) == 1
        assert await store.commit([Put(service("s2"), expect=0)]) == 2
        assert store.leading and ids(store.view()) == {"s1", "s2"}
    finally:
        await store.close()
        await client.close()


async def test_a_commit_of_many_parts_shows_whole_or_not_at_all(open_store: Callable) -> None:
    leader, follower = await open_store(), await open_store()
    await leader.lead(await take_lead(leader._client))
    seen: list[int] = []
    watch = follower.watch()

    async def look() -> None:
        async for batch in watch:
            seen.append(len(batch.events))

    looking = asyncio.create_task(look())
    await leader.commit([Put(config(f"c{i}", 900_000)) for i in range(6)])
    await until(lambda: follower.view().revision == 1 or bool(seen))
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    assert seen in ([6], [])  # too much for one answer of etcd's: read as a whole instead
    assert len(list(follower.view().all(Config))) == 6


def test_parts_fit_etcds_limits() -> None:
    many = Batch(
        1, tuple(Event("service", f"s{i}", None, service(f"s{i}")) for i in range(MAX_OPERATIONS + 1))
    )
    assert [len(p) for p in plan_parts([many])] == [MAX_OPERATIONS, 2]
    big = Batch(1, tuple(Event("config", f"c{i}", None, config(f"c{i}", MAX_PART // 2)) for i in range(3)))
    assert [len(p) for p in plan_parts([big])] == [1, 1, 2]


async def test_half_a_commit_of_a_dead_leader_does_no_harm(open_store: Callable) -> None:
    leader = await open_store()
    await leader.lead(await take_lead(leader._client))
    await leader.commit([Put(service("s1"))])
    parts = plan_parts(
        [Batch(2, (Event("service", "half", None, msgspec.structs.replace(service("half"), version=2)),))]
    )
    await leader._client.txn([], parts[0][:1])  # all but what ends it
    next_one = await open_store()
    await next_one.lead(await take_lead(next_one._client))
    assert await next_one.commit([Put(service("s2"))]) == 3  # version 2 was given: never again
    follower = await open_store()
    assert {s.id: s.version for s in follower.view().all(Service)} == {"s1": 1, "half": 2, "s2": 3}
    again = await open_store()
    await again.lead(await take_lead(again._client))
    assert again.view().revision == 3


async def test_an_object_too_big_is_refused_and_harms_nobody(open_store: Callable) -> None:
    leader = await open_store()
    await leader.lead(await take_lead(leader._client))
    results = await asyncio.gather(
        leader.commit([Put(service("s1"))]),
        leader.commit([Put(config("c1", MAX_OBJECT + 1))]),
        leader.commit([Put(service("s2"))]),
        return_exceptions=True,
    )
    assert isinstance(results[1], InvalidArgument) and "too large" in results[1].message
    assert ids(leader.view()) == {"s1", "s2"}


async def test_kill_9_of_etcd_loses_nothing_and_the_commit_in_hand_goes_on(etcd_bed: EtcdBed) -> None:
    await etcd_bed.empty()
    async with leading_store(etcd_bed, lambda: 1) as store:
        acknowledged = [f"s{i}" for i in range(20)]
        for id in acknowledged:
            await store.commit([Put(service(id))])
        etcd_bed.kill()
        waiting = asyncio.create_task(store.commit([Put(service("waits"))]))
        await asyncio.sleep(0)
        etcd_bed.start()
        async with asyncio.timeout(60):
            await waiting
        fresh = etcd_bed.client()
        read = await EtcdStore.open(fresh)
        await read.close()
        await fresh.close()
        assert ids(read.view()) == {*acknowledged, "waits"}


async def test_a_follower_that_missed_compacted_revisions_reads_all_again(open_store: Callable) -> None:
    leader, follower = await open_store(), await open_store()
    await leader.lead(await take_lead(leader._client))
    await follower._stop_following()
    watch = follower.watch()
    for i in range(3):
        await leader.commit([Put(service(f"s{i}"))])
    at, _ = await leader._client.range("overlace/revision")
    await leader._client._call("/v3/kv/compaction", {"revision": str(at)}, 5.0)
    follower._follow()
    await until(lambda: len(ids(follower.view())) == 3)
    with pytest.raises(Lagged):  # its watchers must look again
        watch.drain()


async def test_one_leader_at_a_time_and_the_next_one_takes_over(etcd_bed: EtcdBed) -> None:
    await etcd_bed.empty()
    log: list[str] = []

    def knows(election: Election, name: str) -> bool:
        return election.leader is not None and election.leader.node_id == name

    leading: set[str] = set()

    def campaign(name: str) -> tuple[EtcdClient, Election]:
        client = etcd_bed.client()

        async def gained(fence: int) -> None:
            assert fence > 0 and not leading
            leading.add(name)
            log.append(f"{name} leads")

        async def lost() -> None:
            leading.discard(name)
            log.append(f"{name} stops")

        return client, Election(client, Leader(name, f"{name}:2377"), gained, lost)

    managers = {name: campaign(name) for name in ("a", "b", "c")}
    runs = {name: asyncio.create_task(e.run()) for name, (_, e) in managers.items()}
    try:
        for _ in range(2):
            await until(lambda: len(leading) == 1)
            (first,) = leading
            for name in runs:
                await until(partial(knows, managers[name][1], first))
            run = runs.pop(first)  # orderly: the lease is given back, the next one leads at once
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
        await until(lambda: len(leading) == 1)
        (last,) = leading
        client, _ = managers[last]
        await take_lead(client)  # as after its lease ran out while it stood still: somebody else has the key
        managers[last][1].step_down(3600)
        await until(lambda: not leading)
    finally:
        for run in runs.values():
            run.cancel()
        await asyncio.gather(*runs.values(), return_exceptions=True)
        for client, _ in managers.values():
            await client.close()
    assert [line.split()[1] for line in log] == ["leads", "stops"] * 3
