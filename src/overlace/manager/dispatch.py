"""Agents' sessions: what each node must run and see is sent as it changes, what it reports is stored.

Owns sessions and the following of the store; who is alive is liveness.py's, what waits to be sent outbox.py's. Must not
decide where tasks run nor know TLS: `session` is given a verified peer.

Costs follow the batch: an event touches the nodes whose tasks, networks or credentials it names.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
import structlog

from overlace.manager.assignments import NodeAssignments
from overlace.manager.enrol import Peer
from overlace.manager.liveness import Liveness
from overlace.manager.netviews import KINDS, NetViews
from overlace.manager.outbox import Outbox
from overlace.manager.questions import Questions
from overlace.manager.status_writer import StatusWriter
from overlace.model.errors import InvalidArgument, NotFound, OverlaceError
from overlace.model.objects import (
    Cluster,
    Config,
    Node,
    NodeDescription,
    NodeStatus,
    Secret,
    Service,
    Task,
)
from overlace.model.states import NodeState
from overlace.store.base import Batch, Event, Lagged, Store, View
from overlace.wire.messages import (
    PROTOCOL,
    Answer,
    Attachment,
    Attachments,
    Heartbeat,
    Hello,
    Leaving,
    LogChunk,
    Manager,
    ManagerMessage,
    NetworkUpdate,
    Paths,
    Refused,
    Reports,
    Resync,
    Welcome,
)
from overlace.wire.transport import ManagerChannel

log = structlog.get_logger(__name__)
SECOND = 1_000_000_000
JITTER = 0.1  # of the period each agent is told, so that heartbeats do not come in step
HELLO_SECONDS = 10.0
FOLLOW_GAP = 0.05  # seconds in which changes gather while they keep coming


class _Session:
    """One agent's connection. Ends when either side closes, or by `end`."""

    def __init__(self, node_id: str, channel: ManagerChannel, assignments: NodeAssignments, outbox: Outbox):
        self.node_id = node_id
        self.channel = channel
        self.assignments = assignments
        self.outbox = outbox
        self.acked = 0
        self.ended = asyncio.Event()
        self.farewell: Refused | None = None

    def end(self, farewell: Refused | None = None) -> None:
        if not self.ended.is_set():
            self.farewell = farewell
            self.ended.set()

    def ack(self, sequence: int) -> None:
        self.acked = max(self.acked, sequence)
        self.outbox.ack(self.acked)


class Dispatcher:
    """`start` before the first session, `close` at the end. `hostname`: this manager's, told to agents."""

    def __init__(
        self,
        store: Store,
        *,
        hostname: str = "",
        clock: Callable[[], int] = time.time_ns,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._hostname = hostname
        self._clock = clock
        self._rng = rng or random.Random()
        self._views = NetViews()
        self._writer = StatusWriter(store)
        self._sessions: dict[str, _Session] = {}
        self._liveness = Liveness(store, self._writer, clock, self._down)
        self._jobs: list[asyncio.Task[None]] = []
        self._aside: set[asyncio.Task[Any]] = set()
        self._revision = 0
        # log lines from agents: (node id, chunk); must not block
        self.on_log: Callable[[str, LogChunk], None] = lambda node_id, chunk: None
        self.questions = Questions(self.send)
        # what a node measured of the way to others: (node id, message)
        self.on_paths: Callable[[str, Paths], None] = lambda node_id, paths: None
        # what a node's containers outside of services ask for: (node id, all of it); must not block
        self.on_attachments: Callable[[str, Sequence[Attachment]], None] = lambda node_id, wanted: None
        # attachments of a node whose tasks changed: (node id, tasks)
        self.on_attached: Callable[[str, Sequence[Task]], None] = lambda node_id, tasks: None
        # (node id, connected): the log broker subscribes again at nodes that come back
        self.on_session: Callable[[str, bool], None] = lambda node_id, connected: None

    # -- life ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take over the store's nodes: none is known to be alive until it says so."""
        await self._liveness.take_over()
        self._rebuild()
        self._jobs = [
            asyncio.create_task(self._follow(), name="dispatcher follow"),
            asyncio.create_task(self._writer.run(), name="dispatcher write"),
            asyncio.create_task(self._liveness.run(), name="dispatcher liveness"),
        ]

    async def close(self) -> None:
        """End all sessions; agents go on without us."""
        for session in list(self._sessions.values()):
            session.end()
        jobs, self._jobs = [*self._jobs, *self._aside], []
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    def connected(self) -> list[str]:
        """Ids of the nodes with a session here."""
        return list(self._sessions)

    def send(self, node_id: str, message: ManagerMessage) -> bool:
        """Queue a message of another part of the manager (log subscriptions); False when the node has no
        session."""
        session = self._sessions.get(node_id)
        if session is None:
            return False
        session.outbox.control(message)
        return True

    async def leave(self, node_id: str) -> None:
        """The node leaves on purpose: DOWN at once. Raises NotFound for a node that is not there."""
        await self._liveness.left(node_id)

    # -- one session -----------------------------------------------------------------------------------------

    async def session(self, peer: Peer, address: str, channel: ManagerChannel) -> None:
        """Serve one agent until its connection ends. Raises InvalidArgument when it does not speak the
        protocol."""
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                hello = await channel.receive()
        except TimeoutError:
            raise InvalidArgument(f"no Hello within {HELLO_SECONDS:.0f} s") from None
        if hello is None:
            return
        if not isinstance(hello, Hello):
            raise InvalidArgument(f"a session starts with Hello, not {type(hello).__name__}")
        refused = await self._enter(peer.node_id, hello, address)
        if refused is not None:
            await channel.send(refused)
            return
        session = self._open(peer.node_id, channel)
        try:
            await self._serve(session)
        finally:
            if self._sessions.get(peer.node_id) is session:
                del self._sessions[peer.node_id]
                self._views.forget(peer.node_id)
                self.questions.gone(peer.node_id)
                self.on_session(peer.node_id, False)

    async def _enter(self, node_id: str, hello: Hello, address: str) -> Refused | None:
        """READY in the store, or why not."""
        if hello.protocol != PROTOCOL:
            return Refused(f"protocol {hello.protocol} is not spoken here (this manager speaks {PROTOCOL})")
        self._liveness.heard(node_id)

        def ready(node: Node) -> Node:
            status = node.status
            if status.state != NodeState.READY or status.addr != address:
                status = NodeStatus(NodeState.READY, "", address, self._clock())
            return msgspec.structs.replace(node, description=hello.description, status=status)

        try:
            await self._writer.change_node(node_id, ready)
        except NotFound:
            self._liveness.forget(node_id)
            return Refused(f"node {node_id} was removed from the swarm", final=True)
        return None

    def _open(self, node_id: str, channel: ManagerChannel) -> _Session:
        """Take the new session in, in place of an older one."""
        old = self._sessions.get(node_id)
        if old is not None:
            self._views.forget(node_id)
            old.end(Refused(f"node {node_id} opened another session"))
        assignments = NodeAssignments(node_id)
        session = _Session(
            node_id,
            channel,
            assignments,
            Outbox(
                lambda: assignments.complete(self._store.view()),
                lambda: NetworkUpdate(self._views.complete(node_id)),
                lambda: self._views.forget(node_id),
            ),
        )
        self._sessions[node_id] = session
        session.outbox.control(self._welcome(self._store.view(), node_id))
        self.on_session(node_id, True)
        return session

    async def _serve(self, session: _Session) -> None:
        work: Sequence[asyncio.Task[Any]] = [
            asyncio.create_task(self._read(session)),
            asyncio.create_task(self._write(session)),
            asyncio.create_task(session.ended.wait()),
        ]
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
        if session.farewell is not None:
            with contextlib.suppress(OverlaceError, TimeoutError):
                async with asyncio.timeout(2.0):
                    await session.channel.send(session.farewell)
        for task in done:
            task.result()  # raise what ended it

    async def _write(self, session: _Session) -> None:
        while True:
            await session.channel.send(await session.outbox.next())

    async def _read(self, session: _Session) -> None:
        while (message := await session.channel.receive()) is not None:
            self._liveness.heard(session.node_id)
            match message:
                case Heartbeat(description=description):
                    if description is not None:
                        self._describe(session.node_id, description)
                    session.outbox.ack(session.acked)  # the answer by which the agent knows that we are alive
                case Reports(sequence=sequence, reports=reports):
                    self._writer.report(
                        session.node_id,
                        reports,
                        lambda s=sequence: session.ack(s),  # type: ignore[misc]
                    )
                case Resync(what=what):
                    session.outbox.resync(assignments=what == "assignments", network=what == "network")
                case LogChunk():
                    self.on_log(session.node_id, message)
                case Answer():
                    self.questions.answered(session.node_id, message)
                case Paths():
                    self.on_paths(session.node_id, message)
                case Attachments(wanted=wanted):
                    self.on_attachments(session.node_id, wanted)
                case Leaving():
                    await self.leave(session.node_id)
                    return
                case Hello():
                    raise InvalidArgument("Hello twice in one session")

    def _describe(self, node_id: str, description: NodeDescription) -> None:
        def described(node: Node) -> Node:
            return msgspec.structs.replace(node, description=description)

        self._spawn(self._writer.change_node(node_id, described))

    def _welcome(self, view: View, node_id: str) -> Welcome:
        node = view.get(Node, node_id)
        period = self._liveness.period * self._rng.uniform(1 - JITTER, 1 + JITTER)
        return Welcome(
            node_id=node_id,
            heartbeat=int(period * SECOND),
            role=node.acting_role if node is not None else "worker",
            managers=tuple(
                Manager(n.id, n.manager_status.addr)
                for n in sorted(view.all(Node), key=_leader_first)
                if n.manager_status is not None and not n.removed
            ),
            hostname=self._hostname,
        )

    # -- following the store ---------------------------------------------------------------------------------

    def _rebuild(self) -> None:
        """Start over from a snapshot; every session gets complete messages."""
        view = self._store.view()
        self._revision = view.revision
        self._liveness.follow(view)
        self._views.rebuild(view)
        for session in self._sessions.values():
            session.outbox.resync(assignments=True, network=True)

    async def _follow(self) -> None:
        while True:
            watch = self._store.watch(self._revision)
            try:
                while True:
                    batch = await watch.next()
                    if batch is None:
                        return  # the store is closed
                    self._process([batch, *watch.drain()])
                    await asyncio.sleep(FOLLOW_GAP)
            except Lagged:
                log.warning("the store moved on too fast, sending complete messages")
                self._rebuild()
            except Exception:
                log.exception("dispatching failed, sending complete messages")
                await asyncio.sleep(1.0)
                self._rebuild()
            finally:
                watch.close()

    def _process(self, batches: Sequence[Batch]) -> None:
        """Tell every session what the batches mean for its node. Events say where to look; what is sent is
        the store's current state, so it never goes back in time."""
        view = self._store.view()
        dirty: dict[str, set[str]] = {}
        tasks: dict[str, dict[str, None]] = {}  # node -> tasks, in the order they changed
        credentials: dict[str, set[str]] = {}  # node -> services
        for batch in batches:
            for event in batch.events:
                if event.kind in KINDS:
                    dirty.setdefault(event.kind, set()).add(event.id)
                for task in (event.old, event.new):
                    if isinstance(task, Task) and task.node_id in self._sessions:
                        tasks.setdefault(task.node_id, {})[task.id] = None
                if event.kind == Service.kind and _credentials_changed(event):
                    for task in view.tasks_of_service(event.id):
                        credentials.setdefault(task.node_id, set()).add(event.id)
                elif event.kind == Cluster.kind:
                    self._cluster_changed(view)
                elif event.kind == Node.kind:
                    self._node_changed(view, event)
                elif event.kind in (Secret.kind, Config.kind) and _data_changed(event):
                    for session in self._sessions.values():
                        if session.assignments.uses(event.id):
                            session.outbox.resync(assignments=True)
        self._revision = batches[-1].revision
        for node_id, delta in self._views.refresh(view, dirty).items():
            self._sessions[node_id].outbox.network(NetworkUpdate(delta))
        for node_id, ids in tasks.items():
            attached = [t for i in ids if (t := view.get(Task, i)) is not None and t.attachment]
            if attached:
                self.on_attached(node_id, attached)
        for node_id in tasks.keys() | credentials.keys():
            told = self._sessions.get(node_id)
            if told is not None and not told.outbox.stale_assignments:
                services = credentials.get(node_id, ())
                message = told.assignments.delta(view, tasks.get(node_id, ()), services)
                if message is not None:
                    told.outbox.assignments(message)

    def _cluster_changed(self, view: View) -> None:
        before = self._liveness.period
        self._liveness.follow(view)
        if (
            self._liveness.period != before
        ):  # unless told, nodes would keep to the old one and soon count as down
            for node_id, session in self._sessions.items():
                session.outbox.control(self._welcome(view, node_id))

    def _node_changed(self, view: View, event: Event) -> None:
        old, new = event.old, event.new
        if not isinstance(new, Node) or new.removed:
            self._liveness.forget(event.id)
            session = self._sessions.get(event.id)
            if session is not None:
                session.end(Refused(f"node {event.id} was removed from the swarm", final=True))
            return
        if not isinstance(old, Node):
            if new.status.state == NodeState.UNKNOWN:
                self._liveness.joined(event.id)
            return
        if (old.spec.role != new.spec.role or old.manager_status != new.manager_status) and self._sessions:
            told = self._sessions if old.manager_status != new.manager_status else (event.id,)
            for node_id in told:
                if node_id in self._sessions:
                    self._sessions[node_id].outbox.control(self._welcome(view, node_id))

    def _down(self, node_id: str) -> None:
        """Its heartbeats stopped, its connection may not know yet."""
        session = self._sessions.get(node_id)
        if session is not None:
            session.end(Refused("no heartbeat came in time: connect again"))

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        async def quietly() -> None:
            with contextlib.suppress(NotFound):
                await work

        task = asyncio.create_task(quietly())
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)


def _leader_first(node: Node) -> tuple[bool, str]:
    return node.manager_status is None or not node.manager_status.leader, node.id


def _credentials_changed(event: Event) -> bool:
    return (
        isinstance(event.old, Service)
        and isinstance(event.new, Service)
        and event.old.registry_auth != event.new.registry_auth
    )


def _data_changed(event: Event) -> bool:
    old, new = event.old, event.new
    if isinstance(old, (Secret, Config)) and isinstance(new, (Secret, Config)):
        return old.spec.data != new.spec.data
    return False
