"""The paths between two containers that the network figures compare, each over an underlay of its own.

Owns building them: bare hosts, Docker's design (container veth - bridge - vxlan device, static entries) and overlace's
data path; on one host also a plain veth pair. Must not measure.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from measure.datapath_host import DataPathHost
from measure.places import CONTAINERS, GROWING_TIMESTAMPS, PAIRS, SEGMENTS, add_namespace, inside, join
from overlace.lab.lab import ensure_bpffs
from overlace.lab.shell import run
from overlace.network.vfp.tables import (
    Backend,
    Delta,
    Entry,
    Frontend,
    LocalEndpoint,
    Network,
    RemoteEndpoint,
)

UNDERLAY_MTU = 1500
OVERLAY_MTU = UNDERLAY_MTU - 50
VNI = 4097
SUBNET, GATEWAY, PREFIX = "10.1.0.0/16", "10.1.0.1", 16
A1, A2, B1 = "10.1.0.11", "10.1.0.12", "10.1.0.21"  # containers of host a and of host b
VIP = "10.1.0.100"
SLOW_PORT, SIX_PORT = 7200, 7300
SUBNET6, GATEWAY6 = "fd00:1::/64", "fd00:1::1"


class Way(msgspec.Struct, frozen=True):
    """From `client` to `server` (namespaces: names or files), by `address`."""

    name: str
    client: str
    server: str
    address: str
    port: int = 7000


class Paths(msgspec.Struct):
    """What there is to compare, by peer's name; `overlace` is ours."""

    across: dict[str, Way]
    same_host: dict[str, Way]
    services: dict[str, Way]
    six: dict[str, Way]
    over6: dict[str, Way]
    hosts: tuple[DataPathHost, DataPathHost]
    hosts6: tuple[DataPathHost, DataPathHost]

    def stop(self) -> None:
        for host in (*self.hosts, *self.hosts6):
            host.stop()


def mac_of(address: str) -> str:
    return "02:42:" + ":".join(f"{int(part):02x}" for part in address.split("."))


def six(address: str) -> str:
    """The IPv6 address of the container that has this one."""
    return f"fd00:1::{address.rpartition('.')[2]}"


def build() -> Paths:
    """All paths. Raises Internal with the words of what failed; the caller's clean-up removes what was made."""
    for pair in PAIRS.values():
        for host in pair:
            add_namespace(host.netns)
        join(pair[0].netns, pair[1].netns, mtu=UNDERLAY_MTU)
        for host in pair:
            inside(host.netns, "ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
            if host.six:
                inside(host.netns, "ip", "addr", "add", f"{host.six}/64", "dev", "eth0", "nodad")
    _build_bridge()
    _build_veth()
    hosts, sandboxes = _build_overlace("overlace", OVERLAY_MTU)
    hosts6, sandboxes6 = _build_overlace("over6", UNDERLAY_MTU - 70)
    bare = PAIRS["bare"]
    return Paths(
        across={
            "overlace": Way("overlace", sandboxes[A1], sandboxes[B1], B1),
            "docker's design": Way("docker", CONTAINERS["bridge-a1"], CONTAINERS["bridge-b1"], B1),
            "bare underlay": Way("bare", bare[0].netns, bare[1].netns, bare[1].address),
        },
        same_host={
            "overlace": Way("overlace", sandboxes[A1], sandboxes[A2], A2),
            "docker's design": Way("docker", CONTAINERS["bridge-a1"], CONTAINERS["bridge-a2"], A2),
            "veth pair": Way("veth", CONTAINERS["veth-1"], CONTAINERS["veth-2"], A2),
        },
        # Other ports than the direct path's: one server must not see the same connection under two names.
        services={
            "overlace": Way("vip", sandboxes[A1], sandboxes[B1], VIP, 7100),
            "own address": Way("direct", sandboxes[A1], sandboxes[B1], B1),
        },
        six={
            "overlace": Way("six", sandboxes[A1], sandboxes[B1], six(B1), SIX_PORT),
            "the same by IPv4": Way("direct", sandboxes[A1], sandboxes[B1], B1),
        },
        over6={
            "overlace": Way("over6", sandboxes6[A1], sandboxes6[B1], B1),
            "the same over IPv4": Way("direct", sandboxes[A1], sandboxes[B1], B1),
        },
        hosts=hosts,
        hosts6=hosts6,
    )


@contextlib.contextmanager
def slow_path(ways: Paths) -> Iterator[Way]:
    """The same containers while every packet between them goes out through the kernel's vxlan device."""
    way = ways.across["overlace"]
    for host in ways.hosts:
        host.call("use_slow_path", True)
    try:
        yield Way("slow path", way.client, way.server, way.address, SLOW_PORT)
    finally:
        for host in ways.hosts:
            host.call("use_slow_path", False)


def _build_veth() -> None:
    first, second = CONTAINERS["veth-1"], CONTAINERS["veth-2"]
    add_namespace(first)
    add_namespace(second)
    join(first, second, mtu=OVERLAY_MTU)
    inside(first, "ip", "addr", "add", f"{A1}/{PREFIX}", "dev", "eth0")
    inside(second, "ip", "addr", "add", f"{A2}/{PREFIX}", "dev", "eth0")


def _build_bridge() -> None:
    """As libnetwork's overlay driver does it: the vxlan device is made on the host, so that its socket is there,
    and moved beside the bridge; neighbours and forwarding entries are written down, misses go to the agent."""
    for side, host in zip("ab", PAIRS["bridge"], strict=True):
        segment = SEGMENTS[side]
        add_namespace(segment)
        device = ["vxlan0", "mtu", str(OVERLAY_MTU), "type", "vxlan", "id", str(VNI), "dstport", "4789"]
        inside(host.netns, "ip", "link", "add", *device, "learning", "proxy", "l2miss", "l3miss")
        inside(host.netns, "ip", "link", "set", "vxlan0", "netns", segment)
        inside(segment, "ip", "link", "add", "br0", "type", "bridge")
        inside(segment, "ip", "link", "set", "br0", "mtu", str(OVERLAY_MTU), "up")
        inside(segment, "ip", "addr", "add", f"{GATEWAY}/{PREFIX}", "dev", "br0")
        inside(segment, "ip", "link", "set", "vxlan0", "master", "br0", "up")
    for side, name, address in (("a", "bridge-a1", A1), ("a", "bridge-a2", A2), ("b", "bridge-b1", B1)):
        container, segment, port = CONTAINERS[name], SEGMENTS[side], f"veth-{name[-2:]}"
        add_namespace(container)
        join(container, segment, ends=("eth0", port), mtu=OVERLAY_MTU)
        inside(container, "ip", "link", "set", "eth0", "address", mac_of(address))
        inside(container, "ip", "addr", "add", f"{address}/{PREFIX}", "dev", "eth0")
        inside(container, "ip", "route", "add", "default", "via", GATEWAY)
        inside(segment, "ip", "link", "set", port, "master", "br0")
    for side, address, provider in (("a", B1, 1), ("b", A1, 0), ("b", A2, 0)):
        add_docker_entry(SEGMENTS[side], address, PAIRS["bridge"][provider].address)


def docker_entries(address: str, provider: str) -> tuple[str, str]:
    """The neighbour (for `ip`) and forwarding entry (for `bridge`) of a remote container, as batch lines."""
    mac = mac_of(address)
    return (
        f"neigh replace {address} lladdr {mac} dev vxlan0 nud permanent",
        f"fdb replace {mac} dev vxlan0 dst {provider} self permanent",
    )


def add_docker_entry(segment: str, address: str, provider: str) -> None:
    neighbour, forwarding = docker_entries(address, provider)
    inside(segment, "ip", *neighbour.split())
    inside(segment, "bridge", *forwarding.split())


def _build_overlace(name: str, mtu: int) -> tuple[tuple[DataPathHost, DataPathHost], dict[str, str]]:
    """Both hosts with the tables the agent would give them, and their containers' namespaces by address."""
    ensure_bpffs()
    pair = PAIRS[name]
    hosts = (DataPathHost(pair[0]), DataPathHost(pair[1]))
    network = Network(VNI, (SUBNET, SUBNET6), GATEWAY, mac_of(GATEWAY), other_gateways=(GATEWAY6,))
    service = Frontend(VNI, VIP, 0, 0, (Backend(VNI, B1),))
    sandboxes = {}
    for index, host in enumerate(hosts):
        other = pair[1 - index].underlay
        own = (A1, A2) if index == 0 else (B1,)
        remote = [
            RemoteEndpoint(VNI, text, mac_of(address), other)
            for address in (A1, A2, B1)
            if address not in own
            for text in (address, six(address))
        ]
        entries: tuple[Entry, ...] = (network, *remote, service)
        host.call("apply", Delta(put=entries))
        for address in own:
            sandbox: Path = host.call("ensure_sandbox", address)
            number = address.rpartition(".")[2]
            endpoint = LocalEndpoint(
                VNI, address, PREFIX, mac_of(address), f"00000000-0000-0000-0000-{number:0>12}"
            )
            with6 = msgspec.structs.replace(endpoint, address=six(address), prefix=64)
            more = {"six": with6, "gateway6": GATEWAY6}
            host.call("attach", endpoint, sandbox, "eth0", True, GATEWAY, mtu, **more)
            sandboxes[address] = str(sandbox)
            settings = (("/proc/sys/net/ipv4/ip_local_port_range", "1024 65000"), GROWING_TIMESTAMPS)
            for file, text in settings:
                run(["nsenter", f"--net={sandbox}", "--", "sh", "-c", 'echo "$1" > "$0"', file, text])
    return hosts, sandboxes


def set_segmentation(on: bool, merge: bool = True) -> None:
    """Let the underlay's devices cut frames (TSO), or make every frame on them one of at most the MTU, merged again
    on receive (GRO, unless not `merge`) as network cards' drivers do.
    """
    tso, gro = ("on", "off") if on else ("off", "on" if merge else "off")
    cutting = ["tso", tso, "tx-udp_tnl-segmentation", tso, "tx-udp_tnl-csum-segmentation", tso]
    for pair in PAIRS.values():
        for host in pair:
            inside(host.netns, "ethtool", "-K", "eth0", *cutting, "gro", gro)
