"""What became of packets: the meaning of each counter of a data path, and which of them are drops.

Owns the words for people. Must not know where the counters are kept.
"""

from __future__ import annotations

import msgspec


class Counter(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """`packets`: since the data path was made; a restart of the daemon keeps it."""

    name: str
    packets: int
    drop: bool
    meaning: str


MEANINGS = {
    "delivered": "into a container of this host",
    "encapsulated": "to another host, in VXLAN",
    "slow_path": "to another host through the kernel's vxlan device: too big for the path, or merged",
    "to_underlay": "answers to clients of published ports",
    "to_host": "to the host's own stack: outbound NAT, and the host's own clients",
    "answered_arp": "ARP questions and IPv6 neighbour solicitations answered by the switch",
    "answered_echo": "pings of a VIP or gateway answered by the switch",
    "refused": "no task takes connections there: a TCP reset or ICMP port unreachable was sent",
    "too_big": "larger than the path takes: ICMP fragmentation needed, or ICMPv6 packet too big, was sent",
    "drop_spoofed": "from a container, with an address that is not its own",
    "drop_unknown_vni": "in VXLAN, of a network this host takes no part in",
    "drop_wrong_provider": "in VXLAN, from a host that does not hold the sender: spoofed, or a stale entry",
    "drop_no_endpoint": "to an address of the network that nobody has",
    "drop_no_backend": "to a service without a task that takes connections",
    "drop_isolation": "to another network's address: the container is not on that network",
    "drop_no_outbound": "to the outside, from an internal network or to an excepted address",
    "drop_garbage": "truncated or malformed",
    "drop_arp": "ARP questions and IPv6 neighbour solicitations for addresses nobody has",
    "drop_unsupported": "neither IP nor ARP, broadcast or multicast, or IPv6 where the network has none",
    "drop_no_port": "from an interface that is no endpoint (yet)",
    "drop_policy": "by an ACL of the endpoint: see overlace.policy labels",
    "drop_rate": "by the QOS policy of the endpoint: more than it may send",
    "replicated": "broadcast or multicast, copied for the network's other endpoints",
    "drop_flood": "broadcast or multicast beyond the network's overlace.multicast.rate",
    "drop_error": "the kernel refused to change or send the packet",
}


def explain_counters(counters: dict[str, int]) -> list[Counter]:
    """Each counter with its meaning, in the data path's order."""
    return [
        Counter(name=name, packets=n, drop=name.startswith("drop_"), meaning=MEANINGS.get(name, ""))
        for name, n in counters.items()
    ]
