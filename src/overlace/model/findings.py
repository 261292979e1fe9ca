"""What a host says of itself when it is asked to look: differences between what its network should be and what it is, and
where a marked packet was seen.

Owns the words. Must not know how a host looks.
"""

from __future__ import annotations

from typing import Union

import msgspec


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """`about`: addresses and endpoint GUIDs it concerns; none: everything on the host. `port`: the one of the host's
    ports it concerns, as 22/tcp; "": no port alone. `mild`: packets flow all the same."""

    what: str  # one sentence, with the names
    remedy: str
    about: tuple[str, ...] = ()
    port: str = ""
    mild: bool = False


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """A marked packet at one program of a host. `reason`: "" when it came by (then the addresses are given), else what
    became of it, in the words of network/vfp/reasons.py."""

    at: int  # ns, the host's own monotonic clock
    interface: str
    reason: str = ""
    packet: str = ""
    vni: int = 0


class Socket(msgspec.Struct, frozen=True, kw_only=True):
    """One that takes connections (TCP, SCTP) or datagrams (UDP) of anybody. `waiting`: connections the program has not
    accepted yet; `stopped`: every process that holds it is stopped (SIGSTOP)."""

    address: str
    port: int
    waiting: int = 0
    stopped: bool = False


class OpenSockets(msgspec.Struct, frozen=True, kw_only=True):
    """Those of one task, of the protocol asked about. `error`: why they are not known."""

    task_id: str
    sockets: tuple[Socket, ...] = ()
    error: str = ""


# -- questions ---------------------------------------------------------------------------------------------------


class Examine(msgspec.Struct, frozen=True, tag="examine"):
    """Compare the kernel's state with what it should be, and say at which ports of a protocol (IP number) these tasks
    listen."""

    tasks: tuple[str, ...] = ()
    protocol: int = 0


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
    """The answer to any of them. `answer`: what came back to an injected packet; `error`: why it could not be done,
    `unable`: no packet can be marked on such a host at all; `listening`: one for each task asked about (an agent of
    before that was asked: none)."""

    findings: tuple[Finding, ...] = ()
    listening: tuple[OpenSockets, ...] = ()
    sightings: tuple[Sighting, ...] = ()
    answer: str = ""
    error: str = ""
    unable: bool = False
