"""Which nodes keep the cluster's state: etcd's members follow the nodes' roles, and the node objects say how they are.

Owns admitting, promoting and removing members, one change at a time, and the manager status people see. Runs on the
leader. Must not know processes or files. A new member is a learner first: should it never start, nothing waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

import msgspec
import structlog

from overlace.model.errors import FailedPrecondition, NotFound, OutOfSequence, OverlaceError, Unavailable
from overlace.model.objects import PEER_PORT, Cluster, ManagerStatus, Node, Service
from overlace.model.states import NodeState
from overlace.store.base import Put, Store
from overlace.store.etcd.client import EtcdClient, EtcdError, EtcdMember
from overlace.wire.transport import ManagerEntry, ManagerJoin, parse_address

log = structlog.get_logger(__name__)
LOOK_SECONDS = 1.0
ADMIT_SECONDS = 40.0  # while another node's member is being taken in
STALE_SECONDS = 120.0  # a learner that has not started by then never will


class Promote(msgspec.Struct, frozen=True):
    member: int


class Remove(msgspec.Struct, frozen=True):
    member: int
    why: str


class StepDown(msgspec.Struct, frozen=True):
    """This manager is the one to go: another has to lead, and remove it."""


Step = Promote | Remove | StepDown


def owner_of(member: EtcdMember, nodes: Iterable[Node]) -> str:
    """The node a member belongs to; a member that never started has no name yet, only an address."""
    if member.name:
        return member.name
    hosts = {url.partition("://")[2].rpartition(":")[0].strip("[]") for url in member.peer_urls}
    for node in nodes:
        if node.manager_status is not None and parse_address(node.manager_status.addr)[0] in hosts:
            return node.id
    return ""


def plan_members(
    me: str, members: Sequence[EtcdMember], nodes: Sequence[Node], stale: frozenset[int] = frozenset()
) -> Step | None:
    """The next change of etcd's members, None when they are as the roles say. `stale`: learners given up."""
    wanted = {n.id for n in nodes if n.spec.role == "manager" and not n.removed}
    for member in members:
        owner = owner_of(member, nodes)
        if member.learner and (owner not in wanted or member.id in stale):
            return Remove(member.id, "it is no manager's" if owner not in wanted else "it never caught up")
        if not member.learner and owner not in wanted and owner != me:
            return Remove(member.id, "its node is no manager any more")
    for member in members:
        if member.learner:
            return Promote(member.id)
    return StepDown() if me not in wanted and len(members) > 1 else None


def plan_status(me: str, members: Sequence[EtcdMember], nodes: Sequence[Node]) -> list[Node]:
    """The nodes whose manager status is not what it should be, with what it should be."""
    voters = {m.name for m in members if not m.learner}
    changed = []
    for node in nodes:
        old = node.manager_status
        new = old
        if node.id in voters and not node.removed and old is not None:
            silent = node.status.state == NodeState.DOWN
            unsure = node.status.state == NodeState.UNKNOWN and node.id != me
            reachability = "unreachable" if silent else old.reachability if unsure else "reachable"
            new = ManagerStatus(leader=node.id == me, reachability=reachability, addr=old.addr)
        elif node.spec.role != "manager" or node.removed:
            new = None
        elif old is not None and (old.leader or old.reachability != "unreachable"):
            new = ManagerStatus(leader=False, reachability="unreachable", addr=old.addr)
        if new != old:
            changed.append(msgspec.structs.replace(node, manager_status=new))
    return changed


def check_demotion(node: Node, nodes: Iterable[Node]) -> None:
    """Raises FailedPrecondition in Docker's words (swarmkit controlapi/node.go UpdateNode) when a manager must stay."""
    managers = [n for n in nodes if n.spec.role == "manager" and not n.removed]
    if len(managers) <= 1:
        raise FailedPrecondition("attempting to demote the last manager of the swarm")
    voters = [n for n in managers if n.manager_status is not None and n.id != node.id]
    reachable = [n for n in voters if n.manager_status and n.manager_status.reachability == "reachable"]
    if len(reachable) < len(voters) // 2 + 1:
        raise FailedPrecondition("can't remove member from the raft: this would result in a loss of quorum")


def check_peer_port(services: Iterable[Service]) -> None:
    """Raises FailedPrecondition when a service has the port at which several managers keep their state together: no
    service is refused it while there is one manager."""
    for service in services:
        asked = service.spec.endpoint_spec
        given = service.endpoint.ports if service.endpoint is not None else ()
        for port in (*(asked.ports if asked is not None else ()), *given):
            if (port.protocol, port.published_port) == ("tcp", PEER_PORT):
                name = service.spec.name
                raise FailedPrecondition(
                    f"port {PEER_PORT}/tcp, where several managers keep their state together, is published by service "
                    f"{name}: publish another port first (docker service update --publish-rm {port.target_port} {name})"
                )


class Managers:
    """`run` until cancelled. `step_down` is called when this manager itself has to go."""

    def __init__(self, store: Store, client: EtcdClient, me: str, step_down: Callable[[], None]) -> None:
        self._store = store
        self._client = client
        self._me = me
        self._step_down = step_down
        self._learners: dict[int, float] = {}  # since when

    async def admit(self, request: ManagerJoin) -> ManagerEntry:
        """Take a node's member in, as a learner. May be repeated. Raises NotFound, FailedPrecondition, Unavailable."""
        until = _now() + ADMIT_SECONDS
        while True:
            try:
                _, members = await self._client.members()
                ours = [m for m in members if m.name == request.node_id or request.peer_url in m.peer_urls]
                kept = False
                for member in ours:
                    if member.name or request.peer_url not in member.peer_urls:
                        # it has started before, and what it had is lost; or its node has moved
                        await self._client.remove(member.id)
                    else:
                        kept = True
                await self._note_address(request)
                if not kept:
                    await self._client.add_learner(request.peer_url)
                _, members = await self._client.members()
                break
            except EtcdError as e:
                if _now() > until:
                    raise Unavailable(f"etcd does not take {request.peer_url} in: {e.message}") from e
                await asyncio.sleep(0.3)
            except OutOfSequence:
                await asyncio.sleep(0)
        cluster = next(iter(self._store.view().all(Cluster)))
        return ManagerEntry(
            token=cluster.id,
            cluster=tuple((m.name or request.node_id, url) for m in members for url in m.peer_urls),
        )

    async def _note_address(self, request: ManagerJoin) -> None:
        node = self._store.view().get(Node, request.node_id)
        if node is None or node.removed:
            raise NotFound(f"node {request.node_id} not found")
        if node.spec.role != "manager":
            raise FailedPrecondition(f"node {node.id} is a worker: promote it first (docker node promote)")
        if node.manager_status is None or node.manager_status.addr != request.addr:
            status = ManagerStatus(leader=False, reachability="unreachable", addr=request.addr)
            await self._store.commit(
                [Put(msgspec.structs.replace(node, manager_status=status), expect=node.version)]
            )

    async def run(self) -> None:
        told = ""
        while True:
            try:
                await self.step()
                told = ""
            except (OutOfSequence, EtcdError) as e:
                if e.message != told:
                    told = e.message
                    log.info("the managers are not as they should be yet", reason=told)
            except OverlaceError as e:
                log.warning("cannot tend the managers", reason=e.message)
            except Exception:
                log.exception("tending the managers failed")
            await asyncio.sleep(LOOK_SECONDS)

    async def step(self) -> None:
        """Look once, change what is due. Raises EtcdError (a learner not caught up, no quorum), OutOfSequence."""
        _, members = await self._client.members()
        nodes = list(self._store.view().all(Node))
        await self._write_status(members, nodes)
        now = _now()
        self._learners = {m.id: self._learners.get(m.id, now) for m in members if m.learner}
        stale = frozenset(id for id, since in self._learners.items() if now - since > STALE_SECONDS)
        match plan_members(self._me, members, nodes, stale):
            case Promote(member=id):
                await self._client.promote(id)
                log.info("a manager has its vote", member=f"{id:x}")
            case Remove(member=id, why=why):
                log.info("removing an etcd member", member=f"{id:x}", why=why)
                await self._client.remove(id)
            case StepDown():
                self._step_down()
                return
            case None:
                return
        await self.write_status()

    async def write_status(self) -> None:
        """Make the nodes say who leads. Raises EtcdError, OutOfSequence."""
        _, members = await self._client.members()
        await self._write_status(members, list(self._store.view().all(Node)))

    async def _write_status(self, members: Sequence[EtcdMember], nodes: Sequence[Node]) -> None:
        await self._store.commit([Put(n, expect=n.version) for n in plan_status(self._me, members, nodes)])


def _now() -> float:
    return asyncio.get_running_loop().time()
