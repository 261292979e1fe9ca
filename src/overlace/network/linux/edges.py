"""Where clients outside find this host: its own addresses, and the interfaces that carry them.

Owns the rows of `own_addresses` and `own_addresses6` (bpf/maps.h), which interfaces have the program `from_edge`, and the
news that addresses came or went. Must not know ports or endpoints.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv4Address

import structlog

from .host_access import is_pair
from .loader import Loader
from .netlink import Address, Link, Netlink
from .outside6 import own_rows
from .veth import is_ours

PREFIX = "edge-"  # of the links' pins; the ifindex follows
_ANY4 = bytes(4)
_ETHERNET = 1  # ARPHRD_ETHER, linux/if_arp.h
_RTM_NEWADDR, _RTM_DELADDR, _OVERRUN = 20, 21, 4
_IPV4_IFADDR, _IPV6_IFADDR = 0x10, 0x100  # RTMGRP_*, linux/rtnetlink.h
_SCOPE_LINK = 253
_log = structlog.get_logger(__name__)


def own_rows4(addresses: Iterable[Address], stands: str) -> dict[bytes, bytes]:
    """Map `own_addresses`: every address but 127.0.0.0/8 is itself; `stands` is the one for any."""
    found = (IPv4Address(a.address) for a in addresses)
    rows = {a.packed: a.packed for a in found if not a.is_loopback}
    return {_ANY4: IPv4Address(stands).packed, **rows}


def plan_edges(
    links: Iterable[Link], addresses: Iterable[Address], underlay: int
) -> tuple[set[int], set[str]]:
    """Interfaces that clients of published ports come in by, besides the underlay's: those with an address clients may
    ask, by ifindex; and names of those that cannot have the program, for their packets have no Ethernet header."""
    carrying = {a.ifindex for a in addresses if not _is_local(a.address)} - {underlay}
    there = [link for link in links if link.ifindex in carrying and link.name != "lo"]
    return (
        {link.ifindex for link in there if link.hardware == _ETHERNET},
        {link.name for link in there if link.hardware != _ETHERNET},
    )


def _is_local(address: str) -> bool:
    return address.startswith(("127.", "fe80:")) or address == "::1"


class Edges:
    """Of one data path. `follow` is for its worker thread."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._known: set[int] = set()
        self._told: set[str] = set()
        self._filtered: set[int] = set()  # before Linux 6.6: what has the program as a filter

    def follow(self, netlink: Netlink, underlay: int, stands: str) -> bool:
        """Bring the maps up to the addresses this host has now; False: nothing had changed."""
        addresses4, addresses6, links = self._look(netlink)
        self._known, deaf = plan_edges(links, [*addresses4, *addresses6], underlay)
        for name in deaf - self._told:
            _log.warning(
                "published ports are not answered at this interface's addresses: its packets have no Ethernet header",
                interface=name,
            )
        self._told = deaf
        changed = False
        for name, want in (
            ("own_addresses", own_rows4(addresses4, stands)),
            ("own_addresses6", own_rows(addresses6, underlay)),
        ):
            table = self._loader.maps[name]
            have = dict(table.items())
            if want != have:
                table.put_many(want)
                table.delete_many(k for k in have if k not in want)
                changed = True
        return changed

    @staticmethod
    def _look(netlink: Netlink) -> tuple[list[Address], list[Address], list[Link]]:
        """Without what the data path itself has made."""
        links = [x for x in netlink.links() if not (is_ours(x) or is_pair(x))]
        there = {link.ifindex for link in links}
        four, six = (
            [a for a in netlink.addresses(f) if a.ifindex in there] for f in (socket.AF_INET, socket.AF_INET6)
        )
        return four, six, links

    def links(self) -> dict[str, int]:
        """Pins of the links there should be, and their interfaces."""
        return {f"{PREFIX}{ifindex}": ifindex for ifindex in self._known}

    def attach(self, netlink: Netlink) -> None:
        """Have the program at each interface `follow` found, and at no other."""
        for name, ifindex in self.links().items():
            try:
                self._loader.ensure_attached(netlink, ifindex, "from_edge", name)
            except OSError as e:  # it went meanwhile: the news of that is on its way
                _log.warning("an interface could not be attached to", interface=ifindex, error=str(e))
        for name in self._loader.link_names():
            if name.startswith(PREFIX) and name not in self.links():
                self._loader.detach(name)

        for ifindex in self._filtered - self._known:
            netlink.remove_clsact_filter(ifindex)
        self._filtered = set() if self._loader.tcx else set(self._known)


class AddressNews:
    """Awaits `follow` after addresses came or went in the namespace of the thread that made this; several changes at once
    are one. What fails is left to the next look."""

    def __init__(self, follow: Callable[[], Awaitable[None]]) -> None:
        self._follow = follow
        self._again = False
        self._task: asyncio.Task[None] | None = None
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            socket.NETLINK_ROUTE,
        )
        self._socket.bind((0, _IPV4_IFADDR | _IPV6_IFADDR))
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """From the event loop's thread."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._arrived)

    def _arrived(self) -> None:
        if not self._read():
            return
        self._again = True
        if self._task is None or self._task.done():
            assert self._loop is not None
            self._task = self._loop.create_task(self._run())

    async def _run(self) -> None:
        while self._again:
            self._again = False
            try:
                await self._follow()
            except OSError as e:
                _log.warning("could not follow the host's addresses, will look again", error=str(e))

    def _read(self) -> bool:
        """Whether what has arrived says that an address clients may ask came or went."""
        news = False
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return news
            except OSError:  # ENOBUFS: some were lost
                return True
            news = news or is_news(data)

    def abandon(self) -> None:
        """Before `start`: there will be none."""
        self._socket.close()

    async def close(self) -> None:
        """Idempotent."""
        if self._loop is not None and self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._again = False
        if self._task is not None:
            await self._task


def is_news(data: bytes) -> bool:
    """Whether a batch of rtnetlink(7) messages has one of an address beyond its link."""
    at = 0
    while at + 24 <= len(data):
        length, kind = struct.unpack_from("IH", data, at)
        if length < 16:
            return False
        if kind == _OVERRUN or (kind in (_RTM_NEWADDR, _RTM_DELADDR) and data[at + 19] < _SCOPE_LINK):
            return True
        at += length + (-length % 4)
    return False
