"""The marked packet of a live trace, and what is taken for its answer."""

from __future__ import annotations

import socket
import struct

import msgspec
import pytest

from overlace.model.findings import Inject
from overlace.network.linux.figures import read_interfaces
from overlace.network.linux.inject import TOS, inject, make_packet, read_answer, read_answer6

ASK = Inject(
    mark=4711,
    task_id="t",
    source="10.0.1.5",
    target="10.0.1.6",
    protocol=6,
    source_port=40000,
    target_port=80,
)

replace = msgspec.structs.replace
ASK6 = replace(ASK, source="fd00:1::5", target="fd00:1::6")


def ip(protocol: int, body: bytes, source: bytes = bytes([10, 0, 1, 6])) -> bytes:
    return (
        struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0, source, bytes(4)) + body
    )


def folded(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    return (total & 0xFFFF) + (total >> 16)


@pytest.mark.parametrize("protocol", [1, 6, 17])
def test_the_packet_bears_the_mark_and_true_checksums(protocol: int) -> None:
    packet = make_packet(
        Inject(**{f: getattr(ASK, f) for f in ASK.__struct_fields__} | {"protocol": protocol})
    )
    assert packet[1] == TOS and struct.unpack_from("!H", packet, 4) == (4711,)
    assert struct.unpack_from("!H", packet, 2) == (len(packet),)
    assert folded(packet[:20]) == 0xFFFF
    body = packet[20:] + bytes(len(packet) % 2)
    pseudo = packet[12:20] + struct.pack("!HH", protocol, len(packet) - 20) if protocol != 1 else b""
    assert folded(pseudo + body) in (0xFFFF, 0)


@pytest.mark.parametrize("protocol", [1, 6, 17, 58])
def test_the_ipv6_packet_bears_the_mark_in_its_flow_label(protocol: int) -> None:
    """ICMP means the family's own."""
    packet = make_packet(replace(ASK6, protocol=protocol))
    first, length, following, _ = struct.unpack_from("!IHBB", packet)
    assert first == 6 << 28 | TOS << 20 | 4711 and length == len(packet) - 40
    assert following == (58 if protocol == 1 else protocol)
    body = packet[40:] + bytes(len(packet) % 2)
    assert folded(packet[8:40] + struct.pack("!HH", following, length) + body) in (0xFFFF, 0)


def test_answers_of_ipv6_are_told_apart() -> None:
    syn_ack = struct.pack("!HHIIBBHHH", 80, 40000, 0, 0, 0x50, 0x12, 0, 0, 0)
    assert read_answer6(ASK6, 6, syn_ack, "fd00:1::6") == "accepted (SYN+ACK)"
    assert read_answer6(ASK6, 6, syn_ack[2:], "fd00:1::6") == ""
    ping = replace(ASK6, protocol=1)
    echo = struct.pack("!BBHHH", 129, 0, 0, 4711, 1)
    assert read_answer6(ping, 58, echo, "fd00:1::6") == "echo reply"
    assert read_answer6(ping, 58, echo[:4] + bytes(4), "fd00:1::6") == ""
    for kind, code, said in ((1, 0, "no route"), (1, 4, "port unreachable"), (2, 0, "too big")):
        error = struct.pack("!BBHI", kind, code, 0, 0) + make_packet(ASK6)[:48]
        assert read_answer6(ASK6, 58, error, "fd00:1::1") == f"{said}, said by fd00:1::1"
        other = replace(ASK6, target="fd00:1::7")
        assert read_answer6(other, 58, error, "fd00:1::1") == "", "about another packet"


def test_one_packet_has_one_family() -> None:
    with pytest.raises(ValueError, match="one address family"):
        make_packet(replace(ASK, target="fd00:1::6"))


def test_other_protocols_are_refused() -> None:
    with pytest.raises(ValueError, match="protocol 132"):
        make_packet(Inject(**{f: getattr(ASK, f) for f in ASK.__struct_fields__} | {"protocol": 132}))


def tcp(flags: int, sport: int = 80, dport: int = 40000) -> bytes:
    return ip(6, struct.pack("!HHIIBBHHH", sport, dport, 0, 0, 0x50, flags, 0, 0, 0))


def test_answers_are_told_apart() -> None:
    assert read_answer(ASK, tcp(0x12)) == "accepted (SYN+ACK)"
    assert read_answer(ASK, tcp(0x14)) == "refused (RST)"
    assert read_answer(ASK, tcp(0x12, sport=81)) == ""
    quoted = make_packet(ASK)[:28]
    error = ip(1, struct.pack("!BBHI", 3, 3, 0, 0) + quoted, bytes([10, 0, 1, 1]))
    assert read_answer(ASK, error) == "port unreachable, said by 10.0.1.1"


def test_interface_counters_are_read_as_proc_has_them() -> None:
    text = (
        "Inter-|   Receive  |  Transmit\n face |bytes packets\n"
        "    lo: 10 1 0 0 0 0 0 0 10 1 0 0 0 0 0 0\n  eth0: 200 2 0 0 0 0 0 0 300 3 0 0 0 0 0 0\n"
    )
    assert read_interfaces(text)["eth0"] == (200, 2, 300, 3)


class Unprivileged(socket.socket):
    """Says which option the kernel asks of raw sockets (ip(7)); of a kind that needs no privilege."""

    def __init__(self, family: int, *_: int) -> None:
        super().__init__(family, socket.SOCK_DGRAM)

    def sendto(self, data: bytes, to: tuple[str, int]) -> int:  # type: ignore[override]
        if to[0].endswith(".255") and not self.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST):
            raise PermissionError(13, "Permission denied")
        return len(data)


def test_it_may_be_sent_to_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", Unprivileged)
    assert inject(None, replace(ASK, protocol=17, target="10.0.1.255", seconds=0.0)) == ""
