"""Task states and the rules about them: forward-only, with SwarmKit's wire order (api/types.proto).

Owns the states and which of them count as alive. Must not know who moves a task.
"""

from __future__ import annotations

import enum


class TaskState(enum.IntEnum):
    NEW = 0
    PENDING = 64
    ASSIGNED = 192
    ACCEPTED = 256
    PREPARING = 320
    READY = 384
    STARTING = 448
    RUNNING = 512
    COMPLETE = 576
    SHUTDOWN = 640
    FAILED = 704
    REJECTED = 768
    REMOVE = 800
    ORPHANED = 832

    @property
    def word(self) -> str:
        """The API's spelling, e.g. `running`."""
        return self.name.lower()

    @property
    def terminal(self) -> bool:
        """No longer running and never again."""
        return self > TaskState.RUNNING

    @property
    def wanted(self) -> bool:
        """Of a desired state: the task is meant to run (RUNNING), later (READY) or to its end (COMPLETE, a job's)."""
        return self <= TaskState.COMPLETE


def may_advance(observed: TaskState, reported: TaskState) -> bool:
    """Whether a report may replace the observed state: states only grow."""
    return reported >= observed


class NodeState(enum.IntEnum):
    UNKNOWN = 0
    DOWN = 1
    READY = 2
    DISCONNECTED = 3

    @property
    def word(self) -> str:
        return self.name.lower()
