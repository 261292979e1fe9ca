"""Any calls, sensible or not: HNS's state is whole after each, on disk as in memory, and what failed changed nothing."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlace.network.hns.calls import HnsCalls
from overlace.network.hns.documents import (
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNamespace,
    HostComputeNetwork,
)
from overlace.network.hns.service import HnsService, HostFacts
from overlace.network.hns.state import State

from .hcn_documents import policy

GUIDS = [f"{n:08X}-0000-0000-0000-000000000000" for n in range(1, 7)]
KINDS = ("Network", "Endpoint", "Namespace", "LoadBalancer", "SdnRoute")
guids = st.sampled_from(GUIDS)
addresses = st.sampled_from(["10.1.1.1", "10.1.1.2", "10.1.1.3", "10.1.2.5", "10.1.2.1", "nowhere", ""])
few = st.integers(0, 3)
POLICIES = [
    {"Type": "ProviderAddress", "Settings": {"ProviderAddress": "192.0.2.1"}},
    {"Type": "ACL", "Settings": {"Action": "Allow", "Direction": "In", "RuleType": "Switch", "Priority": 100}},
    {"Type": "ACL", "Settings": {"Action": "Block", "Direction": "Out", "RuleType": "Switch", "Priority": 0}},
    {"Type": "PortMapping", "Settings": {"Protocol": 6, "InternalPort": 80, "ExternalPort": 8080}},
    {"Type": "PortMapping", "Settings": {"Protocol": 6, "InternalPort": 81, "ExternalPort": 8081}},
    {"Type": "PortMapping", "Settings": {"Protocol": 6, "InternalPort": 0, "ExternalPort": 8082}},
    {"Type": "InterfaceParameters", "Settings": {"Mtu": 1400}},
    {"Type": "QOS", "Settings": {"MaximumOutgoingBandwidthInBytes": 100000}},
    {"Type": "OutBoundNAT", "Settings": {"Exceptions": ["10.0.0.0/8"]}},
    {"Type": "HostRoute", "Settings": {}},
    {"Type": "RemoteSubnetRoute", "Settings": {
        "DestinationPrefix": "10.9.0.0/24", "IsolationId": 4096, "ProviderAddress": "192.0.2.9",
        "DistributedRouterMacAddress": "00:11:22:33:44:55"}},
]  # fmt: skip
policies = st.lists(st.sampled_from(POLICIES), max_size=3)


@st.composite
def networks(draw: st.DrawFn) -> dict[str, Any]:
    third = draw(st.integers(1, 2))
    subnet: dict[str, Any] = {"IpAddressPrefix": f"10.1.{third}.0/24"}
    if draw(st.booleans()):
        subnet["Routes"] = [{"NextHop": f"10.1.{third}.1", "DestinationPrefix": "0.0.0.0/0"}]
    if draw(st.booleans()):
        subnet["Policies"] = [
            {"Type": "VSID", "Settings": {"IsolationId": draw(st.sampled_from([4095, 4096, 4097]))}}
        ]
    return {
        "Name": draw(st.sampled_from("abc")), "Type": draw(st.sampled_from(["Overlay", "NAT", "L2Bridge", "Moon"])),
        "Ipams": [{"Subnets": [subnet]}], "Policies": draw(policies),
    }  # fmt: skip


@st.composite
def endpoints(draw: st.DrawFn) -> dict[str, Any]:
    configs = [{"IpAddress": a} for a in draw(st.lists(addresses, max_size=2)) if a]
    document = {"HostComputeNetwork": draw(guids), "Policies": draw(policies), "IpConfigurations": configs}
    if draw(st.booleans()):
        document["MacAddress"] = draw(st.sampled_from(["02-00-00-00-00-01", "02:00:00:00:00:02", "x"]))
    if draw(few) == 0:
        document["Flags"] = 1
    return document


@st.composite
def balancers(draw: st.DrawFn) -> dict[str, Any]:
    port = {"Protocol": draw(st.sampled_from([6, 17, 99])), "InternalPort": draw(st.integers(0, 2)),
            "ExternalPort": draw(st.sampled_from([8080, 8090]))}  # fmt: skip
    return {"HostComputeEndpoints": draw(st.lists(guids, max_size=2)), "PortMappings": [port],
            "FrontendVIPs": draw(st.lists(st.sampled_from(["10.1.1.200", "10.1.1.2", "x"]), max_size=1))}  # fmt: skip


namespaces = st.fixed_dictionaries(
    {"Type": st.sampled_from(["Host", "HostDefault", "Guest"])},
    optional={
        "NamespaceId": st.integers(0, 4),
        "Resources": st.lists(guids.map(lambda g: {"Type": "Endpoint", "Data": {"Id": g}}), max_size=2),
    },
)
routes = st.fixed_dictionaries(
    {"HostComputeEndpoints": st.lists(guids, max_size=2),
     "Routes": st.lists(st.sampled_from([{"DestinationPrefix": "10.0.0.0/8"}, {"DestinationPrefix": "x"}]), max_size=2)}
)  # fmt: skip
DOCUMENTS = {"Network": networks(), "Endpoint": endpoints(), "LoadBalancer": balancers(), "Namespace": namespaces,
             "SdnRoute": routes}  # fmt: skip
REQUESTS = st.sampled_from(["Add", "Remove", "Update", "Refresh", "Reset"])


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, str, str, Any]:
    """(verb, kind, guid, document)."""
    kind = draw(st.sampled_from([*KINDS, "Network", "Endpoint", "Endpoint"]))
    verb = draw(st.sampled_from(["Create", "Create", "Create", "Modify", "Modify", "Delete"]))
    if verb == "Create" or (verb == "Modify" and kind in ("LoadBalancer", "SdnRoute")):
        return verb, kind, draw(guids), draw(DOCUMENTS[kind])
    if verb == "Modify" and kind == "Namespace":
        settings = {"EndpointId": draw(guids)}
        return (
            verb,
            kind,
            draw(guids),
            {"ResourceType": "Endpoint", "RequestType": draw(REQUESTS), "Settings": settings},
        )
    if verb == "Modify":
        wild = st.lists(policy(f"{kind}PolicyType"), max_size=2)
        settings = {"Policies": draw(policies if draw(few) else wild)}
        return (
            verb,
            kind,
            draw(guids),
            {"ResourceType": "Policy", "RequestType": draw(REQUESTS), "Settings": settings},
        )
    return verb, kind, draw(guids), None


def perform(hns: HnsCalls, verb: str, kind: str, guid: str, document: Any) -> int:
    text = json.dumps(document) if document is not None else None
    handle = 0
    if verb == "Create" and kind == "Endpoint":
        handle = hns.call("OpenNetwork", 0, document["HostComputeNetwork"], None).handle
    elif verb == "Modify":
        opened = hns.call("Open" + kind, 0, guid, None)
        if opened.hr:
            return opened.hr
        handle = opened.handle
    return hns.call(verb + kind, handle, guid, text).hr


def check_whole(hns: HnsService) -> None:
    state, fresh = hns.state, State()
    for d in state.documents.values():
        fresh.put(d)
    for name, value in vars(fresh).items():
        assert vars(state)[name] == value, name
    owners: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    for d in state.documents.values():
        if isinstance(d, HostComputeNetwork):
            assert state.by_network_name[d.name.lower()] == d.id
            assert not d.vsid or state.by_vsid[d.vsid] == d.id
        elif isinstance(d, HostComputeEndpoint):
            network = state.get(d.host_compute_network, HostComputeNetwork)
            assert network is not None
            for c in d.ip_configurations:
                assert (network.id, c.ip_address) not in seen
                seen.add((network.id, c.ip_address))
            if d.host_compute_namespace:
                held = state.get(d.host_compute_namespace, HostComputeNamespace)
                assert held is not None and d.id in held.endpoints
        elif isinstance(d, HostComputeNamespace):
            for e in d.endpoints:
                assert owners.setdefault(e, d.id) == d.id
        else:
            assert all(e in state.documents for e in d.host_compute_endpoints)
            if isinstance(d, HostComputeLoadBalancer):
                assert d.host_compute_endpoints


@settings(deadline=None, max_examples=120, suppress_health_check=list(HealthCheck))
@given(st.lists(calls(), min_size=5, max_size=25))
def test_a_refusal_changes_nothing_and_the_state_is_whole(script: list[tuple[str, str, str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        facts = HostFacts("192.0.2.1")
        service = HnsService(Path(folder), facts=facts)
        hns = HnsCalls(service)
        for verb, kind, guid, document in script:
            before = dict(service.documents)
            service.drain()
            service.take_events()
            hr = perform(hns, verb, kind, guid, document)
            if hr:
                assert hr >> 31 and service.documents == before, (verb, kind, hex(hr))
                assert not service.take_events()
            check_whole(service)
        again = HnsService(Path(folder), facts=facts)
        assert again.documents == service.documents


@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(REQUESTS, policies), max_size=12))
def test_policies_change_as_a_plain_list_would(script: list[tuple[str, list[dict[str, Any]]]]) -> None:
    hns = HnsCalls(HnsService(facts=HostFacts("192.0.2.1")))
    subnet = {"IpAddressPrefix": "10.1.1.0/24", "Routes": [{"NextHop": "10.1.1.1", "DestinationPrefix": "0.0.0.0/0"}],
              "Policies": [{"Type": "VSID", "Settings": {"IsolationId": 4096}}]}  # fmt: skip
    net = hns.call(
        "CreateNetwork",
        0,
        GUIDS[0],
        json.dumps({"Name": "n", "Type": "Overlay", "Ipams": [{"Subnets": [subnet]}]}),
    )
    body = {"Policies": [POLICIES[0]], "IpConfigurations": [{"IpAddress": "10.1.1.5"}]}
    ep = hns.call("CreateEndpoint", net.handle, GUIDS[1], json.dumps(body)).handle
    expected: list[dict[str, Any]] = [POLICIES[0]]
    for request, asked in script:
        settings = {"Policies": asked}
        reply = hns.call(
            "ModifyEndpoint",
            ep,
            "-",
            json.dumps({"ResourceType": 1, "RequestType": request, "Settings": settings}),
        )
        held = json.loads(hns.call("QueryEndpoint", ep, "-", None).result or "")["Policies"]
        if reply.hr:
            assert held == expected
            continue
        types = {x["Type"] for x in asked}
        if request == "Add":
            expected = expected + asked
        elif request == "Remove":
            expected = list(expected)
            for x in asked:
                expected.remove(x)
        elif request == "Update":
            expected = [x for x in expected if x["Type"] not in types] + asked
        elif request == "Reset":
            expected = [
                x for x in expected if x["Type"] == "ProviderAddress" or (types and x["Type"] not in types)
            ]
        assert held == expected
