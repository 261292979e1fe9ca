"""What a Linux host enforces of HCN's documents; everything else is refused, not taken and forgotten.

Owns the list (pure). Kept and returned without an effect here: Dns members and AutomaticDNS (nobody answers names for
`overlace hns serve`; who runs the container writes its resolv.conf), persistence flags (--state decides).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_network

from overlace.model.family import is_six
from overlace.model.paths import tunnel_overhead
from overlace.model.protocols import UDP
from overlace.network.hns import policies as p
from overlace.network.hns.documents import (
    Document,
    EndpointFlags,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNamespace,
    HostComputeNetwork,
    HostComputeRoute,
    LoadBalancerFlags,
    LoadBalancerPortMapping,
    NetworkFlags,
    PortMappingFlags,
    Route,
    Subnet,
)
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.remotes import provider_of, tunnel_to
from overlace.network.hns.routes import ANYWHERE, ANYWHERE6, gateways_of
from overlace.network.hns.state import OuterKey, State, outer_keys
from overlace.network.hns.validate import MIN_MTU, MIN_MTU6

NETWORK_FLAGS = NetworkFlags.EnableNonPersistent | NetworkFlags.EnablePersistent
NETWORK_POLICIES = (
    p.ProviderAddress, p.DrMacAddress, p.NetAdapterName, p.VxlanPort, p.AutomaticDns, p.SetPolicy,
    p.RemoteSubnetRoute, p.HostRoute, p.NetworkAcl,
)  # fmt: skip
# LocalRoutedVip: containers of this host reach the VIP or port here, and it never leaves; that is always so
PORT_MAPPING_FLAGS = (
    PortMappingFlags.INTERNAL_LOAD_BALANCER
    | PortMappingFlags.LOCAL_ROUTED_VIP
    | PortMappingFlags.IsVipExternalIP
    | PortMappingFlags.PRESERVE_DIP
    | PortMappingFlags.USE_MUX
)
ENDPOINT_POLICIES = (
    p.ProviderAddress, p.OutBoundNat, p.PortMapping, p.EncapOverhead, p.InterfaceParameters, p.Acl, p.TierAcl, p.Qos,
    p.SdnRoute,
)  # fmt: skip


def linux_check(
    address: str,
    ifname: str,
    vxlan_port: int,
    mtu: int = 1500,
    listening: Callable[[], Iterable[OuterKey]] = tuple,
) -> Callable[[Document, State], None]:
    """The check for a host whose underlay is `address` on `ifname`, which takes packets of `mtu` bytes. `listening`:
    where the host's own programs have sockets."""

    def check(d: Document, state: State) -> None:
        _ports(d, state, vxlan_port, listening)
        if isinstance(d, HostComputeNetwork):
            _network(d, state, address, ifname, vxlan_port)
        elif isinstance(d, HostComputeEndpoint):
            _endpoint(d, state.get(d.host_compute_network, HostComputeNetwork), address, mtu)
        elif isinstance(d, HostComputeLoadBalancer):
            network = state.get(d.host_compute_network, HostComputeNetwork)
            _balancer(d, network, address)
            _backends(d, network, state)
            _source(d, network, state, address)
        elif isinstance(d, HostComputeNamespace):
            _namespace(d)
        elif isinstance(d, HostComputeRoute):
            _routes(d.routes, state.get(d.host_compute_network, HostComputeNetwork), address)

    return check


def _ports(d: Document, state: State, vxlan_port: int, listening: Callable[[], Iterable[OuterKey]]) -> None:
    """A port that is new on the host must not be one that something of the host listens on. Who has reserved it
    (ExternalPortReserved) holds the socket himself, as Docker on Windows does."""
    network = (
        state.get(d.host_compute_network, HostComputeNetwork)
        if isinstance(d, (HostComputeEndpoint, HostComputeLoadBalancer))
        else None
    )
    new = set(outer_keys(d, network, state.host)) - set(state.outer_of.get(d.id, ()))
    for _, protocol, port in sorted(new):
        if protocol == UDP and port == vxlan_port:
            raise HcnError(
                Code.PORT_ALREADY_EXISTS,
                f"ExternalPort {port}/udp: the tunnels from other hosts arrive there; use another",
            )
    reserved = {
        (x.settings.protocol, x.settings.external_port)
        for x in (d.policies if isinstance(d, HostComputeEndpoint) else ())
        if isinstance(x, p.PortMapping) and x.settings.flags & p.NatFlags.ExternalPortReserved
    }
    asked = {key for key in new if key[1:] not in reserved}
    for at, protocol, port in sorted(listening()) if asked else ():
        if ("", protocol, port) in asked or (at, protocol, port) in asked:
            raise HcnError(
                Code.PORT_ALREADY_EXISTS,
                f"ExternalPort {port} of protocol {protocol}: a program of this host listens there, at "
                f"{at or 'every address'}; stop it, use another port, or write ExternalPortReserved",
            )


def _no(what: str, remedy: str = "leave it out, or use --backend model") -> HcnError:
    return HcnError(Code.NOT_SUPPORTED, f"{what}: this host's data path does not do that; {remedy}")


def _bits(
    value: int, allowed: int, kind: type[NetworkFlags] | type[EndpointFlags] | type[LoadBalancerFlags]
) -> None:
    if value & ~allowed:
        names = [n for n, m in kind.__members__.items() if m & value & ~allowed]
        raise _no(f"Flags: {', '.join(names)}")


def _network(d: HostComputeNetwork, state: State, address: str, ifname: str, vxlan_port: int) -> None:
    if d.type not in ("NAT", "Overlay"):
        raise HcnError(Code.VFP_NOT_ALLOWED, f"Type {d.type}: this host carries NAT and Overlay networks")
    _bits(d.flags, int(NETWORK_FLAGS), NetworkFlags)
    for ipam in d.ipams:
        if ipam.type != "Static":
            raise _no(f"Ipams.Type {ipam.type}", "write Static: addresses are this service's or the client's")
    for subnet in d.subnets:
        _subnet(subnet, address)
    if len(set(d.vsids)) > 1:
        raise _no(
            f"VSID: the subnets of {d.name} have {', '.join(map(str, sorted(set(d.vsids))))}",
            "give the network's subnets one, or each subnet a network",
        )
    if d.type == "NAT":
        for other in state.by_network_name.values():
            found = state.get(other, HostComputeNetwork)
            if found is not None and found.id != d.id and found.type == "NAT":
                raise _no(f"Type NAT: network {found.name} is the host's one NAT network", "use that one")
    _services(d.policies)
    for policy in d.policies:
        if not isinstance(policy, NETWORK_POLICIES):
            raise _no(f"Policies: {p.type_name(policy)}")
        if isinstance(policy, p.NetAdapterName) and policy.settings.network_adapter_name != ifname:
            name = policy.settings.network_adapter_name
            raise HcnError(
                Code.ADAPTER_NOT_FOUND, f"NetworkAdapterName {name!r}: the underlay is on {ifname!r}"
            )
        if isinstance(policy, p.ProviderAddress) and policy.settings.provider_address != address:
            raise HcnError(
                Code.INVALID_POLICY,
                f"ProviderAddress {policy.settings.provider_address}: this host is {address}",
            )
        if isinstance(policy, p.VxlanPort) and policy.settings.port != vxlan_port:
            raise _no(f"VxlanPort {policy.settings.port}", f"this host's is {vxlan_port}")


def _subnet(s: Subnet, address: str) -> None:
    if ip_address(address) in ip_network(s.ip_address_prefix):
        raise HcnError(
            Code.INVALID_PREFIX,
            f"IpAddressPrefix {s.ip_address_prefix} holds this host's own address {address}: choose another prefix",
        )
    if s.flags:
        raise _no(f"Subnets[{s.ip_address_prefix}].Flags {s.flags} (DoNotReserveGatewayAddress)")
    for inner in s.ip_subnets:
        if inner.flags:
            raise _no(f"IpSubnets[{inner.ip_address_prefix}].Flags {inner.flags}")
    _metrics(s.routes)
    for route in s.routes:
        if route.destination_prefix not in (ANYWHERE, ANYWHERE6):
            raise _no(
                f"Subnets[{s.ip_address_prefix}].Routes to {route.destination_prefix}",
                "write an SDNRoute for the endpoints that shall use it",
            )


def _metrics(routes: Iterable[Route]) -> None:
    for route in routes:
        if route.metric:
            raise _no(
                f"Routes[{route.destination_prefix}].Metric {route.metric}",
                "leave it out: nothing compares them",
            )


def _hops(d: HostComputeEndpoint, gateways: tuple[str, ...]) -> None:
    if d.remote and d.routes:
        raise _no("Routes of a remote endpoint", "leave them out, its own host has them")
    for route in d.routes:
        if route.next_hop not in gateways:
            raise _no(
                f"Routes[{route.destination_prefix}].NextHop {route.next_hop}",
                f"containers send to their network's gateway ({', '.join(gateways) or 'it has none'}); "
                "to send by another endpoint write an SDNRoute",
            )


def _services(policies: Iterable[object]) -> None:
    for x in policies:
        if isinstance(x, (p.Acl, p.NetworkAcl)) and x.settings.service_name:
            raise _no(
                f"ACL.ServiceName {x.settings.service_name!r}",
                "without it the rule would be everybody's: name addresses and ports",
            )


def _mtu(d: HostComputeEndpoint, network: HostComputeNetwork | None, address: str, mtu: int) -> None:
    asked = p.policy_of(d.policies, p.InterfaceParameters)
    overhead = p.policy_of(d.policies, p.EncapOverhead)
    lost = tunnel_overhead(address) if network is not None and network.type == "Overlay" else 0
    fits = mtu - max(lost, overhead.settings.overhead if overhead is not None else 0)
    if asked is not None and asked.settings.mtu > fits:
        raise HcnError(
            Code.INVALID_POLICY,
            f"InterfaceParameters.Mtu {asked.settings.mtu}: a packet of this host has {mtu} bytes, "
            f"{mtu - fits} of them for the tunnel; use {fits} at most",
        )
    if overhead is None:
        return
    least = MIN_MTU6 if any(is_six(c.ip_address) for c in d.ip_configurations) else MIN_MTU
    if mtu - overhead.settings.overhead < least:
        raise HcnError(
            Code.INVALID_POLICY,
            f"EncapOverhead.Overhead {overhead.settings.overhead}: a packet of this host has {mtu} bytes, of which "
            f"{least} must be left; use {mtu - least} at most",
        )


def _endpoint(d: HostComputeEndpoint, network: HostComputeNetwork | None, address: str, mtu: int) -> None:
    _bits(d.flags, int(EndpointFlags.REMOTE), EndpointFlags)
    _metrics(d.routes)
    _hops(d, gateways_of(network) if network is not None else ())
    _services(d.policies)
    _mtu(d, network, address, mtu)
    if not d.remote and len(d.ip_configurations) != 1:
        raise _no(f"IpConfigurations: {len(d.ip_configurations)} addresses", "give the endpoint one")
    for policy in d.policies:
        if not isinstance(policy, ENDPOINT_POLICIES):
            raise _no(f"Policies: {p.type_name(policy)}")
        if (
            isinstance(policy, p.ProviderAddress)
            and not d.remote
            and policy.settings.provider_address != address
        ):
            raise HcnError(
                Code.INVALID_POLICY,
                f"ProviderAddress {policy.settings.provider_address} of a local endpoint: this host is {address}; "
                "write that, or Flags 1 for an endpoint of another host",
            )
        if isinstance(policy, p.OutBoundNat):
            s = policy.settings
            if s.virtual_ip not in ("", address):
                raise _no(
                    f"OutBoundNAT.VirtualIP {s.virtual_ip}", f"the source becomes this host's {address}"
                )
            if s.flags:
                raise _no(f"OutBoundNAT.Flags {s.flags}")
            if s.max_port_pool_usage and sum(isinstance(x, p.OutBoundNat) for x in d.policies) > 1:
                raise _no(
                    f"OutBoundNAT.MaxPortPoolUsage {s.max_port_pool_usage} beside another OutBoundNAT",
                    "give the endpoint one: ports are counted for the endpoint as a whole",
                )
        elif isinstance(policy, p.PortMapping) and _renumbers(policy.settings):
            raise _no(f"PortMapping of SCTP from {policy.settings.external_port}", _SCTP)
        elif isinstance(policy, p.PortMapping) and policy.settings.flags & int(p.NatFlags.IPv6):
            raise _no("PortMapping.Flags: IPv6")
    _routes([x.settings for x in d.policies if isinstance(x, p.SdnRoute)], network, address)


_SCTP = "its checksum covers the ports: let InternalPort be the same"


def _renumbers(m: p.PortMappingSettings | LoadBalancerPortMapping) -> bool:
    return m.protocol == int(p.ProtocolType.SCTP) and m.internal_port not in (0, m.external_port)


def _routes(routes: Iterable[p.SdnRouteSettings], network: HostComputeNetwork | None, address: str) -> None:
    """With a NextHop NeedEncap says nothing more: what goes to another host is encapsulated."""
    subnets = [ip_network(s.ip_address_prefix) for s in network.subnets] if network is not None else []
    for r in routes:
        if r.automatic_endpoint_monitor:
            raise _no("AutomaticEndpointMonitor")
        if not r.next_hop and not (r.need_encap and network is not None and network.type == "Overlay"):
            remedy = "name an endpoint or this host, or, on an Overlay network, let NeedEncap be true"
            raise _no(f"SDN route to {r.destination_prefix} without NextHop", remedy)
        if not r.next_hop:
            continue
        if r.next_hop != address and is_six(r.destination_prefix) != is_six(r.next_hop):
            remedy = "let both be of one family"
            raise _no(f"SDN route to {r.destination_prefix} by {r.next_hop}", remedy)
        if r.next_hop != address and not any(ip_address(r.next_hop) in s for s in subnets):
            raise _no(
                f"SDN route to {r.destination_prefix}: NextHop {r.next_hop}",
                f"name an endpoint of the network or this host's address {address}",
            )


def _balancer(d: HostComputeLoadBalancer, network: HostComputeNetwork | None, address: str) -> None:
    # the source's own switch port decides, and answers go straight back: that is what DSR asks for
    _bits(d.flags, int(LoadBalancerFlags.EnableDirectServerReturn), LoadBalancerFlags)
    subnets = [ip_network(s.ip_address_prefix) for s in network.subnets] if network is not None else []
    outside = d.frontend_vips and not any(ip_address(v) in s for v in d.frontend_vips for s in subnets)
    for m in d.port_mappings:
        if _renumbers(m):
            raise _no(f"PortMappings of SCTP from {m.external_port}", _SCTP)
        if m.flags & PortMappingFlags.PRESERVE_DIP:
            _preserved(d, m, address)
        if m.flags & PortMappingFlags.USE_MUX and not outside:
            raise _no(
                "PortMappings.Flags: UseMux (4)",
                "only a VIP outside the network's prefixes is sent here from outside",
            )
        if m.flags & ~int(PORT_MAPPING_FLAGS):
            raise _no(f"PortMappings.Flags {m.flags}", f"bits known here: {int(PORT_MAPPING_FLAGS)}")


def _backends(d: HostComputeLoadBalancer, network: HostComputeNetwork | None, state: State) -> None:
    for guid in d.host_compute_endpoints:
        e = state.get(guid, HostComputeEndpoint)
        if e is not None and e.remote and network is not None and not tunnel_to(e, network):
            raise _no(
                f"HostComputeEndpoints {guid}: a backend outside the overlay, {e.address} behind {provider_of(e)}",
                "let the service's backends be containers of the overlay",
            )


def _source(
    d: HostComputeLoadBalancer, network: HostComputeNetwork | None, state: State, address: str
) -> None:
    """That answers to SourceVIP come back to this host and are nobody's but the load balancer's."""
    if not d.source_vip or network is None or d.source_vip == address:
        return
    if not any(ip_address(d.source_vip) in ip_network(s.ip_address_prefix) for s in network.subnets):
        raise HcnError(
            Code.INVALID_IP,
            f"SourceVIP {d.source_vip} is no address of the network's: name a free one of it, or this host's {address}",
        )
    holder = state.get(state.by_address.get((network.id, d.source_vip), ""), HostComputeEndpoint)
    if holder is not None and (holder.remote or holder.host_compute_namespace):
        whose = (
            "an endpoint of another host"
            if holder.remote
            else "an attached endpoint, which would get the answers"
        )
        raise HcnError(
            Code.ADDR_INVALID_OR_RESERVED,
            f"SourceVIP {d.source_vip} is the address of {whose}: name one that no container has",
        )


def _preserved(d: HostComputeLoadBalancer, m: LoadBalancerPortMapping, address: str) -> None:
    """Whether packets can reach the backends as they are. Raises HcnError."""
    if not d.frontend_vips or address in d.frontend_vips:
        raise _no(
            "PortMappings.Flags: EnablePreserveDip (8) on the host's own address", "name other FrontendVIPs"
        )
    if any(is_six(vip) for vip in d.frontend_vips):
        raise _no("PortMappings.Flags: EnablePreserveDip (8) of an IPv6 VIP", "use IPv4")
    if m.internal_port not in (0, m.external_port):
        raise _no(
            f"PortMappings.Flags: EnablePreserveDip (8) from port {m.external_port} to {m.internal_port}",
            "packets are not rewritten: let InternalPort be ExternalPort",
        )


def _namespace(d: HostComputeNamespace) -> None:
    if d.namespace_id == 1 and d.endpoints:
        raise _no("NamespaceId 1: an endpoint in the host's own namespace")
    places = {c for c in d.containers if c.startswith("/")}
    if len(places) > 1:
        raise HcnError(
            Code.NAMESPACE_ATTACH_FAILED,
            f"Resources names {len(places)} network namespaces: {', '.join(sorted(places))}",
        )
