"""The host's own IPv6, where the overlay's ends: its addresses, by which published ports are reached and which containers
have outside, and forwarding.

Owns which addresses count, their rows of `own_addresses6` (bpf/maps.h) and the sysctls. Must not know endpoints.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address

from .netlink import Address, Netlink
from .netns import read_sysctl, write_sysctl

_LOOPBACK, _ANY = IPv6Address("::1").packed, bytes(16)
# linux/if_addr.h: such addresses come and go, or are not this host's
_TEMPORARY, _FAILED, _DEPRECATED = 0x01, 0x08, 0x20


def own_rows(addresses: Iterable[Address], underlay: int) -> dict[bytes, bytes]:
    """Map `own_addresses6`: every global address stands for itself; for what else is the host's, the steadiest one, of
    the interface `underlay` if it has one. Nothing without a global address."""
    found = []
    for a in addresses:
        parsed = IPv6Address(a.address)
        if not (parsed.is_link_local or parsed.is_loopback or a.flags & _FAILED):
            found.append((bool(a.flags & (_TEMPORARY | _DEPRECATED)), a.ifindex != underlay, parsed.packed))
    if not found:
        return {}
    best = min(found)[2]
    return {_ANY: best, _LOOPBACK: best, **{packed: packed for _, _, packed in found}}


def ensure_forwarding(netlink: Netlink) -> None:
    """Have the kernel forward IPv6. A router takes nothing from advertisements unless it is told to: interfaces that did
    go on doing so (accept_ra 2, Linux' ip-sysctl). A kernel without IPv6 is left alone."""
    if read_sysctl("ipv6/conf/all/forwarding") in ("", "1"):
        return
    for link in netlink.links():
        if read_sysctl(f"ipv6/conf/{link.name}/accept_ra") == "1":
            write_sysctl(f"ipv6/conf/{link.name}/accept_ra", "2")
    write_sysctl("ipv6/conf/all/forwarding", "1")


def open_interface(name: str) -> None:
    """Have the host's own stack take IPv6 from a container's interface, which gets no address for it."""
    if read_sysctl(f"ipv6/conf/{name}/disable_ipv6") == "1":
        write_sysctl(f"ipv6/conf/{name}/addr_gen_mode", "1")
        write_sysctl(f"ipv6/conf/{name}/accept_ra", "0")
        write_sysctl(f"ipv6/conf/{name}/disable_ipv6", "0")
