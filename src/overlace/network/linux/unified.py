"""Unified flows in the kernel: the generation they are decided by, and reading them.

Owns the layout of `ways` and `generation` of bpf/types.h. Must not decide about packets.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

from overlace.network.counted import Hit
from overlace.network.vfp.flows import TUNNEL, UnifiedFlow, Verdict
from overlace.network.vfp.model import Packet

from .bpf_syscall import Map
from .family import V6

_ZERO = bytes(4)
_AT_TUNNEL = 1 << 31
# struct way_key and struct way, by the bytes of an address
_KEY = {n: struct.Struct(f"=I{n}s{n}s2s2sB3x") for n in (4, 16)}
_WAY = {n: struct.Struct(f"=III{n}s{n}s2s2s4s4sII6s6s6sBBIQQ64x") for n in (4, 16)}
_JUDGED = struct.Struct("=QHH4xQQ")  # struct judged, one for IN and one for OUT at the end of struct way
_MANY_RULES = 4095
_FIN, _RST = 1, 4
_VERDICTS: dict[int, Verdict] = {1: "deliver", 2: "encapsulate", 3: "underlay", 4: "host", 5: "loopback"}


def renew(generation: Map) -> None:
    """Have every flow decided anew at its next packet: after the tables changed. Never 0, which is no generation."""
    (now,) = struct.unpack("I", generation.lookup(_ZERO) or _ZERO)
    generation.update(_ZERO, struct.pack("I", (now + 1) & 0xFFFFFFFF or 1))


def _packet(protocol: int, src: bytes, dst: bytes, sport: bytes, dport: bytes) -> Packet:
    return Packet(
        _text(src), _text(dst), protocol, int.from_bytes(sport, "big"), int.from_bytes(dport, "big")
    )


def _text(octets: bytes) -> str:
    return ".".join(map(str, octets)) if len(octets) == 4 else V6.text(octets)


def read(ways: Map, generation: Map) -> Iterator[UnifiedFlow]:
    """Every flow that `ways` holds, either family's, in no order. `idle` has the kernel's resolution, about a second."""
    octets = 4 if ways.key_size == _KEY[4].size else 16
    key_of, way_of = _KEY[octets], _WAY[octets]
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> 30
    (current,) = struct.unpack("I", generation.lookup(_ZERO) or _ZERO)
    for key, value in ways.items():
        point, src, dst, sport, dport, protocol = key_of.unpack(key)
        (
            made_by, _, seen, to_src, to_dst, to_sport, to_dport, came_from, provider, vni, ifindex, _, _, mac,
            verdict, flags, began, packets, size,
        ) = way_of.unpack(value)  # fmt: skip
        tunnelled = bool(point & _AT_TUNNEL)
        yield UnifiedFlow(
            point=TUNNEL if tunnelled else "",
            ifindex=0 if tunnelled else point,
            came=_packet(protocol, src, dst, sport, dport),
            went=_packet(protocol, to_src, to_dst, to_sport, to_dport),
            verdict=_VERDICTS[verdict],
            vni=point & ~_AT_TUNNEL if tunnelled else vni,
            from_provider=".".join(map(str, came_from)) if tunnelled else "",
            provider_address=".".join(map(str, provider)) if verdict == 2 else "",
            to_ifindex=ifindex,
            mac=mac.hex(":"),
            packets=packets,
            bytes=size,
            idle=max(0, now - seen),
            seconds=max(0, seen - began),
            closed="rst" if flags & _RST else "fin" if flags & _FIN else "",
            generation=made_by,
            current=made_by == current,
        )


def uncounted(ways: Map) -> Iterator[Hit]:
    """What flows carried since they were last decided, which the rules they were decided by have not counted yet."""
    way_of = _WAY[4 if ways.key_size == _KEY[4].size else 16]
    for key, value in ways.items():
        fields = way_of.unpack(value)
        into, packets, size = fields[10], fields[-2], fields[-1]
        (point,) = struct.unpack_from("I", key)
        for direction, ifindex in enumerate((into, point)):
            at = len(value) - (2 - direction) * _JUDGED.size
            number, rule, passed, counted, counted_bytes = _JUDGED.unpack_from(value, at)
            if not rule or packets == counted:
                continue
            for place in (rule, passed) if 0 < passed < _MANY_RULES else (rule,):
                yield Hit(
                    number, ifindex, place - 1, 0, packets - counted, size - counted_bytes, is_late=True
                )
