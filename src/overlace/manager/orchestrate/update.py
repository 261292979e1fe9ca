"""Rolling updates and rollbacks, a step at a time.

Owns which slots are replaced now, `UpdateStatus`, and the automatic rollback. Nothing is kept in memory:
progress is read from the tasks (those of the current spec version made since the update started) and
`Task.started_at`. Source: swarmkit orchestrator/update. Differs where it costs users: a new task that no
node takes counts as failed after a while instead of holding the update for ever.
"""

from __future__ import annotations

import msgspec

from overlace.manager.orchestrate.restart import ended_itself, is_finished, replace_task, stopping
from overlace.manager.orchestrate.work import SECOND, Slot, Work, is_live
from overlace.model.objects import Service, Task, UpdateStatus
from overlace.model.specs import UpdateConfig
from overlace.model.states import TaskState
from overlace.store.base import Change, Put

DEFAULT_MONITOR = 5 * SECOND
UNPLACED_GRACE = 60 * SECOND  # on top of the monitor period

UPDATING = "updating"
PAUSED = "paused"
COMPLETED = "completed"
ROLLBACK_STARTED = "rollback_started"
ROLLBACK_PAUSED = "rollback_paused"
ROLLBACK_COMPLETED = "rollback_completed"

_NEVER = UpdateConfig(parallelism=1)


class Progress:
    """How far an update is, read from the slots."""

    def __init__(self) -> None:
        self.dirty: list[Slot] = []  # still to be replaced
        self.touched = 0  # slots this update replaced
        self.holding = 0  # of these, slots that hold one of the parallel places
        self.failed = 0  # of these, slots whose new task failed
        self.failed_task = ""
        self.last_start = 0  # when the latest new task started running


def plan_update(work: Work, slots: list[Slot]) -> list[Change]:
    """Advance the service's update, if there is one; returns the service's own change, tasks go through
    `work`.
    """
    service = work.service
    status = _current_status(service)
    if status is not None and status.state in (PAUSED, ROLLBACK_PAUSED):
        return []
    active = status is not None and status.state in (UPDATING, ROLLBACK_STARTED)
    if not active:
        if not any(_is_dirty_slot(work, slot) for slot in slots):
            stale = service.update_status
            if status is None and stale is not None and stale.state in (UPDATING, ROLLBACK_STARTED):
                # The spec changed under a running update and what runs fits it already.
                return [_put(service, update_status=_completed(work, stale))]
            return []
        status = UpdateStatus(
            UPDATING, started_at=work.now, message="update in progress", spec_version=service.spec_version
        )
    assert status is not None
    rolling_back = status.state == ROLLBACK_STARTED
    config = (service.spec.rollback_config if rolling_back else service.spec.update_config) or _NEVER
    monitor = _monitor(config)
    progress = _read(work, slots, status, config, monitor)
    if progress.failed and (config.failure_action or "pause") != "continue":
        total = len(progress.dirty) + progress.touched
        if progress.failed / total > config.max_failure_ratio:
            return [_give_up(work, status, config, progress.failed_task)]
    places = len(progress.dirty) if config.parallelism == 0 else config.parallelism - progress.holding
    for slot in progress.dirty[: max(places, 0)]:
        _replace(work, slot, config)
        progress.holding += 1
    new = status
    if not progress.dirty and not progress.holding:
        due = progress.last_start + monitor
        if progress.last_start and work.now < due:
            work.wake_at(due)
        else:
            new = _completed(work, status)
    if new == service.update_status:
        return []
    return [_put(service, update_status=new)]


def _completed(work: Work, status: UpdateStatus) -> UpdateStatus:
    rolled_back = status.state == ROLLBACK_STARTED
    return msgspec.structs.replace(
        status,
        state=ROLLBACK_COMPLETED if rolled_back else COMPLETED,
        message="rollback completed" if rolled_back else "update completed",
        completed_at=work.now,
        spec_version=work.service.spec_version,
    )


def _current_status(service: Service) -> UpdateStatus | None:
    """The status if it is about the current spec."""
    status = service.update_status
    if status is not None and status.spec_version not in (0, service.spec_version):
        return None
    return status


def _monitor(config: UpdateConfig) -> int:
    """How long a new task is watched, ns; longer than the delay, as in swarmkit."""
    monitor = DEFAULT_MONITOR if config.monitor is None else config.monitor
    return config.delay + SECOND if config.delay >= monitor and config.delay else monitor


def _read(
    work: Work, slots: list[Slot], status: UpdateStatus, config: UpdateConfig, monitor: int
) -> Progress:
    progress = Progress()
    for slot in slots:
        mine = [t for t in slot.tasks if _made_by(work, t, status)]
        failure = next((t for t in mine if _failed(work, slot, t, monitor)), None)
        if mine:
            progress.touched += 1
            mine = [_note_start(work, slot, t) for t in mine]
            progress.last_start = max(progress.last_start, *(t.started_at for t in mine))
        if failure is not None:
            progress.failed += 1
            progress.failed_task = failure.id
        elif mine and _holds(work, mine, config):
            progress.holding += 1
        if not mine and _is_dirty_slot(work, slot):
            progress.dirty.append(slot)
        # (A slot whose new task ended for good while the old one still runs, start-first, stays so.)
    return progress


def _made_by(work: Work, task: Task, status: UpdateStatus) -> bool:
    return task.spec_version == work.service.spec_version and task.created_at >= status.started_at


def _failed(work: Work, slot: Slot, task: Task, monitor: int) -> bool:
    """Ended within its monitor period, or found no node for long though nothing of its slot is in its way."""
    if ended_itself(task):
        return not task.started_at or task.status.timestamp - task.started_at <= monitor
    if not is_live(task) or task.status.state >= TaskState.ASSIGNED or not task.status.err:
        return False
    due = max(task.created_at, task.not_before) + UNPLACED_GRACE + monitor
    if work.now < due:
        work.wake_at(due)
        return False
    return not stopping(work, slot)


def _note_start(work: Work, slot: Slot, task: Task) -> Task:
    if task.started_at or task.status.state != TaskState.RUNNING or not is_live(task):
        return task
    return work.set(slot, task, msgspec.structs.replace(task, started_at=work.now))


def _holds(work: Work, mine: list[Task], config: UpdateConfig) -> bool:
    """Whether the slot's new task is still on its way, or the delay after it runs."""
    live = [t for t in mine if is_live(t)]
    if not live:
        return False
    newest = live[-1]
    if newest.status.state < TaskState.RUNNING:
        return True
    due = newest.started_at + config.delay
    if config.delay and work.now < due:
        work.wake_at(due)
        return True
    return False


def _is_dirty_slot(work: Work, slot: Slot) -> bool:
    live = slot.live()
    if live:
        return all(work.is_dirty(t) for t in live)
    last = slot.ended_last()
    return last is not None and slot.may_start and is_finished(slot) and work.is_dirty(last)


def _replace(work: Work, slot: Slot, config: UpdateConfig) -> None:
    live = slot.live()
    if config.order == "start-first" and any(not work.stopped(t) for t in live):
        work.create(slot)
        return
    for task in live:
        work.desire(slot, task, TaskState.SHUTDOWN)
    replace_task(work, slot)


def _give_up(work: Work, status: UpdateStatus, config: UpdateConfig, task_id: str) -> Change:
    service = work.service
    why = f"due to failure or early termination of task {task_id}"
    if status.state == ROLLBACK_STARTED:
        paused = msgspec.structs.replace(status, state=ROLLBACK_PAUSED, message=f"rollback paused {why}")
        return _put(service, update_status=paused)
    if config.failure_action == "rollback" and service.previous_spec is not None:
        version = max(work.view.revision, service.spec_version) + 1
        started = UpdateStatus(
            ROLLBACK_STARTED, started_at=work.now, message=f"update rolled back {why}", spec_version=version
        )
        return _put(
            service,
            spec=service.previous_spec,
            previous_spec=None,
            spec_version=version,
            update_status=started,
        )
    paused = msgspec.structs.replace(status, state=PAUSED, message=f"update paused {why}")
    return _put(service, update_status=paused)


def _put(service: Service, **members: object) -> Change:
    return Put(msgspec.structs.replace(service, **members), expect=service.version)
