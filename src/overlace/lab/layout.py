"""What a lab looks like: names, addresses and paths, as plain data.

Pure: decides where everything is, touches nothing. The effects are in netns.py, daemons.py and clean.py.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import msgspec

from overlace.model.errors import InvalidArgument

Role = Literal["manager", "worker", "client"]
RuntimeKind = Literal["oci", "docker"]

DEFAULT_NAME = "lab"
WINDOWS_BUILD = "10.0.20348.2527"  # Windows Server 2022, the build emulated hosts report
WINDOWS_PYTHON = "Windows Python under Wine; HNS and containers played on Linux"
OUTSIDE_ADDRESS = "203.0.113.1"  # RFC 5737 TEST-NET-3: "the world" beyond the underlay, to test NAT against
REGISTRY_PORT = 5000
UNDERLAY_MTU = 1500
MAX_HOSTS = 100  # per lab: addresses .11 to .110
MAX_LABS = 250

# A unix socket's path holds 107 bytes (unix(7)), and conmon and the daemon put sockets below a host's folder.
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,14}[a-z0-9])?")


class Paths(msgspec.Struct, frozen=True):
    """Roots of all labs: `run` is lost at reboot (state, sockets, logs), `data` survives it (data roots)."""

    run: str = "/run/overlace/labs"
    data: str = "/var/lib/overlace/labs"

    def lab_run(self, name: str) -> Path:
        return Path(self.run) / name

    def lab_data(self, name: str) -> Path:
        return Path(self.data) / name


class Host(msgspec.Struct, frozen=True):
    """One host of a lab. The client is a host without a daemon: no sockets, no roots."""

    name: str
    os: Literal["linux", "windows"]
    role: Role
    address: str
    netns: str  # a name under /var/run/netns
    uts: str  # file that pins the UTS namespace, so that the host has a host name of its own
    emulated: bool = False
    data_root: str = ""
    exec_root: str = ""
    log: str = ""
    pidfile: str = ""
    runtime: RuntimeKind = "oci"
    six: str = ""  # its IPv6 address, where hosts reach each other over IPv6
    windows_python: bool = (
        False  # its agent is a Windows Python under Wine; Linux plays HNS and Docker Engine for it
    )

    @property
    def underlay(self) -> str:
        """Where other hosts reach it, and where its tunnels end."""
        return self.six or self.address

    @property
    def prefix(self) -> str:
        """The Wine prefix (drive C:) of a host with a Windows Python."""
        return f"{self.data_root}/prefix"

    @property
    def engine_socket(self) -> str:
        """Path of the host's own Docker Engine, with runtime docker."""
        return f"{self.exec_root}/engine/docker.sock"

    @property
    def engine_pidfile(self) -> str:
        return f"{self.exec_root}/engine/docker.pid"

    @property
    def engine_log(self) -> str:
        return f"{self.log.removesuffix('.log')}-dockerd.log"

    @property
    def docker_host(self) -> str | None:
        return f"unix://{self.socket}" if self.exec_root else None

    @property
    def socket(self) -> str:
        """Path of the Engine API socket, as seen from anywhere on the machine."""
        return f"{self.exec_root}/docker.sock"

    @property
    def instance(self) -> str:
        """The daemon's instance id: names its BPF pins (architecture: one instance per data root)."""
        return hashlib.sha256(os.path.realpath(self.data_root).encode()).hexdigest()[:8]


class LabPlan(msgspec.Struct, frozen=True):
    """All of one lab; written to `lab.json` before anything is made, so that `down` always knows what to
    undo.
    """

    name: str
    number: int  # N of 172.28.N.0/24, unique on the machine
    hosts: tuple[Host, ...]
    run: str
    data: str
    mtu: int = UNDERLAY_MTU
    ipv6_underlay: bool = False

    def address(self, last: int) -> str:
        return f"172.28.{self.number}.{last}"

    @property
    def switch(self) -> str:
        return f"{self.name}-switch"

    @property
    def registry_netns(self) -> str:
        return f"{self.name}-registry"

    @property
    def gateway(self) -> str:
        """The switch's own address: hosts route everything beyond the underlay to it."""
        return self.address(1)

    @property
    def registry_address(self) -> str:
        return self.address(250)

    @property
    def registry(self) -> str:
        return f"{self.registry_address}:{REGISTRY_PORT}"

    @property
    def shell_address(self) -> str:
        """This machine's own address in the lab, so that a person's shell reaches hosts and registry."""
        return self.address(254)

    @property
    def shell_link(self) -> str:
        return f"ovl-{self.number}"

    @property
    def netns(self) -> tuple[str, ...]:
        return (self.switch, self.registry_netns, *(host.netns for host in self.hosts))

    def host(self, name: str) -> Host:
        """Raise InvalidArgument, naming the hosts there are, when there is none of that name."""
        for host in self.hosts:
            if host.name == name:
                return host
        there = ", ".join(host.name for host in self.hosts)
        raise InvalidArgument(f"lab {self.name} has no host {name!r}; it has: {there}")


class HostView(msgspec.Struct, frozen=True):
    """One host as `lab up --json` and `lab status --json` print it. `pid` is null when no daemon runs
    there.
    """

    name: str
    os: str
    role: Role
    address: str
    docker_host: str | None
    netns: str
    pid: int | None
    emulated: bool
    windows_python: bool


class LabView(msgspec.Struct, frozen=True):
    """A lab as `--json` prints it."""

    name: str
    registry: str
    hosts: tuple[HostView, ...]


def check_name(name: str) -> str:
    """Return `name`, or raise InvalidArgument saying what a lab may be called."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"invalid lab name {name!r}: use 1 to 16 lower-case letters, digits and '-', not at either end"
        )
    return name


def plan_number(taken: Collection[int]) -> int:
    """The lowest lab number not in `taken`; raise InvalidArgument when all are taken."""
    for number in range(1, MAX_LABS + 1):
        if number not in taken:
            return number
    raise InvalidArgument(
        f"all {MAX_LABS} lab subnets are in use; remove a lab with `overlace lab down NAME`"
    )


def plan_lab(
    name: str,
    number: int,
    *,
    linux: int,
    windows: int,
    windows_python: int = 0,
    managers: int,
    paths: Paths,
    mtu: int = UNDERLAY_MTU,
    runtime: RuntimeKind = "oci",
    ipv6_underlay: bool = False,
) -> LabPlan:
    """Lay out a lab of `linux` hosts, `windows` emulated ones, `windows_python` with an agent under a Windows Python, and
    one client; the first `managers` Linux hosts are managers. `runtime` is that of its Linux hosts. `ipv6_underlay`:
    hosts have an IPv6 address beside their IPv4 one and reach each other by it; clients and the registry stay on IPv4.

    Raises InvalidArgument for counts that cannot work.
    """
    check_name(name)
    for option, count in (("--linux", linux), ("--windows", windows), ("--windows-python", windows_python)):
        if count < 0:
            raise InvalidArgument(f"{option} is {count}; give 0 or more")
    total = linux + windows + windows_python
    if not 1 <= total <= MAX_HOSTS:
        raise InvalidArgument(f"{total} hosts asked for; a lab has between 1 and {MAX_HOSTS}")
    check_managers(managers, linux)
    if ipv6_underlay and windows + windows_python:
        raise InvalidArgument(
            f"--ipv6-underlay with {windows + windows_python} Windows hosts: their HNS tunnels over IPv4 alone; "
            "use --windows 0"
        )
    run, data = paths.lab_run(name), paths.lab_data(name)
    names = [f"linux-{i}" for i in range(1, linux + 1)]
    names += [f"windows-{i}" for i in range(1, windows + windows_python + 1)]
    hosts = []
    for index, host in enumerate(names):
        emulated = linux <= index < linux + windows
        hosts.append(
            Host(
                name=host,
                os="linux" if index < linux else "windows",
                role="manager" if index < managers else "worker",
                address=f"172.28.{number}.{11 + index}",
                six=f"fd00:28:{number:x}::{11 + index:x}" if ipv6_underlay else "",
                netns=f"{name}-{host}",
                uts=str(run / "uts" / host),
                emulated=emulated,
                data_root=str(data / host),
                exec_root=str(run / host),
                log=str(run / "log" / f"{host}.log"),
                pidfile=str(run / "pid" / host),
                runtime=runtime if index < linux else "oci",
                windows_python=index >= linux + windows,
            )
        )
    hosts.append(
        Host(
            name="client",
            os="linux",
            role="client",
            address=f"172.28.{number}.200",
            netns=f"{name}-client",
            uts=str(run / "uts" / "client"),
        )
    )
    return LabPlan(
        name=name,
        number=number,
        hosts=tuple(hosts),
        run=str(run),
        data=str(data),
        mtu=mtu,
        ipv6_underlay=ipv6_underlay,
    )


def check_managers(managers: int, linux: int) -> None:
    """Raise InvalidArgument when that many managers cannot be had."""
    if managers < 1:
        raise InvalidArgument(f"--managers is {managers}; a swarm has at least one: use 1")
    if managers > linux:
        raise InvalidArgument(
            f"--linux is {linux}; managers are Linux hosts here: use --linux {managers} or more"
        )
