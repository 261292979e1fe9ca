"""A host whose driver is the Windows one, on a served HNS with packets, beside a Linux host: containers of both meet by
name, VIP and published port. What this shows: the driver's calls and documents, and what they come to where HNS does
what its documents say. Not Windows' HNS and VFP."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from datapath_bed import ask, connect, echo, line, ping, run
from driver_bed import BACK, INGRESS, SHOP, DriverBed, DriverHost, resolve, wish_of
from hns_bed import Served

from overlace.model.netview import EndpointEntry, NetworkEntry, ServiceEntry, container_mac
from overlace.model.policy import Allowed
from overlace.model.specs import PortConfig
from overlace.network.base import Attached

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
NETNS = Path("/var/run/netns")
HIDDEN = NetworkEntry("hiddenid", "hidden", 4105, ("10.0.9.0/24",), ("10.0.9.1",), internal=True)


def refuses(where: Path, address: str, port: int) -> bool:
    try:
        ask(where, address, port, timeout=0.5)
    except OSError:
        return True
    return False


class HnsDriverHost(DriverHost):
    """A host with a served HNS, and network namespaces named as a container engine names its containers."""

    system = "hns"
    served: Served | None = None
    options: tuple[str, ...] = ()

    def start(self, wrapper: str = "") -> DriverHost:
        if self.served is None:
            state = ("--state", str(self.exec_dir / "hns"), "--provider-address", self.address)
            self.served = Served(self.exec_dir, "linux", self.path, *state, *self.options)
            self.containers: list[str] = []
        return self.start_driver()

    def start_driver(self) -> DriverHost:
        super().start()
        return self

    def environment(self) -> dict[str, str]:
        assert self.served is not None
        return {**os.environ, "OVERLACE_HNS_PORT": str(self.served.wire.port)}

    def container(self, task: str) -> Path:
        """The engine's container for a task: a network namespace with nothing but loopback."""
        name = hashlib.sha256(f"{self.ns} {task}".encode()).hexdigest()
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        self.containers.append(name)
        return NETNS / name

    def end(self) -> None:
        """After the driver left: HNS and what it made go too."""
        assert self.served is not None
        assert [
            g for k in ("Network", "Endpoint", "LoadBalancer") for g in self.served.hcn.enumerate(k)
        ] == []
        self.served.end()
        self.served.options = ("--provider-address", self.address)  # without a state, the end takes all along
        self.served.start()
        self.served.end()
        for name in self.containers:
            run("ip", "netns", "del", name)


class MixedBed(DriverBed):
    def remove(self) -> None:
        hosts = list(self.hosts)
        for host in hosts:
            if isinstance(host, HnsDriverHost) and host.served is not None and host.served.process is None:
                host.served.start()
            if host.process is None:
                host.start()
            host.call("leave")
            host.kill()
            if isinstance(host, HnsDriverHost):
                host.end()
        self.hosts = []
        for host in hosts:
            run("ip", "netns", "del", host.ns)
        super().remove()


@pytest.fixture
def bed() -> Iterator[MixedBed]:
    made = MixedBed()
    try:
        yield made
    finally:
        made.remove()


def hnshost(bed: MixedBed, name: str, *options: str) -> HnsDriverHost:
    host = bed.add(name, HnsDriverHost, options=options)
    assert isinstance(host, HnsDriverHost)
    return host


class Shop:
    """`win` has task tw in container w, `lin` task tl; both serve on port 80."""

    def __init__(self, bed: MixedBed, *options: str) -> None:
        self.bed = bed
        self.win, self.lin = hnshost(bed, "win", *options), bed.add("lin")
        bed.change(
            *SHOP,
        )
        self.w = self.win.container("tw")
        self.attached: Attached = bed.run(
            self.win, "tw", (BACK, "10.0.1.11"), (INGRESS, "10.0.0.11"), netns=(self.w,)
        )
        linux = bed.run(self.lin, "tl", (BACK, "10.0.1.12"), (INGRESS, "10.0.0.12"))
        assert linux.sandbox is not None
        self.l = linux.sandbox
        bed.serve(self.w, 80, "W")
        bed.serve(self.l, 80, "L")


def test_a_windows_and_a_linux_host_share_networks_names_vips_and_published_ports(bed: MixedBed) -> None:
    s = Shop(bed)
    assert s.attached.addresses == {"back": "10.0.1.11/24", "ingress": "10.0.0.11/24"}
    assert s.attached.macs["back"] == "02:42:0a:00:01:0b" and s.attached.gateways["back"] == "10.0.1.1"
    assert s.attached.resolv_conf == f"nameserver {s.win.address}\noptions ndots:0\n"
    assert ping(s.w, "10.0.1.12", timeout=3) and ping(s.l, "10.0.1.11", timeout=3)
    for where, server in ((s.w, s.win.address), (s.l, "127.0.0.11")):
        for tcp in (False, True):
            assert resolve(where, "web", server=server, tcp=tcp) == ("NOERROR", ["10.0.1.100"])
            assert resolve(where, "tasks.web", server=server, tcp=tcp)[1] == ["10.0.1.11", "10.0.1.12"]
        assert {ask(where, "10.0.1.100", 80)[0] for _ in range(30)} == {"W", "L"}
    assert resolve(s.w, "nosuch", server=s.win.address) == ("NXDOMAIN", [])
    with connect(s.w, "10.0.1.12", 80) as connection:
        assert line(connection)[:2] == ["L", "10.0.1.11"]
    for host in (s.win, s.lin):
        assert {ask(bed.client, host.address, 8080)[0] for _ in range(30)} == {"W", "L"}
    assert resolve(bed.client, "web", server=s.win.address) == ("REFUSED", [])  # no container of this host


def test_policies_reach_a_windows_hosts_containers_and_names_are_answered_behind_them(bed: MixedBed) -> None:
    s = Shop(bed)
    bed.change(
        ServiceEntry("web", BACK.id, "web", "10.0.1.100", ("web",), allowed=(Allowed(services=("db",)),)),
        ServiceEntry("db", BACK.id, "db", "10.0.1.101", ("db",), allowed_to=(Allowed(services=("web",)),)),
        ServiceEntry("spy", BACK.id, "spy", "10.0.1.102"),
    )
    db, spy, inner = (s.win.container(name) for name in ("td", "ts", "ti"))
    bed.change(HIDDEN)
    bed.run(s.win, "td", (BACK, "10.0.1.13"), service="db", netns=(db,))
    bed.run(s.win, "ts", (BACK, "10.0.1.14"), service="spy", netns=(spy,))
    bed.run(s.win, "ti", (HIDDEN, "10.0.9.11"), service="inner", netns=(inner,))
    wall = bed.run(s.lin, "tp", (BACK, "10.0.1.15"), service="spy").sandbox
    assert wall is not None
    assert {ask(db, "10.0.1.100", 80)[0] for _ in range(30)} == {"W", "L"}
    for outsider in (spy, wall):
        assert refuses(outsider, "10.0.1.11", 80) and refuses(outsider, "10.0.1.100", 80)
    bed.serve(spy, 80, "S")
    assert refuses(db, "10.0.1.14", 80)  # what db may open ends at web
    assert resolve(db, "web", server=s.win.address) == ("NOERROR", ["10.0.1.100"])
    assert resolve(inner, "inner.1.ti", server=s.win.address) == ("NOERROR", ["10.0.9.11"])
    assert resolve(inner, "web", server=s.win.address) == ("NXDOMAIN", [])  # none of its networks
    bed.serve(bed.client, 8888, "outside")
    assert ask(spy, bed.client_address, 8888)[0] == "outside" and refuses(inner, bed.client_address, 8888)


def test_traffic_goes_on_while_the_driver_and_hns_are_killed_and_both_find_their_way_back(
    bed: MixedBed,
) -> None:
    s = Shop(bed)
    assert s.win.served is not None
    with connect(s.l, "10.0.1.11", 80) as kept:
        assert line(kept)[0] == "W"
        s.win.kill()
        assert echo(kept, os.urandom(50_000))
        s.win.served.kill()
        s.win.start_driver()  # before HNS: it waits
        s.win.call("change", tuple(bed.entries.values()), ())
        assert echo(kept, os.urandom(50_000))
        s.win.served.start()
        for guid in s.win.served.hcn.enumerate("LoadBalancer"):
            s.win.served.hcn.delete("LoadBalancer", guid)  # somebody tidied up
        assert s.win.call("reconcile") is False
        assert echo(kept, os.urandom(50_000))
    assert {ask(s.w, "10.0.1.100", 80)[0] for _ in range(30)} == {"W", "L"}
    assert resolve(s.w, "web", server=s.win.address) == ("NOERROR", ["10.0.1.100"])
    again: Attached = s.win.call("attach", wish_of("tw", (BACK, "10.0.1.11"), (INGRESS, "10.0.0.11")), s.w)
    assert again == s.attached
    s.win.call("detach", "tw")
    assert "eth0" not in run("ip", "-n", s.w.name, "link")
    bed.change(remove=(f"endpoint/{BACK.id}/tw",))
    assert {ask(s.l, "10.0.1.100", 80)[0] for _ in range(10)} == {"L"}


def test_host_ports_and_the_hosts_own_network(bed: MixedBed) -> None:
    win = hnshost(bed, "win", "--hns-version", "13.2")  # no load balancer is changed in place there
    bed.change(INGRESS, BACK)
    one, two = win.container("t1"), win.container("t2")
    port = PortConfig(target_port=80, published_port=9090, publish_mode="host")
    bed.run(win, "t1", (BACK, "10.0.1.21"), ports=(port,), netns=(one,))
    bed.serve(one, 80, "one")
    assert ask(bed.client, win.address, 9090)[0] == "one"
    alone: Attached = win.call("attach", wish_of("t2"), two)
    bed.serve(bed.client, 8888, "outside")
    assert ask(two, bed.client_address, 8888)[0] == "outside"
    assert alone.addresses["bridge"].startswith("172.17.0.") and refuses(two, "10.0.1.21", 80)
    made: Attached = win.call("attach", wish_of("t3", (BACK, "10.0.1.23")))  # HCN v2's own namespace
    assert made.sandbox is not None
    sandbox = win.exec_dir / "run" / "netns" / made.sandbox.name
    assert ask(sandbox, "10.0.1.21", 80)[0] == "one"
    bed.change(ServiceEntry("web", BACK.id, "web", "10.0.1.100"))
    for n in range(3):  # each a load balancer of its own there
        bed.change(EndpointEntry(f"r{n}", BACK.id, "far", "web", "web", f"web.{n}", f"10.0.1.{30 + n}",
                                 container_mac(f"10.0.1.{30 + n}"), (), True))  # fmt: skip
    bed.change(EndpointEntry("t1", BACK.id, win.name, "web", "web", "web.1", "10.0.1.21",
                             container_mac("10.0.1.21"), (), True))  # fmt: skip
    assert {ask(sandbox, "10.0.1.100", 80)[0] for _ in range(5)} == {"one"}


def test_a_narrow_path_is_measured_by_the_windows_agent_and_its_containers_get_what_fits(
    bed: MixedBed,
) -> None:
    win, lin = hnshost(bed, "win"), bed.add("lin")
    bed.change(BACK)
    run("ip", "-n", bed.switch, "link", "set", f"p-{lin.name}", "mtu", "1400")  # nobody is told: a black hole
    deadline = time.monotonic() + 60
    while [p.mtu for p in win.call("paths")] != [1400]:
        assert time.monotonic() < deadline, win.call("paths")
        time.sleep(0.1)
    found = win.call("paths")
    assert [(p.node, p.address, p.state) for p in found] == [(lin.name, lin.address, "ok")]
    assert found[0].rtt > 0 and found[0].checksum == found[0].fragments == ""
    inside = win.container("tw")
    bed.run(win, "tw", (BACK, "10.0.1.11"), netns=(inside,))
    far = bed.run(lin, "tl", (BACK, "10.0.1.12")).sandbox
    assert far is not None
    assert "mtu 1350" in run("ip", "-n", inside.name, "-o", "link", "show", "eth0")
    bed.serve(far, 80, "L")
    with connect(inside, "10.0.1.12", 80) as connection:
        assert line(connection)[0] == "L" and echo(connection, os.urandom(50_000))


def test_a_host_that_answers_no_probes_is_not_asked(bed: MixedBed) -> None:
    one, other = bed.add("one"), hnshost(bed, "other")
    bed.change(BACK, msgspec.structs.replace(one.node, answers_probes=False))
    bed.change(msgspec.structs.replace(other.node, answers_probes=False))
    assert one.call("paths") == other.call("paths") == []
