"""Whether HNS takes a document: each check names the field, the value and the remedy.

Owns the refusals (pure functions of document and state). Must not change state.
Source: Microsoft's HCN reference and what public HNS clients observe; VNIs under 4096 are refused because
Windows cannot carry them (flannel and Calico refuse them as well, swarm allocates from 4096).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Union

import msgspec

from overlace.network.hns import policies as p
from overlace.network.hns.acl import check_acls, judging, read_sets, set_names
from overlace.network.hns.documents import (
    EndpointFlags,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNetwork,
    Route,
    Subnet,
    normal_guid,
    normal_mac,
)
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.state import State, host_ports

MIN_VSID, MAX_VSID = 4096, (1 << 24) - 1
PROTOCOLS = {0: "any", 1: "icmp", 6: "tcp", 17: "udp", 132: "sctp"}
ANYWHERE, ANYWHERE6 = "0.0.0.0/0", "::/0"
MIN_RATE, MAX_RATE = 1000, 1 << 40  # bytes per second


IPNetwork = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
# network types by what Microsoft's documentation says of them
EXTERNAL = ("Overlay", "L2Bridge", "L2Tunnel", "Transparent")
MANY_SUBNETS = ("Overlay", "L2Bridge", "L2Tunnel")
MAPPINGS = ("NAT", "Overlay", "L2Bridge")
VLANS = ("L2Bridge", "L2Tunnel", "Transparent")
ONLY_ON: dict[type[object], tuple[str, ...]] = {
    p.RemoteSubnetRoute: ("Overlay",),
    p.VxlanPort: ("Overlay",),
    p.DrMacAddress: ("Overlay",),
    p.HostRoute: ("Overlay", "L2Bridge"),
    p.ProviderAddress: EXTERNAL,
    p.NetAdapterName: EXTERNAL,
    p.SourceMacAddress: ("L2Bridge", "L2Tunnel"),
    p.VSwitchExtension: EXTERNAL,
}


def _subnet(text: str, kind: str, *, overlay_six: bool) -> IPNetwork:
    """IPv6 is carried on L2Bridge and Transparent networks; on Overlay networks by our own data path alone."""
    if ":" not in text or not (kind in ("L2Bridge", "Transparent") or (overlay_six and kind == "Overlay")):
        return _prefix(text, "IpAddressPrefix")
    try:
        return ipaddress.IPv6Network(text)
    except ValueError as e:
        raise HcnError(Code.INVALID_PREFIX, f"IpAddressPrefix {text!r}: {e}") from None


def _inside(text: str, net: IPNetwork) -> bool:
    return ipaddress.ip_address(text) in net


def _prefix(text: str, field: str, *, six: bool = False) -> IPNetwork:
    """`six`: it may be an IPv6 prefix too."""
    try:
        if six and ":" in text:
            return ipaddress.IPv6Network(text)
        return ipaddress.IPv4Network(text)
    except ValueError as e:
        raise HcnError(Code.INVALID_PREFIX, f"{field} {text!r}: {e}") from None


def check_address(
    text: str, field: str, *, six: bool = False
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """`six`: it may be an IPv6 address too. Raises HcnError."""
    try:
        if six and ":" in text:
            return ipaddress.IPv6Address(text)
        return ipaddress.IPv4Address(text)
    except ValueError:
        raise HcnError(
            Code.INVALID_IP, f"{field} {text!r} is not an {'' if six else 'IPv4 '}address"
        ) from None


def check_port(number: int, field: str) -> None:
    if not 0 < number < 65536:
        raise HcnError(Code.BAD_PARAMETER, f"{field} {number} is not a port: use 1 to 65535")


def _one_each(policies: Iterable[object]) -> None:
    seen: set[type[object]] = set()
    for policy in policies:
        kind = type(policy)
        if kind in seen and kind not in p.REPEATED:
            if kind is p.InterfaceParameters:
                raise HcnError(Code.INTERFACEPARAMETERS_ALREADY_APPLIED)
            raise HcnError(Code.INVALID_POLICY, f"Policies holds {p.type_name(policy)} twice: keep one")
        seen.add(kind)


def _on_this_type(policies: Iterable[object], d: HostComputeNetwork) -> None:
    for policy in policies:
        types = ONLY_ON.get(type(policy))
        if types is not None and d.type not in types:
            raise HcnError(
                Code.INVALID_POLICY_TYPE,
                f"Policies: {p.type_name(policy)} belongs to {' and '.join(types)} networks, {d.name} is {d.type}",
            )


def check_network(d: HostComputeNetwork, state: State, *, overlay_six: bool = False) -> HostComputeNetwork:
    """The document with normalised spelling. Raises HcnError.

    `overlay_six`: our own HNS takes IPv6 subnets of Overlay networks, and tunnels over IPv6; Windows' does not.
    """
    if not d.name:
        raise HcnError(Code.INVALID_NETWORK, "Name is empty: give the network a name")
    if d.type == "Overlay" and not d.subnets:
        raise HcnError(Code.INVALID_NETWORK, "Ipams has no Subnets: an Overlay network needs one with a VSID")
    if len(d.subnets) > 1 and d.type not in MANY_SUBNETS:
        raise HcnError(
            Code.INVALID_NETWORK, f"Ipams holds {len(d.subnets)} Subnets: a {d.type} network has one"
        )
    for subnet in d.subnets:
        net = _subnet(subnet.ip_address_prefix, d.type, overlay_six=overlay_six)
        _check_ip_subnets(subnet, net)
        if d.type == "Overlay":
            vsid = p.policy_of(subnet.policies, p.Vsid)
            if vsid is None:
                raise HcnError(
                    Code.INVALID_SUBNET,
                    f"Subnets[{net}].Policies has no VSID: add "
                    '{"Type":"VSID","Settings":{"IsolationId":<VNI of 4096 or more>}}',
                )
            _check_vsid(vsid.settings.isolation_id, d, state)
        elif p.policy_of(subnet.policies, p.Vsid) is not None:
            raise HcnError(
                Code.INVALID_POLICY_TYPE, f"VSID belongs to Overlay networks, {d.name} is {d.type}"
            )
        vlan = p.policy_of(subnet.policies, p.Vlan)
        if vlan is not None:
            if d.type not in VLANS:
                raise HcnError(
                    Code.INVALID_POLICY_TYPE, f"VLAN belongs to {', '.join(VLANS)}, {d.name} is {d.type}"
                )
            if not 0 < vlan.settings.isolation_id < 4095:
                raise HcnError(
                    Code.INVALID_POLICY, f"VLAN IsolationId {vlan.settings.isolation_id}: use 1 to 4094"
                )
        for route in subnet.routes:
            if net.version == 6:
                _route6(route, net)
                continue
            _prefix(route.destination_prefix, "Routes.DestinationPrefix")
            if check_address(route.next_hop, "Routes.NextHop") not in net:
                raise HcnError(
                    Code.INVALID_IP, f"Routes.NextHop {route.next_hop} is outside {net}: use an address of it"
                )
        anywhere = ANYWHERE if net.version == 4 else ANYWHERE6
        if d.type == "Overlay" and not any(r.destination_prefix == anywhere for r in subnet.routes):
            raise HcnError(
                Code.INVALID_SUBNET, f"Subnets[{net}].Routes has no route to {anywhere}: add the gateway"
            )
    nets = [ipaddress.ip_network(s.ip_address_prefix) for s in d.subnets]
    if d.type == "Overlay" and all(net.version == 6 for net in nets):
        raise HcnError(
            Code.INVALID_NETWORK, "Subnets: an Overlay network needs an IPv4 one beside its IPv6 ones"
        )
    for i, a in enumerate(nets):
        for b in nets[i + 1 :]:
            if a.version == b.version and a.overlaps(b):
                raise HcnError(Code.INVALID_SUBNET, f"IpAddressPrefix {a} overlaps {b}: keep them apart")
    _check_mac_pool(d)
    _one_each(d.policies)
    _on_this_type(d.policies, d)
    _check_sets(d, state)
    policies: list[p.NetworkPolicy] = []
    for policy in d.policies:
        if isinstance(policy, p.ProviderAddress):
            check_address(policy.settings.provider_address, "ProviderAddress", six=overlay_six)
        elif isinstance(policy, p.VxlanPort):
            check_port(policy.settings.port, "VxlanPort.Port")
        elif isinstance(policy, p.DrMacAddress):
            address = normal_mac(policy.settings.address, "DrMacAddress.Address")
            policy = p.DrMacAddress(p.DrMacAddressSettings(address))
        elif isinstance(policy, p.RemoteSubnetRoute):
            s = policy.settings
            six = any(":" in subnet.ip_address_prefix for subnet in d.subnets)
            _prefix(s.destination_prefix, "RemoteSubnetRoute.DestinationPrefix", six=six)
            check_address(s.provider_address, "RemoteSubnetRoute.ProviderAddress", six=overlay_six)
            mac = normal_mac(s.distributed_router_mac_address, "DistributedRouterMacAddress")
            policy = p.RemoteSubnetRoute(msgspec.structs.replace(s, distributed_router_mac_address=mac))
        policies.append(policy)
    return msgspec.structs.replace(d, policies=tuple(policies))


def _check_sets(d: HostComputeNetwork, state: State) -> None:
    sets = read_sets(d.policies)
    have = set(sets)
    check_acls(judging(d.policies, ()), sets)
    for guid in state.endpoints_of.get(d.id, ()):
        e = state.get(guid, HostComputeEndpoint)
        gone = sorted(set_names(e.policies) - have) if e is not None else []
        if gone:
            raise HcnError(
                Code.ENTITY_HAS_REFERENCES,
                f"SetPolicy {gone[0]!r} is used by an ACL of endpoint {guid}: take it out there first",
            )
        if e is not None and not e.remote:
            check_acls(judging(d.policies, e.policies), sets)


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


def check_endpoint(d: HostComputeEndpoint, state: State, *, overlay_six: bool = False) -> HostComputeEndpoint:
    """The document with normalised spelling; `overlay_six`: hosts may have IPv6 addresses. Raises HcnError."""
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
    nets = [ipaddress.ip_network(s.ip_address_prefix) for s in network.subnets]
    seen: set[str] = set()
    for config in d.ip_configurations:
        v6 = any(n.version == 6 for n in nets) and ":" in config.ip_address
        address = check_address(config.ip_address, "IpConfigurations.IpAddress", six=v6)
        if config.ip_address in seen:
            raise HcnError(Code.INVALID_IP, f"IpConfigurations.IpAddress {address} is given twice: keep one")
        seen.add(config.ip_address)
        if config.ip_subnet_id and config.ip_subnet_id.upper() not in {
            i for s in network.subnets for i in (s.id, *(x.id for x in s.ip_subnets))
        }:
            raise HcnError(
                Code.SUBNET_NOT_FOUND, f"IpConfigurations.IpSubnetId {config.ip_subnet_id} of {network.name}"
            )
        if config.prefix_length > address.max_prefixlen:
            raise HcnError(
                Code.INVALID_PREFIX, f"IpConfigurations.PrefixLength {config.prefix_length} of {address}"
            )
        _in_a_subnet(address, network)
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
    _one_each(d.policies)
    if network.type == "Overlay" and p.policy_of(d.policies, p.ProviderAddress) is None:
        raise HcnError(
            Code.INVALID_ENDPOINT, "Policies has no ProviderAddress: endpoints of Overlay networks need one"
        )
    for policy in d.policies:
        if isinstance(policy, p.ProviderAddress):
            check_address(
                policy.settings.provider_address, "ProviderAddress.ProviderAddress", six=overlay_six
            )
        elif remote:
            raise HcnError(Code.INVALID_REMOTE_ENDPOINT_OPERATION, f"Policies: {type(policy).__name__}")
        elif isinstance(policy, p.OutBoundNat):
            six = any(n.version == 6 for n in nets)
            for prefix in policy.settings.exceptions:
                _prefix(prefix, "OutBoundNAT.Exceptions", six=six)
            for prefix in policy.settings.destinations:
                _prefix(prefix, "OutBoundNAT.Destinations", six=six)
        elif isinstance(policy, p.Vlan) and network.type not in VLANS:
            raise HcnError(
                Code.INVALID_POLICY_TYPE, f"Policies: VLAN belongs to {', '.join(VLANS)}, not {network.type}"
            )
        elif isinstance(policy, p.SdnRoute):
            check_sdn_route(policy.settings, "SDNRoute")
        elif isinstance(policy, p.Qos):
            rate = policy.settings.maximum_outgoing_bandwidth_in_bytes
            if not MIN_RATE <= rate <= MAX_RATE:
                raise HcnError(
                    Code.BAD_PARAMETER,
                    f"QOS.MaximumOutgoingBandwidthInBytes {rate}: use {MIN_RATE} to {MAX_RATE} bytes per second",
                )
        elif isinstance(policy, p.PortMapping):
            if network.type not in MAPPINGS:
                raise HcnError(
                    Code.MAPPING_NOT_SUPPORTED,
                    f"PortMapping on network {network.name} of type {network.type}: use {', '.join(MAPPINGS)}",
                )
            check_protocol(policy.settings.protocol, "PortMapping.Protocol", any_protocol=False)
            if policy.settings.internal_port == 0:
                raise HcnError(Code.INVALID_INTERNAL_PORT, "PortMapping.InternalPort")
            check_port(policy.settings.internal_port, "PortMapping.InternalPort")
            if policy.settings.vip:
                check_address(policy.settings.vip, "PortMapping.VIP")
            check_port(policy.settings.external_port, "PortMapping.ExternalPort")
    if not remote:
        check_acls(judging(network.policies, d.policies), read_sets(network.policies))
    check_host_ports(d, state)
    mac = normal_mac(d.mac_address) if d.mac_address else ""
    return msgspec.structs.replace(d, host_compute_network=network_id, mac_address=mac)


def _in_a_subnet(address: ipaddress.IPv4Address | ipaddress.IPv6Address, network: HostComputeNetwork) -> None:
    nets = [ipaddress.ip_network(s.ip_address_prefix) for s in network.subnets]
    if nets and not any(address in n for n in nets):
        raise HcnError(
            Code.INVALID_IP,
            f"IpConfigurations.IpAddress {address} is in none of {', '.join(map(str, nets))}: "
            f"use an address of network {network.name}",
        )


def check_inside(d: HostComputeEndpoint, network: HostComputeNetwork) -> None:
    """That the endpoint's addresses are of the network. Raises HcnError."""
    for config in d.ip_configurations:
        _in_a_subnet(ipaddress.ip_address(config.ip_address), network)


def _route6(route: Route, net: IPNetwork) -> None:
    try:
        ipaddress.IPv6Network(route.destination_prefix)
        inside = _inside(route.next_hop, net)
    except ValueError as e:
        raise HcnError(Code.INVALID_IP, f"Routes: {e}") from None
    if not inside:
        raise HcnError(Code.INVALID_IP, f"Routes.NextHop {route.next_hop} is outside {net}: use one of its")


def _check_ip_subnets(subnet: Subnet, net: IPNetwork) -> None:
    for inner in subnet.ip_subnets:
        try:
            found = ipaddress.ip_network(inner.ip_address_prefix)
        except ValueError as e:
            raise HcnError(Code.INVALID_IP_SUBNET, f"IpSubnets.IpAddressPrefix: {e}") from None
        if found.version != net.version or not found.subnet_of(net):  # type: ignore[arg-type]
            raise HcnError(Code.INVALID_IP_SUBNET, f"IpSubnets.IpAddressPrefix {found} is outside {net}")


def _check_mac_pool(d: HostComputeNetwork) -> None:
    for r in d.mac_pool.ranges:
        start = normal_mac(r.start_mac_address, "MacPool.Ranges.StartMacAddress")
        if start > normal_mac(r.end_mac_address, "MacPool.Ranges.EndMacAddress"):
            raise HcnError(
                Code.BAD_PARAMETER, f"MacPool.Ranges.EndMacAddress {r.end_mac_address} is before {start}"
            )


def check_sdn_route(s: p.SdnRouteSettings, field: str) -> None:
    try:
        ipaddress.ip_network(s.destination_prefix, strict=False)
    except ValueError as e:
        raise HcnError(
            Code.INVALID_PREFIX, f"{field}.DestinationPrefix {s.destination_prefix!r}: {e}"
        ) from None
    if s.next_hop:
        try:
            ipaddress.ip_address(s.next_hop)
        except ValueError:
            raise HcnError(Code.INVALID_IP, f"{field}.NextHop {s.next_hop!r} is not an address") from None


def check_protocol(number: int, field: str, *, any_protocol: bool) -> None:
    if number not in PROTOCOLS or (number == 0 and not any_protocol):
        raise HcnError(Code.BAD_PARAMETER, f"{field} {number}: use 6 (TCP), 17 (UDP) or 132 (SCTP)")


def check_host_ports(d: HostComputeEndpoint | HostComputeLoadBalancer, state: State) -> None:
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
