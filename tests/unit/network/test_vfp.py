"""Layers and tables: compiled incrementally or from nothing they are the same, and they agree on every
packet."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlace.model.policy import ALLOW_FROM, ALLOW_TO, parse_items
from overlace.network.linux.maps import REASONS
from overlace.network.overlay_documents import guid_of
from overlace.network.vfp.compile import compile_all
from overlace.network.vfp.model import HOST_PORT, Allow, Condition, Group, Packet, Rule
from overlace.network.vfp.reasons import explain_counters
from overlace.network.vfp.show import find_ports, local_ports, show_port
from overlace.network.vfp.simulate import simulate
from overlace.network.vfp.tables import HOST4, Backend, Frontend, LocalEndpoint, Tables

from .agreement import disagreements, wrong_facts
from .world import HOST, ME, NETS, OTHER, PA, THIRD, World, endpoint, node, port, running, service, shop, task


def walk(w: World, net: str, dst: str, dport: int = 80, src: str = "10.0.1.9") -> object:
    return simulate(
        w.hns.state, HOST, guid_of("endpoint", net, "t1"), "OUT", Packet(src, dst, 6, 40000, dport)
    )


def test_what_packets_of_a_container_experience() -> None:
    w = running()
    far = walk(w, "back", "10.0.1.10")
    assert (far.action, far.provider_address, far.vni, far.mac) == ("encap", PA, 4097, "02:42:0a:00:01:0a")
    vip = walk(w, "back", "10.0.1.5")
    assert vip.action in ("encap", "deliver") and {b.address for b in vip.candidates} == {
        "10.0.1.9",
        "10.0.1.10",
    }
    assert vip.packet.dst in {"10.0.1.9", "10.0.1.10"} and vip.packet.dport == 80
    assert walk(w, "back", "10.0.1.1").action == "answer"
    world = walk(w, "back", "192.0.2.1")
    assert world.action == "world" and world.packet.src == HOST
    nobody = walk(w, "back", "10.0.1.77")
    assert nobody.action == "drop" and "no endpoint with this address" in nobody.reason
    refused = walk(w, "back", "10.0.1.6")
    assert refused.action == "drop" and "empty has no task that takes connections" in refused.reason
    foreign = walk(w, "back", "10.0.2.4")
    assert foreign.action == "drop"  # another overlay: isolated, not leaked to the host
    assert [s.layer for s in vip.steps][:2] == ["FW_ADMIN_LAYER_ID", "SLB_LB_LAYER"]


def test_what_packets_from_the_wire_experience() -> None:
    w = running()
    published = simulate(w.hns.state, HOST, HOST_PORT, "IN", Packet("172.28.1.200", HOST, 6, 5, 8080))
    assert {b.address for b in published.candidates} == {
        "10.0.0.9",
        "10.0.0.10",
    } and published.packet.dport == 80
    host_mode = simulate(w.hns.state, HOST, HOST_PORT, "IN", Packet("172.28.1.200", HOST, 6, 5, 9090))
    assert host_mode.action == "deliver" and host_mode.port == guid_of("endpoint", "back", "t1")
    assert (
        simulate(w.hns.state, HOST, HOST_PORT, "IN", Packet("172.28.1.200", HOST, 6, 5, 22)).action == "host"
    )
    inside = simulate(w.hns.state, HOST, HOST_PORT, "IN", Packet("10.0.1.10", "10.0.1.9", 6, 5, 80), vni=4097)
    assert inside.action == "deliver" and inside.port == guid_of("endpoint", "back", "t1")
    wrong = simulate(w.hns.state, HOST, HOST_PORT, "IN", Packet("10.0.1.10", "10.0.1.9", 6, 5, 80), vni=9999)
    assert wrong.action == "drop" and "9999" in wrong.reason
    passed_on = simulate(
        w.hns.state, HOST, HOST_PORT, "IN", Packet("10.0.1.9", "10.0.1.10", 6, 5, 80), vni=4097
    )
    assert passed_on.action == "drop"


def test_the_tables_hold_what_the_data_path_needs() -> None:
    w = running()
    t = w.data_path
    assert t.get(("frontend", 4097, "10.0.1.5", 0, 0)) == Frontend(
        4097, "10.0.1.5", 0, 0, _by_guid(("back", "t1", "10.0.1.9"), ("back", "t2", "10.0.1.10"), vni=4097)
    )
    assert t.get(("frontend", 0, HOST4, 6, 8080)) == Frontend(
        0,
        HOST4,
        6,
        8080,
        _by_guid(("ingress", "t1", "10.0.0.9"), ("ingress", "t2", "10.0.0.10"), vni=4096, port=80),
    )
    assert t.get(("frontend", 0, HOST4, 6, 9090)) == Frontend(
        0, HOST4, 6, 9090, (Backend(4097, "10.0.1.9", 80),)
    )
    assert t.get(("network", 4096)).ingress and not t.get(("network", 4097)).ingress
    local = t.get(("endpoint", 4097, "10.0.1.9"))
    assert isinstance(local, LocalEndpoint) and local.outbound_nat and local.prefix == 24
    assert local.nat_exceptions == ("10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24")
    assert t.get(("endpoint", 4097, "10.0.1.2")) is None  # our source VIP: no container carries it
    assert t.get(("endpoint", 4097, "10.0.1.3")) is not None  # the other host's does cross the wire
    w.change(remove=("service/ingress/web",))
    assert t.get(("frontend", 0, HOST4, 6, 8080)) is None and not t.get(("network", 4096)).ingress


def _by_guid(*members: tuple[str, str, str], vni: int, port: int = 0) -> tuple[Backend, ...]:
    return tuple(
        Backend(vni, a, port) for _, a in sorted((guid_of("endpoint", n, t), a) for n, t, a in members)
    )


def test_a_packet_that_does_not_meet_its_condition_passes_by_a_whole_group() -> None:
    any_rule, exact = (Rule(name, 100, Condition(), Allow()) for name in ("any", "exact"))
    group = Group("G", "OUT", 100, (any_rule,), {"10.0.0.9": exact}, any_rule, Condition(protocol=6))
    for dst in ("10.0.0.8", "10.0.0.9"):
        assert group.match(Packet("10.0.0.1", dst, 6, 1, 2)) is not None
        assert group.match(Packet("10.0.0.1", dst, 17, 1, 2)) is None


def test_the_hairpin_and_ports_of_this_very_host_are_steps_of_the_way() -> None:
    w = running()
    own = guid_of("endpoint", "back", "t1")

    def first(backends: Sequence[Backend], packet: Packet) -> Backend:
        return next(b for b in backends if b.address == packet.src)

    vip = simulate(w.hns.state, HOST, own, "OUT", Packet("10.0.1.9", "10.0.1.5", 6, 40000, 80), pick=first)
    assert (vip.action, vip.port, vip.packet.src, vip.packet.dst) == ("deliver", own, "10.0.1.1", "10.0.1.9")
    assert [s.rule for s in vip.steps if s.layer == "SLB_HAIRPIN_LAYER"] == ["HAIRPIN_10.0.1.9"]
    published = walk(w, "back", HOST, 8080)
    assert published.packet.src == HOST and published.packet.dst in {"10.0.0.9", "10.0.0.10"}
    closed = walk(w, "back", HOST, 22)
    assert (closed.action, closed.packet.src) == ("world", HOST)


def test_layers_explain_themselves() -> None:
    w = running()
    guid = guid_of("endpoint", "back", "t1")
    shown = show_port(guid, w.hns.state, HOST, layers=True)
    assert (shown.friendly_name, shown.network, shown.vni) == ("web.1.t1", "back", 4097)
    rules = {r.name: r for layer in shown.layers or () for g in layer.groups for r in g.rules}
    assert rules["LB_web_10.0.1.5"].type == "lb" and "10.0.1.10" in rules["LB_web_10.0.1.5"].action
    assert f"VXLAN 4097 to {PA}" in rules["MAP_web.1.t2"].action
    groups = {g.name: g for layer in shown.layers or () for g in layer.groups}
    assert groups["NAT_OUT"].conditions["Destination IP not"].startswith("10.0.1.0/24")
    assert (
        rules["OUTBOUND_NAT"].conditions["Destination IP"] == "0.0.0.0/0" and not groups["LB_OUT"].conditions
    )
    (published,) = (
        r
        for layer in show_port(HOST_PORT, w.hns.state, HOST, layers=True).layers or ()
        for g in layer.groups
        for r in g.rules
        if r.conditions.get("Destination ports") == "8080"
    )
    assert published.conditions["Destination IP"] == f"{HOST4}/32,{HOST}/32" and published.type == "lb"


def test_people_name_ports_in_many_ways() -> None:
    w = running()
    back, ingress = guid_of("endpoint", "back", "t1"), guid_of("endpoint", "ingress", "t1")
    assert local_ports(w.hns.state)[0] == HOST_PORT and {back, ingress} <= set(local_ports(w.hns.state))
    assert guid_of("endpoint", "back", "t2") not in local_ports(w.hns.state)  # a port of another host
    for name in (back.lower(), back[:6], "10.0.1.9", "10.0.1.9/24"):
        assert find_ports(name, w.hns.state) == [back]
    assert set(find_ports("web.1", w.hns.state)) == {back, ingress}
    assert find_ports("web.1.t1", w.hns.state) == find_ports("web.1", w.hns.state)
    assert find_ports("host", w.hns.state) == [HOST_PORT]
    assert find_ports("nothing", w.hns.state) == [] and find_ports("", w.hns.state) == []


def test_every_counter_has_a_meaning() -> None:
    shown = explain_counters(dict.fromkeys(REASONS, 7))
    assert [c.name for c in shown] == list(REASONS) and all(c.meaning and c.packets == 7 for c in shown)
    assert {c.name for c in shown if c.drop} == {n for n in REASONS if n.startswith("drop_")}


# -- properties ----------------------------------------------------------------------------------------

nets = st.sampled_from(["ingress", "back", "hidden"])
services = st.sampled_from(["web", "db"])
slots = st.integers(0, 5)  # task k has address .1k on every network: no two tasks share one
OWNER = ("web", "db")  # of task k: the service at k modulo 2
policies = st.sampled_from(
    [
        None,
        (),
        parse_items(ALLOW_FROM, "web"),
        parse_items(ALLOW_FROM, "db:tcp/80, ingress"),
        parse_items(ALLOW_FROM, "10.0.1.0/30:udp, 10.0.0.0/25, ingress:tcp/81-90"),
        parse_items(ALLOW_FROM, "web:tcp/8000-9001, db:icmp"),
    ]
)
policies_to = st.sampled_from(
    [
        None,
        None,
        (),
        parse_items(ALLOW_TO, "web:tcp"),
        parse_items(ALLOW_TO, "10.0.1.8/29, internet:tcp/80, db:udp"),
    ]
)
change = st.one_of(
    st.tuples(st.just("endpoint"), nets, slots, st.booleans(), st.sampled_from([ME, OTHER])),
    st.tuples(st.just("no endpoint"), nets, slots),
    st.tuples(st.just("service"), nets, services, st.booleans(), st.booleans(), policies, policies_to),
    st.tuples(st.just("no service"), nets, services),
    st.tuples(st.just("run"), slots, st.lists(nets, max_size=3, unique=True), st.booleans()),
    st.tuples(st.just("stop"), slots),
    st.tuples(st.just("no network"), nets),
    st.tuples(st.just("network"), nets, st.sampled_from([None, None, (), parse_items(ALLOW_FROM, "web")])),
    st.tuples(st.just("node"), st.sampled_from([PA, "172.28.1.13", None])),
)


def play(w: World, c: tuple) -> None:  # type: ignore[type-arg]
    match c:
        case "endpoint", net, slot, serving, where:
            svc = OWNER[slot % 2]
            if where == OTHER and f"t{slot}" in w.tasks:
                return  # a task runs on one node
            w.change(
                put=(
                    endpoint(f"t{slot}", net, where, f"10.0.{THIRD[net]}.{slot + 10}", svc, serving=serving),
                )
            )
        case "no endpoint", net, slot:
            w.change(remove=(f"endpoint/{net}/t{slot}",))
        case "service", net, svc, vip, published, allowed, allowed_to:
            number = {"web": 0, "db": 1}[svc]
            ports = (port(80, 8000 + number),) if published and net == "ingress" else ()
            entry = service(svc, net, f"10.0.{THIRD[net]}.{100 + number}" if vip else "", *ports)
            w.change(put=(msgspec.structs.replace(entry, allowed=allowed, allowed_to=allowed_to),))
        case "no service", net, svc:
            w.change(remove=(f"service/{net}/{svc}",))
        case "run", slot, where, published:
            svc = OWNER[slot % 2]
            gone = tuple(f"endpoint/{n}/t{slot}" for n in THIRD)
            w.change(remove=tuple(k for k in gone if getattr(w.view.get(k), "node_id", "") == OTHER))
            if (
                any(t.task.task_id != f"t{slot}" and not t.task.attachments for t in w.tasks.values())
                and not where
            ):
                return  # the helper has one address on the local network
            ports = (port(80, 9000 + slot, "host"),) if published else ()
            w.run(
                task(
                    f"t{slot}",
                    *((n, f"10.0.{THIRD[n]}.{slot + 10}/24") for n in where),
                    service=svc,
                    ports=ports,
                )
            )
        case "stop", slot:
            w.stop(f"t{slot}")
        case "no network", net:
            w.change(remove=(f"network/{net}",))
        case "network", net, allowed:
            found = next(n for n in NETS if n.name == net)
            w.change(put=(msgspec.structs.replace(found, allowed=allowed),))
        case "node", None:
            w.change(remove=(f"node/{OTHER}",))
        case "node", address:
            w.change(put=(node(OTHER, address, ingress="10.0.0.3", back="10.0.1.3"),))


def entries(t: Tables) -> dict:  # type: ignore[type-arg]
    return {e.key: e for e in t}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(change, min_size=10, max_size=40), st.booleans())
def test_incremental_and_from_nothing_are_the_same(changes: list, windows: bool) -> None:  # type: ignore[type-arg]
    w = World(node(ME, HOST, ingress="10.0.0.2", back="10.0.1.2"), node(OTHER, PA), *NETS, windows=windows)
    for c in changes:
        play(w, c)
    assert entries(w.data_path) == entries(compile_all(w.hns.state, HOST))
    fresh = World(windows=windows)
    fresh.planner.refresh(w.view, None, w.tasks)
    left = {g: d for g, d in w.planner.documents.items() if g != guid_of("network", "bridge")}
    new = {g: d for g, d in fresh.planner.documents.items() if g != guid_of("network", "bridge")}
    assert left == new
    assert set(w.hns.documents) == set(w.planner.documents)


last = st.integers(0, 130)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(change, min_size=10, max_size=30),
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 2, 9]),
            last,
            st.sampled_from([80, 8000, 9001]),
            st.sampled_from([6, 6, 17]),
            st.sampled_from(["172.28.1.200", "10.0.1.2", "10.0.1.11", "10.0.0.12"]),
        ),
        min_size=1,
        max_size=30,
    ),
)
def test_layers_and_tables_send_every_packet_the_same_way(changes: list, packets: list) -> None:  # type: ignore[type-arg]
    w = shop()
    for c in changes:
        play(w, c)
    assert wrong_facts(w.hns.state, w.data_path, HOST) == []
    for third, final, dport, protocol, src in packets:
        p = Packet(src, f"10.0.{third}.{final}", protocol, 999, dport)
        assert disagreements(w.hns.state, w.data_path, HOST, [p]) == []
