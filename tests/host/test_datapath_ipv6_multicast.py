"""Multicast of IPv6 on real packets, where the network carries it: everybody else gets one copy, within the rate that it
shares with IPv4; what is the link's own stays on it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from datapath_bed import Container, ask_udp, mac_of, made_bed, ping
from test_datapath_multicast import taken

from overlace.network.linux.netns import run_inside
from overlace.network.vfp.tables import Flood, Network

pytestmark = [pytest.mark.host, pytest.mark.timeout(120)]
NET = Network(
    4097,
    ("10.0.1.0/24", "fd00:1::/64"),
    "10.0.1.1",
    mac_of("10.0.1.1"),
    flood=True,
    other_gateways=("fd00:1::1",),
)
GROUP, ON_LINK, PORT = "ff05::1:7", "ff02::1:7", 5353
SIX = {"a1": "fd00:1::5", "a2": "fd00:1::6", "b1": "fd00:1::7"}


def index(name: str = "eth0") -> bytes:
    return struct.pack("I", socket.if_nametoindex(name))


def inbox(where: Container, *groups: str) -> socket.socket:
    def body() -> socket.socket:
        made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        made.bind(("::", PORT))
        for group in groups or (GROUP, ON_LINK):
            mine = socket.inet_pton(socket.AF_INET6, group) + index()
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, mine)
        return made

    return run_inside(where.path, body)


def send(where: Container, to: str, data: bytes, times: int = 1, source: str = "") -> None:
    def body() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as made:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index())
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
            if source:
                made.bind((source, 0))
            for _ in range(times):
                made.sendto(data, (to, PORT))

    run_inside(where.path, body)


@pytest.fixture(scope="module")
def world() -> Iterator[SimpleNamespace]:
    with made_bed() as bed:
        a, b = bed.host("a"), bed.host("b")
        boxes = {"a1": Container(a, "a1"), "a2": Container(a, "a2"), "b1": Container(b, "b1")}
        for name, box in boxes.items():
            box.join(NET, f"10.0.1.{SIX[name][-1]}", six=SIX[name])
            bed.serve(box.path, 53, name, socket.SOCK_DGRAM, address="::")
        yield SimpleNamespace(bed=bed, a=a, b=b, **boxes)


def carry(world: SimpleNamespace, rate: int = 100_000) -> None:
    for host, here, there in ((world.a, ("a1", "a2"), world.b), (world.b, ("b1",), world.a)):
        four = tuple(f"10.0.1.{SIX[n][-1]}" for n in here)
        six = tuple(SIX[n] for n in here)
        host.put(Flood(4097, rate, four, (there.address,), ("10.0.1.255",), six, (there.address,)))


@pytest.mark.parametrize(("to", "from_own"), [(GROUP, False), (ON_LINK, True)])
def test_everybody_else_gets_one_copy(world: SimpleNamespace, to: str, from_own: bool) -> None:
    carry(world)
    with ExitStack() as stack:
        boxes = {n: stack.enter_context(inbox(getattr(world, n))) for n in SIX}
        for sender in ("a1", "b1"):
            data = f"{sender} to {to}".encode()
            send(getattr(world, sender), to, data, source=SIX[sender] if from_own else "")
            for name, box in boxes.items():
                wanted = [] if name == sender else [data]
                assert taken(box, 2.0 if wanted else 0.3) == wanted, (sender, name)


def test_the_links_own_stays_on_it(world: SimpleNamespace) -> None:
    """What has a link-local source, neighbour discovery, listeners' reports; and neighbours are answered as before."""
    carry(world)
    before = world.a.counters()["replicated"]
    with inbox(world.a2) as near, inbox(world.b1) as far:
        send(world.a1, ON_LINK, b"from the link")
        assert taken(near, 0.4) == [] and taken(far, 0.1) == []
    assert world.a.counters()["replicated"] == before
    assert ping(world.a1.path, SIX["b1"]) and ask_udp(world.a1.path, SIX["a2"], 53)[0] == "a2"


def test_the_rate_is_one_for_both_families(world: SimpleNamespace) -> None:
    carry(world, 50)
    before = world.a.counters()
    with inbox(world.b1) as there:
        send(world.a1, GROUP, b"much", 300)
        got = len(taken(there))
    after = world.a.counters()
    assert 10 <= got <= 60
    assert after["drop_flood"] - before["drop_flood"] >= 200
