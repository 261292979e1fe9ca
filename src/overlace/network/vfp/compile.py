"""From HNS documents to the tables of the data path, incrementally.

Owns what each document means for the data path (pure; a compiler keeps what it made from each document).
Must not know maps, sockets or the cluster. A network carries `ingress` when a load balancer on the host's
own ports leads into it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from overlace.model.netview import container_mac
from overlace.network.hns import policies as p
from overlace.network.hns.acl import is_closed, is_filtered, read_sets, resolve, tiers_of
from overlace.network.hns.documents import (
    Distribution,
    Document,
    Guid,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNetwork,
    PortMappingFlags,
    colon_mac,
)
from overlace.network.hns.state import State
from overlace.network.vfp.tables import (
    ANY_PORT,
    AccessList,
    AccessRule,
    Backend,
    Delta,
    Entry,
    Frontend,
    Key,
    LocalEndpoint,
    Network,
    RemoteEndpoint,
    RemoteSubnet,
    Tables,
)

LOCAL_VNI = 1  # the node's own NAT network in the tables: no overlay ever has it (VNIs start at 4096)


def vni_of(network: HostComputeNetwork) -> int:
    return network.vsid or LOCAL_VNI


def is_six(text: str) -> bool:
    """Whether an address or prefix is IPv6."""
    return ":" in text


def _of_family(texts: Iterable[str], address: str) -> tuple[str, ...]:
    """Those of the family of `address`."""
    return tuple(text for text in texts if is_six(text) == is_six(address))


def compile_network(d: HostComputeNetwork, state: State) -> Network:
    """Both families' subnets and gateways; the router's MAC, one for both, is made from an IPv4 gateway."""
    subnets = tuple(s.ip_address_prefix for s in d.subnets)
    hops = sorted(dict.fromkeys(r.next_hop for s in d.subnets for r in s.routes), key=is_six)
    gateway, *others = hops or [""]
    router = p.policy_of(d.policies, p.DrMacAddress)
    mac = (
        colon_mac(router.settings.address)
        if router is not None
        else container_mac(gateway)
        if gateway
        else ""
    )
    balancers = (state.get(lb, HostComputeLoadBalancer) for lb in state.network_balancers.get(d.id, ()))
    ingress = any(lb is not None and not lb.frontend_vips for lb in balancers)
    return Network(
        vni_of(d), subnets, gateway, mac, ingress=ingress, local=d.type == "NAT", other_gateways=tuple(others)
    )


def compile_routes(d: HostComputeNetwork) -> list[RemoteSubnet]:
    """Where a prefix is given twice the last policy counts, as a table has one row for it."""
    return [
        RemoteSubnet(
            vni_of(d),
            policy.settings.destination_prefix,
            policy.settings.provider_address,
            colon_mac(policy.settings.distributed_router_mac_address),
            policy.settings.isolation_id,
        )
        for policy in d.policies
        if isinstance(policy, p.RemoteSubnetRoute)
    ]


def compile_endpoint(d: HostComputeEndpoint, state: State, host: str) -> list[Entry]:
    """A remote endpoint always; a local one once it is in a namespace: before, no port of the switch carries
    it."""
    network = state.get(d.host_compute_network, HostComputeNetwork)
    if network is None:
        return []
    vni = vni_of(network)
    mac = colon_mac(d.mac_address)
    out: list[Entry] = []
    if d.remote:
        pa = p.policy_of(d.policies, p.ProviderAddress)
        return [
            RemoteEndpoint(vni, c.ip_address, mac, pa.settings.provider_address)
            for c in d.ip_configurations
            if pa is not None
        ]
    if not d.host_compute_namespace:
        return []
    nat, qos = p.policy_of(d.policies, p.OutBoundNat), p.policy_of(d.policies, p.Qos)
    for c in d.ip_configurations:
        access = compile_access(d, network, vni, c.ip_address)
        out += access
        inbound, outbound = (a.number for a in access) if access else (0, 0)
        out.append(
            LocalEndpoint(
                vni,
                c.ip_address,
                c.prefix_length,
                mac,
                d.id,
                outbound_nat=nat is not None or network.type == "NAT",
                nat_exceptions=_of_family(nat.settings.exceptions, c.ip_address) if nat is not None else (),
                nat_destinations=_of_family(nat.settings.destinations, c.ip_address)
                if nat is not None
                else (),
                inbound=inbound,
                outbound=outbound,
                rate=qos.settings.maximum_outgoing_bandwidth_in_bytes if qos is not None else 0,
            )
        )
    for policy in d.policies:
        if isinstance(policy, p.PortMapping):
            s = policy.settings
            front = s.vip or host
            own = _of_family((c.ip_address for c in d.ip_configurations), front)
            backends = tuple(Backend(vni, a, s.internal_port) for a in own[:1])
            out.append(Frontend(0, front, s.protocol, s.external_port, backends))
    return out


def compile_access(
    d: HostComputeEndpoint, network: HostComputeNetwork, vni: int, address: str
) -> list[AccessList]:
    """The lists IN and OUT of one address; none when nothing judges the endpoint's connections: everything may pass
    then. Both families' lists are the same, so that a rule's counters are: what names the other family never holds."""
    if not is_filtered(d.policies):
        return []
    sets = read_sets(network.policies)
    last = () if is_closed(d.policies) else (AccessRule("allow", tier=255),)
    lists: list[tuple[AccessRule, ...]] = []
    for direction in ("In", "Out"):
        rules = [
            AccessRule(
                a.action,
                protocol,
                resolve(a.local, sets),
                resolve(a.remote, sets),
                local_ports,
                remote_ports,
                number,
            )
            for number, tier in enumerate(tiers_of(d.policies, direction))
            for a in tier.rules
            for protocol, local_ports, remote_ports in product(
                a.protocols or (0,), a.local_ports or (ANY_PORT,), a.remote_ports or (ANY_PORT,)
            )
        ]
        lists.append((*rules, *last))
    return [AccessList(vni, address, "IN", lists[0]), AccessList(vni, address, "OUT", lists[1])]


def rules_for(protocols: int, *ranges: int) -> int:
    """How many rules of an access list stand for one with so many protocols and ranges of ports."""
    n = max(protocols, 1)
    for each in ranges:
        n *= max(each, 1)
    return n


def compile_load_balancer(d: HostComputeLoadBalancer, state: State, host: str) -> list[Entry]:
    network = state.get(d.host_compute_network, HostComputeNetwork)
    if network is None:
        return []
    vni = vni_of(network)
    addresses = [
        c.ip_address
        for guid in d.host_compute_endpoints
        if (e := state.get(guid, HostComputeEndpoint)) is not None
        for c in e.ip_configurations
    ]
    out: list[Entry] = []
    for m in d.port_mappings:
        internal = bool(m.flags & PortMappingFlags.INTERNAL_LOAD_BALANCER)
        apart = m.distribution_type == Distribution.SOURCE_IP_PROTOCOL
        where = [(vni, vip) for vip in d.frontend_vips] or ([(0, host)] if not internal else [])
        for scope, front in where:
            backends = tuple(Backend(vni, a, m.internal_port) for a in _of_family(addresses, front))
            out.append(Frontend(scope, front, m.protocol, m.external_port, backends, m.affinity, apart))
    return out


def compile_document(d: Document, state: State, host: str) -> list[Entry]:
    if isinstance(d, HostComputeNetwork):
        return [compile_network(d, state), *compile_routes(d)]
    if isinstance(d, HostComputeEndpoint):
        return compile_endpoint(d, state, host)
    if isinstance(d, HostComputeLoadBalancer):
        return compile_load_balancer(d, state, host)
    return []


def compile_all(state: State, host: str) -> Tables:
    """From nothing: the definition the incremental compiler must agree with."""
    return Tables(e for d in state.documents.values() for e in compile_document(d, state, host))


class Compiler:
    """Keeps `tables` true to an HNS state; `host` is the host's underlay address, where published ports
    are."""

    def __init__(self, state: State, host: str) -> None:
        self._state = state
        self._host = host
        self._made: dict[Guid, dict[Key, Entry]] = {}
        self._network_of: dict[Guid, Guid] = {}
        self.tables = Tables()
        self._owner: dict[Key, Guid] = {}

    def update(self, changed: Iterable[Guid]) -> Delta:
        """Recompile the documents in `changed` and what depends on them; returns what the data path must
        do."""
        state = self._state
        dirty: dict[Guid, None] = {}
        for guid in changed:
            dirty[guid] = None
            d = state.documents.get(guid)
            if isinstance(d, HostComputeNetwork) or (d is None and guid not in self._network_of):
                dirty.update(dict.fromkeys(state.endpoints_of.get(guid, ())))
                dirty.update(dict.fromkeys(state.network_balancers.get(guid, ())))
            elif isinstance(d, HostComputeEndpoint):
                dirty.update(dict.fromkeys(state.balancers_of.get(guid, ())))
            # a load balancer on host ports decides its network's `ingress`
            if guid in self._network_of:
                dirty[self._network_of[guid]] = None
            if isinstance(d, HostComputeLoadBalancer) and not d.frontend_vips:
                dirty[d.host_compute_network] = None
        old: dict[Key, Guid] = {}
        new: dict[Key, tuple[Guid, Entry]] = {}
        for guid in dirty:
            old.update(dict.fromkeys(self._made.pop(guid, ()), guid))
            self._network_of.pop(guid, None)
            d = state.documents.get(guid)
            if d is None:
                continue
            if isinstance(d, HostComputeLoadBalancer) and not d.frontend_vips:
                self._network_of[guid] = d.host_compute_network
            made = {e.key: e for e in compile_document(d, state, self._host)}
            if made:
                self._made[guid] = made
            new.update({k: (guid, e) for k, e in made.items()})
        put: list[Entry] = []
        remove: list[Key] = []
        for key, guid in old.items():
            if key not in new and self._owner.get(key) == guid:
                del self._owner[key]
                remove.append(key)
        for key, (guid, entry) in new.items():
            self._owner[key] = guid
            if self.tables.get(key) != entry:
                put.append(entry)
        delta = Delta(tuple(put), tuple(remove))
        self.tables.apply(delta)
        return delta
