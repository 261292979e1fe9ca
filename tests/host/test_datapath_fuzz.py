"""Millions of mutated frames, from a seed: none crashes a program, none is believed that should not be, and then good
ones still pass."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import platform
import secrets
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import test_datapath_ipv6_agrees as six
import test_datapath_over_ipv6_agrees as over
from datapath_frames import sealed
from test_datapath_agrees import HOST, OUTSIDE, PEERS, _eth, _fill, _ip, _mac, _mac_bytes, _tunnelled

from overlace.network.linux import bpf_syscall, unified
from overlace.network.linux.family import V6
from overlace.network.linux.loader import Loader
from overlace.network.linux.maps import REASONS, Attachment, config_value, encode
from overlace.network.linux.netlink import Address
from overlace.network.linux.outside6 import own_rows
from overlace.network.linux.rows import Rows
from overlace.network.probe_message import message
from overlace.network.vfp.model import Packet
from overlace.network.vfp.tables import (
    HOST6,
    AccessList,
    AccessRule,
    Backend,
    Behind,
    Entry,
    Flood,
    Frontend,
    Hop,
    LocalEndpoint,
    Network,
    RemoteEndpoint,
    RemoteSubnet,
    Tables,
)

pytestmark = [pytest.mark.host, pytest.mark.timeout(300)]
SEED = int(os.environ.get("OVERLACE_FUZZ_SEED", "20240607"))
FRAMES = int(os.environ.get("OVERLACE_FUZZ_FRAMES", "2000000"))
LOCAL, REMOTE = "10.0.1.5", "10.0.1.6"
LEFT_ALONE, TOO_SHORT = 63, 62  # as in fuzz.c
LOCAL6, REMOTE6 = "fd00:1::5", "fd00:1::6"
NETWORK = Network(
    4097,
    ("10.0.1.0/24", "fd00:1::/64"),
    "10.0.1.1",
    _mac("10.0.1.1"),
    other_gateways=("fd00:1::1",),
)


def entries() -> tuple[LocalEndpoint, list[Entry]]:
    """One of everything: a guarded, limited endpoint, VIPs with and without affinity, a published port."""
    rules = (
        AccessRule("block", 6, local_ports=(81, 90)),
        AccessRule("pass", 17, remote=(f"{REMOTE}/32", "10.0.1.64/26")),
        AccessRule("allow", tier=1),
    )
    into, out = (AccessList(4097, LOCAL, d, rules) for d in ("IN", "OUT"))
    plain = LocalEndpoint(4097, LOCAL, 24, _mac(LOCAL), "E", True, ("10.0.0.0/8",), rate=1 << 40)
    local = msgspec.structs.replace(plain, inbound=into.number, outbound=out.number)
    members = (Backend(4097, LOCAL, 80), Backend(4097, REMOTE, 80))
    remote = RemoteEndpoint(4097, REMOTE, _mac(REMOTE), PEERS[0])
    fronts = [
        Frontend(4097, "10.0.1.2", 0, 0, members),
        Frontend(4097, "10.0.1.3", 0, 0, members, 60, True),
        Frontend(0, HOST, 6, 8080, members),
        Frontend(0, HOST, 17, 8080, members, 60),
    ]
    return local, [NETWORK, into, out, local, remote, *fronts]


def entries6() -> tuple[LocalEndpoint, list[Entry]]:
    """The same of IPv6."""
    rules = (
        AccessRule("block", 6, local_ports=(81, 90)),
        AccessRule("pass", 17, remote=(f"{REMOTE6}/128", "fd00:1::/122")),
        AccessRule("allow", tier=1),
    )
    into, out = (AccessList(4097, LOCAL6, d, rules) for d in ("IN", "OUT"))
    plain = LocalEndpoint(4097, LOCAL6, 64, _mac(LOCAL), "E", rate=1 << 40)
    local = msgspec.structs.replace(plain, inbound=into.number, outbound=out.number)
    members = (Backend(4097, LOCAL6, 80), Backend(4097, REMOTE6, 80))
    remote = RemoteEndpoint(4097, REMOTE6, _mac(REMOTE), PEERS[0])
    fronts = [
        Frontend(4097, "fd00:1::2", 0, 0, members),
        Frontend(4097, "fd00:1::3", 0, 0, members, 60, True),
        Frontend(4097, "fd00:1::4", 6, 80),
    ]
    return local, [into, out, local, remote, *fronts]


@pytest.fixture(scope="module")
def loader() -> Iterator[Loader]:
    made = Loader(f"fuzz{secrets.token_hex(3)}")
    made.open()
    made.maps["config"].update(bytes(4), config_value(1, HOST, 24, 1500, 1, 1, 4789))
    local, all_of_them = entries()
    local6, all6 = entries6()
    _fill(made, Tables([*all_of_them, *all6]), local)
    port = next(r for r in encode(local6, {"E": Attachment(1, 7)}) if r.map == "ports6")
    made.maps["ports6"].update(port.key, port.value)
    yield made
    made.destroy()


@pytest.fixture(scope="module")
def over6() -> Iterator[Loader]:
    """The same where tunnels run over IPv6."""
    made = Loader(f"fuzz{secrets.token_hex(3)}", hosts=V6)
    made.open()
    config = config_value(1, HOST, 24, 1500, 1, 1, 4789, tunnels=(over.host6(HOST), 64))
    made.maps["config"].update(bytes(4), config)
    local, all_of_them = entries()
    local6, all6 = entries6()
    over.fill(made, Tables([*all_of_them, *all6]), local)
    port = next(r for r in encode(local6, {"E": Attachment(1, 7)}, V6) if r.map == "ports6")
    made.maps["ports6"].update(port.key, port.value)
    yield made
    made.destroy()


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, built = Path(__file__).with_name("fuzz.c"), tmp_path_factory.mktemp("fuzz") / "fuzz"
    compiler = os.environ.get("CLANG", "clang")
    subprocess.run(
        [compiler, "-O2", "-Wall", "-Werror", "-o", str(built), str(source)], check=True, timeout=60
    )
    return built


def packets(source: str, targets: tuple[str, ...]) -> list[bytes]:
    """TCP and UDP in their ways, a ping, an ICMP error, a fragment, one with options."""
    found = []
    for target in targets:
        udp = _ip(Packet(source, target, 17, 4000, 8080))
        found += [_ip(Packet(source, target, 6, 4000, 80), flags) for flags in (2, 16, 17, 4)]
        found += [_ip(Packet(source, target, 6, 4000, 8080)), udp]
        addresses = udp[12:20]
        back = udp[:12] + addresses[4:] + addresses[:4] + udp[20:28]
        for body in (
            struct.pack("!BBHHH", 8, 0, 0, 1, 1) + bytes(16),
            struct.pack("!BBHHH", 3, 4, 0, 0, 1400) + back,
        ):
            found.append(struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 1, 0) + addresses + body)
        found.append(udp[:6] + b"\x20\x00" + udp[8:])
        found.append(b"\x46" + udp[1:2] + struct.pack("!H", len(udp) + 4) + udp[4:20] + bytes(4) + udp[20:])
    return found


def packets6(source: str, targets: tuple[str, ...]) -> list[bytes]:
    """The same of IPv6, with neighbour discovery and extension headers."""
    found = []
    for target in targets:
        udp = six._ip(Packet(source, target, 17, 4000, 8080))
        found += [six._ip(Packet(source, target, 6, 4000, 80), flags) for flags in (2, 16, 17, 4)]
        found += [six._ip(Packet(source, target, 6, 4000, 8080)), udp]
        back = udp[:8] + udp[24:40] + udp[8:24] + udp[40:]
        for kind, rest in ((128, bytes(16)), (2, back), (135, six.packed(target)), (136, six.packed(target))):
            body = struct.pack("!BBHI", kind, 0, 0, 0) + rest
            found.append(six.ip6(source, target, 58, body, hops=255, sum_at=2))
        for more in (1, 8):
            found.append(six.ip6(source, target, 44, struct.pack("!BBHI", 17, 0, more, 7) + udp[40:]))
        found.append(six.ip6(source, target, 0, struct.pack("!BBBBBBBB", 17, 0, 5, 2, 0, 0, 1, 0) + udp[40:]))
    return found


VIA_CLIENT, BEHIND, FAR = "198.51.100.7", "203.0.113.9", "10.9.0.7"
OWN6, CLIENT6 = "2001:db8:77::11", "2001:db8:77::200"
PROBER = 45678


def wide_entries() -> list[Entry]:
    """What the others have not: an ingress network, multicast, routes of all kinds, IPv6 published ports."""
    local, found = entries()
    found = [e for e in found if e != local and e != NETWORK]
    open_to = msgspec.structs.replace(
        local, hops=(Hop("198.51.100.0/24", REMOTE), Hop("192.0.2.0/24", "")), host_route=True
    )
    second = LocalEndpoint(4097, "10.0.1.8", 24, _mac("10.0.1.8"), "W")
    ingress = Network(4096, ("10.0.0.0/24",), "10.0.0.1", _mac("10.0.0.1"), ingress=True)
    via = LocalEndpoint(4096, "10.0.0.5", 24, _mac("10.0.0.5"), "V")
    members6 = (Backend(4097, LOCAL6, 80), Backend(4097, REMOTE6, 80))
    _, found6 = entries6()
    return [
        msgspec.structs.replace(NETWORK, flood=True), ingress, open_to, second, via, *found, *found6,
        Flood(4097, 1 << 30, (LOCAL, "10.0.1.8"), (PEERS[0],), ("10.0.1.255",), (LOCAL6,), (PEERS[0],)),
        RemoteSubnet(4097, "10.9.0.0/16", PEERS[1], _mac("10.9.0.1"), 4097),
        Behind(4097, "203.0.113.0/24", LOCAL, "a"),
        Frontend(0, HOST6, 6, 8080, members6), Frontend(0, HOST6, 17, 8080, members6),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def broad() -> Iterator[Loader]:
    """Programs with those tables. No interface has the numbers they name: copies go nowhere."""
    made = Loader(f"fuzz{secrets.token_hex(3)}")
    made.open()
    nowhere = 90_000_000
    made.maps["config"].update(bytes(4), config_value(1, HOST, 24, 1500, nowhere, 1, 4789))
    made.maps["own_addresses6"].put_many(own_rows([Address(1, OWN6, 64)], 1))
    made.maps["prober_of"].update(bytes(4), struct.pack(">HH", PROBER, 0))
    attached = {name: Attachment(nowhere + i, i) for i, name in enumerate("EVW", 1)}
    rows = Rows()
    rows.replace((), [r for e in wide_entries() for r in encode(e, attached)])
    changes = rows.difference({})
    for name, put in changes.put.items():
        made.maps[name].put_many(put)
    for e in wide_entries():  # its packets arrive by the test run's interface
        if isinstance(e, LocalEndpoint) and e.endpoint_id == "E":
            for row in encode(e, {"E": Attachment(1, 1)}):
                if row.map in ("ports", "ports6"):
                    made.maps[row.map].update(row.key, row.value)
    unified.renew(made.maps["generation"])
    yield made
    made.destroy()


@pytest.fixture(scope="module")
def keyed(broad: Loader, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The program that comes before from_vxlan and sets the key."""
    source, built = Path(__file__).with_name("keyed.c"), tmp_path_factory.mktemp("keyed") / "keyed.o"
    include = f"-I/usr/include/{platform.machine()}-linux-gnu"
    compiler = os.environ.get("CLANG", "clang")
    command = [compiler, "-O2", "-g", "-target", "bpf", include, "-c", str(source), "-o", str(built)]
    subprocess.run(command, check=True, timeout=60)
    lib = ctypes.CDLL(ctypes.util.find_library("bpf") or "libbpf.so.1", use_errno=True)
    found = ("bpf_object__open_file", "bpf_object__find_program_by_name", "bpf_object__find_map_by_name")
    for name in found:
        getattr(lib, name).restype = ctypes.c_void_p
        getattr(lib, name).argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    lib.bpf_object__open_file.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    for name in ("bpf_object__load", "bpf_program__fd", "bpf_map__fd", "bpf_object__close"):
        getattr(lib, name).argtypes = [ctypes.c_void_p]
    obj = lib.bpf_object__open_file(str(built).encode(), None)
    assert obj and lib.bpf_object__load(obj) == 0
    following = bpf_syscall.Map(
        os.dup(lib.bpf_map__fd(lib.bpf_object__find_map_by_name(obj, b"next"))), "next"
    )
    following.update(bytes(4), struct.pack("I", broad.programs["from_vxlan"]))
    yield lib.bpf_program__fd(lib.bpf_object__find_program_by_name(obj, b"keyed"))
    following.close()
    lib.bpf_object__close(obj)


ARP = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + _mac_bytes(LOCAL) + bytes([10, 0, 1, 5]) + bytes(6)
_remote = RemoteEndpoint(4097, REMOTE, _mac(REMOTE), PEERS[0])
_remote6 = RemoteEndpoint(4097, REMOTE6, _mac(REMOTE), PEERS[0])
_link6 = ("fd00:1::1", "fd00:1::2", "fd00:1::3", "fd00:1::4", "2001:db8::1", "ff02::1")
TEMPLATES = {
    "tunnel6": [six._tunnelled(ip, _remote6) for ip in packets6(REMOTE6, (LOCAL6, "fd00:1::2"))],
    "container6": [six._eth(ip, _mac(LOCAL)) for ip in packets6(LOCAL6, (REMOTE6, *_link6))[:64]],
    "tunnel": [_tunnelled(ip, _remote) for ip in packets(REMOTE, (LOCAL,))],
    "container": [
        *(_eth(ip, _mac_bytes(LOCAL)) for ip in packets(LOCAL, (REMOTE, "10.0.1.2", "10.0.1.3", OUTSIDE))),
        b"\xff" * 6 + _mac_bytes(LOCAL) + b"\x08\x06" + ARP + bytes([10, 0, 1, 6]),
    ],
    "client": [_eth(ip, b"\2\0\0\0\0\xdd") for ip in packets(OUTSIDE, (HOST,))],
}
PROGRAMS = {"tunnel": "from_underlay", "container": "from_container", "client": "from_underlay"}
PROGRAMS |= {"tunnel6": "from_underlay", "container6": "from_container"}
SHARES = {"tunnel": 0.3, "container": 0.3, "client": 0.1, "tunnel6": 0.15, "container6": 0.15}


_via = RemoteEndpoint(4096, VIA_CLIENT, _mac(REMOTE), PEERS[0])
_far = RemoteEndpoint(4097, FAR, _mac("10.9.0.1"), PEERS[1])


def _probes(source: str, target: str) -> list[bytes]:
    """Payloads of UDP: a question, an answer, a check, one to be sent the slow way."""
    there = socket.inet_aton(source)
    return [
        message(kind, how, there, target, 7, 200) for kind, how in ((1, 0), (2, 0), (3, 0), (1, 1), (1, 2))
    ]


def _udp(source: str, target: str, sport: int, dport: int, body: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(body), 0, 0x4000, 64, 17, 0)
    head += socket.inet_aton(source) + socket.inet_aton(target)
    return sealed(head + struct.pack("!HHHH", sport, dport, 8 + len(body), 0) + body)


_prober = RemoteEndpoint(0xFFFFFF, PEERS[0], _mac(REMOTE), PEERS[0])
_inner = [
    *packets(REMOTE, (LOCAL, "10.0.1.255", "239.1.2.3"))[:24], *packets(VIA_CLIENT, ("10.0.0.5",)),
    *packets(FAR, (LOCAL,)), *(_udp(PEERS[0], HOST, 4789, 4789, body) for body in _probes(PEERS[0], HOST)),
]  # fmt: skip
WIDE = {
    "via": ("from_underlay", [_tunnelled(ip, _via) for ip in packets(VIA_CLIENT, ("10.0.0.5",))]),
    "routed": (
        "from_underlay",
        [_tunnelled(ip, _far) for ip in packets(FAR, (LOCAL, BEHIND))]
        + [_tunnelled(ip, _remote) for ip in packets(REMOTE, (BEHIND,))],
    ),
    "hops": (
        "from_container",
        [_eth(ip, _mac_bytes(LOCAL)) for ip in packets(LOCAL, ("198.51.100.9", "192.0.2.9", FAR, HOST))]
        + [_eth(ip, _mac_bytes(LOCAL)) for ip in packets(BEHIND, (REMOTE,))],
    ),
    "flood": (
        "from_container",
        [
            _eth(ip, _mac_bytes(LOCAL))
            for ip in packets(LOCAL, ("239.1.2.3", "255.255.255.255", "10.0.1.255", REMOTE))
        ]
        + [six._eth(ip, _mac(LOCAL)) for ip in packets6(LOCAL6, ("ff0e::7",))],
    ),
    "flooded": (
        "from_underlay",
        [_tunnelled(ip, _remote) for ip in packets(REMOTE, ("239.1.2.3", "10.0.1.255", LOCAL))],
    ),
    "outside6": ("from_underlay", [six._eth(ip, "02:00:00:00:00:dd") for ip in packets6(CLIENT6, (OWN6,))]),
    "probe": (
        "from_underlay",
        [_tunnelled(_udp(PEERS[0], HOST, 4789, 4789, body), _prober) for body in _probes(PEERS[0], HOST)],
    ),
    "loop": (
        "from_host",
        [_eth(ip, bytes(6)) for a in (HOST, "127.0.0.1") for ip in packets(a, (HOST, "127.0.0.1"))]
        + [
            _eth(_udp("127.0.0.1", "127.0.0.1", PROBER, 4789, body), bytes(6))
            for body in _probes(HOST, PEERS[0])
        ],
    ),
    "key": ("", [_eth(ip, _mac_bytes(REMOTE)) for ip in _inner]),
}


def counted(loader: Loader) -> dict[str, int]:
    out = {}
    for index, name in enumerate(REASONS):
        raw = loader.maps["counters"].lookup(struct.pack("I", index)) or b""
        out[name] = sum(struct.unpack(f"{len(raw) // 8}Q", raw))
    return out


@pytest.mark.parametrize("kind", TEMPLATES)
def test_mutated_frames(loader: Loader, tool: Path, kind: str) -> None:
    check(loader, tool, kind, TEMPLATES[kind], int(FRAMES * SHARES[kind]))


@pytest.mark.parametrize("kind", [kind for kind in TEMPLATES if kind.startswith("tunnel")])
def test_mutated_frames_over_ipv6(over6: Loader, tool: Path, kind: str) -> None:
    frames = [over.as_over_ipv6(frame) for frame in TEMPLATES[kind]]
    check(over6, tool, kind, frames, FRAMES // 10, (over.host6(PEERS[0]), over.host6(HOST)))


@pytest.mark.parametrize("kind", WIDE)
def test_mutated_frames_of_strangers(broad: Loader, keyed: int, tool: Path, kind: str) -> None:
    """What comes through other hosts and routes, to everybody, to ports outside, as a probe, from the kernel's device."""
    program, templates = WIDE[kind]
    check(
        broad,
        tool,
        kind,
        templates,
        int(FRAMES * 0.05),
        program=broad.programs[program] if program else keyed,
    )


def check(
    loader: Loader,
    tool: Path,
    kind: str,
    templates: list[bytes],
    frames: int,
    hosts: tuple[str, ...] = (),
    program: int = 0,
) -> None:
    fd, count = program or loader.programs[PROGRAMS[kind]], str(frames)
    stdin = b"".join(struct.pack("!H", len(f)) + f for f in templates)
    command = [str(tool), str(fd), str(SEED), count, LOCAL, REMOTE, PEERS[0], HOST, kind, LOCAL6, REMOTE6]
    command += hosts
    before = counted(loader)
    run = subprocess.run(command, input=stdin, capture_output=True, pass_fds=[fd], timeout=280, check=False)
    said = run.stdout.decode()
    assert run.returncode == 0, f"seed {SEED}: {said}{run.stderr.decode()}"
    seen = {REASONS[i]: int(n) for i, n in enumerate(said.split()[: len(REASONS)]) if int(n)}
    seen["left alone"], short = int(said.split()[LEFT_ALONE]), int(said.split()[TOO_SHORT])
    after = counted(loader)
    assert {n: after[n] - before[n] for n in REASONS if after[n] > before[n]} == {
        n: count for n, count in seen.items() if count and n != "left alone"
    }, "each frame is counted once, by what became of it"
    dropped = sum(n for name, n in seen.items() if name.startswith("drop_"))
    assert sum(seen.values()) + short == int(count) and short < int(count) / 5
    assert dropped or kind in ("client", "loop", "outside6", "probe"), seen
    harmless = {"flood": "replicated", "flooded": "replicated", "probe": "left alone"}.get(kind, "")
    assert seen.keys() & {"delivered", "encapsulated", harmless}, f"some mutations harm nothing: {seen}"


def test_good_frames_still_pass(loader: Loader) -> None:
    good = _tunnelled(_ip(Packet(REMOTE, LOCAL, 6, 5555, 80)), _remote)
    _, _, reason = bpf_syscall.run_program(loader.programs["from_underlay"], good, 1)
    assert REASONS[reason] == "delivered"
    out = _eth(_ip(Packet(LOCAL, REMOTE, 6, 5556, 80)), _mac_bytes(LOCAL))
    _, _, reason = bpf_syscall.run_program(loader.programs["from_container"], out, 1)
    assert REASONS[reason] == "encapsulated"
