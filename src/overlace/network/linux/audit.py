"""What is not as it should be on this host: maps against tables, interfaces, routes, programs, room in the maps.

Owns the looking and its sentences; changes nothing. Must not know networks' names: it speaks of addresses, VNIs and
interfaces.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path

from overlace.model.family import is_six
from overlace.model.findings import Finding
from overlace.network.vfp.flows import TableFill
from overlace.network.vfp.tables import Key, LocalEndpoint

from .family import V4, V6, Family
from .maps import (
    KIND_LOCAL,
    KIND_REMOTE,
    TABLE_MAPS,
    Attachment,
)
from .netlink import Link, Netlink
from .netns import run_inside
from .rows import Changes
from .veth import host_name

REPAIR = (
    "restart this host's daemon: it compares everything and repairs it (no traffic is lost), and report it"
)
FULL = 0.95
_MAX_EACH = 20


def explain_rows(changes: Changes, actual: Mapping[str, Mapping[bytes, bytes]]) -> Iterator[Finding]:
    """`changes` would turn the dumped maps `actual` into what they should be."""
    named = {"networks"}
    for family in (V4, V6):
        yield from _explain_endpoints(changes, actual, family)
        named |= {f"endpoints{family.suffix}", f"ports{family.suffix}"}
    for key in changes.put.get("networks", {}):
        (vni,) = struct.unpack("I", key)
        yield Finding(
            what=f"wrong VNI: network {vni} is missing from the switch, or not as it should be", remedy=REPAIR
        )
    for key in list(changes.remove.get("networks", ()))[:_MAX_EACH]:
        (vni,) = struct.unpack("I", key)
        yield Finding(
            what=f"a stale network: the switch holds VNI {vni}, which nobody here has", remedy=REPAIR
        )
    for name in TABLE_MAPS:
        wrong = len(changes.put.get(name, {})) + len(changes.remove.get(name, ()))
        if name not in named and wrong:
            yield Finding(
                what=f"table {name} differs in {wrong} rows from what it should hold", remedy=REPAIR
            )


def _explain_endpoints(
    changes: Changes, actual: Mapping[str, Mapping[bytes, bytes]], family: Family
) -> Iterator[Finding]:
    """Endpoints and ports whose addresses are of this family."""
    table, ports = f"endpoints{family.suffix}", f"ports{family.suffix}"
    for key, want in list(changes.put.get(table, {}).items())[:_MAX_EACH]:
        (vni,), address = struct.unpack_from("I", key), family.text(key[4:])
        yield Finding(
            what=_endpoint(vni, address, want, actual[table].get(key)), remedy=REPAIR, about=(address,)
        )
    for key in list(changes.remove.get(table, ()))[:_MAX_EACH]:
        (vni,), address = struct.unpack_from("I", key), family.text(key[4:])
        yield Finding(
            what=f"a stale endpoint: the table holds {address} on VNI {vni}, which nobody has",
            remedy=REPAIR,
            about=(address,),
        )
    for key, want in list(changes.put.get(ports, {}).items())[:_MAX_EACH]:
        (ifindex,), (vni,) = struct.unpack("I", key), struct.unpack_from("I", want)
        address, have = family.text(want[4 : 4 + family.bits // 8]), actual[ports].get(key)
        if have is None:
            what = f"interface {ifindex} of {address} is not known to the switch"
        elif have[:4] != want[:4]:
            what = f"wrong VNI: the interface of {address} is on VNI {struct.unpack_from('I', have)[0]}, not {vni}"
        else:
            what = f"the switch's port of {address} on VNI {vni} is not as it should be (policy, NAT or MAC)"
        yield Finding(what=what, remedy=REPAIR, about=(address,))
    for key in list(changes.remove.get(ports, ()))[:_MAX_EACH]:
        (ifindex,) = struct.unpack("I", key)
        have = actual[ports].get(key, b"")
        address = family.text(have[4 : 4 + family.bits // 8]) if have else ""
        yield Finding(
            what=f"a stale port: the switch takes interface {ifindex} for {address or 'an endpoint'}, which is not there",
            remedy=REPAIR,
            about=(address,) if address else (),
        )


def _endpoint(vni: int, address: str, want: bytes, have: bytes | None) -> str:
    """A row of struct endpoint."""
    if have is None:
        return f"missing route: the table does not hold {address} on VNI {vni}"
    host = len(want) - 16  # bytes of the host's address, which comes first
    if want[-2] == KIND_REMOTE and have[-2] == KIND_REMOTE and want[:host] != have[:host]:
        return (
            f"a stale endpoint: the table has {address} on VNI {vni} behind host {ip_address(have[:host])}, "
            f"it is behind {ip_address(want[:host])}"
        )
    if want[-2] == KIND_LOCAL and have[-2] == KIND_LOCAL:
        return (
            f"a stale endpoint: {address} on VNI {vni} leads to interface {struct.unpack_from('I', have, host)[0]}, "
            f"it is interface {struct.unpack_from('I', want, host)[0]}"
        )
    return f"a stale endpoint: what the table holds of {address} on VNI {vni} is not what it should"


def explain_refused(refused: Mapping[Key, str]) -> Iterator[Finding]:
    """Entries that no row can hold."""
    for key, why in refused.items():
        kind, *which = key
        yield Finding(
            what=f"the switch does without the {kind} entry {' '.join(map(str, which))}: {why}",
            remedy="remove what asks for it; everything else is as it should be",
        )


def explain_fill(fills: Iterable[TableFill]) -> Iterator[Finding]:
    """Tables that are full: what comes next has no place, or takes the oldest row's."""
    for fill in fills:
        if fill.is_full and fill.evicts:
            yield Finding(
                what=f"table {fill.name} is full: {fill.rows} of {fill.capacity} rows, the oldest give way to new ones",
                remedy="connections that were idle longest have to be begun again: spread the clients over more hosts",
                mild=True,
            )
        elif fill.rows >= FULL * fill.capacity:
            yield Finding(
                what=f"table {fill.name} is full: {fill.rows} of {fill.capacity} rows",
                remedy="more endpoints or services than a host can hold: split them over networks that not every host "
                "takes part in",
            )


def explain_links(links: list[Link], attached: Mapping[str, Attachment], underlay: int) -> Iterator[Finding]:
    """Interfaces on the host's side."""
    by_index = {link.ifindex: link for link in links}
    under = by_index.get(underlay)
    if under is None or not under.up:
        name = under.name if under is not None else f"interface {underlay}"
        yield Finding(what=f"the underlay's interface {name} is down", remedy=f"ip link set {name} up")
    for id, at in attached.items():
        link, name = by_index.get(at.ifindex), host_name(id)
        if link is None:
            yield Finding(what=f"interface {name} is gone", remedy=REPAIR, about=(id,))
        elif not link.up:
            yield Finding(what=f"interface {name} is down", remedy=f"ip link set {name} up", about=(id,))


def _has_default6() -> bool:
    """/proc/net/ipv6_route: destination, its prefix, …, flags, device; one that rejects (RTF_REJECT) is none."""
    lines = (line.split() for line in Path("/proc/thread-self/net/ipv6_route").read_text().splitlines())
    return any(at[0] == "0" * 32 and at[1] == "00" and not int(at[8], 16) & 0x200 for at in lines)


def explain_inside(
    endpoint: LocalEndpoint, sandbox: Path, ifname: str, *, default_route: bool
) -> list[Finding]:
    """The container's own side."""
    about = (endpoint.endpoint_id, endpoint.address)

    def body() -> list[Finding]:
        with Netlink() as netlink:
            link = netlink.link(ifname)
            if link is None:
                return [
                    Finding(
                        what=f"the container of {endpoint.address} has no {ifname}",
                        remedy=REPAIR,
                        about=about,
                    )
                ]
            found = []
            if not link.up:
                what = f"interface {ifname} of the container of {endpoint.address} is down"
                remedy = f"nsenter --net={sandbox} ip link set {ifname} up, or docker service update --force"
                found.append(Finding(what=what, remedy=remedy, about=about))
            six = is_six(endpoint.address)
            there = netlink.addresses(socket.AF_INET6 if six else socket.AF_INET)
            if endpoint.address not in {a.address for a in there if a.ifindex == link.ifindex}:
                what = f"interface {ifname} of the container has lost its address {endpoint.address}"
                found.append(Finding(what=what, remedy="docker service update --force", about=about))
            routes = Path("/proc/thread-self/net/route").read_text().splitlines()[1:]
            if default_route and not six and not any(line.split()[1] == "00000000" for line in routes):
                what = f"missing route: the container of {endpoint.address} has no default route"
                remedy = f"nsenter --net={sandbox} ip route add default dev {ifname}, or docker service update --force"
                found.append(Finding(what=what, remedy=remedy, about=about))
            if default_route and six and not _has_default6():
                what = f"missing route: the container of {endpoint.address} has no default route for IPv6"
                remedy = "docker service update --force"
                found.append(Finding(what=what, remedy=remedy, about=about))
            return found

    try:
        return run_inside(sandbox, body)
    except FileNotFoundError:
        return [
            Finding(
                what=f"the namespace of {endpoint.address} is gone",
                remedy="docker service update --force",
                about=about,
            )
        ]
