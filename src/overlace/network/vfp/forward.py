"""Where the tables send a packet: what a data path filled from them must do with the first packet of a
connection.

Owns the reading of the tables (pure), written apart from the layers so that each checks the other. No daemon runs
it: tests compare layers and data path with it. Must not know HNS.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from overlace.model.family import is_six
from overlace.model.protocols import SCTP
from overlace.network.vfp.access import judge
from overlace.network.vfp.model import Direction, Packet, network_of, within
from overlace.network.vfp.simulate import Choose, choose, is_ping, takes
from overlace.network.vfp.tables import (
    HOST4,
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
    """`action` as in simulate.Verdict; `to` is the endpoint's GUID or the provider address. `mac`: the destination MAC it
    goes on with; `router`: the source MAC, where it is not the sender's own. `reason`: of a drop or an answer, the
    counter it ends under (reasons.py)."""

    action: str
    packet: Packet
    to: str = ""
    vni: int = 0
    mac: str = ""
    router: str = ""
    reason: str = ""


def _drop(packet: Packet, vni: int, reason: str) -> Way:
    return Way("drop", packet, vni=vni, reason=reason)


def _refuse(packet: Packet, vni: int) -> Way:
    """Nobody serves it: said to TCP and UDP, and SCTP, by a reset or ICMP."""
    told = packet.protocol in (6, 17, SCTP)
    return _drop(packet, vni, "refused" if told else "drop_no_backend")


def _is_overlay(tables: Tables, address: str) -> bool:
    """Whether it is of one of the overlay's subnets."""
    return any(isinstance(e, Network) and within(address, e.subnets) for e in tables)


def _frontend(tables: Tables, vni: int, packet: Packet) -> Frontend | None:
    for protocol, port in ((packet.protocol, packet.dport), (packet.protocol, 0), (0, packet.dport), (0, 0)):
        found = tables.get(("frontend", vni, packet.dst, protocol, port))
        if isinstance(found, Frontend):
            return found
    return None


def _published(tables: Tables, packet: Packet, own: Collection[str]) -> Frontend | None:
    """The port of one address, else of all those of this host, `own`."""
    found = _frontend(tables, 0, packet)
    if found is None and packet.dst in own:
        anywhere = HOST6 if ":" in packet.dst else HOST4
        return _frontend(tables, 0, msgspec.structs.replace(packet, dst=anywhere))
    return found


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
    if is_six(packet.dst):
        return flood if flood.locals6 and within(packet.dst, ("ff00::/8",)) else None
    group = within(packet.dst, ("224.0.0.0/4", "255.255.255.255/32"))
    return flood if group or packet.dst in flood.broadcasts else None


def _replicate(tables: Tables, flood: Flood, packet: Packet, sender: str, hosts: tuple[str, ...]) -> Way:
    found = flood.locals6 if is_six(packet.dst) else flood.locals
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
            return _drop(packet, vni, "drop_policy")
        return Way("deliver", packet, entry.endpoint_id, vni, entry.mac)
    if isinstance(entry, RemoteEndpoint) and may_leave:
        return Way("encap", packet, entry.provider_address, vni, entry.mac)
    route = _route(tables, vni, packet.dst) if entry is None and may_leave and not hop else None
    if route is not None:
        return Way("encap", packet, route.provider_address, route.through, route.mac)
    return _drop(packet, vni, "drop_no_endpoint")


def _balanced(tables: Tables, frontend: Frontend, packet: Packet, vni: int, pick: Choose) -> Way:
    """To one of the frontend's backends. `vni`: of the client's network, 0 outside. The source stays, unless the client
    itself is the backend: it would answer itself."""
    backends = tuple(b for b in frontend.backends if takes(b, packet))
    if not backends:
        return _refuse(packet, vni)
    b = pick(backends, packet)
    packet = msgspec.structs.replace(packet, src=b.source or packet.src)
    network = tables.get(("network", b.vni))
    if not isinstance(network, Network):
        return _drop(packet, b.vni, "drop_no_endpoint")
    if (b.vni, b.address) == (vni, packet.src):
        gateway = network.gateways[0] if not is_six(packet.src) else network.other_gateways[0]
        packet = msgspec.structs.replace(packet, src=gateway)
    if not frontend.preserves:
        packet = msgspec.structs.replace(packet, dst=b.address, dport=b.port or packet.dport)
    way = _deliver(tables, b.vni, packet, may_leave=True, hop=b.address)
    return msgspec.structs.replace(way, router=network.gateway_mac if way.action == "encap" else "")


def forward_from_container(
    tables: Tables, vni: int, source: LocalEndpoint, host: str, packet: Packet, pick: Choose = choose
) -> Way:
    """A packet leaving the local endpoint `source`."""
    network = tables.get(("network", vni))
    if not isinstance(network, Network):
        return _drop(packet, vni, "drop_unknown_vni")
    if not _may(tables, source, "OUT", packet):
        return _drop(packet, vni, "drop_policy")
    flood = _flooded(tables, vni, packet)
    if flood is not None:
        hosts = flood.providers6 if is_six(packet.dst) else flood.providers
        return _replicate(tables, flood, packet, source.address, hosts)
    if packet.dst in network.gateways:
        return Way("answer", packet, vni=vni, reason="answered_echo" if is_ping(packet) else "refused")
    if _answered(tables, vni, packet.dst):
        frontend = _frontend(tables, vni, packet)
        if is_ping(packet) and (frontend is None or frontend.backends):
            return Way("answer", packet, vni=vni, reason="answered_echo")
        return _refuse(packet, vni) if frontend is None else _balanced(tables, frontend, packet, vni, pick)
    if tables.get(("endpoint", vni, packet.dst)) is not None:
        return _deliver(tables, vni, packet, may_leave=True)
    hop = _hop(source, packet.dst)
    if hop is not None:
        return _deliver(tables, vni, packet, may_leave=True, hop=hop) if hop else Way("host", packet, vni=vni)
    if _route(tables, vni, packet.dst) is not None:
        return _deliver(tables, vni, packet, may_leave=True)
    return _leave(tables, vni, source, host, packet, pick)


def _leave(tables: Tables, vni: int, source: LocalEndpoint, host: str, packet: Packet, pick: Choose) -> Way:
    """To an address that is none of the network's."""
    own = HOST6 if is_six(packet.dst) else host
    if _is_overlay(tables, packet.dst):
        return _drop(packet, vni, "drop_isolation")
    to_host = source.host_route and packet.dst == own
    if not to_host and not source.outbound_nat:
        return _drop(packet, vni, "drop_no_outbound")
    published = _published(tables, packet, (host,))
    if published is not None and (own == host or packet.dst == own):
        way = _balanced(tables, published, msgspec.structs.replace(packet, src=own), 0, pick)
        return way if way.reason != "refused" else _refuse(packet, vni)
    if to_host:
        return Way("host", packet, vni=vni)
    if source.leaves(packet.dst):
        return Way("world", msgspec.structs.replace(packet, src=own), vni=vni)
    return _drop(packet, vni, "drop_no_outbound")


def forward_from_host(
    tables: Tables, packet: Packet, pick: Choose = choose, own: Collection[str] = ()
) -> Way:
    """A packet of one of the host's own programs, which has routes to some containers here."""
    for e in tables:
        if isinstance(e, LocalEndpoint) and e.address == packet.dst and (e.outbound_nat or e.host_route):
            return _deliver(tables, e.vni, packet, may_leave=False)
    return forward_from_wire(tables, packet, 0, pick, own)


def forward_from_wire(
    tables: Tables, packet: Packet, vni: int = 0, pick: Choose = choose, own: Collection[str] = ()
) -> Way:
    """A packet arriving on the underlay: plain (vni 0) or taken out of VXLAN `vni`. `own`: addresses of this host, where
    its published ports are."""
    if vni:
        flood = _flooded(tables, vni, packet)
        if flood is not None:
            return _replicate(tables, flood, packet, "", ())
        return _deliver(tables, vni, packet, may_leave=False)
    frontend = _published(tables, packet, own)
    if frontend is None:
        return Way("host", packet)
    return _balanced(tables, frontend, packet, 0, pick)
