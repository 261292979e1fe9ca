"""HNS v1 documents, as HNSCall and old clients write them: flat policies, one address, comma-separated lists.

Owns their shape. What they mean in v2 is v1.py's. Source: hcsshim's internal/hns, and what moby sends.
"""

from __future__ import annotations

from typing import Any, Literal, Union

import msgspec

from overlace.network.hns import policies as p
from overlace.network.hns.documents import MacRange


class V1Policy(p.Doc, frozen=True, tag_field="Type"):
    pass


class V1Vsid(V1Policy, frozen=True, tag="VSID"):
    vsid: p.U32 = msgspec.field(name="VSID")


class V1Vlan(V1Policy, frozen=True, tag="VLAN"):
    vlan: p.U32 = msgspec.field(name="VLAN")


class V1Pa(V1Policy, frozen=True, tag="PA"):
    pa: str = msgspec.field(default="", name="PA")


class V1Nat(V1Policy, frozen=True, tag="NAT"):
    protocol: Union[str, int]
    internal_port: p.U16
    external_port: p.U16
    external_port_reserved: bool = False
    vip: str = msgspec.field(default="", name="VIP")


class V1OutBoundNat(V1Policy, frozen=True, tag="OutBoundNAT"):
    vip: str = msgspec.field(default="", name="VIP")
    exception_list: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    max_port_pool_usage: p.U16 = 0


class V1Acl(V1Policy, frozen=True, tag="ACL", kw_only=True):
    id: str = ""
    protocol: p.U16 = 0
    protocols: str = ""
    internal_port: p.U16 = 0
    action: Literal["Allow", "Block", "Pass"]
    direction: Literal["In", "Out"]
    local_addresses: str = ""
    remote_addresses: str = ""
    local_ports: str = ""
    local_port: p.U16 = 0
    remote_ports: str = ""
    remote_port: p.U16 = 0
    rule_type: Literal["Host", "Switch"] = "Host"
    priority: p.U16 = 0
    service_name: str = ""


class V1Qos(V1Policy, frozen=True, tag="QOS"):
    maximum_outgoing_bandwidth_in_bytes: p.U64


class V1Route(V1Policy, frozen=True, tag="ROUTE"):
    destination_prefix: str
    next_hop: str = ""
    need_encap: bool = False


class V1Proxy(V1Policy, frozen=True, tag="PROXY"):
    ip: str = msgspec.field(default="", name="IP")
    port: str = ""
    exception_list: tuple[str, ...] = ()
    destination: str = ""
    outbound_nat: bool = False


class V1L2Driver(V1Policy, frozen=True, tag="L2Driver"):
    pass


class V1HostRoute(V1Policy, frozen=True, tag="HostRoute"):
    pass


class V1VxlanPort(V1Policy, frozen=True, tag="VxlanPort"):
    port: p.U16


class V1Elb(V1Policy, frozen=True, tag="ELB"):
    protocol: p.U16 = 0
    internal_port: p.U16 = 0
    external_port: p.U16 = 0
    source_vip: str = msgspec.field(default="", name="SourceVIP")
    vips: tuple[str, ...] = msgspec.field(default=(), name="VIPs")
    ilb: bool = msgspec.field(default=False, name="ILB")
    is_dsr: bool = msgspec.field(default=False, name="IsDSR")


class V1Subnet(p.Doc, frozen=True):
    address_prefix: str = ""
    gateway_address: str = ""
    policies: tuple[Union[V1Vsid, V1Vlan], ...] = ()


class V1Network(p.Doc, frozen=True, kw_only=True):
    id: str = msgspec.field(default="", name="ID")
    name: str = ""
    type: str = "NAT"
    network_adapter_name: str = ""
    source_mac: str = ""
    policies: tuple[Union[V1Vsid, V1Vlan, V1HostRoute, V1VxlanPort], ...] = ()
    mac_pools: tuple[MacRange, ...] = ()
    subnets: tuple[V1Subnet, ...] = ()
    dns_suffix: str = msgspec.field(default="", name="DNSSuffix")
    dns_server_list: str = msgspec.field(default="", name="DNSServerList")
    dns_server_compartment: p.U32 = msgspec.field(default=0, name="DNSServerCompartment")
    management_ip: str = msgspec.field(default="", name="ManagementIP")
    automatic_dns: bool = msgspec.field(default=False, name="AutomaticDNS")


class V1Endpoint(p.Doc, frozen=True, kw_only=True):
    id: str = msgspec.field(default="", name="ID")
    name: str = ""
    virtual_network: str = ""
    virtual_network_name: str = ""
    policies: tuple[
        Union[V1Pa, V1Nat, V1OutBoundNat, V1Acl, V1Qos, V1Route, V1Proxy, V1L2Driver, V1Vlan], ...
    ] = ()
    mac_address: str = ""
    ip_address: str = msgspec.field(default="", name="IPAddress")
    prefix_length: p.U16 = 0
    ipv6_address: str = msgspec.field(default="", name="IPv6Address")
    ipv6_prefix_length: p.U16 = msgspec.field(default=0, name="IPv6PrefixLength")
    dns_suffix: str = msgspec.field(default="", name="DNSSuffix")
    dns_server_list: str = msgspec.field(default="", name="DNSServerList")
    dns_domain: str = msgspec.field(default="", name="DNSDomain")
    gateway_address: str = ""
    gateway_address_v6: str = msgspec.field(default="", name="GatewayAddressV6")
    enable_internal_dns: bool = msgspec.field(default=False, name="EnableInternalDNS")
    disable_icc: bool = msgspec.field(default=False, name="DisableICC")
    is_remote_endpoint: bool = False
    enable_low_metric: bool = False
    encap_overhead: p.U16 = 0


class V1PolicyList(p.Doc, frozen=True, kw_only=True):
    id: str = msgspec.field(default="", name="ID")
    references: tuple[str, ...] = ()
    policies: tuple[V1Elb, ...] = ()


class V1Namespace(p.Doc, frozen=True, kw_only=True):
    id: str = msgspec.field(default="", name="ID")
    is_default: bool = False
    resource_list: tuple[V1Resource, ...] = ()
    compartment_id: p.U32 = 0


class V1Resource(p.Doc, frozen=True):
    """`data`: {"Id": path or id}, as hcsshim writes it."""

    type: Literal["Container", "Endpoint"]
    data: Any = None


class V1Attach(p.Doc, frozen=True, kw_only=True):
    """Body of /endpoints/ID/attach and detach."""

    container_id: str = ""
    system_type: Literal["Container", "VirtualMachine", "Host"] = "Container"
    compartment_id: p.U16 = 0
    virtual_nic_name: str = ""


V1_ONLY = {
    "network": ("subnets", "macpools", "networkadaptername", "sourcemac", "dnsserverlist", "dnssuffix", "automaticdns"),
    "endpoint": ("virtualnetwork", "ipaddress", "isremoteendpoint", "dnsserverlist", "gatewayaddress"),
    "loadbalancer": ("references",),
    "namespace": ("isdefault", "resourcelist", "compartmentid"),
}  # fmt: skip


def is_v1(kind: str, raw: dict[str, Any]) -> bool:
    """SchemaVersion decides where it is there; without it, a member only v1 has."""
    members = {k.lower(): v for k, v in raw.items()}
    version = members.get("schemaversion")
    if isinstance(version, dict):
        major = {k.lower(): v for k, v in version.items()}.get("major")
        if major:
            return bool(major == 1)
    return any(m in members for m in V1_ONLY.get(kind, ()))
