"""Clients outside that use one source port through several hosts: to the container behind them the connections must not
look the same, and no answer may go to another one's port."""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Iterator

import pytest
from datapath_bed import PREFIX, Container, ask, connect, echo, line, mac_of, made_bed, network

from overlace.network.linux import bpf_syscall, unified
from overlace.network.linux.loader import Loader
from overlace.network.linux.maps import (
    REASONS,
    TABLE_MAPS,
    Attachment,
    config_value,
    encode,
)
from overlace.network.linux.rows import Rows
from overlace.network.vfp.tables import HOST4, Backend, Frontend, LocalEndpoint, RemoteEndpoint

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]
TCP = 6
INGRESS = network(4096, "10.0.0.0/24", ingress=True)
HERE, ONE, OTHER = PREFIX + "11", PREFIX + "12", PREFIX + "13"
WEB = LocalEndpoint(4096, "10.0.0.5", 24, mac_of("10.0.0.5"), "E")
CLIENT = PREFIX + "200"
SYN, ACK, FIN, RST = 2, 16, 17, 4
CLOSED = 1
_FLOW = struct.Struct("=4s4s2s2sIII4sIQBBB5x")  # struct flow of types.h
_SEEN, _STATE, _KIND, VIA = 8, 11, 10, 3


def test_a_port_that_stands_for_another_connection_is_given_to_nobody_else() -> None:
    """The second connection of one port gets another towards the container. When a client then uses that one itself,
    through the same host, its answers are its own."""
    with made_bed() as bed:
        one, other, behind = (bed.host(name) for name in "abc")
        for host in bed.hosts:
            host.put(INGRESS)
        web = Container(behind, "web")
        web.join(INGRESS, "10.0.0.5")
        bed.serve(web.path, 80, "web")
        for host in bed.hosts:
            host.put(Frontend(0, HOST4, TCP, 8080, (Backend(4096, "10.0.0.5", 80),)))
        for first, second, number in ((one, other, 46000), (behind, one, 46001)):
            source = (bed.client_address, number)
            with connect(bed.client, first.address, 8080, source=source) as mine:
                assert int(line(mine)[2]) == number
                with connect(bed.client, second.address, 8080, source=source) as renamed:
                    port = int(line(renamed)[2])
                    assert port != number
                    for host in bed.hosts:
                        with connect(
                            bed.client, host.address, 8080, source=(bed.client_address, port)
                        ) as own:
                            assert line(own)[0] == "web" and echo(own, b"own")
                    assert echo(renamed, b"renamed") and echo(mine, b"mine")
        assert ask(bed.client, one.address, 8080)[0] == "web"


@pytest.fixture
def programs() -> Iterator[Loader]:
    """A host whose container serves clients that come through two others."""
    made = Loader(f"name{secrets.token_hex(3)}")
    made.open()
    made.maps["config"].update(bytes(4), config_value(1, HERE, 24, 1500, 1, 1, 4789))
    rows = Rows()
    beside = RemoteEndpoint(4096, "10.0.0.6", mac_of("10.0.0.6"), ONE)
    rows.replace((), [r for e in (INGRESS, WEB, beside) for r in encode(e, {"E": Attachment(1000, 7)})])
    changes = rows.difference({})
    for name in TABLE_MAPS:
        made.maps[name].put_many(changes.put[name])
    unified.renew(made.maps["generation"])
    yield made
    made.destroy()


def _ip(source: str, target: str, protocol: int, body: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, 64, protocol, 0)
    return head + socket.inet_aton(source) + socket.inet_aton(target) + body


def _through(loader: Loader, host: str, port: int, flags: int) -> tuple[str, int]:
    """What becomes of a client's packet that came in at `host`, and its source port towards the container."""
    tcp = struct.pack("!HHIIBBHHH", port, 80, 1, 0, 0x50, flags, 1000, 0, 0)
    inner = bytes(12) + b"\x08\x00" + _ip(CLIENT, WEB.address, TCP, tcp)
    vxlan = struct.pack("!II", 0x08000000, INGRESS.vni << 8) + inner
    udp = struct.pack("!HHHH", 50000, 4789, 8 + len(vxlan), 0) + vxlan
    frame = bytes(12) + b"\x08\x00" + _ip(host, HERE, 17, udp)
    _, out, reason = bpf_syscall.run_program(loader.programs["from_underlay"], frame, 1)
    return REASONS[reason], int.from_bytes(out[34:36], "big")


def _remembered(loader: Loader) -> dict[bytes, list[object]]:
    """Connections that came through another host."""
    rows = {key: list(_FLOW.unpack(value)) for key, value in loader.maps["flows"].items()}
    return {key: row for key, row in rows.items() if row[_KIND] == VIA}


def _time_passes(loader: Loader, seconds: int) -> None:
    for key, row in _remembered(loader).items():
        row[_SEEN] = max(0, row[_SEEN] - seconds)  # type: ignore[operator]
        loader.maps["flows"].update(key, _FLOW.pack(*row))


@pytest.mark.parametrize("end", [FIN, RST], ids=["fin", "rst"])
def test_an_ended_connections_port_is_free_for_another_host_after_a_while(programs: Loader, end: int) -> None:
    assert _through(programs, ONE, 40000, SYN) == ("delivered", 40000)
    assert _through(programs, ONE, 40000, ACK) == ("delivered", 40000)
    _time_passes(programs, 1000)
    assert _through(programs, OTHER, 40000, SYN)[1] != 40000, "nobody ended the first, silent as it is"
    assert _through(programs, ONE, 40000, ACK) == ("delivered", 40000)
    assert _through(programs, ONE, 40000, end) == ("delivered", 40000)
    (state,) = (row[_STATE] for row in _remembered(programs).values() if row[3] == struct.pack("!H", 40000)
                and row[7] == socket.inet_aton(ONE))  # fmt: skip
    assert state == CLOSED
    third = PREFIX + "14"
    assert _through(programs, third, 40000, SYN)[1] != 40000, "the container may still be in TIME_WAIT"
    _time_passes(programs, 1000)
    assert _through(programs, PREFIX + "15", 40000, SYN) == ("delivered", 40000)


def test_ended_connections_use_no_ports_up(programs: Loader) -> None:
    """A proxy in front that spreads its requests over the hosts: all of its ports, again and again, through each."""
    for port in range(32768, 60768):
        assert _through(programs, ONE, port, SYN) == ("delivered", port)
        _through(programs, ONE, port, FIN)
    taken = []
    for port in range(33000, 33200):
        became, name = _through(programs, OTHER, port, SYN)
        assert became == "delivered"
        taken.append(name)
    assert len(set(taken)) == len(taken), "two that are alive never share one"
    for port, name in zip(range(33000, 33200), taken, strict=True):
        assert _through(programs, OTHER, port, ACK) == ("delivered", name)
    again = [_through(programs, ONE, name, SYN)[1] for name in taken]
    assert not set(again) & set(taken), "whose port it was gets another"


def test_no_port_left_is_a_drop_and_no_mistaken_answer(programs: Loader) -> None:
    for port in range(32768, 60768):
        _through(programs, ONE, port, SYN)
    assert _through(programs, OTHER, 40000, SYN)[0] == "drop_error"
    assert _through(programs, ONE, 40000, ACK) == ("delivered", 40000)
