"""Reading captures: what the demo shows of a packet is what was on the wire."""

from __future__ import annotations

import struct

import pytest

from overlace.lab.vxlan import parse, read_packets, read_pcap


def ipv4(protocol: int, source: bytes, target: bytes, payload: bytes) -> bytes:
    return (
        struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0, source, target)
        + payload
    )


def tcp(source: int, target: int, flags: int, data: bytes = b"") -> bytes:
    return struct.pack("!HHIIBBHHH", source, target, 1, 1, 5 << 4, flags, 100, 0, 0) + data


def ethernet(payload: bytes, kind: int = 0x0800) -> bytes:
    return bytes(6) + b"\x02\x42\x0a\x00\x00\x02" + struct.pack("!H", kind) + payload


def vxlan(inner: bytes, vni: int = 4097, port: int = 4789, flags: int = 8) -> bytes:
    header = struct.pack("!B3xI", flags, vni << 8)
    udp = struct.pack("!HHHH", 50000, port, 16 + len(inner), 0) + header + inner
    return ethernet(ipv4(17, bytes([172, 28, 1, 11]), bytes([172, 28, 1, 12]), udp))


REQUEST = ethernet(
    ipv4(
        6, bytes([10, 0, 1, 3]), bytes([10, 0, 1, 4]), tcp(40000, 80, 0x18, b"GET / HTTP/1.1\r\nHost: x\r\n")
    )
)


def pcap(*frames: bytes, order: str = "<") -> bytes:
    head = struct.pack(order + "IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    return head + b"".join(
        struct.pack(order + "IIII", 100 + index, 500000, len(frame), len(frame)) + frame
        for index, frame in enumerate(frames)
    )


def test_outer_hosts_vni_and_inner_addresses_are_read() -> None:
    packet = parse(1.0, vxlan(REQUEST))
    assert packet is not None
    assert (packet.outer_source, packet.outer_target, packet.vni) == ("172.28.1.11", "172.28.1.12", 4097)
    assert (packet.inner_source, packet.source_port) == ("10.0.1.3", 40000)
    assert (packet.inner_target, packet.target_port) == ("10.0.1.4", 80)
    assert packet.what == "GET / HTTP/1.1"


def ipv6(protocol: int, source: bytes, target: bytes, payload: bytes) -> bytes:
    return struct.pack("!IHBB16s16s", 6 << 28, len(payload), protocol, 64, source, target) + payload


def test_both_families_are_read_outside_and_inside() -> None:
    def fd(last: int) -> bytes:
        return b"\xfd\x00" + bytes(13) + bytes([last])

    inner = ethernet(ipv6(6, fd(3), fd(4), tcp(40000, 80, 0x02)), 0x86DD)
    udp = struct.pack("!HHHH", 50000, 4789, 16 + len(inner), 0) + struct.pack("!B3xI", 8, 4097 << 8) + inner
    packet = parse(1.0, ethernet(ipv6(17, fd(11), fd(12), udp), 0x86DD))
    assert packet is not None and packet.what == "SYN"
    assert (packet.outer_source, packet.outer_target) == ("fd00::b", "fd00::c")
    assert (packet.inner_source, packet.inner_target, packet.target_port) == ("fd00::3", "fd00::4", 80)


def test_a_handshake_shows_its_flags() -> None:
    syn = ethernet(ipv4(6, bytes([10, 0, 1, 3]), bytes([10, 0, 1, 4]), tcp(1, 2, 0x12)))
    packet = parse(1.0, vxlan(syn))
    assert packet is not None and packet.what == "SYN ACK"


def test_ethernet_padding_is_not_payload() -> None:
    ack = ethernet(ipv4(6, bytes([10, 0, 1, 3]), bytes([10, 0, 1, 4]), tcp(1, 2, 0x10)) + bytes(6))
    packet = parse(1.0, vxlan(ack))
    assert packet is not None and packet.payload == b""


@pytest.mark.parametrize(
    "frame",
    [b"", vxlan(REQUEST, port=53), vxlan(REQUEST, flags=0), REQUEST, vxlan(REQUEST)[:40]],
    ids=["empty", "another port", "no VNI flag", "plain TCP", "cut short"],
)
def test_what_is_no_vxlan_is_left_out(frame: bytes) -> None:
    assert parse(1.0, frame) is None


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcap_files_of_both_byte_orders(order: str) -> None:
    packets = read_packets(pcap(vxlan(REQUEST), REQUEST, vxlan(REQUEST, vni=4096), order=order))
    assert [(packet.time, packet.vni) for packet in packets] == [(100.5, 4097), (102.5, 4096)]


def test_a_capture_cut_short_keeps_what_is_whole() -> None:
    assert len(list(read_pcap(pcap(REQUEST, REQUEST)[:-3]))) == 1


def test_other_files_are_refused() -> None:
    with pytest.raises(ValueError, match="not a pcap"):
        list(read_pcap(b"\x0a\x0d\x0d\x0a" + bytes(40)))
