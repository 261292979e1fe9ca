"""Unified flows in the kernel: the generation they are decided by, and reading them.

Owns the layout of `unified_flows`, `generation` and `watched` of bpf/types.h. Must not decide about packets.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Mapping

import msgspec

from overlace.model.protocols import TCP
from overlace.network.counted import Hit
from overlace.network.vfp.flows import TUNNEL, UnifiedFlow, Verdict
from overlace.network.vfp.model import HOST_PORT, Packet

from .bpf_syscall import Map
from .family import V6

WATCH = 120  # seconds; who follows flows looks more often
_ZERO = bytes(4)
_AT_TUNNEL = 1 << 31
# struct unified_key and struct unified_flow, by the bytes of an address and, of the flow, those of a host's
_KEY = {n: struct.Struct(f"=I{n}s{n}s2s2sB3x") for n in (4, 16)}
_UNIFIED = {
    (n, h): struct.Struct(f"=III{n}s{n}s2s2s{h}s{h}sII6s6s6sBBI8xQQ64x") for n in (4, 16) for h in (4, 16)
}
# struct flow_key, and of struct flow: source, destination, their ports, kind
_FLOW_KEY = {(n, h): struct.Struct(f"=I{n}s{n}s2s2s{4 if h == 4 else 20}x") for n in (4, 16) for h in (4, 16)}
_FLOW = {(n, h): struct.Struct(f"={n}s{n}s2s2s{28 if h == 4 else 44}xB") for n in (4, 16) for h in (4, 16)}
_CHOSEN = 4
_JUDGED = struct.Struct("=QHH4xQQ")  # struct judged, one for IN and one for OUT at the end of struct way
_MANY_RULES = 4095
_FIN, _RST = 1, 4
_VERDICTS: dict[int, Verdict] = {1: "deliver", 2: "encapsulate", 3: "underlay", 4: "host", 5: "loopback"}


def renew(generation: Map) -> None:
    """Have every flow decided anew at its next packet: after the tables changed. Never 0, which is no generation."""
    (now,) = struct.unpack("I", generation.lookup(_ZERO) or _ZERO)
    generation.update(_ZERO, struct.pack("I", (now + 1) & 0xFFFFFFFF or 1))


def watch(watched: Map, seconds: int = WATCH) -> None:
    """Have every connection remembered from its first packet on, for so many seconds. Else a TCP connection that only its
    endpoints have a say in gets its row with its eighth packet one way."""
    until = (time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> 30) + seconds
    watched.update(_ZERO, struct.pack("I", until))


def watched(watched: Map) -> int:
    """For how many seconds to come every connection is remembered; 0: short ones are not, and were not."""
    (until,) = struct.unpack("I", watched.lookup(_ZERO) or _ZERO)
    return max(0, int(until) - (time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> 30))


def _packet(protocol: int, src: bytes, dst: bytes, sport: bytes, dport: bytes) -> Packet:
    return Packet(
        _text(src), _text(dst), protocol, int.from_bytes(sport, "big"), int.from_bytes(dport, "big")
    )


def _text(octets: bytes) -> str:
    return ".".join(map(str, octets)) if len(octets) == 4 else V6.text(octets)


def _layouts(ways: Map) -> tuple[struct.Struct, struct.Struct]:
    octets = 4 if ways.key_size == _KEY[4].size else 16
    return _KEY[octets], next(
        _UNIFIED[octets, h] for h in (4, 16) if _UNIFIED[octets, h].size == ways.value_size
    )


def read(ways: Map, generation: Map) -> Iterator[UnifiedFlow]:
    """Every flow that `ways` holds, either family's, in no order. `idle` has the kernel's resolution, about a second."""
    key_of, row_of = _layouts(ways)
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> 30
    (current,) = struct.unpack("I", generation.lookup(_ZERO) or _ZERO)
    for key, value in ways.items():
        point, src, dst, sport, dport, protocol = key_of.unpack(key)
        (
            made_by, _, seen, to_src, to_dst, to_sport, to_dport, came_from, provider, vni, ifindex, _, _, mac,
            verdict, flags, began, packets, size,
        ) = row_of.unpack(value)  # fmt: skip
        tunnelled = bool(point & _AT_TUNNEL)
        yield UnifiedFlow(
            point=TUNNEL if tunnelled else "",
            ifindex=0 if tunnelled else point,
            came=_packet(protocol, src, dst, sport, dport),
            went=_packet(protocol, to_src, to_dst, to_sport, to_dport),
            verdict=_VERDICTS[verdict],
            vni=point & ~_AT_TUNNEL if tunnelled else vni,
            from_provider=_text(came_from) if tunnelled else "",
            provider_address=_text(provider) if verdict == 2 else "",
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


class Asked(msgspec.Struct, frozen=True):
    """A TCP connection whose backend the socket level chose, as packets from the client name it; `vni`: its network's."""

    vni: int
    src: str
    sport: int
    dst: str
    dport: int


def services(flows: Map) -> dict[Asked, str]:
    """Rows of kind F_CHOSEN in `flows`: which service the client asked for."""
    octets, host = next(each for each, layout in _FLOW_KEY.items() if layout.size == flows.key_size)
    key_of, flow_of = _FLOW_KEY[octets, host], _FLOW[octets, host]
    found = {}
    for key, value in flows.items():
        _, front, _, front_port, kind = flow_of.unpack_from(value)
        if kind != _CHOSEN:
            continue
        vni, src, dst, sport, dport = key_of.unpack(key)
        asked = Asked(vni, _text(src), int.from_bytes(sport, "big"), _text(dst), int.from_bytes(dport, "big"))
        name = f"[{_text(front)}]" if octets == 16 else _text(front)
        found[asked] = f"{name}:{int.from_bytes(front_port, 'big')}"
    return found


def service_of(flow: UnifiedFlow, known: Mapping[Asked, str], vni_of: Callable[[str], int]) -> str:
    """The service a flow of a client on this host belongs to, either direction; empty: none, or packets name it.
    `vni_of`: the network of a local endpoint, by GUID."""
    p = flow.came
    out = Asked(vni_of(flow.point), p.src, p.sport, p.dst, p.dport)
    back = Asked(vni_of(flow.to_endpoint), p.dst, p.dport, p.src, p.sport)
    return (known.get(out) or known.get(back) or "") if p.protocol == TCP else ""


def named(
    maps: Mapping[str, Map], names: Mapping[int, str], vni_of: Callable[[str], int]
) -> list[UnifiedFlow]:
    """Every flow, with the GUIDs of local endpoints, by ifindex in `names`, and the services of connections."""
    found = [
        msgspec.structs.replace(
            flow,
            point=flow.point or names.get(flow.ifindex, HOST_PORT),
            to_endpoint=names.get(flow.to_ifindex, ""),
        )
        for table in ("unified_flows", "unified_flows6")
        for flow in read(maps[table], maps["generation"])
    ]
    asked = {**services(maps["flows"]), **services(maps["flows6"])}
    return [msgspec.structs.replace(flow, service=service_of(flow, asked, vni_of)) for flow in found]


def uncounted(ways: Map) -> Iterator[Hit]:
    """What flows carried since they were last decided, which the rules they were decided by have not counted yet."""
    _, row_of = _layouts(ways)
    for key, value in ways.items():
        fields = row_of.unpack(value)
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
