"""Subnets, gateways and VNIs of networks.

Owns what a network gets when it is made. User-given subnets are honoured; the others come from the cluster's
pool, none overlapping another. Must not give out addresses inside a subnet (book.py) nor refuse requests
(control does).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

import msgspec

from overlace.manager.allocate.book import IPNetwork, make_pool
from overlace.model.objects import Cluster, Network, Subnet
from overlace.model.specs import VNI_OPTION
from overlace.store.base import Change, Put, View

FIRST_VNI = 4096  # below is left to others: Windows takes no VSID under 4096
LAST_VNI = (1 << 24) - 2  # the last number is the probes' own (bpf/probe.h)


def is_overlay(network: Network) -> bool:
    return network.spec.driver in ("", "overlay")


def is_allocated(network: Network) -> bool:
    return not is_overlay(network) or bool(network.vni and network.subnets)


def plan_networks(view: View) -> list[Change]:
    """Allocate every network that has no subnet or VNI yet; one that cannot be says why in `error`."""
    networks = list(view.all(Network))
    waiting = [network for network in networks if not is_allocated(network)]
    if not waiting:
        return []
    # The ingress network first, so that it gets the pool's first subnet; then oldest first.
    waiting.sort(key=lambda n: (not n.spec.ingress, n.created_at, n.id))
    cluster = next(iter(view.all(Cluster)), None)
    pools = [
        ipaddress.ip_network(text) for text in (cluster.default_addr_pool if cluster else ("10.0.0.0/8",))
    ]
    size = cluster.subnet_size if cluster else 24
    taken = [subnet for network in networks if is_overlay(network) for subnet in _subnets_of(network)]
    vnis = {network.vni: network for network in networks if network.vni}
    changes: list[Change] = []
    for network in waiting:
        try:
            result = _allocate(network, pools, size, taken, vnis)
        except ValueError as error:  # control refuses such specs; one from elsewhere must not stop the others
            result = f"the network's addresses are not usable: {error}"
        if isinstance(result, str):
            if network.error != result:
                changes.append(Put(msgspec.structs.replace(network, error=result), expect=network.version))
            continue
        vnis[result.vni] = result
        taken += [ipaddress.ip_network(subnet.subnet) for subnet in result.subnets]
        changes.append(Put(result, expect=network.version))
    return changes


def _subnets_of(network: Network) -> list[IPNetwork]:
    """What a network has, or will have because its user said so."""
    texts = [subnet.subnet for subnet in network.subnets]
    if not texts:
        texts = [config.subnet for config in network.spec.ipam.config if config.subnet]
    found: list[IPNetwork] = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            continue  # it will get none of it: `_allocate` says why
    return found


def _allocate(
    network: Network,
    pools: Sequence[IPNetwork],
    size: int,
    taken: Sequence[IPNetwork],
    vnis: dict[int, Network],
) -> Network | str:
    """The network with subnets and VNI, or why not. Raises ValueError for addresses that are none."""
    subnets = network.subnets
    if not subnets:
        found: list[Subnet] = []
        for config in network.spec.ipam.config:
            if config.subnet:
                asked = ipaddress.ip_network(config.subnet, strict=False)
                found.append(Subnet(str(asked), config.gateway or str(asked[1]), config.range))
        if not found:
            free = free_subnet(pools, size, taken)
            if free is None:
                names = ", ".join(str(pool) for pool in pools)
                return (
                    f"no free subnet of size /{size} is left in the default address pool {names}; "
                    "remove a network or give this one a subnet of its own (--subnet)"
                )
            found.append(Subnet(str(free), str(free[1])))
        subnets = tuple(found)
    for subnet in subnets:
        make_pool(subnet, {})  # raises for a gateway or range that is none
    for config in network.spec.ipam.config:
        for address in config.auxiliary_addresses.values():
            ipaddress.ip_address(address)
    vni = network.vni or _choose_vni(network, vnis)
    if isinstance(vni, str):
        return vni
    return msgspec.structs.replace(network, subnets=subnets, vni=vni, error="")


def _choose_vni(network: Network, vnis: dict[int, Network]) -> int | str:
    asked = network.spec.options.get(VNI_OPTION, "")
    if asked:
        text = asked.split(",")[0].strip()
        if not text.isdigit() or not 0 < int(text) <= LAST_VNI:
            return f"option {VNI_OPTION}: '{asked}' does not start with a VNI between 1 and {LAST_VNI}"
        holder = vnis.get(int(text))
        if holder is not None:
            return f"option {VNI_OPTION}: VNI {text} belongs to network {holder.spec.name}; choose another"
        return int(text)
    vni = FIRST_VNI
    while vni in vnis:
        vni += 1
    return vni if vni <= LAST_VNI else f"all VNIs from {FIRST_VNI} to {LAST_VNI} are in use"


def free_subnet(pools: Iterable[IPNetwork], size: int, taken: Iterable[IPNetwork]) -> IPNetwork | None:
    """The lowest subnet of prefix length `size` in the pools that overlaps none of `taken`."""
    used = list(taken)
    for pool in pools:
        if size < pool.prefixlen or size > pool.max_prefixlen:
            continue
        span = 1 << (pool.max_prefixlen - size)
        start, end = int(pool.network_address), int(pool.broadcast_address)
        blocks = sorted(
            (int(n.network_address), int(n.broadcast_address))
            for n in used
            if n.version == pool.version and n.overlaps(pool)
        )
        for low, high in blocks:
            if low >= start + span:
                break  # the gap before this block is large enough
            if high >= start:
                start = -(-(high + 1) // span) * span
        if start + span - 1 <= end:
            return type(pool)((start, size))
    return None
