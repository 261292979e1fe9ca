"""What `docker inspect` hears of a container's networks."""

from __future__ import annotations

from overlace.agent.standalone.records import Joined, Record, Wish
from overlace.daemon.networks import standalone_addresses
from overlace.network.base import Attached
from overlace.runtime.base import ContainerConfig


def test_a_container_outside_of_services_shows_both_families() -> None:
    joined = Joined(name="six", target="six", network_id="n6")
    record = Record(
        wish=Wish(config=ContainerConfig(id="c1", name="box", image="app", netns=""), networks=(joined,))
    )
    attached = Attached(
        sandbox=None,
        resolv_conf="",
        addresses={"six": "10.0.1.7/24"},
        macs={"six": "02:42:0a:00:01:07"},
        gateways={"six": "10.0.1.1"},
        addresses6={"six": "fd00::5/64"},
        gateways6={"six": "fd00::1"},
        ports6="six",
    )
    [shown] = standalone_addresses(record, attached, "engine")
    assert (shown.address, shown.gateway) == ("10.0.1.7/24", "10.0.1.1")
    assert (shown.address6, shown.gateway6) == ("fd00::5/64", "fd00::1")
    assert shown.ports6
    [shown] = standalone_addresses(record, None, "engine")
    assert (shown.address, shown.address6, shown.gateway6) == ("", "", ""), "it does not run"
