"""Jobs, one pass at a time: how many at once, tries, iterations, nodes that come and go."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from test_plan_service import NODES, NOW, SPEC, created, decide, deleted, desired, node, service
from test_plan_service import task as any_task

from overlace.model.objects import JobStatus, Service, Task
from overlace.model.specs import GlobalJob, Placement, ReplicatedJob, RestartPolicy, ServiceMode
from overlace.model.states import NodeState, TaskState

SECOND = 1_000_000_000
replace = msgspec.structs.replace
ONCE = replace(SPEC, restart_policy=RestartPolicy(condition="none"))


def job(at_once: int | None = 1, total: int | None = None, iteration: int = 0, **parts: Any) -> Service:
    mode = ServiceMode(replicated_job=ReplicatedJob(at_once, total))
    return replace(service(mode=mode, **parts), job_status=JobStatus(iteration, NOW))


def everywhere(**parts: Any) -> Service:
    return replace(service(mode=ServiceMode(global_job=GlobalJob()), **parts), job_status=JobStatus())


def task(slot: int, state: TaskState = TaskState.RUNNING, node: str = "n1", **members: Any) -> Task:
    members = {"desired": TaskState.COMPLETE, "job_iteration": 0} | members
    return any_task(slot, node, state, **members)


DONE = TaskState.COMPLETE


def test_slots_count_from_zero_and_tasks_are_wanted_complete() -> None:
    made = created(decide(job(2, 5), *NODES))
    assert [(t.slot, t.name, t.desired_state, t.job_iteration) for t in made] == [
        (0, "web.0.new1", TaskState.COMPLETE, 0),
        (1, "web.1.new2", TaskState.COMPLETE, 0),
    ]
    assert [t.slot_word for t in made] == ["0", "1"]


def test_without_numbers_a_job_runs_once() -> None:
    assert len(created(decide(job(None, None), *NODES))) == 1
    assert len(created(decide(job(3, None), *NODES))) == 3, "completions follow concurrency"


def test_a_completed_task_makes_room_for_the_next_slot() -> None:
    decision = decide(job(2, 4), task(0, DONE), task(1), *NODES)
    assert [t.slot for t in created(decision)] == [2]
    assert not desired(decision), "what completed keeps its desired state"


def test_a_job_that_is_done_rests() -> None:
    assert decide(job(2, 2), task(0, DONE), task(1, DONE), *NODES).changes == ()


def test_a_failed_task_is_tried_again_after_the_delay_and_keeps_its_place() -> None:
    decision = decide(job(1, 3), task(0, TaskState.FAILED), *NODES)
    assert desired(decision) == {"t0": TaskState.SHUTDOWN}
    (again,) = created(decision)
    assert (again.slot, again.desired_state, again.not_before) == (0, TaskState.READY, NOW + 5 * SECOND)
    later = decide(job(1, 3), replace(again, version=1), *NODES, now=NOW + 5 * SECOND)
    assert desired(later) == {"new1": TaskState.COMPLETE}


def test_attempts_are_counted_within_one_run() -> None:
    spec = replace(SPEC, restart_policy=RestartPolicy(max_attempts=1, delay=0))
    earlier = task(0, TaskState.FAILED, id="old", spec=spec, desired=TaskState.SHUTDOWN)
    failed = task(0, TaskState.FAILED, spec=spec, created_at=5)
    over = decide(job(1, 2, spec=spec), earlier, failed, *NODES)
    assert desired(over) == {"t0": TaskState.SHUTDOWN}
    assert [t.slot for t in created(over)] == [1], "the slot is given up, the others go on"
    anew = decide(job(1, 1, 1, spec=spec), earlier, replace(failed, job_iteration=1), *NODES)
    assert [t.slot for t in created(anew)] == [0]


def test_without_a_second_try_a_failed_slot_stays_failed() -> None:
    decision = decide(job(spec=ONCE), task(0, TaskState.FAILED, spec=ONCE), *NODES)
    assert desired(decision) == {"t0": TaskState.SHUTDOWN} and not created(decision)
    rest = decide(job(spec=ONCE), task(0, TaskState.FAILED, spec=ONCE, desired=TaskState.SHUTDOWN), *NODES)
    assert rest.changes == ()


@pytest.mark.parametrize("lost", [node("n1", NodeState.DOWN), node("n1", availability="drain")])
def test_a_task_on_a_lost_node_is_replaced_at_once(lost: Any) -> None:
    """Docker leaves it on a drained node and waits a day for a dead one."""
    decision = decide(job(), task(0), lost, node("n2"))
    assert desired(decision) == {"t0": TaskState.SHUTDOWN}
    (again,) = created(decision)
    draining = lost.spec.availability == "drain"
    assert again.desired_state == (TaskState.READY if draining else TaskState.COMPLETE)


@pytest.mark.parametrize("lost", [node("n1", NodeState.DOWN), node("n1", availability="drain")])
def test_a_task_that_gets_no_second_try_is_left_to_end_on_its_node(lost: Any) -> None:
    assert decide(job(spec=ONCE), task(0, spec=ONCE), lost, node("n2")).changes == ()


def test_work_done_on_a_node_given_up_counts_and_its_double_stops() -> None:
    decision = decide(
        job(), task(0, DONE, desired=TaskState.SHUTDOWN, id="first"), task(0, id="second"), *NODES
    )
    assert desired(decision) == {"second": TaskState.SHUTDOWN} and not created(decision)


def test_an_update_runs_the_job_anew_and_stops_the_old_run_first() -> None:
    decision = decide(job(2, 2, 1), task(0), task(1, DONE), *NODES)
    assert desired(decision) == {"t0": TaskState.REMOVE}
    first, second = created(decision)
    assert (first.slot, first.desired_state, first.job_iteration) == (0, TaskState.READY, 1)
    assert (second.slot, second.desired_state) == (1, TaskState.COMPLETE)


def test_slots_of_a_larger_earlier_run_go() -> None:
    decision = decide(job(1, 1, 1), task(0, DONE, job_iteration=1), task(1, DONE), task(2), *NODES)
    assert deleted(decision) == ["t1"] and desired(decision) == {"t2": TaskState.REMOVE}


def test_history_is_pruned_but_never_what_completed() -> None:
    tries = [
        task(0, TaskState.FAILED, id=f"f{i}", desired=TaskState.SHUTDOWN, created_at=i + 1) for i in range(8)
    ]
    done = task(0, DONE, id="done", created_at=0)
    decision = decide(job(), done, *tries, *NODES)
    assert deleted(decision) == ["f0", "f1", "f2", "f3"]


def test_a_global_job_runs_once_on_every_eligible_node() -> None:
    nodes = (node("n1"), node("n2", availability="pause"), node("n3", NodeState.DOWN), node("n4"))
    made = created(decide(everywhere(), task(0, DONE, "n1"), *nodes))
    assert [(t.node_id, t.desired_state, t.slot_word) for t in made] == [("n4", TaskState.COMPLETE, "n4")]


def test_a_global_job_runs_on_a_node_that_joins_later() -> None:
    """Docker's runs there only after the next update."""
    decision = decide(everywhere(), task(0, DONE, "n1"), task(0, DONE, "n2", id="t2"), *NODES, node("n3"))
    assert [t.node_id for t in created(decision)] == ["n3"]


def test_a_global_job_waits_for_its_node_to_come_back() -> None:
    assert decide(everywhere(), task(0), node("n1", NodeState.DOWN)).changes == ()
    drained = decide(everywhere(), task(0), node("n1", availability="drain"))
    assert desired(drained) == {"t0": TaskState.SHUTDOWN} and not created(drained)
    stopped = task(0, TaskState.SHUTDOWN, desired=TaskState.SHUTDOWN)
    assert [t.node_id for t in created(decide(everywhere(), stopped, node("n1")))] == ["n1"]


def test_a_node_that_no_longer_fits_keeps_what_it_did() -> None:
    spec = replace(SPEC, placement=Placement(constraints=["node.labels.a==b"]))
    assert decide(everywhere(spec=spec), task(0, DONE, spec=spec), node("n1")).changes == ()
    running = decide(everywhere(spec=spec), task(0, spec=spec), node("n1"))
    assert desired(running) == {"t0": TaskState.REMOVE}
