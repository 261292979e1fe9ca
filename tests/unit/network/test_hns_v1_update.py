"""A v1 client that reads an object, changes one member and writes it back: nothing else changes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from overlace.network.hns.errors import Code
from overlace.network.hns.service import HnsService, HostFacts

from .test_hns_refusals import (
    EP,
    FAR,
    LB,
    NET,
    OTHER,
    PA,
    Host,
    acl,
    balancer,
    endpoint,
    network,
    policy,
    subnet,
)


def read(host: Host, path: str) -> dict[str, Any]:
    text = host.hns.call("HNSCall", 0, "-", f"GET {path}\n").result or ""
    return dict(json.loads(text)["Output"])


@pytest.fixture
def host() -> Host:
    """With every policy the schema has, which a Linux host alone would not take."""
    made = Host(HnsService(facts=HostFacts("192.0.2.10")))
    route = policy("RemoteSubnetRoute", DestinationPrefix="10.9.0.0/24", IsolationId=4096,
                   ProviderAddress="192.0.2.9", DistributedRouterMacAddress="00-11-22-33-44-55")  # fmt: skip
    group = policy("SetPolicy", Id="g", PolicyType="IPSET", Values="10.1.1.7")
    gate = policy("NetworkACL", **acl()["Settings"])
    parts = [{"ID": LB, "IpAddressPrefix": "10.1.1.16/28"}]
    ways = [{"NextHop": "10.1.1.1", "DestinationPrefix": "0.0.0.0/0"},
            {"NextHop": "10.1.1.2", "DestinationPrefix": "10.8.0.0/16"}]  # fmt: skip
    made.made("Network", network(
        "n", subnet(IpSubnets=parts, Routes=ways), Flags=8, Policies=[route, group, gate, policy("HostRoute")],
        Dns={"Search": ["a.b"], "Options": ["ndots:2"], "Domain": "d"}, Owner="me"), NET)  # fmt: skip
    tier = policy("TierAcl", Name="t", Direction="In", Order=1, TierAclRules=[{"TierAclRuleAction": "Allow"}])
    mapping = policy(
        "PortMapping", Protocol=6, InternalPort=80, ExternalPort=8080, VIP="198.51.100.1", Flags=5
    )
    made.made("Endpoint", endpoint(
        "10.1.1.5", tier, mapping, policy("InterfaceParameters", Mtu=1400), policy("OutBoundNAT", Flags=1),
        policy("SDNRoute", DestinationPrefix="10.7.0.0/16", NextHop="10.1.1.6", AutomaticEndpointMonitor=True),
        policy("EncapOverhead", Overhead=60), acl(), Flags=16, Owner="me", Dns={"Options": ["x"]}), EP)  # fmt: skip
    balanced = balancer("10.1.1.99", flags=3, DistributionType=2, OverlaceAffinitySeconds=60)
    made.made("LoadBalancer", {**balanced, "Name": "web", "Flags": 1}, LB)
    made.made("Namespace", {"Type": "Guest", "Name": "c"}, FAR)
    return made


@pytest.mark.parametrize(
    ("kind", "path", "guid"),
    [
        ("Network", "networks", NET),
        ("Endpoint", "endpoints", EP),
        ("LoadBalancer", "policylists", LB),
        ("Namespace", "namespaces", FAR),
    ],
)
def test_what_was_read_and_written_back_is_the_same(host: Host, kind: str, path: str, guid: str) -> None:
    before = host.shown(kind, guid)
    told = host.post(f"/{path}/{guid}", read(host, f"/{path}/{guid}"))
    assert told["Success"], told
    after = host.shown(kind, guid)
    for document in (before, after):  # in any order
        document.get("Policies", []).sort(key=json.dumps)
    assert after == before


def test_what_v1_has_a_word_for_goes_when_it_is_left_out(host: Host) -> None:
    body = read(host, f"/endpoints/{EP}")
    body["Policies"] = [x for x in body["Policies"] if x["Type"] == "PA"]
    body.pop("EncapOverhead")
    body.pop("MacAddress")
    assert host.post(f"/endpoints/{EP}", body)["Success"]
    held = host.shown("Endpoint", EP)
    assert [x["Type"] for x in held["Policies"]] == ["ProviderAddress", "TierAcl", "InterfaceParameters"]
    assert held["IpConfigurations"][0]["IpAddress"] == "10.1.1.5" and held["MacAddress"]


def test_a_subnet_in_use_does_not_go_by_v1_either(host: Host) -> None:
    body = read(host, f"/networks/{NET}")
    for s in body["Subnets"]:
        s |= {"AddressPrefix": "10.3.1.0/24", "GatewayAddress": "10.3.1.1"}
    told = host.post(f"/networks/{NET}", body)
    assert told["ErrorCode"] == Code.ENTITY_HAS_REFERENCES and EP in told["Error"]


def test_a_network_keeps_its_type_and_an_endpoint_its_network(host: Host) -> None:
    body = read(host, f"/networks/{NET}")
    told = host.post(f"/networks/{NET}", {**body, "Type": "l2bridge"})
    assert told["ErrorCode"] == Code.INVALID_NETWORK_TYPE and "n is Overlay" in told["Error"]
    host.made("Network", network("other", subnet("10.1.2.0/24", 4097)), OTHER)
    told = host.post(f"/endpoints/{EP}", {**read(host, f"/endpoints/{EP}"), "VirtualNetwork": OTHER})
    assert told["ErrorCode"] == Code.INVALID_ENDPOINT and NET in told["Error"]
    assert PA in host.shown("Endpoint", EP)["Policies"]
