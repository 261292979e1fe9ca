"""What IPv6 inside the overlay has of its own: neighbours, what is for the link alone, errors, fragments; frame by frame
through the programs (BPF_PROG_TEST_RUN)."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator

import pytest
from test_datapath_agrees import HOST, PEERS
from test_datapath_ipv6_agrees import (
    NETWORKS,
    OUTSIDE,
    _eth,
    _fill,
    _ip,
    _read,
    _run,
    _tunnelled,
    address,
    checksum,
    ip6,
    mac,
    mac_bytes,
    packed,
)

from overlace.model.findings import Inject
from overlace.network.linux import inject
from overlace.network.linux.loader import Loader
from overlace.network.linux.maps import Attachment, config_value, encode
from overlace.network.vfp.model import Packet
from overlace.network.vfp.tables import Backend, Frontend, LocalEndpoint, RemoteEndpoint, Tables

pytestmark = [pytest.mark.host, pytest.mark.timeout(120)]
OWN, LOCAL, REMOTE = address(1, 4), address(1, 5), address(1, 6)
GATEWAY, VIP, EMPTY, NOBODY = address(1, 1), address(1, 8), address(1, 9), address(1, 0x77)
LINK_LOCAL = "fe80::42:aff:fe00:104"  # of 02:42:0a:00:01:04
SOURCE = LocalEndpoint(4097, OWN, 64, mac(1, 4), "E")
PEER = RemoteEndpoint(4097, REMOTE, mac(1, 6), PEERS[0])
EVERYONE = "ff02::1"


@pytest.fixture(scope="module")
def loader() -> Iterator[Loader]:
    made = Loader(f"six{secrets.token_hex(3)}")
    made.open()
    made.maps["config"].update(bytes(4), config_value(1, HOST, 24, 1500, 1, 1, 4789))
    local = LocalEndpoint(4097, LOCAL, 64, mac(1, 5), "F")
    to = Frontend(4097, VIP, 0, 0, (Backend(4097, REMOTE, 8080),))
    _fill(made, Tables([NETWORKS[1], SOURCE, local, PEER, to, Frontend(4097, EMPTY, 0, 0)]), SOURCE)
    yield made
    made.destroy()


def solicit(target: str, source: str = OWN, *, hops: int = 255, kind: int = 135) -> bytes:
    option = b"" if source == "::" else b"\1\1" + mac_bytes(SOURCE.mac)
    body = struct.pack("!BBHI", kind, 0, 0, 0) + packed(target) + option
    return _eth(ip6(source, "ff02::1:ff00:1", 58, body, hops=hops, sum_at=2), SOURCE.mac)


def send(loader: Loader, packet: bytes) -> tuple[bytes, str]:
    _, out, name = _run(loader, "from_container", _eth(packet, SOURCE.mac))
    return out, name


@pytest.mark.parametrize(
    ("target", "hardware", "router"),
    [
        (GATEWAY, NETWORKS[1].gateway_mac, True),
        (LOCAL, mac(1, 5), False),
        (REMOTE, mac(1, 6), False),
        (VIP, NETWORKS[1].gateway_mac, False),
    ],
)
@pytest.mark.parametrize("source", [OWN, LINK_LOCAL, "::"])
def test_neighbours_are_answered_for(
    loader: Loader, target: str, hardware: str, router: bool, source: str
) -> None:
    """Also the one who asks whether an address is free: it is not."""
    code, out, name = _run(loader, "from_container", solicit(target, source))
    assert (code, name) == (7, "answered_arp")
    assert out[:6].hex(":") == SOURCE.mac and out[6:12].hex(":") == hardware
    body, to = out[54:], EVERYONE if source == "::" else source
    assert (out[20], out[21], len(body)) == (58, 255, 32) and out[38:54] == packed(to)
    assert checksum(target, to, 58, body) == 0
    flags = (0x80 if router else 0) | (0 if source == "::" else 0x40) | 0x20
    assert body[:2] == b"\x88\0" and body[4] == flags and body[8:24] == packed(target)
    assert body[24:] == b"\2\1" + mac_bytes(hardware)


@pytest.mark.parametrize(
    ("frame", "name"),
    [
        (solicit(NOBODY), "drop_arp"),
        (solicit(OWN, "::"), "drop_arp"),  # is my address free? nobody says no
        (solicit(LINK_LOCAL, "::"), "drop_arp"),
        (solicit(GATEWAY, LOCAL), "drop_spoofed"),
        (solicit(GATEWAY, "fe80::1"), "drop_spoofed"),
        (solicit(GATEWAY, hops=64), "drop_garbage"),
        (solicit("ff02::1"), "drop_garbage"),
        (solicit(OWN, kind=136), "drop_unsupported"),  # its own advertisement: nobody needs it
        (solicit(LOCAL, kind=136), "drop_spoofed"),
        (solicit(GATEWAY, LINK_LOCAL, kind=134), "drop_spoofed"),
        (solicit(GATEWAY, LINK_LOCAL, kind=137), "drop_spoofed"),
        (solicit(GATEWAY, LINK_LOCAL, kind=133), "drop_unsupported"),
        (solicit(GATEWAY)[:60], "drop_garbage"),
    ],
)
def test_what_is_not_answered_on_the_link(loader: Loader, frame: bytes, name: str) -> None:
    code, _, got = _run(loader, "from_container", frame)
    assert (code, got) == (2, name)


def test_listener_reports_and_other_options_end_quietly(loader: Loader) -> None:
    """MLDv2 has a hop-by-hop header; destination options and routing headers go nowhere either. What every host says on
    its link by itself is no drop that anyone is told of."""
    told = dict(loader.maps["drops"].items())
    report = struct.pack("!BBBBBBBB", 58, 0, 5, 2, 0, 0, 1, 0) + struct.pack("!BBHHH", 143, 0, 0, 0, 0)
    assert send(loader, ip6(LINK_LOCAL, "ff02::16", 0, report, hops=1))[1] == "drop_unsupported"
    assert _run(loader, "from_container", solicit(GATEWAY, LINK_LOCAL, kind=133))[2] == "drop_unsupported"
    assert dict(loader.maps["drops"].items()) == told
    for header in (43, 60):
        body = struct.pack("!BBHI", 6, 0, 0, 0) + bytes(20)
        assert send(loader, ip6(OWN, REMOTE, header, body))[1] == "drop_unsupported"
    assert (
        send(loader, ip6(OWN, "ff02::fb", 17, struct.pack("!HHHH", 5353, 5353, 8, 0)))[1]
        == "drop_unsupported"
    )


def test_sources_that_are_not_the_containers(loader: Loader) -> None:
    for source in (LOCAL, OUTSIDE, GATEWAY, "::1"):
        assert send(loader, _ip(Packet(source, REMOTE, 17, 4000, 53)))[1] == "drop_spoofed", source
    assert send(loader, _ip(Packet(LINK_LOCAL, REMOTE, 17, 4000, 53)))[1] == "drop_unsupported"
    assert send(loader, _ip(Packet("fe80::1", REMOTE, 17, 4000, 53)))[1] == "drop_spoofed"
    _, _, name = _run(loader, "from_container", _eth(_ip(Packet(OWN, REMOTE, 17, 4000, 53)), mac(1, 5)))
    assert name == "drop_spoofed"


def test_nothing_of_the_link_comes_through_the_tunnel(loader: Loader) -> None:
    """A neighbour advertisement sent to the container itself would change its neighbours."""
    for kind in (133, 134, 135, 136, 137, 143):
        body = struct.pack("!BBHI", kind, 0, 0, 0) + packed(GATEWAY)
        frame = _tunnelled(ip6(REMOTE, LOCAL, 58, body, hops=255, sum_at=2), PEER)
        assert _run(loader, "from_underlay", frame)[2] == "drop_unsupported", kind
    spoofed = _tunnelled(_ip(Packet(address(1, 7), LOCAL, 17, 53, 53)), PEER)
    assert _run(loader, "from_underlay", spoofed)[2] == "drop_wrong_provider"


@pytest.mark.parametrize("target", [GATEWAY, VIP, EMPTY])
def test_pings_of_who_is_no_machine_are_answered(loader: Loader, target: str) -> None:
    body = struct.pack("!BBHHH", 128, 0, 0, 77, 1) + b"twelve bytes"
    out, name = send(loader, ip6(OWN, target, 58, body, sum_at=2))
    assert name == "answered_echo" and out[22:54] == packed(target) + packed(OWN)
    assert out[54] == 129 and out[58:] == body[4:] and checksum(target, OWN, 58, out[54:]) == 0


def answer_of(out: bytes, source: str, quote: bytes) -> tuple[int, int, int]:
    """(type, code, last 32 bits) of an ICMPv6 error from `source` that quotes the packet."""
    assert out[20] == 58 and out[22:54] == packed(source) + packed(OWN)
    assert checksum(source, OWN, 58, out[54:]) == 0 and quote.startswith(out[62:]) and len(out) >= 62 + 48
    kind, code, _, last = struct.unpack("!BBHI", out[54:62])
    return kind, code, last


def test_too_big_is_said_with_the_size_that_fits(loader: Loader) -> None:
    packet = ip6(OWN, REMOTE, 17, struct.pack("!HHHH", 4000, 53, 1500, 0) + bytes(1492))
    out, name = send(loader, packet)
    assert name == "too_big" and answer_of(out, GATEWAY, packet) == (2, 0, 1450)


def test_a_path_of_less_than_ipv6_needs_splits_the_outer_packet(loader: Loader) -> None:
    """RFC 8200 section 5: 1280 bytes always pass, whatever is below."""
    loader.maps["config"].update(bytes(4), config_value(1, HOST, 24, 1200, 1, 1, 4789))
    try:
        _, name = send(loader, ip6(OWN, REMOTE, 17, struct.pack("!HHHH", 4000, 53, 1240, 0) + bytes(1232)))
        assert name == "slow_path"
        packet = ip6(OWN, REMOTE, 17, struct.pack("!HHHH", 4000, 53, 1300, 0) + bytes(1292))
        out, name = send(loader, packet)
        assert name == "too_big" and answer_of(out, GATEWAY, packet) == (2, 0, 1280)
    finally:
        loader.maps["config"].update(bytes(4), config_value(1, HOST, 24, 1500, 1, 1, 4789))


def test_nobody_serves_is_said(loader: Loader) -> None:
    packet = _ip(Packet(OWN, EMPTY, 17, 4000, 53))
    out, name = send(loader, packet)
    assert name == "refused" and answer_of(out, EMPTY, packet) == (1, 4, 0)
    out, name = send(loader, _ip(Packet(OWN, EMPTY, 6, 4000, 80)))
    assert name == "refused" and out[54 + 13] == 0x14, "a reset"
    assert _read(out)[1] == Packet(EMPTY, OWN, 6, 80, 4000)


def test_no_way_out_is_said_at_once(loader: Loader) -> None:
    packet = _ip(Packet(OWN, OUTSIDE, 6, 4000, 80))
    out, name = send(loader, packet)
    assert name == "drop_no_outbound" and answer_of(out, GATEWAY, packet) == (1, 0, 0)
    elsewhere = ip6(OWN, OUTSIDE, 58, struct.pack("!BBHI", 1, 0, 0, 0) + bytes(48), sum_at=2)
    code, _, name = _run(loader, "from_container", _eth(elsewhere, SOURCE.mac))
    assert (code, name) == (2, "drop_no_outbound"), "an error is not answered by one"


def test_every_fragment_goes_to_the_backend_of_the_first(loader: Loader) -> None:
    datagram = struct.pack("!HHHH", 4001, 53, 24, 0) + b"sixteen bytes ok"
    datagram = datagram[:6] + struct.pack("!H", checksum(OWN, VIP, 17, datagram)) + datagram[8:]
    parts = [(0, 1, datagram[:16]), (2, 0, datagram[16:])]
    got = b""
    for offset, more, data in parts:
        header = struct.pack("!BBHI", 17, 0, offset << 3 | more, 0xABCDEF)
        out, name = send(loader, ip6(OWN, VIP, 44, header + data))
        assert name == "encapsulated"
        inner = out[50:]
        assert inner[14 + 24 : 14 + 40] == packed(REMOTE)
        got += inner[14 + 48 :]
    assert struct.unpack("!H", got[2:4]) == (8080,) and checksum(OWN, REMOTE, 17, got) == 0


def test_an_error_about_a_translated_connection_reaches_its_client(loader: Loader) -> None:
    """What the backend's side says of the packet it got, the client hears of the packet it sent."""
    out, name = send(loader, _ip(Packet(OWN, VIP, 6, 4002, 80)))
    assert name == "encapsulated"
    seen = out[50 + 14 :]
    assert seen[24:40] == packed(REMOTE) and seen[42:44] == struct.pack("!H", 8080)
    error = struct.pack("!BBHI", 1, 4, 0, 0) + seen[:48]
    loader.maps["endpoints6"].update(*_row_here())
    code, out, name = _run(loader, "from_underlay", _tunnelled(ip6(REMOTE, OWN, 58, error, sum_at=2), PEER))
    assert name == "delivered", (code, name)
    assert out[22:54] == packed(VIP) + packed(OWN) and checksum(VIP, OWN, 58, out[54:]) == 0
    quoted = out[62:]
    assert quoted[8:40] == packed(OWN) + packed(VIP) and quoted[40:44] == struct.pack("!HH", 4002, 80)


def _row_here() -> tuple[bytes, bytes]:
    rows = encode(SOURCE, {"E": Attachment(1, 7)})
    return next((r.key, r.value) for r in rows if r.map == "endpoints6")


def test_a_marked_packet_is_recorded(loader: Loader) -> None:
    tables = (loader.maps["traces"], loader.maps["traces6"])
    inject.arm(tables, 4242)
    ask = Inject(
        task_id="", source=OWN, target=REMOTE, protocol=6, source_port=4003, target_port=80, mark=4242
    )
    assert send(loader, inject.make_packet(ask))[1] == "encapsulated"
    seen, end = inject.collect(tables, 4242, {1: "lo"})
    assert (seen.packet, seen.vni) == (f"[{OWN}]:4003 > [{REMOTE}]:80", 4097) and end.reason == "encapsulated"
    assert inject.collect(tables, 4242, {}) == []
