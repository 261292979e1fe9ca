"""Where tasks go, and what is said when they cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from overlace.manager.schedule.enforce import plan_enforcement
from overlace.manager.schedule.explain import Look, explain_look
from overlace.manager.schedule.occupancy import Occupancy
from overlace.manager.schedule.place import plan_placement
from overlace.model.generic import Claim, GenericResources
from overlace.model.objects import (
    Node,
    NodeDescription,
    NodeResources,
    NodeStatus,
    Task,
    TaskStatus,
)
from overlace.model.specs import (
    ContainerSpec,
    NodeSpec,
    Placement,
    PlacementPreference,
    Platform,
    PortConfig,
    Reservations,
    Resources,
    SpreadOver,
    TaskSpec,
)
from overlace.model.states import NodeState, TaskState
from overlace.store.base import Change, Put
from overlace.store.memory import State

GIB = 1 << 30
NOW = 1_000_000_000_000


def node(
    id: str, *, availability: str = "active", down: bool = False, labels: Any = None, **about: Any
) -> Node:
    about = {
        "os": "linux",
        "architecture": "x86_64",
        "resources": NodeResources(4_000_000_000, 8 * GIB),
    } | about
    return Node(
        id=id,
        spec=NodeSpec(availability=availability, labels=labels or {}),
        description=NodeDescription(hostname=f"host-{id}", **about),
        status=NodeStatus(NodeState.DOWN if down else NodeState.READY, addr="172.28.0.1"),
    )


def task(id: str, *, service: str = "svc", on: str = "", state: TaskState | None = None, **spec: Any) -> Task:
    ports = spec.pop("ports", ())
    return Task(
        id=id,
        service_id=service,
        slot=1,
        node_id=on,
        ports=ports,
        spec=TaskSpec(container_spec=ContainerSpec(image="app"), **spec),
        status=TaskStatus(state or (TaskState.RUNNING if on else TaskState.PENDING)),
    )


def tasks(count: int, **parts: Any) -> list[Task]:
    return [task(f"t{i}", **parts) for i in range(count)]


def occupancy(*running: Task) -> Occupancy:
    occupied = Occupancy()
    for one in running:
        occupied.observe(one.id, one)
    return occupied


def put(changes: Sequence[Change]) -> list[Task]:
    found = [change.object for change in changes if isinstance(change, Put)]
    return [one for one in found if isinstance(one, Task)]


def placed(changes: Sequence[Change]) -> Counter[str]:
    return Counter(t.node_id for t in put(changes) if t.status.state == TaskState.ASSIGNED)


def errors(changes: Sequence[Change]) -> list[str]:
    return [t.status.err for t in put(changes) if t.status.state == TaskState.PENDING]


def test_a_placed_task_says_so_in_dockers_words() -> None:
    (change,) = put(plan_placement([node("a")], occupancy(), tasks(1), NOW))
    assert (change.node_id, change.status.state, change.status.message, change.status.err) == (
        "a",
        TaskState.ASSIGNED,
        "scheduler assigned task to node",
        "",
    )


def test_fewest_of_the_service_first_then_fewest_in_all() -> None:
    busy = [task(f"x{i}", service="other", on="a") for i in range(3)]
    mine = task("m", on="b")
    nodes = [node("a"), node("b"), node("c")]
    assert placed(plan_placement(nodes, occupancy(*busy, mine), tasks(1), NOW)) == {"c": 1}
    assert placed(plan_placement(nodes[:2], occupancy(*busy, mine), tasks(1), NOW)) == {"a": 1}
    assert placed(plan_placement(nodes, occupancy(*busy, mine), tasks(5), NOW)) == {"a": 2, "b": 1, "c": 2}


def test_stopping_tasks_hold_their_reservation_but_do_not_count() -> None:
    reserve = Resources(reservations=Reservations(nano_cpus=4_000_000_000))
    stopping = msgspec.structs.replace(
        task("old", on="a", resources=reserve), desired_state=TaskState.SHUTDOWN
    )
    changes = plan_placement([node("a")], occupancy(stopping), tasks(1, resources=reserve), NOW)
    assert errors(changes) == ["no suitable node (insufficient resources on 1 node)"]


def test_a_node_where_the_service_keeps_failing_comes_last() -> None:
    failed = [
        msgspec.structs.replace(task(f"f{i}", on="a"), status=TaskStatus(TaskState.FAILED, timestamp=NOW - i))
        for i in range(5)
    ]
    busy = [task(f"m{i}", on="b") for i in range(3)]
    nodes = [node("a"), node("b")]
    assert placed(plan_placement(nodes, occupancy(*failed, *busy), tasks(1), NOW)) == {"b": 1}
    later = NOW + 6 * 60 * 1_000_000_000
    assert placed(plan_placement(nodes, occupancy(*failed, *busy), tasks(1), later)) == {"a": 1}
    assert placed(plan_placement(nodes, occupancy(*failed[:4], *busy), tasks(1), NOW)) == {"a": 1}


def test_reservations_fill_nodes_and_no_more() -> None:
    reserve = Resources(reservations=Reservations(nano_cpus=1_500_000_000, memory_bytes=GIB))
    changes = plan_placement([node("a"), node("b")], occupancy(), tasks(5, resources=reserve), NOW)
    assert placed(changes) == {"a": 2, "b": 2}
    assert errors(changes) == ["no suitable node (insufficient resources on 2 nodes)"]


def test_host_ports_take_one_task_per_node() -> None:
    ports = (PortConfig(target_port=80, published_port=8080, publish_mode="host"),)
    changes = plan_placement([node("a"), node("b")], occupancy(), tasks(3, ports=ports), NOW)
    assert placed(changes) == {"a": 1, "b": 1}
    assert errors(changes) == ["no suitable node (host-mode port already in use on 2 nodes)"]
    udp = (PortConfig(protocol="udp", target_port=80, published_port=8080, publish_mode="host"),)
    taken = occupancy(task("other", service="o", on="a", ports=ports))
    assert placed(plan_placement([node("a")], taken, tasks(1, ports=udp), NOW)) == {"a": 1}


def test_max_replicas_per_node() -> None:
    spec = Placement(max_replicas=1)
    changes = plan_placement([node("a"), node("b")], occupancy(), tasks(3, placement=spec), NOW)
    assert placed(changes) == {"a": 1, "b": 1}
    assert errors(changes) == ["no suitable node (max replicas per node limit exceed)"]


def test_the_explanation_counts_each_node_once_most_frequent_first() -> None:
    placement = Placement(constraints=["node.labels.zone==a"], platforms=[Platform("amd64", "linux")])
    nodes = [
        node("down", down=True, labels={"zone": "a"}),
        node("drained", availability="drain"),
        node("paused", availability="pause"),
        node("b1", labels={"zone": "b"}),
        node("b2"),
        node("win", os="windows", labels={"zone": "a"}),
    ]
    changes = plan_placement(nodes, occupancy(), tasks(2, placement=placement), NOW)
    text = (
        "no suitable node (3 nodes not available for new tasks; "
        "scheduling constraints not satisfied on 2 nodes; unsupported platform on 1 node)"
    )
    assert errors(changes) == [text, text]
    again = plan_placement(nodes, occupancy(), put(changes), NOW + 1)
    assert again == [], "saying the same again writes nothing"


def test_one_node_is_named_in_the_singular_and_no_node_at_all() -> None:
    assert errors(plan_placement([node("a", down=True)], occupancy(), tasks(1), NOW)) == [
        "no suitable node (1 node not available for new tasks)"
    ]
    assert errors(plan_placement([], occupancy(), tasks(1), NOW)) == ["no suitable node"]


def test_a_windows_image_finds_the_windows_node_of_its_build() -> None:
    placement = Placement(platforms=[Platform("amd64", "windows", "10.0.20348.1")])
    nodes = [
        node("lin"),
        node("w19", os="windows", os_version="10.0.17763.1"),
        node("w22", os="windows", os_version="10.0.20348.2527"),
    ]
    assert placed(plan_placement(nodes, occupancy(), tasks(2, placement=placement), NOW)) == {"w22": 2}


def spread(*over: str) -> Placement:
    return Placement(preferences=[PlacementPreference(SpreadOver(text)) for text in over])


def test_spread_evens_out_zones_not_nodes() -> None:
    nodes = [node(f"a{i}", labels={"zone": "a"}) for i in range(4)] + [node("b", labels={"zone": "b"})]
    changes = plan_placement(nodes, occupancy(), tasks(8, placement=spread("node.labels.zone")), NOW)
    counts = placed(changes)
    assert counts["b"] == 4
    assert sum(counts[f"a{i}"] for i in range(4)) == 4


def test_spread_nests_and_a_missing_label_is_a_branch_of_its_own() -> None:
    nodes = [
        node("a1", labels={"dc": "a", "rack": "1"}),
        node("a2", labels={"dc": "a", "rack": "2"}),
        node("a2b", labels={"dc": "a", "rack": "2"}),
        node("none"),
    ]
    placement = spread("node.labels.dc", "node.labels.rack")
    counts = placed(plan_placement(nodes, occupancy(), tasks(8, placement=placement), NOW))
    assert counts == {"none": 4, "a1": 2, "a2": 1, "a2b": 1}


def test_spread_counts_what_runs_and_goes_elsewhere_when_a_branch_is_full() -> None:
    nodes = [
        node("a", engine_labels={"z": "a"}),
        node("b", engine_labels={"z": "b"}, resources=NodeResources(1_000_000_000, GIB)),
    ]
    reserve = Resources(reservations=Reservations(nano_cpus=500_000_000))
    want = tasks(6, placement=spread("engine.labels.z"), resources=reserve)
    assert placed(plan_placement(nodes, occupancy(), want, NOW)) == {"a": 4, "b": 2}
    running = occupancy(*(task(f"r{i}", on="a") for i in range(3)))
    assert placed(plan_placement(nodes, running, want[:2], NOW)) == {"b": 2}


def test_a_task_made_for_a_node_is_only_checked() -> None:
    mine = task("g", on="a", state=TaskState.PENDING)
    (change,) = put(plan_placement([node("a"), node("b")], occupancy(), [mine], NOW))
    assert change.status.message == "scheduler confirmed task can run on preassigned node"
    (change,) = put(plan_placement([node("a", availability="pause")], occupancy(), [mine], NOW))
    assert change.status.err == "1 node not available for new tasks"


def test_observing_twice_or_out_of_order_changes_nothing() -> None:
    one = task("x", on="a", resources=Resources(reservations=Reservations(nano_cpus=5)))
    occupied = occupancy(one, one, one)
    assert (occupied.node("a").tasks, occupied.node("a").nano_cpus) == (1, 5)
    assert occupied.observe("x", None) is True
    assert occupied.observe("x", None) is False
    assert (occupied.node("a").tasks, occupied.node("a").nano_cpus) == (0, 0)


def test_explain_names_every_node_with_its_reason() -> None:
    placement = Placement(constraints=["node.labels.zone==a"], platforms=[Platform("amd64", "linux")])
    chosen = task("t", on="ok", placement=placement)
    state = State()
    state.load(
        [
            node("ok", labels={"zone": "a"}),
            node("ok2", labels={"zone": "a"}),
            node("other", labels={"zone": "b"}),
            node("win", os="windows", os_version="10.0.20348.1", labels={"zone": "a"}),
            node("off", availability="drain"),
            chosen,
            task("busy", service="x", on="ok2"),
        ]
    )
    verdicts = {v.filter: v for v in explain_look(Look.at(state.view(), chosen), 0)}
    assert list(verdicts) == ["ready", "constraints", "platform", "fits"]
    assert [(r.hostname, r.detail) for r in verdicts["ready"].nodes] == [
        ("host-off", "availability is drain")
    ]
    assert verdicts["constraints"].sentence == "scheduling constraints not satisfied on 1 node"
    assert verdicts["constraints"].nodes[0].detail == "node.labels.zone==a: the node has 'b'"
    assert verdicts["platform"].nodes[0].detail == (
        "the image is for linux/amd64; the node is windows/x86_64 10.0.20348.1"
    )
    assert [r.hostname for r in verdicts["fits"].nodes] == ["host-ok", "host-ok2"]
    assert verdicts["fits"].nodes[0].detail == "0 other tasks of the service, 0 in all; chosen"


def gpus(count: int) -> Resources:
    return Resources(
        reservations=Reservations(
            generic_resources=[{"DiscreteResourceSpec": {"Kind": "gpu", "Value": count}}]
        )
    )


def test_generic_resources_are_given_once_and_come_back() -> None:
    offered = NodeResources(4_000_000_000, 8 * GIB, GenericResources({"gpu": ("u1", "u2", "u3")}))
    nodes = [node("a", resources=offered), node("b")]
    changes = plan_placement(nodes, occupancy(), tasks(3, resources=gpus(2)), NOW)
    first, *others = put(changes)
    assert (first.node_id, first.generic) == ("a", (Claim("gpu", "u1"), Claim("gpu", "u2")))
    assert [other.status.err for other in others] == [
        "no suitable node (insufficient resources on 2 nodes)"
    ] * 2
    held = msgspec.structs.replace(first, status=TaskStatus(TaskState.RUNNING))
    occupied = occupancy(held)
    [one] = put(plan_placement(nodes, occupied, tasks(1, resources=gpus(1)), NOW))
    assert one.generic == (Claim("gpu", "u3"),)
    occupied.observe(held.id, msgspec.structs.replace(held, status=TaskStatus(TaskState.FAILED)))
    [one] = put(plan_placement(nodes, occupied, tasks(1, resources=gpus(3)), NOW))
    assert len(one.generic) == 3, "what a task had that ended is free again"


def test_a_global_services_task_gets_them_on_its_own_node() -> None:
    offered = NodeResources(4_000_000_000, 8 * GIB, GenericResources(discrete={"gpu": 1}))
    own = [task("t1", on="a", state=TaskState.PENDING, resources=gpus(1)),
           task("t2", on="a", state=TaskState.PENDING, resources=gpus(1))]  # fmt: skip
    got = {one.id: one for one in put(plan_placement([node("a", resources=offered)], occupancy(), own, NOW))}
    assert got["t1"].generic == (Claim("gpu", count=1),)
    assert got["t2"].status.err == "insufficient resources on 1 node"


def test_a_node_that_lost_what_its_tasks_reserve_gives_them_up() -> None:
    """A daemon started again with less: the youngest goes, and one whose named resource is gone, wherever it stands."""
    offered = NodeResources(4_000_000_000, 8 * GIB, GenericResources({"gpu": ("u1",)}, {"ssd": 1}))
    large = Resources(reservations=Reservations(nano_cpus=3_000_000_000))
    held = {
        "first": task("first", on="a", resources=large),
        "second": task("second", on="a", resources=large),
        "kept": msgspec.structs.replace(
            task("kept", on="a"), generic=(Claim("gpu", "u1"), Claim("ssd", count=1))
        ),
        "gone": msgspec.structs.replace(task("gone", on="a"), generic=(Claim("gpu", "u2"),)),
        "less": msgspec.structs.replace(task("less", on="a"), generic=(Claim("ssd", count=1),)),
    }
    ages = {name: msgspec.structs.replace(one, created_at=n) for n, (name, one) in enumerate(held.items())}
    state = State()
    state.load([node("a", resources=offered), *ages.values()])
    rejected = put(plan_enforcement(state.view(), node("a", resources=offered), NOW))
    assert [one.id for one in rejected] == ["second", "gone", "less"]
    assert {one.status.err for one in rejected} == {
        "assigned node no longer has the resources the task reserves"
    }
    assert all(one.status.state == TaskState.REJECTED for one in rejected)
