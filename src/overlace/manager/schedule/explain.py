"""Why a task is where it is, or nowhere: every node with the filter that turned it away.

Owns the explanation only; it decides nothing. Used by the demo and the `why` verb.
"""

from __future__ import annotations

import msgspec

from overlace.manager.schedule.filters import ORDER, detail, first_failure, needs_of, sentence
from overlace.manager.schedule.occupancy import Occupancy
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


def explain_placement(view: View, task: Task) -> list[Verdict]:
    """Run the filters for one task as if it were not placed yet; filters in order, those that fit last.

    A placed task's own share is left out, so its node shows among those that fit unless something else
    changed. Costs O(tasks): for people, not for the loop.
    """
    occupancy = Occupancy()
    for node in view.all(Node):
        for other in view.tasks_of_node(node.id):
            if other.id != task.id:
                occupancy.observe(other.id, other)
    needs = needs_of(task)
    turned_away: dict[str, list[NodeReason]] = {}
    fits: list[tuple[tuple[int, int, str], NodeReason]] = []
    for node in view.all(Node):
        if node.removed:
            continue
        use = occupancy.node(node.id)
        hostname = node.description.hostname if node.description else ""
        failed = first_failure(needs, node, use)
        if failed is not None:
            turned_away.setdefault(failed, []).append(
                NodeReason(node.id, hostname, detail(failed, needs, node, use))
            )
            continue
        mine = use.by_service[task.service_id]
        words = f"{mine} other task{'' if mine == 1 else 's'} of the service, {use.tasks} in all"
        if node.id == task.node_id:
            words += "; chosen"
        fits.append(((mine, use.tasks, node.id), NodeReason(node.id, hostname, words)))
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
