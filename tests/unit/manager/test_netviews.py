"""A node hears of exactly the networks it takes part in, and deltas never drift from the whole."""

from __future__ import annotations

import random

import msgspec
import pytest

from overlace.manager.netviews import NetViews, plan_view, service_entries
from overlace.model.netview import EndpointEntry, NetDelta, NetView, NodeEntry, ServiceEntry
from overlace.model.objects import (
    Endpoint,
    Network,
    NetworkAttachment,
    Node,
    NodeDescription,
    Object,
    Service,
    Subnet,
    Task,
    TaskStatus,
    VirtualIP,
)
from overlace.model.specs import (
    EndpointSpec,
    NetworkAttachmentConfig,
    NetworkSpec,
    PortConfig,
    ServiceSpec,
    TaskSpec,
)
from overlace.model.states import TaskState
from overlace.store.base import Change, Delete, Put
from overlace.store.memory import MemoryStore

replace = msgspec.structs.replace


def network(id: str, n: int, ingress: bool = False, vni: int | None = None) -> Network:
    return Network(
        id=id,
        spec=NetworkSpec(name=id, ingress=ingress),
        vni=4096 + n if vni is None else vni,
        subnets=(Subnet(f"10.0.{n}.0/24", f"10.0.{n}.1"),),
    )


def node(id: str, address: str = "172.28.0.11", **more: object) -> Node:
    d = NodeDescription(hostname=f"h-{id}", os="linux", architecture="x86_64", underlay_address=address)
    return Node(id=id, description=d, **more)  # type: ignore[arg-type]


def task(
    id: str,
    node_id: str,
    networks: dict[str, str],
    state: TaskState = TaskState.RUNNING,
    desired: TaskState = TaskState.RUNNING,
    service: str = "web",
) -> Task:
    return Task(
        id=id,
        service_id=service,
        service_name=service,
        node_id=node_id,
        spec=TaskSpec(),
        name=f"{service}.1.{id}",
        desired_state=desired,
        status=TaskStatus(state=state),
        networks=tuple(NetworkAttachment(n, (f"{a}/24",), ("alias",)) for n, a in networks.items()),
    )


class Cluster:
    """A store, the index over it, and what each connected node holds after applying what it was sent."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.views = NetViews()
        self.agents: dict[str, NetView] = {}
        self.sent: dict[str, NetDelta] = {}
        self._at = 0

    async def put(self, *objects: Object) -> dict[str, NetDelta]:
        return await self.commit(*(Put(o) for o in objects))

    async def commit(self, *changes: Change) -> dict[str, NetDelta]:
        watch = self.store.watch()
        await self.store.commit(changes)
        dirty: dict[str, set[str]] = {}
        for batch in watch.drain():
            for event in batch.events:
                dirty.setdefault(event.kind, set()).add(event.id)
        self.sent = self.views.refresh(self.store.view(), dirty)
        for node_id, delta in self.sent.items():
            self.agents[node_id].apply(delta)
        return self.sent

    def connect(self, node_id: str) -> NetView:
        view = self.agents[node_id] = NetView()
        view.apply(self.views.complete(node_id))
        return view

    def check(self) -> None:
        for node_id, held in self.agents.items():
            wanted = NetView(plan_view(self.store.view(), node_id))
            assert {e.key: e for e in held} == {e.key: e for e in wanted}, node_id
            assert held.checksum == wanted.checksum


async def test_a_node_sees_peers_of_its_networks_only() -> None:
    c = Cluster()
    await c.put(network("front", 1), network("back", 2), node("a"), node("b"), node("c"))
    await c.put(
        task("t1", "a", {"front": "10.0.1.2"}),
        task("t2", "b", {"front": "10.0.1.3", "back": "10.0.2.3"}),
        task("t3", "c", {"back": "10.0.2.4"}),
    )
    a = c.connect("a")
    assert {n.id for n in a.of(NodeEntry)} == {"a", "b"}
    assert {e.task_id for e in a.endpoints("front")} == {"t1", "t2"}
    assert not list(a.endpoints("back")) and a.network("back") is None
    assert a.node("b") is not None
    c.connect("b")
    c.check()


async def test_a_change_reaches_only_the_nodes_of_its_network() -> None:
    c = Cluster()
    await c.put(network("front", 1), network("back", 2), node("a"), node("b"))
    one = task("t1", "a", {"front": "10.0.1.2"})
    await c.put(one, task("t2", "b", {"back": "10.0.2.3"}))
    c.connect("a")
    c.connect("b")
    sent = await c.put(replace(one, status=TaskStatus(state=TaskState.FAILED)))
    assert set(sent) == {"a"}
    assert sent["a"].put == () and "endpoint/front/t1" in sent["a"].remove
    c.check()


async def test_a_delta_is_as_small_as_the_change() -> None:
    c = Cluster()
    await c.put(network("front", 1), node("a"), node("b"))
    tasks = [task(f"t{i}", "ab"[i % 2], {"front": f"10.0.1.{i + 2}"}) for i in range(100)]
    await c.put(*tasks)
    c.connect("a")
    sent = await c.put(replace(tasks[5], desired_state=TaskState.SHUTDOWN))
    (entry,) = sent["a"].put
    assert isinstance(entry, EndpointEntry) and entry.task_id == "t5" and not entry.serving
    assert sent["a"].remove == ()
    # what a network does not show is not worth a message
    assert await c.put(replace(tasks[6], version=0, not_before=7)) == {}
    assert await c.put(replace(node("b"), certificate_serial="2")) == {}


@pytest.mark.parametrize(
    ("state", "desired", "serving"),
    [
        (TaskState.RUNNING, TaskState.RUNNING, True),
        (TaskState.RUNNING, TaskState.COMPLETE, True),  # a job
        (TaskState.RUNNING, TaskState.SHUTDOWN, False),
        (TaskState.RUNNING, TaskState.REMOVE, False),
        (TaskState.STARTING, TaskState.RUNNING, False),
        (TaskState.READY, TaskState.READY, False),
    ],
)
async def test_serving_is_running_and_wanted(state: TaskState, desired: TaskState, serving: bool) -> None:
    c = Cluster()
    await c.put(network("front", 1), node("a"), task("t1", "a", {"front": "10.0.1.2"}, state, desired))
    (entry,) = c.connect("a").endpoints("front")
    assert entry.serving is serving
    assert (entry.address, entry.mac, entry.aliases) == ("10.0.1.2", "02:42:0a:00:01:02", ("alias",))


async def test_every_node_takes_part_in_the_ingress_network_and_only_its_entry_has_ports() -> None:
    c = Cluster()
    port = PortConfig(target_port=80, published_port=8080)
    web = Service(
        id="web",
        spec=ServiceSpec(
            name="web",
            task_template=TaskSpec(networks=[NetworkAttachmentConfig(target="front", aliases=["www"])]),
        ),
        endpoint=Endpoint(
            ports=(port, PortConfig(target_port=81, published_port=81, publish_mode="host")),
            virtual_ips=(VirtualIP("ing", "10.0.0.2/24"), VirtualIP("front", "10.0.1.2/24")),
        ),
    )
    await c.put(web, node("a"), node("b", network_addresses={"ing": "10.0.0.9/24"}))
    a = c.connect("a")
    assert list(a.of(ServiceEntry)) == []
    await c.put(
        network("ing", 0, ingress=True), network("front", 1)
    )  # after the service: ports are found again
    (entry,) = a.services("ing")
    assert entry.ports == (port,) and entry.vip == "10.0.0.2"
    b = a.node("b")
    assert b is not None and b.addresses == {"ing": "10.0.0.9/24"}
    await c.put(task("t1", "a", {"front": "10.0.1.3", "ing": "10.0.0.3"}))
    (front,) = a.services("front")
    assert front.ports == () and front.aliases == ("www",) and front.vip == "10.0.1.2"
    await c.put(replace(node("b"), removed=True))
    assert a.node("b") is None
    await c.commit(Delete("network", "ing"))
    assert a.network("ing") is None and not list(a.services("ing"))
    c.check()


def test_dnsrr_services_have_no_vip_on_any_of_their_networks() -> None:
    service = Service(
        id="s",
        spec=ServiceSpec(
            name="s",
            task_template=TaskSpec(networks=[NetworkAttachmentConfig(target="n", aliases=["x"])]),
            endpoint_spec=EndpointSpec(mode="dnsrr"),
        ),
    )
    assert service_entries(service, set()) == [ServiceEntry("s", "n", "s", "", ("x",), ())]
    vip = replace(service, spec=replace(service.spec, endpoint_spec=EndpointSpec(mode="vip")))
    assert service_entries(vip, set()) == []  # not allocated yet: no answer is better than a wrong one


async def test_a_network_not_allocated_yet_is_shown_to_nobody() -> None:
    c = Cluster()
    await c.put(node("a"), network("n", 1, vni=0), task("t", "a", {"n": "10.0.1.2"}))
    a = c.connect("a")
    assert a.network("n") is None and not list(a.endpoints("n"))
    await c.put(network("n", 1))
    assert a.network("n") is not None and [e.task_id for e in a.endpoints("n")] == ["t"]
    c.check()


async def test_a_view_the_agent_lost_is_replaced_whole() -> None:
    c = Cluster()
    await c.put(network("n", 1), node("a"), task("t", "a", {"n": "10.0.1.2"}))
    held = c.connect("a")
    held.remove("endpoint/n/t")  # damage
    with pytest.raises(ValueError, match="checksum"):
        await c.put(task("t2", "a", {"n": "10.0.1.3"}))
    c.connect("a")
    c.check()


@pytest.mark.parametrize("seed", range(60))
async def test_deltas_agree_with_computing_from_scratch(seed: int) -> None:
    """Random histories: tasks move and die, networks and nodes come and go, in commits of several changes."""
    rng = random.Random(seed)
    c = Cluster()
    nodes = [f"n{i}" for i in range(rng.choice((2, 5)))]
    networks = {f"net{i}": i for i in range(4)}  # net0 is ingress
    for _ in range(120):
        changes: dict[tuple[str, str], Change] = {}
        for _ in range(rng.choice((1, 1, 2, 8))):
            change = _random_change(rng, nodes, networks)
            key = (
                (change.object.kind, change.object.id)
                if isinstance(change, Put)
                else (change.kind, change.id)
            )
            changes[key] = change
        await c.commit(*changes.values())
        if rng.random() < 0.1:
            c.connect(rng.choice(nodes))
        if rng.random() < 0.05 and c.agents:
            gone = rng.choice(sorted(c.agents))
            c.views.forget(gone)
            del c.agents[gone]
        if rng.random() < 0.02:
            c.views.rebuild(c.store.view())
            for node_id in list(c.agents):
                c.connect(node_id)
        c.check()
    assert c.views._groups.keys() <= {n.id for n in c.store.view().all(Network)} | {
        a.network_id for t in c.store.view().all(Task) for a in t.networks
    } | {v.network_id for s in c.store.view().all(Service) if s.endpoint for v in s.endpoint.virtual_ips}


def _random_change(rng: random.Random, nodes: list[str], networks: dict[str, int]) -> Change:
    kind = rng.choices(("task", "service", "node", "network"), (8, 3, 1, 1))[0]
    if kind == "task":
        id = f"t{rng.randrange(12)}"
        if rng.random() < 0.15:
            return Delete("task", id)
        on = rng.sample(sorted(networks), rng.randrange(3))
        state = rng.choice(list(TaskState))
        return Put(
            task(
                id,
                rng.choice([*nodes, ""]),
                {n: f"10.0.{networks[n]}.{rng.randrange(2, 5)}" for n in on},
                rng.choice((TaskState.RUNNING, state)),
                rng.choice((TaskState.RUNNING, TaskState.SHUTDOWN)),
            )
        )
    if kind == "service":
        id = f"s{rng.randrange(4)}"
        if rng.random() < 0.2:
            return Delete("service", id)
        on = rng.sample(sorted(networks), rng.randrange(1, 3))
        mode = rng.choice(("vip", "dnsrr"))
        return Put(
            Service(
                id=id,
                spec=ServiceSpec(
                    name=id, task_template=TaskSpec(networks=[NetworkAttachmentConfig(target=n) for n in on])
                ),
                endpoint=Endpoint(
                    spec=EndpointSpec(mode=mode),
                    ports=(PortConfig(target_port=80, published_port=8000 + rng.randrange(3)),),
                    virtual_ips=tuple(
                        VirtualIP(n, f"10.0.{networks[n]}.{rng.randrange(9, 12)}/24")
                        for n in on
                        if mode == "vip"
                    ),
                ),
            )
        )
    if kind == "node":
        id = rng.choice(nodes)
        if rng.random() < 0.2:
            return Delete("node", id)
        if rng.random() < 0.2:
            return Put(Node(id=id))
        return Put(
            node(
                id,
                f"172.28.0.{rng.randrange(11, 14)}",
                removed=rng.random() < 0.2,
                network_addresses={"net0": f"10.0.0.{rng.randrange(200, 203)}/24"},
            )
        )
    id = rng.choice(sorted(networks))
    if rng.random() < 0.3:
        return Delete("network", id)
    return Put(
        network(id, networks[id], ingress=id == "net0", vni=rng.choice((0, 4096 + networks[id], 5000)))
    )
