"""The eBPF programs against the reference: for any tables and any first packet of a connection, what the
program decides (BPF_PROG_TEST_RUN) is what network/vfp/forward.py says the tables mean.
"""

from __future__ import annotations

import itertools
import secrets
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from overlace.network.linux import bpf_syscall
from overlace.network.linux.loader import Loader
from overlace.network.linux.maps import REASONS, TABLE_MAPS, Attachment, Row, Rows, config_value, encode
from overlace.network.vfp.forward import forward_from_container, forward_from_wire
from overlace.network.vfp.model import Packet
from overlace.network.vfp.tables import (
    Backend,
    Entry,
    Frontend,
    LocalEndpoint,
    Network,
    RemoteEndpoint,
    Tables,
)

pytestmark = [pytest.mark.host, pytest.mark.timeout(120)]
HOST, PEERS, OUTSIDE = "172.28.1.11", ("172.28.1.12", "172.28.1.13"), "172.28.1.200"
NETWORKS = (
    Network(4096, ("10.0.0.0/24",), "10.0.0.1", "02:42:0a:00:00:01", ingress=True),
    Network(4097, ("10.0.1.0/24",), "10.0.1.1", "02:42:0a:00:01:01"),
    Network(4098, ("10.0.2.0/24",), "10.0.2.1", "02:42:0a:00:02:01"),
)
POOL = ("10.0.0.0/8",)
_ports = itertools.cycle(range(1024, 65000))  # every packet starts a connection of its own
_LO = 1  # the test run's interface; what is behind it is said by the `ports` map


@pytest.fixture(scope="module")
def loader() -> Iterator[Loader]:
    made = Loader(f"agree{secrets.token_hex(3)}")
    made.open()
    made.maps["config"].update(bytes(4), config_value(_LO, HOST, 24, 1500, _LO, _LO, 4789))
    yield made
    made.destroy()


def _mac(address: str) -> str:
    return "02:42:" + ":".join(f"{int(part):02x}" for part in address.split("."))


def _mac_bytes(address: str) -> bytes:
    return bytes.fromhex(_mac(address).replace(":", ""))


_third = st.integers(0, 2)
_last = st.integers(2, 7)


@st.composite
def _tables(draw: st.DrawFn) -> Tables:
    """Endpoints here and there, VIPs and published ports whose backends exist."""
    entries: list[Entry] = list(NETWORKS)
    places = draw(st.lists(st.tuples(_third, _last), unique=True, min_size=2, max_size=8))
    backends = []
    for third, last in places:
        vni, address = 4096 + third, f"10.0.{third}.{last}"
        if draw(st.booleans()):
            entries.append(
                LocalEndpoint(vni, address, 24, _mac(address), f"E{address}", draw(st.booleans()), POOL)
            )
        else:
            entries.append(RemoteEndpoint(vni, address, _mac(address), draw(st.sampled_from(PEERS))))
        backends.append(Backend(vni, address, draw(st.sampled_from([0, 8080]))))
    for third, last in draw(st.lists(st.tuples(_third, st.integers(8, 10)), unique=True, max_size=4)):
        members = tuple(b for b in backends if b.vni == 4096 + third and draw(st.booleans()))
        proto, port = draw(st.sampled_from([(0, 0), (6, 80), (17, 0), (0, 80)]))
        entries.append(Frontend(4096 + third, f"10.0.{third}.{last}", proto, port, members))
    for port in draw(st.lists(st.sampled_from([80, 8080]), unique=True)):
        members = tuple(b for b in backends if b.vni == 4096 and draw(st.booleans()))
        entries.append(Frontend(0, HOST, draw(st.sampled_from([6, 17])), port, members))
    return Tables(entries)


_target = st.one_of(
    st.builds(lambda t, n: f"10.0.{t}.{n}", _third, st.integers(1, 11)),
    st.sampled_from([OUTSIDE, "10.9.9.9", "192.0.2.1"]),
)
_proto, _dport = st.sampled_from([6, 17]), st.sampled_from([80, 443, 8080])


def _fill(loader: Loader, tables: Tables, source: LocalEndpoint | None) -> None:
    attached = {
        e.endpoint_id: Attachment(1000 + i, 7) for i, e in enumerate(tables) if isinstance(e, LocalEndpoint)
    }
    rows = Rows()
    rows.replace((), [r for e in tables for r in encode(e, attached)])
    if source:  # its packets arrive by the test run's interface
        (port,) = (r for r in encode(source, {source.endpoint_id: Attachment(_LO, 7)}) if r.map == "ports")
        rows.replace((), [Row("ports", struct.pack("I", _LO), port.value)])
    changes = rows.difference({name: dict(loader.maps[name].items()) for name in TABLE_MAPS})
    for name in TABLE_MAPS:
        loader.maps[name].put_many(changes.put[name].items())
        loader.maps[name].delete_many(changes.remove[name])


def _ip(packet: Packet) -> bytes:
    if packet.protocol == 6:
        body = struct.pack("!HHIIBBHHH", packet.sport, packet.dport, 1, 0, 0x50, 2, 1000, 0, 0)
    else:
        body = struct.pack("!HHHH", packet.sport, packet.dport, 12, 0) + b"ping"
    addresses = socket.inet_aton(packet.src) + socket.inet_aton(packet.dst)
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, packet.protocol, 0) + addresses + body


def _eth(packet: bytes, source: bytes) -> bytes:
    return b"\2\0\0\0\0\xee" + source + b"\x08\x00" + packet


def _read(frame: bytes) -> tuple[bytes, Packet]:
    """(destination MAC, packet) of a plain frame."""
    at = 34
    sport, dport = struct.unpack_from("!HH", frame, at)
    src, dst = socket.inet_ntoa(frame[26:30]), socket.inet_ntoa(frame[30:34])
    return frame[:6], Packet(src, dst, frame[23], sport, dport)


def _check(
    tables: Tables, code: int, out: bytes, reason: int, way: object, packet: Packet, front: int
) -> None:
    """The program's end against the reference's `way`. Where a backend is chosen, any of the list will do."""
    name = REASONS[reason]
    action = way.action  # type: ignore[attr-defined]
    frontend = next(
        (
            f
            for key in ((packet.protocol, packet.dport), (packet.protocol, 0), (0, packet.dport), (0, 0))
            if isinstance(f := tables.get(("frontend", front, packet.dst, *key)), Frontend)
        ),
        None,
    )
    if frontend is not None and frontend.backends:
        targets = {(b.vni, b.address, b.port or packet.dport) for b in frontend.backends}
    else:
        targets = {(way.vni, packet.dst, packet.dport)}  # type: ignore[attr-defined]
    if action in ("deliver", "encap"):
        assert name in ("delivered", "encapsulated"), (name, way)
        if name == "delivered":
            mac, got = _read(out)
            vni = {v for v, a, _ in targets if a == got.dst}
            assert len(vni) == 1, (got, targets)
            entry = tables.get(("endpoint", vni.pop(), got.dst))
            assert isinstance(entry, LocalEndpoint)
        else:
            vni = struct.unpack_from("!I", out, 46)[0] >> 8
            mac, got = _read(out[50:])
            entry = tables.get(("endpoint", vni, got.dst))
            assert isinstance(entry, RemoteEndpoint)
            assert socket.inet_ntoa(out[30:34]) == entry.provider_address
            assert (vni, got.dst, got.dport) in targets
        assert mac == _mac_bytes(got.dst)
        assert (got.dst, got.dport) in {(a, p) for _, a, p in targets}
    elif action == "world":
        assert (name, code) == ("to_host", -1)
    elif action == "host":
        assert code == -1
    elif action == "answer":  # the router: a reset or an ICMP error for what is no echo request
        assert name == "refused"
    else:
        assert action == "drop" and (name.startswith("drop_") or name == "refused"), (name, way)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(_tables(), st.data())
def test_packets_of_containers(loader: Loader, tables: Tables, data: st.DataObject) -> None:
    locals_ = [e for e in tables if isinstance(e, LocalEndpoint)]
    assume(locals_)
    source = data.draw(st.sampled_from(locals_))
    _fill(loader, tables, source)
    for target, proto, dport in data.draw(
        st.lists(st.tuples(_target, _proto, _dport), min_size=1, max_size=8)
    ):
        packet = Packet(source.address, target, proto, next(_ports), dport)
        way = forward_from_container(tables, source.vni, source, HOST, packet)
        if target == source.address:
            continue  # never leaves the container
        frame = _eth(_ip(packet), _mac_bytes(source.address))
        code, out, reason = bpf_syscall.run_program(loader.programs["from_container"], frame, _LO)
        _check(tables, code, out, reason, way, packet, source.vni)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(_tables(), st.lists(st.tuples(_proto, st.sampled_from([22, 80, 8080])), min_size=1, max_size=8))
def test_packets_of_clients(loader: Loader, tables: Tables, packets: list[tuple[int, int]]) -> None:
    _fill(loader, tables, None)
    for proto, dport in packets:
        packet = Packet(OUTSIDE, HOST, proto, next(_ports), dport)
        way = forward_from_wire(tables, packet)
        frame = _eth(_ip(packet), b"\2\0\0\0\0\xdd")
        code, out, reason = bpf_syscall.run_program(loader.programs["from_underlay"], frame, _LO)
        _check(tables, code, out, reason, way, packet, 0)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(_tables(), st.data())
def test_packets_of_the_tunnel(loader: Loader, tables: Tables, data: st.DataObject) -> None:
    remotes = [e for e in tables if isinstance(e, RemoteEndpoint)]
    assume(remotes)
    _fill(loader, tables, None)
    targets = data.draw(st.lists(st.tuples(st.integers(1, 11), _proto, _dport), min_size=1, max_size=8))
    for last, proto, dport in targets:
        source = data.draw(st.sampled_from(remotes))
        packet = Packet(source.address, f"10.0.{source.vni - 4096}.{last}", proto, next(_ports), dport)
        way = forward_from_wire(tables, packet, source.vni)
        inner = _eth(_ip(packet), _mac_bytes(source.address))
        vxlan = struct.pack("!BxxxI", 8, source.vni << 8) + inner
        outer = struct.pack("!HHHH", 40000, 4789, 8 + len(vxlan), 0) + vxlan
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(outer), 0, 0, 64, 17, 0)
        frame = _eth(
            head + socket.inet_aton(source.provider_address) + socket.inet_aton(HOST) + outer,
            b"\2\0\0\0\0\xdd",
        )
        code, out, reason = bpf_syscall.run_program(loader.programs["from_underlay"], frame, _LO)
        assert code != -1
        _check(tables, code, out, reason, way, packet, -1)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["from_container", "from_underlay", "from_vxlan", "from_host"]),
    st.binary(min_size=14, max_size=200),
)
def test_any_bytes_end_somewhere(loader: Loader, program: str, frame: bytes) -> None:
    """Noise is dropped or left to the host, never believed."""
    source = LocalEndpoint(4097, "10.0.1.5", 24, "02:42:0a:00:01:05", "E", True)
    _fill(loader, Tables([*NETWORKS, source]), source)
    code, _, reason = bpf_syscall.run_program(loader.programs[program], frame, _LO)
    assert code in (-1, 2) and (code == -1 or REASONS[reason].startswith("drop_"))
