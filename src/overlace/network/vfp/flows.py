"""Unified flows as people look at them: what the layers together made of a connection.

Owns the record. Must not know where flows are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from overlace.network.vfp.model import Packet

Verdict = Literal["deliver", "encapsulate", "underlay", "host", "loopback"]
TUNNEL = "tunnel"
Closed = Literal["", "fin", "rst"]


class UnifiedFlow(msgspec.Struct, frozen=True, kw_only=True):
    """One direction of a connection at the place where it enters this host's switch.

    `verdict`: deliver (into a container), encapsulate (to another host), underlay (a translated answer to a client
    outside), host (to the host's own stack: outbound NAT), loopback (to a client on this host).
    """

    point: str  # GUID of the local endpoint it comes from; "tunnel", "host" (plain on the underlay, or lo)
    ifindex: int  # the interface it comes in by; 0: the tunnel
    came: Packet
    went: Packet  # what differs was rewritten
    verdict: Verdict
    vni: int  # of the tunnel it comes from or goes into; 0: neither
    from_provider: str  # out of the tunnel: the host it must come from
    provider_address: str  # encapsulate: the host it goes to
    to_ifindex: int  # deliver: the container's interface, host side
    mac: str  # destination MAC it goes on with
    packets: int
    bytes: int  # of IP packets
    idle: int  # seconds, about
    generation: int
    current: bool  # decided by the tables as they are; else decided anew at its next packet
    seconds: int = 0  # from its first packet to its newest, about
    closed: Closed = ""  # TCP: what ended it; its last packets may be yet to come
    to_endpoint: str = ""  # deliver: GUID of the local endpoint
    service: str = ""  # address and port a client here asked for, when its socket was given the backend


class TableFill(msgspec.Struct, frozen=True, kw_only=True):
    """One table of the data path. `evicts`: full, the oldest rows give way; otherwise new ones are refused."""

    name: str
    rows: int
    capacity: int
    evicts: bool
    is_full: bool


def close_both(flows: Iterable[UnifiedFlow]) -> list[UnifiedFlow]:
    """The same flows: a reset closes the other direction, too."""
    flows = list(flows)
    reset = {_reversed(f.went) for f in flows if f.closed == "rst"}
    return [
        msgspec.structs.replace(f, closed="rst") if reset and f.came in reset and not f.closed else f
        for f in flows
    ]


def _reversed(p: Packet) -> Packet:
    return Packet(p.dst, p.src, p.protocol, p.dport, p.sport)
