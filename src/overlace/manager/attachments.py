"""Addresses on attachable networks for containers outside of services (`docker run --network`), as nodes ask for them.

Owns the tasks that stand for them: one per container and network, bound to its node, with nothing to run; from what a
node names to store changes (`plan_attachments`, pure), until they are the same. The loop gives the addresses
(allocate/attachments.py). Source: swarmkit manager/resourceapi and agent/resource.go.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
import structlog

from overlace.model.errors import InvalidArgument, NotFound, OutOfSequence, OverlaceError, PermissionDenied
from overlace.model.objects import Network, Task, TaskStatus
from overlace.model.policy import check_container_labels
from overlace.model.specs import NetworkAttachmentConfig, TaskSpec
from overlace.model.states import TaskState
from overlace.store.base import Change, Delete, Put, Store, View
from overlace.wire.messages import Attachment, ManagerMessage, NotAttached

log = structlog.get_logger(__name__)
TRIES = 20  # to commit while others write
RUNTIME = "attachment"
_ID = re.compile(r"[0-9a-z]{1,25}")  # model.ids

Refusals = dict[str, tuple[str, str]]


def plan_attachments(
    view: View, node_id: str, wanted: Iterable[Attachment], now: int
) -> tuple[list[Change], Refusals]:
    """What makes the node's attachment tasks those it names, and why some cannot be."""
    there = {t.id: t for t in view.tasks_of_node(node_id) if t.attachment}
    changes: list[Change] = []
    refused: Refusals = {}
    named: set[str] = set()
    for one in {one.id: one for one in wanted}.values():  # the last of one named twice
        if not _ID.fullmatch(one.id):  # it becomes a key of the store and of the network view
            refused[one.id] = (InvalidArgument.code, f"invalid id of an attachment: {one.id!r}")
            continue
        named.add(one.id)
        old = view.get(Task, one.id)
        if old is not None and (old.node_id != node_id or not old.attachment):
            refused[one.id] = (PermissionDenied.code, f"attachment {one.id} is another node's")
            continue
        try:
            check_container_labels(one.labels)
            spec = _spec(view, one)
        except OverlaceError as error:
            refused[one.id] = (error.code, error.message)
            continue
        if old is not None and (old.spec, old.service_labels) == (spec, one.labels):
            if old.name != one.name:  # docker rename
                changes.append(Put(msgspec.structs.replace(old, name=one.name), expect=old.version))
            continue  # what the loop has to say of it comes with the task's own error
        if old is not None:
            changes.append(Delete("task", old.id, expect=old.version))
            continue  # its node asks again
        changes.append(Put(_task(one, spec, node_id, now), expect=0))
    changes += [Delete("task", id, expect=task.version) for id, task in there.items() if id not in named]
    return changes, refused


def _spec(view: View, one: Attachment) -> TaskSpec:
    """Raises NotFound, PermissionDenied and InvalidArgument in SwarmKit's words."""
    network = view.get(Network, one.target) or next(
        (n for n in view.all(Network) if n.spec.name == one.target), None
    )
    if network is None or network.spec.config_only:
        raise NotFound(f"network {one.target} not found")
    if not network.spec.attachable:
        raise PermissionDenied(f"network {network.spec.name} not manually attachable")
    addresses = [_canonical(address) for address in one.addresses]
    return TaskSpec(
        runtime=RUNTIME,
        network_attachment_spec={"ContainerID": one.container_id, "Addresses": addresses},
        networks=[NetworkAttachmentConfig(target=network.id, aliases=list(one.aliases))],
    )


def _canonical(address: str) -> str:
    """As every host writes it. Raises InvalidArgument."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        raise InvalidArgument(f"invalid IP address: {address}") from None
    if isinstance(found, ipaddress.IPv6Address) and found.scope_id is not None:
        raise InvalidArgument(f"invalid IP address: {address}: a container's has no zone")
    return str(found)


def _task(one: Attachment, spec: TaskSpec, node_id: str, now: int) -> Task:
    return Task(
        id=one.id,
        created_at=now,
        updated_at=now,
        service_id="",
        node_id=node_id,
        spec=spec,
        name=one.name,
        service_labels=one.labels,
        status=TaskStatus(state=TaskState.NEW, timestamp=now, message="created"),
    )


def refusals(tasks: Iterable[Task]) -> Refusals:
    """What the loop could not give an address."""
    return {
        t.id: ("FailedPrecondition", t.status.err)
        for t in tasks
        if t.attachment and t.status.state == TaskState.NEW and t.status.err
    }


class AttachmentDesk:
    """Takes in what nodes name. `send(node id, message)` is False when the node has no session here."""

    def __init__(
        self,
        store: Store,
        send: Callable[[str, ManagerMessage], bool],
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._store = store
        self._send = send
        self._clock = clock
        self._wanted: dict[str, Sequence[Attachment]] = {}
        self._working: dict[str, asyncio.Task[None]] = {}

    def asked(self, node_id: str, wanted: Sequence[Attachment]) -> None:
        """The newest list of a node counts; must not block."""
        self._wanted[node_id] = wanted
        if node_id not in self._working:
            work = asyncio.create_task(self._work(node_id), name=f"attachments of {node_id}")
            self._working[node_id] = work
            work.add_done_callback(lambda _: self._working.pop(node_id, None))

    def blocked(self, node_id: str, tasks: Iterable[Task]) -> None:
        """The loop has looked at these tasks of a node."""
        self._tell(node_id, refusals(tasks))

    async def close(self) -> None:
        working = list(self._working.values())
        for work in working:
            work.cancel()
        await asyncio.gather(*working, return_exceptions=True)

    async def _work(self, node_id: str) -> None:
        while node_id in self._wanted:
            wanted = self._wanted.pop(node_id)
            try:
                self._tell(node_id, await self._write(node_id, wanted))
            except OverlaceError as error:  # the node asks again when it gets no answer
                log.warning("could not keep what a node attaches", node=node_id, error=error.message)

    async def _write(self, node_id: str, wanted: Sequence[Attachment]) -> Refusals:
        for _ in range(TRIES):
            view = self._store.view()
            changes, refused = plan_attachments(view, node_id, wanted, self._clock())
            try:
                if changes:
                    await self._store.commit(changes)
            except OutOfSequence:
                continue
            if not any(isinstance(c, Delete) and c.id in {w.id for w in wanted} for c in changes):
                there = (t for t in view.tasks_of_node(node_id) if t.id in {w.id for w in wanted})
                return refusals(there) | refused
        return {}

    def _tell(self, node_id: str, refused: Mapping[str, tuple[str, str]]) -> None:
        if refused:
            self._send(node_id, NotAttached(dict(refused)))
