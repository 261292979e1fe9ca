"""Routes of subnets and endpoints, and a network's several VNIs, on a Linux host."""

from __future__ import annotations

import json
from typing import Any

import pytest

from overlace.network.hns.documents import HostComputeEndpoint, HostComputeNetwork, parse, parse_modify
from overlace.network.hns.enforced import linux_check
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.routes import Routing, routing_of
from overlace.network.hns.service import HnsService, HostFacts
from overlace.network.vfp.compile import compile_network

HOST = "192.0.2.10"


def subnet(third: int, *routes: dict[str, Any], vsid: int = 4096) -> dict[str, Any]:
    default = {"NextHop": f"10.244.{third}.1", "DestinationPrefix": "0.0.0.0/0"}
    policies = [{"Type": "VSID", "Settings": {"IsolationId": vsid}}]
    return {"IpAddressPrefix": f"10.244.{third}.0/24", "Policies": policies, "Routes": [*routes, default]}


def network(hns: HnsService, *subnets: dict[str, Any], name: str = "net") -> HostComputeNetwork:
    body = {"Name": name, "Type": "Overlay", "Ipams": [{"Type": "Static", "Subnets": list(subnets)}]}
    made = hns.create(parse("network", json.dumps(body)))
    assert isinstance(made, HostComputeNetwork)
    return made


def endpoint(hns: HnsService, net: HostComputeNetwork, **more: Any) -> HostComputeEndpoint:
    body = {"HostComputeNetwork": net.id, "IpConfigurations": [{"IpAddress": "10.244.3.5"}], **more}
    made = hns.create(parse("endpoint", json.dumps(body)))
    assert isinstance(made, HostComputeEndpoint)
    return made


def route(to: str, hop: str, **more: Any) -> dict[str, Any]:
    return {"DestinationPrefix": to, "NextHop": hop, **more}


@pytest.fixture
def hns() -> HnsService:
    return HnsService(facts=HostFacts(HOST, check=linux_check(HOST, "eth0", 4789)))


def test_an_interface_leads_where_the_endpoints_routes_say(hns: HnsService) -> None:
    net = network(hns, subnet(3), subnet(4))
    routes = [route("0.0.0.0/0", "10.244.4.1"), route("10.245.0.0/16", "10.244.3.1")]
    d = endpoint(hns, net, Routes=routes)
    expected = Routing("10.244.4.1", ("10.244.4.0/24",), (("10.245.0.0/16", "10.244.3.1"),))
    assert routing_of(d, net) == expected
    assert routing_of(endpoint(hns, net, IpConfigurations=[{"IpAddress": "10.244.4.5"}]), net) == Routing(
        "10.244.4.1", ("10.244.3.0/24",)
    )  # its subnet's, as it names none
    alone = endpoint(
        hns,
        net,
        IpConfigurations=[{"IpAddress": "10.244.3.6"}],
        Routes=[route("10.245.0.0/16", "10.244.3.1")],
    )
    assert routing_of(alone, net).gateway == ""


@pytest.mark.parametrize(
    ("routes", "code", "words"),
    [
        ([route("10.245.0.0/99", "10.244.3.1")], Code.INVALID_PREFIX, "Routes.DestinationPrefix"),
        ([route("10.245.0.0/16", "router")], Code.INVALID_IP, "Routes.NextHop 'router'"),
        ([route("10.245.0.0/16", "")], Code.INVALID_IP, "Routes.NextHop ''"),
        ([route("10.245.0.0/16", "fd00::1")], Code.INVALID_IP, "one family"),
        ([route("10.245.0.0/16", "10.244.3.1")] * 2, Code.BAD_PARAMETER, "10.245.0.0/16 twice"),
        ([route("10.245.0.0/16", "10.244.3.9")], Code.NOT_SUPPORTED, "write an SDNRoute"),
        ([route("0.0.0.0/0", "10.244.3.1", Metric=5)], Code.NOT_SUPPORTED, "Metric 5"),
    ],
)
def test_routes_that_nothing_here_follows_are_refused(
    hns: HnsService, routes: list[dict[str, Any]], code: Code, words: str
) -> None:
    net = network(hns, subnet(3))
    with pytest.raises(HcnError) as e:
        endpoint(hns, net, Routes=routes)
    assert e.value.code is code and words in str(e.value)


def test_a_subnets_other_routes_are_no_gateways(hns: HnsService) -> None:
    more = subnet(3, route("10.9.0.0/16", "10.244.3.9"))
    with pytest.raises(HcnError, match="write an SDNRoute"):
        network(hns, more)
    net = network(HnsService(facts=HostFacts(HOST)), more)  # where nothing enforces it, it is a document
    assert compile_network(net, hns.state).gateways == ("10.244.3.1",)


def test_a_network_has_one_vni_here_and_all_of_its_own_everywhere(hns: HnsService) -> None:
    with pytest.raises(HcnError, match="have 4096, 4097"):
        network(hns, subnet(3), subnet(4, vsid=4097))
    network(hns, subnet(3), subnet(4))
    model = HnsService(facts=HostFacts(HOST))
    first = network(model, subnet(3), subnet(4, vsid=4097))
    with pytest.raises(HcnError, match="VSID IsolationId 4097"):
        network(model, subnet(5, vsid=4097), name="other")
    model.delete(HostComputeNetwork, first.id)
    network(model, subnet(5, vsid=4097), name="other")


def subnet_route(prefix: str, provider: str) -> dict[str, Any]:
    settings = {
        "DestinationPrefix": prefix, "IsolationId": 4096, "ProviderAddress": provider,
        "DistributedRouterMacAddress": "02-42-0A-F4-07-01",
    }  # fmt: skip
    return {"Type": "RemoteSubnetRoute", "Settings": settings}


@pytest.mark.parametrize(
    ("routes", "code"),
    [
        (
            [subnet_route("10.244.7.0/24", "192.0.2.20"), subnet_route("10.244.7.0/24", "192.0.2.21")],
            Code.POLICY_ALREADY_EXISTS,
        ),
        ([subnet_route("10.244.7.0/24", HOST)], Code.INVALID_POLICY),
        ([subnet_route("10.244.7.0/24", "0.0.0.0")], Code.ADDR_INVALID_OR_RESERVED),
        ([subnet_route("10.244.7.0/24", "224.0.0.5")], Code.ADDR_INVALID_OR_RESERVED),
    ],
)
def test_a_prefix_is_behind_one_other_host(hns: HnsService, routes: list[dict[str, Any]], code: Code) -> None:
    net = network(hns, subnet(3))
    body = {"ResourceType": "Policy", "RequestType": "Add", "Settings": {"Policies": routes}}
    with pytest.raises(HcnError) as e:
        hns.modify(HostComputeNetwork, net.id, parse_modify("network", json.dumps(body)))
    assert e.value.code is code


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"Type": "InterfaceParameters", "Settings": {"Mtu": 1500}}, "use 1450 at most"),
        (
            {"Type": "OutBoundNAT", "Settings": {"VirtualIP": "nobody"}},
            "OutBoundNAT.VirtualIP 'nobody' is not an",
        ),
    ],
)
def test_what_does_not_fit_is_refused(hns: HnsService, policy: dict[str, Any], words: str) -> None:
    with pytest.raises(HcnError, match=words):
        endpoint(hns, network(hns, subnet(3)), Policies=[policy])
