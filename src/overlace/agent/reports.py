"""Task states on their way to a manager: newest per task, kept until stored there, sent again after a
reconnect.

Owns the queue. Pure; must not know sockets.
"""

from __future__ import annotations

from overlace.model.objects import TaskStatus
from overlace.wire.messages import Reports, TaskReport

MAX_REPORTS = 1024  # a message (swarmkit agent/reporter.go)


class ReportQueue:
    def __init__(self) -> None:
        self._unsent: dict[str, TaskStatus] = {}
        self._sent: dict[str, tuple[int, TaskStatus]] = {}  # with the sequence that carried it
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._unsent) + len(self._sent)

    def put(self, task_id: str, status: TaskStatus) -> None:
        """Replaces what waits for this task."""
        self._unsent.pop(task_id, None)
        self._unsent[task_id] = status

    def take(self) -> Reports | None:
        """The next message to send; None when there is nothing new."""
        if not self._unsent:
            return None
        self._sequence += 1
        ids = list(self._unsent)[:MAX_REPORTS]
        batch = tuple(TaskReport(i, self._unsent.pop(i)) for i in ids)
        for r in batch:
            self._sent[r.task_id] = (self._sequence, r.status)
        return Reports(self._sequence, batch)

    def acknowledge(self, sequence: int) -> None:
        """All messages up to `sequence` are stored."""
        for task_id in [i for i, (sent, _) in self._sent.items() if sent <= sequence]:
            del self._sent[task_id]

    def reconnected(self) -> None:
        """What was not acknowledged goes again, unless something newer waits."""
        again = {i: status for i, (_, status) in self._sent.items() if i not in self._unsent}
        self._sent.clear()
        self._unsent = again | self._unsent
