"""One service's decision in the making: its tasks by slot, and the changes collected so far.

Owns `Slot`, `Work` and the tests every orchestrator shares (stopped, lost, dirty). Must not know policies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from overlace.manager.allocate.services import attachments, host_mode_ports, ingress_ports
from overlace.manager.schedule.capable import capabilities_of, is_capable
from overlace.manager.schedule.filters import meets_constraints
from overlace.model.objects import Cluster, Network, Node, Service, Task, TaskStatus
from overlace.model.specs import TaskSpec
from overlace.model.states import NodeState, TaskState
from overlace.store.base import Change, Delete, Put, View

SECOND = 1_000_000_000
CREATED = "created"

NewId = Callable[[], str]
SlotKey = int | str  # replicated: slot number from 1 (jobs: 0); one per node: node id


class Decision(msgspec.Struct, frozen=True):
    """What to change now, and when to look again (ns since the epoch; None: when something changes)."""

    changes: tuple[Change, ...] = ()
    wake: int | None = None


class Slot:
    """All stored tasks of one replica, or of one node for a global service, oldest first."""

    __slots__ = ("key", "may_start", "tasks")

    def __init__(self, key: SlotKey, tasks: Iterable[Task] = ()) -> None:
        self.key = key
        self.tasks = sorted(tasks, key=lambda t: (t.created_at, t.version == 0, t.version, t.id))
        self.may_start = True  # False on a paused node: what runs there stays, nothing new starts

    def live(self) -> list[Task]:
        """Tasks meant to run."""
        return [task for task in self.tasks if is_live(task)]

    def ended_last(self) -> Task | None:
        """The newest task that is over and was not told to go away for good."""
        for task in reversed(self.tasks):
            if task.desired_state == TaskState.SHUTDOWN:
                return task
        return None


def is_live(task: Task) -> bool:
    if task.desired_state == TaskState.COMPLETE:  # a job's
        return not task.status.state.terminal
    return task.desired_state <= TaskState.RUNNING


def node_gone(node: Node | None) -> bool:
    """Nobody will report for this node: removed, or down (its tasks count as stopped)."""
    return node is None or node.removed or node.status.state == NodeState.DOWN


def node_lost(node: Node | None) -> bool:
    """The node may not keep its tasks: gone, or drained."""
    return node is None or node_gone(node) or node.spec.availability == "drain"


class Work:
    """The view, the service and what was decided about it; `set`, `drop`, `create` keep slots up to date."""

    def __init__(self, view: View, service: Service, now: int, new_id: NewId) -> None:
        self.view = view
        self.service = service
        self.now = now
        self.wake: int | None = None
        mode = service.spec.mode
        job = mode.replicated_job is not None or mode.global_job is not None
        status = service.job_status
        self.iteration = (status.iteration if status is not None else 0) if job else None  # of a job
        self.goal = TaskState.COMPLETE if job else TaskState.RUNNING  # what its tasks are wanted to reach
        self.cluster = next(iter(view.all(Cluster)), None)
        self.spec = effective_spec(service, self.cluster)
        self._capabilities: tuple[str, ...] | None = None
        self._new_id = new_id
        self._nodes: dict[str, Node | None] = {}
        self._changes: dict[str, Change] = {}

    def suits(self, node: Node) -> bool:
        """Whether the node can have a task of it at all."""
        if self._capabilities is None:
            self._capabilities = capabilities_of(self.view, self.service.spec, self.spec)
        return is_capable(node, self.spec, self._capabilities)

    # -- changing --------------------------------------------------------------------------------------------

    def set(self, slot: Slot, old: Task, new: Task) -> Task:
        slot.tasks[slot.tasks.index(old)] = new
        self._changes[new.id] = Put(new, expect=new.version)
        return new

    def desire(self, slot: Slot, task: Task, desired: TaskState) -> Task | None:
        """Move a task's desired state on. One no longer wanted that never reached a node is deleted."""
        if not desired.wanted and task.status.state < TaskState.ASSIGNED:
            self.drop(slot, task)
            return None
        return self.set(slot, task, msgspec.structs.replace(task, desired_state=desired))

    def drop(self, slot: Slot, task: Task) -> None:
        slot.tasks.remove(task)
        if task.version:
            self._changes[task.id] = Delete("task", task.id, expect=task.version)
        else:
            self._changes.pop(task.id, None)

    def create(self, slot: Slot, desired: TaskState | None = None, not_before: int = 0) -> Task:
        """A new task of the service's current spec in a slot; wanted to reach the service's goal unless said."""
        service = self.service
        id = self._new_id()
        task = Task(
            id=id,
            created_at=self.now,
            updated_at=self.now,
            service_id=service.id,
            slot=0 if isinstance(slot.key, str) else slot.key,
            node_id=slot.key if isinstance(slot.key, str) else "",
            spec=self.spec,
            spec_version=service.spec_version,
            service_name=service.spec.name,
            service_labels=service.spec.labels,
            name=f"{service.spec.name}.{slot.key}.{id}",
            desired_state=self.goal if desired is None else desired,
            job_iteration=self.iteration,
            status=TaskStatus(state=TaskState.NEW, timestamp=self.now, message=CREATED),
            not_before=not_before,
        )
        slot.tasks.append(task)
        self._changes[id] = Put(task, expect=0)
        return task

    def wake_at(self, when: int) -> None:
        self.wake = when if self.wake is None else min(self.wake, when)

    def decision(self, *more: Change) -> Decision:
        return Decision((*self._changes.values(), *more), self.wake)

    # -- asking ----------------------------------------------------------------------------------------------

    def node(self, task: Task) -> Node | None:
        if task.node_id not in self._nodes:
            self._nodes[task.node_id] = self.view.get(Node, task.node_id)
        return self._nodes[task.node_id]

    def stopped(self, task: Task) -> bool:
        """Whether nothing of the task runs any more, as far as can be known."""
        return (
            task.status.state.terminal or task.status.state < TaskState.ASSIGNED or node_gone(self.node(task))
        )

    def lost(self, task: Task) -> bool:
        return bool(task.node_id) and node_lost(self.node(task))

    def is_dirty(self, task: Task) -> bool:
        """Whether an update must replace the task.

        Not when only the number of replicas changed, nor when only constraints did and its node meets the
        new ones (swarmkit orchestrator/task.go IsTaskDirty). Of the endpoint spec only host-mode ports and
        the need of the ingress network are the task's business; Docker replaces tasks for any change of it.
        """
        if task.spec_version == self.service.spec_version:
            return False
        if task.spec is not self.spec and task.spec != self.spec and not self._only_constraints_moved(task):
            return True
        if task.status.state == TaskState.NEW:
            return False  # not allocated yet: it will get what the service has now
        if task.ports != host_mode_ports(self.service.spec):
            return True
        return bool(ingress_ports(self.service.spec)) != self._on_ingress(task)

    def _only_constraints_moved(self, task: Task) -> bool:
        mine, wanted = task.spec.placement, self.spec.placement
        if mine == wanted:
            return False
        bare_mine = msgspec.structs.replace(mine, constraints=[]) if mine else None
        bare_wanted = msgspec.structs.replace(wanted, constraints=[]) if wanted else None
        empty = type(wanted or mine)() if (wanted or mine) else None  # type: ignore[misc]
        if (bare_mine or empty) != (bare_wanted or empty):
            return False
        if msgspec.structs.replace(task.spec, placement=wanted) != self.spec:
            return False
        node = self.node(task) if task.node_id else None
        return node is not None and meets_constraints(self.spec, node)

    def _on_ingress(self, task: Task) -> bool:
        for attachment in task.networks:
            network = self.view.get(Network, attachment.network_id)
            if network is not None and network.spec.ingress:
                return True
        return False


def effective_spec(service: Service, cluster: Cluster | None) -> TaskSpec:
    """The spec the service's tasks get: the template, networks from their older place, the cluster's log
    driver.
    """
    template = service.spec.task_template
    networks = attachments(service.spec)
    log_driver = template.log_driver
    if log_driver is None and cluster is not None:
        log_driver = cluster.spec.task_defaults.log_driver
    if networks is template.networks and log_driver is template.log_driver:
        return template
    return msgspec.structs.replace(template, networks=networks, log_driver=log_driver)


def slots_of(tasks: Iterable[Task], key: Callable[[Task], SlotKey]) -> dict[SlotKey, Slot]:
    grouped: dict[SlotKey, list[Task]] = {}
    for task in tasks:
        grouped.setdefault(key(task), []).append(task)
    return {k: Slot(k, group) for k, group in grouped.items()}
