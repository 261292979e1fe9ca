"""One marked packet, sent as a program in a namespace would send it, and the answer to it.

Owns the packet's making (RFC 791, 793, 768, 792) and the raw sockets. Must not know tasks.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from ipaddress import IPv4Address
from pathlib import Path

from overlace.model.findings import Inject, Sighting

from .bpf_syscall import Map
from .maps import REASONS
from .netns import run_inside

TOS = 0xFC  # as in bpf/trace.h
_SEEN = 0xFFFFFFFF
_RECORDS = 16
_SIGHTING = struct.Struct("=QII4s4s2s2sI")
_TRACED = 8 + _RECORDS * _SIGHTING.size
_ICMP, _TCP, _UDP = 1, 6, 17


def _sum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def make_packet(ask: Inject) -> bytes:
    """A TCP SYN, a UDP datagram or an ICMP echo request. Raises ValueError for another protocol."""
    src, dst = IPv4Address(ask.source).packed, IPv4Address(ask.target).packed
    if ask.protocol == _TCP:
        body = struct.pack(
            "!HHIIBBHHH", ask.source_port, ask.target_port, ask.mark, 0, 5 << 4, 2, 64240, 0, 0
        )
        at = 16
    elif ask.protocol == _UDP:
        text = b"overlace trace"
        body = struct.pack("!HHHH", ask.source_port, ask.target_port, 8 + len(text), 0) + text
        at = 6
    elif ask.protocol == _ICMP:
        body = struct.pack("!BBHHH", 8, 0, 0, ask.mark, 1)
        body = body[:2] + struct.pack("!H", _sum(body)) + body[4:]
        at = -1
    else:
        raise ValueError(f"protocol {ask.protocol} cannot be injected: use tcp, udp or icmp")
    if at >= 0:
        pseudo = src + dst + struct.pack("!HH", ask.protocol, len(body))
        body = body[:at] + struct.pack("!H", _sum(pseudo + body)) + body[at + 2 :]
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, TOS, 20 + len(body), ask.mark, 0x4000, 64, ask.protocol, 0, src, dst
    )
    return head[:10] + struct.pack("!H", _sum(head)) + head[12:] + body


def read_answer(ask: Inject, packet: bytes) -> str:
    """What a received IP packet says to the one that was sent; empty: nothing."""
    protocol, body = packet[9], packet[(packet[0] & 15) * 4 :]
    if protocol == _ICMP and len(body) >= 8:
        kind, code = body[0], body[1]
        if ask.protocol == _ICMP and kind == 0 and body[4:6] == struct.pack("!H", ask.mark):
            return "echo reply"
        quoted = body[8:]
        if kind in (3, 11) and len(quoted) >= 20 and quoted[16:20] == IPv4Address(ask.target).packed:
            who = IPv4Address(packet[12:16])
            if kind == 11:
                return f"time exceeded, said by {who}"
            words = {0: "network unreachable", 1: "host unreachable", 3: "port unreachable", 4: "too big"}
            return f"{words.get(code, f'unreachable ({code})')}, said by {who}"
        return ""
    if protocol != ask.protocol or len(body) < 8:
        return ""
    sport, dport = struct.unpack_from("!HH", body)
    if (sport, dport) != (ask.target_port, ask.source_port):
        return ""
    if protocol == _TCP:
        flags = body[13]
        return "refused (RST)" if flags & 4 else "accepted (SYN+ACK)" if flags & 18 == 18 else ""
    return "a datagram came back"


def inject(namespace: Path | None, ask: Inject) -> str:
    """Send it from a namespace (None: the caller's own) and give the answer; empty: none came in time.

    Raises ValueError, and OSError for what the namespace's own stack refuses (no route, no such address).
    """
    packet = make_packet(ask)

    def sockets() -> list[socket.socket]:
        kinds = dict.fromkeys((ask.protocol, _ICMP))
        found = [socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)]
        found += [socket.socket(socket.AF_INET, socket.SOCK_RAW, kind) for kind in kinds]
        return found

    out, *listening = run_inside(namespace, sockets) if namespace is not None else sockets()
    try:
        out.sendto(packet, (ask.target, 0))
        until = time.monotonic() + ask.seconds
        while (left := until - time.monotonic()) > 0:
            for one in select.select(listening, [], [], left)[0]:
                answer = read_answer(ask, one.recv(65536))
                if answer:
                    return answer
        return ""
    finally:
        for one in (out, *listening):
            one.close()


def arm(traces: Map, mark: int) -> None:
    """Have the programs record packets with this mark."""
    traces.update(struct.pack("I", mark), bytes(_TRACED))


def collect(traces: Map, mark: int, interfaces: dict[int, str]) -> list[Sighting]:
    """What they recorded, in order; the mark is forgotten."""
    key = struct.pack("I", mark)
    raw = traces.lookup(key)
    traces.delete(key)
    if raw is None:
        return []
    (count,) = struct.unpack_from("I", raw)
    found = []
    for i in range(min(count, _RECORDS)):
        at, ifindex, reason, src, dst, sport, dport, vni = _SIGHTING.unpack_from(raw, 8 + i * _SIGHTING.size)
        name = interfaces.get(ifindex, f"interface {ifindex}")
        if reason != _SEEN:
            word = REASONS[reason] if reason < len(REASONS) else str(reason)
            found.append(Sighting(at=at, interface=name, reason=word))
            continue
        ends = f"{IPv4Address(src)}:{int.from_bytes(sport, 'big')} > {IPv4Address(dst)}:{int.from_bytes(dport, 'big')}"
        found.append(Sighting(at=at, interface=name, packet=ends, vni=vni))
    return found
