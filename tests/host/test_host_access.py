"""Processes of a host itself reach services and containers of a network whose option says so: real packets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from datapath_bed import ask, connect, line, ping, run
from driver_bed import BACK, INGRESS, OTHER, SHOP, DriverBed, DriverHost

from overlace.model.findings import Examine
from overlace.model.policy import ALLOW_FROM, parse_items
from overlace.model.specs import HOST_ACCESS_OPTION
from overlace.network.base import Attached

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
OPEN = msgspec.structs.replace(BACK, driver_opts={HOST_ACCESS_OPTION: "true"})
VIP, HERE, THERE = "10.0.1.100", "10.0.1.11", "10.0.1.12"


@pytest.fixture
def bed() -> Iterator[DriverBed]:
    made = DriverBed()
    try:
        yield made
    finally:
        made.remove()


def shop(bed: DriverBed) -> tuple[DriverHost, DriverHost, Attached, Attached]:
    one, two = bed.add("one"), bed.add("two")
    bed.change(*SHOP, OPEN)
    a = bed.run(one, "ta", (BACK, HERE), (INGRESS, "10.0.0.11"))
    b = bed.run(two, "tb", (BACK, THERE), (INGRESS, "10.0.0.12"))
    for name, attached in (("a", a), ("b", b)):
        assert attached.sandbox is not None
        bed.serve(attached.sandbox, 80, name)
    return one, two, a, b


def links(host: DriverHost) -> str:
    return run("nsenter", f"--net={host.path}", "ip", "-o", "link")


def routes(host: DriverHost) -> str:
    return run("nsenter", f"--net={host.path}", "ip", "route")


def refused(where: Path, address: str) -> bool:
    try:
        connect(where, address, 80, timeout=0.5).close()
    except OSError:
        return True
    return False


def test_from_the_host_to_services_and_containers_here_and_elsewhere(bed: DriverBed) -> None:
    one, two, _, b = shop(bed)
    for host in (one, two):
        answers = [ask(host.path, VIP, 80) for _ in range(24)]
        assert {x[0] for x in answers} == {"a", "b"}, f"{host.name}: both tasks"
    own = one.node.addresses[BACK.id]
    assert ask(one.path, THERE, 80)[1] == own, "the other host's task sees the node's address"
    assert ask(one.path, HERE, 80)[0] == "a" and ping(one.path, THERE)
    assert b.sandbox is not None and refused(b.sandbox, own), "and nothing is open there"
    assert not refused(b.sandbox, HERE)
    assert one.call("ask", Examine()).findings == (), "overlace check finds all in order"


def test_policies_hold_for_the_host_too(bed: DriverBed) -> None:
    one, two, _, _ = shop(bed)
    bed.change(msgspec.structs.replace(OPEN, allowed=()))
    for host, other in ((one, THERE), (two, HERE)):
        assert refused(host.path, other) and refused(host.path, VIP)
    own = one.node.addresses[BACK.id]
    bed.change(msgspec.structs.replace(OPEN, allowed=parse_items(ALLOW_FROM, f"{own}/32:tcp/80")))
    assert ask(one.path, THERE, 80)[0] == "b" and refused(two.path, HERE), "one host's address, by name"


def test_nobody_beyond_the_host_comes_in_through_it(bed: DriverBed) -> None:
    one, _, _, _ = shop(bed)
    run("ip", "-n", bed.client.name, "route", "add", "10.0.1.0/24", "via", one.address)
    assert ask(one.path, THERE, 80)[0] == "b"
    assert refused(bed.client, THERE) and refused(bed.client, VIP)
    c = bed.run(one, "tc", (OTHER, "10.0.2.11"), service="else")
    d = bed.run(one, "td", service="alone")
    assert d.addresses.keys() == {"bridge"}, "a container that reaches the world through the host"
    for other in (c, d):
        assert other.sandbox is not None and refused(other.sandbox, VIP) and refused(other.sandbox, THERE)


def test_it_outlives_the_daemon_is_mended_and_goes_with_the_option(bed: DriverBed) -> None:
    one, _, _, _ = shop(bed)
    with connect(one.path, THERE, 80) as kept:
        assert line(kept)[0] == "b"
        bed.restart(one)  # killed
        assert ask(one.path, THERE, 80)[0] == "b", "it needs no daemon"
        one.call("change", tuple(bed.entries.values()), ())
        kept.sendall(b"still")
        assert kept.recv(5) == b"still"
    name = next(word.split("@")[0] for word in links(one).split() if word.startswith("oh"))
    run("nsenter", f"--net={one.path}", "ip", "link", "del", name)
    assert refused(one.path, THERE)
    bed.restart(one)
    one.call("change", tuple(bed.entries.values()), ())
    assert ask(one.path, THERE, 80)[0] == "b", "made again"
    bed.change(BACK)
    assert " oh" not in links(one) and "10.0.1.0/24" not in routes(one) and refused(one.path, THERE)
    assert not [f for f in (one.exec_dir / "netns").iterdir() if f.name.startswith("host-")]
    bed.change(OPEN)
    assert ask(one.path, THERE, 80)[0] == "b"
    bed.restart(one)
    one.call("leave")
    assert (
        " oh" not in links(one)
        and "10.0.1.0/24" not in routes(one)
        and not list(one.exec_dir.glob("netns/*"))
    )


def test_a_route_that_the_host_has_already_stands(bed: DriverBed) -> None:
    one, two = bed.add("one"), bed.add("two")
    run("nsenter", f"--net={one.path}", "ip", "route", "add", "10.0.0.0/16", "via", two.address)
    bed.change(*SHOP, OPEN)
    [text] = one.call("describe")["refused"]
    assert (
        "cannot reach network back: subnet 10.0.1.0/24 overlaps the host's own route to 10.0.0.0/16" in text
    )
    assert "10.0.1.0/24" not in routes(one) and "10.0.1.0/24" in routes(two)
    run("nsenter", f"--net={one.path}", "ip", "route", "del", "10.0.0.0/16")
    b = bed.run(two, "tb", (BACK, THERE))
    assert b.sandbox is not None
    bed.serve(b.sandbox, 80, "b")
    assert ask(one.path, THERE, 80)[0] == "b" and one.call("describe")["refused"] == []
