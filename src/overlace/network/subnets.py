"""Which of a network's subnets an address is in, and what follows: its prefix length, its gateway. Pure.

An address in none of them counts as one of the first. Must not know documents.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from overlace.model.netview import NetworkEntry


@lru_cache(maxsize=4096)
def _net(cidr: str) -> IPv4Network | IPv6Network:
    return ip_network(cidr)


def _subnet_of(network: NetworkEntry, address: str) -> int:
    if len(network.subnets) > 1:
        parsed = ip_address(address)
        for i, s in enumerate(network.subnets):
            if parsed in _net(s):
                return i
    return 0


def prefix_of(network: NetworkEntry, address: str) -> int:
    """Length of the prefix of the subnet an address is in."""
    return _net(network.subnets[_subnet_of(network, address)]).prefixlen


def gateway_of(network: NetworkEntry, address: str) -> str:
    """The gateway of the subnet an address is in."""
    return network.gateways[_subnet_of(network, address)]
