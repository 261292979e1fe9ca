"""depends_on: the order of services, and when a condition holds."""

# ruff: noqa: E501  tables

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlace.compose.order import find_circle, start_order
from overlace.compose.progress import CONVERGED, judge
from overlace.compose.project import COMPLETED, HEALTHY, STARTED

_GRAPHS = st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdefgh"), unique=True))


@given(_GRAPHS)
def test_either_a_circle_or_an_order(graph: dict[str, list[str]]) -> None:
    circle = find_circle(graph)
    if circle:
        assert all(
            after in graph[before] for before, after in zip(circle, circle[1:] + circle[:1], strict=True)
        )
        return
    order = start_order(graph)
    assert sorted(order) == sorted(graph)
    for name, others in graph.items():
        assert all(order.index(other) < order.index(name) for other in others if other in graph)


def service(mode: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "Spec": {"Mode": mode or {"Replicated": {"Replicas": 2}}, "TaskTemplate": more.pop("template", {})},
        **more,
    }


def task(
    slot: int, state: str, desired: str = "running", *, fresh: bool = True, **more: Any
) -> dict[str, Any]:
    status = {"State": state, **{k: more.pop(k) for k in ("Err", "ContainerStatus") if k in more}}
    return {
        "ID": f"task{slot}", "Slot": slot, "NodeID": f"n{slot}", "Status": status, "DesiredState": desired,
        "UpToDate": fresh, **more,
    }  # fmt: skip


UP = [task(1, "running"), task(2, "running")]
POLICY = {"RestartPolicy": {"Condition": "none"}}
JOB = {"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 2}}


@pytest.mark.parametrize(
    ("condition", "of", "tasks", "done"),
    [
        (HEALTHY, service(), UP, True),
        (HEALTHY, service(), UP[:1], False),
        (HEALTHY, service(), [UP[0], task(2, "starting", ContainerStatus={"PID": 7})], False),
        (STARTED, service(), [UP[0], task(2, "starting", ContainerStatus={"PID": 7})], True),
        (STARTED, service(), [UP[0], task(2, "starting")], False),
        (STARTED, service(), [UP[0], task(2, "running", fresh=False)], False),
        (HEALTHY, service(), [UP[0], task(2, "running", "shutdown")], False),
        (HEALTHY, service({"Replicated": {"Replicas": 0}}), [], True),
        (HEALTHY, service({"Replicated": {}}), UP[:1], True),
        (HEALTHY, service({"Global": {}}), [], False),
        (HEALTHY, service({"Global": {}}), UP, True),
        (HEALTHY, service({"Global": {}}), [UP[0], task(2, "preparing")], False),
        (CONVERGED, service(UpdateStatus={"State": "updating"}), UP, False),
        (CONVERGED, service(UpdateStatus={"State": "completed"}), UP, True),
        (HEALTHY, service(UpdateStatus={"State": "updating"}), UP, True),
        (COMPLETED, service(JOB), [task(0, "complete", "complete"), task(1, "running", "complete")], False),
        (COMPLETED, service(JOB), [task(0, "complete", "complete"), task(1, "complete", "complete")], True),
        (COMPLETED, service(JOB, JobStatus={"JobIteration": {"Index": 3}}), [task(0, "complete"), task(1, "complete")], False),
        (STARTED, service(JOB), [task(0, "running", "complete")], True),
        (STARTED, service(JOB), [], False),
        (CONVERGED, service({"GlobalJob": {}}), [task(0, "complete", "complete")], True),
        (COMPLETED, service({"GlobalJob": {}}), [], False),
        (COMPLETED, service(template=POLICY), [task(1, "complete", "shutdown"), task(2, "complete", "shutdown")], True),
        (COMPLETED, service(template=POLICY), [task(1, "complete", "shutdown")], False),
        (CONVERGED, service(template=POLICY), [task(1, "complete", "shutdown"), UP[1]], True),
        (HEALTHY, service(template=POLICY), [task(1, "complete", "shutdown"), UP[1]], False),
    ],
)  # fmt: skip
def test_conditions(condition: str, of: dict[str, Any], tasks: list[Any], done: bool) -> None:
    assert judge(condition, of, tasks).done is done


def test_what_will_never_be_is_told() -> None:
    failed = [task(1, "failed", "shutdown", Err="task: non-zero exit (3)"), task(2, "complete", "shutdown")]
    verdict = judge(COMPLETED, service(template=POLICY), failed)
    assert verdict.settled and verdict.hopeless == "task 1 failed: task: non-zero exit (3)"
    assert verdict.text == "1 of 2 tasks completed"
    again = judge(COMPLETED, service(template={"RestartPolicy": {"Condition": "on-failure"}}), failed)
    assert not again.settled, "it is tried again"
    paused = judge(CONVERGED, service(UpdateStatus={"State": "paused", "Message": "task failed"}), UP[:1])
    assert paused.settled and paused.hopeless == "its update is paused: task failed"
    waiting = judge(HEALTHY, service(), [task(1, "pending", Err="no suitable node")])
    assert not waiting.settled and waiting.hopeless == "task 1 pending: no suitable node"
