"""What a manager says on one connection, taken in order and handed to the agent's handler.

Owns the checking of sequences, asking again for what did not fit, and what a handler and a session must offer
for that. Must not open connections, nor know what messages mean beyond the protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

import structlog

from overlace.model.errors import OverlaceError
from overlace.model.netview import NetDelta
from overlace.model.objects import NodeDescription
from overlace.model.paths import PathState
from overlace.wire.messages import (
    Ack,
    AgentMessage,
    Ask,
    Assignments,
    Attachment,
    LogSubscribe,
    LogUnsubscribe,
    ManagerMessage,
    NetworkUpdate,
    NotAttached,
    Refused,
    Resync,
    Welcome,
)
from overlace.wire.transport import AgentChannel

log = structlog.get_logger(__name__)
RETRY_SECONDS = 1.0  # before a message that the handler could not take is asked for again


class Handler(Protocol):
    """What a session tells the agent. Calls come one at a time, in the order the manager sent them."""

    def description(self) -> NodeDescription:
        """What this node is now; asked at each connect and heartbeat."""

    def paths(self) -> list[PathState]:
        """What was measured of the way to other hosts; asked at each connect."""

    def attachments(self) -> tuple[Attachment, ...] | None:
        """All that containers outside of services want attached; None: nothing is, nor was."""

    def on_not_attached(self, message: NotAttached) -> None: ...

    async def on_welcome(self, message: Welcome) -> None: ...

    async def on_assignments(self, message: Assignments) -> None:
        """Any error: complete assignments are asked for, after a moment."""

    async def on_network(self, delta: NetDelta) -> None:
        """Raises ValueError when the delta does not fit: a complete view is asked for."""

    async def on_log_subscribe(self, message: LogSubscribe) -> None: ...

    async def on_log_unsubscribe(self, subscription: str) -> None:
        """Also called for each subscription of a connection that was lost."""

    def on_ask(self, message: Ask) -> None:
        """Answer by `AgentSession.urgent`, when it is known: nothing waits for it."""

    async def on_refused(self, message: Refused) -> None:
        """The manager does not serve this node; when `final`, the session has stopped trying."""


class Session(Protocol):
    """What a receiver tells the session whose connection it reads."""

    handling: bool

    def heard(self) -> None:
        """The manager lives."""

    def acknowledge(self, sequence: int) -> None:
        """It has the reports up to there."""

    def urgent(self, message: AgentMessage) -> None:
        """Send this before what waits."""

    async def welcome(self, message: Welcome) -> None:
        """Managers, role or pace are these now."""


class Refusal(Exception):
    """The manager does not serve this node: it said so, or it would."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.reason)
        self.refused = refused


async def tell(call: Coroutine[Any, Any, None], what: str) -> None:
    """Call the handler; its failure is its own and must not end the session."""
    try:
        await call
    except Exception:
        log.exception(f"the agent failed on {what}")


class Receiver:
    """Reads one connection: checks sequences, hands messages to the handler, asks again for what did not
    fit."""

    def __init__(self, session: Session, handler: Handler, channel: AgentChannel) -> None:
        self._session = session
        self._handler = handler
        self._channel = channel
        self._sequence: int | None = None  # of the last assignments taken; None: only complete ones fit
        self._has_network = False
        self.subscriptions: set[str] = set()

    async def run(self) -> None:
        while True:
            message = await self._channel.receive()
            if message is None:
                return
            self._session.heard()
            self._session.handling = True
            try:
                await self._take(message)
            finally:
                self._session.handling = False
                self._session.heard()

    async def _take(self, message: ManagerMessage) -> None:
        match message:
            case Ack(sequence=sequence):
                self._session.acknowledge(sequence)
            case Assignments():
                await self._assignments(message)
            case NetworkUpdate(delta=delta):
                await self._network(delta)
            case LogSubscribe(subscription=subscription):
                self.subscriptions.add(subscription)
                await tell(self._handler.on_log_subscribe(message), "a log subscription")
            case LogUnsubscribe(subscription=subscription):
                self.subscriptions.discard(subscription)
                await tell(self._handler.on_log_unsubscribe(subscription), "the end of a subscription")
            case Welcome():
                await self._session.welcome(message)
            case Ask():
                self._handler.on_ask(message)
            case NotAttached():
                self._handler.on_not_attached(message)
            case Refused():
                raise Refusal(message)

    async def _assignments(self, message: Assignments) -> None:
        if not message.complete:
            if self._sequence is None:
                return  # complete ones are on their way
            if message.sequence != self._sequence + 1:
                log.warning("assignments are missing", expected=self._sequence + 1, got=message.sequence)
                self._sequence = None
                self._session.urgent(Resync("assignments"))
                return
        try:
            await self._handler.on_assignments(message)
        except Exception as e:
            _complain("assignments", e)
            self._sequence = None
            await asyncio.sleep(RETRY_SECONDS)
            self._session.urgent(Resync("assignments"))
            return
        self._sequence = message.sequence

    async def _network(self, delta: NetDelta) -> None:
        if delta.base and not self._has_network:
            return  # a complete view is on its way
        try:
            await self._handler.on_network(delta)
        except Exception as e:
            _complain("network view", e)
            self._has_network = False
            if not isinstance(e, ValueError) or not delta.base:
                await asyncio.sleep(RETRY_SECONDS)  # not a gap, which a complete view mends at once
            self._session.urgent(Resync("network"))
            return
        self._has_network = True


def _complain(what: str, error: Exception) -> None:
    if isinstance(error, (OverlaceError, ValueError)):
        log.warning(f"{what} could not be taken, asking again", error=str(error))
    else:
        log.exception(f"{what} could not be taken, asking again")
