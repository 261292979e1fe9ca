"""Placing tasks: one group of equal tasks at a time over all nodes.

Owns ranking, spreading and the task changes of a scheduling decision. Must not orchestrate or allocate.
Rank (swarmkit scheduler/nodeset.go, scheduler.go): nodes where this service failed 5 times in 5 minutes
last, then fewest tasks of this service, then fewest tasks in all; spread preferences choose the branch with
fewest tasks of the service first, level by level.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from overlace.manager.schedule.filters import Needs, first_failure, needs_of, summary
from overlace.manager.schedule.occupancy import MAX_FAILURES, NodeUse, Occupancy
from overlace.model.capabilities import usable
from overlace.model.generic import Claim, claim
from overlace.model.objects import Node, Task, TaskStatus
from overlace.model.specs import PlacementPreference, PortConfig
from overlace.model.states import TaskState
from overlace.store.base import Change, Put

ASSIGNED = "scheduler assigned task to node"
CONFIRMED = "scheduler confirmed task can run on preassigned node"

GroupKey = tuple[str, int, tuple[PortConfig, ...]]


def group_key(task: Task) -> GroupKey:
    """Tasks of one version of one service need the same of a node, but for host ports: they are given when a task
    is allocated, and the service may have changed in between."""
    return task.service_id, task.spec_version, task.ports


def plan_placement(
    nodes: Sequence[Node], occupancy: Occupancy, tasks: Sequence[Task], now: int
) -> list[Change]:
    """Place tasks of one group (same `group_key`, all PENDING): some get a node, the others say why not.

    Nothing is returned for a task that stays where it is with the same words.
    """
    local = [task for task in tasks if task.node_id]
    changes: list[Change] = []
    if local:
        by_id = {node.id: node for node in nodes}
        extra: dict[str, NodeUse] = {}
        for task in local:
            changes += _confirm(by_id.get(task.node_id), occupancy, task, extra, now)
    free = [task for task in tasks if not task.node_id]
    if free:
        changes += _place_group(nodes, occupancy, free, now)
    return changes


def _confirm(
    node: Node | None, occupancy: Occupancy, task: Task, extra: dict[str, NodeUse], now: int
) -> list[Change]:
    """A task made for one node (global service): filters only."""
    needs = needs_of(task)
    if node is None:
        return _refuse([task], "assigned node no longer exists", now)
    use = extra.get(node.id) or _copy(occupancy.node(node.id))
    failed = first_failure(needs, node, use)
    if failed is not None:
        return _refuse([task], summary({failed: 1}), now)
    claims = _take(use, needs, node)
    extra[node.id] = use
    return [_assign(task, node, claims, CONFIRMED, now)]


def _place_group(
    nodes: Sequence[Node], occupancy: Occupancy, tasks: Sequence[Task], now: int
) -> list[Change]:
    first = tasks[0]
    needs = needs_of(first)
    tally: Counter[str] = Counter()
    candidates: list[Candidate] = []
    for node in nodes:
        if node.removed:
            continue
        use = occupancy.node(node.id)
        failed = first_failure(needs, node, use)
        if failed is not None:
            tally[failed] += 1
            continue
        failures = occupancy.recent_failures(node.id, first.service_id, first.spec_version, now)
        candidates.append(Candidate(node, _copy(use), needs, failures))
    preferences = spread_keys(first.spec.placement.preferences if first.spec.placement else ())
    tree = Branch()
    if preferences:
        for node in nodes:
            if not node.removed:
                tree.count(path_of(node, preferences), occupancy.node(node.id).by_service[first.service_id])
    for candidate in candidates:
        tree.add(candidate, path_of(candidate.node, preferences))
    changes: list[Change] = []
    left = list(tasks)
    while left:
        chosen = tree.take(tally)
        if chosen is None:
            break
        changes.append(_assign(left.pop(0), chosen.node, chosen.claims, ASSIGNED, now))
    why = summary(tally)
    return changes + _refuse(left, f"no suitable node ({why})" if why else "no suitable node", now)


def _assign(task: Task, node: Node, claims: tuple[Claim, ...], message: str, now: int) -> Change:
    status = TaskStatus(state=TaskState.ASSIGNED, timestamp=now, message=message)
    about = node.description
    networks = usable(task.networks, about.lacks) if about is not None else task.networks
    placed = msgspec.structs.replace(task, node_id=node.id, generic=claims, networks=networks, status=status)
    return Put(placed, expect=task.version)


def _refuse(tasks: Iterable[Task], why: str, now: int) -> list[Change]:
    changes: list[Change] = []
    for task in tasks:
        if task.status.err != why:
            status = msgspec.structs.replace(task.status, err=why, timestamp=now)
            changes.append(Put(msgspec.structs.replace(task, status=status), expect=task.version))
    return changes


def _copy(use: NodeUse) -> NodeUse:
    copy = NodeUse()
    copy.tasks = use.tasks
    copy.by_service = use.by_service.copy()
    copy.nano_cpus = use.nano_cpus
    copy.memory_bytes = use.memory_bytes
    copy.ports = use.ports.copy()
    copy.generic = use.generic.copy()
    return copy


def _take(use: NodeUse, needs: Needs, node: Node) -> tuple[Claim, ...]:
    """Note one task more on a node that has room for it; the generic resources it gets."""
    claims: tuple[Claim, ...] = ()
    if needs.generic and node.description is not None:
        claims = claim(node.description.resources.generic, use.generic, needs.generic)
        use.claim(claims)
    use.tasks += 1
    use.by_service[needs.service_id] += 1
    use.nano_cpus += needs.nano_cpus
    use.memory_bytes += needs.memory_bytes
    for port in needs.ports:
        use.ports[port] += 1
    return claims


class Candidate:
    """A node that passed the filters, with what this group has taken on it so far."""

    __slots__ = ("claims", "failures", "needs", "node", "use")

    def __init__(self, node: Node, use: NodeUse, needs: Needs, failures: int) -> None:
        self.node = node
        self.use = use
        self.needs = needs
        self.claims: tuple[Claim, ...] = ()  # of the task it was chosen for last
        self.failures = failures if failures >= MAX_FAILURES else 0

    def rank(self) -> tuple[int, int, int, str]:
        return self.failures, self.use.by_service[self.needs.service_id], self.use.tasks, self.node.id


def spread_keys(preferences: Sequence[PlacementPreference]) -> list[tuple[bool, str]]:
    """(is engine label, label name) per level; only labels can be spread over."""
    keys: list[tuple[bool, str]] = []
    for preference in preferences:
        over = preference.spread.spread_descriptor if preference.spread else ""
        lower = over.lower()
        if lower.startswith("node.labels."):
            keys.append((False, over[len("node.labels.") :]))
        elif lower.startswith("engine.labels."):
            keys.append((True, over[len("engine.labels.") :]))
    return keys


def path_of(node: Node, keys: Sequence[tuple[bool, str]]) -> list[str]:
    """The node's label values per level; a missing label is a branch of its own, ""."""
    path = []
    for of_engine, name in keys:
        if of_engine:
            path.append(node.description.engine_labels.get(name, "") if node.description else "")
        else:
            path.append(node.spec.labels.get(name, ""))
    return path


class Branch:
    """Nodes that share label values down to one level; a leaf holds candidates in rank order."""

    __slots__ = ("branches", "heap", "tasks")

    def __init__(self) -> None:
        self.tasks = 0  # of this service, on all nodes below, fitting or not
        self.branches: dict[str, Branch] = {}
        self.heap: list[tuple[tuple[int, int, int, str], Candidate]] = []

    def count(self, path: Sequence[str], tasks: int) -> None:
        self.tasks += tasks
        if path:
            self.branches.setdefault(path[0], Branch()).count(path[1:], tasks)

    def add(self, candidate: Candidate, path: Sequence[str]) -> None:
        if path:
            self.branches.setdefault(path[0], Branch()).add(candidate, path[1:])
        else:
            heapq.heappush(self.heap, (candidate.rank(), candidate))

    def take(self, tally: Counter[str]) -> Candidate | None:
        """The best candidate, with one task more on it; None when no node below takes another.

        A node that this task filled up leaves, and its reason joins `tally`.
        """
        chosen: Candidate | None = None
        if self.branches:
            for _, branch in sorted(self.branches.items(), key=lambda item: (item[1].tasks, item[0])):
                chosen = branch.take(tally)
                if chosen is not None:
                    break
        elif self.heap:
            chosen = self.heap[0][1]
            chosen.claims = _take(chosen.use, chosen.needs, chosen.node)
            failed = first_failure(chosen.needs, chosen.node, chosen.use)
            if failed is None:
                heapq.heapreplace(self.heap, (chosen.rank(), chosen))
            else:
                tally[failed] += 1
                heapq.heappop(self.heap)
        if chosen is not None:
            self.tasks += 1
        return chosen
