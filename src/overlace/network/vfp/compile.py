"""From HNS documents to the tables of the data path, incrementally.

Owns what each document means for the data path (pure; a compiler keeps what it made from each document).
Must not know maps, sockets or the cluster. A network carries `ingress` when a load balancer on the host's
own ports leads into it.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from itertools import product

from overlace.model.family import is_six
from overlace.model.netview import container_mac
from overlace.model.objects import VXLAN_PORT
from overlace.model.protocols import UDP
from overlace.network.hns import policies as p
from overlace.network.hns.acl import (
    VXLAN,
    is_closed,
    is_filtered,
    judging,
    read_sets,
    resolve,
    tiers_of,
)
from overlace.network.hns.documents import (
    Distribution,
    Document,
    Guid,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNetwork,
    HostComputeRoute,
    LoadBalancerFlags,
    PortMappingFlags,
    colon_mac,
)
from overlace.network.hns.remotes import tunnel_to
from overlace.network.hns.routes import gateways_of
from overlace.network.hns.state import State, outside_vips
from overlace.network.vfp.tables import (
    ANY_PORT,
    HOST4,
    HOST6,
    AccessList,
    AccessRule,
    Backend,
    Behind,
    Delta,
    Entry,
    Flood,
    Frontend,
    Hop,
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


def _of_family(texts: Iterable[str], address: str) -> tuple[str, ...]:
    """Those of the family of `address`."""
    return tuple(text for text in texts if is_six(text) == is_six(address))


def _nats(
    d: HostComputeEndpoint, network: HostComputeNetwork, address: str, state: State
) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    """Exceptions and destinations of each OutBoundNAT that speaks of the address's family."""
    settings = [x.settings for x in d.policies if isinstance(x, p.OutBoundNat)]
    if not settings and network.type == "NAT":
        return (((), ()),)
    pairs = ((n, _of_family(n.destinations, address)) for n in settings)
    inside = overlay_prefixes(d, state)
    return tuple(
        (_of_family((*n.exceptions, *inside), address), only)
        for n, only in pairs
        if only or not n.destinations
    )


def compile_network(d: HostComputeNetwork, state: State) -> Network:
    """Both families' subnets and gateways; the router's MAC, one for both, is made from an IPv4 gateway."""
    subnets = tuple(s.ip_address_prefix for s in d.subnets)
    hops = sorted(gateways_of(d), key=is_six)
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
    ingress = any(lb is not None and outer_addresses(lb, d) for lb in balancers)
    return Network(
        vni_of(d), subnets, gateway, mac, ingress=ingress, local=d.type == "NAT",
        flood=bool(d.multicast_rate) and d.type == "Overlay", other_gateways=tuple(others),
    )  # fmt: skip


def compile_flood(d: HostComputeNetwork, state: State) -> list[Flood]:
    """Where broadcast and multicast of an Overlay network go: IPv6 only where somebody has it."""
    if not d.multicast_rate or d.type != "Overlay":
        return []
    here: set[str] = set()
    there: set[str] = set()
    there6: set[str] = set()
    for guid in state.endpoints_of.get(d.id, ()):
        e = state.get(guid, HostComputeEndpoint)
        if e is None:
            continue
        if e.remote and (provider := tunnel_to(e, d)):
            there.add(provider)
            if any(is_six(c.ip_address) for c in e.ip_configurations):
                there6.add(provider)
        elif not e.remote and e.host_compute_namespace:
            here.update(c.ip_address for c in e.ip_configurations)
    nets = [ip_network(s.ip_address_prefix) for s in d.subnets]
    broadcasts = tuple(str(n.broadcast_address) for n in nets if n.version == 4 and n.prefixlen < 31)
    four, six = (tuple(sorted(a for a in here if is_six(a) == which)) for which in (False, True))
    hosts = tuple(sorted(there)), tuple(sorted(there6))
    return [Flood(vni_of(d), d.multicast_rate, four, hosts[0], broadcasts, six, hosts[1])]


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
    """A remote endpoint where a tunnel leads to it; a local one once it is in a namespace: before, no port of the switch
    carries it."""
    network = state.get(d.host_compute_network, HostComputeNetwork)
    if network is None:
        return []
    vni = vni_of(network)
    mac = colon_mac(d.mac_address)
    out: list[Entry] = []
    if d.remote:
        provider = tunnel_to(d, network)
        return [RemoteEndpoint(vni, c.ip_address, mac, provider) for c in d.ip_configurations if provider]
    if not d.host_compute_namespace:
        return []
    qos = p.policy_of(d.policies, p.Qos)
    routes = routes_of(d, state)
    nat_policies = [x for x in d.policies if isinstance(x, p.OutBoundNat)]
    for c in d.ip_configurations:
        access = compile_access(d, network, vni, c.ip_address)
        out += access
        nats = _nats(d, network, c.ip_address, state)
        inbound, outbound = (a.number for a in access) if access else (0, 0)
        out.append(
            LocalEndpoint(
                vni,
                c.ip_address,
                c.prefix_length,
                mac,
                d.id,
                outbound_nat=bool(nats),
                nat_exceptions=nats[0][0] if nats else (),
                nat_destinations=nats[0][1] if nats else (),
                more_nats=nats[1:],
                nat_ports=max((n.settings.max_port_pool_usage for n in nat_policies), default=0),
                host_route=p.policy_of(network.policies, p.HostRoute) is not None,
                hops=tuple(
                    Hop(r.destination_prefix, "" if r.next_hop == host else r.next_hop)
                    for r in routes
                    if r.next_hop != c.ip_address
                ),
                inbound=inbound,
                outbound=outbound,
                lets_out=bool(access) and access[1].allows_all,
                rate=qos.settings.maximum_outgoing_bandwidth_in_bytes if qos is not None else 0,
            )
        )
    out += behind((x.settings for x in d.policies if isinstance(x, p.SdnRoute)), vni, host, d.id)
    for policy in d.policies:
        if isinstance(policy, p.PortMapping):
            s = policy.settings
            for front in mapped_at(d, s):
                own = _of_family((c.ip_address for c in d.ip_configurations), front)
                backends = tuple(Backend(vni, a, s.internal_port) for a in own[:1])
                out.append(Frontend(0, front, s.protocol, s.external_port, backends))
    return out


def mapped_at(d: HostComputeEndpoint, s: p.PortMappingSettings) -> list[str]:
    """Where a mapped port is found: at the address it names, else at the host's own of each family the endpoint has."""
    if s.vip:
        return [s.vip]
    return [HOST4, *([HOST6] if any(is_six(c.ip_address) for c in d.ip_configurations) else [])]


def routes_of(d: HostComputeEndpoint, state: State) -> list[p.SdnRouteSettings]:
    """SDN routes of the endpoint that name a next hop; a prefix once."""
    return [r for r in _all_routes(d, state) if r.next_hop]


def overlay_prefixes(d: HostComputeEndpoint, state: State) -> tuple[str, ...]:
    """Prefixes of SDN routes that name no next hop (NeedEncap, as CNI plugins write it for a cluster's services): they
    are overlay, and nothing for them leaves translated."""
    return tuple(r.destination_prefix for r in _all_routes(d, state) if not r.next_hop)


def _all_routes(d: HostComputeEndpoint, state: State) -> list[p.SdnRouteSettings]:
    """SDN routes of the endpoint, its own and those of HostComputeRoutes that name it; a prefix once."""
    found = {x.settings.destination_prefix: x.settings for x in d.policies if isinstance(x, p.SdnRoute)}
    for guid in sorted(state.routes_of.get(d.id, ())):
        route = state.get(guid, HostComputeRoute)
        for r in route.routes if route is not None else ():
            found.setdefault(r.destination_prefix, r)
    return list(found.values())


def behind(routes: Iterable[p.SdnRouteSettings], vni: int, host: str, owner: Guid) -> list[Behind]:
    return [
        Behind(vni, r.destination_prefix, r.next_hop, owner)
        for r in routes
        if r.next_hop and r.next_hop != host and is_six(r.next_hop) == is_six(r.destination_prefix)
    ]


def compile_access(
    d: HostComputeEndpoint, network: HostComputeNetwork, vni: int, address: str
) -> list[AccessList]:
    """The lists IN and OUT of one address; none when nothing judges the endpoint's connections: everything may pass
    then. Both families' lists are the same, so that a rule's counters are: what names the other family never holds."""
    policies = judging(network.policies, d.policies)
    if not is_filtered(policies):
        return []
    sets = read_sets(network.policies)
    last = () if is_closed(policies) else (AccessRule("allow", tier=255),)
    own = p.policy_of(network.policies, p.VxlanPort)
    vxlan = (own.settings.port, own.settings.port) if own is not None else (VXLAN_PORT, VXLAN_PORT)
    lists: list[tuple[AccessRule, ...]] = []
    for direction in ("In", "Out"):
        rules = [
            AccessRule(
                a.action,
                UDP if protocol == VXLAN else protocol,
                resolve(a.local, sets),
                resolve(a.remote, sets),
                local_ports if protocol != VXLAN or direction == "Out" else vxlan,
                remote_ports if protocol != VXLAN or direction == "In" else vxlan,
                number,
            )
            for number, tier in enumerate(tiers_of(policies, direction))
            for a in tier.rules
            for protocol, local_ports, remote_ports in product(
                a.protocols or (0,), a.local_ports or (ANY_PORT,), a.remote_ports or (ANY_PORT,)
            )
        ]
        lists.append((*rules, *last))
    return [AccessList(vni, address, "IN", lists[0]), AccessList(vni, address, "OUT", lists[1])]


def outer_addresses(d: HostComputeLoadBalancer, network: HostComputeNetwork) -> list[str]:
    """Where clients outside the overlay find the load balancer: at the host's own addresses, IPv6 where the network has
    it, when it has no VIP, else at those of its VIPs that are outside the network and routed to this host (kube-proxy's
    external and ingress IPs)."""
    if not d.frontend_vips:
        return [HOST4, *([HOST6] if any(is_six(s.ip_address_prefix) for s in network.subnets) else [])]
    return outside_vips(d, network)


def rules_for(protocols: int, *ranges: int) -> int:
    """How many rules of an access list stand for one with so many protocols and ranges of ports."""
    n = max(protocols, 1)
    for each in ranges:
        n *= max(each, 1)
    return n


def seen_as(lb: HostComputeLoadBalancer, e: HostComputeEndpoint, address: str, *, outside: bool) -> str:
    """What the member sees at this address as its client: SourceVIP, or, empty, the client itself. Of clients `outside`,
    members on other hosts see SourceVIP unless the load balancer has direct return: their answers come back through this
    host by it alone."""
    direct = lb.flags & LoadBalancerFlags.EnableDirectServerReturn
    translated = e.id in lb.source_translated or (outside and e.remote and not direct)
    return lb.source_vip if translated and is_six(lb.source_vip) == is_six(address) else ""


def compile_load_balancer(d: HostComputeLoadBalancer, state: State) -> list[Entry]:
    network = state.get(d.host_compute_network, HostComputeNetwork)
    if network is None:
        return []
    vni = vni_of(network)
    members = [
        e for guid in d.host_compute_endpoints if (e := state.get(guid, HostComputeEndpoint)) is not None
    ]
    out: list[Entry] = []
    for m in d.port_mappings:
        preserves = bool(m.flags & PortMappingFlags.PRESERVE_DIP)  # another host knows nobody by that address
        found = [
            (e, c.ip_address) for e in members if not (preserves and e.remote) for c in e.ip_configurations
        ]
        internal = bool(m.flags & PortMappingFlags.INTERNAL_LOAD_BALANCER)
        apart = m.distribution_type == Distribution.SOURCE_IP_PROTOCOL
        where = [(vni, vip) for vip in d.frontend_vips]
        where += [(0, at) for at in outer_addresses(d, network) if not internal]
        for scope, front in where:
            own = tuple(
                Backend(vni, a, m.internal_port, seen_as(d, e, a, outside=not scope))
                for e, a in found
                if is_six(a) == is_six(front)
            )
            kept = (m.affinity, apart, preserves)
            out.append(Frontend(scope, front, m.protocol, m.external_port, own, *kept))
    return out


def compile_document(d: Document, state: State, host: str) -> list[Entry]:
    if isinstance(d, HostComputeNetwork):
        return [compile_network(d, state), *compile_routes(d), *compile_flood(d, state)]
    if isinstance(d, HostComputeEndpoint):
        return compile_endpoint(d, state, host)
    if isinstance(d, HostComputeLoadBalancer):
        return compile_load_balancer(d, state)
    if isinstance(d, HostComputeRoute):
        network = state.get(d.host_compute_network, HostComputeNetwork)
        return [*behind(d.routes, vni_of(network), host, d.id)] if network is not None else []
    return []


def compile_all(state: State, host: str) -> Tables:
    """From nothing: the definition the incremental compiler must agree with, which tests compare. Of several documents
    that make an entry of one key, the one with the smallest id counts."""
    documents = sorted(state.documents.values(), key=lambda d: d.id, reverse=True)
    return Tables(e for d in documents for e in compile_document(d, state, host))


class Compiler:
    """Keeps `tables` true to an HNS state; `host` is the host's underlay address, where published ports
    are."""

    def __init__(self, state: State, host: str) -> None:
        self._state = state
        self._host = host
        self._made: dict[Guid, dict[Key, Entry]] = {}
        self._network_of: dict[Guid, Guid] = {}
        self._network_of_endpoint: dict[Guid, Guid] = {}  # of endpoints multicast goes to
        self._routed: dict[Guid, tuple[Guid, ...]] = {}  # endpoints of each SDN route
        self.tables = Tables()
        self._owner: dict[Key, Guid] = {}
        self._rivals: dict[Key, set[Guid]] = {}  # the owner and the others, where there are others

    def _leads_in(self, d: HostComputeLoadBalancer) -> bool:
        network = self._state.get(d.host_compute_network, HostComputeNetwork)
        return network is not None and bool(outer_addresses(d, network))

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
                network = state.get(d.host_compute_network, HostComputeNetwork)
                if network is not None and network.multicast_rate:
                    dirty[network.id] = None
                    self._network_of_endpoint[guid] = network.id
                dirty.update(dict.fromkeys(state.balancers_of.get(guid, ())))
            if d is None and guid in self._network_of_endpoint:
                dirty[self._network_of_endpoint.pop(guid)] = None
            # a load balancer on host ports decides its network's `ingress`
            if guid in self._network_of:
                dirty[self._network_of[guid]] = None
            if isinstance(d, HostComputeLoadBalancer) and self._leads_in(d):
                dirty[d.host_compute_network] = None
            # an SDN route is part of what its endpoints are, before and after
            dirty.update(dict.fromkeys(self._routed.get(guid, ())))
            if isinstance(d, HostComputeRoute):
                dirty.update(dict.fromkeys(d.host_compute_endpoints))
        touched: dict[Key, None] = {}
        for guid in dirty:
            for key in self._made.pop(guid, ()):
                touched[key] = None
                self._unclaim(key, guid)
            self._network_of.pop(guid, None)
            self._routed.pop(guid, None)
            d = state.documents.get(guid)
            if d is None:
                continue
            if isinstance(d, HostComputeRoute):
                self._routed[guid] = d.host_compute_endpoints
            if isinstance(d, HostComputeLoadBalancer) and self._leads_in(d):
                self._network_of[guid] = d.host_compute_network
            made = {e.key: e for e in compile_document(d, state, self._host)}
            if made:
                self._made[guid] = made
            for key in made:
                touched[key] = None
                self._claim(key, guid)
        put: list[Entry] = []
        remove: list[Key] = []
        for key in touched:
            owner = self._owner.get(key)
            if owner is None:
                remove.append(key)
            elif self.tables.get(key) != (entry := self._made[owner][key]):
                put.append(entry)
        delta = Delta(tuple(put), tuple(remove))
        self.tables.apply(delta)
        return delta

    def _claim(self, key: Key, guid: Guid) -> None:
        owner = self._owner.setdefault(key, guid)
        if owner != guid:
            rivals = self._rivals.setdefault(key, {owner})
            rivals.add(guid)
            self._owner[key] = min(rivals)

    def _unclaim(self, key: Key, guid: Guid) -> None:
        rivals = self._rivals.get(key)
        if rivals is None:
            del self._owner[key]
            return
        rivals.discard(guid)
        self._owner[key] = min(rivals)
        if len(rivals) == 1:
            del self._rivals[key]
