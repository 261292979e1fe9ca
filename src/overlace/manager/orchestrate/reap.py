"""Taking tasks out of the store: history beyond the limit, removed tasks, tasks whose node will not report.

Owns deletion. Source: swarmkit orchestrator/taskreaper. Differs where it costs users: a task on a dead node
is ORPHANED (which frees its addresses) after a minute, not after 24 hours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from overlace.manager.orchestrate.restart import policy_of
from overlace.manager.orchestrate.work import SECOND, Slot, Work, is_live, node_gone
from overlace.model.objects import Node, Task, TaskStatus
from overlace.model.states import TaskState
from overlace.store.base import Change, Delete, Put, View

ORPHAN_AFTER = 60 * SECOND
SEEN_FOR = 2 * SECOND
NODE_DOWN = "node is down"
NODE_GONE = "node has left the swarm"
DEFAULT_HISTORY = 5


def is_over(view: View, task: Task) -> bool:
    """A removed task nothing is left of, or nobody will ever say so."""
    state = task.status.state
    return state.terminal or state < TaskState.ASSIGNED or node_gone(view.get(Node, task.node_id))


def plan_removal(view: View, tasks: Iterable[Task], now: int) -> tuple[list[Change], int | None]:
    """The tasks of a service that was deleted: stop and remove all, delete those that are over; when to look again.

    A task that ended stays to be seen for a moment: `docker stack rm --detach=false` waits until it has seen
    tasks in a terminal state, and for ever when they vanish first (docker/cli command/stack waitOnTasks).
    """
    changes: list[Change] = []
    wake: int | None = None
    for task in tasks:
        seen_until = task.updated_at + SEEN_FOR
        if task.status.state.terminal and now < seen_until:
            wake = seen_until if wake is None else min(wake, seen_until)
        elif is_over(view, task):
            changes.append(Delete("task", task.id, expect=task.version))
        elif task.desired_state != TaskState.REMOVE:
            changes.append(
                Put(msgspec.structs.replace(task, desired_state=TaskState.REMOVE), expect=task.version)
            )
    return changes, wake


def remove_slot(work: Work, slot: Slot) -> None:
    """The slot is no longer wanted: its tasks and their history go."""
    for task in list(slot.tasks):
        if is_over(work.view, task):
            work.drop(slot, task)
        elif task.desired_state != TaskState.REMOVE:
            work.desire(slot, task, TaskState.REMOVE)


def reap_slot(work: Work, slot: Slot, keep: Collection[str] = ()) -> None:
    """Orphan what a dead node holds, delete what is removed and what exceeds the history limit (never the tasks
    whose ids are in `keep`)."""
    for task in list(slot.tasks):
        if is_live(task):
            continue
        if task.desired_state == TaskState.REMOVE and is_over(work.view, task):
            work.drop(slot, task)
            continue
        if not task.status.state.terminal and node_gone(work.node(task)):
            _orphan(work, slot, task)
    limit = work.cluster.spec.orchestration.task_history_retention_limit if work.cluster else DEFAULT_HISTORY
    if limit < 0 or not slot.tasks:
        return
    attempts = policy_of(slot.tasks[-1]).max_attempts or 0
    if attempts:
        limit = max(limit, attempts + 1)  # they are what attempts are counted by
    spare = [t for t in slot.tasks if not is_live(t) and t.status.state.terminal and t.id not in keep]
    if not any(is_live(t) for t in slot.tasks):
        spare = spare[:-1]  # the last one says whether the slot is finished
    excess = len(slot.tasks) - max(limit, 1)
    for task in spare[: max(excess, 0)]:
        work.drop(slot, task)


def _orphan(work: Work, slot: Slot, task: Task) -> None:
    node = work.node(task)
    if node is not None and not node.removed:
        due = node.status.since + ORPHAN_AFTER
        if work.now < due:
            work.wake_at(due)
            return
    status = TaskStatus(
        state=TaskState.ORPHANED,
        timestamp=work.now,
        message=NODE_GONE if node is None or node.removed else NODE_DOWN,
        container=task.status.container,
    )
    work.set(slot, task, msgspec.structs.replace(task, status=status))
