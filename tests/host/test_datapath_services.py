"""Services on real packets: a client keeps its backend, a removed backend keeps its connections, and no container
sends more than it may."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace

import msgspec
import pytest
from datapath_bed import (
    Container,
    ask,
    ask_udp,
    connect,
    echo,
    line,
    mac_of,
    made_bed,
    network,
    run,
)

from overlace.network.linux.netns import run_inside
from overlace.network.vfp.affinity import preferred
from overlace.network.vfp.tables import HOST4, Backend, Delta, Frontend, RemoteEndpoint

pytestmark = [pytest.mark.host, pytest.mark.timeout(120)]
NET = network(4097, "10.0.1.0/24")
VIP = "10.0.1.2"
MEMBERS = tuple(Backend(4097, f"10.0.1.{n}", 80) for n in (5, 6, 7))


@pytest.fixture(scope="module")
def world() -> Iterator[SimpleNamespace]:
    """s5, s6 on a and s7 on b serve; c8 on a and c9 on b ask."""
    with made_bed() as bed:
        a, b = bed.host("a"), bed.host("b")
        for host in bed.hosts:
            host.put(NET)
        boxes = {}
        for name, host in (("s5", a), ("s6", a), ("s7", b), ("c8", a), ("c9", b)):
            box = boxes[name] = Container(host, name)
            box.join(NET, f"10.0.1.{name[1:]}", outbound=True)
            bed.serve(box.path, 80, name)
            bed.serve(box.path, 80, name, socket.SOCK_DGRAM)
        yield SimpleNamespace(bed=bed, a=a, b=b, **boxes)


def serve(
    world: SimpleNamespace, members: tuple[Backend, ...], affinity: int = 3600, protocol: bool = False
) -> None:
    world.bed.frontend(Frontend(4097, VIP, 0, 0, members, affinity, protocol))


def servers(box: Container, count: int = 12) -> set[str]:
    return {ask(box.path, VIP, 80)[0] for _ in range(count)}


def test_a_client_keeps_its_backend(world: SimpleNamespace) -> None:
    serve(world, MEMBERS, 0)
    assert servers(world.c8) == {"s5", "s6", "s7"}
    serve(world, MEMBERS)
    (mine,) = servers(world.c8)
    assert len(servers(world.c9)) == 1
    assert ask_udp(world.c8.path, VIP, 80)[0] == mine
    # another backend comes: clients stay; their own goes: they move, and stay there
    others = tuple(m for m in MEMBERS if not mine.endswith(m.address[-1]))
    serve(world, (*others, *(m for m in MEMBERS if m not in others)))
    assert servers(world.c8) == {mine}
    serve(world, others)
    (next_one,) = servers(world.c8)
    assert next_one != mine


def test_kept_by_one_host_for_as_long_as_said(world: SimpleNamespace) -> None:
    """A client that was kept while a backend came goes to the one it prefers when that has run out."""
    client = world.c8.address
    mine = preferred(MEMBERS, client)
    serve(world, tuple(m for m in MEMBERS if m != mine), 1)
    (kept,) = servers(world.c8, 3)
    serve(world, MEMBERS, 1)
    deadline = time.monotonic() + 30
    while (now := servers(world.c8, 1)) == {kept}:
        assert time.monotonic() < deadline
        time.sleep(3.3)  # longer than the affinity lasts
    assert now == {"s" + mine.address[-1]}
    serve(world, MEMBERS)


def test_a_client_gets_the_same_backend_through_every_host(world: SimpleNamespace) -> None:
    for last in range(201, 209):
        address = world.bed.client_address[:-3] + str(last)
        run("ip", "-n", world.bed.client.name, "addr", "add", address + "/24", "dev", "eth0")
        seen = set()
        for host in (world.a, world.b):
            host.put(msgspec.structs.replace(NET, ingress=True), Frontend(0, HOST4, 6, 8080, MEMBERS, 3600))
            seen.add(ask(world.bed.client, host.address, 8080, source=(address, 0))[0])
        assert seen == {"s" + preferred(MEMBERS, address).address[-1]}
    for host in (world.a, world.b):
        host.call("apply", Delta(put=(NET,), remove=(("frontend", 0, HOST4, 6, 8080),)))


def test_published_ports_keep_clients_too(world: SimpleNamespace) -> None:
    ingress = msgspec.structs.replace(NET, ingress=True)
    world.b.put(ingress)
    world.a.put(ingress, Frontend(0, HOST4, 6, 8080, MEMBERS, 3600))
    seen = [ask(world.bed.client, world.a.address, 8080) for _ in range(10)]
    assert len({s[0] for s in seen}) == 1 and {s[1] for s in seen} == {world.bed.client_address}
    world.a.call("apply", Delta(put=(NET,), remove=(("frontend", 0, HOST4, 6, 8080),)))
    world.b.put(NET)


@pytest.mark.parametrize("affinity", [0, 3600])
def test_a_backend_whose_host_cannot_answer_clients_sees_another_address(
    world: SimpleNamespace, affinity: int
) -> None:
    """The other backends of the port see the client itself; many clients of one port share that address."""
    seen = "10.0.1.250"  # host a's own; b knows it as a's, and nothing of clients outside
    members = (MEMBERS[0], msgspec.structs.replace(MEMBERS[2], source=seen))
    world.b.put(RemoteEndpoint(4097, seen, mac_of(seen), world.a.address))
    world.a.put(
        msgspec.structs.replace(NET, ingress=True), Frontend(0, world.a.address, 6, 8080, members, affinity)
    )
    first = 221 if affinity else 211
    clients = [world.bed.client_address[:-3] + str(last) for last in range(first, first + 8)]
    by_server: dict[str, set[str]] = {"s5": set(), "s7": set()}
    kept = []
    for client in clients:
        run("ip", "-n", world.bed.client.name, "addr", "add", client + "/24", "dev", "eth0")
        # one port for all: behind the shared address they cannot all keep it
        kept.append(connect(world.bed.client, world.a.address, 8080, source=(client, 33000)))
        server, address, *_ = line(kept[-1])
        by_server[server].add(address)
    assert by_server["s7"] == {seen}
    assert by_server["s5"] <= set(clients) and by_server["s5"]
    for connection in kept:
        assert echo(connection, b"to and fro" * 5000)
        connection.close()
    gone = (("frontend", 0, world.a.address, 6, 8080),)
    world.a.call("apply", Delta(put=(NET,), remove=gone))
    world.b.call("apply", Delta(put=(), remove=(("endpoint", 4097, seen),)))


@pytest.mark.parametrize("affinity", [0, 3600])
def test_a_removed_backend_drains(world: SimpleNamespace, affinity: int) -> None:
    """Its connections go on until they end by themselves; new ones never go there."""
    serve(world, MEMBERS[:1], affinity)
    with connect(world.c9.path, VIP, 80) as old:
        assert line(old)[0] == "s5"
        serve(world, MEMBERS[1:], affinity)
        assert servers(world.c9) <= {"s6", "s7"}
        assert echo(old, b"still here" * 5000)
        assert servers(world.c9) <= {"s6", "s7"}


RATE = 250_000  # bytes per second
BURST = 131_072 + 70_000  # qos.h's, and the frame that exceeds it


def limit(world: SimpleNamespace, box: Container, rate: int) -> None:
    plain = box.endpoints[0]
    world.a.put(msgspec.structs.replace(plain, rate=rate))


def test_no_container_sends_more_than_it_may(world: SimpleNamespace) -> None:
    def bound() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
        made.bind(("0.0.0.0", 9000))
        return made

    def sender() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    limit(world, world.c8, RATE)
    dropped = world.a.counters()["drop_rate"]
    with run_inside(world.s7.path, bound) as receiver, run_inside(world.c8.path, sender) as out:
        since = time.monotonic()
        for _ in range(1000):
            out.sendto(b"x" * 1400, ("10.0.1.7", 9000))
        receiver.settimeout(1)
        got = 0
        try:
            while True:
                got += len(receiver.recv(2000))
        except TimeoutError:
            pass
        allowed = BURST + RATE * (time.monotonic() - since)
    assert 100_000 < got <= allowed, "a burst passes, and then the rate"
    assert world.a.counters()["drop_rate"] > dropped


def test_a_limited_connection_is_slow_and_whole(world: SimpleNamespace) -> None:
    limit(world, world.c8, RATE)
    size = 600_000
    with connect(world.c8.path, "10.0.1.7", 80, timeout=20) as connection:
        line(connection)
        since = time.monotonic()
        assert echo(connection, bytes(size))
        took = time.monotonic() - since
    assert took >= (size - BURST) / RATE
    limit(world, world.c8, 0)
    with connect(world.c8.path, "10.0.1.7", 80, timeout=20) as connection:
        line(connection)
        dropped = world.a.counters()["drop_rate"]
        assert echo(connection, bytes(size)) and world.a.counters()["drop_rate"] == dropped
