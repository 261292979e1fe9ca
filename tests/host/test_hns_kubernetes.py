"""What Kubernetes' node components write to HNS, through `overlace hns serve --backend linux` on two hosts with a subnet
each, and what packets make of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datapath_bed import ask, connect, echo, line
from hns_bed import Refused, local, overlay, remote
from hns_hosts import HnsHost, World, refuses, two_hosts

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
CLUSTER, VIP = ["10.244.0.0/16"], "10.96.0.10"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with two_hosts(tmp_path_factory.mktemp) as hosts:
        yield hosts


class Node:
    """flannel's network of one host: 10.244.N.0/24, with a route to the other host's."""

    def __init__(self, host: HnsHost, third: int, peer: HnsHost, there: int) -> None:
        self.host, self.peer, self.prefix = host, peer, f"10.244.{third}."
        route = {
            "DestinationPrefix": f"10.244.{there}.0/24", "IsolationId": 4096, "ProviderAddress": peer.address,
            "DistributedRouterMacAddress": f"02-42-0A-F4-{there:02X}-01",
        }  # fmt: skip
        policy = {"Type": "RemoteSubnetRoute", "Settings": route}
        self.network = str(host.hcn.create("Network", overlay(third=third, Policies=[policy]))["ID"])

    def pod(self, last: int, name: str) -> tuple[str, Path]:
        """As flannel's CNI plugin attaches one; its endpoint and its namespace."""
        nat = {"Type": "OutBoundNAT", "Settings": {"Exceptions": CLUSTER}}
        route = {"Type": "SDNRoute", "Settings": {"DestinationPrefix": "10.96.0.0/12", "NeedEncap": True}}
        document = local(self.network, self.host.address, f"{self.prefix}{last}", nat, route)
        del document["Policies"][0]  # HNS knows where it is
        endpoint = str(self.host.hcn.create("Endpoint", document)["ID"])
        where = self.host.container(name)
        self.host.place(endpoint, where.name)
        return endpoint, where

    def remote(self, provider: str, address: str, mac: str) -> str:
        return str(self.host.hcn.create("Endpoint", remote(self.network, provider, address, mac))["ID"])

    def kube_proxy(self) -> None:
        """What it does first: an endpoint for the source VIP, with the host's MAC, and one for the service's VIP."""
        source = {"HostComputeNetwork": self.network, "MacAddress": "00-15-5D-01-02-03",
                  "IpConfigurations": [{"IpAddress": f"{self.prefix}2"}]}  # fmt: skip
        self.host.hcn.create("Endpoint", source)
        self.remote(self.host.address, VIP, "00-15-5D-01-02-03")

    def balance(self, vips: list[str], external: int, members: list[str], **more: Any) -> None:
        ports = {"Protocol": 6, "InternalPort": 8000, "ExternalPort": external, "Flags": more.pop("flags", 0)}
        self.host.hcn.create(
            "LoadBalancer",
            {"HostComputeEndpoints": members, "SourceVIP": f"{self.prefix}2", "FrontendVIPs": vips,
             "PortMappings": [ports], **more})  # fmt: skip


@pytest.fixture
def nodes(world: World) -> Iterator[tuple[Node, Node]]:
    one, two = world
    yield Node(one, 3, two, 7), Node(two, 7, one, 3)
    for host in world:
        host.hcn.clear()


def test_a_pod_asks_a_service_whose_pod_is_on_another_subnet(world: World, nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    _, client = one.pod(5, "kubeask")
    _, web = two.pod(8, "kubeweb")
    one.kube_proxy()
    far = one.remote(two.host.address, "10.244.7.8", "02-11-0A-F4-07-08")
    one.balance([VIP], 80, [far])
    world.bed.serve(web, 8000, "web")
    with connect(client, VIP, 80) as connection:
        assert line(connection)[:2] == ["web", "10.244.3.5"]
        assert echo(connection, os.urandom(100_000))
    assert ask(client, "10.244.7.8", 8000)[0] == "web"
    world.bed.serve(world.bed.client, 8088, "outside")
    assert ask(client, world.bed.client_address, 8088)[0] == "outside"
    assert refuses(client, "10.97.0.1", 80)


def test_a_node_port_whose_pods_are_elsewhere_is_answered_through_the_source_vip(
    world: World, nodes: tuple[Node, Node]
) -> None:
    """The other host has no load balancer: its answers come back by the source VIP's subnet alone."""
    one, two = nodes
    near, here = one.pod(5, "portnear")
    _, there = two.pod(8, "portfar")
    one.kube_proxy()
    far = one.remote(two.host.address, "10.244.7.8", "02-11-0A-F4-07-08")
    for where, name in ((here, "near"), (there, "far")):
        world.bed.serve(where, 8000, name)
    one.balance([], 30080, [far, near])
    seen = {tuple(ask(world.bed.client, one.host.address, 30080)[:2]) for _ in range(8)}
    assert seen == {("far", "10.244.3.2"), ("near", world.bed.client_address)}
    with connect(world.bed.client, one.host.address, 30080) as connection:
        line(connection)
        assert echo(connection, os.urandom(100_000))
    source = one.host.hcn.enumerate("Endpoint")
    addresses = {e: one.host.hcn.get("Endpoint", e)["IpConfigurations"][0]["IpAddress"] for e in source}
    (vip,) = (e for e, address in addresses.items() if address == "10.244.3.2")
    with pytest.raises(Refused, match="is SourceVIP of load balancer"):
        one.host.place(vip, str(one.host.container("portsource")))
    again = one.host.hcn.create("Endpoint", {"HostComputeNetwork": one.network})
    assert again["IpConfigurations"][0]["IpAddress"] not in addresses.values()
