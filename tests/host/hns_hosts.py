"""Hosts of which each has an `overlace hns serve --backend linux`, and network namespaces for containers.

Owns making and removing them, and what tests of documents with packets share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datapath_bed import Bed, ask, run
from hns_bed import Hcn, Served, overlay, remote

NETNS = Path("/var/run/netns")


class HnsHost:
    """A host with an HNS and network namespaces for containers."""

    def __init__(self, bed: Bed, folder: Path, last: int) -> None:
        self.bed, self.address, self.folder = bed, f"172.28.77.{last}", folder
        self.path = NETNS / f"{bed.name}-h{last}"
        self.containers: list[str] = []
        bed.plug(self.path.name, f"h{last}", f"{self.address}/24")
        self.state = ("--state", str(folder / "state"), "--provider-address", self.address)
        self.served = Served(folder, "linux", self.path, *self.state)

    @property
    def hcn(self) -> Hcn:
        return self.served.hcn

    def container(self, name: str) -> Path:
        """A network namespace, as a container runtime makes it."""
        full = f"{self.bed.name}-{name}"
        run("ip", "netns", "add", full)
        run("ip", "-n", full, "link", "set", "lo", "up")
        self.containers.append(full)
        return NETNS / full

    def place(self, endpoint: str, where: str) -> str:
        """A namespace document for `where` with the endpoint in it; its id."""
        resource = {"Type": "Container", "Data": {"Id": where}}
        namespace = str(self.hcn.create("Namespace", {"Type": "Guest", "Resources": [resource]})["ID"])
        self.hcn.attach(namespace, endpoint)
        return namespace

    def remove(self) -> None:
        self.hcn.clear()
        self.served.end()
        self.served.options = ("--provider-address", self.address)  # without a state, the end takes all along
        self.served.start()
        self.served.end()
        for name in self.containers:
            run("ip", "netns", "del", name)
        self.bed.unplug(self.path.name)


class World(list[HnsHost]):
    bed: Bed


@contextmanager
def two_hosts(folder: Callable[[str], Path]) -> Iterator[World]:
    """`folder`: makes one by name."""
    bed = Bed()
    hosts = World()
    hosts.bed = bed
    try:
        for last in (41, 42):
            hosts.append(HnsHost(bed, folder(f"h{last}"), last))
        yield hosts
        for host in hosts:
            host.remove()
    finally:
        bed.remove()


def network(*hosts: HnsHost, **more: Any) -> list[str]:
    return [str(h.hcn.create("Network", overlay(**more))["ID"]) for h in hosts]


def tell(where: HnsHost, net: str, other: HnsHost, endpoint: dict[str, Any]) -> str:
    """A remote endpoint for one of another host's."""
    address = endpoint["IpConfigurations"][0]["IpAddress"]
    return str(
        where.hcn.create("Endpoint", remote(net, other.address, address, endpoint["MacAddress"]))["ID"]
    )


def refuses(where: Path, address: str, port: int) -> bool:
    try:
        ask(where, address, port, timeout=0.5)
    except OSError:
        return True
    return False
