"""Jobs: tasks that run to their end, so many times (replicated) or once on every eligible node (global).

Owns which slots a job has now and what fills them. A run of the job is an iteration: every update of the
service starts a new one and stops what is left of the one before. A failed task is tried again as its restart
policy says (`any` means `on-failure` here). Source: swarmkit orchestrator/jobs. Differs where it costs users
(Docker looks at no node): a task on a drained or lost node is replaced, unless its policy forbids a second
try, and a global job also runs on nodes that join or become eligible later. History is pruned as a service's.
"""

from __future__ import annotations

from overlace.manager.orchestrate.reap import reap_slot, remove_slot
from overlace.manager.orchestrate.restart import may_restart, replace_task, restart_delay, start_waiting
from overlace.manager.orchestrate.work import Slot, Work, node_gone, slots_of
from overlace.model.objects import Node, Task
from overlace.model.specs import ReplicatedJob
from overlace.model.states import NodeState, TaskState


def job_size(job: ReplicatedJob) -> tuple[int, int]:
    """(tasks at once, completions wanted), with Docker's defaults."""
    at_once = 1 if job.max_concurrent is None else job.max_concurrent
    return at_once, at_once if job.total_completions is None else job.total_completions


def plan_job(work: Work) -> None:
    """Decide everything about one job through `work`."""
    job = work.service.spec.mode.replicated_job
    slots = _global(work) if job is None else _replicated(work, job)
    for slot in slots:
        start_waiting(work, slot)
        reap_slot(work, slot, keep={task.id for task in current(work, slot) if _complete(task)})


def current(work: Work, slot: Slot) -> list[Task]:
    """The slot's tasks of the iteration that is on."""
    return [task for task in slot.tasks if task.job_iteration == work.iteration]


def is_done(work: Work, slot: Slot) -> bool:
    return any(_complete(task) for task in current(work, slot))


def _complete(task: Task) -> bool:
    return task.status.state == TaskState.COMPLETE


def _given_up(work: Work, slot: Slot) -> bool:
    """The last try is over and the policy wants no other."""
    tries = current(work, slot)
    return bool(tries) and not slot.live() and not may_restart(tries[-1], slot)


# -- replicated ----------------------------------------------------------------------------------------------


def _replicated(work: Work, job: ReplicatedJob) -> list[Slot]:
    at_once, total = job_size(job)
    slots = slots_of(work.view.tasks_of_service(work.service.id), lambda task: task.slot)
    for key, slot in slots.items():
        if isinstance(key, int) and key >= total:  # of an earlier, larger iteration
            remove_slot(work, slot)
            continue
        _end_earlier(work, slot)
        _tend(work, slot)
    active = sum(bool(slot.live()) for slot in slots.values())
    for number in range(total):
        if active >= at_once:
            break
        slot = slots.setdefault(number, Slot(number))
        if not slot.live() and not is_done(work, slot) and not _given_up(work, slot):
            _start(work, slot)
            active += 1
    return list(slots.values())


# -- one per node --------------------------------------------------------------------------------------------


def _global(work: Work) -> list[Slot]:
    slots = slots_of(work.view.tasks_of_service(work.service.id), lambda task: task.node_id)
    for node in work.view.all(Node):
        slot = slots.get(node.id)
        eligible = not node.removed and work.suits(node)
        if slot is None:
            if not eligible:
                continue
            slot = slots[node.id] = Slot(node.id)
        if not eligible:
            if node.removed or not is_done(work, slot):
                remove_slot(work, slot)
            continue
        _end_earlier(work, slot)
        if node_gone(node):
            continue  # nobody else can do its part; it goes on when the node is back
        slot.may_start = node.spec.availability == "active" and node.status.state == NodeState.READY
        _tend(work, slot)
        if slot.may_start and not slot.live() and not is_done(work, slot) and not _given_up(work, slot):
            _start(work, slot)
    for key, slot in slots.items():
        if work.view.get(Node, str(key)) is None:
            remove_slot(work, slot)
    return list(slots.values())


# -- one slot ------------------------------------------------------------------------------------------------


def _end_earlier(work: Work, slot: Slot) -> None:
    """Stop and remove what still runs of earlier iterations; what ended stays as history."""
    for task in list(slot.tasks):
        if task.job_iteration == work.iteration or task.status.state.terminal:
            continue
        if task.desired_state != TaskState.REMOVE:
            work.desire(slot, task, TaskState.REMOVE)


def _tend(work: Work, slot: Slot) -> None:
    """Replace what failed or lost its node, if the policy allows another try; stop what is no longer needed."""
    done = is_done(work, slot)
    for task in current(work, slot):
        if not task.desired_state.wanted or _complete(task):
            continue
        ended = task.status.state.terminal
        if done:  # a task given up for lost did it after all
            work.desire(slot, task, TaskState.SHUTDOWN)
            continue
        again = may_restart(task, slot)
        if not ended and not (again and work.lost(task)):
            continue  # it runs; one that gets no second try may end even on a drained or silent node
        if ended and work.now < task.not_before:
            work.wake_at(
                task.not_before
            )  # it ended before its own delay was over: the delay holds all the same
            continue
        work.desire(slot, task, TaskState.SHUTDOWN)
        if again and slot.may_start and not slot.live():
            replace_task(work, slot, restart_delay(work, task))


def _start(work: Work, slot: Slot) -> None:
    """A first try, or one whose predecessor was stopped; never beside what still runs of an earlier iteration."""
    if all(work.stopped(task) for task in slot.tasks):
        work.create(slot, work.goal)
    else:
        work.create(slot, TaskState.READY, work.now)
