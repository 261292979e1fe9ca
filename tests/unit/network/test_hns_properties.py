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
    HostComputeQuery,
    Version,
)
from overlace.network.hns.errors import Code
from overlace.network.hns.journal import JOURNAL
from overlace.network.hns.queries import present
from overlace.network.hns.service import HnsService, HostFacts
from overlace.network.hns.state import State

from .hcn_documents import STRUCTS, policy

GUIDS = [f"{n:08X}-0000-0000-0000-000000000000" for n in range(1, 11)]
KINDS = ("Network", "Endpoint", "Namespace", "LoadBalancer", "SdnRoute")
guids = st.sampled_from(GUIDS)
# who is what: kinds share no ids, so that most references mean something
MINE = {"Network": GUIDS[0:2], "Endpoint": GUIDS[2:5], "Namespace": GUIDS[5:7], "LoadBalancer": GUIDS[7:9],
        "SdnRoute": GUIDS[9:10]}  # fmt: skip
members = st.sampled_from([*MINE["Endpoint"], *MINE["Endpoint"], GUIDS[0]])
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


mostly = st.sampled_from([True] * 5 + [False])


@st.composite
def networks(draw: st.DrawFn) -> dict[str, Any]:
    third, good = draw(st.integers(1, 2)), draw(mostly)
    subnet: dict[str, Any] = {"IpAddressPrefix": f"10.1.{third}.0/24"}
    if good or draw(st.booleans()):
        subnet["Routes"] = [{"NextHop": f"10.1.{third}.1", "DestinationPrefix": "0.0.0.0/0"}]
    if good or draw(st.booleans()):
        vsid = draw(st.sampled_from([4096, 4096, 4097, 4095]))
        subnet["Policies"] = [{"Type": "VSID", "Settings": {"IsolationId": vsid}}]
    kind = "Overlay" if good else draw(st.sampled_from(["Overlay", "NAT", "L2Bridge", "Moon"]))
    asked = draw(st.lists(st.sampled_from(POLICIES[-2:]), max_size=2)) if good else draw(policies)
    return {
        "Name": draw(st.sampled_from("abc")),
        "Type": kind,
        "Ipams": [{"Subnets": [subnet]}],
        "Policies": asked,
    }


@st.composite
def endpoints(draw: st.DrawFn) -> dict[str, Any]:
    good = draw(mostly)
    configs = [{"IpAddress": a} for a in draw(st.lists(addresses, max_size=1 if good else 2)) if a]
    document = {
        "Policies": [*POLICIES[:1], *draw(policies)] if good else draw(policies),
        "IpConfigurations": configs,
    }
    if not good:
        document["HostComputeNetwork"] = draw(guids)
        document["MacAddress"] = draw(st.sampled_from(["02-00-00-00-00-01", "02:00:00:00:00:02", "x"]))
        document["Flags"] = draw(st.integers(0, 1))
        document["HostComputeNamespace"] = draw(guids)
    return document


@st.composite
def balancers(draw: st.DrawFn) -> dict[str, Any]:
    port = {"Protocol": draw(st.sampled_from([6, 17, 6, 99])), "InternalPort": draw(st.sampled_from([80, 81, 80, 0])),
            "ExternalPort": draw(st.sampled_from([8080, 8090]))}  # fmt: skip
    return {"HostComputeEndpoints": draw(st.lists(members, min_size=1, max_size=2)), "PortMappings": [port],
            "FrontendVIPs": draw(st.lists(st.sampled_from(["10.1.1.200", "10.1.1.2", "x"]), max_size=1))}  # fmt: skip


namespaces = st.fixed_dictionaries(
    {"Type": st.sampled_from(["Host", "HostDefault", "Guest"])},
    optional={
        "NamespaceId": st.integers(0, 4),
        "Resources": st.lists(members.map(lambda g: {"Type": "Endpoint", "Data": {"Id": g}}), max_size=2),
    },
)
routes = st.fixed_dictionaries(
    {"HostComputeEndpoints": st.lists(members, max_size=2),
     "Routes": st.lists(st.sampled_from([{"DestinationPrefix": "10.0.0.0/8"}, {"DestinationPrefix": "x"}]), max_size=2)}
)  # fmt: skip
DOCUMENTS = {"Network": networks(), "Endpoint": endpoints(), "LoadBalancer": balancers(), "Namespace": namespaces,
             "SdnRoute": routes}  # fmt: skip
REQUESTS = st.sampled_from(["Add", "Remove", "Update", "Refresh", "Reset"])


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, str, str, str, Any]:
    """(verb, kind, guid, network of an endpoint, document)."""
    kind = draw(st.sampled_from([*KINDS, "Network", "Endpoint", "Endpoint", "Endpoint"]))
    verb = draw(st.sampled_from(["Create", "Create", "Create", "Modify", "Modify", "Delete"]))
    guid = draw(st.sampled_from(MINE[kind]) if draw(mostly) else guids)
    network = draw(st.sampled_from(MINE["Network"]))
    if verb == "Delete":
        return verb, kind, guid, network, None
    if verb == "Create" or kind in ("LoadBalancer", "SdnRoute"):
        return verb, kind, guid, network, draw(DOCUMENTS[kind])
    settings: dict[str, Any]
    if kind == "Namespace":
        settings = {"EndpointId": draw(members)}
        request = draw(st.sampled_from(["Add", "Add", "Remove", "Update"]))
        body = {"ResourceType": "Endpoint", "RequestType": request, "Settings": settings}
    else:
        settings = {
            "Policies": draw(policies if draw(mostly) else st.lists(policy(f"{kind}PolicyType"), max_size=2))
        }
        body = {"ResourceType": "Policy", "RequestType": draw(REQUESTS), "Settings": settings}
    return verb, kind, guid, network, body


BASE = [
    ("Create", "Network", GUIDS[0], "", {"Name": "base", "Type": "Overlay", "Ipams": [{"Subnets": [{
        "IpAddressPrefix": "10.1.1.0/24", "Policies": [{"Type": "VSID", "Settings": {"IsolationId": 4096}}],
        "Routes": [{"NextHop": "10.1.1.1", "DestinationPrefix": "0.0.0.0/0"}]}]}]}),
    ("Create", "Endpoint", GUIDS[2], GUIDS[0], {"Policies": POLICIES[:1]}),
    ("Create", "Namespace", GUIDS[5], "", {"Resources": [{"Type": "Endpoint", "Data": {"Id": GUIDS[2]}}]}),
    ("Create", "LoadBalancer", GUIDS[7], "", {"HostComputeEndpoints": [GUIDS[2]], "FrontendVIPs": ["10.1.1.200"],
        "PortMappings": [{"Protocol": 6, "InternalPort": 80, "ExternalPort": 80}]}),
    ("Create", "SdnRoute", GUIDS[9], "", {"HostComputeEndpoints": [GUIDS[2]],
        "Routes": [{"DestinationPrefix": "10.0.0.0/8"}]}),
]  # fmt: skip


def perform(hns: HnsCalls, verb: str, kind: str, guid: str, network: str, document: Any) -> int:
    text = json.dumps(document) if document is not None else None
    handle = 0
    if verb == "Create" and kind == "Endpoint":
        handle = hns.call("OpenNetwork", 0, network, None).handle
    elif verb == "Modify":
        opened = hns.call("Open" + kind, 0, guid, None)
        if opened.hr:
            return opened.hr
        handle = opened.handle
    return hns.call(verb + kind, handle, guid, text).hr


def check_whole(hns: HnsService) -> None:
    state, fresh = hns.state, State(hns.state.host)
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
def test_a_refusal_changes_nothing_and_the_state_is_whole(
    script: list[tuple[str, str, str, str, Any]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        facts = HostFacts("192.0.2.1")
        service = HnsService(Path(folder), facts=facts)
        hns = HnsCalls(service)
        for verb, kind, guid, network, document in [*BASE, *script]:
            before = dict(service.documents)
            service.drain()
            service.take_events()
            hr = perform(hns, verb, kind, guid, network, document)
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


V1_ROOMS = {
    "network": "networks",
    "endpoint": "endpoints",
    "namespace": "namespaces",
    "loadbalancer": "policylists",
}
NOT_WRITTEN = ("CurrentEndpointCount", "TotalEndpoints", "State", "Namespace", "SharedContainers", "Flags")


@settings(deadline=None, max_examples=80, suppress_health_check=list(HealthCheck))
@given(st.lists(calls(), min_size=3, max_size=20))
def test_what_v1_shows_v1_takes(script: list[tuple[str, str, str, str, Any]]) -> None:
    """Any host's objects, read as v1 and written to another host as v1, read there the same."""
    one, two = (HnsService(facts=HostFacts("192.0.2.1")) for _ in range(2))
    hns = HnsCalls(one)
    for verb, kind, guid, network, document in [*BASE, *script]:
        perform(hns, verb, kind, guid, network, document)
    other, query = HnsCalls(two), HostComputeQuery(schema_version=Version(1, 0))
    for kind, room in V1_ROOMS.items():
        for d in [d for d in one.documents.values() if d.kind == kind]:
            shown = present(d, one, query)
            answer = other.call("HNSCall", 0, "-", f"POST /{room}\n{json.dumps(shown)}").result or ""
            assert json.loads(answer)["Success"], (answer, shown)
            again = present(two.documents[d.id], two, query)
            for name in NOT_WRITTEN:
                shown.pop(name, None)
                again.pop(name, None)
            assert again == shown


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats(allow_nan=False) | addresses | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(sorted(
        {f for fields in STRUCTS.values() for f, _ in fields} | {"Subnets", "AddressPrefix", "IPAddress", "References"}
    )), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(st.sampled_from(KINDS), st.sampled_from(["Create", "Modify", "Query"]), junk), max_size=8
    )
)
def test_no_document_is_too_odd_for_an_answer(script: list[tuple[str, str, Any]]) -> None:
    hns = HnsCalls(HnsService(facts=HostFacts("192.0.2.1")))
    for verb, kind, guid, network, document in BASE:
        perform(hns, verb, kind, guid, network, document)
    for kind, verb, document in script:
        text = json.dumps(document)
        handle = hns.call("Open" + kind, 0, MINE[kind][0], None).handle
        assert hns.call(verb + kind, handle, GUIDS[6], text).hr in {0, *Code}
        room = V1_ROOMS.get(kind.lower(), "networks")
        assert json.loads(hns.call("HNSCall", 0, "-", f"POST /{room}\n{text}").result or "")["Success"] in (
            True,
            False,
        )
        check_whole(hns.service)


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(st.lists(calls(), min_size=3, max_size=12), st.data())
def test_a_journal_cut_or_damaged_anywhere_is_made_whole(
    script: list[tuple[str, str, str, str, Any]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        facts = HostFacts("192.0.2.1")
        hns = HnsCalls(HnsService(Path(folder), facts=facts))
        for verb, kind, guid, network, document in [*BASE, *script]:
            perform(hns, verb, kind, guid, network, document)
        path = Path(folder) / JOURNAL
        whole = path.read_bytes()
        for _ in range(4):
            cut = data.draw(st.integers(0, len(whole)))
            damage = data.draw(st.sampled_from([b"", b"\x00garbage" + whole[cut + 5 :]]))
            path.write_bytes(whole[:cut] + damage)
            once = HnsService(Path(folder), facts=facts)
            check_whole(once)
            assert HnsService(Path(folder), facts=facts).documents == once.documents
