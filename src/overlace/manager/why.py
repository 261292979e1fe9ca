"""Why a task or a service is where it is, or is not: one document people and programs read (`overlace why`).

Owns the sentences about a task's life and a service's progress; filters, ranking and remedies are schedule's.
Pure over a view; decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from overlace.manager.allocate.services import attachments, host_mode_ports
from overlace.manager.control.lookup import find, mode_of
from overlace.manager.orchestrate.jobs import job_size
from overlace.manager.orchestrate.replicated import replicas_of
from overlace.manager.orchestrate.restart import policy_of
from overlace.manager.orchestrate.work import SECOND, Work, effective_spec, node_gone
from overlace.manager.schedule.explain import FITS, Look, Verdict, explain_look, hostname
from overlace.manager.schedule.remedy import Remedy, explain_remedies
from overlace.model.errors import NotFound
from overlace.model.objects import Cluster, Network, Node, Service, Task, TaskStatus
from overlace.model.states import TaskState
from overlace.store.base import View

NOW_ONLY = (
    "Computed from the swarm as it is now; what the nodes looked like when a task was placed is not kept."
)


class TaskLine(msgspec.Struct, frozen=True):
    """A task as it stands; `since`: ns since the epoch, when it came to its state (waiting: when it was made)."""

    id: str
    name: str
    state: str
    desired_state: str
    node: str  # hostname
    since: int
    says: str


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """`filters`: nodes each filter turned away, then under "fits" those that can take the task, best first.
    `remedies`: any one of them helps; empty when nothing is in the way."""

    kind: str  # task | service
    id: str
    name: str
    mode: str  # of the service
    says: str
    tasks: tuple[TaskLine, ...]  # the one asked for, or the service's newest of every slot
    filters: tuple[Verdict, ...] = ()
    where: str = ""  # filters and ranking in one sentence
    ranking: str = ""
    note: str = ""
    remedies: tuple[Remedy, ...] = ()


def explain(view: View, ref: str, now: int) -> Why:
    """`ref`: a service or task by id, name or id prefix; a task also as SERVICE.SLOT. Raises NotFound."""
    try:
        return explain_service(view, find(view, Service, ref), now)
    except NotFound:
        pass
    name, _, slot = ref.rpartition(".")
    service = view.by_name(Service, name) if name else None
    if service is not None:
        mine = [t for t in newest(view, service) if t.slot_word == slot or _host_of(view, t) == slot]
        if mine:
            return explain_task(view, mine[0], now)
    try:
        return explain_task(view, find(view, Task, ref), now)
    except NotFound:
        raise NotFound(
            f"no service or task {ref}; `docker service ls` and `docker service ps` name them"
        ) from None


# -- a task --------------------------------------------------------------------------------------------------


def explain_task(view: View, task: Task, now: int) -> Why:
    service = view.get(Service, task.service_id)
    mode = mode_of(service) if service is not None else ""
    line = _line(view, task, now)
    base = Why(kind="task", id=task.id, name=short(view, task), mode=mode, says=line.says, tasks=(line,))
    if not task.desired_state.wanted or task.status.state.terminal:
        return base
    return _with_placement(view, base, task, now)


def short(view: View, task: Task) -> str:
    """SERVICE.SLOT, or SERVICE.HOST where each node has one."""
    host = _host_of(view, task)
    return f"{task.service_name}.{host if task.slot_word == task.node_id else task.slot_word}"


def _line(view: View, task: Task, now: int) -> TaskLine:
    status = task.status
    waiting = status.state < TaskState.ASSIGNED
    return TaskLine(
        id=task.id,
        name=short(view, task),
        state=status.state.word,
        desired_state=task.desired_state.word,
        node=_host_of(view, task),
        since=task.created_at if waiting else status.timestamp or task.created_at,
        says=_says(view, task, now),
    )


def _host_of(view: View, task: Task) -> str:
    node = view.get(Node, task.node_id) if task.node_id else None
    return hostname(node) if node is not None else task.node_id


def _says(view: View, task: Task, now: int) -> str:
    status, state, where = task.status, task.status.state, _host_of(view, task)
    if state.terminal:
        return _says_over(task, where)
    node = view.get(Node, task.node_id) if task.node_id else None
    if not task.desired_state.wanted:
        if task.node_id and node_gone(node):
            return f"was to stop, but {where} does not answer; it is given up after a minute"
        return f"is being stopped on {where}" if task.node_id else "is being removed"
    if state == TaskState.NEW:
        return status.err or "waits for its addresses"
    if state == TaskState.PENDING:
        return status.err or "waits for the scheduler's next pass"
    if task.node_id and node_gone(node):
        return f"is on {where}, which does not answer"
    if task.desired_state == TaskState.READY:
        if now < task.not_before:
            left = -(-(task.not_before - now) // SECOND)
            return f"is prepared on {where} and starts when the restart delay is over, in {left} s"
        return f"is prepared on {where} and starts when the task before it has stopped"
    if state == TaskState.RUNNING:
        if node is not None and node.spec.availability == "drain" and task.job_iteration is None:
            return f"runs on {where}, which is drained, until its successor runs"
        return f"runs on {where}"
    says = f"is on its way on {where}: {state.word}" + (f" ({status.err})" if status.err else "")
    if state == TaskState.ASSIGNED and node is not None and node.description and node.description.trouble:
        says += f"; {where} cannot take it: {node.description.trouble}"
    return says


_OVER = {
    TaskState.COMPLETE: "completed on",
    TaskState.SHUTDOWN: "was stopped on",
    TaskState.FAILED: "failed on",
    TaskState.REJECTED: "was rejected on",
    TaskState.ORPHANED: "was lost with",
}


def _says_over(task: Task, where: str) -> str:
    status = task.status
    says = _OVER.get(status.state, f"is {status.state.word} on") + f" {where}" if where else status.state.word
    if status.err:
        says += f": {status.err}"
    elif status.state != TaskState.COMPLETE and status.message:
        says += f": {status.message}"
    return says


# -- a service -----------------------------------------------------------------------------------------------


def explain_service(view: View, service: Service, now: int) -> Why:
    tasks = newest(view, service)
    base = Why(
        kind="service",
        id=service.id,
        name=service.spec.name,
        mode=mode_of(service),
        says=_progress(view, service, tasks),
        tasks=tuple(_line(view, task, now) for task in tasks),
    )
    live = [t for t in tasks if t.desired_state.wanted and not t.status.state.terminal]
    waiting = [t for t in live if t.status.state < TaskState.ASSIGNED]
    if tasks and not live:
        return base  # all is over: where it could run explains nothing
    subject = next(iter(waiting or live), None) or _imagined(view, service)
    return _with_placement(view, base, subject, now)


def newest(view: View, service: Service) -> list[Task]:
    """The latest task of every slot: one that is wanted before one that is not. A job's of its iteration only."""
    iteration = service.job_status.iteration if service.job_status is not None else None
    found: dict[tuple[int, str], Task] = {}
    for task in view.tasks_of_service(service.id):
        if task.job_iteration != iteration:
            continue
        key = task.slot, task.slot_word
        old = found.get(key)
        if old is None or _precedence(task) > _precedence(old):
            found[key] = task
    return [found[key] for key in sorted(found)]


def _precedence(task: Task) -> tuple[bool, int, str]:
    return task.desired_state.wanted, task.created_at, task.id


def _imagined(view: View, service: Service) -> Task:
    """A task as the service would get one now."""
    cluster = next(iter(view.all(Cluster)), None)
    return Task(
        id="",
        service_id=service.id,
        spec=effective_spec(service, cluster),
        spec_version=service.spec_version,
        service_name=service.spec.name,
        ports=host_mode_ports(service.spec),
        status=TaskStatus(),
    )


def _progress(view: View, service: Service, tasks: Sequence[Task]) -> str:
    running = sum(t.status.state == TaskState.RUNNING and t.desired_state.wanted for t in tasks)
    ended = [t for t in tasks if t.status.state.terminal and not _done(t)]
    words = [_count(view, service, tasks, running)]
    waiting = [t for t in tasks if t.desired_state.wanted and t.status.state < TaskState.ASSIGNED]
    if waiting:
        words.append(f"{len(waiting)} wait: {waiting[0].status.err or 'for the next pass'}")
    stopped = [t for t in ended if not t.desired_state.wanted]
    if stopped:
        condition = policy_of(stopped[-1]).condition or "any"
        attempts = policy_of(stopped[-1]).max_attempts
        limit = f", at most {attempts} attempts" if attempts else ""
        words.append(f"{len(stopped)} ended and get no other try (restart condition {condition}{limit})")
    for config in attachments(service.spec):
        network = view.get(Network, config.target)
        if network is not None and network.warning:
            words.append(f"network {network.spec.name}: {network.warning}")
    status = service.update_status
    if status is not None and status.state in ("paused", "rollback_paused", "updating", "rollback_started"):
        words.append(status.message)
    return "; ".join(words)


def _done(task: Task) -> bool:
    return task.job_iteration is not None and task.status.state == TaskState.COMPLETE


def _count(view: View, service: Service, tasks: Sequence[Task], running: int) -> str:
    mode, done = service.spec.mode, sum(map(_done, tasks))
    if mode.replicated_job is not None:
        at_once, total = job_size(mode.replicated_job)
        return f"{done} of {total} completed, {running} running, at most {at_once} at once"
    if mode.global_job is not None:
        return f"{done} of {len(tasks)} completed, {running} running"
    if mode.global_ is not None:
        return f"{running} of {len(tasks)} tasks run, one on each eligible node"
    wanted = replicas_of(Work(view, service, 0, str))
    return f"{running} of {wanted} tasks run"


# -- placement -----------------------------------------------------------------------------------------------


def _with_placement(view: View, base: Why, task: Task, now: int) -> Why:
    per_node = base.mode in ("global", "global-job")
    look = Look.at(view, task, siblings=not per_node)
    verdicts = explain_look(look, now)
    stuck = task.status.state < TaskState.ASSIGNED
    fits = next(v for v in verdicts if v.filter == FITS)
    remedies = explain_remedies(view, look) if stuck and not fits.nodes else []
    if per_node and stuck and task.node_id:
        mine = msgspec.structs.replace(look, nodes=tuple(n for n in look.nodes if n[0].id == task.node_id))
        remedies = explain_remedies(view, mine)
    return msgspec.structs.replace(
        base,
        filters=tuple(verdicts),
        where=_where(verdicts, _ranking(task, per_node)),
        ranking=_ranking(task, per_node),
        note=NOW_ONLY,
        remedies=tuple(remedies),
    )


def _where(verdicts: Sequence[Verdict], ranking: str) -> str:
    *away, fits = verdicts
    names = [reason.hostname for reason in fits.nodes]
    if not names:
        said = ["no node can run it"]
    elif len(names) == 1:
        said = [f"only {names[0]} can run it"]
    else:
        said = [f"{_list(sorted(names))} can run it ({ranking})"]
    for verdict in away:
        alike: dict[str, list[str]] = {}
        for reason in verdict.nodes:
            alike.setdefault(reason.detail, []).append(reason.hostname)
        said += [f"{_list(names)} cannot: {why}" for why, names in alike.items()]
    return "; ".join(said)


def _list(names: Sequence[str]) -> str:
    shown = [*names[:4], f"{len(names) - 4} more"] if len(names) > 5 else list(names)
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _ranking(task: Task, per_node: bool) -> str:
    if per_node:
        return "one task on every node that fits; nothing is ranked"
    placement = task.spec.placement
    spread = [
        f"the value of {p.spread.spread_descriptor} that holds fewest tasks of the service"
        for p in (placement.preferences if placement else ())
        if p.spread is not None
    ]
    rules = [*spread, "fewest tasks of the service", "fewest tasks in all", "node id"]
    return ", then ".join(rules)
