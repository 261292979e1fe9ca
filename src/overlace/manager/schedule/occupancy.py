"""What is taken on each node: tasks, reservations, host ports, recent failures.

Owns counters derived from task events; each task's share is remembered, so observing the same state twice or
an older one again leaves them right. Must not decide anything nor read a store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from overlace.model.generic import Claim
from overlace.model.objects import Task
from overlace.model.states import TaskState

FAILURE_WINDOW = 5 * 60 * 1_000_000_000  # ns; swarmkit scheduler: monitorFailures
MAX_FAILURES = 5

HostPort = tuple[str, int]


class Share(msgspec.Struct, frozen=True):
    """What one task takes on its node."""

    node_id: str
    service_id: str
    counts: bool  # meant to run (a task that is being stopped still holds its reservation and ports)
    nano_cpus: int
    memory_bytes: int
    ports: tuple[HostPort, ...]
    generic: tuple[Claim, ...] = ()


class NodeUse:
    """What is taken on one node."""

    __slots__ = ("by_service", "generic", "memory_bytes", "nano_cpus", "ports", "tasks")

    def __init__(self) -> None:
        self.tasks = 0
        self.by_service: Counter[str] = Counter()
        self.nano_cpus = 0
        self.memory_bytes = 0
        self.ports: Counter[HostPort] = Counter()
        self.generic: Counter[tuple[str, str]] = Counter()  # see model.generic.Taken

    def claim(self, claims: Iterable[Claim], sign: int = 1) -> None:
        for one in claims:
            key = one.kind, one.value
            self.generic[key] += sign * (1 if one.value else one.count)
            if not self.generic[key]:
                del self.generic[key]


_NOTHING = NodeUse()


def reserved(task: Task) -> tuple[int, int]:
    """(nano CPUs, bytes) the task reserves."""
    wants = task.spec.resources.reservations if task.spec.resources else None
    return (wants.nano_cpus, wants.memory_bytes) if wants else (0, 0)


def host_ports(task: Task) -> tuple[HostPort, ...]:
    """Fixed ports the task publishes on its own node."""
    return tuple((p.protocol, p.published_port) for p in task.ports if p.published_port)


def share_of(task: Task) -> Share | None:
    if task.attachment:  # nothing runs
        return None
    if not task.node_id or not TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING:
        return None
    cpus, memory = reserved(task)
    return Share(
        task.node_id,
        task.service_id,
        task.desired_state.wanted,
        cpus,
        memory,
        host_ports(task),
        task.generic,
    )


class Occupancy:
    """NodeUse per node, kept by `observe`."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeUse] = {}
        self._shares: dict[str, Share] = {}
        # (node, service, spec version) -> task id -> when it failed
        self._failures: dict[tuple[str, str, int], dict[str, int]] = {}

    def node(self, node_id: str) -> NodeUse:
        """Read only."""
        return self._nodes.get(node_id, _NOTHING)

    def observe(self, task_id: str, task: Task | None) -> bool:
        """Note a task as it is now (None: deleted). True when something was freed."""
        old = self._shares.get(task_id)
        new = share_of(task) if task is not None else None
        if task is not None and task.node_id and task.status.state in (TaskState.FAILED, TaskState.REJECTED):
            failures = self._failures.setdefault((task.node_id, task.service_id, task.spec_version), {})
            failures[task_id] = task.status.timestamp
        if old == new:
            return False
        if old is not None:
            self._add(old, -1)
            del self._shares[task_id]
        if new is not None:
            self._add(new, 1)
            self._shares[task_id] = new
        return old is not None

    def recent_failures(self, node_id: str, service_id: str, spec_version: int, now: int) -> int:
        """Tasks of this version of the service that failed on the node within FAILURE_WINDOW."""
        failures = self._failures.get((node_id, service_id, spec_version))
        if not failures:
            return 0
        return sum(1 for at in failures.values() if at > now - FAILURE_WINDOW)

    def forget_failures(self, now: int) -> None:
        """Drop what is too old to matter."""
        for key, failures in list(self._failures.items()):
            fresh = {id: at for id, at in failures.items() if at > now - FAILURE_WINDOW}
            if fresh:
                self._failures[key] = fresh
            else:
                del self._failures[key]

    def _add(self, share: Share, sign: int) -> None:
        use = self._nodes.get(share.node_id)
        if use is None:
            use = self._nodes[share.node_id] = NodeUse()
        if share.counts:
            use.tasks += sign
            use.by_service[share.service_id] += sign
            if not use.by_service[share.service_id]:
                del use.by_service[share.service_id]
        use.nano_cpus += sign * share.nano_cpus
        use.memory_bytes += sign * share.memory_bytes
        for port in share.ports:
            use.ports[port] += sign
            if not use.ports[port]:
                del use.ports[port]
        use.claim(share.generic, sign)
