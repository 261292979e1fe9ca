"""A task's wish for a network, checked, filled in and kept: before anything is made for it.

Owns what a task may ask of this host, its host ports, its address on the node's own network and its record. Must not make
anything on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Network

import msgspec

from overlace.model.errors import InvalidArgument, Unavailable
from overlace.model.family import is_six
from overlace.model.netview import NetView
from overlace.model.protocols import WITH_PORTS
from overlace.network.base import TaskNetwork
from overlace.network.endpoints import LocalTask
from overlace.network.hostports import HostPort, check_addresses, plan_host_ports
from overlace.network.overlay_documents import gateway_network
from overlace.network.records import LocalAddresses, Record, Records


class Admission:
    """`records` keep what was admitted. `listening`: ports of the host with a socket of somebody else's."""

    def __init__(
        self, records: Records, local_subnet: str, listening: Callable[[], Iterable[HostPort]]
    ) -> None:
        self._records = records
        self._local = LocalAddresses(local_subnet)
        self._listening = listening

    @property
    def local_subnet(self) -> IPv4Network:
        """Of the node's own NAT network; its gateway is the first address."""
        return self._local.subnet

    def admitted(self, task: TaskNetwork) -> Record | None:
        """The record of this very wish; of another wish of the same task there is none. Policies may differ: the view
        says what they are now."""
        record = self._records.get(task.task_id)
        if record is None:
            return None
        asked = record.asked
        alike = msgspec.structs.replace(
            task, allowed=asked.allowed, allowed_to=asked.allowed_to, egress=asked.egress
        )
        return record if alike == asked else None

    def admit(
        self,
        task: TaskNetwork,
        view: NetView,
        taken: Mapping[HostPort, str],
        mtus: Mapping[str, int],
    ) -> Record:
        """Check the wish, fill it in and keep it. `taken`: ports of the host that documents occupy, and whose; `mtus`: of
        the interfaces, by network.

        Raises InvalidArgument, Conflict (a port is taken), Unavailable (a network is not known here yet).
        """
        check_networks(task, view)
        ports = task.host_ports
        if ports:
            if task.attachments and not gateway_network(task, view):
                raise InvalidArgument(
                    f"task {task.task_name}: all its networks are internal, so no port can be published in "
                    "host mode: add a network that is not internal"
                )
            check_families(task, gateway_network(task, view))
            check_addresses(task.task_name, ports)
            ports = plan_host_ports(task.task_name, ports, self._taken(taken), self._listening())
        address = ""
        if task.on_local:
            address = self._local.take(r.local.local_address for r in self._records)
        filled = msgspec.structs.replace(task, host_ports=ports)
        local = LocalTask(task=filled, mtu=dict(mtus), local_address=address)
        record = Record(asked=task, local=local)
        self._records.put(record)
        return record

    def changed(
        self, record: Record, task: TaskNetwork, view: NetView, mtus: Mapping[str, int]
    ) -> Record | None:
        """What `record` becomes when its task is on other networks, or has another name; None: more differs. What
        stays keeps its address and its interface's name. Raises as `admit`."""
        asked = record.asked
        alike = msgspec.structs.replace(
            task, attachments=asked.attachments, local=asked.local, task_name=asked.task_name
        )
        if alike != asked:
            return None
        check_networks(task, view)
        old = record.local
        address = old.local_address if task.on_local else ""
        if task.on_local and not address:
            address = self._local.take(r.local.local_address for r in self._records)
        filled = msgspec.structs.replace(task, host_ports=old.task.host_ports)
        local = LocalTask(task=filled, mtu={**mtus, **old.mtu}, local_address=address)
        names = {n: name for n, name in old.interfaces.items() if n in local.interfaces}
        for network_id in local.interfaces:
            if network_id not in names:
                names[network_id] = next(f"eth{i}" for i in range(99) if f"eth{i}" not in names.values())
        return msgspec.structs.replace(record, asked=task, local=msgspec.structs.replace(local, names=names))

    def at_one_address(self) -> dict[HostPort, str]:
        """Ports that containers of this host have at one of its addresses, and whose they are."""
        return {port: name for port, name in self._taken({}).items() if port[0]}

    def _taken(self, by_documents: Mapping[HostPort, str]) -> dict[HostPort, str]:
        taken = dict(by_documents)
        for r in self._records:
            for p in r.local.task.host_ports:
                taken[(p.host_ip, WITH_PORTS[p.protocol], p.published_port)] = r.asked.task_name
        return taken


def check_families(task: TaskNetwork, network_id: str) -> None:
    """That the network which carries the task's ports has IPv6 for those at an IPv6 address of the host. Raises
    InvalidArgument."""
    own = (x for a in task.attachments if a.network_id == network_id for x in a.addresses)
    if any(is_six(x) for x in own):
        return
    for port in task.host_ports:
        if is_six(port.host_ip):
            where = f"[{port.host_ip}]:{port.published_port}:{port.target_port}/{port.protocol}"
            raise InvalidArgument(
                f"port {where}: the container has no IPv6 address to publish there; publish at an IPv4 address, or put "
                "it on a network with IPv6 (docker network create --ipv6 --subnet ...)"
            )


def check_host_ips(task: TaskNetwork) -> None:
    """On a Windows host. Raises InvalidArgument in Docker's words."""
    for port in task.host_ports:
        if port.host_ip:
            raise InvalidArgument(
                f"port {port.host_ip}:{port.published_port}:{port.target_port}/{port.protocol}: "
                "Windows does not support host IP addresses in NAT settings"
            )


def host_network_refused(task: TaskNetwork) -> InvalidArgument:
    """Why a task on the host's own stack cannot be on a Windows host."""
    return InvalidArgument(
        f"task {task.task_name}: a Windows host has no network host; constrain it with node.platform.os==linux"
    )


def check_networks(task: TaskNetwork, view: NetView) -> None:
    """Raises Unavailable while a network of the task is not in the view, InvalidArgument for one without address."""
    for a in task.attachments:
        if view.network(a.network_id) is None:
            raise Unavailable(f"network {a.network_id} is not known on this node yet")
        if not a.addresses:
            raise InvalidArgument(f"task {task.task_id}: no address on network {a.network_id}")
