"""Two or three hosts with real drivers and data paths: containers find each other by name and talk through
VIPs."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import dns.message
import dns.rcode
import dns.rrset
import msgspec
import pytest
from datapath_bed import ask, connect, line, ping, run
from driver_bed import BACK, INGRESS, OTHER, SHOP, DriverBed, DriverHost, resolve, wish_of

from overlace.model.errors import Conflict, Unavailable
from overlace.model.netview import (
    EndpointEntry,
    ServiceEntry,
    container_mac,
)
from overlace.model.specs import PortConfig
from overlace.network.base import Attached
from overlace.network.linux import bpf_syscall
from overlace.network.linux.loader import BPFFS
from overlace.network.linux.netns import run_inside

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


def eventually(check, seconds: float = 3.0) -> None:  # type: ignore[no-untyped-def]
    until = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < until, "did not become true in time"
        time.sleep(0.05)


@pytest.fixture
def bed() -> Iterator[DriverBed]:
    made = DriverBed()
    try:
        yield made
    finally:
        made.remove()


class Shop(NamedTuple):
    one: DriverHost
    two: DriverHost
    a: Attached  # on one
    b: Attached  # on two


def shop(bed: DriverBed) -> Shop:
    one, two = bed.add("one"), bed.add("two")
    bed.change(
        *SHOP,
        ServiceEntry("db", BACK.id, "shop_db", "", ("db",)),
    )
    a = bed.run(one, "ta", (BACK, "10.0.1.11"), (INGRESS, "10.0.0.11"))
    b = bed.run(two, "tb", (BACK, "10.0.1.12"), (INGRESS, "10.0.0.12"))
    return Shop(one, two, a, b)


def test_names_vips_and_published_ports_across_hosts(bed: DriverBed) -> None:
    s = shop(bed)
    a, b = s.a, s.b
    assert (
        a.addresses == {"back": "10.0.1.11/24", "ingress": "10.0.0.11/24"}
        and a.gateways["back"] == "10.0.1.1"
    )
    assert a.resolv_conf == "nameserver 127.0.0.11\noptions ndots:0\n"
    assert ping(a.sandbox, "10.0.1.12", timeout=3)
    for name in ("shop_web", "web", "WEB", "web.back"):
        assert resolve(a.sandbox, name) == ("NOERROR", ["10.0.1.100"]), name
    assert resolve(a.sandbox, "tasks.web") == ("NOERROR", ["10.0.1.11", "10.0.1.12"])
    assert resolve(b.sandbox, "web.1.ta") == ("NOERROR", ["10.0.1.11"])
    assert resolve(b.sandbox, "tasks.web", tcp=True) == ("NOERROR", ["10.0.1.11", "10.0.1.12"])
    assert resolve(a.sandbox, "web", "AAAA") == ("NOERROR", [])
    assert resolve(a.sandbox, "12.1.0.10.in-addr.arpa", "PTR") == ("NOERROR", ["web.1.tb.back."])
    assert resolve(a.sandbox, "nosuch") == ("NXDOMAIN", [])
    for where in (a, b):
        bed.serve(where.sandbox, 80, "A" if where is a else "B")
    seen = {ask(a.sandbox, "10.0.1.100", 80)[0] for _ in range(30)}
    assert seen == {"A", "B"}
    three = bed.add("three")
    answers = [ask(bed.client, three.address, 8080) for _ in range(30)]
    assert {x[0] for x in answers} == {"A", "B"}


def test_a_task_that_stops_serving_leaves_name_and_vip_but_keeps_its_connections(bed: DriverBed) -> None:
    s = shop(bed)
    a, b = s.a, s.b
    bed.serve(a.sandbox, 80, "A")
    bed.serve(b.sandbox, 80, "B")
    old = connect(a.sandbox, "10.0.1.100", 80)
    while line(old)[0] != "B":
        old.close()
        old = connect(a.sandbox, "10.0.1.100", 80)
    e = bed.entries["endpoint/backid/tb"]
    assert isinstance(e, EndpointEntry)
    bed.change(msgspec.structs.replace(e, serving=False))
    assert resolve(a.sandbox, "tasks.web") == ("NOERROR", ["10.0.1.11"])
    assert {ask(a.sandbox, "10.0.1.100", 80)[0] for _ in range(20)} == {"A"}
    old.sendall(b"still here")
    assert old.recv(100) == b"still here"
    old.close()


def test_no_new_connection_goes_to_an_unhealthy_task_or_an_unreachable_host(bed: DriverBed) -> None:
    """By VIP and by published port, on every host, from the moment the hosts are told; and back again."""
    s = shop(bed)
    a, b = s.a, s.b
    bed.serve(a.sandbox, 80, "A")
    bed.serve(b.sandbox, 80, "B")
    three = bed.add("three")
    of_b = [e for e in bed.entries.values() if isinstance(e, EndpointEntry) and e.task_id == "tb"]

    def answers() -> set[str]:
        got = [ask(a.sandbox, "10.0.1.100", 80)[0] for _ in range(40)]
        for host in (s.one, three):
            got += [ask(bed.client, host.address, 8080)[0] for _ in range(40)]
        return set(got)

    assert answers() == {"A", "B"}
    bed.change(*(msgspec.structs.replace(e, serving=False) for e in of_b))
    assert answers() == {"A"}, "unhealthy: it would answer"
    bed.change(*of_b)
    assert answers() == {"A", "B"}
    run("ip", "-n", bed.switch, "link", "set", "p-two", "down")
    bed.change(*(msgspec.structs.replace(e, serving=False) for e in of_b))
    assert answers() == {"A"}, "every one of them is answered"
    run("ip", "-n", bed.switch, "link", "set", "p-two", "up")
    bed.change(*of_b)
    assert answers() == {"A", "B"}


def test_networks_are_apart_and_names_too(bed: DriverBed) -> None:
    s = shop(bed)
    two, a = s.two, s.a
    c = bed.run(two, "tc", (OTHER, "10.0.2.11"), service="lonely")
    assert resolve(c.sandbox, "web") == ("NXDOMAIN", [])
    assert not ping(c.sandbox, "10.0.1.11")
    assert not ping(a.sandbox, "10.0.2.11")


def test_a_killed_daemon_is_taken_over_without_a_lost_connection(bed: DriverBed) -> None:
    s = shop(bed)
    one, a, b = s.one, s.a, s.b
    bed.serve(b.sandbox, 80, "B")
    held = connect(a.sandbox, "10.0.1.12", 80)
    assert line(held)[0] == "B"
    one.kill()
    held.sendall(b"while down")
    assert held.recv(100) == b"while down"
    one.start()
    assert resolve(a.sandbox, "web") == ("NOERROR", ["10.0.1.100"])
    one.call("change", tuple(bed.entries.values()), ())
    again = one.call("attach", wish_of("ta", (BACK, "10.0.1.11"), (INGRESS, "10.0.0.11")))
    assert again.addresses == a.addresses and again.sandbox == a.sandbox
    held.sendall(b"after")
    assert held.recv(100) == b"after"
    one.call("keep_only", {"ta"})
    assert ping(a.sandbox, "10.0.1.12", timeout=3)
    one.call("keep_only", set())
    assert not a.sandbox.exists()
    held.close()


def test_host_ports_belong_to_one_task_and_not_to_the_hosts_own_sockets(bed: DriverBed) -> None:
    s = shop(bed)
    one = s.one
    port = PortConfig(target_port=80, published_port=9090, publish_mode="host")
    c = bed.run(one, "tc", (BACK, "10.0.1.13"), service="side", ports=(port,))
    bed.serve(c.sandbox, 80, "C")
    assert ask(bed.client, one.address, 9090)[0] == "C"
    with pytest.raises(Conflict, match=r"Bind for 0.0.0.0:9090 failed: port is already allocated"):
        one.call("attach", wish_of("td", (BACK, "10.0.1.14"), ports=(port,)))
    bed.serve(one.path, 9191, "host")
    taken = PortConfig(target_port=80, published_port=9191, publish_mode="host")
    with pytest.raises(Conflict, match="address already in use"):
        one.call("attach", wish_of("td", (BACK, "10.0.1.14"), ports=(taken,)))
    one.call("detach", "tc")
    d = one.call("attach", wish_of("td", (BACK, "10.0.1.14"), ports=(port,)))
    bed.serve(d.sandbox, 80, "D")
    assert ask(bed.client, one.address, 9090)[0] == "D"


def test_a_task_waits_for_a_network_this_node_does_not_know(bed: DriverBed) -> None:
    one = bed.add("one")
    with pytest.raises(Unavailable, match="network backid is not known on this node yet"):
        one.call("attach", wish_of("ta", (BACK, "10.0.1.11")))


def test_a_task_without_networks_reaches_out_and_is_published(bed: DriverBed) -> None:
    one = bed.add("one")
    port = PortConfig(target_port=80, published_port=0, publish_mode="host")
    a = one.call("attach", wish_of("ta", ports=(port,)))
    assert a.addresses == {"bridge": "172.17.0.2/16"}
    (given,) = a.host_ports
    assert given.published_port >= 32768
    bed.serve(a.sandbox, 80, "A")
    assert ask(bed.client, one.address, given.published_port)[0] == "A"
    bed.serve(bed.client, 7000, "world")
    assert ask(a.sandbox, bed.client_address, 7000)[:2] == ["world", one.address]


def test_an_emulated_windows_host_serves_the_same_network(bed: DriverBed) -> None:
    one, win = bed.add("one"), bed.add("win", system="windows")
    bed.change(BACK, ServiceEntry("web", BACK.id, "web", "10.0.1.100"))
    a = bed.run(one, "ta", (BACK, "10.0.1.11"), service="client")
    w = bed.run(win, "tw", (BACK, "10.0.1.12"))
    bed.serve(w.sandbox, 80, "W")
    assert ask(a.sandbox, "10.0.1.100", 80)[0] == "W"
    assert ask(w.sandbox, "10.0.1.100", 80)[0] == "W"


def test_everything_else_is_forwarded(bed: DriverBed) -> None:

    def upstream() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("0.0.0.0", 5353))
        return made

    server = run_inside(bed.client, upstream)

    def answer() -> None:
        while True:
            try:
                data, who = server.recvfrom(4096)
            except OSError:
                return
            query = dns.message.from_wire(data)
            reply = dns.message.make_response(query)
            reply.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", "192.0.2.7"))
            server.sendto(reply.to_wire(), who)

    threading.Thread(target=answer, daemon=True).start()
    one = bed.add("one", upstreams=("172.28.77.199:53", "172.28.77.200:5353"))
    a = one.call("attach", wish_of("ta"))
    start = time.monotonic()
    assert resolve(a.sandbox, "example.org") == ("NOERROR", ["192.0.2.7"])
    assert time.monotonic() - start < 4  # the first upstream does not exist
    start = time.monotonic()
    assert resolve(a.sandbox, "example.net") == ("NOERROR", ["192.0.2.7"])
    assert time.monotonic() - start < 1  # and is asked last from now on
    server.close()


def test_fifty_tasks_at_once(bed: DriverBed) -> None:
    one, two = bed.add("one"), bed.add("two")
    bed.change(BACK)
    calls = [("attach", (wish_of(f"t{i}", (BACK, f"10.0.1.{i}")),), {}) for i in range(20, 70)]
    start = time.monotonic()
    made = one.call("many", *calls)
    took = time.monotonic() - start
    print(f"50 attaches: {took:.2f} s")
    assert len(made) == 50 and took < 30
    bed.change(
        *(
            EndpointEntry(
                f"t{i}", BACK.id, "one", "s", "s", f"s.{i}.t{i}", f"10.0.1.{i}", container_mac(f"10.0.1.{i}")
            )
            for i in range(20, 70)
        )
    )
    b = bed.run(two, "tb", (BACK, "10.0.1.12"))
    assert ping(b.sandbox, "10.0.1.20", timeout=3) and ping(b.sandbox, "10.0.1.69", timeout=3)
    one.call("many", *(("detach", (f"t{i}",), {}) for i in range(20, 70)))
    assert not made[0].sandbox.exists()


def _place_of(pin: Path) -> int:
    try:
        fd = bpf_syscall.get_pinned(pin)
    except FileNotFoundError:  # just being replaced
        return 0
    try:
        return bpf_syscall.link_target(fd)[1]
    finally:
        os.close(fd)


def test_a_running_daemon_makes_good_what_its_host_lost(bed: DriverBed) -> None:
    """Nobody restarts it or tells it anything: the rules are flushed and a program is taken off its interface."""
    s = shop(bed)
    inside = ("nsenter", f"--net={s.one.path}")
    rules = run(*inside, "nft", "-s", "list", "ruleset")
    pin = BPFFS / "overlace" / s.one.instance / "links" / "underlay"
    run(*inside, "nft", "flush", "ruleset")
    fd = bpf_syscall.get_pinned(pin)
    bpf_syscall.detach_link(fd)
    assert bpf_syscall.link_target(fd)[1] == 0
    os.close(fd)
    eventually(lambda: run(*inside, "nft", "-s", "list", "ruleset") == rules, 20)
    eventually(lambda: _place_of(pin) != 0, 20)
    assert ping(s.a.sandbox, "10.0.1.12")


def test_leave_takes_everything_out_of_the_kernel(bed: DriverBed) -> None:
    s = shop(bed)
    one, a = s.one, s.a
    one.call("leave")
    links = run("ip", "-n", one.ns, "-o", "link")
    assert {x.split(": ")[1].split("@")[0] for x in links.splitlines()} == {"lo", "eth0"}
    assert not a.sandbox.exists()
    assert list((one.exec_dir / "state" / "network").glob("*/*")) == []
    one.kill()
