"""A host that lost what its traffic needs, while its daemon runs: one look makes it again, and says so."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from datapath_bed import Container, ask, ask_udp, ping, run
from datapath_pair import NET, desired, made_pair

from overlace.network.host_watch import Mended
from overlace.network.linux import bpf_syscall, nft, veth
from overlace.network.linux.loader import BPFFS
from overlace.network.linux.netns import run_inside
from overlace.network.vfp.tables import Backend, Delta, Frontend

pytestmark = [pytest.mark.host, pytest.mark.timeout(90)]
VIP = Frontend(4097, "10.0.1.2", 0, 0, (Backend(4097, "10.0.1.6"),))


@pytest.fixture
def world() -> Iterator[SimpleNamespace]:
    with made_pair(VIP) as made:
        made.bed.serve(made.bed.client, 90, "outside", socket.SOCK_DGRAM)
        yield made


def works(world: SimpleNamespace) -> None:
    """Between hosts, to a service, a published port, and out."""
    assert ask(world.one.path, "10.0.1.6", 80)[0] == "two"
    assert ask(world.one.path, "10.0.1.2", 80)[0] == "two"
    assert ask(world.bed.client, world.a.address, 8080)[0] == "one"
    assert ask_udp(world.one.path, world.bed.client_address, 90)[:2] == ["outside", world.a.address]


def mends(world: SimpleNamespace, *said: str) -> None:
    audited = [f.what for f in world.a.call("audit", [])]
    found = world.a.call("mend")
    assert not found.left
    for words in said:
        assert [x for x in found.mended if words in x], (words, found)
        assert [x for x in audited if words in x], (words, audited)
    assert world.a.call("mend") == Mended() and world.a.call("audit", []) == []
    works(world)
    assert world.a.call("reconcile", desired(world)) == Delta()


def test_a_host_as_it_should_be_is_left_alone(world: SimpleNamespace) -> None:
    works(world)
    assert world.a.call("mend") == world.b.call("mend") == Mended()
    inside = ("nsenter", f"--net={world.a.path}", "nft")
    run(*inside, "add table ip mine; add chain ip mine c; add rule ip mine c drop")
    assert world.a.call("mend") == Mended(), "what others do with nft is theirs"


@pytest.mark.parametrize(
    "how", ["flush ruleset", "flush chain ip {table} postrouting", "delete table ip6 {table}"]
)
def test_nft_rules_come_back(world: SimpleNamespace, how: str) -> None:
    run("nsenter", f"--net={world.a.path}", "nft", how.format(table=nft.table_name(world.a.instance)))
    mends(world, "nft")


def test_a_containers_share_of_ports_comes_back(world: SimpleNamespace) -> None:
    limited = Container(world.a, "limited")
    entry = limited.join(NET, "10.0.1.20", outbound=True)
    world.a.call("apply", Delta(put=(msgspec.structs.replace(entry, nat_ports=7),)))
    name = veth.host_name(entry.endpoint_id)
    listed = (
        "nsenter",
        f"--net={world.a.path}",
        "nft",
        "list",
        "map",
        "ip",
        nft.table_name(world.a.instance),
        "pools",
    )
    assert f'"{name}" : jump pool_7' in run(*listed)
    assert world.a.call("mend") == Mended()
    run(
        "nsenter",
        f"--net={world.a.path}",
        "nft",
        "flush",
        "map",
        "ip",
        nft.table_name(world.a.instance),
        "pools",
    )
    found = world.a.call("mend")
    assert [x for x in found.mended if name in x] and not found.left
    assert f'"{name}" : jump pool_7' in run(*listed)


@pytest.mark.parametrize("place", ["container", "container-in", "underlay", "vxlan", "lo", "socket-connect4"])
@pytest.mark.parametrize("how", ["detach", "unpin"])
def test_programs_come_back(world: SimpleNamespace, place: str, how: str) -> None:
    """Taken off with the pin left behind, or gone with its pin."""
    name = place.replace("container", veth.host_name(world.one.endpoints[0].endpoint_id))
    pin = BPFFS / "overlace" / world.a.instance / "links" / name
    if how == "detach":
        fd = bpf_syscall.get_pinned(pin)
        bpf_syscall.detach_link(fd)
        os.close(fd)
    else:
        pin.unlink()
    mends(world, "no program is attached")


def test_a_remade_underlay_is_taken(world: SimpleNamespace) -> None:
    """As when a bond is made anew or a driver reloaded: another interface with the same name and address."""
    a, bed = world.a, world.bed
    run("ip", "-n", a.ns, "link", "del", "eth0")
    found = a.call("mend")
    assert [f for f in found.left if "no interface carries the underlay address" in f.what]
    assert not ping(world.one.path, "10.0.1.6", timeout=0.3)
    run("ip", "-n", a.ns, "link", "add", "name", "spare", "type", "veth", "peer", "name", "unused")
    run(
        "ip",
        "-n",
        bed.switch,
        "link",
        "add",
        "name",
        "p-again",
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        a.ns,
    )
    run("ip", "-n", bed.switch, "link", "set", "p-again", "master", "br0", "up")
    run("ip", "-n", a.ns, "link", "set", "eth0", "up")
    run("ip", "-n", a.ns, "addr", "add", f"{a.address}/24", "dev", "eth0")
    mends(world, "is another one than before", "attached to the underlay's interface eth0")


def test_the_vxlan_device_and_settings_come_back(world: SimpleNamespace) -> None:
    run("ip", "-n", world.a.ns, "link", "del", "vxlan-overlace")
    run_inside(world.a.path, lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("0"))
    mends(world, "the vxlan device", "net.ipv4.ip_forward is 0")
    world.a.call("use_slow_path", True)
    assert ask(world.one.path, "10.0.1.6", 80)[0] == "two"


def test_before_tcx_filters_come_back(world: SimpleNamespace) -> None:
    script = (
        "import runpy, sys; from overlace.network.linux import loader; loader.kernel_has_tcx = lambda: False;"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    for step in ("destroy", ""):
        if step:
            world.a.call(step)
        world.a.kill()
        world.a.start(script)
    assert world.a.call("mend") == Mended()
    run("nsenter", f"--net={world.a.path}", "tc", "qdisc", "del", "dev", "eth0", "clsact")
    run("nsenter", f"--net={world.a.path}", "tc", "filter", "del", "dev", "lo", "ingress")
    found = world.a.call("mend")
    assert len([x for x in found.mended if "no program is attached" in x]) == 2 and not found.left
    shown = run("tc", "-n", world.a.ns, "filter", "show", "dev", "eth0", "ingress")
    assert re.search("overlace_from_underlay", shown)
    assert world.a.call("mend") == Mended()
