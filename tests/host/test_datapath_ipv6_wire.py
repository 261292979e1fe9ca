"""IPv6 inside the overlay with real packets: two hosts, containers with an address of each family."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import msgspec
import pytest
from datapath_bed import Container, ask, ask_udp, connect, echo, line, mac_of, made_bed, ping

from overlace.network.base import Inside
from overlace.network.linux.netns import run_inside
from overlace.network.vfp.tables import (
    AccessList,
    AccessRule,
    Backend,
    Delta,
    Frontend,
    LocalEndpoint,
    Network,
    RemoteEndpoint,
    Tables,
)

pytestmark = [pytest.mark.host, pytest.mark.timeout(120)]
NET = Network(
    4097,
    ("10.0.1.0/24", "fd00:1::/64"),
    "10.0.1.1",
    mac_of("10.0.1.1"),
    other_gateways=("fd00:1::1",),
)
GATEWAY, VIP, EMPTY = "fd00:1::1", "fd00:1::100", "fd00:1::101"
ONE, TWO, SHELL = "fd00:1::5", "fd00:1::6", "fd00:1::7"
MEGABYTES = os.urandom(3 << 20)


@pytest.fixture(scope="module")
def world() -> Iterator[SimpleNamespace]:
    with made_bed() as bed:
        a, b = bed.host("a"), bed.host("b")
        web1, web2, shell = Container(a, "web1"), Container(b, "web2"), Container(a, "shell")
        web1.join(NET, "10.0.1.5", six=ONE)
        web2.join(NET, "10.0.1.6", six=TWO)
        shell.join(NET, "10.0.1.7", six=SHELL)
        for container in (web1, web2):
            bed.serve(container.path, 80, container.name, address="::")
            bed.serve(container.path, 53, container.name, socket.SOCK_DGRAM, address="::")
        bed.frontend(
            Frontend(4097, VIP, 0, 0, (Backend(4097, ONE), Backend(4097, TWO))), Frontend(4097, EMPTY, 0, 0)
        )
        yield SimpleNamespace(bed=bed, a=a, b=b, web1=web1, web2=web2, shell=shell)


def inside(container: Container, *command: str) -> str:
    run = subprocess.run(
        ["nsenter", f"--net={container.path}", *command], capture_output=True, text=True, timeout=20
    )
    return run.stdout


def test_an_interface_has_both_families_at_once(world: SimpleNamespace) -> None:
    """No waiting for duplicate address detection, no address or route that a router advertised."""
    until, listing = time.monotonic() + 10, "tentative"
    while (
        "tentative" in listing and time.monotonic() < until
    ):  # the kernel sets link-local ones free in a while
        listing = inside(world.shell, "ip", "-6", "addr", "show", "dev", "eth0")
        assert f"{SHELL}/64 scope global tentative" not in listing
    assert f"inet6 {SHELL}/64 scope global" in listing and "fe80::42:aff:fe00:107/64" in listing
    assert "tentative" not in listing and "dynamic" not in listing
    assert f"default via {GATEWAY}" in inside(world.shell, "ip", "-6", "route")
    assert ask(world.shell.path, "10.0.1.6", 80)[0] == "web2", "IPv4 as before"


def test_containers_ping_each_other(world: SimpleNamespace) -> None:
    assert ping(world.shell.path, ONE), "same host"
    assert ping(world.shell.path, TWO), "other host"
    assert ping(world.shell.path, TWO, size=1400), "other host, full size"
    assert ping(world.shell.path, TWO, size=4000), "other host, fragments"
    assert ping(world.shell.path, GATEWAY), "gateway"
    assert ping(world.shell.path, VIP), "VIP"
    assert not ping(world.shell.path, "fd00:1::99", timeout=0.3), "nobody"
    assert f"{TWO} dev eth0 lladdr {mac_of('10.0.1.6')}" in inside(world.shell, "ip", "-6", "neigh")


def test_addresses_are_kept_between_containers(world: SimpleNamespace) -> None:
    assert ask(world.shell.path, TWO, 80)[:2] == ["web2", SHELL]
    assert ask(world.shell.path, ONE, 80)[:2] == ["web1", SHELL]
    assert ask_udp(world.shell.path, TWO, 53)[:2] == ["web2", SHELL]
    assert ask_udp(world.shell.path, TWO, 53, size=4000)[3] == "4000"


@pytest.mark.parametrize("address", [ONE, TWO, VIP])
def test_large_transfer(world: SimpleNamespace, address: str) -> None:
    before = world.a.counters()
    with connect(world.shell.path, address, 80) as connection:
        line(connection)
        assert echo(connection, MEGABYTES)
    after = world.a.counters()
    assert after["slow_path"] == before["slow_path"]
    if address == TWO:
        assert after["encapsulated"] - before["encapsulated"] > 40, "the programs encapsulate"


def test_vip_spreads_connections(world: SimpleNamespace) -> None:
    assert Counter(ask(world.shell.path, VIP, 80)[0] for _ in range(10)) == {"web1": 5, "web2": 5}
    assert Counter(ask_udp(world.shell.path, VIP, 53)[0] for _ in range(10)) == {"web1": 5, "web2": 5}
    for _ in range(4):
        assert ask_udp(world.shell.path, VIP, 53, size=4000)[3] == "4000", "fragments stay together"
    got = Counter(ask(world.web1.path, VIP, 80)[0] for _ in range(10))
    assert got == {"web1": 5, "web2": 5}, "a member reaches itself, too"


def test_a_service_without_backends_refuses(world: SimpleNamespace) -> None:
    with pytest.raises(ConnectionRefusedError):
        ask(world.shell.path, EMPTY, 80)
    with pytest.raises(ConnectionRefusedError):
        ask_udp(world.shell.path, EMPTY, 53)


def test_no_way_out_is_known_at_once(world: SimpleNamespace) -> None:
    with pytest.raises(OSError) as refused:
        ask(world.shell.path, "2001:db8::1", 80, timeout=20)
    assert refused.value.errno == errno.ENETUNREACH


def test_a_narrower_path_is_said_and_used(world: SimpleNamespace) -> None:
    before = world.a.counters()["too_big"]
    for host, other in ((world.a, world.b), (world.b, world.a)):
        host.call("set_paths", {other.address: 1400})
    try:
        with connect(world.shell.path, TWO, 80) as connection:
            line(connection)
            assert echo(connection, MEGABYTES)
        assert world.a.counters()["too_big"] > before
        assert "mtu 1350" in inside(world.shell, "ip", "-6", "route", "get", TWO)
    finally:
        for host in (world.a, world.b):
            host.call("set_paths", {})
        inside(world.shell, "ip", "-6", "route", "flush", "cache")


def test_1280_bytes_pass_whatever_the_path_takes(world: SimpleNamespace) -> None:
    """The kernel's vxlan device sends the outer packet in fragments; IPv6 is told 1280 and no less."""
    for host, other in ((world.a, world.b), (world.b, world.a)):
        host.call("set_paths", {other.address: 1200})
    try:
        before = world.a.counters()["slow_path"]
        assert ping(world.shell.path, TWO, size=1232)
        with connect(world.shell.path, TWO, 80) as connection:
            line(connection)
            assert echo(connection, MEGABYTES[:200_000])
        assert world.a.counters()["slow_path"] > before
        assert "mtu 1280" in inside(world.shell, "ip", "-6", "route", "get", TWO)
    finally:
        for host in (world.a, world.b):
            host.call("set_paths", {})
        inside(world.shell, "ip", "-6", "route", "flush", "cache")


def test_a_spoofed_source_reaches_nobody(world: SimpleNamespace) -> None:
    def listen() -> socket.socket:
        made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        made.bind(("::", 9000))
        made.settimeout(5)
        return made

    def send() -> None:
        mac = bytes.fromhex(mac_of("10.0.1.7").replace(":", ""))
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            for source, text in ((ONE, b"false"), ("fd00:9::1", b"false"), (SHELL, b"honest")):
                addresses = b"".join(socket.inet_pton(socket.AF_INET6, x) for x in (source, TWO))
                udp = struct.pack("!HHHH", 5000, 9000, 8 + len(text), 0) + text
                total = sum(int.from_bytes((udp + bytes(1))[i : i + 2], "big") for i in range(0, len(udp), 2))
                total += sum(struct.unpack("!16H", addresses)) + len(udp) + 17
                while total >> 16:
                    total = (total & 0xFFFF) + (total >> 16)
                udp = udp[:6] + struct.pack("!H", ~total & 0xFFFF) + udp[8:]
                head = struct.pack("!IHBB", 6 << 28, len(udp), 17, 64) + addresses
                raw.send(bytes.fromhex(mac_of("10.0.1.6").replace(":", "")) + mac + b"\x86\xdd" + head + udp)

    before = world.a.counters()["drop_spoofed"]
    with run_inside(world.web2.path, listen) as listening:
        run_inside(world.shell.path, send)
        data, who = listening.recvfrom(100)
        assert (data, who[0]) == (b"honest", SHELL), "the others were sent before"
    assert world.a.counters()["drop_spoofed"] == before + 2


def test_access_lists_judge_ipv6_connections(world: SimpleNamespace) -> None:
    rules = (AccessRule("allow", 6, remote=("10.0.0.0/8", "fd00:1::4/126"), local_ports=(80, 80)),)
    into = AccessList(4097, TWO, "IN", rules)
    out = AccessList(4097, TWO, "OUT", (AccessRule("allow"),))
    four = world.web2.endpoints[0]
    plain = LocalEndpoint(4097, TWO, 64, four.mac, four.endpoint_id)
    guarded = msgspec.structs.replace(plain, inbound=into.number, outbound=out.number)
    world.b.put(into, out, guarded)
    try:
        assert ask(world.shell.path, TWO, 80)[0] == "web2"
        dropped = world.b.counters()["drop_policy"]
        with pytest.raises(TimeoutError):
            ask_udp(world.shell.path, TWO, 53, timeout=0.3)
        assert world.b.counters()["drop_policy"] == dropped + 1
        narrow = AccessList(4097, TWO, "IN", (AccessRule("allow", 6, remote=("fd00:1::5/128",)),))
        world.b.put(narrow, msgspec.structs.replace(guarded, inbound=narrow.number))
        with pytest.raises(TimeoutError):
            ask(world.shell.path, TWO, 80, timeout=0.3)
        assert ask(world.web1.path, TWO, 80)[0] == "web2"
        assert ask(world.web2.path, ONE, 80)[0] == "web1", "replies of what it may ask come in"
    finally:
        world.b.put(plain)


def test_flows_and_the_audit_speak_of_ipv6(world: SimpleNamespace) -> None:
    world.a.call("flows")  # who looks at flows sees connections from their first packet on
    with connect(world.shell.path, TWO, 80) as connection:
        line(connection)
        assert echo(connection, b"x" * 100)
        port = connection.getsockname()[1]
        flows = {(f.came.src, f.came.sport, f.came.dst): f for f in world.a.call("flows")}
        found = flows[(SHELL, port, TWO)]
        assert (found.verdict, found.provider_address, found.vni) == ("encapsulate", world.b.address, 4097)
        assert found.point == world.shell.endpoints[0].endpoint_id and found.packets > 1
    one = Inside(world.shell.endpoints[0].endpoint_id, world.shell.path, "eth0", True)
    assert world.a.call("audit", [one]) == []
    inside(world.shell, "ip", "-6", "addr", "del", f"{SHELL}/64", "dev", "eth0")
    (finding,) = world.a.call("audit", [one])
    assert f"has lost its address {SHELL}" in finding.what
    inside(world.shell, "ip", "-6", "addr", "add", f"{SHELL}/64", "dev", "eth0", "nodad")


def test_a_connection_survives_the_daemons_death(world: SimpleNamespace) -> None:
    """The other host's process is killed and comes back with the same tables; then one endpoint goes."""

    def tables(*more: RemoteEndpoint) -> Tables:
        four = world.web2.endpoints[0]
        here = LocalEndpoint(4097, TWO, 64, four.mac, four.endpoint_id)
        vips = (
            Frontend(4097, VIP, 0, 0, (Backend(4097, ONE), Backend(4097, TWO))),
            Frontend(4097, EMPTY, 0, 0),
        )
        return Tables([NET, four, here, *vips, *more])

    a = world.a.address
    remotes = [
        RemoteEndpoint(4097, text, mac_of(four), a)
        for four, six in (("10.0.1.5", ONE), ("10.0.1.7", SHELL))
        for text in (four, six)
    ]
    with connect(world.shell.path, TWO, 80) as connection:
        line(connection)
        world.b.kill()
        assert echo(connection, MEGABYTES[:100_000]), "without a daemon"
        world.b.start()
        assert world.b.call("reconcile", tables(*remotes)) == Delta()
        assert echo(connection, MEGABYTES[:100_000]), "with another one"
    gone = world.b.call("reconcile", tables(*remotes[:3]))
    assert gone == Delta((), (("endpoint", 4097, SHELL),))
    assert not ping(world.shell.path, TWO, timeout=0.3)
    world.b.put(remotes[3])
    assert ping(world.shell.path, TWO)


def test_clsact_where_tcx_is_missing() -> None:
    """Kernels before 6.6: the filter's program hands IPv6 over just the same."""
    script = (
        "import runpy, sys; from overlace.network.linux import loader; loader.kernel_has_tcx = lambda: False;"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    with made_bed() as bed:
        a, b = bed.host("a"), bed.host("b")
        for host in (a, b):
            host.call("destroy")
            host.kill()
            host.start(script)
        one, two = Container(a, "one"), Container(b, "two")
        one.join(NET, "10.0.1.5", six=ONE)
        two.join(NET, "10.0.1.6", six=TWO)
        bed.serve(two.path, 80, "two", address="::")
        assert ask(one.path, TWO, 80)[:2] == ["two", ONE]
        assert ping(one.path, GATEWAY) and ping(two.path, ONE)
