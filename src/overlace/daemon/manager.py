"""The manager on this node: store, control, loop, dispatcher, logs and the port other nodes reach it at.

Owns founding a swarm's state and running its parts together. Must not decide anything itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from overlace.api.backend import InitRequest
from overlace.manager.control import Control, check_swarm
from overlace.manager.dispatch import Dispatcher
from overlace.manager.enrol import Enrolment
from overlace.manager.logs import LogBroker
from overlace.manager.loop import ManagerLoop
from overlace.manager.registry import Resolver
from overlace.model.ids import new_id
from overlace.model.objects import VXLAN_PORT, Cluster, ManagerStatus, Network, Node, NodeStatus
from overlace.model.specs import NetworkSpec, NodeSpec
from overlace.security.ca import CertificateAuthority
from overlace.security.identity import Identity, found_identity
from overlace.security.tls import peer_of, server_context
from overlace.security.tokens import generate_token
from overlace.store.base import Put, Store
from overlace.store.sqlite import SqliteStore
from overlace.wire.transport import parse_address
from overlace.wire.transport_server import TransportServer

log = structlog.get_logger(__name__)
STORE = Path("swarm") / "store.db"


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
    """Implements `api.backend.ManagerHandle`."""

    def __init__(
        self, store: Store, identity: Identity, insecure_registries: Sequence[str], hostname: str
    ) -> None:
        self.store = store
        self.resolver = Resolver(insecure_registries)
        self.control = Control(store, resolver=self.resolver)
        self.dispatcher = Dispatcher(store, hostname=hostname)
        self.logs = LogBroker(store, self.dispatcher)
        self.dispatcher.on_log = self.logs.on_log
        self.dispatcher.on_session = self._on_session
        self._loop = ManagerLoop(store)
        self._server = TransportServer(
            Enrolment(store, identity.node_id), self.dispatcher.session, server_context(identity), peer_of
        )
        self._running: list[asyncio.Task[None]] = []

    @classmethod
    async def open(
        cls,
        data_root: Path,
        identity: Identity,
        listen_addr: str,
        insecure_registries: Sequence[str],
        hostname: str,
    ) -> ManagerSide:
        """Raises Unavailable (port or disk), Internal (a damaged store)."""
        side = cls(SqliteStore(data_root / STORE), identity, insecure_registries, hostname)
        try:
            await side.dispatcher.start()
            await side._server.start(*parse_address(listen_addr))
        except BaseException:
            await side.close()
            raise
        side._running.append(asyncio.create_task(side._loop.run(), name="manager loop"))
        return side

    def _on_session(self, node_id: str, connected: bool) -> None:
        if connected:
            self.logs.on_connect(node_id)

    async def close(self) -> None:
        await self._server.close()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self.dispatcher.close()
        await self.resolver.close()
        await self.store.close()
