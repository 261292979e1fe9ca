"""Documents that would hide another's rows, do nothing, or ask for what cannot be: refused, in words that help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from overlace.network.hns.calls import HnsCalls
from overlace.network.hns.enforced import linux_check
from overlace.network.hns.errors import Code
from overlace.network.hns.service import HnsService, HostFacts
from overlace.network.hns.versions import LATEST
from overlace.network.vfp.compile import Compiler
from overlace.network.vfp.tables import AccessList

HOST = "192.0.2.10"
NET, OTHER, EP, FAR, LB = (f"{n:08X}-0000-0000-0000-000000000000" for n in range(1, 6))
PA = {"Type": "ProviderAddress", "Settings": {"ProviderAddress": HOST}}


def subnet(prefix: str = "10.1.1.0/24", vsid: int = 4096, **more: Any) -> dict[str, Any]:
    gateway = prefix.rsplit(".", 1)[0] + ".1"
    return {
        "IpAddressPrefix": prefix,
        "Policies": [{"Type": "VSID", "Settings": {"IsolationId": vsid}}],
        "Routes": [{"NextHop": gateway, "DestinationPrefix": "0.0.0.0/0"}],
        **more,
    }


def network(name: str = "n", *subnets: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"Name": name, "Type": "Overlay", "Ipams": [{"Subnets": list(subnets or (subnet(),))}], **more}


def policy(kind: str, **settings: Any) -> dict[str, Any]:
    return {"Type": kind, "Settings": settings}


def acl(**settings: Any) -> dict[str, Any]:
    return policy(
        "ACL", **{"Action": "Allow", "Direction": "In", "RuleType": "Switch", "Priority": 1, **settings}
    )


def mapped(external: int, vip: str = "", protocol: int = 6) -> dict[str, Any]:
    return policy("PortMapping", Protocol=protocol, InternalPort=80, ExternalPort=external, VIP=vip)


def endpoint(address: str, *policies: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"IpConfigurations": [{"IpAddress": address}], "Policies": [PA, *policies], **more}


def far(address: str, mac: str = "02-11-0A-01-01-09", *policies: dict[str, Any]) -> dict[str, Any]:
    pa = policy("ProviderAddress", ProviderAddress="192.0.2.20")
    return {
        "Flags": 1,
        "MacAddress": mac,
        "IpConfigurations": [{"IpAddress": address}],
        "Policies": [pa, *policies],
    }


def balancer(*vips: str, port: int = 80, flags: int = 0, of: str = EP, **more: Any) -> dict[str, Any]:
    mapping = {"Protocol": 6, "InternalPort": 80, "ExternalPort": port, "Flags": flags, **more}
    return {"HostComputeEndpoints": [of], "FrontendVIPs": list(vips), "PortMappings": [mapping]}


class Host:
    """A served HNS of a Linux host, without its packets."""

    def __init__(self, service: HnsService | None = None) -> None:
        self.sockets: set[tuple[str, int, int]] = set()
        check = linux_check(HOST, "eth0", 4789, listening=lambda: self.sockets)
        self.service = service or HnsService(facts=HostFacts(HOST, LATEST, check))
        self.hns = HnsCalls(self.service)
        self.compiler = Compiler(self.service.state, HOST)

    def create(self, kind: str, document: dict[str, Any], guid: str = "-", on: str = NET) -> tuple[int, str]:
        handle = self.hns.call("OpenNetwork", 0, on, None).handle if kind == "Endpoint" else 0
        return self._told(self.hns.call("Create" + kind, handle, guid, json.dumps(document)))

    def modify(self, kind: str, guid: str, document: dict[str, Any]) -> tuple[int, str]:
        handle = self.hns.call("Open" + kind, 0, guid, None).handle
        return self._told(self.hns.call("Modify" + kind, handle, "-", json.dumps(document)))

    def post(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        text = self.hns.call("HNSCall", 0, "-", f"POST {path}\n{json.dumps(document)}").result or ""
        return dict(json.loads(text))

    def shown(self, kind: str, guid: str) -> dict[str, Any]:
        handle = self.hns.call("Open" + kind, 0, guid, None).handle
        return dict(json.loads(self.hns.call("Query" + kind, handle, "-", None).result or ""))

    def made(self, kind: str, document: dict[str, Any], guid: str, on: str = NET) -> None:
        hr, text = self.create(kind, document, guid, on)
        assert not hr, text

    def follow(self) -> None:
        self.compiler.update(self.service.drain())

    @staticmethod
    def _told(reply: Any) -> tuple[int, str]:
        record = json.loads(reply.record)["Error"] if reply.record else ""
        return reply.hr, record


@pytest.fixture
def host() -> Host:
    made = Host()
    made.made("Network", network(), NET)
    made.made("Network", network("other", subnet("10.1.2.0/24", 4097)), OTHER)
    made.made("Endpoint", endpoint("10.1.1.5", mapped(8080)), EP)
    return made


REFUSED: list[tuple[str, dict[str, Any], Code, str]] = [
    ("Endpoint", endpoint("10.1.1.6", mapped(81, "127.0.0.1")),
     Code.ADDR_INVALID_OR_RESERVED, "PortMapping.VIP 127.0.0.1"),
    ("Endpoint", endpoint("10.1.1.6", mapped(81, "224.0.0.9")), Code.ADDR_INVALID_OR_RESERVED, "multicast"),
    ("Endpoint", endpoint("10.1.1.6", mapped(81, "255.255.255.255")), Code.ADDR_INVALID_OR_RESERVED, "broadcast"),
    ("Endpoint", endpoint("10.1.1.6", mapped(8080, HOST)), Code.PORT_ALREADY_EXISTS, "8080/tcp"),
    ("Endpoint", endpoint("10.1.1.6", mapped(81), mapped(81, "0.0.0.0")),
     Code.PORT_ALREADY_EXISTS, "this document itself"),
    ("Endpoint", endpoint("10.1.1.6", mapped(4789, protocol=17)),
     Code.PORT_ALREADY_EXISTS, "ExternalPort 4789/udp: the tunnels"),
    ("LoadBalancer", balancer(port=4789, Protocol=17), Code.PORT_ALREADY_EXISTS, "ExternalPort 4789/udp: the tunnels"),
    ("Endpoint", endpoint("10.1.1.6", mapped(81, protocol=1)), Code.BAD_PARAMETER, "PortMapping.Protocol 1"),
    ("Endpoint", endpoint("10.1.1.6", policy("PortMapping", Protocol=6, InternalPort=0, ExternalPort=81)),
     Code.INVALID_INTERNAL_PORT, "PortMapping.InternalPort 0 is not a port: use 1 to 65535"),
    ("LoadBalancer", balancer(port=81, flags=1), Code.BAD_PARAMETER, "FrontendVIPs is empty"),
    ("LoadBalancer", balancer("0.0.0.0"), Code.ADDR_INVALID_OR_RESERVED, "FrontendVIPs 0.0.0.0"),
    ("LoadBalancer", balancer("224.1.1.1"), Code.ADDR_INVALID_OR_RESERVED, "FrontendVIPs 224.1.1.1"),
    ("LoadBalancer", balancer("127.0.0.1"), Code.ADDR_INVALID_OR_RESERVED, "FrontendVIPs 127.0.0.1"),
    ("LoadBalancer", balancer("255.255.255.255"), Code.ADDR_INVALID_OR_RESERVED, "FrontendVIPs 255.255.255.255"),
    ("LoadBalancer", balancer("10.1.1.1"), Code.ADDR_INVALID_OR_RESERVED, "gateway of network n"),
    ("LoadBalancer", balancer("10.1.1.255"), Code.ADDR_INVALID_OR_RESERVED, "broadcast address of 10.1.1.0/24"),
    ("LoadBalancer", balancer("10.1.1.0"), Code.ADDR_INVALID_OR_RESERVED, "network address of 10.1.1.0/24"),
    ("LoadBalancer", balancer("10.1.1.5"), Code.ADDR_INVALID_OR_RESERVED, EP),
    ("LoadBalancer", balancer("10.1.1.99", "10.1.1.99"), Code.PORT_ALREADY_EXISTS, "10.1.1.99 with ExternalPort 80/tcp"),
    ("LoadBalancer", {**balancer("10.1.1.99"), "PortMappings": balancer()["PortMappings"] * 2},
     Code.PORT_ALREADY_EXISTS, "given twice"),
    ("LoadBalancer", balancer(HOST, port=8080), Code.PORT_ALREADY_EXISTS, "8080/tcp is taken by " + EP),
    ("LoadBalancer", balancer(HOST, port=80, flags=8), Code.NOT_SUPPORTED, "EnablePreserveDip"),
    ("LoadBalancer", {**balancer("10.1.1.99"), "PortMappings": [{"Protocol": 1, "InternalPort": 80, "ExternalPort": 80}]},
     Code.BAD_PARAMETER, "PortMappings.Protocol 1"),
    ("LoadBalancer", {**balancer("10.1.1.99"), "PortMappings": [{"Protocol": 6, "InternalPort": 0, "ExternalPort": 80}]},
     Code.INVALID_INTERNAL_PORT, "PortMappings.InternalPort 0 is not a port"),
    ("Network", network("x", subnet("10.9.1.0/24", 4999, Flags=1)), Code.NOT_SUPPORTED, "DoNotReserveGatewayAddress"),
    ("Network", network("x", subnet("10.9.1.0/24", 4999, IpSubnets=[{"IpAddressPrefix": "10.9.1.0/28", "Flags": 2}])),
     Code.NOT_SUPPORTED, "IpSubnets[10.9.1.0/28].Flags 2"),
    ("Network", {**network("x"), "Ipams": [{"Type": "Dhcp", "Subnets": [subnet("10.9.1.0/24", 4999)]}]},
     Code.NOT_SUPPORTED, "Ipams.Type Dhcp"),
    ("Network", network("x", subnet("10.9.1.0/24", 4999, Routes=[
        {"NextHop": "10.9.1.1", "DestinationPrefix": "0.0.0.0/0", "Metric": 7}])), Code.NOT_SUPPORTED, "Metric 7"),
    ("Endpoint", endpoint("10.1.1.6", Routes=[{"NextHop": "10.1.1.1", "DestinationPrefix": "0.0.0.0/0", "Metric": 7}]),
     Code.NOT_SUPPORTED, "Metric 7"),
    ("Network", network("x", subnet("10.9.1.0/24", 4999), Policies=[
        policy("ProviderAddress", ProviderAddress="192.0.2.77")]),
     Code.INVALID_POLICY, "ProviderAddress 192.0.2.77: this host is " + HOST),
    ("Endpoint", {**endpoint("10.1.1.6"), "Policies": [policy("ProviderAddress", ProviderAddress="192.0.2.77")]},
     Code.INVALID_POLICY, "192.0.2.77 of a local endpoint: this host is " + HOST),
    ("Network", {"Name": "nat", "Type": "NAT", "OverlaceMulticastRate": 100},
     Code.INVALID_NETWORK, "OverlaceMulticastRate 100"),
    ("Endpoint", endpoint("10.1.1.6", policy("EncapOverhead", Overhead=70000)), Code.INVALID_POLICY, "Overhead 70000"),
    ("Endpoint", endpoint("10.1.1.6", policy("EncapOverhead", Overhead=-1)), Code.INVALID_POLICY, "Overhead -1"),
    ("Endpoint", endpoint("10.1.1.6", policy("EncapOverhead", Overhead=1433)), Code.INVALID_POLICY, "use 1432 at most"),
    ("Endpoint", endpoint("10.1.1.6", policy("InterfaceParameters", Mtu=1)), Code.INVALID_POLICY, "Mtu 1: use 68"),
    ("Endpoint", endpoint("10.1.1.6", acl(Protocols="²")), Code.BAD_PARAMETER, "ACL.Protocols '²'"),
    ("Endpoint", endpoint("10.1.1.6", acl(Protocols="9" * 5000)), Code.BAD_PARAMETER, "ACL.Protocols '9999"),
    ("Endpoint", endpoint("10.1.1.6", acl(Protocols="6", LocalPorts="1-" + "9" * 5000)),
     Code.BAD_PARAMETER, "ACL.LocalPorts"),
    ("Network", network("x", subnet("0.0.0.0/0", 4999)), Code.INVALID_PREFIX, "IpAddressPrefix 0.0.0.0/0"),
    ("Network", network("x", subnet("127.0.0.0/8", 4999)), Code.INVALID_PREFIX, "127.0.0.0/8"),
    ("Network", network("x", subnet("224.0.0.0/4", 4999)), Code.INVALID_PREFIX, "224.0.0.0/4"),
    ("Network", network("x", subnet("192.0.2.0/24", 4999)), Code.INVALID_PREFIX, "this host's own address " + HOST),
    ("Network", network("x", subnet("10.9.1.5/24", 4999)),
     Code.INVALID_PREFIX, "bits set behind its length: write 10.9.1.0/24"),
    ("Network", network("x", subnet("10.9.1.0/255.255.255.0", 4999)), Code.INVALID_PREFIX, "is not an IPv4 prefix"),
    ("Endpoint", endpoint("10.1.1.0"), Code.ADDR_INVALID_OR_RESERVED, "network address of 10.1.1.0/24"),
    ("Endpoint", endpoint("10.1.1.255"), Code.ADDR_INVALID_OR_RESERVED, "broadcast address of 10.1.1.0/24"),
    ("Endpoint", endpoint("10.1.1.6", MacAddress="01-00-5E-00-00-05"), Code.BAD_PARAMETER, "is multicast"),
    ("Endpoint", endpoint("10.1.1.6", MacAddress="ff:ff:ff:ff:ff:ff"), Code.BAD_PARAMETER, "is broadcast"),
    ("Endpoint", endpoint("10.1.1.6", MacAddress="00-00-00-00-00-00"), Code.BAD_PARAMETER, "is all zero"),
    ("Endpoint", endpoint("10.1.1.6", policy("OutBoundNAT", Exceptions=[
        f"10.{n >> 8}.{n & 255}.0/24" for n in range(4097)])),
     Code.INVALID_POLICY, "4097 Exceptions and Destinations; 4096"),
    ("Endpoint", far("10.1.1.9", "02-11-0A-01-01-09", policy("QOS", MaximumOutgoingBandwidthInBytes=5000)),
     Code.INVALID_REMOTE_ENDPOINT_OPERATION, "Policies: QOS on a remote endpoint: leave it out"),
    ("Endpoint", {**endpoint("10.1.1.6"), "IpConfigurations": [{"IpAddress": "10.1.1.6", "IpSubnetId": FAR}]},
     Code.SUBNET_NOT_FOUND, "leave it out"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "document", "code", "words"), REFUSED, ids=[f"{r[0]}-{r[3]}"[:70] for r in REFUSED]
)
def test_what_cannot_be_is_refused_by_field_value_and_remedy(
    host: Host, kind: str, document: dict[str, Any], code: Code, words: str
) -> None:
    before = dict(host.service.documents)
    hr, text = host.create(kind, document)
    assert (hr, words in text) == (code, True), (hex(hr), text)
    assert dict(host.service.documents) == before


@pytest.mark.parametrize("number", [0, 4095, 1 << 24])
def test_a_remote_subnets_vni_is_one_that_can_be(host: Host, number: int) -> None:
    route = policy("RemoteSubnetRoute", DestinationPrefix="10.9.0.0/24", IsolationId=number,
                   ProviderAddress="192.0.2.9", DistributedRouterMacAddress="00-11-22-33-44-55")  # fmt: skip
    asked = {"ResourceType": "Policy", "RequestType": "Add", "Settings": {"Policies": [route]}}
    hr, text = host.modify("Network", NET, asked)
    assert hr == Code.INVALID_POLICY and f"IsolationId {number}" in text


def test_host_bits_of_a_remote_subnet_are_cleared_however_it_comes(host: Host) -> None:
    route = policy("RemoteSubnetRoute", DestinationPrefix="10.9.0.77/24", IsolationId=4096,
                   ProviderAddress="192.0.2.9", DistributedRouterMacAddress="00:11:22:33:44:55")  # fmt: skip
    host.made("Network", network("x", subnet("10.3.1.0/24", 4999), Policies=[route]), FAR)
    asked = {"ResourceType": "Policy", "RequestType": "Add", "Settings": {"Policies": [route]}}
    assert not host.modify("Network", NET, asked)[0]
    for guid in (FAR, NET):
        found = [x for x in host.shown("Network", guid)["Policies"] if x["Type"] == "RemoteSubnetRoute"]
        assert [x["Settings"]["DestinationPrefix"] for x in found] == ["10.9.0.0/24"]
        assert not host.modify("Network", guid, {**asked, "RequestType": "Remove"})[0]


def test_a_mapping_at_no_particular_address_is_at_the_hosts(host: Host) -> None:
    host.made("Endpoint", endpoint("10.1.1.6", mapped(81, "0.0.0.0")), FAR)
    assert "VIP" not in host.shown("Endpoint", FAR)["Policies"][1]["Settings"]
    assert host.service.state.by_host_port[6, 81] == FAR


def test_two_addresses_may_share_a_port_and_each_has_its_own(host: Host) -> None:
    host.made("Endpoint", endpoint("10.1.1.6", mapped(8080, "198.51.100.1")), FAR)
    host.made("Endpoint", endpoint("10.1.1.7", mapped(8080, "198.51.100.2")), LB)
    hr, text = host.create("Endpoint", endpoint("10.1.1.8", mapped(8080, "198.51.100.2")))
    assert hr == Code.PORT_ALREADY_EXISTS and "8080/tcp of 198.51.100.2 is taken by " + LB in text
    shown = json.loads(host.hns.call("HNSCall", 0, "-", f"GET /endpoints/{FAR}\n").result or "")["Output"]
    assert {
        "Type": "NAT",
        "Protocol": "tcp",
        "InternalPort": 80,
        "ExternalPort": 8080,
        "VIP": "198.51.100.1",
    } in shown["Policies"]
    pools = json.loads(host.hns.call("HNSCall", 0, "-", "GET /portpools\n").result or "")["Output"]
    assert {(x.get("VIP"), x["Port"], x["Owner"]) for x in pools} == {
        (None, 8080, EP), ("198.51.100.1", 8080, FAR), ("198.51.100.2", 8080, LB)
    }  # fmt: skip


def test_an_endpoint_does_not_get_a_vip_nor_a_gateway_what_is_anothers(host: Host) -> None:
    host.made("LoadBalancer", balancer("10.1.1.99"), LB)
    hr, text = host.create("Endpoint", endpoint("10.1.1.99"))
    assert hr == Code.ADDR_INVALID_OR_RESERVED and "VIP of load balancer " + LB in text
    hr, text = host.create("Endpoint", far("10.1.1.99"))
    assert hr == Code.ADDR_INVALID_OR_RESERVED
    for taken, whose in (("10.1.1.99", LB), ("10.1.1.5", EP)):
        held = host.shown("Network", NET)["Ipams"][0]["Subnets"][0]
        held["Routes"] = [{"NextHop": taken, "DestinationPrefix": "0.0.0.0/0"}]
        asked = {"ResourceType": "Subnet", "RequestType": "Update", "Settings": {"Subnets": [held]}}
        hr, text = host.modify("Network", NET, asked)
        assert hr == Code.ADDR_INVALID_OR_RESERVED and whose in text


def test_networks_do_not_share_what_clients_outside_ask_for(host: Host) -> None:
    host.made("Endpoint", endpoint("10.1.2.5"), FAR, OTHER)
    host.made("LoadBalancer", balancer("203.0.113.9"), LB)
    hr, text = host.create("LoadBalancer", balancer("203.0.113.9", of=FAR))
    assert hr == Code.PORT_ALREADY_EXISTS and "80/tcp of 203.0.113.9 is taken by " + LB in text
    inside = balancer("203.0.113.9", flags=1, of=FAR)  # for containers of its network alone
    assert not host.create("LoadBalancer", inside)[0]
    hr, text = host.create("Endpoint", endpoint("10.1.2.6", mapped(80, "203.0.113.9")), on=OTHER)
    assert hr == Code.PORT_ALREADY_EXISTS and LB in text


def test_a_subnet_does_not_go_when_its_vip_outside_is_anothers(host: Host) -> None:
    more = {"ResourceType": "Subnet", "RequestType": "Add", "Settings": {"Subnets": [subnet("10.7.1.0/24")]}}
    assert not host.modify("Network", NET, more)[0]
    host.made("LoadBalancer", balancer("10.7.1.9"), LB)
    host.made("Endpoint", endpoint("10.1.2.5"), FAR, OTHER)
    assert not host.create("LoadBalancer", balancer("10.7.1.9", of=FAR))[0]
    hr, text = host.modify("Network", NET, {**more, "RequestType": "Remove"})
    assert hr == Code.PORT_ALREADY_EXISTS and "10.7.1.9" in text


def test_a_subnet_does_not_make_an_address_in_use_its_broadcast_address(host: Host) -> None:
    host.made("LoadBalancer", balancer("10.7.1.255"), LB)
    more = {"ResourceType": "Subnet", "RequestType": "Add", "Settings": {"Subnets": [subnet("10.7.1.0/24")]}}
    hr, text = host.modify("Network", NET, more)
    assert hr == Code.ADDR_INVALID_OR_RESERVED and LB in text and "broadcast address of 10.7.1.0/24" in text
    held = host.shown("Network", NET)["Ipams"][0]["Subnets"][0]
    changed = {
        **more,
        "RequestType": "Update",
        "Settings": {"Subnets": [{**held, "IpAddressPrefix": "10.1.1.0/25"}]},
    }
    assert not host.modify("Network", NET, changed)[0]
    host.made("Endpoint", endpoint("10.1.1.63"), FAR)
    changed["Settings"] = {"Subnets": [{**held, "IpAddressPrefix": "10.1.1.0/26"}]}
    hr, text = host.modify("Network", NET, changed)
    assert hr == Code.ADDR_INVALID_OR_RESERVED and FAR in text


def test_an_endpoint_in_use_is_named_when_it_has_no_name(host: Host) -> None:
    host.made("LoadBalancer", balancer("10.1.1.99"), LB)
    reply = host.hns.call("DeleteEndpoint", 0, EP, None)
    assert reply.hr == Code.ENTITY_HAS_REFERENCES and f"endpoint {EP} is in load balancer {LB}" in (
        reply.record or ""
    )


def test_a_part_of_a_subnet_gives_addresses_and_holds_them(host: Host) -> None:
    parts = [{"ID": LB.lower(), "IpAddressPrefix": "10.3.1.16/28"}]
    host.made("Network", network("x", subnet("10.3.1.0/24", 4999, IpSubnets=parts)), FAR)
    hr, text = host.create("Endpoint", endpoint("10.3.1.40") | {
        "IpConfigurations": [{"IpAddress": "10.3.1.40", "IpSubnetId": LB}]}, on=FAR)  # fmt: skip
    assert hr == Code.INVALID_IP and "10.3.1.40 is outside 10.3.1.16/28" in text
    got = set()
    for _ in range(16):
        hr, text = host.create(
            "Endpoint", {"IpConfigurations": [{"IpSubnetId": LB}], "Policies": [PA]}, on=FAR
        )
        assert not hr, text
    for d in host.service.documents.values():
        if getattr(d, "host_compute_network", "") == FAR:
            got.add((d.address, d.ip_configurations[0].prefix_length))  # type: ignore[union-attr]
    assert got == {(f"10.3.1.{n}", 24) for n in range(16, 32)}
    hr, text = host.create("Endpoint", {"IpConfigurations": [{"IpSubnetId": LB}], "Policies": [PA]}, on=FAR)
    assert hr == Code.ADDR_INVALID_OR_RESERVED and "10.3.1.16/28 has no free address left" in text


def test_a_rule_for_one_windows_service_is_not_made_everybodys(host: Host) -> None:
    acl = {
        "Type": "ACL",
        "Action": "Allow",
        "Direction": "In",
        "RuleType": "Switch",
        "Priority": 9,
        "ServiceName": "dns",
    }
    body = {"VirtualNetwork": NET, "IPAddress": "10.1.1.6", "Policies": [{"Type": "PA", "PA": HOST}, acl]}
    told = host.post("/endpoints/", body)
    assert told["ErrorCode"] == Code.NOT_SUPPORTED and "ACL.ServiceName 'dns'" in told["Error"]


def test_policies_that_are_there_or_not_are_shown(host: Host) -> None:
    rule = acl(Priority=9)
    asked = {"ResourceType": "Policy", "RequestType": "Remove", "Settings": {"Policies": [rule]}}
    hr, text = host.modify("Endpoint", EP, asked)
    assert hr == Code.POLICY_NOT_FOUND and '"Priority":9' in text and EP in text
    assert not host.modify("Endpoint", EP, {**asked, "RequestType": "Add"})[0]
    hr, text = host.modify("Endpoint", EP, {**asked, "RequestType": "Add"})
    assert hr == Code.POLICY_ALREADY_EXISTS and '"Priority":9' in text


def test_who_is_elsewhere_or_taken_is_not_attached(host: Host) -> None:
    host.made("Endpoint", far("10.1.1.9"), FAR)
    hr, text = host.create("Namespace", {"Resources": [{"Type": "Endpoint", "Data": {"Id": FAR}}]})
    assert hr == Code.INVALID_REMOTE_ENDPOINT_OPERATION and "on another host" in text
    host.made("Namespace", {"Resources": [{"Type": "Endpoint", "Data": {"Id": EP}}]}, LB)
    hr, text = host.create("Namespace", {"Resources": [{"Type": "Endpoint", "Data": {"Id": EP}}]})
    assert hr == Code.ENDPOINT_NAMESPACE_ALREADY_EXISTS and "is in namespace " + LB in text


@pytest.mark.parametrize("direction", ["In", "Out"])
def test_protocol_252_is_vxlan(host: Host, direction: str) -> None:
    host.made("Endpoint", endpoint("10.1.1.6", acl(Direction=direction, Protocols="252")), FAR)
    host.made("Namespace", {"Resources": [{"Type": "Endpoint", "Data": {"Id": FAR}}]}, LB)
    host.follow()
    (rule,) = [r for e in host.compiler.tables if isinstance(e, AccessList) for r in e.rules]
    to, of = (
        (rule.local_ports, rule.remote_ports) if direction == "In" else (rule.remote_ports, rule.local_ports)
    )
    assert (rule.protocol, to, of) == (17, (4789, 4789), (0, 65535))


def test_a_port_that_a_program_of_the_host_listens_on(host: Host) -> None:
    host.sockets = {("", 6, 22), ("127.0.0.1", 6, 25), ("", 6, 8080)}
    for kind, document, at in (
        (
            "Endpoint",
            endpoint("10.1.1.6", mapped(22)),
            "22 of protocol 6: a program of this host listens there",
        ),
        ("Endpoint", endpoint("10.1.1.6", mapped(25)), "there, at 127.0.0.1"),
        ("LoadBalancer", balancer(port=22), "ExternalPort 22"),
    ):
        hr, text = host.create(kind, document)
        assert hr == Code.PORT_ALREADY_EXISTS and at in text and "ExternalPortReserved" in text
    reserved = policy("PortMapping", Protocol=6, InternalPort=80, ExternalPort=22, Flags=4)
    host.made("Endpoint", endpoint("10.1.1.6", reserved), FAR)
    host.made("Endpoint", endpoint("10.1.1.7", mapped(22, protocol=17)), "-")
    # what is there is not asked again: the socket may have come later
    asked = {"ResourceType": "Policy", "RequestType": "Update", "Settings": {"Policies": [mapped(8080)]}}
    assert host.modify("Endpoint", EP, asked)[0] == 0


def test_an_older_hns_knows_no_protocol_252() -> None:
    old = HnsCalls(HnsService(facts=HostFacts(HOST, (10, 5))))
    old.call("CreateNetwork", 0, NET, json.dumps(network()))
    handle = old.call("OpenNetwork", 0, NET, None).handle
    reply = old.call("CreateEndpoint", handle, EP, json.dumps(endpoint("10.1.1.6", acl(Protocols="252"))))
    assert reply.hr == Code.INVALID_POLICY_TYPE and "it came in 11.0" in (reply.record or "")


def test_a_host_whose_address_became_another_changes_its_own_networks(tmp_path: Path) -> None:
    """HNS told the network its provider address: after a move it tells the new one, and refuses nothing."""
    for address in (HOST, "192.0.2.11"):
        check = linux_check(address, "eth0", 4789)
        hns = HnsCalls(HnsService(tmp_path, facts=HostFacts(address, LATEST, check)))
        if address == HOST:
            assert not hns.call("CreateNetwork", 0, NET, json.dumps(network())).hr
    asked = {"ResourceType": "DNS", "RequestType": "Update", "Settings": {"ServerList": ["10.96.0.10"]}}
    handle = hns.call("OpenNetwork", 0, NET, None).handle
    assert not hns.call("ModifyNetwork", handle, "-", json.dumps(asked)).hr
    assert "192.0.2.11" in (hns.call("QueryNetwork", handle, "-", None).result or "")
