"""Update and remove nodes.

Owns what people may change of a node (labels, availability, role as far as a quorum of managers stays) and
how a node leaves for good: its object stays as a tombstone, so that its certificate is refused, and its tasks
are orphaned at once.
"""

from __future__ import annotations

import msgspec

from overlace.manager.control.base import Core, check_version, swarm
from overlace.manager.control.lookup import find
from overlace.manager.control.words import unsupported
from overlace.manager.managers import check_demotion, check_peer_port
from overlace.model.errors import FailedPrecondition, InvalidArgument
from overlace.model.objects import Node, Service
from overlace.model.specs import NodeSpec
from overlace.model.states import NodeState, TaskState
from overlace.store.base import Change, Put


class Nodes(Core):
    async def update_node(self, id: str, version: int, spec: NodeSpec) -> None:
        """Raises NotFound, OutOfSequence, InvalidArgument, FailedPrecondition, Unimplemented (promotion)."""
        if spec.role not in ("worker", "manager"):
            raise InvalidArgument(f'invalid Role: "{spec.role}"')
        if spec.availability not in ("active", "pause", "drain"):
            raise InvalidArgument(f'invalid Availability: "{spec.availability}"')
        async with self._lock:
            view = self.store.view()
            node = find(view, Node, id)
            check_version(node.version, version)
            if node.spec.role == "manager" and spec.role == "worker":
                try:
                    check_demotion(node, view.all(Node))
                except FailedPrecondition as error:
                    raise swarm(error) from None
            if node.spec.role == "worker" and spec.role == "manager":
                if node.description is not None and not node.description.can_manage:
                    host = node.description.hostname
                    words = f"node {host} is a Windows host and can only be a worker: promote a Linux host"
                    raise swarm(FailedPrecondition(words))
                if self._check_promotion is None:
                    raise unsupported("promoting a node", "this store serves one manager")
                self._check_promotion()
                try:
                    check_peer_port(view.all(Service))
                except FailedPrecondition as error:
                    raise swarm(error) from None
            await self._commit([Put(msgspec.structs.replace(node, spec=spec), expect=version)])

    async def remove_node(self, id: str, force: bool = False) -> None:
        """Raises NotFound, FailedPrecondition (a manager; or not down and no `force`)."""
        async with self._lock:
            view = self.store.view()
            node = find(view, Node, id)
            if node.spec.role == "manager":
                raise swarm(
                    FailedPrecondition(
                        f"node {node.id} is a cluster manager and is a member of the raft cluster. It must be"
                        " demoted to worker before removal"
                    )
                )
            if not force and node.status.state == NodeState.READY:
                raise swarm(FailedPrecondition(f"node {node.id} is not down and can't be removed"))
            now = self._clock()
            gone = msgspec.structs.replace(
                node,
                removed=True,
                network_addresses={},
                status=msgspec.structs.replace(
                    node.status, state=NodeState.DOWN, message="node removed", since=now
                ),
            )
            changes: list[Change] = [Put(gone, expect=node.version)]
            for task in view.tasks_of_node(node.id):
                if task.status.state.terminal:
                    continue
                status = msgspec.structs.replace(
                    task.status,
                    state=TaskState.ORPHANED,
                    timestamp=now,
                    message="Task belonged to a node that has been deleted",
                )
                changes.append(Put(msgspec.structs.replace(task, status=status), expect=task.version))
            await self._commit(changes)
