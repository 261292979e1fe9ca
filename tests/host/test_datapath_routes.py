"""Remote subnet routes on real packets: each host has a subnet of its own of one network, as flannel lays them out."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from types import SimpleNamespace

import msgspec
import pytest
from datapath_bed import Container, Host, ask, connect, echo, line, mac_of, made_bed, network, ping

from overlace.network.vfp.tables import AccessList, AccessRule, LocalEndpoint, RemoteSubnet

pytestmark = [pytest.mark.host, pytest.mark.timeout(120)]
NETS = {name: network(4097, f"10.244.{n}.0/24") for n, name in enumerate("ab", 1)}
ROUTER = "02:15:5d:00:00:01"


def place(host: Host, name: str, address: str) -> Container:
    """A container that only its own host knows."""
    box, net = Container(host, name), NETS[host.name]
    endpoint = LocalEndpoint(4097, address, 24, mac_of(address), str(uuid.uuid4()).upper())
    host.put(net, endpoint)
    host.call("attach", endpoint, box.path, "eth0", True, net.gateway, 1450)
    box.endpoints.append(endpoint)
    return box


@pytest.fixture(scope="module")
def world() -> Iterator[SimpleNamespace]:
    with made_bed() as bed:
        a, b = bed.host("a"), bed.host("b")
        one, two = place(a, "one", "10.244.1.5"), place(b, "two", "10.244.2.5")
        for box in (one, two):
            bed.serve(box.path, 80, box.name)
        route(a, "10.244.2.0/24", b.address)
        route(b, "10.244.1.0/24", a.address)
        yield SimpleNamespace(bed=bed, a=a, b=b, one=one, two=two)


def route(host: Host, prefix: str, provider: str) -> None:
    host.put(RemoteSubnet(4097, prefix, provider, ROUTER, 4097))


def test_both_ways(world: SimpleNamespace) -> None:
    assert ask(world.one.path, "10.244.2.5", 80)[:2] == ["two", "10.244.1.5"]
    assert ask(world.two.path, "10.244.1.5", 80)[:2] == ["one", "10.244.2.5"]
    assert ping(world.one.path, "10.244.2.5")
    with connect(world.one.path, "10.244.2.5", 80) as connection:
        line(connection)
        assert echo(connection, bytes(range(256)) * 4096)


def test_an_address_nobody_has_there(world: SimpleNamespace) -> None:
    before = world.b.counters()["drop_no_endpoint"]
    assert not ping(world.one.path, "10.244.2.77", timeout=0.3)
    assert world.b.counters()["drop_no_endpoint"] > before


def test_access_lists_hold_on_routes(world: SimpleNamespace) -> None:
    plain = world.one.endpoints[0]
    into = AccessList(4097, plain.address, "IN", (AccessRule("allow"),))
    out = AccessList(
        4097, plain.address, "OUT", (AccessRule("block", remote=("10.244.2.0/24",)), AccessRule("allow"))
    )
    world.a.put(into, out, msgspec.structs.replace(plain, inbound=into.number, outbound=out.number))
    before = world.a.counters()["drop_policy"]
    assert not ping(world.one.path, "10.244.2.5", timeout=0.3)
    assert world.a.counters()["drop_policy"] > before
    world.a.put(plain)
    assert ping(world.one.path, "10.244.2.5")


def test_a_sender_must_be_behind_its_route(world: SimpleNamespace) -> None:
    route(world.b, "10.244.1.0/24", "172.28.77.99")
    before = world.b.counters()["drop_wrong_provider"]
    assert not ping(world.one.path, "10.244.2.5", timeout=0.3)
    assert world.b.counters()["drop_wrong_provider"] > before
    # a longer prefix leads elsewhere than the shorter
    route(world.b, "10.244.1.4/30", world.a.address)
    assert ping(world.one.path, "10.244.2.5")
