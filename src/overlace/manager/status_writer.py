"""Writes what agents report into the store, many reports to a commit.

Owns the queue between sessions and the store, and the rule that observed states only grow. The first report
after a quiet time is written at once; while a commit runs, and for a moment after it, the next ones gather.
Must not know channels or heartbeats.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

import msgspec
import structlog

from overlace.model.errors import NotFound, OutOfSequence, OverlaceError
from overlace.model.objects import Node, Task, TaskStatus
from overlace.model.states import may_advance
from overlace.store.base import Put, Store, View
from overlace.wire.messages import TaskReport

log = structlog.get_logger(__name__)
GAP = 0.05  # seconds between commits while reports keep coming
MAX_ITEMS = 10_000  # a commit, so that other writers get their turn
_RETRY = (0.1, 5.0)  # seconds, first and last pause while the store refuses

NodeChange = Callable[[Node], Node]


def plan_report(task: Task | None, node_id: str, status: TaskStatus) -> Task | None:
    """The task as the node reports it; None when the report says nothing new or is not the node's to make."""
    if task is None or task.node_id != node_id or task.status == status:
        return None
    if not may_advance(task.status.state, status.state):
        return None
    return msgspec.structs.replace(task, status=status)


class StatusWriter:
    def __init__(self, store: Store, gap: float = GAP) -> None:
        self._store = store
        self._gap = gap
        self._reports: dict[str, tuple[str, TaskStatus]] = {}  # task -> node, newest status
        self._nodes: dict[str, list[tuple[NodeChange, asyncio.Future[Node]]]] = {}
        self._done: list[Callable[[], None]] = []
        self._wake = asyncio.Event()

    def report(
        self, node_id: str, reports: Iterable[TaskReport], done: Callable[[], None] | None = None
    ) -> None:
        """Queue; `done` is called once all of them are stored (or turned out to be of no interest)."""
        for r in reports:
            queued = self._reports.get(r.task_id)
            if queued is None or queued[0] != node_id or may_advance(queued[1].state, r.status.state):
                self._reports[r.task_id] = (node_id, r.status)
        if done is not None:
            self._done.append(done)
        self._wake.set()

    async def change_node(self, node_id: str, change: NodeChange) -> Node:
        """Apply `change` to the stored node, retried until it holds; changes of one node keep their order.

        Raises NotFound when there is no such node (or only its tombstone).
        """
        future: asyncio.Future[Node] = asyncio.get_running_loop().create_future()
        self._nodes.setdefault(node_id, []).append((change, future))
        self._wake.set()
        return await future

    async def run(self) -> None:
        """Write until cancelled. A store that refuses is waited for; nothing queued is lost."""
        pause = _RETRY[0]
        while True:
            await self._wake.wait()
            self._wake.clear()
            reports, self._reports = self._reports, {}
            nodes, self._nodes = self._nodes, {}
            done, self._done = self._done, []
            try:
                await self._write(reports, nodes)
            except OverlaceError as e:
                log.warning("the store refuses, will retry", error=e.message, waiting=len(reports))
                self._put_back(reports, nodes, done)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _RETRY[1])
                continue
            except Exception:
                log.exception("writing reports failed, will retry")
                self._put_back(reports, nodes, done)
                await asyncio.sleep(_RETRY[1])
                continue
            pause = _RETRY[0]
            for tell in done:
                tell()
            await asyncio.sleep(self._gap)

    def _put_back(
        self,
        reports: Mapping[str, tuple[str, TaskStatus]],
        nodes: Mapping[str, list[tuple[NodeChange, asyncio.Future[Node]]]],
        done: list[Callable[[], None]],
    ) -> None:
        """Queue again, before what came meanwhile."""
        for task_id, (node_id, status) in reports.items():
            newer = self._reports.get(task_id)
            if newer is None or (newer[0] == node_id and not may_advance(status.state, newer[1].state)):
                self._reports[task_id] = (node_id, status)
        for node_id, changes in nodes.items():
            waiting = [c for c in changes if not c[1].done()]
            if waiting:
                self._nodes[node_id] = waiting + self._nodes.get(node_id, [])
        self._done = done + self._done
        self._wake.set()

    async def _write(
        self,
        reports: Mapping[str, tuple[str, TaskStatus]],
        nodes: Mapping[str, list[tuple[NodeChange, asyncio.Future[Node]]]],
    ) -> None:
        async def write(keys: list[tuple[str, str]]) -> None:
            """Commit these; when somebody else wrote one of them meanwhile, halve until the rest gets
            through."""
            for attempt in range(10):
                view = self._store.view()
                puts: list[Put] = []
                answers: list[tuple[asyncio.Future[Node], Node | None]] = []
                for kind, id in keys:
                    if kind == Task.kind:
                        put = _put_task(view, id, *reports[id])
                    else:
                        put = _put_node(view, id, nodes[id], answers)
                    if put is not None:
                        puts.append(put)
                try:
                    if puts:
                        await self._store.commit(puts)
                except OutOfSequence:
                    if len(keys) == 1:
                        if attempt == 9:
                            raise
                        continue
                    half = len(keys) // 2
                    await write(keys[:half])
                    await write(keys[half:])
                    return
                for future, node in answers:
                    _answer(future, node)
                return

        keys = [(Node.kind, i) for i in nodes] + [(Task.kind, i) for i in reports]
        for start in range(0, len(keys), MAX_ITEMS):
            await write(keys[start : start + MAX_ITEMS])


def _put_task(view: View, task_id: str, node_id: str, status: TaskStatus) -> Put | None:
    old = view.get(Task, task_id)
    new = plan_report(old, node_id, status)
    return Put(new, expect=old.version) if new is not None and old is not None else None


def _put_node(
    view: View,
    node_id: str,
    changes: list[tuple[NodeChange, asyncio.Future[Node]]],
    answers: list[tuple[asyncio.Future[Node], Node | None]],
) -> Put | None:
    old = view.get(Node, node_id)
    if old is None or old.removed:
        answers += ((future, None) for _, future in changes)
        return None
    new = old
    for change, _ in changes:
        new = change(new)
    answers += ((future, new) for _, future in changes)
    return Put(new, expect=old.version) if new != old else None


def _answer(future: asyncio.Future[Node], node: Node | None) -> None:
    if future.done():
        return
    if node is not None:
        future.set_result(node)
    else:
        future.set_exception(NotFound("the node was removed from the swarm"))
