"""The host's own way into overlay networks: a veth pair between the host and a namespace that has the node's address.

Owns that pair, what forwards and translates inside the namespace, and the host's routes. The namespace's interface on the
network is an ordinary endpoint, attached by whoever asks. Must not know the tables. IPv4 only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from ipaddress import ip_network
from pathlib import Path

from overlace.network.host_access import SANDBOX_PREFIX, HostAccess

from .netlink import Link, Netlink, Route
from .netns import run_inside, write_sysctl
from .nft import ACCESS_GROUP, ACCESS_PREFIX, run_nft

# The pair's ends, the same for every network: each is seen by the host and one namespace alone (RFC 3927 link-local).
HOST_END, INNER_END = "169.254.83.1", "169.254.83.2"
INNER_NAME = "host0"

# What the host begins passes with the node's address; nothing of the network begins anything here.
INNER_RULES = """
add table ip overlace_host
add chain ip overlace_host postrouting { type nat hook postrouting priority srcnat; policy accept; }
add chain ip overlace_host forward { type filter hook forward priority filter; policy drop; }
flush table ip overlace_host
add rule ip overlace_host postrouting oifname "NETWORK" masquerade
add rule ip overlace_host forward iifname "host0" oifname "NETWORK" accept
add rule ip overlace_host forward iifname "NETWORK" ct state established,related accept
"""


def link_name(endpoint_id: str) -> str:
    """The host's end of the pair for the node's endpoint."""
    return ACCESS_PREFIX + hashlib.sha256(endpoint_id.upper().encode()).hexdigest()[:8]


def alias_of(instance: str, endpoint_id: str) -> str:
    return f"overlace:{instance}:host:{endpoint_id}"


def ours(links: Iterable[Link], instance: str) -> dict[str, Link]:
    """Host's ends of this instance by endpoint id. One without an alias is a crash's leftover, told by its name alone."""
    found: dict[str, Link] = {}
    for link in links:
        if link.kind != "veth" or not link.name.startswith(ACCESS_PREFIX):
            continue
        owner = link.alias.removeprefix(alias_of(instance, ""))
        if owner != link.alias and link_name(owner) == link.name:
            found[owner] = link
        elif not link.alias and _named_as_ours(link.name):
            found[link.name] = link
    return found


def _named_as_ours(name: str) -> bool:
    tail = name[len(ACCESS_PREFIX) :]
    return len(tail) == 8 and all(c in "0123456789abcdef" for c in tail)


def is_pair(link: Link) -> bool:
    """Whether it is the host's end of such a pair, of whatever instance."""
    return link.kind == "veth" and link.name.startswith(ACCESS_PREFIX) and _named_as_ours(link.name)


def stray(folder: Path, links: Iterable[Link], instance: str, wanted: Iterable[str]) -> set[str]:
    """Endpoint ids (names of leftover links) of accesses that are there and not wanted."""
    files = folder.iterdir() if folder.is_dir() else ()
    there = {f.name.removeprefix(SANDBOX_PREFIX) for f in files if f.name.startswith(SANDBOX_PREFIX)}
    return (there | set(ours(links, instance))) - set(wanted)


def remove(host: Netlink, instance: str, owner: str) -> None:
    """The pair of an endpoint, and with it the host's routes. Absent is fine."""
    link = ours(host.links(), instance).get(owner)
    if link is not None:
        host.delete_link(link.ifindex)


def conflict(subnets: Sequence[str], routes: Iterable[Route], ours: int) -> str:
    """Why the host cannot route to these subnets: it has another way already. "" when it can. `ours`: the ifindex of the
    pair's end. Routes of data paths (to single containers) are no conflict, nor is the default route."""
    for route in routes:
        if route.ours or route.ifindex == ours or not route.prefix:
            continue
        there = ip_network(f"{route.destination}/{route.prefix}")
        for subnet in subnets:
            if ip_network(subnet).overlaps(there):
                return f"subnet {subnet} overlaps the host's own route to {there}"
    return ""


def ensure(host: Netlink, instance: str, access: HostAccess) -> str:
    """Have the pair of an attached endpoint, its routes and the rules inside. Idempotent. Returns why not, else "": then
    nothing of it is there. Raises OSError, NftError."""
    name, alias = link_name(access.endpoint_id), alias_of(instance, access.endpoint_id)
    link = host.link(name)
    subnets = [s for s in access.subnets if ip_network(s).version == 4]
    refused = conflict(subnets, host.routes(), link.ifindex if link is not None else 0)
    if link is not None and (refused or link.alias != alias or not _inner(access.sandbox)):
        host.delete_link(link.ifindex)
        link = None
    if refused:
        return refused
    if link is None:
        fd = os.open(access.sandbox, os.O_RDONLY | os.O_CLOEXEC)
        try:
            host.add_veth(name, INNER_NAME, _mac(access.endpoint_id), access.mtu, fd, ACCESS_GROUP)
        finally:
            os.close(fd)
        link = host.link(name)
        assert link is not None
        write_sysctl(f"ipv6/conf/{name}/disable_ipv6", "1")
    outer, at = link.mac, link.ifindex

    def inside() -> None:
        with Netlink() as netlink:
            inner = netlink.link(INNER_NAME)
            if inner is None:
                raise FileNotFoundError(f"{access.sandbox} has no interface {INNER_NAME}")
            write_sysctl("ipv4/ip_forward", "1")
            run_nft(INNER_RULES.replace("NETWORK", access.ifname))
            netlink.add_address(inner.ifindex, INNER_END, 32)
            netlink.set_link(inner.ifindex, up=True, mtu=access.mtu)
            netlink.add_neighbour(inner.ifindex, HOST_END, outer)
            netlink.add_route(inner.ifindex, gateway=HOST_END)

    run_inside(access.sandbox, inside)
    host.add_address(at, HOST_END, 32)
    host.set_link(at, up=True, alias=alias, mtu=access.mtu)
    host.add_neighbour(at, INNER_END, _mac(access.endpoint_id))
    for subnet in map(ip_network, subnets):
        host.add_route(at, str(subnet.network_address), subnet.prefixlen, INNER_END)
    return ""


def _inner(sandbox: Path) -> bool:
    def body() -> bool:
        with Netlink() as netlink:
            return netlink.link(INNER_NAME) is not None

    return run_inside(sandbox, body)


def _mac(endpoint_id: str) -> str:
    """Of the inner end: locally administered."""
    return "02:" + hashlib.sha256(endpoint_id.upper().encode()).digest()[8:13].hex(":")
