"""SCTP packets, made by hand as this kernel may know no SCTP: to a VIP, to a published port and back, with the checksum
the sender gave them, which covers ports but no addresses (RFC 9260 section 3.1)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from datapath_bed import Container, made_bed, network

from overlace.network.linux.netns import run_inside
from overlace.network.vfp.tables import HOST4, AccessList, AccessRule, Backend, Frontend

pytestmark = [pytest.mark.host, pytest.mark.timeout(120)]
NET, INGRESS = network(4097, "10.0.1.0/24"), network(4096, "10.0.0.0/24", ingress=True)
VIP, SCTP = "10.0.1.2", 132


def raw(where: Path) -> socket.socket:
    def body() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_RAW, SCTP)
        made.settimeout(2)
        return made

    return run_inside(where, body)


def packet(sport: int, dport: int, tag: int) -> bytes:
    """A common header and an INIT chunk; the checksum is only a mark here: nothing on the way may touch it."""
    return struct.pack("!HHIIBBH", sport, dport, tag, 0xC0FFEE00 | (tag & 0xFF), 1, 0, 20) + bytes(16)


def got(box: socket.socket) -> tuple[str, str, bytes]:
    """(source, destination, SCTP packet)."""
    data = box.recv(2000)
    return socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20]), data[20:]


def quiet(box: socket.socket) -> bool:
    box.settimeout(0.4)
    try:
        box.recv(2000)
    except TimeoutError:
        return True
    finally:
        box.settimeout(2)
    return False


@pytest.fixture(scope="module")
def world() -> Iterator[SimpleNamespace]:
    with made_bed() as bed:
        a, b = bed.host("a"), bed.host("b")
        client, near, far = Container(a, "client"), Container(a, "near"), Container(b, "far")
        for box, last in ((client, 5), (near, 6), (far, 7)):
            box.join(NET, f"10.0.1.{last}", outbound=True)
        far.join(INGRESS, "10.0.0.7", default=False)
        for host in bed.hosts:
            host.put(INGRESS)
        yield SimpleNamespace(bed=bed, a=a, b=b, client=client, near=near, far=far)


@pytest.mark.parametrize("where", ["near", "far"])
def test_to_a_vip_and_back(world: SimpleNamespace, where: str) -> None:
    backend = getattr(world, where)
    world.bed.frontend(Frontend(4097, VIP, 0, 0, (Backend(4097, backend.address),)))
    with raw(world.client.path) as client, raw(backend.path) as server:
        sport = 5000 if where == "near" else 5001
        client.sendto(packet(sport, 3868, 7), (VIP, 0))
        assert got(server) == ("10.0.1.5", backend.address, packet(sport, 3868, 7))
        server.sendto(packet(3868, sport, 8), ("10.0.1.5", 0))
        assert got(client) == (VIP, "10.0.1.5", packet(3868, sport, 8))


def test_a_published_port_through_another_host(world: SimpleNamespace) -> None:
    world.a.put(Frontend(0, HOST4, SCTP, 3868, (Backend(4096, "10.0.0.7", 3868),)))
    with raw(world.bed.client) as client, raw(world.far.path) as server:
        client.sendto(packet(6000, 3868, 1), (world.a.address, 0))
        assert got(server) == (world.bed.client_address, "10.0.0.7", packet(6000, 3868, 1))
        server.sendto(packet(3868, 6000, 2), (world.bed.client_address, 0))
        assert got(client) == (world.a.address, world.bed.client_address, packet(3868, 6000, 2))


def test_ports_are_never_translated(world: SimpleNamespace) -> None:
    world.a.put(Frontend(0, HOST4, SCTP, 3900, (Backend(4096, "10.0.0.7", 3868),)))
    before = world.a.counters()["refused"]
    with raw(world.bed.client) as client, raw(world.far.path) as server:
        client.sendto(packet(6000, 3900, 1), (world.a.address, 0))
        assert quiet(server)
    assert world.a.counters()["refused"] == before + 1


def test_an_access_list_sees_the_ports(world: SimpleNamespace) -> None:
    plain = world.near.endpoints[0]
    into = AccessList(4097, plain.address, "IN", (AccessRule("allow", SCTP, local_ports=(3868, 3868)),))
    out = AccessList(4097, plain.address, "OUT")
    world.a.put(into, out, msgspec.structs.replace(plain, inbound=into.number, outbound=out.number))
    try:
        with raw(world.client.path) as client, raw(world.near.path) as server:
            client.sendto(packet(7000, 3868, 3), (plain.address, 0))
            assert got(server)[2] == packet(7000, 3868, 3)
            server.sendto(packet(3868, 7000, 4), ("10.0.1.5", 0))
            assert got(client)[2] == packet(3868, 7000, 4), "answers pass"
            client.sendto(packet(7000, 3869, 5), (plain.address, 0))
            assert quiet(server)
    finally:
        world.a.put(plain)
