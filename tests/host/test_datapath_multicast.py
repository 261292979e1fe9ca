"""Broadcast and multicast on real packets: dropped unless the network carries them, then copied to everybody else on it
once, here and on other hosts, within the rate and the receivers' access lists."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from datapath_bed import Container, made_bed, network, run
from datapath_streams import Traffic, flood

from overlace.network.linux.netns import run_inside
from overlace.network.vfp.tables import AccessList, AccessRule, Flood

pytestmark = [pytest.mark.host, pytest.mark.timeout(120)]
NET, OTHER = network(4097, "10.0.1.0/24", flood=True), network(4098, "10.0.2.0/24")
GROUP = "239.1.2.3"
PORT = 5353


def inbox(where: Container) -> socket.socket:
    """Takes what comes to the port, by group, broadcast or address."""

    def body() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("0.0.0.0", PORT))
        mine = socket.inet_aton(GROUP) + socket.inet_aton(where.address)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, mine)
        return made

    return run_inside(where.path, body)


def send(where: Container, to: str, data: bytes, times: int = 1) -> None:
    def body() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(where.address))
            for _ in range(times):
                made.sendto(data, (to, PORT))

    run_inside(where.path, body)


def taken(box: socket.socket, wait: float = 2.0) -> list[bytes]:
    """The first datagram to come and all that follow at once."""
    found = []
    box.settimeout(wait)
    try:
        while True:
            found.append(box.recv(2000))
            box.settimeout(0.15)
    except TimeoutError:
        return found


@pytest.fixture(scope="module")
def world() -> Iterator[SimpleNamespace]:
    """a1, a2 and b1 on one network, c on another; host d holds nobody of it."""
    with made_bed() as bed:
        a, b, d = bed.host("a"), bed.host("b"), bed.host("d")
        a1, a2, b1, c = Container(a, "a1"), Container(a, "a2"), Container(b, "b1"), Container(b, "c")
        for box, last in ((a1, 5), (a2, 6), (b1, 7)):
            box.join(NET, f"10.0.1.{last}")
        c.join(OTHER, "10.0.2.9")
        for box in (a1, a2, b1, c):
            run_inside(box.path, lambda: run("ip", "route", "replace", "default", "dev", "eth0"))
        yield SimpleNamespace(bed=bed, a=a, b=b, d=d, a1=a1, a2=a2, b1=b1, c=c)


def carry(world: SimpleNamespace, rate: int = 100_000) -> None:
    for host, here, there in (
        (world.a, ("10.0.1.5", "10.0.1.6"), (world.b.address,)),
        (world.b, ("10.0.1.7",), (world.a.address,)),
    ):
        host.put(Flood(4097, rate, here, there, ("10.0.1.255",)))


@pytest.mark.parametrize("to", [GROUP, "255.255.255.255", "10.0.1.255"])
def test_everybody_else_gets_one_copy(world: SimpleNamespace, to: str) -> None:
    carry(world)
    with ExitStack() as stack:
        boxes = {n: stack.enter_context(inbox(getattr(world, n))) for n in ("a1", "a2", "b1", "c")}
        for sender in ("a1", "b1"):
            data = f"{sender} to {to}".encode()
            send(getattr(world, sender), to, data)
            for name, box in boxes.items():
                wanted = [data] if name not in (sender, "c") else []
                own = name == sender  # a sender that listens hears itself, without the network
                assert taken(box, 2.0 if wanted else 0.3) == (wanted or ([data] if own else [])), (
                    sender,
                    name,
                )


def test_a_network_that_does_not_carry_it_drops_it(world: SimpleNamespace) -> None:
    carry(world)
    before = world.b.counters()
    with inbox(world.b1) as there:
        send(world.c, GROUP, b"nobody")
        assert taken(there, 0.3) == []
    after = world.b.counters()
    assert after["drop_unsupported"] > before["drop_unsupported"]
    assert after["replicated"] == before["replicated"]


def test_a_receivers_access_list_decides(world: SimpleNamespace) -> None:
    carry(world)
    plain = world.a2.endpoints[0]
    into = AccessList(
        4097, plain.address, "IN", (AccessRule("block", remote=("10.0.1.5/32",)), AccessRule("allow"))
    )
    out = AccessList(4097, plain.address, "OUT", (AccessRule("allow"),))
    world.a.put(into, out, msgspec.structs.replace(plain, inbound=into.number, outbound=out.number))
    try:
        with inbox(world.a2) as near, inbox(world.b1) as far:
            send(world.a1, GROUP, b"x")
            assert taken(far) == [b"x"] and taken(near, 0.3) == []
            send(world.b1, GROUP, b"y")
            assert b"y" in taken(near)
    finally:
        world.a.put(plain)


def test_igmp_is_ignored_and_a_stranger_cannot_flood(world: SimpleNamespace) -> None:
    carry(world)
    before = world.b.counters()["drop_wrong_provider"]
    inner = struct.pack("!HHHH", PORT, PORT, 12, 0) + b"spoo"
    head = struct.pack("!BBHHHBBH", 0x45, 0, 32, 0, 0, 1, 17, 0)
    packet = head + socket.inet_aton("10.0.1.5") + socket.inet_aton(GROUP) + inner
    frame = b"\x01\x00\x5e\x01\x02\x03\x02\x42\x0a\x00\x01\x05\x08\x00" + packet
    vxlan = struct.pack("!BxxxI", 8, 4097 << 8) + frame

    def body() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.sendto(vxlan, (world.b.address, 4789))

    with inbox(world.b1) as there:
        run_inside(world.bed.client, body)
        assert taken(there, 0.5) == []
    assert world.b.counters()["drop_wrong_provider"] == before + 1


def sender(where: Path, to: str, port: int, by: str = "") -> socket.socket:
    """A connected socket; `by`: the interface's address, for groups."""

    def body() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        if by:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(by))
        made.connect((to, port))
        return made

    return run_inside(where, body)


MANY = 100_000


def test_a_flood_is_dropped_but_for_its_rate_and_breaks_no_connection(world: SimpleNamespace) -> None:
    carry(world, 50)
    world.bed.serve(world.b1.path, 80, "b1")
    flows = [Traffic(world.a1.path, "10.0.1.7", 80), Traffic(world.a2.path, "10.0.1.7", 80)]
    before = world.a.counters()
    with inbox(world.b1) as there, sender(world.a1.path, GROUP, PORT, world.a1.address) as many:
        flood(many, b"much", MANY)
        got = len(taken(there))
    after = world.a.counters()
    dropped, copied = (after[n] - before[n] for n in ("drop_flood", "replicated"))
    own = dropped + copied - MANY  # group reports of the containers' kernels come by now and then
    assert 0 <= own < 10 and 10 <= copied < MANY / 100, "what the rate allows"
    assert got == copied
    for flow in flows:
        flow.finish()
        assert flow.count and not flow.broken


def test_a_strangers_flood_breaks_no_connection(world: SimpleNamespace) -> None:
    """VXLAN from nobody's host, as fast as it can be sent."""
    world.bed.serve(world.b1.path, 81, "b1")
    flow = Traffic(world.a1.path, "10.0.1.7", 81)
    inner = bytes(12) + b"\x08\x00" + _ip("10.0.1.5", "10.0.1.7")
    before = world.b.counters()["drop_wrong_provider"]
    with sender(world.bed.client, world.b.address, 4789) as many:
        flood(many, struct.pack("!BxxxI", 8, 4097 << 8) + inner, MANY)
    flow.finish()
    assert world.b.counters()["drop_wrong_provider"] - before > MANY / 2, "most of it got there"
    assert flow.count and not flow.broken


def _ip(source: str, target: str) -> bytes:
    body = struct.pack("!HHHH", 5000, PORT, 12, 0) + b"much"
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 17, 0)
    return head + socket.inet_aton(source) + socket.inet_aton(target) + body
