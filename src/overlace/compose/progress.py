"""Whether a service has come to where a deploy wants it, from its document and its tasks (Engine API JSON). Pure.

Owns what "started", "healthy", "completed" and "converged" mean. Must not wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from overlace.compose.project import COMPLETED, STARTED

Json = dict[str, Any]
CONVERGED = "converged"
_OVER = ("complete", "shutdown", "failed", "rejected", "remove", "orphaned")
_BROKEN = ("paused", "rollback_started", "rollback_paused", "rollback_completed")


class Verdict(msgspec.Struct, frozen=True):
    done: bool
    text: str  # "1 of 2 tasks run"
    hopeless: str = ""  # why it will not come to it by itself, as far as can be seen
    settled: bool = False  # hopeless for good: nothing will be tried again


def judge(condition: str, service: Json, tasks: Sequence[Json]) -> Verdict:
    """`tasks`: all of the service. `condition`: one of depends_on, or CONVERGED."""
    mode = service["Spec"]["Mode"]
    is_job = "ReplicatedJob" in mode or "GlobalJob" in mode
    current = [task for task in tasks if _is_current(service, task, is_job)]
    wanted = _wanted(mode, current)
    if is_job or condition == COMPLETED:
        return _completion(service, current, wanted, is_job, condition)
    policy = service["Spec"]["TaskTemplate"].get("RestartPolicy") or {}
    may_end = policy.get("Condition") in ("none", "on-failure") and condition in (STARTED, CONVERGED)
    up = [
        task
        for task in current
        if _is_up(task, condition) or (may_end and task["Status"]["State"] == "complete")
    ]
    text = f"{len(up)} of {wanted} tasks {'started' if condition == STARTED else 'running'}"
    status = service.get("UpdateStatus") or {}
    state = status.get("State", "")
    done = len(up) >= wanted and (wanted > 0 or "Global" not in mode)
    if done and not (condition == CONVERGED and state in ("updating", "rollback_started")):
        return Verdict(True, text)
    if state in _BROKEN:
        message = status.get("Message") or state
        return Verdict(False, text, f"its update is {state.replace('_', ' ')}: {message}", True)
    return Verdict(False, text, _complaint(current))


def _wanted(mode: Json, current: Sequence[Json]) -> int:
    if "ReplicatedJob" in mode:
        job = mode["ReplicatedJob"]
        concurrent = job.get("MaxConcurrent", 1)
        return int(job.get("TotalCompletions", concurrent))
    if "Replicated" in mode:
        return int(mode["Replicated"].get("Replicas", 1))
    desired = ("running", "ready", "complete")
    return len({task.get("NodeID") for task in current if task.get("DesiredState") in desired})


def _is_current(service: Json, task: Json, is_job: bool) -> bool:
    """Made for the service as it is now."""
    if is_job:
        iteration = ((service.get("JobStatus") or {}).get("JobIteration") or {}).get("Index", 0)
        return bool((task.get("JobIteration") or {}).get("Index", 0) == iteration)
    return bool(task.get("UpToDate", True))


def _is_up(task: Json, condition: str) -> bool:
    state = task["Status"]["State"]
    if task.get("DesiredState") not in ("running", "ready"):
        return False
    if state == "running":
        return True
    container = task["Status"].get("ContainerStatus") or {}
    return condition == STARTED and state == "starting" and bool(container.get("PID"))


def _completion(service: Json, current: Sequence[Json], wanted: int, is_job: bool, condition: str) -> Verdict:
    """Of jobs, and of services that end by themselves."""
    places: dict[Any, list[str]] = {}
    for task in sorted(current, key=lambda t: str(t.get("CreatedAt", ""))):
        place = task.get("Slot") or task.get("NodeID")
        places.setdefault(place, []).append(task["Status"]["State"])
    if condition == STARTED and is_job:  # a job has started when its tasks run, or ran
        up = [t for t in current if t["Status"]["State"] in ("running", "complete")]
        return Verdict(bool(up) or wanted == 0, f"{len(up)} tasks have started", _complaint(current))
    ended = sum("complete" in states for states in places.values())
    text = f"{ended} of {wanted} tasks completed"
    if ended >= wanted and (wanted > 0 or "GlobalJob" not in service["Spec"]["Mode"]):
        return Verdict(True, text)
    over = bool(current) and all(task["Status"]["State"] in _OVER for task in current)
    policy = service["Spec"]["TaskTemplate"].get("RestartPolicy") or {}
    gives_up = policy.get("Condition") == "none" or bool(policy.get("MaxAttempts"))
    return Verdict(False, text, _complaint(current), over and gives_up)


def _complaint(tasks: Sequence[Json]) -> str:
    """The newest task that says what is wrong, "" when none does."""
    for task in sorted(tasks, key=lambda t: str(t.get("CreatedAt", "")), reverse=True):
        status = task["Status"]
        if status.get("Err"):
            return f"task {task.get('Slot') or task['ID'][:8]} {status['State']}: {status['Err']}"
    return ""
