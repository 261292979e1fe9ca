"""Addresses and prefixes in HCN documents: read once, in one spelling, and whether a container or service may have them.

Owns these refusals (pure functions of a text). Must not know documents nor state. Codes: Microsoft's HCNHResult table
(INVALID_IP, INVALID_PREFIX, ADDR_INVALID_OR_RESERVED).
"""

from __future__ import annotations

import ipaddress
from typing import Union

from overlace.model.family import is_six
from overlace.network.hns.errors import Code, HcnError

IPNetwork = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
IPAddress = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
ANY_ADDRESS = ("0.0.0.0", "::")
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")
# nobody's: a subnet of these would take the host's own, multicast or broadcast traffic into a network
_RESERVED: tuple[IPNetwork, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "127.0.0.0/8",
        "224.0.0.0/4",
        "255.255.255.255/32",
        "::/127",
        "fe80::/10",
        "ff00::/8",
    )
)


def check_address(text: str, field: str, *, six: bool = False) -> IPAddress:
    """`six`: it may be an IPv6 address too. Raises HcnError."""
    try:
        if six and is_six(text):
            return ipaddress.IPv6Address(text)
        return ipaddress.IPv4Address(text)
    except ValueError:
        raise HcnError(
            Code.INVALID_IP, f"{field} {text!r} is not an {'' if six else 'IPv4 '}address"
        ) from None


def check_usable(text: str, field: str, *, six: bool = False, loopback: bool = False) -> IPAddress:
    """An address one machine or service can have, which multicast, broadcast and "any" are not, and loopback only where
    `loopback` says so (of hosts that are one machine). Raises HcnError."""
    address = check_address(text, field, six=six)
    if address.is_unspecified:
        kind = "no particular"
    elif address.is_loopback and not loopback:
        kind = "a loopback"
    elif address.is_multicast:
        kind = "a multicast"
    elif address == _BROADCAST:
        kind = "the broadcast"
    else:
        return address
    raise HcnError(
        Code.ADDR_INVALID_OR_RESERVED, f"{field} {text} is {kind} address: name a unicast address of your own"
    )


def check_prefix(text: str, field: str, *, six: bool = False, loose: bool = False) -> IPNetwork:
    """`six`: it may be an IPv6 prefix too; `loose`: bits behind the length are cleared instead of refused. Raises
    HcnError."""
    kind = ipaddress.IPv6Network if six and is_six(text) else ipaddress.IPv4Network
    try:
        length = text.partition("/")[2]
        if "/" in text and not (length.isascii() and length.isdigit()):
            raise ValueError("masks are no lengths")
        found = kind(text, strict=False)
    except ValueError:
        example = "10.0.1.0/24 or fd00:1::/64" if six else "10.0.1.0/24"
        what = "a prefix" if six else "an IPv4 prefix"
        raise HcnError(Code.INVALID_PREFIX, f"{field} {text!r} is not {what}: write {example}") from None
    if not loose and str(found.network_address) != str(kind(text.partition("/")[0]).network_address):
        raise HcnError(Code.INVALID_PREFIX, f"{field} {text!r} has bits set behind its length: write {found}")
    return found


def check_subnet_prefix(net: IPNetwork, field: str) -> None:
    """Whether a network's subnet may be this one. Raises HcnError."""
    if net.prefixlen == 0:
        raise HcnError(
            Code.INVALID_PREFIX, f"{field} {net} holds every address: write one such as 10.0.1.0/24"
        )
    for kept in _RESERVED:
        if net.version == kept.version and net.overlaps(kept):
            raise HcnError(
                Code.INVALID_PREFIX,
                f"{field} {net} overlaps {kept}, which is reserved: write one such as 10.0.1.0/24",
            )


def check_not_edge(address: IPAddress, nets: list[IPNetwork], field: str) -> None:
    """That the address is neither the network's nor the broadcast address of its subnet. Raises HcnError."""
    for net in nets:
        if (
            net.version == 4
            and net.prefixlen < 31
            and address in (net.network_address, net.broadcast_address)
        ):
            which = "network" if address == net.network_address else "broadcast"
            raise HcnError(
                Code.ADDR_INVALID_OR_RESERVED,
                f"{field} {address} is the {which} address of {net}: use another",
            )
