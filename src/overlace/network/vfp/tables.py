"""The tables a host's data path must hold: what the VFP compiler makes and what a data path (eBPF maps) is
filled from.

Owns the shape of that contract and the difference of two tables. Must not know HNS documents, maps or
sockets. Addresses are `ipaddress`-style strings, MACs lower-case colon strings, VNI 0 means the underlay
itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address, ip_network
from typing import Literal, Union

import msgspec

# The host's own addresses of a family, whichever it has: where published ports are. They come and go, and the data path
# follows them itself. HOST6 is also what NAT gives an IPv6 packet as source (of IPv4 that is the underlay address).
HOST4, HOST6 = "0.0.0.0", "::"


class Network(msgspec.Struct, frozen=True, tag="network"):
    """A VXLAN segment this host takes part in."""

    vni: int
    subnets: tuple[str, ...]  # CIDRs
    gateway: str  # address containers use as default gateway; answered by the data path itself
    gateway_mac: str  # distributed router MAC, the same on every port of the network
    ingress: bool = (
        False  # replies of connections that came in through another node go back through that node
    )
    local: bool = False  # never leaves this host (the node's own bridge-like network)
    flood: bool = False  # broadcast and multicast are replicated as its Flood says; else dropped
    other_gateways: tuple[str, ...] = ()  # those of its further subnets, answered alike

    @property
    def gateways(self) -> tuple[str, ...]:
        return (self.gateway, *self.other_gateways) if self.gateway else ()

    @property
    def key(self) -> tuple[object, ...]:
        return ("network", self.vni)


class Hop(msgspec.Struct, frozen=True):
    """An SDN route of one endpoint: what is for `prefix` goes unchanged to another endpoint of its network, or to this
    host's own stack."""

    prefix: str
    next_hop: str  # that endpoint's address; empty: the host


class Behind(msgspec.Struct, frozen=True, tag="behind"):
    """Addresses behind an endpoint, which routes for them: it may send with them as source, and what arrives for one goes
    to it. The same may be said by several owners."""

    vni: int
    prefix: str
    next_hop: str
    owner: str

    @property
    def key(self) -> tuple[object, ...]:
        return ("behind", self.vni, self.prefix, self.owner)


class LocalEndpoint(msgspec.Struct, frozen=True, tag="local"):
    """A container's port on this host."""

    vni: int
    address: str
    prefix: int
    mac: str
    endpoint_id: str  # HNS endpoint GUID, upper case; the data path knows which interface carries it
    outbound_nat: bool = False  # may reach addresses outside the overlay through the host, source-translated
    nat_exceptions: tuple[str, ...] = ()  # CIDRs never translated
    inbound: int = 0  # number of the AccessList for connections to it; 0: anyone may
    outbound: int = 0  # for connections from it; both are 0 or neither is
    lets_out: bool = False  # `outbound` allows every connection, whatever it goes to
    nat_destinations: tuple[str, ...] = ()  # CIDRs it may reach so; none: any
    rate: int = 0  # bytes per second it may send, Ethernet headers counted; 0: no limit
    # further pairs of exceptions and destinations: what one of them lets out goes out
    more_nats: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()
    nat_ports: int = 0  # connections at once by outbound NAT; 0: as many as the host has ports
    host_route: bool = False  # the host itself and it may speak to each other, whatever `outbound_nat` says
    hops: tuple[Hop, ...] = ()  # the longest prefix counts, after known endpoints and before RemoteSubnets

    @property
    def nats(self) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
        return ((self.nat_exceptions, self.nat_destinations), *self.more_nats) if self.outbound_nat else ()

    def leaves(self, address: str) -> bool:
        """Whether it may reach this address outside the overlay, by source NAT."""
        to = ip_address(address)

        def holds(cidrs: tuple[str, ...]) -> bool:
            return any(to in ip_network(c, strict=False) for c in cidrs)

        return any(not holds(kept) and (not only or holds(only)) for kept, only in self.nats)

    @property
    def key(self) -> tuple[object, ...]:
        return ("endpoint", self.vni, self.address)


class RemoteEndpoint(msgspec.Struct, frozen=True, gc=False, tag="remote"):
    """A container's port on another host."""

    vni: int
    address: str
    mac: str
    provider_address: str  # the other host's VTEP

    @property
    def key(self) -> tuple[object, ...]:
        return ("endpoint", self.vni, self.address)


class RemoteSubnet(msgspec.Struct, frozen=True, tag="route"):
    """Addresses that all live behind one other host: what is for one of them and no known endpoint's goes there."""

    vni: int  # of the network whose ports may use it
    prefix: str
    provider_address: str
    mac: str  # the other host's router, inner destination
    through: int  # VNI on the wire

    @property
    def key(self) -> tuple[object, ...]:
        return ("route", self.vni, self.prefix)


class Flood(msgspec.Struct, frozen=True, tag="flood"):
    """Broadcast and multicast of a network, replicated by its sender's host: to every endpoint here, and once to every
    other host, which passes it to its own."""

    vni: int
    rate: int  # packets per second this host's containers may send together
    locals: tuple[str, ...]  # addresses
    providers: tuple[str, ...]
    broadcasts: tuple[str, ...]  # the subnets' own broadcast addresses
    locals6: tuple[str, ...] = ()  # the same of IPv6, of which there is multicast alone
    providers6: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        return ("flood", self.vni)


class Backend(msgspec.Struct, frozen=True):
    """One member of a frontend: an endpoint's address on network `vni`; port 0 keeps the packet's own
    port. `source`: what it sees its clients' address as, each connection by a port of its own; empty: theirs."""

    vni: int
    address: str
    port: int = 0
    source: str = ""


class Frontend(msgspec.Struct, frozen=True, tag="frontend"):
    """A load-balanced address. In a network (`vni` > 0): a service VIP, protocol 0 and port 0 meaning all of
    them. On the underlay (`vni` 0): a published port of this node; `address` is one of the node's own, HOST4 or HOST6.
    Backends are picked per connection; an established connection keeps its backend for as long as it lives,
    even when the list changes. A frontend without backends refuses (TCP reset or drop), it never leaks to
    the host."""

    vni: int
    address: str
    protocol: int  # IANA number, 0 = any
    port: int  # 0 = any
    backends: tuple[Backend, ...] = ()
    affinity: int = 0  # seconds in which a client's next connection goes to the same backend; 0: any
    affinity_protocol: bool = False  # each protocol of the client apart
    preserves: bool = False  # backends, all of this host, get packets for the frontend's own address and port

    @property
    def key(self) -> tuple[object, ...]:
        return ("frontend", self.vni, self.address, self.protocol, self.port)


ANY_PORT = (0, 65535)


class AccessRule(msgspec.Struct, frozen=True):
    """All members must hold. Ports are ranges, both ends included; other ports than any only with protocol 6, 17 or 132.
    A rule that passes leaves the rest of its tier out and lets the next tiers decide."""

    action: Literal["allow", "block", "pass"]
    protocol: int = 0  # 0: any
    local: tuple[str, ...] = ()  # CIDRs, one of which must hold the address; none: any address
    remote: tuple[str, ...] = ()
    local_ports: tuple[int, int] = ANY_PORT
    remote_ports: tuple[int, int] = ANY_PORT
    tier: int = 0  # 0 to 255, growing along the list


class AccessList(msgspec.Struct, frozen=True, tag="access"):
    """Which connections a local endpoint may have: the first rule that decides counts, without one it may not.
    Replies of an allowed connection pass, and ICMP errors about it."""

    vni: int
    address: str
    direction: Literal["IN", "OUT"]
    rules: tuple[AccessRule, ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        return ("access", self.vni, self.address, self.direction)

    @property
    def allows_all(self) -> bool:
        """Whether its first rule allows every connection."""
        return bool(self.rules) and msgspec.structs.replace(self.rules[0], tier=0) == AccessRule("allow")

    @property
    def number(self) -> int:
        """The content's name, never 0: equal lists share it."""
        text = f"{self.direction}|" + "|".join(
            f"{r.tier}/{r.action}/{r.protocol}/{r.local}/{r.remote}/{r.local_ports}/{r.remote_ports}"
            for r in self.rules
        )
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") | 1


Entry = Union[Network, LocalEndpoint, RemoteEndpoint, RemoteSubnet, Behind, Flood, Frontend, AccessList]
Key = tuple[object, ...]


class Delta(msgspec.Struct, frozen=True):
    """Entries to put (new or changed) and keys to remove. A key never stands in both."""

    put: tuple[Entry, ...] = ()
    remove: tuple[Key, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.put or self.remove)


class Tables:
    """A mutable set of entries by key."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._by_key: dict[Key, Entry] = {e.key: e for e in entries}

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: Key) -> Entry | None:
        return self._by_key.get(key)

    def add(self, remotes: Sequence[RemoteEndpoint]) -> bool:
        """Put many entries at once; False, and nothing done, when one of the addresses has an entry."""
        new: dict[Key, Entry] = {("endpoint", e.vni, e.address): e for e in remotes}
        if not self._by_key.keys().isdisjoint(new):
            return False
        self._by_key.update(new)
        return True

    def apply(self, delta: Delta) -> None:
        for key in delta.remove:
            self._by_key.pop(key, None)
        for entry in delta.put:
            self._by_key[entry.key] = entry

    def diff(self, desired: Tables) -> Delta:
        """What turns self into `desired`: what tests compare a compiler's deltas with."""
        put = tuple(e for k, e in desired._by_key.items() if self._by_key.get(k) != e)
        remove = tuple(k for k in self._by_key if k not in desired._by_key)
        return Delta(put, remove)
