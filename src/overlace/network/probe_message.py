"""The message of a probe, struct probe of bpf/probe.h, and the packet around it where no program makes it. Pure.

Owns the layout and how an answer is told from anything else. Must not know sockets or when to send what.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, ip_address

import msgspec

MAGIC = 0x6F76
ECHO, ECHOED, CHECK, CHECKED = 1, 2, 3, 4  # enum probe_kind
PROGRAM, SLOW, BY_PORT = 0, 1, 2  # enum probe_how
PROBE_VNI = 0xFFFFFF
# by the bytes of a host's address; and the nonce, in the host's order: nobody reads it in between
_HEAD = {n: struct.Struct(f">HBB{n}s{n}sI") for n in (4, 16)}
_TUNNEL = 8 + 14 + 20 + 8  # VXLAN, inner Ethernet, IP, UDP
_OUTER = {4: 20 + 8, 16: 40 + 8}  # IP, UDP
_VXLAN = struct.pack(">II", 0x08000000, PROBE_VNI << 8)


class Arrived(msgspec.Struct, frozen=True):
    """`at`: ns since the epoch, when the kernel (or the program, where no kernel says) had it."""

    kind: int
    source: str
    nonce: int
    at: int


def overhead(octets: int) -> int:
    """Bytes of a probe's headers, the outer IP header included, by the bytes of a host's address."""
    return _OUTER[octets] + _TUNNEL


def least(octets: int) -> int:
    """Bytes of the outer IP packet of the shortest probe."""
    return overhead(octets) + _HEAD[octets].size + 8


LEAST = least(4)


def message(kind: int, how: int, source: bytes, target: str, nonce: int, size: int) -> bytes:
    """`size`: bytes of the outer IP packet. Raises ValueError for a target of another family than the source's."""
    there = ip_address(target).packed
    if len(there) != len(source):
        raise ValueError(f"{target} and {ip_address(source)} are not of one address family")
    head = _HEAD[len(source)].pack(MAGIC, kind, how, source, there, size)
    return (head + struct.pack("Q", nonce)).ljust(size - overhead(len(source)), b"\xa5")


def parse_message(data: bytes, at: int, octets: int = 4) -> Arrived | None:
    """`octets`: of a host's address. None: it is none."""
    head = _HEAD[octets]
    if len(data) < head.size + 8:
        return None
    magic, kind, _, source, _, _ = head.unpack_from(data)
    if magic != MAGIC:
        return None
    (nonce,) = struct.unpack_from("Q", data, head.size)
    return Arrived(kind, str(ip_address(source)), nonce, at)


def question(source: str, target: str, port: int, nonce: int, size: int) -> bytes:
    """The payload of a UDP datagram from an ordinary socket to `target`'s VXLAN port: an echo to be answered to the port
    it comes from. The inner UDP datagram has no checksum."""
    own, other = IPv4Address(source).packed, IPv4Address(target).packed
    body = message(ECHO, BY_PORT, own, target, nonce, size)
    udp = struct.pack(">HHHH", port, port, 8 + len(body), 0)
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28 + len(body), 0, 0x4000, 64, 17, 0, own, other)
    ip = ip[:10] + _checksum(ip).to_bytes(2, "big") + ip[12:]
    return _VXLAN + bytes(12) + b"\x08\x00" + ip + udp + body


def answer(payload: bytes, sender: str, at: int) -> Arrived | None:
    """The answer to a question in a UDP datagram's payload; None: it is none, or of another host than it says."""
    if payload[:8] != _VXLAN:
        return None
    found = parse_message(payload[_TUNNEL:], at)
    return found if found is not None and found.kind == ECHOED and found.source == sender else None


def _checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
