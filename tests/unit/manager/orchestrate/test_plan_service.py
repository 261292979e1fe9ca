"""One pass over one service: pure, from a view to changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from overlace.manager.orchestrate.service import plan_service
from overlace.manager.orchestrate.work import Decision, Work
from overlace.model.objects import (
    Base,
    Cluster,
    Network,
    NetworkAttachment,
    Node,
    NodeDescription,
    NodeStatus,
    Service,
    Subnet,
    Task,
    TaskStatus,
)
from overlace.model.specs import (
    ContainerSpec,
    Driver,
    EndpointSpec,
    GlobalService,
    NetworkAttachmentConfig,
    NetworkSpec,
    NodeSpec,
    Placement,
    PortConfig,
    ReplicatedService,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    SwarmSpec,
    TaskDefaults,
    TaskSpec,
    UpdateConfig,
)
from overlace.model.states import NodeState, TaskState
from overlace.store.base import Delete, Put
from overlace.store.memory import MemoryView, State

NOW = 1_000_000_000_000
SPEC = TaskSpec(container_spec=ContainerSpec(image="app"))
replace = msgspec.structs.replace


def view_of(*things: Base) -> MemoryView:
    state = State()
    state.load(things)
    return state.view()


def ids() -> Callable[[], str]:
    numbers = itertools.count(1)
    return lambda: f"new{next(numbers)}"


def service(replicas: int = 1, *, spec: TaskSpec = SPEC, version: int = 1, **parts: Any) -> Service:
    mode = parts.pop("mode", ServiceMode(replicated=ReplicatedService(replicas)))
    return Service(
        id="svc",
        version=1,
        spec_version=version,
        spec=ServiceSpec(name="web", task_template=spec, mode=mode, **parts),
    )


def task(
    slot: int,
    node: str = "n1",
    state: TaskState = TaskState.RUNNING,
    desired: TaskState = TaskState.RUNNING,
    *,
    id: str = "",
    spec: TaskSpec = SPEC,
    **members: Any,
) -> Task:
    members = {"spec_version": 1, "created_at": slot, "version": 1} | members
    return Task(
        id=id or f"t{slot}",
        service_id="svc",
        slot=slot,
        node_id=node,
        spec=spec,
        desired_state=desired,
        status=TaskStatus(state, timestamp=NOW),
        **members,
    )


def node(id: str, state: NodeState = NodeState.READY, **spec: Any) -> Node:
    about = NodeDescription(hostname=id, os="linux", architecture="x86_64")
    return Node(id=id, spec=NodeSpec(**spec), description=about, status=NodeStatus(state, since=NOW))


def decide(*things: Base, now: int = NOW) -> Decision:
    view = view_of(*things)
    before = msgspec.msgpack.encode([list(view.all(kind)) for kind in (Service, Task, Node)])
    decision = plan_service(view, "svc", now, ids())
    assert decision == plan_service(view, "svc", now, ids()), "the same view, the same decision"
    assert before == msgspec.msgpack.encode([list(view.all(kind)) for kind in (Service, Task, Node)])
    return decision


def created(decision: Decision) -> list[Task]:
    puts = [c.object for c in decision.changes if isinstance(c, Put) and c.expect == 0]
    return [t for t in puts if isinstance(t, Task)]


def desired(decision: Decision) -> dict[str, TaskState]:
    puts = [c.object for c in decision.changes if isinstance(c, Put) and c.expect]
    return {t.id: t.desired_state for t in puts if isinstance(t, Task)}


def deleted(decision: Decision) -> list[str]:
    return [c.id for c in decision.changes if isinstance(c, Delete)]


NODES = (node("n1"), node("n2"))


def test_a_service_without_tasks_gets_slots_from_one() -> None:
    made = created(decide(service(2), *NODES))
    assert [(t.slot, t.name, t.desired_state, t.status.message) for t in made] == [
        (1, "web.1.new1", TaskState.RUNNING, "created"),
        (2, "web.2.new2", TaskState.RUNNING, "created"),
    ]
    assert made[0].spec == SPEC and made[0].spec_version == 1 and made[0].service_name == "web"


def test_nothing_to_do_is_nothing_done() -> None:
    assert decide(service(2), task(1), task(2, "n2"), *NODES) == Decision()


def test_replicas_default_to_one() -> None:
    assert len(created(decide(service(mode=ServiceMode(replicated=ReplicatedService())), *NODES))) == 1


def test_gaps_are_filled_lowest_first() -> None:
    made = created(decide(service(4), task(2), task(5, "n2"), *NODES))
    assert [t.slot for t in made] == [1, 3]


@pytest.mark.parametrize(
    ("tasks", "replicas", "removed"),
    [
        # highest slot first, nodes kept even
        ([task(1), task(2, "n2"), task(3), task(4, "n2")], 2, {"t3", "t4"}),
        # the node with most copies loses first
        ([task(1), task(2), task(3), task(4, "n2")], 2, {"t2", "t3"}),
        # what does not run goes first
        ([task(1, state=TaskState.STARTING), task(2), task(3)], 2, {"t1"}),
        # what has no node goes before what has
        ([task(1, "", TaskState.PENDING), task(2), task(3), task(4)], 3, {"t1"}),
    ],
)
def test_scaling_down_chooses(tasks: list[Task], replicas: int, removed: set[str]) -> None:
    decision = decide(service(replicas), *tasks, *NODES)
    gone = {id for id, state in desired(decision).items() if state == TaskState.REMOVE}
    assert gone | set(deleted(decision)) == removed


def test_a_task_that_never_had_a_node_is_deleted_at_once() -> None:
    decision = decide(service(0), task(1, "", TaskState.PENDING), task(2), *NODES)
    assert deleted(decision) == ["t1"]
    assert desired(decision) == {"t2": TaskState.REMOVE}


def test_a_failed_task_is_shut_down_and_replaced_in_one_commit() -> None:
    decision = decide(service(), task(1, state=TaskState.FAILED), *NODES)
    assert desired(decision) == {"t1": TaskState.SHUTDOWN}
    (new,) = created(decision)
    assert (new.slot, new.desired_state, new.not_before) == (1, TaskState.READY, NOW + 5_000_000_000)
    assert decision.wake == NOW + 5_000_000_000


@pytest.mark.parametrize(
    "lost",
    [
        (node("n1", NodeState.DOWN),),
        (node("n1", availability="drain"),),
        (replace(node("n1"), removed=True),),
        (),
    ],
)
def test_tasks_on_lost_nodes_are_replaced_without_delay(lost: tuple[Node, ...]) -> None:
    decision = decide(service(), task(1), *lost)
    (new,) = created(decision)
    assert new.not_before <= NOW
    waits = bool(lost) and lost[0].spec.availability == "drain"
    assert new.desired_state == (TaskState.READY if waits else TaskState.RUNNING)


@pytest.mark.parametrize("state", [NodeState.UNKNOWN, NodeState.DISCONNECTED])
def test_a_node_that_may_come_back_keeps_its_tasks(state: NodeState) -> None:
    assert decide(service(), task(1), node("n1", state)) == Decision()


def test_a_waiting_task_starts_when_its_time_has_come_and_the_old_one_is_gone() -> None:
    new = task(1, "n2", TaskState.READY, TaskState.READY, id="new", not_before=NOW + 5, created_at=NOW)
    old = task(1, "n1", TaskState.RUNNING, TaskState.SHUTDOWN, id="old")
    gone = replace(old, status=TaskStatus(TaskState.SHUTDOWN))
    assert decide(service(), gone, new, *NODES).wake == NOW + 5
    assert desired(decide(service(), gone, new, *NODES, now=NOW + 5)) == {"new": TaskState.RUNNING}
    minute = NOW + 60_000_000_000
    waiting = decide(service(), old, new, *NODES, now=NOW + 5)
    assert (desired(waiting), waiting.wake) == ({}, minute)
    assert desired(decide(service(), old, new, *NODES, now=minute)) == {"new": TaskState.RUNNING}
    down = node("n1", NodeState.DOWN)
    assert "new" in desired(decide(service(), old, new, down, node("n2"), now=NOW + 5))


def test_history_beyond_the_limit_goes_oldest_first() -> None:
    past = [
        task(1, state=TaskState.FAILED, desired=TaskState.SHUTDOWN, id=f"old{i}", created_at=i)
        for i in range(7)
    ]
    now = task(1, created_at=10)
    decision = decide(service(), *past, now, node("n1"), Cluster(id="c"))
    assert deleted(decision) == ["old0", "old1", "old2"]
    held = replace(past[0], status=TaskStatus(TaskState.RUNNING))  # still stopping: the agent must hear of it
    assert deleted(decide(service(), held, *past[1:], now, node("n1"))) == ["old1", "old2", "old3"]


def test_a_deleted_service_takes_its_tasks_with_it() -> None:
    decision = decide(
        task(1),
        task(2, state=TaskState.FAILED),
        task(3, "", TaskState.NEW),
        task(4, "gone"),
        task(5, desired=TaskState.REMOVE),
        *NODES,
    )
    assert desired(decision) == {"t1": TaskState.REMOVE}
    assert sorted(deleted(decision)) == ["t2", "t3", "t4"]


def test_doubled_slots_are_repaired() -> None:
    """Nobody makes them, but a store restored from a backup may have them."""
    first, second = task(1, id="a"), task(1, "n2", TaskState.STARTING, id="b")
    assert desired(decide(service(), first, second, *NODES)) == {"b": TaskState.SHUTDOWN}


# -- global --------------------------------------------------------------------------------------------------


def test_global_makes_one_task_per_eligible_node() -> None:
    every = service(mode=ServiceMode(global_=GlobalService()))
    nodes = (
        node("n1"),
        node("n2"),
        node("paused", availability="pause"),
        node("drained", availability="drain"),
        node("down", NodeState.DOWN),
    )
    made = created(decide(every, *nodes))
    assert [(t.node_id, t.slot, t.name) for t in made] == [("n1", 0, "web.n1.new1"), ("n2", 0, "web.n2.new2")]


# -- what an update replaces -----------------------------------------------------------------------------------

INGRESS = Network(
    id="ing",
    spec=NetworkSpec(name="ingress", ingress=True),
    vni=4096,
    subnets=(Subnet("10.0.0.0/24", "10.0.0.1"),),
)
HOST = PortConfig(target_port=80, published_port=80, publish_mode="host")
PUBLISHED = PortConfig(target_port=80, published_port=8080)
PLACED = replace(SPEC, placement=Placement(constraints=["node.id==n1"]))


@pytest.mark.parametrize(
    ("of_service", "of_task", "dirty"),
    [
        ({"spec": SPEC}, {}, False),
        ({"spec": replace(SPEC, force_update=1)}, {}, True),
        ({"spec": PLACED}, {}, False),
        ({"spec": PLACED}, {"node": "n2"}, True),
        ({"spec": PLACED}, {"node": "", "state": TaskState.PENDING}, True),
        ({"spec": replace(SPEC, placement=Placement(max_replicas=1))}, {}, True),
        ({"endpoint_spec": EndpointSpec(ports=[HOST])}, {}, True),
        ({"endpoint_spec": EndpointSpec(ports=[HOST])}, {"ports": (HOST,)}, False),
        ({"endpoint_spec": EndpointSpec(ports=[PUBLISHED])}, {}, True),
        (
            {"endpoint_spec": EndpointSpec(ports=[PUBLISHED])},
            {"networks": (NetworkAttachment("ing", ("10.0.0.9/24",)),)},
            False,
        ),
        ({}, {"networks": (NetworkAttachment("ing", ("10.0.0.9/24",)),)}, True),
        ({"networks": [NetworkAttachmentConfig(target="app")]}, {}, True),
        ({"labels": {"a": "b"}}, {}, False),
        ({"endpoint_spec": EndpointSpec(mode="dnsrr")}, {}, False),
    ],
)
def test_only_what_concerns_the_task_replaces_it(
    of_service: dict[str, Any], of_task: dict[str, Any], dirty: bool
) -> None:
    owner = service(**of_service, version=2)
    node_id = of_task.pop("node", "n1")
    one = task(1, node_id, **of_task)
    assert Work(view_of(owner, one, INGRESS, *NODES), owner, NOW, ids()).is_dirty(one) is dirty
    decision = decide(owner, one, INGRESS, *NODES)
    assert bool(created(decision)) is dirty
    assert Work(view_of(owner, INGRESS), replace(owner, spec_version=1), NOW, ids()).is_dirty(one) is False


def test_the_clusters_log_driver_is_a_default_not_a_reason_to_replace() -> None:
    driver = Driver(name="json-file")
    cluster = Cluster(id="c", spec=SwarmSpec(task_defaults=TaskDefaults(log_driver=driver)))
    (new,) = created(decide(service(), *NODES, cluster))
    assert new.spec.log_driver == driver
    assert decide(service(), task(1), *NODES, cluster) == Decision()


def test_an_update_replaces_one_slot_at_a_time_and_says_so() -> None:
    owner = service(3, spec=replace(SPEC, force_update=1), version=2)
    decision = decide(owner, task(1), task(2), task(3), *NODES)
    assert desired(decision) == {"t1": TaskState.SHUTDOWN}
    (new,) = created(decision)
    assert (new.slot, new.desired_state, new.spec.force_update) == (1, TaskState.READY, 1)
    (changed,) = [c.object for c in decision.changes if isinstance(c, Put) and isinstance(c.object, Service)]
    assert isinstance(changed, Service) and changed.update_status is not None
    assert (changed.update_status.state, changed.update_status.started_at) == ("updating", NOW)


def test_start_first_leaves_the_old_task_until_the_new_one_runs() -> None:
    config = UpdateConfig(parallelism=1, order="start-first")
    owner = service(spec=replace(SPEC, force_update=1), version=2, update_config=config)
    decision = decide(owner, task(1), *NODES)
    assert desired(decision) == {}
    (new,) = created(decision)
    assert new.desired_state == TaskState.RUNNING
    starting = replace(new, version=3, node_id="n2", status=TaskStatus(TaskState.STARTING))
    assert "t1" not in desired(decide(owner, task(1), starting, *NODES))
    running = replace(starting, status=TaskStatus(TaskState.RUNNING))
    assert desired(decide(owner, task(1), running, *NODES))["t1"] == TaskState.SHUTDOWN


def test_an_update_of_a_service_scaled_to_nothing_is_no_update() -> None:
    assert decide(service(0, spec=replace(SPEC, force_update=1), version=2), *NODES) == Decision()


# -- drains --------------------------------------------------------------------------------------------------

DRAINED = node("n1", availability="drain")
START_FIRST = UpdateConfig(parallelism=1, order="start-first")


def test_a_drain_stops_the_old_task_when_its_successor_runs_where_updates_start_first() -> None:
    owner = service(update_config=START_FIRST)
    decision = decide(owner, task(1), DRAINED, node("n2"))
    assert desired(decision) == {}
    (new,) = created(decision)
    assert new.desired_state == TaskState.RUNNING
    for state in (TaskState.PENDING, TaskState.STARTING):
        coming = replace(new, version=3, node_id="n2", status=TaskStatus(state))
        assert decide(owner, task(1), coming, DRAINED, node("n2")) == Decision(), (
            "nothing stopped, nothing doubled"
        )
    running = replace(new, version=3, node_id="n2", status=TaskStatus(TaskState.RUNNING))
    assert desired(decide(owner, task(1), running, DRAINED, node("n2"))) == {"t1": TaskState.SHUTDOWN}


def test_a_drained_node_is_emptied_though_no_node_takes_the_successor() -> None:
    """As soon as the scheduler has said so."""
    owner = service(update_config=START_FIRST)
    waiting = TaskStatus(TaskState.PENDING, err="no suitable node")
    refused = replace(task(1, "", id="new", created_at=NOW), status=waiting)
    asked = replace(refused, status=TaskStatus(TaskState.PENDING))
    assert decide(owner, task(1), asked, DRAINED) == Decision(), "nobody has looked for a node yet"
    assert desired(decide(owner, task(1), refused, DRAINED)) == {"t1": TaskState.SHUTDOWN}
    placed = replace(refused, node_id="n2", status=TaskStatus(TaskState.STARTING))
    assert decide(owner, task(1), placed, DRAINED, node("n2")) == Decision(), (
        "one that is on its way is waited for"
    )


def test_a_successor_that_fails_is_followed_by_another_after_the_delay_and_the_old_one_stays() -> None:
    owner = service(update_config=START_FIRST)
    failed = task(1, "n2", TaskState.FAILED, id="new", created_at=5)
    decision = decide(owner, task(1), failed, DRAINED, node("n2"))
    assert desired(decision) == {"new": TaskState.SHUTDOWN}
    (again,) = created(decision)
    assert again.not_before == NOW + 5_000_000_000


def test_a_drain_taken_back_keeps_the_task_that_runs() -> None:
    coming = task(1, "n2", TaskState.STARTING, id="new", created_at=5)
    decision = decide(service(update_config=START_FIRST), task(1), coming, *NODES)
    assert desired(decision) == {"new": TaskState.SHUTDOWN} and not created(decision)


@pytest.mark.parametrize(
    ("owner", "old", "nodes"),
    [
        (service(), task(1), (DRAINED, node("n2"))),  # two at once are not allowed
        (service(update_config=START_FIRST), task(1), (node("n1", NodeState.DOWN), node("n2"))),
        (service(update_config=START_FIRST), task(1, state=TaskState.STARTING), (DRAINED, node("n2"))),
    ],
)
def test_nothing_waits_where_two_at_once_are_wrong_or_there_is_nothing_to_keep(
    owner: Service, old: Task, nodes: tuple[Node, ...]
) -> None:
    decision = decide(owner, old, *nodes)
    assert desired(decision) == {"t1": TaskState.SHUTDOWN} and len(created(decision)) == 1


def test_a_drain_replaces_nothing_the_restart_policy_forbids() -> None:
    once = replace(SPEC, restart_policy=RestartPolicy(condition="none"))
    decision = decide(service(spec=once, update_config=START_FIRST), task(1, spec=once), DRAINED, node("n2"))
    assert desired(decision) == {"t1": TaskState.SHUTDOWN} and not created(decision)
