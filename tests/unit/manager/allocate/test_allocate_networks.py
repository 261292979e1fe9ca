"""Subnets and VNIs."""

from __future__ import annotations

import ipaddress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from overlace.manager.allocate.networks import free_subnet, plan_networks
from overlace.model.objects import Base, Cluster, Network, Subnet
from overlace.model.specs import Ipam, IpamConfig, NetworkSpec
from overlace.store.base import Put
from overlace.store.memory import State


def network(id: str, *, subnet: str = "", gateway: str = "", created: int = 0, **spec: Any) -> Network:
    config = [IpamConfig(subnet=subnet, gateway=gateway)] if subnet else []
    return Network(id=id, created_at=created, spec=NetworkSpec(name=id, ipam=Ipam(config=config), **spec))


def plan(*things: Base) -> dict[str, Network]:
    state = State()
    state.load(things)
    changes = [c.object for c in plan_networks(state.view()) if isinstance(c, Put)]
    return {n.id: n for n in changes if isinstance(n, Network)}


def test_ingress_gets_the_first_subnet_whenever_it_comes() -> None:
    made = plan(Cluster(id="c"), network("app", created=1), network("ingress", ingress=True, created=2))
    assert made["ingress"].subnets == (Subnet("10.0.0.0/24", "10.0.0.1"),)
    assert made["app"].subnets == (Subnet("10.0.1.0/24", "10.0.1.1"),)
    assert {made["ingress"].vni, made["app"].vni} == {4096, 4097}


def test_user_subnets_are_honoured_and_avoided_even_before_they_are_allocated() -> None:
    made = plan(
        Cluster(id="c"),
        network("auto", created=1),
        network("mine", subnet="10.0.0.0/16", gateway="10.0.0.77", created=2),
        network("far", subnet="192.168.5.0/24", created=3),
    )
    assert made["mine"].subnets == (Subnet("10.0.0.0/16", "10.0.0.77"),)
    assert made["far"].subnets == (Subnet("192.168.5.0/24", "192.168.5.1"),)
    assert made["auto"].subnets[0].subnet == "10.1.0.0/24"


def test_the_swarms_own_pool_and_size() -> None:
    made = plan(
        Cluster(id="c", default_addr_pool=("172.30.0.0/29", "172.31.0.0/28"), subnet_size=29),
        *(network(f"n{i}", created=i) for i in range(4)),
    )
    assert [made[f"n{i}"].subnets[0].subnet for i in range(3)] == [
        "172.30.0.0/29",
        "172.31.0.0/29",
        "172.31.0.8/29",
    ]
    assert made["n3"].subnets == ()
    assert made["n3"].error == (
        "no free subnet of size /29 is left in the default address pool 172.30.0.0/29, 172.31.0.0/28; "
        "remove a network or give this one a subnet of its own (--subnet)"
    )
    again = plan(
        Cluster(id="c", default_addr_pool=("172.30.0.0/29",), subnet_size=29), made["n0"], made["n3"]
    )
    assert "n3" in again or again == {}


def test_an_asked_for_vni_is_given_once() -> None:
    option = {"com.docker.network.driver.overlay.vxlanid_list": "5000,5001"}
    made = plan(network("a", options=option, created=1), network("b", options=option, created=2))
    assert made["a"].vni == 5000
    assert made["b"].vni == 0
    assert "VNI 5000 belongs to network a" in made["b"].error
    bad = plan(network("c", options={"com.docker.network.driver.overlay.vxlanid_list": "x"}))
    assert "does not start with a VNI" in bad["c"].error


def test_a_network_with_bad_addresses_says_so_and_holds_up_nobody() -> None:
    made = plan(
        network("subnet", subnet="10.300.0.0/24", created=1),
        network("gateway", subnet="10.7.0.0/24", gateway="front door", created=2),
        network("good", created=3),
    )
    assert made["subnet"].error.startswith("the network's addresses are not usable: '10.300.0.0/24'")
    assert made["gateway"].error == (
        "the network's addresses are not usable: 'front door' does not appear to be an IPv4 or IPv6 address"
    )
    assert made["good"].vni == 4096 and made["good"].subnets


def test_what_is_allocated_stays_and_freed_numbers_come_back() -> None:
    kept = Network(id="k", spec=NetworkSpec(name="k"), vni=4097, subnets=(Subnet("10.0.1.0/24", "10.0.1.1"),))
    made = plan(kept, network("new"))
    assert set(made) == {"new"}
    assert (made["new"].vni, made["new"].subnets[0].subnet) == (4096, "10.0.0.0/24")


def test_networks_that_are_not_overlays_get_nothing() -> None:
    assert plan(network("host", driver="host")) == {}


@given(
    st.lists(
        st.tuples(st.integers(0, 2**16 - 1), st.integers(16, 30)).map(
            lambda x: ipaddress.ip_network((0x0A000000 + x[0] * 256, x[1]), strict=False)
        ),
        max_size=30,
    ),
    st.integers(16, 28),
)
def test_a_free_subnet_is_the_lowest_that_overlaps_nothing(
    taken: list[ipaddress.IPv4Network], size: int
) -> None:
    pool = ipaddress.ip_network("10.0.0.0/14")
    found = free_subnet([pool], size, taken)
    lowest = (
        next(
            (c for c in pool.subnets(new_prefix=size) if not any(c.overlaps(t) for t in taken)),
            None,
        )
        if size <= 22
        else found
    )
    assert found == lowest
    if found is not None:
        assert found.subnet_of(pool)
        assert not any(found.overlaps(t) for t in taken)
