"""As test_datapath_agrees.py and its IPv6 twin, where hosts reach each other over IPv6: the programs decide what
network/vfp/forward.py says, whichever family is inside, and the outer header is as it should be.

What is generated has IPv4 hosts; here each has the IPv6 address that goes with it.
"""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Iterator

import msgspec
import pytest
import test_datapath_agrees as four
import test_datapath_ipv6_agrees as six
from datapath_frames import check
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from overlace.network.linux import bpf_syscall, unified
from overlace.network.linux.edges import own_rows4
from overlace.network.linux.family import V6
from overlace.network.linux.loader import Loader
from overlace.network.linux.maps import (
    REASONS,
    TABLE_MAPS,
    Attachment,
    Row,
    config_value,
    encode,
)
from overlace.network.linux.netlink import Address
from overlace.network.linux.outside6 import own_rows
from overlace.network.linux.rows import Rows
from overlace.network.vfp.forward import Way, forward_from_container, forward_from_wire
from overlace.network.vfp.model import Packet
from overlace.network.vfp.tables import (
    HOST6,
    Entry,
    Flood,
    LocalEndpoint,
    RemoteEndpoint,
    RemoteSubnet,
    Tables,
)

pytestmark = [pytest.mark.host, pytest.mark.timeout(300)]
_LO = 1
_MTU = 1500
_FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def host6(address: str) -> str:
    """The IPv6 address of the host that is called `address` in what is generated."""
    return f"fd00:28::{int(address.rsplit('.', 1)[1]):x}"


HOSTS = {V6.address(host6(a)): a for a in (four.HOST, *four.PEERS)}


@pytest.fixture(scope="module")
def loader() -> Iterator[Loader]:
    made = Loader(f"over{secrets.token_hex(3)}", hosts=V6)
    made.open()
    config = config_value(_LO, four.HOST, 24, _MTU, _LO, _LO, 4789, tunnels=(host6(four.HOST), 64))
    made.maps["config"].update(bytes(4), config)
    made.maps["own_addresses"].put_many(own_rows4([Address(_LO, four.HOST, 24)], four.HOST))
    made.maps["own_addresses6"].put_many(own_rows([Address(_LO, six.OWN, 64)], _LO))
    yield made
    made.destroy()


def over_ipv6(entry: Entry) -> Entry:
    if isinstance(entry, (RemoteEndpoint, RemoteSubnet)):
        return msgspec.structs.replace(entry, provider_address=host6(entry.provider_address))
    if isinstance(entry, Flood):
        return msgspec.structs.replace(entry, providers=tuple(map(host6, entry.providers)))
    return entry


def fill(loader: Loader, tables: Tables, source: LocalEndpoint | None) -> None:
    """As if each endpoint had an interface; the test run's is `source`'s."""
    locals_ = sorted({e.endpoint_id for e in tables if isinstance(e, LocalEndpoint)})
    attached = {name: Attachment(1000 + i, 7) for i, name in enumerate(locals_)}
    rows = Rows()
    rows.replace((), [r for e in tables for r in encode(over_ipv6(e), attached, V6)])
    if source:
        mine = encode(source, {source.endpoint_id: Attachment(_LO, 7)}, V6)
        (port,) = (r for r in mine if r.map.startswith("ports"))
        rows.replace((), [Row(port.map, struct.pack("I", _LO), port.value)])
    changes = rows.difference({name: dict(loader.maps[name].items()) for name in TABLE_MAPS})
    for name in TABLE_MAPS:
        loader.maps[name].put_many(changes.put[name])
        loader.maps[name].delete_many(changes.remove[name])
    unified.renew(loader.maps["generation"])


def as_over_ipv4(frame: bytes) -> bytes:
    """The tunnelled frame as it would be over IPv4; the outer headers are checked, but for Ethernet's, which the kernel
    writes anew when it has the neighbour."""
    first, length, following, hops = struct.unpack_from("!IHBB", frame, 14)
    assert first >> 28 == 6 and (following, hops) == (17, 64)
    assert length == len(frame) - 54
    source, target = HOSTS[frame[22:38]], HOSTS[frame[38:54]]
    assert source == four.HOST
    sport, dport, datagram, checksum = struct.unpack_from("!HHHH", frame, 54)
    assert sport >= 32768 and (dport, datagram, checksum) == (4789, length, 0)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, 17, 0)
    return frame[:12] + b"\x08\x00" + head + socket.inet_aton(source) + socket.inet_aton(target) + frame[54:]


def as_over_ipv6(frame: bytes) -> bytes:
    """A tunnelled frame of IPv4 hosts as their IPv6 addresses would have it."""
    addresses = (V6.address(host6(socket.inet_ntoa(frame[at : at + 4]))) for at in (26, 30))
    head = struct.pack("!IHBB", 6 << 28 | 7, len(frame) - 34, 17, 60)
    return frame[:12] + b"\x86\xdd" + head + b"".join(addresses) + frame[34:]


def run(loader: Loader, program: str, frame: bytes) -> tuple[int, bytes, int]:
    code, out, reason = bpf_syscall.run_program(loader.programs[program], frame, _LO)
    return code, as_over_ipv4(out) if REASONS[reason] == "encapsulated" else out, reason


def checked(ways: list[Way], sent: bytes, code: int, out: bytes, reason: int) -> None:
    check(six.named(ways), sent, code, out, REASONS[reason], four.HOST)


@_FEW
@given(four._tables(), st.data())
def test_packets_of_containers(loader: Loader, tables: Tables, data: st.DataObject) -> None:
    locals_ = [e for e in tables if isinstance(e, LocalEndpoint)]
    assume(locals_)
    source = data.draw(st.sampled_from(locals_))
    fill(loader, tables, source)
    for target, proto, dport in data.draw(
        st.lists(st.tuples(four._target, four._proto, four._dport), min_size=1, max_size=8)
    ):
        packet = Packet(source.address, target, proto, next(four._ports), dport)
        ways = four._ways(
            lambda pick, p=packet: forward_from_container(tables, source.vni, source, four.HOST, p, pick)
        )
        frame = four._eth(four._ip(packet), four._mac_bytes(source.address))
        checked(ways, frame, *run(loader, "from_container", frame))


@_FEW
@given(
    four._tables(), st.lists(st.tuples(four._proto, st.sampled_from([22, 80, 8080])), min_size=1, max_size=8)
)
def test_packets_of_clients(loader: Loader, tables: Tables, packets: list[tuple[int, int]]) -> None:
    """At the host's IPv4 address, which is none of the tunnels'."""
    fill(loader, tables, None)
    for proto, dport in packets:
        packet = Packet(four.OUTSIDE, four.HOST, proto, next(four._ports), dport)
        ways = four._ways(lambda pick, p=packet: forward_from_wire(tables, p, 0, pick, (four.HOST,)))
        frame = four._eth(four._ip(packet), b"\2\0\0\0\0\xdd")
        checked(ways, frame, *run(loader, "from_underlay", frame))


@_FEW
@given(four._tables(), st.data())
def test_packets_of_the_tunnel(loader: Loader, tables: Tables, data: st.DataObject) -> None:
    remotes = [e for e in tables if isinstance(e, RemoteEndpoint)]
    assume(remotes)
    fill(loader, tables, None)
    for last, proto, dport in data.draw(
        st.lists(st.tuples(st.integers(1, 10), four._proto, four._dport), min_size=1, max_size=8)
    ):
        source = data.draw(st.sampled_from(remotes))
        packet = Packet(source.address, f"10.0.{source.vni - 4096}.{last}", proto, next(four._ports), dport)
        way = forward_from_wire(tables, packet, source.vni)
        frame = four._tunnelled(four._ip(packet), source)
        code, out, reason = run(loader, "from_underlay", as_over_ipv6(frame))
        assert code != -1
        checked([way], four._eth(four._ip(packet), four._mac_bytes(source.address)), code, out, reason)
        code, _, _ = run(loader, "from_underlay", frame)
        assert code == -1, "a tunnel over IPv4 is none of this host's"
        liar = msgspec.structs.replace(
            source, provider_address=next(p for p in four.PEERS if p != source.provider_address)
        )
        _, _, reason = run(loader, "from_underlay", as_over_ipv6(four._tunnelled(four._ip(packet), liar)))
        assert REASONS[reason] == "drop_wrong_provider"


@_FEW
@given(six._tables(), st.data())
def test_ipv6_packets_of_containers_and_of_the_tunnel(
    loader: Loader, tables: Tables, data: st.DataObject
) -> None:
    locals_ = [e for e in tables if isinstance(e, LocalEndpoint) and ":" in e.address]
    remotes = [e for e in tables if isinstance(e, RemoteEndpoint) and ":" in e.address]
    source = data.draw(st.sampled_from(locals_)) if locals_ else None
    fill(loader, tables, source)
    for target, proto, dport in data.draw(
        st.lists(st.tuples(six._target, six._proto, six._dport), min_size=1, max_size=8)
    ):
        if source is not None:
            packet = Packet(source.address, target, proto, next(six._ports), dport)
            seen = msgspec.structs.replace(packet, dst=HOST6) if target == six.OWN else packet
            ways = four._ways(
                lambda pick, p=seen: forward_from_container(tables, source.vni, source, four.HOST, p, pick)
            )
            sent = six._eth(six._ip(packet), source.mac)
            checked(ways, sent, *run(loader, "from_container", sent))
        if remotes:
            sender = data.draw(st.sampled_from(remotes))
            to = six.address(sender.vni - 4096, data.draw(st.integers(1, 11)))
            packet = Packet(sender.address, to, proto, next(six._ports), dport)
            way = forward_from_wire(tables, packet, sender.vni)
            frame = as_over_ipv6(six._tunnelled(six._ip(packet), sender))
            checked([way], six._eth(six._ip(packet), sender.mac), *run(loader, "from_underlay", frame))


_flags = st.sampled_from([0x02, 0x10, 0x18, 0x11, 0x04])


@_FEW
@given(
    st.lists(four._tables(), min_size=1, max_size=2),
    st.lists(
        st.tuples(st.booleans(), four._target, four._proto, four._dport, _flags, four._last),
        min_size=4,
        max_size=20,
    ),
    st.integers(1, 60000),
)
def test_a_flow_is_what_its_layers_say(
    loader: Loader, phases: list[Tables], packets: list[tuple[bool, str, int, int, int, int]], port: int
) -> None:
    generation = loader.maps["generation"]
    for tables in phases:
        locals_ = [e for e in tables if isinstance(e, LocalEndpoint)]
        remotes = [e for e in tables if isinstance(e, RemoteEndpoint)]
        source = locals_[0] if locals_ else None
        fill(loader, tables, source)
        for outbound, target, proto, dport, flags, last in packets:
            if outbound and source:
                packet = Packet(source.address, target, proto, port, dport)
                frame = four._eth(four._ip(packet, flags), four._mac_bytes(source.address))
                program = "from_container"
            elif not outbound and remotes:
                sender = remotes[last % len(remotes)]
                packet = Packet(sender.address, f"10.0.{sender.vni - 4096}.{last}", proto, port, dport)
                frame = as_over_ipv6(four._tunnelled(four._ip(packet, flags), sender))
                program = "from_underlay"
            else:
                continue
            if target == four.HOST:
                continue  # its published ports choose a backend anew for every datagram that is not remembered
            got = run(loader, program, frame)
            now = generation.lookup(bytes(4)) or b""
            generation.update(bytes(4), bytes(4))  # none: the layers alone
            assert run(loader, program, frame) == got, (packet, flags)
            generation.update(bytes(4), now)
            assert run(loader, program, frame) == got, (packet, flags)


@pytest.mark.parametrize("size", [1430, 1431])
@pytest.mark.parametrize("whole", [True, False])
def test_too_big_is_always_answered(loader: Loader, size: int, whole: bool) -> None:
    """Also to one that might be fragmented: nobody does that to what a tunnel over IPv6 carries."""
    source = LocalEndpoint(4097, "10.0.1.2", 24, four._mac("10.0.1.2"), "E")
    peer = RemoteEndpoint(4097, "10.0.1.3", four._mac("10.0.1.3"), four.PEERS[0])
    fill(loader, Tables([*four.NETWORKS, source, peer]), source)
    packet = four._ip(Packet("10.0.1.2", "10.0.1.3", 17, next(four._ports), 80))
    flags = b"\x40\0" if whole else b"\0\0"
    packet = (
        packet[:2] + struct.pack("!H", size) + packet[4:6] + flags + packet[8:] + bytes(size - len(packet))
    )
    _, out, reason = run(loader, "from_container", four._eth(packet, four._mac_bytes("10.0.1.2")))
    assert REASONS[reason] == ("encapsulated" if size == 1430 else "too_big")
    if size == 1431:
        assert out[34:36] == b"\3\4" and struct.unpack_from("!H", out, 40) == (1430,)
