"""What this host is: processor, memory, addresses, and what it says of itself in the swarm.

Owns reading those facts from the machine. Must not change anything.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping

from pyroute2 import IPRoute

from overlace import __version__
from overlace.model.errors import InvalidArgument
from overlace.model.objects import NodeDescription, NodeResources

EMULATED_LABEL = "com.overlace.emulated"
BUILD_LABEL = "com.overlace.os-version"
_PLUGINS = (("Log", "json-file"), ("Network", "bridge"), ("Network", "overlay"), ("Volume", "local"))


def interfaces() -> dict[str, str]:
    """Interface name -> its first IPv4 address, loopback and tunnels of ours left out."""
    found: dict[str, str] = {}
    with IPRoute() as ip:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in ip.get_links()}
        for a in ip.get_addr(family=socket.AF_INET):
            name = names.get(a["index"], "")
            address = a.get_attr("IFA_ADDRESS")
            if name != "lo" and name not in found and not address.startswith("127."):
                found[name] = address
    return found


def default_address(wanted: str = "") -> str:
    """The underlay address: the one asked for if this host has it, else the default route's, else the only one.

    Raises InvalidArgument when the address is not this host's or there is more than one to choose from.
    """
    here = interfaces()
    if wanted:
        if wanted not in here.values():
            raise InvalidArgument(
                f"address {wanted} is not on any interface of this host; use one of {', '.join(sorted(here.values())) or 'none'}"
            )
        return wanted
    with IPRoute() as ip:
        for route in ip.get_default_routes(family=socket.AF_INET):
            source = route.get_attr("RTA_PREFSRC")
            if source:
                return str(source)
            link = ip.get_links(route.get_attr("RTA_OIF"))[0].get_attr("IFLA_IFNAME")
            if link in here:
                return here[link]
    if len(here) == 1:
        return next(iter(here.values()))
    choice = ", ".join(f"{n} ({a})" for n, a in sorted(here.items())) or "none has an address"
    raise InvalidArgument(
        "could not choose an IP address to advertise since this system has no default route and not exactly one "
        f"address: {choice}; say which with --advertise-addr"
    )


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def describe(
    *,
    hostname: str,
    labels: Mapping[str, str],
    underlay_address: str,
    mtu: int,
    windows_build: str,
    isolation: tuple[str, ...] = ("process",),
) -> NodeDescription:
    """The node as its manager and `docker node inspect` see it; `windows_build` makes it an emulated Windows host."""
    emulated = bool(windows_build)
    said = dict(labels)
    if emulated:
        said |= {EMULATED_LABEL: "windows", BUILD_LABEL: windows_build}
    return NodeDescription(
        hostname=hostname,
        os="windows" if emulated else "linux",
        architecture=platform.machine(),
        os_version=windows_build or platform.release(),
        resources=NodeResources(nano_cpus=(os.cpu_count() or 1) * 1_000_000_000, memory_bytes=memory_bytes()),
        engine_version=__version__,
        engine_labels=said,
        plugins=_PLUGINS,
        underlay_address=underlay_address,
        emulated=emulated,
        isolation=isolation,
        mtu=mtu,
    )
