"""A trace names every hop of a packet, and where the way is broken it names the hop and what to do."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from overlace.manager.trace import Question, Trace, explain_trace
from overlace.model.errors import InvalidArgument, NotFound
from overlace.model.objects import (
    ContainerStatus,
    Endpoint,
    Network,
    NetworkAttachment,
    Node,
    NodeDescription,
    NodeStatus,
    Object,
    Service,
    Subnet,
    Task,
    TaskStatus,
    VirtualIP,
)
from overlace.model.specs import (
    EndpointSpec,
    GlobalService,
    NetworkAttachmentConfig,
    NetworkSpec,
    PortConfig,
    ReplicatedService,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)
from overlace.model.states import NodeState, TaskState
from overlace.network.hns.versions import NO_WAY_BACK
from overlace.store.base import Put
from overlace.store.memory import MemoryStore

replace = msgspec.structs.replace
THIRD = {"ingress": 0, "back": 1, "other": 2, "closed": 3}
HOSTS = {"one": "172.28.0.11", "two": "172.28.0.12", "win": "172.28.0.13"}


class Swarm:
    """A shop: web (two tasks, published at 8080) on `back`, order on the Windows host, db on one."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        self._last = itertools.count(20)
        for name, n in THIRD.items():
            spec = NetworkSpec(name=name, ingress=name == "ingress", internal=name == "closed")
            subnet = Subnet(f"10.0.{n}.0/24", f"10.0.{n}.1")
            self.put(Network(id=name, spec=spec, vni=4096 + n, subnets=(subnet,)))
        for i, (name, address) in enumerate(HOSTS.items()):
            d = NodeDescription(
                hostname=name,
                os="windows" if name == "win" else "linux",
                architecture="x86_64",
                underlay_address=address,
                emulated=name == "win",
                mtu=1500 if name != "two" else 1400,
            )
            addresses = {net: f"10.0.{n}.{i + 2}/24" for net, n in THIRD.items()}
            status = NodeStatus(state=NodeState.READY)
            self.put(Node(id=name, description=d, status=status, network_addresses=addresses))
        self.service("web", {"ingress": 5, "back": 5}, PortConfig(target_port=80, published_port=8080))
        self.service("order", {"back": 6})
        self.service("db", {"back": 7, "closed": 7})
        self.task("web", 1, "one", "ingress", "back")
        self.task("web", 2, "two", "ingress", "back")
        self.task("order", 1, "win", "back")
        self.task("db", 1, "one", "back", "closed")

    def put(self, thing: Object) -> None:
        self.objects[(thing.kind, thing.id)] = thing

    def service(self, name: str, vips: dict[str, int], *ports: PortConfig, mode: str = "vip") -> None:
        networks = [NetworkAttachmentConfig(target=n) for n in vips if n != "ingress"]
        spec = ServiceSpec(name=name, task_template=TaskSpec(networks=networks))
        held = tuple(VirtualIP(n, f"10.0.{THIRD[n]}.{last}/24") for n, last in vips.items() if mode == "vip")
        endpoint = Endpoint(spec=EndpointSpec(mode=mode), ports=ports, virtual_ips=held)
        self.put(Service(id=f"id-{name}", spec=spec, endpoint=endpoint))

    def task(self, service: str, slot: int, where: str, *networks: str, **status: object) -> Task:
        last = next(self._last)
        id = f"{service}{slot}task"
        made = Task(
            id=id,
            service_id=f"id-{service}",
            service_name=service,
            slot=slot,
            node_id=where,
            spec=TaskSpec(),
            name=f"{service}.{slot}.{id}",
            status=TaskStatus(
                **{"state": TaskState.RUNNING, "container": ContainerStatus(f"c0ffee{id}"), **status}  # type: ignore[arg-type]
            ),
            networks=tuple(NetworkAttachment(n, (f"10.0.{THIRD[n]}.{last}/24",)) for n in networks),
        )
        self.put(made)
        return made

    def change(self, kind: type, id: str, **fields: object) -> None:
        self.put(replace(self.objects[(kind.kind, id)], **fields))  # type: ignore[attr-defined]

    async def trace(self, source: str, target: str, **more: object) -> Trace:
        store = MemoryStore()
        await store.commit([Put(o) for o in self.objects.values()])
        question = Question(source=source, target=target, **more)  # type: ignore[arg-type]
        return explain_trace(store.view(), question)


@pytest.fixture
def swarm() -> Swarm:
    return Swarm()


def broken(t: Trace) -> tuple[str, str, str]:
    """(where, reason, remedy); what is shown agrees with it."""
    assert t.broken is not None and t.broken.reason in t.outcome
    if t.hops:
        assert [h.ok for h in t.hops].count(False) <= 1 and all(h.ok for h in t.hops[:-1])
    return t.broken.where, t.broken.reason, t.broken.remedy


async def test_every_hop_to_a_windows_host_is_named(swarm: Swarm) -> None:
    t = await swarm.trace("web.1", "order")
    assert t.broken is None and t.outcome == "reaches order.1.order1task on win"
    assert [h.kind for h in t.hops] == [
        "start", "rule", "rule", "rule", "encap", "underlay", "decap", "rule", "rule", "end",
    ]  # fmt: skip
    assert t.question == "10.0.1.20:40000 > 10.0.1.6:80 tcp"
    balanced = next(h for h in t.hops if "LB_order" in h.what)
    assert balanced.packet == "10.0.1.20:40000 > 10.0.1.22:80 tcp" and balanced.where == "one"
    (outer,) = (h for h in t.hops if h.kind == "encap")
    assert "172.28.0.11 > 172.28.0.13 UDP 4789, VNI 4097" in outer.effect
    assert {h.where for h in t.hops} == {"one", "underlay", "win"}
    assert "win is an emulated Windows host" in t.notes
    assert t.hops[-1].what == "container of order.1.order1task"


async def test_the_mtu_is_that_of_both_ends(swarm: Swarm) -> None:
    t = await swarm.trace("web.1", "web.2")
    (under,) = (h for h in t.hops if h.kind == "underlay")
    assert "up to 1350 bytes" in under.effect and "MTU 1400" in under.effect


async def test_tasks_are_named_in_many_ways(swarm: Swarm) -> None:
    for name in ("order.1", "order.1.order1task", "order1task", "c0ffeeorder", "10.0.1.22", "order"):
        t = await swarm.trace("db", name)
        assert t.broken is None and t.outcome.startswith("reaches order.1"), name
    assert (await swarm.trace("10.0.1.20", "order")).source == "task web.1.web1task on one"
    swarm.service("shop_cart", {"back": 11})
    swarm.task("shop_cart", 1, "two", "back")
    for name in ("cart", "cart.1"):  # the stack's name may be left out
        assert (await swarm.trace("web.1", name)).outcome.startswith("reaches shop_cart.1")
    with pytest.raises(NotFound, match="TO 'nobody' is no task, service, node or address"):
        await swarm.trace("web", "nobody")
    with pytest.raises(InvalidArgument, match="ambiguous"):
        await swarm.trace("c0ffeeweb", "order")
    with pytest.raises(InvalidArgument, match="use icmp, tcp, udp, sctp"):
        await swarm.trace("web", "order", protocol="http")


async def test_all_backends_are_looked_at(swarm: Swarm) -> None:
    t = await swarm.trace("order", "web")
    assert [(m.node, m.ok) for m in t.members] == [("one", True), ("two", True)]
    assert t.outcome.endswith("; all 2 backends can be reached")


async def test_a_client_outside(swarm: Swarm) -> None:
    t = await swarm.trace("client", "web", via="win")
    assert t.broken is None and t.hops[0].where == "win" and "LB_HOST_web_8080" in t.hops[0].what
    assert t.question.endswith("172.28.0.13:8080 tcp") and len(t.members) == 2
    assert any("the answer goes back through win" in n for n in t.notes)
    assert (await swarm.trace("client", "web")).hops[0].where == "win"  # runs no task of web itself
    one = await swarm.trace("client", "web.2", via="one")
    assert one.outcome == "reaches web.2.web2task on two" and one.members == ()
    own = await swarm.trace("client", "web", port=80)
    assert own.broken is None and any("from outside it is 8080" in n for n in own.notes)


async def test_a_client_outside_is_not_seen_by_a_host_that_cannot_answer_it(swarm: Swarm) -> None:
    win = swarm.objects[(Node.kind, "win")]
    assert isinstance(win, Node) and win.description is not None
    lacking = replace(win.description, emulated=False, lacks=NO_WAY_BACK)
    swarm.change(Node, "win", description=lacking)
    swarm.task("web", 3, "win", "ingress", "back")
    t = await swarm.trace("client", "web.3", via="one")
    assert t.broken is None and t.hops[-1].packet.startswith("10.0.0.2:40000 > "), "node one's own address"
    assert any(n.startswith("win: HNS, on every Windows, brings answers") for n in t.notes)
    assert any("(sees 10.0.0.2 as the client)" in h.effect for h in t.hops)
    other = await swarm.trace("client", "web.2", via="one")
    assert other.hops[-1].packet.startswith("192.0.2.10:") and not any("win:" in n for n in other.notes)
    back = await swarm.trace("client", "web.2", via="win")
    assert back.hops[-1].packet.startswith("10.0.0.4:40000 > "), "win takes back what is sent to itself alone"
    assert any(n.startswith("win: HNS, ") and "where clients come in by it" in n for n in back.notes)
    at_home = await swarm.trace("client", "web.3", via="win")
    assert at_home.hops[-1].packet.startswith("192.0.2.10:") and not any("HNS, " in n for n in at_home.notes)
    whole = await swarm.trace("client", "web", via="win")
    assert any(n.startswith("win: HNS, ") for n in whole.notes), "whichever backend's way is shown"


async def test_the_way_out(swarm: Swarm) -> None:
    t = await swarm.trace("web.1", "internet")
    assert t.broken is None and t.outcome == "leaves the swarm at one as 172.28.0.11:40000 > 192.0.2.1:80 tcp"


async def test_a_ping_of_a_service_is_answered_by_the_switch(swarm: Swarm) -> None:
    t = await swarm.trace("web.1", "order", protocol="icmp")
    assert t.outcome == "answered by the switch of one"
    assert (await swarm.trace("web.1", "order.1", protocol="icmp")).outcome.startswith("reaches order.1")


# -- planted faults ------------------------------------------------------------------------------------------


async def test_no_common_network(swarm: Swarm) -> None:
    swarm.service("lone", {"other": 9})
    swarm.task("lone", 1, "two", "other")
    for target in ("lone", "lone.1"):
        where, reason, remedy = broken(await swarm.trace("web.1", target))
        assert where == "web.1" and "they share no network" in reason and "on back," in reason
        assert remedy == "docker service update --network-add other web"


async def test_the_address_of_a_network_the_sender_is_not_on(swarm: Swarm) -> None:
    swarm.service("lone", {"other": 9})
    lone = swarm.task("lone", 1, "one", "other")
    address = lone.networks[0].addresses[0].split("/")[0]
    where, reason, remedy = broken(await swarm.trace("web.1", address))
    assert where == "one" and "no endpoint with this address" in reason and "is on network other" in remedy
    where, reason, remedy = broken(await swarm.trace("web.2", address))  # two has no part in it at all
    assert where == "two" and "is on network other, which the sender is not on" in reason


async def test_a_service_without_a_task_that_takes_connections(swarm: Swarm) -> None:
    swarm.task("db", 1, "one", "back", "closed", state=TaskState.STARTING, message="health: starting")
    where, reason, remedy = broken(await swarm.trace("web.1", "db"))
    assert where == "one" and "db has no task that takes connections" in reason
    assert "docker service ps" in remedy


async def test_a_drained_task_is_no_backend_and_a_starting_one_is_named(swarm: Swarm) -> None:
    swarm.change(Task, "web1task", desired_state=TaskState.SHUTDOWN)
    swarm.task("web", 3, "one", "ingress", "back", state=TaskState.STARTING, message="health: starting")
    t = await swarm.trace("order", "web")
    assert t.outcome == "reaches web.2.web2task on two" and t.members == ()
    assert any(n.startswith("web.3 takes no connections: starting") for n in t.notes)


async def test_a_backend_on_a_dead_host(swarm: Swarm) -> None:
    swarm.change(Node, "two", status=NodeStatus(state=NodeState.DOWN, message="heartbeat failure"))
    t = await swarm.trace("order", "web")
    where, reason, remedy = broken(t)
    assert where == "two" and reason == "node two is down: heartbeat failure" and "docker node ls" in remedy
    assert "for 1 of 2 backends" in t.outcome and [m.ok for m in t.members] == [True, False]


async def test_the_sender_s_host_is_dead(swarm: Swarm) -> None:
    swarm.change(Node, "win", status=NodeStatus(state=NodeState.DOWN, message="heartbeat failure"))
    assert broken(await swarm.trace("order", "web"))[0] == "win"


async def test_a_task_that_does_not_run(swarm: Swarm) -> None:
    swarm.task("order", 1, "win", "back", state=TaskState.FAILED, err="task: non-zero exit (3)")
    where, reason, _ = broken(await swarm.trace("order.1", "web"))
    assert where == "order.1.order1task" and "failed: task: non-zero exit (3)" in reason
    _, reason, _ = broken(await swarm.trace("order", "web"))
    assert reason == "service order has no task that could send"
    swarm.task("order", 1, "win", "back", state=TaskState.PREPARING, message="preparing")
    where, reason, _ = broken(await swarm.trace("web", "order.1"))
    assert where == "win" and reason == "order.1.order1task is preparing: preparing"


async def test_a_port_that_is_not_published(swarm: Swarm) -> None:
    _, reason, remedy = broken(await swarm.trace("client", "db", port=5432))
    assert reason == "db publishes no tcp port 5432"
    assert remedy == "docker service update --publish-add published=5432,target=5432 db"
    _, reason, _ = broken(await swarm.trace("client", "web", protocol="udp"))
    assert reason == "web publishes no udp port, only 8080/tcp"


async def test_a_host_mode_port_at_the_wrong_node(swarm: Swarm) -> None:
    port = PortConfig(target_port=80, published_port=9000, publish_mode="host")
    swarm.service("edge", {"back": 8}, port)
    swarm.task("edge", 1, "two", "back", port_status=(port,))
    right = await swarm.trace("client", "edge")
    assert right.broken is None and right.hops[0].where == "two"
    where, reason, remedy = broken(await swarm.trace("client", "edge", via="one"))
    assert where == "one" and "nothing of the swarm takes port 9000 on one" in reason
    assert "host mode answers on its task's node only" in remedy


async def test_no_way_out_of_an_internal_network(swarm: Swarm) -> None:
    swarm.service("vault", {"closed": 9})
    swarm.task("vault", 1, "one", "closed")
    where, _, remedy = broken(await swarm.trace("vault", "internet"))
    assert where == "one" and "--internal" in remedy


async def test_an_address_nobody_has(swarm: Swarm) -> None:
    where, reason, remedy = broken(await swarm.trace("web.1", "10.0.1.99"))
    assert where == "one" and "no endpoint with this address" in reason
    assert "nobody holds 10.0.1.99 on network back" in remedy


async def test_overlay_addresses_are_not_reached_from_outside(swarm: Swarm) -> None:
    _, reason, remedy = broken(await swarm.trace("client", "10.0.1.99"))
    assert "overlay addresses are known only in it" in reason and "--publish-add" in remedy


async def test_a_policy_that_does_not_name_the_sender(swarm: Swarm) -> None:
    found = swarm.objects[("service", "id-order")]
    assert isinstance(found, Service)
    labels = {"overlace.policy.allow-from": "db"}
    swarm.put(replace(found, spec=replace(found.spec, labels=labels)))
    assert (await swarm.trace("db", "order")).broken is None
    t = await swarm.trace("web", "order")
    where, reason, remedy = broken(t)
    assert where == "one" and "an ACL of priority 1200 blocks it" in reason, "it never crosses the underlay"
    assert (
        "service order has overlace.policy.allow-from=db, which does not let service web in (tcp/80)"
        in reason
    )
    assert remedy.startswith(
        "docker service update --label-add 'overlace.policy.allow-from=db, web:tcp/80' order; in a compose file the label"
    )
    assert t.hops[-1].what.startswith("FW_ADMIN_LAYER_ID OUT FW_ACL_OUT/ACL_OUT")


async def label(swarm: Swarm, service: str, **labels: str) -> None:
    found = swarm.objects[("service", f"id-{service}")]
    assert isinstance(found, Service)
    named = {f"overlace.policy.{k.replace('_', '-')}": v for k, v in labels.items()}
    swarm.put(replace(found, spec=replace(found.spec, labels=named)))


async def test_what_a_remedy_says_lets_the_packet_pass(swarm: Swarm) -> None:
    await label(swarm, "order", allow_from="none")
    await label(swarm, "web", allow_to="db:tcp/5432")
    _, reason, remedy = broken(await swarm.trace("web.1", "order"))
    assert "service order has overlace.policy.allow-from=none" in reason
    assert (
        "service web has overlace.policy.allow-to=db:tcp/5432, which does not let service order out" in reason
    )
    first, second = (part.split("'")[1].split("=", 1)[1] for part in remedy.split("; and "))
    assert (first, second) == ("web:tcp/80", "db:tcp/5432, order:tcp/80")
    await label(swarm, "order", allow_from=first)
    _, reason, _ = broken(await swarm.trace("web.1", "order"))
    assert "service order has" not in reason
    await label(swarm, "web", allow_to=second)
    assert (await swarm.trace("web.1", "order")).broken is None


async def test_a_network_s_policy_is_named_as_the_network_s(swarm: Swarm) -> None:
    back = swarm.objects[("network", "back")]
    assert isinstance(back, Network)
    swarm.put(replace(back, spec=replace(back.spec, labels={"overlace.policy.allow-from": "none"})))
    _, reason, remedy = broken(await swarm.trace("web.1", "order"))
    assert "network back has overlace.policy.allow-from=none, which does not let service web in" in reason
    assert "networks: {back: {allow-from: [web:tcp/80]}}" in remedy
    await label(swarm, "order", allow_from="web")  # its own comes first
    assert (await swarm.trace("web.1", "order")).broken is None


async def test_clients_outside_are_refused_by_a_label_too(swarm: Swarm) -> None:
    await label(swarm, "web", allow_from="db")
    _, reason, remedy = broken(await swarm.trace("client", "web"))
    assert "service web has overlace.policy.allow-from=db" in reason and "(ingress)" in reason
    assert "allow-from=db, ingress:tcp/80'" in remedy
    await label(swarm, "web", allow_to="none")
    _, reason, remedy = broken(await swarm.trace("web.1", "internet", port=443))
    assert "web has overlace.policy.allow-to=none" in reason and "allow-to=internet:tcp/443'" in remedy


async def test_a_windows_host_without_its_own_address_balances_nothing(swarm: Swarm) -> None:
    """Windows needs a source VIP; until the allocator gave one, its HNS has no load balancer."""
    node = swarm.objects[("node", "win")]
    swarm.change(Node, "win", network_addresses={})
    where, reason, _ = broken(await swarm.trace("order", "web"))
    assert node.id == where and "no endpoint with this address" in reason


# -- IPv6


def dual(swarm: Swarm) -> None:
    """`back` has IPv6 too; every task on it but the Windows host's, and its services' VIPs."""
    swarm.change(
        Network, "back", subnets=(Subnet("10.0.1.0/24", "10.0.1.1"), Subnet("fd00:1::/64", "fd00:1::1"))
    )
    for thing in list(swarm.objects.values()):
        if isinstance(thing, Task) and thing.node_id != "win":
            networks = tuple(
                replace(a, addresses=(*a.addresses, f"{_six(a.addresses[0])}/64"))
                if a.network_id == "back"
                else a
                for a in thing.networks
            )
            swarm.put(replace(thing, networks=networks))
        if isinstance(thing, Service) and thing.endpoint is not None:
            vips = thing.endpoint.virtual_ips
            more = tuple(VirtualIP("back", f"{_six(v.address)}/64") for v in vips if v.network_id == "back")
            swarm.put(replace(thing, endpoint=replace(thing.endpoint, virtual_ips=vips + more)))


def _six(address: str) -> str:
    return f"fd00:1::{address.split('/')[0].rpartition('.')[2]}"


async def test_ipv6_addresses_are_traced(swarm: Swarm) -> None:
    dual(swarm)
    two = swarm.objects[("task", "web2task")]
    assert isinstance(two, Task)
    address = next(a for n in two.networks for a in n.addresses if ":" in a).split("/")[0]
    t = await swarm.trace("db.1", address)
    assert t.broken is None and t.outcome == "reaches web.2.web2task on two", t
    assert f"> [{address}]:80 tcp" in t.question and t.question.startswith("[fd00:1::")
    assert [h.kind for h in t.hops if h.kind in ("encap", "decap")] == ["encap", "decap"]
    same = await swarm.trace("db.1", f"[{address.upper()}]")
    assert same.hops == t.hops, "however it is spelled"
    ping = await swarm.trace("db.1", address, protocol="icmp")
    assert ping.broken is None and ping.question.endswith(f"> {address} icmpv6")
    gateway = await swarm.trace("db.1", "fd00:1::1", protocol="icmp")
    assert "answers the ping itself" in gateway.hops[-1].effect


async def test_a_service_is_traced_by_the_family_asked_for(swarm: Swarm) -> None:
    dual(swarm)
    four = await swarm.trace("db.1", "web")
    assert "10.0.1.5" in four.question, "IPv4 where nothing else is said"
    by_vip = await swarm.trace("db.1", "fd00:1::5")
    assert by_vip.broken is None and {m.address for m in by_vip.members} == {
        a.split("/")[0]
        for o in swarm.objects.values()
        if isinstance(o, Task) and o.service_name == "web"
        for n in o.networks
        for a in n.addresses
        if ":" in a
    }
    db = swarm.objects[("task", "db1task")]
    assert isinstance(db, Task)
    mine = next(a for n in db.networks for a in n.addresses if ":" in a).split("/")[0]
    by_name = await swarm.trace(mine, "web")
    assert "[fd00:1::5]:80" in by_name.question, "the name's address of the sender's family"


async def test_a_task_without_ipv6_cannot_reach_it(swarm: Swarm) -> None:
    dual(swarm)
    where, reason, remedy = broken(await swarm.trace("order.1", "fd00:1::5"))
    assert (
        reason == "order.1 has no IPv6 address on back, so it cannot reach fd00:1::5" and "--ipv6" in remedy
    )
    assert where == "order.1"
    left = await swarm.trace("db.1", "2001:db8::1")
    assert left.broken is None and "an IPv6 address of the host" in str(left.hops)


def a_container(swarm: Swarm, name: str, where: str, *networks: str, **labels: str) -> None:
    """A container of `docker run`: one task for each network it is on."""
    for net in networks:
        last = next(swarm._last)
        swarm.put(
            Task(
                id=f"{name}{net}",
                service_id="",
                node_id=where,
                name=name,
                service_labels={f"overlace.policy.{k.replace('_', '-')}": v for k, v in labels.items()},
                spec=TaskSpec(runtime="attachment", network_attachment_spec={"ContainerID": f"{name:0<64}"}),
                status=TaskStatus(state=TaskState.RUNNING),
                networks=(NetworkAttachment(net, (f"10.0.{THIRD[net]}.{last}/24",)),),
            )
        )


async def test_a_container_of_docker_run_has_a_name(swarm: Swarm) -> None:
    a_container(swarm, "fade", "two", "other", "back")
    a_container(swarm, "bead", "one", "other")
    t = await swarm.trace("fade", "db")
    assert t.outcome == "reaches db.1.db1task on one" and t.source == "container fade on two"
    assert t.origin is not None and t.origin.task == "fade".ljust(64, "0"), "as its host knows it"
    t = await swarm.trace("bead", "fade" + 8 * "0")
    assert t.outcome == "reaches fade on two" and t.question == "10.0.2.26:40000 > 10.0.2.24:80 tcp"
    _, reason, remedy = broken(await swarm.trace("bead", "web"))
    assert "they share no network" in reason and remedy == "docker network connect back bead"
    with pytest.raises(NotFound, match="docker network connect"):
        await swarm.trace("nowhere", "web")


async def test_a_containers_policy_is_named(swarm: Swarm) -> None:
    a_container(swarm, "fade", "two", "back", allow_from="db")
    assert (await swarm.trace("db", "fade")).broken is None
    where, reason, _ = broken(await swarm.trace("web.1", "fade"))
    assert where == "one" and "ACL" in reason, "on the sender's host"
    swarm.change(
        Service,
        "id-db",
        spec=replace(swarm.objects[("service", "id-db")].spec, labels={"overlace.policy.allow-from": "fade"}),
    )
    assert (await swarm.trace("fade", "db")).broken is None
    assert (await swarm.trace("web.1", "db")).broken is not None


def ingress6(swarm: Swarm, *ports: PortConfig) -> None:
    """The ingress network has IPv6, and web publishes `ports`."""
    dual(swarm)
    swarm.change(
        Network, "ingress", subnets=(Subnet("10.0.0.0/24", "10.0.0.1"), Subnet("fd00:0::/64", "fd00:0::1"))
    )
    for slot, last in ((1, 20), (2, 21)):
        task = swarm.objects[("task", f"web{slot}task")]
        assert isinstance(task, Task)
        networks = tuple(
            replace(a, addresses=(*a.addresses, f"fd00:0::{last}/64")) if a.network_id == "ingress" else a
            for a in task.networks
        )
        swarm.put(replace(task, networks=networks))
    web = swarm.objects[("service", "id-web")]
    assert isinstance(web, Service) and web.endpoint is not None
    vips = (*web.endpoint.virtual_ips, VirtualIP("ingress", "fd00:0::5/64"))
    swarm.put(
        replace(web, endpoint=replace(web.endpoint, ports=ports or web.endpoint.ports, virtual_ips=vips))
    )


async def test_a_published_port_is_traced_for_clients_of_ipv6(swarm: Swarm) -> None:
    ingress6(swarm)
    t = await swarm.trace("2001:db8::77", "web", port=8080)
    assert t.broken is None and t.outcome.startswith("reaches web."), t.outcome
    assert t.question == "[2001:db8::77]:40000 > [::]:8080 tcp" and ":: stands for any" in " ".join(t.notes)
    assert {m.address for m in t.members} == {"fd00::20", "fd00::21"} and all(m.ok for m in t.members)
    assert "[2001:db8::77]:40000 > [fd00::2" in t.hops[-1].packet, (
        "the client's address reaches the container"
    )
    for source in ("internet", "client"):
        t = await swarm.trace(source, "web", ipv6=True, via="two")
        assert t.broken is None and t.question == "[2001:db8::10]:40000 > [::]:8080 tcp"
    assert (await swarm.trace("client", "web.2", ipv6=True)).outcome == "reaches web.2.web2task on two"


@pytest.mark.parametrize("proto", ["udp", "sctp"])
async def test_other_protocols_are_traced_in_both_families(swarm: Swarm, proto: str) -> None:
    ingress6(swarm, PortConfig(protocol=proto, target_port=53, published_port=53))
    for six in (False, True):
        t = await swarm.trace("client", "web", protocol=proto, ipv6=six)
        assert t.broken is None and t.question.endswith(f":53 {proto}"), t.outcome
    ingress6(swarm, PortConfig(protocol="sctp", target_port=53, published_port=54))
    assert (
        "checksum covers the ports"
        in broken(await swarm.trace("client", "web", protocol="sctp", ipv6=True))[1]
    )


async def test_an_ingress_network_without_ipv6_says_so(swarm: Swarm) -> None:
    _, reason, remedy = broken(await swarm.trace("2001:db8::77", "web"))
    assert "the ingress network has no IPv6" in reason and "--ingress --ipv6" in remedy


async def test_the_family_can_be_asked_for(swarm: Swarm) -> None:
    dual(swarm)
    assert (await swarm.trace("db", "web", ipv6=True)).question.startswith("[fd00:1::")
    assert (await swarm.trace("db", "web.2", ipv6=True)).question.startswith("[fd00:1::")
    _, reason, _ = broken(await swarm.trace("db", "order.1", ipv6=True))
    assert "order.1.order1task has no IPv6 address on back" in reason


async def test_what_is_copied_to_everybody_is_told(swarm: Swarm) -> None:
    back = swarm.objects[("network", "back")]
    assert isinstance(back, Network)
    swarm.put(replace(back, spec=replace(back.spec, options={"overlace.multicast": "true"})))
    t = await swarm.trace("db", "239.1.2.3", protocol="udp", port=9)
    assert t.broken is None and t.outcome.startswith("copied by one to every other endpoint"), t.outcome
    copies = [h.effect for h in t.hops if h.what == "copy"]
    assert "to container of web.1.web1task" in copies and "to host two, for its containers" in copies


@pytest.mark.parametrize("to", ["224.0.0.251", "255.255.255.255", "10.0.1.255"])
async def test_what_is_for_everybody_goes_nowhere_on_a_network_without_multicast(
    swarm: Swarm, to: str
) -> None:
    where, reason, remedy = broken(await swarm.trace("db", to, protocol="udp", port=9))
    assert where == "one" and "carries no broadcast and multicast" in reason and "drop_unsupported" in reason
    assert "overlace.multicast=true" in remedy
    _, _, remedy = broken(await swarm.trace("order", to, protocol="udp", port=9))
    assert "Windows" in remedy


async def test_another_address_of_a_node_is_named_with_the_node(swarm: Swarm) -> None:
    _, _, remedy = broken(await swarm.trace("client", "198.51.100.7", port=8080))
    assert "--via NODE" in remedy
    t = await swarm.trace("client", "198.51.100.7", port=8080, via="two")
    assert t.broken is None and t.target == "198.51.100.7 on two" and t.outcome.startswith("reaches web.")
    assert any("as --via says" in n for n in t.notes)
    broken(await swarm.trace("client", "10.0.1.99", via="two"))
    with pytest.raises(InvalidArgument, match="TO is node one"):
        await swarm.trace("client", "one", via="two")


async def test_remedies_for_a_container_of_docker_run_are_of_containers(swarm: Swarm) -> None:
    a_container(swarm, "m1", "two", "back")
    _, reason, remedy = broken(await swarm.trace("client", "m1"))
    assert "container m1 is no service" in reason and "docker run -p" in remedy
    _, _, remedy = broken(await swarm.trace("m1", "10.0.2.99"))
    assert remedy.endswith("docker network connect other m1")


async def test_words_that_go_with_nothing_are_refused(swarm: Swarm) -> None:
    with pytest.raises(InvalidArgument, match="only a client outside chooses the node"):
        await swarm.trace("web", "db", via="two")
    for wrong in ("nosuch", "db"):
        with pytest.raises(InvalidArgument, match=f"--via '{wrong}' is no node"):
            await swarm.trace("client", "web", via=wrong)
    where, reason, _ = broken(await swarm.trace("10.0.1.250", "web"))
    assert (
        where == "10.0.1.250"
        and reason == "10.0.1.250 is an address of network back, and no task that runs has it"
    )


async def test_fifty_backends_are_told_in_few_words(swarm: Swarm) -> None:
    for slot in range(3, 51):
        swarm.task("web", slot, "one" if slot % 2 else "two", "ingress", "back")
    t = await swarm.trace("db", "web")
    assert len(t.members) == 32 and t.outcome.endswith("all 32 backends that were looked at can be reached")
    assert any("50 backends; the first 32 are looked at" in n for n in t.notes)
    assert any(h.effect.endswith(" and 42 more") for h in t.hops)


async def test_a_service_scaled_to_nothing_is_to_be_scaled(swarm: Swarm) -> None:
    db = swarm.objects[("service", "id-db")]
    assert isinstance(db, Service)
    swarm.put(replace(db, spec=replace(db.spec, mode=ServiceMode(replicated=ReplicatedService(replicas=0)))))
    del swarm.objects[("task", "db1task")]
    for source, target in (("web", "db"), ("db", "web")):
        assert broken(await swarm.trace(source, target))[2] == "it is scaled to 0: docker service scale db=1"


async def test_a_task_of_a_global_service_is_named_by_its_node(swarm: Swarm) -> None:
    db = swarm.objects[("service", "id-db")]
    assert isinstance(db, Service)
    swarm.put(replace(db, spec=replace(db.spec, mode=ServiceMode(global_=GlobalService()))))
    del swarm.objects[("task", "db1task")]
    for number, node in enumerate(("one", "two")):
        task = swarm.task("db", 0, node, "back")
        del swarm.objects[("task", task.id)]
        id = f"db{number}global"
        swarm.put(replace(task, id=id, name=f"db.{node}.{id}", slot=0, node_id=node))
    assert (await swarm.trace("web.1", "db.two")).outcome == "reaches db.two.db1global on two"
    swarm.change(Task, "db1global", name="db.4tpz.db1global")  # what swarm calls it: by the node's id
    assert (await swarm.trace("web.1", "db.two")).outcome == "reaches db.4tpz.db1global on two"
    with pytest.raises(NotFound):
        await swarm.trace("web.1", "db.nosuch")
