"""Why a task is where it is, or nowhere: every node with the filter that turned it away, and how the rest rank.

Owns the explanation only; it decides nothing. Computed from the swarm as it is now: what nodes looked like when
a task was placed is not kept. Costs O(tasks): for people, not for the loop.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from overlace.manager.schedule.filters import ORDER, Needs, detail, first_failure, needs_of, sentence
from overlace.manager.schedule.occupancy import MAX_FAILURES, NodeUse, Occupancy
from overlace.manager.schedule.place import path_of, spread_keys
from overlace.model.objects import Node, Task
from overlace.store.base import View

FITS = "fits"


class NodeReason(msgspec.Struct, frozen=True):
    node_id: str
    hostname: str
    detail: str


class Verdict(msgspec.Struct, frozen=True):
    """The nodes one filter turned away, or (`filter` = "fits") those that can take the task, best first."""

    filter: str
    sentence: str
    nodes: tuple[NodeReason, ...]


class Look(msgspec.Struct, frozen=True):
    """The nodes as the scheduler would see them for one task that is not placed yet."""

    task: Task
    needs: Needs
    nodes: tuple[tuple[Node, NodeUse], ...]  # none that was removed
    occupancy: Occupancy
    siblings: bool = True  # whether the service's other tasks compete with it

    @classmethod
    def at(cls, view: View, task: Task, *, siblings: bool = True) -> Look:
        """A placed task's own share is left out, so its node shows among those that fit unless something else
        changed. Without `siblings`, as if its service had no other task (one per node: they do not compete)."""
        occupancy = Occupancy()
        nodes = [node for node in view.all(Node) if not node.removed]
        for node in nodes:
            for other in view.tasks_of_node(node.id):
                if other.id != task.id and (siblings or other.service_id != task.service_id):
                    occupancy.observe(other.id, other)
        used = tuple((node, occupancy.node(node.id)) for node in nodes)
        return cls(task, needs_of(task), used, occupancy, siblings)


def explain_look(look: Look, now: int) -> list[Verdict]:
    """Run the filters for one task as if it were not placed yet; filters in order, those that fit last."""
    turned_away: dict[str, list[NodeReason]] = {}
    fits: list[tuple[tuple[object, ...], NodeReason]] = []
    spread = _Spread(look)
    for node, use in look.nodes:
        failed = first_failure(look.needs, node, use)
        if failed is not None:
            why = detail(failed, look.needs, node, use)
            turned_away.setdefault(failed, []).append(NodeReason(node.id, hostname(node), why))
        else:
            fits.append(_rank(look, spread, node, use, now))
    verdicts = [
        Verdict(
            name,
            sentence(name, len(turned_away[name])),
            tuple(sorted(turned_away[name], key=lambda r: r.hostname)),
        )
        for name in ORDER
        if name in turned_away
    ]
    count = len(fits)
    words = f"{count} node{'' if count == 1 else 's'} can take the task"
    verdicts.append(Verdict(FITS, words, tuple(reason for _, reason in sorted(fits, key=lambda f: f[0]))))
    return verdicts


def _rank(
    look: Look, spread: _Spread, node: Node, use: NodeUse, now: int
) -> tuple[tuple[object, ...], NodeReason]:
    """The order place.py fills nodes in: spread levels, repeated failures, tasks of the service, tasks in all."""
    task = look.task
    failed = look.occupancy.recent_failures(node.id, task.service_id, task.spec_version, now)
    last = failed if failed >= MAX_FAILURES else 0
    mine = use.by_service[task.service_id]
    levels = spread.levels(node)
    words = [f"{name}='{value}' holds {count}" for name, value, count in levels]
    if look.siblings:
        words.append(f"{mine} other task{'' if mine == 1 else 's'} of the service, {use.tasks} in all")
    else:
        words.append(f"{use.tasks} task{'' if use.tasks == 1 else 's'} of other services")
    if last:
        words.append(f"{failed} failures in 5 minutes, so it comes last")
    if node.id == task.node_id:
        words.append("chosen")
    key = (tuple((count, value) for _, value, count in levels), last, mine, use.tasks, node.id)
    return key, NodeReason(node.id, hostname(node), "; ".join(words))


class _Spread:
    """How many tasks of the service each branch of the spread preferences holds."""

    def __init__(self, look: Look) -> None:
        placement = look.task.spec.placement
        self._keys = spread_keys(placement.preferences if placement else ())
        self._counts: Counter[tuple[str, ...]] = Counter()
        for node, use in look.nodes:
            path = tuple(path_of(node, self._keys))
            for depth in range(1, len(path) + 1):
                self._counts[path[:depth]] += use.by_service[look.task.service_id]

    def levels(self, node: Node) -> list[tuple[str, str, int]]:
        """(label, the node's value, tasks of the service in that branch) per preference."""
        path = tuple(path_of(node, self._keys))
        return [
            (name, path[depth], self._counts[path[: depth + 1]]) for depth, (_, name) in enumerate(self._keys)
        ]


def hostname(node: Node) -> str:
    return node.description.hostname if node.description else node.id
