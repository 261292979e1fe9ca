"""Published ports at every address of a host, with real packets: a second card, addresses that come and go, and which way
answers leave."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from datapath_bed import (
    Bed,
    Container,
    ask,
    ask_udp,
    connect,
    echo,
    line,
    mac_of,
    made_bed,
    network,
    ping,
    run,
)

from overlace.network.linux.edges import AddressNews
from overlace.network.linux.netns import run_inside
from overlace.network.vfp.tables import HOST4, HOST6, Backend, Frontend, Network

pytestmark = [pytest.mark.host, pytest.mark.timeout(120)]
INGRESS = Network(
    4096,
    ("10.0.0.0/24", "fd00::/64"),
    "10.0.0.1",
    mac_of("10.0.0.1"),
    ingress=True,
    other_gateways=("fd00::1",),
)
NET = network(4097, "10.0.1.0/24")
PUBLIC, PUBLIC6 = "192.0.2.11", "2001:db8:2::11"  # of host a, on its second card
CLIENT, CLIENT6 = "192.0.2.200", "2001:db8:2::200"
ELSEWHERE = "198.51.100.9"
MEGABYTES = os.urandom(3 << 20)


def second_card(bed: Bed, ns: str, port: str, bridge: str, *addresses: str) -> None:
    """`ns` gets an eth1 on another bridge of the switch."""
    made = ("link", "add", "name", port, "type", "veth", "peer", "name", "eth1", "netns", ns)
    run("ip", "-n", bed.switch, *made)
    run("ip", "-n", bed.switch, "link", "set", port, "master", bridge, "up")
    run("ip", "-n", ns, "link", "set", "eth1", "up")
    for address in addresses:
        run("ip", "-n", ns, "addr", "add", address, "dev", "eth1", *(["nodad"] * (":" in address)))


def plain(address: str) -> str:
    """As a socket for both families has it."""
    return address.removeprefix("::ffff:")


@pytest.fixture(scope="module")
def world() -> Iterator[SimpleNamespace]:
    """web1 on a, web2 on b, which has one card; `public` is on a's second link alone, `inside` may leave its network."""
    with made_bed() as bed:
        a, b = bed.host("a"), bed.host("b")
        public = Path("/var/run/netns") / f"{bed.name}-public"
        bed.plug(public.name, "public", f"{CLIENT}/24", f"{CLIENT6}/64")
        run("ip", "-n", bed.switch, "link", "add", "br1", "type", "bridge")
        run("ip", "-n", bed.switch, "link", "set", "br1", "up")
        run("ip", "-n", bed.switch, "link", "set", "p-public", "master", "br1")
        try:
            second_card(bed, a.ns, "a-eth1", "br1", f"{PUBLIC}/24", f"{PUBLIC6}/64")
            a.call("look_at_underlay")
            boxes = {
                "web1": Container(a, "web1"),
                "web2": Container(b, "web2"),
                "inside": Container(a, "inside"),
            }
            boxes["web1"].join(INGRESS, "10.0.0.5", six="fd00::5")
            boxes["web2"].join(INGRESS, "10.0.0.6", six="fd00::6")
            boxes["inside"].join(NET, "10.0.1.7", outbound=True)
            for name in ("web1", "web2"):
                bed.serve(boxes[name].path, 80, name, address="::")
                bed.serve(boxes[name].path, 53, name, socket.SOCK_DGRAM, address="::")
            for front, one, two in ((HOST4, "10.0.0.5", "10.0.0.6"), (HOST6, "fd00::5", "fd00::6")):
                both = (Backend(4096, one, 80), Backend(4096, two, 80))
                bed.frontend(
                    Frontend(0, front, 6, 8080, both),
                    Frontend(0, front, 6, 8081, both[:1]),
                    Frontend(0, front, 6, 8082, both[1:]),
                    Frontend(0, front, 6, 8083),
                    Frontend(0, front, 17, 5353, (Backend(4096, one, 53), Backend(4096, two, 53))),
                )
            yield SimpleNamespace(bed=bed, a=a, b=b, public=public, **boxes)
        finally:
            run("ip", "netns", "del", public.name)


@pytest.mark.parametrize("at, client", [(PUBLIC, CLIENT), (PUBLIC6, CLIENT6)])
def test_a_second_card_answers_and_the_container_sees_the_client(
    world: SimpleNamespace, at: str, client: str
) -> None:
    got = [ask(world.public, at, 8080) for _ in range(6)]
    assert {name for name, _, _ in got} == {"web1", "web2"} and {plain(who) for _, who, _ in got} == {client}
    got = [ask_udp(world.public, at, 5353) for _ in range(6)]
    assert {name for name, *_ in got} == {"web1", "web2"} and {plain(who) for _, who, *_ in got} == {client}
    for port in (8081, 8082):
        with connect(world.public, at, port) as connection:
            line(connection)
            assert echo(connection, MEGABYTES)
    for port in (8083, 9999):
        with pytest.raises(ConnectionRefusedError):
            ask(world.public, at, port)
    assert ping(world.public, at), "the host's own stack has the rest"


def test_the_underlay_answers_as_before(world: SimpleNamespace) -> None:
    got = [ask(world.bed.client, world.a.address, 8080) for _ in range(4)]
    assert {name for name, _, _ in got} == {"web1", "web2"} and {plain(who) for _, who, _ in got} == {
        world.bed.client_address
    }


@pytest.mark.parametrize("at", [PUBLIC, PUBLIC6])
def test_the_host_itself_asks_by_its_other_address(world: SimpleNamespace, at: str) -> None:
    assert {ask(world.a.path, at, 8080)[0] for _ in range(4)} == {"web1", "web2"}


def test_its_containers_ask_by_its_other_address(world: SimpleNamespace) -> None:
    assert {ask(world.inside.path, PUBLIC, 8080)[0] for _ in range(4)} == {"web1", "web2"}
    assert {ask_udp(world.inside.path, PUBLIC, 5353)[0] for _ in range(4)} == {"web1", "web2"}


def test_an_address_comes_and_goes_while_traffic_flows(world: SimpleNamespace) -> None:
    more = "192.0.2.77"
    with connect(world.public, PUBLIC, 8082) as kept:
        line(kept)
        run("ip", "-n", world.a.ns, "addr", "add", f"{more}/24", "dev", "eth1")
        world.a.call("look_at_underlay")
        assert ask(world.public, more, 8081)[0] == "web1" and echo(kept, b"still here" * 1000)
        run("ip", "-n", world.a.ns, "addr", "del", f"{more}/24", "dev", "eth1")
        run("ip", "-n", world.public.name, "route", "add", f"{more}/32", "via", PUBLIC)
        world.a.call("look_at_underlay")
        with pytest.raises(OSError):
            connect(world.public, more, 8081, timeout=0.5)
        assert echo(kept, b"still here" * 1000)
    assert ask(world.bed.client, world.a.address, 8081)[0] == "web1"


def test_an_address_on_lo_is_the_hosts_too(world: SimpleNamespace) -> None:
    """As routers and load balancers in front of hosts have it."""
    anycast = "203.0.113.80"
    run("ip", "-n", world.a.ns, "addr", "add", f"{anycast}/32", "dev", "lo")
    run("ip", "-n", world.public.name, "route", "add", f"{anycast}/32", "via", PUBLIC)
    world.a.call("look_at_underlay")
    assert {ask(world.public, anycast, 8080)[0] for _ in range(4)} == {"web1", "web2"}


def test_a_port_of_one_address_is_at_that_one(world: SimpleNamespace) -> None:
    only = (Backend(4096, "10.0.0.5", 80),)
    world.a.put(Frontend(0, PUBLIC, 6, 8090, only), Frontend(0, "127.0.0.1", 6, 8091, only))
    assert ask(world.public, PUBLIC, 8090)[0] == "web1"
    for where, at in ((world.bed.client, world.a.address), (world.a.path, "127.0.0.1")):
        with pytest.raises(ConnectionRefusedError):
            ask(where, at, 8090)
    assert ask(world.a.path, "127.0.0.1", 8091)[0] == "web1"
    for where, at in ((world.public, PUBLIC), (world.bed.client, world.a.address), (world.a.path, PUBLIC)):
        with pytest.raises(ConnectionRefusedError):
            ask(where, at, 8091)


def test_answers_follow_the_hosts_routes_where_none_leads_back(world: SimpleNamespace) -> None:
    """A client who comes in by one card and to whom only another one leads."""
    run("ip", "-n", world.public.name, "addr", "add", f"{ELSEWHERE}/32", "dev", "lo")
    second_card(world.bed, world.public.name, "public-eth1", "br0", "172.28.77.201/24")
    for name in ("all", "eth0", "eth1"):
        path = Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter")
        run_inside(world.public, lambda path=path: path.write_text("0"))
    run("ip", "-n", world.a.ns, "route", "add", f"{ELSEWHERE}/32", "via", "172.28.77.201")
    for port in (8081, 8082):
        with connect(world.public, PUBLIC, port, source=(ELSEWHERE, 0)) as connection:
            assert plain(line(connection)[1]) == ELSEWHERE
            assert echo(connection, b"around" * 5000)


def test_a_card_without_addresses_has_no_program(world: SimpleNamespace) -> None:
    def pins() -> set[str]:
        return {p.name for p in Path(f"/sys/fs/bpf/overlace/{world.a.instance}/links").iterdir()}

    edges = {name for name in pins() if name.startswith("edge-")}
    assert len(edges) == 1
    run("ip", "-n", world.a.ns, "addr", "flush", "dev", "eth1")
    world.a.call("look_at_underlay")
    assert not edges & pins()
    run("ip", "-n", world.a.ns, "addr", "add", f"{PUBLIC}/24", "dev", "eth1")
    world.a.call("look_at_underlay")
    assert edges <= pins() and ask(world.public, PUBLIC, 8081)[0] == "web1"


def test_news_of_addresses(world: SimpleNamespace) -> None:
    """They are followed at once, not at the next look; container interfaces' link-local ones are no news."""

    async def body() -> None:
        seen = asyncio.Event()

        async def follow() -> None:
            seen.set()

        news = run_inside(world.a.path, lambda: AddressNews(follow))
        news.start()
        try:
            for what in ("add", "del"):
                run("ip", "-n", world.a.ns, "addr", what, "192.0.2.99/24", "dev", "eth1")
                await asyncio.wait_for(seen.wait(), 10)
                seen.clear()
        finally:
            await news.close()

    asyncio.run(body())
