"""HCN v2 documents: networks, endpoints, load balancers, namespaces and the modify envelope.

Owns their shape, their JSON form and the spelling of GUIDs and MACs. Must not know state: whether a document
may exist here and now is validate.py's. Source: Microsoft's published HCN schema 2.0 to 2.5; enums may come
as string (any case) or ordinal, members HNS would ignore are ignored.
"""

from __future__ import annotations

import re
import uuid
from enum import IntEnum, IntFlag
from typing import Any, ClassVar, Literal, TypeVar, Union

import msgspec

from overlace.network.hns import policies as p
from overlace.network.hns.errors import Code, HcnError

Guid = str  # upper case, with dashes
NetworkMode = Literal["NAT", "Overlay"]
NamespaceType = Literal["Host", "HostDefault", "Guest", "GuestDefault"]


class EndpointFlags(IntFlag):
    REMOTE = 1


class PortMappingFlags(IntFlag):
    INTERNAL_LOAD_BALANCER = 1
    LOCAL_ROUTED_VIP = 2
    USE_MUX = 4
    PRESERVE_DIP = 8


class Distribution(IntEnum):
    """How a load balancer spreads connections."""

    NONE = 0  # each connection (5-tuple) for itself
    SOURCE_IP_PROTOCOL = 1
    SOURCE_IP = 2


DEFAULT_AFFINITY = 10800  # seconds, as Kubernetes' ClientIP affinity has it


class Version(msgspec.Struct, frozen=True, rename="pascal"):
    major: int = 2
    minor: int = 0


class Base(p.Doc, frozen=True, kw_only=True):
    kind: ClassVar[str]
    id: Guid = msgspec.field(default="", name="ID")
    owner: str = ""
    name: str = ""
    # a factory, so that it is written even though it is the default
    schema_version: Version = msgspec.field(default_factory=lambda: Version(2, 0))


class Route(p.Doc, frozen=True):
    next_hop: str = ""
    destination_prefix: str = ""
    metric: int = 0


class Subnet(p.Doc, frozen=True, kw_only=True):
    ip_address_prefix: str = ""
    policies: tuple[p.SubnetPolicy, ...] = ()
    routes: tuple[Route, ...] = ()


class Ipam(p.Doc, frozen=True):
    type: str = "Static"
    subnets: tuple[Subnet, ...] = ()


class Dns(p.Doc, frozen=True):
    domain: str = ""
    search: tuple[str, ...] = ()
    server_list: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class HostComputeNetwork(Base, frozen=True, kw_only=True):
    kind = "network"
    type: NetworkMode = "NAT"
    policies: tuple[p.NetworkPolicy, ...] = ()
    ipams: tuple[Ipam, ...] = ()
    dns: Dns = Dns()
    flags: int = 0

    @property
    def subnets(self) -> tuple[Subnet, ...]:
        return tuple(s for ipam in self.ipams for s in ipam.subnets)

    @property
    def vsid(self) -> int:
        """The network's VNI, 0 when it has none."""
        for subnet in self.subnets:
            for policy in subnet.policies:
                return policy.settings.isolation_id
        return 0


class IpConfiguration(p.Doc, frozen=True):
    ip_address: str
    prefix_length: int = 0


class HostComputeEndpoint(Base, frozen=True, kw_only=True):
    kind = "endpoint"
    host_compute_network: Guid = ""
    host_compute_namespace: Guid = ""
    policies: tuple[p.EndpointPolicy, ...] = ()
    ip_configurations: tuple[IpConfiguration, ...] = ()
    dns: Dns = Dns()
    routes: tuple[Route, ...] = ()
    mac_address: str = ""
    flags: int = 0

    @property
    def remote(self) -> bool:
        return bool(self.flags & EndpointFlags.REMOTE)

    @property
    def address(self) -> str:
        return self.ip_configurations[0].ip_address if self.ip_configurations else ""


class LoadBalancerPortMapping(p.Doc, frozen=True):
    protocol: int = 0
    internal_port: int = 0
    external_port: int = 0
    distribution_type: int = 0
    # ours, not of the schema: how long a client keeps its backend; 0: DEFAULT_AFFINITY
    affinity_seconds: int = msgspec.field(default=0, name="OverlaceAffinitySeconds")
    flags: int = 0

    @property
    def affinity(self) -> int:
        """Seconds in which a client's next connection goes to the same backend; 0: any."""
        return (self.affinity_seconds or DEFAULT_AFFINITY) if self.distribution_type else 0


class HostComputeLoadBalancer(Base, frozen=True, kw_only=True):
    kind = "loadbalancer"
    host_compute_network: Guid = ""
    host_compute_endpoints: tuple[Guid, ...] = ()
    source_vip: str = msgspec.field(default="", name="SourceVIP")
    frontend_vips: tuple[str, ...] = msgspec.field(default=(), name="FrontendVIPs")
    port_mappings: tuple[LoadBalancerPortMapping, ...] = ()
    flags: int = 0


class ResourceData(p.Doc, frozen=True):
    id: Guid = ""


class NamespaceResource(p.Doc, frozen=True):
    type: Literal["Container", "Endpoint"]
    data: ResourceData


class HostComputeNamespace(Base, frozen=True, kw_only=True):
    kind = "namespace"
    namespace_id: int = 0
    type: NamespaceType = "Host"
    resources: tuple[NamespaceResource, ...] = ()

    @property
    def endpoints(self) -> tuple[Guid, ...]:
        return tuple(r.data.id for r in self.resources if r.type == "Endpoint")


Document = Union[HostComputeNetwork, HostComputeEndpoint, HostComputeLoadBalancer, HostComputeNamespace]
D = TypeVar("D", HostComputeNetwork, HostComputeEndpoint, HostComputeLoadBalancer, HostComputeNamespace)
KINDS: dict[str, type[Document]] = {
    "network": HostComputeNetwork,
    "endpoint": HostComputeEndpoint,
    "loadbalancer": HostComputeLoadBalancer,
    "namespace": HostComputeNamespace,
}

RequestType = Literal["Add", "Remove", "Update"]


class PolicySettings(p.Doc, frozen=True):
    policies: tuple[Union[p.NetworkPolicy, p.EndpointPolicy], ...] = ()


class EndpointResourceSettings(p.Doc, frozen=True):
    endpoint_id: Guid


class ModifyPolicies(p.Doc, frozen=True, kw_only=True, tag_field="ResourceType", tag="Policy"):
    """Envelope of HcnModifyNetwork and HcnModifyEndpoint."""

    request_type: RequestType
    settings: PolicySettings


class ModifyNamespaceEndpoint(p.Doc, frozen=True, kw_only=True, tag_field="ResourceType", tag="Endpoint"):
    """Envelope of HcnModifyNamespace."""

    request_type: RequestType
    settings: EndpointResourceSettings


Modify = Union[ModifyPolicies, ModifyNamespaceEndpoint]


# -- spelling ------------------------------------------------------------------------------------------------

_HEX = re.compile(r"^[0-9A-Fa-f]{2}([-:])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}$")


def normal_guid(text: str, field: str = "ID") -> Guid:
    """Upper case with dashes. Raises HcnError 0x803b0019 naming `field`."""
    try:
        return str(uuid.UUID(text)).upper()
    except (ValueError, AttributeError, TypeError):
        raise HcnError(Code.GUID_CONVERSION_FAILURE, f"{field} {text!r} is not a GUID") from None


def normal_mac(text: str, field: str = "MacAddress") -> str:
    """HNS's spelling 00-15-5D-AA-BB-CC from `:` or `-`. Raises HcnError 0x80070057 naming `field`."""
    if not _HEX.match(text):
        raise HcnError(Code.BAD_PARAMETER, f"{field} {text!r} is not a MAC address: write 02-42-0A-00-00-02")
    return text.replace(":", "-").upper()


def colon_mac(text: str) -> str:
    """The kernel's spelling 00:15:5d:aa:bb:cc."""
    return text.replace("-", ":").lower()


def _policy_names(items: object, order: list[str]) -> list[Any]:
    names = {n.lower(): n for n in order}
    out: list[Any] = []
    for item in items if isinstance(items, list) else []:
        if isinstance(item, dict) and "Type" in item:
            kind = item["Type"]
            if isinstance(kind, int) and 0 <= kind < len(order):
                kind = order[kind]
            elif isinstance(kind, str):
                kind = names.get(kind.lower(), kind)
            item = {**item, "Type": kind}
            if kind in _SPELLED and isinstance(item.get("Settings"), dict):
                item["Settings"] = _spell(item["Settings"])
        out.append(item)
    return out


_SPELLED = ("ACL", "TierAcl", "SetPolicy")
_WORDS = {
    "Action": ("Allow", "Block", "Pass"),
    "TierAclRuleAction": ("Allow", "Block", "Pass"),
    "Direction": ("In", "Out"),
    "RuleType": ("Host", "Switch"),
    "PolicyType": ("IPSET", "NESTEDIPSET"),
}


def _spell(settings: dict[str, Any]) -> dict[str, Any]:
    out = dict(settings)
    if isinstance(out.get("TierAclRules"), list):
        out["TierAclRules"] = [_spell(r) if isinstance(r, dict) else r for r in out["TierAclRules"]]
    for member, words in _WORDS.items():
        value = out.get(member)
        if isinstance(value, int) and 0 <= value < len(words):
            out[member] = words[value]
        elif isinstance(value, str):
            out[member] = {w.lower(): w for w in words}.get(value.lower(), value)
    return out


_MODES = [
    "NAT",
    "ICS",
    "Transparent",
    "L2Bridge",
    "L2Tunnel",
    "Overlay",
    "Private",
    "Internal",
    "Mirrored",
    "Infiniband",
    "ConstrainedICS",
]


def _normal_names(kind: str, raw: dict[str, Any]) -> dict[str, Any]:
    """Enumerations to the spelling of the schema, in a copy."""
    raw = dict(raw)
    if "Id" in raw and "ID" not in raw:
        raw["ID"] = raw.pop("Id")
    if kind == "network":
        mode = raw.get("Type", "NAT")
        if isinstance(mode, int) and 0 <= mode < len(_MODES):
            mode = _MODES[mode]
        if isinstance(mode, str):
            mode = {m.lower(): m for m in _MODES}.get(mode.lower(), mode)
        raw["Type"] = mode
        if "Policies" in raw:
            raw["Policies"] = _policy_names(raw["Policies"], p.NETWORK_POLICY_ORDER)
        ipams = raw.get("Ipams")
        if isinstance(ipams, list):
            raw["Ipams"] = [
                {
                    **ipam,
                    "Subnets": [
                        {**s, "Policies": _policy_names(s.get("Policies"), p.SUBNET_POLICY_ORDER)}
                        for s in ipam.get("Subnets") or []
                        if isinstance(s, dict)
                    ],
                }
                for ipam in ipams
                if isinstance(ipam, dict)
            ]
    elif kind == "endpoint" and "Policies" in raw:
        raw["Policies"] = _policy_names(raw["Policies"], p.ENDPOINT_POLICY_ORDER)
    return raw


def parse(kind: str, data: bytes | str) -> Document:
    """A document from JSON as a client sends it. Raises HcnError (invalid JSON, or member with its path)."""
    try:
        raw = msgspec.json.decode(data)
    except msgspec.DecodeError as e:
        raise HcnError(Code.INVALID_JSON, str(e)) from None
    if not isinstance(raw, dict):
        raise HcnError(Code.INVALID_JSON, "the document must be an object")
    try:
        return msgspec.convert(_normal_names(kind, raw), KINDS[kind])
    except msgspec.ValidationError as e:
        raise HcnError(Code.BAD_PARAMETER, str(e)) from None


def encode(document: Document | Modify) -> bytes:
    """JSON as HNS takes it."""
    return msgspec.json.encode(document)
