"""What a person means by the two ends of a trace.

Owns the words (pure over a view). Must not follow packets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address

import msgspec

from overlace.manager.control.lookup import find
from overlace.manager.netviews import takes_part
from overlace.model.errors import InvalidArgument, NotFound
from overlace.model.family import is_six
from overlace.model.objects import Node, Service, Task
from overlace.model.states import TaskState
from overlace.store.base import View

OUTSIDE = ("internet", "client")
# RFC 5737: addresses that stand for any other
SOMEWHERE = "192.0.2.1"
SOMEBODY = "192.0.2.10"
SOMEWHERE6, SOMEBODY6 = "2001:db8::1", "2001:db8::10"  # RFC 3849
MIN_PREFIX = 4


def called(task: Task) -> str:
    """A task, or a container outside of services, in words."""
    return f"container {task.name}" if task.attachment else f"task {task.name}"


def short_name(task: Task) -> str:
    """service.slot"""
    return task.name if task.attachment else task.name.rpartition(".")[0] or task.name


def as_containers(tasks: Iterable[Task]) -> list[Task]:
    """The tasks, with those that stand for one container of `docker run`, one on each network, as one by the container's
    id: its host knows no other."""
    out: list[Task] = []
    parts: dict[str, list[Task]] = {}
    for task in tasks:
        if task.attachment:
            parts.setdefault(container_of(task), []).append(task)
        else:
            out.append(task)
    for id, found in parts.items():
        found.sort(key=lambda t: (t.created_at, t.id))
        networks = tuple(n for t in found for n in t.networks)
        out.append(msgspec.structs.replace(found[0], id=id, networks=networks))
    return out


def container_of(task: Task) -> str:
    """Id of the container that a task is, or stands for; "" when there is none yet."""
    if task.spec.network_attachment_spec is not None:
        return str(task.spec.network_attachment_spec.get("ContainerID", ""))
    return task.status.container.container_id if task.status.container is not None else ""


class AtTask(msgspec.Struct, frozen=True):
    """`address`: the one a person wrote, when they did."""

    task: Task
    address: str = ""

    def __str__(self) -> str:
        return called(self.task)


class AtService(msgspec.Struct, frozen=True):
    service: Service

    def __str__(self) -> str:
        return f"service {self.service.spec.name}"


class AtNode(msgspec.Struct, frozen=True):
    node: Node
    address: str

    def __str__(self) -> str:
        name = self.node.description.hostname if self.node.description is not None else self.node.id
        return f"node {name} ({self.address})"


class AtAddress(msgspec.Struct, frozen=True):
    """An address of the overlay that is no task's, or one outside the swarm."""

    address: str

    def __str__(self) -> str:
        return self.address


class Outside(msgspec.Struct, frozen=True):
    word: str

    def __str__(self) -> str:
        return "a client outside the swarm" if self.word == "client" else "the internet"


Place = AtTask | AtService | AtNode | AtAddress | Outside


def find_place(view: View, text: str, field: str) -> Place:
    """Raises NotFound and InvalidArgument naming `field` (FROM or TO)."""
    if text in OUTSIDE:
        return Outside(text)
    try:
        address = str(ip_address(text.split("/")[0].strip("[]")))
    except ValueError:
        pass
    else:
        return _at_address(view, address)
    service = view.by_name(Service, text) or view.get(Service, text)
    if service is not None:
        return AtService(service)
    tasks = _tasks(view, text)
    if len(tasks) == 1:
        return AtTask(tasks[0])
    if tasks:
        raise InvalidArgument(
            f"{field} {text!r} is ambiguous: {', '.join(sorted(t.name for t in tasks)[:5])}; name one of them"
        )
    try:
        node = find(view, Node, text)
        address = node.description.underlay_address if node.description is not None else ""
        return AtNode(node, address)
    except NotFound:
        pass
    services = view.by_prefix(Service, text) if len(text) >= MIN_PREFIX else []
    services += [s for s in view.all(Service) if s.spec.name.endswith(f"_{text}")]  # its stack left out
    if len(services) == 1:
        return AtService(services[0])
    raise NotFound(
        f"{field} {text!r} is no task, service, node or address of this swarm, nor `internet` or `client`: "
        "docker service ls and docker service ps name them; a container of docker run has a name where it is on a "
        "swarm's network (docker network connect)"
    )


def _at_address(view: View, address: str) -> Place:
    for task in as_containers(t for t in view.all(Task) if takes_part(t)):
        if any(a.split("/")[0] == address for n in task.networks for a in n.addresses):
            return AtTask(task, address)
    for node in view.all(Node):
        if not node.removed and node.description is not None and node.description.underlay_address == address:
            return AtNode(node, address)
    return AtAddress(address)


def task_addresses(task: Task) -> dict[str, tuple[str, ...]]:
    """By network id, without prefix length, IPv4 first."""
    return {a.network_id: bare(a.addresses) for a in task.networks if a.addresses}


def bare(addresses: Iterable[str]) -> tuple[str, ...]:
    """Without prefix length, IPv4 first."""
    return tuple(sorted((a.split("/")[0] for a in addresses), key=is_six))


def facing(addresses: Sequence[str], other: str) -> str:
    """The one that can speak with an address: of the same family; "" when there is none."""
    return of_family(addresses, six=is_six(other))


def of_family(addresses: Iterable[str], *, six: bool) -> str:
    """The first of a family; "" when there is none."""
    return next((a for a in addresses if is_six(a) == six), "")


def _on_node(view: View, text: str) -> list[Task]:
    """The tasks of a global service on the node that `service.hostname` names."""
    for at in (i for i, c in enumerate(text) if c == "."):
        service = view.by_name(Service, text[:at])
        if service is None or service.spec.mode.global_ is None:
            continue
        there = {
            n.id
            for n in view.all(Node)
            if n.description is not None and n.description.hostname == text[at + 1 :]
        }
        return [t for t in view.tasks_of_service(service.id) if t.node_id in there]
    return []


def _tasks(view: View, text: str) -> list[Task]:
    """By full name, service.slot, of a global service service.hostname (the newest that is not over, else the newest),
    name of a container of `docker run`, id or container id, or the beginning of these two."""
    exact = view.get(Task, text.rpartition(".")[2])
    if exact is not None and text in (exact.id, exact.name):
        return as_containers(
            [t for t in view.tasks_of_node(exact.node_id) if container_of(t) == container_of(exact)]
            if exact.attachment
            else [exact]
        )
    names = (t.name.rpartition(".")[0] for t in view.all(Task))
    long = {name for name in names if name == text or name.endswith(f"_{text}")}
    if len(long) == 1 or text in long:
        text = text if text in long else long.pop()
    slot = [t for t in view.all(Task) if t.name.rpartition(".")[0] == text] or _on_node(view, text)
    if slot:
        return [max(slot, key=lambda t: (t.status.state == TaskState.RUNNING, takes_part(t), t.created_at))]
    named = as_containers(t for t in view.all(Task) if t.attachment and t.name == text and takes_part(t))
    if named or len(text) < MIN_PREFIX:
        return named
    return as_containers(
        t for t in view.all(Task) if t.id.startswith(text) or container_of(t).startswith(text)
    )


def service_at(view: View, address: str) -> Service | None:
    """Whose VIP or task's address it is."""
    for service in view.all(Service):
        vips = service.endpoint.virtual_ips if service.endpoint is not None else ()
        if any(v.address.split("/")[0] == address for v in vips):
            return service
    for task in view.all(Task):
        if any(a.split("/")[0] == address for n in task.networks for a in n.addresses):
            return view.get(Service, task.service_id)
    return None


def explain_joining(task: Task | None, network: str) -> str:
    """What puts a task, or a container outside of services, on a network. `task`: None: not known which."""
    if task is not None and task.attachment:
        return f"docker network connect {network} {task.name}"
    name = task.service_name if task is not None and task.service_name else "SERVICE"
    return f"docker service update --network-add {network} {name}"


def explain_none(service: Service | None) -> str:
    """What to do about a service that has no task to speak with."""
    if (
        service is not None
        and service.spec.mode.replicated is not None
        and service.spec.mode.replicated.replicas == 0
    ):
        return f"it is scaled to 0: docker service scale {service.spec.name}=1"
    name = f" {service.spec.name}" if service is not None else ""
    keeps = f"docker service ps --no-trunc{name} says what keeps its tasks from running"
    return f"{keeps}; overlace why{name} what would help"


def running_tasks(view: View, service: Service) -> list[Task]:
    """The service's tasks that hold addresses, those that run first."""
    tasks = [t for t in view.tasks_of_service(service.id) if takes_part(t)]
    return sorted(tasks, key=lambda t: (t.status.state != TaskState.RUNNING, t.slot, t.node_id, t.id))
