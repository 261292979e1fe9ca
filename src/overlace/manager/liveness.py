"""Which nodes are alive: READY from their Hello until three heartbeat periods pass without a word, then DOWN.

Owns the deadlines and what their passing writes into the store. A closed connection alone means nothing. After a start
all nodes are UNKNOWN until they say Hello, and DOWN after twice that time; a day later their tasks are given up. Must
not know sessions or messages.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import msgspec
import structlog

from overlace.manager.deadlines import Deadlines
from overlace.manager.status_writer import StatusWriter
from overlace.model.errors import NotFound, OutOfSequence, Unavailable
from overlace.model.objects import Cluster, Node, NodeStatus, TaskStatus
from overlace.model.specs import DispatcherConfig
from overlace.model.states import NodeState, TaskState
from overlace.store.base import Put, Store, View
from overlace.wire.messages import TaskReport

log = structlog.get_logger(__name__)
SECOND = 1_000_000_000
GRACE = 3  # heartbeat periods (swarmkit dispatcher defaultGracePeriodMultiplier)
ORPHAN_SECONDS = 24 * 3600.0  # swarmkit dispatcher defaultNodeDownPeriod
STOOD_STILL = 0.2  # seconds this process may be late for a deadline before heartbeats may lie unread
READ_UP = 0.5  # seconds to read them


class Liveness:
    """`down(node_id)` is called when a node's heartbeats stop, before the store hears of it."""

    def __init__(
        self, store: Store, writer: StatusWriter, clock: Callable[[], int], down: Callable[[str], None]
    ) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock
        self._on_down = down
        self._silent: Deadlines[str] = Deadlines()  # node -> when it is taken for down
        self._lost: Deadlines[str] = Deadlines()  # node down -> when its tasks are given up
        self._alarm = asyncio.Event()
        self._aside: set[asyncio.Task[None]] = set()
        self.period = DispatcherConfig().heartbeat_period / SECOND  # seconds between heartbeats

    def follow(self, view: View) -> None:
        """Take the heartbeat period from the cluster object; deadlines set from now on keep to it."""
        for cluster in view.all(Cluster):
            self.period = (
                cluster.spec.dispatcher.heartbeat_period or DispatcherConfig().heartbeat_period
            ) / SECOND

    def heard(self, node_id: str) -> None:
        """A sign of life."""
        if node_id in self._lost:
            self._lost.drop(node_id)
        self._set(self._silent, node_id, GRACE * self.period)

    def joined(self, node_id: str) -> None:
        """A new node: it has as long as after a restart to say Hello."""
        if node_id not in self._silent:
            self._set(self._silent, node_id, 2 * GRACE * self.period)

    def forget(self, node_id: str) -> None:
        """The node was removed."""
        self._silent.drop(node_id)
        self._lost.drop(node_id)

    async def left(self, node_id: str) -> None:
        """DOWN at once. Raises NotFound for a node that is not there."""
        self._silent.drop(node_id)
        self._set(self._lost, node_id, ORPHAN_SECONDS)
        await self._write_down(node_id, "the node left the swarm")

    async def take_over(self) -> None:
        """At the start: READY may be long past, so UNKNOWN until the node says Hello. Nodes DOWN stay so.

        Raises Unavailable when the store refuses.
        """
        for _ in range(20):
            view, stamp = self._store.view(), self._clock()
            self.follow(view)
            puts = []
            for node in view.all(Node):
                if node.removed:
                    continue
                if node.status.state == NodeState.DOWN:
                    down_for = max(0, stamp - node.status.since) / SECOND
                    self._set(self._lost, node.id, max(0.0, ORPHAN_SECONDS - down_for))
                    continue
                self._set(self._silent, node.id, 2 * GRACE * self.period)
                if node.status.state != NodeState.UNKNOWN:
                    reason = "the manager restarted and waits for the node"
                    status = NodeStatus(NodeState.UNKNOWN, reason, node.status.addr, stamp)
                    puts.append(Put(msgspec.structs.replace(node, status=status), expect=node.version))
            try:
                await self._store.commit(puts)
                return
            except OutOfSequence:
                continue
        raise Unavailable("the nodes change too often to take them over: try again")

    async def run(self) -> None:
        """Watch the deadlines until cancelled."""
        try:
            while True:
                await self._sleep()
                now = self._now()
                for node_id in self._silent.due(now):
                    log.warning("no heartbeat from node, taking it for down", node=node_id)
                    self._on_down(node_id)
                    self._set(self._lost, node_id, ORPHAN_SECONDS)
                    self._spawn_down(node_id)
                for node_id in self._lost.due(now):
                    self._give_up_tasks(node_id)
        finally:
            for task in self._aside:
                task.cancel()

    async def _sleep(self) -> None:
        """Until the next deadline, or until an earlier one is set."""
        self._alarm.clear()
        now = self._now()
        upcoming = [t for t in (self._silent.next(), self._lost.next()) if t is not None]
        pause = max(0.0, min(upcoming) - now) if upcoming else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._alarm.wait()
        late = self._now() - now - pause if pause is not None else 0.0
        if late > STOOD_STILL:
            # we stood still, and the reading of heartbeats with us: that says nothing about the nodes
            log.warning("the manager stood still", seconds=round(late, 1))
            self._silent.extend(late + READ_UP)

    def _give_up_tasks(self, node_id: str) -> None:
        """The node has been down for a day: its tasks hold their addresses no longer."""
        log.warning("node is down for too long, its tasks are given up", node=node_id)
        lost = TaskStatus(TaskState.ORPHANED, self._clock(), "the node is down for too long", "task was lost")
        self._writer.report(
            node_id,
            [
                TaskReport(t.id, msgspec.structs.replace(lost, container=t.status.container))
                for t in self._store.view().tasks_of_node(node_id)
                if TaskState.ASSIGNED <= t.status.state <= TaskState.RUNNING
            ],
        )

    def _spawn_down(self, node_id: str) -> None:
        async def write() -> None:
            with contextlib.suppress(NotFound):
                await self._write_down(node_id, "heartbeat failure")

        task = asyncio.create_task(write())
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    async def _write_down(self, node_id: str, message: str) -> None:
        def changed(node: Node) -> Node:
            if node.status.state == NodeState.DOWN:
                return node
            status = NodeStatus(NodeState.DOWN, message, node.status.addr, self._clock())
            return msgspec.structs.replace(node, status=status)

        await self._writer.change_node(node_id, changed)

    def _set(self, deadlines: Deadlines[str], node_id: str, seconds: float) -> None:
        at = self._now() + seconds
        soonest = deadlines.next()
        deadlines.set(node_id, at)
        if soonest is None or at < soonest:
            self._alarm.set()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
