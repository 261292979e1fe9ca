"""The network figures: throughput, packets, request-response and connections over every path, round by round.

Owns which figures there are, their targets, and the order of measuring. In each round every path is measured once,
one right after the other, so that the round's ratio says something on a machine that is never quiet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from measure import places, programs
from measure.figures import Figure, Peer, Target
from measure.paths import Paths, Way, build, set_segmentation, slow_path
from overlace.model.errors import OverlaceError

Say = Callable[[str], None]
DOCKER, BARE, VETH, DIRECT = "docker's design", "bare underlay", "veth pair", "own address"
IPV4, OVER_IPV4 = "the same by IPv4", "the same over IPv4"


class Kind(msgspec.Struct, frozen=True):
    """One way of measuring, and what the ratio to each peer should be.

    Targets: reached by prototypes of these designs, measured like this on a machine with two processors.
    """

    name: str
    unit: str
    how: str  # tcp, or what `traffic` is asked for
    targets: dict[str, float | None]
    streams: int = 1


ACROSS = (
    Kind("TCP, 1 stream", "Gb/s", "tcp", {DOCKER: 1.1, BARE: 0.70}),
    Kind("TCP, 4 streams", "Gb/s", "tcp", {DOCKER: 1.1, BARE: 0.70}, 4),
    Kind("UDP, 64 bytes", "packets/s", "udp", {DOCKER: 1.8, BARE: 0.70}),
    Kind("request-response", "/s", "rr", {DOCKER: 1.3, BARE: 0.75}),
    Kind("connect-request-close", "/s", "crr", {DOCKER: 1.4, BARE: 0.80}),
)
WITHOUT_TSO = (Kind("TCP, 1 stream, underlay without TSO", "Gb/s", "tcp", {DOCKER: 1.05, BARE: 0.65}),)
WITHOUT_GRO = (
    Kind("TCP, 1 stream, underlay without TSO and GRO", "Gb/s", "tcp", {DOCKER: 1.05, BARE: 0.65}),
)
SLOW = (
    Kind("TCP, 1 stream", "Gb/s", "tcp", {DOCKER: 0.97, BARE: 0.60}),
    Kind("UDP, 64 bytes", "packets/s", "udp", {DOCKER: 1.15, BARE: 0.42}),
    Kind("request-response", "/s", "rr", {DOCKER: 1.05, BARE: 0.60}),
    Kind("connect-request-close", "/s", "crr", {DOCKER: 1.05, BARE: 0.58}),
)
SAME_HOST = (
    Kind("TCP, 1 stream", "Gb/s", "tcp", {DOCKER: 0.95, VETH: 0.85}),
    Kind("UDP, 64 bytes", "packets/s", "udp", {DOCKER: 1.2, VETH: 0.85}),
    Kind("request-response", "/s", "rr", {DOCKER: None, VETH: None}),
    Kind("connect-request-close", "/s", "crr", {DOCKER: None, VETH: None}),
)
# A load balancer's price, from the CPU per connection (1.09) and per request (1.04) of the same prototypes.
SERVICES = (
    Kind("TCP, 1 stream", "Gb/s", "tcp", {DIRECT: None}),
    Kind("request-response", "/s", "rr", {DIRECT: 0.95}),
    Kind("connect-request-close", "/s", "crr", {DIRECT: 0.90}),
)
# IPv6 has 20 bytes more of header and a lookup key of 44 bytes for 20.
INSIDE = (
    Kind("TCP, 1 stream", "Gb/s", "tcp", {IPV4: 0.9}),
    Kind("UDP, 64 bytes", "packets/s", "udp", {IPV4: 0.9}),
    Kind("request-response", "/s", "rr", {IPV4: 0.9}),
    Kind("connect-request-close", "/s", "crr", {IPV4: 0.9}),
)
# Twenty bytes more of outer header, and addresses of 16 bytes to compare.
UNDER = tuple(
    Kind(kind.name, kind.unit, kind.how, {OVER_IPV4: kind.targets[IPV4]}, kind.streams) for kind in INSIDE
)


@contextlib.contextmanager
def serving(programs_dir: Path, say: Say) -> Iterator[Paths]:
    """All paths, built, with servers at their ends. A path that cannot be built raises; places.remove_all() takes
    away what was made."""
    say("network: building the paths")
    ways = build()
    servers: dict[tuple[str, int], programs.Server] = {}
    try:
        for way in (
            *ways.across.values(),
            *ways.same_host.values(),
            *ways.services.values(),
            *ways.six.values(),
            *ways.over6.values(),
        ):
            if (way.server, way.port) not in servers:
                servers[way.server, way.port] = programs.Server(
                    programs_dir, way.server, way.port, six=":" in way.address
                )
        yield ways
    finally:
        for server in servers.values():
            server.stop()
        ways.stop()


def measure(programs_dir: Path, ways: Paths, rounds: int, seconds: float, say: Say) -> Iterator[Figure]:
    """Measure all figures and yield each when it is done. What cannot be measured stays None in its samples and is
    said."""
    groups = (
        ("network: between two hosts", ways.across, ACROSS, (True, True)),
        ("network: between two hosts", ways.across, WITHOUT_TSO, (False, True)),
        ("network: between two hosts", ways.across, WITHOUT_GRO, (False, False)),
        ("network: on one host", ways.same_host, SAME_HOST, (True, True)),
        (
            "network: a service's virtual address, its backend on another host",
            ways.services,
            SERVICES,
            (True, True),
        ),
        ("network: IPv6 inside the overlay, between two hosts", ways.six, INSIDE, (True, True)),
        ("network: IPv6 underlay, between two hosts", ways.over6, UNDER, (True, True)),
    )
    for group, between, kinds, segmentation in groups:
        set_segmentation(*segmentation)
        yield from compare(programs_dir, group, between, kinds, rounds, seconds, say)
    set_segmentation(True, True)
    with slow_path(ways) as slow:
        server = programs.Server(programs_dir, slow.server, slow.port)
        try:
            between = {**ways.across, "overlace": slow}
            group = "network: between two hosts, out through the kernel's vxlan device (slow path)"
            yield from compare(programs_dir, group, between, SLOW, rounds, seconds, say)
        finally:
            server.stop()


def compare(
    programs_dir: Path,
    group: str,
    between: dict[str, Way],
    kinds: tuple[Kind, ...],
    rounds: int,
    seconds: float,
    say: Say,
) -> Iterator[Figure]:
    """A figure of each kind: `overlace` against the other ways there are."""
    for kind in kinds:
        say(f"{group}: {kind.name}")
        peers = [
            Peer(name, Target(at_least=t) if t else None)
            for name, t in kind.targets.items()
            if name in between
        ]
        figure = Figure(kind.name, kind.unit, peers, group=group)
        for _ in range(rounds):
            for name, way in between.items():
                value = _measure_once(programs_dir, kind, way, seconds, say)
                samples = figure.samples if name == "overlace" else figure.peer(name).samples
                samples.append(value)
        yield figure


def _measure_once(programs_dir: Path, kind: Kind, way: Way, seconds: float, say: Say) -> float | None:
    try:
        if kind.how == "tcp":
            return programs.ask_throughput(way.client, way.address, way.port, seconds, kind.streams)
        return programs.ask_rate(programs_dir, kind.how, way.client, way.address, way.port, seconds)
    except (OverlaceError, ValueError, KeyError) as error:
        say(f"  {way.name}: {kind.name} could not be measured: {error}")
        return None


def programs_folder() -> Path:
    """The compiled programs, built now."""
    folder = places.scratch("programs")
    programs.compile_programs(folder)
    return folder
