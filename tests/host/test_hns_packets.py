"""Documents through `overlace hns serve --backend linux` on two hosts, and what packets make of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datapath_bed import ask, connect, echo, line, run
from hns_bed import Refused, local, mapping, overlay
from hns_hosts import HnsHost, World, network, refuses, tell, two_hosts

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with two_hosts(tmp_path_factory.mktemp) as hosts:
        yield hosts


@pytest.fixture
def pair(world: World) -> Iterator[tuple[HnsHost, HnsHost]]:
    yield world[0], world[1]
    for host in world:
        host.hcn.clear()


def test_containers_of_two_hosts_talk_when_both_know_of_each_other(
    world: World, pair: tuple[HnsHost, HnsHost]
) -> None:
    one, two = pair
    nets = network(one, two)
    a, b = one.container("a"), two.container("b")
    first = one.hcn.create("Endpoint", local(nets[0], one.address, "10.244.3.10"))
    second = two.hcn.create("Endpoint", local(nets[1], two.address, "10.244.3.20"))
    one.place(first["ID"], str(a))  # by path
    two.place(second["ID"], b.name)  # by name
    world.bed.serve(b, 80, "b")
    assert refuses(a, "10.244.3.20", 80)  # nobody said where it is
    peers = tell(one, nets[0], two, second), tell(two, nets[1], one, first)
    with connect(a, "10.244.3.20", 80) as connection:
        assert line(connection)[:2] == ["b", "10.244.3.10"]
        assert echo(connection, os.urandom(200_000))
    one.hcn.delete("Endpoint", peers[0])
    assert refuses(a, "10.244.3.20", 80)


def test_a_load_balancers_vip_follows_its_document(world: World, pair: tuple[HnsHost, HnsHost]) -> None:
    one, two = pair
    nets = network(one, two)
    client, near, far = one.container("asker"), one.container("near"), two.container("far")
    me = one.hcn.create("Endpoint", local(nets[0], one.address, "10.244.3.11"))
    here = one.hcn.create("Endpoint", local(nets[0], one.address, "10.244.3.12"))
    there = two.hcn.create("Endpoint", local(nets[1], two.address, "10.244.3.21"))
    for host, e, where in ((one, me, client), (one, here, near), (two, there, far)):
        host.place(e["ID"], where.name)
    peer = tell(one, nets[0], two, there)
    tell(two, nets[1], one, me)
    world.bed.serve(near, 8000, "near")
    world.bed.serve(far, 8000, "far")
    document = {
        "HostComputeEndpoints": [here["ID"]], "FrontendVIPs": ["10.244.3.100"], "SourceVIP": "10.244.3.2",
        "PortMappings": [{"Protocol": 6, "InternalPort": 8000, "ExternalPort": 80}], "Flags": 1,
    }  # fmt: skip
    lb = one.hcn.create("LoadBalancer", document)["ID"]
    assert {ask(client, "10.244.3.100", 80)[0] for _ in range(4)} == {"near"}
    one.hcn.modify("LoadBalancer", lb, {**document, "HostComputeEndpoints": [peer]})
    assert {ask(client, "10.244.3.100", 80)[0] for _ in range(4)} == {"far"}
    one.hcn.modify("LoadBalancer", lb, {**document, "HostComputeEndpoints": [peer, here["ID"]]})
    assert {ask(client, "10.244.3.100", 80)[0] for _ in range(12)} == {"near", "far"}
    one.hcn.delete("LoadBalancer", lb)
    assert refuses(client, "10.244.3.100", 80)


def test_a_port_is_mapped_and_an_acl_decides(world: World, pair: tuple[HnsHost, HnsHost]) -> None:
    one, _ = pair
    net = network(one)[0]
    web = one.container("web")
    ep = one.hcn.create("Endpoint", local(net, one.address, "10.244.3.13", mapping(80, 18080)))["ID"]
    one.place(ep, web.name)
    world.bed.serve(web, 80, "web")
    outside = world.bed.client
    assert ask(outside, one.address, 18080)[:2] == ["web", world.bed.client_address]
    rule = {
        "Action": "Allow",
        "Direction": "In",
        "Protocols": "6",
        "LocalPorts": "81",
        "RuleType": "Switch",
        "Priority": 200,
    }
    one.hcn.policies("Endpoint", ep, "Add", {"Type": "ACL", "Settings": rule})
    assert refuses(outside, one.address, 18080)
    one.hcn.policies("Endpoint", ep, "Update", {"Type": "ACL", "Settings": {**rule, "LocalPorts": "80"}})
    assert ask(outside, one.address, 18080)[0] == "web"
    one.hcn.policies("Endpoint", ep, "Remove", mapping(80, 18080))
    assert refuses(outside, one.address, 18080)


def test_an_endpoint_leaves_and_comes_back_as_moby_does_it(
    world: World, pair: tuple[HnsHost, HnsHost]
) -> None:
    one, _ = pair
    network(one)
    net = one.hcn.hnscall("GET", "/networks/")[0]["ID"]
    boxes = [one.container("c1"), one.container("c2")]
    made = []
    for i, box in enumerate(boxes):
        body = {
            "VirtualNetwork": net,
            "IPAddress": f"10.244.3.{30 + i}",
            "Policies": [{"Type": "PA", "PA": ""}],
        }
        made.append(one.hcn.hnscall("POST", "/endpoints/", body)["ID"])
        one.hcn.hnscall(
            "POST", f"/endpoints/{made[i]}/attach", {"ContainerId": str(box), "SystemType": "Container"}
        )
    world.bed.serve(boxes[1], 80, "c2")
    assert ask(boxes[0], "10.244.3.31", 80)[0] == "c2"
    stats = one.hcn.hnscall("GET", f"/endpointstats/{made[0]}")
    assert stats["PacketsSent"] > 0 and stats["BytesReceived"] > 0
    one.hcn.hnscall("POST", f"/endpoints/{made[1]}/detach", {"ContainerId": str(boxes[1])})
    assert refuses(boxes[0], "10.244.3.31", 80)
    assert "eth0" not in run("ip", "-n", boxes[1].name, "link")
    one.hcn.hnscall("POST", f"/endpoints/{made[1]}/attach", {"ContainerId": str(boxes[1])})
    assert ask(boxes[0], "10.244.3.31", 80)[0] == "c2"


def test_traffic_outlives_a_killed_service_which_then_goes_on(
    world: World, pair: tuple[HnsHost, HnsHost]
) -> None:
    one, _ = pair
    net = network(one)[0]
    boxes = [one.container("k1"), one.container("k2")]
    ids = []
    for i, box in enumerate(boxes):
        ids.append(one.hcn.create("Endpoint", local(net, one.address, f"10.244.3.{50 + i}"))["ID"])
        one.place(ids[i], box.name)
    world.bed.serve(boxes[1], 80, "k2")
    with connect(boxes[0], "10.244.3.51", 80) as kept:
        assert line(kept)[0] == "k2"
        one.served.kill()
        assert echo(kept, b"x" * 50_000)
        one.served.start()
        assert echo(kept, b"y" * 50_000)
        assert ask(boxes[0], "10.244.3.51", 80)[0] == "k2"
    one.hcn.delete("Endpoint", ids[1])
    assert refuses(boxes[0], "10.244.3.51", 80)


def test_a_container_that_ended_while_the_service_was_away_holds_up_nothing(
    pair: tuple[HnsHost, HnsHost],
) -> None:
    one, _ = pair
    folder = one.folder / "containers"
    folder.mkdir(exist_ok=True)
    box = one.container("short")
    (folder / "short").symlink_to(box)
    before, one.served.options = one.served.options, (*one.served.options, "--containers", str(folder))
    try:
        one.served.end()
        one.served.start()
        net, other = (
            str(one.hcn.create("Network", overlay(f"n{i}", 4096 + i, 3 + i))["ID"]) for i in range(2)
        )
        first = one.hcn.create("Endpoint", local(net, one.address, "10.244.3.5"))["ID"]
        second = one.hcn.create("Endpoint", local(other, one.address, "10.244.4.5"))["ID"]
        namespace = one.place(first, "short")
        one.hcn.attach(namespace, second)
        one.served.kill()
        (folder / "short").unlink()
        one.containers.remove(box.name)
        run("ip", "netns", "del", box.name)
        one.served.start()
        one.hcn.delete("Endpoint", first)
        lone = one.hcn.create("Endpoint", local(net, one.address, "10.244.3.6"))["ID"]
        one.place(lone, str(one.container("next")))
        one.hcn.delete("Endpoint", second)
        one.hcn.delete("Namespace", namespace)
        with pytest.raises(Refused, match="no such container runs"):
            one.place(one.hcn.create("Endpoint", local(net, one.address, "10.244.3.7"))["ID"], "short")
    finally:
        one.served.options = before


def test_a_namespace_that_is_not_there_takes_nothing(pair: tuple[HnsHost, HnsHost]) -> None:
    one, _ = pair
    net = network(one)[0]
    ep = one.hcn.create("Endpoint", local(net, one.address, "10.244.3.60"))["ID"]
    resource = {"Type": "Container", "Data": {"Id": "/run/nowhere/ns"}}
    namespace = one.hcn.create("Namespace", {"Type": "Guest", "Resources": [resource]})["ID"]
    with pytest.raises(Refused) as e:
        one.hcn.attach(namespace, ep)
    assert e.value.hr == 0x803B002E and "/run/nowhere/ns" in e.value.text
    assert "HostComputeNamespace" not in one.hcn.get("Endpoint", ep)
    place = one.container("late")
    one.hcn.delete("Namespace", namespace)
    one.place(ep, place.name)
    assert "10.244.3.60/24" in run("ip", "-n", place.name, "addr")
    own = one.hcn.create("Namespace", {"Type": "Guest"})["ID"]
    second = one.hcn.create("Endpoint", local(net, one.address, "10.244.3.61"))["ID"]
    one.hcn.attach(own, second)
    sandbox = one.folder / "run" / "netns" / own.lower()
    assert "10.244.3.61/24" in run("nsenter", f"--net={sandbox}", "ip", "addr")
    one.hcn.delete("Namespace", own)
    assert not sandbox.exists()


def test_what_cannot_be_enforced_is_refused(pair: tuple[HnsHost, HnsHost]) -> None:
    one, _ = pair
    adapter = {"Type": "NetAdapterName", "Settings": {"NetworkAdapterName": "Ethernet"}}
    refused: list[tuple[str, dict[str, Any], int]] = [
        ("Network", {"Name": "l2", "Type": "L2Bridge"}, 0x803B0037),
        ("Network", overlay(Policies=[adapter]), 0x803B0006),
        ("Network", overlay(Policies=[{"Type": "VxlanPort", "Settings": {"Port": 8472}}]), 0x80070032),
        ("Network", {**overlay(), "Flags": 4}, 0x80070032),
    ]
    for kind, document, code in refused:
        with pytest.raises(Refused) as e:
            one.hcn.create(kind, document)
        assert e.value.hr == code, str(e.value)
    net = network(one)[0]
    ep = one.hcn.create("Endpoint", local(net, one.address))["ID"]
    iov = {"Type": "Iov", "Settings": {"IovOffloadWeight": 1}}
    flags = {"Type": "OutBoundNAT", "Settings": {"Flags": 1}}
    for policy in (iov, flags, {"Type": "OutBoundNAT", "Settings": {"VirtualIP": "192.0.2.1"}}):
        with pytest.raises(Refused) as e:
            one.hcn.policies("Endpoint", ep, "Add", policy)
        assert e.value.hr == 0x80070032
    for more in ({}, {"NextHop": "192.0.2.9"}, {"NextHop": "10.244.3.9", "AutomaticEndpointMonitor": True}):
        route = {"DestinationPrefix": "10.0.0.0/8", **more}
        with pytest.raises(Refused) as e:
            one.hcn.create("SdnRoute", {"HostComputeEndpoints": [ep], "Setting": [route]})
        assert e.value.hr == 0x80070032
    for vips, inner, flags in ([[], 80, 8], [["10.244.3.9"], 8080, 8], [["10.244.3.9"], 80, 4]):
        mapping_ = {"Protocol": 6, "InternalPort": inner, "ExternalPort": 80, "Flags": flags}
        with pytest.raises(Refused, match=r"EnablePreserveDip|UseMux"):
            one.hcn.create(
                "LoadBalancer",
                {"HostComputeEndpoints": [ep], "FrontendVIPs": vips, "PortMappings": [mapping_]},
            )


def test_an_sdn_route_leads_through_a_router_on_another_host(
    world: World, pair: tuple[HnsHost, HnsHost]
) -> None:
    one, two = pair
    nets = network(one, two)
    client, router = one.container("sdnc"), two.container("sdnr")
    me = one.hcn.create("Endpoint", local(nets[0], one.address, "10.244.3.70"))
    hop = two.hcn.create("Endpoint", local(nets[1], two.address, "10.244.3.71"))
    one.place(me["ID"], client.name)
    two.place(hop["ID"], router.name)
    tell(one, nets[0], two, hop)
    tell(two, nets[1], one, me)
    run("ip", "-n", router.name, "addr", "add", "203.0.113.5/32", "dev", "lo")
    world.bed.serve(router, 80, "router")
    assert refuses(client, "203.0.113.5", 80)
    setting = [{"DestinationPrefix": "203.0.113.0/24", "NextHop": "10.244.3.71", "NeedEncap": True}]
    here = one.hcn.create("SdnRoute", {"HostComputeEndpoints": [me["ID"]], "Setting": setting})["ID"]
    assert refuses(client, "203.0.113.5", 80), "the router's host knows of no address but its own"
    there = two.hcn.create("SdnRoute", {"HostComputeEndpoints": [hop["ID"]], "Setting": setting})["ID"]
    with connect(client, "203.0.113.5", 80) as connection:
        assert line(connection)[:2] == ["router", "10.244.3.70"]
        assert echo(connection, os.urandom(300_000))
        two.hcn.delete("SdnRoute", there)
        connection.settimeout(0.7)
        connection.sendall(b"no more")
        with pytest.raises(TimeoutError):
            connection.recv(100)
    one.hcn.delete("SdnRoute", here)


def test_a_host_route_and_an_sdn_route_to_the_host(world: World, pair: tuple[HnsHost, HnsHost]) -> None:
    one, _ = pair
    net = network(one)[0]
    box = one.container("hostr")
    ep = one.hcn.create("Endpoint", local(net, one.address, "10.244.3.72"))
    one.place(ep["ID"], box.name)
    world.bed.serve(box, 80, "box")
    world.bed.serve(one.path, 81, "host")
    assert refuses(one.path, "10.244.3.72", 80) and refuses(box, one.address, 81)
    one.hcn.policies("Network", net, "Add", {"Type": "HostRoute", "Settings": {}})
    assert ask(one.path, "10.244.3.72", 80)[0] == "box"
    assert ask(box, one.address, 81)[:2] == ["host", "10.244.3.72"]
    assert refuses(box, world.bed.client_address, 80), "no more than the host"
    run("ip", "-n", one.path.name, "addr", "add", "169.254.169.254/32", "dev", "lo")
    assert refuses(box, "169.254.169.254", 81)
    setting = [{"DestinationPrefix": "169.254.169.254/32", "NextHop": one.address}]
    one.hcn.create("SdnRoute", {"HostComputeEndpoints": [ep["ID"]], "Setting": setting})
    assert ask(box, "169.254.169.254", 81)[:2] == ["host", "10.244.3.72"]


def test_nat_by_either_of_two_policies_and_acls_of_the_network(
    world: World, pair: tuple[HnsHost, HnsHost]
) -> None:
    one, _ = pair
    net = network(one)[0]
    box, near = one.container("natted"), one.container("natnear")
    nowhere = {"Type": "OutBoundNAT", "Settings": {"Destinations": ["192.0.2.0/24"]}}
    client = {
        "Type": "OutBoundNAT",
        "Settings": {"VirtualIP": one.address, "Destinations": [f"{world.bed.client_address}/32"]},
    }
    ep = one.hcn.create("Endpoint", local(net, one.address, "10.244.3.73", nowhere))["ID"]
    one.place(ep, box.name)
    one.place(one.hcn.create("Endpoint", local(net, one.address, "10.244.3.74"))["ID"], near.name)
    world.bed.serve(world.bed.client, 8088, "outside")
    world.bed.serve(box, 80, "box")
    assert refuses(box, world.bed.client_address, 8088)
    one.hcn.policies("Endpoint", ep, "Add", client)
    assert ask(box, world.bed.client_address, 8088)[:2] == ["outside", one.address]
    assert ask(near, "10.244.3.73", 80)[0] == "box"
    rule = {
        "Action": "Block", "Direction": "In", "Protocols": "6", "RemoteAddresses": "10.244.3.74",
        "RuleType": "Switch", "Priority": 100,
    }  # fmt: skip
    one.hcn.policies("Network", net, "Add", {"Type": "NetworkACL", "Settings": rule})
    allow = {**rule, "Action": "Allow", "RemoteAddresses": "", "Priority": 200}
    out = {**allow, "Direction": "Out"}
    one.hcn.policies("Network", net, "Add", {"Type": "NetworkACL", "Settings": allow})
    one.hcn.policies("Network", net, "Add", {"Type": "NetworkACL", "Settings": out})
    assert refuses(near, "10.244.3.73", 80), "each endpoint of the network is under it"
    assert ask(box, world.bed.client_address, 8088)[0] == "outside"
    with pytest.raises(Refused):
        bad = {**rule, "RemoteAddresses": "no-such-set"}
        one.hcn.policies("Network", net, "Add", {"Type": "NetworkACL", "Settings": bad})


def test_a_vip_outside_the_network_is_served_from_outside_and_from_inside(
    world: World, pair: tuple[HnsHost, HnsHost]
) -> None:
    one, _ = pair
    net = network(one)[0]
    web, asker = one.container("extweb"), one.container("extask")
    ep = one.hcn.create("Endpoint", local(net, one.address, "10.244.3.75"))["ID"]
    one.place(ep, web.name)
    one.place(one.hcn.create("Endpoint", local(net, one.address, "10.244.3.76"))["ID"], asker.name)
    world.bed.serve(web, 8000, "web")
    ports = [{"Protocol": 6, "InternalPort": 8000, "ExternalPort": 80, "Flags": 2}]
    one.hcn.create(
        "LoadBalancer",
        {"HostComputeEndpoints": [ep], "FrontendVIPs": ["198.51.100.10"], "PortMappings": ports, "Flags": 1},
    )
    run("ip", "-n", world.bed.client.name, "route", "replace", "198.51.100.10", "via", one.address)
    assert ask(world.bed.client, "198.51.100.10", 80)[:2] == ["web", world.bed.client_address]
    assert ask(asker, "198.51.100.10", 80)[0] == "web"


def test_a_backend_is_asked_by_the_vip_itself_where_that_is_preserved(
    world: World, pair: tuple[HnsHost, HnsHost]
) -> None:
    """kube-proxy's preserve-destination: no DNAT, and only this host's own backends."""
    one, two = pair
    nets = network(one, two)
    web, asker, other = one.container("dipweb"), one.container("dipask"), two.container("dipfar")
    near = one.hcn.create("Endpoint", local(nets[0], one.address, "10.244.3.77"))["ID"]
    namespace = one.place(near, web.name)
    one.place(one.hcn.create("Endpoint", local(nets[0], one.address, "10.244.3.78"))["ID"], asker.name)
    far = two.hcn.create("Endpoint", local(nets[1], two.address, "10.244.3.79"))
    two.place(far["ID"], other.name)
    vip = "198.51.100.11"
    for box in (web, other):
        run("ip", "-n", box.name, "addr", "add", f"{vip}/32", "dev", "lo")
    world.bed.serve(web, 80, "web", address=vip)
    world.bed.serve(other, 80, "far", address=vip)
    ports = [{"Protocol": 6, "InternalPort": 80, "ExternalPort": 80, "Flags": 4 | 8}]
    members = [near, tell(one, nets[0], two, far)]
    document = {"HostComputeEndpoints": members, "FrontendVIPs": [vip], "PortMappings": ports, "Flags": 1}
    one.hcn.create("LoadBalancer", document)
    run("ip", "-n", world.bed.client.name, "route", "replace", vip, "via", one.address)
    for _ in range(4):
        assert ask(world.bed.client, vip, 80)[:2] == ["web", world.bed.client_address]
        assert ask(asker, vip, 80)[:2] == ["web", "10.244.3.78"]
    with connect(world.bed.client, vip, 80) as kept:
        line(kept)
        assert echo(kept, b"through the remembered way" * 2000)
    one.hcn.attach(namespace, near, "Remove")
    assert refuses(world.bed.client, vip, 80)


def test_an_endpoint_has_no_more_outbound_connections_than_its_ports(
    world: World, pair: tuple[HnsHost, HnsHost]
) -> None:
    one, _ = pair
    net = network(one)[0]
    box, free = one.container("few"), one.container("many")
    usage = {"Type": "OutBoundNAT", "Settings": {"MaxPortPoolUsage": 3}}
    few = one.hcn.create("Endpoint", local(net, one.address, "10.244.3.81"))["ID"]
    one.hcn.policies("Endpoint", few, "Add", usage)
    one.place(few, box.name)
    plain = one.hcn.create("Endpoint", local(net, one.address, "10.244.3.82"))["ID"]
    one.hcn.policies("Endpoint", plain, "Add", {"Type": "OutBoundNAT", "Settings": {}})
    one.place(plain, free.name)
    world.bed.serve(world.bed.client, 8089, "outside")

    def reach(where: Path, count: int) -> int:
        """How many of so many connections at once come to be."""
        found = []
        try:
            for _ in range(count):
                found.append(connect(where, world.bed.client_address, 8089, timeout=0.5))
        except OSError:
            pass
        for connection in found:
            connection.close()
        return len(found)

    assert reach(box, 5) == 3
    assert reach(free, 5) == 5
    one.hcn.policies("Endpoint", few, "Update", {**usage, "Settings": {"MaxPortPoolUsage": 200}})
    assert reach(box, 9) == 9

    def pools() -> str:
        listed = run("nsenter", f"--net={one.path}", "nft", "list", "ruleset")
        return "\n".join(text for text in listed.splitlines() if "pool_" in text)

    assert "pool_200" in pools() and "pool_3" not in pools()
    third = one.hcn.create("Endpoint", local(net, one.address, "10.244.3.83"))["ID"]
    one.hcn.policies("Endpoint", third, "Add", usage)
    with pytest.raises(Refused):  # no such network namespace: nothing of it stays
        one.place(third, "/proc/0/ns/net")
    assert "pool_3" not in pools()
    one.hcn.delete("Endpoint", few)
    assert pools() == ""


def test_a_second_endpoint_leads_to_its_networks_subnets_and_by_its_routes(
    world: World, pair: tuple[HnsHost, HnsHost]
) -> None:
    one, two = pair
    first = network(one)[0]
    nets = network(one, two, name="wide", vsid=4097, third=5)
    more = overlay(vsid=4097, third=6)["Ipams"][0]["Subnets"]
    box, far, further = one.container("twofold"), two.container("wide6"), two.container("wide77")
    place = one.place(one.hcn.create("Endpoint", local(first, one.address, "10.244.3.80"))["ID"], box.name)
    by_gateway = [{"DestinationPrefix": "10.77.0.0/16", "NextHop": "10.244.5.1"}]
    second = one.hcn.create("Endpoint", local(nets[0], one.address, "10.244.5.80", Routes=by_gateway))
    one.hcn.attach(place, second["ID"])
    assert "default via 10.244.3.1 dev eth0" in run("ip", "-n", box.name, "route")
    adding = {"ResourceType": "Subnet", "RequestType": "Add", "Settings": {"Subnets": more}}
    for host, net in zip(pair, nets, strict=True):  # the endpoint is attached already
        host.hcn.modify("Network", net, adding)
    there = two.hcn.create("Endpoint", local(nets[1], two.address, "10.244.6.81"))
    two.place(there["ID"], far.name)
    tell(one, nets[0], two, there)
    tell(two, nets[1], one, second)
    world.bed.serve(far, 80, "wide6")
    assert ask(box, "10.244.6.81", 80)[:2] == ["wide6", "10.244.5.80"]
    assert refuses(box, "10.77.0.9", 80)
    gateway = [{"NextHop": "10.77.0.1", "DestinationPrefix": "0.0.0.0/0"}]
    third = {**more[0], "IpAddressPrefix": "10.77.0.0/24", "Routes": gateway}
    two.hcn.modify("Network", nets[1], {**adding, "Settings": {"Subnets": [third]}})
    last = two.hcn.create("Endpoint", local(nets[1], two.address, "10.77.0.9"))
    two.place(last["ID"], further.name)
    tell(one, nets[0], two, last)  # on a subnet that this host has not
    world.bed.serve(further, 80, "wide77")
    assert ask(box, "10.77.0.9", 80)[:2] == ["wide77", "10.244.5.80"]
