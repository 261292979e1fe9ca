"""Which interface of this host carries the underlay address.

Owns finding it. Must not change it.
"""

from __future__ import annotations

import msgspec

from .netlink import Netlink


class Underlay(msgspec.Struct, frozen=True):
    """The interface that carries the underlay address."""

    ifname: str
    ifindex: int
    mtu: int
    address: str
    prefix: int


def find_underlay(netlink: Netlink, wanted: str) -> Underlay:
    """The interface that carries the address `wanted`. Raises OSError when none does."""
    for address in netlink.addresses():
        if address.address == wanted:
            link = next(x for x in netlink.links() if x.ifindex == address.ifindex)
            return Underlay(link.name, link.ifindex, link.mtu, address.address, address.prefix)
    raise OSError(f"underlay address {wanted}: no interface carries it; give one of this host's own")
