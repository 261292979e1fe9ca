"""Who may open connections to and from an endpoint, packet by packet: the definition the data path must agree with.

Owns how a list of rules judges and which packets belong to an allowed connection (pure). No daemon keeps Connections:
bpf/access.h is the same in C, and tests compare the two. Must not know HNS documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from overlace.model.protocols import WITH_PORTS
from overlace.network.vfp.model import Direction, Packet, within
from overlace.network.vfp.tables import AccessRule

NO_RULE = 512  # place of the rule when none decides


def holds(rule: AccessRule, direction: Direction, packet: Packet) -> bool:
    """Whether the rule speaks of this packet, which enters (IN) or leaves (OUT) the endpoint."""
    local, remote = (packet.src, packet.dst) if direction == "OUT" else (packet.dst, packet.src)
    ports = (packet.sport, packet.dport) if direction == "OUT" else (packet.dport, packet.sport)
    if packet.protocol not in WITH_PORTS.values():
        ports = (0, 0)
    return (
        rule.protocol in (0, packet.protocol)
        and (not rule.local or within(local, rule.local))
        and (not rule.remote or within(remote, rule.remote))
        and rule.local_ports[0] <= ports[0] <= rule.local_ports[1]
        and rule.remote_ports[0] <= ports[1] <= rule.remote_ports[1]
    )


def consult(rules: Sequence[AccessRule], direction: Direction, packet: Packet) -> tuple[int, ...]:
    """Places of the rules that have a say: those that pass, which ends their tier, then the one that decides, or
    NO_RULE."""
    passed = -1
    said = []
    for i, r in enumerate(rules):
        if r.tier == passed or not holds(r, direction, packet):
            continue
        said.append(i)
        if r.action != "pass":
            return tuple(said)
        passed = r.tier
    return (*said, NO_RULE)


def judge(rules: Sequence[AccessRule], direction: Direction, packet: Packet) -> bool:
    """The first rule that decides counts; none: no."""
    last = consult(rules, direction, packet)[-1]
    return last != NO_RULE and rules[last].action == "allow"


class Connections:
    """One filtered endpoint's memory of what it allowed; `lists` are its rules by direction. `hits`: packets by list and
    place of the rule; each packet counts for every rule that has a say about its connection."""

    def __init__(self, lists: dict[Direction, tuple[AccessRule, ...]]) -> None:
        self.lists = lists
        self.hits: Counter[tuple[Direction, tuple[AccessRule, ...], int]] = Counter()
        self._allowed: dict[tuple[object, ...], tuple[Direction, tuple[AccessRule, ...]]] = {}

    def _judge(self, direction: Direction, packet: Packet) -> bool:
        rules = self.lists[direction]
        said = consult(rules, direction, packet)
        self.hits.update((direction, rules, place) for place in said)
        return said[-1] != NO_RULE and rules[said[-1]].action == "allow"

    def admit(self, direction: Direction, packet: Packet, *, syn: bool = False) -> bool:
        """`syn`: a TCP packet that begins a connection. Time does not pass here."""
        if direction == "OUT":
            key = (packet.protocol, packet.src, packet.dst, packet.sport, packet.dport)
        else:
            key = (packet.protocol, packet.dst, packet.src, packet.dport, packet.sport)
        known = self._allowed.get(key)
        if known is not None and not syn:
            first, _ = known
            if self._judge(first, _as(first, packet, direction)):
                self._allowed[key] = (first, self.lists[first])
                return True
            if first == direction:
                return False
        if not self._judge(direction, packet):
            return False
        self._allowed[key] = (direction, self.lists[direction])
        return True


def _as(first: Direction, packet: Packet, direction: Direction) -> Packet:
    """The packet turned so that it goes the way its connection's first one went."""
    if first == direction:
        return packet
    return msgspec.structs.replace(
        packet, src=packet.dst, dst=packet.src, sport=packet.dport, dport=packet.sport
    )
