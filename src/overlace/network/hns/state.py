"""What one host's HNS holds, with the indexes that make checks and lookups O(1).

Owns the documents and their cross references in memory. Must not validate, persist or touch the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import TypeVar

from overlace.network.hns import policies as p
from overlace.network.hns.documents import (
    Document,
    Guid,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNamespace,
    HostComputeNetwork,
    HostComputeRoute,
    PortMappingFlags,
)

T = TypeVar("T")
K = TypeVar("K")
HostPort = tuple[int, int]  # protocol, port on the host's own addresses
OuterKey = tuple[str, int, int]  # address ("": the host's own), protocol, port


def outside_vips(d: HostComputeLoadBalancer, network: HostComputeNetwork) -> list[str]:
    """Its VIPs that are outside the network's prefixes."""
    subnets = [ip_network(s.ip_address_prefix) for s in network.subnets]
    return [vip for vip in d.frontend_vips if not any(ip_address(vip) in s for s in subnets)]


def outer_keys(d: Document, network: HostComputeNetwork | None, host: str) -> Iterator[OuterKey]:
    """What clients outside the document's network find it by, on the host itself; `network`: the one it is on, `host`:
    the host's own address, if it is known."""
    if isinstance(d, HostComputeEndpoint):
        for policy in d.policies:
            if isinstance(policy, p.PortMapping):
                s = policy.settings
                yield "" if s.vip == host else s.vip, s.protocol, s.external_port
    elif isinstance(d, HostComputeLoadBalancer) and network is not None:
        mappings = [m for m in d.port_mappings if not m.flags & PortMappingFlags.INTERNAL_LOAD_BALANCER]
        if not mappings:
            return
        for address in outside_vips(d, network) if d.frontend_vips else [""]:
            for m in mappings:
                yield "" if address == host else address, m.protocol, m.external_port


class State:
    """Documents by GUID. All GUIDs upper case. `host`: the host's own address; empty where documents never name it."""

    def __init__(self, host: str = "") -> None:
        self.host = host
        self.documents: dict[Guid, Document] = {}
        self.by_vsid: dict[int, Guid] = {}
        self.by_address: dict[tuple[Guid, str], Guid] = {}
        self.by_outer: dict[OuterKey, Guid] = {}
        self.outer_of: dict[Guid, tuple[OuterKey, ...]] = {}
        self.by_vip: dict[tuple[Guid, str, int, int], Guid] = {}
        self.vips: dict[tuple[Guid, str], set[Guid]] = {}  # load balancers by network and VIP
        self.endpoints_of: dict[Guid, set[Guid]] = {}
        self.balancers_of: dict[Guid, set[Guid]] = {}  # by endpoint
        self.network_balancers: dict[Guid, set[Guid]] = {}  # by network
        self.by_network_name: dict[str, Guid] = {}  # lower case
        self.by_namespace_id: dict[int, Guid] = {}
        self.routes_of: dict[Guid, set[Guid]] = {}  # SDN routes by endpoint

    def get(self, guid: Guid, kind: type[T]) -> T | None:
        found = self.documents.get(guid)
        return found if isinstance(found, kind) else None

    def put(self, d: Document) -> None:
        self.remove(d.id)
        self.documents[d.id] = d
        if isinstance(d, (HostComputeEndpoint, HostComputeLoadBalancer)):
            self._enter(d)
        if isinstance(d, HostComputeNetwork):
            for balancer in self.network_balancers.get(
                d.id, ()
            ):  # which of their VIPs are outside may differ
                self._leave(balancer)
                self._enter(self.documents[balancer])
            self.by_vsid.update(dict.fromkeys(d.vsids, d.id))
            self.by_network_name[d.name.lower()] = d.id
        elif isinstance(d, HostComputeNamespace):
            if d.namespace_id:
                self.by_namespace_id[d.namespace_id] = d.id
        elif isinstance(d, HostComputeRoute):
            for endpoint in d.host_compute_endpoints:
                self.routes_of.setdefault(endpoint, set()).add(d.id)
        elif isinstance(d, HostComputeEndpoint):
            self.endpoints_of.setdefault(d.host_compute_network, set()).add(d.id)
            for config in d.ip_configurations:
                self.by_address[(d.host_compute_network, config.ip_address)] = d.id
        elif isinstance(d, HostComputeLoadBalancer):
            for endpoint in d.host_compute_endpoints:
                self.balancers_of.setdefault(endpoint, set()).add(d.id)
            self.network_balancers.setdefault(d.host_compute_network, set()).add(d.id)
            for key in vip_keys(d):
                self.by_vip[key] = d.id
            for vip in d.frontend_vips:
                self.vips.setdefault((d.host_compute_network, vip), set()).add(d.id)

    def remove(self, guid: Guid) -> Document | None:
        d = self.documents.pop(guid, None)
        if d is None:
            return None
        self._leave(guid)
        if isinstance(d, HostComputeNetwork):
            for vsid in d.vsids:
                if self.by_vsid.get(vsid) == guid:
                    del self.by_vsid[vsid]
            if self.by_network_name.get(d.name.lower()) == guid:
                del self.by_network_name[d.name.lower()]
        elif isinstance(d, HostComputeNamespace):
            if self.by_namespace_id.get(d.namespace_id) == guid:
                del self.by_namespace_id[d.namespace_id]
        elif isinstance(d, HostComputeRoute):
            for endpoint in d.host_compute_endpoints:
                _discard(self.routes_of, endpoint, guid)
        elif isinstance(d, HostComputeEndpoint):
            _discard(self.endpoints_of, d.host_compute_network, guid)
            for config in d.ip_configurations:
                if self.by_address.get((d.host_compute_network, config.ip_address)) == guid:
                    del self.by_address[(d.host_compute_network, config.ip_address)]
        elif isinstance(d, HostComputeLoadBalancer):
            for endpoint in d.host_compute_endpoints:
                _discard(self.balancers_of, endpoint, guid)
            _discard(self.network_balancers, d.host_compute_network, guid)
            for key in vip_keys(d):
                if self.by_vip.get(key) == guid:
                    del self.by_vip[key]
            for vip in d.frontend_vips:
                _discard(self.vips, (d.host_compute_network, vip), guid)
        return d

    def _enter(self, d: Document) -> None:
        network = self.get(getattr(d, "host_compute_network", ""), HostComputeNetwork)
        keys = tuple(outer_keys(d, network, self.host))
        if keys:
            self.outer_of[d.id] = keys
            self.by_outer.update(dict.fromkeys(keys, d.id))

    def _leave(self, guid: Guid) -> None:
        for key in self.outer_of.pop(guid, ()):
            if self.by_outer.get(key) == guid:
                del self.by_outer[key]

    @property
    def by_host_port(self) -> dict[HostPort, Guid]:
        """Who has which port of the host's own addresses."""
        return {(protocol, port): d for (address, protocol, port), d in self.by_outer.items() if not address}

    def source_vips(self, network: Guid) -> dict[str, Guid]:
        """Addresses that its load balancers ask other hosts' backends from, and whose each is."""
        balancers = (
            self.get(guid, HostComputeLoadBalancer) for guid in self.network_balancers.get(network, ())
        )
        return {lb.source_vip: lb.id for lb in balancers if lb is not None and lb.source_vip}

    def namespace_of(self, endpoint: Guid) -> HostComputeNamespace | None:
        e = self.get(endpoint, HostComputeEndpoint)
        return self.get(e.host_compute_namespace, HostComputeNamespace) if e is not None else None


def vip_keys(d: HostComputeLoadBalancer) -> Iterator[tuple[Guid, str, int, int]]:
    """(network, VIP, protocol, port) per frontend inside the network."""
    for vip in d.frontend_vips:
        for m in d.port_mappings:
            yield d.host_compute_network, vip, m.protocol, m.external_port


def _discard(index: dict[K, set[Guid]], key: K, value: Guid) -> None:
    members = index.get(key)
    if members is not None:
        members.discard(value)
        if not members:
            del index[key]
