"""What a host forwards for others stays its own: interfaces are the data path's by group, not by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from datapath_bed import ask, connect, run
from driver_bed import BACK, INGRESS, SHOP, DriverBed

from overlace.model.specs import PortConfig

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def bed() -> Iterator[DriverBed]:
    made = DriverBed()
    try:
        yield made
    finally:
        made.remove()


def test_an_interface_that_is_only_named_alike_is_forwarded_and_not_translated(bed: DriverBed) -> None:
    one = bed.add("one")
    client, guest = bed.client.name, f"{bed.client.name}-guest"
    inside = Path("/run/netns") / guest
    a = bed.run(one, "ta", service="alone")
    assert a.sandbox is not None
    bed.serve(bed.client, 80, "client")
    run("ip", "netns", "add", guest)
    try:
        for n, name in enumerate(("ovirtmgmt", "ohm0")):
            run("ip", "-n", one.ns, "link", "add", name, "type", "veth", "peer", "inner", "netns", guest)
            run("ip", "-n", one.ns, "addr", "add", f"192.168.{77 + n}.1/24", "dev", name)
            run("ip", "-n", one.ns, "link", "set", name, "up")
            run("ip", "-n", guest, "addr", "add", f"192.168.{77 + n}.2/24", "dev", "inner")
            run("ip", "-n", guest, "link", "set", "inner", "up")
            run("ip", "-n", guest, "route", "add", "default", "via", f"192.168.{77 + n}.1")
            run("ip", "-n", client, "route", "add", f"192.168.{77 + n}.0/24", "via", one.address)
            bed.serve(inside, 80 + n, "guest")
            assert ask(bed.client, f"192.168.{77 + n}.2", 80 + n)[0] == "guest", f"{name}: new connections in"
            seen = ask(inside, bed.client_address, 80)
            assert seen[:2] == ["client", f"192.168.{77 + n}.2"], f"{name}: out, with its own address"
            run("ip", "-n", one.ns, "link", "del", name)

        address = a.addresses["bridge"].partition("/")[0]
        run("ip", "-n", client, "route", "add", f"{address}/32", "via", one.address)
        bed.serve(a.sandbox, 81, "a")
        for group in ("28534", "0"):  # the second: made by a version that went by names
            [port] = {
                word.split("@")[0]
                for word in run("ip", "-n", one.ns, "-o", "link", "show", "type", "veth").split()
                if word.startswith("ov") and "@" in word
            }
            run("ip", "-n", one.ns, "link", "set", port, "group", group)
            bed.restart(one)
            one.call("change", tuple(bed.entries.values()), ())
            assert ask(a.sandbox, bed.client_address, 80)[1] == one.address, "a container's way out"
            with pytest.raises(OSError):
                connect(bed.client, address, 81, timeout=0.5)
    finally:
        run("ip", "netns", "del", guest)


def test_a_program_at_one_address_keeps_a_published_port_there_alone(bed: DriverBed) -> None:
    one = bed.add("one")
    bed.serve(one.path, 8080, "own", address="127.0.0.1")
    bed.change(*SHOP)
    a = bed.run(one, "ta", (BACK, "10.0.1.11"), (INGRESS, "10.0.0.11"))
    assert a.sandbox is not None
    bed.serve(a.sandbox, 80, "service")
    for _ in range(2):
        assert ask(bed.client, one.address, 8080)[0] == "service"
        assert ask(one.path, one.address, 8080)[0] == "service"
        assert ask(one.path, "127.0.0.1", 8080)[0] == "own"
        [text] = one.call("describe")["refused"]
        assert "listens there at 127.0.0.1: it keeps the port at that address" in text
        bed.restart(one)
        one.call("change", tuple(bed.entries.values()), ())


def test_a_container_that_has_a_published_port_at_one_address_is_told_of(bed: DriverBed) -> None:
    one = bed.add("one")
    port = PortConfig(target_port=81, published_port=8080, publish_mode="host", host_ip=one.address)
    box = bed.run(one, "tb", service="box", ports=(port,))
    bed.change(*SHOP)
    a = bed.run(one, "ta", (BACK, "10.0.1.11"), (INGRESS, "10.0.0.11"))
    assert a.sandbox is not None and box.sandbox is not None
    bed.serve(box.sandbox, 81, "box")
    bed.serve(a.sandbox, 80, "service")
    assert ask(bed.client, one.address, 8080)[0] == "box"
    assert ask(one.path, "127.0.0.1", 8080)[0] == "service"
    [text] = one.call("describe")["refused"]
    assert f"container box.1.tb of this host has it at {one.address}" in text
