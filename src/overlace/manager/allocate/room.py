"""Whether a network, or the pool networks come from, is running out: said before it has.

Owns the thresholds and the words. Must not give anything out (book.py, networks.py). A warning comes at WARN_AT and
goes below CLEAR_AT, so that a service that comes and goes does not write one each time.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

import msgspec

from overlace.manager.allocate.book import IPNetwork
from overlace.manager.allocate.networks import pools_of
from overlace.model.objects import Cluster, Network
from overlace.store.base import Change, Put

WARN_AT, CLEAR_AT = 80, 70  # percent in use


def plan_warning(network: Network, used: int, size: int) -> list[Change]:
    """The network with its warning as it should be; nothing when it is so already. `size`: addresses it can give."""
    if network.vni and used * 100 >= size * WARN_AT:
        text = (
            f"{WARN_AT} % or more of its {size} addresses are in use, and tasks wait when none is left: remove "
            "services from it, or move some to another network"
        )
    elif used * 100 < size * CLEAR_AT:
        text = ""
    else:
        text = network.warning
    if text == network.warning:
        return []
    return [Put(msgspec.structs.replace(network, warning=text), expect=network.version)]


def explain_pool(cluster: Cluster, networks: Iterable[Network]) -> str:
    """A warning when few IPv4 subnets are left for networks that bring none of their own, else "". (Of IPv6 subnets
    there are always more.)"""
    pools = [pool for pool, _ in pools_of(cluster).of(4)]
    taken = [ipaddress.ip_network(subnet.subnet) for network in networks for subnet in network.subnets]
    size = cluster.subnet_size
    total = sum(1 << (size - pool.prefixlen) for pool in pools if size >= pool.prefixlen)
    used = sum(_blocks(pools, subnet, size) for subnet in taken)
    if not total or used * 100 < total * WARN_AT:
        return ""
    names = ", ".join(map(str, pools))
    return (
        f"{max(total - used, 0)} of {total} subnets of size /{size} are left in the default address pool {names}: "
        "remove networks, or give new ones a subnet of their own (--subnet)"
    )


def _blocks(pools: Sequence[IPNetwork], subnet: IPNetwork, size: int) -> int:
    """How many of the pools' blocks a subnet takes."""
    inside = any(subnet.overlaps(pool) for pool in pools)
    return (1 << max(size - subnet.prefixlen, 0)) if inside else 0
