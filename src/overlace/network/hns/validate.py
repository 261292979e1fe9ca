"""Whether HNS takes a document: each check names the field, the value and the remedy.

Owns the refusals (pure functions of document and state). Must not change state.
Source: Microsoft's HCN reference and what public HNS clients observe; VNIs under 4096 are refused because
Windows cannot carry them (flannel and Calico refuse them as well, swarm allocates from 4096).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import msgspec

from overlace.network.hns import policies as p
from overlace.network.hns.acl import check_acls, read_sets, set_names
from overlace.network.hns.documents import (
    Distribution,
    EndpointFlags,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNamespace,
    HostComputeNetwork,
    LoadBalancerPortMapping,
    PortMappingFlags,
    normal_guid,
    normal_mac,
)
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.state import State, host_ports, vip_keys

MIN_VSID, MAX_VSID = 4096, (1 << 24) - 1
PROTOCOLS = {0: "any", 1: "icmp", 6: "tcp", 17: "udp", 132: "sctp"}
ANYWHERE = "0.0.0.0/0"
MAX_AFFINITY = 30 * 86400
MIN_RATE, MAX_RATE = 1000, 1 << 40  # bytes per second


def _prefix(text: str, field: str) -> ipaddress.IPv4Network:
    try:
        return ipaddress.IPv4Network(text)
    except ValueError as e:
        raise HcnError(Code.INVALID_PREFIX, f"{field} {text!r}: {e}") from None


def _address(text: str, field: str) -> ipaddress.IPv4Address:
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        raise HcnError(Code.INVALID_IP, f"{field} {text!r} is not an IPv4 address") from None


def _port(number: int, field: str) -> None:
    if not 0 < number < 65536:
        raise HcnError(Code.BAD_PARAMETER, f"{field} {number} is not a port: use 1 to 65535")


def _one_each(policies: Iterable[object], many: tuple[type[object], ...]) -> None:
    seen: set[type[object]] = set()
    for policy in policies:
        kind = type(policy)
        if kind in seen and kind not in many:
            if kind is p.InterfaceParameters:
                raise HcnError(Code.INTERFACEPARAMETERS_ALREADY_APPLIED)
            raise HcnError(Code.INVALID_POLICY, f"Policies holds {kind.__name__} twice: keep one")
        seen.add(kind)


def check_network(d: HostComputeNetwork, state: State) -> HostComputeNetwork:
    """The document with normalised spelling. Raises HcnError."""
    if not d.name:
        raise HcnError(Code.INVALID_NETWORK, "Name is empty: give the network a name")
    if d.type == "Overlay" and not d.subnets:
        raise HcnError(Code.INVALID_NETWORK, "Ipams has no Subnets: an Overlay network needs one with a VSID")
    for subnet in d.subnets:
        net = _prefix(subnet.ip_address_prefix, "IpAddressPrefix")
        if d.type == "Overlay":
            if not subnet.policies:
                raise HcnError(
                    Code.INVALID_SUBNET,
                    f"Subnets[{net}].Policies has no VSID: add "
                    '{"Type":"VSID","Settings":{"IsolationId":<VNI of 4096 or more>}}',
                )
            _check_vsid(subnet.policies[0].settings.isolation_id, d, state)
        elif subnet.policies:
            raise HcnError(
                Code.INVALID_POLICY_TYPE, f"VSID belongs to Overlay networks, {d.name} is {d.type}"
            )
        for route in subnet.routes:
            _prefix(route.destination_prefix, "Routes.DestinationPrefix")
            if _address(route.next_hop, "Routes.NextHop") not in net:
                raise HcnError(
                    Code.INVALID_IP, f"Routes.NextHop {route.next_hop} is outside {net}: use an address of it"
                )
        if d.type == "Overlay" and not any(r.destination_prefix == ANYWHERE for r in subnet.routes):
            raise HcnError(
                Code.INVALID_SUBNET, f"Subnets[{net}].Routes has no route to {ANYWHERE}: add the gateway"
            )
    nets = [ipaddress.IPv4Network(s.ip_address_prefix) for s in d.subnets]
    for i, a in enumerate(nets):
        for b in nets[i + 1 :]:
            if a.overlaps(b):
                raise HcnError(Code.INVALID_SUBNET, f"IpAddressPrefix {a} overlaps {b}: keep them apart")
    _one_each(d.policies, (p.RemoteSubnetRoute, p.SetPolicy))
    _check_sets(d, state)
    policies: list[p.NetworkPolicy] = []
    for policy in d.policies:
        if isinstance(policy, p.ProviderAddress):
            _address(policy.settings.provider_address, "ProviderAddress")
        elif isinstance(policy, p.VxlanPort):
            _port(policy.settings.port, "VxlanPort.Port")
        elif isinstance(policy, p.DrMacAddress):
            address = normal_mac(policy.settings.address, "DrMacAddress.Address")
            policy = p.DrMacAddress(p.DrMacAddressSettings(address))
        elif isinstance(policy, p.RemoteSubnetRoute):
            s = policy.settings
            _prefix(s.destination_prefix, "RemoteSubnetRoute.DestinationPrefix")
            _address(s.provider_address, "RemoteSubnetRoute.ProviderAddress")
            mac = normal_mac(s.distributed_router_mac_address, "DistributedRouterMacAddress")
            policy = p.RemoteSubnetRoute(msgspec.structs.replace(s, distributed_router_mac_address=mac))
        policies.append(policy)
    return msgspec.structs.replace(d, policies=tuple(policies))


def _check_sets(d: HostComputeNetwork, state: State) -> None:
    have = set(read_sets(d.policies))
    for guid in state.endpoints_of.get(d.id, ()):
        e = state.get(guid, HostComputeEndpoint)
        gone = sorted(set_names(e.policies) - have) if e is not None else []
        if gone:
            raise HcnError(
                Code.ENTITY_HAS_REFERENCES,
                f"SetPolicy {gone[0]!r} is used by an ACL of endpoint {guid}: take it out there first",
            )


def _check_vsid(vsid: int, d: HostComputeNetwork, state: State) -> None:
    if not MIN_VSID <= vsid <= MAX_VSID:
        raise HcnError(
            Code.BAD_PARAMETER,
            f"VSID IsolationId {vsid} of network {d.name}: Windows carries VNIs from {MIN_VSID} to "
            f"{MAX_VSID} only; choose one of {MIN_VSID} or more",
        )
    holder = state.by_vsid.get(vsid)
    if holder is not None and holder != d.id:
        raise HcnError(
            Code.NETWORK_ALREADY_EXISTS,
            f"VSID IsolationId {vsid} is taken by network {holder}: choose another",
        )


def check_endpoint(d: HostComputeEndpoint, state: State) -> HostComputeEndpoint:
    """The document with normalised spelling. Raises HcnError."""
    network_id = normal_guid(d.host_compute_network, "HostComputeNetwork")
    network = state.get(network_id, HostComputeNetwork)
    if network is None:
        raise HcnError(Code.NETWORK_NOT_FOUND, f"HostComputeNetwork {network_id}: create the network first")
    remote = bool(d.flags & EndpointFlags.REMOTE)
    if remote and not d.ip_configurations:
        raise HcnError(
            Code.INVALID_ENDPOINT, "IpConfigurations is empty: a remote endpoint needs its address"
        )
    if not d.mac_address and remote:
        raise HcnError(Code.INVALID_ENDPOINT, "MacAddress is empty: a remote endpoint needs its MAC")
    for config in d.ip_configurations:
        address = _address(config.ip_address, "IpConfigurations.IpAddress")
        nets = [ipaddress.IPv4Network(s.ip_address_prefix) for s in network.subnets]
        if nets and not any(address in n for n in nets):
            raise HcnError(
                Code.INVALID_IP,
                f"IpConfigurations.IpAddress {address} is in none of {', '.join(map(str, nets))}: "
                f"use an address of network {network.name}",
            )
        if any(r.next_hop == config.ip_address for s in network.subnets for r in s.routes):
            raise HcnError(
                Code.ADDR_INVALID_OR_RESERVED,
                f"IpConfigurations.IpAddress {address} is the gateway of network {network.name}: use another",
            )
        holder = state.by_address.get((network_id, config.ip_address))
        if holder is not None and holder != d.id:
            raise HcnError(
                Code.ADDR_INVALID_OR_RESERVED,
                f"IpConfigurations.IpAddress {address} belongs to endpoint {holder}: delete that one first",
            )
    _one_each(d.policies, (p.PortMapping, p.Acl, p.TierAcl))
    if network.type == "Overlay" and p.policy_of(d.policies, p.ProviderAddress) is None:
        raise HcnError(
            Code.INVALID_ENDPOINT, "Policies has no ProviderAddress: endpoints of Overlay networks need one"
        )
    for policy in d.policies:
        if isinstance(policy, p.ProviderAddress):
            _address(policy.settings.provider_address, "ProviderAddress.ProviderAddress")
        elif remote:
            raise HcnError(Code.INVALID_REMOTE_ENDPOINT_OPERATION, f"Policies: {type(policy).__name__}")
        elif isinstance(policy, p.OutBoundNat):
            for prefix in (*policy.settings.exceptions, *policy.settings.destinations):
                _prefix(prefix, "OutBoundNAT.Exceptions")
        elif isinstance(policy, p.Qos):
            rate = policy.settings.maximum_outgoing_bandwidth_in_bytes
            if not MIN_RATE <= rate <= MAX_RATE:
                raise HcnError(
                    Code.BAD_PARAMETER,
                    f"QOS.MaximumOutgoingBandwidthInBytes {rate}: use {MIN_RATE} to {MAX_RATE} bytes per second",
                )
        elif isinstance(policy, p.PortMapping):
            _protocol(policy.settings.protocol, "PortMapping.Protocol", any_protocol=False)
            _port(policy.settings.internal_port, "PortMapping.InternalPort")
            _port(policy.settings.external_port, "PortMapping.ExternalPort")
    check_acls(d.policies, read_sets(network.policies))
    _check_host_ports(d, state)
    mac = normal_mac(d.mac_address) if d.mac_address else ""
    return msgspec.structs.replace(d, host_compute_network=network_id, mac_address=mac)


def _protocol(number: int, field: str, *, any_protocol: bool) -> None:
    if number not in PROTOCOLS or (number == 0 and not any_protocol):
        raise HcnError(Code.BAD_PARAMETER, f"{field} {number}: use 6 (TCP), 17 (UDP) or 132 (SCTP)")


def _check_host_ports(d: HostComputeEndpoint | HostComputeLoadBalancer, state: State) -> None:
    seen: set[tuple[int, int]] = set()
    for port in host_ports(d):
        holder = state.by_host_port.get(port)
        if port in seen or (holder is not None and holder != d.id):
            raise HcnError(
                Code.PORT_ALREADY_EXISTS,
                f"ExternalPort {port[1]}/{PROTOCOLS.get(port[0], port[0])} is taken by "
                f"{holder or 'this document itself'}: choose another",
            )
        seen.add(port)


def check_load_balancer(
    d: HostComputeLoadBalancer, state: State, *, allow_empty: bool
) -> HostComputeLoadBalancer:
    """The document with normalised spelling. Raises HcnError.

    `allow_empty`: our own HNS lets a frontend exist without members (it then refuses connections); Windows'
    does not.
    """
    endpoints = tuple(normal_guid(e, "HostComputeEndpoints") for e in d.host_compute_endpoints)
    if not endpoints and not allow_empty:
        raise HcnError(Code.BAD_PARAMETER, "HostComputeEndpoints is empty: name at least one endpoint")
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
    if state.get(network_id, HostComputeNetwork) is None:
        raise HcnError(Code.NETWORK_NOT_FOUND, f"HostComputeNetwork {network_id}: create the network first")
    if d.source_vip:
        _address(d.source_vip, "SourceVIP")
    for vip in d.frontend_vips:
        _address(vip, "FrontendVIPs")
        if (network_id, vip) in state.by_address:
            raise HcnError(Code.ADDR_INVALID_OR_RESERVED, f"FrontendVIPs {vip} is an endpoint's address")
    if not d.port_mappings:
        raise HcnError(Code.BAD_PARAMETER, "PortMappings is empty: name at least one mapping")
    for m in d.port_mappings:
        _check_affinity(m)
        internal = bool(m.flags & PortMappingFlags.INTERNAL_LOAD_BALANCER)
        _protocol(m.protocol, "PortMappings.Protocol", any_protocol=internal)
        if internal and m.protocol == 0 and m.internal_port == 0 and m.external_port == 0:
            if not d.frontend_vips:
                raise HcnError(
                    Code.BAD_PARAMETER, "FrontendVIPs is empty: an internal load balancer needs its VIP"
                )
            continue
        _port(m.external_port, "PortMappings.ExternalPort")
        if m.internal_port == 0:
            raise HcnError(Code.INVALID_INTERNAL_PORT, "PortMappings.InternalPort")
        _port(m.internal_port, "PortMappings.InternalPort")
    d = msgspec.structs.replace(d, host_compute_endpoints=endpoints, host_compute_network=network_id)
    for key in vip_keys(d):
        holder = state.by_vip.get(key)
        if holder is not None and holder != d.id:
            raise HcnError(
                Code.PORT_ALREADY_EXISTS, f"FrontendVIPs {key[1]} is taken by load balancer {holder}"
            )
    _check_host_ports(d, state)
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
    for guid in d.endpoints:
        check_attach(normal_guid(guid, "Resources.Data.Id"), d.id, state)
    return d


def check_attach(endpoint_id: str, namespace_id: str, state: State) -> HostComputeEndpoint:
    """The endpoint, if it may join the namespace. Raises HcnError."""
    endpoint = state.get(endpoint_id, HostComputeEndpoint)
    if endpoint is None:
        raise HcnError(Code.ENDPOINT_NOT_FOUND, f"EndpointId {endpoint_id}: create the endpoint first")
    if endpoint.remote:
        raise HcnError(Code.INVALID_REMOTE_ENDPOINT_OPERATION, f"EndpointId {endpoint_id}")
    if endpoint.host_compute_namespace not in ("", namespace_id):
        raise HcnError(Code.ENDPOINT_NAMESPACE_ALREADY_EXISTS, f"EndpointId {endpoint_id}")
    return endpoint
