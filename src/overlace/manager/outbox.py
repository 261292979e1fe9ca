"""What waits to be sent to one agent, bounded: a slow reader costs memory for a while, then gets the whole
anew.

Owns order and bounds. Deltas queue up to a limit; past it they are dropped and marked stale, and `next` makes
a complete message when the agent reads again. Must not know sockets or the store.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from overlace.wire.messages import Ack, Assignments, ManagerMessage, NetworkUpdate

MAX_MESSAGES = 256
MAX_WEIGHT = 20_000  # tasks and network entries
MAX_CONTROL = 4096


class Outbox:
    """`complete_assignments` and `complete_network` are called when, and only when, a complete message is
    sent; `on_stale_network` when network deltas are no longer wanted until then. A new outbox starts
    stale."""

    def __init__(
        self,
        complete_assignments: Callable[[], Assignments],
        complete_network: Callable[[], NetworkUpdate],
        on_stale_network: Callable[[], None],
    ) -> None:
        self._complete_assignments = complete_assignments
        self._complete_network = complete_network
        self._on_stale_network = on_stale_network
        self._control: deque[ManagerMessage] = deque(maxlen=MAX_CONTROL)
        self._deltas: deque[tuple[ManagerMessage, int]] = deque()
        self._weight = 0
        self._ack: int | None = None
        self._wake = asyncio.Event()
        self.stale_assignments = True
        self.stale_network = True

    def control(self, message: ManagerMessage) -> None:
        """Goes before all deltas."""
        self._control.append(message)
        self._wake.set()

    def ack(self, sequence: int) -> None:
        """An Ack stands for all sequences up to it, so only the newest is kept."""
        self._ack = max(sequence, self._ack or 0)
        self._wake.set()

    def assignments(self, message: Assignments) -> None:
        if not self.stale_assignments:
            self._delta(message, len(message.tasks) + len(message.remove_tasks) + len(message.secrets))

    def network(self, message: NetworkUpdate) -> None:
        if not self.stale_network:
            self._delta(message, len(message.delta.put) + len(message.delta.remove))

    def resync(self, *, assignments: bool = False, network: bool = False) -> None:
        """Send complete ones; queued deltas of that sort are void."""
        self.stale_assignments |= assignments
        if network and not self.stale_network:
            self.stale_network = True
            self._on_stale_network()
        kept = [
            (m, w)
            for m, w in self._deltas
            if not (assignments and isinstance(m, Assignments))
            and not (network and isinstance(m, NetworkUpdate))
        ]
        self._deltas = deque(kept)
        self._weight = sum(w for _, w in kept)
        self._wake.set()

    async def next(self) -> ManagerMessage:
        """The message to send now; waits for one."""
        while True:
            message = self._take()
            if message is not None:
                return message
            self._wake.clear()
            await self._wake.wait()

    def _take(self) -> ManagerMessage | None:
        if self._control:
            return self._control.popleft()
        if self._ack is not None:
            message, self._ack = Ack(self._ack), None
            return message
        # the network first: tasks that start find theirs
        if self.stale_network:
            self.stale_network = False
            return self._complete_network()
        if self.stale_assignments:
            self.stale_assignments = False
            return self._complete_assignments()
        if self._deltas:
            delta, weight = self._deltas.popleft()
            self._weight -= weight
            return delta
        return None

    def _delta(self, message: ManagerMessage, weight: int) -> None:
        if len(self._deltas) >= MAX_MESSAGES or self._weight + weight > MAX_WEIGHT:
            self.resync(assignments=True, network=True)
            return
        self._deltas.append((message, weight))
        self._weight += weight
        self._wake.set()
