"""Lets nodes into the swarm and keeps strangers out: certificates against join tokens, renewals, admission.

Owns the decision who gets a certificate and the node object made with it. Must not know sockets; the port's
routes call this (`wire.transport_server.Enrolment`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

import msgspec
import structlog

from overlace.manager.managers import check_peer_port
from overlace.model.errors import InvalidArgument, OutOfSequence, PermissionDenied, Unavailable, Unimplemented
from overlace.model.family import is_six
from overlace.model.ids import new_id
from overlace.model.objects import Cluster, Node, NodeDescription, NodeStatus, Service
from overlace.model.specs import NodeSpec
from overlace.model.states import NodeState
from overlace.security.ca import CertificateAuthority
from overlace.security.tokens import InvalidToken, tokens_match
from overlace.store.base import Put, Store, View
from overlace.wire.transport import Certificate, JoinRequest, RenewRequest

log = structlog.get_logger(__name__)
_AVAILABILITY = ("active", "pause", "drain")


class Peer(Protocol):
    """The holder of a verified certificate (`security.tls.TlsPeer`)."""

    @property
    def node_id(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def cluster_id(self) -> str: ...


def the_cluster(view: View) -> Cluster:
    """The one cluster object. Raises Unavailable before there is one."""
    for cluster in view.all(Cluster):
        return cluster
    raise Unavailable("this manager has no swarm yet")


def explain_apart(view: View, joining: NodeDescription | None) -> str:
    """Why tunnels between the host that joins and those of the swarm cannot be: one has an IPv4 data path address and the
    other an IPv6 one. Empty: they can, or it is not known."""
    if joining is None or not joining.underlay_address:
        return ""
    own, six = joining.underlay_address, is_six(joining.underlay_address)
    for node in view.all(Node):
        d = node.description
        if node.removed or d is None or not d.underlay_address or is_six(d.underlay_address) == six:
            continue
        mine, theirs = ("IPv6", "IPv4") if six else ("IPv4", "IPv6")
        if joining.os == "windows" and not six:
            return (
                f"the hosts of this swarm reach each other over IPv6 ({d.hostname}: {d.underlay_address}), and the HNS "
                f"of a Windows host ({own}) tunnels over IPv4 alone: it can join a swarm whose hosts have IPv4 data path "
                "addresses (docker swarm init --data-path-addr)"
            )
        return (
            f"data path address {own} of this host is {mine}, and {d.underlay_address} of {d.hostname} is {theirs}: "
            f"there is no tunnel between them; join with --data-path-addr and an {theirs} address of this host"
        )
    return ""


class Enrolment:
    """`node_id` is this manager's own. `several_managers`: whether another manager may join."""

    def __init__(
        self,
        store: Store,
        node_id: str,
        *,
        several_managers: bool = False,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._store = store
        self._node_id = node_id
        self._several_managers = several_managers
        self._clock = clock
        self._authority: CertificateAuthority | None = None

    def ca(self) -> str:
        return the_cluster(self._store.view()).ca_cert_pem

    def admit(self, peer: Peer) -> None:
        """Raises PermissionDenied when this node is not, or no longer, in the swarm."""
        self._member(self._store.view(), peer)

    def admit_manager(self, peer: Peer) -> None:
        """Raises PermissionDenied when this node is no manager, whatever its certificate still says."""
        node = self._member(self._store.view(), peer)
        if peer.role != "manager" or node.acting_role != "manager":
            raise PermissionDenied(f"node {peer.node_id} is no manager of this swarm")

    async def join(self, request: JoinRequest, address: str) -> Certificate:
        """A node id, a certificate and a node object for whoever holds a token; the token decides the role.

        Raises PermissionDenied (`invalid join token`), Unimplemented (a second manager where the store serves one),
        InvalidArgument for a bad request, Unavailable.
        """
        cluster = the_cluster(self._store.view())
        # both are compared, always: how long it takes says nothing about either
        manager = tokens_match(request.token, cluster.manager_token)
        worker = tokens_match(request.token, cluster.worker_token)
        if not (manager or worker):
            log.warning("join refused: wrong token", address=address)
            raise PermissionDenied(InvalidToken().message)
        if manager and not self._several_managers:
            raise Unimplemented(
                "joining as a manager is not possible: etcd is not installed where the first manager runs "
                "(apt-get install etcd-server); join as a worker (docker swarm join-token worker)"
            )
        if manager and request.description is not None and not request.description.can_manage:
            raise Unimplemented(
                "a Windows host is a worker: join it with the token that docker swarm join-token worker prints"
            )
        if manager:
            check_peer_port(self._store.view().all(Service))
        apart = explain_apart(self._store.view(), request.description)
        if apart:
            raise InvalidArgument(apart)
        role = "manager" if manager else "worker"
        availability = request.availability if request.availability in _AVAILABILITY else "active"
        now = self._clock()
        node_id = new_id()
        certificate = self._issue(cluster, request.csr, node_id, role, now, request.addr)
        node = Node(
            id=node_id,
            spec=NodeSpec(role=role, availability=availability),
            description=request.description,
            status=NodeStatus(state=NodeState.UNKNOWN, addr=address, since=now),
            certificate_serial=certificate[1],
        )
        await self._store.commit([Put(node, expect=0)])
        log.info("node joined", node=node_id, role=role, address=address)
        return Certificate(certificate[0], node_id, cluster.ca_cert_pem, role, self._node_id)

    async def renew(self, peer: Peer, request: RenewRequest) -> Certificate:
        """A new certificate for the same node, with the role it has now; a demoted manager keeps its own until
        its etcd member is out, which would take the quorum along if it ended before.

        Raises PermissionDenied when it is not in the swarm, InvalidArgument for a bad request, Unavailable.
        """
        for attempt in range(10):
            view = self._store.view()
            node = self._member(view, peer)
            cluster = the_cluster(view)
            pem, serial = self._issue(
                cluster, request.csr, node.id, node.acting_role, self._clock(), request.addr
            )
            renewed = msgspec.structs.replace(node, certificate_serial=serial)
            try:
                await self._store.commit([Put(renewed, expect=node.version)])
            except OutOfSequence:
                await asyncio.sleep(0.01 * attempt)  # somebody else wrote the node: look again
                continue
            return Certificate(pem, node.id, cluster.ca_cert_pem, node.acting_role, self._node_id)
        raise Unavailable("the node object changes too often to renew its certificate now: try again")

    def _member(self, view: View, peer: Peer) -> Node:
        cluster = the_cluster(view)
        if peer.cluster_id != cluster.id:
            raise PermissionDenied(f"node {peer.node_id} belongs to another swarm ({peer.cluster_id})")
        node = view.get(Node, peer.node_id)
        if node is None or node.removed:
            raise PermissionDenied(
                f"node {peer.node_id} was removed from the swarm: "
                "leave it (--force) and join again to come back"
            )
        return node

    def _issue(
        self, cluster: Cluster, csr: str, node_id: str, role: str, now: int, addr: str
    ) -> tuple[str, str]:
        authority = self._authority
        if authority is None or authority.cert_pem != cluster.ca_cert_pem:
            authority = self._authority = CertificateAuthority(cluster.ca_cert_pem, cluster.ca_key_pem)
        issued = authority.issue(
            csr,
            node_id=node_id,
            role=role,
            cluster_id=cluster.id,
            now=now,
            life_ns=cluster.spec.ca_config.node_cert_expiry,
            address=addr.rpartition(":")[0].strip("[]"),
        )
        return issued.pem, issued.serial
