"""Networks with IPv6 beside IPv4: what a node makes of their entries, names, documents, tables and policies."""

from __future__ import annotations

import ipaddress

import dns.rcode
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlace.model.netview import EndpointEntry, NetView, ServiceEntry, entry_hash
from overlace.model.policy import ALLOW_FROM, parse_items
from overlace.network.dns import Resolver
from overlace.network.dns_message import build, parse_query
from overlace.network.hns import policies as p
from overlace.network.hns.documents import (
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNetwork,
    encode,
)
from overlace.network.hns.errors import HcnError
from overlace.network.hns.service import HnsService
from overlace.network.linux.netlink import Address
from overlace.network.linux.outside6 import own_rows
from overlace.network.names import EMPTY, UNKNOWN, Answer, Names, lookup
from overlace.network.overlay_documents import guid_of
from overlace.network.policy import Party, plan_acls, shorten
from overlace.network.vfp.compile import compile_all
from overlace.network.vfp.tables import (
    HOST4,
    HOST6,
    AccessList,
    Frontend,
    LocalEndpoint,
    Network,
    RemoteEndpoint,
)

from .test_dns import addresses, query
from .world import BACK6, ME, NETS, both, endpoint, network, port, running6, service, task6


class OldEndpoint(msgspec.Struct, frozen=True, tag="endpoint"):
    """An endpoint's entry as agents knew it before IPv6."""

    task_id: str
    network_id: str
    node_id: str
    service_id: str
    service_name: str
    task_name: str
    address: str
    mac: str
    aliases: tuple[str, ...] = ()
    serving: bool = False


def test_without_ipv6_the_wire_and_its_checksums_are_what_older_agents_know() -> None:
    entry = endpoint("t1", "back", ME, "10.0.1.9")
    old = OldEndpoint(**{f: getattr(entry, f) for f in OldEndpoint.__struct_fields__})
    assert entry_hash(entry) == entry_hash(old)  # type: ignore[arg-type]
    assert "vip6" not in msgspec.json.decode(msgspec.json.encode(service("web", "back", "10.0.1.5")))
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=EndpointEntry)
    assert kept == entry and kept.addresses == ("10.0.1.9",), "kept by an older agent"
    new = both(entry)
    assert new.addresses == ("10.0.1.9", "fd00:1::9")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(new), type=EndpointEntry) == new


# -- names


def names() -> Names:
    n = Names()
    n.update(
        NetView(
            [
                BACK6,
                network("front", 4099, 3),
                both(service("web", "back", "10.0.1.5")),
                service("web", "front", "10.0.3.5"),
                service("rr", "back", ""),
                both(endpoint("t1", "back", ME, "10.0.1.9")),
                both(endpoint("r1", "back", ME, "10.0.1.20", "rr")),
                endpoint("r2", "back", ME, "10.0.1.21", "rr"),
            ]
        ),
        None,
    )
    return n


def test_names_have_addresses_of_both_families() -> None:
    n = names()

    def ask(name: str, kind: str, networks: tuple[str, ...] = ("back",)) -> Answer:
        return lookup(n, networks, name, kind)

    assert ask("web", "A").addresses == ("10.0.1.5",)
    assert ask("web", "AAAA").addresses == ask("WEB.back", "AAAA").addresses == ("fd00:1::5",)
    assert ask("tasks.web", "AAAA").addresses == ("fd00:1::9",)
    assert ask("web.1.t1", "AAAA").addresses == ("fd00:1::9",)
    assert set(ask("web", "ANY").addresses) == {"10.0.1.5", "fd00:1::5"}
    assert ask("rr", "AAAA").addresses == ("fd00:1::20",), "a task without IPv6 is not among them"
    assert set(ask("rr", "A").addresses) == {"10.0.1.20", "10.0.1.21"}
    assert ask("rr.1.r2", "AAAA") == EMPTY, "it is there, without such an address"
    assert ask("nosuch", "AAAA") == UNKNOWN
    # both families come of one network: a client that asks for both never speaks with two services
    assert ask("web", "AAAA", ("front", "back")) == EMPTY
    assert ask("web", "A", ("front", "back")).addresses == ("10.0.3.5",)


def reverse(address: str) -> str:
    return ipaddress.ip_address(address).reverse_pointer


def test_ipv6_addresses_have_names_too() -> None:
    n = names()
    assert lookup(n, ("back",), reverse("fd00:1::9"), "PTR").names == ("web.1.t1.back",)
    assert lookup(n, ("back",), reverse("fd00:1::5").upper(), "PTR").names == ("web.back",)
    assert lookup(n, ("back",), reverse("fd00:1::99"), "PTR") == EMPTY  # ours, but nobody's
    assert lookup(n, ("back",), reverse("2001:db8::1"), "PTR") == UNKNOWN
    for text in ("8.b.ip6.arpa", "xyz.ip6.arpa", "ip6.arpa", f"zz.{reverse('fd00:1::9')}"):
        assert lookup(n, ("back",), text, "PTR") == UNKNOWN


@given(st.integers(0, (1 << 128) - 1))
def test_any_reverse_name_is_read_or_left(number: int) -> None:
    address = str(ipaddress.IPv6Address(number))
    found = lookup(names(), ("back",), reverse(address), "PTR")
    assert found.known == (ipaddress.ip_address(address) in ipaddress.ip_network("fd00:1::/64"))


def test_answers_on_the_wire() -> None:
    resolver = Resolver()
    resolver.update(
        NetView([BACK6, both(service("web", "back", "10.0.1.5")), service("four", "back", "10.0.1.6")]), None
    )

    def ask(name: str, kind: str) -> dns.message.Message:
        data = query(name, kind).to_wire()
        parsed = parse_query(data)
        assert parsed is not None
        wire = resolver.answer(("back",), parsed)
        assert wire is not None
        return dns.message.from_wire(wire.encode(data[:2], tcp=False))

    assert addresses(ask("web", "AAAA")) == ["fd00:1::5"]
    assert addresses(ask("web", "A")) == ["10.0.1.5"]
    empty = ask("four", "AAAA")
    assert empty.rcode() == dns.rcode.NOERROR and not empty.answer, "NODATA: the name has an IPv4 address"
    assert ask("nosuch", "AAAA").rcode() == dns.rcode.NXDOMAIN
    assert ask(reverse("fd00:1::77"), "PTR").rcode() == dns.rcode.NXDOMAIN
    assert [r.to_text() for a in ask(reverse("fd00:1::5"), "PTR").answer for r in a] == ["web.back."]
    assert build(parse_query(query("web").to_wire()), Answer(True, ("fd00:1::5",))).records  # type: ignore[arg-type]


# -- documents and tables


def test_documents_carry_both_families() -> None:
    w = running6()
    net = w.hns.get(HostComputeNetwork, guid_of("network", "back"))
    assert [
        (s.ip_address_prefix, s.routes[0].next_hop, s.routes[0].destination_prefix) for s in net.subnets
    ] == [
        ("10.0.1.0/24", "10.0.1.1", "0.0.0.0/0"),
        ("fd00:1::/64", "fd00:1::1", "::/0"),
    ]
    assert p.policy_of(net.policies, p.DrMacAddress).settings.address == "02-42-0A-00-01-01"
    mine = w.hns.get(HostComputeEndpoint, guid_of("endpoint", "back", "t1"))
    assert [(c.ip_address, c.prefix_length) for c in mine.ip_configurations] == [
        ("10.0.1.9", 24),
        ("fd00:1::9", 64),
    ]
    assert [(r.next_hop, r.destination_prefix) for r in mine.routes] == [
        ("10.0.1.1", "0.0.0.0/0"),
        ("fd00:1::1", "::/0"),
    ]
    assert p.policy_of(mine.policies, p.OutBoundNat).settings.exceptions == ("10.0.1.0/24", "fd00:1::/64")
    far = w.hns.get(HostComputeEndpoint, guid_of("endpoint", "back", "t2"))
    assert [c.ip_address for c in far.ip_configurations] == ["10.0.1.10", "fd00:1::10"]
    vip = w.hns.get(HostComputeLoadBalancer, guid_of("vip", "back", "web"))
    assert vip.frontend_vips == ("10.0.1.5", "fd00:1::5")


def test_windows_hosts_see_the_ipv4_half() -> None:
    w = running6(windows=True)
    net = w.hns.get(HostComputeNetwork, guid_of("network", "back"))
    assert [s.ip_address_prefix for s in net.subnets] == ["10.0.1.0/24"]
    text = b"".join(encode(d) for d in w.hns.documents.values())
    assert b"fd00" not in text
    vip = w.hns.get(HostComputeLoadBalancer, guid_of("vip", "back", "web"))
    assert vip.frontend_vips == ("10.0.1.5",)


def test_tables_have_entries_of_each_family_apart() -> None:
    t = running6().compiler.tables
    net = t.get(("network", 4097))
    assert isinstance(net, Network)
    assert (net.subnets, net.gateways) == (("10.0.1.0/24", "fd00:1::/64"), ("10.0.1.1", "fd00:1::1"))
    assert net.gateway_mac == "02:42:0a:00:01:01"
    four, local = (t.get(("endpoint", 4097, a)) for a in ("10.0.1.9", "fd00:1::9"))
    assert isinstance(local, LocalEndpoint) and isinstance(four, LocalEndpoint)
    assert (local.prefix, local.mac, local.endpoint_id) == (64, four.mac, four.endpoint_id)
    far = t.get(("endpoint", 4097, "fd00:1::10"))
    assert isinstance(far, RemoteEndpoint) and far.mac == "02:42:0a:00:01:0a"
    backends = {}
    for vip in ("10.0.1.5", "fd00:1::5"):
        front = t.get(("frontend", 4097, vip, 0, 0))
        assert isinstance(front, Frontend)
        backends[vip] = {b.address for b in front.backends}
    assert backends == {
        "10.0.1.5": {"10.0.1.9", "10.0.1.10", "10.0.1.11"},
        "fd00:1::5": {"fd00:1::9", "fd00:1::10"},  # t3 has none
    }


def test_a_task_that_gets_and_loses_ipv6_leaves_nothing() -> None:
    w = running6()
    w.change(put=(endpoint("t2", "back", "node-other", "10.0.1.10"),))
    assert w.compiler.tables.get(("endpoint", 4097, "fd00:1::10")) is None
    w.change(put=(both(endpoint("t2", "back", "node-other", "10.0.1.10")),))
    assert w.compiler.tables.get(("endpoint", 4097, "fd00:1::10")) is not None
    w.stop("t1")
    assert w.compiler.tables.get(("endpoint", 4097, "fd00:1::9")) is None
    again = compile_all(w.hns.state, "172.28.1.11")
    assert (
        {e.key: e for e in again} == {e.key: e for e in w.compiler.tables} == {e.key: e for e in w.data_path}
    )


def test_windows_and_clients_documents_are_refused_ipv6_on_overlays() -> None:
    document = running6().hns.get(HostComputeNetwork, guid_of("network", "back"))
    HnsService().create(document)
    with pytest.raises(HcnError, match="IpAddressPrefix 'fd00:1::/64'"):
        HnsService(strict_windows=True).create(document)
    six = msgspec.structs.replace(
        document.ipams[0], subnets=tuple(s for s in document.subnets if ":" in s.ip_address_prefix)
    )
    with pytest.raises(HcnError, match="needs an IPv4 one"):
        HnsService().create(msgspec.structs.replace(document, ipams=(six,)))


# -- policies


def lists(w: object, address: str) -> tuple[AccessList, AccessList]:
    found = [w.compiler.tables.get(("access", 4097, address, way)) for way in ("IN", "OUT")]  # type: ignore[attr-defined]
    assert all(isinstance(x, AccessList) for x in found)
    return found[0], found[1]


def test_a_policy_holds_for_both_families() -> None:
    w = running6()
    db = service("db", "back", "10.0.1.30")
    allowed = parse_items(ALLOW_FROM, "other:tcp/80,other:icmp,[fd00:9::/64]")
    w.change(
        put=(
            both(endpoint("o1", "back", "node-other", "10.0.1.40", "other")),
            both(endpoint("c1", "back", "node-other", "10.0.1.41", "cron")),
            both(msgspec.structs.replace(service("web", "back", "10.0.1.5"), allowed=allowed)),
            both(db),
        )
    )
    both_ends = ("10.0.1.40/32", "fd00:1::40/128")
    for address in ("10.0.1.9", "fd00:1::9"):
        local = w.compiler.tables.get(("endpoint", 4097, address))
        assert isinstance(local, LocalEndpoint) and local.inbound and local.outbound
        into, _ = lists(w, address)
        rules = [(r.action, r.protocol, r.remote, r.local_ports) for r in into.rules]
        for protocol, ports in ((6, (80, 80)), (1, (0, 65535)), (58, (0, 65535))):
            assert ("allow", protocol, both_ends, ports) in rules
        assert ("allow", 0, ("fd00:9::/64",), (0, 65535)) in rules
        assert rules[-1] == ("block", 0, (), (0, 65535))
    four, six = (lists(w, a)[0] for a in ("10.0.1.9", "fd00:1::9"))
    assert four.number == six.number and four.rules == six.rules, (
        "a rule's counters are those of both families"
    )


def test_windows_hosts_have_no_ipv6_in_their_acls() -> None:
    web = Party(name="web", addresses=("10.0.1.9", "fd00:1::9"), allowed=parse_items(ALLOW_FROM, "db"))
    db = Party(name="db", addresses=("10.0.1.10", "fd00:1::10"), vip="10.0.1.5", vip6="fd00:1::5")
    only6 = Party(name="six", addresses=("fd00:1::11",), allowed_to=())
    for six in (True, False):
        acls = plan_acls(
            web, "10.0.1.9", [db, only6], gateway="10.0.1.1", hosts=(), overlays=("10.0.1.0/24", "fd00:1::/64"),
            published=(), address6="fd00:1::9" if six else "", gateway6="fd00:1::1" if six else "",
        )  # fmt: skip
        named = {a for acl in acls for a in acl.settings.remote_addresses.split(",") if a}
        assert named == ({"10.0.1.10/32"} | ({"fd00:1::10/128", "fd00:1::11/128"} if six else set()))
        blocked = [a for a in acls if a.settings.action == "Block" and not a.settings.remote_addresses]
        assert len(blocked) == 1, "what named an IPv6 address only did not become an ACL for everyone"


def test_addresses_are_shortened_within_their_family() -> None:
    assert shorten(["fd00::1", "10.0.0.0", "10.0.0.1", "fd00::"]) == ("10.0.0.0/31", "fd00::/127")


def test_a_services_entry_without_vip_has_none_of_either_family() -> None:
    assert ServiceEntry("s", "back", "s").vips == () and BACK6.subnets[0] == NETS[1].subnets[0]


# -- where the overlay ends


def test_published_ports_are_at_the_hosts_addresses_of_the_families_the_ingress_network_has() -> None:
    w = running6()
    ingress = msgspec.structs.replace(
        NETS[0], subnets=("10.0.0.0/24", "fd00::/64"), gateways=("10.0.0.1", "fd00::1")
    )
    web = service("web", "ingress", "10.0.0.5", port(80, 8080))
    for entry, fronts in ((NETS[0], {HOST4}), (ingress, {HOST4, HOST6})):
        w.change(put=(entry, web))
        found = {e.address for e in w.compiler.tables if isinstance(e, Frontend) and e.vni == 0}
        assert found == fronts
    front = w.compiler.tables.get(("frontend", 0, HOST6, 6, 8080))
    assert isinstance(front, Frontend) and front.backends == (), "nobody has IPv6: who comes by it is refused"
    here = msgspec.structs.replace(endpoint("t2", "ingress", "node-other", "10.0.0.9"), address6="fd00::9")
    w.change(put=(here,))
    front = w.compiler.tables.get(("frontend", 0, HOST6, 6, 8080))
    assert isinstance(front, Frontend) and [b.address for b in front.backends] == ["fd00::9"]
    w.change(remove=(web.key,))
    assert w.compiler.tables.get(("frontend", 0, HOST6, 6, 8080)) is None


def test_ports_in_host_mode_are_at_both_where_the_task_has_both() -> None:
    w = running6()
    t = msgspec.structs.replace(task6("t9", "back", "10.0.1.19"), host_ports=(port(80, 9090, "host"),))
    w.run(t)
    fronts = {e.address: e for e in w.compiler.tables if isinstance(e, Frontend) and e.port == 9090}
    assert {a: f.backends[0].address for a, f in fronts.items()} == {
        HOST4: "10.0.1.19",
        HOST6: "fd00:1::19",
    }
    w.stop("t9")
    assert not [e for e in w.compiler.tables if isinstance(e, Frontend) and e.port == 9090]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["fe80::1", "::1", "2001:db8::1", "2001:db8::2", "fd00::3", "fd00::4"]),
            st.integers(1, 3),
            st.sampled_from([0, 0x01, 0x08, 0x20, 0x40]),
        )
    )
)
def test_the_steadiest_address_of_the_underlay_stands_for_the_host(found: list[tuple[str, int, int]]) -> None:
    rows = own_rows([Address(ifindex, text, 64, flags) for text, ifindex, flags in found], 2)
    usable = [(t, i, f) for t, i, f in found if t not in ("fe80::1", "::1") and not f & 0x08]
    if not usable:
        assert rows == {}, "IPv6 ends at a host that nobody can answer"
        return
    packed = {ipaddress.IPv6Address(t).packed for t, _, _ in usable}
    assert rows.keys() == {*packed, bytes(16), ipaddress.IPv6Address("::1").packed}
    best = rows[bytes(16)]
    assert best == rows[ipaddress.IPv6Address("::1").packed] and all(rows[p] == p for p in packed)
    assert best in {ipaddress.IPv6Address(t).packed for t, i, f in usable if not f & 0x21} or all(
        f & 0x21 for _, _, f in usable
    )
