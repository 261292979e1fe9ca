"""Subnets, gateways and VNIs of networks.

Owns what a network gets when it is made. User-given subnets are honoured; the others come from the cluster's
pool, none overlapping another. Must not give out addresses inside a subnet (book.py) nor refuse requests
(control does).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Sequence

import msgspec

from overlace.manager.allocate.book import IPNetwork, make_pool, version_of
from overlace.model.objects import Cluster, Network, Subnet
from overlace.model.specs import VNI_OPTION
from overlace.store.base import Change, Put, View

FIRST_VNI = 4096  # below is left to others: Windows takes no VSID under 4096
LAST_VNI = (1 << 24) - 2  # the last number is the probes' own (bpf/probe.h)
DEFAULT_POOL = ipaddress.IPv4Network("10.0.0.0/8")
SIX_SIZE = 64  # prefix length of an IPv6 subnet from a pool (RFC 4291 2.5.1)


class Pools(msgspec.Struct, frozen=True):
    """Where networks without a subnet of their own get one: pools by family, each with the size of its subnets."""

    pools: tuple[tuple[IPNetwork, int], ...]

    def of(self, version: int) -> list[tuple[IPNetwork, int]]:
        return [(pool, size) for pool, size in self.pools if pool.version == version]


def pools_of(cluster: Cluster | None) -> Pools:
    """Those of the cluster; a family without any has Docker's default: 10.0.0.0/8, and for IPv6 a prefix of the
    cluster's own (`ula_pool`)."""
    given = [ipaddress.ip_network(text) for text in cluster.default_addr_pool] if cluster else []
    size = cluster.subnet_size if cluster else 24
    four: list[IPNetwork] = [pool for pool in given if pool.version == 4] or [DEFAULT_POOL]
    six: list[IPNetwork] = [pool for pool in given if pool.version == 6]
    six = six or [ula_pool(cluster.id if cluster else "")]
    sized = [(pool, size) for pool in four] + [(pool, max(SIX_SIZE, pool.prefixlen)) for pool in six]
    return Pools(tuple(sized))


def ula_pool(cluster_id: str) -> ipaddress.IPv6Network:
    """A unique local /48 (RFC 4193 3.1). Its 40 random bits come from the cluster's id, which is random: every manager
    finds the same, and two clusters' networks do not meet."""
    bits = hashlib.sha256(f"overlace ula {cluster_id}".encode()).digest()[:5]
    return ipaddress.IPv6Network((b"\xfd" + bits + bytes(10), 48))


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
    pools = pools_of(cluster)
    taken = [subnet for network in networks if is_overlay(network) for subnet in _subnets_of(network)]
    vnis = {network.vni: network for network in networks if network.vni}
    changes: list[Change] = []
    for network in waiting:
        try:
            result = _allocate(network, pools, taken, vnis)
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
    pools: Pools,
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
                gateway = ipaddress.ip_address(config.gateway) if config.gateway else asked[1]
                found.append(Subnet(str(asked), str(gateway), config.range))
        for version in (4, 6) if network.spec.enable_ipv6 else (4,):
            if any(version_of(subnet.subnet) == version for subnet in found):
                continue
            free = _free_in(pools.of(version), taken)
            if isinstance(free, str):
                return free
            found.append(Subnet(str(free), str(free[1])))
        subnets = tuple(sorted(found, key=lambda s: version_of(s.subnet)))  # who knows one reads an IPv4 one
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


def _free_in(pools: Sequence[tuple[IPNetwork, int]], taken: Sequence[IPNetwork]) -> IPNetwork | str:
    """A subnet for a network, or why there is none."""
    for pool, size in pools:
        free = free_subnet([pool], size, taken)
        if free is not None:
            return free
    names = ", ".join(str(pool) for pool, _ in pools)
    sizes = " or ".join(dict.fromkeys(f"/{size}" for _, size in pools))
    return (
        f"no free subnet of size {sizes} is left in the default address pool {names}; "
        "remove a network or give this one a subnet of its own (--subnet)"
    )


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
