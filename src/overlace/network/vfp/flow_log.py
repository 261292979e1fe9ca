"""What happened to connections between two looks at the switch: opened, ended, dropped. Pure.

Owns the comparison. A look reads what the programs count anyway, in batches, so that nothing is done per packet; a
connection shorter than the time between two looks is still there at the second, since the switch remembers it until it
needs the room. Must not know where records go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from overlace.model.protocols import WORDS
from overlace.network.vfp.flows import UnifiedFlow

IDLE = 30  # seconds without a packet: what no TCP segment closed, or what went away without a word
CLOSED_IDLE = 2  # the same for what TCP closed: its last answers have come by then
Event = Literal["found", "opened", "ended", "dropped", "limited"]


class Seen(msgspec.Struct, frozen=True):
    """One direction of a connection at one look. `facts`: what is written down of it. `seconds`: from its first packet to
    its newest; `closed`: TCP has ended it."""

    key: str
    packets: int
    bytes: int
    idle: int
    facts: dict[str, object]
    seconds: int = 0
    closed: str = ""

    @property
    def is_over(self) -> bool:
        return self.idle >= (CLOSED_IDLE if self.closed else IDLE)


class Happened(msgspec.Struct, frozen=True):
    """`packets`, `bytes`: opened, found: so far; ended: of all its life as far as it was watched; dropped: since the look
    before. `seconds`, `why` (fin, rst, idle, forgotten): of one that ended."""

    event: Event
    packets: int
    bytes: int
    facts: dict[str, object]
    seconds: int = 0
    why: str = ""


class _Known(msgspec.Struct, frozen=True):
    seen: Seen
    packets: int = 0  # of earlier lives of this name
    bytes: int = 0
    ended: bool = False
    seconds: int = 0  # it had when this life began


def see(flow: UnifiedFlow) -> Seen:
    """As the log writes it: numbers and addresses apart, rewrites only where there are any."""
    came, went = flow.came, flow.went
    facts: dict[str, object] = {
        "port": flow.point,
        "protocol": WORDS.get(came.protocol, str(came.protocol)),
        "src": came.src,
        "sport": came.sport,
        "dst": came.dst,
        "dport": came.dport,
        "verdict": flow.verdict,
    }
    if went != came:
        facts["went"] = {"src": went.src, "sport": went.sport, "dst": went.dst, "dport": went.dport}
    named = {"vni": flow.vni, "from": flow.from_provider, "to": flow.provider_address or flow.to_endpoint}
    named["service"] = flow.service
    facts |= {name: value for name, value in named.items() if value}
    key = f"{flow.point} {flow.ifindex} {flow.vni if not flow.ifindex else 0} {came}"
    return Seen(key, flow.packets, flow.bytes, flow.idle, facts, flow.seconds, flow.closed)


class FlowLog:
    """What is known since the look before."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] | None = None
        self._drops: dict[tuple[str, str], int] | None = None

    def look(self, flows: Iterable[Seen]) -> list[Happened]:
        """What happened since the last look; at the first, what is there."""
        first, before = self._known is None, self._known or {}
        after: dict[str, _Known] = {}
        out: list[Happened] = []
        for seen in flows:
            old = before.get(seen.key)
            over = seen.is_over
            if old is not None and (seen.packets < old.seen.packets or seen.bytes < old.seen.bytes):
                if not old.ended:  # forgotten, and begun anew
                    out.append(_ended(old, "forgotten"))
                old = None
            if old is None:
                known = _Known(seen, ended=over)
                if not over or (seen.closed and not first):
                    out.append(Happened("found" if first else "opened", seen.packets, seen.bytes, seen.facts))
                if over and seen.closed and not first:
                    out.append(_ended(known))
            elif old.ended and seen.packets > old.seen.packets and not seen.closed:
                known = _Known(seen, old.seen.packets, old.seen.bytes, seconds=seen.seconds)
                gained = (seen.packets - known.packets, seen.bytes - known.bytes)
                out.append(Happened("opened", *gained, seen.facts))
            else:
                known = msgspec.structs.replace(old, seen=seen, ended=old.ended or over)
                if known.ended and not old.ended:
                    out.append(_ended(known))
            after[seen.key] = known
        out += [_ended(old, "forgotten") for key, old in before.items() if key not in after and not old.ended]
        self._known = after
        return out

    def drops(self, counted: Mapping[tuple[str, str], int]) -> list[Happened]:
        """What was dropped since the last look, by (network, reason)."""
        before, self._drops = self._drops, dict(counted)
        if before is None:
            return []
        out = []
        for (network, reason), n in counted.items():
            more = n - before.get((network, reason), 0)
            if more > 0:
                event: Event = "limited" if reason == "drop_rate" else "dropped"
                out.append(Happened(event, more, 0, {"network": network, "reason": reason}))
        return out


def _ended(known: _Known, why: str = "idle") -> Happened:
    seen = known.seen
    packets, size = seen.packets - known.packets, seen.bytes - known.bytes
    seconds = seen.seconds - known.seconds if seen.seconds >= known.seconds else seen.seconds
    return Happened("ended", packets, size, seen.facts, seconds, seen.closed or why)
