"""What one node's agent has been told to run, and the next message that brings it up to date.

Owns the rule which tasks belong to a node and which secrets and configs travel with them. Pure: no clock,
sockets or store writes. Reads the store's current view instead of trusting events, so a message never goes
back in time.
"""

from __future__ import annotations

from collections.abc import Iterable

from overlace.model.objects import Config, Secret, Service, Task
from overlace.model.states import TaskState
from overlace.store.base import View
from overlace.wire.messages import Assignments


def is_assigned(task: Task | None, node_id: str) -> bool:
    """Whether the node keeps this task: from its assignment until it is deleted, or given up for lost. Of attachments it
    learns by the network view."""
    return (
        task is not None
        and task.node_id == node_id
        and not task.attachment
        and TaskState.ASSIGNED <= task.status.state < TaskState.ORPHANED
    )


def needs(task: Task) -> tuple[frozenset[str], frozenset[str]]:
    """Ids of the secrets and configs the task needs: all its spec names until it has ended, then none."""
    spec = task.spec.container_spec
    if spec is None or task.status.state.terminal:
        return frozenset(), frozenset()
    return (
        frozenset(s.secret_id for s in spec.secrets if s.secret_id),
        frozenset(c.config_id for c in spec.configs if c.config_id),
    )


def same_for_agent(old: Task, new: Task) -> bool:
    """Whether an agent that has `old` learns nothing from `new`: all that differs is the status it reported
    itself."""
    return (
        old.desired_state == new.desired_state
        and (old.spec is new.spec or old.spec == new.spec)
        and (old.networks is new.networks or old.networks == new.networks)
        and (old.ports is new.ports or old.ports == new.ports)
        and old.slot == new.slot
        and old.spec_version == new.spec_version
        and old.name == new.name
        and old.service_name == new.service_name
        and old.service_labels == new.service_labels
        and old.not_before == new.not_before
        and old.job_iteration == new.job_iteration
    )


class NodeAssignments:
    """The told state of one session. Keeps references to immutable tasks, not copies."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._sequence = 0
        self._tasks: dict[str, Task] = {}
        self._needs: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
        self._secrets: dict[str, set[str]] = {}  # secret -> tasks that need it
        self._configs: dict[str, set[str]] = {}

    def complete(self, view: View) -> Assignments:
        """Everything, replacing whatever the agent has."""
        self._tasks.clear()
        self._needs.clear()
        self._secrets.clear()
        self._configs.clear()
        for task in view.tasks_of_node(self._node_id):
            if is_assigned(task, self._node_id):
                self._tasks[task.id] = task
                self._use(task.id, needs(task))
        self._sequence += 1
        return Assignments(
            sequence=self._sequence,
            complete=True,
            tasks=tuple(self._tasks.values()),
            secrets=tuple(s for i in self._secrets if (s := view.get(Secret, i)) is not None),
            configs=tuple(c for i in self._configs if (c := view.get(Config, i)) is not None),
            registry_auth=_auth(view, {t.service_id for t in self._tasks.values()}),
        )

    def delta(
        self, view: View, task_ids: Iterable[str], service_ids: Iterable[str] = ()
    ) -> Assignments | None:
        """What changed among these tasks, and the registry credentials of these services; None for
        nothing."""
        put: list[Task] = []
        gone: list[str] = []
        # by id: whether the agent had it before this message
        secrets, configs = dict[str, bool](), dict[str, bool]()
        for task_id in task_ids:
            old, new = self._tasks.get(task_id), view.get(Task, task_id)
            if new is None or not is_assigned(new, self._node_id):
                if old is None:
                    continue
                del self._tasks[task_id]
                gone.append(task_id)
                wanted = (frozenset[str](), frozenset[str]())
            else:
                if old is None or not same_for_agent(old, new):
                    put.append(new)
                self._tasks[task_id] = new
                wanted = needs(new)
            had = self._needs.get(task_id, (frozenset(), frozenset()))
            if had != wanted:
                for i in had[0] | wanted[0]:
                    secrets.setdefault(i, i in self._secrets)
                for i in had[1] | wanted[1]:
                    configs.setdefault(i, i in self._configs)
                self._use(task_id, wanted)
        new_secrets = [i for i, had_it in secrets.items() if not had_it and i in self._secrets]
        new_configs = [i for i, had_it in configs.items() if not had_it and i in self._configs]
        old_secrets = tuple(i for i, had_it in secrets.items() if had_it and i not in self._secrets)
        old_configs = tuple(i for i, had_it in configs.items() if had_it and i not in self._configs)
        auth = _auth(view, {t.service_id for t in put})
        for i in service_ids:
            service = view.get(Service, i)
            if service is not None:
                auth[i] = service.registry_auth
        if not (put or gone or new_secrets or new_configs or old_secrets or old_configs or auth):
            return None
        self._sequence += 1
        return Assignments(
            sequence=self._sequence,
            complete=False,
            tasks=tuple(put),
            remove_tasks=tuple(gone),
            secrets=tuple(s for i in new_secrets if (s := view.get(Secret, i)) is not None),
            remove_secrets=old_secrets,
            configs=tuple(c for i in new_configs if (c := view.get(Config, i)) is not None),
            remove_configs=old_configs,
            registry_auth=auth,
        )

    def uses(self, id: str) -> bool:
        """Whether the agent holds this secret or config."""
        return id in self._secrets or id in self._configs

    def _use(self, task_id: str, wanted: tuple[frozenset[str], frozenset[str]]) -> None:
        had = self._needs.pop(task_id, (frozenset(), frozenset()))
        if any(wanted):
            self._needs[task_id] = wanted
        for users, before, now in zip((self._secrets, self._configs), had, wanted, strict=True):
            for i in now - before:
                users.setdefault(i, set()).add(task_id)
            for i in before - now:
                users[i].discard(task_id)
                if not users[i]:
                    del users[i]


def _auth(view: View, service_ids: Iterable[str]) -> dict[str, str]:
    found = {}
    for i in service_ids:
        service = view.get(Service, i)
        if service is not None and service.registry_auth:
            found[i] = service.registry_auth
    return found
