"""What the disk adds: nothing acknowledged is lost, nothing refused is kept, and bad files say what is
wrong."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from overlace.model.errors import Conflict, FailedPrecondition, Internal, Unavailable
from overlace.model.objects import (
    Cluster,
    Config,
    Node,
    NodeDescription,
    NodeStatus,
    Secret,
    Service,
    Task,
    TaskStatus,
)
from overlace.model.specs import ConfigSpec, SecretSpec, ServiceSpec, TaskSpec
from overlace.model.states import NodeState, TaskState
from overlace.store.base import Delete, Put
from overlace.store.sqlite import SqliteStore


def service(id: str) -> Service:
    return Service(id=id, spec=ServiceSpec(name=id))


async def test_reopening_gives_the_same_objects(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = SqliteStore(path)
    await store.commit(
        [
            Put(service("s1")),
            Put(Task(id="t1", service_id="s1", spec=TaskSpec(), status=TaskStatus(state=TaskState.RUNNING))),
            Put(Secret(id="x", spec=SecretSpec(name="x", data=b"\x00\xff"))),
            Put(Config(id="c", spec=ConfigSpec(name="c", data=b"c"))),
            Put(Cluster(id="k", worker_token="SWMTKN-1-a-b")),
            Put(
                Node(
                    id="n",
                    description=NodeDescription(hostname="h", os="windows", architecture="x86_64"),
                    status=NodeStatus(state=NodeState.READY),
                )
            ),
        ]
    )
    await store.commit([Delete("config", "c"), Put(service("s2"))])
    expected = {
        kind: sorted(store.view().all(kind), key=lambda o: o.id)
        for kind in (Service, Task, Secret, Config, Cluster, Node)
    }
    await store.close()

    again = SqliteStore(path)
    assert again.view().revision == 2
    for kind, things in expected.items():
        assert sorted(again.view().all(kind), key=lambda o: o.id) == things
    assert [t.id for t in again.view().tasks_of_service("s1")] == ["t1"]
    with pytest.raises(Conflict):
        await again.commit([Put(Service(id="s9", spec=ServiceSpec(name="s2")))])
    assert await again.commit([Put(service("s3"))]) == 3, "revisions go on"
    await again.close()


async def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.touch(0o644)
    store = SqliteStore(path)
    await store.commit([Put(service("s1"))])
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    await store.close()


async def test_commits_that_wait_together_keep_their_own_fate(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state.db")
    results = await asyncio.gather(
        *(store.commit([Put(service(f"s{n % 5}"), expect=0)]) for n in range(10)), return_exceptions=True
    )
    assert [isinstance(r, Conflict) for r in results] == [False] * 5 + [True] * 5
    assert results[:5] == [1, 2, 3, 4, 5]
    assert [b.revision for b in store.watch(since=0).drain()] == [1, 2, 3, 4, 5]
    await store.close()


async def test_a_caller_that_gives_up_does_not_take_its_commit_back(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state.db")
    impatient = asyncio.create_task(store.commit([Put(service("s1"))]))
    await asyncio.sleep(0)
    impatient.cancel()
    await store.commit([Put(service("s2"))])
    assert {s.id for s in store.view().all(Service)} == {"s1", "s2"}
    await store.close()
    again = SqliteStore(tmp_path / "state.db")
    assert {s.id for s in again.view().all(Service)} == {"s1", "s2"}
    await again.close()


async def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = SqliteStore(path)
    await store.commit([Put(service("s1"))])
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    watch = store.watch()
    with pytest.raises(Unavailable, match="full; nothing was changed"):
        await store.commit(
            [Put(Config(id="c", spec=ConfigSpec(name="c", data=b"x" * 500_000))), Put(service("s2"))]
        )
    assert store.view().revision == 1 and watch.drain() == []
    assert {s.id for s in store.view().all(Service)} == {"s1"}
    assert await store.commit([Put(service("s3"))]) == 2, "what still fits is still taken"
    await store.close()
    again = SqliteStore(path)
    assert {s.id for s in again.view().all(Service)} == {"s1", "s3"}
    await again.close()


async def test_a_second_daemon_is_refused(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state.db")
    with pytest.raises(Unavailable, match="held by another process"):
        SqliteStore(tmp_path / "state.db")
    await store.close()


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    await SqliteStore(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(FailedPrecondition, match="schema 99, this overlace knows up to 1"):
        SqliteStore(path)


def test_another_programs_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE cookies (a)")
    db.close()
    with pytest.raises(FailedPrecondition, match="another program"):
        SqliteStore(path)


def test_garbage_is_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"this is not a database, sorry" * 1000)
    with pytest.raises(Internal, match=r"is damaged: .*; restore a copy"):
        SqliteStore(path)


async def test_a_broken_page_is_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = SqliteStore(path)
    await store.commit(
        [Put(Config(id=f"c{n}", spec=ConfigSpec(name=f"c{n}", data=b"x" * 3000))) for n in range(50)]
    )
    await store.close()
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(os.urandom(8 * 4096))
    with pytest.raises(Internal, match="is damaged"):
        SqliteStore(path)


async def test_an_unreadable_object_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = SqliteStore(path)
    await store.commit([Put(service("s1"))])
    await store.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE objects SET data = x'00'")
    db.close()
    with pytest.raises(Internal, match="service s1 cannot be read"):
        SqliteStore(path)


_CHILD = """
import asyncio, random, sys
from overlace.model.objects import Service
from overlace.model.specs import ServiceSpec
from overlace.store.base import Delete, Put
from overlace.store.sqlite import SqliteStore

async def writer(store, name):
    rng = random.Random(f"{name}{store.view().revision}")
    n = store.view().revision  # so that no value comes twice
    while True:
        id = f"{name}{rng.randrange(20)}"
        n += 1
        gone = rng.random() < 0.2
        put = Put(Service(id=id, spec=ServiceSpec(name=id), spec_version=n))
        change = Delete("service", id) if gone else put
        pair = Put(Service(id="pair-" + id, spec=ServiceSpec(name="pair-" + id), spec_version=n))
        print("begin", id, "-" if gone else n, n, flush=True)
        revision = await store.commit([change, pair])
        print("done", id, "-" if gone else n, n, revision, flush=True)

async def main():
    store = SqliteStore(sys.argv[1])
    await asyncio.gather(*(writer(store, name) for name in "abc"))

asyncio.run(main())
"""


def test_kill_9_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """A child writes as fast as it can and says what was acknowledged; it is killed at random moments.
    Afterwards every acknowledged write is there, a write under way is there whole or not at all, and nothing
    else is."""
    path = tmp_path / "state.db"
    rng = random.Random(4)
    acknowledged: dict[str, tuple[str, str]] = {}  # id -> (value or -, pair value)
    total = 0
    for _ in range(8):
        child = subprocess.Popen([sys.executable, "-c", _CHILD, str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        lines: list[str] = []
        for _ in range(rng.randint(10, 400)):
            lines.append(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
        lines += child.stdout.readlines()
        child.stdout.close()
        child.wait()
        under_way: dict[str, tuple[str, str]] = {}
        revision = 0
        for line in lines:
            if not line.endswith("\n"):
                continue
            word, id, value, pair, *rest = line.split()
            if word == "begin":
                under_way[id] = (value, pair)
            else:
                acknowledged[id] = under_way.pop(id)
                revision = int(rest[0])
                total += 1
        store = SqliteStore(path)
        view = store.view()
        assert view.revision >= revision
        for id in {*acknowledged, *under_way}:
            now = view.get(Service, id)
            pair_now = view.get(Service, f"pair-{id}")
            seen = (str(now.spec_version) if now else "-", str(pair_now.spec_version) if pair_now else "-")
            allowed = {acknowledged.get(id, ("-", "-"))} | ({under_way[id]} if id in under_way else set())
            assert seen in allowed
            acknowledged[id] = seen
        asyncio.run(store.close())
    assert total > 100


async def test_deleting_and_creating_again_in_one_commit(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = SqliteStore(path)
    await store.commit([Put(service("s1"))])
    await store.commit([Delete("service", "s1"), Put(service("s1"), expect=0)])
    await store.close()
    again = SqliteStore(path)
    found = again.view().get(Service, "s1")
    assert found is not None and found.version == 2
    await again.close()
