"""What this host is: processor, memory, addresses, and what it says of itself in the swarm.

Owns reading those facts from the machine. Must not change anything.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

from overlace import __version__
from overlace.model.errors import InvalidArgument
from overlace.model.generic import GenericResources
from overlace.model.labels import EMULATED, OS_VERSION
from overlace.model.objects import NodeDescription, NodeResources
from overlace.network.addresses import interface_addresses

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


def interfaces() -> dict[str, str]:
    """Interface name -> its primary IPv4 address, loopback left out."""
    return {n: a for n, a in interface_addresses().items() if not a.startswith("127.")}


def default_address(wanted: str = "") -> str:
    """The underlay address: the one asked for if this host has it, else the default route's, else the only one.

    Raises InvalidArgument when the address is not this host's or there is more than one to choose from.
    """
    here = interfaces()
    if wanted:
        if wanted not in here.values():
            raise InvalidArgument(
                f"address {wanted} is not on any interface of this host; "
                f"use one of {', '.join(sorted(here.values())) or 'none'}"
            )
        return wanted
    link = _default_route_link()
    if link in here:
        return here[link]
    if len(here) == 1:
        return next(iter(here.values()))
    choice = ", ".join(f"{n} ({a})" for n, a in sorted(here.items())) or "none has an address"
    raise InvalidArgument(
        "could not choose an IP address to advertise since this system has no default route and not exactly "
        f"one address: {choice}; say which with --advertise-addr"
    )


def _default_route_link() -> str:
    """The interface of the default route with the lowest metric (proc(5), /proc/net/route); empty: there is none."""
    routes = []
    for line in Path("/proc/self/net/route").read_text().splitlines()[1:]:
        name, destination, _, flags, _, _, metric, mask, *_ = line.split()
        if destination == mask == "00000000" and int(flags, 16) & 1:
            routes.append((int(metric), name))
    return min(routes)[1] if routes else ""


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def engine_labels(given: Mapping[str, str], windows_build: str) -> dict[str, str]:
    """The engine's labels: those it was started with, and on an emulated Windows host what it is."""
    emulated = {EMULATED: "windows", OS_VERSION: windows_build} if windows_build else {}
    return {**given, **emulated}


def describe(
    *,
    hostname: str,
    labels: Mapping[str, str],
    generic: GenericResources,
    underlay_address: str,
    mtu: int,
    windows_build: str,
    isolation: tuple[str, ...] = ("process",),
) -> NodeDescription:
    """The node as its manager and `docker node inspect` see it; `windows_build` makes it an emulated Windows host."""
    emulated = bool(windows_build)
    return NodeDescription(
        hostname=hostname,
        os="windows" if emulated else "linux",
        architecture=platform.machine(),
        os_version=windows_build or platform.release(),
        resources=NodeResources((os.cpu_count() or 1) * 1_000_000_000, memory_bytes(), generic),
        engine_version=__version__,
        engine_labels=engine_labels(labels, windows_build),
        plugins=_PLUGINS,
        underlay_address=underlay_address,
        emulated=emulated,
        isolation=isolation,
        mtu=mtu,
    )
