"""A host whose driver is the Windows one, on a served HNS with packets, beside a Linux host: containers of both meet by
name, VIP and published port. What this shows: the driver's calls and documents, and what they come to where HNS does
what its documents say. Not Windows' HNS and VFP."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from datapath_bed import ask, connect, line, ping, run
from driver_bed import BACK, INGRESS, OTHER, DriverBed, DriverHost, resolve
from hns_bed import Served

from overlace.model.netview import ServiceEntry
from overlace.model.specs import PortConfig
from overlace.network.base import Attached

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
NETNS = Path("/var/run/netns")


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
            INGRESS,
            BACK,
            OTHER,
            ServiceEntry("web", BACK.id, "shop_web", "10.0.1.100", ("web",)),
            ServiceEntry(
                "web",
                INGRESS.id,
                "shop_web",
                "10.0.0.100",
                (),
                (PortConfig(target_port=80, published_port=8080),),
            ),
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
