"""A container's interface: a veth pair between its sandbox and the host, addressed and routed.

Owns names, aliases and what stands on both ends. The host-side interface's alias says whose it is, so that a
restarted daemon finds its interfaces again. Must not know the tables.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import msgspec

from overlace.model.family import is_six
from overlace.network.vfp.tables import LocalEndpoint

from .maps import Attachment
from .netlink import Link, Netlink
from .netns import namespace_number, run_inside, write_sysctl
from .nft import PORT_GROUP, PORT_PREFIX
from .outside6 import open_interface


class Wanted(msgspec.Struct, frozen=True):
    """What attach() was asked for, beside the endpoint."""

    ifname: str
    default_route: bool
    gateway: str
    mtu: int
    routes: tuple[str, ...] = ()  # CIDRs reached directly: the network's further subnets
    through: tuple[tuple[str, str], ...] = ()  # CIDRs reached through a router, and its address
    six: LocalEndpoint | None = None  # the interface's IPv6 address, when it has one
    gateway6: str = ""


def host_name(endpoint_id: str) -> str:
    """The host-side interface of an endpoint."""
    return PORT_PREFIX + hashlib.sha256(endpoint_id.upper().encode()).hexdigest()[:8]


def _alias(instance: str, endpoint_id: str, sandbox: int) -> str:
    return f"overlace:{instance}:{endpoint_id}:{sandbox}"


def is_ours(link: Link) -> bool:
    """True for a host-side veth by name, of whatever instance: one without an alias is a crash's leftover."""
    tail = link.name[len(PORT_PREFIX) :]
    return (
        link.kind == "veth"
        and link.name.startswith(PORT_PREFIX)
        and len(tail) == 8
        and all(c in "0123456789abcdef" for c in tail)
        and (not link.alias or link.alias.startswith("overlace:"))
    )


def owner_of(link: Link, instance: str) -> str | None:
    """The endpoint whose host-side veth this is; "" while it carries no alias, as a crash leaves it; None: it is none of
    this instance's."""
    if not is_ours(link):
        return None
    if not link.alias:
        return ""
    parts = link.alias.split(":")
    return parts[2] if len(parts) == 4 and parts[1] == instance and parts[3].isdigit() else None


def attachments(links: list[Link], instance: str) -> dict[str, Attachment]:
    """endpoint id -> interface, from the aliases of finished attachments."""
    return {
        owner: Attachment(link.ifindex, int(link.alias.rpartition(":")[2]))
        for link in links
        if (owner := owner_of(link, instance))
    }


def create(
    host: Netlink, instance: str, endpoint: LocalEndpoint, sandbox: Path, wanted: Wanted
) -> Attachment:
    """Have the pair, host side up and marked; the sandbox side exists and is down. Idempotent; a pair of the
    same endpoint in another sandbox, or without its inner end, is made anew. Raises FileExistsError when the
    sandbox has another interface of that name."""
    number = namespace_number(sandbox)
    name, alias = host_name(endpoint.endpoint_id), _alias(instance, endpoint.endpoint_id, number)
    fd = os.open(sandbox, os.O_RDONLY | os.O_CLOEXEC)
    try:
        link = host.link(name)
        if link is not None:
            if link.alias == alias and _inner(fd, wanted.ifname, endpoint.mac):
                return Attachment(link.ifindex, number)
            host.delete_link(link.ifindex)
        try:
            host.add_veth(name, wanted.ifname, endpoint.mac, wanted.mtu, fd, PORT_GROUP)
        except FileExistsError as e:
            raise FileExistsError(
                e.errno, f"attach {endpoint.endpoint_id}: {sandbox} already has an interface {wanted.ifname}"
            ) from e
    finally:
        os.close(fd)
    link = host.link(name)
    assert link is not None
    write_sysctl(f"ipv6/conf/{name}/disable_ipv6", "1")
    host.set_link(link.ifindex, up=True, alias=alias)
    return Attachment(link.ifindex, number)


def _inner(namespace: int, ifname: str, mac: str) -> bool:
    def body() -> bool:
        with Netlink() as netlink:
            link = netlink.link(ifname)
            return link is not None and link.mac == mac.lower()

    return run_inside(namespace, body)


def free_ifname(sandbox: Path, mac: str) -> str:
    """The name of the interface with this MAC, else the first of eth0, eth1, … that is not there. Raises
    FileNotFoundError when there is no such sandbox."""

    def body() -> str:
        with Netlink() as netlink:
            links = netlink.links()
        names = {link.name for link in links}
        found = next((link.name for link in links if link.mac == mac.lower()), "")
        return found or next(f"eth{n}" for n in range(len(names) + 1) if f"eth{n}" not in names)

    return run_inside(sandbox, body)


def port_counters(sandbox: Path, mac: str) -> dict[str, int]:
    """Of the sandbox's interface with this MAC, as proc(5) net/dev has them: redirected packets never touch the host's
    side. Empty when it is not there."""

    def body() -> dict[str, int]:
        with Netlink() as netlink:
            name = next((link.name for link in netlink.links() if link.mac == mac.lower()), "")
        for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
            head, _, rest = line.strip().partition(":")
            if head == name:
                numbers = [int(n) for n in rest.split()]
                return {
                    "BytesReceived": numbers[0],
                    "PacketsReceived": numbers[1],
                    "DroppedPacketsIncoming": numbers[3],
                    "BytesSent": numbers[8],
                    "PacketsSent": numbers[9],
                    "DroppedPacketsOutgoing": numbers[11],
                }
        return {}

    return run_inside(sandbox, body)


def configure_inside(endpoint: LocalEndpoint, sandbox: Path, wanted: Wanted) -> None:
    """Address, MTU, routes and state of the sandbox side. Idempotent."""

    def body() -> None:
        with Netlink() as netlink:
            link = netlink.link(wanted.ifname)
            if link is None:
                raise FileNotFoundError(f"{sandbox} has no interface {wanted.ifname}")
            for scope in ("all", wanted.ifname):
                write_sysctl(f"ipv4/conf/{scope}/rp_filter", "0")
            for family in ("ipv4", "ipv6"):
                for name, value in _NEIGHBOURS.items():
                    write_sysctl(f"{family}/neigh/{wanted.ifname}/{name}", value)
            for name, value in _ipv6_settings(wanted.six is not None).items():
                write_sysctl(f"ipv6/conf/{wanted.ifname}/{name}", value)
            netlink.add_address(link.ifindex, endpoint.address, endpoint.prefix)
            netlink.set_link(link.ifindex, up=True, mtu=wanted.mtu)
            if wanted.six is not None:
                netlink.add_address(link.ifindex, wanted.six.address, wanted.six.prefix)
            for subnet in map(ip_network, wanted.routes):
                if subnet.version == 4 or wanted.six is not None:
                    netlink.add_route(link.ifindex, str(subnet.network_address), subnet.prefixlen)
            for to, hop in wanted.through:
                network = ip_network(to)
                netlink.add_route(link.ifindex, str(network.network_address), network.prefixlen, hop)
            if wanted.default_route and wanted.gateway:
                netlink.add_route(link.ifindex, gateway=wanted.gateway)
            if wanted.default_route and wanted.gateway6 and wanted.six is not None:
                netlink.add_route(link.ifindex, "::", gateway=wanted.gateway6)

    run_inside(sandbox, body)


# Who is where is answered on this host, at once or not yet: asking again soon reaches a new task a tenth of a second
# after its host is known, not a second. What is nowhere is given up as late as before, after three seconds.
_NEIGHBOURS = {"retrans_time_ms": "100", "mcast_solicit": "30"}


def _ipv6_settings(used: bool) -> dict[str, str]:
    """net.ipv6.conf of the container's interface. Who has which address is known: nobody advertises routers or
    addresses, and an address is usable at once."""
    if not used:
        return {"disable_ipv6": "1"}
    return {"disable_ipv6": "0", "accept_ra": "0", "autoconf": "0", "accept_dad": "0", "dad_transmits": "0"}


def resize(host: Netlink, endpoint_id: str, sandbox: Path, ifname: str, mtu: int) -> None:
    """Give both ends of the pair another MTU; a pair that is gone is left."""
    link = host.link(host_name(endpoint_id))
    if link is None:
        return

    def body() -> None:
        with Netlink() as netlink:
            inner = netlink.link(ifname)
            if inner is not None and inner.mtu != mtu:
                netlink.set_link(inner.ifindex, mtu=mtu)

    if link.mtu != mtu:
        host.set_link(link.ifindex, mtu=mtu)
    try:
        run_inside(sandbox, body)
    except FileNotFoundError:
        pass  # the task is on its way out


@contextlib.contextmanager
def unless_gone() -> Iterator[None]:
    """An interface goes with its container at any moment, also between two calls: then there is nothing more to do."""
    try:
        yield
    except OSError as e:
        if e.errno != errno.ENODEV:
            raise


def route_from_host(host: Netlink, endpoint: LocalEndpoint, ifindex: int) -> None:
    """The way of answers, translated back, into the container. The neighbour is written down: containers are
    not asked by ARP, the data path would drop their replies."""
    six = is_six(endpoint.address)
    if six:
        open_interface(host_name(endpoint.endpoint_id))
    host.add_neighbour(ifindex, endpoint.address, endpoint.mac)
    host.add_route(ifindex, endpoint.address, 128 if six else 32)
