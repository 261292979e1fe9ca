"""What an operator sees over time: restarts, moves, updates, rollbacks, global services, exhaustion."""

from __future__ import annotations

import itertools
import random
from typing import Any

import msgspec
import pytest
from invariants import Invariants
from virtual_swarm import SECOND, VirtualSwarm

from overlace.model.objects import Cluster, Node, NodeResources, Service, Task, UpdateStatus
from overlace.model.specs import (
    ContainerSpec,
    EndpointSpec,
    GlobalService,
    Ipam,
    IpamConfig,
    NetworkAttachmentConfig,
    OrchestrationConfig,
    Placement,
    Platform,
    PortConfig,
    ReplicatedService,
    Reservations,
    Resources,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    SwarmSpec,
    TaskSpec,
    UpdateConfig,
)
from overlace.model.states import TaskState

replace = msgspec.structs.replace


def service(replicas: int | None = 1, *, name: str = "web", **parts: Any) -> ServiceSpec:
    """`replicas` None: global. Parts go where they belong."""
    template = TaskSpec(
        container_spec=ContainerSpec(image="app"),
        restart_policy=parts.pop("restart", None),
        placement=parts.pop("placement", None),
        networks=[NetworkAttachmentConfig(target=n) for n in parts.pop("networks", ())],
    )
    mode = (
        ServiceMode(global_=GlobalService())
        if replicas is None
        else ServiceMode(replicated=ReplicatedService(replicas))
    )
    return ServiceSpec(name=name, task_template=template, mode=mode, **parts)


def scaled(spec: ServiceSpec, replicas: int) -> ServiceSpec:
    return replace(spec, mode=ServiceMode(replicated=ReplicatedService(replicas)))


def forced(spec: ServiceSpec, count: int = 1) -> ServiceSpec:
    return replace(spec, task_template=replace(spec.task_template, force_update=count))


async def swarm_of(nodes: int, **options: Any) -> VirtualSwarm:
    swarm = VirtualSwarm(3, **options)
    Invariants(swarm)
    await swarm.start()
    for i in range(nodes):
        await swarm.add_node(f"n{i + 1}")
    return swarm


async def set_node(swarm: VirtualSwarm, name: str, **members: Any) -> None:
    node = swarm.store.view().get(Node, name)
    assert node is not None
    await swarm.change(Node, name, spec=replace(node.spec, **members))


def state_of(swarm: VirtualSwarm, id: str) -> str:
    status = swarm.service(id).update_status
    return status.state if status else ""


def history(swarm: VirtualSwarm, id: str) -> list[str]:
    return [t.status.state.word for t in swarm.tasks(id)]


def ends(state: TaskState, after: int = SECOND) -> Any:
    return lambda task, chance: (state, after)


# -- scale ---------------------------------------------------------------------------------------------------


async def test_a_new_service_is_placed_by_one_commit() -> None:
    swarm = await swarm_of(2)
    await swarm.settle()
    before = swarm.store.view().revision
    id = await swarm.add_service(service(4))
    await swarm.settle()
    assert swarm.store.view().revision == before + 2  # the service itself, then everything about it
    assert {t.status.state for t in swarm.tasks(id)} == {TaskState.ASSIGNED}
    assert sorted(t.node_id for t in swarm.tasks(id)) == ["n1", "n1", "n2", "n2"]


async def test_scaling_down_keeps_the_nodes_balanced_and_running_tasks() -> None:
    swarm = await swarm_of(3)
    id = await swarm.add_service(service(6))
    await swarm.run(10)
    await swarm.update_service(id, scaled(service(), 3))
    await swarm.run(10)
    assert sorted(t.node_id for t in swarm.running(id)) == ["n1", "n2", "n3"]
    assert [t.slot for t in swarm.tasks(id)] == [1, 2, 3], "removed slots keep no history"
    await swarm.update_service(id, scaled(service(), 0))
    await swarm.run(10)
    assert swarm.tasks(id) == []


async def test_scaling_does_not_replace_tasks_and_is_no_update() -> None:
    swarm = await swarm_of(1)
    id = await swarm.add_service(service(2))
    await swarm.run(10)
    first = {t.id for t in swarm.running(id)}
    await swarm.update_service(id, scaled(service(), 4))
    await swarm.run(10)
    assert first < {t.id for t in swarm.running(id)}
    assert state_of(swarm, id) == ""


# -- restarts ------------------------------------------------------------------------------------------------


async def test_a_failed_task_is_replaced_after_the_delay_and_history_is_bounded() -> None:
    swarm = await swarm_of(1)
    swarm.fate = ends(TaskState.FAILED)
    id = await swarm.add_service(service(restart=RestartPolicy(delay=3 * SECOND)))
    await swarm.run(120)
    tasks = swarm.tasks(id)
    assert len(tasks) == 5
    failed = [t for t in tasks if t.status.state == TaskState.FAILED]
    assert len(failed) == 4
    for old, new in zip(failed, [*failed[1:], tasks[-1]], strict=True):
        assert new.created_at >= old.status.timestamp
        assert new.not_before - new.created_at == 3 * SECOND
        if new.status.state == TaskState.FAILED:
            assert new.status.timestamp - old.status.timestamp >= 4 * SECOND


@pytest.mark.parametrize(
    ("condition", "end", "tasks"),
    [
        ("none", TaskState.FAILED, 1),
        ("none", TaskState.COMPLETE, 1),
        ("on-failure", TaskState.COMPLETE, 1),
        ("on-failure", TaskState.FAILED, 5),
        ("any", TaskState.COMPLETE, 5),
        ("", TaskState.COMPLETE, 5),
    ],
)
async def test_restart_conditions(condition: str, end: TaskState, tasks: int) -> None:
    swarm = await swarm_of(1)
    swarm.fate = ends(end)
    id = await swarm.add_service(service(restart=RestartPolicy(condition=condition, delay=SECOND)))
    await swarm.run(60)
    assert len(swarm.tasks(id)) == tasks
    swarm.restart_manager()
    await swarm.run(60)
    assert len(swarm.tasks(id)) == tasks, "a new manager decides as the old one did"


async def test_max_attempts_survive_a_manager_and_a_short_history() -> None:
    swarm = VirtualSwarm(1)
    await swarm.start(spec=SwarmSpec(orchestration=OrchestrationConfig(task_history_retention_limit=1)))
    await swarm.add_node("n1")
    swarm.fate = ends(TaskState.FAILED)
    id = await swarm.add_service(service(restart=RestartPolicy(delay=SECOND, max_attempts=3)))
    await swarm.run(5)
    swarm.restart_manager()
    await swarm.run(200)
    assert history(swarm, id) == ["failed"] * 4  # the first and three attempts
    await swarm.update_service(id, forced(swarm.service(id).spec))
    swarm.fate = lambda task, chance: None
    await swarm.run(60)
    assert len(swarm.running(id)) == 1, "a new version is tried anew"


async def test_attempts_outside_the_window_do_not_count() -> None:
    swarm = await swarm_of(1)
    swarm.fate = ends(TaskState.FAILED, 10 * SECOND)
    policy = RestartPolicy(delay=SECOND, max_attempts=2, window=15 * SECOND)
    id = await swarm.add_service(service(restart=policy))
    await swarm.run(120)
    assert len(swarm.tasks(id)) >= 4


async def test_a_lone_dead_task_stays_as_evidence_with_history_zero() -> None:
    swarm = VirtualSwarm(1)
    await swarm.start(spec=SwarmSpec(orchestration=OrchestrationConfig(task_history_retention_limit=0)))
    await swarm.add_node("n1")
    swarm.fate = ends(TaskState.COMPLETE)
    id = await swarm.add_service(service(restart=RestartPolicy(condition="none")))
    await swarm.run(300)
    assert history(swarm, id) == ["complete"]


@pytest.mark.parametrize(("delay", "most"), [(None, 7), (0, 31)])
async def test_a_task_every_node_refuses_is_tried_again_once_per_delay(delay: int | None, most: int) -> None:
    """No such image: the replacement is prepared, and refused, long before its delay (5 s, at least 1) is over."""
    swarm = await swarm_of(2)
    net = await swarm.add_network("app")
    swarm.refuses = lambda task, chance: True
    id = await swarm.add_service(service(1, networks=[net], restart=RestartPolicy(delay=delay)))
    made: set[str] = set()
    swarm.observers.append(lambda: made.update(t.id for t in swarm.tasks(id)))
    await swarm.run(30)
    assert most - 2 <= len(made) <= most
    swarm.refuses = lambda task, chance: False
    await swarm.run(15)
    assert len(swarm.running(id)) == 1


async def test_an_update_to_an_image_that_is_there_does_not_wait_for_the_delay() -> None:
    swarm = await swarm_of(2)
    swarm.refuses = lambda task, chance: not task.spec.force_update
    id = await swarm.add_service(service(1, restart=RestartPolicy(delay=1000 * SECOND)))
    await swarm.run(10)
    await swarm.update_service(id, forced(service(1, restart=RestartPolicy(delay=1000 * SECOND))))
    await swarm.run(5)
    assert len(swarm.running(id)) == 1


# -- nodes ---------------------------------------------------------------------------------------------------


async def test_a_dead_nodes_tasks_move_at_once_and_give_their_addresses_back_within_minutes() -> None:
    swarm = await swarm_of(2)
    net = await swarm.add_network("app")
    id = await swarm.add_service(service(4, networks=[net]))
    await swarm.run(10)
    swarm.crash("n2")
    crashed = swarm.now
    await swarm.run(60, until=lambda: len([t for t in swarm.running(id) if t.node_id == "n1"]) == 4)
    assert swarm.now - crashed < 18 * SECOND, "15 s until the node is down, no restart delay"
    lost = [t for t in swarm.tasks(id) if t.node_id == "n2"]
    assert {t.desired_state for t in lost} == {TaskState.SHUTDOWN}
    await swarm.run(90)
    assert {t.status.state for t in swarm.tasks(id) if t.node_id == "n2"} == {TaskState.ORPHANED}
    used, _ = swarm.loop._index.book.capacity(net)
    assert used == 1 + 4 + 1, "the VIP, four tasks, one node"


async def test_drain_waits_for_the_old_task_to_stop_but_not_for_the_restart_delay() -> None:
    swarm = await swarm_of(2)
    id = await swarm.add_service(service(2, restart=RestartPolicy(delay=100 * SECOND)))
    await swarm.run(5)
    await set_node(swarm, "n1", availability="drain")
    started = swarm.now
    await swarm.run(60, until=lambda: len(swarm.running(id)) == 2)
    assert {t.node_id for t in swarm.running(id)} == {"n2"}
    assert swarm.now - started < 5 * SECOND
    old = next(t for t in swarm.tasks(id) if t.node_id == "n1")
    new = next(t for t in swarm.running(id) if t.slot == old.slot)
    assert new.status.timestamp > old.status.timestamp


async def test_a_drain_empties_a_node_at_once_though_updates_start_first_and_no_node_takes_the_successor() -> (
    None
):
    swarm = await swarm_of(1)
    start_first = msgspec.structs.replace(
        service(1), update_config=UpdateConfig(parallelism=1, order="start-first")
    )
    id = await swarm.add_service(start_first)
    await swarm.run(5)
    await set_node(swarm, "n1", availability="drain")
    started = swarm.now
    await swarm.run(60, until=lambda: not swarm.running(id))
    assert not swarm.running(id) and swarm.now - started < 15 * SECOND
    await set_node(swarm, "n1", availability="active")
    await swarm.run(60, until=lambda: len(swarm.running(id)) == 1)
    assert len(swarm.running(id)) == 1


async def test_a_replacement_does_not_wait_for_ever_for_its_predecessor() -> None:
    swarm = await swarm_of(2)
    id = await swarm.add_service(service(1))
    await swarm.run(5)
    (task,) = swarm.running(id)
    await set_node(swarm, task.node_id, availability="drain")
    await swarm.settle()
    swarm.agents[task.node_id].alive = False  # hangs, but is not down yet …
    swarm.agents[task.node_id].died_at = swarm.now + 1000 * SECOND
    await swarm.run(50)
    assert [t for t in swarm.running(id) if t.id != task.id] == []
    await swarm.run(20)
    assert [t.node_id for t in swarm.running(id)] != [task.node_id]


async def test_pause_keeps_what_runs() -> None:
    swarm = await swarm_of(2)
    id = await swarm.add_service(service(4))
    everywhere = await swarm.add_service(service(None, name="agent"))
    await swarm.run(5)
    before = {t.id for t in (*swarm.running(id), *swarm.running(everywhere))}
    await set_node(swarm, "n1", availability="pause")
    await swarm.run(30)
    assert before == {t.id for t in (*swarm.running(id), *swarm.running(everywhere))}
    await swarm.update_service(id, scaled(service(), 8))
    await swarm.run(10)
    assert [t.node_id for t in swarm.running(id)].count("n2") == 6


async def test_a_changed_label_moves_what_no_longer_fits() -> None:
    swarm = await swarm_of(2)
    for name in ("n1", "n2"):
        await set_node(swarm, name, labels={"disk": "ssd"})
    spec = service(2, placement=Placement(constraints=["node.labels.disk==ssd"]))
    id = await swarm.add_service(spec)
    await swarm.run(5)
    await set_node(swarm, "n1", labels={"disk": "hdd"})
    await swarm.settle()
    rejected = [t for t in swarm.tasks(id) if t.status.state == TaskState.REJECTED]
    assert [t.status.message for t in rejected] == ["assigned node no longer meets constraints"]
    await swarm.run(10)
    assert [t.node_id for t in swarm.running(id)] == ["n2", "n2"]


async def test_a_removed_service_leaves_nothing_even_on_a_dead_node() -> None:
    swarm = await swarm_of(2)
    id = await swarm.add_service(service(4))
    await swarm.run(5)
    swarm.crash("n2")
    await swarm.run(20)
    await swarm.remove_service(id)
    await swarm.run(10)
    assert swarm.tasks(id) == []


# -- global --------------------------------------------------------------------------------------------------


async def test_global_follows_the_nodes_it_can_run_on() -> None:
    swarm = await swarm_of(1)
    await swarm.add_node("w1", os="windows", os_version="10.0.20348.2527")
    placement = Placement(constraints=["node.labels.no!=1"], platforms=[Platform("amd64", "linux")])
    id = await swarm.add_service(service(None, placement=placement))
    await swarm.run(5)
    assert [t.node_id for t in swarm.running(id)] == ["n1"]
    assert len(swarm.tasks(id)) == 1, "no task waits for ever on a platform the image does not support"
    await swarm.add_node("n9")
    await swarm.run(5)
    assert sorted(t.node_id for t in swarm.running(id)) == ["n1", "n9"]
    assert all(t.name == f"web.{t.node_id}.{t.id}" for t in swarm.running(id))
    await set_node(swarm, "n1", labels={"no": "1"})
    await swarm.run(10)
    assert [t.node_id for t in swarm.running(id)] == ["n9"]
    await set_node(swarm, "n9", availability="drain")
    await swarm.run(10)
    assert swarm.running(id) == []
    await set_node(swarm, "n9", availability="active")
    await swarm.run(10)
    assert [t.node_id for t in swarm.running(id)] == ["n9"]


# -- updates -------------------------------------------------------------------------------------------------


class Low:
    """The fewest tasks of a service that were running at any step, and the most meant to run at once."""

    def __init__(self, swarm: VirtualSwarm, id: str) -> None:
        self.swarm, self.id = swarm, id
        self.running = self.most = len(swarm.running(id))
        swarm.observers.append(self.look)

    def look(self) -> None:
        self.running = min(self.running, len(self.swarm.running(self.id)))
        live = [t for t in self.swarm.tasks(self.id) if t.desired_state <= TaskState.RUNNING]
        self.most = max(self.most, len(live))


@pytest.mark.parametrize(
    ("parallelism", "order", "least", "most"),
    [(1, "stop-first", 3, 4), (2, "stop-first", 2, 4), (0, "stop-first", 0, 4), (1, "start-first", 4, 5)],
)
async def test_rolling_update(parallelism: int, order: str, least: int, most: int) -> None:
    swarm = await swarm_of(2)
    spec = service(4, update_config=UpdateConfig(parallelism=parallelism, order=order))
    id = await swarm.add_service(spec)
    await swarm.run(5)
    old = {t.id for t in swarm.running(id)}
    low = Low(swarm, id)
    await swarm.update_service(id, forced(spec))
    await swarm.run(120, until=lambda: state_of(swarm, id) == "completed")
    assert state_of(swarm, id) == "completed"
    assert len(swarm.running(id)) == 4
    assert not old & {t.id for t in swarm.running(id)}
    assert (low.running, low.most) == (least, most)
    status = swarm.service(id).update_status
    assert status is not None and status.completed_at - status.started_at >= 5 * SECOND, "monitored"
    assert status.message == "update completed"


async def test_update_delay_spaces_the_slots() -> None:
    swarm = await swarm_of(2)
    spec = service(3, update_config=UpdateConfig(parallelism=1, delay=20 * SECOND))
    id = await swarm.add_service(spec)
    await swarm.run(5)
    await swarm.update_service(id, forced(spec))
    await swarm.run(200, until=lambda: state_of(swarm, id) == "completed")
    starts = sorted(t.created_at for t in swarm.running(id))
    assert all(b - a >= 20 * SECOND for a, b in itertools.pairwise(starts))
    assert state_of(swarm, id) == "completed"


def fails_when_forced(task: Task, chance: random.Random) -> tuple[TaskState, int] | None:
    return (TaskState.FAILED, SECOND) if task.spec.force_update == 1 else None


async def test_a_failing_update_pauses_by_default() -> None:
    swarm = await swarm_of(2)
    spec = service(4, update_config=UpdateConfig(parallelism=1, delay=2 * SECOND))
    id = await swarm.add_service(spec)
    await swarm.run(5)
    old = {t.id for t in swarm.running(id)}
    swarm.fate = fails_when_forced
    await swarm.update_service(id, forced(spec))
    await swarm.run(10)
    status = swarm.service(id).update_status
    assert status is not None and status.state == "paused"
    first, *_ = [t for t in swarm.tasks(id) if t.spec.force_update]
    assert status.message == f"update paused due to failure or early termination of task {first.id}"
    assert len(old & {t.id for t in swarm.running(id)}) == 3, "the others were not touched"


@pytest.mark.parametrize("order", ["stop-first", "start-first"])
async def test_a_failing_update_rolls_back(order: str) -> None:
    swarm = await swarm_of(2)
    spec = service(
        4,
        update_config=UpdateConfig(parallelism=2, failure_action="rollback", order=order),
        rollback_config=UpdateConfig(parallelism=0),
    )
    id = await swarm.add_service(spec)
    await swarm.run(5)
    swarm.fate = fails_when_forced
    await swarm.update_service(id, forced(spec))
    await swarm.run(200, until=lambda: state_of(swarm, id) == "rollback_completed")
    assert swarm.service(id).spec == spec
    assert len(swarm.running(id)) == 4
    assert {t.spec.force_update for t in swarm.running(id)} == {0}
    status = swarm.service(id).update_status
    assert status is not None and status.message == "rollback completed"


async def test_failures_within_the_ratio_do_not_stop_an_update() -> None:
    swarm = await swarm_of(2)
    config = UpdateConfig(parallelism=1, max_failure_ratio=0.3)
    spec = service(4, update_config=config, restart=RestartPolicy(delay=SECOND))
    id = await swarm.add_service(spec)
    await swarm.run(5)
    failed: list[str] = []

    def once(task: Task, chance: random.Random) -> tuple[TaskState, int] | None:
        if task.spec.force_update and not failed:
            failed.append(task.id)
            return TaskState.FAILED, SECOND
        return None

    swarm.fate = once
    await swarm.update_service(id, forced(spec))
    await swarm.run(200, until=lambda: state_of(swarm, id) in ("completed", "paused"))
    assert state_of(swarm, id) == "completed"
    assert failed


async def test_a_task_that_fails_long_after_it_started_is_not_the_updates_fault() -> None:
    swarm = await swarm_of(2)
    spec = service(3, update_config=UpdateConfig(parallelism=1, delay=30 * SECOND, monitor=5 * SECOND))
    id = await swarm.add_service(spec)
    await swarm.run(5)
    swarm.fate = lambda task, chance: (TaskState.FAILED, 40 * SECOND) if task.slot == 1 else None
    await swarm.update_service(id, forced(spec))
    await swarm.run(300, until=lambda: state_of(swarm, id) in ("completed", "paused"))
    assert state_of(swarm, id) == "completed"


async def test_an_update_no_node_can_take_says_so_instead_of_hanging() -> None:
    swarm = await swarm_of(2)
    spec = service(3)
    id = await swarm.add_service(spec)
    await swarm.run(5)
    template = replace(spec.task_template, placement=Placement(constraints=["node.hostname==nowhere"]))
    await swarm.update_service(id, replace(spec, task_template=template))
    await swarm.run(120)
    assert state_of(swarm, id) == "paused"
    assert len(swarm.running(id)) == 2
    (waiting,) = [t for t in swarm.tasks(id) if t.status.state == TaskState.PENDING]
    assert waiting.status.err == "no suitable node (scheduling constraints not satisfied on 2 nodes)"


async def test_constraints_the_nodes_meet_replace_nothing() -> None:
    swarm = await swarm_of(2)
    spec = service(2)
    id = await swarm.add_service(spec)
    await swarm.run(5)
    before = {t.id for t in swarm.running(id)}
    template = replace(spec.task_template, placement=Placement(constraints=["node.platform.os==linux"]))
    await swarm.update_service(id, replace(spec, task_template=template))
    await swarm.run(30)
    assert {t.id for t in swarm.running(id)} == before
    template = replace(spec.task_template, placement=Placement(constraints=["node.id==n1"]))
    await swarm.update_service(id, replace(spec, task_template=template))
    await swarm.run(60)
    assert [t.node_id for t in swarm.running(id)] == ["n1", "n1"]
    assert len(before & {t.id for t in swarm.running(id)}) == 1


async def test_a_new_published_port_reaches_running_services() -> None:
    swarm = await swarm_of(1)
    spec = service(1)
    id = await swarm.add_service(spec)
    await swarm.run(5)
    ports = EndpointSpec(ports=[PortConfig(target_port=80, published_port=8080)])
    await swarm.update_service(id, replace(spec, endpoint_spec=ports))
    await swarm.run(30)
    endpoint = swarm.service(id).endpoint
    assert endpoint is not None and [p.published_port for p in endpoint.ports] == [8080]
    assert [v.network_id for v in endpoint.virtual_ips] == ["ingress"]
    (task,) = swarm.running(id)
    assert [a.network_id for a in task.networks] == ["ingress"]


async def test_manual_rollback_uses_the_rollback_config() -> None:
    """Control swaps the specs and says rollback_started; the updater does the rest."""
    swarm = await swarm_of(2)
    spec = service(4, rollback_config=UpdateConfig(parallelism=0))
    id = await swarm.add_service(spec)
    await swarm.run(5)
    await swarm.update_service(id, forced(spec))
    await swarm.run(60, until=lambda: state_of(swarm, id) == "completed")
    now = swarm.service(id)
    assert now.previous_spec == spec
    status = UpdateStatus("rollback_started", started_at=swarm.now, message="manually requested rollback")
    await swarm.change(
        Service,
        id,
        spec=spec,
        previous_spec=now.spec,
        spec_version=swarm.store.view().revision + 1,
        update_status=status,
    )
    await swarm.run(60, until=lambda: state_of(swarm, id) == "rollback_completed")
    assert {t.spec.force_update for t in swarm.running(id)} == {0}
    assert len(swarm.running(id)) == 4


async def test_a_manager_that_dies_in_an_update_loses_nothing() -> None:
    swarm = await swarm_of(2)
    spec = service(6, update_config=UpdateConfig(parallelism=1, delay=SECOND))
    id = await swarm.add_service(spec)
    await swarm.run(5)
    await swarm.update_service(id, forced(spec))
    for _ in range(60):
        await swarm.run(0.7)
        swarm.restart_manager()
    await swarm.run(30)
    assert state_of(swarm, id) == "completed"
    assert {t.spec.force_update for t in swarm.running(id)} == {1}
    assert len(swarm.running(id)) == 6


# -- exhaustion ----------------------------------------------------------------------------------------------


async def test_a_full_network_says_so_and_goes_on_when_there_is_room() -> None:
    swarm = await swarm_of(1)
    ipam = Ipam(config=[IpamConfig(subnet="10.9.0.0/29")])
    net = await swarm.add_network("tiny", ipam=ipam)
    spec = service(6, networks=[net])
    id = await swarm.add_service(spec)
    await swarm.run(10)
    stuck = [t for t in swarm.tasks(id) if t.status.state == TaskState.NEW]
    assert len(swarm.running(id)) == 4
    assert len(stuck) == 2
    for task in stuck:
        assert task.status.err == (
            f"no address left for task {stuck[0].name} on network tiny (10.9.0.0/29): 5 of 5 in use; "
            "scale down or remove services on it, or make a network with a larger subnet"
        )
    other = await swarm.add_service(service(1, name="other"))
    await swarm.run(10)
    assert len(swarm.running(other)) == 1, "services on other networks are not held up"
    await swarm.update_service(id, scaled(spec, 3))
    await swarm.run(10)
    assert len(swarm.running(id)) == 3
    assert all(t.status.state == TaskState.RUNNING for t in swarm.tasks(id))


async def test_tasks_wait_for_resources_and_start_when_a_node_joins() -> None:
    swarm = VirtualSwarm(1)
    await swarm.start()
    await swarm.add_node("small", resources=NodeResources(SECOND, 1 << 30))
    spec = service(3)
    resources = Resources(reservations=Reservations(nano_cpus=SECOND // 2))
    spec = replace(spec, task_template=replace(spec.task_template, resources=resources))
    id = await swarm.add_service(spec)
    await swarm.run(5)
    (waiting,) = [t for t in swarm.tasks(id) if t.status.state == TaskState.PENDING]
    assert waiting.status.err == "no suitable node (insufficient resources on 1 node)"
    await swarm.add_node("large")
    await swarm.run(5)
    assert len(swarm.running(id)) == 3
    assert all(t.status.err == "" for t in swarm.tasks(id))


async def test_an_address_just_given_back_is_not_given_out_again_at_once() -> None:
    swarm = await swarm_of(1)
    net = await swarm.add_network("app")
    spec = service(1, networks=[net])
    id = await swarm.add_service(spec)
    seen: list[str] = []
    for count in range(1, 6):
        await swarm.run(30)
        (task,) = swarm.running(id)
        seen.append(task.networks[0].addresses[0])
        await swarm.update_service(id, forced(spec, count))
    assert len(set(seen)) == 5


async def test_the_history_limit_follows_the_cluster() -> None:
    swarm = await swarm_of(1)
    swarm.fate = ends(TaskState.FAILED)
    id = await swarm.add_service(service(restart=RestartPolicy(delay=SECOND)))
    await swarm.run(60)
    assert len(swarm.tasks(id)) == 5
    spec = SwarmSpec(orchestration=OrchestrationConfig(task_history_retention_limit=2))
    await swarm.change(Cluster, "cluster", spec=spec)
    await swarm.run(10)
    assert len(swarm.tasks(id)) == 2


async def test_ipv6_addresses_come_back_over_updates_removals_and_dying_leaders() -> None:
    """Six addresses, two of them the gateway's and the VIP's: any that leaked would soon be missed."""
    swarm = VirtualSwarm(3, deaths=0.2)
    await swarm.start()
    for name in ("n1", "n2"):
        await swarm.add_node(name)
    ipam = Ipam(config=[IpamConfig(subnet="fd09::/125")])
    net = await swarm.add_network("tiny", enable_ipv6=True, ipam=ipam)
    for number in range(12):
        id = await swarm.add_service(service(2, networks=[net], name=f"s{number}"))
        await swarm.run(240, until=lambda id=id: len(swarm.running(id)) == 2)
        given = [a for t in swarm.running(id) for a in t.networks[0].addresses]
        assert sorted(":" in a for a in given) == [False, False, True, True], number
        assert len(set(given)) == 4
        await swarm.remove_service(id)
        await swarm.run(60, until=lambda id=id: not swarm.tasks(id))
    assert swarm.died, "no leader died: little was tried"
