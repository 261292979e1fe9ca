"""The eBPF programs against the reference: for any tables and any first packet of a connection, what the
program decides (BPF_PROG_TEST_RUN) is what network/vfp/forward.py says the tables mean.
"""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import msgspec
import pytest
from datapath_frames import TO_CLIENT, check, counted, reverse, sealed
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from overlace.network.linux import bpf_syscall, figures, unified
from overlace.network.linux.edges import own_rows4
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
from overlace.network.linux.rows import Rows
from overlace.network.vfp.access import Connections
from overlace.network.vfp.affinity import preferred
from overlace.network.vfp.forward import Way, forward_from_container, forward_from_wire
from overlace.network.vfp.model import Direction, Packet
from overlace.network.vfp.simulate import Choose
from overlace.network.vfp.tables import (
    ANY_PORT,
    HOST4,
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
SECOND = "192.0.2.11"  # another address of the host's
HOST, PEERS, OUTSIDE = "172.28.1.11", ("172.28.1.12", "172.28.1.13"), "172.28.1.200"
NETWORKS = (
    Network(4096, ("10.0.0.0/24",), "10.0.0.1", "02:42:0a:00:00:01", ingress=True),
    Network(4097, ("10.0.1.0/24",), "10.0.1.1", "02:42:0a:00:01:01"),
    Network(4098, ("10.0.2.0/24",), "10.0.2.1", "02:42:0a:00:02:01"),
)
ELSEWHERE = "10.77.0.5"
ROUTED = "10.9.0.0/16"
ROUTED_BY_HOP = "203.0.113.9"
POOL = ("10.0.0.0/8",)
_ports = itertools.cycle(range(1024, 65000))  # every packet starts a connection of its own
_LO = 1  # the test run's interface; what is behind it is said by the `ports` map


@pytest.fixture(scope="module")
def loader() -> Iterator[Loader]:
    made = Loader(f"agree{secrets.token_hex(3)}")
    made.open()
    made.maps["config"].update(bytes(4), config_value(_LO, HOST, 24, 1500, _LO, _LO, 4789))
    made.maps["own_addresses"].put_many(own_rows4([Address(_LO, a, 24) for a in (HOST, SECOND)], HOST))
    yield made
    made.destroy()


def _mac(address: str) -> str:
    return "02:42:" + ":".join(f"{int(part):02x}" for part in address.split("."))


def _mac_bytes(address: str) -> bytes:
    return bytes.fromhex(_mac(address).replace(":", ""))


_third = st.integers(0, 2)
_last = st.integers(2, 7)
_cidr = st.sampled_from(
    ["0.0.0.0/0", "10.0.0.0/24", "10.0.1.0/30", "10.0.1.4/31", "10.0.2.3/32", "10.0.0.8/29", f"{OUTSIDE}/32"]
)
_cidrs = st.lists(_cidr, max_size=4, unique=True).map(tuple)  # none: any; more than one: a set
_range = st.sampled_from([ANY_PORT, (80, 80), (443, 8080), (1, 79), (1024, 65535), (81, 442)])


@st.composite
def _rule(draw: st.DrawFn) -> AccessRule:
    protocol = draw(st.sampled_from([0, 6, 17, 132]))
    ports = (draw(_range), draw(_range)) if protocol else (ANY_PORT, ANY_PORT)
    action = draw(st.sampled_from(["allow", "block", "pass"]))
    return AccessRule(action, protocol, draw(_cidrs), draw(_cidrs), *ports, draw(st.integers(0, 2)))


def _filtered(
    endpoint: LocalEndpoint, inbound: list[AccessRule], outbound: list[AccessRule]
) -> tuple[LocalEndpoint, AccessList, AccessList]:
    into = AccessList(endpoint.vni, endpoint.address, "IN", tuple(inbound))
    out = AccessList(endpoint.vni, endpoint.address, "OUT", tuple(outbound))
    return msgspec.structs.replace(endpoint, inbound=into.number, outbound=out.number), into, out


_rules = st.lists(_rule(), max_size=6).map(lambda rules: sorted(rules, key=lambda r: r.tier))


_hop_prefix = st.sampled_from(["203.0.113.0/24", "203.0.113.8/29", "0.0.0.0/0"])
_hop = st.one_of(st.builds(lambda t, n: f"10.0.{t}.{n}", _third, _last), st.just(""))


@st.composite
def _tables(draw: st.DrawFn) -> Tables:
    """Endpoints here and there, VIPs and published ports whose backends exist."""
    entries: list[Entry] = list(NETWORKS)
    places = draw(st.lists(st.tuples(_third, _last), unique=True, min_size=2, max_size=8))
    backends = []
    for third, last in places:
        vni, address = 4096 + third, f"10.0.{third}.{last}"
        if draw(st.booleans()):
            local = LocalEndpoint(vni, address, 24, _mac(address), f"E{address}", draw(st.booleans()), POOL)
            to = draw(st.sampled_from([(), (), (f"{OUTSIDE}/32",), ("192.0.2.0/24", "10.0.0.0/9")]))
            more = draw(
                st.sampled_from([(), ((("192.0.2.0/31", "10.0.0.0/8"), ()),), (((), ("192.0.2.1/32",)),)])
            )
            hops = draw(st.lists(st.builds(Hop, _hop_prefix, _hop), max_size=2, unique_by=lambda h: h.prefix))
            hops = [h for h in hops if h.next_hop != address]
            local = msgspec.structs.replace(
                local, nat_destinations=to, more_nats=more, hops=tuple(hops), host_route=draw(st.booleans())
            )
            if draw(st.booleans()):
                entries += _filtered(local, draw(_rules), draw(_rules))
            else:
                entries.append(local)
        else:
            entries.append(RemoteEndpoint(vni, address, _mac(address), draw(st.sampled_from(PEERS))))
        elsewhere = isinstance(entries[-1], RemoteEndpoint)
        seen = draw(st.sampled_from(["", "", f"10.0.{third}.250"])) if elsewhere else ""
        backends.append(Backend(vni, address, draw(st.sampled_from([0, 8080])), seen))
    for third in draw(st.lists(_third, unique=True)):  # on a subnet of its own host
        entries.append(RemoteEndpoint(4096 + third, ELSEWHERE, _mac(ELSEWHERE), draw(st.sampled_from(PEERS))))
    here = {e.address for e in entries if isinstance(e, LocalEndpoint)}
    # Clients on the network itself are seen as they are, and those outside by backends here (compile.seen_as).
    plain = [msgspec.structs.replace(b, source="") for b in backends]
    for third, last in draw(st.lists(st.tuples(_third, st.integers(8, 10)), unique=True, max_size=4)):
        members = tuple(b for b in plain if b.vni == 4096 + third and draw(st.booleans()))
        proto, port = draw(st.sampled_from([(0, 0), (6, 80), (17, 0), (0, 80)]))
        kept = draw(st.sampled_from([(0, False), (3600, False), (3600, True)]))
        preserves = draw(st.booleans()) and all(b.address in here for b in members)
        entries.append(Frontend(4096 + third, f"10.0.{third}.{last}", proto, port, members, *kept, preserves))
    for third in draw(st.lists(_third, unique=True)):
        entries.append(RemoteSubnet(4096 + third, ROUTED, PEERS[1], _mac("10.9.0.1"), 4096 + third))
    for third in draw(st.lists(_third, unique=True)):
        hop = f"10.0.{third}.{draw(_last)}"
        entries.append(Behind(4096 + third, draw(_hop_prefix), hop, draw(st.sampled_from("ab"))))
    for port in draw(st.lists(st.sampled_from([80, 8080]), min_size=1, unique=True)):
        members = tuple(b for b in backends if b.vni == 4096 and draw(st.booleans()))
        preserves = draw(st.booleans()) and all(b.address in here for b in members)
        kept = draw(st.sampled_from([(0, False), (3600, False)]))
        entries.append(
            Frontend(
                0,
                draw(st.sampled_from([HOST, HOST4])),
                draw(st.sampled_from([6, 17])),
                port,
                members,
                *kept,
                preserves,
            )
        )
    return Tables(entries)


_target = st.one_of(
    st.builds(lambda t, n: f"10.0.{t}.{n}", _third, st.integers(1, 11)),
    st.sampled_from([OUTSIDE, "10.9.9.9", "192.0.2.1", ROUTED_BY_HOP, ELSEWHERE, HOST]),
)
_proto, _dport = st.sampled_from([6, 17, 132]), st.sampled_from([80, 443, 8080])


def _questions(tables: Tables, vni: int) -> st.SearchStrategy[list[tuple[str, int, int]]]:
    """Addresses, protocols and ports to ask for: half of them served there."""
    served = [
        (e.address, protocol, port)
        for e in tables
        if isinstance(e, Frontend) and e.vni == vni
        for protocol in ([e.protocol] if e.protocol else [6, 17])
        for port in ([e.port] if e.port else [80, 443])
    ]
    any_of_them = st.tuples(_target, _proto, _dport)
    each = st.one_of(st.sampled_from(served), any_of_them) if served else any_of_them
    return st.lists(each, min_size=1, max_size=8)


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
        loader.maps[name].put_many(changes.put[name])
        loader.maps[name].delete_many(changes.remove[name])
    unified.renew(loader.maps["generation"])


def _ip(packet: Packet, flags: int = 2) -> bytes:
    """`flags`: of TCP; 2 is SYN, 16 ACK."""
    if packet.protocol == 6:
        body = struct.pack("!HHIIBBHHH", packet.sport, packet.dport, 1, 0, 0x50, flags, 1000, 0, 0)
    else:
        body = struct.pack("!HHHH", packet.sport, packet.dport, 12, 0) + b"ping"
    addresses = socket.inet_aton(packet.src) + socket.inet_aton(packet.dst)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, packet.protocol, 0)
    made = sealed(head + addresses + body)
    unsummed = packet.protocol == 17 and 443 in (packet.sport, packet.dport)
    return made[:26] + bytes(2) + made[28:] if unsummed else made


def _eth(packet: bytes, source: bytes) -> bytes:
    return b"\2\0\0\0\0\xee" + source + b"\x08\x00" + packet


def _tunnelled(packet: bytes, source: RemoteEndpoint) -> bytes:
    """The frame with which `source`'s host sends the packet to this one."""
    vxlan = struct.pack("!BxxxI", 8, source.vni << 8) + _eth(packet, _mac_bytes(source.address))
    outer = struct.pack("!HHHH", 40000, 4789, 8 + len(vxlan), 0) + vxlan
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(outer), 0, 0, 64, 17, 0)
    return _eth(
        head + socket.inet_aton(source.provider_address) + socket.inet_aton(HOST) + outer,
        b"\2\0\0\0\0\xdd",
    )


def _read(frame: bytes) -> tuple[bytes, Packet]:
    """(destination MAC, packet) of a plain frame."""
    at = 34
    sport, dport = struct.unpack_from("!HH", frame, at)
    src, dst = socket.inet_ntoa(frame[26:30]), socket.inet_ntoa(frame[30:34])
    return frame[:6], Packet(src, dst, frame[23], sport, dport)


def _ways(forward: Callable[[Choose], Way]) -> list[Way]:
    """Where the packet may go: one way per backend of the service it is for."""
    count = 1
    ways = []
    for i in itertools.count():

        def pick(backends: Sequence[Backend], packet: Packet, i: int = i) -> Backend:
            nonlocal count
            count = len(backends)
            return backends[i]

        ways.append(forward(pick))
        if i + 1 >= count:
            return ways
    raise AssertionError


def _checked(loader: Loader, program: str, frame: bytes, sent: bytes, ways: list[Way], vni: int) -> Way:
    """Run the program: its end is one of `ways`, headers and all, and counts once. `sent`: the plain frame in it; `vni`:
    of the network it is on."""
    with counted(loader, vni) as ends:
        code, out, reason = bpf_syscall.run_program(loader.programs[program], frame, _LO)
        name = REASONS[reason]
        ends.append("" if code == -1 and name != "to_host" else name)
    return check(ways, sent, code, out, name, HOST)


def _answered(
    loader: Loader, tables: Tables, source: LocalEndpoint | None, packet: Packet, way: Way, back: Way
) -> None:
    """The backend's answer to what went this way finds back to who asked, from the address that was asked."""
    ip = _ip(reverse(way.packet), 18)
    there = tables.get(("endpoint", way.vni, way.packet.dst))
    if way.action == "encap" and isinstance(there, RemoteEndpoint) and there.provider_address == way.to:
        sent = _eth(ip, _mac_bytes(there.address))
        _checked(loader, "from_underlay", _tunnelled(ip, there), sent, [back], way.vni)
    elif way.action == "deliver":
        here = next(e for e in tables if isinstance(e, LocalEndpoint) and e.endpoint_id == way.to)
        if (
            here.address != way.packet.dst
            and way.packet.dst == packet.dst
            and packet.dst not in (HOST, SECOND)
        ):
            return  # a router, or the destination of a service that preserves it
        key, ports = struct.pack("I", _LO), loader.maps["ports"]
        before = ports.lookup(key)
        (row,) = (r for r in encode(here, {here.endpoint_id: Attachment(_LO, 7)}) if r.map == "ports")
        ports.update(key, row.value)
        try:
            sent = _eth(ip, _mac_bytes(here.address))
            _checked(loader, "from_container", sent, sent, [back], here.vni)
        finally:
            if before is not None:
                ports.update(key, before)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(_tables(), st.data())
def test_packets_of_containers(loader: Loader, tables: Tables, data: st.DataObject) -> None:
    locals_ = [e for e in tables if isinstance(e, LocalEndpoint)]
    assume(locals_)
    source = data.draw(st.sampled_from(locals_))
    _fill(loader, tables, source)
    for target, proto, dport in data.draw(_questions(tables, source.vni)):
        packet = Packet(source.address, target, proto, next(_ports), dport)
        ways = _ways(lambda pick, p=packet: forward_from_container(tables, source.vni, source, HOST, p, pick))
        frame = _eth(_ip(packet), _mac_bytes(source.address))
        way = _checked(loader, "from_container", frame, frame, ways, source.vni)
        back = Way("deliver", reverse(packet), source.endpoint_id, source.vni, source.mac)
        _answered(loader, tables, source, packet, way, back)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(_tables(), st.data())
def test_packets_of_clients(loader: Loader, tables: Tables, data: st.DataObject) -> None:
    _fill(loader, tables, None)
    for _, proto, dport in data.draw(_questions(tables, 0)):
        own = data.draw(st.sampled_from((HOST, HOST, SECOND, "192.0.2.12")))
        packet = Packet(OUTSIDE, own, proto, next(_ports), dport)
        ways = _ways(lambda pick, p=packet: forward_from_wire(tables, p, 0, pick, (HOST, SECOND)))
        frame = _eth(_ip(packet), b"\2\0\0\0\0\xdd")
        way = _checked(loader, "from_underlay", frame, frame, ways, 0)
        _checked(loader, "from_edge", frame, frame, ways, 0)
        _answered(loader, tables, None, packet, way, Way(TO_CLIENT, reverse(packet)))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(_tables(), st.data())
def test_packets_of_the_tunnel(loader: Loader, tables: Tables, data: st.DataObject) -> None:
    remotes = [e for e in tables if isinstance(e, RemoteEndpoint)]
    assume(remotes)
    _fill(loader, tables, None)
    targets = data.draw(st.lists(st.tuples(st.integers(1, 11), _proto, _dport), min_size=1, max_size=8))
    for last, proto, dport in targets:
        source = data.draw(st.sampled_from(remotes))
        to = f"10.0.{source.vni - 4096}.{last}" if last < 11 else ROUTED_BY_HOP
        packet = Packet(source.address, to, proto, next(_ports), dport)
        way = forward_from_wire(tables, packet, source.vni)
        sent = _eth(_ip(packet), _mac_bytes(source.address))
        way = _checked(loader, "from_underlay", _tunnelled(_ip(packet), source), sent, [way], source.vni)
        back = Way("encap", reverse(packet), source.provider_address, source.vni, source.mac)
        _answered(loader, tables, None, packet, way, back)


def _layers_only(loader: Loader, program: str, frame: bytes) -> tuple[int, bytes, str]:
    """What the layers make of a packet, without unified flows."""
    generation = loader.maps["generation"]
    now = generation.lookup(bytes(4)) or b""
    generation.update(bytes(4), bytes(4))
    try:
        return _run(loader, program, frame)
    finally:
        generation.update(bytes(4), now)


def _run(loader: Loader, program: str, frame: bytes) -> tuple[int, bytes, str]:
    code, out, reason = bpf_syscall.run_program(loader.programs[program], frame, _LO)
    name = REASONS[reason]
    if name == "encapsulated":  # the outer IP header's identification is random, and in its checksum
        out = out[:18] + bytes(2) + out[20:24] + bytes(2) + out[26:]
    return code, out, name


@st.composite
def _conversation(draw: st.DrawFn) -> tuple[list[Tables], list[tuple[object, ...]]]:
    """Some tables one after the other, and a few connections' packets in any order among them."""
    phases = draw(st.lists(_tables(), min_size=1, max_size=3))
    packet = st.tuples(
        st.integers(0, 2), st.sampled_from(["container", "client", "tunnel"]), _target, _proto, _dport,
        st.sampled_from([0x02, 0x10, 0x18, 0x11, 0x04]), st.integers(2, 7),
    )  # fmt: skip
    return phases, draw(st.lists(packet, min_size=4, max_size=25))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(_conversation(), st.integers(1, 60000))
def test_a_flow_is_what_its_layers_say(
    loader: Loader, conversation: tuple[list[Tables], list[tuple[object, ...]]], port: int
) -> None:
    """However packets and changes of the tables follow each other: taken by its unified flow, a packet ends where the
    layers would have it end, with the same headers."""
    phases, packets = conversation
    for at, tables in enumerate(phases):
        locals_ = [e for e in tables if isinstance(e, LocalEndpoint)]
        remotes = [e for e in tables if isinstance(e, RemoteEndpoint)]
        source = locals_[0] if locals_ else None
        _fill(loader, tables, source)
        for phase, kind, target, proto, dport, flags, last in packets:
            if phase > at:
                continue
            if kind == "container" and source:
                packet = Packet(source.address, str(target), int(str(proto)), port, int(str(dport)))
                frame, program = (
                    _eth(_ip(packet, int(str(flags))), _mac_bytes(source.address)),
                    "from_container",
                )
            elif kind == "tunnel" and remotes:
                sender = remotes[int(str(last)) % len(remotes)]
                to = f"10.0.{sender.vni - 4096}.{last}"
                packet = Packet(sender.address, to, int(str(proto)), port, int(str(dport)))
                frame, program = _tunnelled(_ip(packet, int(str(flags))), sender), "from_underlay"
            else:
                packet = Packet(OUTSIDE, HOST, int(str(proto)), port, int(str(dport)))
                frame, program = _eth(_ip(packet, int(str(flags))), b"\2\0\0\0\0\xdd"), "from_underlay"
            got = _run(loader, program, frame)
            assert got == _layers_only(loader, program, frame), (packet, flags)
            assert _run(loader, program, frame) == got, (packet, flags)


def test_later_packets_are_counted_in_their_flow(loader: Loader) -> None:
    source = LocalEndpoint(4097, "10.0.1.4", 24, _mac("10.0.1.4"), "E")
    peer = RemoteEndpoint(4097, "10.0.1.5", _mac("10.0.1.5"), PEERS[0])
    _fill(loader, Tables([NETWORKS[1], source, peer]), source)
    packet = Packet(source.address, peer.address, 17, next(_ports), 53)
    for _ in range(5):
        _run(loader, "from_container", _eth(_ip(packet), _mac_bytes(source.address)))
    (found,) = (
        w for w in unified.read(loader.maps["unified_flows"], loader.maps["generation"]) if w.came == packet
    )
    assert (found.packets, found.bytes, found.verdict) == (5, 5 * 32, "encapsulate")
    assert (found.went, found.provider_address, found.vni, found.current) == (packet, PEERS[0], 4097, True)
    unified.renew(loader.maps["generation"])
    (found,) = (
        w for w in unified.read(loader.maps["unified_flows"], loader.maps["generation"]) if w.came == packet
    )
    assert not found.current


@pytest.fixture
def on_one_processor() -> Iterator[None]:
    """Newcomers are counted by each processor for itself."""
    here = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(here)})
    yield
    os.sched_setaffinity(0, here)


def test_a_short_connection_takes_no_row_unless_somebody_looks(
    loader: Loader, on_one_processor: None
) -> None:
    """And what it carried before it got one counts all the same."""
    source = LocalEndpoint(4097, "10.0.1.4", 24, _mac("10.0.1.4"), "E")
    peer = RemoteEndpoint(4097, "10.0.1.5", _mac("10.0.1.5"), PEERS[0])
    watched = loader.maps["watched"]
    _fill(loader, Tables([NETWORKS[1], source, peer]), source)
    watched.update(bytes(4), bytes(4))

    def sent(packet: Packet, flags: int = 16) -> tuple[int, int] | None:
        assert (
            _run(loader, "from_container", _eth(_ip(packet, flags), _mac_bytes(source.address)))[2]
            == "encapsulated"
        )
        rows = unified.read(loader.maps["unified_flows"], loader.maps["generation"])
        return next(((w.packets, w.bytes) for w in rows if w.came == packet), None)

    one = Packet(source.address, peer.address, 6, next(_ports), 80)
    assert [sent(one, 2), *(sent(one) for _ in range(8))] == [None] * 7 + [(8, 8 * 40), (9, 9 * 40)]
    two = Packet(source.address, peer.address, 6, next(_ports), 80)
    assert [sent(two, 2), sent(two), sent(two)] == [None] * 3
    unified.watch(watched)
    assert [sent(two), sent(two)] == [(4, 4 * 40), (5, 5 * 40)]
    three = Packet(source.address, peer.address, 6, next(_ports), 80)
    assert sent(three, 2) == (1, 40)
    watched.update(bytes(4), bytes(4))
    four = Packet(source.address, peer.address, 6, next(_ports), 80)
    assert sent(four, 2) is None
    guarded, into, out = _filtered(source, [AccessRule("allow")], [AccessRule("allow")])
    _fill(loader, Tables([NETWORKS[1], guarded, peer, into, out]), guarded)
    assert [sent(four), sent(four)] == [(1, 40), (2, 80)], "the layers take it over, and remember it"


def test_a_frame_with_anothers_mac_is_no_packet_of_the_flow(loader: Loader) -> None:
    source = LocalEndpoint(4097, "10.0.1.4", 24, _mac("10.0.1.4"), "E")
    peer = RemoteEndpoint(4097, "10.0.1.5", _mac("10.0.1.5"), PEERS[0])
    _fill(loader, Tables([NETWORKS[1], source, peer]), source)
    packet = _ip(Packet(source.address, peer.address, 17, next(_ports), 53))
    assert _run(loader, "from_container", _eth(packet, _mac_bytes(source.address)))[2] == "encapsulated"
    assert _run(loader, "from_container", _eth(packet, _mac_bytes("10.0.1.9")))[2] == "drop_spoofed"
    back = Packet(peer.address, source.address, 17, 53, 5353)
    frame = _tunnelled(_ip(back), peer)
    assert _run(loader, "from_underlay", frame)[2] == "delivered"
    elsewhere = _tunnelled(_ip(back), msgspec.structs.replace(peer, provider_address=PEERS[1]))
    assert _run(loader, "from_underlay", elsewhere)[2] == "drop_wrong_provider"


def test_a_drop_names_its_network(loader: Loader) -> None:
    """However early it comes, and whatever the packet's buffer held before."""
    source = LocalEndpoint(4097, "10.0.1.4", 24, _mac("10.0.1.4"), "E", rate=1)
    peer = RemoteEndpoint(4097, "10.0.1.5", _mac("10.0.1.5"), PEERS[0])
    _fill(loader, Tables([NETWORKS[1], source, peer]), source)
    loader.maps["limits"].update(struct.pack("I", _LO), struct.pack("Q", 1))
    packet = Packet(source.address, peer.address, 17, next(_ports), 53)
    frame = _eth(_ip(packet), _mac_bytes(source.address))
    question = (
        struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
        + _mac_bytes(source.address)
        + bytes(10)
        + b"\x0a\x00\x01\x63"
    )
    arp = b"\xff" * 6 + _mac_bytes(source.address) + b"\x08\x06" + question

    def dropped(reason: str, frame: bytes, program: str = "from_container", times: int = 1) -> int:
        before = figures.drops(loader.maps["drops"])
        for _ in range(times):
            bpf_syscall.run_program(loader.programs[program], frame, _LO, cb=0x7ACE1234)
        after = figures.drops(loader.maps["drops"])
        (changed,) = {
            vni for (vni, why), n in after.items() if n != before.get((vni, why), 0) and why == reason
        }
        return changed

    assert dropped("drop_spoofed", _eth(_ip(packet), _mac_bytes("10.0.1.9"))) == 4097
    assert dropped("drop_arp", arp) == 4097
    assert dropped("drop_rate", frame, times=3000) == 4097, "of the first packets and of a flow's later ones"
    stranger = msgspec.structs.replace(peer, vni=4711)
    assert dropped("drop_unknown_vni", _tunnelled(_ip(packet), stranger), "from_underlay") == 4711
    assert dropped("drop_garbage", b"\2\0\0\0\0\xee" * 2 + b"\x08\x00" + bytes(20), "from_vxlan") == 0


_few = st.sampled_from([80, 443, 5000])
_step = st.tuples(
    st.sampled_from(["IN", "OUT"]),
    st.sampled_from([2, 5]),
    st.sampled_from([6, 17, 132]),
    _few,
    _few,
    st.booleans(),
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(_rules, _rules, st.lists(_step, max_size=12)), min_size=1, max_size=3))
def test_connections_through_access_lists(
    loader: Loader, phases: list[tuple[list[AccessRule], list[AccessRule], list[tuple[object, ...]]]]
) -> None:
    """Replies pass, other packets are judged, and new lists decide about old connections."""
    plain = LocalEndpoint(4097, "10.0.1.4", 24, _mac("10.0.1.4"), "E")
    peers = {n: RemoteEndpoint(4097, f"10.0.1.{n}", _mac(f"10.0.1.{n}"), PEERS[0]) for n in (2, 5)}
    for name in ("allowed", "hits", "unified_flows"):
        loader.maps[name].delete_many([key for key, _ in loader.maps[name].items()])
    memory: Connections | None = None
    for inbound, outbound, steps in phases:
        source, into, out = _filtered(plain, inbound, outbound)
        tables = Tables([NETWORKS[1], source, into, out, *peers.values()])
        _fill(loader, tables, source)
        # where the test run's interface leads when a packet is delivered
        loader.maps["endpoints"].update(*_endpoint_row(source))
        lists: dict[Direction, tuple[AccessRule, ...]] = {"IN": into.rules, "OUT": out.rules}
        # those that pass count later where several do and a unified flow takes the packet
        several = any(sum(r.action == "pass" for r in rules) > 1 for rules in lists.values())
        run = _layers_only if several else _run
        if memory is None:
            memory = Connections(lists)
        memory.lists = lists
        for direction, last, protocol, local, remote, begins in steps:
            peer = peers[last]  # type: ignore[index]
            if direction == "OUT":
                packet = Packet(source.address, peer.address, protocol, local, remote)  # type: ignore[arg-type]
            else:
                packet = Packet(peer.address, source.address, protocol, remote, local)  # type: ignore[arg-type]
            syn = bool(begins) and protocol == 6
            raw = _ip(packet, 2 if syn else 16)
            if direction == "OUT":
                frame, program = _eth(raw, _mac_bytes(source.address)), "from_container"
            else:
                frame, program = _tunnelled(raw, peer), "from_underlay"
            _, _, reason = run(loader, program, frame)
            wanted = memory.admit(direction, packet, syn=syn)  # type: ignore[arg-type]
            passed = "delivered" if direction == "IN" else "encapsulated"
            assert reason == (passed if wanted else "drop_policy"), (packet, lists)
    assert memory is not None
    wanted_hits: Counter[tuple[int, int]] = Counter()
    for (way, rules, place), n in memory.hits.items():
        wanted_hits[AccessList(4097, plain.address, way, rules).number, place] += n
    found: Counter[tuple[int, int]] = Counter()
    for h in (*figures.hits(loader.maps["hits"]), *unified.uncounted(loader.maps["unified_flows"])):
        found[h.list, h.rule] += h.packets
    assert found == wanted_hits


def test_rules_count_a_flows_packets_when_it_is_decided_anew(loader: Loader) -> None:
    plain = LocalEndpoint(4097, "10.0.1.4", 24, _mac("10.0.1.4"), "E")
    peer = RemoteEndpoint(4097, "10.0.1.5", _mac("10.0.1.5"), PEERS[0])
    tiers = [AccessRule("pass", tier=0), AccessRule("pass", tier=1), AccessRule("allow", tier=2)]
    source, into, out = _filtered(plain, [], tiers)
    tables = Tables([NETWORKS[1], source, into, out, peer])
    _fill(loader, tables, source)
    for name in ("allowed", "hits", "unified_flows"):
        loader.maps[name].delete_many([key for key, _ in loader.maps[name].items()])
    packet = Packet(source.address, peer.address, 6, 5000, 80)

    def send(flags: int, times: int) -> dict[int, tuple[int, int]]:
        for _ in range(times):
            frame = _eth(_ip(packet, flags), _mac_bytes(source.address))
            assert _run(loader, "from_container", frame)[2] == "encapsulated"
        return {h.rule: (h.packets, h.bytes) for h in figures.hits(loader.maps["hits"])}

    assert send(2, 1) == {0: (1, 40), 1: (1, 40), 2: (1, 40)}
    assert send(16, 5) == {0: (1, 40), 1: (1, 40), 2: (1, 40)}
    assert [(h.rule, h.packets, h.bytes) for h in unified.uncounted(loader.maps["unified_flows"])] == [
        (2, 5, 200)
    ]
    unified.renew(loader.maps["generation"])
    assert send(16, 1) == {0: (7, 280), 1: (7, 280), 2: (7, 280)}
    assert send(16, 3)[0] == (7, 280)
    assert send(17, 1) == {0: (11, 440), 1: (11, 440), 2: (11, 440)}, "at its end at the latest"


def test_a_clients_backend_is_the_one_every_host_prefers(loader: Loader) -> None:
    """Programs and reference choose alike among the backends whose endpoints exist."""
    members = tuple(Backend(4096, f"10.0.0.{n}", 8080) for n in range(20, 60))
    known = members[::2]
    remotes = [RemoteEndpoint(b.vni, b.address, _mac(b.address), PEERS[0]) for b in known]
    _fill(loader, Tables([*NETWORKS, *remotes, Frontend(0, HOST, 6, 80, members, 3600)]), None)
    for client in (f"198.51.{n}.{7 * n}" for n in range(1, 31)):
        frame = _eth(_ip(Packet(client, HOST, 6, next(_ports), 80)), b"\2\0\0\0\0\xdd")
        _, out, reason = bpf_syscall.run_program(loader.programs["from_underlay"], frame, _LO)
        assert REASONS[reason] == "encapsulated"
        assert _read(out[50:])[1].dst == preferred(known, client).address


def _endpoint_row(source: LocalEndpoint) -> tuple[bytes, bytes]:
    rows = encode(source, {source.endpoint_id: Attachment(_LO, 7)})
    return next((r.key, r.value) for r in rows if r.map == "endpoints")


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
