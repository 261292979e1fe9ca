"""What does not show on an empty host: many endpoints and services, many layers, and the load balancer against those
of the kernel.

Owns these figures and what they put into the tables, which is taken out again. Must not build paths (paths.py does).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import programs
from measure.datapath_host import DataPathHost
from measure.figures import Figure, Peer, Target
from measure.paths import A1, B1, PREFIX, VNI, Paths, mac_of
from measure.places import PAIRS, inside
from overlace.lab.shell import run
from overlace.model.errors import Internal, OverlaceError
from overlace.network.vfp.tables import (
    AccessList,
    AccessRule,
    Backend,
    Delta,
    Entry,
    Frontend,
    LocalEndpoint,
    RemoteEndpoint,
)

Say = Callable[[str], None]
GROUP = "network: at scale"
ENDPOINTS, SERVICES = 100_000, 10_000
TIERS, RULES = 7, 20  # beside the endpoint's own routing: eight layers of rules
COUNTS = (1, 1_000, 10_000)
FEW, ONE = "few entries", "one layer"


def measure(folder: Path, ways: Paths, rounds: int, seconds: float, say: Say) -> Iterator[Figure]:
    """All of them; each leaves the tables as they were."""
    yield from _size(folder, ways, rounds, seconds, say)
    yield _layers(folder, ways, rounds, seconds, say)
    yield from _services(folder, ways, rounds, seconds, say)


def _address(base: int, i: int) -> str:
    return f"10.{base + (i >> 16)}.{i >> 8 & 255}.{i & 255}"


@contextlib.contextmanager
def _entries(ways: Paths, put: tuple[Entry, ...]) -> Iterator[None]:
    host = ways.hosts[0]
    host.call("apply", Delta(put=put))
    try:
        yield
    finally:
        host.call("apply", Delta(remove=tuple(e.key for e in put)))


def _services_of(count: int) -> tuple[Frontend, ...]:
    """All of them the measured backend's."""
    return tuple(Frontend(VNI, _vip(i), 0, 0, (Backend(VNI, B1),)) for i in range(count))


def _vip(i: int) -> str:
    """In the network's subnet, as a swarm's are, behind the containers' addresses."""
    return f"10.1.{64 + (i >> 8)}.{i & 255}"


def _size(folder: Path, ways: Paths, rounds: int, seconds: float, say: Say) -> Iterator[Figure]:
    say(f"{GROUP}: {ENDPOINTS} remote endpoints, {SERVICES} services")
    provider = PAIRS["overlace"][1].address
    remotes = (RemoteEndpoint(VNI, _address(64, i), "02:42:0a:40:00:01", provider) for i in range(ENDPOINTS))
    many: tuple[Entry, ...] = (*remotes, *_services_of(SERVICES))
    way = ways.across["overlace"]
    kinds = (("UDP, 64 bytes", "packets/s", "udp"), ("connect-request-close", "/s", "crr"))
    figures = [
        Figure(
            f"{name}, {ENDPOINTS // 1000}k endpoints and {SERVICES // 1000}k services",
            unit,
            [Peer(FEW, Target(at_least=0.9))],
            group=GROUP,
        )
        for name, unit, _ in kinds
    ]

    def once(kind: str) -> float:
        return programs.ask_rate(folder, kind, way.client, way.address, way.port, seconds)

    host = ways.hosts[0]
    sizes = [
        Figure(f"{what}, {ENDPOINTS // 1000}k endpoints and {SERVICES // 1000}k services", "MB", [Peer(FEW)],
               group=GROUP, less_is_better=True)
        for what in ("memory of the kernel's tables", "memory of the process that fills them")
    ]  # fmt: skip
    # before the first filling: what a process once had it does not give back
    for figure, value in zip(sizes, (_tables_memory(host), _resident(host)), strict=True):
        figure.peers[0].samples.append(value)
    for turn in range(rounds):
        for figure, (_, _, kind) in zip(figures, kinds, strict=True):
            figure.peers[0].samples.append(_tried(lambda kind=kind: once(kind), say))  # type: ignore[misc]
        with _entries(ways, many):
            if not turn:
                for figure, value in zip(sizes, (_tables_memory(host), _resident(host)), strict=True):
                    figure.samples.append(value)
            for figure, (_, _, kind) in zip(figures, kinds, strict=True):
                figure.samples.append(_tried(lambda kind=kind: once(kind), say))  # type: ignore[misc]
    yield from (*figures, *sizes)


def _tables_memory(host: DataPathHost) -> float:
    """Megabytes the kernel accounts to the maps of a host."""
    total = 0
    for pin in Path(f"/sys/fs/bpf/overlace/{host.host.instance}/maps").iterdir():
        total += int(json.loads(run(["bpftool", "-j", "map", "show", "pinned", str(pin)]))["bytes_memlock"])
    return total / 1e6


def _resident(host: DataPathHost) -> float:
    """Megabytes of memory the host's process has."""
    status = Path(f"/proc/{host.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1e3


def _tried(measured: Callable[[], float], say: Say) -> float | None:
    try:
        return measured()
    except (OverlaceError, ValueError, KeyError) as error:
        say(f"  could not be measured: {error}")
        return None


def _tiers() -> tuple[AccessRule, ...]:
    """Rules that look at each packet and let it pass to the next tier; the last lets it through."""
    rules: list[AccessRule] = []
    for tier in range(TIERS):
        rules += [AccessRule("block", 6, (), (), (0, 65535), (i + 1, i + 1), tier) for i in range(RULES)]
        rules.append(AccessRule("pass", tier=tier))
    return (*rules, AccessRule("allow", tier=TIERS))


def _layers(folder: Path, ways: Paths, rounds: int, seconds: float, say: Say) -> Figure:
    """The sending program's time per packet, as the kernel counts it (sysctl kernel.bpf_stats_enabled)."""
    say(f"{GROUP}: one layer against {TIERS + 1}")
    figure = Figure(
        f"program time per packet, {TIERS + 1} layers", "ns", [Peer(ONE, Target(at_most=1.1))], group=GROUP,
        less_is_better=True,
    )  # fmt: skip
    plain = LocalEndpoint(VNI, A1, PREFIX, mac_of(A1), f"00000000-0000-0000-0000-{11:0>12}")
    into, out = (AccessList(VNI, A1, direction, _tiers()) for direction in ("IN", "OUT"))  # type: ignore[arg-type]
    guarded = LocalEndpoint(
        VNI, A1, PREFIX, plain.mac, plain.endpoint_id, inbound=into.number, outbound=out.number
    )
    host, way = ways.hosts[0], ways.across["overlace"]
    pin = f"/sys/fs/bpf/overlace/{host.host.instance}/progs/from_container"

    def per_packet() -> float:
        before = _runs(pin)
        programs.ask_rate(folder, "udp", way.client, way.address, way.port, seconds)
        count, took = (b - a for a, b in zip(before, _runs(pin), strict=True))
        if count <= 0:
            raise Internal("the program did not run")
        return took / count

    run(["sysctl", "-qw", "kernel.bpf_stats_enabled=1"])
    try:
        for _ in range(rounds):
            figure.peers[0].samples.append(_tried(per_packet, say))
            host.call("apply", Delta(put=(into, out, guarded)))
            figure.samples.append(_tried(per_packet, say))
            host.call("apply", Delta(put=(plain,), remove=(into.key, out.key)))
    finally:
        run(["sysctl", "-qw", "kernel.bpf_stats_enabled=0"])
    return figure


def _runs(pin: str) -> tuple[int, int]:
    """(runs, nanoseconds) of a pinned program so far."""
    shown = json.loads(run(["bpftool", "-j", "prog", "show", "pinned", pin]))
    return int(shown.get("run_cnt", 0)), int(shown.get("run_time_ns", 0))


def _services(folder: Path, ways: Paths, rounds: int, seconds: float, say: Say) -> Iterator[Figure]:
    """Connections through the last of many services, each relative to the same path without a service: what a load
    balancer costs; client and server share a processor, so it is processor time per connection turned round. Ours at the
    socket level, and at the packet level alone. The kernel's ones are set up on the bare underlay's client, as kube-proxy
    does it."""
    ours, bare = ways.across["overlace"], ways.across["bare underlay"]
    other_port = ways.services["overlace"].port  # one server must not see a connection under two names
    for count in COUNTS:
        say(f"{GROUP}: a service of {count}, against iptables and nft")
        figure = Figure(
            f"connect-request-close through a service of {count:,}, of the rate without", "x",
            [Peer("packet level"), Peer("iptables", Target(at_least=1.0)), Peer("nft map", Target(at_least=1.0))],
            group=GROUP,
        )  # fmt: skip
        last = _vip(count - 1)

        def relative(client: str, through: str, port: int, direct: str) -> float:
            balanced = programs.ask_rate(folder, "crr", client, through, port, seconds)
            return balanced / programs.ask_rate(folder, "crr", client, direct, ours.port, seconds)

        def chosen(lay: Callable[[int, str], None], count: int = count, last: str = last) -> float:
            lay(count, bare.address)
            try:
                return relative(bare.client, last, bare.port, bare.address)
            finally:
                inside(bare.client, "nft", "flush", "ruleset")

        def through_ours(last: str = last) -> float:
            return relative(ours.client, last, other_port, ours.address)

        def by_packets() -> float:
            ways.hosts[0].call("use_packet_level", True)
            try:
                return through_ours()
            finally:
                ways.hosts[0].call("use_packet_level", False)

        with _entries(ways, _services_of(count)):
            for _ in range(rounds):
                figure.samples.append(_tried(through_ours, say))
                figure.peers[0].samples.append(_tried(by_packets, say))
                figure.peers[1].samples.append(_tried(lambda: chosen(_iptables), say))
                figure.peers[2].samples.append(_tried(lambda: chosen(_nft), say))
        yield figure


def _iptables(count: int, backend: str) -> None:
    """A rule per service, one after the other."""
    rules = [f"-A OUTPUT -d {_vip(i)}/32 -j DNAT --to-destination {backend}" for i in range(count)]
    text = "\n".join(["*nat", *rules, "COMMIT", ""])
    run([*programs.enter(PAIRS["bare"][0].netns), "iptables-nft-restore", "--noflush"], stdin=text)
    _route()


def _nft(count: int, backend: str) -> None:
    """One map of all services."""
    elements = ", ".join(f"{_vip(i)} : {backend}" for i in range(count))
    text = f"""table ip bench {{
        map services {{ type ipv4_addr : ipv4_addr; elements = {{ {elements} }}; }}
        chain output {{ type nat hook output priority -100; dnat to ip daddr map @services; }}
    }}"""
    run([*programs.enter(PAIRS["bare"][0].netns), "nft", "-f", "-"], stdin=text)
    _route()


def _route() -> None:
    inside(
        PAIRS["bare"][0].netns, "ip", "route", "replace", "10.1.64.0/18", "dev", "eth0", "via",
        PAIRS["bare"][1].address,
    )  # fmt: skip
