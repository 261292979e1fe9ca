"""The agent as a whole: session, worker, network view and logs wired together for one node.

Owns the order in which what the manager says reaches disk, network and tasks. Must not decide about tasks (task.py)
nor speak the wire itself (session.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import msgspec
import structlog

from overlace.agent.logs import LogStreams
from overlace.agent.session import AgentSession
from overlace.agent.standalone.attacher import Attacher, Member
from overlace.agent.state import AgentState
from overlace.agent.worker import NodeFacts, Worker
from overlace.model.errors import Unavailable
from overlace.model.netview import NetDelta, NetView
from overlace.model.objects import NodeDescription
from overlace.model.paths import PathState
from overlace.network.base import NetworkDriver
from overlace.runtime.base import Runtime
from overlace.wire.messages import (
    Answer,
    Ask,
    Assignments,
    Attachment,
    LogSubscribe,
    NotAttached,
    Refused,
    Welcome,
)

log = structlog.get_logger(__name__)
SETTLE_RETRY_SECONDS = 1.0


class Agent:
    """Implements the session's handler. `connect` makes the session for it (the daemon knows identity and managers);
    `on_role`/`on_refused` tell the daemon what only it can act on. `others()`: ids of this host's containers that are no
    task's, which keep their network."""

    def __init__(
        self,
        facts: NodeFacts,
        runtime: Runtime,
        network: NetworkDriver,
        state: AgentState,
        describe: Callable[[], NodeDescription],
        connect: Callable[[Agent], AgentSession],
        on_refused: Callable[[Refused], None],
        on_welcome: Callable[[Welcome], None],
        others: Callable[[], set[str]] = set,
        attacher: Attacher | None = None,
    ) -> None:
        self._network = network
        self._others = others
        self._attacher = attacher
        self._state = state
        self._describe = describe
        self._on_refused = on_refused
        self._on_welcome = on_welcome
        self.view: NetView = NetView()
        self.session = connect(self)
        self.worker = Worker(facts, runtime, network, state, self.session.report, others=others)
        network.on_paths = self.session.report_paths
        self._logs = LogStreams(runtime, self.session.send_log)
        self._node_id = facts.node_id
        self._looking: set[asyncio.Task[None]] = set()
        self._unwritten: set[str] = set()  # keys of the view that the disk does not have as they are
        self._unsettled: set[str] = set()  # keys that the host's network does not have as they are
        self._unsettled_event = asyncio.Event()
        self._refusing: dict[str, str] = {}  # what the disk refuses to keep, and its words
        self._settler: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Take over what runs here, from disk, then look for a manager."""
        self.view = self._state.view()
        if self._attacher is not None:
            self._attacher.join(Member(self._node_id, lambda: self.view, self.session.announce_attachments))
        await self._network.open(self._node_id)
        await self._network.apply_view(self.view, None)
        self._settler = asyncio.create_task(self._settle())
        await self.worker.open()
        self.session.start()

    async def close(self) -> None:
        await self.session.close()
        await self._logs.close()
        await self.worker.close()
        await self._stop_settling()
        await self._network.close()

    async def leave(self) -> None:
        """Tell the manager, stop every task, take our network out of the kernel."""
        if self._attacher is not None:
            self._attacher.quit()
        await self.session.leave()
        await self.session.close()
        await self._logs.close()
        await self.worker.remove_all()
        await self.worker.close()
        await self._stop_settling()
        await self._network.leave(self._others())

    # -- what the manager says -----------------------------------------------------------------------------------

    def description(self) -> NodeDescription:
        """Of the host as it is; a heartbeat tells the manager of every change."""
        described = self._describe()
        if not self._refusing:
            return described
        return msgspec.structs.replace(described, trouble=next(iter(self._refusing.values())))

    @contextlib.contextmanager
    def _kept(self, what: str) -> Iterator[None]:
        """What is taken in here is to be written down: while the disk refuses, the node's description says so."""
        try:
            yield
        except Unavailable as e:
            self._refusing[what] = e.message
            raise
        self._refusing.pop(what, None)

    def paths(self) -> list[PathState]:
        return self._network.paths()

    def attachments(self) -> tuple[Attachment, ...] | None:
        return self._attacher.to_tell() if self._attacher is not None else None

    def on_not_attached(self, message: NotAttached) -> None:
        if self._attacher is not None:
            self._attacher.refused(message.refused)

    async def on_welcome(self, message: Welcome) -> None:
        self._on_welcome(message)

    async def on_assignments(self, message: Assignments) -> None:
        with self._kept("assignments"):
            await self.worker.assign(message)

    async def on_network(self, delta: NetDelta) -> None:
        """Raises ValueError when the delta does not fit, Unavailable when the disk refuses it: the session then asks for
        a complete view. The host follows what was taken in either case."""
        if delta.base == 0:
            # a complete view replaces ours even when ours is damaged: rebuild it, keep only the difference
            fresh = NetView()
            fresh.apply(delta)
            changed = {e.key for e in fresh if self.view.get(e.key) != e}
            changed |= {e.key for e in self.view if fresh.get(e.key) is None}
            self.view = fresh
            self._note(changed)
        else:
            # noted first: where the checksum differs they are in the view, and the complete one may show no difference
            self._note({*delta.remove, *(e.key for e in delta.put)})
            self.view.apply(delta)
        self._unsettled_event.set()
        with self._kept("network view"):
            self._state.put_view(self.view, self._unwritten)
        self._unwritten = set()

    def _note(self, keys: set[str]) -> None:
        """These are to be written and settled."""
        self._unwritten |= keys
        self._unsettled |= keys

    async def _settle(self) -> None:
        """Make the host follow the view; what could not be applied is tried again, whether or not the view moves on."""
        while True:
            await self._unsettled_event.wait()
            self._unsettled_event.clear()
            settling, self._unsettled = self._unsettled, set()
            try:
                await self._network.apply_view(self.view, settling)
            except Exception:
                log.exception("network view could not be applied, will retry", revision=self.view.revision)
                self._unsettled |= settling
                await asyncio.sleep(SETTLE_RETRY_SECONDS)
                self._unsettled_event.set()
            self.worker.view_changed()
            if self._attacher is not None:
                self._attacher.view_changed(settling)

    async def _stop_settling(self) -> None:
        for task in list(self._looking):
            task.cancel()
        if self._settler is not None:
            self._settler.cancel()
            await asyncio.gather(self._settler, return_exceptions=True)

    async def on_log_subscribe(self, message: LogSubscribe) -> None:
        self._logs.subscribe(message)

    async def on_log_unsubscribe(self, subscription: str) -> None:
        self._logs.unsubscribe(subscription)

    def on_ask(self, message: Ask) -> None:
        async def answer() -> None:
            self.session.urgent(Answer(message.number, await self._network.ask(message.question)))

        task = asyncio.create_task(answer(), name="look at this host")
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def on_refused(self, message: Refused) -> None:
        self._on_refused(message)
