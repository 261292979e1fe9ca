"""From HNS documents to the layers of a switch port: what the data path does, in a form that explains itself.

Owns the layering (pure). Compiled when asked for, never per packet: the data path runs on the tables. Both
come from the same documents and must agree on where a packet goes (property tests hold them to it).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from overlace.model.family import is_six
from overlace.network.hns import policies as p
from overlace.network.hns.acl import Tier, is_closed, is_filtered, judging, read_sets, resolve, tiers_of
from overlace.network.hns.documents import (
    Distribution,
    Guid,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNetwork,
    LoadBalancerPortMapping,
    PortMappingFlags,
    colon_mac,
)
from overlace.network.hns.remotes import tunnel_to
from overlace.network.hns.state import State
from overlace.network.vfp.compile import (
    compile_flood,
    compile_network,
    compile_routes,
    mapped_at,
    outer_addresses,
    overlay_prefixes,
    routes_of,
    seen_as,
    vni_of,
)
from overlace.network.vfp.model import (
    HOST_PORT,
    Allow,
    Answer,
    Block,
    Condition,
    Deliver,
    Direction,
    Encap,
    Group,
    Hairpin,
    Layer,
    LoadBalance,
    Meter,
    Pass,
    Port,
    Replicate,
    Rule,
    SourceNat,
    ToHost,
    ToPublished,
    host_prefix,
    network_of,
    within,
)
from overlace.network.vfp.tables import HOST4, HOST6, Backend

FIREWALL = "FW_ADMIN_LAYER_ID"
METER = "QOS_LAYER"
BALANCE = "SLB_LB_LAYER"
HAIRPIN = "SLB_HAIRPIN_LAYER"
NAT = "SLB_NAT_LAYER"
ROUTER = "VNET_DR_REDIRECTION_LAYER"
ENCAP = "VNET_ENCAP_LAYER"
MULTICAST = "MULTICAST_LAYER"

_ANY = Condition()


def meter_layers(e: HostComputeEndpoint) -> tuple[Layer, ...]:
    """What an endpoint may send, when a QOS policy says so."""
    qos = p.policy_of(e.policies, p.Qos)
    if qos is None:
        return ()
    rule = Rule("QOS", 100, _ANY, Meter(qos.settings.maximum_outgoing_bandwidth_in_bytes))
    return (Layer(METER, (Group("QOS_OUT", "OUT", 100, (rule,)),)),)


def firewall_groups(e: HostComputeEndpoint, network: HostComputeNetwork) -> tuple[Group, ...]:
    """Without ACLs everything passes; with any, what none of a direction allows is blocked, connections' replies
    excepted (the layer is stateful). One group per tier, then the endpoint's plain ACLs, then the rest."""
    policies = judging(network.policies, e.policies)
    if not is_filtered(policies):
        default = Rule("DEFAULT_ALLOW", 65535, _ANY, Allow())
        return Group("FW_OUT", "OUT", 100, default=default), Group("FW_IN", "IN", 100, default=default)
    sets = read_sets(network.policies)
    closed = is_closed(policies)
    out: list[Group] = []
    for going, word in (("OUT", "Out"), ("IN", "In")):
        direction: Direction = "OUT" if going == "OUT" else "IN"
        groups = [
            _tier_group(e, tier, direction, 100 + i, sets) for i, tier in enumerate(tiers_of(policies, word))
        ]
        rest = Rule("DEFAULT_ALLOW", 65535, _ANY, Allow())
        if closed:
            rest = Rule("DEFAULT_BLOCK", 65535, _ANY, Block(f"{e.name}: no ACL {going} allows it"))
        out += [*groups, Group(f"FW_{going}", direction, 65535, default=rest)]
    return tuple(out)


def _tier_group(
    e: HostComputeEndpoint, tier: Tier, going: Direction, priority: int, sets: Mapping[str, tuple[str, ...]]
) -> Group:
    rules = []
    for i, a in enumerate(tier.rules):
        local, remote = (resolve(a.local, sets), a.local_ports), (resolve(a.remote, sets), a.remote_ports)
        (src, sports), (dst, dports) = (local, remote) if going == "OUT" else (remote, local)
        condition = Condition(src=src, dst=dst, protocols=a.protocols, sports=sports, dports=dports)
        what = "an ACL" if tier.name in ("ACL", "HOST") else f"tier {tier.name}: an ACL"
        blocked = Block(f"{e.name}: {what} of priority {a.priority} blocks it")
        action: Allow | Pass | Block = {"allow": Allow(), "pass": Pass(), "block": blocked}[a.action]  # type: ignore[assignment]
        rules.append(Rule(f"{tier.name}_{going}_{i}", a.priority, condition, action))
    return Group(f"FW_{tier.name}_{going}", going, priority, tuple(rules))


def multicast_rules(network: HostComputeNetwork, state: State) -> tuple[Rule, ...]:
    """Broadcast and multicast, where the network carries them."""
    for entry in compile_flood(network, state):
        here, here6 = (
            tuple(state.by_address[(network.id, address)] for address in found)
            for found in (entry.locals, entry.locals6)
        )
        to = ("224.0.0.0/4", "255.255.255.255/32", *(f"{address}/32" for address in entry.broadcasts))
        rules = [Rule("MULTICAST", 100, Condition(dst=to), Replicate(here, entry.providers, entry.rate))]
        if here6:
            action = Replicate(here6, entry.providers6, entry.rate)
            rules.append(Rule("MULTICAST_IPV6", 100, Condition(dst=("ff00::/8",)), action))
        return tuple(rules)
    return ()


def multicast_layers(network: HostComputeNetwork, state: State) -> tuple[Layer, ...]:
    rules = multicast_rules(network, state)
    return (Layer(MULTICAST, (Group("MULTICAST_OUT", "OUT", 100, rules),)),) if rules else ()


def balance_group(network: HostComputeNetwork, state: State) -> Group:
    """One rule per VIP of the network."""
    rules: list[Rule] = []
    exact: dict[str, Rule] = {}
    for lb_id in sorted(state.network_balancers.get(network.id, ())):
        lb = state.get(lb_id, HostComputeLoadBalancer)
        if lb is None:
            continue
        for vip in lb.frontend_vips:
            for m in lb.port_mappings:
                condition = Condition(dst=(host_prefix(vip),), protocol=m.protocol, dport=m.external_port)
                rule = Rule(f"LB_{lb.name}_{vip}", 100, condition, _members(lb, m, state, vip, outside=False))
                if m.protocol == 0 and m.external_port == 0:
                    exact[vip] = rule
                else:
                    rules.append(rule)
    return Group("LB_OUT", "OUT", 100, tuple(rules), exact)


def closed_group(balanced: Group) -> Group:
    """What asks a VIP for a port that no load balancer has: refused, whatever routes lead there."""
    ports = {c for r in balanced.rules for c in r.condition.dst} - {
        host_prefix(a) for a in balanced.by_address
    }
    rule = Rule(
        "VIP_CLOSED", 100, Condition(dst=tuple(sorted(ports))), Block("no service has this port of the VIP")
    )
    return Group("LB_CLOSED", "OUT", 200, (rule,) if ports else ())


def _members(
    lb: HostComputeLoadBalancer, m: LoadBalancerPortMapping, state: State, front: str, *, outside: bool
) -> LoadBalance | Block:
    """Each member by its address of the family `front` has; `outside`: for clients outside the overlay."""
    network = state.get(lb.host_compute_network, HostComputeNetwork)
    assert network is not None
    found = (state.get(e, HostComputeEndpoint) for e in lb.host_compute_endpoints)
    preserves = bool(m.flags & PortMappingFlags.PRESERVE_DIP)
    backends = tuple(
        Backend(vni_of(network), c.ip_address, m.internal_port, seen_as(lb, e, c.ip_address, outside=outside))
        for e in found
        if e is not None and not (preserves and e.remote)
        for c in e.ip_configurations
        if is_six(c.ip_address) == is_six(front)
    )
    if not backends:
        return Block(f"{lb.name} has no task that takes connections")
    apart = m.distribution_type == Distribution.SOURCE_IP_PROTOCOL
    return LoadBalance(backends, m.affinity, apart, preserves)


def mapping_group(network: HostComputeNetwork, state: State, routed: tuple[Rule, ...] = ()) -> Group:
    """One rule per known endpoint of the network (VFP's CA to PA mappings); what is unknown is dropped, not
    flooded. `routed`: rules of SDN routes."""
    exact: dict[str, Rule] = {}
    vni = vni_of(network)
    for guid in state.endpoints_of.get(network.id, ()):
        e = state.get(guid, HostComputeEndpoint)
        if e is None or not e.address or not (e.remote or e.host_compute_namespace):
            continue
        mac = colon_mac(e.mac_address)
        provider = tunnel_to(e, network) if e.remote else ""
        if e.remote and not provider:
            continue
        action = Encap(vni, provider, mac) if e.remote else Deliver(e.id, mac)
        for c in e.ip_configurations:
            condition = Condition(dst=(host_prefix(c.ip_address),))
            exact[c.ip_address] = Rule(f"MAP_{e.name}", 100, condition, action)
    unknown = Rule(
        "DEFAULT_BLOCK", 65000, _ANY, Block(f"network {network.name} has no endpoint with this address")
    )
    routes = {r.prefix: r for r in compile_routes(network)}
    rules = tuple(
        Rule(
            f"ROUTE_{r.prefix}",
            200 + n,
            Condition(dst=(r.prefix,)),
            Encap(r.through, r.provider_address, r.mac),
        )
        for n, r in enumerate(sorted(routes.values(), key=lambda r: -network_of(r.prefix).prefixlen))
    )
    return Group("MAPPINGS", "OUT", 100, (*routed, *rules), by_address=exact, default=unknown)


def _hop_rules(
    routes: Iterable[tuple[str, str]], network: HostComputeNetwork, state: State
) -> tuple[Rule, ...]:
    """`routes`: (prefix, next hop), the next hop empty for the host."""
    by_length = sorted(dict(routes).items(), key=lambda r: -network_of(r[0]).prefixlen)
    known = mapping_group(network, state).by_address
    rules = []
    for n, (prefix, hop) in enumerate(by_length):
        nobody = Block(f"network {network.name} has no endpoint {hop}, the next hop of an SDN route")
        action = (known[hop].action if hop in known else nobody) if hop else ToHost()
        rules.append(Rule(f"SDN_ROUTE_{prefix}", 150 + n, Condition(dst=(prefix,)), action))
    return tuple(rules)


def behind_rules(network: HostComputeNetwork, state: State) -> tuple[Rule, ...]:
    """Where packets of other hosts go that are for addresses behind an endpoint."""
    found: dict[str, str] = {}
    for guid in state.endpoints_of.get(network.id, ()):
        e = state.get(guid, HostComputeEndpoint)
        if e is not None and not e.remote:
            found |= {r.destination_prefix: r.next_hop for r in routes_of(e, state)}
    segment = compile_network(network, state)
    inside = {prefix: hop for prefix, hop in found.items() if within(hop, segment.subnets)}
    vips = (vip for on, vip in state.vips if on == network.id)
    own = tuple(host_prefix(address) for address in (*segment.gateways, *vips))
    rules = _hop_rules(inside.items(), network, state)
    return tuple(
        msgspec.structs.replace(r, condition=msgspec.structs.replace(r.condition, dst_not=own)) for r in rules
    )


def _subnets(state: State) -> tuple[str, ...]:
    """Of every network: nobody reaches another one's by way of the host."""
    networks = (state.get(guid, HostComputeNetwork) for guid in state.by_network_name.values())
    return tuple(s for n in networks if n is not None for s in compile_network(n, state).subnets)


def hairpin_group(network: HostComputeNetwork, address: str, state: State) -> Group:
    """Of a client that is given itself as backend."""
    gateways = compile_network(network, state).gateways
    router = next((g for g in gateways if is_six(g) == is_six(address)), "")
    rule = Rule(f"HAIRPIN_{address}", 100, Condition(src=(host_prefix(address),)), Hairpin(router))
    return Group("HAIRPIN_OUT", "OUT", 100, (rule,))


def endpoint_port(guid: Guid, state: State, host: str) -> Port:
    """The port of a local endpoint. Raises KeyError when there is no such local endpoint."""
    e = state.get(guid, HostComputeEndpoint)
    network = (
        state.get(e.host_compute_network, HostComputeNetwork) if e is not None and not e.remote else None
    )
    if e is None or network is None:
        raise KeyError(f"{guid} is not a local endpoint")
    segment = compile_network(network, state)
    routes = [(r.destination_prefix, "" if r.next_hop == host else r.next_hop) for r in routes_of(e, state)]
    own = {c.ip_address for c in e.ip_configurations}
    routes = [(prefix, hop) for prefix, hop in routes if hop not in own]
    nats = [x.settings for x in e.policies if isinstance(x, p.OutBoundNat)]
    if not nats and network.type == "NAT":
        nats = [p.OutBoundNatSettings()]
    mappings = mapping_group(network, state, _hop_rules(routes, network, state))
    inside = (
        *segment.subnets,
        *(host_prefix(address) for address in mappings.by_address if not within(address, segment.subnets)),
        *(r.prefix for r in compile_routes(network)),
        *(prefix for prefix, _ in routes),
        *_subnets(state),
    )
    nat_rules = tuple(
        Rule(
            f"OUTBOUND_NAT{f'_{i}' if i else ''}{'' if source == host else '_IPV6'}",
            100,
            Condition(dst=wanted or (anywhere,), dst_not=(*overlay_prefixes(e, state), *nat.exceptions)),
            SourceNat(source, nat.max_port_pool_usage),
        )
        for i, nat in enumerate(nats)
        for source, anywhere in ((host, "0.0.0.0/0"), (HOST6, "::/0"))
        if (wanted := tuple(c for c in nat.destinations if is_six(c) == (source == HOST6)))
        or not nat.destinations
    )
    if p.policy_of(network.policies, p.HostRoute) is not None:
        to_host = Condition(dst=(host_prefix(host), host_prefix(HOST6)))
        nat_rules = (Rule("HOST_ROUTE", 50, to_host, ToHost()), *nat_rules)
    router: tuple[Rule, ...] = ()
    if segment.gateways:
        to_gateway = Condition(dst=tuple(host_prefix(gateway) for gateway in segment.gateways))
        router = (Rule("DR", 100, to_gateway, Answer(segment.gateway_mac)),)
    outside = Condition(dst_not=inside)
    balanced = balance_group(network, state)
    published: tuple[Rule, ...] = ()
    if nats or p.policy_of(network.policies, p.HostRoute) is not None:
        published = tuple(
            Rule(f"PUBLISHED_{source}", 100, Condition(dst=(front,)), ToPublished(source))
            for source, front in ((host, "0.0.0.0/0"), (HOST6, host_prefix(HOST6)))
        )
    layers = (
        *meter_layers(e),
        Layer(FIREWALL, firewall_groups(e, network)),
        *multicast_layers(network, state),
        Layer(BALANCE, (balanced, closed_group(balanced))),
        Layer(
            NAT,
            (
                Group("NAT_PUBLISHED", "OUT", 50, published, condition=outside),
                Group("NAT_OUT", "OUT", 100, nat_rules, condition=outside),
            ),
        ),
        Layer(ROUTER, (Group("DR_OUT", "OUT", 100, router),)),
        Layer(ENCAP, (mappings,)),
    )
    return Port(guid, segment.vni, layers)


def found_at(front: str, host: str) -> tuple[str, ...]:
    """Prefixes of packets to a published port. Of all the host's IPv4 addresses the simulator knows the one."""
    return (host_prefix(HOST4), host_prefix(host)) if front == HOST4 else (host_prefix(front),)


def host_port(state: State, host: str) -> Port:
    """The host's own port: published ports lead into networks, everything else is the host's."""
    rules: list[Rule] = []
    for (address, protocol, number), guid in sorted(state.by_outer.items()):
        d = state.documents[guid]
        if not isinstance(d, (HostComputeLoadBalancer, HostComputeEndpoint)):
            continue
        if isinstance(d, HostComputeLoadBalancer) and d.frontend_vips:
            continue  # below
        network = state.get(d.host_compute_network, HostComputeNetwork)
        if network is None:
            continue
        if isinstance(d, HostComputeLoadBalancer):
            target = next(m for m in d.port_mappings if (m.protocol, m.external_port) == (protocol, number))
            for front in outer_addresses(d, network):
                condition = Condition(dst=found_at(front, host), protocol=protocol, dport=number)
                rules.append(
                    Rule(
                        f"LB_HOST_{d.name}_{number}",
                        100,
                        condition,
                        _members(d, target, state, front, outside=True),
                    )
                )
        elif d.host_compute_namespace:
            for policy in d.policies:
                if not isinstance(policy, p.PortMapping):
                    continue
                s = policy.settings
                at = "" if s.vip == state.host else s.vip
                if (at, s.protocol, s.external_port) != (address, protocol, number):
                    continue
                for front in mapped_at(d, s):
                    own = [c.ip_address for c in d.ip_configurations if is_six(c.ip_address) == is_six(front)]
                    backends = tuple(Backend(vni_of(network), a, s.internal_port) for a in own[:1])
                    condition = Condition(dst=found_at(front, host), protocol=protocol, dport=number)
                    action = LoadBalance(backends) if backends else Block(f"{d.name} has no such address")
                    rules.append(Rule(f"NAT_{d.name}_{number}", 100, condition, action))
    for guid in sorted(lb for found in state.network_balancers.values() for lb in found):
        lb = state.get(guid, HostComputeLoadBalancer)
        network = state.get(lb.host_compute_network, HostComputeNetwork) if lb is not None else None
        if lb is None or network is None or not lb.frontend_vips:
            continue
        for vip in outer_addresses(lb, network):
            for m in lb.port_mappings:
                if not m.flags & PortMappingFlags.INTERNAL_LOAD_BALANCER:
                    condition = Condition(dst=found_at(vip, host), protocol=m.protocol, dport=m.external_port)
                    rules.append(
                        Rule(
                            f"LB_HOST_{lb.name}_{vip}",
                            100,
                            condition,
                            _members(lb, m, state, vip, outside=True),
                        )
                    )
    rules.sort(
        key=lambda rule: len(rule.condition.dst)
    )  # a port of one address is asked before that of them all
    return Port(HOST_PORT, 0, (Layer(NAT, (Group("NAT_IN", "IN", 100, tuple(rules)),)),))


def routed_here(state: State, address: str) -> Guid | None:
    """The container here that the host's own programs reach by this address: one with outbound NAT, or on a network with
    a HostRoute. Its port's layers judge them; nothing of the host's own does."""
    for guid in sorted(guid for (_, found), guid in state.by_address.items() if found == address):
        e = state.get(guid, HostComputeEndpoint)
        network = state.get(e.host_compute_network, HostComputeNetwork) if e is not None else None
        if e is None or network is None or e.remote or not e.host_compute_namespace:
            continue
        open_to_host = p.policy_of(network.policies, p.HostRoute) is not None or network.type == "NAT"
        if open_to_host or p.policy_of(e.policies, p.OutBoundNat) is not None:
            return guid
    return None


def network_by_vni(vni: int, state: State) -> HostComputeNetwork | None:
    guid = state.by_vsid.get(vni)
    if guid is not None:
        return state.get(guid, HostComputeNetwork)
    for d in state.documents.values():
        if isinstance(d, HostComputeNetwork) and vni_of(d) == vni:
            return d
    return None
