"""How things are found and filtered."""

from __future__ import annotations

import pytest
from control_kit import Kit, spec

from overlace.manager.control import (
    find,
    list_configs,
    list_networks,
    list_nodes,
    list_secrets,
    list_services,
    list_tasks,
)
from overlace.model.errors import InvalidArgument, NotFound
from overlace.model.objects import Config, Network, Node, NodeDescription, Secret, Service, Task
from overlace.model.specs import (
    ConfigSpec,
    GlobalService,
    NetworkSpec,
    NodeSpec,
    SecretSpec,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)
from overlace.model.states import TaskState
from overlace.store.base import Put, View
from overlace.store.memory import MemoryStore


@pytest.fixture
async def view() -> View:
    store = MemoryStore()
    about = NodeDescription(hostname="h1", os="linux", architecture="x86_64", engine_labels={"disk": "ssd"})
    await store.commit(
        [
            Put(Service(id="abc1", spec=ServiceSpec(name="web", labels={"tier": "front"}))),
            Put(
                Service(id="abc2", spec=ServiceSpec(name="abc1x", mode=ServiceMode(global_=GlobalService())))
            ),
            Put(Service(id="xyz", spec=ServiceSpec(name="web2"))),
            Put(Node(id="n1", description=about, spec=NodeSpec(labels={"zone": "a"}))),
            Put(Node(id="n2", description=about, spec=NodeSpec(role="manager"))),
            Put(Node(id="n3", description=NodeDescription(hostname="h3", os="linux", architecture="x86_64"))),
            Put(Node(id="gone", removed=True, description=about)),
            Put(
                Task(
                    id="t1",
                    name="web.1.t1",
                    service_id="abc1",
                    service_name="web",
                    slot=1,
                    node_id="n1",
                    spec=TaskSpec(),
                    service_labels={"tier": "front"},
                )
            ),
            Put(
                Task(
                    id="t2",
                    name="web.2.t2",
                    service_id="abc1",
                    slot=2,
                    node_id="n3",
                    spec=TaskSpec(force_update=1),
                    spec_version=9,
                    desired_state=TaskState.SHUTDOWN,
                )
            ),
            Put(Task(id="t3", name="web2.1.t3", service_id="xyz", slot=1, spec=TaskSpec())),
            Put(Secret(id="s1", spec=SecretSpec(name="db", labels={"a": "b"}))),
            Put(Secret(id="s2", spec=SecretSpec(name="db2"))),
            Put(Config(id="c1", spec=ConfigSpec(name="cfg"))),
            Put(Network(id="net1", spec=NetworkSpec(name="front", labels={"a": "b"}))),
            Put(Network(id="net2", spec=NetworkSpec(name="back"))),
        ]
    )
    return store.view()


def test_id_then_name_then_prefix(view: View) -> None:
    assert find(view, Service, "abc1").id == "abc1"
    assert find(view, Service, "abc1x").id == "abc2"
    assert find(view, Service, "WEB").id == "abc1"
    assert find(view, Service, "xy").id == "xyz"
    with pytest.raises(InvalidArgument, match=r"^service abc is ambiguous \(2 matches found\)$"):
        find(view, Service, "abc")
    with pytest.raises(NotFound, match=r"^service nosuch not found$"):
        find(view, Service, "nosuch")
    with pytest.raises(NotFound):
        find(view, Service, "")


def test_nodes_by_hostname(view: View) -> None:
    assert find(view, Node, "h3").id == "n3"
    with pytest.raises(InvalidArgument, match=r"^node h1 is ambiguous \(2 matches found\)$"):
        find(view, Node, "h1")
    for ref in ("gone", "gon"):
        with pytest.raises(NotFound):
            find(view, Node, ref)


def test_tasks_by_name(view: View) -> None:
    assert find(view, Task, "web.2.t2").id == "t2"
    with pytest.raises(NotFound):
        find(view, Task, "other.2.t2")


@pytest.mark.parametrize(
    "filters,expected",
    [
        ({}, ["abc2", "abc1", "xyz"]),
        ({"id": ["abc"]}, ["abc2", "abc1"]),
        ({"name": ["web"]}, ["abc1", "xyz"]),
        ({"id": ["abc"], "name": ["web"]}, ["abc1"]),
        ({"label": ["tier"]}, ["abc1"]),
        ({"label": ["tier=front"]}, ["abc1"]),
        ({"label": ["tier=back"]}, []),
        ({"mode": ["global"]}, ["abc2"]),
        ({"mode": ["global", "replicated"]}, ["abc2", "abc1", "xyz"]),
        ({"runtime": ["plugin"]}, []),
    ],
)
def test_services(view: View, filters: dict[str, list[str]], expected: list[str]) -> None:
    assert [s.id for s in list_services(view, filters)] == expected


@pytest.mark.parametrize(
    "filters,expected",
    [
        ({}, {"t1", "t2", "t3"}),
        ({"service": ["web"]}, {"t1", "t2"}),
        ({"service": ["web", "web2"]}, {"t1", "t2", "t3"}),
        ({"service": ["web"], "node": ["h3"]}, {"t2"}),
        ({"node": ["n1"]}, {"t1"}),
        ({"desired-state": ["running"]}, {"t1", "t3"}),
        ({"desired-state": ["running", "shutdown"]}, {"t1", "t2", "t3"}),
        ({"label": ["tier=front"]}, {"t1"}),
        ({"name": ["web.1"]}, {"t1"}),
        ({"id": ["t3"]}, {"t3"}),
        ({"_up-to-date": ["true"]}, {"t1", "t3"}),
        ({"_up-to-date": ["false"]}, {"t2"}),
    ],
)
def test_tasks(view: View, filters: dict[str, list[str]], expected: set[str]) -> None:
    assert {t.id for t in list_tasks(view, filters)} == expected


def test_a_filter_by_an_unknown_service_is_not_found(view: View) -> None:
    with pytest.raises(NotFound, match=r"^service nosuch not found$"):
        list_tasks(view, {"service": ["nosuch"]})


@pytest.mark.parametrize(
    "filters,expected",
    [
        ({}, ["n1", "n2", "n3"]),
        ({"role": ["manager"]}, ["n2"]),
        ({"label": ["disk=ssd"]}, ["n1", "n2"]),
        ({"node.label": ["zone=a"]}, ["n1"]),
        ({"membership": ["accepted"]}, ["n1", "n2", "n3"]),
        ({"membership": ["pending"]}, []),
        ({"name": ["h3"]}, ["n3"]),
    ],
)
def test_nodes(view: View, filters: dict[str, list[str]], expected: list[str]) -> None:
    assert [n.id for n in list_nodes(view, filters)] == expected


def test_secrets_configs_networks(view: View) -> None:
    assert [s.id for s in list_secrets(view, {"name": ["db"]})] == ["s1", "s2"]
    assert [s.id for s in list_secrets(view, {"names": ["db"]})] == ["s1"]
    assert [c.id for c in list_configs(view, {"name": ["cfg"]})] == ["c1"]
    assert [n.id for n in list_networks(view, {"name": ["ron"]})] == ["net1"]
    assert [n.id for n in list_networks(view, {"scope": ["local"]})] == []
    assert [n.id for n in list_networks(view, {"type": ["custom"], "label": ["a"]})] == ["net1"]


async def test_dangling_networks() -> None:
    kit = Kit()
    used, _ = await kit.control.create_network(NetworkSpec(name="used"))
    free, _ = await kit.control.create_network(NetworkSpec(name="free"))
    await kit.control.create_service(spec(template={"Networks": [{"Target": "used"}]}))
    view = kit.store.view()
    assert [n.id for n in list_networks(view, {"dangling": ["true"]})] == [free]
    assert [n.id for n in list_networks(view, {"dangling": ["false"]})] == [used]


@pytest.mark.parametrize(
    "list_function", [list_services, list_tasks, list_nodes, list_secrets, list_configs, list_networks]
)
def test_unknown_filters(view: View, list_function: object) -> None:
    with pytest.raises(InvalidArgument, match=r"^invalid filter 'foo'$"):
        list_function(view, {"foo": ["x"]})  # type: ignore[operator]


@pytest.mark.parametrize(
    "call,text",
    [
        (lambda v: list_nodes(v, {"role": ["king"]}), "Invalid role filter: 'king'"),
        (lambda v: list_tasks(v, {"desired-state": ["asleep"]}), "invalid desired-state filter: 'asleep'"),
        (lambda v: list_networks(v, {"dangling": ["maybe"]}), "dangling=maybe"),
        (lambda v: list_networks(v, {"type": ["odd"]}), "invalid filter: 'type'='odd'"),
    ],
)
def test_unknown_filter_values(view: View, call: object, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        call(view)  # type: ignore[operator]
