"""Whether HNS takes a document: each check names the field, the value and the remedy.

Owns the refusals (pure functions of document and state). Must not change state.
Source: Microsoft's HCN reference and what public HNS clients observe; VNIs under 4096 are refused because
Windows cannot carry them (flannel and Calico refuse them as well, swarm allocates from 4096).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import msgspec

from overlace.model.family import is_six
from overlace.network.hns import policies as p
from overlace.network.hns.acl import check_acls, judging, read_sets, set_names
from overlace.network.hns.addresses import (
    ANY_ADDRESS,
    IPAddress,
    IPNetwork,
    check_address,
    check_not_edge,
    check_prefix,
    check_subnet_prefix,
    check_usable,
)
from overlace.network.hns.collisions import BALANCED, check_network_fits, check_not_vip, check_outer
from overlace.network.hns.documents import (
    EndpointFlags,
    HostComputeEndpoint,
    HostComputeNetwork,
    IpConfiguration,
    Route,
    Subnet,
    normal_guid,
    normal_mac,
)
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.fill import prefix_of_id
from overlace.network.hns.modify import normal_policy
from overlace.network.hns.remotes import is_placeholder
from overlace.network.hns.routes import ANYWHERE, ANYWHERE6, check_routes, check_subnet_routes
from overlace.network.hns.state import State

MIN_VSID, MAX_VSID = 4096, (1 << 24) - 1
MAX_NAT_PREFIXES = 4096  # of one endpoint
MIN_MTU, MIN_MTU6 = 68, 1280  # RFC 791, RFC 8200
MAX_OVERHEAD = 65535 - MIN_MTU
MIN_RATE, MAX_RATE = 1000, 1 << 40  # bytes per second


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
    six = kind in ("L2Bridge", "Transparent") or (overlay_six and kind == "Overlay")
    net = check_prefix(text, "IpAddressPrefix", six=six)
    check_subnet_prefix(net, "IpAddressPrefix")
    return net


def check_port(number: int, field: str) -> None:
    if not 0 < number < 65536:
        raise HcnError(Code.BAD_PARAMETER, f"{field} {number} is not a port: use 1 to 65535")


def check_internal_port(number: int, field: str) -> None:
    """Raises HcnError, for 0 with a code of its own."""
    if number == 0:
        raise HcnError(Code.INVALID_INTERNAL_PORT, f"{field} 0 is not a port: use 1 to 65535")
    check_port(number, field)


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
            check_prefix(route.destination_prefix, "Routes.DestinationPrefix")
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
    check_network_fits(d, state)
    _check_mac_pool(d)
    if d.multicast_rate and d.type != "Overlay":
        raise HcnError(
            Code.INVALID_NETWORK,
            f"OverlaceMulticastRate {d.multicast_rate}: Overlay networks alone carry multicast, {d.name} is {d.type}; "
            "leave it out",
        )
    _one_each(d.policies)
    _on_this_type(d.policies, d)
    _check_sets(d, state)
    policies: list[p.NetworkPolicy] = []
    for policy in d.policies:
        policy = normal_policy(policy)
        if isinstance(policy, p.ProviderAddress):
            check_usable(policy.settings.provider_address, "ProviderAddress", six=overlay_six, loopback=True)
        elif isinstance(policy, p.VxlanPort):
            check_port(policy.settings.port, "VxlanPort.Port")
        elif isinstance(policy, p.RemoteSubnetRoute):
            s = policy.settings
            six = any(is_six(subnet.ip_address_prefix) for subnet in d.subnets)
            check_prefix(s.destination_prefix, "RemoteSubnetRoute.DestinationPrefix", six=six)
            field = "RemoteSubnetRoute.ProviderAddress"
            check_usable(s.provider_address, field, six=overlay_six, loopback=True)
            if not MIN_VSID <= s.isolation_id <= MAX_VSID:
                raise HcnError(
                    Code.INVALID_POLICY,
                    f"RemoteSubnetRoute.IsolationId {s.isolation_id}: use the other network's VNI, "
                    f"{MIN_VSID} to {MAX_VSID}",
                )
        policies.append(policy)
    check_subnet_routes(policies)
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
    check_routes(d)
    nets = [ipaddress.ip_network(s.ip_address_prefix) for s in network.subnets]
    seen: set[str] = set()
    configs: list[IpConfiguration] = []
    for config in d.ip_configurations:
        v6 = any(n.version == 6 for n in nets) and is_six(config.ip_address)
        address = check_address(config.ip_address, "IpConfigurations.IpAddress", six=v6)
        config = msgspec.structs.replace(config, ip_address=str(address))
        configs.append(config)
        if config.ip_address in seen:
            raise HcnError(Code.INVALID_IP, f"IpConfigurations.IpAddress {address} is given twice: keep one")
        seen.add(config.ip_address)
        if config.ip_subnet_id:
            _in_its_subnet(address, config.ip_subnet_id, network)
        if config.prefix_length > address.max_prefixlen:
            raise HcnError(
                Code.INVALID_PREFIX,
                f"IpConfigurations.PrefixLength {config.prefix_length} of {address}: use {address.max_prefixlen} at most",
            )
        check_usable(config.ip_address, "IpConfigurations.IpAddress", six=v6)
        if not remote:  # another host's may be on another subnet
            _in_a_subnet(address, network)
        check_not_edge(address, nets, "IpConfigurations.IpAddress")
        if not is_placeholder(d, network):
            check_not_vip(str(address), network, state)
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
    policies: list[p.EndpointPolicy] = []
    for policy in d.policies:
        if (
            isinstance(policy, p.PortMapping) and policy.settings.vip in ANY_ADDRESS
        ):  # as Azure's CNI writes none
            policy = p.PortMapping(msgspec.structs.replace(policy.settings, vip=""))
        policies.append(policy)
        if isinstance(policy, p.ProviderAddress):
            field = "ProviderAddress.ProviderAddress"
            check_usable(policy.settings.provider_address, field, six=overlay_six, loopback=True)
        elif remote:
            raise HcnError(
                Code.INVALID_REMOTE_ENDPOINT_OPERATION,
                f"Policies: {p.type_name(policy)} on a remote endpoint: leave it out, its own host has it",
            )
        elif isinstance(policy, p.OutBoundNat):
            six = any(n.version == 6 for n in nets)
            if policy.settings.virtual_ip:
                check_usable(policy.settings.virtual_ip, "OutBoundNAT.VirtualIP", loopback=True)
            for prefix in policy.settings.exceptions:
                check_prefix(prefix, "OutBoundNAT.Exceptions", six=six)
            for prefix in policy.settings.destinations:
                check_prefix(prefix, "OutBoundNAT.Destinations", six=six)
        elif isinstance(policy, p.EncapOverhead):
            overhead = policy.settings.overhead
            if not 0 <= overhead <= MAX_OVERHEAD:
                raise HcnError(
                    Code.INVALID_POLICY,
                    f"EncapOverhead.Overhead {overhead}: use 0 to {MAX_OVERHEAD} bytes, 50 for VXLAN",
                )
        elif isinstance(policy, p.InterfaceParameters):
            least = MIN_MTU6 if any(is_six(c.ip_address) for c in d.ip_configurations) else MIN_MTU
            if policy.settings.mtu and policy.settings.mtu < least:
                raise HcnError(
                    Code.INVALID_POLICY,
                    f"InterfaceParameters.Mtu {policy.settings.mtu}: use {least} to 65535, or leave it out",
                )
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
            check_internal_port(policy.settings.internal_port, "PortMapping.InternalPort")
            if policy.settings.vip:
                check_usable(policy.settings.vip, "PortMapping.VIP", six=overlay_six, loopback=overlay_six)
            check_port(policy.settings.external_port, "PortMapping.ExternalPort")
    if not remote:
        check_acls(judging(network.policies, d.policies), read_sets(network.policies))
    _check_nat_lists(d)
    mac = normal_mac(d.mac_address) if d.mac_address else ""
    d = msgspec.structs.replace(
        d,
        host_compute_network=network_id,
        mac_address=mac,
        policies=tuple(policies),
        ip_configurations=tuple(configs),
    )
    check_outer(d, network, state)
    return d


def _check_nat_lists(d: HostComputeEndpoint) -> None:
    """Of all its OutBoundNATs together: the data path has one list of prefixes for an endpoint."""
    nats = [x.settings for x in d.policies if isinstance(x, p.OutBoundNat)]
    n = sum(len(s.exceptions) + len(s.destinations) for s in nats)
    if n > MAX_NAT_PREFIXES:
        raise HcnError(
            Code.INVALID_POLICY,
            f"OutBoundNAT: {n} Exceptions and Destinations; {MAX_NAT_PREFIXES} are possible: name wider prefixes",
        )


def _in_its_subnet(address: IPAddress, guid: str, network: HostComputeNetwork) -> None:
    """That an address is of the subnet, or the part of one, that the endpoint names beside it. Raises HcnError."""
    found = prefix_of_id(guid, network)
    if found is None:
        raise HcnError(
            Code.SUBNET_NOT_FOUND,
            f"IpConfigurations.IpSubnetId {guid} is of no subnet of network {network.name}: leave it out, or use one of "
            "its",
        )
    if address not in ipaddress.ip_network(found):
        raise HcnError(
            Code.INVALID_IP,
            f"IpConfigurations.IpAddress {address} is outside {found}, which IpSubnetId {guid} names: use one of its",
        )


def _in_a_subnet(address: IPAddress, network: HostComputeNetwork) -> None:
    nets = [ipaddress.ip_network(s.ip_address_prefix) for s in network.subnets]
    if nets and not any(address in n for n in nets):
        raise HcnError(
            Code.INVALID_IP,
            f"IpConfigurations.IpAddress {address} is in none of {', '.join(map(str, nets))}: "
            f"use an address of network {network.name}",
        )


def check_inside(d: HostComputeEndpoint, network: HostComputeNetwork) -> None:
    """That a local endpoint's addresses are of the network. Raises HcnError."""
    for config in d.ip_configurations if not d.remote else ():
        _in_a_subnet(ipaddress.ip_address(config.ip_address), network)


def _route6(route: Route, net: IPNetwork) -> None:
    check_prefix(route.destination_prefix, "Routes.DestinationPrefix", six=True)
    if check_address(route.next_hop, "Routes.NextHop", six=True) not in net:
        raise HcnError(Code.INVALID_IP, f"Routes.NextHop {route.next_hop} is outside {net}: use one of its")


def _check_ip_subnets(subnet: Subnet, net: IPNetwork) -> None:
    for inner in subnet.ip_subnets:
        try:
            found = check_prefix(inner.ip_address_prefix, "IpSubnets.IpAddressPrefix", six=net.version == 6)
        except HcnError as e:
            raise HcnError(Code.INVALID_IP_SUBNET, e.detail) from None
        if found.version != net.version or not found.subnet_of(net):  # type: ignore[arg-type]
            raise HcnError(
                Code.INVALID_IP_SUBNET,
                f"IpSubnets.IpAddressPrefix {found} is outside {net}: write a part of that subnet",
            )


def _check_mac_pool(d: HostComputeNetwork) -> None:
    for r in d.mac_pool.ranges:
        start = normal_mac(r.start_mac_address, "MacPool.Ranges.StartMacAddress")
        if start > normal_mac(r.end_mac_address, "MacPool.Ranges.EndMacAddress"):
            raise HcnError(
                Code.BAD_PARAMETER, f"MacPool.Ranges.EndMacAddress {r.end_mac_address} is before {start}"
            )


def check_sdn_route(s: p.SdnRouteSettings, field: str) -> None:
    check_prefix(s.destination_prefix, f"{field}.DestinationPrefix", six=True, loose=True)
    if s.next_hop:
        check_address(s.next_hop, f"{field}.NextHop", six=True)


def check_protocol(number: int, field: str, *, any_protocol: bool) -> None:
    if number not in BALANCED or (number == 0 and not any_protocol):
        raise HcnError(Code.BAD_PARAMETER, f"{field} {number}: use 6 (TCP), 17 (UDP) or 132 (SCTP)")
