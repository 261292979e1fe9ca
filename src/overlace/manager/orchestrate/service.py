"""Everything that is decided about one service in one pass.

Owns the order: slots, restarts, update, history. Must not allocate or schedule.
"""

from __future__ import annotations

from overlace.manager.orchestrate import global_, replicated
from overlace.manager.orchestrate.jobs import plan_job
from overlace.manager.orchestrate.reap import plan_removal, reap_slot
from overlace.manager.orchestrate.restart import fill_slot, start_waiting
from overlace.manager.orchestrate.update import plan_update
from overlace.manager.orchestrate.work import Decision, NewId, Work
from overlace.model.objects import Service
from overlace.store.base import View


def plan_service(view: View, service_id: str, now: int, new_id: NewId) -> Decision:
    """What one service's tasks need now. Cost: its own tasks (and, for a global service, the nodes).

    A service that no longer exists loses its tasks.
    """
    service = view.get(Service, service_id)
    if service is None:
        changes, wake = plan_removal(view, view.tasks_of_service(service_id), now)
        return Decision(tuple(changes), wake)
    mode = service.spec.mode
    work = Work(view, service, now, new_id)
    if mode.replicated_job is not None or mode.global_job is not None:
        plan_job(work)
        return work.decision()
    planner = global_ if mode.global_ is not None else replicated
    wanted, leaving = planner.plan_slots(work)
    for slot in wanted:
        fill_slot(work, slot)
    changed = plan_update(work, wanted)
    for slot in wanted:
        start_waiting(work, slot)
    for slot in (*wanted, *leaving):
        reap_slot(work, slot)
    return work.decision(*changed)
