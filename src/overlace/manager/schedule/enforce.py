"""Tasks whose node stopped meeting their constraints after they were placed.

Owns that decision alone; the orchestrator replaces what is rejected here. Source: swarmkit
constraintenforcer.
"""

from __future__ import annotations

import msgspec

from overlace.manager.schedule.filters import meets_constraints
from overlace.model.objects import Node, Service, Task, TaskStatus
from overlace.model.specs import TaskSpec
from overlace.model.states import TaskState
from overlace.store.base import Change, Put, View

REJECTED = "assigned node no longer meets constraints"


def plan_enforcement(view: View, node: Node, now: int) -> list[Change]:
    """Reject the node's tasks whose constraints it no longer meets. A drained node is the orchestrator's alone."""
    if node.removed or node.spec.availability == "drain":
        return []
    changes: list[Change] = []
    for task in view.tasks_of_node(node.id):
        if not task.desired_state.wanted:
            continue
        if not TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING:
            continue
        if not meets_constraints(_binding_spec(view.get(Service, task.service_id), task), node):
            status = TaskStatus(
                state=TaskState.REJECTED,
                timestamp=now,
                message=REJECTED,
                err=REJECTED,
                container=task.status.container,
            )
            changes.append(Put(msgspec.structs.replace(task, status=status), expect=task.version))
    return changes


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
