"""The data path across daemon restarts, crashes and removal: traffic goes on, leftovers go away."""

from __future__ import annotations

import copy
import os
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from datapath_bed import (
    Container,
    ask,
    ask_udp,
    connect,
    mac_of,
    network,
    ping,
    run,
)
from datapath_grown import build_grown
from datapath_pair import NET, desired, made_pair, stamp
from datapath_streams import Traffic

from overlace.network.linux import bpf_syscall, nft, veth
from overlace.network.linux.loader import BPFFS, port_links
from overlace.network.linux.netns import run_inside
from overlace.network.vfp.tables import (
    HOST4,
    AccessList,
    AccessRule,
    Backend,
    Delta,
    Frontend,
    LocalEndpoint,
    RemoteEndpoint,
    Tables,
)

pytestmark = [pytest.mark.host, pytest.mark.timeout(90)]
VIP = Frontend(4097, "10.0.1.2", 0, 0, (Backend(4097, "10.0.1.5"), Backend(4097, "10.0.1.6")))


# A daemon that dies at one of the steps after the links are switched: what it removes or renames in bpffs.
DIES = """
import os, pathlib, runpy, sys
from overlace.network.linux import loader
finish, left = loader.Loader.finish_switch, [{step}]
def dies(work):
    def one(*args, **kwargs):
        left[0] -= 1
        if not left[0]:
            os._exit(9)
        return work(*args, **kwargs)
    return one
def finishing(self):
    os.rename, pathlib.Path.unlink, pathlib.Path.rmdir = map(dies, (os.rename, pathlib.Path.unlink, pathlib.Path.rmdir))
    finish(self)
    os._exit(9)
loader.Loader.finish_switch = finishing
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def world() -> Iterator[SimpleNamespace]:
    with made_pair(VIP) as made:
        yield made


# An echo takes a loaded machine up to 0.2 s without anything lost; what loses packets for longer than that is an outage.
OUTAGE = 0.5  # seconds


def test_traffic_goes_on_while_the_daemon_is_dead_and_comes_back(world: SimpleNamespace) -> None:
    flows = [
        Traffic(world.one.path, "10.0.1.6", 80),
        Traffic(world.two.path, "10.0.1.2", 80),
        Traffic(world.bed.client, world.a.address, 8080),
    ]
    world.a.kill()
    time.sleep(0.3)
    assert ask(world.one.path, "10.0.1.6", 80)[0] == "two", "a new connection without a daemon"
    assert ask(world.bed.client, world.a.address, 8080)[0] == "one"
    world.a.start()
    assert world.a.call("reconcile", desired(world)) == Delta(), "nothing differed"
    time.sleep(0.2)
    for flow in flows:
        flow.finish()
        assert flow.count > 50
        assert flow.longest < OUTAGE, "retransmissions: something was lost"


def test_new_programs_replace_old_ones_under_traffic(world: SimpleNamespace) -> None:
    """An upgrade: the object differs, the layout does not. Maps and their content are kept."""
    flow = Traffic(world.one.path, "10.0.1.6", 80)
    pins = BPFFS / "overlace" / world.a.instance
    before = {name: _program_of(pins / "links" / name) for name in os.listdir(pins / "links")}
    world.a.kill()
    stamp(world, 1, 0)
    world.a.start()
    after = {name: _program_of(pins / "links" / name) for name in os.listdir(pins / "links")}
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before)
    assert world.a.call("reconcile", desired(world)) == Delta()
    time.sleep(0.1)
    flow.finish()
    assert flow.longest < OUTAGE


def _program_of(pin: Path) -> int:
    fd = bpf_syscall.get_pinned(pin)
    try:
        return bpf_syscall.link_target(fd)[0]
    finally:
        os.close(fd)


def interfaces(pins: Path) -> set[str]:
    """Links at interfaces; those of the socket level are at a cgroup."""
    return {name for name in os.listdir(pins) if not name.startswith("socket-")}


@pytest.mark.parametrize("crashes", [False, True])
def test_another_layout_takes_the_connections_over(world: SimpleNamespace, crashes: bool) -> None:
    """An upgrade whose maps differ: the old programs go on until the new maps are filled; nothing is lost, also when
    the daemon dies in between."""
    pins = BPFFS / "overlace" / world.a.instance
    both = Frontend(4097, "10.0.1.3", 0, 0, (Backend(4097, "10.0.1.6"),))
    world.a.put(both)
    flows = [
        Traffic(world.one.path, "10.0.1.6", 80),
        Traffic(world.one.path, "10.0.1.3", 80),
        Traffic(world.bed.client, world.a.address, 8080),
    ]
    before = {name: _program_of(pins / "links" / name) for name in os.listdir(pins / "links")}
    world.a.kill()
    stamp(world, 0, 999)
    world.a.start()
    assert (pins / "old").is_dir()
    assert before == {name: _program_of(pins / "links" / name) for name in os.listdir(pins / "links")}
    time.sleep(0.2)  # traffic meets empty new maps, were they in use
    if crashes:
        world.a.kill()
        world.a.start()
    wanted = Tables([*desired(world), both])
    assert set(world.a.call("reconcile", wanted).put) == set(wanted)
    time.sleep(0.2)
    for flow in flows:
        flow.finish()
        assert flow.count > 50 and not flow.broken
        assert flow.longest < OUTAGE
    assert not (pins / "old").exists()
    after = {name: _program_of(pins / "links" / name) for name in os.listdir(pins / "links")}
    assert before.keys() == after.keys() and all(before[name] != after[name] for name in before)
    assert ask(world.one.path, "10.0.1.6", 80)[0] == "two"
    assert ask(world.bed.client, world.a.address, 8080)[0] == "one"
    world.a.kill()
    world.a.start()
    assert world.a.call("reconcile", wanted) == Delta(), "what is pinned now is adopted"


def test_what_cannot_be_taken_over_is_said_and_the_rest_is(
    world: SimpleNamespace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A later version names clients otherwise, and knows more of a socket: the daemon starts all the same."""
    flows = [
        Traffic(world.one.path, "10.0.1.2", 80),
        Traffic(world.bed.client, world.a.address, 8080),
    ]
    later = build_grown(tmp_path / "bpf", "affinity_key", "choice")
    world.a.kill()
    capfd.readouterr()
    world.a.start(later)
    assert set(world.a.call("reconcile", desired(world)).put) == set(desired(world))
    said = "".join(capfd.readouterr())
    left = set(re.findall(r"map=(\w+)", re.sub(r"\x1b\[\d*m", "", said)))
    assert left == {"affinities", "affinities6", "choices", "choices6"}
    assert "its connections were carried over" not in said
    for flow in flows:
        assert not flow.broken
    count = [flow.count for flow in flows]
    while any(
        flow.count < before + 20 and not flow.broken for flow, before in zip(flows, count, strict=True)
    ):
        time.sleep(0.01)
    for flow in flows:
        flow.finish()
        assert not flow.broken
    assert ask(world.one.path, "10.0.1.2", 80)[0] in ("one", "two")


@pytest.mark.parametrize("line", [1, 2, 40])
def test_killed_while_a_switch_ends(world: SimpleNamespace, line: int) -> None:
    """At whatever step: the next daemon has the connections, of the new maps or once more of the old ones."""
    flow = Traffic(world.bed.client, world.a.address, 8080)
    world.a.kill()
    stamp(world, 0, 999)
    world.a.start(DIES.format(step=line))
    with pytest.raises((AssertionError, BrokenPipeError)):
        world.a.call("reconcile", desired(world))
    world.a.kill()
    world.a.start()
    world.a.call("reconcile", desired(world))
    count = flow.count
    while flow.count < count + 20 and not flow.broken:
        time.sleep(0.01)
    flow.finish()
    assert not flow.broken
    pins = BPFFS / "overlace" / world.a.instance
    assert not (pins / "old").exists() and not (pins / "gone").exists()


def test_reconcile_repairs_and_collects(world: SimpleNamespace) -> None:
    """Rows lost and strayed, a veth nobody wants, a pin of a device that is gone."""
    gone = Container(world.a, "gone")
    stale = gone.join(NET, "10.0.1.9")
    stray = RemoteEndpoint(4097, "10.0.1.66", mac_of("10.0.1.66"), world.b.address)
    extra = Frontend(4097, "10.0.1.3", 6, 80, (Backend(4097, "10.0.1.6"),))
    world.a.put(stray, extra)
    world.a.call("apply", Delta(remove=(("endpoint", 4097, "10.0.1.6"), VIP.key)))
    world.a.kill()
    pins = BPFFS / "overlace" / world.a.instance / "links"
    (pins / veth.host_name(world.one.endpoints[0].endpoint_id)).unlink()
    world.a.start()
    wanted = desired(world)
    differed = world.a.call("reconcile", wanted)
    remote = wanted.get(("endpoint", 4097, "10.0.1.6"))
    assert set(differed.put) == {VIP, remote}
    assert set(differed.remove) == {stray.key, extra.key, stale.key}
    assert world.a.call("reconcile", wanted) == Delta()
    assert ask(world.one.path, "10.0.1.6", 80)[0] == "two"
    assert {ask(world.one.path, "10.0.1.2", 80)[0] for _ in range(2)} == {"one", "two"}
    assert veth.host_name(stale.endpoint_id) not in run("ip", "-n", world.a.ns, "link")
    own = veth.host_name(world.one.endpoints[0].endpoint_id)
    assert interfaces(pins) == {"lo", "underlay", "vxlan", *port_links(own)}


def test_a_failed_write_is_made_good_by_the_next(world: SimpleNamespace) -> None:
    many = [network(5000 + n, f"10.{n // 250}.{n % 250}.0/24") for n in range(250, 250 + 4500)]
    with pytest.raises(OSError, match="map networks is full: it holds 4096 rows"):
        world.a.put(*many)
    new = RemoteEndpoint(4097, "10.0.1.66", mac_of("10.0.1.66"), world.b.address)
    world.a.call("apply", Delta(put=(new,), remove=tuple(n.key for n in many)))
    assert world.a.call("reconcile", Tables([*desired(world), new])) == Delta()


@pytest.mark.parametrize("delay", [0.005, 0.02, 0.04, 0.06, 0.09])
def test_killed_while_attaching(world: SimpleNamespace, delay: float) -> None:
    """kill -9 somewhere in the middle of attaching: the next pass attaches."""
    endpoints = [
        LocalEndpoint(4097, f"10.0.1.{n}", 24, mac_of(f"10.0.1.{n}"), str(uuid.uuid4()).upper(), True)
        for n in range(50, 58)
    ]
    sandboxes = [world.a.call("ensure_sandbox", f"box{n}") for n in range(8)]

    def attach_all() -> None:
        for endpoint, sandbox in zip(endpoints, sandboxes, strict=True):
            world.a.call("attach", endpoint, sandbox, "eth0", True, "10.0.1.1", 1450)

    process = world.a.process
    threading.Timer(delay, process.kill).start()
    try:
        attach_all()
        process.wait(5)
    except (AssertionError, BrokenPipeError):
        pass
    world.a.kill()
    world.a.start()
    world.a.call("reconcile", Tables([*desired(world), *endpoints]))
    attach_all()
    for sandbox in sandboxes:
        assert ping(sandbox, "10.0.1.5")


def test_attach_and_detach_are_idempotent(world: SimpleNamespace) -> None:
    endpoint = world.one.endpoints[0]
    flow = Traffic(world.one.path, "10.0.1.6", 80)
    for _ in range(3):
        world.a.call("attach", endpoint, world.one.path, "eth0", True, "10.0.1.1", 1450)
    flow.finish()
    assert flow.count and flow.longest < OUTAGE
    taken = LocalEndpoint(4097, "10.0.1.9", 24, mac_of("10.0.1.9"), str(uuid.uuid4()).upper())
    with pytest.raises(FileExistsError, match="already has an interface eth0"):
        world.a.call("attach", taken, world.one.path, "eth0", True, "10.0.1.1", 1450)
    for _ in range(2):
        world.a.call("detach", endpoint.endpoint_id)
    assert not ping(world.two.path, "10.0.1.5", timeout=0.3)
    world.a.call("attach", endpoint, world.one.path, "eth0", True, "10.0.1.1", 1450)
    assert ping(world.two.path, "10.0.1.5")
    moved = world.a.call("ensure_sandbox", "moved")
    world.a.call("attach", endpoint, moved, "eth0", True, "10.0.1.1", 1450)
    assert ping(moved, "10.0.1.6")


def test_fifty_containers_in_seconds(world: SimpleNamespace) -> None:
    began = time.monotonic()
    for n in range(100, 150):
        address = f"10.0.1.{n}"
        endpoint = LocalEndpoint(4097, address, 24, mac_of(address), str(uuid.uuid4()).upper(), True)
        sandbox = world.a.call("ensure_sandbox", f"many{n}")
        world.a.call("attach", endpoint, sandbox, "eth0", True, "10.0.1.1", 1450)
    took = time.monotonic() - began
    assert ping(world.one.path, "10.0.1.149")
    assert took < 5, took


def test_destroy_leaves_nothing(world: SimpleNamespace) -> None:
    world.a.call("destroy")
    assert not (BPFFS / "overlace" / world.a.instance).exists()
    inside = ("nsenter", f"--net={world.a.path}")
    links = run(*inside, "ip", "-o", "link")
    assert not re.search(r"ov[0-9a-f]{8}", links) and "vxlan-overlace" not in links
    assert run(*inside, "nft", "list", "ruleset") == ""
    assert run(*inside, "bpftool", "net") == run("nsenter", f"--net={world.bed.client}", "bpftool", "net")
    assert not list((world.a.exec_dir / "netns").iterdir())
    assert str(world.a.exec_dir) not in Path("/proc/mounts").read_text()
    assert run(*inside, "ip", "route", "show", "proto", "111") == ""


def test_destroy_of_an_object_never_opened(world: SimpleNamespace) -> None:
    world.a.kill()
    script = (
        "import asyncio,sys;from pathlib import Path;from overlace.network.linux.datapath import DataPath;"
        f"asyncio.run(DataPath({world.a.instance!r}, Path('/nowhere'), {world.a.address!r},"
        f" exec_dir=Path({str(world.a.exec_dir)!r})).destroy())"
    )
    subprocess.run(["nsenter", f"--net={world.a.path}", sys.executable, "-c", script], check=True, timeout=30)
    assert not (BPFFS / "overlace" / world.a.instance).exists()
    assert "vxlan-overlace" not in run("ip", "-n", world.a.ns, "link")


def test_foreign_nft_rules_are_left_alone(world: SimpleNamespace) -> None:
    inside = ("nsenter", f"--net={world.a.path}", "nft")
    run(
        *inside,
        "add table ip mine; add chain ip mine c { type filter hook forward priority 0; policy drop; }",
    )
    before = run(*inside, "list", "table", "ip", "mine")
    drops = run_inside(world.a.path, nft.foreign_forward_drops)
    assert drops == [nft.HostDropsForwarding("ip", "mine", "c")]
    world.a.kill()
    world.a.start()
    assert ask(world.one.path, "10.0.1.6", 80)[0] == "two", "overlay traffic does not pass the host's chains"
    assert ask(world.bed.client, world.a.address, 8080)[0] == "one"
    world.a.call("destroy")
    assert run(*inside, "list", "table", "ip", "mine") == before


def test_dns_sockets_are_inside_and_leave_port_53_free(world: SimpleNamespace) -> None:
    world.a.call("dns", world.one.path)
    world.bed.serve(world.one.path, 53, "own", socket.SOCK_DGRAM, "127.0.0.11")
    assert ask_udp(world.one.path, "127.0.0.11", 53)[0] == "udp:xxxxxxxxxx"
    with connect(world.one.path, "127.0.0.11", 53) as connection:
        connection.sendall(b"question")
        assert connection.recv(100) == b"tcp:question"
    world.a.kill()
    world.a.start()
    world.a.call("dns", world.one.path)
    assert ask_udp(world.one.path, "127.0.0.11", 53)[0] == "udp:xxxxxxxxxx", "after a restart"


def test_clsact_where_tcx_is_missing(world: SimpleNamespace) -> None:
    """Kernels before 6.6: the older attachment carries the same programs, and goes again."""
    script = (
        "import runpy, sys; from overlace.network.linux import loader; loader.kernel_has_tcx = lambda: False;"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    world.a.call("destroy")
    world.a.kill()
    world.a.start(script)
    one = Container(world.a, "older")
    one.join(NET, "10.0.1.5", outbound=True)
    published = Frontend(0, HOST4, 6, 8080, (Backend(4097, "10.0.1.5", 80),))
    world.a.put(RemoteEndpoint(4097, "10.0.1.6", mac_of("10.0.1.6"), world.b.address), published)
    world.bed.serve(one.path, 80, "older")
    links = BPFFS / "overlace" / world.a.instance / "links"
    assert not interfaces(links)
    assert ask(one.path, "10.0.1.6", 80)[0] == "two"
    assert ask(world.bed.client, world.a.address, 8080)[0] == "older"
    assert ask(world.a.path, "10.0.1.5", 80)[0] == "older"
    nobody, anyone = (
        AccessList(4097, "10.0.1.5", d, r) for d, r in (("IN", ()), ("OUT", (AccessRule("allow"),)))
    )
    shut = msgspec.structs.replace(one.endpoints[0], inbound=nobody.number, outbound=anyone.number)
    world.a.put(nobody, anyone, shut)
    with pytest.raises(TimeoutError):
        connect(world.a.path, "10.0.1.5", 80, timeout=0.5)
    world.a.put(one.endpoints[0])
    world.a.kill()
    world.a.start(script)
    assert ask(one.path, "10.0.1.6", 80)[0] == "two"
    assert "overlace_from_underlay" in run("tc", "-n", world.a.ns, "filter", "show", "dev", "eth0", "ingress")
    world.a.call("destroy")
    assert run("tc", "-n", world.a.ns, "filter", "show", "dev", "eth0", "ingress") == ""


def test_it_is_removed_whole_without_the_underlays_address(world: SimpleNamespace) -> None:
    """Also where programs are attached by the older way, whose place is then not to be found."""
    script = (
        "import runpy, sys; from overlace.network.linux import loader; loader.kernel_has_tcx = lambda: False;"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    world.a.kill()
    world.a.start(script)
    run("ip", "-n", world.a.ns, "addr", "flush", "dev", "eth0")
    world.a.call("destroy")
    assert not (BPFFS / "overlace" / world.a.instance).exists()
    assert run("nsenter", f"--net={world.a.path}", "nft", "list", "ruleset") == ""
    assert not list((world.a.exec_dir / "netns").iterdir())
    run("ip", "-n", world.a.ns, "addr", "add", f"{world.a.address}/24", "dev", "eth0")


def test_another_instance_in_the_same_namespace_keeps_what_is_its_own(world: SimpleNamespace) -> None:
    """It comes, has a container, compares and goes: the first one's containers stay, and what both used is made again."""
    other = copy.copy(world.a)
    other.instance, other.exec_dir = f"{world.a.instance}x", world.a.exec_dir / "other"
    other.start()
    try:
        other.put(NET)
        endpoint = LocalEndpoint(4097, "10.0.1.40", 24, mac_of("10.0.1.40"), str(uuid.uuid4()).upper())
        sandbox = other.call("ensure_sandbox", "theirs")
        other.call("attach", endpoint, sandbox, "eth0", True, "10.0.1.1", 1450)
        other.call("reconcile", Tables([NET]))
        other.call("destroy")
    finally:
        other.kill()
    links = run("ip", "-n", world.a.ns, "link")
    assert veth.host_name(world.one.endpoints[0].endpoint_id) in links
    assert veth.host_name(endpoint.endpoint_id) not in links
    world.a.call("mend")  # as a running daemon does every few seconds
    assert world.a.call("reconcile", desired(world)) == Delta()
    assert ask(world.one.path, "10.0.1.6", 80)[0] == "two"
    assert ask(world.bed.client, world.a.address, 8080)[0] == "one"
