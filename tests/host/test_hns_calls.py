"""HCN as its clients meet it, over each backend, over the wire and through the DLL: what is taken, filled in, changed,
refused and found again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datapath_bed import Bed
from hns_bed import NULL, Hcn, Refused, Served, local, mapping, overlay, pa, remote
from hns_dll import Dll

pytestmark = pytest.mark.host
MODEL_ADDRESS = "192.0.2.10"
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
WAYS = [
    ("model", "wire"),
    ("model", "dll"),
    pytest.param(("linux", "wire"), marks=ROOT),
    pytest.param(("linux", "dll"), marks=ROOT),
]


class Host:
    """A served HNS, and how to begin it again."""

    def __init__(self, served: Served, address: str, way: str) -> None:
        self.served, self.address = served, address
        self.dll = Dll(served.wire.port, served.where) if way == "dll" else None
        self.hcn = Hcn(self.dll or served.wire)

    def end(self) -> None:
        if self.dll is not None:
            self.dll.close()
        self.served.end()


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def one_host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("hns")
    backend, way = request.param
    state = ("--state", str(folder / "state"))
    if backend == "model":
        address = ("--provider-address", MODEL_ADDRESS)
        host = Host(Served(folder, "model", None, *state, *address), MODEL_ADDRESS, way)
        yield host
        host.end()
        return
    bed = Bed()
    try:
        where = Path("/var/run/netns") / f"{bed.name}-hns"
        host_address = "172.28.77.31"
        bed.plug(where.name, "hns", f"{host_address}/24")
        served = Served(folder, "linux", where, *state, "--provider-address", host_address)
        host = Host(served, host_address, way)
        yield host
        host.hcn.clear()
        host.end()
        served.options = (
            "--provider-address",
            host_address,
        )  # without state: what is in the kernel goes at the end
        served.start()
        served.end()
        bed.unplug(where.name)
    finally:
        bed.remove()


@pytest.fixture
def host(one_host: Host) -> Iterator[Host]:
    yield one_host
    one_host.hcn.clear()


@pytest.fixture
def hcn(host: Host) -> Hcn:
    return host.hcn


def test_flannels_network_comes_back_with_what_hns_fills_in(host: Host) -> None:
    made = host.hcn.create("Network", overlay())
    assert made["Type"] == "Overlay" and made["Flags"] == 8
    settings = {x["Type"]: x["Settings"] for x in made["Policies"]}
    assert settings["ProviderAddress"] == {"ProviderAddress": host.address}
    assert settings["DrMacAddress"]["Address"].count("-") == 5
    first = made["MacPool"]["Ranges"][0]
    assert first["StartMacAddress"].startswith("00-15-5D-") and first["EndMacAddress"].endswith("F-FF")
    assert host.hcn.enumerate("Network", Name="FLANNEL.4096") == [made["ID"]]
    assert host.hcn.enumerate("Network", Name="other") == []
    assert host.hcn.get("Network", made["ID"].lower())["ID"] == made["ID"]


def test_enumerations_come_as_words_or_numbers_in_any_case(hcn: Hcn) -> None:
    document = overlay()
    document["Type"] = 5
    document["Flags"] = "EnableNonPersistent"
    document["Ipams"][0]["Type"] = 0
    document["Ipams"][0]["Subnets"][0]["Policies"][0]["Type"] = "vsid"
    made = hcn.create("Network", document)
    assert (made["Type"], made["Flags"]) == ("Overlay", 8)
    assert made["Ipams"][0]["Subnets"][0]["Policies"][0]["Type"] == "VSID"
    hcn.delete("Network", made["ID"])
    document["id"] = "{" + made["ID"].lower() + "}"
    assert hcn.create("Network", document)["ID"] == made["ID"]


def test_an_address_and_a_mac_are_given_where_none_is_asked(host: Host) -> None:
    net = host.hcn.create("Network", overlay())["ID"]
    made = [host.hcn.create("Endpoint", local(net, host.address)) for _ in range(3)]
    addresses = [e["IpConfigurations"][0] for e in made]
    assert [a["IpAddress"] for a in addresses] == ["10.244.3.2", "10.244.3.3", "10.244.3.4"]
    assert {a["PrefixLength"] for a in addresses} == {24}
    assert len({e["MacAddress"] for e in made}) == 3
    assert all(e["MacAddress"].startswith("00-15-5D-") for e in made)
    assert made[0]["Routes"] == [{"NextHop": "10.244.3.1", "DestinationPrefix": "0.0.0.0/0"}]
    host.hcn.delete("Endpoint", made[1]["ID"])
    again = host.hcn.create("Endpoint", local(net, host.address))
    assert again["IpConfigurations"][0]["IpAddress"] == "10.244.3.3"


REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    ("Network", overlay(vsid=256), 0x80070057, "IsolationId 256"),
    ("Network", overlay(name="taken", vsid=5000, third=9), 0x803B0010, "Name taken"),
    ("Network", overlay(vsid=4999), 0x803B0010, "4999"),
    ("Network", {"Name": "x", "Type": "Overlay"}, 0x803B000A, "Ipams"),
    ("Network", {**overlay(), "Flags": 1 << 20}, 0x80070057, "$.Flags 1048576"),
    ("Network", {**overlay(), "Policies": [{"Type": "Nonsense", "Settings": {}}]}, 0x803B000E, "Nonsense"),
    ("Network", {**overlay(), "Policies": [{"Type": "VxlanPort", "Settings": {}}]}, 0x803B000D, "Port"),
    ("Network", {**overlay(), "Policies": [{"Type": "PortMapping", "Settings": {}}]}, 0x803B000E, "PortMapping"),
    ("Network", {**overlay(), "Name": 5}, 0x80070057, "$.Name"),
    ("Network", {**overlay(), "SchemaVersion": {"Major": 3}}, 0x80070057, "3.0"),
    ("Network", {**overlay(), "MacPool": {"Ranges": [{"StartMacAddress": "x"}]}}, 0x80070057, "StartMacAddress"),
    ("Endpoint", local("NET", "PA", "10.9.9.9"), 0x803B001E, "10.9.9.9"),
    ("Endpoint", local("NET", "PA", "10.244.7.1"), 0x803B002F, "gateway"),
    ("Endpoint", local("NET", "PA", "10.244.7.77"), 0x803B002F, "10.244.7.77"),
    ("Endpoint", local("NET", "nobody", "10.244.7.8"), 0x803B001E, "ProviderAddress"),
    ("Endpoint", local("NET", "PA", "10.244.7.8", MacAddress="1-2"), 0x80070057, "MacAddress"),
    ("Endpoint", local("NET", "PA", "10.244.7.8", mapping(0, 8080)), 0x803B002D, "InternalPort"),
    ("Endpoint", local("NET", "PA", "10.244.7.8", mapping(80, 8077)), 0x803B0013, "8077"),
    ("Endpoint", local("NET", "PA", "10.244.7.8", mapping(80, 70000)), 0x80070057, "70000"),
    ("Endpoint", local("NET", "PA", "10.244.7.8", pa("192.0.2.2")), 0x803B000D, "ProviderAddress"),
    ("Endpoint", {**remote("NET", "192.0.2.9", "10.244.7.8", "02-11-00-00-00-08"),
                  "Policies": [pa("192.0.2.9"), mapping(80, 81)]}, 0x803B000F, "PortMapping"),
    ("LoadBalancer", {"HostComputeEndpoints": [NULL], "PortMappings": [{}]}, 0x803B0002, NULL),
    ("LoadBalancer", {"HostComputeEndpoints": []}, 0x80070057, "HostComputeEndpoints"),
    ("LoadBalancer", {"HostComputeEndpoints": ["EP"], "FrontendVIPs": ["10.244.7.200"]}, 0x80070057, "PortMappings"),
    ("Namespace", {"Type": "Planet"}, 0x80070057, "$.Type"),
    ("Namespace", {"Resources": [{"Type": "Endpoint", "Data": {"Id": NULL}}]}, 0x803B0002, NULL),
    ("SdnRoute", {"HostComputeEndpoints": []}, 0x80070057, "HostComputeEndpoints"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "document", "code", "words"), REFUSED, ids=[f"{r[0]}-{r[3]}" for r in REFUSED]
)
def test_what_is_wrong_is_refused_by_name_and_leaves_nothing(
    host: Host, kind: str, document: dict[str, Any], code: int, words: str
) -> None:
    hcn = host.hcn
    net = hcn.create("Network", overlay("taken", 4999, 7))["ID"]
    ep = hcn.create("Endpoint", local(net, host.address, "10.244.7.77", mapping(80, 8077)))["ID"]
    text = (
        json.dumps(document)
        .replace('"NET"', f'"{net}"')
        .replace('"EP"', f'"{ep}"')
        .replace('"PA"', f'"{host.address}"')
    )
    before = {k: hcn.enumerate(k) for k in ("Network", "Endpoint", "Namespace", "LoadBalancer", "SdnRoute")}
    with pytest.raises(Refused) as e:
        hcn.create(kind, json.loads(text))
    assert e.value.hr == code, str(e.value)
    assert words in e.value.text
    assert before == {k: hcn.enumerate(k) for k in before}


def test_no_json_and_no_object_are_said(hcn: Hcn) -> None:
    for text in ("{", "[]", "", "nothing"):
        with pytest.raises(Refused) as e:
            hcn.do("CreateNetwork", guid=NULL, document=text)
        assert e.value.hr == 0x803B001B


def test_unknown_ids_are_element_not_found(hcn: Hcn) -> None:
    absent = "99999999-2222-3333-4444-555555555555"
    for kind in ("Network", "Endpoint", "Namespace", "LoadBalancer", "SdnRoute"):
        for operation in ("Open", "Delete"):
            with pytest.raises(Refused) as e:
                hcn.do(operation + kind, guid=absent)
            assert e.value.hr == 0x80070490 and e.value.text == "Element not found. "
        assert hcn.enumerate(kind, Name="nobody") == []


def test_handles_live_until_they_are_closed(hcn: Hcn) -> None:
    net = hcn.create("Network", overlay())["ID"]
    a, b = (hcn.do("OpenNetwork", guid=net).handle for _ in range(2))
    assert a != b
    hcn.do("CloseNetwork", a)
    for operation in ("CloseNetwork", "QueryNetwork", "ModifyNetwork"):
        with pytest.raises(Refused) as e:
            hcn.do(operation, a, document="{}")
        assert e.value.hr == 0x80070006
    with pytest.raises(Refused) as e:
        hcn.do("CloseEndpoint", b)  # not of this kind
    assert e.value.hr == 0x80070006
    hcn.delete("Network", net)
    with pytest.raises(Refused) as e:
        hcn.do("QueryNetwork", b)
    assert e.value.hr == 0x803B0031
    hcn.do("CloseNetwork", b)


def test_an_endpoint_is_made_on_the_handles_network(host: Host) -> None:
    hcn = host.hcn
    net = hcn.create("Network", overlay())["ID"]
    other = hcn.create("Network", overlay("other", 4097, 4))["ID"]
    handle = hcn.do("OpenNetwork", guid=net).handle
    body = local(other, host.address, "10.244.4.5")
    with pytest.raises(Refused) as e:
        hcn.do("CreateEndpoint", handle, NULL, body)
    assert e.value.hr == 0x803B000C and "HostComputeNetwork" in e.value.text
    with pytest.raises(Refused) as e:
        hcn.do("CreateEndpoint", 0, NULL, body)
    assert e.value.hr == 0x80070006
    hcn.do("CloseNetwork", handle)


def test_policies_are_added_removed_and_replaced(host: Host) -> None:
    hcn = host.hcn
    net = hcn.create("Network", overlay())["ID"]
    ep = hcn.create("Endpoint", local(net, host.address, "10.244.3.5"))["ID"]
    acl = {"Type": "ACL", "Settings": {"Action": "Allow", "Direction": "In", "Protocols": "6",
                                       "LocalPorts": "80", "RuleType": "Switch", "Priority": 200}}  # fmt: skip
    deny = {"Type": "ACL", "Settings": {"Action": "Block", "Direction": "In", "Protocols": "256",
                                        "RuleType": "Switch", "Priority": 65500}}  # fmt: skip
    assert kinds(hcn.policies("Endpoint", ep, "Add", acl, deny)) == ["ProviderAddress", "ACL", "ACL"]
    with pytest.raises(Refused) as e:
        hcn.policies("Endpoint", ep, "Add", acl)
    assert e.value.hr == 0x803B0012
    numbers = {"Type": 1, "Settings": {**acl["Settings"], "Action": 0, "Direction": "in", "RuleType": 1}}
    assert kinds(hcn.policies("Endpoint", ep, "Remove", numbers)) == ["ProviderAddress", "ACL"]
    with pytest.raises(Refused) as e:
        hcn.policies("Endpoint", ep, "Remove", acl)
    assert e.value.hr == 0x803B0008
    held = hcn.policies("Endpoint", ep, "Update", acl)["Policies"]
    assert [x["Settings"].get("Priority") for x in held] == [None, 200]
    mtu = {"Type": "InterfaceParameters", "Settings": {"Mtu": 1400}}
    hcn.policies("Endpoint", ep, "Add", mtu)
    with pytest.raises(Refused) as e:
        hcn.policies("Endpoint", ep, "Add", mtu)
    assert e.value.hr == 0x803B0036
    half = [mapping(80, 8080), mapping(81, 0)]
    with pytest.raises(Refused):
        hcn.policies("Endpoint", ep, "Add", *half)
    assert "PortMapping" not in kinds(hcn.get("Endpoint", ep))
    assert "ACL" in kinds(hcn.modify("Endpoint", ep, {"ResourceType": 1, "RequestType": "Refresh"}))
    assert kinds(hcn.modify("Endpoint", ep, {"ResourceType": "Policy", "RequestType": "Reset"})) == [
        "ProviderAddress"
    ]


def kinds(document: dict[str, Any]) -> list[str]:
    return [x["Type"] for x in document["Policies"]]


def test_a_networks_dns_and_subnets_change(host: Host) -> None:
    hcn = host.hcn
    net = hcn.create("Network", overlay())["ID"]
    dns = {"ResourceType": "DNS", "RequestType": "Update", "Settings": {"ServerList": ["10.96.0.10"]}}
    assert hcn.modify("Network", net, dns)["Dns"] == {"ServerList": ["10.96.0.10"]}
    subnet = overlay(third=4)["Ipams"][0]["Subnets"][0]
    body = {"ResourceType": "Subnet", "RequestType": "Add", "Settings": {"Subnets": [subnet]}}
    held = hcn.modify("Network", net, body)["Ipams"][0]["Subnets"]
    assert [s["IpAddressPrefix"] for s in held] == ["10.244.3.0/24", "10.244.4.0/24"] and held[1]["ID"]
    ep = hcn.create("Endpoint", local(net, host.address, "10.244.4.5"))["ID"]
    body = {"ResourceType": 3, "RequestType": 1, "Settings": {"Subnets": [{"ID": held[1]["ID"].lower()}]}}
    with pytest.raises(Refused) as e:
        hcn.modify("Network", net, body)
    assert e.value.hr == 0x803B002C and ep in e.value.text
    hcn.delete("Endpoint", ep)
    assert len(hcn.modify("Network", net, body)["Ipams"][0]["Subnets"]) == 1
    with pytest.raises(Refused) as e:
        hcn.modify("Network", net, body)
    assert e.value.hr == 0x803B0005
    with pytest.raises(Refused) as e:
        hcn.modify("Network", net, {"ResourceType": "Endpoint", "RequestType": "Add", "Settings": {}})
    assert e.value.hr == 0x803B0015


def test_namespaces_hold_endpoints_and_let_them_go(host: Host) -> None:
    hcn = host.hcn
    net = hcn.create("Network", overlay())["ID"]
    ep = hcn.create("Endpoint", local(net, host.address, "10.244.3.5"))["ID"]
    a, b = (hcn.create("Namespace", {"Type": "Host"}) for _ in range(2))
    assert a["NamespaceId"] != b["NamespaceId"] and 1 not in (a["NamespaceId"], b["NamespaceId"])
    held = hcn.attach(a["ID"], ep.lower())
    assert held["Resources"] == [{"Type": "Endpoint", "Data": {"Id": ep}}]
    assert hcn.get("Endpoint", ep)["HostComputeNamespace"] == a["ID"]
    with pytest.raises(Refused) as e:
        hcn.attach(b["ID"], ep)
    assert e.value.hr == 0x803B002B
    hcn.attach(a["ID"], ep, "Remove")
    assert "HostComputeNamespace" not in hcn.get("Endpoint", ep)
    hcn.attach(b["ID"], ep)
    hcn.delete("Namespace", b["ID"])
    assert "HostComputeNamespace" not in hcn.get("Endpoint", ep)
    far = hcn.create("Endpoint", remote(net, "192.0.2.9", "10.244.3.9", "02:11:0a:f4:03:09"))
    assert far["MacAddress"] == "02-11-0A-F4-03-09"
    with pytest.raises(Refused) as e:
        hcn.attach(a["ID"], far["ID"])
    assert e.value.hr == 0x803B000F
    default = {"Type": "HostDefault"}
    hcn.create("Namespace", default)
    with pytest.raises(Refused) as e:
        hcn.create("Namespace", default)
    assert e.value.hr == 0x803B0029
    with pytest.raises(Refused) as e:
        hcn.create("Namespace", {"NamespaceId": a["NamespaceId"]})
    assert e.value.hr == 0x800700B7


def test_a_load_balancer_is_changed_whole_and_holds_its_endpoints(host: Host) -> None:
    hcn = host.hcn
    net = hcn.create("Network", overlay())["ID"]
    eps = [hcn.create("Endpoint", local(net, host.address))["ID"] for _ in range(2)]
    document = {
        "HostComputeEndpoints": [eps[0].lower()], "SourceVIP": "10.244.3.2", "FrontendVIPs": ["10.244.3.100"],
        "PortMappings": [{"Protocol": "TCP", "InternalPort": 80, "ExternalPort": 8080, "DistributionType": 2}],
    }  # fmt: skip
    lb = hcn.create("LoadBalancer", document)
    assert lb["HostComputeEndpoints"] == [eps[0]] and lb["PortMappings"][0]["Protocol"] == 6
    with pytest.raises(Refused) as e:
        hcn.create("LoadBalancer", document)
    assert e.value.hr == 0x803B0013
    with pytest.raises(Refused) as e:
        hcn.delete("Endpoint", eps[0])
    assert e.value.hr == 0x803B002C
    changed = hcn.modify("LoadBalancer", lb["ID"], {**document, "HostComputeEndpoints": eps})
    assert changed["HostComputeEndpoints"] == eps and changed["ID"] == lb["ID"]
    with pytest.raises(Refused):
        hcn.modify("LoadBalancer", lb["ID"], {**document, "HostComputeEndpoints": [NULL]})
    assert hcn.get("LoadBalancer", lb["ID"])["HostComputeEndpoints"] == eps
    hcn.delete("LoadBalancer", lb["ID"])
    # as hcsshim updates before 15.4: delete, and create with the old id left in the document
    assert hcn.create("LoadBalancer", {**document, "ID": lb["ID"]})["ID"] == lb["ID"]


def test_queries_filter_and_choose_the_shape(host: Host) -> None:
    hcn = host.hcn
    net = hcn.create("Network", overlay())["ID"]
    ep = hcn.create("Endpoint", local(net, host.address, "10.244.3.5"))["ID"]
    assert hcn.enumerate("Endpoint", VirtualNetwork=net.lower()) == [ep]
    if host.dll is None:  # no client binds these two
        handle = hcn.do("OpenEndpoint", guid=ep).handle
        told = json.loads(hcn.do("QueryEndpointAddresses", handle).result or "")
        assert told == [{"IPAddress": "10.244.3.5", "PrefixLength": 24}]
        assert json.loads(hcn.do("QueryEndpointStats", handle).result or "")["EndpointId"] == ep
        hcn.do("CloseEndpoint", handle)
    assert hcn.enumerate("Endpoint", HostComputeNetwork=NULL) == []
    assert hcn.enumerate("Endpoint", ID=ep.lower(), Name="EP-10.244.3.5") == [ep]
    with pytest.raises(Refused) as e:
        hcn.enumerate("Endpoint", Colour="blue")
    assert e.value.hr == 0x80070057 and "Colour" in e.value.text
    old = hcn.get("Endpoint", ep, SchemaVersion={"Major": 1, "Minor": 0})
    assert (old["IPAddress"], old["VirtualNetwork"], old["PrefixLength"]) == ("10.244.3.5", net, 24)
    full = hcn.get("Network", net, Flags=1)
    assert full["Health"]["Extra"]["Resources"]["Endpoints"] == [ep]
    assert full["Version"] >> 32 == 15


def test_v1_documents_through_hnscall_as_moby_sends_them(host: Host) -> None:
    hcn = host.hcn
    body = {
        "Name": "ovprobe", "Type": "overlay", "AutomaticDNS": True,
        "Subnets": [{"AddressPrefix": "10.0.9.0/24", "GatewayAddress": "10.0.9.1",
                     "Policies": [{"Type": "VSID", "VSID": 4097}]}],
    }  # fmt: skip
    net = hcn.hnscall("POST", "/networks/", body)
    assert net["Type"] == "overlay" and net["ManagementIP"] == host.address
    assert [n["Type"] for n in hcn.hnscall("GET", "/networks/")] == ["overlay"]  # moby adopts exactly this
    assert hcn.get("Network", net["ID"])["Type"] == "Overlay"
    body = {
        "Name": "eid1", "VirtualNetwork": net["ID"], "IPAddress": "10.0.9.5", "DNSServerList": "8.8.8.8",
        "GatewayAddress": "10.0.9.1", "EnableInternalDNS": True,
        "Policies": [{"Type": "PA", "PA": ""}, {"Type": "OutBoundNAT", "PA": ""},
                     {"Type": "NAT", "Protocol": "tcp", "InternalPort": 80, "ExternalPort": 18080,
                      "ExternalPortReserved": True}],
    }  # fmt: skip
    ep = hcn.hnscall("POST", "/endpoints/", body)
    assert ep["EnableInternalDNS"] is True and {"Type": "PA", "PA": host.address} in ep["Policies"]
    assert hcn.hnscall("GET", f"/endpoints/{ep['ID'].lower()}")["MacAddress"] == ep["MacAddress"]
    peer = {"Name": "peer1", "VirtualNetwork": net["ID"], "MacAddress": "02:42:0a:00:09:4d", "IPAddress": "10.0.9.77",
            "IsRemoteEndpoint": True, "Policies": [{"Type": "PA", "PA": "192.0.2.20"}]}  # fmt: skip
    far = hcn.hnscall("POST", "/endpoints/", peer)
    elb = {
        "Type": "ELB",
        "InternalPort": 0,
        "ExternalPort": 0,
        "SourceVIP": "10.0.9.3",
        "VIPs": ["10.0.9.100"],
        "ILB": True,
    }
    lists = {"References": [f"/endpoints/{ep['ID']}", f"/endpoints/{far['ID']}"], "Policies": [elb]}
    made = hcn.hnscall("POST", "/policylists/", lists)
    assert made["References"] == lists["References"] and made["Policies"][0]["ILB"] is True
    assert hcn.get("LoadBalancer", made["ID"])["FrontendVIPs"] == ["10.0.9.100"]
    hcn.hnscall("DELETE", f"/policylists/{made['ID']}")
    attached = hcn.hnscall(
        "POST", f"/endpoints/{ep['ID']}/attach", {"ContainerId": "c1", "SystemType": "Container"}
    )
    assert attached["SharedContainers"] == ["c1"] and attached["State"] == 2
    with pytest.raises(Refused) as e:
        hcn.hnscall("POST", f"/endpoints/{ep['ID']}/attach", {"ContainerId": "c2"})
    assert e.value.hr == 0x803B0014
    assert set(hcn.hnscall("GET", f"/endpointstats/{ep['ID']}")) >= {"BytesReceived", "PacketsSent"}
    hcn.hnscall("POST", f"/endpoints/{ep['ID']}/detach", {"ContainerId": "c1"})
    assert hcn.enumerate("Namespace") == []
    for room, guid in (("endpoints", ep["ID"]), ("endpoints", far["ID"]), ("networks", net["ID"])):
        hcn.hnscall("DELETE", f"/{room}/{guid}")
        with pytest.raises(Refused) as e:
            hcn.hnscall("DELETE", f"/{room}/{guid}")
        assert e.value.text == "The object identifier does not represent a valid object. "  # moby compares it
    with pytest.raises(Refused) as e:
        hcn.hnscall("GET", f"/namespaces/{NULL}")
    assert "Element not found." in e.value.text
    assert hcn.hnscall("GET", "/globals/version") == {"Major": 15, "Minor": 4}
    for method, path in (("PUT", "/networks/"), ("GET", "/moon"), ("DELETE", "/networks/")):
        with pytest.raises(Refused) as e:
            hcn.hnscall(method, path)
        assert e.value.hr == 0x803B0015


def test_a_v1_body_goes_through_hcn_create(hcn: Hcn) -> None:
    body = {"Name": "v1nat", "Type": "nat", "Subnets": [{"AddressPrefix": "192.168.100.0/24",
                                                         "GatewayAddress": "192.168.100.1"}]}  # fmt: skip
    handle = hcn.do("CreateNetwork", guid=NULL, document=body).handle
    found = json.loads(hcn.do("QueryNetwork", handle).result or "")
    assert found["Ipams"][0]["Subnets"][0]["IpAddressPrefix"] == "192.168.100.0/24" and "Type" not in found
    hcn.do("CloseNetwork", handle)
    assert [n["Type"] for n in hcn.hnscall("GET", "/networks")] == ["nat"]


def test_a_killed_hns_has_everything_when_it_is_back(host: Host) -> None:
    hcn = host.hcn
    net = hcn.create("Network", overlay())["ID"]
    ep = hcn.create("Endpoint", local(net, host.address, "10.244.3.5"))["ID"]
    namespace = hcn.create("Namespace", {"Type": "Guest"})["ID"]
    hcn.attach(namespace, ep)
    handle = hcn.do("OpenNetwork", guid=net).handle
    before = [hcn.get(k, g) for k, g in (("Network", net), ("Endpoint", ep), ("Namespace", namespace))]
    host.served.kill()
    host.served.start()
    assert before == [
        hcn.get(k, g) for k, g in (("Network", net), ("Endpoint", ep), ("Namespace", namespace))
    ]
    with pytest.raises(Refused) as e:
        hcn.do("QueryNetwork", handle)  # handles end with the service
    assert e.value.hr == 0x80070006


def test_events_reach_who_registered(host: Host) -> None:
    hcn, wire = host.hcn, host.served.wire
    with wire.connect() as everything, wire.connect() as one:
        everything.sendall(b"RegisterServiceCallback 0 - -1\n")
        assert head(everything) == "00000000 0 -1 -1"
        net = hcn.create("Network", overlay())["ID"]
        other = hcn.create("Network", overlay("other", 4097, 4))["ID"]
        handle = hcn.do("OpenNetwork", guid=net).handle
        one.sendall(f"RegisterNetworkCallback {handle} - -1\n".encode())
        assert head(one) == "00000000 0 -1 -1"
        namespace = hcn.create("Namespace", {"Type": "Guest"})["ID"]
        ep = hcn.create("Endpoint", local(net, host.address, "10.244.3.5"))["ID"]
        hcn.attach(namespace, ep)
        with pytest.raises(Refused):
            hcn.create("Network", overlay("third", 4097, 5))
        hcn.attach(namespace, ep, "Remove")
        hcn.delete("Namespace", namespace)
        hcn.delete("Endpoint", ep)
        hcn.delete("Network", other)
        assert [event(everything) for _ in range(10)] == [
            (1, net), (2, net), (1, other), (2, other), (5, namespace), (9, ep), (0x10, ep), (6, namespace),
            (3, other), (4, other),
        ]  # fmt: skip
        assert [event(one) for _ in range(2)] == [(9, ep), (0x10, ep)]


def head(connection: Any) -> str:
    data = b""
    while not data.endswith(b"\n"):
        data += connection.recv(1)
    return data.decode().strip()


def event(connection: Any) -> tuple[int, str]:
    number, size = head(connection).split()
    data = b""
    while len(data) < int(size):
        data += connection.recv(int(size) - len(data))
    return int(number), json.loads(data)["ID"]
