"""What some hosts' networks cannot do: no task goes there that needs it, people hear why, and what nobody can do is
refused when it is asked for."""

from __future__ import annotations

import msgspec
import pytest
from control_kit import Kit, spec, words

from overlace.api.convert.node import description
from overlace.manager.netviews import node_entry
from overlace.manager.orchestrate.global_ import plan_slots
from overlace.manager.orchestrate.work import Work
from overlace.manager.schedule.explain import Look, explain_look
from overlace.manager.schedule.occupancy import Occupancy
from overlace.manager.schedule.place import plan_placement
from overlace.manager.schedule.remedy import Remedy, explain_remedies
from overlace.model.capabilities import explain_clients, needed_by
from overlace.model.errors import InvalidArgument
from overlace.model.objects import (
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
from overlace.model.specs import ContainerSpec, NetworkSpec, TaskSpec
from overlace.model.states import NodeState, TaskState
from overlace.network.hns.versions import LATEST, NO_WAY_BACK, lacks
from overlace.store.base import Put
from overlace.store.memory import State
from overlace.wire.messages import Hello

replace = msgspec.structs.replace
AFFINITY = {"overlace.session-affinity": "client-ip"}
ON_BACK = (NetworkAttachment("back", ("10.0.1.5/24",)),)
ON_SIX = (NetworkAttachment("six", ("10.0.1.5/24", "fd00::5/64")),)


def host(name: str, *, os: str = "linux", version: tuple[int, int] | None = None) -> Node:
    about = NodeDescription(
        hostname=name, os=os, architecture="x86_64", lacks=lacks(version) if version is not None else {}
    )
    return Node(id=name, description=about, status=NodeStatus(NodeState.READY))


def task(networks: tuple[NetworkAttachment, ...] = (), **labels: str) -> Task:
    return Task(
        id="t1",
        service_id="web",
        slot=1,
        networks=networks,
        service_labels=labels,
        spec=TaskSpec(container_spec=ContainerSpec(image="app")),
        status=TaskStatus(TaskState.PENDING),
    )


def placed(nodes: list[Node], one: Task) -> tuple[str, str]:
    """Where it goes, and what is said."""
    changes = [c.object for c in plan_placement(nodes, Occupancy(), [one], 1) if isinstance(c, Put)]
    (found,) = [c for c in changes if isinstance(c, Task)]
    return found.node_id, found.status.err


OLD, OLDER, NEW, LINUX = (
    host("w1", version=(11, 0)),
    host("w0", version=(7, 2)),
    host("w2", version=LATEST),
    host("l1"),
)


@pytest.mark.parametrize(
    ("one", "nodes", "where"),
    [
        (task(ON_BACK), [OLD], "w1"),
        (task(ON_BACK), [OLDER], ""),
        (task(), [OLDER], "w0"),
        (task(ON_BACK, **AFFINITY), [OLD], ""),
        (task(ON_BACK, **AFFINITY), [OLD, NEW], "w2"),
        (task(ON_BACK, **{"overlace.session-affinity": "none"}), [OLD], "w1"),
        (task(ON_SIX), [NEW], "w2"),  # with IPv4 alone
    ],
)
def test_a_task_goes_where_its_network_can_be(one: Task, nodes: list[Node], where: str) -> None:
    found, said = placed(nodes, one)
    assert found == where
    if not where:
        assert said.startswith("no suitable node (missing network capability on")


@pytest.mark.parametrize("preassigned", [False, True])
def test_a_task_keeps_the_addresses_its_node_can_use(preassigned: bool) -> None:
    for node, addresses in ((NEW, ("10.0.1.5/24",)), (LINUX, ("10.0.1.5/24", "fd00::5/64"))):
        one = msgspec.structs.replace(task(ON_SIX), node_id=node.id if preassigned else "")
        [change] = plan_placement([node], Occupancy(), [one], 1)
        assert isinstance(change, Put) and isinstance(change.object, Task)
        assert [a.addresses for a in change.object.networks] == [addresses]


def test_people_hear_what_the_node_lacks() -> None:
    one = task(ON_BACK, **AFFINITY)
    state = State()
    state.load([OLD, one])
    told = {v.filter: v for v in explain_look(Look.at(state.view(), one), 0)}["capability"]
    assert told.sentence == "missing network capability on 1 node"
    assert told.nodes[0].detail == (
        "the task needs session affinity: HNS 11.0 keeps no client with its task; that came with HNS 12.0"
    )


def test_windows_says_what_it_lacks_by_version() -> None:
    assert set(lacks(LATEST)) == {"ipv6"}
    assert set(lacks((11, 0))) == {"ipv6", "session-affinity"}
    assert set(lacks((9, 2))) == {"ipv6", "session-affinity", "direct-return"}
    assert set(lacks((7, 2))) == {"ipv6", "session-affinity", "direct-return", "overlay"}
    assert "routing mesh" in lacks((7, 2))["overlay"] and "2019" in lacks((7, 2))["overlay"]
    assert needed_by(task(ON_SIX, **AFFINITY)) == ("overlay", "session-affinity")


async def test_people_hear_whose_tasks_do_not_see_their_clients() -> None:
    assert LINUX.description is not None
    blind = replace(LINUX, id="w", description=replace(LINUX.description, hostname="w", lacks=NO_WAY_BACK))
    assert explain_clients([LINUX]) == ""
    assert explain_clients([LINUX, blind]).startswith(
        "w: HNS, on every Windows, brings answers to clients outside back"
    )
    entry, seeing = node_entry(blind), node_entry(LINUX)
    assert entry is not None and entry.sees_clients is False
    assert seeing is not None and seeing.sees_clients is msgspec.UNSET
    shown = description(blind.description, "")["Engine"]["Labels"]  # type: ignore[arg-type]
    assert shown["com.overlace.lacks.client-address"] == NO_WAY_BACK["client-address"]


def test_it_travels_and_docker_clients_see_what_they_know() -> None:
    assert OLD.description is not None
    hello = Hello(OLD.description)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(hello), type=Hello) == hello
    assert LINUX.description is not None
    assert description(OLD.description, "").keys() == description(LINUX.description, "").keys()


async def put(kit: Kit, *nodes: Node) -> None:
    asked = NetworkSpec(name="six", enable_ipv6=True)
    six = Network(id="six", spec=asked, vni=4099, subnets=(Subnet("fd00::/64", "fd00::1"),))
    await kit.store.commit([Put(n) for n in nodes] + [Put(six)])


async def test_what_no_node_can_do_is_refused_when_it_is_asked_for() -> None:
    kit = Kit()
    await put(kit, OLD)
    with pytest.raises(InvalidArgument) as refused:
        await kit.control.create_service(spec(Labels=AFFINITY))
    assert words(refused.value).endswith(
        "service web: no node that could run it has session affinity: on w1, HNS 11.0 keeps no client with its task; "
        "that came with HNS 12.0; drop the label overlace.session-affinity, or place it on other nodes with a "
        "constraint such as node.platform.os==linux"
    )
    id, _ = await kit.control.create_service(spec())
    held = kit.service(id)
    labelled = msgspec.structs.replace(held.spec, labels=AFFINITY)
    with pytest.raises(InvalidArgument, match="session affinity"):
        await kit.control.update_service(id, held.version, labelled)
    await put(kit, NEW)  # one that can is enough
    await kit.control.update_service(id, held.version, labelled)


async def test_a_service_that_gets_no_ipv6_anywhere_is_told() -> None:
    kit = Kit()
    await put(kit, OLD, NEW)
    on_six = {"Networks": [{"Target": "six"}]}
    _, warnings = await kit.control.create_service(spec(template=on_six))
    assert warnings == [
        "service web: its tasks get IPv4 addresses only: HNS, on every Windows, carries IPv4 alone on overlay networks"
    ]
    await put(kit, LINUX)
    assert (await kit.control.create_service(spec(Name="other", template=on_six)))[1] == []


def test_a_global_service_has_no_task_where_the_network_cannot_be() -> None:
    state = State()
    asked = spec(Labels=AFFINITY, Mode={"Global": {}})
    service = Service(id="web", spec=asked, spec_version=1)
    state.load([OLD, NEW, LINUX, service])
    work = Work(state.view(), service, 1, lambda: "new")
    wanted, _ = plan_slots(work)
    assert [slot.key for slot in wanted] == ["l1", "w2"]


def test_people_hear_what_node_would_do() -> None:
    one = task(ON_BACK, **AFFINITY)
    state = State()
    state.load([OLD, one])
    assert explain_remedies(state.view(), Look.at(state.view(), one)) == [
        Remedy(("add a node, with session affinity",))
    ]


async def test_nodes_that_could_not_run_it_anyhow_do_not_count() -> None:
    kit = Kit()
    await put(kit, OLD, LINUX)
    constrained = {"Placement": {"Constraints": ["node.id==w1"]}}
    with pytest.raises(InvalidArgument, match="on w1"):
        await kit.control.create_service(spec(Labels=AFFINITY, template=constrained))
    await kit.control.create_service(spec(Labels=AFFINITY))
    nowhere = {"Placement": {"Constraints": ["node.id==w9"]}}  # it may come: docker takes that, too
    await kit.control.create_service(spec(Name="later", Labels=AFFINITY, template=nowhere))
