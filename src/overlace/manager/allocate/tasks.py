"""What a task gets before it is scheduled (addresses, host-mode ports), and a node's own addresses.

Owns the step NEW -> PENDING and `Node.network_addresses`. Must not choose nodes.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from overlace.manager.allocate.book import AddressBook, families, version_of
from overlace.manager.allocate.networks import is_allocated, is_overlay
from overlace.manager.allocate.services import exhausted, host_mode_ports, service_networks
from overlace.model.objects import Network, NetworkAttachment, Node, Service, Task, TaskStatus
from overlace.model.states import TaskState
from overlace.store.base import Change, Put, View

PENDING = "pending task scheduling"


def plan_task_networks(view: View, book: AddressBook, service: Service, task: Task, now: int) -> Change:
    """NEW -> PENDING with all addresses, or nothing of it: raises Blocked.

    The service's endpoint must be allocated before (`plan_endpoint`).
    """
    kept = {a.network_id: a for a in task.networks}
    given: list[NetworkAttachment] = []
    # The task's own spec says which networks (an update may have changed the service since it was made).
    spec = msgspec.structs.replace(service.spec, task_template=task.spec, networks=[])
    for network, config in service_networks(view, book, spec):
        if not is_overlay(network):
            given.append(NetworkAttachment(network.id, (), tuple(config.aliases), config.driver_opts))
            continue
        old = kept.get(network.id)
        addresses = _addresses(book, network, old.addresses if old is not None else (), task)
        if old is not None and addresses == old.addresses:
            given.append(old)
        else:
            given.append(NetworkAttachment(network.id, addresses, tuple(config.aliases), config.driver_opts))
    status = TaskStatus(state=TaskState.PENDING, timestamp=now, message=PENDING)
    allocated = msgspec.structs.replace(
        task, networks=tuple(given), ports=host_mode_ports(service.spec), status=status
    )
    return Put(allocated, expect=task.version)


def _addresses(book: AddressBook, network: Network, old: Iterable[str], task: Task) -> tuple[str, ...]:
    """One address per family of the network, IPv4 first; those it has stay. Raises Blocked."""
    kept = {version_of(a): a for a in old if book.contains(network.id, a)}
    addresses: list[str] = []
    for version in families(network.subnets):
        address = kept.get(version) or book.take(network.id, version)
        if address is None:
            raise exhausted(book, network, f"task {task.name}", version)
        addresses.append(address)
    return tuple(addresses)


def plan_task_blocked(task: Task, why: str, now: int) -> list[Change]:
    """A task that stays NEW says why; nothing when it says so already."""
    if task.status.err == why:
        return []
    status = msgspec.structs.replace(task.status, err=why, timestamp=now)
    return [Put(msgspec.structs.replace(task, status=status), expect=task.version)]


def plan_node_addresses(view: View, book: AddressBook, node: Node, in_use: Iterable[str]) -> list[Change]:
    """The node's own address on the ingress network and on each network (`in_use`, ids) its tasks are on.

    Addresses of networks it no longer takes part in are given back. A network with none left is skipped and
    tried again when something on it is freed; tasks there still reach each other.
    """
    wanted: dict[str, None] = {}
    if not node.removed:
        for network_id in (book.ingress_id, *sorted(in_use)):
            found = view.get(Network, network_id)
            if found is not None and is_overlay(found) and is_allocated(found):
                wanted[network_id] = None
    addresses: dict[str, str] = {}
    for network_id in wanted:
        kept = node.network_addresses.get(network_id)
        if kept is not None and book.contains(network_id, kept):
            addresses[network_id] = kept
            continue
        address = book.take(network_id)
        if address is not None:
            addresses[network_id] = address
    if addresses == node.network_addresses:
        return []
    return [Put(msgspec.structs.replace(node, network_addresses=addresses), expect=node.version)]
