"""The agent's connection to the managers: one at a time, opened again whenever it is lost.

Owns connecting, back-off, heartbeats and the order of what is sent. Must not know what messages mean: receiver.py takes
them to the handler. What the agent reports is kept until a manager has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import structlog

from overlace.agent.receiver import Handler, Receiver, Refusal, tell
from overlace.agent.renewal import Renewal
from overlace.agent.reports import ReportQueue
from overlace.model.errors import (
    OverlaceError,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from overlace.model.objects import NodeDescription, TaskStatus
from overlace.model.paths import PathState
from overlace.security.ca import ns_text
from overlace.security.identity import Identity
from overlace.security.tls import client_context
from overlace.wire.messages import (
    AgentMessage,
    Attachments,
    Heartbeat,
    Hello,
    Leaving,
    LogChunk,
    Paths,
    Refused,
    Welcome,
)
from overlace.wire.transport import AgentChannel
from overlace.wire.transport_client import open_session

log = structlog.get_logger(__name__)
SECOND = 1_000_000_000
BACKOFF = (0.1, 8.0)  # seconds, doubling, each time a random part of it (swarmkit agent/session.go)
ELECTION_PAUSE = 0.5  # seconds, while the managers have no leader
ANSWER_SECONDS = 10.0  # for a Welcome
GRACE = 3  # heartbeat periods without a word from the manager
MAX_LOG_CHUNKS = 64

Connect = Callable[[str, ssl.SSLContext], AbstractAsyncContextManager[AgentChannel]]


def longer_pause(pause: float, heartbeat: float) -> float:
    """The wait, in seconds, after one that was not long enough; short enough for a manager that starts again, which
    gives its nodes twice GRACE heartbeats to be back.
    """
    return min(2 * pause, BACKOFF[1], GRACE * heartbeat)


class AgentSession:
    """`start`, then `close` (the node goes on without a manager) or `leave` and `close`.

    `managers`: addresses `host:port` tried in turn until a Welcome names the current ones.
    """

    def __init__(
        self,
        data_root: Path,
        identity: Identity,
        managers: Sequence[str],
        handler: Handler,
        *,
        connect: Connect = open_session,
        clock: Callable[[], int] = time.time_ns,
        rng: random.Random | None = None,
        on_identity: Callable[[Identity], None] | None = None,
        advertise: str = "",
    ) -> None:
        self._managers = list(managers)
        self._handler = handler
        self._connect = connect
        self._clock = clock
        self._rng = rng or random.Random()
        self._renewal = Renewal(
            data_root,
            identity,
            lambda: self._managers,
            clock=clock,
            rng=self._rng,
            on_identity=on_identity,
            advertise=advertise,
        )
        self._leader = ""  # where a manager that does not lead sent us
        self._reports = ReportQueue()
        self._logs: deque[LogChunk] = deque()
        self._log_room = asyncio.Event()
        self._urgent: deque[AgentMessage] = deque()
        self._paths: dict[str, PathState] = {}  # unsent, newest of each host
        self._attachments_due = False
        self._wake = asyncio.Event()
        self._connected = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._renewer: asyncio.Task[None] | None = None
        self._leaving = False
        self._left = False  # a manager has been told
        self._described: NodeDescription | None = None
        self._heartbeat = 5.0
        self._pace = asyncio.Event()  # the period changed: the next heartbeat is due at once
        self._heard = 0.0
        self.handling = False  # the handler works on a message, so the next ones wait unread

    # -- what the agent calls --------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        """The newest, once renewed."""
        return self._renewal.identity

    @property
    def connected(self) -> bool:
        """Whether a manager has welcomed us and still answers."""
        return self._connected.is_set()

    def start(self) -> None:
        """Connect and stay connected, in the background."""
        if self._runner is None:
            self._runner = asyncio.create_task(self._run(), name="agent session")
            self._renewer = asyncio.create_task(self._renewal.run(), name="certificate renewal")

    async def close(self) -> None:
        """Disconnect. What was not acknowledged is lost here; the agent's state on disk reports it again."""
        jobs = [job for job in (self._runner, self._renewer) if job is not None]
        self._runner = self._renewer = None
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    def report(self, task_id: str, status: TaskStatus) -> None:
        """Queue a task's new state; only the newest of each task is kept."""
        self._reports.put(task_id, status)
        self._wake.set()

    def report_paths(self, paths: Sequence[PathState]) -> None:
        """Queue what was measured; without a manager it is dropped: the next one gets all of it."""
        if self.connected:
            self._paths.update((p.node, p) for p in paths)
            self._wake.set()

    def announce_attachments(self) -> None:
        """Have the manager told what the handler wants attached; a new manager is told anyway."""
        if self.connected:
            self._attachments_due = True
            self._wake.set()

    async def send_log(self, chunk: LogChunk) -> None:
        """Waits while the manager reads slowly; dropped without a manager, whose subscription is then
        void."""
        while self.connected and len(self._logs) >= MAX_LOG_CHUNKS:
            self._log_room.clear()
            await self._log_room.wait()
        if self.connected:
            self._logs.append(chunk)
            self._wake.set()

    async def leave(self, timeout: float = 5.0) -> bool:
        """Tell a manager that this node leaves on purpose; False when none could be told. The session
        ends."""
        if self._runner is None or self._runner.done():
            return False
        self._leaving = True
        try:
            async with asyncio.timeout(timeout):
                self._wake.set()
                await asyncio.wait({self._runner})
        except TimeoutError:
            pass
        return self._left

    # -- staying connected -----------------------------------------------------------------------------------

    async def _run(self) -> None:
        pause = BACKOFF[0]
        turn = 0
        last = ""
        while True:
            addresses = self._managers
            address = addresses[turn % len(addresses)] if addresses else ""
            sent_on, self._leader = self._leader, ""
            if sent_on:
                address = sent_on
            else:
                turn += 1
            welcomed = False
            try:
                if not address:
                    raise Unavailable(
                        "no manager's address is known: leave the swarm (--force) and join again"
                    )
                self._check_validity()
                async with self._connect(
                    address, client_context(self._renewal.identity.ca_pem, self._renewal.identity)
                ) as channel:
                    await self._hello(channel)
                    welcomed, pause, last = True, BACKOFF[0], ""
                    await self._serve(channel)
                reason = "the manager closed the connection"
            except Refusal as e:
                reason = e.refused.reason
                if e.refused.elsewhere:
                    pause = min(pause, ELECTION_PAUSE)  # it will not take long
                    if e.refused.leader and not sent_on:  # at once, but never round in a circle
                        self._leader = e.refused.leader
                        continue
                elif not self._leaving:
                    await tell(self._handler.on_refused(e.refused), "a refusal")
                if e.refused.final:
                    return
            except (PermissionDenied, Unauthenticated) as e:
                # only a manager of our own swarm can say this: TLS has checked who it is
                await tell(self._handler.on_refused(Refused(e.message, final=True)), "a refusal")
                return
            except OverlaceError as e:
                reason = e.message
            except Exception as e:
                log.exception("session broke", manager=address)
                reason = str(e)
            if self._left:
                return
            if welcomed or reason != last:
                log.warning("no manager", manager=address, reason=reason)
                last = reason
            await asyncio.sleep(pause * self._rng.uniform(0.5, 1.0))
            if turn % max(1, len(addresses)) == 0:
                pause = longer_pause(pause, self._heartbeat)

    def _check_validity(self) -> None:
        facts = self._renewal.identity.facts
        if self._clock() >= facts.not_after:
            reason = (
                f"this node's certificate expired on {ns_text(facts.not_after)}: "
                "check its clock, or leave the swarm (--force) and join again"
            )
            raise Refusal(Refused(reason))

    async def _hello(self, channel: AgentChannel) -> None:
        """Greet and be welcomed. Raises Refusal, Unavailable."""
        description = self._handler.description()
        await channel.send(Hello(description))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await channel.receive()
        except TimeoutError:
            raise Unavailable(f"the manager did not welcome us within {ANSWER_SECONDS:.0f} s") from None
        if isinstance(answer, Refused):
            raise Refusal(answer)
        if not isinstance(answer, Welcome):
            raise Unavailable("the manager closed the connection before welcoming us")
        self._described = description
        await self.welcome(answer)

    async def welcome(self, message: Welcome) -> None:
        """Managers, role or pace are these now."""
        self._heartbeat = message.heartbeat / SECOND
        self._pace.set()
        addresses = [m.addr for m in message.managers if m.addr]
        if addresses:
            self._managers = addresses
        if message.role != self._renewal.identity.role:
            self._renewal.hurry()  # promoted or demoted: the certificate must say so
        await tell(self._handler.on_welcome(message), "the welcome")

    async def _serve(self, channel: AgentChannel) -> None:
        """Everything between Welcome and the end of this connection."""
        self._reports.reconnected()
        self._logs.clear()
        self._urgent.clear()
        self._paths.clear()
        measured = tuple(self._handler.paths())
        if measured:
            self._urgent.append(Paths(measured, complete=True))
        self._attachments_due = self._handler.attachments() is not None
        self._heard = self._now()
        self._connected.set()
        self._wake.set()
        receiver = Receiver(self, self._handler, channel)
        work = [
            asyncio.create_task(receiver.run()),
            asyncio.create_task(self._write(channel)),
            asyncio.create_task(self._beat()),
        ]
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._connected.clear()
            self._log_room.set()
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            for subscription in receiver.subscriptions:
                await tell(self._handler.on_log_unsubscribe(subscription), "the end of a subscription")
        for task in done:
            task.result()

    async def _write(self, channel: AgentChannel) -> None:
        """Urgent first, then reports, then log lines."""
        while True:
            if self._attachments_due:
                self._attachments_due = False
                await channel.send(Attachments(self._handler.attachments() or ()))
                continue
            if self._leaving:
                await channel.send(Leaving())
                self._left = True
                await asyncio.Event().wait()  # the manager closes
            if self._urgent:
                await channel.send(self._urgent.popleft())
                continue
            reports = self._reports.take()
            if reports is not None:
                await channel.send(reports)
                continue
            if self._paths:
                await channel.send(Paths(tuple(self._paths.values())))
                self._paths = {}
                continue
            if self._logs:
                await channel.send(self._logs.popleft())
                self._log_room.set()
                continue
            self._wake.clear()
            await self._wake.wait()

    async def _beat(self) -> None:
        """Say that we live; hear that the manager does (it answers every heartbeat)."""
        self._pace.clear()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat):
                    await self._pace.wait()
            self._pace.clear()
            silent = self._now() - self._heard
            if not self.handling and silent > GRACE * self._heartbeat:
                raise Unavailable(f"the manager has not answered for {silent:.0f} s")
            description = self._handler.description()
            changed = description != self._described
            self._described = description
            self.urgent(Heartbeat(description if changed else None))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def urgent(self, message: AgentMessage) -> None:
        self._urgent.append(message)
        self._wake.set()

    def heard(self) -> None:
        self._heard = self._now()

    def acknowledge(self, sequence: int) -> None:
        self._reports.acknowledge(sequence)
