"""The filters a node must pass to get a task, in SwarmKit's order, with Docker's words for the tally.

Owns what a task needs (`Needs`), the filters and their sentences. Must not rank or write.
Words and order: swarmkit manager/scheduler/filter.go, pipeline.go; the filter for capabilities is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from overlace.manager.schedule.constraint import Constraint, first_unmet, node_value, parse_constraints
from overlace.manager.schedule.occupancy import HostPort, NodeUse, host_ports, reserved
from overlace.manager.schedule.platform import platform_words, runs_any
from overlace.model.capabilities import explain_lacking, needed_by
from overlace.model.capabilities import lacking as lacking_capabilities
from overlace.model.errors import InvalidArgument
from overlace.model.generic import lacking, parse_reservation, total
from overlace.model.objects import Node, Task
from overlace.model.specs import Platform, TaskSpec
from overlace.model.states import NodeState

READY = "ready"
RESOURCES = "resources"
CONSTRAINTS = "constraints"
PLATFORM = "platform"
CAPABILITY = "capability"
HOST_PORT = "host-port"
MAX_REPLICAS = "max-replicas"
ORDER = (READY, RESOURCES, CONSTRAINTS, PLATFORM, CAPABILITY, HOST_PORT, MAX_REPLICAS)

_ONE = {
    READY: "1 node not available for new tasks",
    RESOURCES: "insufficient resources on 1 node",
    CONSTRAINTS: "scheduling constraints not satisfied on 1 node",
    PLATFORM: "unsupported platform on 1 node",
    CAPABILITY: "missing network capability on 1 node",
    HOST_PORT: "host-mode port already in use on 1 node",
    MAX_REPLICAS: "max replicas per node limit exceed",
}
_MANY = {
    READY: "{} nodes not available for new tasks",
    RESOURCES: "insufficient resources on {} nodes",
    CONSTRAINTS: "scheduling constraints not satisfied on {} nodes",
    PLATFORM: "unsupported platform on {} nodes",
    CAPABILITY: "missing network capability on {} nodes",
    HOST_PORT: "host-mode port already in use on {} nodes",
    MAX_REPLICAS: "max replicas per node limit exceed",
}


class Needs(msgspec.Struct, frozen=True):
    """What a task asks of a node."""

    service_id: str
    nano_cpus: int
    memory_bytes: int
    constraints: tuple[Constraint, ...] | None  # None: they do not parse, so no node meets them
    platforms: tuple[Platform, ...]
    isolation: str
    ports: tuple[HostPort, ...]
    max_replicas: int
    generic: tuple[tuple[str, int], ...] = ()  # (kind, number)
    capabilities: tuple[str, ...] = ()  # of the node's network


def _constraints(spec: TaskSpec) -> tuple[Constraint, ...] | None:
    try:
        return parse_constraints(spec.placement.constraints) if spec.placement else ()
    except InvalidArgument:
        return None


def needs_of(task: Task) -> Needs:
    placement = task.spec.placement
    cpus, memory = reserved(task)
    return Needs(
        service_id=task.service_id,
        nano_cpus=cpus,
        memory_bytes=memory,
        constraints=_constraints(task.spec),
        platforms=tuple(placement.platforms) if placement else (),
        isolation=isolation_of(task.spec),
        ports=host_ports(task),
        max_replicas=placement.max_replicas if placement else 0,
        generic=_generic(task.spec),
        capabilities=needed_by(task),
    )


def _generic(spec: TaskSpec) -> tuple[tuple[str, int], ...]:
    wants = spec.resources.reservations if spec.resources else None
    return parse_reservation(wants.generic_resources) if wants else ()


def isolation_of(spec: TaskSpec) -> str:
    return spec.container_spec.isolation.lower() if spec.container_spec else ""


def meets_constraints(spec: TaskSpec, node: Node) -> bool:
    constraints = _constraints(spec)
    return constraints is not None and first_unmet(constraints, node) is None


def fits_by_nature(spec: TaskSpec, node: Node) -> bool:
    """Constraints and platform: what makes a node eligible for a global service, whatever runs on it now."""
    if node.description is None or not meets_constraints(spec, node):
        return False
    platforms = spec.placement.platforms if spec.placement else ()
    return runs_any(node.description, platforms, isolation_of(spec))


def is_ready(node: Node) -> bool:
    return (
        node.status.state == NodeState.READY
        and node.spec.availability == "active"
        and node.description is not None
        and not node.removed
    )


def first_failure(needs: Needs, node: Node, use: NodeUse) -> str | None:
    """The first filter the node does not pass, None when it takes the task."""
    return next(failures(needs, node, use), None)


def failures(needs: Needs, node: Node, use: NodeUse) -> Iterator[str]:
    """Every filter the node does not pass, in order."""
    if not is_ready(node):
        yield READY
    about = node.description
    if about is None:
        return
    has = about.resources
    if (
        (needs.nano_cpus and has.nano_cpus - use.nano_cpus < needs.nano_cpus)
        or (needs.memory_bytes and has.memory_bytes - use.memory_bytes < needs.memory_bytes)
        or lacking(has.generic, use.generic, needs.generic)
    ):
        yield RESOURCES
    if needs.constraints is None or first_unmet(needs.constraints, node) is not None:
        yield CONSTRAINTS
    if not runs_any(about, needs.platforms, needs.isolation):
        yield PLATFORM
    if lacking_capabilities(about, needs.capabilities):
        yield CAPABILITY
    if any(port in use.ports for port in needs.ports):
        yield HOST_PORT
    if needs.max_replicas and use.by_service[needs.service_id] >= needs.max_replicas:
        yield MAX_REPLICAS


def sentence(name: str, count: int) -> str:
    return _ONE[name] if count == 1 else _MANY[name].format(count)


def summary(tally: Mapping[str, int]) -> str:
    """Docker's explanation: parts by falling count (the filters' order breaks ties), joined by `; `."""
    found = [name for name in ORDER if tally.get(name)]
    found.sort(key=lambda name: -tally[name])
    return "; ".join(sentence(name, tally[name]) for name in found)


def detail(name: str, needs: Needs, node: Node, use: NodeUse) -> str:
    """Why this filter turned this node away, for people."""
    about = node.description
    if name == READY or about is None:
        if node.spec.availability != "active" and node.status.state == NodeState.READY:
            return f"availability is {node.spec.availability}"
        return f"state is {node.status.state.word}"
    match name:
        case "resources":
            free_cpus = (about.resources.nano_cpus - use.nano_cpus) / 1e9
            free_mib = (about.resources.memory_bytes - use.memory_bytes) >> 20
            missing = [
                f"needs {wanted} of {kind}, {left} of {total(about.resources.generic, kind)} are free"
                for kind, wanted, left in lacking(about.resources.generic, use.generic, needs.generic)
            ]
            if (
                about.resources.nano_cpus - use.nano_cpus < needs.nano_cpus
                or free_mib < needs.memory_bytes >> 20
            ):
                missing.append(
                    f"needs {needs.nano_cpus / 1e9:g} CPUs and {needs.memory_bytes >> 20} MiB, "
                    f"{free_cpus:g} CPUs and {free_mib} MiB are not reserved"
                )
            return "; ".join(missing)
        case "constraints":
            unmet = first_unmet(needs.constraints, node) if needs.constraints is not None else None
            if unmet is None:
                return "the constraints do not parse"
            value = node_value(node, unmet.key)
            return f"{unmet}: " + ("no such key" if value is None else f"the node has '{value}'")
        case "platform":
            offered = ", ".join(platform_words(p) for p in needs.platforms)
            own = Platform(architecture=about.architecture, os=about.os, os_version="")
            build = f" {about.os_version}" if about.os == "windows" else ""
            isolation = f" with {needs.isolation} isolation" if needs.isolation == "hyperv" else ""
            return f"the image is for {offered}{isolation}; the node is {platform_words(own)}{build}"
        case "capability":
            return explain_lacking(about, needs.capabilities)
        case "host-port":
            taken = ", ".join(
                f"{port}/{protocol}" for protocol, port in needs.ports if (protocol, port) in use.ports
            )
            return f"port {taken} is taken"
        case _:
            return f"runs {use.by_service[needs.service_id]} of at most {needs.max_replicas} replicas"
