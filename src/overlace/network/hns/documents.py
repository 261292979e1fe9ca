"""HCN v2 documents: networks, endpoints, namespaces, load balancers, SDN routes, modify envelopes and queries.

Owns their shape and their JSON form. Must not know state (whether a document may exist here and now is
validate.py's) nor the liberties clients take in writing (spelling.py). Source: Microsoft's published HCN schema
2.0 to 2.16; members HNS would ignore are ignored.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union

import msgspec

from overlace.model.traffic import DEFAULT_AFFINITY
from overlace.network.hns import policies as p
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.spelling import colon_mac, normal_guid, normal_mac, normal_members, refusal

__all__ = ["colon_mac", "normal_guid", "normal_mac"]  # read from here by everyone

Guid = str  # upper case, with dashes
NetworkMode = Literal[
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
NamespaceType = Literal["Host", "HostDefault", "Guest", "GuestDefault"]


class NetworkFlags(IntFlag):
    EnableDnsProxy = 1
    EnableDhcpServer = 2
    EnableMirroring = 4
    EnableNonPersistent = 8
    EnablePersistent = 16
    IsolateVSwitch = 32
    EnableFlowSteering = 64
    DisableSharing = 128
    EnableFirewall = 256
    SuppressMediaDisconnect = 512
    DisableHostPort = 1024
    WeakHostReceive = 2048
    WeakHostSend = 4096
    EnableIov = 8192


class EndpointFlags(IntFlag):
    REMOTE = 1
    RemoteEndpoint = 1
    DisableInterComputeCommunication = 2
    EnableMirroring = 4
    EnableLowInterfaceMetric = 8
    OverrideDNSServerOrder = 16
    EnableDhcp = 32


class LoadBalancerFlags(IntFlag):
    EnableDirectServerReturn = 1
    IPv6 = 2


class PortMappingFlags(IntFlag):
    INTERNAL_LOAD_BALANCER = 1
    EnableInternalLoadBalancer = 1
    LOCAL_ROUTED_VIP = 2
    LocalRoutedVip = 2
    USE_MUX = 4
    NotUsed = 4
    PRESERVE_DIP = 8
    EnablePreserveDip = 8
    IsVipExternalIP = 16


class Distribution(IntEnum):
    """How a load balancer spreads connections."""

    NONE = 0  # each connection (5-tuple) for itself
    SOURCE_IP_PROTOCOL = 1
    SourceIPProtocol = 1
    SOURCE_IP = 2
    SourceIP = 2


class SubnetFlags(IntFlag):
    DoNotReserveGatewayAddress = 1


class IPSubnetFlags(IntFlag):
    EnableBroadcast = 1
    ReserveNetworkAddress = 2


class HostComputeQueryFlags(IntFlag):
    Detailed = 1


class Version(msgspec.Struct, frozen=True, rename="pascal"):
    major: p.U32 = 2
    minor: p.U32 = 0


class ExtraParams(p.Doc, frozen=True):
    resources: Any = None
    shared_containers: Any = None
    layered_on: str = ""
    switch_guid: str = ""
    utility_vm: str = msgspec.field(default="", name="UtilityVM")
    virtual_machine: str = ""


class Health(p.Doc, frozen=True):
    data: Any = None
    extra: ExtraParams = ExtraParams()


class Telemetry(p.Doc, frozen=True):
    data: Any = None


class Base(p.Doc, frozen=True, kw_only=True):
    kind: ClassVar[str]
    id: Guid = msgspec.field(default="", name="ID")
    owner: str = ""
    name: str = ""
    version: p.U64 = 0
    additional_params: Any = None
    health: Health = Health()
    telemetry: Telemetry = Telemetry()
    state: p.U16 = 0
    # a factory, so that it is written even though it is the default
    schema_version: Version = msgspec.field(default_factory=lambda: Version(2, 0))


class Route(p.Doc, frozen=True):
    next_hop: str = ""
    destination_prefix: str = ""
    metric: p.U16 = 0


class IpSubnet(p.Doc, frozen=True, kw_only=True):
    id: Guid = msgspec.field(default="", name="ID")
    name: str = ""
    ip_address_prefix: str = ""
    flags: Annotated[int, msgspec.Meta(ge=0), IPSubnetFlags] = 0


class Subnet(p.Doc, frozen=True, kw_only=True):
    id: Guid = msgspec.field(default="", name="ID")
    name: str = ""
    ip_address_prefix: str = ""
    policies: tuple[p.SubnetPolicy, ...] = ()
    routes: tuple[Route, ...] = ()
    ip_subnets: tuple[IpSubnet, ...] = ()
    flags: Annotated[int, msgspec.Meta(ge=0), SubnetFlags] = 0


class Ipam(p.Doc, frozen=True):
    type: Literal["Static", "Dhcp"] = "Static"
    subnets: tuple[Subnet, ...] = ()


class Dns(p.Doc, frozen=True):
    domain: str = ""
    search: tuple[str, ...] = ()
    server_list: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class MacRange(p.Doc, frozen=True):
    start_mac_address: str = ""
    end_mac_address: str = ""


class MacPool(p.Doc, frozen=True):
    ranges: tuple[MacRange, ...] = ()


class HostComputeNetwork(Base, frozen=True, kw_only=True):
    kind = "network"
    type: NetworkMode = "NAT"
    policies: tuple[p.NetworkPolicy, ...] = ()
    mac_pool: MacPool = MacPool()
    dns: Dns = Dns()
    ipams: tuple[Ipam, ...] = ()
    flags: Annotated[int, msgspec.Meta(ge=0), NetworkFlags] = 0
    # ours, not of the schema: broadcast and multicast packets per second that one host may send; 0: none
    multicast_rate: p.U32 = msgspec.field(default=0, name="OverlaceMulticastRate")

    @property
    def subnets(self) -> tuple[Subnet, ...]:
        return tuple(s for ipam in self.ipams for s in ipam.subnets)

    @property
    def vsids(self) -> tuple[int, ...]:
        """The VNIs of its subnets."""
        policies = (policy for subnet in self.subnets for policy in subnet.policies)
        return tuple(policy.settings.isolation_id for policy in policies if isinstance(policy, p.Vsid))

    @property
    def vsid(self) -> int:
        """The network's VNI, 0 when it has none."""
        return next(iter(self.vsids), 0)


class IpConfiguration(p.Doc, frozen=True):
    ip_address: str = ""
    prefix_length: Annotated[int, msgspec.Meta(ge=0, le=128)] = 0
    ip_subnet_id: Guid = ""


class HostComputeEndpoint(Base, frozen=True, kw_only=True):
    kind = "endpoint"
    host_compute_network: Guid = ""
    host_compute_namespace: Guid = ""
    policies: tuple[p.EndpointPolicy, ...] = ()
    ip_configurations: tuple[IpConfiguration, ...] = ()
    dns: Dns = Dns()
    routes: tuple[Route, ...] = ()
    mac_address: str = ""
    flags: Annotated[int, msgspec.Meta(ge=0), EndpointFlags] = 0

    @property
    def remote(self) -> bool:
        return bool(self.flags & EndpointFlags.REMOTE)

    @property
    def address(self) -> str:
        return self.ip_configurations[0].ip_address if self.ip_configurations else ""


class LoadBalancerPortMapping(p.Doc, frozen=True):
    protocol: p.Protocol = 0
    internal_port: int = 0
    external_port: int = 0
    distribution_type: Annotated[int, Distribution] = 0
    # ours, not of the schema: how long a client keeps its backend; 0: DEFAULT_AFFINITY
    affinity_seconds: int = msgspec.field(default=0, name="OverlaceAffinitySeconds")
    flags: Annotated[int, msgspec.Meta(ge=0), PortMappingFlags] = 0

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
    # ours, not of the schema: endpoints that see SourceVIP as their client though the others see the client itself
    source_translated: tuple[Guid, ...] = msgspec.field(default=(), name="OverlaceSourceTranslated")
    port_mappings: tuple[LoadBalancerPortMapping, ...] = ()
    flags: Annotated[int, msgspec.Meta(ge=0), LoadBalancerFlags] = 0


class HostComputeRoute(Base, frozen=True, kw_only=True):
    """An SDN route. hcsshim writes `Setting` for `Routes`: both are read and written."""

    kind = "sdnroute"
    host_compute_network: Guid = ""
    host_compute_endpoints: tuple[Guid, ...] = ()
    routes: tuple[p.SdnRouteSettings, ...] = ()


class ResourceData(p.Doc, frozen=True):
    id: str = ""


class NamespaceResource(p.Doc, frozen=True):
    type: Literal["Container", "Endpoint"]
    data: ResourceData


class HostComputeNamespace(Base, frozen=True, kw_only=True):
    kind = "namespace"
    namespace_id: p.U32 = 0
    namespace_guid: Guid = ""
    type: NamespaceType = "Host"
    resources: tuple[NamespaceResource, ...] = ()

    @property
    def endpoints(self) -> tuple[Guid, ...]:
        return tuple(r.data.id for r in self.resources if r.type == "Endpoint")

    @property
    def containers(self) -> tuple[str, ...]:
        return tuple(r.data.id for r in self.resources if r.type == "Container")


Document = Union[
    HostComputeNetwork, HostComputeEndpoint, HostComputeLoadBalancer, HostComputeNamespace, HostComputeRoute
]
D = TypeVar(
    "D",
    HostComputeNetwork,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNamespace,
    HostComputeRoute,
)
KINDS: dict[str, type[Document]] = {
    "network": HostComputeNetwork,
    "endpoint": HostComputeEndpoint,
    "loadbalancer": HostComputeLoadBalancer,
    "namespace": HostComputeNamespace,
    "sdnroute": HostComputeRoute,
}

RequestType = Literal["Add", "Remove", "Update", "Refresh", "Reset"]


class PolicySettings(p.Doc, frozen=True):
    policies: tuple[Union[p.NetworkPolicy, p.EndpointPolicy], ...] = ()


class _NetworkPolicySettings(p.Doc, frozen=True):
    policies: tuple[p.NetworkPolicy, ...] = ()


class _EndpointPolicySettings(p.Doc, frozen=True):
    policies: tuple[p.EndpointPolicy, ...] = ()


_POLICY_SETTINGS: dict[str, type[_NetworkPolicySettings] | type[_EndpointPolicySettings]] = {
    "network": _NetworkPolicySettings,
    "endpoint": _EndpointPolicySettings,
}


class EndpointResourceSettings(p.Doc, frozen=True):
    endpoint_id: Guid


class ContainerResourceSettings(p.Doc, frozen=True):
    container_id: str


class SubnetSettings(p.Doc, frozen=True):
    subnets: tuple[Subnet, ...] = ()


class IpSubnetSettings(p.Doc, frozen=True):
    subnet_id: Guid = ""
    ip_subnets: tuple[IpSubnet, ...] = ()


class ExtensionSettings(p.Doc, frozen=True):
    id: Guid = ""
    is_enabled: bool = False


class VmEndpointSettings(p.Doc, frozen=True):
    port_id: Guid = ""
    virtual_nic_name: str = ""
    virtual_machine_id: Guid = ""


class ModifyPolicies(p.Doc, frozen=True, kw_only=True, tag_field="ResourceType", tag="Policy"):
    """Envelope of HcnModifyNetwork and HcnModifyEndpoint."""

    request_type: RequestType
    settings: PolicySettings = PolicySettings()


class ModifyNetworkDns(p.Doc, frozen=True, kw_only=True, tag_field="ResourceType", tag="DNS"):
    request_type: RequestType
    settings: Dns = Dns()


class ModifyNetworkExtension(p.Doc, frozen=True, kw_only=True, tag_field="ResourceType", tag="Extension"):
    request_type: RequestType
    settings: ExtensionSettings = ExtensionSettings()


class ModifySubnets(p.Doc, frozen=True, kw_only=True, tag_field="ResourceType", tag="Subnet"):
    request_type: RequestType
    settings: SubnetSettings = SubnetSettings()


class ModifyIpSubnets(p.Doc, frozen=True, kw_only=True, tag_field="ResourceType", tag="IPSubnet"):
    request_type: RequestType
    settings: IpSubnetSettings = IpSubnetSettings()


class ModifyPort(p.Doc, frozen=True, kw_only=True, tag_field="ResourceType", tag="Port"):
    """A virtual machine's NIC on an endpoint."""

    request_type: RequestType
    settings: VmEndpointSettings = VmEndpointSettings()


class ModifyNamespaceEndpoint(p.Doc, frozen=True, kw_only=True, tag_field="ResourceType", tag="Endpoint"):
    """Envelope of HcnModifyNamespace."""

    request_type: RequestType
    settings: EndpointResourceSettings


class ModifyNamespaceContainer(p.Doc, frozen=True, kw_only=True, tag_field="ResourceType", tag="Container"):
    request_type: RequestType
    settings: ContainerResourceSettings


Modify = Union[
    ModifyPolicies,
    ModifyNetworkDns,
    ModifyNetworkExtension,
    ModifySubnets,
    ModifyIpSubnets,
    ModifyPort,
    ModifyNamespaceEndpoint,
    ModifyNamespaceContainer,
]
# by kind, in the order of the schema's enumerations: clients may send `ResourceType` as a number
RESOURCES: dict[str, tuple[type[Any], ...]] = {
    "network": (ModifyNetworkDns, ModifyNetworkExtension, ModifyPolicies, ModifySubnets, ModifyIpSubnets),
    "endpoint": (ModifyPort, ModifyPolicies),
    "namespace": (ModifyNamespaceContainer, ModifyNamespaceEndpoint),
}


class HostComputeQuery(p.Doc, frozen=True):
    schema_version: Version = msgspec.field(default_factory=lambda: Version(2, 0))
    flags: Annotated[int, msgspec.Meta(ge=0), HostComputeQueryFlags] = 0
    filter: Union[str, dict[str, Any]] = ""


# -- reading and writing -------------------------------------------------------------------------------------


def read_object(data: bytes | str) -> dict[str, Any]:
    """A JSON object. Raises HcnError 0x803b001b."""
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise HcnError(Code.INVALID_JSON, str(e)) from None
    if not isinstance(raw, dict):
        raise HcnError(Code.INVALID_JSON, "the document must be an object")
    return raw


S = TypeVar("S", bound=msgspec.Struct)


def convert(raw: dict[str, Any], kind: type[S]) -> S:
    """A typed document from JSON as a client sends it. Raises HcnError naming the member by its path."""
    try:
        return msgspec.convert(normal_members(raw, kind), kind)
    except msgspec.ValidationError as e:
        raise refusal(str(e)) from None


def parse(kind: str, data: bytes | str) -> Document:
    """A document from JSON as a client sends it. Raises HcnError (invalid JSON, or member with its path)."""
    return convert(read_object(data), KINDS[kind])


def parse_modify(kind: str, data: bytes | str) -> Modify:
    """The envelope of HcnModify*. Raises HcnError."""
    raw = {k.lower(): v for k, v in read_object(data).items()}
    resource = raw.get("resourcetype", 0)
    kinds = RESOURCES[kind]
    names = {str(k.__struct_config__.tag).lower(): k for k in kinds}
    found: type[Any] | None = None
    if isinstance(resource, str):
        found = names.get(resource.lower())
    elif isinstance(resource, int) and 0 <= resource < len(kinds):
        found = kinds[resource]
    if found is None:
        raise HcnError(
            Code.REQUEST_UNSUPPORTED,
            f"ResourceType {resource!r} of a {kind}: use "
            + ", ".join(str(k.__struct_config__.tag) for k in kinds),
        )
    raw["resourcetype"] = found.__struct_config__.tag
    if found is not ModifyPolicies:
        request: Modify = convert(raw, found)
        return request
    settings = raw.get("settings") or {}
    if not isinstance(settings, dict):
        raise HcnError(Code.BAD_PARAMETER, "Expected `object` - at `$.Settings`")
    policies = tuple(convert(settings, _POLICY_SETTINGS[kind]).policies)
    envelope = convert({k: v for k, v in raw.items() if k != "settings"}, ModifyPolicies)
    return msgspec.structs.replace(envelope, settings=PolicySettings(policies))


def encode(document: Document | Modify) -> bytes:
    """JSON as HNS takes it."""
    return msgspec.json.encode(document)
