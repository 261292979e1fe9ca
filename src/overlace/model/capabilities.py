"""What not every host's network can do, by name, and which tasks need it.

Owns the names and who needs what (pure). A node says what it lacks and why (`NodeDescription.lacks`): Windows hosts by
their HNS version (network/hns/versions.py); everything not named it can. Must not know HNS.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from overlace.model.family import is_six
from overlace.model.objects import NetworkAttachment, Node, NodeDescription, Task
from overlace.model.traffic import AFFINITY as AFFINITY_LABEL
from overlace.model.traffic import kept_affinity

OVERLAY = "overlay"
IPV6 = "ipv6"  # no task is refused for it: networks with IPv6 have IPv4 too, which it gets alone there
AFFINITY = "session-affinity"
CLIENT_ADDRESS = "client-address"  # no task is refused for it: it sees a node as a published port's client
DIRECT_RETURN = "direct-return"  # no task is refused for it: clients are seen by their host's address then

# what a task asks for when it needs it, and what to change so that it does not
ASKS = {OVERLAY: "overlay networks", AFFINITY: "session affinity"}
_DROP = {
    OVERLAY: "attach it to no network",
    AFFINITY: f"drop the label {AFFINITY_LABEL}",
}


def usable(networks: Iterable[NetworkAttachment], lacks: Mapping[str, str]) -> tuple[NetworkAttachment, ...]:
    """Of the addresses a task was given, those a node that lacks this can use: an address nobody answers at is in no
    name, VIP or listing."""
    if IPV6 not in lacks:
        return tuple(networks)
    return tuple(
        msgspec.structs.replace(n, addresses=tuple(a for a in n.addresses if not is_six(a))) for n in networks
    )


def needed_by(task: Task) -> tuple[str, ...]:
    """Of an allocated task."""
    return needed(task.service_labels, overlays=any(a.addresses for a in task.networks))


def needed(labels: Mapping[str, str], *, overlays: bool) -> tuple[str, ...]:
    """The same of a service that is about to be: its labels and what networks it asks for."""
    wants = ((OVERLAY, overlays), (AFFINITY, kept_affinity(labels) > 0))
    return tuple(name for name, wanted in wants if wanted)


def lacking(about: NodeDescription, needs: Iterable[str]) -> list[str]:
    """Which of `needs` the node does not have."""
    return [name for name in needs if name in about.lacks]


def explain_lacking(about: NodeDescription, needs: Iterable[str]) -> str:
    """For people: what is asked for and why this node has it not."""
    found = lacking(about, needs)
    return "; ".join(f"the task needs {ASKS[name]}: {about.lacks[name]}" for name in found)


def explain_nowhere(nodes: Iterable[Node], needs: Iterable[str]) -> str:
    """Why none of `nodes`, all that could run a service otherwise, can run it for what it needs; empty when one can, or
    there is none at all (yet)."""
    about = [(n, n.description) for n in nodes if n.description is not None]
    asked = tuple(needs)
    if not about or any(not lacking(d, asked) for _, d in about):
        return ""
    node, first = about[0]
    name = lacking(first, asked)[0]
    others = f" (nor has any of the {len(about) - 1} others)" if len(about) > 1 else ""
    where = first.hostname or node.id
    return (
        f"no node that could run it has {ASKS[name]}: on {where}, {first.lacks[name]}{others}; {_DROP[name]}, or "
        "place it on other nodes with a constraint such as node.platform.os==linux"
    )


def explain_without_six(nodes: Iterable[Node]) -> str:
    """Why a service with IPv6 networks has none of it on `nodes`, all that could run it; empty when it has some."""
    about = [n.description for n in nodes if n.description is not None]
    if not about or any(IPV6 not in d.lacks for d in about):
        return ""
    return f"its tasks get IPv4 addresses only: {about[0].lacks[IPV6]}"


def explain_clients(nodes: Iterable[Node]) -> str:
    """Which of `nodes`, those that clients of a published port come in by and those that run its tasks, do not show tasks
    the client's own address, whose, and why; empty: they all do."""
    about = [(n.description.hostname or n.id, n.description) for n in nodes if n.description is not None]
    found = {name: d.lacks[CLIENT_ADDRESS] for name, d in about if CLIENT_ADDRESS in d.lacks}
    return f"{', '.join(sorted(found))}: {next(iter(found.values()))}" if found else ""
