"""What addresses and published ports are in use, per network.

Owns the counters, derived from events; each owner's share is remembered, so observing a state twice or out
of order leaves them right. Picks free addresses next-fit: an address given back is not given out again until
the others had their turn. Must not decide who gets one nor read a store.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec

from overlace.model.objects import Base, Network, Node, Service, Subnet, Task

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
PortKey = tuple[str, int]  # (protocol, published port)
Space = tuple[str, int]  # (network id, family): addresses of two families never meet


def parse_address(text: str) -> int:
    """`10.0.1.2/24` or `10.0.1.2` as a number."""
    return int(ipaddress.ip_address(text.partition("/")[0]))


def version_of(text: str) -> int:
    """4 or 6: the family of an address or subnet, as `ipaddress` numbers them."""
    return 6 if ":" in text else 4


def families(subnets: Iterable[Subnet]) -> tuple[int, ...]:
    """The families a network with these subnets has, IPv4 first."""
    return tuple(sorted({version_of(s.subnet) for s in subnets}))


class Pool(msgspec.Struct):
    """The range addresses of one subnet are given from."""

    network: IPNetwork
    first: int
    last: int
    reserved: frozenset[int]  # within first..last: gateway, auxiliary addresses, network, broadcast
    cursor: int  # where the next search starts

    @property
    def size(self) -> int:
        """Addresses it can give at all."""
        return self.last - self.first + 1 - len(self.reserved)


def make_pool(subnet: Subnet, auxiliary: dict[str, str]) -> Pool:
    network = ipaddress.ip_network(subnet.subnet)
    span = ipaddress.ip_network(subnet.ip_range, strict=False) if subnet.ip_range else network
    first, last = int(span.network_address), int(span.broadcast_address)
    reserved = {int(network.network_address), int(network.broadcast_address)}
    if subnet.gateway:
        reserved.add(parse_address(subnet.gateway))
    reserved |= {parse_address(address) for address in auxiliary.values()}
    inside = frozenset(a for a in reserved if first <= a <= last)
    return Pool(network, first, last, inside, first)


class AddressBook:
    """Addresses and ports in use by task, service and node; `observe` keeps it."""

    def __init__(self) -> None:
        self._pools: dict[str, list[Pool]] = {}
        self._subnets: dict[str, tuple[Subnet, ...]] = {}
        self._used: dict[Space, Counter[int]] = {}
        self._shares: dict[tuple[str, str], tuple[tuple[Space, int], ...]] = {}
        self._ports: dict[PortKey, dict[str, None]] = {}  # -> service ids (one, unless something went wrong)
        self._service_ports: dict[str, tuple[PortKey, ...]] = {}
        self.moved: dict[
            str, None
        ] = {}  # networks with more or fewer addresses in use; whoever looks empties it
        self.ingress_id = ""  # id of the ingress network, "" when there is none

    # -- keeping it ------------------------------------------------------------------------------------------

    def observe(self, kind: str, id: str, new: Base | None) -> bool:
        """Note an object as it is now (None: deleted). True when an address or a port was given back."""
        if kind == "network":
            self._observe_network(id, new if isinstance(new, Network) else None)
            return new is None
        share: tuple[tuple[Space, int], ...] = ()
        freed = False
        if isinstance(new, Task):
            if not new.status.state.terminal:
                share = tuple(_taken(a.network_id, x) for a in new.networks for x in a.addresses)
        elif isinstance(new, Node):
            if not new.removed:
                share = tuple(_taken(net, x) for net, x in new.network_addresses.items())
        elif isinstance(new, Service) and new.endpoint is not None:
            share = tuple(_taken(v.network_id, v.address) for v in new.endpoint.virtual_ips)
        if kind == "service":
            freed = self._observe_ports(id, new if isinstance(new, Service) else None)
        old = self._shares.get((kind, id), ())
        if old == share:
            return freed
        self.moved |= dict.fromkeys(network_id for (network_id, _), _ in (*share, *old))
        for space, address in share:
            self._used.setdefault(space, Counter())[address] += 1
        for space, address in old:
            used = self._used[space]
            used[address] -= 1
            if not used[address]:
                del used[address]
                freed = True
        if share:
            self._shares[kind, id] = share
        else:
            del self._shares[kind, id]
        return freed

    def _observe_network(self, id: str, network: Network | None) -> None:
        if network is not None and network.spec.ingress:
            self.ingress_id = id
        elif self.ingress_id == id:
            self.ingress_id = ""
        subnets = network.subnets if network is not None else ()
        if subnets == self._subnets.get(id, ()):
            return
        self.moved[id] = None
        if network is None or not subnets:
            self._pools.pop(id, None)
            self._subnets.pop(id, None)
            return
        auxiliary: dict[str, str] = {}
        for config in network.spec.ipam.config:
            auxiliary |= config.auxiliary_addresses
        self._pools[id] = [make_pool(subnet, auxiliary) for subnet in subnets]
        self._subnets[id] = subnets
        for pool in self._pools[id]:  # after a restart go on behind the highest in use
            used = [a for a in self._used.get((id, pool.network.version), ()) if pool.first <= a <= pool.last]
            pool.cursor = max(used) + 1 if used else pool.first

    def _observe_ports(self, id: str, service: Service | None) -> bool:
        ports: tuple[PortKey, ...] = ()
        if service is not None and service.endpoint is not None:
            ports = tuple((p.protocol, p.published_port) for p in service.endpoint.ports if p.published_port)
        old = self._service_ports.get(id, ())
        if old == ports:
            return False
        for key in old:
            holders = self._ports[key]
            holders.pop(id, None)
            if not holders:
                del self._ports[key]
        for key in ports:
            self._ports.setdefault(key, {})[id] = None
        if ports:
            self._service_ports[id] = ports
        else:
            self._service_ports.pop(id, None)
        return bool(old)

    # -- asking it -------------------------------------------------------------------------------------------

    def take(self, network_id: str, version: int = 4) -> str | None:
        """A free address of this family with prefix length, None when all are in use (or the network has no such
        subnet).

        It counts as used once its owner is observed: observe between two calls for one network and family.
        """
        used = self._used.get((network_id, version)) or Counter()
        pools = [pool for pool in self._pools.get(network_id, ()) if pool.network.version == version]
        if len(used) >= sum(pool.size for pool in pools):
            return None
        for pool in pools:
            for candidate in _rotation(pool):
                if candidate not in used and candidate not in pool.reserved:
                    pool.cursor = candidate + 1
                    address = pool.network.network_address.__class__(candidate)
                    return f"{address}/{pool.network.prefixlen}"
        return None

    def in_use(self, network_id: str, address: str) -> bool:
        return parse_address(address) in self._used.get((network_id, version_of(address)), ())

    def is_free(self, network_id: str, address: str) -> bool:
        """Whether the address may be given to who asks for it: nobody's, no gateway's, no auxiliary one."""
        number, version = parse_address(address), version_of(address)
        return not self.in_use(network_id, address) and not any(
            number in p.reserved for p in self._pools.get(network_id, ()) if p.network.version == version
        )

    def with_prefix(self, network_id: str, address: str) -> str:
        """With the prefix length of the subnet it is in. Raises KeyError when it is in none."""
        number, version = parse_address(address), version_of(address)
        for p in self._pools.get(network_id, ()):
            if p.network.version == version and int(p.network.network_address) <= number <= int(
                p.network.broadcast_address
            ):
                return f"{address}/{p.network.prefixlen}"
        raise KeyError(address)

    def contains(self, network_id: str, address: str) -> bool:
        """Whether the address lies in one of the network's subnets."""
        number, version = parse_address(address), version_of(address)
        return any(
            int(p.network.network_address) <= number <= int(p.network.broadcast_address)
            for p in self._pools.get(network_id, ())
            if p.network.version == version
        )

    def capacity(self, network_id: str, version: int = 0) -> tuple[int, int]:
        """(addresses in use, addresses there are) of a network, gateways not counted; of one family, or of the fuller
        one (0)."""
        pools = self._pools.get(network_id, ())
        found = [
            (len(self._used.get((network_id, v), ())), sum(p.size for p in pools if p.network.version == v))
            for v in ([version] if version else sorted({p.network.version for p in pools}))
        ]
        return max(found, key=lambda f: f[0] / f[1] if f[1] else 0.0, default=(0, 0))

    def port_holder(self, key: PortKey) -> str | None:
        """The service that publishes this port (in either mode)."""
        return next(iter(self._ports.get(key, ())), None)


def _taken(network_id: str, address: str) -> tuple[Space, int]:
    return (network_id, version_of(address)), parse_address(address)


def _rotation(pool: Pool) -> Iterator[int]:
    """Every address of the pool once, from the cursor on and round."""
    start = pool.cursor if pool.first <= pool.cursor <= pool.last else pool.first
    yield from range(start, pool.last + 1)
    yield from range(pool.first, start)
