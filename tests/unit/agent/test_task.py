"""The task state machine: what a person sees in `docker service ps` follows from these steps."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlace.agent.task import Action, plan_step
from overlace.model.objects import Task, TaskStatus
from overlace.model.specs import TaskSpec
from overlace.model.states import TaskState
from overlace.runtime.base import Container, ContainerConfig


def a_task(desired=TaskState.RUNNING):
    return Task(id="t", service_id="s", spec=TaskSpec(), desired_state=desired)


def a_container(status="created", **more):
    return Container(ContainerConfig("c", "n", "img", "/ns"), status, "sha256:0", 1, **more)


def test_an_assigned_task_is_prepared_first():
    step = plan_step(a_task(), TaskStatus(TaskState.ASSIGNED), None, 5)
    assert (step.action, step.status.state, step.status.timestamp) == (Action.PREPARE, TaskState.PREPARING, 5)


def test_a_created_container_starts_only_when_the_manager_says_run():
    ready = plan_step(a_task(TaskState.READY), TaskStatus(TaskState.PREPARING), a_container(), 5)
    assert (ready.action, ready.status.state) == (Action.WAIT, TaskState.READY)
    run = plan_step(a_task(), ready.status, a_container(), 6)
    assert (run.action, run.status.state) == (Action.START, TaskState.STARTING)


@pytest.mark.parametrize("health,state,action", [
    (None, TaskState.RUNNING, Action.WAIT),
    ("healthy", TaskState.RUNNING, Action.WAIT),
    ("starting", TaskState.STARTING, Action.WAIT),
    ("unhealthy", TaskState.STARTING, Action.KILL_UNHEALTHY),
])  # fmt: skip
def test_running_is_what_the_health_check_says(health, state, action):
    step = plan_step(
        a_task(), TaskStatus(TaskState.STARTING), a_container("running", health=health, pid=7), 5
    )
    assert (step.action, step.status.state) == (action, state)


@pytest.mark.parametrize("code,oom,state,err", [
    (0, False, TaskState.COMPLETE, ""),
    (3, False, TaskState.FAILED, "task: non-zero exit (3)"),
    (137, True, TaskState.FAILED, "task: non-zero exit (137): out of memory"),
])  # fmt: skip
def test_an_exit_is_told_with_its_code(code, oom, state, err):
    seen = a_container("exited", exit_code=code, oom_killed=oom)
    step = plan_step(a_task(), TaskStatus(TaskState.RUNNING), seen, 5)
    assert step.action is Action.RELEASE
    assert (step.status.state, step.status.err, step.status.container.exit_code) == (state, err, code)


def test_shutdown_stops_a_running_container_then_tells():
    step = plan_step(a_task(TaskState.SHUTDOWN), TaskStatus(TaskState.RUNNING), a_container("running"), 5)
    assert (step.action, step.status.state) == (Action.STOP, TaskState.RUNNING)
    step = plan_step(
        a_task(TaskState.SHUTDOWN), TaskStatus(TaskState.RUNNING), a_container("exited", exit_code=143), 6
    )
    assert (step.action, step.status.state) == (Action.RELEASE, TaskState.SHUTDOWN)


def test_a_container_that_vanished_is_a_failure_with_a_reason():
    step = plan_step(a_task(), TaskStatus(TaskState.RUNNING), None, 5)
    assert step.status.state == TaskState.FAILED and "gone" in step.status.err


containers = st.one_of(
    st.none(),
    st.builds(
        a_container,
        st.sampled_from(["created", "running", "exited", "dead"]),
        health=st.sampled_from([None, "starting", "healthy", "unhealthy"]),
        exit_code=st.integers(0, 255),
    ),
)
states = st.sampled_from([s for s in TaskState if s >= TaskState.ASSIGNED])


@given(
    states,
    st.sampled_from([TaskState.READY, TaskState.RUNNING, TaskState.SHUTDOWN, TaskState.REMOVE]),
    containers,
)
def test_states_only_grow_and_a_step_repeated_changes_nothing(state, desired, container):
    task, status = a_task(desired), TaskStatus(state, 1, "m")
    step = plan_step(task, status, container, 5)
    assert step.status.state >= state
    again = plan_step(task, step.status, container, 9)
    settled = plan_step(task, again.status, container, 11)
    assert msgspec.structs.replace(settled.status, timestamp=0) == msgspec.structs.replace(
        again.status, timestamp=0
    )
