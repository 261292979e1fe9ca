"""Global services: one task on every eligible node.

Owns which nodes those are. Source: swarmkit orchestrator/global; unlike it, a node whose platform the image
does not support, or whose network the service, gets no task at all (Docker leaves one pending there for ever).
"""

from __future__ import annotations

from overlace.manager.orchestrate.reap import remove_slot
from overlace.manager.orchestrate.work import Slot, SlotKey, Work, node_lost, slots_of
from overlace.model.objects import Node, Task
from overlace.model.states import NodeState, TaskState


def plan_slots(work: Work) -> tuple[list[Slot], list[Slot]]:
    """(nodes that have or get a task, nodes that lose theirs)."""
    slots = slots_of(work.view.tasks_of_service(work.service.id), _node_id)
    wanted: list[Slot] = []
    leaving: list[Slot] = []
    for node in work.view.all(Node):
        slot = slots.pop(node.id, None) or Slot(node.id)
        if node.removed or not work.suits(node):
            remove_slot(work, slot)
            leaving.append(slot)
        elif node_lost(node):
            for task in slot.live():
                work.desire(slot, task, TaskState.SHUTDOWN)
            leaving.append(slot)
        else:
            slot.may_start = node.spec.availability == "active" and node.status.state == NodeState.READY
            wanted.append(slot)
    for slot in slots.values():  # their nodes are gone
        remove_slot(work, slot)
        leaving.append(slot)
    return sorted(wanted, key=lambda slot: slot.key), leaving


def _node_id(task: Task) -> SlotKey:
    return task.node_id
