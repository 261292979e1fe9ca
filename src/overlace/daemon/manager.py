"""The manager on this node: store, control, loop, dispatcher, logs and the port other nodes reach it at.

Owns founding a swarm's state and running its parts together. Must not decide anything itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import TypeVar

import aiohttp
import msgspec
import structlog
from aiohttp import web

from overlace.api.backend import InitRequest
from overlace.daemon.entrance import Entrance
from overlace.daemon.etcd_home import EtcdHome, move_to_etcd
from overlace.daemon.leading import Leading
from overlace.manager.control import Control, check_swarm
from overlace.manager.enrol import the_cluster
from overlace.manager.logs import LogBroker
from overlace.manager.managers import Managers
from overlace.manager.paths import PathBook
from overlace.manager.registry import Resolver
from overlace.model.errors import NoLeader, NotLeading, OutOfSequence, OverlaceError, Unavailable
from overlace.model.findings import Question, Said
from overlace.model.ids import new_id
from overlace.model.objects import VXLAN_PORT, Cluster, ManagerStatus, Network, Node, NodeStatus
from overlace.model.specs import NetworkSpec, NodeSpec
from overlace.security.ca import CertificateAuthority, names_address
from overlace.security.identity import Identity, found_identity
from overlace.security.tls import TlsPeer, client_context, peer_of, server_context
from overlace.security.tokens import generate_token
from overlace.store.base import Lagged, Put, Store
from overlace.store.etcd.client import EtcdClient, EtcdError
from overlace.store.etcd.election import Election, Leader
from overlace.store.etcd.member import EtcdProcess, find_program
from overlace.store.etcd.store import EtcdStore
from overlace.store.sqlite import SqliteStore
from overlace.wire.messages import Refused
from overlace.wire.transport import REVISION_HEADER, ManagerChannel, ManagerLeave, parse_address
from overlace.wire.transport_client import ask_engine, leave_managers
from overlace.wire.transport_server import ServeEngine, TransportServer

log = structlog.get_logger(__name__)
T = TypeVar("T")
STORE = Path("swarm") / "store.db"
LEADER_SECONDS = 15.0  # a request waits for a leader: longer than the election of a new one takes
CATCH_UP_SECONDS = 5.0
RETIRE_SECONDS = 30.0
YIELD_SECONDS = 30.0  # a manager that is to go leaves the election to the others


async def found_swarm(
    data_root: Path, request: InitRequest, node_id: str, advertise: str
) -> tuple[str, Identity]:
    """Make a new swarm's state on disk: CA, tokens, cluster, this node, the ingress network.

    Returns the cluster's id and this node's identity. Raises InvalidArgument, Unimplemented, Unavailable (disk).
    """
    check_swarm(request.spec)
    now = time.time_ns()
    ca = CertificateAuthority.create(now)
    cluster = Cluster(
        id=new_id(),
        spec=request.spec,
        ca_cert_pem=ca.cert_pem,
        ca_key_pem=ca.key_pem,
        worker_token=generate_token(ca.cert_pem),
        manager_token=generate_token(ca.cert_pem),
        default_addr_pool=tuple(request.default_addr_pool) or ("10.0.0.0/8",),
        subnet_size=request.subnet_size or 24,
        data_path_port=request.data_path_port or VXLAN_PORT,
    )
    identity = found_identity(
        data_root,
        ca,
        node_id=node_id,
        cluster_id=cluster.id,
        now=now,
        life_ns=request.spec.ca_config.node_cert_expiry,
        address=parse_address(advertise)[0],
    )
    node = Node(
        id=node_id,
        spec=NodeSpec(role="manager", availability=request.availability or "active"),
        status=NodeStatus(addr=advertise.rpartition(":")[0].strip("[]"), since=now),
        manager_status=ManagerStatus(leader=True, reachability="reachable", addr=advertise),
        certificate_serial=identity.facts.serial,
    )
    ingress = Network(id=new_id(), spec=NetworkSpec(name="ingress", ingress=True))
    store = SqliteStore(data_root / STORE)
    try:
        await store.commit([Put(cluster, 0), Put(node, 0), Put(ingress, 0)])
    finally:
        await store.close()
    return cluster.id, identity


class ManagerSide:
    """Implements `api.backend.ManagerHandle`. On SQLite this manager is alone and leads; on etcd, when it is elected.

    `open`, then `close` (the member's data stays) or `retire` and `close`. `serve_engine(request, path)` answers what
    another manager passes on."""

    def __init__(
        self,
        data_root: Path,
        identity: Identity,
        me: Leader,
        listen_addr: str,
        insecure_registries: Sequence[str],
        hostname: str,
        serve_engine: ServeEngine | None = None,
    ) -> None:
        self._data_root = data_root
        self._identity = identity
        self._me = me
        self._listen_addr = listen_addr
        self._hostname = hostname
        self._serve = serve_engine
        self._home = EtcdHome(data_root, identity)
        self.resolver = Resolver(insecure_registries)
        self._store: Store | None = None
        self._leading: Leading | None = None
        self._making: Leading | None = None  # not ready to be used yet
        self._managers: Managers | None = None
        self._tending: asyncio.Task[None] | None = None
        self._election: Election | None = None
        self._process: EtcdProcess | None = None
        self._several: asyncio.Task[None] | None = None
        self._moving = asyncio.Lock()
        self._demote_others = False
        self._server = TransportServer(
            Entrance(self), self._session, server_context(identity), peer_of, self._serve_forwarded
        )

    @classmethod
    async def open(
        cls,
        data_root: Path,
        identity: Identity,
        me: Leader,
        listen_addr: str,
        insecure_registries: Sequence[str],
        hostname: str,
        serve_engine: ServeEngine | None = None,
    ) -> ManagerSide:
        """Raises Unavailable (port or disk), Internal (a damaged store). On etcd the rest comes as etcd does."""
        side = cls(data_root, identity, me, listen_addr, insecure_registries, hostname, serve_engine)
        config = side._home.load()
        try:
            if config is None:
                await side._home.sweep()
                side._store = SqliteStore(data_root / STORE)
                await side._begin()
            else:
                side._share(EtcdProcess(config, side._home.files))
            await side._server.start(*parse_address(listen_addr))
        except BaseException:
            await side.close()
            raise
        return side

    # -- what the API sees ---------------------------------------------------------------------------------------

    @property
    def node_id(self) -> str:
        return self._me.node_id

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def store(self) -> Store:
        """Raises Unavailable while etcd has not told anything yet."""
        if self._store is None:
            raise Unavailable("this manager is starting: its etcd member has not answered yet; try again")
        return self._store

    @property
    def leading(self) -> Leading:
        """Raises NotLeading."""
        if self._leading is None:
            raise NotLeading("this manager does not lead")
        return self._leading

    @property
    def control(self) -> Control:
        return self.leading.control

    @property
    def logs(self) -> LogBroker:
        return self.leading.logs

    @property
    def paths(self) -> PathBook:
        return self.leading.paths

    async def ask_node(self, node_id: str, question: Question) -> Said:
        """Have a host look at itself. Raises NotLeading."""
        return await self.leading.dispatcher.questions.ask(node_id, question)

    @property
    def managers(self) -> Managers:
        """Raises NotLeading, also where the store is SQLite's."""
        if self._managers is None:
            raise NotLeading("this manager does not lead")
        return self._managers

    def leader(self) -> Leader | None:
        """None: nobody is known to lead."""
        if self._leading is not None:
            return self._me
        found = self._election.leader if self._election is not None else None
        return found if found != self._me else None

    async def wait_leader(self, seconds: float = LEADER_SECONDS) -> Leader:
        """Who leads, once somebody does. Raises NoLeader."""
        until = asyncio.get_running_loop().time() + seconds
        while (found := self.leader()) is None:
            if asyncio.get_running_loop().time() > until:
                raise NoLeader(f"nobody led for {seconds:g} s")
            await asyncio.sleep(0.05)
        return found

    def ask(
        self, leader: Leader, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return ask_engine(leader.addr, self.client_tls(), method, path, headers, body)

    async def caught_up(self, revision: int) -> None:
        """Until this manager's view has what the leader answered about, or for a few seconds."""
        watch = self.store.watch()
        try:
            async with asyncio.timeout(CATCH_UP_SECONDS):
                while self.store.view().revision < revision:
                    await watch.next()
        except (TimeoutError, Lagged):
            pass
        finally:
            watch.close()

    def client_tls(self) -> ssl.SSLContext:
        return client_context(self._identity.ca_pem, self._identity)

    # -- the port ------------------------------------------------------------------------------------------------

    async def _session(self, peer: TlsPeer, address: str, channel: ManagerChannel) -> None:
        leading = self._leading
        if leading is None:
            found = self.leader()
            await channel.send(
                Refused("this manager does not lead", elsewhere=True, leader=found.addr if found else "")
            )
            return
        await leading.dispatcher.session(peer, address, channel)

    async def _serve_forwarded(self, request: web.Request, path: str) -> web.StreamResponse:
        if self._serve is None:
            raise Unavailable("this manager serves no forwarded requests")
        response = await self._serve(request, path)
        if self._store is not None and not response.prepared:
            response.headers[REVISION_HEADER] = str(self._store.view().revision)
        return response

    # -- leading -------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        self._making = leading = Leading(self.store, self.resolver, self._hostname, _check_promotion)
        await leading.open()
        self._leading = leading

    async def _end(self) -> None:
        self._leading = self._managers = None
        tending, self._tending = self._tending, None
        if tending is not None:
            tending.cancel()
            await asyncio.gather(tending, return_exceptions=True)
        making, self._making = self._making, None
        if making is not None:
            await making.close()

    # -- one of several ------------------------------------------------------------------------------------------

    async def become_several(self) -> None:
        """Move the state to etcd, unless it is there. Raises Unavailable, and then it is where it was."""
        async with self._moving:
            if self._several is not None:
                return
            sqlite = self.store
            await self._end()
            try:
                await self._name_address()
                process = await move_to_etcd(
                    self._home,
                    sqlite.view(),
                    self._me.node_id,
                    self._identity.cluster_id,
                    self._me.addr,
                    self._listen_addr,
                )
            except BaseException:
                await self._begin()
                raise
            self._share(process)
            await sqlite.close()
            remove_database(self._data_root / STORE)

    async def _name_address(self) -> None:
        """Our own certificate names our address, for the other members; the CA's key is in our store."""
        host = parse_address(self._me.addr)[0]
        if names_address(self._identity.certificate_pem, host):
            return
        view = self.store.view()
        cluster, node = the_cluster(view), view.get(Node, self._me.node_id)
        ca = CertificateAuthority(cluster.ca_cert_pem, cluster.ca_key_pem)
        self._identity = await asyncio.to_thread(
            found_identity,
            self._data_root,
            ca,
            node_id=self._me.node_id,
            cluster_id=cluster.id,
            now=time.time_ns(),
            life_ns=cluster.spec.ca_config.node_cert_expiry,
            address=host,
        )
        if node is not None:
            serial = self._identity.facts.serial
            await self.store.commit(
                [Put(msgspec.structs.replace(node, certificate_serial=serial), expect=node.version)]
            )

    def _share(self, process: EtcdProcess) -> None:
        self._process = process
        self._several = asyncio.create_task(self._run_several(process), name="one of several managers")

    async def _run_several(self, process: EtcdProcess, force_new_cluster: bool = False) -> None:
        """Keep etcd, follow it, stand for election; until cancelled."""
        client = EtcdClient(process.files.socket)
        store: EtcdStore | None = None
        try:
            await self._until_it_works(lambda: process.start(force_new_cluster=force_new_cluster))
            store = await self._until_it_works(lambda: EtcdStore.open(client))
            election = Election(
                client, self._me, lambda fence: self._gained(store, client, fence), self._lost
            )
            store.on_fenced = election.step_down
            self._store, self._election = store, election
            await election.run()
        finally:
            self._election = None
            if store is not None:
                await store.close()
            await client.close()

    async def _until_it_works(self, attempt: Callable[[], Awaitable[T]]) -> T:
        told = ""
        while True:
            try:
                return await attempt()
            except OverlaceError as e:
                if e.message != told:
                    log.info("waiting for etcd", reason=e.message)
                told = e.message
                await asyncio.sleep(0.2)

    async def _gained(self, store: EtcdStore | None, client: EtcdClient, fence: int) -> None:
        assert store is not None and self._election is not None
        await store.lead(fence)
        if self._demote_others:
            await self._forget_others(store)
        managers = Managers(store, client, self._me.node_id, partial(self._election.step_down, YIELD_SECONDS))
        with contextlib.suppress(OverlaceError):
            await managers.write_status()  # who leads, before anybody asks
        await self._begin()
        self._managers = managers
        self._tending = asyncio.create_task(managers.run(), name="tend the managers")

    async def _lost(self) -> None:
        await self._end()
        if isinstance(self._store, EtcdStore):
            await self._store.follow()

    async def _forget_others(self, store: Store) -> None:
        """After `--force-new-cluster`: the other managers' members are gone for good, so their nodes are workers."""
        await store.commit(
            [
                Put(
                    msgspec.structs.replace(
                        n, spec=msgspec.structs.replace(n.spec, role="worker"), manager_status=None
                    ),
                    expect=n.version,
                )
                for n in store.view().all(Node)
                if n.id != self._me.node_id and n.spec.role == "manager"
            ]
        )
        self._demote_others = False

    async def force_new_cluster(self) -> None:
        """Be the only manager, with the state this one has. Raises NoLeader when that does not come to pass."""
        if self._process is None:
            return  # SQLite: it is alone already
        async with self._moving:
            await self._stop_sharing()
            self._demote_others = True
            self._several = asyncio.create_task(
                self._run_several(self._process, force_new_cluster=True), name="one of several managers"
            )
        await self.wait_leader(2 * LEADER_SECONDS)

    async def retire(self, seconds: float = RETIRE_SECONDS) -> None:
        """Give our part of the state up to the other managers, as far as they can be reached. Never raises."""
        if self._process is None:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._retire()
        except (OverlaceError, TimeoutError) as e:
            log.warning("left without the other managers' knowing", reason=str(e) or "no answer in time")

    async def _retire(self) -> None:
        client = EtcdClient(self._home.files.socket)
        try:
            me, members = await client.members()
            if len(members) <= 1:
                return
            leader = await self.wait_leader()
            request = ManagerLeave(self._me.node_id)
            if leader == self._me:
                await self.leave_managers(request)
            else:
                await leave_managers(leader.addr, request, self.client_tls())
            with contextlib.suppress(EtcdError):  # a member that was removed ends, and answers no more
                while any(m.id == me for m in (await client.members())[1]):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        finally:
            await client.close()

    async def leave_managers(self, request: ManagerLeave) -> None:
        """The node is a worker from now on; its member goes as with `docker node demote`. On the leader."""
        _, store = self.leading, self.store
        for _ in range(10):
            node = store.view().get(Node, request.node_id)
            if node is None or node.spec.role != "manager":
                return
            spec = msgspec.structs.replace(node.spec, role="worker")
            with contextlib.suppress(OutOfSequence):
                await store.commit([Put(msgspec.structs.replace(node, spec=spec), expect=node.version)])
                return

    # -- the end -------------------------------------------------------------------------------------------------

    async def _stop_sharing(self) -> None:
        several, self._several = self._several, None
        if several is not None:
            several.cancel()
            await asyncio.gather(several, return_exceptions=True)

    async def close(self) -> None:
        await self._server.close()
        await self._stop_sharing()
        await self._end()
        if self._process is not None:
            await self._process.stop()
        await self.resolver.close()
        if self._store is not None:
            await self._store.close()

    async def forget(self) -> None:
        """After `close`: nothing of the state stays on this host."""
        await self._home.sweep()
        remove_database(self._data_root / STORE)


def remove_database(path: Path) -> None:
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)


def _check_promotion() -> None:
    find_program()
