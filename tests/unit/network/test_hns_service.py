"""HNS as a client meets it: what it refuses and in which words, what it keeps, what survives."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from overlace.network.hns import policies as p
from overlace.network.hns.documents import (
    EndpointResourceSettings,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNamespace,
    HostComputeNetwork,
    ModifyNamespaceEndpoint,
    ModifyPolicies,
    PolicySettings,
    parse,
)
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.journal import JOURNAL
from overlace.network.hns.service import HnsService

NET = "11111111-2222-3333-4444-555555555555"


def overlay(
    vsid: int = 5000, prefix: str = "10.244.3.0/24", gateway: str = "10.244.3.1", guid: str = NET
) -> str:
    return json.dumps(
        {
            "ID": guid,
            "Name": f"net-{vsid}",
            "Type": "overlay",
            "SchemaVersion": {"Major": 2, "Minor": 0},
            "Health": {"Extra": {}},
            "Policies": [{"Type": "NetAdapterName", "Settings": {"NetworkAdapterName": "Ethernet"}}],
            "Ipams": [
                {
                    "Type": "Static",
                    "Subnets": [
                        {
                            "IpAddressPrefix": prefix,
                            "Policies": [{"Type": 1, "Settings": {"IsolationId": vsid}}],
                            "Routes": [{"NextHop": gateway, "DestinationPrefix": "0.0.0.0/0"}],
                        }
                    ],
                }
            ],
        }
    )


def remote(
    address: str = "10.244.3.7", mac: str = "02:11:0a:f4:03:07", **more: object
) -> HostComputeEndpoint:
    body = {
        "Name": "peer",
        "HostComputeNetwork": NET.lower(),
        "Flags": 1,
        "MacAddress": mac,
        "IpConfigurations": [{"IpAddress": address, "PrefixLength": 24}],
        "Policies": [{"Type": "ProviderAddress", "Settings": {"ProviderAddress": "192.0.2.20"}}],
        **more,
    }
    d = parse("endpoint", json.dumps(body))
    assert isinstance(d, HostComputeEndpoint)
    return d


@pytest.fixture
def hns() -> HnsService:
    s = HnsService()
    s.create(parse("network", overlay()))
    return s


def refused(hns: HnsService, kind: str, text: str) -> HcnError:
    before = dict(hns.documents)
    with pytest.raises(HcnError) as e:
        hns.create(parse(kind, text))
    assert dict(hns.documents) == before
    return e.value


def test_flannels_network_is_taken_and_read_back(hns: HnsService) -> None:
    d = hns.get(HostComputeNetwork, NET.lower())
    assert d.type == "Overlay" and d.vsid == 5000
    back = json.loads(hns.query(HostComputeNetwork, NET))
    assert back["Ipams"][0]["Subnets"][0]["Policies"] == [{"Type": "VSID", "Settings": {"IsolationId": 5000}}]
    assert {"Type": "DrMacAddress", "Settings": {"Address": "02-42-0A-F4-03-01"}} in back["Policies"]
    assert back["SchemaVersion"] == {"Major": 2, "Minor": 0}
    assert hns.enumerate(HostComputeNetwork, {"Name": "NET-5000"}) == [NET]


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (
            overlay(4095, guid=""),
            Code.BAD_PARAMETER,
            "VSID IsolationId 4095 of network net-4095: Windows carries VNIs from 4096",
        ),
        (overlay(1 << 24, guid=""), Code.BAD_PARAMETER, "16777216"),
        (overlay(6000, "10.244.3.0/33", guid=""), Code.INVALID_PREFIX, "10.244.3.0/33"),
        (
            overlay(6000, gateway="10.9.9.1", guid=""),
            Code.INVALID_IP,
            "Routes.NextHop 10.9.9.1 is outside 10.244.3.0/24",
        ),
        (
            overlay(5000, guid="21111111-2222-3333-4444-555555555555"),
            Code.NETWORK_ALREADY_EXISTS,
            "5000 is taken",
        ),
        (overlay(), Code.ALREADY_EXISTS, NET),
        (overlay(guid="nonsense"), Code.GUID_CONVERSION_FAILURE, "'nonsense'"),
        ("{", Code.INVALID_JSON, ""),
        ('{"Name":"x","Type":"Carrier"}', Code.BAD_PARAMETER, "$.Type"),
        ('{"Name":"x","Type":"Overlay"}', Code.INVALID_NETWORK, "Ipams has no Subnets"),
        (
            '{"Name":"x","Type":"Overlay","Ipams":[{"Subnets":[{"IpAddressPrefix":"10.1.0.0/24"}]}]}',
            Code.INVALID_SUBNET,
            "no VSID",
        ),
    ],
)
def test_bad_networks_are_refused_by_field(hns: HnsService, text: str, code: Code, words: str) -> None:
    e = refused(hns, "network", text)
    assert e.code is code and words in str(e)


def test_an_address_outside_the_subnet_is_0x803b001e(hns: HnsService) -> None:
    with pytest.raises(
        HcnError, match=r"0x803b001e.*IpConfigurations.IpAddress 10.9.0.1 is in none of 10.244.3.0/24"
    ):
        hns.create(remote("10.9.0.1", Flags=0))
    there = hns.create(remote("10.9.0.1"))  # another host's container may be on another subnet
    assert hns.get(HostComputeEndpoint, there.id).address == "10.9.0.1"


def test_an_endpoints_address_is_its_own(hns: HnsService) -> None:
    first = hns.create(remote())
    with pytest.raises(HcnError, match=f"belongs to endpoint {first.id}"):
        hns.create(remote())
    with pytest.raises(HcnError, match="gateway"):
        hns.create(remote("10.244.3.1"))
    with pytest.raises(HcnError, match="MacAddress 'zz' is not a MAC"):
        hns.create(remote("10.244.3.8", mac="zz"))
    with pytest.raises(HcnError, match="0x803b0001"):
        hns.create(remote("10.244.3.8", HostComputeNetwork="21111111-2222-3333-4444-555555555555"))
    with pytest.raises(HcnError, match="ProviderAddress"):
        hns.create(remote("10.244.3.8", Policies=[]))
    assert first.mac_address == "02-11-0A-F4-03-07"  # type: ignore[union-attr]


def test_a_host_port_is_given_once(hns: HnsService) -> None:
    mapping = {"Type": "portmapping", "Settings": {"Protocol": 6, "InternalPort": 80, "ExternalPort": 8080}}
    pa = {"Type": "ProviderAddress", "Settings": {"ProviderAddress": "192.0.2.10"}}
    hns.create(remote("10.244.3.8", Flags=0, Policies=[pa, mapping]))
    with pytest.raises(HcnError, match=r"0x803b0013.*ExternalPort 8080/tcp is taken"):
        hns.create(remote("10.244.3.9", Flags=0, Policies=[pa, mapping]))
    other = hns.create(remote("10.244.3.10"))
    with pytest.raises(HcnError, match="0x803b0013"):
        hns.create(
            HostComputeLoadBalancer(
                host_compute_endpoints=(other.id,),
                port_mappings=(parse_mapping(6, 80, 8080),),
            )
        )


def parse_mapping(protocol: int, internal: int, external: int):  # type: ignore[no-untyped-def]
    body = {"PortMappings": [{"Protocol": protocol, "InternalPort": internal, "ExternalPort": external}]}
    return parse("loadbalancer", json.dumps(body)).port_mappings[0]  # type: ignore[union-attr]


def test_load_balancers_need_their_endpoints_and_hold_them(hns: HnsService) -> None:
    e = hns.create(remote())
    absent = "99999999-2222-3333-4444-555555555555"
    with pytest.raises(HcnError, match="0x803b0002"):
        hns.create(
            HostComputeLoadBalancer(host_compute_endpoints=(absent,), port_mappings=(parse_mapping(6, 1, 2),))
        )
    lb = hns.create(
        HostComputeLoadBalancer(host_compute_endpoints=(e.id,), port_mappings=(parse_mapping(6, 80, 8080),))
    )
    with pytest.raises(HcnError, match="0x803b002c"):
        hns.delete(HostComputeEndpoint, e.id)
    with pytest.raises(HcnError, match="0x803b002c"):
        hns.delete(HostComputeNetwork, NET)
    hns.delete(HostComputeLoadBalancer, lb.id)
    hns.delete(HostComputeEndpoint, e.id)
    with pytest.raises(HcnError, match="0x80070490"):
        hns.delete(HostComputeEndpoint, e.id)


def test_windows_refuses_a_load_balancer_without_endpoints_ours_does_not() -> None:
    empty = HostComputeLoadBalancer(host_compute_network=NET, port_mappings=(parse_mapping(6, 80, 8080),))
    for strict in (False, True):
        s = HnsService(strict_windows=strict)
        s.create(parse("network", overlay()))
        if strict:
            with pytest.raises(HcnError, match="HostComputeEndpoints is empty"):
                s.create(empty)
        else:
            s.create(empty)


def test_policies_are_added_and_removed_by_type_and_settings(hns: HnsService) -> None:
    route = {
        "DestinationPrefix": "10.244.9.0/24",
        "IsolationId": 5000,
        "ProviderAddress": "192.0.2.9",
        "DistributedRouterMacAddress": "00-12-34-56-78-9a",
    }
    policy = msgspec.convert({"Type": "RemoteSubnetRoute", "Settings": route}, p.RemoteSubnetRoute)
    add = ModifyPolicies(request_type="Add", settings=PolicySettings((policy,)))
    hns.modify(HostComputeNetwork, NET, add)
    held = p.policy_of(hns.get(HostComputeNetwork, NET).policies, p.RemoteSubnetRoute)
    assert held.settings.distributed_router_mac_address == "00-12-34-56-78-9A"
    remove = ModifyPolicies(request_type="Remove", settings=PolicySettings((policy,)))
    hns.modify(HostComputeNetwork, NET, remove)
    with pytest.raises(HcnError, match="0x803b0008"):
        hns.modify(HostComputeNetwork, NET, remove)


def test_an_endpoint_is_in_one_namespace(hns: HnsService) -> None:
    pa = [{"Type": "ProviderAddress", "Settings": {"ProviderAddress": "192.0.2.10"}}]
    e = hns.create(remote(Flags=0, Policies=pa))
    a, b = (hns.create(HostComputeNamespace(name=n)) for n in "ab")
    join = ModifyNamespaceEndpoint(request_type="Add", settings=EndpointResourceSettings(e.id))
    hns.modify(HostComputeNamespace, a.id, join)
    hns.modify(HostComputeNamespace, a.id, join)
    assert hns.get(HostComputeNamespace, a.id).endpoints == (e.id,)
    with pytest.raises(HcnError, match="0x803b002b"):
        hns.modify(HostComputeNamespace, b.id, join)
    hns.delete(HostComputeNamespace, a.id)
    hns.modify(HostComputeNamespace, b.id, join)
    far = hns.create(remote("10.244.3.9"))
    with pytest.raises(HcnError, match="0x803b000f"):
        hns.modify(
            HostComputeNamespace,
            b.id,
            ModifyNamespaceEndpoint(request_type="Add", settings=EndpointResourceSettings(far.id)),
        )


def test_the_state_survives_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    s = HnsService(tmp_path)
    s.create(parse("network", overlay()))
    kept = s.create(remote())
    gone = s.create(remote("10.244.3.9"))
    s.delete(HostComputeEndpoint, gone.id)
    again = HnsService(tmp_path)
    assert again.documents == s.documents and kept.id in again.documents
    assert set(again.drain()) == set(s.documents)  # the compiler has everything to look at
    with open(tmp_path / JOURNAL, "ab") as f:
        f.write(b'{"kind":"endpoint","put":{"ID":"3333')
    torn = HnsService(tmp_path)
    assert torn.documents == s.documents
    torn.create(remote("10.244.3.9"))
    assert HnsService(tmp_path).documents == torn.documents


def test_the_journal_does_not_grow_with_history(tmp_path: Path) -> None:
    s = HnsService(tmp_path)
    s.create(parse("network", overlay()))
    for _ in range(1200):
        s.delete(HostComputeEndpoint, s.create(remote()).id)
    assert (tmp_path / JOURNAL).read_bytes().count(b"\n") < 1100
    assert HnsService(tmp_path).documents == s.documents
