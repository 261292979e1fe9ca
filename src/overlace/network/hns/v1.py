"""HNS v1 documents to v2 and back: one service holds both, so that clients of either see each other's objects.

Owns the translation (pure). What v1 says and v2 has no word for is kept in AdditionalParams.V1 and comes back in v1
answers; a type is written back as its maker spelled it, because moby compares it so.
"""

from __future__ import annotations

from typing import Any

import msgspec

from overlace.model.family import is_six
from overlace.model.protocols import PROTOCOLS, TCP, UDP
from overlace.network.hns import policies as p
from overlace.network.hns.documents import (
    Dns,
    Document,
    EndpointFlags,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNamespace,
    HostComputeNetwork,
    Ipam,
    IpConfiguration,
    LoadBalancerFlags,
    LoadBalancerPortMapping,
    MacPool,
    NamespaceResource,
    PortMappingFlags,
    ResourceData,
    Route,
    Subnet,
    Version,
    convert,
    normal_guid,
)
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.routes import ANYWHERE, ANYWHERE6
from overlace.network.hns.state import State
from overlace.network.hns.v1_documents import (
    V1Acl,
    V1Elb,
    V1Endpoint,
    V1HostRoute,
    V1L2Driver,
    V1Namespace,
    V1Nat,
    V1Network,
    V1OutBoundNat,
    V1Pa,
    V1PolicyList,
    V1Proxy,
    V1Qos,
    V1Resource,
    V1Route,
    V1Subnet,
    V1Vlan,
    V1Vsid,
    V1VxlanPort,
)

V1 = Version(1, 0)
NAMES = {number: name for name, number in PROTOCOLS.items()}


def _csv(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _kept(**members: Any) -> dict[str, Any]:
    return {"V1": {k: v for k, v in members.items() if v}}


def _extra(d: Document) -> dict[str, Any]:
    params = d.additional_params
    found = params.get("V1") if isinstance(params, dict) else None
    return dict(found) if isinstance(found, dict) else {}


def from_v1(kind: str, raw: dict[str, Any], state: State) -> Document:
    """The v2 document. Raises HcnError naming the v1 member."""
    if kind == "network":
        return _network(convert(raw, V1Network))
    if kind == "endpoint":
        return _endpoint(convert(raw, V1Endpoint), state)
    if kind == "loadbalancer":
        return _balancer(convert(raw, V1PolicyList))
    if kind == "namespace":
        return _namespace(convert(raw, V1Namespace))
    raise HcnError(Code.REQUEST_UNSUPPORTED, "SchemaVersion 1.0: SDN routes came with 2.0")


def _network(v: V1Network) -> HostComputeNetwork:
    policies: list[dict[str, Any]] = []
    shared: list[p.SubnetPolicy] = []
    if v.network_adapter_name:
        policies.append(_policy("NetAdapterName", NetworkAdapterName=v.network_adapter_name))
    if v.source_mac:
        policies.append(_policy("SourceMacAddress", SourceMacAddress=v.source_mac))
    if v.automatic_dns:
        policies.append(_policy("AutomaticDNS", Enable=True))
    for x in v.policies:
        if isinstance(x, V1HostRoute):
            policies.append(_policy("HostRoute"))
        elif isinstance(x, V1VxlanPort):
            policies.append(_policy("VxlanPort", Port=x.port))
        else:
            shared.append(_isolation(x))
    subnets = tuple(
        Subnet(
            ip_address_prefix=s.address_prefix,
            policies=tuple(_isolation(x) for x in s.policies) or tuple(shared),
            routes=(Route(s.gateway_address, ANYWHERE6 if is_six(s.gateway_address) else ANYWHERE),)
            if s.gateway_address
            else (),
        )
        for s in v.subnets
    )
    base = convert({"Type": v.type, "Policies": policies}, HostComputeNetwork)
    return msgspec.structs.replace(
        base,
        id=v.id,
        name=v.name,
        mac_pool=MacPool(v.mac_pools),
        ipams=(Ipam("Static", subnets),) if subnets else (),
        dns=Dns(v.dns_suffix, (), _csv(v.dns_server_list)),
        schema_version=V1,
        additional_params=_kept(Type=v.type, DNSServerCompartment=v.dns_server_compartment),
    )


def _policy(kind: str, **settings: Any) -> dict[str, Any]:
    return {"Type": kind, "Settings": settings}


def _isolation(x: V1Vsid | V1Vlan) -> p.SubnetPolicy:
    if isinstance(x, V1Vsid):
        return p.Vsid(p.IsolationSettings(x.vsid))
    return p.Vlan(p.IsolationSettings(x.vlan))


def _endpoint(v: V1Endpoint, state: State) -> HostComputeEndpoint:
    network_id = v.virtual_network
    if not network_id and v.virtual_network_name:
        network_id = state.by_network_name.get(v.virtual_network_name.lower(), "")
        if not network_id:
            raise HcnError(Code.NETWORK_NOT_FOUND, f"VirtualNetworkName {v.virtual_network_name}")
    network = state.get(normal_guid(network_id, "VirtualNetwork"), HostComputeNetwork)
    policies: list[p.EndpointPolicy] = []
    for x in v.policies:
        policies += _endpoint_policy(x, network)
    if v.encap_overhead:
        policies.append(p.EncapOverhead(p.EncapOverheadSettings(v.encap_overhead)))
    configs = []
    if v.ip_address:
        configs.append(IpConfiguration(v.ip_address, v.prefix_length))
    if v.ipv6_address:
        configs.append(IpConfiguration(v.ipv6_address, v.ipv6_prefix_length))
    routes = []
    if v.gateway_address:
        routes.append(Route(v.gateway_address, ANYWHERE))
    if v.gateway_address_v6:
        routes.append(Route(v.gateway_address_v6, ANYWHERE6))
    flags = EndpointFlags(0)
    flags |= EndpointFlags.RemoteEndpoint if v.is_remote_endpoint else EndpointFlags(0)
    flags |= EndpointFlags.DisableInterComputeCommunication if v.disable_icc else EndpointFlags(0)
    flags |= EndpointFlags.EnableLowInterfaceMetric if v.enable_low_metric else EndpointFlags(0)
    return HostComputeEndpoint(
        id=v.id,
        name=v.name,
        host_compute_network=network_id,
        policies=tuple(policies),
        ip_configurations=tuple(configs),
        dns=Dns(v.dns_domain, _csv(v.dns_suffix), _csv(v.dns_server_list)),
        routes=tuple(routes),
        mac_address=v.mac_address,
        flags=int(flags),
        schema_version=V1,
        additional_params=_kept(EnableInternalDNS=v.enable_internal_dns),
    )


def _endpoint_policy(x: Any, network: HostComputeNetwork | None) -> list[p.EndpointPolicy]:
    match x:
        case V1Pa():
            pa = x.pa
            if not pa and network is not None:  # moby writes it empty until the network's is known
                own = p.policy_of(network.policies, p.ProviderAddress)
                pa = own.settings.provider_address if own is not None else ""
            return [p.ProviderAddress(p.ProviderAddressSettings(pa))]
        case V1Nat():
            flags = int(p.NatFlags.ExternalPortReserved) if x.external_port_reserved else 0
            number = _protocol(x.protocol)
            settings = p.PortMappingSettings(number, x.internal_port, x.external_port, x.vip, flags)
            return [p.PortMapping(settings)]
        case V1OutBoundNat():
            nat = p.OutBoundNatSettings(x.vip, x.exception_list, x.destinations, 0, x.max_port_pool_usage)
            return [p.OutBoundNat(nat)]
        case V1Acl():
            return [p.Acl(_acl(x))]
        case V1Qos():
            return [p.Qos(p.QosSettings(x.maximum_outgoing_bandwidth_in_bytes))]
        case V1Route():
            return [p.SdnRoute(p.SdnRouteSettings(x.destination_prefix, x.next_hop, x.need_encap))]
        case V1Proxy():
            proxy = p.L4ProxySettings(x.ip, x.port, 0, x.exception_list, x.destination, x.outbound_nat)
            return [p.L4Proxy(proxy)]
        case V1Vlan():
            return [p.Vlan(p.IsolationSettings(x.vlan))]
    return [p.L2Driver()]


def _protocol(value: str | int) -> int:
    if isinstance(value, int):
        return value
    digits = value.isascii() and value.isdigit() and len(value) < 4
    number = PROTOCOLS.get(value.lower(), int(value) if digits else 0)
    if not number:
        raise HcnError(Code.INVALID_POLICY, f"NAT.Protocol {value[:20]!r}: use tcp, udp, sctp or a number")
    return number


def _acl(x: V1Acl) -> p.AclSettings:
    local = x.local_ports or (str(x.local_port or x.internal_port) if x.local_port or x.internal_port else "")
    return p.AclSettings(
        action=x.action,
        direction=x.direction,
        protocols=x.protocols or (str(x.protocol) if x.protocol else ""),
        local_addresses=x.local_addresses,
        remote_addresses=x.remote_addresses,
        local_ports=local,
        remote_ports=x.remote_ports or (str(x.remote_port) if x.remote_port else ""),
        rule_type=x.rule_type,
        priority=x.priority,
        id=x.id,
        service_name=x.service_name,
    )


def _balancer(v: V1PolicyList) -> HostComputeLoadBalancer:
    if not v.policies:
        raise HcnError(Code.INVALID_POLICY, "Policies is empty: a policy list needs its ELB")
    endpoints = []
    for reference in v.references:
        kind, _, guid = reference.strip("/").rpartition("/")
        if kind not in ("endpoints", ""):
            raise HcnError(Code.INVALID_JSON_REFERENCE, f"References {reference!r}: write /endpoints/<id>")
        endpoints.append(normal_guid(guid, "References"))
    first = v.policies[0]
    mappings: list[LoadBalancerPortMapping] = []
    for x in v.policies:
        if (x.vips, x.source_vip, x.is_dsr) != (first.vips, first.source_vip, first.is_dsr):
            raise HcnError(Code.INVALID_POLICY, "Policies: VIPs, SourceVIP and IsDSR are of the whole list")
        flags = int(PortMappingFlags.EnableInternalLoadBalancer) if x.ilb else 0
        both = x.protocol == 0 and bool(x.internal_port or x.external_port)
        for protocol in (TCP, UDP) if both else (x.protocol,):
            mappings.append(LoadBalancerPortMapping(protocol, x.internal_port, x.external_port, flags=flags))
    return HostComputeLoadBalancer(
        id=v.id,
        host_compute_endpoints=tuple(endpoints),
        source_vip=first.source_vip,
        frontend_vips=first.vips,
        port_mappings=tuple(mappings),
        flags=int(LoadBalancerFlags.EnableDirectServerReturn) if first.is_dsr else 0,
        schema_version=V1,
    )


def resource(r: V1Resource) -> NamespaceResource:
    data = r.data if isinstance(r.data, dict) else {}
    text = str({k.lower(): v for k, v in data.items()}.get("id", ""))
    if not text:
        raise HcnError(Code.BAD_PARAMETER, "Data.Id is empty: name the endpoint or container")
    return NamespaceResource(r.type, ResourceData(text.rpartition("/")[2] if r.type == "Endpoint" else text))


def _namespace(v: V1Namespace) -> HostComputeNamespace:
    return HostComputeNamespace(
        id=v.id,
        type="HostDefault" if v.is_default else "Host",
        namespace_id=v.compartment_id,
        resources=tuple(resource(r) for r in v.resource_list),
        schema_version=V1,
    )


# -- back ----------------------------------------------------------------------------------------------------


def to_v1(d: Document, state: State, version: int) -> dict[str, Any]:
    """The v1 document of `d`; `version`: HNS's own, major << 32 | minor."""
    made: msgspec.Struct
    more: dict[str, Any] = {"Version": version, "State": 1, "AdditionalParams": {}, "Health": {}}
    if isinstance(d, HostComputeNetwork):
        made, count = _network_v1(d), len(state.endpoints_of.get(d.id, ()))
        more |= {"CurrentEndpointCount": count, "TotalEndpoints": count, "Flags": d.flags, "Extensions": []}
        more |= {"Type": d.type, "Policies": [], "Subnets": []}
    elif isinstance(d, HostComputeEndpoint):
        made = _endpoint_v1(d, state)
        more |= {"Policies": []}
        namespace = state.get(d.host_compute_namespace, HostComputeNamespace)
        if namespace is not None:
            more |= {
                "State": 2,
                "Namespace": {"ID": namespace.id, "CompartmentId": namespace.namespace_id},
                "SharedContainers": list(namespace.containers),
            }
    elif isinstance(d, HostComputeLoadBalancer):
        made = _balancer_v1(d)
    elif isinstance(d, HostComputeNamespace):
        made = V1Namespace(
            id=d.id,
            is_default=d.type in ("HostDefault", "GuestDefault"),
            resource_list=tuple(
                V1Resource(r.type, {"Id": f"/endpoints/{r.data.id}" if r.type == "Endpoint" else r.data.id})
                for r in d.resources
            ),
            compartment_id=d.namespace_id,
        )
    else:
        raise HcnError(Code.REQUEST_UNSUPPORTED, "SchemaVersion 1.0: SDN routes came with 2.0")
    out: dict[str, Any] = more | msgspec.to_builtins(made) | _extra(d)
    return out


def _network_v1(d: HostComputeNetwork) -> V1Network:
    def one(kind: type[Any]) -> Any:
        found = p.policy_of(d.policies, kind)
        return found.settings if found is not None else None

    adapter, source, pa = one(p.NetAdapterName), one(p.SourceMacAddress), one(p.ProviderAddress)
    port, dns = one(p.VxlanPort), one(p.AutomaticDns)
    policies: list[Any] = []
    if one(p.HostRoute) is not None:
        policies.append(V1HostRoute())
    if port is not None:
        policies.append(V1VxlanPort(port.port))
    return V1Network(
        id=d.id,
        name=d.name,
        type=d.type,
        network_adapter_name=adapter.network_adapter_name if adapter else "",
        source_mac=source.source_mac_address if source else "",
        policies=tuple(policies),
        mac_pools=d.mac_pool.ranges,
        subnets=tuple(
            V1Subnet(
                s.ip_address_prefix,
                next((r.next_hop for r in s.routes if r.destination_prefix in (ANYWHERE, ANYWHERE6)), ""),
                tuple(
                    V1Vsid(x.settings.isolation_id)
                    if isinstance(x, p.Vsid)
                    else V1Vlan(x.settings.isolation_id)
                    for x in s.policies
                ),
            )
            for s in d.subnets
        ),
        dns_suffix=d.dns.domain,
        dns_server_list=",".join(d.dns.server_list),
        management_ip=pa.provider_address if pa else "",
        automatic_dns=bool(dns and dns.enable),
    )


def _endpoint_v1(d: HostComputeEndpoint, state: State) -> V1Endpoint:
    network = state.get(d.host_compute_network, HostComputeNetwork)
    four = next((c for c in d.ip_configurations if not is_six(c.ip_address)), IpConfiguration())
    six = next((c for c in d.ip_configurations if is_six(c.ip_address)), IpConfiguration())
    overhead = p.policy_of(d.policies, p.EncapOverhead)
    gateways = {r.destination_prefix: r.next_hop for r in d.routes}
    return V1Endpoint(
        id=d.id,
        name=d.name,
        virtual_network=d.host_compute_network,
        virtual_network_name=network.name if network is not None else "",
        policies=tuple(v for x in d.policies if (v := _policy_v1(x)) is not None),
        mac_address=d.mac_address,
        ip_address=four.ip_address,
        prefix_length=four.prefix_length,
        ipv6_address=six.ip_address,
        ipv6_prefix_length=six.prefix_length,
        dns_suffix=",".join(d.dns.search),
        dns_server_list=",".join(d.dns.server_list),
        dns_domain=d.dns.domain,
        gateway_address=gateways.get(ANYWHERE, ""),
        gateway_address_v6=gateways.get(ANYWHERE6, ""),
        disable_icc=bool(d.flags & EndpointFlags.DisableInterComputeCommunication),
        is_remote_endpoint=d.remote,
        enable_low_metric=bool(d.flags & EndpointFlags.EnableLowInterfaceMetric),
        encap_overhead=overhead.settings.overhead if overhead is not None else 0,
    )


def has_v1_word(policy: object) -> bool:
    """Whether v1 has this policy of endpoints."""
    return _policy_v1(policy) is not None


def _policy_v1(x: Any) -> Any:
    """None for what v1 has no policy for."""
    match x:
        case p.ProviderAddress():
            return V1Pa(x.settings.provider_address)
        case p.PortMapping():
            s = x.settings
            reserved = bool(s.flags & p.NatFlags.ExternalPortReserved)
            name = NAMES.get(s.protocol, s.protocol)
            return V1Nat(name, s.internal_port, s.external_port, reserved, s.vip)
        case p.OutBoundNat():
            n = x.settings
            return V1OutBoundNat(n.virtual_ip, n.exceptions, n.destinations, n.max_port_pool_usage)
        case p.Acl():
            a = x.settings
            return V1Acl(
                id=a.id,
                protocols=a.protocols,
                action=a.action,
                direction=a.direction,
                local_addresses=a.local_addresses,
                remote_addresses=a.remote_addresses,
                local_ports=a.local_ports,
                remote_ports=a.remote_ports,
                rule_type=a.rule_type,
                priority=a.priority,
                service_name=a.service_name,
            )
        case p.Qos():
            return V1Qos(x.settings.maximum_outgoing_bandwidth_in_bytes)
        case p.SdnRoute():
            return V1Route(x.settings.destination_prefix, x.settings.next_hop, x.settings.need_encap)
        case p.L4Proxy():
            y = x.settings
            return V1Proxy(y.ip, y.port, y.exception_list, y.destination, y.outbound_nat)
        case p.L2Driver():
            return V1L2Driver()
        case p.Vlan():
            return V1Vlan(x.settings.isolation_id)
    return None


def _balancer_v1(d: HostComputeLoadBalancer) -> V1PolicyList:
    dsr = bool(d.flags & LoadBalancerFlags.EnableDirectServerReturn)
    return V1PolicyList(
        id=d.id,
        references=tuple(f"/endpoints/{e}" for e in d.host_compute_endpoints),
        policies=tuple(
            V1Elb(
                m.protocol,
                m.internal_port,
                m.external_port,
                d.source_vip,
                d.frontend_vips,
                bool(m.flags & PortMappingFlags.EnableInternalLoadBalancer),
                dsr,
            )
            for m in d.port_mappings
        ),
    )
