"""The agreement test notices every kind of mistake in the compiler: each mutation below is one, and must be found."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import msgspec
import pytest

from overlace.model.policy import ALLOW_FROM, ALLOW_TO, parse_items
from overlace.network.hns import policies as p
from overlace.network.hns.documents import (
    Distribution,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNetwork,
    HostComputeRoute,
    PortMappingFlags,
)
from overlace.network.overlay_documents import guid_of
from overlace.network.vfp import compile as compiler
from overlace.network.vfp.compile import compile_all
from overlace.network.vfp.model import Packet
from overlace.network.vfp.tables import (
    ANY_PORT,
    AccessList,
    AccessRule,
    Backend,
    Behind,
    Entry,
    Flood,
    Frontend,
    Hop,
    LocalEndpoint,
    Network,
    RemoteEndpoint,
    RemoteSubnet,
)

from .agreement import disagreements, wrong_facts
from .world import HOST, ME, OTHER, World, endpoint, node, port, running, service, task

pytestmark = pytest.mark.slow

replace = msgspec.structs.replace
Mutation = Callable[[Entry], Entry]


def rich() -> World:
    """One document of each kind and every policy the data path enforces."""
    w = running()
    allowed = parse_items(ALLOW_FROM, "web:tcp/80, 10.0.1.0/28:udp, ingress:tcp/80")
    w.change(
        put=(
            replace(service("db", "back", "10.0.1.7"), allowed=allowed, affinity=60),
            replace(service("db", "ingress", "10.0.0.7", port(80, 8081)), allowed=allowed),
            endpoint("t3", "back", ME, "10.0.1.11", "db"),
            endpoint("t3", "ingress", ME, "10.0.0.11", "db"),
            endpoint("t4", "back", OTHER, "10.0.1.12", "db"),
            replace(
                service("web", "back", "10.0.1.5"), egress=50_000, allowed_to=parse_items(ALLOW_TO, "db:tcp")
            ),
        )
    )
    w.run(task("t3", ("back", "10.0.1.11/24"), ("ingress", "10.0.0.11/24"), service="db"))
    w.run(task("t6"))  # on the host's own network
    w.change(  # a Windows host, whose containers do not see clients outside
        put=(
            replace(
                node("node-windows", "172.28.1.13", ingress="10.0.0.4"), os="windows", sees_clients=False
            ),
            endpoint("t7", "ingress", "node-windows", "10.0.0.13", "db"),
        )
    )
    network = w.hns.get(HostComputeNetwork, guid_of("network", "back"))
    named = p.SetPolicy(
        p.SetPolicySettings(id="few", name="few", policy_type="IPSET", values="10.0.1.9,10.0.1.12")
    )
    routes = (
        p.RemoteSubnetRoute(p.RemoteSubnetRouteSettings(prefix, vni, address, mac))
        for prefix, vni, address, mac in (
            ("10.244.0.0/16", 4097, "172.28.1.21", "00-15-5D-00-00-21"),
            ("10.244.2.0/24", 4097, "172.28.1.22", "00-15-5D-00-00-22"),
            ("10.245.0.0/24", 5000, "172.28.1.23", "00-15-5D-00-00-23"),
        )
    )
    w.hns._store(
        replace(
            network,
            policies=(*network.policies, named, *routes, p.HostRoute(), network_acl("10.0.1.14", "84")),
            multicast_rate=500,
        )
    )
    rules = tuple(
        p.TierAclRule(
            tier_acl_rule_action=action,  # type: ignore[arg-type]
            protocols=protocol,
            remote_addresses=remote,
            local_ports=ports,
            priority=i,
        )
        for i, (action, protocol, remote, ports) in enumerate(
            [("Pass", "6", "few", "80"), ("Block", "6", "10.0.1.9", "80,90-99"), ("Allow", "17", "", "")]
        )
    )
    w.change(put=(endpoint("t5", "back", ME, "10.0.1.13", "job"),))
    w.run(task("t5", ("back", "10.0.1.13/24"), service="job"))
    e = w.hns.get(HostComputeEndpoint, guid_of("endpoint", "back", "t5"))
    plain = tuple(x for x in e.policies if not isinstance(x, p.Acl))
    plain = tuple(x for x in plain if not isinstance(x, p.OutBoundNat))
    more = (
        p.OutBoundNat(
            p.OutBoundNatSettings(exceptions=("10.0.0.0/8",), destinations=("198.51.100.0/24", "10.0.0.0/9"))
        ),
        p.TierAcl(p.TierAclSettings(name="first", direction="In", order=1, tier_acl_rules=rules)),
        p.TierAcl(p.TierAclSettings(name="second", direction="In", order=2, tier_acl_rules=rules[1:2])),
        acl("Allow", "In", 200, "6", "few", "80"),
        acl("Block", "In", 100, "6", "10.0.1.10", "80"),
        acl("Allow", "In", 300, "6", "10.0.1.8/29", ""),
        acl("Allow", "In", 50, "6", "10.0.1.10", "80", "10.0.1.99"),
        acl("Allow", "Out", 100, "256", "", "", "10.0.1.13"),
        p.OutBoundNat(
            p.OutBoundNatSettings(destinations=("192.0.2.0/28", "10.0.1.64/26"), max_port_pool_usage=64)
        ),
        p.SdnRoute(p.SdnRouteSettings(destination_prefix="203.0.113.0/24", next_hop="10.0.1.10")),
        p.SdnRoute(p.SdnRouteSettings(destination_prefix="203.0.113.8/29", next_hop="10.0.1.9")),
        p.SdnRoute(p.SdnRouteSettings(destination_prefix="198.51.100.192/26", need_encap=True)),
    )
    w.hns._store(replace(e, policies=(*plain, *more)))
    w.hns.create(
        HostComputeRoute(
            host_compute_endpoints=(e.id,),
            routes=(
                p.SdnRouteSettings(destination_prefix="203.0.113.64/26", next_hop="10.0.1.13"),
                p.SdnRouteSettings(destination_prefix="0.0.0.0/1", next_hop="10.0.1.13"),
                p.SdnRouteSettings(destination_prefix="169.254.169.254/32", next_hop=HOST),
            ),
        ),
    )
    elsewhere = w.hns.get(HostComputeEndpoint, guid_of("endpoint", "back", "t2"))
    w.hns.create(
        replace(
            elsewhere,
            id="",
            name="elsewhere",
            ip_configurations=(replace(elsewhere.ip_configurations[0], ip_address="10.246.0.9"),),
        )
    )
    outer = w.hns.get(HostComputeLoadBalancer, guid_of("vip", "back", "web"))
    m = replace(outer.port_mappings[0], protocol=6, internal_port=80, external_port=80, flags=0)
    ep = HostComputeLoadBalancer(
        id="", name="outer", host_compute_network=outer.host_compute_network,
        host_compute_endpoints=outer.host_compute_endpoints, frontend_vips=("198.51.100.99",), port_mappings=(m,),
    )  # fmt: skip
    w.hns.create(ep)
    flags = int(PortMappingFlags.PRESERVE_DIP | PortMappingFlags.USE_MUX)
    preserving = replace(
        ep, name="preserving", frontend_vips=("198.51.100.98",), port_mappings=(replace(m, flags=flags),)
    )
    w.hns.create(preserving)
    lb = w.hns.get(HostComputeLoadBalancer, guid_of("vip", "back", "db"))
    (m,) = lb.port_mappings
    kind = int(Distribution.SOURCE_IP_PROTOCOL)
    w.hns._store(replace(lb, port_mappings=(replace(m, distribution_type=kind),)))
    return w


def acl(
    action: str, direction: str, priority: int, protocols: str, remote: str, ports: str, local: str = ""
) -> p.Acl:
    return p.Acl(
        p.AclSettings(
            action=action,  # type: ignore[arg-type]
            direction=direction,  # type: ignore[arg-type]
            protocols=protocols,
            local_addresses=local,
            remote_addresses=remote,
            local_ports=ports,
            rule_type="Switch",
            priority=priority,
        )
    )


def network_acl(remote: str, ports: str) -> p.NetworkAcl:
    return p.NetworkAcl(acl("Allow", "In", 120, "6", remote, ports).settings)


PACKETS = [
    Packet(src, dst, protocol, 999, dport)
    for src, dst, protocol, dport in product(
        ("10.0.1.14", "10.0.1.9", "10.0.1.10", "10.0.1.12", "172.28.1.200"),
        (
            *(f"10.0.1.{n}" for n in (1, 5, 7, 9, 10, 11, 12, 13, 77)),
            "10.0.0.11",
            "10.0.2.4",
            "10.244.1.1",
            "10.244.2.2",
            "10.245.0.3",
            "10.246.0.9",
            "192.0.2.1",
            "192.0.2.77",
            "198.51.100.7",
            "198.51.100.98",
            "198.51.100.99",
            "198.51.100.200",
            "203.0.113.1",
            "203.0.113.9",
            "203.0.113.70",
            "169.254.169.254",
            HOST,
            "239.1.2.3",
            "255.255.255.255",
            "10.0.1.255",
        ),
        (6, 17),
        (80, 84, 95, 8080, 8081, 9090),
    )
]


def on(kind: type, change: Callable[[Entry], Entry]) -> Mutation:  # type: ignore[type-arg]
    return lambda e: change(e) if isinstance(e, kind) else e


def rules(change: Callable[[AccessRule], AccessRule]) -> Mutation:
    return on(AccessList, lambda e: replace(e, rules=tuple(change(r) for r in e.rules)))  # type: ignore[attr-defined]


def _members(change: Callable[[tuple[Backend, ...]], tuple[Backend, ...]]) -> Mutation:
    return on(Frontend, lambda e: replace(e, backends=change(e.backends)))  # type: ignore[attr-defined]


def _hops(change: Callable[[Hop], Hop]) -> Mutation:
    return on(LocalEndpoint, lambda e: replace(e, hops=tuple(change(h) for h in e.hops)))  # type: ignore[attr-defined]


MUTATIONS: dict[str, Mutation] = {
    "allow becomes block": rules(lambda r: replace(r, action="block") if r.action == "allow" else r),
    "block becomes allow": rules(lambda r: replace(r, action="allow") if r.action == "block" else r),
    "pass becomes allow": rules(lambda r: replace(r, action="allow") if r.action == "pass" else r),
    "pass becomes block": rules(lambda r: replace(r, action="block") if r.action == "pass" else r),
    "pass leaves all tiers out": rules(lambda r: replace(r, tier=0)),
    "any protocol": rules(lambda r: replace(r, protocol=0)),
    "any local address": rules(lambda r: replace(r, local=())),
    "any remote address": rules(lambda r: replace(r, remote=())),
    "only the first address of a set": rules(lambda r: replace(r, remote=r.remote[:1])),
    "any local port": rules(lambda r: replace(r, local_ports=ANY_PORT)),
    "any remote port": rules(lambda r: replace(r, remote_ports=ANY_PORT)),
    "a range is its first port": rules(lambda r: replace(r, local_ports=(r.local_ports[0],) * 2)),
    "rules in another order": on(AccessList, lambda e: replace(e, rules=e.rules[::-1])),  # type: ignore[attr-defined]
    "the last rule is lost": on(AccessList, lambda e: replace(e, rules=e.rules[:-1])),  # type: ignore[attr-defined]
    "no access lists": on(LocalEndpoint, lambda e: replace(e, inbound=0, outbound=0)),
    "NAT for everyone": on(LocalEndpoint, lambda e: replace(e, outbound_nat=True, nat_exceptions=())),
    "NAT for nobody": on(LocalEndpoint, lambda e: replace(e, outbound_nat=False)),
    "NAT to any destination": on(LocalEndpoint, lambda e: replace(e, nat_destinations=())),
    "NAT of the first policy only": on(LocalEndpoint, lambda e: replace(e, more_nats=())),
    "NAT by every policy": on(
        LocalEndpoint, lambda e: replace(e, more_nats=(((), ()),) if e.more_nats else ())
    ),  # type: ignore[attr-defined]
    "NAT by any number of ports": on(LocalEndpoint, lambda e: replace(e, nat_ports=0)),
    "NAT for a prefix of the overlay": on(
        LocalEndpoint,
        lambda e: replace(e, nat_exceptions=tuple(c for c in e.nat_exceptions if c != "198.51.100.192/26")),  # type: ignore[attr-defined]
    ),
    "no way to the host": on(LocalEndpoint, lambda e: replace(e, host_route=False)),
    "no SDN routes": on(LocalEndpoint, lambda e: replace(e, hops=())),
    "SDN routes to the host": _hops(lambda h: replace(h, next_hop="")),
    "SDN routes to another endpoint": _hops(lambda h: replace(h, next_hop="10.0.1.12")),
    "shorter SDN routes": _hops(lambda h: replace(h, prefix="203.0.113.0/24")),
    "nobody routes for others": on(Behind, lambda e: replace(e, next_hop="10.0.1.77")),
    "another routes for others": on(Behind, lambda e: replace(e, next_hop="10.0.1.9")),
    "external VIPs stay inside": on(
        Frontend, lambda e: replace(e, vni=e.vni or 9) if e.address == "198.51.100.99" else e
    ),  # type: ignore[attr-defined]
    "no multicast": on(Network, lambda e: replace(e, flood=False)),
    "multicast to all but one here": on(Flood, lambda e: replace(e, locals=e.locals[1:])),  # type: ignore[attr-defined]
    "multicast to no other host": on(Flood, lambda e: replace(e, providers=())),
    "no broadcast": on(Flood, lambda e: replace(e, broadcasts=())),
    "multicast at another rate": on(Flood, lambda e: replace(e, rate=e.rate + 1)),  # type: ignore[attr-defined]
    "no route from the host": on(LocalEndpoint, lambda e: replace(e, outbound_nat=False, host_route=False)),
    "no rate limit": on(LocalEndpoint, lambda e: replace(e, rate=0)),
    "another MAC here": on(LocalEndpoint, lambda e: replace(e, mac="02:00:00:00:00:01")),
    "another prefix length": on(LocalEndpoint, lambda e: replace(e, prefix=e.prefix - 1)),  # type: ignore[attr-defined]
    "another MAC there": on(RemoteEndpoint, lambda e: replace(e, mac="02:00:00:00:00:01")),
    "another host": on(RemoteEndpoint, lambda e: replace(e, provider_address="172.28.1.99")),
    "a route to another host": on(RemoteSubnet, lambda e: replace(e, provider_address="172.28.1.99")),
    "a route by another VNI": on(RemoteSubnet, lambda e: replace(e, through=e.through + 1)),  # type: ignore[attr-defined]
    "a route to another router": on(RemoteSubnet, lambda e: replace(e, mac="02:00:00:00:00:01")),
    "a shorter route": on(RemoteSubnet, lambda e: replace(e, prefix=e.prefix.replace("/24", "/31"))),  # type: ignore[attr-defined]
    "a backend is lost": _members(lambda b: b[1:]),
    "backends on their own port": _members(lambda b: tuple(replace(x, port=0) for x in b)),
    "backends in another network": _members(lambda b: tuple(replace(x, vni=x.vni + 1) for x in b)),
    "all see their clients": _members(lambda b: tuple(replace(x, source="") for x in b)),
    "nobody sees its clients": _members(lambda b: tuple(replace(x, source="10.0.0.2") for x in b)),
    "no affinity": on(Frontend, lambda e: replace(e, affinity=0)),
    "affinity of all protocols": on(Frontend, lambda e: replace(e, affinity_protocol=False)),
    "destinations are rewritten all the same": on(Frontend, lambda e: replace(e, preserves=False)),
    "destinations are kept": on(Frontend, lambda e: replace(e, preserves=True)),
    "a frontend on another port": on(Frontend, lambda e: replace(e, port=e.port + 1)),  # type: ignore[attr-defined]
    "a frontend of another protocol": on(Frontend, lambda e: replace(e, protocol=132)),
    "no gateway": on(Network, lambda e: replace(e, gateway="")),
    "another router MAC": on(Network, lambda e: replace(e, gateway_mac="02:00:00:00:00:01")),
    "no subnets": on(Network, lambda e: replace(e, subnets=())),
    "replies do not find back": on(Network, lambda e: replace(e, ingress=False)),
    "local networks leave the host": on(Network, lambda e: replace(e, local=False)),
}


def check_agreement(w: World, packets: list[Packet]) -> None:
    """Layers and tables of these documents do the same with every packet."""
    tables = compile_all(w.hns.state, HOST)
    assert disagreements(w.hns.state, tables, HOST, packets, 2) == []
    assert wrong_facts(w.hns.state, tables, HOST) == []


def check_found(w: World, change: Mutation, packets: list[Packet], monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that makes this mistake in these documents is noticed by some packet, or by the tables' own facts."""
    right = compiler.compile_document
    correct = [e for d in w.hns.state.documents.values() for e in right(d, w.hns.state, HOST)]
    monkeypatch.setattr(compiler, "compile_document", lambda *args: [change(e) for e in right(*args)])
    mutated = compile_all(w.hns.state, HOST)
    assert {e.key: e for e in mutated} != {e.key: e for e in correct}, "the mutation changes something"
    seen = (disagreements(w.hns.state, mutated, HOST, [packet], 2) for packet in packets)
    assert wrong_facts(w.hns.state, mutated, HOST) or any(seen)


def test_without_a_mistake_there_is_agreement() -> None:
    check_agreement(rich(), PACKETS)


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_mistake_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_found(rich(), MUTATIONS[name], PACKETS, monkeypatch)
