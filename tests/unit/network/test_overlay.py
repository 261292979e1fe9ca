"""What each thing of the cluster becomes on a node, as HNS documents, and that cost follows the change."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from overlace.model.netview import EndpointEntry, Entry, NetView, NetworkEntry, NodeEntry, ServiceEntry
from overlace.model.policy import Allowed
from overlace.network.endpoints import LocalTask
from overlace.network.hns import policies as p
from overlace.network.hns.documents import (
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNamespace,
    HostComputeNetwork,
)
from overlace.network.hns.plan import plan_hns
from overlace.network.overlay import OverlayPlanner
from overlace.network.overlay_documents import guid_of
from overlace.network.vfp.tables import HOST4

from .world import HOST, ME, OTHER, World, endpoint, network, node, port, running, service, task

PA = "172.28.1.12"
INGRESS = network("ingress", 4096, 0, ingress=True)
BACK = network("back", 4097, 1)


def shop(*, windows: bool = False) -> World:
    return World(
        node(ME, HOST, ingress="10.0.0.2", back="10.0.1.2"),
        node(OTHER, PA, ingress="10.0.0.3", back="10.0.1.3"),
        INGRESS,
        BACK,
        windows=windows,
    )


def test_a_network_carries_vsid_gateway_and_provider_address() -> None:
    w = shop()
    d = w.hns.get(HostComputeNetwork, guid_of("network", "back"))
    assert (d.type, d.name, d.vsid) == ("Overlay", "back", 4097)
    assert d.subnets[0].routes[0].next_hop == "10.0.1.1"
    assert p.policy_of(d.policies, p.ProviderAddress).settings.provider_address == HOST
    assert p.policy_of(d.policies, p.DrMacAddress).settings.address == "02-42-0A-00-01-01"


def test_a_task_elsewhere_is_a_remote_endpoint_with_its_hosts_provider_address() -> None:
    w = shop()
    w.change(put=(endpoint("t1", "back", OTHER, "10.0.1.7", serving=False),))
    d = w.hns.get(HostComputeEndpoint, guid_of("endpoint", "back", "t1"))
    assert d.flags == 1 and d.mac_address == "02-42-0A-00-01-07" and d.address == "10.0.1.7"
    assert [x.settings.provider_address for x in d.policies if isinstance(x, p.ProviderAddress)] == [PA]
    moved = node(OTHER, "172.28.1.99", ingress="10.0.0.3", back="10.0.1.3")
    w.change(put=(moved,))
    d = w.hns.get(HostComputeEndpoint, guid_of("endpoint", "back", "t1"))
    assert [x.settings.provider_address for x in d.policies if isinstance(x, p.ProviderAddress)] == [
        "172.28.1.99"
    ]


def test_a_local_task_has_nat_exceptions_mtu_port_mapping_and_a_namespace() -> None:
    w = shop()
    w.run(
        task("t1", ("ingress", "10.0.0.9/24"), ("back", "10.0.1.9/24"), ports=(port(80, 8080, "host"),)),
        mtu=1400,
    )
    d = w.hns.get(HostComputeEndpoint, guid_of("endpoint", "back", "t1"))
    assert d.host_compute_namespace == guid_of("namespace", "t1") and not d.remote
    assert p.policy_of(d.policies, p.OutBoundNat).settings.exceptions == ("10.0.0.0/24", "10.0.1.0/24")
    assert p.policy_of(d.policies, p.InterfaceParameters).settings.mtu == 1400
    assert p.policy_of(d.policies, p.EncapOverhead).settings.overhead == 50
    assert p.policy_of(d.policies, p.PortMapping).settings == p.PortMappingSettings(6, 80, 8080)
    assert d.routes  # the default route is on the first network that is neither internal nor ingress
    on_ingress = w.hns.get(HostComputeEndpoint, guid_of("endpoint", "ingress", "t1"))
    assert not on_ingress.routes and p.policy_of(on_ingress.policies, p.PortMapping) is None
    w.stop("t1")
    assert w.hns.enumerate(HostComputeNamespace) == []
    assert guid_of("endpoint", "back", "t1") not in w.hns.documents


def test_a_new_overlay_joins_the_exceptions_of_running_tasks_without_recreating_them() -> None:
    w = shop()
    w.run(task("t1", ("back", "10.0.1.9/24")))
    operations = w.change(put=(network("more", 4098, 2),))
    assert [type(o).__name__ for o in operations] == ["Create", "ReplacePolicies"]
    d = w.hns.get(HostComputeEndpoint, guid_of("endpoint", "back", "t1"))
    assert p.policy_of(d.policies, p.OutBoundNat).settings.exceptions[-1] == "10.0.2.0/24"
    assert d.host_compute_namespace == guid_of("namespace", "t1")


def test_internal_networks_do_not_reach_out() -> None:
    w = shop()
    w.change(put=(network("hidden", 4098, 2, internal=True),))
    w.run(task("t1", ("hidden", "10.0.2.9/24")))
    d = w.hns.get(HostComputeEndpoint, guid_of("endpoint", "hidden", "t1"))
    assert p.policy_of(d.policies, p.OutBoundNat) is None and not d.routes


def test_a_vip_balances_over_serving_endpoints_only_and_only_over_those_that_exist() -> None:
    w = shop()
    w.change(
        put=(
            service("web", "back", "10.0.1.5"),
            endpoint("t1", "back", OTHER, "10.0.1.7"),
            endpoint("t2", "back", OTHER, "10.0.1.8", serving=False),
            endpoint("t3", "back", ME, "10.0.1.9"),  # ours, but its sandbox is not there yet
            endpoint("t4", "back", "unknown-node", "10.0.1.10"),
        )
    )
    lb = w.hns.get(HostComputeLoadBalancer, guid_of("vip", "back", "web"))
    assert lb.frontend_vips == ("10.0.1.5",) and lb.source_vip == "10.0.1.2"
    assert lb.host_compute_endpoints == (guid_of("endpoint", "back", "t1"),)
    assert [(m.protocol, m.internal_port, m.external_port, m.flags) for m in lb.port_mappings] == [
        (0, 0, 0, 1)
    ]
    w.run(task("t3", ("back", "10.0.1.9/24")))
    w.change(put=(node("unknown-node", "172.28.1.14"),))
    lb = w.hns.get(HostComputeLoadBalancer, guid_of("vip", "back", "web"))
    assert set(lb.host_compute_endpoints) == {guid_of("endpoint", "back", t) for t in ("t1", "t3", "t4")}
    w.change(put=(endpoint("t1", "back", OTHER, "10.0.1.7", serving=False),))
    lb = w.hns.get(HostComputeLoadBalancer, lb.id)
    assert guid_of("endpoint", "back", "t1") not in lb.host_compute_endpoints
    assert guid_of("endpoint", "back", "t1") in w.hns.documents  # old connections go on


def test_published_ports_are_load_balancers_on_the_nodes_own_addresses() -> None:
    w = shop()
    w.change(
        put=(
            service("web", "ingress", "10.0.0.5", port(80, 8080), port(53, 53, protocol="udp")),
            endpoint("t1", "ingress", OTHER, "10.0.0.7"),
        )
    )
    lb = w.hns.get(HostComputeLoadBalancer, guid_of("port", "ingress", "web", "tcp", "8080"))
    assert lb.frontend_vips == () and lb.source_vip == "10.0.0.2"
    assert [(m.protocol, m.internal_port, m.external_port) for m in lb.port_mappings] == [(6, 80, 8080)]
    assert guid_of("port", "ingress", "web", "udp", "53") in w.hns.documents
    w.change(put=(service("web", "ingress", "10.0.0.5", port(80, 9090)),))
    left = {
        d.port_mappings[0].external_port
        for d in w.hns.documents.values()
        if isinstance(d, HostComputeLoadBalancer)
    }
    assert left == {0, 9090}


def test_windows_gets_no_load_balancer_without_members_and_linux_refuses_there() -> None:
    entries = (service("web", "back", "10.0.1.5"),)
    w, linux = shop(windows=True), shop()
    w.change(put=entries)
    linux.change(put=entries)
    guid = guid_of("vip", "back", "web")
    assert guid not in w.hns.documents
    assert linux.hns.get(HostComputeLoadBalancer, guid).host_compute_endpoints == ()
    for world in (w, linux):
        world.change(put=(endpoint("t1", "back", OTHER, "10.0.1.7"),))
        assert guid in world.hns.documents
        world.change(remove=("endpoint/back/t1",))
    assert guid not in w.hns.documents


def test_a_task_without_networks_lives_on_the_nodes_nat_network() -> None:
    w = shop()
    w.run(task("t1", ports=(port(80, 8080, "host"),)))
    d = w.hns.get(HostComputeEndpoint, guid_of("endpoint", "bridge", "t1"))
    net = w.hns.get(HostComputeNetwork, d.host_compute_network)
    assert net.type == "NAT" and d.address == "172.17.0.2"
    assert p.policy_of(d.policies, p.PortMapping).settings.external_port == 8080


def test_documents_of_an_object_only_are_touched_by_its_change() -> None:
    w = shop()
    many = tuple(endpoint(f"t{i}", "back", OTHER, f"10.0.1.{i}", service=f"s{i}") for i in range(10, 200))
    w.change(put=(*many, *(service(f"s{i}", "back", f"10.0.1.{i + 190}") for i in range(10, 20))))
    operations = w.change(put=(endpoint("t12", "back", OTHER, "10.0.1.12", service="s12", serving=False),))
    assert [type(o).__name__ for o in operations] == ["Replace"]
    assert w.change(put=(endpoint("t12", "back", OTHER, "10.0.1.12", service="s12", serving=False),)) == []


def test_an_address_passes_from_one_task_to_another_in_one_delta() -> None:
    w = shop()
    w.change(put=(service("web", "back", "10.0.1.5"), endpoint("t1", "back", OTHER, "10.0.1.7")))
    w.change(put=(endpoint("t2", "back", OTHER, "10.0.1.7"),), remove=("endpoint/back/t1",))
    lb = w.hns.get(HostComputeLoadBalancer, guid_of("vip", "back", "web"))
    assert lb.host_compute_endpoints == (guid_of("endpoint", "back", "t2"),)
    w.run(task("t3", ("back", "10.0.1.8/24")))
    w.tasks.clear()
    w.change(put=(endpoint("t4", "back", OTHER, "10.0.1.8"),), touched=("t3",))


def test_a_network_that_leaves_takes_everything_with_it() -> None:
    w = shop()
    w.change(put=(service("web", "back", "10.0.1.5"), endpoint("t1", "back", OTHER, "10.0.1.7")))
    w.run(task("t3", ("back", "10.0.1.8/24")))
    w.change(remove=("network/back",))
    assert all(
        getattr(d, "host_compute_network", "") != guid_of("network", "back") for d in w.hns.documents.values()
    )
    w.change(put=(BACK,))
    assert guid_of("endpoint", "back", "t1") in w.hns.documents
    assert w.hns.get(HostComputeEndpoint, guid_of("endpoint", "back", "t3")).host_compute_namespace


@pytest.mark.parametrize("windows", [False, True])
def test_after_a_restart_nothing_is_done_again(windows: bool) -> None:
    w = shop(windows=windows)
    w.change(put=(service("web", "back", "10.0.1.5"), endpoint("t1", "back", OTHER, "10.0.1.7")))
    w.run(task("t3", ("back", "10.0.1.8/24"), ports=(port(80, 80, "host"),)))
    again = World(windows=windows)
    ids = again.planner.refresh(w.view, None, w.tasks)
    assert ids
    assert plan_hns(w.hns.documents, again.planner.documents) == []


def test_a_host_that_does_not_answer_gets_no_new_connections_unless_nobody_else_has_the_service() -> None:
    w = shop()
    third = "third"
    w.change(
        put=(
            node(third, "172.28.1.13", back="10.0.1.4"),
            service("web", "back", "10.0.1.5"),
            endpoint("t1", "back", OTHER, "10.0.1.7"),
            endpoint("t2", "back", third, "10.0.1.8"),
        )
    )

    def members() -> set[str]:
        return set(w.hns.get(HostComputeLoadBalancer, guid_of("vip", "back", "web")).host_compute_endpoints)

    def reach(*away: str) -> None:
        ids = w.planner.refresh(w.view, w.planner.set_unreachable(away), w.tasks)
        w.hns.apply(plan_hns(w.hns.documents, w.planner.documents, ids, w.hns.balancers_of))

    t1, t2 = guid_of("endpoint", "back", "t1"), guid_of("endpoint", "back", "t2")
    assert members() == {t1, t2}
    reach(OTHER)
    assert members() == {t2} and t1 in w.hns.documents  # old connections go on
    reach(OTHER, third)
    assert members() == {t1, t2}
    reach()
    assert members() == {t1, t2}
    assert w.planner.set_unreachable(()) == set()


def test_a_network_carries_multicast_when_its_option_says_so() -> None:
    def rate(windows: bool = False, **options: str) -> int:
        w = shop(windows=windows)
        w.change(
            put=(
                msgspec.structs.replace(
                    BACK, driver_opts={k.replace("_", "."): v for k, v in options.items()}
                ),
            )
        )
        return w.hns.get(HostComputeNetwork, guid_of("network", "back")).multicast_rate

    assert rate() == 0
    assert rate(overlace_multicast="false") == 0
    assert rate(overlace_multicast="true") == 1000
    assert rate(overlace_multicast="true", overlace_multicast_rate="7") == 7
    assert rate(windows=True, overlace_multicast="true") == 0, "HNS has no such thing"


def test_a_networks_new_policy_reaches_its_tasks() -> None:
    w = running()
    guid = guid_of("endpoint", "back", "t1")
    before = w.view.network("back")
    assert before is not None
    assert not any(isinstance(x, p.Acl) for x in w.hns.get(HostComputeEndpoint, guid).policies)
    w.change(put=(msgspec.structs.replace(before, allowed=()),))
    denied = [x.settings for x in w.hns.get(HostComputeEndpoint, guid).policies if isinstance(x, p.Acl)]
    assert any(s.direction == "In" and s.action == "Block" for s in denied)
    w.change(put=(before,))
    assert not any(isinstance(x, p.Acl) for x in w.hns.get(HostComputeEndpoint, guid).policies)


def test_over_ipv6_documents_bear_ipv6_addresses_and_the_longer_header() -> None:
    w = World(
        node(ME, "fd00:28::11", ingress="10.0.0.2", back="10.0.1.2"),
        node(OTHER, "fd00:28::12", ingress="10.0.0.3", back="10.0.1.3"),
        INGRESS,
        BACK,
        provider="fd00:28::11",
    )
    w.change(put=(endpoint("t1", "back", OTHER, "10.0.1.7"),))
    w.run(task("t2", ("back", "10.0.1.8/24")))
    for guid, address in (
        (guid_of("endpoint", "back", "t1"), "fd00:28::12"),
        (guid_of("node", "back", OTHER), "fd00:28::12"),
        (guid_of("endpoint", "back", "t2"), "fd00:28::11"),
    ):
        d = w.hns.get(HostComputeEndpoint, guid)
        assert p.policy_of(d.policies, p.ProviderAddress).settings.provider_address == address
    assert p.policy_of(d.policies, p.EncapOverhead).settings.overhead == 70


def test_a_host_of_the_other_family_is_one_no_tunnel_leads_to() -> None:
    """It is refused at its join; one that is there all the same must not spoil the rest."""
    w = shop()
    w.change(put=(node(OTHER, "fd00:28::12", ingress="10.0.0.3", back="10.0.1.3"),))
    w.change(put=(endpoint("t1", "back", OTHER, "10.0.1.7"),))
    known = {d.id for d in w.hns.documents.values()}
    assert guid_of("endpoint", "back", "t1") not in known and guid_of("node", "back", OTHER) not in known
    w.change(put=(node(OTHER, PA, ingress="10.0.0.3", back="10.0.1.3"),))
    assert guid_of("endpoint", "back", "t1") in {d.id for d in w.hns.documents.values()}


def test_hosts_that_left_are_forgotten() -> None:
    """Hosts come and go under ever new ids: what is remembered of them goes with them."""
    w = running()
    w.change(remove=("endpoint/back/t2", "endpoint/ingress/t2"))
    w.change(remove=(f"node/{OTHER}",))
    assert OTHER not in w.planner._by_node and OTHER not in w.planner._provider
    assert ME in w.planner._by_node and ME in w.planner._provider


def test_backends_that_cannot_answer_clients_outside_see_this_node() -> None:
    w = shop()
    w.change(
        put=(
            service("web", "ingress", "10.0.0.5", port(80, 8080)),
            endpoint("t1", "ingress", OTHER, "10.0.0.7"),
            endpoint("t2", "ingress", "win", "10.0.0.8"),
            blind := msgspec.structs.replace(
                node("win", "172.28.1.13", ingress="10.0.0.4"), os="windows", sees_clients=False
            ),
        )
    )
    seen = {b.address: b.source for b in w.data_path.get(("frontend", 0, HOST4, 6, 8080)).backends}
    assert seen == {"10.0.0.7": "", "10.0.0.8": "10.0.0.2"}
    inside = w.data_path.get(("frontend", 4096, "10.0.0.5", 0, 0))
    assert {b.source for b in inside.backends} == {""}, "a container that asks is answered by its own address"
    w.change(put=(msgspec.structs.replace(blind, sees_clients=msgspec.UNSET),))
    assert {b.source for b in w.data_path.get(("frontend", 0, HOST4, 6, 8080)).backends} == {""}


def test_windows_documents_translate_all_backends_or_none() -> None:
    w = shop(windows=True)
    blind = msgspec.structs.replace(node("win", "172.28.1.13", ingress="10.0.0.4"), sees_clients=False)
    web, one = (
        service("web", "ingress", "10.0.0.5", port(80, 8080)),
        endpoint("t1", "ingress", OTHER, "10.0.0.7"),
    )
    w.change(put=(web, one))
    guid = guid_of("port", "ingress", "web", "tcp", "8080")
    assert w.hns.get(HostComputeLoadBalancer, guid).flags == 1
    w.change(put=(blind, endpoint("t2", "ingress", "win", "10.0.0.8")))
    lb = w.hns.get(HostComputeLoadBalancer, guid)
    assert (lb.flags, lb.source_vip, lb.source_translated) == (0, "10.0.0.2", ())
    assert w.hns.get(HostComputeLoadBalancer, guid_of("vip", "ingress", "web")).flags == 1


# -- what was not followed -----------------------------------------------------------------------------------

WEB = service("web", "back", "10.0.1.100")
CLOSED = msgspec.structs.replace(WEB, vip="", allowed=(Allowed(services=("db",)),))
BARE = node(OTHER, PA)
T5 = endpoint("t5", "back", OTHER, "10.0.1.15")
ANYTHING: tuple[Entry, ...] = (
    node(ME, HOST, ingress="10.0.0.2", back="10.0.1.2"),
    BARE,
    node(OTHER, PA, ingress="10.0.0.3", back="10.0.1.3"),
    node(OTHER, "172.28.1.99", back="10.0.1.3"),
    INGRESS,
    BACK,
    msgspec.structs.replace(BACK, allowed=(Allowed(services=("db",)),)),
    WEB,
    CLOSED,
    msgspec.structs.replace(WEB, allowed_to=(Allowed(services=("db",)),)),
    service("web", "ingress", "", port(80, 8080)),
    service("db", "back", "10.0.1.101"),
    endpoint("t1", "back", ME, "10.0.1.10"),
    T5,
    endpoint("t6", "back", OTHER, "10.0.1.16", "db"),
    endpoint("t7", "back", OTHER, "10.0.1.17", ""),
    msgspec.structs.replace(endpoint("t7", "back", OTHER, "10.0.1.17", ""), allowed=()),
)
RUNS = {
    t.task_id: LocalTask(task=t, mtu={"back": 1450})
    for t in (task("t1", ("back", "10.0.1.10/24")), task("t2", ("back", "10.0.1.12/24"), service="db"))
}
DID = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(ANYTHING)),
    st.tuples(st.just("remove"), st.sampled_from(sorted({e.key for e in ANYTHING}))),
    st.tuples(st.just("run"), st.sampled_from(sorted(RUNS))),
    st.tuples(st.just("stop"), st.sampled_from(sorted(RUNS))),
)


@given(
    windows=st.booleans(),
    steps=st.lists(st.tuples(DID, st.sampled_from(("told", "missed", "everything"))), max_size=25),
)
@example(
    windows=False,
    steps=[
        (("put", BACK), "told"),
        (("put", CLOSED), "told"),
        (("run", "t2"), "told"),
        (("remove", CLOSED.key), "missed"),
    ],
)
@example(
    windows=False,
    steps=[
        (("put", BACK), "told"),
        (("put", BARE), "told"),
        (("put", T5), "told"),
        (("remove", f"node/{OTHER}"), "everything"),
        (("put", BARE), "told"),
    ],
)
def test_whatever_changes_and_is_missed_a_look_at_everything_finds_what_a_new_planner_makes(
    windows: bool, steps: list[tuple[tuple[str, object], str]]
) -> None:
    """After every pass, whether it was told what changed or looked at everything."""
    planner, view, tasks = OverlayPlanner(ME, HOST, windows=windows), NetView(), dict[str, LocalTask]()
    missed = False
    for (what, which), how in [*steps, (("stop", "nobody"), "everything")]:
        changed, touched = set[str](), set[str]()
        match what, which:
            case "put", NetworkEntry() | NodeEntry() | ServiceEntry() | EndpointEntry():
                view.put(which)
                changed.add(which.key)
            case "remove", str():
                if view.get(which) is not None:
                    view.remove(which)
                changed.add(which)
            case "run", str():
                tasks[which] = RUNS[which]
                touched.add(which)
            case "stop", str():
                tasks.pop(which, None)
                touched.add(which)
        if how == "missed":
            missed = True
            continue
        before = dict(planner.documents)
        said = planner.refresh(view, None if how == "everything" else changed, tasks, touched)
        missed = missed and how == "told"
        differ = {g for g in before.keys() | planner.documents if before.get(g) != planner.documents.get(g)}
        assert differ <= said
        if not missed:
            fresh = OverlayPlanner(ME, HOST, windows=windows)
            fresh.refresh(view, None, tasks)
            assert planner.documents == fresh.documents
