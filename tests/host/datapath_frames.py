"""What must come out of the programs, byte by byte: the frame a Way of network/vfp/forward.py stands for.

Owns the comparing, of both families, and the counting of one run. Must not decide where a packet goes.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from overlace.network.linux import figures
from overlace.network.linux.loader import Loader
from overlace.network.vfp.forward import Way
from overlace.network.vfp.model import Packet

LEFT_ALONE, DROPPED, SENT_ON = -1, 2, 7  # TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT
TO_CLIENT = "client"  # a Way's action: the answer to a client outside
TCP, UDP = 6, 17


def _six(ip: bytes) -> bool:
    return ip[0] >> 4 == 6


def _head(ip: bytes) -> int:
    return 40 if _six(ip) else 20


def _protocol(ip: bytes) -> int:
    return ip[6] if _six(ip) else ip[9]


def _sum_at(ip: bytes) -> int:
    """Where the transport's checksum is; 0: it has none that anybody here computes."""
    return {TCP: _head(ip) + 16, UDP: _head(ip) + 6}.get(_protocol(ip), 0)


def _fold(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _transport_sum(ip: bytes) -> int:
    addresses, body = (ip[8:40] if _six(ip) else ip[12:20]), ip[_head(ip) :]
    return _fold(addresses + struct.pack("!II", len(body), _protocol(ip)) + body)


def sealed(ip: bytes) -> bytes:
    """The packet with right checksums."""
    at = _sum_at(ip)
    if at:
        ip = ip[:at] + b"\0\0" + ip[at + 2 :]
        ip = ip[:at] + struct.pack("!H", _transport_sum(ip) or 0xFFFF) + ip[at + 2 :]
    if not _six(ip):
        ip = ip[:10] + b"\0\0" + ip[12:]
        ip = ip[:10] + struct.pack("!H", _fold(ip[:20])) + ip[12:]
    return ip


def _unsummed(ip: bytes) -> bool:
    """RFC 768: over IPv4 a UDP sender may leave it out."""
    return not _six(ip) and _protocol(ip) == UDP and ip[26:28] == b"\0\0"


def is_sealed(ip: bytes) -> bool:
    return (_six(ip) or _fold(ip[:20]) == 0) and (not _sum_at(ip) or _unsummed(ip) or _transport_sum(ip) == 0)


def _bare(ip: bytes) -> bytes:
    """Without checksums: right ones may be written in two ways (RFC 1624)."""
    at = _sum_at(ip)
    if at:
        ip = ip[:at] + b"\0\0" + ip[at + 2 :]
    return ip if _six(ip) else ip[:10] + b"\0\0" + ip[12:]


def _address(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def rewritten(ip: bytes, packet: Packet) -> bytes:
    """The packet under other addresses and ports, else as it is."""
    first, at = (8 if _six(ip) else 12), _head(ip)
    ip = ip[:first] + _address(packet.src) + _address(packet.dst) + ip[at:]
    return ip[:at] + struct.pack("!HH", packet.sport, packet.dport) + ip[at + 4 :]


def reverse(packet: Packet) -> Packet:
    return Packet(packet.dst, packet.src, packet.protocol, packet.dport, packet.sport)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def is_as(way: Way, sent: bytes, code: int, out: bytes, name: str, host: str) -> bool:
    """Whether the program's end is this way's. `sent`: the plain frame it was about; `host`: this host's address."""
    ip = sent[14:]
    if way.action in ("host", "world"):  # the kernel's from here on, NAT too
        return code == LEFT_ALONE and out == sent
    if way.action in ("drop", "answer"):
        return name == way.reason and (name != "refused" or (code == SENT_ON and _refuses(sent, out)))
    if way.action == "encap":
        if name != "encapsulated" or code != SENT_ON or len(out) < 64:
            return False
        outer, udp, flags, vni = out[14:34], out[34:42], out[42], out[46:50]
        length = len(out) - 14
        if (outer[0], outer[8], outer[9]) != (0x45, 64, UDP) or struct.unpack("!H", outer[2:4])[0] != length:
            return False
        if (outer[12:16], outer[16:20]) != (socket.inet_aton(host), socket.inet_aton(way.to)):
            return False
        if (
            struct.unpack("!HHH", udp[2:])[:2] != (4789, length - 20)
            or flags != 8
            or vni != struct.pack("!I", way.vni << 8)
        ):
            return False
        out = out[50:]
    elif code != SENT_ON or name != {"deliver": "delivered", TO_CLIENT: "to_underlay"}.get(way.action):
        return False
    want = rewritten(ip, way.packet)
    if way.action != TO_CLIENT and out[:12] != _mac(way.mac) + (
        _mac(way.router) if way.router else sent[6:12]
    ):
        return False
    if _unsummed(out[14:]) != _unsummed(ip):
        return False
    return out[12:14] == sent[12:14] and _bare(out[14:]) == _bare(want) and is_sealed(out[14:])


def _refuses(sent: bytes, out: bytes) -> bool:
    """A TCP reset, or an ICMP error that quotes the packet, back to the sender."""
    ip, answer = sent[14:], out[14:]
    at, first = _head(ip), 8 if _six(ip) else 12
    size = (at - first) // 2
    if out[:12] != sent[6:12] + sent[:6] or answer[first + size : at] != ip[first : first + size]:
        return False
    if _protocol(ip) == TCP:
        ports = struct.unpack_from("!HH", ip, at)[::-1]
        return (
            is_sealed(answer) and struct.unpack_from("!HH", answer, at) == ports and bool(answer[at + 13] & 4)
        )
    kind = (1, 4) if _six(ip) else (3, 3)
    return (answer[at], answer[at + 1]) == kind and ip.startswith(answer[at + 8 :])


@contextmanager
def counted(loader: Loader, vni: int) -> Iterator[list[str]]:
    """Around one packet that is on network `vni`; its end is put on the list: it counts once, and if it is a drop, one of
    its network. "": left alone, which nobody counts."""
    before, drops = figures.counters(loader.maps["counters"]), figures.drops(loader.maps["drops"])
    ends: list[str] = []
    yield ends
    (end,) = ends
    after = figures.counters(loader.maps["counters"])
    assert {n: c - before[n] for n, c in after.items() if c != before[n]} == ({end: 1} if end else {})
    after_drops = figures.drops(loader.maps["drops"])
    new = {k: n - drops.get(k, 0) for k, n in after_drops.items() if n != drops.get(k, 0)}
    assert new == ({(vni, end): 1} if end.startswith("drop_") else {}), (new, end, vni)


def check(ways: Sequence[Way], sent: bytes, code: int, out: bytes, name: str, host: str) -> Way:
    """The way the program took, which is one of these."""
    taken = [w for w in ways if is_as(w, sent, code, out, name, host)]
    assert taken, f"{name} ({code}): {out.hex()} of {sent.hex()}, none of {ways}"
    return taken[0]
