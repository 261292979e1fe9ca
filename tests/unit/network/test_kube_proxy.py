"""The documents that kube-proxy and Kubernetes' CNI plugins of Windows nodes send, in their order, and what they come to
on a Linux host.

Written after kube-proxy's pkg/proxy/winkernel (hns.go, proxier.go) and flannel's, OVN's and Calico's CNI configurations.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from overlace.network.hns.documents import HostComputeEndpoint, HostComputeNetwork, parse, parse_modify
from overlace.network.hns.enforced import linux_check
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.service import HnsService, HostFacts
from overlace.network.vfp.compile import compile_all
from overlace.network.vfp.model import Packet
from overlace.network.vfp.simulate import Verdict, simulate
from overlace.network.vfp.tables import HOST4, Frontend, Tables

from .agreement import disagreements, wrong_facts

HOST, OTHER = "192.0.2.10", "192.0.2.20"
SERVICES = "10.96.0.0/12"
HOST_MAC = "00-15-5D-01-02-03"


def _create(hns: HnsService, kind: str, body: dict[str, Any]) -> str:
    document = {"SchemaVersion": {"Major": 2, "Minor": 0}, **body}
    return hns.create(parse(kind, json.dumps(document))).id


def _pa(address: str) -> dict[str, Any]:
    return {"Type": "ProviderAddress", "Settings": {"ProviderAddress": address}}


class Node:
    """A node with flannel's network, on which a pod runs."""

    def __init__(self) -> None:
        facts = HostFacts(HOST, check=linux_check(HOST, "eth0", 4789))
        self.hns = HnsService(facts=facts)
        subnet = {
            "IpAddressPrefix": "10.244.3.0/24",
            "Policies": [{"Type": "VSID", "Settings": {"IsolationId": 4096}}],
            "Routes": [{"NextHop": "10.244.3.1", "DestinationPrefix": "0.0.0.0/0"}],
        }
        ipams = [{"Type": "Static", "Subnets": [subnet]}]
        route = {
            "DestinationPrefix": "10.244.7.0/24", "IsolationId": 4096, "ProviderAddress": OTHER,
            "DistributedRouterMacAddress": "0E-2A-0A-F4-07-01",
        }  # fmt: skip
        self.network = _create(
            self.hns, "network", {"Name": "flannel.4096", "Type": "Overlay", "Flags": 8, "Ipams": ipams,
            "Policies": [{"Type": "RemoteSubnetRoute", "Settings": route}]})  # fmt: skip
        nat = {"Type": "OutBoundNAT", "Settings": {"Exceptions": ["10.244.0.0/16"]}}
        self.pod = self.endpoint("10.244.3.5", policies=[nat, self.route(NeedEncap=True)])
        _create(
            self.hns,
            "namespace",
            {"Type": "Guest", "Resources": [{"Type": "Endpoint", "Data": {"Id": self.pod}}]},
        )

    def route(self, **more: Any) -> dict[str, Any]:
        """flannel's {"Type": "ROUTE"} as its v2 CNI plugin sends it."""
        return {"Type": "SDNRoute", "Settings": {"DestinationPrefix": SERVICES, **more}}

    def endpoint(
        self, address: str, provider: str = "", mac: str = "", policies: list[dict[str, Any]] | None = None
    ) -> str:
        """As hns.go's createEndpoint: only remote endpoints get a ProviderAddress, and no prefix length is sent."""
        body: dict[str, Any] = {
            "HostComputeNetwork": self.network,
            "IpConfigurations": [{"IpAddress": address}],
        }
        if mac:
            body["MacAddress"] = mac
        if provider:
            body |= {"Flags": 1, "Policies": [_pa(provider)]}
        elif policies:
            body["Policies"] = policies
        return _create(self.hns, "endpoint", body)

    def remote(self, address: str, provider: str) -> str:
        last = "-".join(f"{int(n):02X}" for n in address.split("."))
        return self.endpoint(address, provider, f"02-11-{last}")

    def balancer(self, vips: list[str], external: int, internal: int, *endpoints: str, **more: Any) -> str:
        mapping = {"Protocol": 6, "InternalPort": internal, "ExternalPort": external} | more.pop(
            "mapping", {}
        )
        return _create(
            self.hns, "loadbalancer",
            {"HostComputeEndpoints": list(endpoints), "SourceVIP": "10.244.3.2", "FrontendVIPs": vips,
             "PortMappings": [mapping], **more})  # fmt: skip

    def kube_proxy(self) -> str:
        """Start, then one service of a pod here and one on the other host; the other host's endpoint."""
        self.endpoint("10.244.3.2", mac=HOST_MAC)  # the source VIP
        self.endpoint("10.96.0.10", HOST, HOST_MAC)  # the service's VIP, before its load balancer
        there = self.remote("10.244.7.8", OTHER)
        self.balancer(["10.96.0.10"], 80, 8080, self.pod, there)
        self.balancer([], 30080, 8080, self.pod, there, mapping={"Flags": 2})  # its node port
        return there

    @property
    def tables(self) -> Tables:
        return compile_all(self.hns.state, HOST)

    def send(self, dst: str, dport: int = 80) -> Verdict:
        packet = Packet("10.244.3.5", dst, 6, 40000, dport)
        pick = lambda backends, _: backends[-1]  # noqa: E731
        return simulate(self.hns.state, HOST, self.pod, "OUT", packet, pick=pick)

    def agrees(self) -> None:
        packets = [
            Packet(src, dst, 6, 999, dport)
            for src in ("10.244.3.5", "10.244.7.8", "198.51.100.1")
            for dst in (
                "10.96.0.10",
                "10.96.0.11",
                "10.97.0.1",
                "10.244.7.8",
                "10.244.7.9",
                "10.244.9.9",
                OTHER,
                HOST,
                "10.244.3.2",
                "10.244.3.77",
                "203.0.113.7",
                "198.51.100.1",
            )
            for dport in (80, 8080, 30080)
        ]
        assert disagreements(self.hns.state, self.tables, HOST, packets, 2) == []
        assert wrong_facts(self.hns.state, self.tables, HOST) == []


def test_kube_proxys_documents_are_taken_and_balance() -> None:
    node = Node()
    node.kube_proxy()
    vip = node.tables.get(("frontend", 4096, "10.96.0.10", 6, 80))
    assert isinstance(vip, Frontend)
    assert sorted(b.address for b in vip.backends) == ["10.244.3.5", "10.244.7.8"]
    assert node.tables.get(("endpoint", 4096, "10.96.0.10")) is None  # kube-proxy's placeholder is nobody
    far = node.send("10.96.0.10")
    assert (far.action, far.provider_address, far.packet.dst) == ("encap", OTHER, "10.244.7.8")
    port = node.tables.get(("frontend", 0, HOST4, 6, 30080))
    assert isinstance(
        port, Frontend
    )  # kube-proxy's has no DSR: the other host knows no way back but the source VIP
    assert {b.address: b.source for b in port.backends} == {"10.244.3.5": "", "10.244.7.8": "10.244.3.2"}
    assert {b.source for b in vip.backends} == {""}
    source = node.hns.state.by_address[(node.network, "10.244.3.2")]
    policies = node.hns.get(HostComputeEndpoint, source).policies
    assert [x.settings.provider_address for x in policies] == [HOST]  # type: ignore[attr-defined]
    node.agrees()


def test_a_pod_elsewhere_is_reached_by_its_own_address() -> None:
    node = Node()
    node.remote("10.245.9.9", OTHER)  # of a subnet nobody has named
    way = node.send("10.245.9.9")
    assert (way.action, way.provider_address, way.packet.src) == ("encap", OTHER, "10.244.3.5")
    node.agrees()


def test_what_is_a_service_prefix_is_never_translated() -> None:
    node = Node()
    assert node.send("10.96.0.11").action == "drop"
    assert node.send("203.0.113.7").action == "world"
    node.agrees()
    with pytest.raises(HcnError, match="let NeedEncap be true") as e:
        node.endpoint("10.244.3.6", policies=[node.route()])
    assert e.value.code is Code.NOT_SUPPORTED


def test_only_a_name_behind_this_host_may_become_a_vip() -> None:
    node = Node()
    node.remote("10.96.0.20", OTHER)
    with pytest.raises(HcnError, match=r"FrontendVIPs 10.96.0.20 is an endpoint's address"):
        node.balancer(["10.96.0.20"], 80, 80, node.pod)
    with pytest.raises(HcnError, match=r"FrontendVIPs 10.244.3.5 is an endpoint's address"):
        node.balancer(["10.244.3.5"], 80, 80, node.pod)


def test_with_direct_return_backends_elsewhere_see_the_client() -> None:
    node = Node()
    far = node.remote("10.244.7.8", OTHER)
    node.balancer([], 30080, 8080, far, Flags=1)
    port = node.tables.get(("frontend", 0, HOST4, 6, 30080))
    assert isinstance(port, Frontend) and [b.source for b in port.backends] == [""]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("198.51.100.1", "no address of the network's"),
        ("10.244.3.5", "is the address of an attached endpoint"),
        ("10.244.3.9", "is the address of an endpoint of another host"),
    ],
)
def test_a_source_vip_is_an_address_of_the_network_that_answers_come_back_to(source: str, words: str) -> None:
    node = Node()
    far = node.remote("10.244.7.8", OTHER)
    node.remote("10.244.3.9", OTHER)
    with pytest.raises(HcnError, match=words):
        node.balancer([], 30080, 8080, far, SourceVIP=source)
    node.balancer([], 30080, 8080, far, SourceVIP=HOST)  # kube-proxy's choice for some services


def test_hns_gives_no_endpoint_a_source_vip() -> None:
    node = Node()
    node.balancer([], 30080, 8080, node.remote("10.244.7.8", OTHER))  # its SourceVIP is nobody's endpoint
    made = _create(node.hns, "endpoint", {"HostComputeNetwork": node.network})
    assert node.hns.get(HostComputeEndpoint, made).address == "10.244.3.3"


@pytest.mark.parametrize(("address", "provider"), [(OTHER, OTHER), ("203.0.113.7", HOST)])
def test_a_backend_outside_the_overlay_is_refused_by_name(address: str, provider: str) -> None:
    """A node's own address, and a public one: kube-proxy creates endpoints for both."""
    node = Node()
    backend = node.remote(address, provider)
    with pytest.raises(HcnError, match=f"a backend outside the overlay, {address} behind {provider}"):
        node.balancer(["10.96.0.10"], 443, 6443, backend, SourceVIP=HOST)
    assert node.send(address).action == "world"  # as before kube-proxy spoke of it
    node.agrees()


@pytest.mark.parametrize("address", ["0.0.0.0", "224.0.0.1", "255.255.255.255"])
def test_a_remote_endpoint_is_one_host(address: str) -> None:
    node = Node()
    with pytest.raises(HcnError, match="address: name a unicast"):
        node.remote(address, OTHER)
    with pytest.raises(HcnError, match="address: name a unicast"):
        node.remote("10.244.7.8", address)


def test_subnets_may_go_while_remote_endpoints_are_elsewhere() -> None:
    node = Node()
    node.remote("10.245.9.9", OTHER)
    network = node.hns.get(HostComputeNetwork, node.network)
    assert [s.ip_address_prefix for s in network.subnets] == ["10.244.3.0/24"]
    second = {
        "IpAddressPrefix": "10.244.4.0/24",
        "Policies": [{"Type": "VSID", "Settings": {"IsolationId": 4096}}],
        "Routes": [{"NextHop": "10.244.4.1", "DestinationPrefix": "0.0.0.0/0"}],
    }
    for request in ("Add", "Remove"):
        body = {"ResourceType": "Subnet", "RequestType": request, "Settings": {"Subnets": [second]}}
        node.hns.modify(HostComputeNetwork, node.network, parse_modify("network", json.dumps(body)))
