"""Logs of tasks, gathered from the nodes that run or ran them.

Owns subscriptions: which nodes are asked, how their lines are merged, when a stream is over. Nodes are
reached through a sender (the dispatcher), which hands every LogChunk back through `on_log`. Must not know
HTTP or how lines are shown.

Without `follow` lines come in order of their timestamps and the stream ends when every task has given all it
has. With `follow` they come as they arrive, and tasks a service gets later are followed too. What cannot be
had (its node is down or silent) is named in `IncompleteLogs`, raised after all lines that could.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

import msgspec

from overlace.model.errors import OverlaceError
from overlace.model.ids import new_id
from overlace.model.objects import Node, Service, Task
from overlace.model.states import NodeState, TaskState
from overlace.runtime.base import LogOptions
from overlace.store.base import Batch, Event, Lagged, Store
from overlace.wire.messages import LogChunk, LogSubscribe, LogUnsubscribe, ManagerMessage

SILENCE = 10.0  # seconds without a word from a node that owes lines, then it counts as not available
MOST_BYTES = 64 * 1024 * 1024  # lines a slow reader may leave waiting here


class Sender(Protocol):
    def send(self, node_id: str, message: ManagerMessage) -> bool:
        """Queue a message to a node's session; False when it has none."""


class LogRecord(msgspec.Struct, frozen=True):
    """One line (data with its newline, if there was one) of one task's container on one node."""

    task: Task
    timestamp: int  # ns since the epoch
    stream: str  # stdout | stderr
    data: bytes

    @property
    def task_id(self) -> str:
        return self.task.id

    @property
    def node_id(self) -> str:
        return self.task.node_id


class IncompleteLogs(OverlaceError):
    """Docker's words (swarmkit manager/logbroker), after the lines that could be had."""

    swarm = True

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__(
            "warning: incomplete log stream. some logs could not be retrieved for the following reasons: "
            + ", ".join(reasons)
        )


class LogBroker:
    """All running log subscriptions of this manager."""

    def __init__(
        self,
        store: Store,
        sender: Sender,
        *,
        new_id: Callable[[], str] = new_id,
        silence: float = SILENCE,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._store = store
        self._sender = sender
        self._new_id = new_id
        self._silence = silence
        self._most_bytes = most_bytes
        self._streams: dict[str, _Stream] = {}

    async def subscribe(
        self, task_ids: Sequence[str], options: LogOptions, *, service_id: str = ""
    ) -> AsyncIterator[LogRecord]:
        """Lines of the given tasks, and of all tasks of `service_id`, now and (with follow) later.

        Close the iterator to end the subscription. Raises IncompleteLogs at the end.
        """
        id = self._new_id()
        stream = _Stream(
            id, options, frozenset(task_ids), service_id, self._store, self._sender, self._most_bytes
        )
        self._streams[id] = stream
        try:
            lines = stream.follow() if options.follow else stream.gather(self._silence)
            async for record in lines:
                yield record
        finally:
            del self._streams[id]
            stream.leave()

    def on_log(self, node_id: str, chunk: LogChunk) -> None:
        """What a node sends. Chunks of ended subscriptions are dropped, and the node told to stop."""
        stream = self._streams.get(chunk.subscription)
        if stream is not None:
            stream.take(node_id, chunk)
        elif not chunk.end:
            self._sender.send(node_id, LogUnsubscribe(chunk.subscription))

    def on_connect(self, node_id: str) -> None:
        """A node has a new session, and with it forgotten what it was asked: ask again, from where it
        stopped."""
        for stream in self._streams.values():
            stream.ask_again(node_id)


class _Source:
    """One task's part of a stream."""

    __slots__ = ("ended", "last", "lines", "task")

    def __init__(self, task: Task) -> None:
        self.task = task
        self.lines: deque[LogRecord] = deque()
        self.ended = False
        self.last = 0  # timestamp of the last line seen


class _Stream:
    def __init__(
        self,
        id: str,
        options: LogOptions,
        task_ids: frozenset[str],
        service_id: str,
        store: Store,
        sender: Sender,
        most_bytes: int,
    ) -> None:
        self._id = id
        self._options = options
        self._task_ids = task_ids
        self._service_id = service_id
        self._store = store
        self._sender = sender
        self._room = most_bytes
        self._sources: dict[str, _Source] = {}
        self._arrived: deque[LogRecord] = deque()  # follow: lines in order of arrival
        self._asked: set[str] = set()  # nodes
        self._reasons: list[str] = []
        self._news = asyncio.Event()
        self._overflow = False

    # -- the two ways to read ------------------------------------------------------------------------------

    async def gather(self, silence: float) -> AsyncIterator[LogRecord]:
        """Merge by timestamp: a line goes out once every task that is not done has one to compare it with."""
        self._ask(self._wanted(), self._options.tail)
        while True:
            for record in self._mergeable():
                yield record
            open_sources = [s for s in self._sources.values() if not s.ended]
            if not open_sources and not any(s.lines for s in self._sources.values()):
                break
            self._news.clear()
            try:
                async with asyncio.timeout(silence):
                    await self._news.wait()
            except TimeoutError:
                for source in open_sources:
                    if not source.lines:
                        self._unavailable(source)
        self._finish()

    async def follow(self) -> AsyncIterator[LogRecord]:
        watch = self._store.watch()
        batch: asyncio.Task[Batch | None] | None = None
        news: asyncio.Task[bool] | None = None
        try:
            self._ask(self._wanted(), self._options.tail)
            while not self._is_over():
                self._news.clear()
                while self._arrived:
                    record = self._arrived.popleft()
                    self._room += len(record.data)
                    yield record
                batch = batch or asyncio.create_task(watch.next())
                news = news or asyncio.create_task(self._news.wait())
                if not self._arrived and not self._is_over():
                    await asyncio.wait((batch, news), return_when=asyncio.FIRST_COMPLETED)
                if news.done():
                    news = None
                if batch.done():
                    try:
                        found = batch.result()
                    except Lagged:
                        watch.close()
                        watch = self._store.watch()
                        self._ask(self._wanted(), -1)
                    else:
                        if found is None:
                            break
                        self._look_at(found)
                    batch = None
            while self._arrived:
                yield self._arrived.popleft()
        finally:
            for task in (batch, news):
                if task is not None:
                    task.cancel()
            watch.close()
        self._finish()

    def leave(self) -> None:
        for node_id in self._asked:
            self._sender.send(node_id, LogUnsubscribe(self._id))
        self._asked.clear()

    # -- what nodes say ------------------------------------------------------------------------------------

    def take(self, node_id: str, chunk: LogChunk) -> None:
        source = self._sources.get(chunk.task_id)
        if source is None or source.task.node_id != node_id or source.ended or self._overflow:
            return
        for timestamp, name, data in chunk.lines:
            record = LogRecord(source.task, timestamp, name, data)
            source.last = max(source.last, timestamp)
            self._room -= len(data)
            (self._arrived if self._options.follow else source.lines).append(record)
        if chunk.end or chunk.error:
            source.ended = True
            if chunk.error and _has_started(source.task):
                self._reasons.append(f"task {source.task.name or source.task.id}: {chunk.error}")
        if self._room < 0:
            self._overflow = True
            for one in self._sources.values():
                one.ended = True
            self._reasons.append("lines arrive faster than they are read")
            self.leave()
        self._news.set()

    def ask_again(self, node_id: str) -> None:
        sources = [s for s in self._sources.values() if s.task.node_id == node_id and not s.ended]
        if node_id not in self._asked or not sources:
            return
        if not self._options.follow and any(s.last for s in sources):
            return  # cannot know which lines of the same instant are here; silence will name the node
        since = min((s.last + 1 if s.last else self._options.since) for s in sources)
        tail = self._options.tail if not any(s.last for s in sources) else -1
        self._sender.send(node_id, LogUnsubscribe(self._id))
        self._subscribe(node_id, sources, since, tail)

    # -- whom to ask ---------------------------------------------------------------------------------------

    def _wanted(self) -> list[Task]:
        view = self._store.view()
        tasks = [task for id in self._task_ids if (task := view.get(Task, id)) is not None]
        if self._service_id:
            tasks += [
                task for task in view.tasks_of_service(self._service_id) if task.id not in self._task_ids
            ]
        return sorted((task for task in tasks if self._can_ask(task)), key=lambda t: (t.created_at, t.id))

    def _can_ask(self, task: Task) -> bool:
        return bool(task.node_id) and _has_started(task) and task.id not in self._sources

    def _ask(self, tasks: Sequence[Task], tail: int) -> None:
        view = self._store.view()
        by_node: dict[str, list[_Source]] = {}
        for task in tasks:
            source = self._sources[task.id] = _Source(task)
            by_node.setdefault(task.node_id, []).append(source)
        for node_id, sources in by_node.items():
            node = view.get(Node, node_id)
            there = node is not None and not node.removed and node.status.state == NodeState.READY
            if not there or not self._subscribe(node_id, sources, self._options.since, tail):
                for source in sources:
                    self._unavailable(source)

    def _subscribe(self, node_id: str, sources: Sequence[_Source], since: int, tail: int) -> bool:
        options = self._options
        self._asked.add(node_id)
        return self._sender.send(
            node_id,
            LogSubscribe(
                subscription=self._id,
                task_ids=tuple(source.task.id for source in sources),
                stdout=options.stdout,
                stderr=options.stderr,
                follow=options.follow,
                since=since,
                until=options.until,
                tail=tail,
            ),
        )

    def _look_at(self, batch: Batch) -> None:
        """Follow tasks that have started since, and let go of nodes that are gone."""
        started: list[Task] = []
        for event in batch.events:
            new = event.new
            if isinstance(new, Task) and self._is_mine(new) and self._can_ask(new):
                started.append(new)
            elif event.kind == Node.kind:
                self._look_at_node(event)
        self._ask(started, -1)  # all a new task says is news

    def _look_at_node(self, event: Event) -> None:
        new = event.new
        if isinstance(new, Node) and not new.removed and new.status.state != NodeState.DOWN:
            return
        for source in self._sources.values():
            if source.task.node_id == event.id and not source.ended:
                self._unavailable(source)

    def _is_mine(self, task: Task) -> bool:
        return task.id in self._task_ids or (bool(self._service_id) and task.service_id == self._service_id)

    # -- the end -------------------------------------------------------------------------------------------

    def _is_over(self) -> bool:
        """Of a followed stream: nothing is to come. A service that is still there may always get another
        task."""
        if self._overflow:
            return True
        if any(not source.ended for source in self._sources.values()):
            return False
        view = self._store.view()
        if self._service_id and view.get(Service, self._service_id) is not None:
            return False
        waiting = (view.get(Task, id) for id in self._task_ids if id not in self._sources)
        return not any(task is not None and not task.status.state.terminal for task in waiting)

    def _mergeable(self) -> list[LogRecord]:
        """Lines that can go out now, oldest first."""
        heads = [
            (source.lines[0].timestamp, n, source)
            for n, source in enumerate(self._sources.values())
            if source.lines
        ]
        if any(not source.ended and not source.lines for source in self._sources.values()):
            return []
        heapq.heapify(heads)
        out: list[LogRecord] = []
        while heads:
            _, n, source = heads[0]
            record = source.lines.popleft()
            self._room += len(record.data)
            out.append(record)
            if source.lines:
                heapq.heapreplace(heads, (source.lines[0].timestamp, n, source))
            elif source.ended:
                heapq.heappop(heads)
            else:
                break
        return out

    def _unavailable(self, source: _Source) -> None:
        source.ended = True
        reason = f"node {source.task.node_id} is not available"
        if reason not in self._reasons:
            self._reasons.append(reason)
        self._news.set()

    def _finish(self) -> None:
        if self._reasons:
            raise IncompleteLogs(self._reasons)


def _has_started(task: Task) -> bool:
    """Whether there is, or was, a container that may have said something."""
    state = task.status.state
    if state == TaskState.REJECTED:
        return False
    if state.terminal:
        return task.status.container is not None and bool(task.status.container.container_id)
    return state == TaskState.RUNNING
