"""The Virtual Filtering Platform's words: switch ports, layers, groups, rules, conditions, actions, packets.

Owns their shape and what a condition matches. Must not know HNS documents or how a host carries packets out.
Source: the NSDI'17 VFP paper for the model (ports hold layers, layers groups, groups prioritised rules; the
first match in a group counts, a terminating rule ends the layer); layer names as Microsoft's SDN diagnostics
print them.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Literal, Union

import msgspec

from overlace.network.vfp.tables import HOST6, Backend

Direction = Literal["OUT", "IN"]
HOST_PORT = "host"  # the switch port of the host itself; endpoint ports are named by GUID


class Packet(msgspec.Struct, frozen=True):
    """What a rule can see. Ports are 0 for protocols without."""

    src: str
    dst: str
    protocol: int = 6
    sport: int = 0
    dport: int = 0


@lru_cache(maxsize=4096)
def network_of(cidr: str) -> Union[IPv4Network, IPv6Network]:
    return ip_network(cidr)


def host_prefix(address: str) -> str:
    """The prefix that holds this address alone."""
    return f"{address}/{128 if ':' in address else 32}"


def within(address: str, cidrs: tuple[str, ...]) -> bool:
    """Whether one of the prefixes holds the address; one of the other family holds none."""
    parsed = ip_address(address)
    return any(parsed in network_of(c) for c in cidrs)


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """All given members must hold; an empty member holds always."""

    src: tuple[str, ...] = ()  # CIDRs
    dst: tuple[str, ...] = ()
    dst_not: tuple[str, ...] = ()
    protocol: int = 0
    dport: int = 0
    protocols: tuple[int, ...] = ()
    sports: tuple[tuple[int, int], ...] = ()  # ranges, both ends included; of TCP and UDP only
    dports: tuple[tuple[int, int], ...] = ()

    def matches(self, packet: Packet) -> bool:
        return (
            (not self.src or within(packet.src, self.src))
            and (not self.dst or within(packet.dst, self.dst))
            and not (self.dst_not and within(packet.dst, self.dst_not))
            and self.protocol in (0, packet.protocol)
            and self.dport in (0, packet.dport)
            and (not self.protocols or packet.protocol in self.protocols)
            and (not self.sports or any(low <= packet.sport <= high for low, high in self.sports))
            and (not self.dports or any(low <= packet.dport <= high for low, high in self.dports))
        )


class Allow(msgspec.Struct, frozen=True, tag="allow"):
    pass


class Pass(msgspec.Struct, frozen=True, tag="pass"):
    """Counts the packet, leaves the rest of its group out and lets the next group decide: VFP's mirror to a counter."""


class Meter(msgspec.Struct, frozen=True, tag="meter"):
    """Goes on if the sender stays within `rate` bytes per second, and is dropped otherwise. The simulator has no
    clock and lets the packet pass."""

    rate: int


class Block(msgspec.Struct, frozen=True, tag="block"):
    reason: str


class LoadBalance(msgspec.Struct, frozen=True, tag="lb"):
    """Destination becomes one of `backends`; kept per connection, and with `affinity` for that many seconds per
    client."""

    backends: tuple[Backend, ...]
    affinity: int = 0
    by_protocol: bool = False  # affinity holds for each protocol of the client apart
    preserves: bool = False  # the packet keeps its destination and goes to the port of the backend


class SourceNat(msgspec.Struct, frozen=True, tag="snat"):
    """Source becomes the host's address, or one of its IPv6 addresses (HOST6); the packet leaves on the underlay.
    `ports`: so many connections at once, 0: any number; the simulator sees one."""

    address: str
    ports: int = 0


class ToHost(msgspec.Struct, frozen=True, tag="host"):
    """To the host's own stack, unchanged."""


class ToPublished(msgspec.Struct, frozen=True, tag="published"):
    """To the port this very host publishes there, with the host's address as source; goes on where it publishes none."""

    address: str


class Hairpin(msgspec.Struct, frozen=True, tag="hairpin"):
    """Source becomes the network's router: a client that is its own backend must not meet itself."""

    address: str


class Replicate(msgspec.Struct, frozen=True, tag="replicate"):
    """A copy to each of these ports of the switch, inbound layers and all, and to each of these hosts, at most `rate`
    packets per second. The simulator has no clock."""

    ports: tuple[str, ...]
    provider_addresses: tuple[str, ...]
    rate: int


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """The switch answers itself, as the network's router."""

    mac: str


class Encap(msgspec.Struct, frozen=True, tag="encap"):
    """To another host inside VXLAN."""

    vni: int
    provider_address: str
    mac: str


class Deliver(msgspec.Struct, frozen=True, tag="deliver"):
    """To another port of this switch."""

    port: str
    mac: str


Action = Union[
    Allow,
    Pass,
    Meter,
    Block,
    LoadBalance,
    Hairpin,
    SourceNat,
    ToHost,
    ToPublished,
    Replicate,
    Answer,
    Encap,
    Deliver,
]


class Rule(msgspec.Struct, frozen=True):
    name: str
    priority: int  # lower first
    condition: Condition
    action: Action


class Group(msgspec.Struct, frozen=True):
    """Rules of one direction, for packets that meet `condition`; others pass by the whole group. `by_address` makes the
    exact-destination rules O(1): their key is the address."""

    name: str
    direction: Direction
    priority: int
    rules: tuple[Rule, ...] = ()
    by_address: dict[str, Rule] = {}
    default: Rule | None = None
    condition: Condition = Condition()

    def match(self, packet: Packet) -> Rule | None:
        if not self.condition.matches(packet):
            return None
        exact = self.by_address.get(packet.dst)
        best = exact if exact is not None and exact.condition.matches(packet) else None
        for rule in self.rules:
            if (best is None or rule.priority < best.priority) and rule.condition.matches(packet):
                best = rule
                break
        return best if best is not None else self.default


class Layer(msgspec.Struct, frozen=True):
    name: str
    groups: tuple[Group, ...]


class Port(msgspec.Struct, frozen=True):
    """A switch port. Layers stand in outbound order (from the container to the wire); inbound walks them in
    reverse."""

    name: str
    vni: int
    layers: tuple[Layer, ...]


def _member(b: Backend) -> str:
    named = f"{b.address}:{b.port}" if b.port else b.address
    return f"{named} (sees {b.source} as the client)" if b.source else named


def explain_action(a: Action) -> str:
    if isinstance(a, Block):
        return f"block ({a.reason})"
    if isinstance(a, LoadBalance):
        members = ", ".join(map(_member, a.backends))
        kept = f", a client keeps its own for {a.affinity} s" if a.affinity else ""
        whole = ", destination kept" if a.preserves else ""
        return f"balance over {members}{kept}{whole}"
    if isinstance(a, Pass):
        return "count, and pass on to the next tier"
    if isinstance(a, Meter):
        return f"at most {a.rate} bytes per second"
    if isinstance(a, SourceNat):
        source = "an IPv6 address of the host" if a.address == HOST6 else a.address
        few = f", {a.ports} connections at once" if a.ports else ""
        return f"source becomes {source}, leave on the underlay{few}"
    if isinstance(a, Replicate):
        hosts = ", ".join(a.provider_addresses) or "no other host"
        ports = f"{len(a.ports)} port{'' if len(a.ports) == 1 else 's'}"
        return f"copies to {ports} here and to {hosts}, {a.rate} packets per second at most"
    if isinstance(a, Hairpin):
        return f"source becomes the network's router {a.address}: the client is its own backend"
    if isinstance(a, ToPublished):
        source = "its IPv6 address" if a.address == HOST6 else a.address
        return f"to a port this host publishes, source becomes {source}; else on"
    if isinstance(a, ToHost):
        return "to the host's own stack"
    if isinstance(a, Answer):
        return f"answered by the network's router {a.mac}"
    if isinstance(a, Encap):
        return f"VXLAN {a.vni} to {a.provider_address}, inner destination {a.mac}"
    if isinstance(a, Deliver):
        return f"deliver to port {a.port} ({a.mac})"
    return "allow"
