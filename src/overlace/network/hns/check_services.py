"""Whether HNS takes a load balancer, an SDN route or a namespace; what validate.py is to networks and endpoints.

Owns these refusals (pure functions of document and state). Must not change state.
"""

from __future__ import annotations

import msgspec

from overlace.model.traffic import MAX_AFFINITY
from overlace.network.hns.addresses import check_address, check_usable
from overlace.network.hns.collisions import check_outer, check_vips
from overlace.network.hns.documents import (
    Distribution,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNamespace,
    HostComputeNetwork,
    HostComputeRoute,
    LoadBalancerPortMapping,
    NamespaceResource,
    PortMappingFlags,
    ResourceData,
    normal_guid,
)
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.state import State
from overlace.network.hns.validate import (
    check_internal_port,
    check_port,
    check_protocol,
    check_sdn_route,
)


def check_route(d: HostComputeRoute, state: State) -> HostComputeRoute:
    """An SDN route with normalised spelling. Raises HcnError."""
    endpoints, network_id = _members(d, state)
    if not endpoints:
        raise HcnError(Code.BAD_PARAMETER, "HostComputeEndpoints is empty: name at least one endpoint")
    if not d.routes:
        raise HcnError(Code.BAD_PARAMETER, "Routes is empty: name at least one route")
    for route in d.routes:
        check_sdn_route(route, "Routes")
    return msgspec.structs.replace(d, host_compute_endpoints=endpoints, host_compute_network=network_id)


def _members(d: HostComputeLoadBalancer | HostComputeRoute, state: State) -> tuple[tuple[str, ...], str]:
    """The endpoints and the one network they are on. Raises HcnError."""
    endpoints = tuple(normal_guid(e, "HostComputeEndpoints") for e in d.host_compute_endpoints)
    if len(set(endpoints)) != len(endpoints):
        raise HcnError(Code.BAD_PARAMETER, "HostComputeEndpoints names an endpoint twice: keep one")
    network_id = normal_guid(d.host_compute_network, "HostComputeNetwork") if d.host_compute_network else ""
    for guid in endpoints:
        endpoint = state.get(guid, HostComputeEndpoint)
        if endpoint is None:
            raise HcnError(Code.ENDPOINT_NOT_FOUND, f"HostComputeEndpoints {guid}: create the endpoint first")
        if network_id and endpoint.host_compute_network != network_id:
            raise HcnError(
                Code.INVALID_ENDPOINT,
                f"HostComputeEndpoints {guid} is on network {endpoint.host_compute_network}, "
                f"not {network_id}",
            )
        network_id = network_id or endpoint.host_compute_network
    return endpoints, network_id


def check_load_balancer(d: HostComputeLoadBalancer, state: State, *, ours: bool) -> HostComputeLoadBalancer:
    """The document with normalised spelling. Raises HcnError.

    `ours`: our own HNS lets a frontend exist without members (it then refuses connections), and with IPv6 VIPs;
    Windows' does not.
    """
    endpoints, network_id = _members(d, state)
    if not endpoints and not ours:
        raise HcnError(Code.BAD_PARAMETER, "HostComputeEndpoints is empty: name at least one endpoint")
    network = state.get(network_id, HostComputeNetwork)
    if network is None:
        raise HcnError(Code.NETWORK_NOT_FOUND, f"HostComputeNetwork {network_id}: create the network first")
    if d.source_vip:
        check_address(d.source_vip, "SourceVIP")
    translated = tuple(normal_guid(e, "OverlaceSourceTranslated") for e in d.source_translated)
    if translated and not d.source_vip:
        raise HcnError(
            Code.BAD_PARAMETER, "OverlaceSourceTranslated needs a SourceVIP: what would those endpoints see?"
        )
    vips = tuple(str(check_usable(vip, "FrontendVIPs", six=ours)) for vip in d.frontend_vips)
    if not d.port_mappings:
        raise HcnError(Code.BAD_PARAMETER, "PortMappings is empty: name at least one mapping")
    for m in d.port_mappings:
        _check_affinity(m)
        internal = bool(m.flags & PortMappingFlags.INTERNAL_LOAD_BALANCER)
        check_protocol(m.protocol, "PortMappings.Protocol", any_protocol=internal)
        if internal and not d.frontend_vips:
            raise HcnError(
                Code.BAD_PARAMETER,
                "FrontendVIPs is empty: an internal load balancer (PortMappings.Flags 1) needs its VIP",
            )
        if internal and m.protocol == 0 and m.internal_port == 0 and m.external_port == 0:
            continue
        check_port(m.external_port, "PortMappings.ExternalPort")
        check_internal_port(m.internal_port, "PortMappings.InternalPort")
    d = msgspec.structs.replace(
        d,
        host_compute_endpoints=endpoints,
        host_compute_network=network_id,
        source_translated=translated,
        frontend_vips=vips,
    )
    check_vips(d, network, state)
    check_outer(d, network, state)
    return d


def _check_affinity(m: LoadBalancerPortMapping) -> None:
    if m.distribution_type not in tuple(Distribution):
        raise HcnError(
            Code.BAD_PARAMETER,
            f"PortMappings.DistributionType {m.distribution_type}: use 0 (5-tuple), 1 (source address and protocol) "
            "or 2 (source address)",
        )
    if m.affinity_seconds and m.distribution_type == Distribution.NONE:
        raise HcnError(
            Code.BAD_PARAMETER,
            f"PortMappings.OverlaceAffinitySeconds {m.affinity_seconds}: needs a DistributionType of 1 or 2",
        )
    if not 0 <= m.affinity_seconds <= MAX_AFFINITY:
        raise HcnError(
            Code.BAD_PARAMETER,
            f"PortMappings.OverlaceAffinitySeconds {m.affinity_seconds}: use 1 to {MAX_AFFINITY}",
        )


def check_namespace(d: HostComputeNamespace, state: State) -> HostComputeNamespace:
    """The document with its endpoints checked. Raises HcnError."""
    holder = state.by_namespace_id.get(d.namespace_id)
    if d.namespace_id and holder is not None and holder != d.id:
        raise HcnError(
            Code.ALREADY_EXISTS,
            f"NamespaceId {d.namespace_id} belongs to {holder}: leave it out to get a free one",
        )
    resources: list[NamespaceResource] = []
    for r in d.resources:
        if r.type == "Endpoint":
            guid = normal_guid(r.data.id, "Resources.Data.Id")
            check_attach(guid, d.id, state)
            r = NamespaceResource("Endpoint", ResourceData(guid))
        elif not r.data.id:
            raise HcnError(Code.BAD_PARAMETER, "Resources.Data.Id is empty: name the container")
        if r not in resources:
            resources.append(r)
    return msgspec.structs.replace(d, resources=tuple(resources))


def check_default(d: HostComputeNamespace, state: State) -> None:
    """A host has one default namespace of a kind. Raises HcnError."""
    if d.type in ("HostDefault", "GuestDefault"):
        for other in state.by_namespace_id.values():
            found = state.get(other, HostComputeNamespace)
            if found is not None and found.type == d.type and found.id != d.id:
                raise HcnError(Code.GCN_DEFAULTNAMESPACE_EXISTS, f"Type {d.type}: it is {found.id}")


def check_attach(endpoint_id: str, namespace_id: str, state: State) -> HostComputeEndpoint:
    """The endpoint, if it may join the namespace. Raises HcnError."""
    endpoint = state.get(endpoint_id, HostComputeEndpoint)
    if endpoint is None:
        raise HcnError(Code.ENDPOINT_NOT_FOUND, f"EndpointId {endpoint_id}: create the endpoint first")
    if endpoint.remote:
        raise HcnError(
            Code.INVALID_REMOTE_ENDPOINT_OPERATION,
            f"EndpointId {endpoint_id} is on another host: name a local endpoint",
        )
    if endpoint.host_compute_namespace not in ("", namespace_id):
        raise HcnError(
            Code.ENDPOINT_NAMESPACE_ALREADY_EXISTS,
            f"EndpointId {endpoint_id} is in namespace {endpoint.host_compute_namespace}: take it out there first",
        )
    return endpoint
