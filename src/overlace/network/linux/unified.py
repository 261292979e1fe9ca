"""Unified flows in the kernel: the generation they are decided by, and reading them.

Owns the layout of `ways` and `generation` of bpf/types.h. Must not decide about packets.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

from overlace.network.vfp.flows import TUNNEL, UnifiedFlow, Verdict
from overlace.network.vfp.model import Packet

from .bpf_syscall import Map

_ZERO = bytes(4)
_AT_TUNNEL = 1 << 31
# struct way_key and struct way
_KEY = struct.Struct("=I4s4s2s2sB3x")
_WAY = struct.Struct("=III4s4s2s2s4s4sII6s6s6sBB4xQQ64x")
_VERDICTS: dict[int, Verdict] = {1: "deliver", 2: "encapsulate", 3: "underlay", 4: "host", 5: "loopback"}


def renew(generation: Map) -> None:
    """Have every flow decided anew at its next packet: after the tables changed. Never 0, which is no generation."""
    (now,) = struct.unpack("I", generation.lookup(_ZERO) or _ZERO)
    generation.update(_ZERO, struct.pack("I", (now + 1) & 0xFFFFFFFF or 1))


def _packet(protocol: int, src: bytes, dst: bytes, sport: bytes, dport: bytes) -> Packet:
    return Packet(
        ".".join(map(str, src)), ".".join(map(str, dst)), protocol,
        int.from_bytes(sport, "big"), int.from_bytes(dport, "big"),
    )  # fmt: skip


def read(ways: Map, generation: Map) -> Iterator[UnifiedFlow]:
    """Every flow the kernel remembers, in no order. `idle` has the data path's resolution, about a second."""
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> 30
    (current,) = struct.unpack("I", generation.lookup(_ZERO) or _ZERO)
    for key, value in ways.items():
        point, src, dst, sport, dport, protocol = _KEY.unpack(key)
        (
            made_by, _, seen, to_src, to_dst, to_sport, to_dport, came_from, provider, vni, ifindex, _, _, mac,
            verdict, _, packets, size,
        ) = _WAY.unpack(value)  # fmt: skip
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
            generation=made_by,
            current=made_by == current,
        )
