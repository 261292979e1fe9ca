"""Whose policy keeps a packet from passing, by the label that says so, and what that label would have to say.

Owns finding the label (pure over a view). What it means as ACLs is network/policy.py's, and that a packet is blocked at
all the walk's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network

import msgspec

from overlace.manager.trace.answer import PINGS
from overlace.manager.trace.places import as_containers, service_at
from overlace.model.objects import Network, Task
from overlace.model.policy import (
    ALLOW_FROM,
    ALLOW_TO,
    INGRESS,
    INTERNET,
    NOBODY,
    PREFIX,
    Allowed,
    holds,
    kept_policy,
)
from overlace.model.protocols import ICMP, ICMPV6, WORDS
from overlace.network.vfp.model import Packet, within
from overlace.store.base import View

_WORDS = WORDS | {ICMPV6: "icmp"}  # who speaks of ICMP in a label means both


class Refusal(msgspec.Struct, frozen=True):
    """`reason`: which label of whom does not let the packet pass; `remedy`: what would."""

    reason: str
    remedy: str


class _Party(msgspec.Struct, frozen=True):
    """A service, or a container outside of services, with its labels."""

    kind: str
    name: str
    labels: Mapping[str, str]


class _Label(msgspec.Struct, frozen=True):
    """A label that holds for a party: its own, or its network's."""

    label: str
    text: str
    kind: str  # service, container, network
    owner: str


def explain_refusal(view: View, packet: Packet) -> Refusal | None:
    """None when every label lets it pass: then something else blocks it. `packet`: as the rule met it."""
    sender, receiver = _party(view, packet.src), _party(view, packet.dst)
    found = [
        *_refusing(view, ALLOW_FROM, receiver, packet.dst, sender, packet.src, packet),
        *_refusing(view, ALLOW_TO, sender, packet.src, receiver, packet.dst, packet),
    ]
    if not found:
        return None
    return Refusal("; ".join(r.reason for r in found), "; and ".join(r.remedy for r in found))


def _party(view: View, address: str) -> _Party | None:
    """Who has an address; None: nobody in the swarm."""
    service = service_at(view, address)
    if service is not None:
        return _Party("service", service.spec.name, service.spec.labels)
    for task in as_containers(t for t in view.all(Task) if t.attachment):
        if any(a.split("/")[0] == address for n in task.networks for a in n.addresses):
            return _Party("container", task.name, task.service_labels)
    return None


def _label(view: View, label: str, party: _Party, address: str) -> _Label | None:
    """The party's own label, else its network's; None: neither has it."""
    if label in party.labels:
        return _Label(label, party.labels[label], party.kind, party.name)
    for network in view.all(Network):
        if label in network.spec.labels and within(address, tuple(s.subnet for s in network.subnets)):
            return _Label(label, network.spec.labels[label], "network", network.spec.name)
    return None


def _refusing(
    view: View,
    label: str,
    party: _Party | None,
    address: str,
    peer: _Party | None,
    peer_address: str,
    packet: Packet,
) -> Iterator[Refusal]:
    found = _label(view, label, party, address) if party is not None else None
    if party is None or found is None:
        return
    labels = dict(party.labels) if found.kind != "network" else {}
    items = kept_policy(label, labels | {label: found.text}) or ()
    if any(_lets(item, peer, peer_address, packet) for item in items):
        return
    outside = INGRESS if label == ALLOW_FROM else INTERNET
    who = peer.name if peer is not None else outside
    what = _WORDS.get(packet.protocol, "")
    if what and packet.dport and packet.protocol not in PINGS:
        what += f"/{packet.dport}"
    item = f"{who}:{what}" if what else who
    word = "in" if label == ALLOW_FROM else "out"
    whom = f"{peer.kind} {peer.name}" if peer is not None else f"who is outside the overlay ({outside})"
    reason = f"{found.kind} {found.owner} has {label}={found.text}, which does not let {whom} {word} ({what or 'any'})"
    yield Refusal(reason, _remedy(found, party, item))


def _lets(item: Allowed, peer: _Party | None, peer_address: str, packet: Packet) -> bool:
    protocol = ICMP if packet.protocol in PINGS else packet.protocol
    if item.protocol not in (0, protocol) or not holds(item.ports, packet.dport):
        return False
    if item.cidr:
        return ip_address(peer_address) in ip_network(item.cidr)
    return peer is None if item.outside else peer is not None and peer.name in item.services


def _remedy(found: _Label, party: _Party, item: str) -> str:
    text = item if found.text.strip() == NOBODY else f"{found.text.strip()}, {item}"
    member = found.label.removeprefix(PREFIX)
    if found.kind == "network":
        return (
            f"give {party.kind} {party.name} a {found.label} of its own, or overlace policy apply a file with "
            f"networks: {{{found.owner}: {{{member}: [{text}]}}}}"
        )
    if found.kind == "container":
        return f"make container {found.owner} anew: docker run --label '{found.label}={text}'"
    return (
        f"docker service update --label-add '{found.label}={text}' {found.owner}; in a compose file the label "
        f"belongs under deploy.labels, in a file for overlace policy apply under services.{found.owner}.{member}"
    )
