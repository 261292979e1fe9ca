"""Policies of HCN v2 documents: `{"Type": ..., "Settings": {...}}`, one struct per type.

Owns their shape (schema 2.0 to 2.4). Must not validate against state: that is validate.py.
Source: Microsoft's published HCN schema.
"""

from __future__ import annotations

from typing import Any, Literal, Union

import msgspec


class Doc(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True):
    """PascalCase members, zero ones omitted, as HNS writes them."""


class Policy(Doc, frozen=True, tag_field="Type"):
    """Base of all policies; the tag is HNS's `Type`."""


class IsolationSettings(Doc, frozen=True):
    isolation_id: int


class Vsid(Policy, frozen=True, tag="VSID"):
    settings: IsolationSettings


class ProviderAddressSettings(Doc, frozen=True):
    provider_address: str


class ProviderAddress(Policy, frozen=True, tag="ProviderAddress"):
    settings: ProviderAddressSettings


class DrMacAddressSettings(Doc, frozen=True):
    address: str


class DrMacAddress(Policy, frozen=True, tag="DrMacAddress"):
    settings: DrMacAddressSettings


class NetAdapterNameSettings(Doc, frozen=True):
    network_adapter_name: str


class NetAdapterName(Policy, frozen=True, tag="NetAdapterName"):
    settings: NetAdapterNameSettings


class VxlanPortSettings(Doc, frozen=True):
    port: int


class VxlanPort(Policy, frozen=True, tag="VxlanPort"):
    settings: VxlanPortSettings


class AutomaticDnsSettings(Doc, frozen=True):
    enable: bool = False


class AutomaticDns(Policy, frozen=True, tag="AutomaticDNS"):
    settings: AutomaticDnsSettings


class RemoteSubnetRouteSettings(Doc, frozen=True):
    destination_prefix: str
    isolation_id: int
    provider_address: str
    distributed_router_mac_address: str


class RemoteSubnetRoute(Policy, frozen=True, tag="RemoteSubnetRoute"):
    settings: RemoteSubnetRouteSettings


class NoSettings(Doc, frozen=True):
    pass


class HostRoute(Policy, frozen=True, tag="HostRoute"):
    settings: NoSettings = msgspec.field(default_factory=NoSettings)


class OutBoundNatSettings(Doc, frozen=True):
    virtual_ip: str = msgspec.field(default="", name="VirtualIP")
    exceptions: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    flags: int = 0


class OutBoundNat(Policy, frozen=True, tag="OutBoundNAT"):
    settings: OutBoundNatSettings


class PortMappingSettings(Doc, frozen=True):
    protocol: int
    internal_port: int
    external_port: int
    vip: str = msgspec.field(default="", name="VIP")
    flags: int = 0


class PortMapping(Policy, frozen=True, tag="PortMapping"):
    settings: PortMappingSettings


class EncapOverheadSettings(Doc, frozen=True):
    overhead: int


class EncapOverhead(Policy, frozen=True, tag="EncapOverhead"):
    settings: EncapOverheadSettings


class InterfaceParametersSettings(Doc, frozen=True):
    mtu: int = 0


class InterfaceParameters(Policy, frozen=True, tag="InterfaceParameters"):
    settings: InterfaceParametersSettings


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


class Acl(Policy, frozen=True, tag="ACL"):
    settings: AclSettings


class TierAclRule(Doc, frozen=True, kw_only=True):
    """Lists as in AclSettings."""

    tier_acl_rule_action: Literal["Allow", "Block", "Pass"]
    protocols: str = ""
    local_addresses: str = ""
    remote_addresses: str = ""
    local_ports: str = ""
    remote_ports: str = ""
    priority: int = 0
    id: str = ""


class TierAclSettings(Doc, frozen=True, kw_only=True):
    name: str
    direction: Literal["In", "Out"]
    order: int
    tier_acl_rules: tuple[TierAclRule, ...] = ()


class TierAcl(Policy, frozen=True, tag="TierAcl"):
    settings: TierAclSettings


class SetPolicySettings(Doc, frozen=True, kw_only=True):
    """`values`: addresses and prefixes (IPSET) or ids of such sets (NESTEDIPSET), comma separated."""

    id: str
    name: str = ""
    policy_type: Literal["IPSET", "NESTEDIPSET"] = "IPSET"
    values: str = ""


class SetPolicy(Policy, frozen=True, tag="SetPolicy"):
    settings: SetPolicySettings


class QosSettings(Doc, frozen=True):
    maximum_outgoing_bandwidth_in_bytes: int  # per second


class Qos(Policy, frozen=True, tag="QOS"):
    settings: QosSettings


SubnetPolicy = Vsid
NetworkPolicy = Union[
    ProviderAddress,
    DrMacAddress,
    NetAdapterName,
    VxlanPort,
    AutomaticDns,
    RemoteSubnetRoute,
    HostRoute,
    SetPolicy,
]
EndpointPolicy = Union[
    ProviderAddress, OutBoundNat, PortMapping, EncapOverhead, InterfaceParameters, Acl, TierAcl, Qos
]

# Ordinals by declaration order of the schema's enumerations: clients may send `Type` as a number.
NETWORK_POLICY_ORDER = [
    "SourceMacAddress",
    "NetAdapterName",
    "InterfaceConstraint",
    "VSwitchExtension",
    "ProviderAddress",
    "DrMacAddress",
    "AutomaticDNS",
    "RemoteSubnetRoute",
    "VxlanPort",
    "HostRoute",
    "SetPolicy",
    "L4Proxy",
    "LayerConstraint",
    "NetworkACL",
]
ENDPOINT_POLICY_ORDER = [
    "PortMapping",
    "ACL",
    "QOS",
    "L2Driver",
    "OutBoundNAT",
    "SDNRoute",
    "L4Proxy",
    "L4WFPPROXY",
    "ProviderAddress",
    "PortName",
    "EncapOverhead",
    "InterfaceConstraint",
    "Encryption",
    "VLAN",
    "InterfaceParameters",
    "Iov",
    "TierAcl",
]
SUBNET_POLICY_ORDER = ["VLAN", "VSID"]


def policy_of(policies: tuple[Any, ...], kind: type[Any]) -> Any | None:
    """The first policy of that kind, or None."""
    for policy in policies:
        if isinstance(policy, kind):
            return policy
    return None
