"""Networks with IPv6: subnets from the cluster's own prefix, addresses and virtual IPs of both families."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlace.manager.allocate.book import AddressBook
from overlace.manager.allocate.networks import plan_networks, ula_pool
from overlace.manager.allocate.services import Blocked, plan_endpoint
from overlace.manager.allocate.tasks import plan_node_addresses, plan_task_networks
from overlace.manager.index import Index
from overlace.model.objects import (
    Base,
    Cluster,
    Network,
    NetworkAttachment,
    Node,
    Service,
    Subnet,
    Task,
    VirtualIP,
)
from overlace.model.specs import Ipam, IpamConfig, NetworkAttachmentConfig, NetworkSpec, ServiceSpec, TaskSpec
from overlace.store.base import Put
from overlace.store.memory import MemoryView, State

CLUSTER = Cluster(id="c")
BOTH = Network(
    id="both",
    spec=NetworkSpec(name="both", enable_ipv6=True),
    vni=4097,
    subnets=(Subnet("10.0.1.0/24", "10.0.1.1"), Subnet("fd00:1::/64", "fd00:1::1")),
)
NOW = 7


def asking(id: str, *configs: IpamConfig, created: int = 0, **spec: Any) -> Network:
    return Network(
        id=id, created_at=created, spec=NetworkSpec(name=id, ipam=Ipam(config=list(configs)), **spec)
    )


def world(*things: Base) -> tuple[MemoryView, Index]:
    state = State()
    state.load(things)
    view = state.view()
    return view, Index.of(view)


def plan(*things: Base) -> dict[str, Network]:
    view, _ = world(*things)
    changes = [c.object for c in plan_networks(view) if isinstance(c, Put)]
    return {n.id: n for n in changes if isinstance(n, Network)}


def subnets(network: Network) -> list[str]:
    return [s.subnet for s in network.subnets]


def test_without_a_subnet_of_its_own_a_network_gets_one_of_each_family() -> None:
    pool = ula_pool("c")
    made = plan(CLUSTER, asking("a", enable_ipv6=True, created=1), asking("b", enable_ipv6=True, created=2))
    first, second = pool.subnets(new_prefix=64), made["b"].subnets[1]
    assert made["a"].subnets == (
        Subnet("10.0.0.0/24", "10.0.0.1"),
        Subnet(str(one := next(first)), str(one[1])),
    )
    assert second.subnet == str(next(first)) and made["b"].subnets[0].subnet == "10.0.1.0/24"
    assert plan(CLUSTER, asking("four"))["four"].subnets == (Subnet("10.0.0.0/24", "10.0.0.1"),)


def test_every_manager_finds_the_same_prefix_and_two_clusters_do_not_meet() -> None:
    assert ula_pool("c") == ula_pool("c") != ula_pool("d")
    assert ula_pool("c").prefixlen == 48 and ula_pool("c").subnet_of(ipaddress.IPv6Network("fd00::/8"))


def test_given_subnets_and_gateways_of_either_family_are_honoured() -> None:
    six, four = IpamConfig(subnet="FD12:0::/64", gateway="fd12::0:99"), IpamConfig(subnet="10.9.0.0/24")
    made = plan(
        CLUSTER,
        asking("six", six, enable_ipv6=True),
        asking("four", four, enable_ipv6=True),
        asking("both", IpamConfig(subnet="fd13::/80"), IpamConfig(subnet="10.8.0.0/24"), enable_ipv6=True),
    )
    assert (
        made["six"].subnets[1] == Subnet("fd12::/64", "fd12::99") and subnets(made["six"])[0] == "10.0.0.0/24"
    )
    assert subnets(made["four"])[0] == "10.9.0.0/24"
    assert ipaddress.IPv6Network(subnets(made["four"])[1]).subnet_of(ula_pool("c"))
    assert subnets(made["both"]) == ["10.8.0.0/24", "fd13::/80"], "IPv4 first, however they were given"


def test_the_swarms_own_ipv6_pool() -> None:
    cluster = Cluster(id="c", default_addr_pool=("fd77::/63", "172.30.0.0/23", "fd88::/72"), subnet_size=24)
    made = plan(cluster, *(asking(f"n{i}", enable_ipv6=True, created=i) for i in range(2)))
    assert [subnets(made[f"n{i}"]) for i in range(2)] == [
        ["172.30.0.0/24", "fd77::/64"],
        ["172.30.1.0/24", "fd77:0:0:1::/64"],
    ]
    more = Cluster(id="c", default_addr_pool=("fd77::/63", "fd88::/72"))
    made = plan(more, *(asking(f"n{i}", enable_ipv6=True, created=i) for i in range(4)))
    assert subnets(made["n2"]) == ["10.0.2.0/24", "fd88::/72"], "a family without a pool has Docker's"
    assert made["n3"].subnets == () and made["n3"].error == (
        "no free subnet of size /64 or /72 is left in the default address pool fd77::/63, fd88::/72; "
        "remove a network or give this one a subnet of its own (--subnet)"
    )


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(["", "fd00:a::/64", "fd00:a:0:1::/56"])), max_size=12),
    st.sampled_from([(), ("fd00:a::/60",), ("fd00:a::/62", "10.0.0.0/20")]),
)
def test_no_two_networks_subnets_ever_overlap(asked: list[tuple[bool, str]], pools: tuple[str, ...]) -> None:
    things: list[Base] = [Cluster(id="c", default_addr_pool=pools)]
    seen: set[str] = set()
    for i, (six, text) in enumerate(asked):
        own = str(ipaddress.ip_network(text, strict=False)) if text and six else ""
        if any(own and ipaddress.ip_network(own).overlaps(ipaddress.ip_network(s)) for s in seen):
            own = ""
        seen |= {own} - {""}
        configs = [IpamConfig(subnet=own)] if own else []
        things.append(asking(f"n{i}", *configs, enable_ipv6=six, created=i))
    made = plan(*things)
    for i, (six, _) in enumerate(asked):
        found = [ipaddress.ip_network(s) for s in subnets(made[f"n{i}"])]
        assert [n.version for n in found] in ([[4, 6]] if six and found else [[4], []])
        for s in made[f"n{i}"].subnets:
            assert ipaddress.ip_address(s.gateway) in ipaddress.ip_network(s.subnet)
    every = [ipaddress.ip_network(s) for n in made.values() for s in subnets(n)]
    assert not any(a.overlaps(b) for i, a in enumerate(every) for b in every[i + 1 :])


# -- addresses


def service(id: str = "s") -> Service:
    template = TaskSpec(networks=[NetworkAttachmentConfig(target="both")])
    return Service(id=id, spec=ServiceSpec(name=f"svc-{id}", task_template=template))


def task(owner: Service, id: str = "t", **members: Any) -> Task:
    return Task(id=id, service_id=owner.id, name=id, spec=owner.spec.task_template, **members)


def test_a_service_has_a_vip_and_a_task_an_address_of_each_family() -> None:
    view, index = world(BOTH)
    done = plan_endpoint(view, index.book, service())
    assert done is not None and done.endpoint is not None
    assert done.endpoint.virtual_ips == (VirtualIP("both", "10.0.1.2/24"), VirtualIP("both", "fd00:1::2/64"))
    view, index = world(BOTH, done)
    assert plan_endpoint(view, index.book, done) is None, "nothing more to do"
    change = plan_task_networks(view, index.book, done, task(done), NOW)
    assert isinstance(change, Put) and isinstance(change.object, Task)
    assert change.object.networks[0].addresses == ("10.0.1.3/24", "fd00:1::3/64")


def test_what_a_task_or_service_has_it_keeps() -> None:
    owner = service()
    kept = task(owner, networks=(NetworkAttachment("both", ("10.0.1.9/24", "fd00:1::9/64")),))
    view, index = world(BOTH, owner, kept)
    change = plan_task_networks(view, index.book, owner, kept, NOW)
    assert isinstance(change, Put) and isinstance(change.object, Task)
    assert change.object.networks == kept.networks
    half = task(owner, networks=(NetworkAttachment("both", ("10.0.1.9/24",)),))
    view, index = world(BOTH, owner, half)
    change = plan_task_networks(view, index.book, owner, half, NOW)
    assert isinstance(change, Put) and isinstance(change.object, Task)
    assert change.object.networks[0].addresses == ("10.0.1.9/24", "fd00:1::2/64")


def test_a_nodes_own_address_is_ipv4() -> None:
    node = Node(id="n")
    view, index = world(BOTH, node)
    (change,) = plan_node_addresses(view, index.book, node, ["both"])
    assert isinstance(change, Put) and isinstance(change.object, Node)
    assert change.object.network_addresses == {"both": "10.0.1.2/24"}


def test_an_exhausted_family_is_named_with_its_subnet() -> None:
    small = msgspec.structs.replace(
        BOTH, subnets=(BOTH.subnets[0], Subnet("fd00:1::/125", "fd00:1::1")), id="both"
    )
    owner = service()
    taken = [
        task(owner, f"t{i}", networks=(NetworkAttachment("both", (f"10.0.1.{i}/24", f"fd00:1::{i}/125")),))
        for i in range(2, 7)
    ]
    view, index = world(small, owner, *taken)
    with pytest.raises(Blocked, match=r"no address left for task t on network both \(fd00:1::/125\): 5 of 5"):
        plan_task_networks(view, index.book, owner, task(owner), NOW)
    assert index.book.capacity("both") == (5, 5), "the fuller family counts for the warning"


@given(st.lists(st.tuples(st.sampled_from([4, 6]), st.booleans()), max_size=60))
def test_the_book_never_gives_an_address_twice_nor_confuses_families(steps: list[tuple[int, bool]]) -> None:
    low = Subnet("::a00:0/120", "::a00:1")  # the numbers of 10.0.0.0/24, as an IPv6 subnet
    network = Network(
        id="n", spec=NetworkSpec(name="n"), vni=1, subnets=(Subnet("10.0.0.0/28", "10.0.0.1"), low)
    )
    book = AddressBook()
    book.observe("network", "n", network)
    held: dict[str, str] = {}
    for i, (version, give_back) in enumerate(steps):
        if give_back and held:
            gone = next(iter(held))
            del held[gone]
            book.observe("task", gone, None)
            continue
        address = book.take("n", version)
        if address is None:
            assert version == 4 and sum(":" not in a for a in held.values()) == 13
            continue
        assert (":" in address) == (version == 6) and address not in held.values()
        assert address.split("/")[0] not in ("10.0.0.1", "::a00:1")
        t = task(service(), f"t{i}", networks=(NetworkAttachment("n", (address,)),))
        book.observe("task", t.id, t)
        held[t.id] = address
        assert book.in_use("n", address) and book.contains("n", address)
