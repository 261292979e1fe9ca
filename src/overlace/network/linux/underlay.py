"""Which interface of this host carries the underlay address.

Owns finding it. Must not change it.
"""

from __future__ import annotations

import socket

import msgspec

from overlace.model.family import is_six

from .netlink import Netlink

# What a host without an IPv4 address on its underlay calls itself in IPv4 packets (RFC 7600): localhost's clients of a
# published port have it as their address.
NO_IPV4 = "192.0.0.8"


class Underlay(msgspec.Struct, frozen=True):
    """The interface that carries the underlay address; `client_address`: the IPv4 one that clients of published ports
    use, which is the same where the underlay address is IPv4."""

    ifname: str
    ifindex: int
    mtu: int
    address: str
    prefix: int
    client_address: str
    client_prefix: int


def find_underlay(netlink: Netlink, wanted: str) -> Underlay:
    """The interface that carries the address `wanted`. Raises OSError when none does."""
    four = netlink.addresses()
    for own in netlink.addresses(socket.AF_INET6) if is_six(wanted) else four:
        if own.address == wanted:
            link = next(x for x in netlink.links() if x.ifindex == own.ifindex)
            beside = [(a.address, a.prefix) for a in four if a.ifindex == own.ifindex] or [(NO_IPV4, 32)]
            client = beside[0] if is_six(wanted) else (own.address, own.prefix)
            return Underlay(link.name, link.ifindex, link.mtu, own.address, own.prefix, *client)
    raise OSError(f"underlay address {wanted}: no interface carries it; give one of this host's own")
