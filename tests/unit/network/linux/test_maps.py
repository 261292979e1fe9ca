"""Tables as rows of BPF maps: layouts as the C side has them, and increments that end where a full build ends."""

from __future__ import annotations

import re
import struct
from ipaddress import IPv6Network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlace.network.hns.acl import MAX_RULES
from overlace.network.linux.build import SOURCES
from overlace.network.linux.family import V4, V6, Family, of_table
from overlace.network.linux.maps import (
    ACCESS_RULES,
    LAYOUT,
    REASONS,
    TABLE_MAPS,
    Attachment,
    config_value,
    decode_key,
    encode,
    encode_remotes,
    layout_of,
    list_number,
)
from overlace.network.linux.rows import Rows
from overlace.network.vfp.tables import (
    AccessList,
    AccessRule,
    Backend,
    Delta,
    Entry,
    Flood,
    Frontend,
    LocalEndpoint,
    Network,
    RemoteEndpoint,
    RemoteSubnet,
    Tables,
)

HEADER = (SOURCES / "types.h").read_text()


def _sizes(struct_name: str, address: int, host: int = 4) -> int:
    """Bytes of a C struct of fixed-width members without padding of the compiler's own; `address`: of an addr_t, `host`:
    of a host_t."""
    body = re.search(rf"struct {struct_name} {{(.*?)\n}}", HEADER, re.S)
    assert body
    text = re.sub(r"/\*.*?\*/", "", body[1], flags=re.S)
    only6 = r"#ifdef OVERLACE_IPV6\n(.*?)#endif"
    text = re.sub(only6, r"\1" if address == 16 else "", text, flags=re.S)
    over6 = r"#ifdef OVERLACE_OVER_IPV6\n(.*?)#endif"
    text = re.sub(over6, r"\1" if host == 16 else "", text, flags=re.S)
    total, sizes = 0, {"addr_t": address, "host_t": host, "six_t": 16}
    for kind, names in re.findall(r"(__(?:u|be)(?:8|16|32|64)|addr_t|host_t|six_t) ([^;]+);", text):
        for name in names.split(","):
            count = re.search(r"\[(\d+)\]", name)
            each = sizes.get(kind) or int(re.sub(r"\D", "", kind)) // 8
            total += each * (int(count[1]) if count else 1)
    return total


LOCAL = LocalEndpoint(4097, "10.0.1.5", 24, "02:42:0a:00:01:05", "AAAA", True, ("10.0.0.0/8",), rate=5000)
EXAMPLES: tuple[Entry, ...] = (
    Network(4097, ("10.0.1.0/24",), "10.0.1.1", "02:42:0a:00:01:01"),
    LOCAL,
    RemoteEndpoint(4097, "10.0.1.6", "02:42:0a:00:01:06", "172.28.1.12"),
    RemoteSubnet(4097, "10.244.0.0/16", "172.28.1.12", "02:42:0a:00:01:06", 4097),
    Frontend(4097, "10.0.1.2", 6, 80, (Backend(4097, "10.0.1.5", 8080, "10.0.1.250"),), affinity=60),
    AccessList(
        4097,
        "10.0.1.5",
        "IN",
        (AccessRule("allow", 6, ("10.0.1.5/32",), ("10.0.1.0/24", "10.0.2.0/25"), (80, 90)),),
    ),
    Flood(4097, 1000, ("10.0.1.5",), ("172.28.1.12",), ("10.0.1.255",), ("fd00:1::5",), ("172.28.1.12",)),
)
LOCAL6 = LocalEndpoint(
    4097, "fd00:1::5", 64, "02:42:0a:00:01:05", "AAAA", True, ("fd00::/8",), inbound=3, outbound=5, rate=5000
)
EXAMPLES6: tuple[Entry, ...] = (
    Network(
        4097,
        ("10.0.1.0/24", "fd00:1::/64"),
        "10.0.1.1",
        "02:42:0a:00:01:01",
        other_gateways=("fd00:1::1",),
    ),
    LOCAL6,
    RemoteEndpoint(4097, "fd00:1::6", "02:42:0a:00:01:06", "172.28.1.12"),
    RemoteSubnet(4097, "fd00:244::/48", "172.28.1.12", "02:42:0a:00:01:06", 4097),
    Frontend(4097, "fd00:1::2", 6, 80, (Backend(4097, "fd00:1::5", 8080),), affinity=60),
    AccessList(
        4097,
        "fd00:1::5",
        "IN",
        (AccessRule("allow", 6, ("fd00:1::5/128",), ("fd00:1::/64", "fd00:2::/65"), (80, 90)),),
    ),
)
ATTACHED = {"AAAA": Attachment(7, 99)}
STRUCTS = {
    "address_sets": ("set_key", 4),
    "limits": (4, 8),
    "floods": ("flood_key", "flood"),
    "members": ("member", "addr_t"),
    "routes": ("route_key", "route"),
    "access_lists": (8, "access_list"),
    "networks": (4, "network"),
    "endpoints": ("address_key", "endpoint"),
    "ports": (4, "port"),
    "subnets": ("subnet_key", 4),
    "exceptions": ("exception_key", 4),
    "frontends": ("frontend_key", "frontend"),
    "reaches": ("reach_key", "reach"),
    "backends": ("backend_key", "backend"),
}


@pytest.mark.parametrize("hosts", [V4, V6])
def test_rows_have_the_sizes_of_the_c_structs(hosts: Family) -> None:
    def size(what: int | str, address: int) -> int:
        if what == "access_list":
            return 4 + ACCESS_RULES * _sizes("access_rule", address)
        if what == "addr_t":
            return address
        return what if isinstance(what, int) else _sizes(what, address, hosts.octets)

    seen = set()
    for entry in (*EXAMPLES, *EXAMPLES6):
        for row in encode(entry if hosts is V4 else over_ipv6(entry), ATTACHED, hosts):
            family, name = of_table(row.map)
            key, value = STRUCTS[name]
            assert len(row.key) == size(key, family.bits // 8), row.map
            assert len(row.value) == size(value, family.bits // 8), row.map
            seen.add(row.map)
    assert seen == set(TABLE_MAPS)
    assert {of_table(name)[1] for name in TABLE_MAPS} == set(STRUCTS)
    tunnels = ("fd00:28::11", 64) if hosts is V6 else None
    value = config_value(2, "172.28.1.11", 24, 1500, 3, 1, 4789, tunnels=tunnels)
    assert len(value) == _sizes("config", 4, hosts.octets)


def over_ipv6(entry: Entry) -> Entry:
    """The same where hosts have IPv6 addresses."""
    if isinstance(entry, (RemoteEndpoint, RemoteSubnet)):
        return msgspec.structs.replace(entry, provider_address="fd00:28::12")
    if isinstance(entry, Flood):
        hosts = ("fd00:28::12",)
        return msgspec.structs.replace(entry, providers=hosts, providers6=hosts)
    return entry


def test_a_row_says_which_host_an_endpoint_is_behind() -> None:
    far = RemoteEndpoint(4097, "10.0.1.6", "02:42:0a:00:01:06", "fd00:28::12")
    (row,) = encode(far, {}, V6)
    assert row.value[:16] == V6.address("fd00:28::12") and row.value[16:24] == bytes(8)
    assert encode_remotes([far], V6) == {row.key: row.value}
    assert decode_key(row.map, row.key, row.value) == far.key
    for entry, hosts in ((far, V4), (msgspec.structs.replace(far, provider_address="172.28.1.12"), V6)):
        with pytest.raises(ValueError, match=entry.provider_address.split(".")[0]):
            encode(entry, {}, hosts)


def test_tunnels_of_another_family_are_another_layout() -> None:
    assert layout_of(V4) == LAYOUT != layout_of(V6)


def test_layout_and_reasons_are_those_of_the_c_side() -> None:
    assert f"#define LAYOUT {LAYOUT}\n" in HEADER
    assert f"#define ACCESS_RULES {ACCESS_RULES} " in HEADER and MAX_RULES == ACCESS_RULES
    enum = re.search(r"enum reason {(.*?)}", HEADER, re.S)
    assert enum
    names = re.findall(r"\bR_([A-Z_]+),", enum[1])
    assert tuple(n.lower() for n in names) == (*REASONS, "count")


def test_addresses_and_ports_are_in_network_order() -> None:
    row = next(r for r in encode(EXAMPLES[4], {}) if r.map == "frontends")
    assert row.key == struct.pack("I", 4097) + bytes([10, 0, 1, 2, 0, 80, 6, 0])
    row = next(r for r in encode(EXAMPLES[4], {}) if r.map == "backends")
    assert row.value == struct.pack("I", 4097) + bytes([10, 0, 1, 5, 0x1F, 0x90, 0, 0, 10, 0, 1, 250])


def test_an_endpoint_without_interface_is_known_but_nowhere() -> None:
    (row,) = encode(LOCAL, {})
    assert row.map == "endpoints" and struct.unpack_from("4sII", row.value) == (bytes(4), 0, 0)


def test_equal_lists_share_their_number() -> None:
    one, two = Backend(4097, "10.0.1.5"), Backend(4097, "10.0.1.6")
    assert list_number((one, two)) == list_number((one, two)) != list_number((two, one))


@pytest.mark.parametrize(
    "entry", [e for e in (*EXAMPLES, *EXAMPLES6) if not isinstance(e, (AccessList, Flood))]
)
def test_keys_are_read_back(entry: Entry) -> None:
    keys = {decode_key(r.map, r.key, r.value) for r in encode(entry, ATTACHED)} - {None}
    assert keys == {entry.key}


def test_a_rule_of_the_other_family_keeps_its_place_and_never_holds() -> None:
    rules = (
        AccessRule("block", 6, remote=("10.0.1.0/24",)),
        AccessRule("allow", 6, remote=("10.0.1.0/24", "fd00:1::/64")),
    )
    (lists,) = (r for r in encode(AccessList(4097, "fd00:1::5", "IN", rules), {}) if r.map == "access_lists6")
    assert struct.unpack_from("I", lists.value) == (2,)
    first, second = lists.value[4:80], lists.value[80:156]
    assert first[32:64] == bytes(16) + b"\xff" * 16, "from the unspecified address alone"
    assert second[32:64] == IPv6Network("fd00:1::/64").network_address.packed + b"\xff" * 8 + bytes(8)


@pytest.mark.parametrize("address", ["10.0.0.300", "fd00::1::2", ""])
def test_a_bad_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError):
        encode(RemoteEndpoint(4097, address, "02:42:0a:00:01:06", "172.28.1.12"), {})


def _mac(last: int) -> str:
    return f"02:42:0a:00:01:{last:02x}"


_vni = st.sampled_from([4096, 4097])
_address = st.integers(2, 9).map(lambda n: f"10.0.1.{n}")
_backends = st.lists(st.builds(Backend, _vni, _address, st.sampled_from([0, 80])), max_size=3).map(tuple)
_entry = st.one_of(
    st.builds(lambda v: Network(v, ("10.0.1.0/24",), "10.0.1.1", _mac(1)), _vni),
    st.builds(
        lambda v, a, nat: LocalEndpoint(v, a, 24, _mac(5), f"E{v}{a}", nat, ("10.0.0.0/8", "192.0.2.0/24")),
        _vni,
        _address,
        st.booleans(),
    ),
    st.builds(
        lambda v, a, pa: RemoteEndpoint(v, a, _mac(6), f"172.28.1.{pa}"), _vni, _address, st.integers(1, 3)
    ),
    st.builds(
        Frontend,
        st.sampled_from([0, 4097]),
        st.just("10.0.1.99"),
        st.just(6),
        st.sampled_from([0, 80]),
        _backends,
    ),
)
_delta = st.tuples(st.lists(_entry, max_size=4), st.lists(_entry, max_size=3))


@given(st.lists(_delta, max_size=8))
def test_increments_end_where_a_full_build_ends(deltas: list[tuple[list[Entry], list[Entry]]]) -> None:
    """And each change writes only what differs, and removes only what is there."""
    attached = {f"E{v}10.0.1.{n}": Attachment(n * 10 + v, n) for v in (4096, 4097) for n in range(2, 6)}
    tables, rows = Tables(), Rows()
    kernel: dict[str, dict[bytes, bytes]] = {name: {} for name in TABLE_MAPS}
    for put, remove in deltas:
        wanted = {e.key: e for e in put}
        delta = Delta(tuple(wanted.values()), tuple({e.key for e in remove} - wanted.keys()))
        touched = (*delta.remove, *wanted)
        old = [r for k in touched if (e := tables.get(k)) for r in encode(e, attached)]
        changes = rows.replace(old, [r for e in delta.put for r in encode(e, attached)])
        tables.apply(delta)
        for name, items in changes.put.items():
            for key, value in items.items():
                assert kernel[name].get(key) != value
                kernel[name][key] = value
        for name, keys in changes.remove.items():
            for key in keys:
                del kernel[name][key]
    full = Rows()
    full.replace((), [r for e in tables for r in encode(e, attached)])
    assert not full.difference(kernel)
    assert not rows.difference(kernel)
