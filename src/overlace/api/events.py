"""Docker's events, made of what the store commits and what the runtime's containers do.

Owns the last 256 events (moby daemon/events) and the subscribers' queues. `swarm_event` and
`container_event` are pure. Must not know HTTP. Swarm events exist on managers only, as in Docker.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import msgspec
import structlog

from overlace.agent.standalone.records import Joined
from overlace.api.backend import Backend, ManagerHandle, PathSource
from overlace.model.errors import NotFound, NotLeading, OverlaceError
from overlace.model.objects import Base, Config, Network, Node, Secret, Service
from overlace.model.paths import Notice
from overlace.network.vfp.reasons import MEANINGS
from overlace.runtime.base import Container
from overlace.store.base import Event, Lagged

log = structlog.get_logger(__name__)

KEPT = 256
_QUEUE = 4096
DROP_SECONDS = 10.0
_ROLE_POLL = 0.5  # seconds between looks whether this node became, or no longer is, a manager


class ApiEvent(msgspec.Struct, frozen=True):
    type: str
    action: str
    id: str
    attributes: dict[str, str]
    scope: str
    time: int  # ns

    def document(self) -> dict[str, Any]:
        """As clients below API 1.52 read it: containers and images also carry status, id and from."""
        found: dict[str, Any] = {}
        if self.type in ("container", "image"):
            found = {"status": self.action, "id": self.id}
            if self.type == "container":
                found["from"] = self.attributes.get("image", "")
        return found | {
            "Type": self.type,
            "Action": self.action,
            "Actor": {"ID": self.id, "Attributes": self.attributes},
            "scope": self.scope,
            "time": self.time // 1_000_000_000,
            "timeNano": self.time,
        }


# -- pure ----------------------------------------------------------------------------------------------------


def _changed(attributes: dict[str, str], name: str, old: str, new: str) -> None:
    """Both sides of a change; one that was not there has no attribute, as in Docker."""
    if old != new:
        attributes |= {key: text for key, text in ((f"{name}.old", old), (f"{name}.new", new)) if text}


def _node_attributes(old: Node | None, new: Node) -> dict[str, str]:
    found = {"name": new.spec.name or (new.description.hostname if new.description else "")}
    if old is not None:
        _changed(found, "availability", old.spec.availability, new.spec.availability)
        _changed(found, "role", old.spec.role, new.spec.role)
        _changed(found, "state", old.status.state.word, new.status.state.word)
        before, after = old.manager_status, new.manager_status
        _changed(
            found,
            "leader",
            str(bool(before and before.leader)).lower(),
            str(bool(after and after.leader)).lower(),
        )
        _changed(
            found,
            "reachability",
            before.reachability if before else "",
            after.reachability if after else "",
        )
    return found


def _replicas(service: Service) -> str:
    replicated = service.spec.mode.replicated
    return "" if replicated is None else str(1 if replicated.replicas is None else replicated.replicas)


def _image(service: Service) -> str:
    container = service.spec.task_template.container_spec
    return container.image if container else ""


def _service_attributes(old: Service | None, new: Service) -> dict[str, str]:
    found = {"name": new.spec.name}
    if old is not None:
        _changed(found, "replicas", _replicas(old), _replicas(new))
        _changed(found, "image", _image(old), _image(new))
        _changed(
            found,
            "updatestate",
            old.update_status.state if old.update_status else "",
            new.update_status.state if new.update_status else "",
        )
    return found


def swarm_event(event: Event, now: int) -> ApiEvent | None:
    """One store event as Docker's, or None for kinds and changes Docker says nothing of."""
    old, new = event.old, event.new
    action = "create" if old is None else "remove" if new is None else "update"
    shown = new if new is not None else old
    if isinstance(shown, Node):
        before = old if isinstance(old, Node) else None
        if shown.removed:
            if before is None or before.removed:
                return None
            action = "remove"
        elif new is None:
            return None  # the tombstone's end; its removal was told
        attributes = _node_attributes(before if action == "update" else None, shown)
        if action == "update" and len(attributes) == 1 and before is not None and before.spec == shown.spec:
            return None  # a description, not a change anyone made
    elif isinstance(shown, Service):
        attributes = _service_attributes(old if isinstance(old, Service) and new is not None else None, shown)
    elif isinstance(shown, (Network, Secret, Config)):
        attributes = {"name": shown.spec.name}
        if isinstance(shown, Network) and shown.warning and new is not None:
            attributes["warning"] = shown.warning
    else:
        return None
    return ApiEvent(event.kind, action, event.id, attributes, "swarm", _when(shown, action, now))


def _when(shown: Base, action: str, now: int) -> int:
    stamp = {"create": shown.created_at, "update": shown.updated_at}.get(action, 0)
    return stamp or now


def verb_event(shown: Container, action: str, now: int, **more: str) -> ApiEvent:
    """What somebody did to a container, which its state alone does not tell: kill, stop, rename …"""
    attributes = {**shown.config.labels, "image": shown.config.image, "name": shown.config.name} | more
    return ApiEvent("container", action, shown.config.id, attributes, "local", now)


def container_events(old: Container | None, new: Container | None, now: int) -> Iterator[ApiEvent]:
    """What happened between two looks at one container."""
    shown = new or old
    if shown is None:
        return

    def made(action: str, at: int, **more: str) -> ApiEvent:
        return verb_event(shown, action, at or now, **more)

    if new is None:
        yield made("destroy", now)
        return
    if old is None:
        yield made("create", new.created_at)
    if new.started_at and (old is None or old.started_at != new.started_at):
        yield made("start", new.started_at)
    if new.health and (old is None or old.health != new.health) and new.health != "starting":
        yield made(f"health_status: {new.health}", now)
    if (
        new.finished_at
        and (old is None or old.finished_at != new.finished_at)
        and new.status in ("exited", "dead")
    ):
        yield made("die", new.finished_at, exitCode=str(new.exit_code))


def network_event(action: str, container: str, joined: Joined, id: str, now: int) -> ApiEvent:
    """A container came on a network, or left it; `id` is the network's."""
    kind = "overlay" if joined.target else "bridge"
    attributes = {"container": container, "name": joined.name, "type": kind}
    return ApiEvent("network", action, id, attributes, "local", now)


def notice_event(notice: Notice, scope: str, now: int) -> ApiEvent:
    """What Docker has no type for: type "overlace"."""
    return ApiEvent("overlace", notice.action, notice.id, notice.attributes, scope, now)


def plan_drops(before: dict[tuple[str, str], int] | None, now: dict[tuple[str, str], int]) -> list[Notice]:
    """What was dropped between two looks; nothing at the first. ARP for addresses nobody has is everyday."""
    if before is None:
        return []
    return [
        Notice(
            action="drops",
            id=reason,
            attributes={
                "network": network,
                "reason": reason,
                "packets": str(n - before.get((network, reason), 0)),
                "meaning": MEANINGS.get(reason, ""),
            },
        )
        for (network, reason), n in sorted(now.items())
        if n > before.get((network, reason), 0) and reason != "drop_arp"
    ]


def matches(event: ApiEvent, filters: dict[str, list[str]]) -> bool:
    """Whether `docker events --filter …` shows it (moby daemon/events/filter.go)."""
    for key, values in filters.items():
        if not values:
            continue
        if key == "label":
            for label in values:
                name, given, value = label.partition("=")
                if name not in event.attributes or (given and event.attributes[name] != value):
                    return False
            continue
        if key == "event":
            found = any(event.action == v or event.action.startswith(f"{v}:") for v in values)
        elif key == "type":
            found = event.type in values
        elif key == "scope":
            found = event.scope in values
        else:  # container, service, network, node, secret, config, image …: the start of an id or a name
            name = event.attributes.get("name", "")
            found = event.type == key and any(event.id.startswith(v) or name.startswith(v) for v in values)
            if key == "image" and event.type == "container":
                found = event.attributes.get("image") in values
        if not found:
            return False
    return True


# -- the hub -------------------------------------------------------------------------------------------------


class EventHub:
    """Collects events while the server runs; `stream` gives them to one subscriber."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._kept: deque[ApiEvent] = deque(maxlen=KEPT)
        self._queues: set[asyncio.Queue[ApiEvent]] = set()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def listeners(self) -> int:
        return len(self._queues)

    def _put_network(self, action: str, container: str, joined: Joined) -> None:
        id = joined.network_id or next(
            (n.id for n in self._backend.local_networks() if n.name == joined.name and n.scope == "local"), ""
        )
        self.put(network_event(action, container, joined, id, time.time_ns()))

    def start(self) -> None:
        self._backend.containers.on_network = self._put_network
        self._tasks = [
            asyncio.create_task(self._follow_swarm()),
            asyncio.create_task(self._follow_containers()),
            asyncio.create_task(self._follow_switch()),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def put(self, event: ApiEvent) -> None:
        self._kept.append(event)
        for queue in list(self._queues):
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                self._queues.discard(queue)  # a reader this slow has lost the thread: its stream ends
                queue.get_nowait()
                queue.put_nowait(_END)

    async def stream(
        self, since: int, until: int, filters: dict[str, list[str]]
    ) -> AsyncGenerator[ApiEvent, None]:
        """Kept events from `since` on (0: none), then new ones up to `until` (ns; 0: without end)."""
        queue: asyncio.Queue[ApiEvent] = asyncio.Queue(_QUEUE)
        kept = [e for e in self._kept if since and e.time >= since]
        self._queues.add(queue)
        try:
            for event in kept:
                if (not until or event.time <= until) and matches(event, filters):
                    yield event
            while True:
                left = None if not until else (until - time.time_ns()) / 1e9
                if left is not None and left <= 0:
                    return
                try:
                    event = await asyncio.wait_for(queue.get(), left)
                except TimeoutError:
                    return
                if event is _END:
                    return
                if matches(event, filters):
                    yield event
        finally:
            self._queues.discard(queue)

    async def _follow_swarm(self) -> None:
        while True:
            manager = self._backend.manager
            if manager is None:
                await asyncio.sleep(_ROLE_POLL)
                continue
            try:
                await self._follow_store(manager)
            except Lagged:
                log.warning("events were lost: the store was faster than this watcher")
            except OverlaceError as error:
                log.warning("events stopped, trying again", error=error.message)
                await asyncio.sleep(_ROLE_POLL)

    async def _follow_store(self, manager: ManagerHandle) -> None:
        """Until the manager is another or its store is: the first of several moves its state to etcd."""
        store = manager.store
        watch = store.watch()
        heard: PathSource | None = None
        unhear: Callable[[], None] = _nothing
        try:
            while self._backend.manager is manager and manager.store is store:
                source = _paths_of(manager)
                if source is not heard:  # it leads now, or does no longer
                    unhear()
                    heard = source
                    unhear = source.watch(self._put_notice) if source is not None else _nothing
                batch = await watch.next(_ROLE_POLL)
                if batch is None:  # at once when the store was closed: do not spin until the manager goes
                    await asyncio.sleep(0.05)
                    continue
                now = time.time_ns()
                for event in batch.events:
                    shown = swarm_event(event, now)
                    if shown is not None:
                        self.put(shown)
        finally:
            unhear()
            watch.close()

    def _put_notice(self, notice: Notice) -> None:
        self.put(notice_event(notice, "swarm", time.time_ns()))

    async def _follow_switch(self) -> None:
        """Packets this host's switch drops, gathered: one event for each network and reason in DROP_SECONDS. And what the
        host says of itself: tables that are full, what was repaired or cannot be."""
        before: dict[tuple[str, str], int] | None = None
        told = time.time_ns()
        while True:
            switch = None
            with contextlib.suppress(OverlaceError):
                switch = self._backend.switch
            if switch is None:
                before = None
            else:
                try:
                    now = await switch.drops()
                except (OSError, RuntimeError, KeyError, OverlaceError):  # it is just opening or closing
                    now = before if before is not None else {}
                for notice in plan_drops(before, now):
                    self.put(notice_event(notice, "local", time.time_ns()))
                before = now
                for at, notice in switch.notices(told):
                    self.put(notice_event(notice, "local", at))
                    told = at
            await asyncio.sleep(DROP_SECONDS)

    async def _follow_containers(self) -> None:
        runtime = self._backend.runtime
        known: dict[str, Container] = {}
        with contextlib.suppress(OverlaceError):
            known = {c.config.id: c for c in await runtime.list()}
        async for id in runtime.changes():
            try:
                new: Container | None = await runtime.inspect(id)
            except NotFound:
                new = None
            except OverlaceError:
                continue
            for event in container_events(known.get(id), new, time.time_ns()):
                self.put(event)
            if new is None:
                known.pop(id, None)
            else:
                known[id] = new


def _nothing() -> None:
    pass


def _paths_of(manager: ManagerHandle) -> PathSource | None:
    """None on a manager that does not lead: agents tell the one that does."""
    try:
        return manager.paths
    except NotLeading:
        return None


_END = ApiEvent("", "", "", {}, "", 0)
