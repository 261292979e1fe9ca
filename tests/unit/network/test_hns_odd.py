"""Sensible documents with one odd value each: refused in words, or taken and true, with every row of them reachable."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlace.network.enforce import NetworkEnforcer
from overlace.network.hns.documents import HostComputeEndpoint, HostComputeNetwork
from overlace.network.hns.errors import TEXTS, Code
from overlace.network.linux.maps import Attachment, encode
from overlace.network.linux.underlay import Underlay
from overlace.network.vfp.compile import compile_all, compile_document
from overlace.network.vfp.tables import Frontend, LocalEndpoint

from .test_hns_refusals import (
    EP,
    FAR,
    HOST,
    LB,
    NET,
    OTHER,
    PA,
    Host,
    acl,
    balancer,
    endpoint,
    far,
    mapped,
    network,
    policy,
    subnet,
)

GUIDS = [NET, OTHER, EP, FAR, LB, *(f"{n:08X}-0000-0000-0000-000000000000" for n in range(6, 12))]
ROUTE = policy("RemoteSubnetRoute", DestinationPrefix="10.9.0.0/24", IsolationId=4200, ProviderAddress="192.0.2.9",
               DistributedRouterMacAddress="00-11-22-33-44-55")  # fmt: skip
TIER = policy("TierAcl", Name="t", Direction="In", Order=1, TierAclRules=[
    {"TierAclRuleAction": "Allow", "Protocols": "6", "LocalPorts": "80,90-99", "Priority": 5}])  # fmt: skip
RULE = acl(Protocols="6,17", LocalPorts="80", RemoteAddresses="10.1.1.0/24,group")
NAT = policy("OutBoundNAT", Exceptions=["10.0.0.0/8"], Destinations=["198.51.100.0/24"], MaxPortPoolUsage=9)
ADDRESSED = [{"IpAddress": "10.1.1.70", "PrefixLength": 24, "IpSubnetId": GUIDS[9]}]
AFFINE = {"flags": 1, "DistributionType": 2, "OverlaceAffinitySeconds": 9}


def rich(name: str, prefix: str, vsid: int, part: str, guid: str) -> dict[str, Any]:
    """A network with something of everything."""
    group = policy("SetPolicy", Id="group", PolicyType="IPSET", Values="10.1.1.7")
    gate = policy("NetworkACL", **acl(Priority=60000)["Settings"])
    macs = {"StartMacAddress": "00-15-5D-52-C0-00", "EndMacAddress": "00-15-5D-52-CF-FF"}
    parts = [{"ID": guid, "IpAddressPrefix": part}]
    policies = [ROUTE, group, gate, policy("HostRoute"), policy("VxlanPort", Port=4789)]
    more = {"Policies": policies, "OverlaceMulticastRate": 100, "MacPool": {"Ranges": [macs]}}
    return network(name, subnet(prefix, vsid, IpSubnets=parts), **more)


def ways(gateway: str) -> list[dict[str, Any]]:
    return [{"NextHop": gateway, "DestinationPrefix": "0.0.0.0/0"}]


GOOD: list[tuple[str, dict[str, Any], str]] = [
    ("Network", rich("n", "10.3.1.0/24", 4300, "10.3.1.64/26", GUIDS[10]), ""),
    ("Network", network("m", subnet("10.4.2.0/24", 4097 + 300), subnet("10.4.3.0/24", 4097 + 300)), ""),
    ("Network", {"Name": "nat", "Type": "NAT", "Ipams": [{"Subnets": [
        {"IpAddressPrefix": "172.20.0.0/16", "Routes": ways("172.20.0.1")}]}]}, ""),
    ("Endpoint", endpoint("10.1.1.6", mapped(8081), mapped(8082, "203.0.113.9"), NAT, RULE, TIER,
                          policy("QOS", MaximumOutgoingBandwidthInBytes=100000), policy("InterfaceParameters", Mtu=1400),
                          policy("EncapOverhead", Overhead=50),
                          policy("SDNRoute", DestinationPrefix="10.77.0.0/16", NextHop="10.1.1.5"),
                          MacAddress="02-42-0A-01-01-06", Routes=ways("10.1.1.1")), NET),
    ("Endpoint", {"Policies": [PA], "IpConfigurations": ADDRESSED}, NET),
    ("Endpoint", endpoint("10.1.2.6", mapped(8085)), OTHER),
    ("Endpoint", far("10.1.1.9"), NET),
    ("LoadBalancer", balancer("10.1.1.99"), ""),
    ("LoadBalancer", balancer("203.0.113.9", port=8082, flags=8, InternalPort=8082), ""),
    ("LoadBalancer", {**balancer("10.1.1.98", **AFFINE), "SourceVIP": "10.1.1.7"}, ""),
    ("LoadBalancer", balancer(port=8081), ""),
    ("SdnRoute", {"HostComputeEndpoints": [EP],
                  "Routes": [{"DestinationPrefix": "10.66.0.0/16", "NextHop": "10.1.1.5"}]}, ""),
    ("Namespace", {"Resources": [{"Type": "Container", "Data": {"Id": "c1"}}]}, ""),
]  # fmt: skip
ODD: list[Any] = [
    None, True, 0, 1, -1, 2, 3, 8, 80, 4095, 4096, 8080, 65535, 65536, 70000, 1 << 24, 1 << 31, 1 << 32, (1 << 63) - 1,
    1 << 64, 1.5, [], {}, [[]], "", " ", "x", "²", "9" * 5000, "1-", "6,²", "é\u0000", "Overlay", "NAT", "Add", EP,
    NET.lower(),
    "00000000-0000-0000-0000-000000000000", "0.0.0.0", "255.255.255.255", "127.0.0.1", "224.0.0.1", "240.0.0.1", HOST,
    "10.1.1.0", "10.1.1.1", "10.1.1.5", "10.1.1.99", "10.1.1.255", "10.1.2.6", "203.0.113.9", "10.1.1.6/24", "::", "::1",
    "fd00::1", "fe80::1", "ff02::1", "0.0.0.0/0", "::/0", "127.0.0.0/8", "224.0.0.0/4", "192.0.2.0/24", "10.1.1.0/24",
    "10.1.0.0/16", "10.1.1.0/31", "10.1.1.0/32", "10.1.1.0/33", "10.1.1.0/255.255.255.0", "10.0.0.0/²", "fd00::/64",
    "00-00-00-00-00-00", "FF-FF-FF-FF-FF-FF", "01-00-5E-00-00-01", "02:42:0a:01:01:05", "1-2",
]  # fmt: skip
odd = st.sampled_from(ODD) | st.integers(-2, 1 << 33) | st.text(max_size=4)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every value inside, by its way there."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[str, Any], str, str]:
    """(kind, document, network of an endpoint, what to do with it)."""
    kind, good, on = draw(st.sampled_from(GOOD))
    document = copy.deepcopy(good)
    for _ in range(draw(st.integers(0, 2))):
        *way, last = draw(st.sampled_from(list(places(document)) or [("Name",)]))
        at: Any = document
        for key in way:
            at = at[key]
        what = draw(st.sampled_from(["odd", "odd", "odd", "gone", "twice"]))
        if what == "odd" or not isinstance(at, list):
            at[last] = copy.deepcopy(draw(odd))
        elif what == "gone":
            del at[last]
        else:
            at.append(copy.deepcopy(at[last]))
    return (
        kind,
        document,
        on,
        draw(st.sampled_from(["create", "create", "create", "policies", "whole", "v1", "delete"])),
    )


def base() -> Host:
    host = Host()
    host.made("Network", rich("base", "10.1.1.0/24", 4096, "10.1.1.64/26", GUIDS[9]), NET)
    host.made("Network", network("other", subnet("10.1.2.0/24", 4097)), OTHER)
    host.made("Endpoint", endpoint("10.1.1.5", mapped(8080)), EP)
    host.made("Namespace", {"Resources": [{"Type": "Endpoint", "Data": {"Id": EP}}]}, FAR)
    return host


def perform(host: Host, kind: str, document: dict[str, Any], on: str, how: str, guid: str) -> tuple[int, str]:
    if how == "create":
        return host.create(kind, document, guid, on or NET)
    there = [g for g, d in host.service.documents.items() if d.kind == kind.lower()]
    if how == "delete" or not there:
        return host._told(host.hns.call("Delete" + kind, 0, there[-1] if there else guid, None))
    target = there[guid in GUIDS[::2] and -1]
    if how == "policies" and kind in ("Network", "Endpoint"):
        asked = {
            "RequestType": "Add",
            "ResourceType": "Policy",
            "Settings": {"Policies": document.get("Policies")},
        }
        return host.modify(kind, target, asked)
    if how == "policies" or how == "whole":
        if kind == "Network":
            try:
                subnets = document["Ipams"][0]["Subnets"]
            except (LookupError, TypeError):
                subnets = 5
            asked = {"RequestType": "Update", "ResourceType": "Subnet", "Settings": {"Subnets": subnets}}
            return host.modify(kind, target, asked)
        return host.modify(kind, target, document)
    room = {"Network": "networks", "Endpoint": "endpoints", "LoadBalancer": "policylists"}.get(
        kind, "namespaces"
    )
    told = host.post(f"/{room}/", document)
    return int(told.get("ErrorCode", 0)), str(told.get("Error", ""))


class Card:
    """An underlay to compute MTUs with."""

    def underlay(self) -> Underlay:
        return Underlay("eth0", 1, 1500, HOST, 24, HOST, 24)


def check_true(host: Host, enforcer: NetworkEnforcer) -> None:
    """What the documents say is what the tables hold, and no document's rows are in another's way."""
    state = host.service.state
    host.follow()
    tables = host.compiler.tables
    assert {e.key: e for e in tables} == {e.key: e for e in compile_all(state, HOST)}
    owner: dict[Any, str] = {}
    rows: dict[tuple[str, bytes], bytes] = {}
    cards = {d: Attachment(n, n) for n, d in enumerate(state.documents, 1)}
    for d in state.documents.values():
        made = compile_document(d, state, HOST)
        fronts = [e.key for e in made if isinstance(e, Frontend)]
        assert len(set(fronts)) == len(fronts), d
        for entry in made:
            assert owner.setdefault(entry.key, d.id) == d.id, (entry.key, d)
            for row in encode(entry, cards):
                if row.map in ("networks", "endpoints", "frontends"):
                    assert rows.setdefault((row.map, row.key), row.value) == row.value, (row.map, entry, d)
            if isinstance(entry, LocalEndpoint):
                ended = state.get(entry.endpoint_id, HostComputeEndpoint)
                net = state.get(ended.host_compute_network, HostComputeNetwork) if ended else None
                assert ended is not None and net is not None and 68 <= enforcer._mtu(ended, net) <= 1500


@pytest.mark.parametrize("number", range(len(GOOD)), ids=[f"{g[0]}-{n}" for n, g in enumerate(GOOD)])
def test_each_member_with_each_odd_value_is_refused_in_words_or_true(number: int) -> None:
    kind, good, on = GOOD[number]
    host, guid = base(), GUIDS[8]
    enforcer = NetworkEnforcer(host.service, Card(), HOST)  # type: ignore[arg-type]
    members = list(places(good))
    if kind == "Endpoint":
        host.made("Namespace", {}, GUIDS[7])
    for *way, last in members:
        for value in ODD:
            document = copy.deepcopy(good)
            at: Any = document
            for key in way:
                at = at[key]
            at[last] = copy.deepcopy(value)
            if kind == "Endpoint" and "HostComputeNamespace" not in document:
                document["HostComputeNamespace"] = GUIDS[7]  # else nothing of it is compiled
            hr, text = host.create(kind, document, guid, on or NET)
            where = (*way, last, value)
            if hr:
                assert hr != Code.UNEXPECTED and guid not in host.service.documents, where
                assert len(text.strip()) > len(TEXTS[Code(hr)]), (where, text)
                continue
            check_true(host, enforcer)
            assert not host.hns.call("Delete" + kind, 0, guid, None).hr


@settings(deadline=None, max_examples=250, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(documents(), st.sampled_from(GUIDS)), min_size=1, max_size=8))
def test_an_odd_value_is_refused_in_words_or_true(
    script: list[tuple[tuple[str, Any, str, str], str]],
) -> None:
    host = base()
    enforcer = NetworkEnforcer(host.service, Card(), HOST)  # type: ignore[arg-type]
    for (kind, document, on, how), guid in script:
        before = dict(host.service.documents)
        hr, text = perform(host, kind, document, on, how, guid)
        if hr:
            assert hr != Code.UNEXPECTED and host.service.documents == before
            assert len(text.strip()) > len(TEXTS[Code(hr)]) or hr == Code.NOT_FOUND, text
        check_true(host, enforcer)


def test_the_good_documents_are_good() -> None:
    """Else the test above would show nothing."""
    for kind, document, on in GOOD:
        host = base()
        hr, text = host.create(kind, document, "-", on or NET)
        assert not hr, (kind, text)
