"""What a host says of itself when it is asked to look: differences between what its network should be and what it is, and
where a marked packet was seen.

Owns the words. Must not know how a host looks.
"""

from __future__ import annotations

from typing import Union

import msgspec


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """`about`: addresses and endpoint GUIDs it concerns; none: everything on the host."""

    what: str  # one sentence, with the names
    remedy: str
    about: tuple[str, ...] = ()


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """A marked packet at one program of a host. `reason`: "" when it came by (then the addresses are given), else what
    became of it, in the words of network/vfp/reasons.py."""

    at: int  # ns, the host's own monotonic clock
    interface: str
    reason: str = ""
    packet: str = ""
    vni: int = 0


# -- questions ---------------------------------------------------------------------------------------------------


class Examine(msgspec.Struct, frozen=True, tag="examine"):
    """Compare the kernel's state with what it should be."""


class Arm(msgspec.Struct, frozen=True, tag="arm"):
    """Record packets with this mark."""

    mark: int


class Inject(msgspec.Struct, frozen=True, tag="inject", kw_only=True):
    """Send one packet with the mark, as a program of the task would (no task: of the host itself), and wait for an
    answer for `seconds`."""

    mark: int
    task_id: str
    source: str
    target: str
    protocol: int
    source_port: int
    target_port: int
    seconds: float = 1.0


class Collect(msgspec.Struct, frozen=True, tag="collect"):
    """What was seen of this mark; it is forgotten then."""

    mark: int


Question = Union[Examine, Arm, Inject, Collect]


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to any of them. `answer`: what came back to an injected packet; `error`: why it could not be done."""

    findings: tuple[Finding, ...] = ()
    sightings: tuple[Sighting, ...] = ()
    answer: str = ""
    error: str = ""
