"""Real packets through the Linux data path: three hosts, a client outside, containers on two overlay
networks."""

from __future__ import annotations

import errno
import select
import socket
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import msgspec
import pytest
from datapath_bed import Container, ask, ask_udp, connect, echo, line, made_bed, network, ping

from overlace.network.linux.netns import run_inside
from overlace.network.vfp.tables import HOST4, Backend, Delta, Frontend

pytestmark = [pytest.mark.host, pytest.mark.timeout(90)]
UDP, TCP = 17, 6
FRONT = network(4097, "10.0.1.0/24")
BACK = network(4098, "10.0.2.0/24")
INGRESS = network(4096, "10.0.0.0/24", ingress=True)
VIP = "10.0.1.2"
MEGABYTES = bytes(range(256)) * 4096 * 8


@pytest.fixture(scope="module")
def world() -> Iterator[SimpleNamespace]:
    """web1 on a, web2 on b (both on FRONT and INGRESS), shell on a (FRONT), other on a (BACK); c holds
    nothing."""
    with made_bed() as bed:
        a, b, c = (bed.host(name) for name in "abc")
        for host in bed.hosts:
            host.put(FRONT, BACK, INGRESS)
        web1, web2 = Container(a, "web1"), Container(b, "web2")
        web1.join(FRONT, "10.0.1.5", outbound=True)
        web1.join(INGRESS, "10.0.0.5", default=False)
        web2.join(FRONT, "10.0.1.6", outbound=True)
        web2.join(INGRESS, "10.0.0.6", default=False)
        shell, other = Container(a, "shell"), Container(a, "other")
        shell.join(FRONT, "10.0.1.7", outbound=True)
        other.join(BACK, "10.0.2.7")
        for box in (web1, web2, other):
            bed.serve(box.path, 80, box.name)
            bed.serve(box.path, 53, box.name, socket.SOCK_DGRAM)
        bed.serve(bed.client, 90, "outside")
        both = (Backend(4097, "10.0.1.5"), Backend(4097, "10.0.1.6"))
        bed.frontend(Frontend(4097, VIP, 0, 0, both))
        tasks = [(Backend(4096, "10.0.0.5", p), Backend(4096, "10.0.0.6", p)) for p in (80, 53)]
        for host in bed.hosts:
            host.put(
                Frontend(0, HOST4, TCP, 8080, tasks[0]),
                Frontend(0, HOST4, UDP, 5353, tasks[1]),
                Frontend(0, HOST4, TCP, 8081),
                Frontend(0, HOST4, UDP, 8081),
            )
        yield SimpleNamespace(
            bed=bed, a=a, b=b, c=c, web1=web1, web2=web2, shell=shell, other=other, client=bed.client
        )


def test_who_asks_too_early_asks_again_soon(world: SimpleNamespace) -> None:
    """A task is started while somebody already looks for it: more than the kernel's three questions, a second apart."""

    def early() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.setblocking(False)
        made.connect_ex(("10.0.1.99", 80))
        return made

    before = world.a.counters()["drop_arp"]
    with run_inside(world.shell.path, early) as waiting:
        while world.a.counters()["drop_arp"] < before + 5:
            assert waiting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0, "it has given up"
        late = Container(world.b, "late")
        late.join(FRONT, "10.0.1.99")
        select.select((), (waiting,), (), 10)
        assert waiting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED, "it was reached"


def test_containers_ping_each_other(world: SimpleNamespace) -> None:
    assert ping(world.shell.path, "10.0.1.5"), "same host"
    assert ping(world.shell.path, "10.0.1.6"), "other host"
    assert ping(world.shell.path, "10.0.1.6", size=1400), "other host, full size"
    assert ping(world.shell.path, "10.0.1.6", size=4000), "other host, fragments"
    assert ping(world.shell.path, "10.0.1.1"), "gateway"
    assert ping(world.shell.path, VIP), "VIP"


def test_addresses_are_kept_between_containers(world: SimpleNamespace) -> None:
    assert ask(world.shell.path, "10.0.1.6", 80)[:2] == ["web2", "10.0.1.7"]
    assert ask(world.shell.path, "10.0.1.5", 80)[:2] == ["web1", "10.0.1.7"]
    assert ask_udp(world.shell.path, "10.0.1.6", 53)[:2] == ["web2", "10.0.1.7"]


@pytest.mark.parametrize("address", ["10.0.1.5", "10.0.1.6", VIP])
def test_large_transfer(world: SimpleNamespace, address: str) -> None:
    with connect(world.shell.path, address, 80) as connection:
        line(connection)
        assert echo(connection, MEGABYTES)


def test_large_transfer_goes_by_the_fast_path(world: SimpleNamespace) -> None:
    before = world.a.counters()
    with connect(world.shell.path, "10.0.1.6", 80) as connection:
        line(connection)
        assert echo(connection, MEGABYTES)
    after = world.a.counters()
    assert after["encapsulated"] - before["encapsulated"] > 100
    assert after["slow_path"] == before["slow_path"]


def test_vip_spreads_connections(world: SimpleNamespace) -> None:
    got = Counter(ask(world.shell.path, VIP, 80)[0] for _ in range(20))
    assert got == {"web1": 10, "web2": 10}
    got = Counter(ask_udp(world.shell.path, VIP, 53)[0] for _ in range(20))
    assert got == {"web1": 10, "web2": 10}


def test_vip_keeps_udp_fragments_together(world: SimpleNamespace) -> None:
    for _ in range(4):
        assert ask_udp(world.shell.path, VIP, 53, size=4000)[3] == "4000"


def test_a_member_reaches_itself_through_the_vip(world: SimpleNamespace) -> None:
    got = Counter(ask(world.web1.path, VIP, 80)[0] for _ in range(10))
    assert got == {"web1": 5, "web2": 5}


def test_one_source_port_to_two_vips_over_one_backend(world: SimpleNamespace) -> None:
    """Both connections would look the same to the backend: the second gets another source port."""
    one = (Backend(4097, "10.0.1.6"),)
    world.bed.frontend(Frontend(4097, "10.0.1.3", 0, 0, one), Frontend(4097, "10.0.1.4", 0, 0, one))
    source = ("10.0.1.7", 45001)
    with connect(world.shell.path, "10.0.1.3", 80, source=source) as first:
        assert line(first) == ["web2", "10.0.1.7", "45001"]
        with connect(world.shell.path, "10.0.1.4", 80, source=source) as second:
            assert line(second)[:2] == ["web2", "10.0.1.7"]
            assert echo(second, b"second")
        assert echo(first, b"first")


@pytest.mark.parametrize("hosts", ["ac", "ca", "bc", "cb"])
def test_one_source_port_through_two_hosts_to_one_backend(world: SimpleNamespace, hosts: str) -> None:
    """web2 on b could not tell the connections apart: the second gets another source port. Each answer goes back through
    the host its question came by."""
    backend = (Backend(4096, "10.0.0.6", 80),)
    udp = (Backend(4096, "10.0.0.6", 53),)
    for host in world.bed.hosts:
        host.put(Frontend(0, HOST4, TCP, 8090, backend), Frontend(0, host.address, UDP, 8091, udp))
    one, two = (getattr(world, h) for h in hosts)
    client = world.bed.client_address
    source = (client, 46000 + ["ac", "ca", "bc", "cb"].index(hosts))
    with connect(world.client, one.address, 8090, source=source) as first:
        assert line(first)[:2] == ["web2", client]
        with connect(world.client, two.address, 8090, source=source) as second:
            assert line(second)[:2] == ["web2", client], "its address stays"
            for i in range(3):
                assert echo(first, b"first %d" % i) and echo(second, b"second %d" % i)
        assert echo(first, MEGABYTES[:100_000])

    def body() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(source)
        made.settimeout(3)
        return made

    with run_inside(world.client, body) as datagrams:
        for _ in range(3):
            for host in (one, two):
                datagrams.sendto(b"hello", (host.address, 8091))
                said, who = datagrams.recvfrom(1000)
                assert who == (host.address, 8091) and said.split()[:2] == [b"web2", client.encode()]


@pytest.mark.parametrize("host", ["a", "b", "c"])
def test_published_port_on_every_host_keeps_the_client(world: SimpleNamespace, host: str) -> None:
    address = getattr(world, host).address
    got = [ask(world.client, address, 8080) for _ in range(6)]
    assert Counter(g[0] for g in got) == {"web1": 3, "web2": 3}
    assert {g[1] for g in got} == {world.bed.client_address}
    got = [ask_udp(world.client, address, 5353) for _ in range(6)]
    assert Counter(g[0] for g in got) == {"web1": 3, "web2": 3}
    assert {g[1] for g in got} == {world.bed.client_address}


def test_large_transfer_through_a_host_without_backend(world: SimpleNamespace) -> None:
    for _ in range(2):
        with connect(world.client, world.c.address, 8080) as connection:
            line(connection)
            assert echo(connection, MEGABYTES)


def test_published_port_from_the_hosts_themselves(world: SimpleNamespace) -> None:
    for host in world.bed.hosts:
        for address in ("127.0.0.1", host.address):
            got = [ask(host.path, address, 8080) for _ in range(4)]
            assert Counter(g[0] for g in got) == {"web1": 2, "web2": 2}, (host.name, address)
            with connect(host.path, address, 8080) as connection:
                line(connection)
                assert echo(connection, MEGABYTES[: 1 << 20])
    got = [ask(world.a.path, world.c.address, 8080)[1] for _ in range(2)]
    assert got == [world.a.address] * 2


def test_published_port_from_containers(world: SimpleNamespace) -> None:
    own = Counter(ask(world.shell.path, world.a.address, 8080)[0] for _ in range(4))
    assert own == {"web1": 2, "web2": 2}
    own = Counter(ask(world.web1.path, world.a.address, 8080)[0] for _ in range(4))
    assert own == {"web1": 2, "web2": 2}, "a backend through its own host"
    assert ask(world.shell.path, world.c.address, 8080)[1] == world.a.address


def test_a_port_without_backends_refuses(world: SimpleNamespace) -> None:
    world.bed.frontend(Frontend(4097, "10.0.1.9", 0, 0))
    for where, address, port in (
        (world.client, world.c.address, 8081),
        (world.c.path, "127.0.0.1", 8081),
        (world.shell.path, world.a.address, 8081),
        (world.shell.path, "10.0.1.9", 80),
    ):
        with pytest.raises(ConnectionRefusedError):
            ask(where, address, port)
        with pytest.raises(ConnectionRefusedError):
            ask_udp(where, address, port)


def test_a_closed_udp_port_behind_a_frontend_is_reported_to_the_client(world: SimpleNamespace) -> None:
    """The backend's ICMP error is about a packet with other addresses than the client sent."""
    closed = (Backend(4096, "10.0.0.6", 999), Backend(4096, "10.0.0.5", 999))
    for host in world.bed.hosts:
        host.put(Frontend(0, HOST4, UDP, 9999, closed))
    with pytest.raises(ConnectionRefusedError):
        ask_udp(world.shell.path, "10.0.1.6", 999)
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            ask_udp(world.shell.path, VIP, 999)
        for host in world.bed.hosts:
            with pytest.raises(ConnectionRefusedError):
                ask_udp(world.client, host.address, 9999)
            with pytest.raises(ConnectionRefusedError):
                ask_udp(host.path, "127.0.0.1", 9999)


def test_outbound_nat_only_for_those_who_may(world: SimpleNamespace) -> None:
    assert ask(world.shell.path, world.bed.client_address, 90)[:2] == ["outside", world.a.address]
    assert ping(world.shell.path, world.bed.client_address)
    before = world.a.counters()["drop_no_outbound"]
    with pytest.raises(TimeoutError):
        ask(world.other.path, world.bed.client_address, 90, timeout=1)
    assert world.a.counters()["drop_no_outbound"] > before


def test_networks_do_not_reach_each_other(world: SimpleNamespace) -> None:
    before = world.a.counters()["drop_isolation"]
    for address in ("10.0.2.7", "10.0.0.6", "10.0.0.5"):
        with pytest.raises(OSError) as caught:
            ask(world.shell.path, address, 80, timeout=1)
        assert isinstance(caught.value, TimeoutError) or caught.value.errno == errno.EHOSTUNREACH
    assert world.a.counters()["drop_isolation"] > before
    assert ask(world.shell.path, "10.0.1.5", 80)


def test_the_outside_does_not_reach_containers(world: SimpleNamespace) -> None:
    """Even when it routes overlay addresses to a host."""
    from datapath_bed import run

    run("ip", "-n", world.client.name, "route", "add", "10.0.1.0/24", "via", world.a.address)
    try:
        with pytest.raises(TimeoutError):
            ask(world.client, "10.0.1.7", 80, timeout=1)
        with pytest.raises(TimeoutError):
            ask(world.client, "10.0.1.5", 80, timeout=1)
    finally:
        run("ip", "-n", world.client.name, "route", "del", "10.0.1.0/24")


def test_outbound_nat_has_exceptions(world: SimpleNamespace) -> None:
    box = Container(world.b, "kept")
    box.join(FRONT, "10.0.1.20", outbound=True, exceptions=("10.0.0.0/8", world.bed.client_address + "/32"))
    assert not ping(box.path, world.bed.client_address, timeout=0.3)
    assert not ping(box.path, "10.9.9.9", timeout=0.1)
    assert ping(box.path, world.c.address)
    assert ping(world.web2.path, world.bed.client_address), "another endpoint of that host"


def test_outbound_nat_to_some_destinations(world: SimpleNamespace) -> None:
    box = Container(world.b, "few")
    endpoint = box.join(FRONT, "10.0.1.21", outbound=True)
    assert ping(box.path, world.c.address)
    client = world.bed.client_address + "/32"
    world.b.put(msgspec.structs.replace(endpoint, nat_destinations=(client, "10.0.0.0/8")))
    assert ping(box.path, world.bed.client_address)
    assert not ping(box.path, world.c.address, timeout=0.3)
    world.b.put(msgspec.structs.replace(endpoint, nat_destinations=(client,), nat_exceptions=(client,)))
    assert not ping(box.path, world.bed.client_address, timeout=0.3), "an exception wins"


def test_local_network_is_this_hosts_own(world: SimpleNamespace) -> None:
    """The host's bridge-like network: NAT, host-mode published port, nothing on the wire."""
    bridge = network(900, "172.30.0.0/24", local=True)
    box, twin = Container(world.a, "bridged"), Container(world.b, "bridged")
    box.join(bridge, "172.30.0.2", outbound=True)
    twin.join(bridge, "172.30.0.3", outbound=True)
    world.bed.serve(box.path, 80, "bridged")
    world.a.put(Frontend(0, HOST4, TCP, 8088, (Backend(900, "172.30.0.2", 80),)))
    assert ask(world.client, world.a.address, 8088)[:2] == ["bridged", world.bed.client_address]
    assert ask(world.a.path, "127.0.0.1", 8088)[0] == "bridged"
    assert ask(box.path, world.bed.client_address, 90)[:2] == ["outside", world.a.address]
    with pytest.raises(ConnectionRefusedError):
        ask(world.client, world.b.address, 8088)
    assert not ping(box.path, "172.30.0.3", timeout=0.5)


def test_established_connection_survives_a_new_list_of_backends(world: SimpleNamespace) -> None:
    vip = "10.0.1.30"
    world.bed.frontend(Frontend(4097, vip, 0, 0, (Backend(4097, "10.0.1.6"),)))
    with connect(world.shell.path, vip, 80) as old:
        assert line(old)[0] == "web2"
        world.bed.frontend(Frontend(4097, vip, 0, 0, (Backend(4097, "10.0.1.5"),)))
        assert {ask(world.shell.path, vip, 80)[0] for _ in range(4)} == {"web1"}
        assert echo(old, b"still there")


def test_a_gone_backend_is_not_a_black_hole(world: SimpleNamespace) -> None:
    vip, source = "10.0.1.31", ("10.0.1.7", 45100)
    box = Container(world.b, "shortlived")
    endpoint = box.join(FRONT, "10.0.1.40")
    world.bed.serve(box.path, 80, "shortlived")
    world.bed.frontend(Frontend(4097, vip, 0, 0, (Backend(4097, "10.0.1.40"),)))
    old = connect(world.shell.path, vip, 80, source=source)
    assert line(old)[0] == "shortlived"
    world.bed.frontend(Frontend(4097, vip, 0, 0, (Backend(4097, "10.0.1.5"),)))
    for host in world.bed.hosts:
        host.call("apply", Delta(remove=(endpoint.key,)))
    world.b.call("detach", endpoint.endpoint_id)
    with old, pytest.raises(ConnectionResetError):  # told, not left hanging
        old.sendall(b"anyone?")
        old.recv(1)
    assert ask(world.shell.path, vip, 80, source=source)[0] == "web1"


def test_closed_connections_port_is_used_again(world: SimpleNamespace) -> None:
    """The same source port, again and again: each time a new decision, never a stall."""
    got = Counter()
    for _ in range(6):
        connection = connect(world.shell.path, VIP, 80, source=("10.0.1.7", 45200))
        got[line(connection)[0]] += 1
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset: no TIME_WAIT
        connection.close()
    assert got == {"web1": 3, "web2": 3}
