"""docker events: what changed in the swarm and in containers, in Docker's words."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from overlace.api import events
from overlace.api.events import EventHub, container_events, matches, plan_drops, swarm_event
from overlace.manager.paths import PathBook
from overlace.model.objects import Service, Task, UpdateStatus
from overlace.model.paths import Notice
from overlace.model.specs import (
    ContainerSpec,
    NodeSpec,
    ReplicatedService,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)
from overlace.network.notices import Notices
from overlace.network.switch import Switch
from overlace.network.vfp.reasons import MEANINGS
from overlace.store.base import Event, Put
from overlace.store.memory import MemoryStore
from overlace.store.watch import HistoryWatch

from .doubles import NOW, FakeBackend, container, node, until


def service(replicas: int = 1, image: str = "web:1") -> Service:
    return Service(
        id="s" * 25,
        updated_at=NOW,
        spec=ServiceSpec(
            name="web",
            mode=ServiceMode(replicated=ReplicatedService(replicas)),
            task_template=TaskSpec(container_spec=ContainerSpec(image=image)),
        ),
    )


def test_a_service_update_says_what_changed() -> None:
    old, new = service(1, "web:1"), service(3, "web:2")
    new = msgspec.structs.replace(new, update_status=UpdateStatus("updating"))
    event = swarm_event(Event("service", old.id, old, new), NOW)
    assert event is not None
    assert event.document() == {
        "Type": "service",
        "Action": "update",
        "Actor": {
            "ID": old.id,
            "Attributes": {
                "name": "web",
                "replicas.old": "1",
                "replicas.new": "3",
                "image.old": "web:1",
                "image.new": "web:2",
                "updatestate.new": "updating",
            },
        },
        "scope": "swarm",
        "time": NOW // 10**9,
        "timeNano": NOW,
    }


def test_create_remove_and_what_is_not_told() -> None:
    created = swarm_event(Event("service", "s", None, service()), NOW)
    removed = swarm_event(Event("service", "s", service(), None), NOW)
    assert created is not None and created.action == "create"
    assert removed is not None and (removed.action, removed.attributes) == ("remove", {"name": "web"})
    task = Task(id="t", service_id="s", spec=TaskSpec())
    assert swarm_event(Event("task", "t", None, task), NOW) is None


def test_nodes() -> None:
    old = node()
    drained = msgspec.structs.replace(old, spec=NodeSpec(role="manager", availability="drain"))
    event = swarm_event(Event("node", old.id, old, drained), NOW)
    assert event is not None
    assert event.attributes == {"name": "one", "availability.old": "active", "availability.new": "drain"}
    gone = swarm_event(Event("node", old.id, old, msgspec.structs.replace(old, removed=True)), NOW)
    assert gone is not None and gone.action == "remove"
    assert (
        swarm_event(Event("node", old.id, old, msgspec.structs.replace(old, updated_at=NOW + 1)), NOW) is None
    )


def test_containers() -> None:
    running = container()
    created = msgspec.structs.replace(running, status="created", started_at=0)
    assert [e.action for e in container_events(None, created, NOW)] == ["create"]
    assert [e.action for e in container_events(created, running, NOW)] == ["start"]
    healthy = msgspec.structs.replace(running, health="healthy")
    assert [e.action for e in container_events(running, healthy, NOW)] == ["health_status: healthy"]
    dead = msgspec.structs.replace(running, status="exited", finished_at=NOW, exit_code=3)
    (died,) = container_events(running, dead, NOW)
    assert died.action == "die" and died.attributes["exitCode"] == "3"
    assert died.document()["status"] == "die" and died.document()["from"] == "registry:5000/shop/web:1"
    assert [e.action for e in container_events(dead, None, NOW)] == ["destroy"]


def test_filters() -> None:
    event = swarm_event(Event("service", "s" * 25, None, service()), NOW)
    assert event is not None
    for good in (
        {"type": ["service", "node"]},
        {"scope": ["swarm"]},
        {"service": ["web"]},
        {"service": ["ssss"]},
        {"service": ["we"]},
        {"event": ["create"]},
        {"label": ["name=web"]},
    ):
        assert matches(event, good), good
    for bad in (
        {"type": ["node"]},
        {"scope": ["local"]},
        {"service": ["x"]},
        {"node": ["web"]},
        {"label": ["name=x"]},
    ):
        assert not matches(event, bad), bad


async def test_a_stream_has_what_was_kept_and_what_comes() -> None:
    backend = FakeBackend()
    hub = EventHub(backend)
    hub.start()
    try:
        store = MemoryStore()
        backend.manager = type("Manager", (), {"store": store, "paths": PathBook(store.view)})()  # type: ignore[assignment]
        seen: list[str] = []

        async def read() -> None:
            async for event in hub.stream(1, 0, {"type": ["service"]}):
                seen.append(event.action)

        watching = store.watch
        found = asyncio.Event()

        def watch(since: int | None = None) -> HistoryWatch:
            found.set()
            return watching(since)

        store.watch = watch  # type: ignore[method-assign]
        await found.wait()  # the hub finds the manager
        await store.commit([Put(service(), 0)])
        await until(lambda: len(hub._kept) == 1)
        reader = asyncio.create_task(read())
        await until(lambda: seen == ["create"])
        await store.commit([Put(service(2))])
        await until(lambda: seen == ["create", "update"])
        assert hub.listeners == 1
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        assert hub.listeners == 0
    finally:
        await hub.close()


async def test_a_reader_that_does_not_read_is_let_go() -> None:
    hub = EventHub(FakeBackend())
    event = swarm_event(Event("service", "s", None, service()), NOW)
    assert event is not None
    stream = hub.stream(0, 0, {})
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    for _ in range(10_000):
        hub.put(event)
    await first
    count = 1
    async for _ in stream:
        count += 1
    assert count < 10_000 and hub.listeners == 0


async def test_a_closed_store_does_not_stop_the_daemon() -> None:
    backend = FakeBackend()
    hub = EventHub(backend)
    store = MemoryStore()
    backend.manager = type("Manager", (), {"store": store, "paths": PathBook(store.view)})()  # type: ignore[assignment]
    hub.start()
    await asyncio.sleep(0.01)
    await store.close()
    await asyncio.wait_for(asyncio.sleep(0.1), 2)  # the loop goes on turning
    await hub.close()


async def test_a_manager_whose_state_moves_to_another_store_goes_on_telling() -> None:
    """The first manager moves from its own file to etcd when a second one joins; the manager stays the same."""
    backend = FakeBackend()
    hub = EventHub(backend)
    old, new = MemoryStore(), MemoryStore()
    manager = type("Manager", (), {"store": old, "paths": PathBook(old.view)})()
    backend.manager = manager
    watched = asyncio.Event()
    watching = new.watch

    def watch(since: int | None = None) -> HistoryWatch:
        watched.set()
        return watching(since)

    new.watch = watch  # type: ignore[method-assign]
    hub.start()
    try:
        await asyncio.sleep(0)
        manager.store = new
        await old.close()
        await asyncio.wait_for(watched.wait(), 5)
        await new.commit([Put(service(), 0)])
        await until(lambda: [event.action for event in hub._kept] == ["create"])
    finally:
        await hub.close()


def test_what_is_dropped_between_two_looks_is_told_with_its_meaning() -> None:
    before = {("back", "drop_policy"): 3, ("", "drop_garbage"): 1}
    assert plan_drops(None, before) == [], "what was dropped before anybody looked is no news"
    assert plan_drops(before, before) == []
    now = {**before, ("back", "drop_policy"): 5, ("front", "drop_isolation"): 2, ("back", "drop_arp"): 9}
    told = plan_drops(before, now)
    assert [(n.action, n.id, n.attributes["network"], n.attributes["packets"]) for n in told] == [
        ("drops", "drop_policy", "back", "2"),
        ("drops", "drop_isolation", "front", "2"),
    ]
    for notice in told:
        assert notice.attributes["meaning"] == MEANINGS[notice.id]


class Dropping(Switch):
    """A host whose switch has dropped so much."""

    def __init__(self) -> None:
        self.dropped: dict[tuple[str, str], int] | OSError = {("back", "drop_policy"): 3}
        self.looked = 0
        self.said = Notices()

    async def drops(self) -> dict[tuple[str, str], int]:
        self.looked += 1
        if isinstance(self.dropped, OSError):
            raise self.dropped
        return self.dropped

    def notices(self, after: int) -> list[tuple[int, Notice]]:
        return self.said.since(after)

    async def looks(self) -> None:
        now = self.looked
        await until(lambda: self.looked >= now + 2)


async def test_drops_of_this_hosts_switch_are_events(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "DROP_SECONDS", 0.001)
    switch = Dropping()
    switch.said.put(Notice(action="repaired", id="before anybody listened"))
    backend.switch = switch
    hub = EventHub(backend)
    hub.start()
    try:
        await switch.looks()
        switch.dropped = {("back", "drop_policy"): 7}
        await switch.looks()
        switch.dropped = OSError("just closing")
        await switch.looks()
        switch.dropped = {("back", "drop_policy"): 8}
        await switch.looks()
        switch.said.put(Notice(action="table_full", id="flows", attributes={"table": "flows"}))
        await switch.looks()
        backend.switch = None  # it left the swarm: another membership counts anew
        for _ in range(50):
            await asyncio.sleep(0.001)
        switch.dropped = {("back", "drop_policy"): 1}
        backend.switch = switch
        await switch.looks()
        kept = [e async for e in hub.stream(1, time.time_ns(), {"type": ["overlace"]})]
    finally:
        await hub.close()
    assert [(e.action, e.id, e.attributes.get("packets")) for e in kept] == [
        ("drops", "drop_policy", "4"),
        ("drops", "drop_policy", "1"),
        ("table_full", "flows", None),
    ]
    assert {e.scope for e in kept} == {"local"} and kept[0].attributes["network"] == "back"
