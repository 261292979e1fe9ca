"""A node's decision side in memory for tests: view -> planner -> HNS -> tables, driven incrementally."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from overlace.model.netview import (
    EndpointEntry,
    Entry,
    NetView,
    NetworkEntry,
    NodeEntry,
    ServiceEntry,
    container_mac,
)
from overlace.model.objects import NetworkAttachment
from overlace.model.specs import PortConfig
from overlace.network.base import TaskNetwork
from overlace.network.endpoints import LocalTask
from overlace.network.hns.plan import plan_hns
from overlace.network.hns.service import HnsService
from overlace.network.overlay import OverlayPlanner
from overlace.network.vfp.compile import Compiler
from overlace.network.vfp.tables import Tables

E = TypeVar("E", EndpointEntry, ServiceEntry)
ME, OTHER = "node-me", "node-other"
HOST = "172.28.1.11"


def node(node_id: str, address: str, **addresses: str) -> NodeEntry:
    return NodeEntry(node_id, node_id, address, "linux", {k: v for k, v in addresses.items() if v})


def network(
    name: str, vni: int, third: int, *, ingress: bool = False, internal: bool = False
) -> NetworkEntry:
    return NetworkEntry(
        name, name, vni, (f"10.0.{third}.0/24",), (f"10.0.{third}.1",), internal=internal, ingress=ingress
    )


def endpoint(
    task: str,
    net: str,
    where: str,
    address: str,
    service: str = "web",
    *,
    serving: bool = True,
    aliases: tuple[str, ...] = (),
) -> EndpointEntry:
    return EndpointEntry(
        task,
        net,
        where,
        service,
        service,
        f"{service}.1.{task}",
        address,
        container_mac(address),
        aliases,
        serving,
    )


def service(name: str, net: str, vip: str, *ports: PortConfig, aliases: tuple[str, ...] = ()) -> ServiceEntry:
    return ServiceEntry(name, net, name, vip, aliases, ports)


def port(target: int, published: int, mode: str = "ingress", protocol: str = "tcp") -> PortConfig:
    return PortConfig(protocol=protocol, target_port=target, published_port=published, publish_mode=mode)


def task(
    task_id: str, *where: tuple[str, str], service: str = "web", ports: tuple[PortConfig, ...] = ()
) -> TaskNetwork:
    return TaskNetwork(
        task_id=task_id,
        task_name=f"{service}.1.{task_id}",
        service_id=service,
        service_name=service,
        attachments=tuple(NetworkAttachment(n, (a,)) for n, a in where),
        host_ports=ports,
    )


class World:
    def __init__(self, *entries: Entry, windows: bool = False, provider: str = HOST) -> None:
        self.view = NetView()
        self.tasks: dict[str, LocalTask] = {}
        self.planner = OverlayPlanner(ME, provider, windows=windows)
        self.hns = HnsService(strict_windows=windows)
        self.compiler = Compiler(self.hns.state, HOST)
        self.data_path = Tables()  # what a data path fed with the deltas holds
        self.change(put=entries)

    def change(
        self, put: tuple[Entry, ...] = (), remove: tuple[str, ...] = (), touched: tuple[str, ...] = ()
    ) -> list[object]:
        """Apply to the view; returns the operations HNS ran. A refusal fails the test."""
        changed = set(remove) | {e.key for e in put}
        for key in remove:
            self.view.remove(key)
        for e in put:
            self.view.put(e)
        ids = self.planner.refresh(self.view, changed, self.tasks, touched)
        operations = plan_hns(self.hns.documents, self.planner.documents, ids, self.hns.balancers_of)
        assert self.hns.apply(operations) == []
        delta = self.compiler.update(self.hns.drain())
        assert not {e.key for e in delta.put} & set(delta.remove)
        self.data_path.apply(delta)
        return list(operations)

    def run(self, t: TaskNetwork, mtu: int = 1450) -> list[object]:
        self.tasks[t.task_id] = LocalTask(
            task=t,
            mtu={a.network_id: mtu for a in t.attachments},
            local_address="" if t.attachments else "172.17.0.2/16",
        )
        return self.change(touched=(t.task_id,))

    def stop(self, task_id: str) -> list[object]:
        self.tasks.pop(task_id, None)
        return self.change(touched=(task_id,))


# -- a small shop

PA = "172.28.1.12"
NETS = (
    network("ingress", 4096, 0, ingress=True),
    network("back", 4097, 1),
    network("hidden", 4098, 2, internal=True),
)
THIRD = {"ingress": 0, "back": 1, "hidden": 2}


def shop() -> World:
    return World(
        node(ME, HOST, ingress="10.0.0.2", back="10.0.1.2"),
        node(OTHER, PA, ingress="10.0.0.3", back="10.0.1.3"),
        *NETS,
    )


def running() -> World:
    w = shop()
    w.change(
        put=(
            service("web", "back", "10.0.1.5"),
            service("web", "ingress", "10.0.0.5", port(80, 8080)),
            service("empty", "back", "10.0.1.6"),
            endpoint("t1", "back", ME, "10.0.1.9"),
            endpoint("t1", "ingress", ME, "10.0.0.9"),
            endpoint("t2", "back", OTHER, "10.0.1.10"),
            endpoint("t2", "ingress", OTHER, "10.0.0.10"),
        )
    )
    w.run(task("t1", ("back", "10.0.1.9/24"), ("ingress", "10.0.0.9/24"), ports=(port(80, 9090, "host"),)))
    return w


# -- the same with IPv6

BACK6 = msgspec.structs.replace(
    NETS[1], subnets=("10.0.1.0/24", "fd00:1::/64"), gateways=("10.0.1.1", "fd00:1::1")
)


def six(address: str) -> str:
    """The IPv6 address a test's endpoint has beside this one: 10.0.1.9 -> fd00:1::9."""
    return f"fd00:1::{address.rpartition('.')[2]}"


def both(entry: E) -> E:
    """The entry with an IPv6 address or VIP beside its IPv4 one."""
    if isinstance(entry, EndpointEntry):
        return msgspec.structs.replace(entry, address6=six(entry.address))
    return msgspec.structs.replace(entry, vip6=six(entry.vip))


def task6(task_id: str, net: str, address: str, service: str = "web") -> TaskNetwork:
    """A task of this host on one network, with both families."""
    t = task(task_id, (net, f"{address}/24"), service=service)
    return msgspec.structs.replace(
        t, attachments=(NetworkAttachment(net, (f"{address}/24", f"{six(address)}/64")),)
    )


def running6(*, windows: bool = False) -> World:
    """`web` on a network with both families: t1 here, t2 elsewhere, t3 on a host that has IPv4 only."""
    w = World(
        node(ME, HOST, back="10.0.1.2"),
        node(OTHER, PA, back="10.0.1.3"),
        BACK6,
        both(service("web", "back", "10.0.1.5")),
        both(endpoint("t1", "back", ME, "10.0.1.9")),
        both(endpoint("t2", "back", OTHER, "10.0.1.10")),
        endpoint("t3", "back", OTHER, "10.0.1.11"),
        windows=windows,
    )
    w.run(task6("t1", "back", "10.0.1.9"))
    return w
