"""Probes between two hosts with real packets: a blocked port, a narrow path, a card that corrupts, and what containers
notice of it."""

from __future__ import annotations

import asyncio
import ctypes
import ctypes.util
import os
import platform
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytest_asyncio
from datapath_bed import Bed, Container, Host, connect, echo, line, made_bed, network, ping, run

from overlace.model.paths import PathState
from overlace.network.base import Inside
from overlace.network.linux import bpf_syscall
from overlace.network.linux.loader import BPFFS
from overlace.network.linux.netns import run_inside
from overlace.network.linux.offload import disable_tx_checksum
from overlace.network.linux.probe import ProbeSocket
from overlace.network.prober import Prober

pytestmark = [
    pytest.mark.host,
    pytest.mark.timeout(90),
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]
NET = network(4097, "10.0.1.0/24")


class Watched:
    """A prober in one host's namespace, and what it has told."""

    def __init__(self, host: Host, other: Host) -> None:
        self.host = host
        self.told: dict[str, PathState] = {}
        self.corrupted: list[str] = []
        self._news = asyncio.Event()
        self.prober = Prober(self._hear, self.corrupted.append)
        self._socket = run_inside(host.path, lambda: ProbeSocket(host.address, 4789))
        pinned = bpf_syscall.get_pinned(BPFFS / "overlace" / host.instance / "maps" / "prober_of")
        table = bpf_syscall.Map(pinned)
        table.update(struct.pack("I", 0), struct.pack(">HH", self._socket.port, 0))
        table.close()
        self.prober.start(self._socket)
        self.prober.follow({other.name: other.address}, 1500)
        self._other = other.name

    def _hear(self, news: list[PathState]) -> None:
        self.told |= {state.node: state for state in news}
        self._news.set()

    async def until(self, what: Callable[[PathState], bool], seconds: float = 30) -> PathState:
        async with asyncio.timeout(seconds):
            while True:
                found = {s.node: s for s in self.prober.states()}[self._other]
                if what(found):
                    return found
                self._news.clear()
                try:
                    await asyncio.wait_for(self._news.wait(), 0.5)
                except TimeoutError:
                    pass


@pytest_asyncio.fixture
async def world() -> AsyncIterator[SimpleNamespace]:
    with made_bed() as bed:
        a, b = bed.host("a"), bed.host("b")
        one, two = Container(a, "one"), Container(b, "two")
        one.join(NET, "10.0.1.5")
        two.join(NET, "10.0.1.6")
        bed.serve(two.path, 80, "two")
        watched = [Watched(a, b), Watched(b, a)]
        try:
            yield SimpleNamespace(bed=bed, a=a, b=b, one=one, two=two, ab=watched[0], ba=watched[1])
        finally:
            for w in watched:
                await w.prober.close()


def nft(namespace: Path, script: str) -> None:
    command = ["nsenter", f"--net={namespace}", "nft", "-f", "-"]
    subprocess.run(command, input=script, text=True, check=True, timeout=30)


def block(namespace: Path, device: str) -> None:
    """At the port of a switch: nothing a host's own nft does holds up what its programs send."""
    chain = f"type filter hook ingress device {device} priority 0; udp dport 4789 drop;"
    nft(namespace, f"table netdev t {{\nchain e {{ {chain} }}\n}}\n")


async def test_both_hosts_measure_each_other(world: SimpleNamespace) -> None:
    for watched in (world.ab, world.ba):
        state = await watched.until(lambda s: s.state == "ok" and s.mtu > 0 and s.checksum == "ok")
        assert state.mtu == 1500 and 0 < state.rtt < 1_000_000


async def test_a_blocked_tunnel_port_is_noticed_on_both_sides_and_heals(world: SimpleNamespace) -> None:
    await world.ab.until(lambda s: s.state == "ok")
    await world.ba.until(lambda s: s.state == "ok")
    switch = Path("/var/run/netns") / world.bed.switch
    block(switch, "p-b")  # only what b sends: a hears no answers, b's questions do not leave
    await world.ab.until(lambda s: s.state == "down", 15)
    await world.ba.until(lambda s: s.state == "down", 15)
    nft(switch, "delete table netdev t")
    await world.ab.until(lambda s: s.state == "ok", 15)
    await world.ba.until(lambda s: s.state == "ok", 15)


async def test_a_firewall_on_the_host_that_only_large_packets_meet_is_noticed(world: SimpleNamespace) -> None:
    await world.ab.until(lambda s: s.fragments == "ok")
    rule = "type filter hook input priority 0; udp dport 4789 drop;"
    nft(world.b.path, f"table inet t {{\nchain i {{ {rule} }}\n}}\n")
    state = await world.ab.until(lambda s: s.fragments == "lost", 40)
    assert state.state == "ok"
    nft(world.b.path, "delete table inet t")
    await world.ab.until(lambda s: s.fragments == "ok", 40)


async def test_a_daemon_that_is_away_is_no_broken_path(world: SimpleNamespace) -> None:
    await world.ab.until(lambda s: s.state == "ok")
    await world.ba.prober.close()
    world.b.kill()
    before = len(world.ab.told)
    await world.ab.until(lambda s: s.state == "ok" and s.loss == 0)
    assert len(world.ab.told) == before
    world.b.start()


async def test_a_narrow_path_is_measured_and_too_big_packets_are_answered(world: SimpleNamespace) -> None:
    await world.ab.until(lambda s: s.mtu == 1500)
    run("ip", "-n", world.bed.switch, "link", "set", "p-b", "mtu", "1400")  # nobody is told: a black hole
    state = await world.ab.until(lambda s: s.mtu == 1400, 60)
    assert state.state == "ok"
    world.a.call("set_paths", {world.b.address: state.mtu})

    def too_big() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
            s.connect((world.two.address, 9))
            for _ in range(50):  # the kernel learns from the first answer
                try:
                    s.send(bytes(1420 - 28))
                except OSError as e:
                    assert e.errno == 90  # EMSGSIZE
                    return s.getsockopt(socket.IPPROTO_IP, 14)  # IP_MTU
            raise AssertionError("no answer to a packet that is too big")

    assert run_inside(world.one.path, too_big) == 1350
    assert world.a.counters()["too_big"] >= 1


async def test_containers_interfaces_follow(world: SimpleNamespace) -> None:
    endpoint = world.one.endpoints[0]
    world.a.call("resize", endpoint.endpoint_id, world.one.path, "eth0", 1350)
    shown = run("nsenter", f"--net={world.one.path}", "ip", "-o", "link", "show", "eth0")
    assert "mtu 1350" in shown
    world.a.call("resize", endpoint.endpoint_id, world.one.path, "eth0", 1450)
    assert "mtu 1450" in run("nsenter", f"--net={world.one.path}", "ip", "-o", "link", "show", "eth0")


async def test_a_change_of_the_interface_itself_is_seen(world: SimpleNamespace) -> None:
    run("ip", "-n", world.a.ns, "link", "set", "eth0", "mtu", "1300")
    assert world.a.call("look_at_underlay").mtu == 1300


async def test_what_was_carried_and_dropped_is_counted_by_network(world: SimpleNamespace) -> None:
    endpoint = world.one.endpoints[0]
    inside = [Inside(endpoint.endpoint_id, world.one.path, "eth0", True)]
    before = world.a.call("held", inside)
    assert ping(world.one.path, "10.0.1.6", timeout=3)
    assert not ping(world.one.path, "10.0.1.99", timeout=0.2)
    assert not ping(world.one.path, "192.0.2.1", timeout=0.2)
    after = world.a.call("held", inside)
    assert after.carried[0].sent_packets > before.carried[0].sent_packets
    assert after.carried[0].received_bytes > before.carried[0].received_bytes
    assert after.drops.get((NET.vni, "drop_no_outbound"), 0) > before.drops.get(
        (NET.vni, "drop_no_outbound"), 0
    )
    assert after.fill["endpoints"][0] >= 3


@contextmanager
def broken_card(bed: Bed, port: str, tmp_path: Path) -> Iterator[None]:
    """The switch's port spoils checksums it was left to compute; the port to b computes what is left then."""
    source, built = Path(__file__).with_name("broken_card.c"), tmp_path / "card.o"
    include = f"-I/usr/include/{platform.machine()}-linux-gnu"
    run("clang", "-O2", "-g", "-target", "bpf", include, "-c", str(source), "-o", str(built))
    lib = ctypes.CDLL(ctypes.util.find_library("bpf") or "libbpf.so.1", use_errno=True)
    lib.bpf_object__open_file.restype = lib.bpf_object__find_program_by_name.restype = ctypes.c_void_p
    lib.bpf_object__open_file.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    lib.bpf_object__find_program_by_name.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    for name in ("bpf_object__load", "bpf_program__fd", "bpf_object__close"):
        getattr(lib, name).argtypes = [ctypes.c_void_p]
    card = lib.bpf_object__open_file(str(built).encode(), None)
    assert card and lib.bpf_object__load(card) == 0
    program = lib.bpf_program__fd(lib.bpf_object__find_program_by_name(card, b"card"))
    switch = Path("/var/run/netns") / bed.switch
    number = run_inside(switch, lambda: socket.if_nametoindex(port))
    link = run_inside(switch, lambda: bpf_syscall.create_tcx_link(program, number))
    try:
        yield
    finally:
        bpf_syscall.detach_link(link)
        os.close(link)
        lib.bpf_object__close(card)


async def test_a_card_that_corrupts_checksums_is_found_and_worked_around(
    world: SimpleNamespace, tmp_path: Path
) -> None:
    switch = Path("/var/run/netns") / world.bed.switch
    assert run_inside(switch, lambda: disable_tx_checksum("p-b"))
    await world.ab.until(lambda s: s.checksum == "ok")
    with broken_card(world.bed, "p-a", tmp_path):
        state = await world.ab.until(lambda s: s.checksum == "bad", 60)
        assert state.state == "ok" and world.ab.corrupted == ["b"]
        assert world.a.call("leave_checksums_to_the_kernel")
        await world.ab.until(lambda s: s.checksum == "mended", 30)
        connection = connect(world.one.path, world.two.address, 80)
        assert line(connection) and echo(connection, b"whole" * 1000)
        connection.close()


async def test_partitions_and_a_flapping_link_heal_in_seconds(world: SimpleNamespace) -> None:
    await world.ab.until(lambda s: s.state == "ok")
    connection = connect(world.one.path, world.two.address, 80, timeout=30)
    line(connection)

    def link(word: str) -> None:
        run("ip", "-n", world.bed.switch, "link", "set", "p-b", word)

    link("down")
    await world.ab.until(lambda s: s.state == "down", 15)
    link("up")
    await world.ab.until(lambda s: s.state == "ok", 15)
    for _ in range(10):
        link("down")
        link("up")
    await world.ab.until(lambda s: s.state == "ok", 15)
    await world.ba.until(lambda s: s.state == "ok", 15)
    assert await asyncio.to_thread(echo, connection, b"still there")  # what was established goes on
    connection.close()
