"""The task state machine: given a task, what was last reported and what the runtime shows, the next step.

Pure: no clock, runtime or sockets. Must not perform a step (worker does). States only grow (model.states); the messages
are SwarmKit's, which people grep for.
"""

from __future__ import annotations

import enum

import msgspec

from overlace.model.objects import ContainerStatus, Task, TaskStatus
from overlace.model.states import TaskState
from overlace.runtime.base import Container


class Action(enum.Enum):
    """What the worker has to do before it asks again."""

    WAIT = "wait"  # until the assignment or the container changes
    PREPARE = "prepare"  # image, network, container
    START = "start"
    STOP = "stop"
    KILL_UNHEALTHY = "kill-unhealthy"
    RELEASE = "release"  # terminal: give the network back, keep the container for its logs


class Step(msgspec.Struct, frozen=True):
    action: Action
    status: TaskStatus  # to report, when it differs from the last one


def plan_step(task: Task, status: TaskStatus, container: Container | None, now: int) -> Step:
    """The next step of `task`, whose last reported status is `status` and whose container is as seen (None: absent)."""
    state, desired = status.state, task.desired_state
    if state.terminal:
        return Step(Action.RELEASE, status)
    if desired >= TaskState.SHUTDOWN:
        if container is not None and container.status == "running":
            return Step(Action.STOP, status)
        return Step(Action.RELEASE, _with(status, TaskState.SHUTDOWN, "shutdown", now, container))
    if state < TaskState.ACCEPTED:
        return Step(Action.PREPARE, _with(status, TaskState.PREPARING, "preparing", now))
    if state == TaskState.ACCEPTED or (state == TaskState.PREPARING and container is None):
        return Step(Action.PREPARE, _with(status, TaskState.PREPARING, "preparing", now))
    if container is None:
        return Step(
            Action.RELEASE, failed(status, now, "container is gone: it was removed behind the agent's back")
        )
    if container.status == "created":
        if state < TaskState.READY:
            status = _with(status, TaskState.READY, "prepared", now, container)
        if desired < TaskState.RUNNING:
            return Step(Action.WAIT, status)
        return Step(Action.START, _with(status, TaskState.STARTING, "starting", now, container))
    if container.status == "running":
        return _running(status, container, now)
    return Step(Action.RELEASE, _finished(status, container, now))


def _running(status: TaskStatus, container: Container, now: int) -> Step:
    if container.health == "unhealthy":
        return Step(Action.KILL_UNHEALTHY, status)
    if container.health == "starting":
        # a task counts as running only once its health check says so
        return Step(Action.WAIT, _with(status, TaskState.STARTING, "starting", now, container))
    return Step(Action.WAIT, _with(status, TaskState.RUNNING, "started", now, container))


def _finished(status: TaskStatus, container: Container, now: int) -> TaskStatus:
    if container.exit_code == 0 and not container.error:
        return _with(status, TaskState.COMPLETE, "finished", now, container)
    err = container.error or f"task: non-zero exit ({container.exit_code})"
    if container.oom_killed:
        err += ": out of memory"
    return failed(status, now, err, container)


def failed(status: TaskStatus, now: int, err: str, container: Container | None = None) -> TaskStatus:
    """The task ran (or was about to run) and failed."""
    new = _with(status, TaskState.FAILED, "started", now, container)
    return msgspec.structs.replace(new, err=err)


def rejected(status: TaskStatus, now: int, err: str) -> TaskStatus:
    """The host cannot run the task at all: no image, no network, a bad mount."""
    new = _with(status, TaskState.REJECTED, "preparing", now)
    return msgspec.structs.replace(new, err=err)


def _with(
    status: TaskStatus, state: TaskState, message: str, now: int, container: Container | None = None
) -> TaskStatus:
    seen = status.container
    if container is not None:
        seen = ContainerStatus(container.config.id, container.pid, container.exit_code)
    if status.state == state and status.message == message and status.container == seen:
        return status
    if state < status.state:  # a state never goes back
        return status
    return TaskStatus(state, now, message, "", seen, status.port_status)
