"""The two address families, as the programs' tables have them (bpf/address.h). Pure.

Owns in which tables a family's rows are and how its addresses are packed. The family of hosts' own addresses, `hosts`
where it is said, is the same in all tables and has nothing to do with what is inside.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Union

import msgspec

from overlace.model.family import is_six

IpNetwork = Union[IPv4Network, IPv6Network]


class Family(msgspec.Struct, frozen=True):
    """IPv4 or IPv6."""

    version: int
    bits: int  # of an address
    suffix: str  # of the names of its tables

    def address(self, text: str) -> bytes:
        """The octets. Raises ValueError for an address of the other family or none."""
        return (IPv4Address(text) if self.version == 4 else IPv6Address(text)).packed

    @property
    def octets(self) -> int:
        return self.bits // 8

    def text(self, octets: bytes) -> str:
        return str(IPv4Address(octets) if self.version == 4 else IPv6Address(octets))

    def own(self, cidrs: Iterable[str]) -> tuple[IpNetwork, ...]:
        """Those prefixes that are of this family; no address of it is within another."""
        nets = (ip_network(c, strict=False) for c in cidrs)
        return tuple(n for n in nets if n.version == self.version)

    @property
    def anywhere(self) -> IpNetwork:
        return ip_network("0.0.0.0/0" if self.version == 4 else "::/0")

    @property
    def nobody(self) -> IpNetwork:
        """What no connection comes from or goes to: broadcasts and the unspecified address are dropped before."""
        return ip_network("255.255.255.255/32" if self.version == 4 else "::/128")


V4 = Family(4, 32, "")
V6 = Family(6, 128, "6")


def family_of(address: str) -> Family:
    """Of an address or a prefix, by its text."""
    return V6 if is_six(address) else V4


def of_table(name: str) -> tuple[Family, str]:
    """The family a table is of, and what the table is called for IPv4; IPv4 for one that both share."""
    return (V6, name[:-1]) if name.endswith("6") else (V4, name)
