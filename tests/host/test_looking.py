"""A host looks at itself: what is wrong in its kernel is found and named, and a marked packet is seen on its way."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address
from types import SimpleNamespace

import pytest
from datapath_bed import Container, Host, made_bed, network, run

from overlace.model.findings import Inject
from overlace.network.base import Inside
from overlace.network.linux import bpf_syscall
from overlace.network.linux.loader import BPFFS

pytestmark = [
    pytest.mark.host,
    pytest.mark.timeout(90),
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]
NET = network(4097, "10.0.1.0/24")


@pytest.fixture(scope="module")
def world() -> Iterator[SimpleNamespace]:
    with made_bed() as bed:
        a, b = bed.host("a"), bed.host("b")
        one, two = Container(a, "one"), Container(b, "two")
        one.join(NET, "10.0.1.5")
        two.join(NET, "10.0.1.6")
        bed.serve(two.path, 80, "two")
        yield SimpleNamespace(a=a, b=b, one=one, two=two)


def found(world: SimpleNamespace) -> list[str]:
    inside = [Inside(world.one.endpoints[0].endpoint_id, world.one.path, "eth0", True)]
    return [f.what for f in world.a.call("audit", inside)]


def change(host: Host, name: str, address: str, at: int, new: bytes) -> tuple[bytes, bytes]:
    """Plant a wrong value in the row of an address; returns the true one."""
    table = bpf_syscall.Map(bpf_syscall.get_pinned(BPFFS / "overlace" / host.instance / "maps" / name), name)
    raw = IPv4Address(address).packed
    key, value = next((k, v) for k, v in table.items() if raw in (k[4:8], v[4:8]))
    table.update(key, value[:at] + new + value[at + len(new) :])
    table.close()
    return key, value


def test_nothing_is_wrong_with_a_host_that_is_as_it_should_be(world: SimpleNamespace) -> None:
    assert found(world) == []


@pytest.mark.parametrize(
    ("name", "address", "new", "words"),
    [
        (
            "ports",
            "10.0.1.5",
            struct.pack("I", 9999),
            "wrong VNI: the interface of 10.0.1.5 is on VNI 9999, not 4097",
        ),
        ("endpoints", "10.0.1.6", IPv4Address("172.28.77.99").packed, "behind host 172.28.77.99"),
    ],
)
def test_a_wrong_row_is_named(
    world: SimpleNamespace, name: str, address: str, new: bytes, words: str
) -> None:
    key, value = change(world.a, name, address, 0, new)
    try:
        assert any(words in what for what in found(world)), found(world)
    finally:
        table = bpf_syscall.Map(
            bpf_syscall.get_pinned(BPFFS / "overlace" / world.a.instance / "maps" / name), name
        )
        table.update(key, value)
        table.close()
    assert found(world) == []


def test_an_interface_that_is_down_and_a_route_that_is_gone_are_named(world: SimpleNamespace) -> None:
    enter = ["nsenter", f"--net={world.one.path}", "ip"]
    run(*enter, "link", "set", "eth0", "down")  # takes the routes with it
    said = found(world)
    assert any("eth0 of the container of 10.0.1.5 is down" in s for s in said), said
    assert any("missing route" in s for s in said), said
    run(*enter, "link", "set", "eth0", "up")
    run(*enter, "route", "add", "default", "via", NET.gateway, "dev", "eth0", "onlink")
    assert found(world) == []


@pytest.mark.parametrize(
    ("protocol", "port", "answer"), [(6, 80, "accepted"), (6, 81, "refused"), (1, 0, "echo reply")]
)
def test_a_marked_packet_is_seen_on_both_hosts(
    world: SimpleNamespace, protocol: int, port: int, answer: str
) -> None:
    for host in (world.a, world.b):
        host.call("arm", 4711)
    ask = Inject(
        mark=4711, task_id="", source="10.0.1.5", target="10.0.1.6", protocol=protocol, source_port=41000 + port,
        target_port=port, seconds=3,
    )  # fmt: skip
    assert world.a.call("inject", world.one.path, ask).startswith(answer)
    left, arrived = world.a.call("collect", 4711), world.b.call("collect", 4711)
    assert [s.reason for s in left] == ["", "encapsulated"] and left[0].vni == NET.vni
    assert [s.reason for s in arrived] == ["", "delivered"]
    assert world.a.call("collect", 4711) == []  # forgotten


def test_unmarked_packets_are_not_recorded(world: SimpleNamespace) -> None:
    world.a.call("arm", 4712)
    ask = Inject(
        mark=4713, task_id="", source="10.0.1.5", target="10.0.1.6", protocol=1, source_port=0, target_port=0,
        seconds=3,
    )  # fmt: skip
    assert world.a.call("inject", world.one.path, ask) == "echo reply"
    assert world.a.call("collect", 4712) == []
