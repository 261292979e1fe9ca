"""What this host is: processor, memory, addresses, and what it says of itself in the swarm.

Owns reading those facts from the machine. Must not change anything.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

import msgspec

from overlace import __version__
from overlace.api.backend import EngineOptions
from overlace.cli.daemon import DaemonOptions
from overlace.daemon import windows
from overlace.model.errors import InvalidArgument
from overlace.model.generic import GenericResources
from overlace.model.labels import EMULATED, LACKS, OS_VERSION
from overlace.model.objects import NodeDescription, NodeResources
from overlace.model.system import ON_WINDOWS
from overlace.network.addresses import interface_addresses, six_hosts

DEFAULT_MTU = 1500  # bytes, Ethernet's

_PLUGINS = (
    ("Log", "json-file"),
    ("Log", "local"),
    ("Log", "none"),
    ("Network", "bridge"),
    ("Network", "host"),
    ("Network", "null"),
    ("Network", "overlay"),
    ("Volume", "local"),
)


class System(msgspec.Struct, frozen=True, kw_only=True):
    """The operating system of this host, as the swarm sees it and as it is."""

    os: str = "linux"  # linux | windows
    version: str = ""  # a Windows build, or the kernel's release
    architecture: str = ""  # as the kernel says: x86_64
    name: str = ""  # of what really runs: Debian GNU/Linux 12 (bookworm)
    kernel: str = ""  # Linux 6.1.0; Windows 10.0.20348
    emulated: bool = False  # a Windows host without a Windows kernel
    memory: int = 0  # bytes
    can_manage: bool = True


def this_system(emulate_windows: str = "") -> System:
    """What this host is; on Linux it plays a Windows host of build `emulate_windows`."""
    machine = platform.machine()
    if ON_WINDOWS:
        wine = windows.wine()
        build = windows.build()
        return System(
            os="windows",
            version=build,
            architecture="x86_64" if machine == "AMD64" else machine.lower(),  # moby's word, not Windows'
            name=f"Wine {wine}" if wine else windows.name(),
            kernel=f"Wine {wine}, Windows {build}" if wine else f"Windows {build}",
            emulated=bool(wine),
            memory=windows.memory_bytes(),
            can_manage=False,
        )
    return System(
        os="windows" if emulate_windows else "linux",
        version=emulate_windows or platform.release(),
        architecture=machine,
        name=_pretty_name(),
        kernel=f"{platform.system()} {platform.release()}",
        emulated=bool(emulate_windows),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


def _pretty_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def interfaces() -> dict[str, str]:
    """Interface name -> its primary IPv4 address, loopback left out."""
    return {n: a for n, a in interface_addresses().items() if not a.startswith("127.")}


def default_address(wanted: str = "") -> str:
    """The underlay address: the one asked for if this host has it, else the default route's, else the only one. A host
    without IPv4 addresses is looked at for IPv6 ones.

    Raises InvalidArgument when the address is not this host's or there is more than one to choose from.
    """
    here, six = interfaces(), {} if ON_WINDOWS else six_hosts()
    if wanted:
        wanted = str(ip_address(wanted))
        if wanted not in here.values() and wanted not in six:
            raise InvalidArgument(
                f"address {wanted} is not on any interface of this host; "
                f"use one of {', '.join(sorted([*here.values(), *six])) or 'none'}"
            )
        return wanted
    if not here:
        here = {f"{name} {a}": a for a, name in six.items()}
        chosen = _source_address(socket.AF_INET6)
    else:
        chosen = _source_address() if ON_WINDOWS else here.get(_default_route_link(), "")
    if chosen in here.values():
        return chosen
    if len(here) == 1:
        return next(iter(here.values()))
    choice = ", ".join(f"{n.split()[0]} ({a})" for n, a in sorted(here.items())) or "none has an address"
    raise InvalidArgument(
        "could not choose an IP address to advertise since this system has no default route and not exactly "
        f"one address: {choice}; say which with --advertise-addr"
    )


def tunnel_address(advertised: str, data_path: str, *, windows: bool = False) -> str:
    """The underlay address of a node that is advertised at `advertised`: `data_path` when it is said, else the same, as
    Docker has it. A Windows host's HNS tunnels over IPv4 alone: beside an advertised IPv6 address it is the one of the
    default route.

    Raises InvalidArgument for addresses this host has not, and when a Windows host has no IPv4 address to choose.
    """
    if windows and ":" in data_path:
        raise InvalidArgument(
            f"data path address {data_path}: the HNS of a Windows host tunnels over IPv4 alone; give an IPv4 address of "
            "this host"
        )
    if not windows or ":" not in advertised:
        return default_address(data_path or advertised)
    try:
        return default_address(data_path)
    except InvalidArgument as e:
        if data_path:
            raise
        raise InvalidArgument(
            f"advertise address {advertised} is IPv6, and the HNS of a Windows host tunnels over IPv4 alone: say which "
            f"of this host's IPv4 addresses with --data-path-addr ({e.message})"
        ) from None


def member_addresses(
    advertise: str, data_path: str, listen: str, underlay: str, *, windows: bool = False
) -> tuple[str, str]:
    """(advertised host:port, VTEP address) of a member, completed from this host's own addresses; `underlay`: the one the
    daemon was told to use; `windows`: its HNS is. Raises InvalidArgument."""
    host, _, port = advertise.rpartition(":")
    if not host:
        host = default_address(underlay)
        port = listen.rpartition(":")[2]
    bare = host.strip("[]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}", tunnel_address(
        bare, data_path, windows=windows
    )


def _default_route_link() -> str:
    """The interface of the default route with the lowest metric (proc(5), /proc/net/route); empty: there is none."""
    routes = []
    for line in Path("/proc/self/net/route").read_text().splitlines()[1:]:
        name, destination, _, flags, _, _, metric, mask, *_ = line.split()
        if destination == mask == "00000000" and int(flags, 16) & 1:
            routes.append((int(metric), name))
    return min(routes)[1] if routes else ""


def _source_address(family: int = socket.AF_INET) -> str:
    """The address a packet to the world would leave with, empty without a default route; nothing is sent."""
    nobody = "192.0.2.1" if family == socket.AF_INET else "2001:db8::1"  # RFC 5737, 3849
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((nobody, 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def engine_labels(given: Mapping[str, str], system: System) -> dict[str, str]:
    """The engine's labels: those it was started with, a Windows host's build, and whether there is a Windows kernel."""
    build = {OS_VERSION: system.version} if system.os == "windows" else {}
    emulated = {EMULATED: system.os} if system.emulated else {}
    return {**given, **build, **emulated}


def engine_options(options: DaemonOptions, system: System, id: str, started_at: int) -> EngineOptions:
    """What the Engine API says of this daemon; `started_at` in ns since 1970."""
    return EngineOptions(
        id=id,
        hostname=options.hostname,
        data_root=options.data_root,
        os=system.os,
        os_version=system.version,
        system=system.name,
        kernel=system.kernel,
        memory=system.memory,
        emulated=system.emulated,
        insecure_registries=options.insecure_registries,
        labels=engine_labels(options.labels, system),
        hosts=options.hosts,
        generic=options.generic,
        started_at=started_at,
    )


def describe(
    *,
    hostname: str,
    labels: Mapping[str, str],
    generic: GenericResources,
    underlay_address: str,
    mtu: int,
    system: System,
    isolation: tuple[str, ...] = ("process",),
    lacks: Mapping[str, str] | None = None,
) -> NodeDescription:
    """The node as its manager and `docker node inspect` see it."""
    return NodeDescription(
        hostname=hostname,
        os=system.os,
        architecture=system.architecture,
        os_version=system.version,
        resources=NodeResources((os.cpu_count() or 1) * 1_000_000_000, system.memory, generic),
        engine_version=__version__,
        engine_labels={
            **engine_labels(labels, system),
            **({LACKS: ",".join(sorted(lacks))} if lacks else {}),
        },
        plugins=_PLUGINS,
        underlay_address=underlay_address,
        emulated=system.emulated,
        can_manage=system.can_manage,
        isolation=isolation,
        mtu=mtu,
        lacks=dict(lacks or {}),
    )


def newcomer(options: DaemonOptions, underlay: str, system: System) -> NodeDescription:
    """For a manager that is asked to let this host in, before there is a data path to know the MTU of."""
    return describe(
        hostname=options.hostname,
        labels=options.labels,
        generic=options.generic,
        underlay_address=underlay,
        mtu=DEFAULT_MTU,
        system=system,
    )
