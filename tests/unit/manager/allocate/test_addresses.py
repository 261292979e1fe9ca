"""Addresses, virtual IPs and published ports."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from overlace.manager.allocate.services import Blocked, plan_endpoint
from overlace.manager.allocate.tasks import plan_node_addresses, plan_task_networks
from overlace.manager.index import Index
from overlace.model.objects import Base, Network, NetworkAttachment, Node, Service, Subnet, Task, TaskStatus
from overlace.model.specs import (
    EndpointSpec,
    Ipam,
    IpamConfig,
    NetworkAttachmentConfig,
    NetworkSpec,
    PortConfig,
    ServiceSpec,
    TaskSpec,
)
from overlace.model.states import TaskState
from overlace.store.base import Change, Put
from overlace.store.memory import MemoryView, State

INGRESS = Network(
    id="ing",
    spec=NetworkSpec(name="ingress", ingress=True),
    vni=4096,
    subnets=(Subnet("10.0.0.0/24", "10.0.0.1"),),
)
APP = Network(id="app", spec=NetworkSpec(name="app"), vni=4097, subnets=(Subnet("10.0.1.0/24", "10.0.1.1"),))
NOW = 7


def service(*networks: str, id: str = "s", ports: tuple[PortConfig, ...] = (), mode: str = "") -> Service:
    template = TaskSpec(networks=[NetworkAttachmentConfig(target=n, aliases=["alias"]) for n in networks])
    endpoint = EndpointSpec(mode=mode, ports=list(ports))
    return Service(id=id, spec=ServiceSpec(name=f"svc-{id}", task_template=template, endpoint_spec=endpoint))


def task(owner: Service, id: str = "t", **members: Any) -> Task:
    return Task(id=id, service_id=owner.id, name=id, spec=owner.spec.task_template, **members)


def world(*things: Base) -> tuple[MemoryView, Index]:
    state = State()
    state.load(things)
    view = state.view()
    return view, Index.of(view)


def the_task(change: Change) -> Task:
    assert isinstance(change, Put) and isinstance(change.object, Task)
    return change.object


def endpoint(view: MemoryView, index: Index, one: Service) -> Service:
    done = plan_endpoint(view, index.book, one)
    assert done is not None
    return done


def test_a_service_gets_one_vip_per_network_and_one_on_ingress_when_it_publishes() -> None:
    view, index = world(INGRESS, APP)
    port = PortConfig(target_port=80, published_port=8080)
    done = endpoint(view, index, service("app", ports=(port,)))
    assert done.endpoint is not None
    assert [(v.network_id, v.address) for v in done.endpoint.virtual_ips] == [
        ("ing", "10.0.0.2/24"),  # first, as scripts expect of Docker
        ("app", "10.0.1.2/24"),
    ]
    assert done.endpoint.ports == (port,)
    assert plan_endpoint(view, index.book, done) is None, "nothing more to do"


def test_networks_may_be_named_and_are_counted_once() -> None:
    view, index = world(INGRESS, APP)
    done = endpoint(view, index, service("app", "app"))
    assert done.endpoint is not None and len(done.endpoint.virtual_ips) == 1


def test_dnsrr_and_host_ports_take_no_vip() -> None:
    view, index = world(INGRESS, APP)
    host = PortConfig(target_port=80, published_port=80, publish_mode="host")
    done = endpoint(view, index, service("app", ports=(host,), mode="dnsrr"))
    assert done.endpoint is not None and done.endpoint.virtual_ips == ()
    assert done.endpoint.ports == (host,)


def test_an_update_keeps_vips_and_dynamic_ports() -> None:
    view, index = world(INGRESS, APP)
    first = endpoint(view, index, service("app", ports=(PortConfig(target_port=80),)))
    index.observe("service", "s", first)
    assert first.endpoint is not None and first.endpoint.ports[0].published_port == 30000
    more = (PortConfig(target_port=90), PortConfig(target_port=80))
    updated = msgspec.structs.replace(service("app", ports=more), endpoint=first.endpoint)
    second = endpoint(view, index, updated)
    assert second.endpoint is not None
    assert second.endpoint.virtual_ips == first.endpoint.virtual_ips
    assert [(p.target_port, p.published_port) for p in second.endpoint.ports] == [(90, 30001), (80, 30000)]
    detached = msgspec.structs.replace(service(ports=more), endpoint=second.endpoint)
    third = endpoint(view, index, detached)
    assert third.endpoint is not None
    assert [v.network_id for v in third.endpoint.virtual_ips] == ["ing"]


def test_dynamic_ports_are_unique_per_protocol() -> None:
    view, index = world(INGRESS)
    ports = (PortConfig(target_port=1), PortConfig(target_port=2), PortConfig(protocol="udp", target_port=1))
    first = endpoint(view, index, service(ports=ports))
    assert first.endpoint is not None
    assert [p.published_port for p in first.endpoint.ports] == [30000, 30001, 30000]
    index.observe("service", "s", first)
    other = endpoint(view, index, service(id="o", ports=ports[:1]))
    assert other.endpoint is not None and other.endpoint.ports[0].published_port == 30002


def test_a_taken_port_and_a_missing_ingress_network_are_named() -> None:
    view, index = world(INGRESS)
    port = PortConfig(target_port=80, published_port=8080)
    index.observe("service", "s", endpoint(view, index, service(ports=(port,))))
    with pytest.raises(Blocked, match="port '8080' is already in use by service s as an ingress port"):
        plan_endpoint(view, index.book, service(id="o", ports=(port,)))
    view, index = world(APP)
    with pytest.raises(Blocked, match="no ingress network is present"):
        plan_endpoint(view, index.book, service(ports=(port,)))
    with pytest.raises(Blocked, match="network nosuch not found"):
        plan_endpoint(view, index.book, service("nosuch"))


def test_a_task_gets_an_address_per_network_with_aliases_and_its_host_ports() -> None:
    view, index = world(INGRESS, APP)
    host = PortConfig(target_port=9, published_port=9, publish_mode="host")
    owner = service("app", ports=(PortConfig(target_port=80), host))
    index.observe("service", "s", endpoint(view, index, owner))
    done = the_task(plan_task_networks(view, index.book, owner, task(owner), NOW))
    assert done.networks == (
        NetworkAttachment("app", ("10.0.1.3/24",), ("alias",)),
        NetworkAttachment("ing", ("10.0.0.3/24",)),
    )
    assert done.ports == (host,)
    assert done.status == TaskStatus(TaskState.PENDING, NOW, "pending task scheduling")


def test_addresses_are_never_shared_and_are_reused_late() -> None:
    view, index = world(APP)
    owner = service("app", mode="dnsrr")
    given = []
    for i in range(253):
        one = the_task(plan_task_networks(view, index.book, owner, task(owner, f"t{i}"), NOW))
        index.observe("task", one.id, one)
        given.append(one.networks[0].addresses[0])
    assert len(set(given)) == 253
    with pytest.raises(Blocked, match=r"on network app \(10.0.1.0/24\): 253 of 253 in use"):
        plan_task_networks(view, index.book, owner, task(owner, "late"), NOW)
    for i in (5, 100):
        gone = task(owner, f"t{i}", networks=(NetworkAttachment("app", (given[i],)),))
        over = msgspec.structs.replace(gone, status=TaskStatus(TaskState.SHUTDOWN))
        index.observe("task", gone.id, over)
    one = the_task(plan_task_networks(view, index.book, owner, task(owner, "late"), NOW))
    assert one.networks[0].addresses[0] in (given[5], given[100])


def test_a_freed_address_is_the_last_to_be_given_out_again() -> None:
    view, index = world(APP)
    owner = service("app", mode="dnsrr")
    first = the_task(plan_task_networks(view, index.book, owner, task(owner, "a"), NOW))
    index.observe("task", "a", first)
    index.observe("task", "a", None)
    for i in range(252):
        one = the_task(plan_task_networks(view, index.book, owner, task(owner, f"b{i}"), NOW))
        index.observe("task", one.id, one)
        assert one.networks != first.networks
    last = the_task(plan_task_networks(view, index.book, owner, task(owner, "z"), NOW))
    assert last.networks == first.networks


def test_gateway_auxiliary_addresses_and_range_are_respected() -> None:
    spec = NetworkSpec(
        name="r",
        ipam=Ipam(config=[IpamConfig(subnet="10.5.0.0/24", auxiliary_addresses={"printer": "10.5.0.65"})]),
    )
    narrow = Network(id="r", spec=spec, vni=1, subnets=(Subnet("10.5.0.0/24", "10.5.0.66", "10.5.0.64/29"),))
    view, index = world(narrow)
    owner = service("r", mode="dnsrr")
    given = []
    for i in range(6):
        one = the_task(plan_task_networks(view, index.book, owner, task(owner, f"t{i}"), NOW))
        index.observe("task", one.id, one)
        given.append(one.networks[0].addresses[0])
    assert given == [f"10.5.0.{n}/24" for n in (64, 67, 68, 69, 70, 71)]


def test_a_network_without_a_subnet_holds_its_tasks_and_says_why() -> None:
    waiting = Network(id="w", spec=NetworkSpec(name="wait"), error="no free subnet")
    view, index = world(waiting)
    owner = service("w")
    with pytest.raises(Blocked, match="network wait has no subnet yet: no free subnet"):
        plan_task_networks(view, index.book, owner, task(owner), NOW)


def test_a_rebuilt_book_goes_on_behind_the_highest_address_in_use() -> None:
    old = task(service("app"), "old", networks=(NetworkAttachment("app", ("10.0.1.9/24",)),))
    _, index = world(APP, old)
    assert index.book.take("app") == "10.0.1.10/24"


def test_nodes_take_an_address_on_ingress_and_their_tasks_networks_and_give_it_back() -> None:
    view, index = world(INGRESS, APP)
    node = Node(id="n")
    (change,) = plan_node_addresses(view, index.book, node, ["app"])
    assert isinstance(change, Put) and isinstance(change.object, Node)
    assert change.object.network_addresses == {"ing": "10.0.0.2/24", "app": "10.0.1.2/24"}
    assert plan_node_addresses(view, index.book, change.object, ["app"]) == []
    (less,) = plan_node_addresses(view, index.book, change.object, [])
    assert isinstance(less, Put) and isinstance(less.object, Node)
    assert less.object.network_addresses == {"ing": "10.0.0.2/24"}
    removed = msgspec.structs.replace(change.object, removed=True)
    (none,) = plan_node_addresses(view, index.book, removed, [])
    assert isinstance(none, Put) and isinstance(none.object, Node)
    assert none.object.network_addresses == {}
