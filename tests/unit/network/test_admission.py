"""What a running container's record becomes when it is put on other networks."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from overlace.model.errors import InvalidArgument, Unavailable
from overlace.model.netview import NetView, NetworkEntry
from overlace.model.objects import NetworkAttachment
from overlace.model.specs import PortConfig
from overlace.network.admission import Admission, check_families
from overlace.network.base import TaskNetwork
from overlace.network.endpoints import LOCAL_NETWORK, LOCAL_SUBNET
from overlace.network.overlay_documents import gateway_network
from overlace.network.records import Records

VIEW = NetView(
    NetworkEntry(f"n{i}", f"net{i}", 4096 + i, (f"10.0.{i}.0/24",), (f"10.0.{i}.1",)) for i in (1, 2)
)
PORT = PortConfig(target_port=80, published_port=8080, publish_mode="host")


def wish(*networks: int, local: bool = False, **more: object) -> TaskNetwork:
    places = tuple(NetworkAttachment(f"n{i}", (f"10.0.{i}.9/24",)) for i in networks)
    asked = TaskNetwork(
        task_id="t",
        task_name="box",
        service_id="",
        service_name="",
        attachments=places,
        local=local,
        host_ports=(PORT,),
    )
    return msgspec.structs.replace(asked, **more)


@pytest.fixture
def admission(tmp_path: Path) -> Admission:
    records = Records(tmp_path)
    records.load()
    return Admission(records, LOCAL_SUBNET, set)


def test_what_stays_keeps_its_address_and_its_interface(admission: Admission) -> None:
    first = admission.admit(wish(local=True), VIEW, {}, {LOCAL_NETWORK: 1500})
    assert first.local.interfaces == {LOCAL_NETWORK: "eth0"}
    second = admission.changed(first, wish(1, local=True), VIEW, {"n1": 1450})
    assert second is not None and second.local.interfaces == {LOCAL_NETWORK: "eth0", "n1": "eth1"}
    assert second.local.local_address == first.local.local_address
    third = admission.changed(second, wish(1, 2), VIEW, {"n2": 1450})
    assert third is not None and third.local.interfaces == {"n1": "eth1", "n2": "eth0"}
    assert third.local.local_address == "" and third.local.task.host_ports == (PORT,)
    assert third.local.mtu == {LOCAL_NETWORK: 1500, "n1": 1450, "n2": 1450}
    fourth = admission.changed(third, wish(2, local=True), VIEW, {})
    assert fourth is not None and fourth.local.interfaces == {LOCAL_NETWORK: "eth1", "n2": "eth0"}
    assert fourth.local.local_address


def test_a_new_name_changes_nothing_else(admission: Admission) -> None:
    first = admission.admit(wish(1, local=True), VIEW, {}, {})
    renamed = admission.changed(first, wish(1, local=True, task_name="renamed"), VIEW, {})
    assert renamed is not None and renamed.local.interfaces == first.local.interfaces
    assert renamed.local.local_address == first.local.local_address


def test_other_differences_are_another_wish(admission: Admission) -> None:
    first = admission.admit(wish(local=True), VIEW, {}, {})
    assert admission.changed(first, wish(1, local=True, nameservers=("9.9.9.9",)), VIEW, {}) is None
    with pytest.raises(Unavailable, match="network n7 is not known"):
        admission.changed(first, wish(7, local=True), VIEW, {})


def test_the_way_out_is_the_hosts_own_network_when_it_is_on_it() -> None:
    assert gateway_network(wish(1, local=True), VIEW) == LOCAL_NETWORK
    assert gateway_network(wish(1, 2), VIEW) == "n1"
    assert gateway_network(wish(), VIEW) == LOCAL_NETWORK


def test_a_port_at_an_ipv6_address_takes_a_container_that_has_one(admission: Admission) -> None:
    at = msgspec.structs.replace(PORT, host_ip="::1")
    for where in (wish(local=True, host_ports=(at,)), wish(1, host_ports=(PORT, at))):
        with pytest.raises(
            InvalidArgument, match=r"port \[::1\]:8080:80/tcp: the container has no IPv6 address"
        ):
            admission.admit(where, VIEW, {}, {LOCAL_NETWORK: 1500, "n1": 1450})
        assert admission.admitted(where) is None, "nothing of it is kept"
    six = NetworkAttachment("n1", ("10.0.1.9/24", "fd00::9/64"))
    check_families(wish(1, attachments=(six,), host_ports=(at,)), "n1")
