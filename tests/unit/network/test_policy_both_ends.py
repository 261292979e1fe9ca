"""Who may connect to whom, as ACLs on both ends: each end by itself refuses what the policies refuse, and no more."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from overlace.model.netview import EndpointEntry, container_mac
from overlace.model.policy import ALLOW_FROM, ALLOW_TO, Items, parse_items
from overlace.network.hns import policies as p
from overlace.network.hns.acl import MAX_ADDRESSES, check_acls, parse_acl
from overlace.network.hns.documents import HostComputeEndpoint, HostComputeLoadBalancer, encode, parse
from overlace.network.overlay_documents import guid_of
from overlace.network.policy import Party, plan_acls
from overlace.network.vfp.model import HOST_PORT, Packet
from overlace.network.vfp.simulate import simulate
from overlace.network.vfp.tables import LocalEndpoint

from .world import HOST, ME, OTHER, World, endpoint, service, shop, task

OVERLAYS = ("10.0.1.0/24", "10.0.2.0/24")
NAMES = ("web", "db", "job")
ADDRESSES = {name: (f"10.0.1.{10 + i}", f"10.0.1.{20 + i}") for i, name in enumerate(NAMES)}
VIPS = {name: f"10.0.1.{100 + i}" for i, name in enumerate(NAMES)}

_who = st.sampled_from([*NAMES, "10.0.1.8/30", "10.0.1.20", "10.0.1.0/24"])
_what = st.sampled_from(["", ":tcp", ":tcp/80", ":tcp/70-90", ":tcp/85-99", ":udp/80", ":icmp"])
_item = st.builds(lambda who, what: who + what, _who, _what)
_text = st.one_of(st.none(), st.just("none"), st.lists(_item, min_size=1, max_size=3).map(", ".join))


def admits(items: Items | None, name: str, address: str, protocol: int, port: int) -> bool:
    """The definition, item by item."""
    if items is None:
        return True
    for item in items:
        low, _, high = (item.ports or "0-65535").partition("-")
        named = name in item.services or (item.cidr and IPv4Address(address) in IPv4Network(item.cidr))
        if named and item.protocol in (0, protocol) and int(low) <= port <= int(high or low):
            return True
    return False


def decide(acls: tuple[p.Acl, ...], way: str, remote: str, protocol: int, port: int) -> bool:
    if not acls:
        return True
    rules = sorted((parse_acl(a.settings) for a in acls), key=lambda r: r.priority)
    for r in rules:
        ports = r.local_ports if way == "In" else r.remote_ports
        if r.direction != way or (r.protocols and protocol not in r.protocols):
            continue
        if r.remote and not any(IPv4Address(remote) in IPv4Network(c) for c in r.remote):
            continue
        if ports and not any(low <= port <= high for low, high in ports):
            continue
        return r.action == "allow"
    return False


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(_text, _text), min_size=3, max_size=3))
def test_both_ends_say_what_the_policies_say(texts: list[tuple[str | None, str | None]]) -> None:
    parties = [
        Party(
            name=name,
            addresses=ADDRESSES[name],
            vip=VIPS[name],
            allowed=None if into is None else parse_items(ALLOW_FROM, into),
            allowed_to=None if out is None else parse_items(ALLOW_TO, out),
        )
        for name, (into, out) in zip(NAMES, texts, strict=True)
    ]

    def acls(own: Party, address: str) -> tuple[p.Acl, ...]:
        return plan_acls(own, address, parties, gateway="10.0.1.1", hosts=(), overlays=OVERLAYS, published=())

    for sender in parties:
        source = sender.addresses[0]
        out = acls(sender, source)
        for receiver in parties:
            target = receiver.addresses[1]
            into = acls(receiver, target)
            for protocol, port in ((6, 80), (6, 95), (17, 80), (1, 0)):
                admitted = admits(receiver.allowed, sender.name, source, protocol, port)
                wanted = admitted and admits(sender.allowed_to, receiver.name, target, protocol, port)
                where = (sender.name, receiver.name, protocol, port, texts)
                assert decide(out, "Out", target, protocol, port) == wanted, where
                assert decide(into, "In", source, protocol, port) == wanted, where
                by_vip = admitted and admits(sender.allowed_to, receiver.name, receiver.vip, protocol, port)
                assert decide(out, "Out", receiver.vip, protocol, port) == by_vip, where


def test_nobody_is_filtered_where_nobody_has_a_policy() -> None:
    free = [Party(name=n, addresses=ADDRESSES[n]) for n in NAMES]
    nothing = plan_acls(free[0], "10.0.1.10", free, gateway="", hosts=(), overlays=(), published=())
    assert nothing == ()


def test_a_service_of_thousands_of_tasks_fits_the_lists() -> None:
    many = tuple(f"10.0.{n // 128}.{n % 128 * 2}" for n in range(5000))  # no two of them make a prefix
    web = Party(name="web", addresses=many)
    db = Party(name="db", addresses=ADDRESSES["db"], allowed=parse_items(ALLOW_FROM, "web:tcp/80"))
    acls = plan_acls(db, ADDRESSES["db"][0], [web, db], gateway="", hosts=(), overlays=(), published=())
    check_acls(acls, {})
    listed = [parse_acl(a.settings) for a in acls if a.settings.priority == 1000]
    assert [len(a.remote) for a in listed] == [MAX_ADDRESSES, 5000 - MAX_ADDRESSES]
    assert decide(acls, "In", many[0], 6, 80) and decide(acls, "In", many[-1], 6, 80)
    assert not decide(acls, "In", "10.0.0.1", 6, 80)


def test_the_way_out_of_the_overlay() -> None:
    to = parse_items(ALLOW_TO, "internet:tcp/443, db")
    web = Party(name="web", addresses=ADDRESSES["web"], allowed_to=to)
    db = Party(name="db", addresses=ADDRESSES["db"], vip=VIPS["db"])
    acls = plan_acls(web, "10.0.1.10", [db], gateway="", hosts=(), overlays=OVERLAYS, published=())
    assert decide(acls, "Out", "192.0.2.1", 6, 443) and not decide(acls, "Out", "192.0.2.1", 6, 80)
    assert not decide(acls, "Out", "10.0.2.5", 6, 443), "another overlay is not the outside"
    assert decide(acls, "Out", VIPS["db"], 6, 5432) and decide(acls, "In", "192.0.2.1", 6, 80)


# -- in documents of a host ----------------------------------------------------------------------------------


def two(allowed: Items | None = None, allowed_to: Items | None = None) -> World:
    """db runs elsewhere and has the policy; web runs here."""
    w = shop()
    db = service("db", "back", "10.0.1.5")
    w.change(
        put=(
            msgspec.structs.replace(db, allowed=allowed, allowed_to=allowed_to),
            service("web", "back", "10.0.1.6"),
            endpoint("t1", "back", ME, "10.0.1.9", "web"),
            endpoint("t2", "back", OTHER, "10.0.1.10", "db"),
        )
    )
    w.run(task("t1", ("back", "10.0.1.9/24")))
    return w


def leaves(w: World, dst: str = "10.0.1.10", dport: int = 80) -> str:
    packet = Packet("10.0.1.9", dst, 6, 999, dport)
    return simulate(w.hns.state, HOST, guid_of("endpoint", "back", "t1"), "OUT", packet).action


def test_a_refused_packet_never_crosses_the_underlay() -> None:
    w = two(allowed=parse_items(ALLOW_FROM, "web:tcp/80"))
    assert (leaves(w), leaves(w, "10.0.1.5"), leaves(w, dport=81)) == ("encap", "encap", "drop")
    w.change(put=(endpoint("t3", "back", OTHER, "10.0.1.11", "db"),))
    assert leaves(w, "10.0.1.11", 81) == "drop", "its tasks come and go"
    free = service("db", "back", "10.0.1.5")
    w.change(put=(msgspec.structs.replace(free, allowed=()),))
    assert leaves(w) == "drop"
    w.change(put=(free,))
    assert leaves(w) == leaves(w, dport=81) == "encap"


def test_what_a_sender_may_not_open_is_refused_at_the_receiver_too() -> None:
    w = two(allowed_to=parse_items(ALLOW_TO, "cache"))
    into = Packet("10.0.1.10", "10.0.1.9", 6, 999, 80)
    assert simulate(w.hns.state, HOST, HOST_PORT, "IN", into, 4097).action == "drop"
    other = msgspec.structs.replace(into, src="10.0.1.77")
    assert simulate(w.hns.state, HOST, HOST_PORT, "IN", other, 4097).action == "deliver"


def test_a_network_speaks_for_services_without_a_policy() -> None:
    w = two()
    back = w.view.network("back")
    assert back is not None and leaves(w) == "encap"
    w.change(put=(msgspec.structs.replace(back, allowed=()),))
    assert leaves(w) == "drop" and leaves(w, "192.0.2.1") == "world"
    db = service("db", "back", "10.0.1.5")
    w.change(put=(msgspec.structs.replace(db, allowed=parse_items(ALLOW_FROM, "web")),))
    assert leaves(w) == "encap"
    w.change(put=(service("new", "back", "10.0.1.7"), endpoint("t4", "back", OTHER, "10.0.1.12", "new")))
    assert leaves(w, "10.0.1.12") == leaves(w, "10.0.1.7") == "drop"


def test_affinity_becomes_a_distribution() -> None:
    for windows, seconds in ((False, 600), (True, 0)):
        w = World(*two().view, windows=windows)
        w.run(task("t1", ("back", "10.0.1.9/24")))
        entry = service("web", "back", "10.0.1.6")
        w.change(put=(msgspec.structs.replace(entry, affinity=600),))
        lb = w.hns.get(HostComputeLoadBalancer, guid_of("vip", "back", "web"))
        (m,) = lb.port_mappings
        assert (m.distribution_type, m.affinity_seconds) == (2, seconds), (
            "Windows has its own idea of how long"
        )
        assert parse("loadbalancer", encode(lb)) == lb
        w.change(put=(msgspec.structs.replace(entry, affinity=0),))
        lb = w.hns.get(HostComputeLoadBalancer, guid_of("vip", "back", "web"))
        assert not lb.port_mappings[0].affinity


def test_a_rate_becomes_a_qos_policy() -> None:
    w = two()
    w.change(put=(msgspec.structs.replace(service("web", "back", "10.0.1.6"), egress=125_000),))
    e = w.hns.get(HostComputeEndpoint, guid_of("endpoint", "back", "t1"))
    (qos,) = (x for x in e.policies if isinstance(x, p.Qos))
    assert qos.settings.maximum_outgoing_bandwidth_in_bytes == 125_000
    local = w.data_path.get(("endpoint", 4097, "10.0.1.9"))
    assert isinstance(local, LocalEndpoint) and local.rate == 125_000


# -- containers outside of services --------------------------------------------------------------------------


def box(last: int, name: str, where: str = OTHER, **policies: Items) -> EndpointEntry:
    """A container of `docker run` as the view has it."""
    address = f"10.0.1.{last}"
    return EndpointEntry(
        f"a{last}", "back", where, "", "", name, address, container_mac(address), serving=True, **policies
    )


def arrives(w: World, src: str, dport: int = 80) -> str:
    return simulate(w.hns.state, HOST, HOST_PORT, "IN", Packet(src, "10.0.1.9", 6, 999, dport), 4097).action


def test_a_containers_labels_hold_on_both_ends() -> None:
    w = two()
    w.change(put=(box(30, "tool", allowed=parse_items(ALLOW_FROM, "web:tcp/80")),))
    assert (leaves(w, "10.0.1.30"), leaves(w, "10.0.1.30", 81)) == ("encap", "drop"), (
        "before it crosses the wire"
    )
    assert arrives(w, "10.0.1.30") == "deliver"
    w.change(put=(box(30, "tool", allowed_to=parse_items(ALLOW_TO, "db")),))
    assert (leaves(w, "10.0.1.30", 81), arrives(w, "10.0.1.30")) == ("encap", "drop")
    w.change(remove=(box(30, "tool").key,))
    assert leaves(w, "10.0.1.30") == "drop", "no such endpoint"
    assert not any(
        isinstance(x, p.Acl)
        for x in w.hns.get(HostComputeEndpoint, guid_of("endpoint", "back", "t1")).policies
    )


def test_a_container_here_is_judged_by_its_own_labels() -> None:
    w = two()
    mine = msgspec.structs.replace(
        task("c1", ("back", "10.0.1.40/24"), service=""),
        task_name="tool", allowed=parse_items(ALLOW_FROM, "db:tcp/22"), egress=125_000,
    )  # fmt: skip
    w.change(put=(box(40, "tool", ME, allowed=mine.allowed),))
    w.run(mine)

    def into(src: str, dport: int) -> str:
        packet = Packet(src, "10.0.1.40", 6, 999, dport)
        return simulate(w.hns.state, HOST, HOST_PORT, "IN", packet, 4097).action

    assert (into("10.0.1.10", 22), into("10.0.1.10", 80), into("10.0.1.30", 22)) == (
        "deliver",
        "drop",
        "drop",
    )
    assert leaves(w, "10.0.1.40", 22) == "drop", "web is not named"
    e = w.hns.get(HostComputeEndpoint, guid_of("endpoint", "back", "c1"))
    assert p.Qos(p.QosSettings(125_000)) in e.policies


def test_a_service_names_a_container_unless_a_service_has_the_name() -> None:
    w = two()
    web = msgspec.structs.replace(service("web", "back", "10.0.1.6"), allowed=parse_items(ALLOW_FROM, "tool"))
    w.change(put=(web,))
    assert arrives(w, "10.0.1.30") == "drop"
    w.change(put=(box(30, "tool"), box(31, "other"), box(32, "tool")))
    assert (arrives(w, "10.0.1.30"), arrives(w, "10.0.1.31"), arrives(w, "10.0.1.32")) == (
        "deliver", "drop", "deliver",
    )  # fmt: skip
    w.change(put=(service("tool", "back", "10.0.1.8"),))
    assert arrives(w, "10.0.1.30") == "drop", "the service is meant, not who took its name"
    w.change(remove=(service("tool", "back", "10.0.1.8").key,))
    assert arrives(w, "10.0.1.30") == "deliver"
    w.change(remove=(box(30, "tool").key,))
    assert arrives(w, "10.0.1.30") == "drop"


def test_a_networks_policy_holds_for_containers() -> None:
    w = two()
    back = w.view.network("back")
    assert back is not None
    w.change(put=(box(30, "tool"), msgspec.structs.replace(back, allowed=parse_items(ALLOW_FROM, "tool"))))
    assert (leaves(w, "10.0.1.30"), arrives(w, "10.0.1.30")) == ("drop", "deliver")
    w.change(put=(box(31, "late", allowed=parse_items(ALLOW_FROM, "web")),))
    assert leaves(w, "10.0.1.31") == "encap"
