"""One marked packet, sent as a program in a namespace would send it, and the answer to it.

Owns the packet's making (RFC 791, 793, 768, 792) and the raw sockets. Must not know tasks.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

from overlace.model.family import is_six
from overlace.model.findings import Inject, Sighting

from .bpf_syscall import Map
from .maps import REASONS
from .netns import run_inside

TOS = 0xFC  # as in bpf/trace.h
_SEEN = 0xFFFFFFFF
_RECORDS = 16
# struct sighting, by the bytes of an address
_SIGHTING = {n: struct.Struct(f"=QII{n}s{n}s2s2sI") for n in (4, 16)}
_ICMP, _TCP, _UDP, _ICMP6 = 1, 6, 17, 58


def _sum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def make_packet(ask: Inject) -> bytes:
    """A TCP SYN, a UDP datagram or an ICMP echo request. Raises ValueError for another protocol."""
    src, dst = ip_address(ask.source).packed, ip_address(ask.target).packed
    six, icmp = len(dst) == 16, ask.protocol in (_ICMP, _ICMP6)
    protocol = (_ICMP6 if six else _ICMP) if icmp else ask.protocol
    if len(src) != len(dst):
        raise ValueError(f"{ask.source} and {ask.target} are not of one address family")
    if ask.protocol == _TCP:
        body = struct.pack(
            "!HHIIBBHHH", ask.source_port, ask.target_port, ask.mark, 0, 5 << 4, 2, 64240, 0, 0
        )
        at = 16
    elif ask.protocol == _UDP:
        text = b"overlace trace"
        body = struct.pack("!HHHH", ask.source_port, ask.target_port, 8 + len(text), 0) + text
        at = 6
    elif icmp:
        body = struct.pack("!BBHHH", 128 if six else 8, 0, 0, ask.mark, 1)
        at = 2
    else:
        raise ValueError(f"protocol {ask.protocol} cannot be injected: use tcp, udp or icmp")
    pseudo = src + dst + struct.pack("!HH", protocol, len(body)) if six or not icmp else b""
    body = body[:at] + struct.pack("!H", _sum(pseudo + body)) + body[at + 2 :]
    if six:  # the flow label bears the mark
        return (
            struct.pack("!IHBB", 6 << 28 | TOS << 20 | ask.mark, len(body), protocol, 64) + src + dst + body
        )
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, TOS, 20 + len(body), ask.mark, 0x4000, 64, protocol, 0, src, dst
    )
    return head[:10] + struct.pack("!H", _sum(head)) + head[12:] + body


def read_answer(ask: Inject, packet: bytes) -> str:
    """What a received IPv4 packet says to the one that was sent; empty: nothing."""
    protocol, body, who = packet[9], packet[(packet[0] & 15) * 4 :], str(ip_address(packet[12:16]))
    if protocol == _ICMP and len(body) >= 8:
        kind, code, quoted = body[0], body[1], body[8:]
        if ask.protocol == _ICMP and kind == 0 and body[4:6] == struct.pack("!H", ask.mark):
            return "echo reply"
        if kind in (3, 11) and len(quoted) >= 20 and quoted[16:20] == ip_address(ask.target).packed:
            if kind == 11:
                return f"time exceeded, said by {who}"
            words = {0: "network unreachable", 1: "host unreachable", 3: "port unreachable", 4: "too big"}
            return f"{words.get(code, f'unreachable ({code})')}, said by {who}"
        return ""
    return _read_transport(ask, protocol, body)


def read_answer6(ask: Inject, protocol: int, body: bytes, who: str) -> str:
    """The same for IPv6, whose raw sockets give what is behind the header: `body`, from `who`."""
    if protocol == _ICMP6 and len(body) >= 8:
        kind, code, quoted = body[0], body[1], body[8:]
        if ask.protocol in (_ICMP, _ICMP6) and kind == 129 and body[4:6] == struct.pack("!H", ask.mark):
            return "echo reply"
        if kind in (1, 2, 3) and len(quoted) >= 40 and quoted[24:40] == ip_address(ask.target).packed:
            if kind != 1:
                return f"{'too big' if kind == 2 else 'time exceeded'}, said by {who}"
            words = {
                0: "no route",
                1: "administratively prohibited",
                3: "host unreachable",
                4: "port unreachable",
            }
            return f"{words.get(code, f'unreachable ({code})')}, said by {who}"
        return ""
    return _read_transport(ask, protocol, body)


def _read_transport(ask: Inject, protocol: int, body: bytes) -> str:
    if protocol != ask.protocol or len(body) < 8:
        return ""
    sport, dport = struct.unpack_from("!HH", body)
    if (sport, dport) != (ask.target_port, ask.source_port):
        return ""
    if protocol == _TCP:
        flags = body[13]
        return "refused (RST)" if flags & 4 else "accepted (SYN+ACK)" if flags & 18 == 18 else ""
    return "a datagram came back"


def _end(address: bytes, port: bytes) -> str:
    text, number = str(ip_address(address)), int.from_bytes(port, "big")
    return f"[{text}]:{number}" if is_six(text) else f"{text}:{number}"


def inject(namespace: Path | None, ask: Inject) -> str:
    """Send it from a namespace (None: the caller's own) and give the answer; empty: none came in time.

    Raises ValueError, and OSError for what the namespace's own stack refuses (no route, no such address).
    """
    packet = make_packet(ask)

    six = is_six(ask.target)
    icmp = _ICMP6 if six else _ICMP
    kinds = tuple(dict.fromkeys((icmp if ask.protocol in (_ICMP, _ICMP6) else ask.protocol, icmp)))

    def sockets() -> list[socket.socket]:
        family = socket.AF_INET6 if six else socket.AF_INET
        found = [socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)]
        found += [socket.socket(family, socket.SOCK_RAW, kind) for kind in kinds]
        return found

    out, *listening = run_inside(namespace, sockets) if namespace is not None else sockets()
    try:
        if not six:
            out.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)  # ip(7): without it EACCES
        out.sendto(packet, (ask.target, 0))
        until = time.monotonic() + ask.seconds
        while (left := until - time.monotonic()) > 0:
            for one in select.select(listening, [], [], left)[0]:
                data, who = one.recvfrom(65536)
                if six:
                    answer = read_answer6(ask, kinds[listening.index(one)], data, str(who[0]))
                else:
                    answer = read_answer(ask, data)
                if answer:
                    return answer
        return ""
    finally:
        for one in (out, *listening):
            one.close()


def arm(traces: Iterable[Map], mark: int) -> None:
    """Have the programs of both families, each with its table of traces, record packets with this mark."""
    for table in traces:
        table.update(struct.pack("I", mark), bytes(table.value_size))


def collect(traces: Iterable[Map], mark: int, interfaces: dict[int, str]) -> list[Sighting]:
    """What they recorded, in order; the mark is forgotten."""
    key = struct.pack("I", mark)
    found: list[Sighting] = []
    for table in traces:
        raw = table.lookup(key)
        table.delete(key)
        if raw is not None:
            found += _read_traced(raw, interfaces)
    return found


def _read_traced(raw: bytes, interfaces: dict[int, str]) -> list[Sighting]:
    """struct traced."""
    layout = next(s for s in _SIGHTING.values() if len(raw) == 8 + _RECORDS * s.size)
    (count,) = struct.unpack_from("I", raw)
    found = []
    for i in range(min(count, _RECORDS)):
        at, ifindex, reason, src, dst, sport, dport, vni = layout.unpack_from(raw, 8 + i * layout.size)
        name = interfaces.get(ifindex, f"interface {ifindex}")
        if reason != _SEEN:
            word = REASONS[reason] if reason < len(REASONS) else str(reason)
            found.append(Sighting(at=at, interface=name, reason=word))
            continue
        ends = f"{_end(src, sport)} > {_end(dst, dport)}"
        found.append(Sighting(at=at, interface=name, packet=ends, vni=vni))
    return found
