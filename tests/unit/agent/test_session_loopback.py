"""Managers and agents over real TLS on loopback: what a node lives through from its join to its leaving."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path

import aiohttp
import msgspec
import pytest

from overlace.agent import receiver
from overlace.agent.enrol import join_swarm, renew_identity
from overlace.agent.session import AgentSession
from overlace.manager.dispatch import Dispatcher
from overlace.manager.enrol import Enrolment
from overlace.model.errors import (
    FailedPrecondition,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from overlace.model.ids import new_id
from overlace.model.netview import NetDelta, NetView
from overlace.model.objects import (
    Cluster,
    ManagerStatus,
    Network,
    NetworkAttachment,
    Node,
    NodeDescription,
    Secret,
    Service,
    Subnet,
    Task,
    TaskStatus,
)
from overlace.model.paths import PathState
from overlace.model.specs import (
    CAConfig,
    ContainerSpec,
    DispatcherConfig,
    EndpointSpec,
    NetworkSpec,
    NodeSpec,
    PortConfig,
    SecretReference,
    SecretSpec,
    ServiceSpec,
    SwarmSpec,
    TaskSpec,
)
from overlace.model.states import NodeState, TaskState
from overlace.security.ca import CertificateAuthority
from overlace.security.identity import Identity, found_identity, load_identity, save_identity
from overlace.security.tls import client_context, peer_of, server_context, unverified_context
from overlace.security.tokens import InvalidToken, generate_token
from overlace.store.base import Delete, Put
from overlace.store.memory import MemoryStore
from overlace.wire.messages import (
    Assignments,
    Attachment,
    Hello,
    LogChunk,
    LogSubscribe,
    NotAttached,
    Refused,
    Welcome,
)
from overlace.wire.transport import AgentChannel
from overlace.wire.transport_client import open_session
from overlace.wire.transport_server import TransportServer

pytestmark = pytest.mark.slow  # waits for real heartbeats

replace = msgspec.structs.replace
DAY = 24 * 3600 * 1_000_000_000


def description(hostname: str = "h") -> NodeDescription:
    return NodeDescription(
        hostname=hostname, os="linux", architecture="x86_64", underlay_address="172.28.0.11"
    )


class Swarm:
    """One manager: store, CA, tokens, dispatcher, port. `stop` and `start` are a restart of its process."""

    def __init__(self, root: Path, heartbeat: float = 5.0, store: MemoryStore | None = None) -> None:
        self.root = root
        self.heartbeat = int(heartbeat * 1e9)
        self.store = store or MemoryStore()
        self.node_id = new_id()
        self.port = 0

    async def found(self, ca: CertificateAuthority | None = None, life: int = 90 * DAY) -> Swarm:
        now = time.time_ns()
        self.ca = ca or CertificateAuthority.create(now)
        cluster = Cluster(
            id=new_id(),
            spec=SwarmSpec(
                dispatcher=DispatcherConfig(heartbeat_period=self.heartbeat),
                ca_config=CAConfig(node_cert_expiry=life),
            ),
            ca_cert_pem=self.ca.cert_pem,
            ca_key_pem=self.ca.key_pem,
            worker_token=generate_token(self.ca.cert_pem),
            manager_token=generate_token(self.ca.cert_pem),
        )
        self.cluster = cluster
        await self.store.commit(
            [
                Put(cluster),
                Put(Node(id=self.node_id, spec=NodeSpec(role="manager"), description=description())),
            ]
        )
        self.identity = found_identity(
            self.root, self.ca, node_id=self.node_id, cluster_id=cluster.id, now=now, life_ns=life
        )
        await self.start()
        return self

    async def start(self) -> None:
        self.dispatcher = Dispatcher(self.store, hostname="m1")
        await self.dispatcher.start()
        self.tls = server_context(self.identity)
        self.server = TransportServer(
            Enrolment(self.store, self.node_id), self.dispatcher.session, self.tls, peer_of
        )
        await self.server.start("127.0.0.1", self.port)
        self.port = self.server.port
        manager = replace(
            self.node(self.node_id), manager_status=ManagerStatus(True, "reachable", self.address)
        )
        await self.store.commit([Put(manager)])

    async def stop(self) -> None:
        await self.server.close()
        await self.dispatcher.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def node(self, node_id: str) -> Node:
        node = self.store.view().get(Node, node_id)
        assert node is not None
        return node

    def task(self, task_id: str) -> Task:
        task = self.store.view().get(Task, task_id)
        assert task is not None
        return task


class Agent:
    """A handler that remembers, in place of worker, network and logs."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.secrets: dict[str, bytes] = {}
        self.auth: dict[str, str] = {}
        self.view = NetView()
        self.welcomes: list[Welcome] = []
        self.refusals: list[Refused] = []
        self.assignments: list[Assignments] = []
        self.deltas: list[NetDelta] = []
        self.logs: list[LogSubscribe] = []
        self.unsubscribed: list[str] = []
        self.description_now = description("worker")
        self.fail_assignments = 0
        self.damage_network = False
        self.hold: asyncio.Event | None = None
        self.attached: tuple[Attachment, ...] | None = None
        self.not_attached: list[NotAttached] = []

    def description(self) -> NodeDescription:
        return self.description_now

    def paths(self) -> list[PathState]:
        return []

    def attachments(self) -> tuple[Attachment, ...] | None:
        return self.attached

    def on_not_attached(self, message: NotAttached) -> None:
        self.not_attached.append(message)

    async def on_welcome(self, message: Welcome) -> None:
        self.welcomes.append(message)

    async def on_assignments(self, message: Assignments) -> None:
        if self.hold is not None:
            await self.hold.wait()
        if self.fail_assignments:
            self.fail_assignments -= 1
            raise Unavailable("the disk is full")
        self.assignments.append(message)
        if message.complete:
            self.tasks, self.secrets = {}, {}
        self.tasks.update({t.id: t for t in message.tasks})
        for i in message.remove_tasks:
            del self.tasks[i]
        self.secrets.update({s.id: s.spec.data for s in message.secrets})
        for i in message.remove_secrets:
            del self.secrets[i]
        self.auth.update(message.registry_auth)

    async def on_network(self, delta: NetDelta) -> None:
        self.deltas.append(delta)
        if self.damage_network:
            self.damage_network = False
            raise ValueError("damaged")
        self.view.apply(delta)

    async def on_log_subscribe(self, message: LogSubscribe) -> None:
        self.logs.append(message)

    async def on_log_unsubscribe(self, subscription: str) -> None:
        self.unsubscribed.append(subscription)

    async def on_refused(self, message: Refused) -> None:
        self.refusals.append(message)


async def until(what: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for a condition; the assertion names it."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not within {seconds} s: {what.__code__.co_names}"
        await asyncio.sleep(0.01)


class Stage:
    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self._undo: list[Callable[[], Awaitable[object]]] = []
        self._count = 0

    def folder(self) -> Path:
        self._count += 1
        path = self.tmp / str(self._count)
        path.mkdir()
        return path

    async def swarm(self, heartbeat: float = 5.0, **more: object) -> Swarm:
        swarm = await Swarm(self.folder(), heartbeat).found(**more)  # type: ignore[arg-type]
        self._undo.append(swarm.stop)
        return swarm

    async def join(self, swarm: Swarm, token: str = "") -> tuple[Path, Identity]:
        root = self.folder()
        identity, _ = await join_swarm(root, [swarm.address], token or swarm.cluster.worker_token)
        return root, identity

    async def agent(self, swarm: Swarm, root: Path | None = None) -> tuple[Agent, AgentSession]:
        if root is None:
            root, _ = await self.join(swarm)
        identity = load_identity(root)
        assert identity is not None
        agent = Agent()
        session = AgentSession(root, identity, [swarm.address], agent, rng=random.Random(1))
        session.start()
        self._undo.append(session.close)
        await until(lambda: session.connected)
        return agent, session

    async def close(self) -> None:
        for undo in reversed(self._undo):
            await undo()


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    before = asyncio.all_tasks()
    made = Stage(tmp_path)
    yield made
    await made.close()
    await asyncio.sleep(0.05)
    left = [t for t in asyncio.all_tasks() - before if t is not asyncio.current_task()]
    assert not left, f"tasks left behind: {left}"


def task(id: str, node_id: str, state: TaskState = TaskState.ASSIGNED, **more: object) -> Task:
    spec = more.pop("spec", TaskSpec(container_spec=ContainerSpec(image="i")))
    return Task(id=id, service_id="s", node_id=node_id, spec=spec, status=TaskStatus(state=state), **more)  # type: ignore[arg-type]


# -- joining -----------------------------------------------------------------------------------------------------


async def test_a_host_joins_with_a_token_and_is_what_the_token_says(stage: Stage) -> None:
    swarm = await stage.swarm()
    root = stage.folder()
    identity, manager = await join_swarm(
        root, [swarm.address], swarm.cluster.worker_token, description=description("w"), availability="pause"
    )
    assert (identity.role, identity.cluster_id) == ("worker", swarm.cluster.id)
    assert (manager.node_id, manager.addr) == (swarm.node_id, swarm.address)
    node = swarm.node(identity.node_id)
    assert node.spec.role == "worker" and node.spec.availability == "pause"
    assert node.description is not None and node.description.hostname == "w"
    assert node.certificate_serial == identity.facts.serial
    with pytest.raises(Unimplemented, match="join as a worker"):
        await stage.join(swarm, swarm.cluster.manager_token)
    swarm.server._enrolment = Enrolment(swarm.store, swarm.node_id, several_managers=True)
    etcd = ServiceSpec(
        name="etcd", endpoint_spec=EndpointSpec(ports=[PortConfig(target_port=2379, published_port=2380)])
    )
    await swarm.store.commit([Put(Service(id="s", spec=etcd), expect=0)])
    with pytest.raises(FailedPrecondition, match=r"2380/tcp.*by service etcd: .*--publish-rm 2379 etcd"):
        await stage.join(swarm, swarm.cluster.manager_token)
    await swarm.store.commit([Delete("service", "s")])
    _, second = await stage.join(swarm, swarm.cluster.manager_token)
    assert second.role == "manager" and swarm.node(second.node_id).spec.role == "manager"


async def test_a_windows_host_joins_as_a_worker_only(stage: Stage) -> None:
    swarm = await stage.swarm()
    swarm.server._enrolment = Enrolment(swarm.store, swarm.node_id, several_managers=True)
    windows = replace(description("w"), os="windows", can_manage=False)
    nodes = len(list(swarm.store.view().all(Node)))
    with pytest.raises(Unimplemented, match="a Windows host is a worker"):
        await join_swarm(stage.folder(), [swarm.address], swarm.cluster.manager_token, description=windows)
    assert len(list(swarm.store.view().all(Node))) == nodes
    joined, _ = await join_swarm(
        stage.folder(), [swarm.address], swarm.cluster.worker_token, description=windows
    )
    assert swarm.node(joined.node_id).description == windows


async def test_a_wrong_token_gets_dockers_words_and_leaves_nothing(stage: Stage) -> None:
    swarm = await stage.swarm()
    root = stage.folder()
    nodes = len(list(swarm.store.view().all(Node)))
    same_ca = generate_token(swarm.ca.cert_pem)  # right swarm, wrong secret
    for wrong in ("", "SWMTKN-1-x-y", swarm.cluster.worker_token[:-1], same_ca):
        with pytest.raises(InvalidToken, match=r"^invalid join token$") as refused:
            await join_swarm(root, [swarm.address], wrong)
        assert refused.value.status == 500
    assert len(list(swarm.store.view().all(Node))) == nodes
    assert load_identity(root) is None


async def test_the_token_of_another_swarm_never_reaches_the_wrong_manager(stage: Stage) -> None:
    swarm = await stage.swarm()
    other = CertificateAuthority.create(time.time_ns())
    token = generate_token(other.cert_pem)
    with pytest.raises(FailedPrecondition) as refused:
        await join_swarm(stage.folder(), [swarm.address], token)
    message = refused.value.message
    assert message.startswith("remote CA does not match fingerprint. Expected: ")
    assert token.split("-")[2] in message and swarm.cluster.worker_token.split("-")[2] in message
    assert token.split("-")[3] not in message


async def test_a_man_in_the_middle_with_the_right_ca_certificate_is_no_manager(stage: Stage) -> None:
    """The root is public: showing it proves nothing, the TLS connection after it must be signed by it."""
    swarm = await stage.swarm()
    fake = Swarm(stage.folder())
    await fake.found()
    stage._undo.append(fake.stop)
    fake.server._enrolment = Enrolment(swarm.store, "x")  # shows the real swarm's root
    with pytest.raises(Unavailable, match="belongs to another swarm"):
        await join_swarm(stage.folder(), [fake.address], swarm.cluster.worker_token)


async def test_no_contact_names_address_and_reason(stage: Stage) -> None:
    swarm = await stage.swarm()
    await swarm.server.close()
    with pytest.raises(
        Unavailable, match=rf"cannot reach the manager at {swarm.address}: Connection refused"
    ):
        await join_swarm(stage.folder(), [swarm.address], swarm.cluster.worker_token)
    await swarm.server.start("127.0.0.1", swarm.port)
    # the second of two addresses answers
    identity, manager = await join_swarm(
        stage.folder(), ["127.0.0.1:1", swarm.address], swarm.cluster.worker_token
    )
    assert identity.node_id and manager.addr == swarm.address


async def test_a_swarm_whose_ca_has_expired_says_so(stage: Stage) -> None:
    past = time.time_ns() - 40 * DAY
    ca = CertificateAuthority.create(past, timedelta(days=30))
    swarm = Swarm(stage.folder())
    valid = await swarm.found()
    stage._undo.append(swarm.stop)
    token = generate_token(ca.cert_pem)
    expired = replace(swarm.cluster, ca_cert_pem=ca.cert_pem, ca_key_pem=ca.key_pem, worker_token=token)
    await swarm.store.commit([Put(expired)])
    with pytest.raises(FailedPrecondition, match="the swarm's CA certificate expired on"):
        await join_swarm(stage.folder(), [valid.address], token)


# -- who may call ------------------------------------------------------------------------------------------------


async def test_without_a_certificate_a_stranger_learns_the_ca_and_nothing_else(stage: Stage) -> None:
    swarm = await stage.swarm()
    async with aiohttp.ClientSession() as http:
        base = f"https://{swarm.address}"
        async with http.get(f"{base}/v1/ca", ssl=unverified_context()) as answer:
            assert answer.status == 200 and await answer.text() == swarm.ca.cert_pem
        async with http.post(f"{base}/v1/renew", json={"csr": ""}, ssl=unverified_context()) as answer:
            assert answer.status == 401
            assert "needs a node certificate of this swarm" in (await answer.json())["message"]
        async with http.post(f"{base}/v1/join", data=b"{", ssl=unverified_context()) as answer:
            assert answer.status == 400 and "/v1/join" in (await answer.json())["message"]
    with pytest.raises(Unauthenticated, match="join the swarm first"):
        async with open_session(swarm.address, client_context(swarm.ca.cert_pem)):
            pass


async def test_a_certificate_of_another_ca_is_refused_in_the_handshake(stage: Stage) -> None:
    swarm, other = await stage.swarm(), await stage.swarm()
    _root, identity = await stage.join(other)
    # it trusts our CA, but its own certificate is the other swarm's
    tls = client_context(swarm.ca.cert_pem)
    tls.load_cert_chain(identity.pair_path)
    with pytest.raises(Unavailable, match=r"not one it takes \(expired, or another swarm's\)"):
        async with open_session(swarm.address, tls):
            pass
    # and a node whose swarm's address now leads to another swarm is told so
    with pytest.raises(Unavailable, match="belongs to another swarm"):
        async with open_session(swarm.address, client_context(identity.ca_pem, identity)):
            pass


async def test_an_expired_certificate_is_refused_and_the_node_says_why(stage: Stage) -> None:
    swarm = await stage.swarm()
    root, identity = await stage.join(swarm)
    past = time.time_ns() - 100 * DAY
    from overlace.security.ca import new_csr, new_key_pem

    key = new_key_pem()
    old = swarm.ca.issue(
        new_csr(key), node_id=identity.node_id, role="worker", cluster_id=identity.cluster_id, now=past
    )
    expired = save_identity(root, swarm.ca.cert_pem, key, old.pem)
    with pytest.raises(Unavailable, match=r"not one it takes \(expired"):
        async with open_session(swarm.address, client_context(expired.ca_pem, expired)):
            pass
    agent = Agent()
    session = AgentSession(root, expired, [swarm.address], agent)
    session.start()
    stage._undo.append(session.close)
    await until(lambda: agent.refusals)
    assert "this node's certificate expired on" in agent.refusals[0].reason and not agent.refusals[0].final


async def test_a_worker_cannot_pose_as_a_manager(stage: Stage) -> None:
    """A worker's certificate is the swarm's too, but it does not carry the name a client asks for."""
    swarm = await stage.swarm()
    _root, identity = await stage.join(swarm)
    server = TransportServer(
        Enrolment(swarm.store, "x"), swarm.dispatcher.session, server_context(identity), peer_of
    )
    await server.start("127.0.0.1", 0)
    stage._undo.append(server.close)
    with pytest.raises(Unavailable, match="is not a manager of this swarm"):
        await join_swarm(stage.folder(), [f"127.0.0.1:{server.port}"], swarm.cluster.worker_token)


@pytest.mark.parametrize("tombstone", [False, True])
async def test_a_removed_node_is_refused_at_once_and_for_good(stage: Stage, tombstone: bool) -> None:
    swarm = await stage.swarm()
    root, identity = await stage.join(swarm)
    agent, session = await stage.agent(swarm, root)
    gone = Put(replace(swarm.node(identity.node_id), removed=True))
    await swarm.store.commit([gone if tombstone else Delete("node", identity.node_id)])
    await until(lambda: agent.refusals)
    assert agent.refusals[0].final and "removed from the swarm" in agent.refusals[0].reason
    await until(lambda: not session.connected)
    with pytest.raises(PermissionDenied, match="was removed from the swarm"):
        async with open_session(swarm.address, client_context(identity.ca_pem, identity)):
            pass
    with pytest.raises(PermissionDenied, match="was removed from the swarm"):
        await renew_identity(root, identity, swarm.address)
    late = Agent()
    again = AgentSession(root, identity, [swarm.address], late)
    again.start()
    stage._undo.append(again.close)
    await until(lambda: late.refusals)
    assert late.refusals[0].final


# -- certificates ------------------------------------------------------------------------------------------------


async def test_certificates_are_renewed_while_the_session_runs(stage: Stage) -> None:
    swarm = await stage.swarm(life=2 * 10**9)  # two seconds, and an hour behind: at once past 80 %
    root, identity = await stage.join(swarm)
    first = identity.facts.serial
    await swarm.store.commit(
        [Put(replace(swarm.cluster, spec=SwarmSpec(dispatcher=DispatcherConfig(heartbeat_period=5 * 10**9))))]
    )
    agent = Agent()
    renewed: list[Identity] = []
    session = AgentSession(root, identity, [swarm.address], agent, on_identity=renewed.append)
    session.start()
    stage._undo.append(session.close)
    await until(lambda: renewed)
    kept = load_identity(root)
    assert kept is not None and kept.facts.serial != first and kept.node_id == identity.node_id
    assert kept.facts.not_after - time.time_ns() > 89 * DAY
    assert swarm.node(identity.node_id).certificate_serial == kept.facts.serial
    await until(lambda: session.connected)


async def test_a_manager_that_does_not_lead_sends_on_to_the_one_that_does(stage: Stage) -> None:
    swarm = await stage.swarm()
    root, identity = await stage.join(swarm)
    asked: list[str] = []

    class NotTheLeader:
        def __init__(self, leader: str) -> None:
            self.leader = leader

        async def send(self, message: object) -> None:
            assert isinstance(message, Hello)

        async def receive(self) -> Refused:
            return Refused("this manager does not lead", elsewhere=True, leader=self.leader)

        async def close(self) -> None: ...

    @contextlib.asynccontextmanager
    async def connect(address: str, tls: ssl.SSLContext) -> AsyncIterator[AgentChannel]:
        asked.append(address)
        if address == "nobody:1":  # it does not know either
            yield NotTheLeader("")  # type: ignore[misc]
        elif address == "follower:1":
            yield NotTheLeader(swarm.address)  # type: ignore[misc]
        else:
            async with open_session(address, tls) as channel:
                yield channel

    agent = Agent()
    session = AgentSession(root, identity, ["nobody:1", "follower:1"], agent, connect=connect)
    session.start()
    stage._undo.append(session.close)
    await until(lambda: session.connected)
    assert asked == ["nobody:1", "follower:1", swarm.address]
    assert not agent.refusals, "an election is no refusal"


async def test_a_promoted_node_renews_its_certificate_into_its_new_role(stage: Stage) -> None:
    swarm = await stage.swarm()
    agent, session = await stage.agent(swarm)
    node = swarm.node(session.identity.node_id)
    await swarm.store.commit([Put(replace(node, spec=NodeSpec(role="manager")))])
    await until(lambda: session.identity.role == "manager")
    assert agent.welcomes[-1].role == "manager"


async def test_a_demoted_manager_is_one_until_its_part_of_the_state_is_given_up(stage: Stage) -> None:
    swarm = await stage.swarm()
    root, identity = await stage.join(swarm)
    agent, session = await stage.agent(swarm, root)
    part = ManagerStatus(leader=False, reachability="reachable", addr="127.0.0.1:1")
    node = swarm.node(identity.node_id)
    await swarm.store.commit([Put(replace(node, spec=NodeSpec(role="manager"), manager_status=part))])
    await until(lambda: session.identity.role == "manager" and agent.welcomes[-1].role == "manager")

    told = len(agent.welcomes)
    await swarm.store.commit([Put(replace(swarm.node(identity.node_id), spec=NodeSpec(role="worker")))])
    await until(lambda: len(agent.welcomes) > told)
    assert agent.welcomes[-1].role == "manager", "its etcd member still counts for the quorum"
    renewed = await renew_identity(root, session.identity, swarm.address, "127.0.0.1:1")
    assert renewed.role == "manager"

    await swarm.store.commit([Put(replace(swarm.node(identity.node_id), manager_status=None))])
    await until(lambda: session.identity.role == "worker" and agent.welcomes[-1].role == "worker")


async def test_the_port_serves_a_renewed_certificate_without_a_restart(stage: Stage) -> None:
    swarm = await stage.swarm()

    async def serial() -> str:
        _reader, writer = await asyncio.open_connection(
            "127.0.0.1", swarm.port, ssl=client_context(swarm.ca.cert_pem), server_hostname="swarm-manager"
        )
        peer = peer_of(writer.get_extra_info("peercert"))
        writer.close()
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            await writer.wait_closed()
        assert peer is not None
        return peer.serial

    assert await serial() == swarm.identity.facts.serial
    renewed = await renew_identity(swarm.root, swarm.identity, swarm.address)
    await serial()  # the handshake that notices
    assert await serial() == renewed.facts.serial != swarm.identity.facts.serial


# -- assignments, network, reports -------------------------------------------------------------------------------


async def test_a_node_hears_what_it_must_run_and_see_and_what_it_reports_is_stored(stage: Stage) -> None:
    swarm = await stage.swarm()
    agent, session = await stage.agent(swarm)
    me = session.identity.node_id
    node = swarm.node(me)
    assert node.status.state == NodeState.READY and node.status.addr == "127.0.0.1"
    assert node.description == agent.description_now
    assert agent.welcomes[0].managers[0].addr == swarm.address
    await until(lambda: agent.assignments and agent.view.node(me))
    assert agent.assignments[0].complete and agent.assignments[0].tasks == ()

    net = Network(id="n", spec=NetworkSpec(name="n"), vni=4096, subnets=(Subnet("10.0.1.0/24", "10.0.1.1"),))
    secret = Secret(id="sec", spec=SecretSpec(name="sec", data=b"x"))
    spec = TaskSpec(container_spec=ContainerSpec(image="i", secrets=[SecretReference(secret_id="sec")]))
    service = Service(id="s", spec=ServiceSpec(name="s"), registry_auth="auth")
    t1 = task("t1", me, spec=spec, networks=(NetworkAttachment("n", ("10.0.1.2/24",)),))
    await swarm.store.commit(
        [
            Put(net),
            Put(secret),
            Put(service),
            Put(t1),
            Put(task("t2", "other")),
            Put(task("t3", me, TaskState.NEW)),
        ]
    )
    await until(lambda: "t1" in agent.tasks)
    assert set(agent.tasks) == {"t1"} and agent.secrets == {"sec": b"x"} and agent.auth == {"s": "auth"}
    assert [e.address for e in agent.view.endpoints("n")] == ["10.0.1.2"]
    assert next(d.base for d in agent.deltas) == 0 and agent.deltas[-1].base > 0

    told = len(agent.assignments)
    session.report("t1", TaskStatus(TaskState.RUNNING, 7, "started"))
    await until(lambda: swarm.task("t1").status.state == TaskState.RUNNING)
    await until(lambda: [e for e in agent.view.endpoints("n") if e.serving])
    await until(lambda: len(session._reports) == 0)  # acknowledged
    assert len(agent.assignments) == told  # its own report is no news to the agent

    await swarm.store.commit([Put(replace(swarm.task("t1"), desired_state=TaskState.SHUTDOWN))])
    await until(lambda: agent.tasks["t1"].desired_state == TaskState.SHUTDOWN)
    session.report("t1", TaskStatus(TaskState.SHUTDOWN, 8))
    await until(lambda: not agent.secrets)  # ended: nobody needs the secret
    await until(lambda: agent.view.network("n") is None)
    await swarm.store.commit([Delete("task", "t1")])
    await until(lambda: not agent.tasks)


async def test_states_only_grow_and_only_their_node_reports_them(stage: Stage) -> None:
    swarm = await stage.swarm()
    _agent, session = await stage.agent(swarm)
    me = session.identity.node_id
    await swarm.store.commit([Put(task("mine", me, TaskState.RUNNING)), Put(task("theirs", "other"))])
    session.report("mine", TaskStatus(TaskState.PREPARING, 1))
    session.report("theirs", TaskStatus(TaskState.RUNNING, 1))
    session.report("gone", TaskStatus(TaskState.RUNNING, 1))
    await until(lambda: len(session._reports) == 0)
    assert swarm.task("mine").status.state == TaskState.RUNNING
    assert swarm.task("theirs").status.state == TaskState.ASSIGNED


async def test_many_reports_share_few_commits(stage: Stage) -> None:
    swarm = await stage.swarm()
    agent, session = await stage.agent(swarm)
    me = session.identity.node_id
    await swarm.store.commit([Put(task(f"t{i}", me)) for i in range(3000)])
    await until(lambda: len(agent.tasks) == 3000)
    before = swarm.store.view().revision
    for i in range(3000):
        session.report(f"t{i}", TaskStatus(TaskState.RUNNING, 1))
    await until(lambda: len(session._reports) == 0)
    assert all(swarm.task(f"t{i}").status.state == TaskState.RUNNING for i in range(3000))
    assert swarm.store.view().revision - before < 10


async def test_a_refusing_handler_gets_complete_messages_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "RETRY_SECONDS", 0.05)
    swarm = await stage.swarm()
    agent, session = await stage.agent(swarm)
    me = session.identity.node_id
    await until(lambda: agent.assignments)
    agent.fail_assignments = 2
    await swarm.store.commit([Put(task("t1", me))])
    await until(lambda: "t1" in agent.tasks)
    assert agent.assignments[-1].complete
    agent.damage_network = True
    net = Network(id="n", spec=NetworkSpec(name="n"), vni=4096, subnets=(Subnet("10.0.1.0/24", "10.0.1.1"),))
    await swarm.store.commit(
        [Put(net), Put(replace(swarm.task("t1"), networks=(NetworkAttachment("n", ("10.0.1.2/24",)),)))]
    )
    await until(lambda: agent.view.network("n") is not None)
    assert agent.deltas[-1].base == 0


async def test_a_gap_in_the_sequence_is_noticed(stage: Stage) -> None:
    swarm = await stage.swarm()
    agent, session = await stage.agent(swarm)
    me = session.identity.node_id
    await until(lambda: agent.assignments)
    held = swarm.dispatcher._sessions[me]
    held.assignments._sequence += 1  # as if one message had been lost
    await swarm.store.commit([Put(task("t1", me))])
    await until(lambda: "t1" in agent.tasks)
    assert agent.assignments[-1].complete and agent.assignments[-1].sequence > 2


async def test_a_slow_reader_costs_bounded_memory_and_ends_up_right(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overlace.manager.dispatch.FOLLOW_GAP", 0)
    swarm = await stage.swarm()
    agent, session = await stage.agent(swarm)
    me = session.identity.node_id
    await until(lambda: agent.assignments)
    agent.hold = asyncio.Event()
    held = swarm.dispatcher._sessions[me]
    pad = TaskSpec(container_spec=ContainerSpec(image="i", env=["X=" + "x" * 20_000]))
    most = 0
    for i in range(1500):
        await swarm.store.commit([Put(task(f"t{i % 50}", me, spec=pad, slot=i))])
        await asyncio.sleep(0)
        most = max(most, len(held.outbox._deltas))
    assert held.outbox.stale_assignments  # deltas were given up
    assert most <= 256
    agent.hold.set()
    await until(lambda: {t.slot for t in agent.tasks.values()} == set(range(1450, 1500)), 30)
    assert session.connected and len(agent.assignments) < 1000


async def test_a_peer_that_stops_reading_cannot_hold_the_manager(stage: Stage) -> None:
    """Its socket is full, its heartbeats have ended: the session is over in bounded time, the port can close."""
    swarm = await stage.swarm(heartbeat=0.3)
    _, identity = await stage.join(swarm)
    me = identity.node_id
    async with contextlib.AsyncExitStack() as stack:
        channel = await stack.enter_async_context(
            open_session(swarm.address, client_context(identity.ca_pem, identity))
        )
        await channel.send(Hello(description()))
        assert isinstance(await channel.receive(), Welcome)
        transport = channel._socket._response.connection.transport  # type: ignore[attr-defined]
        transport.pause_reading()
        pad = TaskSpec(container_spec=ContainerSpec(image="i", env=["X=" + "x" * 200_000]))
        await swarm.store.commit([Put(task(f"t{i}", me, spec=pad)) for i in range(100)])
        await until(lambda: me in swarm.dispatcher.connected())
        await until(lambda: swarm.node(me).status.state == NodeState.DOWN, 5)
        await until(lambda: me not in swarm.dispatcher.connected(), 5)
        await until(lambda: not swarm.server._sockets, 5)
        started = time.monotonic()
        await swarm.stop()
        assert time.monotonic() - started < 4
        transport.abort()


# -- connections come and go -------------------------------------------------------------------------------------


async def test_the_manager_restarts_and_the_agent_comes_back_with_what_it_had_to_say(stage: Stage) -> None:
    swarm = await stage.swarm()
    agent, session = await stage.agent(swarm)
    me = session.identity.node_id
    await swarm.store.commit([Put(task("t1", me)), Put(task("t2", me))])
    await until(lambda: len(agent.tasks) == 2)
    await swarm.stop()
    await until(lambda: not session.connected)
    session.report("t1", TaskStatus(TaskState.STARTING, 1))
    session.report("t1", TaskStatus(TaskState.RUNNING, 2))
    session.report("t2", TaskStatus(TaskState.FAILED, 2, err="exit 1"))
    gone = Dispatcher(swarm.store)
    await gone.start()
    assert swarm.node(me).status.state == NodeState.UNKNOWN
    await gone.close()
    await swarm.store.commit([Put(task("t3", me))])
    await swarm.start()
    await until(lambda: session.connected and "t3" in agent.tasks)
    await until(lambda: swarm.task("t2").status.state == TaskState.FAILED)
    assert swarm.task("t1").status.state == TaskState.RUNNING and swarm.task("t1").status.timestamp == 2
    assert swarm.node(me).status.state == NodeState.READY
    assert agent.assignments[-1].complete or agent.assignments[-2].complete


async def test_a_report_that_was_not_acknowledged_is_sent_again(stage: Stage) -> None:
    swarm = await stage.swarm()
    agent, session = await stage.agent(swarm)
    me = session.identity.node_id
    await swarm.store.commit([Put(task("t1", me))])
    await until(lambda: "t1" in agent.tasks)
    swarm.dispatcher._writer.report = lambda *a, **k: None  # type: ignore[method-assign]  # the manager dies first
    session.report("t1", TaskStatus(TaskState.RUNNING, 1))
    await until(lambda: session._reports._sent)
    await swarm.stop()
    await swarm.start()
    await until(lambda: swarm.task("t1").status.state == TaskState.RUNNING)


async def test_of_two_sessions_of_one_node_the_newest_wins(stage: Stage) -> None:
    swarm = await stage.swarm()
    root, identity = await stage.join(swarm)
    first, one = await stage.agent(swarm, root)
    second, two = await stage.agent(swarm, root)
    await until(lambda: first.refusals)
    assert "another session" in first.refusals[0].reason and not first.refusals[0].final
    await one.close()
    await until(lambda: two.connected)
    await swarm.store.commit([Put(task("t1", identity.node_id))])
    await until(lambda: "t1" in second.tasks)
    assert swarm.node(identity.node_id).status.state == NodeState.READY


async def test_a_silent_node_is_down_after_three_heartbeats_and_ready_when_it_is_back(stage: Stage) -> None:
    swarm = await stage.swarm(heartbeat=0.2)
    root, identity = await stage.join(swarm)
    _agent, session = await stage.agent(swarm, root)
    me = identity.node_id
    await asyncio.sleep(1.0)
    assert swarm.node(me).status.state == NodeState.READY and session.connected  # heartbeats do their work
    await session.close()
    await asyncio.sleep(0.2)
    assert swarm.node(me).status.state == NodeState.READY  # a closed connection alone says nothing
    await until(lambda: swarm.node(me).status.state == NodeState.DOWN, 3)
    assert swarm.node(me).status.message == "heartbeat failure"
    await stage.agent(swarm, root)
    assert swarm.node(me).status.state == NodeState.READY and swarm.node(me).status.message == ""


@pytest.mark.parametrize(("before", "after"), [(5.0, 0.2), (0.2, 1.0)])
async def test_a_changed_heartbeat_period_reaches_the_nodes(
    stage: Stage, before: float, after: float
) -> None:
    swarm = await stage.swarm(heartbeat=before)
    agent, session = await stage.agent(swarm)
    me = session.identity.node_id
    spec = SwarmSpec(dispatcher=DispatcherConfig(heartbeat_period=int(after * 1e9)))
    await swarm.store.commit([Put(replace(swarm.cluster, spec=spec))])
    await until(lambda: agent.welcomes[-1].heartbeat < 1.2 * after * 1e9 and len(agent.welcomes) == 2)
    states = set()
    end = time.monotonic() + 4 * after
    while time.monotonic() < end:
        states.add(swarm.node(me).status.state)
        await asyncio.sleep(0.02)
    assert states == {NodeState.READY} and session.connected, "nobody missed a beat"
    await session.close()
    await until(lambda: swarm.node(me).status.state == NodeState.DOWN, 4 * after + 2)


async def test_a_node_that_never_comes_back_after_a_restart_is_down(stage: Stage) -> None:
    swarm = await stage.swarm(heartbeat=0.2)
    root, identity = await stage.join(swarm)
    _agent, session = await stage.agent(swarm, root)
    await session.close()
    await swarm.stop()
    await swarm.start()
    assert swarm.node(identity.node_id).status.state == NodeState.UNKNOWN
    await asyncio.sleep(0.7)
    assert swarm.node(identity.node_id).status.state == NodeState.UNKNOWN  # twice the time after a restart
    await until(lambda: swarm.node(identity.node_id).status.state == NodeState.DOWN, 3)


async def test_a_frozen_manager_is_left_for_another_try(stage: Stage) -> None:
    """A manager that accepts but never answers heartbeats must not hold the agent."""
    swarm = await stage.swarm(heartbeat=0.1)
    agent, session = await stage.agent(swarm)
    held = swarm.dispatcher._sessions[session.identity.node_id]
    held.outbox._take = lambda: None  # type: ignore[method-assign]
    await until(lambda: len(agent.welcomes) == 2)


async def test_a_leaving_node_is_down_at_once(stage: Stage) -> None:
    swarm = await stage.swarm()
    agent, session = await stage.agent(swarm)
    started = time.monotonic()
    assert await session.leave()
    assert time.monotonic() - started < 2
    node = swarm.node(session.identity.node_id)
    assert node.status.state == NodeState.DOWN and node.status.message == "the node left the swarm"
    assert not agent.refusals
    await swarm.stop()
    _other, lonely = await stage.agent(await stage.swarm())
    await lonely.close()
    assert not await lonely.leave(timeout=0.2)


async def test_a_changed_description_reaches_the_store_with_the_next_heartbeat(stage: Stage) -> None:
    swarm = await stage.swarm(heartbeat=0.1)
    agent, session = await stage.agent(swarm)
    agent.description_now = replace(agent.description_now, engine_labels={"rack": "2"})
    me = session.identity.node_id
    await until(lambda: swarm.node(me).description == agent.description_now)


# -- logs --------------------------------------------------------------------------------------------------------


async def test_log_subscriptions_go_out_and_lines_come_back(stage: Stage) -> None:
    swarm = await stage.swarm()
    agent, session = await stage.agent(swarm)
    me = session.identity.node_id
    got: list[tuple[str, LogChunk]] = []
    swarm.dispatcher.on_log = lambda node_id, chunk: got.append((node_id, chunk))
    assert swarm.dispatcher.send(me, LogSubscribe("sub", ("t1",)))
    assert not swarm.dispatcher.send("nobody", LogSubscribe("sub", ("t1",)))
    await until(lambda: agent.logs)
    for i in range(500):
        await session.send_log(LogChunk("sub", "t1", ((i, "stdout", b"x" * 100),)))
    await until(lambda: len(got) == 500)
    assert got[-1] == (me, LogChunk("sub", "t1", ((499, "stdout", b"x" * 100),)))
    await swarm.stop()
    await until(lambda: agent.unsubscribed == ["sub"])  # nobody listens any more
    await session.send_log(LogChunk("sub", "t1"))  # and does not hang


async def test_what_containers_outside_of_services_want_is_told_whenever_it_changes(stage: Stage) -> None:
    swarm = await stage.swarm()
    agent, session = await stage.agent(swarm)
    heard: list[tuple[str, Sequence[Attachment]]] = []
    swarm.dispatcher.on_attachments = lambda node_id, wanted: heard.append((node_id, wanted))
    agent.attached = (Attachment("a1", "c1", "box", "shop"),)
    session.announce_attachments()
    await until(lambda: bool(heard))
    node_id, wanted = heard[0]
    assert (node_id, tuple(wanted)) == (session.identity.node_id, agent.attached)
    swarm.dispatcher.send(node_id, NotAttached({"a1": ("NotFound", "network shop not found")}))
    await until(lambda: bool(agent.not_attached))
    assert agent.not_attached[0].refused["a1"] == ("NotFound", "network shop not found")
