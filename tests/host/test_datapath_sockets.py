"""Services at the socket level: a container's connection goes to its backend untranslated, and means the same as through
the packet level, which does what the socket level leaves alone."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from datapath_bed import (
    PREFIX,
    Container,
    ask,
    ask_udp,
    connect,
    echo,
    line,
    mac_of,
    made_bed,
)

from overlace.network.linux.netns import run_inside
from overlace.network.vfp.model import Packet
from overlace.network.vfp.simulate import takes
from overlace.network.vfp.tables import (
    AccessList,
    AccessRule,
    Backend,
    Delta,
    Frontend,
    Network,
    RemoteEndpoint,
)

pytestmark = [pytest.mark.host, pytest.mark.timeout(120)]
GATEWAY, GATEWAY6 = "10.0.1.1", "fd00:1::1"
NET = Network(4097, ("10.0.1.0/24", "fd00:1::/64"), GATEWAY, mac_of(GATEWAY), other_gateways=(GATEWAY6,))
VIP, VIP6 = "10.0.1.2", "fd00:1::2"
MEMBERS = tuple(Backend(4097, f"10.0.1.{n}", 80) for n in (5, 6, 7))
MEMBERS6 = tuple(Backend(4097, f"fd00:1::{n}", 80) for n in (5, 6, 7))
TCP = 6


@pytest.fixture(scope="module")
def world() -> Iterator[SimpleNamespace]:
    """s5, s6 on a and s7 on b serve, c8 on a and c9 on b ask; host b balances packets alone."""
    with made_bed() as bed:
        a, b = bed.host("a"), bed.host("b")
        b.kill()
        b.start(balancing="packet")
        boxes = {}
        for name, host in (("s5", a), ("s6", a), ("s7", b), ("c8", a), ("c9", b)):
            box = boxes[name] = Container(host, name)
            box.join(NET, f"10.0.1.{name[1:]}", outbound=True, six=f"fd00:1::{name[1:]}")
            for address in ("0.0.0.0", "::"):
                bed.serve(box.path, 80 if address == "0.0.0.0" else 81, name, address=address)
            bed.serve(box.path, 80, name, socket.SOCK_DGRAM)
        assert a.call("balancing").level == "socket" and b.call("balancing").level == "packet"
        yield SimpleNamespace(bed=bed, a=a, b=b, **boxes)


def serve(world: SimpleNamespace, members: tuple[Backend, ...], affinity: int = 0) -> None:
    world.bed.frontend(Frontend(4097, VIP, 0, 0, members, affinity))


def translated(world: SimpleNamespace, connection: socket.socket) -> bool:
    """Whether the packet level balances this connection of c8's."""
    port = connection.getsockname()[1]
    flows = [f for f in world.a.call("flows") if port in (f.came.sport, f.came.dport)]
    assert flows
    return any(f.came != f.went for f in flows)


def test_a_connection_is_given_its_backend_once(world: SimpleNamespace) -> None:
    world.bed.frontend(Frontend(4097, "10.0.1.3", TCP, 8080, MEMBERS))
    seen = Counter()
    for _ in range(6):
        with connect(world.c8.path, "10.0.1.3", 8080) as connection:
            seen[line(connection)[0]] += 1
            assert connection.getpeername() == ("10.0.1.3", 8080)
            assert not translated(world, connection)
            port = connection.getsockname()[1]
            named = [f.service for f in world.a.call("flows") if port in (f.came.sport, f.came.dport)]
            assert len(named) == 2 and set(named) == {"10.0.1.3:8080"}, "both directions say whose they are"
            assert echo(connection, os.urandom(100_000))
    assert seen == {"s5": 2, "s6": 2, "s7": 2}
    with connect(world.c9.path, "10.0.1.3", 8080) as connection:
        assert connection.getpeername() == ("10.0.1.3", 8080)
        port = connection.getsockname()[1]
        assert any(f.came != f.went for f in world.b.call("flows") if f.came.sport == port)


def test_both_families_and_one_in_the_others_clothes(world: SimpleNamespace) -> None:
    world.bed.frontend(
        Frontend(4097, VIP6, 0, 0, tuple(msgspec.structs.replace(m, port=81) for m in MEMBERS6)),
    )
    serve(world, MEMBERS)
    got = Counter()
    for _ in range(3):
        with connect(world.c8.path, VIP6, 8080) as six:
            got[line(six)[0]] += 1
            assert six.getpeername()[:2] == (VIP6, 8080) and not translated(world, six)
            assert six.getsockname()[0] == "fd00:1::8"
    assert got == {"s5": 1, "s6": 1, "s7": 1}
    mapped = run_inside(world.c8.path, lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM))
    with mapped:
        mapped.connect((f"::ffff:{VIP}", 80))
        assert mapped.getpeername()[0] == f"::ffff:{VIP}" and line(mapped)[0] in ("s5", "s6", "s7")
        assert not translated(world, mapped)


def test_affinity_is_one_for_both_levels(world: SimpleNamespace) -> None:
    serve(world, MEMBERS, 3600)
    (mine,) = {ask(world.c8.path, VIP, 80)[0] for _ in range(5)}
    assert ask_udp(world.c8.path, VIP, 80)[0] == mine
    others = tuple(m for m in MEMBERS if not mine.endswith(m.address[-1]))
    serve(world, others, 3600)
    (now,) = {ask(world.c8.path, VIP, 80)[0] for _ in range(5)}
    assert now != mine and ask_udp(world.c8.path, VIP, 80)[0] == now


def test_a_removed_backend_drains(world: SimpleNamespace) -> None:
    serve(world, MEMBERS[:1])
    with connect(world.c8.path, VIP, 80) as old:
        assert line(old)[0] == "s5"
        serve(world, MEMBERS[1:])
        assert {ask(world.c8.path, VIP, 80)[0] for _ in range(6)} == {"s6", "s7"}
        assert echo(old, b"still here" * 5000)
        assert old.getpeername() == (VIP, 80)


def test_a_client_that_is_a_backend_too(world: SimpleNamespace) -> None:
    """Its connection to itself is the packet level's: it sees the gateway. In turn all the same."""
    serve(world, MEMBERS)
    got = [ask(world.s5.path, VIP, 80) for _ in range(6)]
    assert Counter(g[0] for g in got) == {"s5": 2, "s6": 2, "s7": 2}
    assert {g[1] for g in got if g[0] == "s5"} == {GATEWAY} and {g[1] for g in got if g[0] != "s5"} == {
        "10.0.1.5"
    }


@pytest.mark.parametrize("members", [(), (Backend(4097, "10.0.1.99", 80),)])
def test_nobody_serves(world: SimpleNamespace, members: tuple[Backend, ...]) -> None:
    world.bed.frontend(Frontend(4097, "10.0.1.4", TCP, 80, members))
    for port in (80, 81):  # without a backend that is there; a port it has not
        with pytest.raises(ConnectionRefusedError):
            connect(world.c8.path, "10.0.1.4", port)


def test_what_is_left_to_the_packet_level(world: SimpleNamespace) -> None:
    serve(world, MEMBERS)
    with connect(world.c8.path, VIP, 80, source=("10.0.1.8", 45001)) as bound:
        assert translated(world, bound), "bound to a port"
    datagrams = run_inside(world.c8.path, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with datagrams:
        datagrams.settimeout(3)
        datagrams.connect((VIP, 80))
        datagrams.send(b"x")
        assert datagrams.recv(100) and datagrams.getpeername() == (VIP, 80)
        assert translated(world, datagrams), "UDP: it may outlive its backend"


def guard(world: SimpleNamespace, *out: AccessRule) -> None:
    plain = world.c8.endpoints[0]
    inbound = AccessList(4097, plain.address, "IN", (AccessRule("block"),))
    outbound = AccessList(4097, plain.address, "OUT", out)
    guarded = msgspec.structs.replace(
        plain, inbound=inbound.number, outbound=outbound.number, lets_out=outbound.allows_all
    )
    world.a.put(inbound, outbound, guarded)


def test_rules_are_asked_about_the_service(world: SimpleNamespace) -> None:
    """As at the packet level: an endpoint that may go to the service may, whatever its rules say of the backends."""
    serve(world, MEMBERS[:1])
    service = AccessRule("allow", TCP, remote=(f"{VIP}/32",), remote_ports=(8000, 8000))
    try:
        with connect(world.c8.path, VIP, 8000) as before:
            assert line(before)[0] == "s5"
            guard(world, service)
            assert echo(before, b"goes on"), "a connection that its new rules allow"
        with connect(world.c8.path, VIP, 8000) as allowed:
            assert line(allowed)[0] == "s5" and not translated(world, allowed)
            assert echo(allowed, os.urandom(50_000))
        (hits,) = [
            h
            for h in world.a.call("hits")
            if h.list == AccessList(4097, "10.0.1.8", "OUT", (service,)).number
            and h.rule == 0
            and not h.is_late
        ]
        assert hits.connections == 2, "both, the one from before as well"
        guard(world, AccessRule("block", TCP, remote=(f"{VIP}/32",)), AccessRule("allow"))
        with pytest.raises(TimeoutError):
            connect(world.c8.path, VIP, 8000, timeout=0.7)
        assert ask(world.c8.path, "10.0.1.5", 80)[0] == "s5", "by its own name"
    finally:
        world.a.put(world.c8.endpoints[0])


def test_a_connection_ends_with_its_backend(world: SimpleNamespace) -> None:
    """The packet level would answer for a backend that is gone; so it does here."""
    serve(world, MEMBERS[2:])
    with connect(world.c8.path, VIP, 80) as connection:
        assert line(connection)[0] == "s7"
        world.a.call("apply", Delta(remove=(("endpoint", 4097, "10.0.1.7"),)))
        try:
            connection.sendall(b"are you there")
            with pytest.raises(ConnectionResetError):
                connection.recv(10)
        finally:
            world.a.put(RemoteEndpoint(4097, "10.0.1.7", mac_of("10.0.1.7"), world.b.address))


def until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("gone", [False, True])
def test_a_connection_not_begun_goes_to_another_backend(
    world: SimpleNamespace, gone: bool, guarded: bool
) -> None:
    """A backend whose host is dead does not answer; when it is taken out, the next attempt of the client's kernel reaches
    another one, under the dead one's name. `guarded`: nobody may connect to the client, who may connect to all."""
    dead = RemoteEndpoint(4097, "10.0.1.40", mac_of("10.0.1.40"), PREFIX + "99")
    world.a.put(dead)
    serve(world, (Backend(4097, "10.0.1.40", 80),))
    if guarded:
        guard(world, AccessRule("allow"))
    got: list[socket.socket] = []
    asking = threading.Thread(target=lambda: got.append(connect(world.c8.path, VIP, 80, timeout=15)))
    asking.start()
    until(
        lambda: any(f.service and f.came.dst == "10.0.1.40" for f in world.a.call("flows")), "no first packet"
    )
    serve(world, MEMBERS[1:])
    if gone:
        world.a.call("apply", Delta(remove=(dead.key,)))
    asking.join(20)
    (connection,) = got
    with connection:
        assert line(connection)[0] in ("s6", "s7")
        assert connection.getpeername() == (VIP, 80)
        assert echo(connection, os.urandom(200_000))
    world.a.put(world.c8.endpoints[0])
    if not gone:
        world.a.call("apply", Delta(remove=(dead.key,)))


def retransmitted(connection: socket.socket) -> int:
    """tcpi_total_retrans of struct tcp_info, <linux/tcp.h>."""
    return int(
        struct.unpack_from("I", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 100)[0]
    )


@pytest.mark.parametrize("client", ["c8", "c9"])
def test_two_services_share_a_backend_under_churn(world: SimpleNamespace, client: str) -> None:
    """With more connections than the client has ports, of which the backend still remembers those it closed (TIME_WAIT):
    none is refused and no first packet lost (PAWS, RFC 7323 section 5), by neither level."""
    asking: Container = getattr(world, client)
    one = (Backend(4097, "10.0.1.6", 8001),)
    world.bed.frontend(Frontend(4097, "10.0.1.13", 0, 0, one), Frontend(4097, "10.0.1.14", 0, 0, one))

    def limit() -> str:
        path = Path("/proc/sys/net/ipv4/ip_local_port_range")
        was = path.read_text()
        path.write_text("40000 40199")
        return was

    def serve_once_each() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.sendall(b"bye\n")
            connection.close()

    was = run_inside(asking.path, limit)
    listener = run_inside(world.s6.path, lambda: socket.create_server(("0.0.0.0", 8001), backlog=128))
    serving = threading.Thread(target=serve_once_each)
    serving.start()
    try:
        for i in range(800):
            with connect(asking.path, ("10.0.1.13", "10.0.1.14")[i % 2], 80) as connection:
                assert line(connection) == ["bye"] and connection.recv(1) == b""  # it has closed first
                assert not retransmitted(connection), i
    finally:
        run_inside(asking.path, lambda: Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(was))
        listener.shutdown(socket.SHUT_RDWR)
        serving.join()
        listener.close()


def test_a_port_used_through_the_packet_level_is_free_again(world: SimpleNamespace) -> None:
    """What translated the answers of an ended connection does not touch those of a later one that names the backend."""
    serve(world, MEMBERS[:1])
    source = ("10.0.1.8", 45002)
    with connect(world.c8.path, VIP, 80, source=source) as first:
        assert line(first)[0] == "s5" and translated(world, first)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with connect(world.c8.path, "10.0.1.5", 80, source=source) as second:
        assert line(second)[0] == "s5"
        assert echo(second, b"hello")


def test_generated_services_mean_the_same_at_both_levels(world: SimpleNamespace) -> None:
    """Real connections from host a, by sockets, and from host b, by packets: who answers, how often and who refuses
    are the same, and what the model says."""
    pick = random.Random(7)
    known = {m.address: f"s{m.address[-1]}" for m in MEMBERS}
    for n in range(12):
        backends = tuple(
            Backend(4097, pick.choice((*known, "10.0.1.99")), pick.choice((0, 80, 80)))
            for _ in range(pick.randrange(5))
        )
        backends = tuple(dict.fromkeys(backends))
        protocol, port = pick.choice(((0, 0), (TCP, 0), (TCP, 80), (0, 80), (17, 80), (TCP, 8080)))
        vip = f"10.0.1.{100 + n}"
        world.bed.frontend(Frontend(4097, vip, protocol, port, backends))
        for asked in (80, 8080):
            fits = protocol in (0, TCP) and port in (0, asked)
            packet = Packet("10.0.1.8", vip, TCP, 40000, asked)
            there = [b for b in backends if fits and b.address in known and takes(b, packet)]
            answers = {}
            for box in (world.c8, world.c9):
                got: Counter[str] = Counter()
                for _ in range(2 * max(1, len(backends))):
                    try:
                        got[ask(box.path, vip, asked)[0]] += 1
                    except ConnectionRefusedError:
                        got["refused"] += 1
                answers[box.name] = got
            told = (vip, protocol, port, asked, backends)
            expected = {known[b.address] if (b.port or asked) == 80 else "refused" for b in there} or {
                "refused"
            }
            assert set(answers["c8"]) == expected, told
            assert answers["c8"] == answers["c9"], told
