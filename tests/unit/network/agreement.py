"""Where the tables do with a packet something else than the layers say: what the property tests and the mutation tests
ask.

Both are made from the same HNS documents, by code written apart. Facts that no packet shows (MACs, rates, affinity) are
compared one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from overlace.network.hns.documents import HostComputeEndpoint, HostComputeNetwork, colon_mac
from overlace.network.hns.state import State
from overlace.network.vfp.forward import (
    Way,
    forward_from_container,
    forward_from_host,
    forward_from_wire,
)
from overlace.network.vfp.layers import (
    balance_group,
    endpoint_port,
    host_port,
    mapping_group,
    multicast_rules,
)
from overlace.network.vfp.model import (
    HOST_PORT,
    Deliver,
    Encap,
    LoadBalance,
    Meter,
    Packet,
    Rule,
    SourceNat,
    within,
)
from overlace.network.vfp.simulate import Verdict, simulate
from overlace.network.vfp.tables import (
    HOST6,
    Backend,
    Frontend,
    LocalEndpoint,
    Network,
    RemoteEndpoint,
    RemoteSubnet,
    Tables,
)


def disagreements(
    state: State, tables: Tables, host: str, packets: Iterable[Packet], choices: int = 1
) -> list[str]:
    """Sentences; none: they agree. `choices`: how many members of every load balancer are tried."""
    out: list[str] = []
    locals_ = [
        (c.ip_address, tables.get(("endpoint", _vni(d, state), c.ip_address)))
        for d in state.documents.values()
        if isinstance(d, HostComputeEndpoint) and not d.remote and d.host_compute_namespace
        for c in d.ip_configurations
    ]
    networks = [n.vni for n in tables if isinstance(n, Network)]
    for turn in range(choices):

        def pick(backends: Sequence[Backend], packet: Packet, turn: int = turn) -> Backend:
            return backends[turn % len(backends)]

        for packet in packets:
            for address, e in locals_:
                if not isinstance(e, LocalEndpoint):
                    out.append(f"no local endpoint {address}")
                    continue
                if (":" in address) != (":" in packet.dst):
                    continue
                mine = Packet(e.address, packet.dst, packet.protocol, packet.sport, packet.dport)
                v = simulate(state, host, e.endpoint_id, "OUT", mine, pick=pick)
                way = forward_from_container(tables, e.vni, e, host, mine, pick)
                out += _differ(f"out of {e.address}", mine, way, v, tables)
            v = simulate(state, host, HOST_PORT, "OUT", packet, pick=pick)
            out += _differ(
                "out of the host", packet, forward_from_host(tables, packet, pick, (host,)), v, tables
            )
            own = HOST6 if ":" in packet.src else host
            for vni, dst in ((0, own), (0, packet.dst), *((n, packet.dst) for n in networks)):
                arrived = Packet(packet.src, dst, packet.protocol, packet.sport, packet.dport)
                v = simulate(state, host, HOST_PORT, "IN", arrived, vni, pick)
                way = forward_from_wire(tables, arrived, vni, pick, (host,))
                out += _differ(f"from VXLAN {vni}", arrived, way, v, tables)
    return out


def _vni(d: HostComputeEndpoint, state: State) -> int:
    network = state.get(d.host_compute_network, HostComputeNetwork)
    return (network.vsid or 1) if network is not None else 0


def _differ(where: str, packet: Packet, way: Way, v: Verdict, tables: Tables) -> list[str]:
    out = []
    if (way.action, way.packet, way.to) != (
        v.action,
        v.packet,
        v.port or v.provider_address or ",".join(v.copies),
    ):
        out.append(f"{where} {packet}: tables {way}, layers {v.action} {v.packet} {v.reason}")
    if v.action == "encap":
        entry = tables.get(("endpoint", v.vni, v.packet.dst))
        if entry is None:  # a subnet behind another host
            here = {
                e.mac for e in tables if isinstance(e, RemoteSubnet) and within(v.packet.dst, (e.prefix,))
            }
            hops = {h.next_hop for e in tables if isinstance(e, LocalEndpoint) for h in e.hops}
            for e in tables:
                if isinstance(e, RemoteEndpoint) and e.address in hops and e.vni == v.vni:
                    here.add(e.mac)
            mac = v.mac if v.mac in here and way.vni == v.vni else "another"
        else:
            mac = entry.mac if isinstance(entry, RemoteEndpoint) else "none"
        if mac != v.mac:
            out.append(f"{where} {packet}: inner destination {entry} instead of {v.mac}")
    if v.action == "answer" and v.mac:
        network = tables.get(("network", v.vni))
        if not isinstance(network, Network) or network.gateway_mac != v.mac:
            out.append(f"{where} {packet}: answered by {network} instead of {v.mac}")
    return out


def wrong_facts(state: State, tables: Tables, host: str) -> list[str]:
    """What no packet shows, in the same form."""
    out: list[str] = []
    for d in list(state.documents.values()):
        if isinstance(d, HostComputeNetwork):
            vni = d.vsid or 1
            for address, rule in mapping_group(d, state).by_address.items():
                found = tables.get(("endpoint", vni, address))
                if isinstance(rule.action, (Deliver, Encap)) and getattr(found, "mac", "") != rule.action.mac:
                    out.append(f"{address} in {vni}: {found} instead of {rule.action}")
            group = balance_group(d, state)
            for rule in (*group.rules, *group.by_address.values()):
                out += _frontend(tables, vni, rule)
            led = {
                b.vni
                for r in host_port(state, host).layers[0].groups[0].rules
                if r.name.startswith("LB_HOST_") and isinstance(r.action, LoadBalance)
                for b in r.action.backends
            }
            entry = tables.get(("network", vni))
            if vni in led and not (isinstance(entry, Network) and entry.ingress):
                out.append(f"published ports lead into {vni}, whose replies would not find back: {entry}")
            for rule in multicast_rules(d, state):
                flood = tables.get(("flood", vni))
                if getattr(flood, "rate", 0) != getattr(rule.action, "rate", 0):
                    out.append(f"multicast of {vni}: {flood} instead of {rule.action}")
            if not isinstance(entry, Network) or entry.local != (d.type == "NAT"):
                out.append(f"network {d.name}: {entry}")
        elif isinstance(d, HostComputeEndpoint) and not d.remote and d.host_compute_namespace:
            rates = [
                rule.action.rate
                for layer in endpoint_port(d.id, state, host).layers
                for g in layer.groups
                for rule in g.rules
                if isinstance(rule.action, Meter)
            ]
            ports = max(
                (
                    rule.action.ports
                    for layer in endpoint_port(d.id, state, host).layers
                    for g in layer.groups
                    for rule in g.rules
                    if isinstance(rule.action, SourceNat)
                ),
                default=0,
            )
            for c in d.ip_configurations:
                entry = tables.get(("endpoint", _vni(d, state), c.ip_address))
                if not isinstance(entry, LocalEndpoint):
                    out.append(f"{c.ip_address}: {entry}")
                elif [entry.rate] * bool(entry.rate) != rates:
                    out.append(f"{c.ip_address} may send {entry.rate} instead of {rates}")
                elif entry.nat_ports != ports:
                    out.append(f"{c.ip_address} has {entry.nat_ports} ports for NAT instead of {ports}")
                elif (entry.mac, entry.prefix) != (colon_mac(d.mac_address), c.prefix_length):
                    out.append(f"{c.ip_address}: {entry.mac}/{entry.prefix} instead of {d.mac_address}")
    for rule in host_port(state, host).layers[0].groups[0].rules:
        out += _frontend(tables, 0, rule)
    return out


def _frontend(tables: Tables, vni: int, rule: Rule) -> list[str]:
    c = rule.condition
    address = c.dst[0].split("/")[0]
    found = tables.get(("frontend", vni, address, c.protocol, c.dport))
    affinity = rule.action.affinity if isinstance(rule.action, LoadBalance) else 0
    apart = isinstance(rule.action, LoadBalance) and rule.action.by_protocol
    if not isinstance(found, Frontend):
        return [f"no frontend {vni} {address} {c.protocol}/{c.dport}"]
    if isinstance(rule.action, LoadBalance) and (found.affinity, found.affinity_protocol) != (
        affinity,
        apart,
    ):
        return [
            f"frontend {address}: {found.affinity} {found.affinity_protocol} instead of {affinity} {apart}"
        ]
    return []
