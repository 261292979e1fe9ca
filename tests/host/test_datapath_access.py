"""Access lists on real packets: who gets in, that answers always do, and what a change does to connections."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace

import msgspec
import pytest
from datapath_bed import Container, ask, ask_udp, connect, echo, line, made_bed, network, ping

from overlace.network.vfp.access import NO_RULE
from overlace.network.vfp.tables import HOST4, AccessList, AccessRule, Backend, Frontend, LocalEndpoint

pytestmark = [pytest.mark.host, pytest.mark.timeout(120)]
NET = network(4097, "10.0.1.0/24")
VIP = "10.0.1.2"
ANYONE = AccessRule("allow")


@pytest.fixture(scope="module")
def world() -> Iterator[SimpleNamespace]:
    """db on a is guarded; web (10.0.1.6) and cron (10.0.1.7) on b, near (10.0.1.8) on a."""
    with made_bed() as bed:
        a, b = bed.host("a"), bed.host("b")
        for host in bed.hosts:
            host.put(NET)
        db, web, cron, near = (
            Container(a, "db"),
            Container(b, "web"),
            Container(b, "cron"),
            Container(a, "near"),
        )
        for box, last in ((db, 5), (web, 6), (cron, 7), (near, 8)):
            box.join(NET, f"10.0.1.{last}", outbound=True)
            bed.serve(box.path, 80, box.name)
            bed.serve(box.path, 53, box.name, socket.SOCK_DGRAM)
        bed.serve(bed.client, 9000, "outside")
        bed.serve(bed.client, 9000, "outside", socket.SOCK_DGRAM)
        bed.frontend(Frontend(4097, VIP, 0, 0, (Backend(4097, "10.0.1.5"),)))
        a.put(Frontend(0, HOST4, 6, 8080, (Backend(4097, "10.0.1.5", 80),)))
        yield SimpleNamespace(bed=bed, a=a, db=db, web=web, cron=cron, near=near)


def guard(world: SimpleNamespace, *rules: AccessRule, out: tuple[AccessRule, ...] = (ANYONE,)) -> None:
    plain = world.db.endpoints[0]
    inbound = AccessList(4097, plain.address, "IN", rules)
    outbound = AccessList(4097, plain.address, "OUT", out)
    guarded: LocalEndpoint = msgspec.structs.replace(plain, inbound=inbound.number, outbound=outbound.number)
    world.a.put(inbound, outbound, guarded)


def refused(where: Container, address: str = "10.0.1.5", port: int = 80) -> bool:
    try:
        connect(where.path, address, port, timeout=0.7).close()
    except TimeoutError:
        return True
    return False


WEB = AccessRule("allow", 6, remote=("10.0.1.6/32",), local_ports=(80, 80))


def test_only_who_is_listed_gets_in(world: SimpleNamespace) -> None:
    guard(world, WEB)
    assert ask(world.web.path, "10.0.1.5", 80)[0] == "db"
    assert ask(world.web.path, VIP, 80)[0] == "db"
    before = world.a.counters()["drop_policy"]
    assert refused(world.cron) and refused(world.cron, VIP) and refused(world.near)
    assert not ping(world.web.path, "10.0.1.5"), "TCP only"
    assert world.a.counters()["drop_policy"] >= before + 3
    assert ask(world.near.path, "10.0.1.6", 80)[0] == "web", "others are not concerned"


def test_what_the_guarded_opens_gets_its_answers(world: SimpleNamespace) -> None:
    guard(world)
    for peer, name in (("10.0.1.6", "web"), ("10.0.1.8", "near")):
        with connect(world.db.path, peer, 80) as connection:
            assert line(connection)[0] == name
            assert echo(connection, bytes(range(256)) * 4096)
        assert ask_udp(world.db.path, peer, 53)[0] == name
        assert ping(world.db.path, peer)
    assert refused(world.web)


def test_what_the_guarded_may_open_can_be_listed_too(world: SimpleNamespace) -> None:
    guard(world, WEB, out=(AccessRule("block", 0, remote=("10.0.1.7/32",)), ANYONE))
    assert refused(world.db, "10.0.1.7") and ask(world.db.path, "10.0.1.6", 80)[0] == "web"
    guard(world, WEB, out=())
    assert refused(world.db, "10.0.1.6")
    assert ask(world.web.path, "10.0.1.5", 80)[0] == "db", "answers pass"


def test_connections_and_a_change_of_policy(world: SimpleNamespace) -> None:
    guard(world, WEB)
    with connect(world.web.path, "10.0.1.5", 80) as connection:
        line(connection)
        guard(world, AccessRule("allow", 6, remote=("10.0.1.0/24",)))  # still allowed
        assert echo(connection, b"still" * 1000)
        guard(world, AccessRule("allow", 6, remote=("10.0.1.7/32",)))
        connection.settimeout(0.7)
        connection.sendall(b"no more")
        with pytest.raises(TimeoutError):
            connection.recv(100)
        guard(world, WEB)
        connection.settimeout(5)  # TCP sends again
        assert connection.recv(100) == b"no more"


def test_each_packet_counts_for_the_rule_that_lets_it_pass(world: SimpleNamespace) -> None:
    mirror = AccessRule("pass", 6, remote=("10.0.1.6/32",))
    into = (mirror, msgspec.structs.replace(WEB, tier=1), AccessRule("block", 17, tier=1))
    guard(world, *into)
    numbers = {"IN": AccessList(4097, "10.0.1.5", "IN", into).number}

    def counted() -> dict[int, tuple[int, int, int]]:
        hits = [h for h in world.a.call("hits") if h.list == numbers["IN"]]
        assert {h.endpoint_id for h in hits} <= {world.db.endpoints[0].endpoint_id}
        found: dict[int, tuple[int, int, int]] = {}
        for h in hits:
            a, b, c = found.get(h.rule, (0, 0, 0))
            found[h.rule] = (a + h.connections, b + h.packets, c + h.bytes)
        return found

    def flowing() -> int:
        flows = world.a.call("flows")
        return sum(f.packets for f in flows if "10.0.1.6" in (f.came.src, f.came.dst))

    before = flowing()
    with connect(world.web.path, "10.0.1.5", 80) as connection:
        line(connection)
        assert echo(connection, bytes(2_000_000))
        for _ in range(50):
            assert echo(connection, b"x")
        connections, packets, size = counted()[1]
        assert connections == 1 and size > 4_000_000
        assert packets - 3 <= flowing() - before <= packets + 3, (
            "the flow's own count, on the fast path as well"
        )
    assert counted()[0][0] == 1, "the rule that passes saw it too"
    assert abs(counted()[0][1] - counted()[1][1]) <= 3
    assert refused(world.cron)
    with pytest.raises(TimeoutError):
        ask_udp(world.web.path, "10.0.1.5", 53, timeout=0.3)
    found = counted()
    assert found[NO_RULE][0] >= 1 and found[2][:2] == (1, 1) and found[2][2] == 38


def test_a_client_outside(world: SimpleNamespace) -> None:
    client = SimpleNamespace(path=world.bed.client)
    guard(world, AccessRule("block", remote=("10.0.0.0/8",)), ANYONE)
    assert ask(world.bed.client, world.a.address, 8080)[:2] == ["db", world.bed.client_address]
    assert refused(world.web)
    guard(world, WEB)
    assert refused(client, world.a.address, 8080)


def test_without_lists_all_is_open_again(world: SimpleNamespace) -> None:
    guard(world)
    assert refused(world.web)
    plain = world.db.endpoints[0]
    world.a.put(plain)
    assert ask(world.cron.path, "10.0.1.5", 80)[0] == "db" and ping(world.near.path, "10.0.1.5")


def test_the_host_itself_is_judged_like_anyone(world: SimpleNamespace) -> None:
    """It has a route to containers with outbound NAT; what they open gets its answers all the same."""
    host = SimpleNamespace(path=world.a.path)
    from_host = AccessRule("allow", 6, remote=(f"{world.a.address}/32",), local_ports=(80, 80))
    assert ask(world.a.path, "10.0.1.5", 80)[:2] == ["db", world.a.address]
    guard(world)
    before = world.a.counters()["drop_policy"]
    assert refused(host) and not ping(world.a.path, "10.0.1.5", timeout=0.3)
    with pytest.raises(TimeoutError):
        ask_udp(world.a.path, "10.0.1.5", 53, timeout=0.3)
    assert world.a.counters()["drop_policy"] >= before + 3
    assert ask(world.db.path, world.bed.client_address, 9000)[0] == "outside", "through NAT"
    assert ask_udp(world.db.path, world.bed.client_address, 9000)[0] == "outside"
    assert ping(world.db.path, world.bed.client_address)
    guard(world, from_host, out=())
    with connect(world.a.path, "10.0.1.5", 80) as connection:
        assert line(connection)[0] == "db", "its answers are no connection of the container's"
        assert echo(connection, bytes(range(256)) * 4096)
        guard(world, out=())
        connection.settimeout(0.7)
        connection.sendall(b"no more")
        with pytest.raises(TimeoutError):
            connection.recv(100)
    with pytest.raises(TimeoutError):
        ask_udp(world.a.path, "10.0.1.5", 53, timeout=0.3)
    assert refused(world.db, world.bed.client_address, 9000)
    into = AccessList(4097, "10.0.1.5", "IN", (from_host,))
    counted = [h for h in world.a.call("hits") if h.list == into.number and h.rule == 0]
    assert sum(h.connections for h in counted) == 1
