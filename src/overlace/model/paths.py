"""The way between two hosts as it was measured: what agents report and managers show.

Owns the words. Must not know how it is measured.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from overlace.model.family import is_six

PathWord = Literal["new", "ok", "lossy", "down"]
FragmentWord = Literal["", "ok", "lost"]
ChecksumWord = Literal["", "ok", "bad", "mended"]


def tunnel_overhead(address: str) -> int:
    """Bytes around an inner IP packet on the underlay of hosts with such addresses: outer IPv4 (20) or IPv6 (40) header,
    UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348 section 5)."""
    return 70 if is_six(address) else 50


class PathState(msgspec.Struct, frozen=True, kw_only=True):
    """From the host that reports it to `node`, through the tunnel's own port. `new`: not enough answers yet."""

    node: str  # id of the other host
    address: str  # its underlay address
    state: PathWord = "new"
    loss: int = 0  # percent of the last probes
    rtt: int = 0  # microseconds, median of the last answers; 0: none
    jitter: int = 0  # microseconds between the slow and the fast of them
    mtu: int = 0  # bytes of the largest IP packet that gets through on the underlay; 0: not known yet
    checksum: ChecksumWord = ""  # what becomes of checksums the network card computes inside the tunnel
    fragments: FragmentWord = ""  # what becomes of packets that take the kernel's own way, being too large
    since: int = 0  # ns since the epoch: when `state` was entered
    route: str = (
        ""  # when it is down: what is wrong with the host's own route there ("no route"); empty: nothing is
    )


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """Something a person should hear of: an event of type "overlace", and a line in the log."""

    action: str
    id: str  # what it is about: two host names, a network, a table
    attributes: dict[str, str] = {}
