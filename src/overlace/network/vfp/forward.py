"""Where the tables send a packet: what a data path filled from them must do with the first packet of a
connection.

Owns the reading of the tables (pure), written apart from the layers so that each checks the other. Must not
know HNS.
"""

from __future__ import annotations

import msgspec

from overlace.network.vfp.access import judge
from overlace.network.vfp.model import Direction, Packet, network_of, within
from overlace.network.vfp.simulate import Choose, choose, is_ping, takes
from overlace.network.vfp.tables import (
    HOST6,
    AccessList,
    Behind,
    Flood,
    Frontend,
    LocalEndpoint,
    Network,
    RemoteEndpoint,
    RemoteSubnet,
    Tables,
)


class Way(msgspec.Struct, frozen=True):
    """`action` as in simulate.Verdict; `to` is the endpoint's GUID or the provider address."""

    action: str
    packet: Packet
    to: str = ""
    vni: int = 0


def _frontend(tables: Tables, vni: int, packet: Packet) -> Frontend | None:
    for protocol, port in ((packet.protocol, packet.dport), (packet.protocol, 0), (0, packet.dport), (0, 0)):
        found = tables.get(("frontend", vni, packet.dst, protocol, port))
        if isinstance(found, Frontend):
            return found
    return None


def _may(tables: Tables, endpoint: LocalEndpoint, direction: Direction, packet: Packet) -> bool:
    if not endpoint.inbound:
        return True
    found = tables.get(("access", endpoint.vni, endpoint.address, direction))
    return isinstance(found, AccessList) and judge(found.rules, direction, packet)


def _route(tables: Tables, vni: int, address: str) -> RemoteSubnet | None:
    """The longest prefix that holds the address."""
    routes = [
        e for e in tables if isinstance(e, RemoteSubnet) and e.vni == vni and within(address, (e.prefix,))
    ]
    return max(routes, key=lambda r: network_of(r.prefix).prefixlen, default=None)


def _hop(source: LocalEndpoint, address: str) -> str | None:
    """Next hop of the endpoint's SDN route that holds the address, empty for the host; None: it has none."""
    found = [h for h in source.hops if within(address, (h.prefix,))]
    best = max(found, key=lambda h: network_of(h.prefix).prefixlen, default=None)
    return best.next_hop if best is not None else None


def _behind(tables: Tables, vni: int, address: str) -> str:
    """The endpoint that routes for the address; empty: none."""
    found = [e for e in tables if isinstance(e, Behind) and e.vni == vni and within(address, (e.prefix,))]
    best = max(found, key=lambda e: network_of(e.prefix).prefixlen, default=None)
    return best.next_hop if best is not None else ""


def _answered(tables: Tables, vni: int, address: str) -> bool:
    """Whether it is the switch's own: a gateway or a VIP."""
    network = tables.get(("network", vni))
    if isinstance(network, Network) and address in network.gateways:
        return True
    return any(isinstance(e, Frontend) and (e.vni, e.address) == (vni, address) for e in tables)


def _flooded(tables: Tables, vni: int, packet: Packet) -> Flood | None:
    flood = tables.get(("flood", vni))
    network = tables.get(("network", vni))
    if not isinstance(flood, Flood) or not isinstance(network, Network) or not network.flood:
        return None
    if ":" in packet.dst:
        return flood if flood.locals6 and within(packet.dst, ("ff00::/8",)) else None
    group = within(packet.dst, ("224.0.0.0/4", "255.255.255.255/32"))
    return flood if group or packet.dst in flood.broadcasts else None


def _replicate(tables: Tables, flood: Flood, packet: Packet, sender: str, hosts: tuple[str, ...]) -> Way:
    found = flood.locals6 if ":" in packet.dst else flood.locals
    here = (tables.get(("endpoint", flood.vni, address)) for address in found if address != sender)
    to = [e.endpoint_id for e in here if isinstance(e, LocalEndpoint) and _may(tables, e, "IN", packet)]
    return Way("replicate", packet, ",".join((*to, *hosts)), flood.vni)


def _deliver(tables: Tables, vni: int, packet: Packet, *, may_leave: bool, hop: str = "") -> Way:
    """`hop`: address of the endpoint it goes to in place of its destination."""
    entry = tables.get(("endpoint", vni, hop or packet.dst))
    if entry is None and not hop and not may_leave and not _answered(tables, vni, packet.dst):
        router = _behind(tables, vni, packet.dst)
        entry = tables.get(("endpoint", vni, router))
    if isinstance(entry, LocalEndpoint):
        if not _may(tables, entry, "IN", packet):
            return Way("drop", packet, vni=vni)
        return Way("deliver", packet, entry.endpoint_id, vni)
    if isinstance(entry, RemoteEndpoint) and may_leave:
        return Way("encap", packet, entry.provider_address, vni)
    route = _route(tables, vni, packet.dst) if entry is None and may_leave and not hop else None
    if route is not None:
        return Way("encap", packet, route.provider_address, route.through)
    return Way("drop", packet, vni=vni)


def _balanced(frontend: Frontend, packet: Packet, pick: Choose) -> tuple[int, Packet, str] | None:
    """Network and packet as they go on, and the endpoint's address where that is not the packet's destination."""
    if not frontend.backends:
        return None
    backends = tuple(b for b in frontend.backends if takes(b, packet))
    if not backends:
        return None
    b = pick(backends, packet)
    if frontend.preserves:
        return b.vni, msgspec.structs.replace(packet, src=b.source or packet.src), b.address
    to = msgspec.structs.replace(
        packet, src=b.source or packet.src, dst=b.address, dport=b.port or packet.dport
    )
    return b.vni, to, ""


def forward_from_container(
    tables: Tables, vni: int, source: LocalEndpoint, host: str, packet: Packet, pick: Choose = choose
) -> Way:
    """A packet leaving the local endpoint `source`."""
    network = tables.get(("network", vni))
    if not isinstance(network, Network):
        return Way("drop", packet, vni=vni)
    if not _may(tables, source, "OUT", packet):
        return Way("drop", packet, vni=vni)
    flood = _flooded(tables, vni, packet)
    if flood is not None:
        hosts = flood.providers6 if ":" in packet.dst else flood.providers
        return _replicate(tables, flood, packet, source.address, hosts)
    frontend = _frontend(tables, vni, packet)
    if frontend is not None:
        balanced = _balanced(frontend, packet, pick)
        if balanced is None:
            return Way("drop", packet, vni=vni)
        if is_ping(packet):
            return Way("answer", packet, vni=vni)
        vni, packet, member = balanced
        if member:
            return _deliver(tables, vni, packet, may_leave=False, hop=member)
    if packet.dst in network.gateways:
        return Way("answer", packet, vni=vni)
    hop = _hop(source, packet.dst) if tables.get(("endpoint", vni, packet.dst)) is None else None
    if hop is not None:
        return _deliver(tables, vni, packet, may_leave=True, hop=hop) if hop else Way("host", packet, vni=vni)
    known = tables.get(("endpoint", vni, packet.dst)) is not None
    if known or within(packet.dst, network.subnets) or _route(tables, vni, packet.dst) is not None:
        return _deliver(tables, vni, packet, may_leave=True)
    if source.host_route and packet.dst in (host, HOST6):
        return Way("host", packet, vni=vni)
    if source.leaves(packet.dst):
        own = HOST6 if ":" in packet.dst else host
        return Way("world", msgspec.structs.replace(packet, src=own), vni=vni)
    return Way("drop", packet, vni=vni)


def forward_from_host(tables: Tables, packet: Packet, pick: Choose = choose) -> Way:
    """A packet of one of the host's own programs, which has routes to some containers here."""
    for e in tables:
        if isinstance(e, LocalEndpoint) and e.address == packet.dst and (e.outbound_nat or e.host_route):
            return _deliver(tables, e.vni, packet, may_leave=False)
    return forward_from_wire(tables, packet, 0, pick)


def forward_from_wire(tables: Tables, packet: Packet, vni: int = 0, pick: Choose = choose) -> Way:
    """A packet arriving on the underlay: plain (vni 0) or taken out of VXLAN `vni`."""
    if vni:
        flood = _flooded(tables, vni, packet)
        if flood is not None:
            return _replicate(tables, flood, packet, "", ())
        return _deliver(tables, vni, packet, may_leave=False)
    frontend = _frontend(tables, 0, packet)
    if frontend is None:
        return Way("host", packet)
    balanced = _balanced(frontend, packet, pick)
    if balanced is None:
        return Way("drop", packet)
    vni, packet, member = balanced
    return _deliver(tables, vni, packet, may_leave=True, hop=member)
