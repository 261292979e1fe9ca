"""How people refer to things, and the filters of the lists.

Owns `find` (id, name, id prefix) and one list function per kind. Pure over a view. A filter's values are
alternatives, except labels, which must all be there; different filters must all match (moby
daemon/cluster/filters.go, swarmkit controlapi). Removed nodes are never found nor listed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from overlace.manager.control.base import label_map
from overlace.manager.orchestrate.work import Work
from overlace.model.errors import InvalidArgument, NotFound
from overlace.model.objects import Base, Config, Network, Node, Secret, Service, Task
from overlace.model.specs import Labels
from overlace.model.states import TaskState
from overlace.store.base import View

T = TypeVar("T", bound=Base)
Filters = Mapping[str, Sequence[str]]

SERVICE_FILTERS = ("id", "label", "mode", "name", "runtime")
TASK_FILTERS = ("_up-to-date", "desired-state", "id", "label", "name", "node", "runtime", "service")
NODE_FILTERS = ("id", "label", "membership", "name", "node.label", "role")
SECRET_FILTERS = ("id", "label", "name", "names")
CONFIG_FILTERS = ("id", "label", "name")
NETWORK_FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type")


# -- one thing -----------------------------------------------------------------------------------------


def find(view: View, kind: type[T], ref: str) -> T:
    """The object a person means by `ref`: its full id, else its name (of a node: hostname), else a prefix of
    its id.

    Raises NotFound `service X not found`, InvalidArgument `service X is ambiguous (N matches found)`.
    """
    found = view.get(kind, ref)
    if found is not None and not _removed(found):
        return found
    matches = _named(view, kind, ref)
    if not matches and ref:
        matches = [thing for thing in view.by_prefix(kind, ref) if not _removed(thing)]
    if not matches:
        raise NotFound(f"{kind.kind} {ref} not found")
    if len(matches) > 1:
        raise InvalidArgument(f"{kind.kind} {ref} is ambiguous ({len(matches)} matches found)")
    return matches[0]


def _named(view: View, kind: type[T], ref: str) -> list[T]:
    if kind is Node:
        folded = ref.lower()
        return [
            thing
            for thing in view.all(kind)
            if isinstance(thing, Node) and not thing.removed and _hostname(thing).lower() == folded
        ]
    if kind is Task:  # <service>.<slot>.<id>
        found = view.get(kind, ref.rpartition(".")[2])
        return [found] if isinstance(found, Task) and found.name == ref else []
    named = view.by_name(kind, ref)
    return [named] if named is not None else []


def _removed(thing: Base) -> bool:
    return isinstance(thing, Node) and thing.removed


def _hostname(node: Node) -> str:
    return node.description.hostname if node.description else ""


# -- lists ---------------------------------------------------------------------------------------------


def check_filters(filters: Filters, known: Collection[str]) -> None:
    """Raises InvalidArgument `invalid filter 'foo'` for a key that is not known."""
    for key in filters:
        if key not in known:
            raise InvalidArgument(f"invalid filter '{key}'")


def mode_of(service: Service) -> str:
    mode = service.spec.mode
    if mode.global_ is not None:
        return "global"
    if mode.replicated_job is not None:
        return "replicated-job"
    return "global-job" if mode.global_job is not None else "replicated"


def list_services(view: View, filters: Filters) -> list[Service]:
    check_filters(filters, SERVICE_FILTERS)
    keep = _Keep[Service](filters)
    keep.prefix("id", lambda s: s.id)
    keep.labels("label", lambda s: s.spec.labels)
    keep.prefix("name", lambda s: s.spec.name)
    keep.word("mode", mode_of)
    keep.word("runtime", lambda s: s.spec.task_template.runtime or "container")
    return keep.select(_by_id(view, Service, filters), lambda s: s.spec.name)


def list_tasks(view: View, filters: Filters) -> list[Task]:
    """Raises NotFound when a service or node it filters by is missing, InvalidArgument for an unknown
    state."""
    check_filters(filters, TASK_FILTERS)
    tasks: Iterable[Task]
    services = [find(view, Service, ref).id for ref in filters.get("service", ())]
    nodes = [find(view, Node, ref).id for ref in filters.get("node", ())]
    if services:
        tasks = (task for id in dict.fromkeys(services) for task in view.tasks_of_service(id))
    elif nodes:
        tasks = (task for id in dict.fromkeys(nodes) for task in view.tasks_of_node(id))
    else:
        tasks = _by_id(view, Task, filters)
    keep = _Keep[Task](filters)
    keep.only(lambda t: not t.attachment)  # moby daemon/cluster GetTasks: those with a container alone
    keep.prefix("id", lambda t: t.id)
    keep.labels("label", lambda t: t.service_labels)
    keep.prefix("name", lambda t: t.name)
    keep.word("runtime", lambda t: t.spec.runtime or "container")
    if nodes:
        keep.only(lambda t: t.node_id in nodes)
    states = [_state(text) for text in filters.get("desired-state", ())]
    if states:
        keep.only(lambda t: t.desired_state in states)
    fresh = [_flag("_up-to-date", text) for text in filters.get("_up-to-date", ())]
    if fresh:
        keep.only(lambda t: up_to_date(view, t) in fresh)
    return keep.select(tasks, lambda t: (t.service_name, t.slot, t.node_id, -t.created_at, t.id))


def up_to_date(view: View, task: Task) -> bool:
    """Whether a task runs what its service asks for now."""
    service = view.get(Service, task.service_id)
    return service is not None and not Work(view, service, 0, str).is_dirty(task)


def list_nodes(view: View, filters: Filters) -> list[Node]:
    check_filters(filters, NODE_FILTERS)
    for text in filters.get("role", ()):
        if text not in ("worker", "manager"):
            raise InvalidArgument(f"Invalid role filter: '{text}'")
    for text in filters.get("membership", ()):
        if text not in ("pending", "accepted"):
            raise InvalidArgument(f"Invalid membership filter: '{text}'")
    keep = _Keep[Node](filters)
    keep.only(lambda n: not n.removed)
    keep.prefix("id", lambda n: n.id)
    keep.labels("label", lambda n: n.description.engine_labels if n.description else {})
    keep.labels("node.label", lambda n: n.spec.labels)
    keep.prefix("name", _hostname)
    keep.word("role", lambda n: n.spec.role)
    keep.word("membership", lambda n: "accepted")
    return keep.select(_by_id(view, Node, filters), lambda n: (_hostname(n), n.id))


def list_secrets(view: View, filters: Filters) -> list[Secret]:
    check_filters(filters, SECRET_FILTERS)
    keep = _Keep[Secret](filters)
    keep.prefix("id", lambda s: s.id)
    keep.labels("label", lambda s: s.spec.labels)
    keep.prefix("name", lambda s: s.spec.name)
    keep.word("names", lambda s: s.spec.name)
    return keep.select(_by_id(view, Secret, filters), lambda s: s.spec.name)


def list_configs(view: View, filters: Filters) -> list[Config]:
    check_filters(filters, CONFIG_FILTERS)
    keep = _Keep[Config](filters)
    keep.prefix("id", lambda c: c.id)
    keep.labels("label", lambda c: c.spec.labels)
    keep.prefix("name", lambda c: c.spec.name)
    return keep.select(_by_id(view, Config, filters), lambda c: c.spec.name)


def list_networks(view: View, filters: Filters) -> list[Network]:
    """The swarm's networks; as in moby `id` and `name` match anywhere in the text."""
    check_filters(filters, NETWORK_FILTERS)
    for text in filters.get("type", ()):
        if text not in ("custom", "builtin"):
            raise InvalidArgument(f"invalid filter: 'type'='{text}'")
    keep = _Keep[Network](filters)
    keep.labels("label", lambda n: n.spec.labels)
    keep.word("driver", lambda n: n.spec.driver or "overlay")
    keep.word("scope", lambda n: "swarm")
    keep.word("type", lambda n: "custom")
    keep.anywhere("id", lambda n: n.id)
    keep.anywhere("name", lambda n: n.spec.name)
    dangling = [_flag("dangling", text) for text in filters.get("dangling", ())]
    if dangling:
        keep.only(lambda n: (not network_in_use(view, n)) in dangling)
    return keep.select(view.all(Network), lambda n: n.spec.name)


def network_in_use(view: View, network: Network) -> bool:
    return any(True for _ in view.services_of_network(network.id)) or any(
        not task.status.state.terminal for task in view.tasks_of_network(network.id)
    )


# -- parts of filters --------------------------------------------------------------------------------------


def _by_id(view: View, kind: type[T], filters: Filters) -> Iterable[T]:
    """Only what the `id` filter (a prefix) lets through, by the index."""
    prefixes = filters.get("id", ())
    if not prefixes:
        return view.all(kind)
    return {thing.id: thing for prefix in prefixes for thing in view.by_prefix(kind, prefix)}.values()


class _Keep(Generic[T]):
    """The tests of one list's filters; a filter that is not given lets everything through."""

    def __init__(self, filters: Filters) -> None:
        self._filters = filters
        self._tests: list[Callable[[T], bool]] = []

    def only(self, test: Callable[[T], bool]) -> None:
        self._tests.append(test)

    def labels(self, key: str, labels: Callable[[T], Labels]) -> None:
        wanted = label_map(self._filters.get(key, ()))

        def test(thing: T) -> bool:
            have = labels(thing)
            return all(name in have and value in (None, "", have[name]) for name, value in wanted.items())

        if wanted:
            self.only(test)

    def word(self, key: str, value: Callable[[T], str]) -> None:
        if wanted := self._filters.get(key, ()):
            self.only(lambda thing: value(thing) in wanted)

    def prefix(self, key: str, value: Callable[[T], str]) -> None:
        if wanted := tuple(self._filters.get(key, ())):
            self.only(lambda thing: value(thing).startswith(wanted))

    def anywhere(self, key: str, value: Callable[[T], str]) -> None:
        if wanted := self._filters.get(key, ()):
            self.only(lambda thing: any(text in value(thing) for text in wanted))

    def select(self, things: Iterable[T], order: Callable[[T], Any]) -> list[T]:
        return sorted((thing for thing in things if all(test(thing) for test in self._tests)), key=order)


def _state(text: str) -> TaskState:
    try:
        return TaskState[text.upper()]
    except KeyError:
        raise InvalidArgument(f"invalid desired-state filter: '{text}'") from None


def _flag(key: str, text: str) -> bool:
    if text in ("1", "true", "True", "TRUE", "t"):
        return True
    if text in ("0", "false", "False", "FALSE", "f"):
        return False
    raise InvalidArgument(f"invalid filter '{key}={text}': expected true or false")
