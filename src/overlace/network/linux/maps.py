"""Tables as rows of BPF maps, and settings: packed as bpf/types.h lays them out. Pure.

Owns LAYOUT (what an upgrade compares), the names of reasons, and the encoding of every entry. What programs write is read
by unified.py, figures.py and inject.py. Which rows two entries share: rows.py. Must not touch the kernel.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from socket import AF_INET, AF_INET6, inet_pton

import msgspec

from overlace.model.family import is_six
from overlace.network.vfp.tables import (
    AccessList,
    Backend,
    Behind,
    Entry,
    Flood,
    Frontend,
    Hop,
    Key,
    LocalEndpoint,
    Network,
    RemoteEndpoint,
    RemoteSubnet,
)

from .family import V4, V6, Family, IpNetwork, family_of, of_table

LAYOUT = 18  # as in bpf/types.h
OVER_IPV6 = 1 << 16  # added to it where hosts' addresses are IPv6: other programs, other sizes
KIND_LOCAL, KIND_REMOTE, KIND_VIP, KIND_GATEWAY, KIND_BROADCAST = 1, 2, 3, 4, 5
FLOOD_TARGETS = 4096  # as in bpf/types.h
FLOOD_RATE = 0xFFFFFFFF
_REMOTE = bytes((KIND_REMOTE, 0))
# enum reason of bpf/types.h, in its order
REASONS = (
    "delivered",
    "encapsulated",
    "slow_path",
    "to_underlay",
    "to_host",
    "answered_arp",
    "answered_echo",
    "refused",
    "too_big",
    "drop_spoofed",
    "drop_unknown_vni",
    "drop_wrong_provider",
    "drop_no_endpoint",
    "drop_no_backend",
    "drop_isolation",
    "drop_no_outbound",
    "drop_garbage",
    "drop_arp",
    "drop_unsupported",
    "drop_no_port",
    "drop_error",
    "drop_policy",
    "drop_rate",
    "replicated",
    "drop_flood",
)
# Written in this order and removed in the opposite one, so that what a row points at is there before the row.
_ORDER = (
    "address_sets", "access_lists", "networks", "subnets", "exceptions", "limits", "floods", "routes", "ports",
    "endpoints", "backends", "members", "frontends", "reaches",
)  # fmt: skip
# There is one row of `limits` for both families.
TABLE_MAPS = (*_ORDER, *(f"{name}6" for name in _ORDER if name != "limits"))
# Full, the least recently used row gives way.
EVICTING = (
    "flows",
    "allowed",
    "unified_flows",
    "affinities",
    "flows6",
    "allowed6",
    "unified_flows6",
    "affinities6",
)
ACCESS_RULES = 512  # as in bpf/types.h
ACTIONS = {"block": 0, "allow": 1, "pass": 2}  # enum verdict of bpf/types.h
AFFINITY_PROTOCOL = 1 << 31
FRONTEND_PRESERVES = 1
NAT_NEVER, NAT_ALLOWED = 1, 2
ROUTES_OF = 1 << 30  # as in bpf/types.h
BEHIND = 1 << 31


class Attachment(msgspec.Struct, frozen=True):
    """The interface that carries a local endpoint: host-side ifindex and the inode of the sandbox's
    namespace."""

    ifindex: int
    sandbox: int


class Row(msgspec.Struct, frozen=True):
    """One map element."""

    map: str
    key: bytes
    value: bytes


def _mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", "").replace("-", ""))


def address_key(vni: int, address: str) -> bytes:
    """struct address_key, of the family the address has."""
    return struct.pack("I", vni) + family_of(address).address(address)


def layout_of(hosts: Family) -> int:
    """What an upgrade compares."""
    return LAYOUT if hosts is V4 else LAYOUT + OVER_IPV6


def _endpoint(
    hosts: Family, mac: bytes, kind: int, ifindex: int = 0, sandbox: int = 0, flags: int = 0
) -> bytes:
    """struct endpoint of one that is behind no host."""
    return bytes(hosts.octets) + struct.pack("II6sBB", ifindex, sandbox, mac, kind, flags)


def list_number(backends: tuple[Backend, ...]) -> int:
    """The content's name: equal lists share it, so an unchanged list keeps its connections' generation."""
    return _number(f"{b.vni}/{b.address}/{b.port}{b.source and f'/{b.source}'}" for b in backends)


def _number(items: Iterable[str]) -> int:
    return int.from_bytes(hashlib.blake2b("|".join(items).encode(), digest_size=8).digest(), "little")


def config_value(
    ifindex: int,
    address: str,
    prefix: int,
    mtu: int,
    vxlan_ifindex: int,
    lo_ifindex: int,
    vxlan_port: int,
    *,
    narrow: bool = False,
    slow: bool = False,
    tunnels: tuple[str, int] | None = None,
) -> bytes:
    """struct config. `narrow`: some path takes less than `mtu`; `slow`: all goes through the kernel's vxlan device;
    `tunnels`: IPv6 address and prefix length for tunnels, `address` and `prefix` are for clients alone then."""
    mask = IPv4Network(f"0.0.0.0/{prefix}").netmask.packed
    head = struct.pack("I4s4sIII", ifindex, V4.address(address), mask, mtu, vxlan_ifindex, lo_ifindex)
    value = head + struct.pack(">H", vxlan_port) + struct.pack("BB", narrow, slow)
    if tunnels is None:
        return value
    return value + V6.address(tunnels[0]) + IPv6Network(f"::/{tunnels[1]}").netmask.packed


def path_rows(mtus: Mapping[str, int], hosts: Family = V4) -> dict[bytes, bytes]:
    """Map `paths`: struct path by underlay address."""
    return {hosts.address(address): struct.pack("I", mtu) for address, mtu in mtus.items()}


def encode(entry: Entry, attachments: Mapping[str, Attachment], hosts: Family = V4) -> list[Row]:
    """The rows of one entry; `hosts`: what hosts' addresses are. Raises ValueError for an address or MAC that is none, a
    number that has no room, and more than a map's row can hold."""
    try:
        return _encode(entry, attachments, hosts)
    except struct.error as e:
        raise ValueError(f"{entry}: {e}") from e


def _encode(entry: Entry, attachments: Mapping[str, Attachment], hosts: Family) -> list[Row]:
    match entry:
        case Network():
            return _encode_network(entry, hosts)
        case LocalEndpoint():
            at = attachments.get(entry.endpoint_id)
            mac = _mac(entry.mac)
            ifindex, sandbox = (at.ifindex, at.sandbox) if at else (0, 0)
            filtered = 1 if entry.inbound else 0
            value = _endpoint(hosts, mac, KIND_LOCAL, ifindex, sandbox, filtered)
            family = family_of(entry.address)
            rows = [Row(f"endpoints{family.suffix}", address_key(entry.vni, entry.address), value)]
            if not at:
                return rows
            number, found = _nat_list(entry)
            rows += found
            flags = (1 if entry.outbound_nat else 0) | filtered << 1 | (4 if entry.rate else 0)
            flags |= (8 if entry.host_route else 0) | (16 if entry.lets_out else 0)
            routes, found = _hop_list(entry.hops, family, hosts)
            rows += found
            if entry.rate:
                rows.append(Row("limits", struct.pack("I", ifindex), struct.pack("Q", entry.rate)))
            port = address_key(entry.vni, entry.address) + struct.pack("II6sBx", sandbox, number, mac, flags)
            port = port.ljust(-len(port) % 8 + len(port), b"\0")
            port += struct.pack("QQI4x", entry.inbound, entry.outbound, routes)
            rows.append(Row(f"ports{family.suffix}", struct.pack("I", ifindex), port))
            rows.append(_reach(entry, sandbox))
            return rows
        case RemoteEndpoint():
            table = endpoint_table(entry)
            return [Row(table, key, value) for key, value in encode_remotes((entry,), hosts).items()]
        case RemoteSubnet():
            family = family_of(entry.prefix)
            hop = hosts.address(entry.provider_address) + struct.pack("I6s2x", entry.through, _mac(entry.mac))
            hop += bytes(family.octets)
            return [Row(f"routes{family.suffix}", _route_key(entry.vni, entry.prefix), hop)]
        case Behind():
            family = family_of(entry.prefix)
            key = _route_key(BEHIND | entry.vni, entry.prefix)
            return [Row(f"routes{family.suffix}", key, _hop(entry.next_hop, family, hosts))]
        case Flood():
            return _encode_flood(entry, hosts)
        case Frontend():
            return _encode_frontend(entry, hosts)
        case AccessList():
            return _encode_access(entry)


def _reach(entry: LocalEndpoint, sandbox: int) -> Row:
    """struct reach: what the container's sockets reach by the endpoint's interface, which has its prefix."""
    family = family_of(entry.address)
    to = ip_network(f"{entry.address}/{entry.prefix}", strict=False)
    key = struct.pack("II", 32 + to.prefixlen, sandbox) + to.network_address.packed
    return Row(f"reaches{family.suffix}", key, address_key(entry.vni, entry.address))


def endpoint_table(entry: RemoteEndpoint) -> str:
    """The table its row is in."""
    return "endpoints6" if is_six(entry.address) else "endpoints"


def encode_remotes(entries: Sequence[RemoteEndpoint], hosts: Family = V4) -> dict[bytes, bytes]:
    """The rows of `endpoints` of many remote endpoints of one family: as encode(), without an object for each.

    A cluster has a hundred thousand of them, and a host that joins it wants all at once.
    """
    try:
        macs = bytes.fromhex("".join([e.mac for e in entries]).replace(":", "").replace("-", ""))
        outer = AF_INET6 if hosts is V6 else AF_INET
        behind = {a: inet_pton(outer, a) + bytes(8) for a in {e.provider_address for e in entries}}
        networks = {vni: struct.pack("I", vni) for vni in {e.vni for e in entries}}
        family = AF_INET6 if entries and is_six(entries[0].address) else AF_INET
        keys = [networks[e.vni] + inet_pton(family, e.address) for e in entries]
    except struct.error as e:
        raise ValueError(f"VNIs {sorted({each.vni for each in entries})}: {e}") from e
    except OSError as e:
        for each in entries:
            family_of(entries[0].address).address(each.address)  # says which
            hosts.address(each.provider_address)
        raise ValueError(f"{[each.address for each in entries]}: {e}") from e
    if len(macs) != 6 * len(entries):
        wrong = next(e for e in entries if len(_mac(e.mac)) != 6)
        raise ValueError(f"{wrong.mac!r} of {wrong.address} is no MAC address")
    values = [
        behind[e.provider_address] + macs[at : at + 6] + _REMOTE
        for at, e in zip(range(0, len(macs), 6), entries, strict=True)
    ]
    return dict(zip(keys, values, strict=True))


def _route_key(scope: int, prefix: str) -> bytes:
    to = ip_network(prefix, strict=False)
    return struct.pack("II", 32 + to.prefixlen, scope) + to.network_address.packed


def _hop(address: str, family: Family, hosts: Family) -> bytes:
    """struct route of a next hop; none: the host."""
    return bytes(hosts.octets + 12) + (family.address(address) if address else b"\xff" * family.octets)


def _hop_list(hops: tuple[Hop, ...], family: Family, hosts: Family) -> tuple[int, list[Row]]:
    """Number, 0 for none, and rows of an endpoint's SDN routes of this family."""
    hops = tuple(
        h for h in hops if family_of(h.prefix) is family and family_of(h.next_hop or h.prefix) is family
    )
    if not hops:
        return 0, []
    number = ROUTES_OF | _number(f"{h.prefix}>{h.next_hop}" for h in hops) & (ROUTES_OF - 1)
    return number, [
        Row(f"routes{family.suffix}", _route_key(number, h.prefix), _hop(h.next_hop, family, hosts))
        for h in hops
    ]


def _nat_list(entry: LocalEndpoint) -> tuple[int, list[Row]]:
    """Number and rows of where the endpoint may not go by outbound NAT and where it may; the longest prefix counts. Of
    each pair an exception wins over a destination, and one pair is enough."""
    if not any(kept or only for kept, only in entry.nats):
        return 0, []
    family = family_of(entry.address)
    texts = (text for kept, only in entry.nats for text in (*kept, "to", *only, "or"))
    number = _number(texts) & 0xFFFFFFFF
    lists = [
        (family.own(kept), family.own(only))
        for kept, only in entry.nats
        if not only or any(family_of(c) is family for c in only)
    ]
    prefixes = {family.anywhere, *(c for pair in lists for cidrs in pair for c in cidrs)}

    indexed = [(_by_length(kept), _by_length(only)) for kept, only in lists]

    def leaves(part: IpNetwork) -> bool:
        return any(not _holds(kept, part) and (not only or _holds(only, part)) for kept, only in indexed)

    return number, [
        Row(
            f"exceptions{family.suffix}",
            struct.pack("II", 32 + n.prefixlen, number) + n.network_address.packed,
            struct.pack("I", NAT_ALLOWED if leaves(n) else NAT_NEVER),
        )
        for n in sorted(prefixes, key=str)
    ]


def _by_length(cidrs: Iterable[IpNetwork]) -> dict[int, set[int]]:
    """Prefixes' own bits by length: whether one of many holds an address costs one look for each length there is."""
    out: dict[int, set[int]] = {}
    for c in cidrs:
        out.setdefault(c.prefixlen, set()).add(int(c.network_address) >> (c.max_prefixlen - c.prefixlen))
    return out


def _holds(cidrs: dict[int, set[int]], part: IpNetwork) -> bool:
    bits = int(part.network_address)
    return any(
        length <= part.prefixlen and bits >> (part.max_prefixlen - length) in found
        for length, found in cidrs.items()
    )


def _encode_access(entry: AccessList) -> list[Row]:
    """The list, and the sets its rules name. Prefixes of the other family are left out; a rule that names only such keeps
    its place, by which it is counted, and never holds."""
    if len(entry.rules) > ACCESS_RULES:
        raise ValueError(f"{entry.address}: {len(entry.rules)} access rules; {ACCESS_RULES} are possible")
    family = family_of(entry.address)
    out: list[bytes] = []
    sets: dict[bytes, tuple[IpNetwork, ...]] = {}
    for r in entry.rules:
        local, remote = family.own(r.local), family.own(r.remote)
        if (r.local and not local) or (r.remote and not remote):
            remote = (family.nobody,)
        out += [_addresses(local, family, sets), _addresses(remote, family, sets)]
        named = (1 if len(local) > 1 else 0) | (2 if len(remote) > 1 else 0)
        port_ranges = struct.pack("HHHH", *r.local_ports, *r.remote_ports)
        out.append(port_ranges + struct.pack("BBBB", r.protocol, ACTIONS[r.action], named, r.tier))
    value = struct.pack("I", len(entry.rules)) + b"".join(out)
    value = value.ljust(4 + ACCESS_RULES * (4 * family.bits // 8 + 12), b"\0")
    rows = [Row(f"access_lists{family.suffix}", struct.pack("Q", entry.number), value)]
    for number, nets in sorted(sets.items()):
        keys = [struct.pack("I", 64 + n.prefixlen) + number + n.network_address.packed for n in nets]
        rows += [Row(f"address_sets{family.suffix}", key, struct.pack("I", 1)) for key in keys]
    return rows


def _addresses(
    nets: tuple[IpNetwork, ...], family: Family, sets: dict[bytes, tuple[IpNetwork, ...]]
) -> bytes:
    """Address and mask of one prefix, or the number of a set of them, which is entered into `sets`."""
    if len(nets) > 1:
        number = struct.pack("Q", _number(map(str, nets)))
        sets[number] = nets
        return number.ljust(family.bits // 4, b"\0")
    net = nets[0] if nets else family.anywhere
    return net.network_address.packed + net.netmask.packed


def _encode_network(net: Network, hosts: Family) -> list[Row]:
    flags = (1 if net.ingress else 0) | (2 if net.local else 0) | (4 if net.flood else 0)
    mac = _mac(net.gateway_mac)
    rows = []
    for family in (V4, V6):
        subnets = family.own(net.subnets)
        gateways = [g for g in net.gateways if family_of(g) is family]
        if family is V6 and not subnets:
            continue
        gateway = family.address(gateways[0]) if gateways else bytes(family.bits // 8)
        value = gateway + struct.pack("6sBx", mac, flags)
        rows.append(Row(f"networks{family.suffix}", struct.pack("I", net.vni), value))
        for address in gateways:
            value = _endpoint(hosts, mac, KIND_GATEWAY)
            rows.append(Row(f"endpoints{family.suffix}", address_key(net.vni, address), value))
        for subnet in subnets:
            key = struct.pack("I", subnet.prefixlen) + subnet.network_address.packed
            rows.append(Row(f"subnets{family.suffix}", key, struct.pack("I", 1)))
    return rows


def _encode_flood(entry: Flood, hosts: Family) -> list[Row]:
    rows = [] if not entry.locals6 else _flood_rows(entry, V6, entry.locals6, entry.providers6, hosts)
    rows += _flood_rows(entry, V4, entry.locals, entry.providers, hosts)
    value = _endpoint(hosts, b"\xff" * 6, KIND_BROADCAST)
    return [*rows, *(Row("endpoints", address_key(entry.vni, a), value) for a in entry.broadcasts)]


def _flood_rows(
    entry: Flood, family: Family, here: Sequence[str], there: Sequence[str], hosts: Family
) -> list[Row]:
    name, nobody = f"floods{family.suffix}", bytes(family.octets)
    targets = [family.address(a) + bytes(hosts.octets) for a in here]
    targets += [nobody + hosts.address(a) for a in there]
    if len(targets) > FLOOD_TARGETS:
        raise ValueError(f"VNI {entry.vni}: multicast to {len(targets)} places; {FLOOD_TARGETS} are possible")
    rows = [Row(name, struct.pack("II", entry.vni, i), value) for i, value in enumerate(targets)]
    rate = nobody + struct.pack("I", entry.rate).ljust(hosts.octets, b"\0")
    return [*rows, Row(name, struct.pack("II", entry.vni, FLOOD_RATE), rate)]


def _encode_frontend(frontend: Frontend, hosts: Family) -> list[Row]:
    family = family_of(frontend.address)
    number = list_number(frontend.backends)

    def behind(b: Backend) -> bytes:
        return struct.pack("I", b.vni) + family.address(b.address)

    def source_of(b: Backend) -> bytes:
        return family.address(b.source) if b.source else bytes(family.bits // 8)

    rows = [
        Row(
            f"backends{family.suffix}",
            struct.pack("QII", number, index, 0),
            behind(b) + struct.pack(">HH", b.port, 0) + source_of(b),
        )
        for index, b in enumerate(frontend.backends)
    ]
    key = address_key(frontend.vni, frontend.address) + struct.pack(">HBx", frontend.port, frontend.protocol)
    affinity = frontend.affinity | (AFFINITY_PROTOCOL if frontend.affinity_protocol else 0)
    flags = FRONTEND_PRESERVES if frontend.preserves else 0
    value = struct.pack("QIIII", number, len(frontend.backends), affinity, flags, 0)
    rows.append(Row(f"frontends{family.suffix}", key, value))
    if frontend.affinity:
        for b in frontend.backends:
            member = struct.pack("Q", number) + behind(b) + struct.pack(">H6x", b.port)
            member = member.ljust(-len(member) % 8 + len(member), b"\0")
            rows.append(Row(f"members{family.suffix}", member, source_of(b)))
    if frontend.vni:
        vip = _endpoint(hosts, bytes(6), KIND_VIP)
        rows.append(Row(f"endpoints{family.suffix}", address_key(frontend.vni, frontend.address), vip))
    return rows


def decode_key(map_name: str, key: bytes, value: bytes) -> Key | None:
    """The table key a stray row belonged to; None for rows that are only part of an entry."""
    family, map_name = of_table(map_name)
    address = 4 + family.bits // 8  # where a key's part behind VNI and address begins
    if map_name == "networks" and family is V4:
        return ("network", struct.unpack("I", key)[0])
    if map_name == "endpoints" and value[-2] in (KIND_LOCAL, KIND_REMOTE):
        return ("endpoint", struct.unpack_from("I", key)[0], family.text(key[4:address]))
    if map_name == "routes":
        length, vni = struct.unpack_from("II", key)
        if vni >= ROUTES_OF:
            return None
        return ("route", vni, f"{family.text(key[8:])}/{length - 32}")
    if map_name == "frontends":
        (vni,) = struct.unpack_from("I", key)
        port, protocol = struct.unpack_from(">HB", key, address)
        return ("frontend", vni, family.text(key[4:address]), protocol, port)
    return None
