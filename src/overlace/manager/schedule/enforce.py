"""Tasks whose node stopped meeting their constraints, or lost what they reserve, after they were placed.

Owns that decision alone; the orchestrator replaces what is rejected here. Source: swarmkit
constraintenforcer.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from overlace.manager.schedule.filters import meets_constraints
from overlace.manager.schedule.occupancy import reserved
from overlace.model.objects import Node, NodeDescription, NodeResources, Service, Task, TaskStatus
from overlace.model.specs import TaskSpec
from overlace.model.states import TaskState
from overlace.store.base import Change, Put, View

REJECTED = "assigned node no longer meets constraints"
LOST = "assigned node no longer has the resources the task reserves"


def plan_enforcement(view: View, node: Node, now: int) -> list[Change]:
    """Reject the node's tasks whose constraints it no longer meets, and those it no longer has the resources for, the
    youngest first. A drained node is the orchestrator's alone."""
    if node.removed or node.spec.availability == "drain":
        return []
    changes: list[Change] = []
    left = _Left(node.description)
    for task in sorted(view.tasks_of_node(node.id), key=lambda task: (task.created_at, task.id)):
        if not task.desired_state.wanted or task.attachment:
            continue
        if not TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING:
            continue
        why = ""
        if not meets_constraints(_binding_spec(view.get(Service, task.service_id), task), node):
            why = REJECTED
        elif not left.take(task):
            why = LOST
        if why:
            status = TaskStatus(
                state=TaskState.REJECTED,
                timestamp=now,
                message=why,
                err=why,
                container=task.status.container,
            )
            changes.append(Put(msgspec.structs.replace(task, status=status), expect=task.version))
    return changes


class _Left:
    """What a node still has to reserve as its tasks take theirs, one by one."""

    def __init__(self, about: NodeDescription | None) -> None:
        self._about = about
        has = about.resources if about is not None else NodeResources()
        self._cpus, self._memory, self._offered = has.nano_cpus, has.memory_bytes, has.generic
        self._taken: Counter[tuple[str, str]] = Counter()

    def take(self, task: Task) -> bool:
        """Whether there is enough for it; then it is taken."""
        if self._about is None:
            return True
        cpus, memory = reserved(task)
        if (cpus and cpus > self._cpus) or (memory and memory > self._memory):
            return False
        for one in task.generic:
            if one.value and one.value not in self._offered.named.get(one.kind, ()):
                return False
            taken = self._taken[one.kind, ""] + one.count
            if not one.value and taken > self._offered.discrete.get(one.kind, 0):
                return False
        self._cpus, self._memory = self._cpus - cpus, self._memory - memory
        for one in task.generic:
            self._taken[one.kind, ""] += one.count
        return True


def _binding_spec(service: Service | None, task: Task) -> TaskSpec:
    """Whose constraints bind a task: its service's as they are now when only constraints differ (such an
    update replaces no task that fits), else its own (a rolling update has not come to it yet)."""
    if service is None:
        return task.spec
    template = service.spec.task_template
    if template.placement is None or task.spec.placement is None:
        return task.spec
    same = msgspec.structs.replace(
        template,
        networks=task.spec.networks,
        log_driver=task.spec.log_driver,
        placement=msgspec.structs.replace(template.placement, constraints=task.spec.placement.constraints),
    )
    return template if same == task.spec else task.spec
