"""Tables that are full or large: new connections work, who is active stays, and it is said."""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Iterator

import pytest
from datapath_bed import Container, ask, ask_udp, mac_of, made_bed, network

from overlace.network.host_watch import plan_full
from overlace.network.linux import bpf_syscall, unified
from overlace.network.linux.audit import explain_fill
from overlace.network.linux.figures import table_fill
from overlace.network.linux.loader import Loader
from overlace.network.linux.maps import (
    REASONS,
    TABLE_MAPS,
    Attachment,
    Row,
    config_value,
    encode,
)
from overlace.network.linux.rows import Rows
from overlace.network.vfp.tables import Backend, Delta, Frontend, LocalEndpoint, RemoteEndpoint, Tables

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]
NET = network(4097, "10.0.1.0/24")
SOURCE = LocalEndpoint(4097, "10.0.1.4", 24, mac_of("10.0.1.4"), "E")
PEER = RemoteEndpoint(4097, "10.0.1.5", mac_of("10.0.1.5"), "172.28.1.12")
VIP = Frontend(4097, "10.0.1.9", 6, 80, (Backend(4097, "10.0.1.5"),))
OTHER_VIP = Frontend(4097, "10.0.1.10", 6, 80, (Backend(4097, "10.0.1.5"),))
SIZE = 512
SIZES = {"flows": SIZE, "unified_flows": SIZE}


@pytest.fixture
def small() -> Iterator[Loader]:
    """Programs whose connection tables hold few rows."""
    yield from _filled(SIZES)


@pytest.fixture
def usual() -> Iterator[Loader]:
    yield from _filled({})


def _filled(sizes: dict[str, int]) -> Iterator[Loader]:
    made = Loader(f"full{secrets.token_hex(3)}", sizes=sizes)
    made.open()
    made.maps["config"].update(bytes(4), config_value(1, "172.28.1.11", 24, 1500, 1, 1, 4789))
    rows = Rows()
    rows.replace(
        (), [r for e in (NET, SOURCE, PEER, VIP, OTHER_VIP) for r in encode(e, {"E": Attachment(1000, 7)})]
    )
    (port,) = (r for r in encode(SOURCE, {"E": Attachment(1, 7)}) if r.map == "ports")
    rows.replace((), [Row("ports", struct.pack("I", 1), port.value)])
    changes = rows.difference({})
    for name in TABLE_MAPS:
        made.maps[name].put_many(changes.put[name])
    unified.renew(made.maps["generation"])
    yield made
    made.destroy()


def _send(loader: Loader, sport: int, flags: int, to: str = VIP.address) -> str:
    """What becomes of a TCP packet of the container to the service."""
    tcp = struct.pack("!HHIIBBHHH", sport, 80, 1, 0, 0x50, flags, 1000, 0, 0)
    addresses = socket.inet_aton("10.0.1.4") + socket.inet_aton(to)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0x4000, 64, 6, 0) + addresses + tcp
    mac = bytes.fromhex(SOURCE.mac.replace(":", ""))
    frame = b"\2\0\0\0\0\xee" + mac + b"\x08\x00" + ip
    return REASONS[bpf_syscall.run_program(loader.programs["from_container"], frame, 1)[2]]


def test_a_full_connection_table_takes_new_ones_and_keeps_the_busy(small: Loader) -> None:
    busy, idle = 20001, 20002
    assert _send(small, busy, 2) == _send(small, idle, 2) == "encapsulated"
    for n in range(8 * SIZE):
        assert _send(small, 30000 + n, 2) == "encapsulated", f"new connection {n}"
        assert _send(small, busy, 16) == "encapsulated", f"the busy one, after {n}"
        if n % 50 == 0:  # as time would do
            unified.renew(small.maps["generation"])
    assert _send(small, idle, 16) == "refused", "the oldest gave way, and its client is told"
    assert _send(small, idle, 2) == "encapsulated", "it may connect again"
    assert small.maps["flows"].count() <= SIZE
    fill = {f.name: f for f in table_fill(small.maps)}
    assert fill["flows"].is_full and fill["flows"].evicts and not fill["allowed"].is_full
    assert [n.id for n in plan_full(fill.values(), {}, 0)[0]] == ["flows", "unified_flows"]
    (mild, other) = explain_fill(fill.values())
    assert mild.mild and other.mild, "packets flow all the same"


def test_ended_connections_do_not_use_a_backends_ports_up(usual: Loader) -> None:
    """Two services over one backend: its reply names the client's port only, so each port serves one connection."""
    for port in range(32768, 60768):
        _send(usual, port, 2)
        _send(usual, port, 17)  # FIN
    for port in range(33000, 33200):
        assert _send(usual, port, 2, OTHER_VIP.address) == "encapsulated", port


def test_a_host_in_a_large_cluster() -> None:
    """100,000 remote endpoints and 10,000 services beside two real containers: all programmed, found again after a
    restart, and gone when they should be."""
    with made_bed() as bed:
        a, b = bed.host("a"), bed.host("b")
        one, two = Container(a, "one"), Container(b, "two")
        one.join(NET, "10.0.1.5")
        two.join(NET, "10.0.1.6")
        bed.serve(two.path, 80, "two")
        bed.serve(two.path, 53, "two", socket.SOCK_DGRAM)
        remotes = tuple(
            RemoteEndpoint(4097, address, mac_of(address), b.address)
            for address in (f"10.{64 + (i >> 16)}.{i >> 8 & 255}.{i & 255}" for i in range(100_000))
        )
        services = tuple(
            Frontend(
                4097, f"10.32.{i >> 8}.{i & 255}", 0, 0,
                (Backend(4097, "10.0.1.6"), Backend(4097, remotes[i].address)) if i else (Backend(4097, "10.0.1.6"),),
            )
            for i in range(10_000)
        )  # fmt: skip
        before = {f.name: f.rows for f in a.call("fill")}
        a.put(*remotes, *services)
        rows = {f.name: f.rows - before[f.name] for f in a.call("fill")}
        assert rows["endpoints"] == 110_000 and rows["frontends"] == 10_000
        last = Frontend(4097, "10.32.255.1", 0, 0, (Backend(4097, "10.0.1.6"),))
        a.put(last)
        assert ask(one.path, "10.0.1.6", 80)[0] == "two"
        for address in ("10.32.0.0", "10.32.255.1"):
            assert ask(one.path, address, 80)[0] == "two" and ask_udp(one.path, address, 53)[0] == "two"
        sent = a.counters()["encapsulated"]
        with pytest.raises(TimeoutError):
            ask(one.path, remotes[-1].address, 80, timeout=0.3)
        assert a.counters()["encapsulated"] > sent, "nobody is there, but the way is known"
        a.kill()
        a.start()
        near = RemoteEndpoint(4097, "10.0.1.6", mac_of("10.0.1.6"), b.address)
        desired = Tables([NET, *one.endpoints, near, *remotes, *services, last])
        assert a.call("reconcile", desired) == Delta()
        a.call("apply", Delta(remove=tuple(e.key for e in (*remotes, *services, last))))
        assert {f.name: f.rows for f in a.call("fill")} | {"flows": 0, "unified_flows": 0} == before | {
            "flows": 0,
            "unified_flows": 0,
        }
        assert ask(one.path, "10.0.1.6", 80)[0] == "two"
