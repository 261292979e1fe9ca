"""The address of a container outside of services: NEW -> RUNNING, on the node it is on already.

Owns that step. Must not decide who may attach (manager/attachments.py does).
"""

from __future__ import annotations

import msgspec

from overlace.manager.allocate.book import AddressBook, families, version_of
from overlace.manager.allocate.networks import is_allocated
from overlace.manager.allocate.services import Blocked, exhausted
from overlace.model.capabilities import IPV6
from overlace.model.objects import Network, NetworkAttachment, Node, Task, TaskStatus
from overlace.model.states import TaskState
from overlace.store.base import Change, Put, View

STARTED = "started"


def plan_attachment(view: View, book: AddressBook, task: Task, now: int) -> Change:
    """The addresses asked for, or free ones. Raises Blocked: the network has none, or one is in use."""
    config = task.spec.networks[0]
    network = view.get(Network, config.target)
    if network is None or not is_allocated(network):
        raise Blocked(f"network {config.target} is not allocated yet")
    asked: list[str] = (task.spec.network_attachment_spec or {}).get("Addresses", [])
    for one in asked:
        _check(book, network, one)
    addresses: list[str] = []
    node = view.get(Node, task.node_id)
    about = node.description if node is not None else None
    for version in families(network.subnets):
        wanted = next((one for one in asked if version_of(one) == version), "")
        if version == 6 and about is not None and IPV6 in about.lacks:
            if wanted:
                raise Blocked(
                    f"address {wanted} cannot be had on this host: {about.lacks[IPV6]}; leave out --ip6"
                )
            continue  # as a service's tasks there: IPv4 alone
        address = book.with_prefix(network.id, wanted) if wanted else book.take(network.id, version)
        if address is None:
            raise exhausted(book, network, f"container {task.name}", version)
        addresses.append(address)
    status = TaskStatus(state=TaskState.RUNNING, timestamp=now, message=STARTED)
    given = NetworkAttachment(network.id, tuple(addresses), tuple(config.aliases), config.driver_opts)
    return Put(msgspec.structs.replace(task, networks=(given,), status=status), expect=task.version)


def _check(book: AddressBook, network: Network, wanted: str) -> None:
    if not book.contains(network.id, wanted):
        subnets = ", ".join(s.subnet for s in network.subnets)
        raise Blocked(f"address {wanted} is in no subnet of network {network.spec.name} ({subnets})")
    if not book.is_free(network.id, wanted):
        raise Blocked("Address already in use")
