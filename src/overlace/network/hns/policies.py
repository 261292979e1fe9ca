"""Policies of HCN documents: `{"Type": ..., "Settings": {...}}`, one struct per type.

Owns their shape (schema 2.0 to 2.16). Must not validate against state: that is validate.py; what Linux enforces
is enforced.py's. Source: Microsoft's published HCN schema; where hcsshim spells a member differently, both are
read (spelling.py).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated, Any, Literal, Union

import msgspec

U16 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
U64 = Annotated[int, msgspec.Meta(ge=0)]  # msgspec knows no upper bound past 63 bits


class ProtocolType(IntEnum):
    Unknown = 0
    ICMPv4 = 1
    IGMP = 2
    TCP = 6
    UDP = 17
    ICMPv6 = 58
    SCTP = 132  # kube-proxy's number; Microsoft's list ends before it


class NatFlags(IntFlag):
    LocalRoutedVip = 1
    IPv6 = 2
    ExternalPortReserved = 4


class InterruptModeration(IntEnum):
    IovInterruptModerationDefault = 0
    IovInterruptModerationAdaptive = 1
    IovInterruptModerationOff = 2
    IovInterruptModerationLow = 100
    IovInterruptModerationMedium = 200
    IovInterruptModerationHigh = 300


Protocol = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF), ProtocolType]
NatFlagBits = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF), NatFlags]


class Doc(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True):
    """PascalCase members, zero ones omitted, as HNS writes them."""


class Policy(Doc, frozen=True, tag_field="Type"):
    """Base of all policies; the tag is HNS's `Type`."""


class NoSettings(Doc, frozen=True):
    pass


# -- subnets -------------------------------------------------------------------------------------------------


class IsolationSettings(Doc, frozen=True):
    isolation_id: U32


class Vsid(Policy, frozen=True, tag="VSID"):
    settings: IsolationSettings


class Vlan(Policy, frozen=True, tag="VLAN"):
    """Of a subnet and, from schema 2.4, of an endpoint."""

    settings: IsolationSettings


# -- networks ------------------------------------------------------------------------------------------------


class SourceMacAddressSettings(Doc, frozen=True):
    source_mac_address: str


class SourceMacAddress(Policy, frozen=True, tag="SourceMacAddress"):
    settings: SourceMacAddressSettings


class NetAdapterNameSettings(Doc, frozen=True):
    network_adapter_name: str


class NetAdapterName(Policy, frozen=True, tag="NetAdapterName"):
    settings: NetAdapterNameSettings


class InterfaceConstraintSettings(Doc, frozen=True):
    interface_guid: str = ""
    interface_luid: U64 = 0
    interface_index: U32 = 0
    interface_media_type: U32 = 0
    interface_alias: str = ""
    interface_description: str = ""


class InterfaceConstraint(Policy, frozen=True, tag="InterfaceConstraint"):
    settings: InterfaceConstraintSettings


class VSwitchExtensionSettings(Doc, frozen=True):
    extension_id: str = msgspec.field(name="ExtensionID")
    enable: bool = False


class VSwitchExtension(Policy, frozen=True, tag="VSwitchExtension"):
    settings: VSwitchExtensionSettings


class ProviderAddressSettings(Doc, frozen=True):
    provider_address: str


class ProviderAddress(Policy, frozen=True, tag="ProviderAddress"):
    settings: ProviderAddressSettings


class DrMacAddressSettings(Doc, frozen=True):
    address: str


class DrMacAddress(Policy, frozen=True, tag="DrMacAddress"):
    settings: DrMacAddressSettings


class AutomaticDnsSettings(Doc, frozen=True):
    enable: bool = False


class AutomaticDns(Policy, frozen=True, tag="AutomaticDNS"):
    settings: AutomaticDnsSettings


class RemoteSubnetRouteSettings(Doc, frozen=True):
    destination_prefix: str
    isolation_id: U32
    provider_address: str
    distributed_router_mac_address: str


class RemoteSubnetRoute(Policy, frozen=True, tag="RemoteSubnetRoute"):
    settings: RemoteSubnetRouteSettings


class VxlanPortSettings(Doc, frozen=True):
    port: int


class VxlanPort(Policy, frozen=True, tag="VxlanPort"):
    settings: VxlanPortSettings


class HostRoute(Policy, frozen=True, tag="HostRoute"):
    settings: NoSettings = msgspec.field(default_factory=NoSettings)


class SetPolicySettings(Doc, frozen=True, kw_only=True):
    """`values`: addresses and prefixes (IPSET) or ids of such sets (NESTEDIPSET), comma separated."""

    id: str
    name: str = ""
    policy_type: Literal["IPSET", "NESTEDIPSET"] = "IPSET"
    values: str = ""


class SetPolicy(Policy, frozen=True, tag="SetPolicy"):
    settings: SetPolicySettings


class LayerConstraintSettings(Doc, frozen=True):
    layer_id: str = ""


class LayerConstraint(Policy, frozen=True, tag="LayerConstraint"):
    settings: LayerConstraintSettings


# -- of networks and endpoints -------------------------------------------------------------------------------


class AclSettings(Doc, frozen=True, kw_only=True):
    """Lists are texts, comma separated; an empty one means any. acl.py reads them."""

    action: Literal["Allow", "Block", "Pass"]
    direction: Literal["In", "Out"]
    protocols: str = ""
    local_addresses: str = ""
    remote_addresses: str = ""
    local_ports: str = ""
    remote_ports: str = ""
    rule_type: Literal["Host", "Switch"] = "Host"
    priority: int = 0
    id: str = ""
    service_name: str = ""  # v1's; the schema of v2 has no such member


class Acl(Policy, frozen=True, tag="ACL"):
    settings: AclSettings


class NetworkAcl(Policy, frozen=True, tag="NetworkACL"):
    settings: AclSettings


class L4ProxySettings(Doc, frozen=True):
    ip: str = msgspec.field(default="", name="IP")
    port: str = ""
    protocol: Protocol = 0
    exception_list: tuple[str, ...] = ()
    destination: str = ""
    outbound_nat: bool = False


class L4Proxy(Policy, frozen=True, tag="L4Proxy"):
    settings: L4ProxySettings


# -- endpoints -----------------------------------------------------------------------------------------------


class PortMappingSettings(Doc, frozen=True):
    protocol: Protocol
    internal_port: int
    external_port: int
    vip: str = msgspec.field(default="", name="VIP")
    flags: NatFlagBits = 0


class PortMapping(Policy, frozen=True, tag="PortMapping"):
    settings: PortMappingSettings


class QosSettings(Doc, frozen=True):
    maximum_outgoing_bandwidth_in_bytes: U64


class Qos(Policy, frozen=True, tag="QOS"):
    settings: QosSettings


class L2Driver(Policy, frozen=True, tag="L2Driver"):
    settings: NoSettings = msgspec.field(default_factory=NoSettings)


class OutBoundNatSettings(Doc, frozen=True):
    virtual_ip: str = msgspec.field(default="", name="VirtualIP")
    exceptions: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    flags: NatFlagBits = 0
    max_port_pool_usage: U16 = 0


class OutBoundNat(Policy, frozen=True, tag="OutBoundNAT"):
    settings: OutBoundNatSettings


class SdnRouteSettings(Doc, frozen=True):
    destination_prefix: str
    next_hop: str = ""
    need_encap: bool = False
    automatic_endpoint_monitor: bool = False


class SdnRoute(Policy, frozen=True, tag="SDNRoute"):
    settings: SdnRouteSettings


class FiveTuple(Doc, frozen=True):
    protocols: str = ""
    local_addresses: str = ""
    remote_addresses: str = ""
    local_ports: str = ""
    remote_ports: str = ""
    priority: U16 = 0


class ProxyExceptions(Doc, frozen=True):
    ip_address_exceptions: tuple[str, ...] = ()
    port_exceptions: tuple[str, ...] = ()


class L4WfpProxySettings(Doc, frozen=True):
    inbound_proxy_port: str = ""
    outbound_proxy_port: str = ""
    filter_tuple: FiveTuple = FiveTuple()
    user_sid: str = msgspec.field(default="", name="UserSID")
    inbound_exceptions: ProxyExceptions = ProxyExceptions()
    outbound_exceptions: ProxyExceptions = ProxyExceptions()


class L4WfpProxy(Policy, frozen=True, tag="L4WFPPROXY"):
    settings: L4WfpProxySettings


class PortNameSettings(Doc, frozen=True):
    name: str


class PortName(Policy, frozen=True, tag="PortName"):
    settings: PortNameSettings


class EncapOverheadSettings(Doc, frozen=True):
    overhead: int


class EncapOverhead(Policy, frozen=True, tag="EncapOverhead"):
    settings: EncapOverheadSettings


class AuthenticationMethod(Doc, frozen=True):
    type: Literal["PresharedKey", "Certificate"]
    settings: Any = None


class EncryptionSettings(Doc, frozen=True):
    encryption_method_type: Literal["Ipsec"] = "Ipsec"
    authentication_methods: tuple[AuthenticationMethod, ...] = ()
    name: str = ""
    endpoints1: tuple[str, ...] = ()
    endpoints2: tuple[str, ...] = ()
    protocol_type: str = ""
    endpoint1_ports: tuple[str, ...] = msgspec.field(default=(), name="Endpoint1Ports")
    endpoint2_ports: tuple[str, ...] = msgspec.field(default=(), name="Endpoint2Ports")


class Encryption(Policy, frozen=True, tag="Encryption"):
    settings: EncryptionSettings


class InterfaceParametersSettings(Doc, frozen=True):
    mtu: U16 = 0


class InterfaceParameters(Policy, frozen=True, tag="InterfaceParameters"):
    settings: InterfaceParametersSettings


class IovSettings(Doc, frozen=True):
    iov_offload_weight: U32 = 0
    queue_pairs_requested: U32 = 0
    interrupt_moderation: Annotated[int, msgspec.Meta(ge=0), InterruptModeration] = 0


class Iov(Policy, frozen=True, tag="Iov"):
    settings: IovSettings


class TierAclRule(Doc, frozen=True, kw_only=True):
    id: str = ""
    protocols: str = ""
    tier_acl_rule_action: Literal["Allow", "Block", "Pass"]
    local_addresses: str = ""
    remote_addresses: str = ""
    local_ports: str = ""
    remote_ports: str = ""
    priority: int = 0


class TierAclSettings(Doc, frozen=True, kw_only=True):
    name: str
    direction: Literal["In", "Out"]
    order: int
    tier_acl_rules: tuple[TierAclRule, ...] = ()


class TierAcl(Policy, frozen=True, tag="TierAcl"):
    settings: TierAclSettings


class FirewallPolicyFlags(IntFlag):
    ConstrainedInterface = 1


class FirewallSettings(Doc, frozen=True):
    vm_type: Literal["Invalid", "Host", "WSA", "WSL"] = "Invalid"
    firewall_policy_flags: Annotated[int, msgspec.Meta(ge=0), FirewallPolicyFlags] = 0


class Firewall(Policy, frozen=True, tag="Firewall"):
    settings: FirewallSettings


SubnetPolicy = Union[Vlan, Vsid]
NetworkPolicy = Union[
    SourceMacAddress,
    NetAdapterName,
    InterfaceConstraint,
    VSwitchExtension,
    ProviderAddress,
    DrMacAddress,
    AutomaticDns,
    RemoteSubnetRoute,
    VxlanPort,
    HostRoute,
    SetPolicy,
    L4Proxy,
    LayerConstraint,
    NetworkAcl,
]
EndpointPolicy = Union[
    PortMapping,
    Acl,
    Qos,
    L2Driver,
    OutBoundNat,
    SdnRoute,
    L4Proxy,
    L4WfpProxy,
    ProviderAddress,
    PortName,
    EncapOverhead,
    InterfaceConstraint,
    Encryption,
    Vlan,
    InterfaceParameters,
    Iov,
    TierAcl,
    Firewall,
]
# an object may hold several of these
REPEATED = (
    RemoteSubnetRoute,
    SetPolicy,
    NetworkAcl,
    L4Proxy,
    VSwitchExtension,
    PortMapping,
    Acl,
    SdnRoute,
    L4WfpProxy,
    OutBoundNat,
    TierAcl,
    Encryption,
)


def policy_of(policies: tuple[Any, ...], kind: type[Any]) -> Any | None:
    """The first policy of that kind, or None."""
    for policy in policies:
        if isinstance(policy, kind):
            return policy
    return None


def type_name(policy: object) -> str:
    """HNS's `Type` of a policy."""
    return str(type(policy).__struct_config__.tag)  # type: ignore[attr-defined]
