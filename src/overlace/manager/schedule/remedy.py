"""What would make a task schedulable: per node, what each filter it does not pass asks to be changed.

Owns these sentences alone; pure, decides nothing.
"""

from __future__ import annotations

import msgspec

from overlace.manager.schedule.constraint import Constraint, meets, node_value
from overlace.manager.schedule.explain import Look, hostname
from overlace.manager.schedule.filters import CONSTRAINTS, RESOURCES, failures
from overlace.manager.schedule.occupancy import NodeUse, host_ports
from overlace.manager.schedule.platform import platform_words
from overlace.model.capabilities import ASKS
from overlace.model.generic import lacking, total
from overlace.model.objects import Node
from overlace.model.states import NodeState
from overlace.store.base import View

_NODE_LABEL = "node.labels."
_ENGINE_LABEL = "engine.labels."
_KEYS = (
    "node.id, node.hostname, node.ip, node.role, node.platform.os, node.platform.arch, node.labels.NAME"
    " and engine.labels.NAME"
)
NODE = "NODE"
_OFFER = "--node-generic-resource "


class Remedy(msgspec.Struct, frozen=True):
    """Do all of `steps` on one of `nodes` (hostnames; none: not about a node), and the task can be placed. In a
    step, NODE stands for the node."""

    steps: tuple[str, ...]
    nodes: tuple[str, ...] = ()


def explain_remedies(view: View, look: Look) -> list[Remedy]:
    """Fewest steps first, then what holds for most nodes. Nodes that need the same are one remedy."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for node, use in look.nodes:
        failed = list(failures(look.needs, node, use))
        if not failed:
            return []  # it fits: nothing is in its way but the next pass
        steps: list[str] = []
        for name in failed:
            found = _steps(view, look, name, node, use)
            if not found:
                break
            steps += found
        else:
            groups.setdefault(tuple(steps), []).append(hostname(node))
    remedies = [Remedy(steps, tuple(sorted(nodes))) for steps, nodes in groups.items()]
    remedies.sort(key=lambda r: (len(r.steps), -len(r.nodes), r.nodes))
    return remedies + _for_the_swarm(look)


def _steps(view: View, look: Look, name: str, node: Node, use: NodeUse) -> list[str]:
    """What to do about one filter on one node; nothing when nobody can make that node fit."""
    match name:
        case "ready":
            return _make_ready(node)
        case "resources":
            return _make_room(look, node, use)
        case "constraints":
            if look.needs.constraints is None:
                return ["write the constraints as `key == value` or `key != value`"]
            unmet = [c for c in look.needs.constraints if not meets(c, node)]
            return [] if any(node_value(node, c.key) is None for c in unmet) else [_meet(c) for c in unmet]
        case "platform":
            return ["deploy an image that also has a variant for " + _platform_of(node)]
        case "host-port":
            return [_free_port(view, look, node)]
        case "max-replicas":
            return [f"raise the limit of {look.needs.max_replicas} replicas per node"]
        case _:
            return []


def _make_ready(node: Node) -> list[str]:
    steps = []
    if node.status.state != NodeState.READY:
        steps.append(f"bring {NODE} back: it is {node.status.state.word}")
    if node.spec.availability != "active":
        steps.append(f"docker node update --availability active {NODE}")
    return steps or [f"wait until {NODE} has described itself"]


def _make_room(look: Look, node: Node, use: NodeUse) -> list[str]:
    about = node.description
    assert about is not None
    has = about.resources
    if has.nano_cpus < look.needs.nano_cpus or has.memory_bytes < look.needs.memory_bytes:
        return []  # it would not fit an empty node
    short = lacking(has.generic, use.generic, look.needs.generic)
    absent = [f"{kind}={wanted}" for kind, wanted, _ in short if total(has.generic, kind) < wanted]
    if absent:
        return [f"start the daemon of {NODE} with {' and '.join(_OFFER + one for one in absent)}"]
    cpus, memory = about.resources.nano_cpus - use.nano_cpus, about.resources.memory_bytes - use.memory_bytes
    lacks = []
    if cpus < look.needs.nano_cpus:
        lacks.append(f"{(look.needs.nano_cpus - cpus) / 1e9:g} CPUs")
    if memory < look.needs.memory_bytes:
        lacks.append(f"{-(-(look.needs.memory_bytes - memory) // 1048576)} MiB")
    lacks += [f"{wanted - left} {kind}" for kind, wanted, left in short]
    return [f"free {' and '.join(lacks)} of reservations on {NODE}"]


def _meet(constraint: Constraint) -> str:
    key, value = constraint.key, constraint.value
    lower = key.lower()
    if lower.startswith(_NODE_LABEL):
        name = key[len(_NODE_LABEL) :]
        if constraint.equal:
            return f"docker node update --label-add {name}={value} {NODE}"
        return f"docker node update --label-rm {name} {NODE}"
    if lower.startswith(_ENGINE_LABEL):
        name = key[len(_ENGINE_LABEL) :]
        start = (
            f"start the daemon of {NODE} with" if constraint.equal else f"start the daemon of {NODE} without"
        )
        return f"{start} --label {name}={value}"
    return f"drop the constraint {constraint}"


def _platform_of(node: Node) -> str:
    about = node.description
    assert about is not None
    build = f" (build {about.os_version})" if about.os == "windows" else ""
    return f"{about.os}/{about.architecture}{build}"


def _free_port(view: View, look: Look, node: Node) -> str:
    holders = set()
    for other in view.tasks_of_node(node.id):
        if other.id == look.task.id or other.status.state.terminal:
            continue
        for protocol, port in set(host_ports(other)) & set(look.needs.ports):
            holders.add(f"port {port}/{protocol}, held by {other.service_name}")
    return f"on {NODE} free {' and '.join(sorted(holders))}" if holders else "free the host-mode ports"


def _for_the_swarm(look: Look) -> list[Remedy]:
    """What can be done without touching a node that is there."""
    failed = {name for node, use in look.nodes for name in failures(look.needs, node, use)}
    found = []
    if RESOURCES in failed:
        found += _lower_reservation(look)
    if CONSTRAINTS in failed and look.needs.constraints is not None:
        for c in look.needs.constraints:
            if any(node_value(node, c.key) is None for node, _ in look.nodes):
                found.append(Remedy((f"correct the constraint {c}: no such key; there are {_KEYS}",)))
                return found
    found.append(Remedy((_add_a_node(look, RESOURCES in failed),)))
    return found


def _add_a_node(look: Look, large: bool) -> str:
    needs, words = look.needs, "add a node"
    if needs.platforms:
        words += f" that runs {' or '.join(platform_words(p) for p in needs.platforms)}"
        words += " with Hyper-V isolation" if needs.isolation == "hyperv" else ""
    having = [str(c) for c in needs.constraints or ()]
    having += [ASKS[name] for name in needs.capabilities if any(_lacks(n, name) for n, _ in look.nodes)]
    if large:
        if needs.nano_cpus or needs.memory_bytes or not needs.generic:
            having.append(f"{needs.nano_cpus / 1e9:g} CPUs and {needs.memory_bytes >> 20} MiB to reserve")
        having += [f"{count} of {kind} ({_OFFER}{kind}={count})" for kind, count in needs.generic]
    return words + (f", with {', '.join(having)}" if having else "")


def _lacks(node: Node, capability: str) -> bool:
    return node.description is not None and capability in node.description.lacks


def _lower_reservation(look: Look) -> list[Remedy]:
    """Down to what the roomiest node that passes every other filter has left."""
    best: tuple[int, int, str] | None = None
    for node, use in look.nodes:
        if node.description is None or set(failures(look.needs, node, use)) != {RESOURCES}:
            continue
        has = node.description.resources
        if lacking(has.generic, use.generic, look.needs.generic):
            continue
        cpus, memory = max(has.nano_cpus - use.nano_cpus, 0), max(has.memory_bytes - use.memory_bytes, 0)
        if best is None or (cpus, memory) > best[:2]:
            best = cpus, memory, hostname(node)
    if best is None:
        return []
    cpus, memory, name = best
    return [Remedy((f"reserve at most {cpus / 1e9:g} CPUs and {memory >> 20} MiB, which {name} has left",))]
