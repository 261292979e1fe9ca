"""The mistakes of test_mutations.py made in entries of IPv6 alone: the agreement test notices each."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest

from overlace.network.hns import policies as p
from overlace.network.hns.documents import (
    Distribution,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNetwork,
    LoadBalancerPortMapping,
    PortMappingFlags,
)
from overlace.network.overlay_documents import guid_of
from overlace.network.vfp.model import Packet
from overlace.network.vfp.tables import HOST6, Flood, Network, RemoteSubnet

from .test_mutations import HOST, MUTATIONS, Mutation, _hops, acl, check_agreement, check_found, on
from .world import ME, OTHER, World, both, endpoint, running6, service, task6

pytestmark = pytest.mark.slow

replace = msgspec.structs.replace
OF_IPV4 = {
    "no gateway", "another router MAC", "no subnets", "replies do not find back", "local networks leave the host",
    "a shorter route", "SDN routes to another endpoint", "shorter SDN routes", "nobody routes for others",
    "another routes for others", "external VIPs stay inside",
    "no multicast", "multicast to all but one here", "multicast to no other host", "no broadcast",
    "multicast at another rate", "NAT for a prefix of the overlay", "all see their clients",
}  # fmt: skip


def rich6() -> World:
    """A network of both families, with every policy that IPv6 knows."""
    w = running6()
    w.change(
        put=(
            replace(both(service("db", "back", "10.0.1.7")), affinity=60),
            both(endpoint("t5", "back", ME, "10.0.1.13", "db")),
            both(endpoint("t4", "back", OTHER, "10.0.1.12", "db")),
            replace(both(service("web", "back", "10.0.1.5")), egress=50_000),
        )
    )
    w.run(task6("t5", "back", "10.0.1.13", "db"))
    network = w.hns.get(HostComputeNetwork, guid_of("network", "back"))
    named = p.SetPolicy(
        p.SetPolicySettings(id="few", name="few", policy_type="IPSET", values="10.0.1.9,fd00:1::9,fd00:1::12")
    )
    routes = (
        p.RemoteSubnetRoute(p.RemoteSubnetRouteSettings(prefix, vni, address, mac))
        for prefix, vni, address, mac in (
            ("fd00:244::/48", 4097, "172.28.1.21", "00-15-5D-00-00-21"),
            ("fd00:244:0:2::/64", 4097, "172.28.1.22", "00-15-5D-00-00-22"),
            ("fd00:245::/64", 5000, "172.28.1.23", "00-15-5D-00-00-23"),
        )
    )
    w.hns._store(
        replace(network, policies=(*network.policies, named, *routes, p.HostRoute()), multicast_rate=500)
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
            [("Pass", "6", "few", "80"), ("Block", "6", "fd00:1::9", "80,90-99"), ("Allow", "17", "", "")]
        )
    )
    e = w.hns.get(HostComputeEndpoint, guid_of("endpoint", "back", "t5"))
    to_web = acl("Allow", "Out", 100, "6", "", "", "fd00:1::13")
    more = (
        p.TierAcl(p.TierAclSettings(name="first", direction="In", order=1, tier_acl_rules=rules)),
        p.TierAcl(p.TierAclSettings(name="second", direction="In", order=2, tier_acl_rules=rules[1:2])),
        acl("Allow", "In", 200, "6", "few", "80"),
        acl("Block", "In", 100, "6", "fd00:1::10", "80"),
        acl("Allow", "In", 300, "6", "fd00:1::8/125,fd00:1::10/125", ""),
        acl("Allow", "In", 50, "6", "fd00:1::10", "80", "fd00:1::99"),
        replace(to_web, settings=replace(to_web.settings, local_ports="", remote_ports="80")),
        acl("Allow", "Out", 100, "17", "", "", "10.0.1.13,fd00:1::13"),
        p.OutBoundNat(
            p.OutBoundNatSettings(
                exceptions=("2001:db8::1:0/112",),
                destinations=("2001:db8::/64", "fd00:1::/64"),
                max_port_pool_usage=40,
            )
        ),
        p.OutBoundNat(p.OutBoundNatSettings(destinations=("2001:db8:2::/64", "192.0.2.0/28"))),
    )
    more += (
        p.SdnRoute(p.SdnRouteSettings(destination_prefix="2001:db8:4::/47", next_hop="fd00:1::10")),
        p.SdnRoute(p.SdnRouteSettings(destination_prefix="2001:db8:4:1::/64", next_hop="fd00:1::9")),
        p.SdnRoute(p.SdnRouteSettings(destination_prefix="2001:db8:5::/64", next_hop=HOST)),
    )
    own = (x for x in e.policies if not isinstance(x, (p.Acl, p.OutBoundNat)))
    mapped = p.PortMapping(p.PortMappingSettings(6, 81, 8081))
    w.hns._store(replace(e, policies=(*own, *more, mapped)))
    kept = int(PortMappingFlags.PRESERVE_DIP)
    published = LoadBalancerPortMapping(protocol=6, internal_port=8080, external_port=95, flags=kept)
    members = tuple(guid_of("endpoint", "back", task) for task in ("t1", "t2", "t3"))
    w.hns.create(
        HostComputeLoadBalancer(
            host_compute_network=network.id, host_compute_endpoints=members, port_mappings=(published,)
        )
    )
    lb = w.hns.get(HostComputeLoadBalancer, guid_of("vip", "back", "db"))
    (m,) = lb.port_mappings
    kind = int(Distribution.SOURCE_IP_PROTOCOL)
    w.hns._store(replace(lb, port_mappings=(replace(m, distribution_type=kind),)))
    other = w.hns.get(HostComputeLoadBalancer, guid_of("vip", "back", "web"))
    web = LoadBalancerPortMapping(protocol=6, internal_port=8080, external_port=80)
    w.hns._store(replace(other, port_mappings=(web,)))
    return w


PACKETS = [
    Packet(src, dst, protocol, sport, dport)
    for src, dst, protocol, sport, dport in product(
        ("fd00:1::9", "fd00:1::10", "fd00:1::12", "2001:db8::7"),
        (
            *(f"fd00:1::{n}" for n in ("1", "5", "7", "9", "10", "12", "13", "77")),
            *(
                "fd00:244:0:1::1",
                "fd00:244:0:2::2",
                "fd00:245::3",
                "2001:db8::1",
                "2001:db8::1:1",
                "2001:db8:2::1",
                "2001:db8:3::1",
                "2001:db8:4::1",
                "2001:db8:4:1::1",
                "2001:db8:5::1",
                "ff05::7",
                HOST6,
            ),
        ),
        (6, 17),
        (999, 80),
        (80, 95, 8080, 8081),
    )
]


def of_six(change: Mutation) -> Mutation:
    """The same, of entries whose address or prefix is IPv6."""
    return lambda e: (
        change(e)
        if ":" in getattr(e, "address", "") or (isinstance(e, RemoteSubnet) and ":" in e.prefix)
        else e
    )


MISTAKES = (
    {name: of_six(change) for name, change in MUTATIONS.items() if name not in OF_IPV4}
    | {
        "a shorter route": on(RemoteSubnet, lambda e: replace(e, prefix=e.prefix.replace("/64", "/127"))),  # type: ignore[attr-defined]
        "SDN routes to another endpoint": of_six(_hops(lambda h: replace(h, next_hop="fd00:1::12"))),
        "shorter SDN routes": of_six(_hops(lambda h: replace(h, prefix=h.prefix.replace("/64", "/128")))),
        "no multicast": on(Network, lambda e: replace(e, flood=False)),
        "multicast to all but one here": on(Flood, lambda e: replace(e, locals6=e.locals6[1:])),  # type: ignore[attr-defined]
        "multicast to no other host": on(Flood, lambda e: replace(e, providers6=())),
        "no IPv6 subnet": on(Network, lambda e: replace(e, subnets=e.subnets[:1])),  # type: ignore[attr-defined]
        "no IPv6 gateway": on(Network, lambda e: replace(e, other_gateways=())),
    }
)


def test_without_a_mistake_there_is_agreement() -> None:
    check_agreement(rich6(), PACKETS)


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_found(rich6(), MISTAKES[name], PACKETS, monkeypatch)
