"""`overlace why`: the reasons are the true ones, and what is said to help does help."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from overlace.cli.why import lines
from overlace.manager.schedule.filters import first_failure, needs_of
from overlace.manager.schedule.occupancy import Occupancy
from overlace.manager.why import Why, explain
from overlace.model.errors import NotFound
from overlace.model.objects import (
    Base,
    JobStatus,
    Node,
    NodeDescription,
    NodeResources,
    NodeStatus,
    Service,
    Task,
    TaskStatus,
)
from overlace.model.specs import (
    ContainerSpec,
    GlobalService,
    NodeSpec,
    Placement,
    PlacementPreference,
    Platform,
    PortConfig,
    ReplicatedJob,
    ReplicatedService,
    Reservations,
    Resources,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    SpreadOver,
    TaskSpec,
)
from overlace.model.states import NodeState, TaskState
from overlace.store.memory import MemoryView, State

NOW = 1_000_000_000_000
SECOND = 1_000_000_000
replace = msgspec.structs.replace


def node(id: str, *, os: str = "linux", state: NodeState = NodeState.READY, **spec: Any) -> Node:
    about = NodeDescription(
        hostname=id,
        os=os,
        architecture="x86_64",
        os_version="10.0.20348.1" if os == "windows" else "",
        resources=NodeResources(4 * SECOND, 8 << 30),
    )
    return Node(id=f"id-{id}", spec=NodeSpec(**spec), description=about, status=NodeStatus(state))


def service(mode: ServiceMode | None = None, name: str = "web", **template: Any) -> Service:
    spec = ServiceSpec(
        name=name,
        mode=mode or ServiceMode(replicated=ReplicatedService(1)),
        task_template=TaskSpec(container_spec=ContainerSpec(image="app"), **template),
    )
    job = JobStatus() if spec.mode.replicated_job or spec.mode.global_job else None
    return Service(id=f"s-{name}", spec=spec, spec_version=1, job_status=job)


def task(
    of: Service, slot: int = 1, state: TaskState = TaskState.PENDING, on: str = "", **members: Any
) -> Task:
    members = {"desired_state": TaskState.RUNNING} | members
    err = members.pop("err", "")
    id = members.pop("id", f"t-{of.spec.name}-{slot}")
    word = f"id-{on}" if of.spec.mode.global_ else slot
    return Task(
        id=id,
        service_id=of.id,
        service_name=of.spec.name,
        slot=slot,
        name=f"{of.spec.name}.{word}.{id}",
        node_id=f"id-{on}" if on else "",
        spec=of.spec.task_template,
        spec_version=1,
        created_at=NOW - 60 * SECOND,
        status=TaskStatus(state, timestamp=NOW - SECOND, err=err),
        **members,
    )


def view_of(*things: Base) -> MemoryView:
    state = State()
    state.load(things)
    return state.view()


def why(ref: str, *things: Base) -> Why:
    return explain(view_of(*things), ref, NOW)


def text(found: Why) -> str:
    return "\n".join(lines(msgspec.to_builtins(found), NOW))


def said(found: Why) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    return [(r.steps, r.nodes) for r in found.remedies]


def test_a_label_that_no_node_has() -> None:
    web = service(placement=Placement(constraints=["node.labels.zone==b"]))
    waiting = task(web, err="no suitable node (scheduling constraints not satisfied on 2 nodes)")
    found = why("web.1", web, waiting, node("a"), node("b", labels={"zone": "c"}))
    assert found.kind == "task" and found.says == waiting.status.err
    assert found.tasks[0].since == NOW - 60 * SECOND, "it waits since it was made"
    (verdict, fits) = found.filters
    assert [(r.hostname, r.detail) for r in verdict.nodes] == [
        ("a", "node.labels.zone==b: the node has ''"),
        ("b", "node.labels.zone==b: the node has 'c'"),
    ]
    assert fits.nodes == ()
    assert said(found) == [
        (("docker node update --label-add zone=b NODE",), ("a", "b")),
        (("add a node, with node.labels.zone==b",), ()),
    ]
    shown = text(found)
    assert "docker node update --label-add zone=b NODE   (NODE: a, b)" in shown
    assert "(1 min ago)" in shown


@pytest.mark.parametrize(
    ("template", "broken", "fixed", "step"),
    [
        (
            {"placement": Placement(constraints=["node.labels.zone==b"])},
            node("a"),
            node("a", labels={"zone": "b"}),
            "docker node update --label-add zone=b NODE",
        ),
        (
            {"placement": Placement(constraints=["node.labels.zone!=b"])},
            node("a", labels={"zone": "b"}),
            node("a"),
            "docker node update --label-rm zone NODE",
        ),
        ({}, node("a", availability="drain"), node("a"), "docker node update --availability active NODE"),
        ({}, node("a", state=NodeState.DOWN), node("a"), "bring NODE back: it is down"),
    ],
)
def test_what_is_said_to_help_helps(template: Any, broken: Node, fixed: Node, step: str) -> None:
    web = service(**template)
    waiting = task(web)
    found = why("web", web, waiting, broken)
    assert said(found)[0] == ((step,), ("a",))
    needs = needs_of(waiting)
    assert first_failure(needs, broken, Occupancy().node("")) is not None
    assert first_failure(needs, fixed, Occupancy().node("")) is None


def test_several_things_in_the_way_are_all_named() -> None:
    web = service(placement=Placement(constraints=["node.labels.a==1", "node.labels.b==2"]))
    found = why("web.1", web, task(web), node("n", availability="pause"))
    assert said(found)[0][0] == (
        "docker node update --availability active NODE",
        "docker node update --label-add a=1 NODE",
        "docker node update --label-add b=2 NODE",
    )


def test_resources_say_what_is_lacking_and_what_is_left() -> None:
    web = service(resources=Resources(reservations=Reservations(nano_cpus=3 * SECOND)))
    other = service(name="db", resources=Resources(reservations=Reservations(nano_cpus=2 * SECOND)))
    held = task(other, state=TaskState.RUNNING, on="a")
    found = why("web.1", web, task(web), other, held, node("a"))
    assert said(found) == [
        (("free 1 CPUs of reservations on NODE",), ("a",)),
        (("reserve at most 2 CPUs and 8192 MiB, which a has left",), ()),
        (("add a node, with 3 CPUs and 0 MiB to reserve",), ()),
    ]
    huge = service(resources=Resources(reservations=Reservations(nano_cpus=64 * SECOND)))
    assert not any(r.nodes for r in why("web.1", huge, task(huge), node("a")).remedies)


def test_a_host_port_names_who_holds_it() -> None:
    port = PortConfig(target_port=80, published_port=8080, publish_mode="host")
    web, other = service(), service(name="db")
    held = task(other, state=TaskState.RUNNING, on="a", ports=(port,))
    found = why("web.1", web, task(web, ports=(port,)), other, held, node("a"))
    assert said(found)[0] == (("on NODE free port 8080/tcp, held by db",), ("a",))


def test_an_unknown_key_is_corrected_not_worked_around() -> None:
    web = service(placement=Placement(constraints=["node.labl.x==1"]))
    ((steps, nodes),) = said(why("web.1", web, task(web), node("a")))
    assert not nodes and steps[0].startswith(
        "correct the constraint node.labl.x==1: no such key; there are node.id"
    )


def test_a_windows_image_among_linux_hosts() -> None:
    windows = Placement(platforms=[Platform("amd64", "windows", "10.0.20348.1")])
    web = service(placement=windows)
    found = why("web", web, task(web), node("a"), node("b"))
    assert found.where == (
        "no node can run it; a and b cannot: the image is for windows/amd64 10.0.20348.1;"
        " the node is linux/x86_64"
    )
    assert said(found)[-1][0] == ("add a node that runs windows/amd64 10.0.20348.1",)
    placed = why("web", web, task(web, state=TaskState.RUNNING, on="w"), node("a"), node("w", os="windows"))
    assert placed.where.startswith("only w can run it; a cannot: the image is for windows/amd64")
    assert placed.remedies == ()


def test_the_ranking_is_shown_in_the_order_nodes_are_filled() -> None:
    spread = Placement(preferences=[PlacementPreference(SpreadOver("node.labels.rack"))])
    web, other = service(placement=spread), service(name="db")
    nodes = [node(n, labels={"rack": r}) for n, r in (("a", "1"), ("b", "1"), ("c", "2"))]
    busy = [task(other, i, TaskState.RUNNING, on="c", id=f"d{i}") for i in range(3)]
    mine = task(web, 2, TaskState.RUNNING, on="a", id="w2")
    (fits,) = why("web.1", web, task(web), mine, other, *busy, *nodes).filters
    assert [(r.hostname, r.detail) for r in fits.nodes] == [
        ("c", "rack='2' holds 0; 0 other tasks of the service, 3 in all"),
        ("b", "rack='1' holds 1; 0 other tasks of the service, 0 in all"),
        ("a", "rack='1' holds 1; 1 other task of the service, 1 in all"),
    ]


def test_where_a_task_is_in_its_life() -> None:
    web, a = service(), node("a")

    def says(**members: Any) -> str:
        return why("web.1", web, task(web, **members), a).says

    assert says(state=TaskState.NEW, err="no addresses left") == "no addresses left"
    assert says(state=TaskState.RUNNING, on="a") == "runs on a"
    waiting = {"state": TaskState.READY, "on": "a", "desired_state": TaskState.READY}
    assert says(**waiting, not_before=NOW + 1500 * SECOND // 1000).endswith("restart delay is over, in 2 s")
    assert says(**waiting).endswith("starts when the task before it has stopped")
    assert says(state=TaskState.FAILED, on="a", err="exit 1") == "failed on a: exit 1"
    assert says(state=TaskState.ASSIGNED, on="a") == "is on its way on a: assigned"
    assert a.description is not None
    a = replace(a, description=replace(a.description, trouble="its disk is full"))
    assert says(state=TaskState.ASSIGNED, on="a").endswith("; a cannot take it: its disk is full")
    assert says(state=TaskState.RUNNING, on="a") == "runs on a"
    stopping = {"state": TaskState.RUNNING, "on": "a", "desired_state": TaskState.SHUTDOWN}
    assert says(**stopping) == "is being stopped on a"


def test_a_service_sums_up() -> None:
    web = service(ServiceMode(replicated=ReplicatedService(3)))
    one, two = task(web, 1, TaskState.RUNNING, on="a"), task(web, 2, err="no suitable node")
    once = replace(web.spec.task_template, restart_policy=RestartPolicy(condition="none"))
    gone = replace(task(web, 3, TaskState.FAILED, on="a", desired_state=TaskState.SHUTDOWN), spec=once)
    found = why("web", web, one, two, gone, node("a"))
    assert found.says == (
        "1 of 3 tasks run; 1 wait: no suitable node; 1 ended and get no other try (restart condition none)"
    )
    assert [t.name for t in found.tasks] == ["web.1", "web.2", "web.3"]


def test_a_global_service_is_named_by_host_and_not_ranked() -> None:
    port = PortConfig(target_port=80, published_port=8080, publish_mode="host")
    web = service(ServiceMode(global_=GlobalService()))
    tasks = [task(web, 0, TaskState.RUNNING, on=n, id=n, ports=(port,)) for n in "ab"]
    found = why("web.b", web, *tasks, node("a"), node("b"))
    assert (found.name, found.says) == ("web.b", "runs on b")
    (fits,) = found.filters
    assert {r.hostname for r in fits.nodes} == {"a", "b"}, "its own copies are not in its way"
    assert "nothing is ranked" in found.ranking


def test_a_job_counts_completions() -> None:
    job = service(ServiceMode(replicated_job=ReplicatedJob(2, 4)), name="job")
    done = task(job, 0, TaskState.COMPLETE, on="a", desired_state=TaskState.COMPLETE, job_iteration=0)
    runs = task(job, 1, TaskState.RUNNING, on="a", desired_state=TaskState.COMPLETE, job_iteration=0)
    assert why("job", job, done, runs, node("a")).says == "1 of 4 completed, 1 running, at most 2 at once"
    assert why("job.0", job, done, runs, node("a")).says == "completed on a"


def test_a_service_without_tasks_says_where_one_could_go() -> None:
    none = service(ServiceMode(replicated=ReplicatedService(0)))
    assert why("web", none, node("a")).where == "only a can run it"


def test_an_unknown_name() -> None:
    with pytest.raises(NotFound, match="no service or task nosuch"):
        why("nosuch")
