"""Warnings before a network or the pool of subnets is used up."""

from __future__ import annotations

import pytest

from overlace.manager.allocate.room import explain_pool, plan_warning
from overlace.model.objects import Cluster, Network, Subnet
from overlace.model.specs import NetworkSpec
from overlace.store.base import Put


def network(id: str = "app", subnet: str = "10.0.1.0/24", warning: str = "") -> Network:
    subnets = (Subnet(subnet, ""),) if subnet else ()
    return Network(id=id, version=3, spec=NetworkSpec(name=id), vni=5000, subnets=subnets, warning=warning)


def warned(found: Network, used: int, size: int = 250) -> str | None:
    """The new warning, None when nothing changes."""
    for change in plan_warning(found, used, size):
        assert isinstance(change, Put) and isinstance(change.object, Network) and change.expect == 3
        return change.object.warning
    return None


def test_a_warning_comes_at_eighty_percent_and_goes_below_seventy() -> None:
    assert warned(network(), 199) is None
    said = warned(network(), 200)
    assert said is not None and "of its 250 addresses are in use" in said
    held = network(warning=said)
    assert [warned(held, used) for used in (201, 250, 176, 175)] == [None] * 4, "written once"
    assert warned(held, 174) == ""


def test_a_network_without_addresses_yet_is_not_full() -> None:
    waiting = Network(id="n", spec=NetworkSpec(name="n"))
    assert plan_warning(waiting, 0, 0) == []


@pytest.mark.parametrize(
    ("subnets", "left"),
    [
        (["172.30.0.0/24", "172.30.1.0/24"], None),
        ([f"172.30.{i}.0/24" for i in range(7)], "1 of 8"),
        (["172.30.0.0/22", "172.30.4.0/24", "172.30.5.16/28", "172.30.6.0/24"], "1 of 8"),
        ([f"10.1.{i}.0/24" for i in range(8)], None),
    ],
)
def test_the_pool_counts_blocks_whoever_took_them(subnets: list[str], left: str | None) -> None:
    cluster = Cluster(id="c", default_addr_pool=("172.30.0.0/21",), subnet_size=24)
    said = explain_pool(cluster, [network(str(i), subnet) for i, subnet in enumerate(subnets)])
    assert said.partition(" subnets")[0] == (left or "")
