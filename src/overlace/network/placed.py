"""A task's place on one network: addresses and gateways of both families, and the tables' entries for them. Pure.

Owns reading that off a network's document. Must not know tasks nor the kernel.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import msgspec

from overlace.network.hns.documents import HostComputeNetwork
from overlace.network.vfp.tables import LocalEndpoint


class Placed(msgspec.Struct, frozen=True):
    """A task's place on one network, as the tables have it. Addresses with prefix length."""

    network: str  # name
    address: str
    gateway: str
    entry: LocalEndpoint
    others: tuple[str, ...]  # the network's further subnets
    address6: str = ""
    gateway6: str = ""
    six: LocalEndpoint | None = None


def placed_at(
    network: HostComputeNetwork,
    address: str,
    entry: LocalEndpoint,
    address6: str,
    six: LocalEndpoint | None,
) -> Placed:
    """What the network's document says of a place: `entry` and `six` are the tables' of its addresses."""
    gateways: dict[int, str] = {}
    others: list[str] = []
    mine = [ip_address(a.split("/")[0]) for a in (address, address6) if a]
    for s in network.subnets:
        subnet = ip_network(s.ip_address_prefix)
        if any(a in subnet for a in mine):
            gateways[subnet.version] = next((r.next_hop for r in s.routes), "")
        elif subnet.version == 4 or six is not None:
            others.append(s.ip_address_prefix)
    return Placed(
        network.name, address, gateways.get(4, ""), entry, tuple(others), address6, gateways.get(6, ""), six
    )
