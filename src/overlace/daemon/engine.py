"""The engine: this host's daemon as the Engine API sees it, in or out of a swarm.

Owns becoming a member (init, join), being one again after a restart, and leaving: each leaves nothing half-made. Wires
the rooms together; must not decide anything about services or packets itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from overlace.agent.agent import Agent
from overlace.agent.enrol import join_swarm
from overlace.agent.session import AgentSession
from overlace.agent.standalone.keeper import Keeper
from overlace.api.backend import (
    ContainerAddress,
    EngineOptions,
    InitRequest,
    JoinRequest,
    LocalNetwork,
    LocalSwarm,
    Peer,
)
from overlace.api.swarm_requests import check_leave, heard_at
from overlace.cli.daemon import DaemonOptions
from overlace.daemon import facts, networks
from overlace.daemon.drivers import HostDriver
from overlace.daemon.etcd_home import EtcdHome, enter_managers, quit_managers
from overlace.daemon.host import NodeHost, has_leftovers, sweep
from overlace.daemon.manager import STORE, ManagerSide, found_swarm
from overlace.daemon.membership import Membership, MembershipFile, engine_id
from overlace.daemon.runtimes import make_runtime
from overlace.daemon.standalone import Standalone
from overlace.model.errors import Internal, InvalidArgument, OverlaceError, Unavailable, Unimplemented
from overlace.model.ids import new_id
from overlace.model.specs import PortConfig
from overlace.network.switch import Switch
from overlace.runtime.base import Runtime
from overlace.security.identity import Identity, load_identity
from overlace.store.etcd.election import Leader
from overlace.wire.messages import Manager, Refused, Welcome
from overlace.wire.transport_server import ServeEngine

log = structlog.get_logger(__name__)
JOIN_MANAGER_SECONDS = 90.0  # the first manager may have to move its state to etcd
JOIN_SECONDS = 20.0  # moby daemon/cluster/cluster.go swarmConnectTimeout
REVIVE_SECONDS = (1.0, 30.0)  # first and longest pause before trying again what failed at the start


class Engine:
    """Implements `api.backend.Backend`."""

    def __init__(self, options: DaemonOptions) -> None:
        self._daemon = options
        self._data_root = Path(options.data_root)
        self._exec_root = Path(options.exec_root)
        self._system = system = facts.this_system(options.emulate_windows)
        self._files = MembershipFile(self._data_root)
        self._membership: Membership | None = None
        self._manager: ManagerSide | None = None
        self._host: NodeHost | None = None
        self._identity: Identity | None = None
        self._error = ""
        self._state: str = "inactive"
        self._changing = asyncio.Lock()
        self._reviver: asyncio.Task[None] | None = None
        self._welcomed = asyncio.Event()
        self._role_changes: set[asyncio.Task[None]] = set()
        self._entering: asyncio.Task[None] | None = None
        self.serve_api: ServeEngine | None = None  # answers what other managers pass on
        self._options = facts.engine_options(options, system, engine_id(self._data_root), time.time_ns())
        self._runtime: Runtime = make_runtime(options, system)
        self._standalone = Standalone(options, system, self._runtime, self._member_driver)
        self._containers = self._standalone.keeper

    # -- life ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Find the containers again, then the swarm this host was in."""
        await self._runtime.open()
        await self._containers.load()
        await self._take_part()
        self._containers.follow()
        if self._state == "error":
            self._reviver = asyncio.create_task(self._revive(), name="try the swarm again")

    async def _take_part(self) -> None:
        """Be the member the disk says. What fails is told, not raised: the API must answer, so that the person can see
        why and leave."""
        told = self._error
        try:
            self._membership = membership = self._files.load()
            if membership is None:
                if has_leftovers(self._data_root):  # a crash in the middle of init, join or leave
                    await self._sweep()
                return
            identity = load_identity(self._data_root)
            if identity is None:
                raise Internal(
                    f"{self._files.folder} has no certificate: leave the swarm (--force) and join again"
                )
            if membership.role != identity.role:  # a crash between the new certificate and the note of it
                membership = msgspec.structs.replace(membership, role=identity.role)
                self._files.save(membership)
            await self._start(membership, identity)
        except Exception as e:
            message = e.message if isinstance(e, OverlaceError) else f"{type(e).__name__}: {e}"
            if message != told:
                log.error(
                    "cannot take part in the swarm",
                    error=message,
                    exc_info=None if isinstance(e, OverlaceError) else e,
                )
            await self._stop()
            self._state, self._error = "error", message

    async def _revive(self) -> None:
        """A port still held, a full disk, a late interface: try again until it works or the node leaves."""
        pause = REVIVE_SECONDS[0]
        while self._state == "error":
            await asyncio.sleep(pause)
            pause = min(2 * pause, REVIVE_SECONDS[1])
            async with self._changing:
                if self._state == "error" and self._host is None:
                    await self._take_part()

    async def close(self) -> None:
        """Let go: containers and traffic go on."""
        if self._reviver is not None:
            self._reviver.cancel()
            await asyncio.gather(self._reviver, return_exceptions=True)
        await self._containers.close()
        async with self._changing:
            await self._stop()
            await self._standalone.own.close()
            await self._runtime.close()

    def _member_driver(self) -> HostDriver | None:
        """The swarm's network on this host; None outside of one. Raises Unavailable while it is not open."""
        if self._host is not None:
            return self._host.driver
        if self._membership is not None or self._state == "error":
            raise Unavailable(
                f"this host's network is not there: {self._error or 'its swarm is not open yet'}"
            )
        return None

    async def _start(self, membership: Membership, identity: Identity) -> None:
        self._membership, self._identity = membership, identity
        self._welcomed.clear()
        self._state, self._error = "pending", ""
        host = NodeHost(
            node_id=membership.node_id,
            data_root=self._data_root,
            exec_root=self._exec_root,
            hostname=self._daemon.hostname,
            labels=dict(self._daemon.labels),
            generic=self._daemon.generic,
            underlay_address=membership.underlay_address,
            system=self._system,
            dns=self._daemon.dns,
            balancing=self._daemon.service_balancing,
            runtime=self._runtime,
            connect=self._connect,
            others=self._containers.ids,
            attacher=self._standalone.attacher,
            on_refused=self._on_refused,
            on_welcome=self._on_welcome,
        )
        await self._standalone.own.close()
        self._host = host
        home = EtcdHome(self._data_root, identity)
        if membership.role != "manager":
            await home.sweep()  # of a demotion that a crash ended
        elif home.load() is not None or (self._data_root / STORE).exists():
            self._manager = await self._open_manager(membership, identity)
        else:
            self._entering = asyncio.create_task(self._enter(), name="become one of the managers")
        await host.open()
        self._containers.network_changed()

    async def _open_manager(self, membership: Membership, identity: Identity) -> ManagerSide:
        return await ManagerSide.open(
            self._data_root,
            identity,
            Leader(membership.node_id, membership.advertise_addr),
            membership.listen_addr,
            self._daemon.insecure_registries,
            self._daemon.hostname,
            self.serve_api,
        )

    async def _stop(self) -> None:
        await self._stop_entering()
        for change in list(self._role_changes):
            change.cancel()
        host, self._host = self._host, None
        manager, self._manager = self._manager, None
        if host is not None:
            await host.close()
        if manager is not None:
            await manager.close()

    def _connect(self, agent: Agent) -> AgentSession:
        assert self._identity is not None and self._membership is not None
        return AgentSession(
            self._data_root,
            self._identity,
            [m.addr for m in self._membership.managers],
            agent,
            on_identity=self._on_identity,
            advertise=self._membership.advertise_addr,
        )

    # -- promotion and demotion ----------------------------------------------------------------------------------

    def _on_identity(self, identity: Identity) -> None:
        self._identity = identity
        change = asyncio.create_task(self._follow_role(), name="follow the role")
        self._role_changes.add(change)
        change.add_done_callback(self._role_changes.discard)

    async def _follow_role(self) -> None:
        """Be what our certificate says: take the state in, or give it up."""
        async with self._changing:
            identity, membership = self._identity, self._membership
            if identity is None or membership is None or membership.role == identity.role:
                return
            log.info("this node's role changes", role=identity.role)
            self._membership = msgspec.structs.replace(membership, role=identity.role)
            self._files.save(self._membership)
            if identity.role == "manager":
                self._entering = asyncio.create_task(self._enter(), name="become one of the managers")
                return
            await self._stop_entering()
            manager, self._manager = self._manager, None
            if manager is not None:
                await manager.close()
                await manager.forget()

    async def _enter(self) -> None:
        """Become one of the managers; tried until it works or the role changes again."""
        pause, told = REVIVE_SECONDS[0], ""
        while True:
            try:
                assert self._identity is not None and self._membership is not None
                await enter_managers(self._data_root, self._identity, self._membership)
                manager = await self._open_manager(self._membership, self._identity)
                break
            except OverlaceError as e:
                if e.message != told:
                    log.warning("not one of the managers yet, will try again", reason=e.message)
                told = self._error = e.message
            except Exception as e:
                log.exception("becoming a manager failed, will try again")
                self._error = str(e)
            await asyncio.sleep(pause)
            pause = min(2 * pause, REVIVE_SECONDS[1])
        self._manager, self._error = manager, ""

    async def _stop_entering(self) -> None:
        entering, self._entering = self._entering, None
        if entering is not None:
            entering.cancel()
            await asyncio.gather(entering, return_exceptions=True)

    # -- what the manager says to this node as a whole -----------------------------------------------------------

    def _on_welcome(self, message: Welcome) -> None:
        self._state, self._error = "active", ""
        self._welcomed.set()
        membership = self._membership
        if membership is not None and message.managers and message.managers != membership.managers:
            self._membership = msgspec.structs.replace(membership, managers=message.managers)
            self._files.save(self._membership)

    def _on_refused(self, message: Refused) -> None:
        log.error("the manager refuses this node", reason=message.reason, final=message.final)
        self._error = message.reason
        if message.final:
            self._state = "error"

    # -- the API's backend ---------------------------------------------------------------------------------------

    @property
    def runtime(self) -> Runtime:
        return self._runtime

    @property
    def containers(self) -> Keeper:
        return self._containers

    @property
    def options(self) -> EngineOptions:
        return self._options

    @property
    def manager(self) -> ManagerSide | None:
        return self._manager

    @property
    def switch(self) -> Switch | None:
        return self._host.driver.switch if self._host is not None else None

    @property
    def parts(self) -> tuple[NodeHost | None, ManagerSide | None]:
        """The node's half and the manager's, as they are now."""
        return self._host, self._manager

    def swarm(self) -> LocalSwarm:
        m = self._membership
        if m is None:
            return LocalSwarm(state="error", error=self._error) if self._state == "error" else LocalSwarm()
        return LocalSwarm(
            state=self._state,  # type: ignore[arg-type]  # only this class sets it
            node_id=m.node_id,
            node_addr=m.advertise_addr.rpartition(":")[0].strip("[]"),
            control_available=self._manager is not None,
            error=self._error,
            remote_managers=tuple(Peer(p.node_id, p.addr) for p in m.managers),
        )

    async def swarm_init(self, request: InitRequest) -> str:
        async with self._changing:
            if request.force_new_cluster and self._manager is not None and self._membership is not None:
                if request.advertise_addr not in ("", self._membership.advertise_addr):
                    raise Unimplemented(
                        f"AdvertiseAddr {request.advertise_addr}: with ForceNewCluster this manager keeps its address "
                        f"{self._membership.advertise_addr}; leave --advertise-addr out"
                    )
                await self._manager.force_new_cluster()
                return self._membership.node_id
            self._check_free()
            if not self._system.can_manage:
                raise Unimplemented(
                    "a Windows host is a worker: run docker swarm init on a Linux host, and join this one with the token "
                    "that docker swarm join-token worker prints there"
                )
            advertise, underlay = self._addresses(request)
            node_id = new_id()
            self._files.prepare()
            try:
                cluster_id, identity = await found_swarm(self._data_root, request, node_id, advertise)
                membership = Membership(
                    node_id=node_id,
                    cluster_id=cluster_id,
                    role="manager",
                    advertise_addr=advertise,
                    listen_addr=heard_at(request.listen_addr, advertise),
                    underlay_address=underlay,
                    managers=(Manager(node_id, advertise),),
                )
                await self._become(membership, identity)
            except BaseException:
                await self._undo()
                raise
            return node_id

    async def swarm_join(self, request: JoinRequest) -> None:
        async with self._changing:
            self._check_free()
            advertise, underlay = self._addresses(request)
            self._files.prepare()
            entered: tuple[Identity, Membership] | None = None
            try:
                async with asyncio.timeout(JOIN_SECONDS) as limit:
                    identity, manager = await join_swarm(
                        self._data_root,
                        request.remote_addrs,
                        request.join_token,
                        description=facts.newcomer(self._daemon, underlay, self._system),
                        availability=request.availability,
                        advertise=advertise,
                    )
                    membership = Membership(
                        node_id=identity.node_id,
                        cluster_id=identity.cluster_id,
                        role=identity.role,
                        advertise_addr=advertise,
                        listen_addr=heard_at(request.listen_addr, advertise),
                        underlay_address=underlay,
                        managers=(manager,),
                    )
                    if identity.role == "manager":
                        limit.reschedule(asyncio.get_running_loop().time() + JOIN_MANAGER_SECONDS)
                        entered = identity, membership
                        await enter_managers(self._data_root, identity, membership)
                    await self._become(membership, identity)
            except TimeoutError:
                await self._undo_join(entered)
                raise Unavailable(
                    "Timeout was reached before node joined. The attempt to join the swarm will not continue in the "
                    f"background: check that {', '.join(request.remote_addrs)} can be reached and try again."
                ) from None
            except BaseException:
                await self._undo_join(entered)
                raise

    async def swarm_leave(self, force: bool) -> None:
        async with self._changing:
            managers = len(self._membership.managers) if self._membership else 0
            check_leave(self.swarm(), force, managers)
            await self._leave()

    def _check_free(self) -> None:
        if self._membership is not None or self._state == "error":
            raise Unavailable(
                'This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.'
            )

    def _addresses(self, request: InitRequest | JoinRequest) -> tuple[str, str]:
        """(advertised host:port, VTEP address)"""
        return facts.member_addresses(
            request.advertise_addr,
            request.data_path_addr,
            request.listen_addr,
            self._daemon.underlay_address,
            windows=self._system.os == "windows",
        )

    async def _become(self, membership: Membership, identity: Identity) -> None:
        """Run as a member; on disk only once the manager has welcomed us."""
        await self._start(membership, identity)
        async with asyncio.timeout(JOIN_SECONDS):
            await self._welcomed.wait()
        self._files.save(self._membership or membership)

    async def _undo(self) -> None:
        try:
            await self._leave()
        except Exception:
            log.exception("undoing a failed init or join left something behind")

    async def _undo_join(self, entered: tuple[Identity, Membership] | None) -> None:
        if entered is not None:
            await quit_managers(
                *entered
            )  # a member that never works would count when the others ask for a quorum
        await self._undo()

    async def _leave(self) -> None:
        await self._stop_entering()
        if self._manager is not None:
            await self._manager.retire()
        await self._containers.leave_swarm()
        host, self._host = self._host, None
        manager, self._manager = self._manager, None
        if host is not None:
            await host.leave()
        if manager is not None:
            await manager.close()
        if has_leftovers(self._data_root):  # it never started, or could not end all of it
            await self._sweep()
        if self._identity is not None:
            await EtcdHome(self._data_root, self._identity).sweep()
        self._files.forget()
        self._membership, self._identity, self._state, self._error = None, None, "inactive", ""
        self._containers.network_changed()

    async def _sweep(self) -> None:
        """Take away what an earlier membership left on this host: containers, network, the agent's state."""
        try:
            address = facts.default_address(self._daemon.underlay_address)
        except InvalidArgument:
            address = self._membership.underlay_address if self._membership is not None else ""
        await sweep(self._data_root, self._exec_root, self._runtime, address, self._containers.ids())

    # -- facts for network and container inspect -----------------------------------------------------------------

    def local_networks(self) -> Sequence[LocalNetwork]:
        node_id = self._membership.node_id if self._membership is not None else ""
        return networks.local_networks(self._host, node_id, self._options, self._containers)

    async def container_addresses(self, container: str) -> Sequence[ContainerAddress]:
        record = self._containers.record(container)
        if record is not None:
            attached = self._containers.attached(container)
            return networks.standalone_addresses(record, attached, self._options.id)
        if self._host is None:
            return ()
        return networks.container_addresses(self._host, container, self._options.id)

    async def container_ports(self, container: str) -> Sequence[PortConfig]:
        attached = self._containers.attached(container)
        if attached is not None:
            return attached.host_ports
        found = self._host.agent.worker.attached(container) if self._host is not None else None
        return found[1].host_ports if found is not None else ()
