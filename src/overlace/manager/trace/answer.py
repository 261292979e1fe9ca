"""The question of a trace and its answer, as documents.

Owns their shape. Must not know how an answer is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from overlace.model.protocols import ICMP, ICMPV6

PINGS = (ICMP, ICMPV6)
Kind = Literal["start", "rule", "encap", "underlay", "decap", "end", "look"]


class Doc(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """PascalCase members, all of them written."""


class Question(Doc, frozen=True):
    """`source` and `target`: a task, service, container, node, address, `internet` or `client`. `port` 0: the
    target's own; `via`: the node an outside client talks to, empty: one that runs no task of the target."""

    source: str
    target: str
    protocol: str = "tcp"
    port: int = 0
    via: str = ""
    ipv6: bool = False  # over IPv6, where the ends do not say which
    size: int = 0  # bytes of the IP packet; 0: a small one


class Hop(Doc, frozen=True):
    """One place the packet passes. `packet`: what it is when it leaves that place."""

    kind: Kind
    where: str  # the host's name; "underlay", "outside"
    what: str
    effect: str
    packet: str
    ok: bool = True


class Broken(Doc, frozen=True):
    where: str
    reason: str
    remedy: str


class Member(Doc, frozen=True):
    """One task a load balancer may choose, and what becomes of a packet for it."""

    task: str
    node: str
    address: str
    ok: bool
    reason: str = ""


class Reached(Doc, frozen=True):
    """A container the packet comes to, as `address`:`port`. `task`: its id; of `docker run` the container's."""

    task: str
    name: str
    host: str
    address: str
    port: int


class Origin(Doc, frozen=True):
    """The first packet and where it starts. `task`: id; empty: the host itself."""

    host: str
    task: str
    source: str
    target: str
    protocol: str
    port: int


class Seen(Doc, frozen=True):
    """A marked packet at one program. `verdict`: empty when it came by; `at`: ns of that host's own clock."""

    where: str
    interface: str
    packet: str
    verdict: str
    meaning: str
    at: int


class LiveMember(Doc, frozen=True):
    """What became of a packet sent to one backend's own address."""

    task: str
    node: str
    address: str
    answer: str
    last_seen: str
    ok: bool


class Live(Doc, frozen=True):
    """What became of a packet that was really sent. `answer`: what came back, empty: nothing. `members`: of one more
    to each backend, where there are several."""

    mark: int
    answer: str
    error: str
    sightings: tuple[Seen, ...]
    last_seen: str
    broken: Broken | None
    members: tuple[LiveMember, ...] = ()


class Trace(Doc, frozen=True):
    source: str
    target: str
    question: str  # the packet in words
    outcome: str  # one sentence
    hops: tuple[Hop, ...] = ()
    broken: Broken | None = None
    members: tuple[Member, ...] = ()
    reached: tuple[Reached, ...] = ()
    assumed: bool = False  # neither the question nor the target names the port
    notes: tuple[str, ...] = ()
    origin: Origin | None = None  # None: nothing leaves, or from outside the swarm
    live: Live | None = None


def explain_broken(members: Sequence[Member], broken: Broken) -> str:
    """The sentence that says where, for how many of the backends, and why."""
    bad = [m for m in members if not m.ok]
    if not bad:
        return f"broken at {broken.where}: {broken.reason}"
    share = f"for {len(bad)} of {len(members)} backends"
    hosts = sorted({m.node for m in bad})
    if len(hosts) == 1 or broken.where not in hosts:
        return f"broken at {broken.where} {share}: {broken.reason}"
    return f"broken {share}, on {', '.join(hosts)}; at {broken.where}: {broken.reason}"
