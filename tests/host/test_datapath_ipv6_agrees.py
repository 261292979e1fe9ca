"""As test_datapath_agrees.py, for IPv6 inside the overlay: the programs decide (BPF_PROG_TEST_RUN) what
network/vfp/forward.py says, over tables of both families; and what IPv6 has of its own: neighbours, links, errors.
"""

from __future__ import annotations

import itertools
import secrets
import struct
from collections.abc import Iterator
from ipaddress import IPv6Address

import msgspec
import pytest
from datapath_frames import check, counted
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_datapath_agrees import HOST, PEERS, _mac, _ways

from overlace.network.linux import bpf_syscall, unified
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
from overlace.network.vfp.access import Connections
from overlace.network.vfp.forward import Way, forward_from_container, forward_from_wire
from overlace.network.vfp.model import Direction, Packet
from overlace.network.vfp.tables import (
    ANY_PORT,
    HOST6,
    AccessList,
    AccessRule,
    Backend,
    Behind,
    Entry,
    Frontend,
    Hop,
    LocalEndpoint,
    Network,
    RemoteEndpoint,
    RemoteSubnet,
    Tables,
)

pytestmark = [pytest.mark.host, pytest.mark.timeout(300)]
ROUTED, OUTSIDE = "fd00:9::/48", "2001:db8::200"
OWN = "2001:db8:77::11"  # one of this host's
_LO = 1
_ports = itertools.cycle(range(1024, 65000))


def address(third: int, last: int) -> str:
    return f"fd00:{third + 1}::{last:x}"


def mac(third: int, last: int) -> str:
    """Of both addresses of an endpoint."""
    return _mac(f"10.0.{third}.{last}")


def mac_bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


NETWORKS = tuple(
    Network(
        4096 + t,
        (f"10.0.{t}.0/24", f"fd00:{t + 1}::/64"),
        f"10.0.{t}.1",
        mac(t, 1),
        ingress=t == 0,
        other_gateways=(address(t, 1),),
    )
    for t in range(3)
)
MACS = {address(t, n): mac(t, n) for t in range(3) for n in range(1, 12)}


@pytest.fixture(scope="module")
def loader() -> Iterator[Loader]:
    made = Loader(f"six{secrets.token_hex(3)}")
    made.open()
    made.maps["config"].update(bytes(4), config_value(_LO, HOST, 24, 1500, _LO, _LO, 4789))
    made.maps["own_addresses6"].put_many(own_rows([Address(_LO, OWN, 64)], _LO))
    yield made
    made.destroy()


_third, _last = st.integers(0, 2), st.integers(2, 7)
_cidr = st.sampled_from(
    ["::/0", "fd00:1::/64", "fd00:2::/126", "fd00:2::4/127", "fd00:3::3/128", "10.0.0.0/8", f"{OUTSIDE}/128"]
)
_cidrs = st.lists(_cidr, max_size=4, unique=True).map(tuple)
_range = st.sampled_from([ANY_PORT, (80, 80), (443, 8080), (1, 79), (1024, 65535), (81, 442)])


@st.composite
def _rule(draw: st.DrawFn) -> AccessRule:
    protocol = draw(st.sampled_from([0, 6, 17, 58]))
    ports = (draw(_range), draw(_range)) if protocol in (6, 17) else (ANY_PORT, ANY_PORT)
    action = draw(st.sampled_from(["allow", "block", "pass"]))
    return AccessRule(action, protocol, draw(_cidrs), draw(_cidrs), *ports, draw(st.integers(0, 2)))


_rules = st.lists(_rule(), max_size=6).map(lambda rules: sorted(rules, key=lambda r: r.tier))


def _filtered(
    endpoint: LocalEndpoint, inbound: list[AccessRule], outbound: list[AccessRule]
) -> tuple[LocalEndpoint, AccessList, AccessList]:
    into = AccessList(endpoint.vni, endpoint.address, "IN", tuple(inbound))
    out = AccessList(endpoint.vni, endpoint.address, "OUT", tuple(outbound))
    return msgspec.structs.replace(endpoint, inbound=into.number, outbound=out.number), into, out


_hop_prefix = st.sampled_from(["2001:db8:3::/48", "2001:db8:3::8/125", "::/0"])
_hop = st.one_of(st.builds(address, _third, _last), st.just(""))


@st.composite
def _tables(draw: st.DrawFn) -> Tables:
    """Endpoints of both families here and there, VIPs whose backends exist."""
    entries: list[Entry] = list(NETWORKS)
    backends = []
    for third, last in draw(st.lists(st.tuples(_third, _last), unique=True, min_size=2, max_size=8)):
        vni, six, hardware = 4096 + third, address(third, last), mac(third, last)
        if draw(st.booleans()):
            local = LocalEndpoint(vni, six, 64, hardware, f"E{six}", draw(st.booleans()), ("fd00::/16",))
            to = draw(st.sampled_from([(), (), (f"{OUTSIDE}/128",), ("2001:db8:2::/64", "fd00::/9")]))
            more = draw(
                st.sampled_from(
                    [(), ((("2001:db8:2::/127", "fd00::/8"), ()),), (((), ("2001:db8:2::1/128",)),)]
                )
            )
            hops = draw(st.lists(st.builds(Hop, _hop_prefix, _hop), max_size=2, unique_by=lambda h: h.prefix))
            local = msgspec.structs.replace(
                local,
                nat_destinations=to,
                more_nats=more,
                hops=tuple(h for h in hops if h.next_hop != six),
                host_route=draw(st.booleans()),
            )
            entries.append(LocalEndpoint(vni, f"10.0.{third}.{last}", 24, hardware, f"E{six}"))
            entries += _filtered(local, draw(_rules), draw(_rules)) if draw(st.booleans()) else [local]
        else:
            host = draw(st.sampled_from(PEERS))
            entries.append(RemoteEndpoint(vni, six, hardware, host))
            entries.append(RemoteEndpoint(vni, f"10.0.{third}.{last}", hardware, host))
        seen = draw(st.sampled_from(["", "", address(third, 250)]))
        backends.append(Backend(vni, six, draw(st.sampled_from([0, 8080])), seen))
    for third, last in draw(st.lists(st.tuples(_third, st.integers(8, 10)), unique=True, max_size=4)):
        members = tuple(b for b in backends if b.vni == 4096 + third and draw(st.booleans()))
        proto, port = draw(st.sampled_from([(0, 0), (6, 80), (17, 0), (0, 80)]))
        kept = draw(st.sampled_from([(0, False), (3600, False), (3600, True)]))
        entries.append(Frontend(4096 + third, address(third, last), proto, port, members, *kept))
    for third in draw(st.lists(_third, unique=True)):
        entries.append(RemoteSubnet(4096 + third, ROUTED, PEERS[1], mac(9, 1), 4096 + third))
    for third in draw(st.lists(_third, unique=True)):
        hop = address(third, draw(_last))
        entries.append(Behind(4096 + third, draw(_hop_prefix), hop, draw(st.sampled_from("ab"))))
    for port in draw(st.lists(st.sampled_from([80, 8080]), unique=True)):
        members = tuple(b for b in backends if b.vni == 4096 and draw(st.booleans()))
        entries.append(Frontend(0, HOST6, draw(st.sampled_from([6, 17])), port, members))
    return Tables(entries)


_target = st.one_of(
    st.builds(address, _third, st.integers(1, 11)),
    st.sampled_from([OUTSIDE, "fd00:9::99", "fd00:9:1::1", "fd77::1", "2001:db8:2::1", "2001:db8:3::9", OWN]),
)
_proto, _dport = st.sampled_from([6, 17]), st.sampled_from([80, 443, 8080])


def _fill(loader: Loader, tables: Tables, source: LocalEndpoint | None) -> None:
    """As if each endpoint had an interface; the test run's is `source`'s."""
    locals_ = sorted({e.endpoint_id for e in tables if isinstance(e, LocalEndpoint)})
    attached = {name: Attachment(1000 + i, 7) for i, name in enumerate(locals_)}
    rows = Rows()
    rows.replace((), [r for e in tables for r in encode(e, attached)])
    if source:
        mine = encode(source, {source.endpoint_id: Attachment(_LO, 7)})
        (port,) = (r for r in mine if r.map == "ports6")
        rows.replace((), [Row("ports6", struct.pack("I", _LO), port.value)])
    changes = rows.difference({name: dict(loader.maps[name].items()) for name in TABLE_MAPS})
    for name in TABLE_MAPS:
        loader.maps[name].put_many(changes.put[name])
        loader.maps[name].delete_many(changes.remove[name])
    unified.renew(loader.maps["generation"])


def packed(text: str) -> bytes:
    return IPv6Address(text).packed


def checksum(src: str, dst: str, protocol: int, body: bytes) -> int:
    data = packed(src) + packed(dst) + struct.pack("!II", len(body), protocol) + body
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip6(src: str, dst: str, protocol: int, body: bytes, *, hops: int = 64, sum_at: int = -1) -> bytes:
    """The transport checksum goes to `sum_at` of the body."""
    if sum_at >= 0:
        body = body[:sum_at] + struct.pack("!H", checksum(src, dst, protocol, body)) + body[sum_at + 2 :]
    return struct.pack("!IHBB", 6 << 28, len(body), protocol, hops) + packed(src) + packed(dst) + body


def _ip(packet: Packet, flags: int = 2) -> bytes:
    if packet.protocol == 6:
        body = struct.pack("!HHIIBBHHH", packet.sport, packet.dport, 1, 0, 0x50, flags, 1000, 0, 0)
        return ip6(packet.src, packet.dst, 6, body, sum_at=16)
    body = struct.pack("!HHHH", packet.sport, packet.dport, 12, 0) + b"ping"
    return ip6(packet.src, packet.dst, 17, body, sum_at=6)


def _eth(packet: bytes, source: str) -> bytes:
    return b"\2\0\0\0\0\xee" + mac_bytes(source) + b"\x86\xdd" + packet


def _tunnelled(packet: bytes, source: RemoteEndpoint) -> bytes:
    """The frame with which `source`'s host sends the packet to this one."""
    vxlan = struct.pack("!BxxxI", 8, source.vni << 8) + _eth(packet, source.mac)
    outer = struct.pack("!HHHH", 40000, 4789, 8 + len(vxlan), 0) + vxlan
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(outer), 0, 0, 64, 17, 0)
    hosts = b"".join(bytes(map(int, a.split("."))) for a in (source.provider_address, HOST))
    return b"\2\0\0\0\0\xee" + b"\2\0\0\0\0\xdd" + b"\x08\x00" + head + hosts + outer


def _read(frame: bytes) -> tuple[str, Packet]:
    """(destination MAC, packet) of a plain frame whose checksum is right."""
    assert frame[12:14] == b"\x86\xdd", frame[12:14].hex()
    src, dst = str(IPv6Address(frame[22:38])), str(IPv6Address(frame[38:54]))
    assert checksum(src, dst, frame[20], frame[54 : 54 + struct.unpack("!H", frame[18:20])[0]]) == 0
    return frame[:6].hex(":"), Packet(src, dst, frame[20], *struct.unpack_from("!HH", frame, 54))


def _run(loader: Loader, program: str, frame: bytes) -> tuple[int, bytes, str]:
    code, out, reason = bpf_syscall.run_program(loader.programs[program], frame, _LO)
    name = REASONS[reason]
    if (
        name == "encapsulated"
    ):  # the source port and identification of the outer header are the program's choice
        out = out[:18] + bytes(2) + out[20:24] + bytes(2) + out[26:]
    return code, out, name


def named(ways: list[Way]) -> list[Way]:
    """With this host's address in place of what stands for any of them."""

    def name(text: str) -> str:
        return OWN if text == HOST6 else text

    def packet(p: Packet) -> Packet:
        return msgspec.structs.replace(p, src=name(p.src), dst=name(p.dst))

    return [msgspec.structs.replace(w, packet=packet(w.packet)) for w in ways]


def _checked(loader: Loader, program: str, frame: bytes, sent: bytes, ways: list[Way], vni: int) -> None:
    """Run the program: its end is one of `ways`, headers and all, and counts once. `sent`: the plain frame in it; `vni`:
    of the network it is on."""
    with counted(loader, vni) as ends:
        code, out, reason = bpf_syscall.run_program(loader.programs[program], frame, _LO)
        name = REASONS[reason]
        ends.append("" if code == -1 and name != "to_host" else name)
    check(named(ways), sent, code, out, name, HOST)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(_tables(), st.data())
def test_packets_of_containers(loader: Loader, tables: Tables, data: st.DataObject) -> None:
    locals_ = [e for e in tables if isinstance(e, LocalEndpoint) and ":" in e.address]
    assume(locals_)
    source = data.draw(st.sampled_from(locals_))
    _fill(loader, tables, source)
    for target, proto, dport in data.draw(
        st.lists(st.tuples(_target, _proto, _dport), min_size=1, max_size=8)
    ):
        packet = Packet(source.address, target, proto, next(_ports), dport)
        seen = msgspec.structs.replace(packet, dst=HOST6) if target == OWN else packet
        ways = _ways(lambda pick, p=seen: forward_from_container(tables, source.vni, source, HOST, p, pick))
        frame = _eth(_ip(packet), source.mac)
        _checked(loader, "from_container", frame, frame, ways, source.vni)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(_tables(), st.lists(st.tuples(_proto, st.sampled_from([22, 80, 8080])), min_size=1, max_size=8))
def test_packets_of_clients(loader: Loader, tables: Tables, packets: list[tuple[int, int]]) -> None:
    _fill(loader, tables, None)
    for proto, dport in packets:
        packet = Packet(OUTSIDE, OWN, proto, next(_ports), dport)
        seen = msgspec.structs.replace(packet, dst=HOST6)
        ways = _ways(lambda pick, p=seen: forward_from_wire(tables, p, 0, pick))
        frame = _eth(_ip(packet), "02:00:00:00:00:dd")
        _checked(loader, "from_underlay", frame, frame, ways, 0)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(_tables(), st.data())
def test_packets_of_the_tunnel(loader: Loader, tables: Tables, data: st.DataObject) -> None:
    remotes = [e for e in tables if isinstance(e, RemoteEndpoint) and ":" in e.address]
    assume(remotes)
    _fill(loader, tables, None)
    targets = data.draw(st.lists(st.tuples(st.integers(1, 11), _proto, _dport), min_size=1, max_size=8))
    for last, proto, dport in targets:
        source = data.draw(st.sampled_from(remotes))
        to = address(source.vni - 4096, last) if last < 11 else "2001:db8:3::9"
        packet = Packet(source.address, to, proto, next(_ports), dport)
        way = forward_from_wire(tables, packet, source.vni)
        sent = _eth(_ip(packet), source.mac)
        _checked(loader, "from_underlay", _tunnelled(_ip(packet), source), sent, [way], source.vni)


@st.composite
def _conversation(draw: st.DrawFn) -> tuple[list[Tables], list[tuple[bool, str, int, int, int, int]]]:
    """Some tables one after the other, and a few connections' packets in any order among them."""
    phases = draw(st.lists(_tables(), min_size=1, max_size=3))
    flags = st.sampled_from([0x02, 0x10, 0x18, 0x11, 0x04])
    packet = st.tuples(st.booleans(), _target, _proto, _dport, flags, _last)
    return phases, draw(st.lists(packet, min_size=4, max_size=25))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(_conversation(), st.integers(1, 60000))
def test_a_flow_is_what_its_layers_say(
    loader: Loader, conversation: tuple[list[Tables], list[tuple[bool, str, int, int, int, int]]], port: int
) -> None:
    phases, packets = conversation
    for tables in phases:
        locals_ = [e for e in tables if isinstance(e, LocalEndpoint) and ":" in e.address]
        remotes = [e for e in tables if isinstance(e, RemoteEndpoint) and ":" in e.address]
        source = locals_[0] if locals_ else None
        _fill(loader, tables, source)
        for outbound, target, proto, dport, flags, last in packets:
            if outbound and source:
                packet = Packet(source.address, target, proto, port, dport)
                frame, program = _eth(_ip(packet, flags), source.mac), "from_container"
            elif not outbound and remotes:
                sender = remotes[last % len(remotes)]
                packet = Packet(sender.address, address(sender.vni - 4096, last), proto, port, dport)
                frame, program = _tunnelled(_ip(packet, flags), sender), "from_underlay"
            else:
                continue
            got = _run(loader, program, frame)
            generation = loader.maps["generation"]
            now = generation.lookup(bytes(4)) or b""
            generation.update(bytes(4), bytes(4))  # none: the layers alone
            assert _run(loader, program, frame) == got, (packet, flags)
            generation.update(bytes(4), now)
            assert _run(loader, program, frame) == got, (packet, flags)


_few = st.sampled_from([80, 443, 5000])
_step = st.tuples(
    st.sampled_from(["IN", "OUT"]),
    st.sampled_from([2, 5]),
    st.sampled_from([6, 17]),
    _few,
    _few,
    st.booleans(),
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(_rules, _rules, st.lists(_step, max_size=12)), min_size=1, max_size=3))
def test_connections_through_access_lists(
    loader: Loader,
    phases: list[tuple[list[AccessRule], list[AccessRule], list[tuple[Direction, int, int, int, int, bool]]]],
) -> None:
    """Replies pass, other packets are judged, and new lists decide about old connections."""
    plain = LocalEndpoint(4097, address(1, 4), 64, mac(1, 4), "E")
    peers = {n: RemoteEndpoint(4097, address(1, n), mac(1, n), PEERS[0]) for n in (2, 5)}
    for name in ("allowed6", "unified_flows6"):
        loader.maps[name].delete_many([key for key, _ in loader.maps[name].items()])
    memory: Connections | None = None
    for inbound, outbound, steps in phases:
        source, into, out = _filtered(plain, inbound, outbound)
        _fill(loader, Tables([NETWORKS[1], source, into, out, *peers.values()]), source)
        here = encode(source, {source.endpoint_id: Attachment(_LO, 7)})
        loader.maps["endpoints6"].update(*next((r.key, r.value) for r in here if r.map == "endpoints6"))
        lists: dict[Direction, tuple[AccessRule, ...]] = {"IN": into.rules, "OUT": out.rules}
        memory = memory or Connections(lists)
        memory.lists = lists
        for direction, last, protocol, local, remote, begins in steps:
            ends = [(source.address, local), (peers[last].address, remote)]
            (src, sport), (dst, dport) = ends if direction == "OUT" else ends[::-1]
            packet, syn = Packet(src, dst, protocol, sport, dport), begins and protocol == 6
            raw = _ip(packet, 2 if syn else 16)
            if direction == "OUT":
                reason = _run(loader, "from_container", _eth(raw, source.mac))[2]
            else:
                reason = _run(loader, "from_underlay", _tunnelled(raw, peers[last]))[2]
            passed = "delivered" if direction == "IN" else "encapsulated"
            assert reason == (passed if memory.admit(direction, packet, syn=syn) else "drop_policy"), (
                packet,
                lists,
            )
