"""A whole swarm in one process with a virtual clock: the real store and manager loop, fake agents.

An agent walks its tasks through the states with random pauses, stops and removes what it is told to, may
crash and come back. The dispatcher's part (node down after missed heartbeats) is played by
`VirtualSwarm.advance`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import msgspec

from overlace.manager.loop import ManagerLoop
from overlace.model.errors import OutOfSequence
from overlace.model.ids import base36
from overlace.model.objects import (
    KINDS,
    Base,
    Cluster,
    JobStatus,
    Network,
    Node,
    NodeDescription,
    NodeResources,
    NodeStatus,
    Object,
    Service,
    Task,
    TaskStatus,
)
from overlace.model.specs import NetworkSpec, NodeSpec, ServiceSpec
from overlace.model.states import NodeState, TaskState
from overlace.store.base import Change, Delete, Put
from overlace.store.memory import MemoryStore, MemoryView
from overlace.store.watch import HistoryWatch

SECOND = 1_000_000_000
DOWN_AFTER = 15 * SECOND
_PATH = (TaskState.ACCEPTED, TaskState.PREPARING, TaskState.READY, TaskState.STARTING, TaskState.RUNNING)

Fate = Callable[[Task, random.Random], tuple[TaskState, int] | None]
"""What becomes of a task that runs: (state it ends in, ns until then), None: it runs for ever."""

Refusal = Callable[[Task, random.Random], bool]
"""Whether a task's node cannot prepare it (no image, no mount): asked once per task."""


def prepares_all(task: Task, chance: random.Random) -> bool:
    return False


def is_job(spec: ServiceSpec) -> bool:
    return spec.mode.replicated_job is not None or spec.mode.global_job is not None


def runs_for_ever(task: Task, chance: random.Random) -> None:
    return None


class Agent:
    """One host's agent. `due` is when each of its tasks takes its next step."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.alive = True
        self.died_at = 0
        self.due: dict[str, int] = {}
        self.end: dict[str, tuple[TaskState, int] | None] = {}
        self.refused: dict[str, bool] = {}


class Jostled(MemoryStore):
    """The manager's handle on the store; now and then somebody writes just before its commit."""

    def __init__(self, store: MemoryStore, chance: random.Random, share: float) -> None:
        self._store = store
        self._chance = chance
        self._share = share

    def view(self) -> MemoryView:
        return self._store.view()

    def watch(self, since: int | None = None) -> HistoryWatch:
        return self._store.watch(since)

    async def commit(self, changes: Sequence[Change]) -> int:
        if changes and self._chance.random() < self._share:
            change = self._chance.choice(changes)
            kind = change.kind if isinstance(change, Delete) else change.object.kind
            id = change.id if isinstance(change, Delete) else change.object.id
            there = self.view().get(KINDS[kind], id)
            if there is not None:
                await self._store.commit([Put(cast(Object, there))])
        return await self._store.commit(changes)

    async def close(self) -> None:
        await self._store.close()


class LeaderDied(Exception):
    """In the middle of a commit."""


class Mortal(Jostled):
    """The leader's handle; it dies in a share of its commits, with only the first of their changes written: what
    etcd may hold of a commit too big for one transaction."""

    async def commit(self, changes: Sequence[Change]) -> int:
        if len(changes) > 1 and self._chance.random() < self._share:
            await self._store.commit(changes[: self._chance.randrange(len(changes))])
            raise LeaderDied
        return await self._store.commit(changes)


class VirtualSwarm:
    """`pace`: about how long an agent takes for one step, ns. `jostle`: share of the manager's commits that
    lose a race against another writer. `deaths`: share of its commits the leader dies in; another takes over."""

    def __init__(
        self, seed: int = 0, *, pace: int = SECOND // 5, jostle: float = 0.0, deaths: float = 0.0
    ) -> None:
        self.chance = random.Random(seed)
        self.now = 1_700_000_000 * SECOND
        self.pace = pace
        self.jostle = jostle
        self.deaths = deaths
        self.died = 0
        self.store = MemoryStore(clock=lambda: self.now)
        self.loop = self._new_loop()
        self.agents: dict[str, Agent] = {}
        self.fate: Fate = runs_for_ever
        self.refuses: Refusal = prepares_all
        self.observers: list[Callable[[], None]] = []
        self.passes = 0

    def restart_manager(self) -> None:
        self.loop.close()
        self.loop = self._new_loop()

    def _new_loop(self) -> ManagerLoop:
        store = Jostled(self.store, self.chance, self.jostle) if self.jostle else self.store
        if self.deaths:
            store = Mortal(self.store, self.chance, self.deaths)
        return ManagerLoop(store, clock=lambda: self.now, new_id=self.new_id)

    def new_id(self) -> str:
        return base36(self.chance.getrandbits(128), 25)

    # -- what people do --------------------------------------------------------------------------------------

    async def commit(self, *changes: Change) -> None:
        await self.store.commit(changes)

    async def change(self, kind: type[Base], id: str, **members: Any) -> None:
        old = self.store.view().get(kind, id)
        assert old is not None
        new = cast(Object, msgspec.structs.replace(old, **members))
        await self.commit(Put(new, expect=old.version))

    async def start(self, **cluster: Any) -> None:
        ingress = NetworkSpec(name="ingress", ingress=True)
        await self.commit(
            Put(Cluster(id="cluster", **cluster), 0), Put(Network(id="ingress", spec=ingress), 0)
        )

    async def add_node(
        self, name: str, *, os: str = "linux", labels: dict[str, str] | None = None, **about: Any
    ) -> str:
        about.setdefault("resources", NodeResources(8 * SECOND, 16 << 30))
        about.setdefault("architecture", "x86_64")
        node = Node(
            id=name,
            spec=NodeSpec(labels=labels or {}),
            description=NodeDescription(hostname=name, os=os, **about),
            status=NodeStatus(NodeState.READY, addr=f"172.28.0.{len(self.agents) + 11}", since=self.now),
        )
        await self.commit(Put(node, 0))
        self.agents[name] = Agent(name)
        return name

    async def add_network(self, name: str, **spec: Any) -> str:
        await self.commit(Put(Network(id=f"net-{name}", spec=NetworkSpec(name=name, **spec)), 0))
        return f"net-{name}"

    async def add_service(self, spec: ServiceSpec) -> str:
        id = self.new_id()
        version = self.store.view().revision + 1
        job = JobStatus(last_execution=self.now) if is_job(spec) else None
        await self.commit(Put(Service(id=id, spec=spec, spec_version=version, job_status=job), 0))
        return id

    async def update_service(self, id: str, spec: ServiceSpec) -> None:
        """As control does: the old spec is kept, the status of an earlier update goes, a job runs anew."""
        service = self.service(id)
        job = service.job_status
        if job is not None:
            job = JobStatus(job.iteration + 1, self.now)
        await self.change(
            Service,
            id,
            spec=spec,
            previous_spec=service.spec,
            spec_version=self.store.view().revision + 1,
            update_status=None,
            job_status=job,
        )

    async def remove_service(self, id: str) -> None:
        await self.commit(Delete("service", id))

    # -- looking ---------------------------------------------------------------------------------------------

    def service(self, id: str) -> Service:
        service = self.store.view().get(Service, id)
        assert service is not None
        return service

    def tasks(self, service_id: str) -> list[Task]:
        return sorted(self.store.view().tasks_of_service(service_id), key=lambda t: (t.slot, t.created_at))

    def running(self, service_id: str) -> list[Task]:
        return [
            t
            for t in self.tasks(service_id)
            if t.status.state == TaskState.RUNNING and t.desired_state == TaskState.RUNNING
        ]

    # -- time ------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Let the manager decide until it has nothing more to do at this moment."""
        for _ in range(200):
            try:
                if not await self.loop.step():
                    break
            except LeaderDied:
                self.died += 1
                self.restart_manager()
                continue
            self.passes += 1
            for observe in self.observers:
                observe()
        else:
            raise AssertionError("the manager does not come to rest")

    async def run(self, seconds: float, until: Callable[[], bool] | None = None) -> None:
        """Let `seconds` pass, or less when `until` holds."""
        end = self.now + int(seconds * SECOND)
        await self.settle()
        while not (until is not None and until()):
            following = [t for t in self._times() if t is not None]
            step = min([t for t in following if t > self.now] or [end])
            if any(t <= self.now for t in following):
                step = self.now
            if step > end:
                self.now = end
                break
            self.now = max(step, self.now)
            await self._agents_act()
            await self.settle()
            if step >= end and not any(t <= self.now for t in self._times() if t is not None):
                break

    def _times(self) -> Iterable[int | None]:
        yield self.loop.next_wake
        for agent in self.agents.values():
            self._look(agent)
            if agent.alive:
                yield from agent.due.values()
            elif not self._is_down(agent):
                yield agent.died_at + DOWN_AFTER

    def _is_down(self, agent: Agent) -> bool:
        node = self.store.view().get(Node, agent.node_id)
        return node is None or node.status.state == NodeState.DOWN

    # -- agents ----------------------------------------------------------------------------------------------

    def crash(self, name: str) -> None:
        self.agents[name].alive = False
        self.agents[name].died_at = self.now

    async def come_back(self, name: str) -> None:
        agent = self.agents[name]
        agent.alive = True
        agent.due.clear()
        node = self.store.view().get(Node, name)
        if node is not None and node.status.state == NodeState.DOWN:
            status = msgspec.structs.replace(node.status, state=NodeState.READY, since=self.now)
            await self.change(Node, name, status=status)

    def _pause(self) -> int:
        return self.chance.randint(1, 2 * self.pace)

    def _look(self, agent: Agent) -> None:
        """Give every task with something left to do a time for it."""
        present = set()
        for task in self.store.view().tasks_of_node(agent.node_id):
            if self._next(agent, task) is None:
                agent.due.pop(task.id, None)
                continue
            present.add(task.id)
            if task.id not in agent.due:
                state = self._next(agent, task)
                end = agent.end.get(task.id)
                if state is not None and state[1] and end is not None:
                    agent.due[task.id] = self.now + end[1]
                else:
                    agent.due[task.id] = self.now + self._pause()
            elif not task.desired_state.wanted:
                agent.due[task.id] = min(agent.due[task.id], self.now + 2 * self.pace)
        for id in [id for id in agent.due if id not in present]:
            del agent.due[id]

    def _next(self, agent: Agent, task: Task) -> tuple[TaskState, bool] | None:
        """(the state the agent reports next, whether that is the end the task was born to); None: nothing to
        do.
        """
        state = task.status.state
        if state < TaskState.ASSIGNED or state.terminal:
            return None
        if not task.desired_state.wanted:
            return TaskState.SHUTDOWN, False
        following = next((s for s in _PATH if s > state), None)
        if following is None:
            if task.id not in agent.end:
                end = self.fate(task, self.chance)
                if end is None and task.job_iteration is not None:
                    end = (
                        TaskState.COMPLETE,
                        self.chance.randint(1, 10 * SECOND),
                    )  # a job's task comes to its end
                agent.end[task.id] = end
            end = agent.end[task.id]
            return (end[0], True) if end is not None else None
        if following == TaskState.READY:
            if task.id not in agent.refused:
                agent.refused[task.id] = self.refuses(task, self.chance)
            if agent.refused[task.id]:
                return TaskState.REJECTED, False
        if following == TaskState.STARTING and task.desired_state < TaskState.RUNNING:
            return None
        return following, False

    async def _agents_act(self) -> None:
        view = self.store.view()
        changes: list[Change] = []
        for agent in self.agents.values():
            if not agent.alive:
                if not self._is_down(agent) and self.now >= agent.died_at + DOWN_AFTER:
                    node = view.get(Node, agent.node_id)
                    assert node is not None
                    down = msgspec.structs.replace(node.status, state=NodeState.DOWN, since=self.now)
                    changes.append(Put(msgspec.structs.replace(node, status=down), node.version))
                continue
            for id in [id for id, due in agent.due.items() if due <= self.now]:
                del agent.due[id]
                task = view.get(Task, id)
                step = self._next(agent, task) if task is not None else None
                if task is None or step is None:
                    continue
                status = TaskStatus(state=step[0], timestamp=self.now, message=step[0].word)
                changes.append(Put(msgspec.structs.replace(task, status=status), task.version))
        if changes:
            try:
                await self.store.commit(changes)
            except OutOfSequence as error:  # one event loop, no await since the view was taken
                raise AssertionError("agents write what they just read") from error
