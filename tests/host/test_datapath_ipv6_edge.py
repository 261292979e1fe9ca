"""IPv6 where the overlay ends, with real packets: published ports at hosts' IPv6 addresses, and containers' way out."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import msgspec
import pytest
from datapath_bed import Container, Host, ask, ask_udp, connect, echo, line, mac_of, made_bed, ping, run

from overlace.network.vfp.tables import HOST6, AccessList, AccessRule, Backend, Frontend, Network

pytestmark = [pytest.mark.host, pytest.mark.timeout(120)]
INGRESS = Network(
    4096,
    ("10.0.0.0/24", "fd00::/64"),
    "10.0.0.1",
    mac_of("10.0.0.1"),
    ingress=True,
    other_gateways=("fd00::1",),
)
NET = Network(
    4097, ("10.0.1.0/24", "fd00:1::/64"), "10.0.1.1", mac_of("10.0.1.1"), other_gateways=("fd00:1::1",)
)
A, B, CLIENT = "2001:db8:77::11", "2001:db8:77::12", "2001:db8:77::200"
WEB1, WEB2, OUT, CLOSED = "fd00::5", "fd00::6", "fd00:1::7", "fd00:1::8"
OUT_EXCEPTIONS = ("2001:db8:88::/48", "fd00::/8")
MEGABYTES = os.urandom(3 << 20)


def give_address(host: Host, address: str) -> None:
    run("ip", "-n", host.ns, "addr", "add", f"{address}/64", "dev", "eth0", "nodad")
    host.call("look_at_underlay")


@pytest.fixture(scope="module")
def world() -> Iterator[SimpleNamespace]:
    with made_bed() as bed:
        a, b = bed.host("a"), bed.host("b")
        give_address(a, A)
        give_address(b, B)
        run("ip", "-n", bed.client.name, "addr", "add", f"{CLIENT}/64", "dev", "eth0", "nodad")
        web1, web2, out, closed = (
            Container(a, "web1"), Container(b, "web2"), Container(a, "out"), Container(a, "closed"),
        )  # fmt: skip
        web1.join(INGRESS, "10.0.0.5", six=WEB1)
        web2.join(INGRESS, "10.0.0.6", six=WEB2)
        out.join(NET, "10.0.1.7", six=OUT, outbound=True, exceptions6=OUT_EXCEPTIONS)
        closed.join(NET, "10.0.1.8", six=CLOSED)
        for where, name in ((web1, "web1"), (web2, "web2"), (out, "out"), (bed, "client")):
            path = bed.client if where is bed else where.path
            bed.serve(path, 80, name, address="::")
            bed.serve(path, 53, name, socket.SOCK_DGRAM, address="::")
        both = (Backend(4096, WEB1, 80), Backend(4096, WEB2, 80))
        bed.frontend(
            Frontend(0, HOST6, 6, 8080, both),
            Frontend(0, HOST6, 6, 8081, both[:1]),
            Frontend(0, HOST6, 6, 8082, both[1:]),
            Frontend(0, HOST6, 17, 5353, (Backend(4096, WEB1, 53), Backend(4096, WEB2, 53))),
            Frontend(0, HOST6, 6, 8083),
        )
        yield SimpleNamespace(bed=bed, a=a, b=b, web1=web1, web2=web2, out=out, closed=closed)


@pytest.mark.parametrize("entry", [A, B])
def test_any_host_answers_and_the_container_sees_the_client(world: SimpleNamespace, entry: str) -> None:
    got = [ask(world.bed.client, entry, 8080) for _ in range(6)]
    assert Counter(name for name, _, _ in got) == {"web1": 3, "web2": 3}
    assert {address for _, address, _ in got} == {CLIENT}
    got = [ask_udp(world.bed.client, entry, 5353) for _ in range(6)]
    assert Counter(name for name, *_ in got) == {"web1": 3, "web2": 3}
    assert {address for _, address, *_ in got} == {CLIENT}
    for _ in range(3):  # the first may be too big for the tunnel: the client is told what fits
        with contextlib.suppress(OSError):
            assert ask_udp(world.bed.client, entry, 5353, size=4000)[3] == "4000", "fragments"
            break
    else:
        raise AssertionError("fragments do not get through")


@pytest.mark.parametrize("entry", [A, B])
@pytest.mark.parametrize("port", [8081, 8082])
def test_large_transfers(world: SimpleNamespace, entry: str, port: int) -> None:
    with connect(world.bed.client, entry, port) as connection:
        line(connection)
        assert echo(connection, MEGABYTES)


def test_one_client_port_through_two_hosts(world: SimpleNamespace) -> None:
    """The container could not tell the two connections apart."""
    with (
        connect(world.bed.client, A, 8081, source=(CLIENT, 40123)) as one,
        connect(world.bed.client, B, 8081, source=(CLIENT, 40123)) as two,
    ):
        ports = {line(c)[2] for c in (one, two)}
        assert len(ports) == 2 and "40123" in ports
        assert echo(one, b"one" * 1000) and echo(two, b"two" * 1000)


def test_the_host_itself_and_its_containers(world: SimpleNamespace) -> None:
    for address, seen in (("::1", A), (A, A), (B, A)):
        got = [ask(world.a.path, address, 8080) for _ in range(4)]
        assert {name for name, _, _ in got} == {"web1", "web2"} and {who for _, who, _ in got} == {seen}, (
            address
        )
    assert {ask_udp(world.a.path, "::1", 5353)[0] for _ in range(4)} == {"web1", "web2"}
    got = [ask(world.out.path, A, 8080) for _ in range(4)]
    assert {name for name, _, _ in got} == {"web1", "web2"} and {who for _, who, _ in got} == {A}
    got = [ask(world.out.path, B, 8080) for _ in range(4)]
    assert {name for name, _, _ in got} == {"web1", "web2"} and {who for _, who, _ in got} == {A}


def test_nobody_serves_is_refused_and_other_ports_are_the_hosts(world: SimpleNamespace) -> None:
    for port in (8083, 9999):
        with pytest.raises(ConnectionRefusedError):
            ask(world.bed.client, A, port)
    world.bed.serve(world.a.path, 7070, "host", address="::")
    assert ask(world.bed.client, A, 7070)[0] == "host"
    assert ping(world.bed.client, A)


def test_a_port_of_one_address_alone(world: SimpleNamespace) -> None:
    world.a.put(
        Frontend(0, "::1", 6, 8090, (Backend(4096, WEB1, 80),)),
        Frontend(0, A, 6, 8091, (Backend(4096, WEB1, 80),)),
    )
    assert ask(world.a.path, "::1", 8090)[0] == "web1"
    with pytest.raises(ConnectionRefusedError):
        ask(world.bed.client, A, 8090)
    assert ask(world.bed.client, A, 8091)[0] == "web1"
    with pytest.raises(ConnectionRefusedError):
        ask(world.a.path, "::1", 8091)


def test_containers_reach_hosts_outside_by_the_hosts_address(world: SimpleNamespace) -> None:
    assert ask(world.out.path, CLIENT, 80)[:2] == ["client", A]
    assert ask_udp(world.out.path, CLIENT, 53)[:2] == ["client", A]
    assert ping(world.out.path, CLIENT) and any(ping(world.out.path, CLIENT, size=4000) for _ in range(3))
    with connect(world.out.path, CLIENT, 80) as connection:
        line(connection)
        assert echo(connection, MEGABYTES)


@pytest.mark.parametrize("address", ["2001:db8:88::1", "fd99::1"])
def test_what_nat_excepts_has_no_route_at_once(world: SimpleNamespace, address: str) -> None:
    with pytest.raises(OSError) as e:
        connect(world.out.path, address, 80)
    assert e.value.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)


def test_without_nat_there_is_no_way_out(world: SimpleNamespace) -> None:
    for address in (CLIENT, A):
        with pytest.raises(OSError) as e:
            connect(world.closed.path, address, 80)
        assert e.value.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)


def test_the_host_speaks_with_its_containers(world: SimpleNamespace) -> None:
    assert ask(world.a.path, OUT, 80)[:2] == ["out", A]
    assert ping(world.a.path, OUT)


def test_nobody_outside_comes_in_by_a_containers_address(world: SimpleNamespace) -> None:
    run("ip", "-n", world.bed.client.name, "route", "add", "fd00:1::/64", "via", A)
    with pytest.raises(OSError):
        connect(world.bed.client, OUT, 80, timeout=0.5)
    assert not ping(world.bed.client, OUT, timeout=0.5)


def test_a_host_without_address_has_no_way_out_and_follows_when_it_gets_one(world: SimpleNamespace) -> None:
    run("ip", "-n", world.a.ns, "addr", "del", f"{A}/64", "dev", "eth0")
    world.a.call("look_at_underlay")
    try:
        began = time.monotonic()
        with pytest.raises(OSError) as e:
            connect(world.out.path, CLIENT, 80, timeout=10)
        assert e.value.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH) and time.monotonic() - began < 5
        with pytest.raises(ConnectionRefusedError):
            ask(world.a.path, "::1", 8080)
    finally:
        give_address(world.a, A)
    assert ask(world.out.path, CLIENT, 80)[:2] == ["client", A]
    assert ask(world.bed.client, A, 8081)[0] == "web1"


def test_the_host_itself_is_judged_like_anyone(world: SimpleNamespace) -> None:
    """It has a route to containers with outbound NAT; what they open gets its answers all the same."""
    four = world.out.endpoints[0]
    plain = msgspec.structs.replace(four, address=OUT, prefix=64, nat_exceptions=OUT_EXCEPTIONS)
    assert ask(world.a.path, OUT, 80)[0] == "out"

    def guard(into: tuple[AccessRule, ...], out: tuple[AccessRule, ...]) -> None:
        lists = AccessList(4097, OUT, "IN", into), AccessList(4097, OUT, "OUT", out)
        numbers = {"inbound": lists[0].number, "outbound": lists[1].number}
        world.a.put(*lists, msgspec.structs.replace(plain, **numbers))

    try:
        guard((), (AccessRule("allow"),))
        with pytest.raises(TimeoutError):
            connect(world.a.path, OUT, 80, timeout=0.5)
        assert not ping(world.a.path, OUT, timeout=0.3)
        assert ask(world.out.path, CLIENT, 80)[0] == "client" and ping(world.out.path, CLIENT)
        guard((AccessRule("allow", remote=(f"{A}/128",)),), ())
        assert ask(world.a.path, OUT, 80)[0] == "out" and ping(world.a.path, OUT)
        with pytest.raises(TimeoutError):
            connect(world.out.path, CLIENT, 80, timeout=0.5)
    finally:
        world.a.put(plain)
