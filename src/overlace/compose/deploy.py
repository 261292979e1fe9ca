"""A service's `deploy` section: mode, placement, resources, update and restart policies.

Owns its keys. Returns the specs the Engine API has for them. Must not know the rest of a service.
"""

from __future__ import annotations

import msgspec

from overlace.compose.reader import Reader
from overlace.model.specs import (
    GlobalJob,
    GlobalService,
    Limits,
    Placement,
    PlacementPreference,
    ReplicatedJob,
    ReplicatedService,
    Reservations,
    Resources,
    RestartPolicy,
    ServiceMode,
    SpreadOver,
    UpdateConfig,
)

MODES = ("replicated", "global", "replicated-job", "global-job")


class Deploy(msgspec.Struct, frozen=True):
    mode: ServiceMode
    labels: dict[str, str] = {}
    endpoint_mode: str = ""
    placement: Placement = Placement()
    resources: Resources = Resources()
    restart_policy: RestartPolicy | None = None
    update_config: UpdateConfig | None = None
    rollback_config: UpdateConfig | None = None


def read_deploy(reader: Reader) -> Deploy:
    mode = _mode(reader)
    is_job = mode.replicated_job is not None or mode.global_job is not None
    for key in ("update_config", "rollback_config"):
        if is_job and reader.node(key) is not None:
            reader.error(key, "jobs are not updated step by step; leave it out")
    found = Deploy(
        mode,
        reader.labels("labels"),
        reader.choice("endpoint_mode", ("vip", "dnsrr")),
        _placement(reader.sub("placement")),
        _resources(reader.sub("resources")),
        _restart(reader.sub("restart_policy")),
        None if is_job else _update(reader.sub("update_config"), ("pause", "continue", "rollback")),
        None if is_job else _update(reader.sub("rollback_config"), ("pause", "continue")),
    )
    reader.done()
    return found


def _mode(reader: Reader) -> ServiceMode:
    mode = reader.choice("mode", MODES, "replicated")
    replicas = reader.integer("replicas")
    if mode.startswith("global") and replicas is not None:
        reader.error("replicas", f"{mode} runs one task on every host that fits; leave replicas out")
    match mode:
        case "global":
            return ServiceMode(global_=GlobalService())
        case "global-job":
            return ServiceMode(global_job=GlobalJob())
        case "replicated-job":
            return ServiceMode(
                replicated_job=ReplicatedJob(max_concurrent=replicas, total_completions=replicas)
            )
        case _:
            return ServiceMode(replicated=ReplicatedService(replicas))


def _placement(reader: Reader | None) -> Placement:
    if reader is None:
        return Placement()
    preferences = []
    for path, node in reader.items("preferences"):
        one = Reader(node, path, reader.problems)
        preferences.append(PlacementPreference(SpreadOver(one.text("spread"))))
        one.done()
    found = Placement(reader.texts("constraints"), preferences, reader.integer("max_replicas_per_node") or 0)
    reader.done()
    return found


def _resources(reader: Reader | None) -> Resources:
    if reader is None:
        return Resources()
    limits, reservations = reader.sub("limits"), reader.sub("reservations")
    found = Resources(_limits(limits), _reservations(reservations))
    reader.done()
    return found


def _limits(reader: Reader | None) -> Limits | None:
    if reader is None:
        return None
    found = Limits(
        reader.cpus("cpus") or 0, reader.size("memory") or 0, reader.integer("pids", least=-1) or 0
    )
    reader.done()
    return found


def _reservations(reader: Reader | None) -> Reservations | None:
    if reader is None:
        return None
    generic = []
    for path, node in reader.items("generic_resources"):
        one = Reader(node, path, reader.problems)
        discrete = one.sub("discrete_resource_spec")
        if discrete is None:
            one.problems.error(node.mark, path, "write {discrete_resource_spec: {kind: NAME, value: NUMBER}}")
        else:
            kind, value = discrete.text("kind"), discrete.integer("value") or 0
            generic.append({"DiscreteResourceSpec": {"Kind": kind, "Value": value}})
            discrete.done()
        one.done()
    if reader.node("devices") is not None:
        reader.error("devices", "a swarm hands out no devices; reserve generic_resources to place by them")
    found = Reservations(reader.cpus("cpus") or 0, reader.size("memory") or 0, generic)
    reader.done()
    return found


def _restart(reader: Reader | None) -> RestartPolicy | None:
    if reader is None:
        return None
    found = RestartPolicy(
        reader.choice("condition", ("none", "on-failure", "any"), "any"),
        reader.duration("delay"),
        reader.integer("max_attempts"),
        reader.duration("window"),
    )
    reader.done()
    return found


def _update(reader: Reader | None, actions: tuple[str, ...]) -> UpdateConfig | None:
    if reader is None:
        return None
    parallelism = reader.integer("parallelism")
    ratio = reader.number("max_failure_ratio")
    if not 0 <= ratio <= 1:
        reader.error("max_failure_ratio", f"{ratio:g} is no part of a whole; write a number from 0 to 1")
    found = UpdateConfig(
        1 if parallelism is None else parallelism,
        reader.duration("delay") or 0,
        reader.choice("failure_action", actions),
        reader.duration("monitor"),
        ratio,
        reader.choice("order", ("stop-first", "start-first")),
    )
    reader.done()
    return found


def legacy_resources(reader: Reader, given: Resources) -> Resources:
    """The limits that stand beside `deploy` in files for one host; `reader` is the service's."""
    limits, reservations = given.limits or Limits(), given.reservations or Reservations()
    values = {
        "mem_limit": (reader.size("mem_limit"), limits.memory_bytes, "limits.memory"),
        "cpus": (reader.cpus("cpus"), limits.nano_cpus, "limits.cpus"),
        "pids_limit": (reader.integer("pids_limit", least=-1), limits.pids, "limits.pids"),
        "mem_reservation": (reader.size("mem_reservation"), reservations.memory_bytes, "reservations.memory"),
    }
    for key, (value, other, name) in values.items():
        if value and other and value != other:
            reader.error(key, f"deploy.resources.{name} is given too, and differs; keep that one only")
    memory, cpus, pids, reserved = ((value or other) for value, other, _ in values.values())
    swap, swappiness = _swap(reader, memory), reader.integer("mem_swappiness")
    limits = Limits(cpus, memory, 0 if pids == -1 else pids)
    reservations = msgspec.structs.replace(reservations, memory_bytes=reserved)
    return Resources(
        limits if given.limits or limits != Limits() else None,
        reservations if given.reservations or reservations != Reservations() else None,
        swap,
        swappiness,
    )


def _swap(reader: Reader, memory: int) -> int | None:
    """memswap_limit counts memory and swap together, the Engine API swap alone; -1 is all there is."""
    node = reader.node("memswap_limit")
    if node is None:
        return None
    both = -1 if node.value in (-1, "-1") else reader.size("memswap_limit")
    if both is None or both == -1:
        return both
    if not memory or both < memory:
        reader.error(
            "memswap_limit", "it counts memory and swap together; give mem_limit too, and no more than this"
        )
        return None
    return both - memory


def legacy_restart(text: str) -> RestartPolicy | None:
    """`restart: always` as the docker CLI takes it where deploy.restart_policy is not given. Raises ValueError."""
    name, colon, count = text.partition(":")
    if colon and (name != "on-failure" or not count.isdigit()):
        raise ValueError(f'"{text}" is none of no, always, unless-stopped, on-failure[:COUNT]')
    attempts = int(count) or None if colon else None
    match name:
        case "" | "no":
            return None
        case "always" | "unless-stopped":
            return RestartPolicy("any")
        case "on-failure":
            return RestartPolicy("on-failure", max_attempts=attempts)
        case _:
            raise ValueError(f'"{text}" is none of no, always, unless-stopped, on-failure[:COUNT]')
