"""Hosts that reach each other over IPv6 alone, with real packets: containers of both families, services, published ports,
the kernel's way, host access, multicast, probes. `world`: hosts without an IPv4 address; `both`: with one for clients."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from datapath_bed import Container, ask, ask_udp, connect, echo, line, mac_of, made_bed, network, ping, run
from test_datapath_multicast import inbox, send, taken
from test_probes import Watched

from overlace.network.linux.netns import run_inside
from overlace.network.vfp.tables import HOST4, Backend, Flood, Frontend, Network

pytestmark = [pytest.mark.host, pytest.mark.timeout(120)]
NET = Network(
    4097,
    ("10.0.1.0/24", "fd00:1::/64"),
    "10.0.1.1",
    mac_of("10.0.1.1"),
    ingress=True,
    other_gateways=("fd00:1::1",),
)
ONE, TWO, SHELL, VIP = "10.0.1.5", "10.0.1.6", "10.0.1.7", "10.0.1.100"
ONE6, TWO6, SHELL6, VIP6 = "fd00:1::5", "fd00:1::6", "fd00:1::7", "fd00:1::100"
MEGABYTES = os.urandom(3 << 20)


def made_world(families: str) -> Iterator[SimpleNamespace]:
    with made_bed(families) as bed:
        a, b = bed.host("a"), bed.host("b")
        web1, web2, shell = Container(a, "web1"), Container(b, "web2"), Container(a, "shell")
        web1.join(NET, ONE, six=ONE6)
        web2.join(NET, TWO, six=TWO6)
        shell.join(NET, SHELL, six=SHELL6)
        for container in (web1, web2):
            bed.serve(container.path, 80, container.name, address="::")
            bed.serve(container.path, 53, container.name, socket.SOCK_DGRAM, address="::")
        both = (Backend(4097, ONE), Backend(4097, TWO))
        bed.frontend(
            Frontend(4097, VIP, 0, 0, both),
            Frontend(4097, VIP6, 0, 0, (Backend(4097, ONE6), Backend(4097, TWO6))),
        )
        for host in (a, b):
            host.put(Frontend(0, HOST4, 6, 8080, (Backend(4097, ONE, 80), Backend(4097, TWO, 80))))
        yield SimpleNamespace(bed=bed, a=a, b=b, web1=web1, web2=web2, shell=shell)


@pytest.fixture(scope="module")
def world() -> Iterator[SimpleNamespace]:
    yield from made_world("6")


@pytest.fixture(scope="module")
def both() -> Iterator[SimpleNamespace]:
    yield from made_world("46")


def test_hosts_have_no_ipv4_address(world: SimpleNamespace) -> None:
    assert " inet " not in run("ip", "-n", world.a.ns, "addr", "show", "dev", "eth0")


@pytest.mark.parametrize("address", [TWO, TWO6])
def test_containers_reach_each_other(world: SimpleNamespace, address: str) -> None:
    before = world.a.counters()
    assert ping(world.shell.path, address), "small"
    assert ping(world.shell.path, address, size=1380), "as large as fits"
    assert ping(world.shell.path, address, size=4000), "in the container's own fragments"
    me = SHELL6 if ":" in address else f"::ffff:{SHELL}"
    assert ask(world.shell.path, address, 80)[:2] == ["web2", me]
    assert ask_udp(world.shell.path, address, 53)[:2] == ["web2", me]
    assert ask_udp(world.shell.path, address, 53, size=4000)[3] == "4000"
    after = world.a.counters()
    assert after["slow_path"] == before["slow_path"], "the programs encapsulate"
    assert after["encapsulated"] > before["encapsulated"] + 8
    # the containers' kernels send this and that of their own that nobody asked for
    dropped = {k for k, v in after.items() if k.startswith("drop_") and v != before[k]}
    assert not dropped - {"drop_unsupported"}


@pytest.mark.parametrize("address", [TWO, TWO6, VIP, VIP6])
def test_large_transfer(world: SimpleNamespace, address: str) -> None:
    with connect(world.shell.path, address, 80) as connection:
        line(connection)
        assert echo(connection, MEGABYTES)


@pytest.mark.parametrize("vip", [VIP, VIP6])
def test_a_service_spreads_connections(world: SimpleNamespace, vip: str) -> None:
    for where in (world.shell.path, world.web1.path):
        assert Counter(ask(where, vip, 80)[0] for _ in range(10)) == {"web1": 5, "web2": 5}
    assert Counter(ask_udp(world.shell.path, vip, 53)[0] for _ in range(10)) == {"web1": 5, "web2": 5}


@pytest.mark.parametrize("address", [TWO, TWO6])
def test_the_kernels_own_way(world: SimpleNamespace, address: str) -> None:
    """Through its vxlan device: what the programs cannot send, next hop unknown or not."""
    world.a.call("use_slow_path", True)
    before = world.a.counters()
    try:
        run("ip", "-n", world.a.ns, "-6", "neigh", "flush", "dev", "eth0")
        assert ask(world.shell.path, address, 80)[0] == "web2"
        with connect(world.shell.path, address, 80) as connection:
            line(connection)
            assert echo(connection, MEGABYTES)
    finally:
        world.a.call("use_slow_path", False)
    assert world.a.counters()["slow_path"] > before["slow_path"] + 5


def test_a_published_port_through_either_host_keeps_the_clients_address(both: SimpleNamespace) -> None:
    client = both.bed.client
    for host in (both.a, both.b):
        got = [ask(client, host.client_address, 8080) for _ in range(10)]
        assert Counter(g[0] for g in got) == {"web1": 5, "web2": 5}
        assert {g[1] for g in got} == {f"::ffff:{both.bed.client_address}"}
    with connect(client, both.a.client_address, 8080) as connection:
        line(connection)
        assert echo(connection, MEGABYTES)


def test_one_client_port_through_both_hosts_to_one_container(both: SimpleNamespace) -> None:
    """The container cannot tell the two apart: the later one gets another source port, and each its own answers."""
    only = (Backend(4097, TWO, 80),)
    for host in (both.a, both.b):
        host.put(Frontend(0, HOST4, 6, 8081, only))
    source = (both.bed.client_address, 40123)
    with (
        connect(both.bed.client, both.a.client_address, 8081, source=source) as first,
        connect(both.bed.client, both.b.client_address, 8081, source=source) as second,
    ):
        assert line(first)[0] == line(second)[0] == "web2"
        assert echo(first, b"one" * 1000) and echo(second, b"two" * 1000)


def test_localhost_is_the_host_where_it_has_no_ipv4_address(world: SimpleNamespace) -> None:
    got = [ask(world.a.path, "127.0.0.1", 8080) for _ in range(10)]
    assert Counter(g[0] for g in got) == {"web1": 5, "web2": 5}
    assert {g[1] for g in got} == {"::ffff:192.0.0.8"}


def test_multicast_is_copied_to_the_other_host(world: SimpleNamespace) -> None:
    net = network(4098, "10.0.2.0/24", flood=True)
    one, two = Container(world.a, "m1"), Container(world.b, "m2")
    one.join(net, "10.0.2.5")
    two.join(net, "10.0.2.6")
    for here, host, there in ((one, world.a, world.b), (two, world.b, world.a)):
        host.put(Flood(4098, 1000, (here.address,), (there.address,), ("10.0.2.255",)))
    with inbox(two) as box:
        for to in ("239.1.2.3", "10.0.2.255"):
            got: list[bytes] = []
            for _ in range(3):  # the first may be lost while the kernel asks for the other host's MAC
                send(one, to, to.encode())
                if got := taken(box):
                    break
            assert got == [to.encode()]


async def test_probes_measure_the_path_and_its_mtu(world: SimpleNamespace) -> None:
    ab, ba = Watched(world.a, world.b), Watched(world.b, world.a)
    try:
        state = await ab.until(lambda s: s.state == "ok" and s.mtu > 0 and s.checksum == "ok")
        assert (state.mtu, state.address, state.fragments) == (1500, world.b.address, "")
        state = await ba.until(lambda s: s.state == "ok" and s.mtu > 0 and s.checksum == "ok")
        assert state.mtu == 1500
        run("ip", "-n", world.bed.switch, "link", "set", "p-b", "mtu", "1400")
        narrow = await ab.until(lambda s: s.mtu == 1400)
        world.a.call("set_paths", {world.b.address: narrow.mtu})
        with pytest.raises(OSError, match="Message too long"):
            send_whole(world.shell, TWO, 1400)
        assert ask_udp(world.shell.path, TWO, 53, size=1302)[3] == "1302"
        with connect(world.shell.path, TWO, 80) as connection:
            line(connection)
            assert echo(connection, MEGABYTES), "TCP follows the answer: too big"
    finally:
        run("ip", "-n", world.bed.switch, "link", "set", "p-b", "mtu", "1500")
        world.a.call("set_paths", {})
        for watched in (ab, ba):
            await watched.prober.close()


def send_whole(where: Container, to: str, size: int) -> None:
    """Datagrams that may not be fragmented, until the path's MTU is known."""

    def body() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
        made.connect((to, 9))
        return made

    with run_inside(where.path, body) as made:
        for _ in range(50):
            made.send(bytes(size))
            time.sleep(0.01)


def test_what_is_not_sent_by_the_host_it_belongs_to_is_dropped(world: SimpleNamespace) -> None:
    """A third host on the underlay speaks VXLAN over IPv6 for a container that is not its own."""
    client = world.bed.client
    run("ip", "-n", client.name, "addr", "add", "fd00:28:77::200/64", "dev", "eth0", "nodad")
    before = world.b.counters()
    for vni, source, reason in (
        (4097, SHELL, "drop_wrong_provider"),
        (4097, TWO, "drop_wrong_provider"),
        (5000, SHELL, "drop_unknown_vni"),
    ):
        run_inside(client, lambda vni=vni, source=source: spoof(world, vni, source))
        until = time.monotonic() + 3
        while world.b.counters()[reason] == before[reason] and time.monotonic() < until:
            time.sleep(0.01)
        after = world.b.counters()
        assert after[reason] == before[reason] + 1, (vni, source)
        before = after


def spoof(world: SimpleNamespace, vni: int, source: str) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.IPPROTO_UDP, 101, 1)  # UDP_NO_CHECK6_TX
        udp = struct.pack("!HHHH", 1000, 53, 12, 0) + b"spam"
        ip = struct.pack(
            "!BBHHHBBH4s4s",
            0x45,
            0,
            20 + len(udp),
            0,
            0,
            64,
            17,
            0,
            socket.inet_aton(source),
            socket.inet_aton(TWO),
        )
        frame = bytes.fromhex(mac_of(TWO).replace(":", "")) + bytes(6) + b"\x08\x00" + ip + udp
        made.sendto(struct.pack("!II", 0x08000000, vni << 8) + frame, (world.b.address, 4789))
