"""What one host's HNS holds, with the indexes that make checks and lookups O(1).

Owns the documents and their cross references in memory. Must not validate, persist or touch the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
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
)

T = TypeVar("T")
HostPort = tuple[int, int]  # protocol, port on the host's own addresses


def host_ports(document: Document) -> Iterator[HostPort]:
    """The ports of the host itself that the document occupies."""
    if isinstance(document, HostComputeEndpoint):
        for policy in document.policies:
            if isinstance(policy, p.PortMapping):
                yield policy.settings.protocol, policy.settings.external_port
    elif isinstance(document, HostComputeLoadBalancer) and not document.frontend_vips:
        for m in document.port_mappings:
            yield m.protocol, m.external_port


class State:
    """Documents by GUID. All GUIDs upper case."""

    def __init__(self) -> None:
        self.documents: dict[Guid, Document] = {}
        self.by_vsid: dict[int, Guid] = {}
        self.by_address: dict[tuple[Guid, str], Guid] = {}
        self.by_host_port: dict[HostPort, Guid] = {}
        self.by_vip: dict[tuple[Guid, str, int, int], Guid] = {}
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
        for port in host_ports(d):
            self.by_host_port[port] = d.id
        if isinstance(d, HostComputeNetwork):
            if d.vsid:
                self.by_vsid[d.vsid] = d.id
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

    def remove(self, guid: Guid) -> Document | None:
        d = self.documents.pop(guid, None)
        if d is None:
            return None
        for port in host_ports(d):
            if self.by_host_port.get(port) == guid:
                del self.by_host_port[port]
        if isinstance(d, HostComputeNetwork):
            if self.by_vsid.get(d.vsid) == guid:
                del self.by_vsid[d.vsid]
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
        return d

    def namespace_of(self, endpoint: Guid) -> HostComputeNamespace | None:
        e = self.get(endpoint, HostComputeEndpoint)
        return self.get(e.host_compute_namespace, HostComputeNamespace) if e is not None else None


def vip_keys(d: HostComputeLoadBalancer) -> Iterator[tuple[Guid, str, int, int]]:
    """(network, VIP, protocol, port) per frontend inside the network."""
    for vip in d.frontend_vips:
        for m in d.port_mappings:
            yield d.host_compute_network, vip, m.protocol, m.external_port


def _discard(index: dict[Guid, set[Guid]], key: Guid, value: Guid) -> None:
    members = index.get(key)
    if members is not None:
        members.discard(value)
        if not members:
            del index[key]
