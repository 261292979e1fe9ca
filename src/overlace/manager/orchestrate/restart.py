"""Keeping one slot filled: restarts by policy, moves off lost nodes, starting what waited.

Owns the restart policy. Everything is derived from the stored tasks, so nothing is forgotten with the
manager. Source: swarmkit orchestrator/restart.
"""

from __future__ import annotations

from overlace.manager.orchestrate.work import SECOND, Slot, Work, node_gone
from overlace.model.objects import Task
from overlace.model.specs import RestartPolicy
from overlace.model.states import TaskState

DEFAULT_DELAY = 5 * SECOND
OLD_TASK_TIMEOUT = (
    60 * SECOND
)  # how long a replacement waits for its predecessor to stop, or that for a place for it
REJECTED_DELAY = (
    SECOND  # at least, whatever the policy says: a task its node refuses costs no time of its own
)

_ENDED_ITSELF = (TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED)


def policy_of(task: Task) -> RestartPolicy:
    return task.spec.restart_policy or RestartPolicy()


def ended_itself(task: Task) -> bool:
    """Over without having been told to stop."""
    return task.status.state in _ENDED_ITSELF


def may_restart(task: Task, slot: Slot) -> bool:
    """Whether the policy of a task that is over, or lost its node, allows another in its place.

    Attempts count per slot and spec version; a move off a lost node is no attempt (it is counted in Docker).
    """
    policy = policy_of(task)
    condition = policy.condition or "any"
    if condition == "none":
        return False
    if condition == "on-failure" and task.status.state == TaskState.COMPLETE:
        return False
    if not policy.max_attempts or not ended_itself(task):
        return True
    earlier = [
        t
        for t in slot.tasks
        if t.id != task.id
        and (t.spec_version, t.job_iteration) == (task.spec_version, task.job_iteration)
        and ended_itself(t)
    ]
    if policy.window:
        since = task.status.timestamp - policy.window
        earlier = [t for t in earlier if t.status.timestamp > since]
    return len(earlier) < policy.max_attempts


def is_finished(slot: Slot) -> bool:
    """The slot's last task is over and its policy wants no other: an empty slot that must stay so."""
    last = slot.ended_last()
    return last is not None and not slot.live() and not may_restart(last, slot)


def fill_slot(work: Work, slot: Slot) -> None:
    """Bring one wanted slot in order: replace what ended or lost its node, fill it when empty, drop doubles.

    A task may end before its own restart delay is over (its image cannot be pulled): the delay holds all the same.
    """
    for task in slot.live():
        ended, lost = task.status.state.terminal, work.lost(task)
        if ended and work.now < task.not_before:
            work.wake_at(task.not_before)
        elif lost and not ended and moves_before_stop(work, slot, task):
            if all(_outgoing(work, other) for other in slot.live()):
                work.create(slot)  # `_drop_doubles` stops the old one when this one runs
        elif ended or lost:
            _replace(work, slot, task)
    _drop_doubles(work, slot)
    if not slot.live() and slot.may_start and not is_finished(slot):
        work.create(slot)


def moves_before_stop(work: Work, slot: Slot, task: Task) -> bool:
    """Whether a task on a drained node runs on until its successor does: where updates start first, both may be there
    at once. Docker stops it at once, and a service of one replica is away meanwhile. `_waits_in_vain` ends it.
    """
    config = work.service.spec.update_config
    return (
        config is not None
        and config.order == "start-first"
        and task.status.state == TaskState.RUNNING
        and task.desired_state == TaskState.RUNNING
        and not node_gone(work.node(task))
        and slot.may_start
        and may_restart(task, slot)
    )


def _outgoing(work: Work, task: Task) -> bool:
    """Whether another is to take its place: of an older spec, or on a node that may not keep it."""
    return work.is_dirty(task) or work.lost(task)


def _replace(work: Work, slot: Slot, task: Task) -> None:
    allowed = slot.may_start and may_restart(task, slot)
    work.desire(slot, task, TaskState.SHUTDOWN)
    if not allowed:
        return
    if any(not _outgoing(work, other) for other in slot.live()):
        return  # an update or a drain has put its successor there already
    replace_task(work, slot, restart_delay(work, task))


def restart_delay(work: Work, task: Task) -> int:
    """How long the successor of a task waits, ns: its policy's delay when it ended; when it lost its node, what was
    left of its own."""
    if not task.status.state.terminal:
        return task.not_before - work.now
    delay = policy_of(task).delay
    if delay is None:
        delay = DEFAULT_DELAY
    return max(delay, REJECTED_DELAY) if task.status.state == TaskState.REJECTED else delay


def replace_task(work: Work, slot: Slot, delay: int = 0) -> Task:
    """A successor for a task that was just shut down: READY until `delay` passed and the old one stopped."""
    if delay <= 0 and not stopping(work, slot):
        return work.create(slot)
    return work.create(slot, TaskState.READY, work.now + delay)


def stopping(work: Work, slot: Slot) -> bool:
    """Whether a task of the slot was told to stop and has not yet."""
    return any(not t.desired_state.wanted and not work.stopped(t) for t in slot.tasks)


def start_waiting(work: Work, slot: Slot) -> None:
    """READY tasks whose time has come may run."""
    for task in slot.live():
        if task.desired_state != TaskState.READY:
            continue
        if work.now < task.not_before:
            work.wake_at(task.not_before)
            continue
        deadline = task.created_at + OLD_TASK_TIMEOUT
        if work.now < deadline and stopping(work, slot):
            work.wake_at(deadline)
            continue
        work.desire(slot, task, work.goal)


def _runs(task: Task) -> bool:
    return task.status.state == TaskState.RUNNING


def _waits_in_vain(work: Work, old: Task, successor: Task) -> bool:
    """Whether a task on a drained node would wait for a successor that no node takes, as the scheduler has said of it:
    the node is to be emptied, as Docker does at once."""
    return work.lost(old) and successor.status.state < TaskState.ASSIGNED and bool(successor.status.err)


def _drop_doubles(work: Work, slot: Slot) -> None:
    """At most one task to stay and, until that one runs or is waited for in vain, one of an older spec or on a drained
    node."""
    live = slot.live()
    if len(live) < 2:
        return
    # Furthest first, then oldest.
    live.sort(key=lambda t: (-t.status.state, t.created_at, t.id))
    staying = [t for t in live if not _outgoing(work, t)]
    outgoing = [t for t in live if _outgoing(work, t)]
    keep = staying[:1]
    if outgoing and not (staying and (_runs(staying[0]) or _waits_in_vain(work, outgoing[0], staying[0]))):
        keep.append(outgoing[0])
    for task in live:
        if task not in keep:
            work.desire(slot, task, TaskState.SHUTDOWN)
