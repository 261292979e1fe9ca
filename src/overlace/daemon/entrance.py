"""Who is let in at a manager's port, whether or not this manager leads: what only the leader may answer is passed on.

Owns the passing on. The rules are manager.enrol's and manager.managers'. Implements `wire.transport_server.Enrolment`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from overlace.manager.enrol import Enrolment
from overlace.model.errors import NotLeading, Unavailable
from overlace.security.tls import TlsPeer, client_context
from overlace.store.base import Store
from overlace.store.etcd.member import find_program
from overlace.wire.transport import (
    Certificate,
    Done,
    JoinRequest,
    ManagerEntry,
    ManagerJoin,
    ManagerLeave,
    RenewRequest,
)
from overlace.wire.transport_client import join_managers, leave_managers, request_certificate

if TYPE_CHECKING:
    from overlace.daemon.manager import ManagerSide


class Entrance:
    def __init__(self, side: ManagerSide) -> None:
        self._side = side
        self._known: tuple[Store, Enrolment] | None = None

    def _enrolment(self) -> Enrolment:
        store = self._side.store
        if self._known is None or self._known[0] is not store:
            self._known = store, Enrolment(store, self._side.node_id, several_managers=_has_etcd())
        return self._known[1]

    def ca(self) -> str:
        return self._side.identity.ca_pem

    def admit(self, peer: TlsPeer) -> None:
        self._enrolment().admit(peer)

    def admit_manager(self, peer: TlsPeer) -> None:
        self._enrolment().admit_manager(peer)

    async def join(self, request: JoinRequest, address: str) -> Certificate:
        leader = await self._side.wait_leader()
        if leader.node_id == self._side.node_id:
            return await self._enrolment().join(request, address)
        return await request_certificate(leader.addr, request, client_context(self.ca()))

    async def renew(self, peer: TlsPeer, request: RenewRequest) -> Certificate:
        """The peer shows who it is to the leader itself; it knows all managers and asks the next one."""
        try:
            _ = self._side.leading
        except NotLeading:
            raise Unavailable("this manager does not lead: ask the leader") from None
        return await self._enrolment().renew(peer, request)

    async def join_managers(self, peer: TlsPeer, request: ManagerJoin) -> ManagerEntry:
        leader = await self._side.wait_leader()
        if leader.node_id != self._side.node_id:
            return await join_managers(leader.addr, request, self._side.client_tls())
        await self._side.become_several()
        await self._side.wait_leader()
        return await self._side.managers.admit(request)

    async def leave_managers(self, peer: TlsPeer, request: ManagerLeave) -> Done:
        leader = await self._side.wait_leader()
        if leader.node_id == self._side.node_id:
            await self._side.leave_managers(request)
        else:
            await leave_managers(leader.addr, request, self._side.client_tls())
        return Done()


def _has_etcd() -> bool:
    try:
        find_program()
    except Unavailable:
        return False
    return True
