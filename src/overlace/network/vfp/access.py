"""Who may open connections to and from an endpoint, packet by packet: the definition the data path must agree with.

Owns how a list of rules judges and which packets belong to an allowed connection (pure). Must not know HNS documents.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from overlace.network.vfp.model import Direction, Packet, within
from overlace.network.vfp.tables import AccessRule

TCP, UDP = 6, 17


def holds(rule: AccessRule, direction: Direction, packet: Packet) -> bool:
    """Whether the rule speaks of this packet, which enters (IN) or leaves (OUT) the endpoint."""
    local, remote = (packet.src, packet.dst) if direction == "OUT" else (packet.dst, packet.src)
    ports = (packet.sport, packet.dport) if direction == "OUT" else (packet.dport, packet.sport)
    if packet.protocol not in (TCP, UDP):
        ports = (0, 0)
    return (
        rule.protocol in (0, packet.protocol)
        and (not rule.local or within(local, rule.local))
        and (not rule.remote or within(remote, rule.remote))
        and rule.local_ports[0] <= ports[0] <= rule.local_ports[1]
        and rule.remote_ports[0] <= ports[1] <= rule.remote_ports[1]
    )


def judge(rules: Sequence[AccessRule], direction: Direction, packet: Packet) -> bool:
    """The first rule that decides counts; none: no. One that passes ends its tier."""
    passed = -1
    for r in rules:
        if r.tier == passed or not holds(r, direction, packet):
            continue
        if r.action != "pass":
            return r.action == "allow"
        passed = r.tier
    return False


class Connections:
    """One filtered endpoint's memory of what it allowed; `lists` are its rules by direction."""

    def __init__(self, lists: dict[Direction, tuple[AccessRule, ...]]) -> None:
        self.lists = lists
        self._allowed: dict[tuple[object, ...], tuple[Direction, tuple[AccessRule, ...]]] = {}

    def admit(self, direction: Direction, packet: Packet, *, syn: bool = False) -> bool:
        """`syn`: a TCP packet that begins a connection. Time does not pass here."""
        if direction == "OUT":
            key = (packet.protocol, packet.src, packet.dst, packet.sport, packet.dport)
        else:
            key = (packet.protocol, packet.dst, packet.src, packet.dport, packet.sport)
        known = self._allowed.get(key)
        if known is not None and not syn:
            first, rules = known
            now = self.lists[first]
            if rules == now or judge(now, first, _as(first, packet, direction)):
                self._allowed[key] = (first, now)
                return True
        if not judge(self.lists[direction], direction, packet):
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
