"""Services as the Engine API shows them, with defaults filled in when asked. Pure.

Defaults: swarmkit api/defaults/service.go, which `insertDefaults` applies.
"""

from __future__ import annotations

from collections.abc import Iterable

from overlace.api.codec import rfc3339
from overlace.api.convert.common import Json, document, header
from overlace.manager.orchestrate.jobs import job_size
from overlace.model.objects import Service, Task
from overlace.model.specs import ServiceSpec
from overlace.model.states import TaskState

_SECOND = 1_000_000_000
_UPDATE_DEFAULTS: Json = {
    "Parallelism": 1,
    "FailureAction": "pause",
    "Monitor": 5 * _SECOND,
    "MaxFailureRatio": 0,
    "Order": "stop-first",
}


def service_spec(spec: ServiceSpec, defaults: bool = False) -> Json:
    found = document(spec)
    template = found["TaskTemplate"]
    template.setdefault("Runtime", "container")
    mode = spec.mode
    if (
        mode.replicated is None
        and mode.global_ is None
        and mode.replicated_job is None
        and mode.global_job is None
    ):
        found["Mode"] = {"Replicated": {"Replicas": 1}}
    if defaults:
        _insert_defaults(spec, found, template)
    return found


def _insert_defaults(spec: ServiceSpec, found: Json, template: Json) -> None:
    container = template.get("ContainerSpec")
    if container is not None:
        container.setdefault("StopGracePeriod", 10 * _SECOND)
        container.setdefault("Isolation", "default")
        container.setdefault("DNSConfig", {})
    template.setdefault("Resources", {"Limits": {}, "Reservations": {}})
    template["RestartPolicy"] = {"Condition": "any", "Delay": 5 * _SECOND, "MaxAttempts": 0} | template.get(
        "RestartPolicy", {}
    )
    template.setdefault("Placement", {})
    if spec.mode.replicated_job is None and spec.mode.global_job is None:
        for key in ("UpdateConfig", "RollbackConfig"):
            given = found.get(key)
            if given is None:
                found[key] = dict(_UPDATE_DEFAULTS)
            else:
                shown = {k: v for k, v in given.items() if v != "" or k != "Order"}
                found[key] = _UPDATE_DEFAULTS | shown
    found["EndpointSpec"] = {"Mode": "vip"} | found.get("EndpointSpec", {})
    replicated = found["Mode"].get("Replicated")
    if replicated is not None:
        replicated.setdefault("Replicas", 1)


def service(found: Service, defaults: bool = False) -> Json:
    shown = {**header(found), "Spec": service_spec(found.spec, defaults)}
    if found.previous_spec is not None:
        shown["PreviousSpec"] = service_spec(found.previous_spec, defaults)
    endpoint: Json = {"Spec": {}}
    if found.endpoint is not None:
        endpoint["Spec"] = document(found.endpoint.spec)
        endpoint["Spec"].setdefault("Mode", "vip")
        if found.endpoint.ports:
            endpoint["Ports"] = [document(p) for p in found.endpoint.ports]
        if found.endpoint.virtual_ips:
            endpoint["VirtualIPs"] = [
                {"NetworkID": v.network_id, "Addr": v.address} for v in found.endpoint.virtual_ips
            ]
    shown["Endpoint"] = endpoint
    update = found.update_status
    if update is not None:
        shown["UpdateStatus"] = {"State": update.state, "Message": update.message}
        if update.started_at:
            shown["UpdateStatus"]["StartedAt"] = rfc3339(update.started_at)
        if update.completed_at:
            shown["UpdateStatus"]["CompletedAt"] = rfc3339(update.completed_at)
    if found.job_status is not None:
        shown["JobStatus"] = {
            "JobIteration": {"Index": found.job_status.iteration} if found.job_status.iteration else {},
            "LastExecution": rfc3339(found.job_status.last_execution),
        }
    return shown


def service_status(found: Service, tasks: Iterable[Task], live_nodes: frozenset[str]) -> Json:
    """Counts for `docker service ls` (swarmkit controlapi ListServiceStatuses).

    Running: observed and desired running, on a node that is not down. Desired: replicas, or for a global
    service the tasks that should run. Jobs count this iteration: what is complete, and as desired how many
    may run at once, also when all is done (measured on 20.10); global: what is not complete yet.
    """
    running = desired = completed = 0
    iteration = found.job_status.iteration if found.job_status else 0
    for task in tasks:
        alive = not task.node_id or task.node_id in live_nodes
        if found.job_status is not None:
            done = task.status.state == TaskState.COMPLETE
            if task.job_iteration != iteration or not (done or task.desired_state.wanted):
                continue
            desired += not done
            completed += done
            running += task.status.state == TaskState.RUNNING and alive
            continue
        if task.desired_state <= TaskState.RUNNING:
            desired += 1
            running += task.status.state == TaskState.RUNNING and alive
    mode = found.spec.mode
    if mode.replicated_job is not None:
        desired, _ = job_size(mode.replicated_job)
    elif mode.global_ is None and mode.global_job is None:
        replicas = mode.replicated.replicas if mode.replicated else None
        desired = 1 if replicas is None else replicas
    return {"RunningTasks": running, "DesiredTasks": desired, "CompletedTasks": completed}
