"""Replicated services: N slots, numbered from 1.

Owns which slots a service has. Source: swarmkit orchestrator/replicated.
"""

from __future__ import annotations

from overlace.manager.orchestrate.reap import remove_slot
from overlace.manager.orchestrate.restart import is_finished
from overlace.manager.orchestrate.work import Slot, SlotKey, Work, slots_of
from overlace.model.objects import Task
from overlace.model.states import TaskState


def replicas_of(work: Work) -> int:
    mode = work.service.spec.mode.replicated
    return 1 if mode is None or mode.replicas is None else mode.replicas


def plan_slots(work: Work) -> tuple[list[Slot], list[Slot]]:
    """(slots wanted, slots being removed), after scaling up or down."""
    slots = slots_of(work.view.tasks_of_service(work.service.id), _slot_number)
    wanted = replicas_of(work)
    occupied = [slot for slot in slots.values() if slot.live() or is_finished(slot)]
    if len(occupied) > wanted:
        kept = _order_to_keep(work, occupied)[:wanted]
    else:
        kept = occupied
        taken = {slot.key for slot in occupied}
        number = 0
        while len(kept) < wanted:
            number += 1
            if number not in taken:
                kept.append(slots.get(number) or Slot(number))
    keys = {slot.key for slot in kept}
    leaving = [slot for slot in slots.values() if slot.key not in keys]
    for slot in leaving:
        remove_slot(work, slot)
    return sorted(kept, key=lambda slot: slot.key), leaving


def _slot_number(task: Task) -> SlotKey:
    return task.slot


def _order_to_keep(work: Work, slots: list[Slot]) -> list[Slot]:
    """Slots to keep first: each node's first copy before any node's second; within a node running ones, then
    low numbers, first. A slot that has no node, or two tasks, goes first."""
    ordered = sorted(slots, key=lambda slot: (not _runs(work, slot), slot.key))
    copies: dict[str, int] = {}
    ranked: list[tuple[int, Slot]] = []
    for slot in ordered:
        live = slot.live()
        node_id = live[0].node_id if len(live) == 1 and not work.lost(live[0]) else ""
        if node_id:
            copies[node_id] = copies.get(node_id, 0) + 1
            ranked.append((copies[node_id], slot))
        else:
            ranked.append((len(slots) + 1, slot))
    ranked.sort(key=lambda item: item[0])
    return [slot for _, slot in ranked]


def _runs(work: Work, slot: Slot) -> bool:
    return any(t.status.state == TaskState.RUNNING and not work.lost(t) for t in slot.live())
