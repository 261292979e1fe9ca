"""Addresses for containers outside of services: asked for by nodes, given by the loop, given back with the asking."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from overlace.manager.assignments import NodeAssignments
from overlace.manager.attachments import AttachmentDesk, plan_attachments, refusals
from overlace.manager.control.lookup import list_tasks
from overlace.manager.control.networks import _check_unused
from overlace.manager.loop import ManagerLoop
from overlace.manager.netviews import plan_view
from overlace.model.errors import FailedPrecondition
from overlace.model.netview import EndpointEntry
from overlace.model.objects import Cluster, Network, Node, NodeDescription, NodeStatus, Subnet, Task
from overlace.model.specs import NetworkSpec
from overlace.model.states import NodeState, TaskState
from overlace.store.base import Change, Delete, Put
from overlace.store.memory import MemoryStore
from overlace.wire.messages import Attachment, NotAttached

OPEN = Network(
    id="open",
    spec=NetworkSpec(name="shop", attachable=True),
    vni=4097,
    subnets=(Subnet("10.0.1.0/29", "10.0.1.1"),),
)
CLOSED = Network(
    id="shut", spec=NetworkSpec(name="closed"), vni=4098, subnets=(Subnet("10.0.2.0/24", "10.0.2.1"),)
)


def node(id: str) -> Node:
    about = NodeDescription(
        hostname=id, os="linux", architecture="x86_64", underlay_address=f"192.0.2.{id[-1]}"
    )
    return Node(id=id, description=about, status=NodeStatus(NodeState.READY))


async def a_store() -> MemoryStore:
    store = MemoryStore()
    things = (Cluster(id="c"), node("n1"), node("n2"), OPEN, CLOSED)
    await store.commit([Put(thing, 0) for thing in things])
    return store


def wanted(id: str = "a1", target: str = "shop", **more: Any) -> Attachment:
    return Attachment(id=id, container_id=f"{id}{id}", name=f"box-{id}", target=target, **more)


class Desk:
    """The desk, the loop and what nodes were told."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.told: list[tuple[str, dict[str, tuple[str, str]]]] = []
        self.desk = AttachmentDesk(store, self._send)
        self.loop = ManagerLoop(store)

    def _send(self, node_id: str, message: Any) -> bool:
        assert isinstance(message, NotAttached)
        self.told.append((node_id, message.refused))
        return True

    async def ask(self, node_id: str, *wishes: Attachment) -> dict[str, Task]:
        """Its attachments once all is decided."""
        self.desk.asked(node_id, wishes)
        await asyncio.gather(*self.desk._working.values())
        for _ in range(50):
            if not await self.loop.step():
                break
        return {t.id: t for t in self.store.view().tasks_of_node(node_id)}


async def test_a_node_gets_an_address_until_it_names_it_no_more() -> None:
    here = Desk(await a_store())
    [task] = (await here.ask("n1", wanted(aliases=("al",)))).values()
    assert task.status.state == TaskState.RUNNING and task.networks[0].addresses == ("10.0.1.2/29",)
    [entry] = [e for e in plan_view(here.store.view(), "n1") if isinstance(e, EndpointEntry)]
    assert (entry.task_id, entry.task_name, entry.aliases, entry.serving) == ("a1", "box-a1", ("al",), True)
    again = await here.ask("n1", wanted(aliases=("al",)))
    assert again["a1"].networks == task.networks, "asking twice gives the same"
    both = await here.ask("n1", wanted(aliases=("al",)), wanted("a2"))
    assert both["a2"].networks[0].addresses == ("10.0.1.4/29",), "one is the host's own"
    assert await here.ask("n1") == {}, "all given back"
    assert not here.told


async def test_it_runs_nothing_and_is_no_services_task() -> None:
    here = Desk(await a_store())
    await here.ask("n1", wanted())
    view = here.store.view()
    assert NodeAssignments("n1").complete(view).tasks == ()
    assert list_tasks(view, {}) == []
    network = view.get(Network, "open")
    assert network is not None
    with pytest.raises(FailedPrecondition, match="network open is in use by task a1"):
        _check_unused(view, network)


@pytest.mark.parametrize(
    ("wish", "code", "words"),
    [
        (wanted(target="nosuch"), "NotFound", "network nosuch not found"),
        (wanted(target="closed"), "PermissionDenied", "network closed not manually attachable"),
        (
            wanted(addresses=("10.9.9.9",)),
            "FailedPrecondition",
            "address 10.9.9.9 is in no subnet of network shop",
        ),
        (wanted(addresses=("10.0.1.1",)), "FailedPrecondition", "Address already in use"),
        (wanted(addresses=("x",)), "InvalidArgument", "invalid IP address: x"),
        (wanted(addresses=("fd00::5%eth0",)), "InvalidArgument", "invalid IP address: fd00::5%eth0"),
    ],
)
async def test_what_cannot_be_is_told(wish: Attachment, code: str, words: str) -> None:
    here = Desk(await a_store())
    tasks = await here.ask("n1", wish)
    here.desk.blocked("n1", tasks.values())  # as the dispatcher does when the loop has looked
    [(node_id, refused)] = here.told
    assert node_id == "n1" and refused["a1"][0] == code and refused["a1"][1].startswith(words)


async def test_a_host_without_ipv6_gets_ipv4_alone() -> None:
    store = await a_store()
    six = Network(
        id="six",
        spec=NetworkSpec(name="six", attachable=True, enable_ipv6=True),
        vni=4099,
        subnets=(Subnet("10.0.3.0/24", "10.0.3.1"), Subnet("fd00::/64", "fd00::1")),
    )
    about = NodeDescription(hostname="w", os="windows", architecture="x86_64", lacks={"ipv6": "HNS has none"})
    await store.commit([Put(six, 0), Put(msgspec.structs.replace(node("n3"), description=about), 0)])
    here = Desk(store)
    [task] = (await here.ask("n3", wanted(target="six"))).values()
    assert [a.split("/")[0] for a in task.networks[0].addresses] == ["10.0.3.2"]
    [task] = (await here.ask("n1", wanted("b1", target="six"))).values()
    assert len(task.networks[0].addresses) == 2
    await here.ask("n3", wanted("c1", target="six", addresses=("fd00::7",)))
    refused = refusals(here.store.view().tasks_of_node("n3"))
    assert refused["c1"][1] == "address fd00::7 cannot be had on this host: HNS has none; leave out --ip6"


async def test_an_address_asked_for_is_given_once() -> None:
    here = Desk(await a_store())
    [task] = (await here.ask("n1", wanted(addresses=("10.0.1.5",)))).values()
    assert task.networks[0].addresses == ("10.0.1.5/29",)
    tasks = await here.ask("n2", wanted("b1", addresses=("10.0.1.5",)))
    assert tasks["b1"].status.err == "Address already in use"
    await here.ask("n1")
    [task] = (await here.ask("n2", wanted("b1", addresses=("10.0.1.5",)))).values()
    assert task.networks[0].addresses == ("10.0.1.5/29",), "once it is free it is given"


async def test_a_full_network_says_so_and_goes_on_when_there_is_room() -> None:
    here = Desk(await a_store())
    wishes = [wanted(f"a{i}") for i in range(1, 7)]
    tasks = await here.ask("n1", *wishes)
    late = [t for t in tasks.values() if t.status.state == TaskState.NEW]
    assert late and all("no address left for container box-a" in t.status.err for t in late)
    tasks = await here.ask("n1", *(w for w in wishes if w.id == "a1" or w.id in {t.id for t in late[:1]}))
    assert all(t.status.state == TaskState.RUNNING for t in tasks.values())


async def test_a_node_touches_nobody_elses() -> None:
    here = Desk(await a_store())
    await here.ask("n1", wanted())
    tasks = await here.ask("n2", wanted())
    assert tasks == {} and here.told[0][1]["a1"][0] == "PermissionDenied"
    await here.ask("n2")
    assert here.store.view().get(Task, "a1") is not None


@pytest.mark.parametrize("id", ["", "../node/n1", "a/b", "A1", "a1\n", "a" * 26])
async def test_an_id_that_is_no_tasks_id_never_reaches_the_store(id: str) -> None:
    here = Desk(await a_store())
    tasks = await here.ask("n2", wanted(id), wanted("b1"))
    assert set(tasks) == {"b1"} and here.told[0][1][id][0] == "InvalidArgument"


async def test_one_named_twice_is_one() -> None:
    here = Desk(await a_store())
    tasks = await here.ask("n1", wanted(), wanted(aliases=("last",)))
    assert [t.networks[0].aliases for t in tasks.values()] == [("last",)]


async def test_an_address_asked_for_is_written_in_one_way() -> None:
    here = Desk(await a_store())
    both = Network(
        id="both",
        spec=NetworkSpec(name="both", attachable=True, enable_ipv6=True),
        vni=4099,
        subnets=(Subnet("10.0.3.0/24", "10.0.3.1"), Subnet("fd00:3::/64", "fd00:3::1")),
    )
    await here.store.commit([Put(both, 0)])
    [task] = (await here.ask("n1", wanted(target="both", addresses=("FD00:3:0::6",)))).values()
    assert task.networks[0].addresses[1] == "fd00:3::6/64"


async def test_what_a_removed_node_held_is_free() -> None:
    import msgspec

    here = Desk(await a_store())
    await here.ask("n1", wanted())
    old = here.store.view().get(Node, "n1")
    assert old is not None
    await here.store.commit([Put(msgspec.structs.replace(old, removed=True), old.version)])
    for _ in range(20):
        await here.loop.step()
    assert here.store.view().get(Task, "a1") is None


async def test_another_wish_under_the_same_id_replaces_it() -> None:
    here = Desk(await a_store())
    await here.ask("n1", wanted())
    [task] = (await here.ask("n1", wanted(aliases=("new",)))).values()
    assert task.networks[0].aliases == ("new",)


async def test_a_new_name_keeps_the_address() -> None:
    import msgspec

    here = Desk(await a_store())
    [before] = (await here.ask("n1", wanted())).values()
    [task] = (await here.ask("n1", msgspec.structs.replace(wanted(), name="renamed"))).values()
    assert (task.name, task.networks) == ("renamed", before.networks)


async def test_planning_is_at_rest_when_all_is_as_named() -> None:
    here = Desk(await a_store())
    await here.ask("n1", wanted())
    changes: list[Change]
    changes, refused = plan_attachments(here.store.view(), "n1", [wanted()], 1)
    assert not changes and not refused
    changes, _ = plan_attachments(here.store.view(), "n1", [], 1)
    assert [type(c) for c in changes] == [Delete]
