"""Every table that remembers connections or clients, of both families, when it is full: whoever is new is served, who is
active stays known, and it is said. Frames go through the programs one by one; nothing waits."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from itertools import count

import pytest
from datapath_bed import mac_of

from overlace.network.host_watch import plan_full
from overlace.network.linux import bpf_syscall, unified
from overlace.network.linux.audit import explain_fill
from overlace.network.linux.figures import table_fill
from overlace.network.linux.loader import Loader
from overlace.network.linux.maps import EVICTING, REASONS, TABLE_MAPS, Attachment, Row, config_value, encode
from overlace.network.linux.netlink import Address
from overlace.network.linux.outside6 import own_rows
from overlace.network.linux.rows import Rows
from overlace.network.vfp.tables import (
    HOST6,
    AccessList,
    AccessRule,
    Backend,
    Entry,
    Frontend,
    LocalEndpoint,
    Network,
    RemoteEndpoint,
)

pytestmark = [pytest.mark.host, pytest.mark.timeout(60)]
SIZE = 512
UNDERLAY, OTHER_HOST, OWN6 = "172.28.1.11", "172.28.1.12", "2001:db8::11"
MAC = mac_of("10.0.1.4")
SYN, ACK = 2, 16


class Family:
    """Addresses of one family, and frames that carry them."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.suffix = "6" if version == 6 else ""
        self.own, self.peer, self.vip, self.inside = (
            f"10.0.1.{n}" if version == 4 else f"fd00:1::{n}" for n in (4, 5, 9, 20)
        )
        self.ingress = "10.0.0.4" if version == 4 else "fd00::4"
        self.host = UNDERLAY if version == 4 else OWN6

    def client(self, n: int) -> str:
        """Of clients outside."""
        return f"198.51.{100 + (n >> 8)}.{n & 255}" if self.version == 4 else f"2001:db8:1::{n + 1:x}"

    def packet(self, source: str, target: str, sport: int, dport: int, flags: int) -> bytes:
        tcp = struct.pack("!HHIIBBHHH", sport, dport, 1, 0, 0x50, flags, 1000, 0, 0)
        ends = ip_address(source).packed + ip_address(target).packed
        if self.version == 6:
            return struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64) + ends + tcp
        return struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0x4000, 64, 6, 0) + ends + tcp

    def frame(self, *packet: object) -> bytes:
        kind = b"\x86\xdd" if self.version == 6 else b"\x08\x00"
        return (
            b"\2\0\0\0\0\xee" + bytes.fromhex(MAC.replace(":", "")) + kind + self.packet(*packet)  # type: ignore[arg-type]
        )


FOUR, SIX = Family(4), Family(6)
LET_OUT = AccessRule("allow", 6, remote_ports=(80, 80))


def entries() -> list[Entry]:
    found: list[Entry] = [
        Network(
            4097,
            ("10.0.1.0/24", "fd00:1::/64"),
            "10.0.1.1",
            mac_of("10.0.1.1"),
            other_gateways=("fd00:1::1",),
        ),
        Network(
            4096,
            ("10.0.0.0/24", "fd00::/64"),
            "10.0.0.1",
            mac_of("10.0.0.1"),
            ingress=True,
            other_gateways=("fd00::1",),
        ),
    ]
    for f in (FOUR, SIX):
        out, into = AccessList(4097, f.own, "OUT", (LET_OUT,)), AccessList(4097, f.own, "IN", ())
        length = 24 if f is FOUR else 64
        found += [
            out,
            into,
            LocalEndpoint(4097, f.own, length, MAC, "E", inbound=into.number, outbound=out.number),
            LocalEndpoint(4096, f.ingress, length, MAC, "I"),
            RemoteEndpoint(4097, f.peer, mac_of("10.0.1.5"), OTHER_HOST),
            Frontend(4097, f.vip, 6, 80, (Backend(4097, f.peer),)),
            Frontend(
                0, UNDERLAY if f is FOUR else HOST6, 6, 8080, (Backend(4097, f.peer, 80),), affinity=600
            ),
        ]
    return found


@pytest.fixture
def small() -> Iterator[Loader]:
    made = Loader(f"full{secrets.token_hex(3)}", sizes=dict.fromkeys(EVICTING, SIZE))
    made.open()
    made.maps["config"].update(bytes(4), config_value(1, UNDERLAY, 24, 1500, 1, 1, 4789))
    made.maps["own_addresses6"].put_many(own_rows([Address(1, OWN6, 64)], 1))
    rows, at = Rows(), {"E": Attachment(1000, 7), "I": Attachment(1001, 7)}
    rows.replace((), [r for e in entries() for r in encode(e, at)])
    for e in entries():
        if isinstance(e, LocalEndpoint) and e.endpoint_id == "E":  # a test run's packets come in by lo
            for row in encode(e, {"E": Attachment(1, 7)}):
                if row.map in ("ports", "ports6"):
                    rows.replace((), [Row(row.map, struct.pack("I", 1), row.value)])
    changes = rows.difference({})
    for name in TABLE_MAPS:
        made.maps[name].put_many(changes.put[name])
    unified.renew(made.maps["generation"])
    yield made
    made.destroy()


def tunnelled(inner: bytes, vni: int) -> bytes:
    """As it comes from the other host."""
    length = len(inner) + 16
    outer = struct.pack("!BBHHHBBH", 0x45, 0, length + 20, 0, 0, 64, 17, 0)
    outer += ip_address(OTHER_HOST).packed + ip_address(UNDERLAY).packed
    udp = struct.pack("!HHHH", 40000, 4789, length, 0)
    return (
        b"\2\0\0\0\0\xee" * 2 + b"\x08\x00" + outer + udp + struct.pack("!II", 0x08 << 24, vni << 8) + inner
    )


# By table: the program, the n-th connection's or client's frame, what becomes of it, and what names it in the table.
Case = tuple[str, Callable[[Family, int, int], bytes], str, Callable[[Family, int], bytes]]


def port_of(f: Family, n: int) -> bytes:
    return struct.pack("!H", 30000 + n)


def address_of(f: Family, n: int) -> bytes:
    return ip_address(f.client(n)).packed


def to_service(f: Family, n: int, flags: int) -> bytes:
    return f.frame(f.own, f.vip, 30000 + n, 80, flags)


_ports = count(10000)


def from_outside(f: Family, n: int, flags: int) -> bytes:
    """Each a connection of its own."""
    return f.frame(f.client(n), f.host, next(_ports) % 50000 + 10000, 8080, flags)


def through_other_host(f: Family, n: int, flags: int) -> bytes:
    return tunnelled(f.frame(f.client(n), f.ingress, 4000, 80, flags), 4096)


CASES: dict[str, Case] = {
    "flows": ("from_container", to_service, "encapsulated", port_of),
    "unified_flows": ("from_container", to_service, "encapsulated", port_of),
    "allowed": ("from_container", to_service, "encapsulated", port_of),
    "affinities": ("from_underlay", from_outside, "encapsulated", address_of),
    "flows, of clients through another host": (
        "from_underlay", through_other_host, "delivered", address_of,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", [FOUR, SIX], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("case", CASES)
def test_a_full_table_serves_who_is_new_and_keeps_who_is_active(
    small: Loader, case: str, family: Family
) -> None:
    program, frame, ends, name = CASES[case]
    table = small.maps[case.split(",")[0] + family.suffix]

    def send(n: int, flags: int) -> str:
        return REASONS[bpf_syscall.run_program(small.programs[program], frame(family, n, flags), 1)[2]]

    # what is remembered of a client is used by its connections, not by their packets
    again = SYN if table.name.startswith("affinities") else ACK
    busy = 0
    assert send(busy, SYN) == ends
    for n in range(1, 4 * SIZE):
        assert send(n, SYN) == ends, f"number {n}"
        assert send(busy, again) == ends, f"the busy one, after {n}"
        if n % 20 == 0:  # as time would do: then the layers are asked again, and what they remember is used
            unified.renew(small.maps["generation"])
    assert table.count() <= SIZE
    keys = [key for key, _ in table.items()]
    assert any(name(family, busy) in key for key in keys), "who is active is known"
    assert any(name(family, 4 * SIZE - 1) in key for key in keys), "and who came last"
    assert not any(name(family, 5) in key for key in keys), "not who has been idle longest"
    fills = [f for f in table_fill(small.maps) if f.name == table.name]
    assert fills[0].is_full and fills[0].evicts
    (said,), _ = plan_full(fills, {}, 0)
    assert said.action == "table_full" and said.attributes["capacity"] == str(SIZE)
    assert all(f.mild for f in explain_fill(fills)), "packets flow all the same"
