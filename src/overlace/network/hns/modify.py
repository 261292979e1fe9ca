"""What a modify request makes of a document. Pure; the result is checked as a created one is.

Owns the meaning of Add, Remove, Update, Refresh and Reset. Add appends (and refuses a second policy of a kind an
object has once), Remove takes what is there with this type and these settings, Update replaces those of the type.
No public source says what Refresh and Reset do: Refresh applies again what is there, Reset takes a type's policies
away (all types when none is named), except what HNS fills in itself.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec

from overlace.network.hns import policies as p
from overlace.network.hns.documents import (
    Dns,
    Document,
    HostComputeEndpoint,
    HostComputeNetwork,
    Ipam,
    IpSubnet,
    Modify,
    ModifyIpSubnets,
    ModifyNetworkDns,
    ModifyNetworkExtension,
    ModifyPolicies,
    ModifyPort,
    ModifySubnets,
    Subnet,
    normal_mac,
)
from overlace.network.hns.errors import Code, HcnError

OUTPUTS = (p.DrMacAddress, p.ProviderAddress)


def plan_modify(d: Document, request: Modify) -> Document:
    """The document after `request`; namespaces are service.py's. Raises HcnError."""
    if isinstance(request, ModifyPolicies) and isinstance(d, (HostComputeNetwork, HostComputeEndpoint)):
        return _policies(d, request)
    if isinstance(d, HostComputeNetwork):
        if isinstance(request, ModifyNetworkDns):
            return _dns(d, request)
        if isinstance(request, ModifySubnets):
            return _subnets(d, request)
        if isinstance(request, ModifyIpSubnets):
            return _ip_subnets(d, request)
        if isinstance(request, ModifyNetworkExtension):
            raise HcnError(
                Code.SWITCH_EXTENSION_NOT_FOUND, f"Settings.Id {request.settings.id!r}: this switch has none"
            )
    if isinstance(request, ModifyPort):
        raise HcnError(
            Code.REQUEST_UNSUPPORTED, "ResourceType Port: this host has no virtual machines to attach"
        )
    resource = type(request).__struct_config__.tag
    raise HcnError(Code.REQUEST_UNSUPPORTED, f"ResourceType {resource} on a {d.kind}")


def _unsupported(request: Any) -> HcnError:
    resource = type(request).__struct_config__.tag
    return HcnError(
        Code.REQUEST_UNSUPPORTED, f"RequestType {request.request_type} for ResourceType {resource}"
    )


def _policies(
    d: HostComputeNetwork | HostComputeEndpoint, request: ModifyPolicies
) -> HostComputeNetwork | HostComputeEndpoint:
    have: tuple[Any, ...] = d.policies
    asked = tuple(normal_policy(x) for x in request.settings.policies)
    kinds = {type(x) for x in asked}
    if request.request_type != "Refresh" and request.request_type != "Reset" and not asked:
        raise HcnError(Code.INVALID_POLICY, "Settings.Policies is empty: name at least one policy")
    match request.request_type:
        case "Add":
            for policy in asked:
                if isinstance(policy, p.REPEATED):
                    if policy in have:
                        raise HcnError(
                            Code.POLICY_ALREADY_EXISTS,
                            f"Settings.Policies: {_shown(policy)} is on {d.kind} {d.name or d.id} already: leave it out",
                        )
                elif any(type(x) is type(policy) for x in have):
                    code = (
                        Code.INTERFACEPARAMETERS_ALREADY_APPLIED
                        if isinstance(policy, p.InterfaceParameters)
                        else Code.POLICY_ALREADY_EXISTS
                    )
                    raise HcnError(
                        code,
                        f"Settings.Policies: {d.kind} {d.name or d.id} has a {p.type_name(policy)} already: "
                        "use RequestType Update to replace it",
                    )
            have = (*have, *asked)
        case "Remove":
            left = list(have)
            for policy in asked:
                if policy not in left:
                    raise HcnError(
                        Code.POLICY_NOT_FOUND,
                        f"Settings.Policies: {_shown(policy)} is not on {d.kind} {d.name or d.id}: "
                        "write Type and Settings as a query shows them",
                    )
                left.remove(policy)
            have = tuple(left)
        case "Update":
            have = (*(x for x in have if type(x) not in kinds), *asked)
        case "Reset":
            have = tuple(
                x
                for x in have
                if (isinstance(d, HostComputeNetwork) and isinstance(x, OUTPUTS))
                or (isinstance(x, p.ProviderAddress))
                or (kinds and type(x) not in kinds)
            )
        case "Refresh":
            pass
    return msgspec.structs.replace(d, policies=have)


def _shown(policy: object) -> str:
    """A policy as its owner wrote it, cut where it is long."""
    text = msgspec.json.encode(policy).decode()
    return text if len(text) <= 200 else f"{text[:200]}…"


def _dns(d: HostComputeNetwork, request: ModifyNetworkDns) -> HostComputeNetwork:
    new = request.settings
    match request.request_type:
        case "Update":
            return msgspec.structs.replace(d, dns=new)
        case "Add":
            return msgspec.structs.replace(
                d,
                dns=Dns(
                    new.domain or d.dns.domain,
                    _union(d.dns.search, new.search),
                    _union(d.dns.server_list, new.server_list),
                    _union(d.dns.options, new.options),
                ),
            )
        case "Remove":
            return msgspec.structs.replace(
                d,
                dns=Dns(
                    "" if new.domain == d.dns.domain else d.dns.domain,
                    tuple(x for x in d.dns.search if x not in new.search),
                    tuple(x for x in d.dns.server_list if x not in new.server_list),
                    tuple(x for x in d.dns.options if x not in new.options),
                ),
            )
        case "Reset":
            return msgspec.structs.replace(d, dns=Dns())
    return d


def _union(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*a, *b)))


def _same_subnet(a: Subnet | IpSubnet, b: Subnet | IpSubnet) -> bool:
    if a.id and b.id:
        return a.id.upper() == b.id.upper()
    return a.ip_address_prefix == b.ip_address_prefix


def _subnets(d: HostComputeNetwork, request: ModifySubnets) -> HostComputeNetwork:
    asked = request.settings.subnets
    if not asked:
        raise HcnError(Code.INVALID_SUBNET, "Settings.Subnets is empty: name at least one subnet")
    have = list(d.subnets)
    for s in asked:
        found = next((h for h in have if _same_subnet(h, s)), None)
        if request.request_type == "Add":
            if found is not None:
                raise HcnError(
                    Code.INVALID_SUBNET,
                    f"Settings.Subnets {s.ip_address_prefix} is of network {d.name} already: use RequestType Update",
                )
            have.append(s)
            continue
        if found is None:
            raise HcnError(
                Code.SUBNET_NOT_FOUND, f"Subnets {s.id or s.ip_address_prefix} is not of network {d.name}"
            )
        if request.request_type == "Remove":
            have.remove(found)
        elif request.request_type == "Update":
            have[have.index(found)] = msgspec.structs.replace(s, id=found.id)
        elif request.request_type == "Reset":
            raise _unsupported(request)
    first = d.ipams[0].type if d.ipams else "Static"
    ipam = Ipam(first, tuple(have))
    return msgspec.structs.replace(d, ipams=(ipam,))


def _ip_subnets(d: HostComputeNetwork, request: ModifyIpSubnets) -> HostComputeNetwork:
    wanted = request.settings.subnet_id.upper()
    outer = next((s for s in d.subnets if s.id == wanted), None)
    if outer is None:
        raise HcnError(Code.SUBNET_NOT_FOUND, f"Settings.SubnetId {wanted!r} is not of network {d.name}")
    if not request.settings.ip_subnets:
        raise HcnError(Code.INVALID_IP_SUBNET, "Settings.IpSubnets is empty: name at least one")
    have = list(outer.ip_subnets)
    for s in request.settings.ip_subnets:
        found = next((h for h in have if _same_subnet(h, s)), None)
        if request.request_type == "Add" and found is None:
            have.append(s)
        elif request.request_type == "Remove" and found is not None:
            have.remove(found)
        elif request.request_type == "Update" and found is not None:
            have[have.index(found)] = msgspec.structs.replace(s, id=found.id)
        elif request.request_type != "Refresh":
            raise HcnError(
                Code.INVALID_IP_SUBNET,
                f"RequestType {request.request_type} of IpSubnets {s.id or s.ip_address_prefix}: "
                + ("it is there already" if found is not None else "it is not there"),
            )
    new = msgspec.structs.replace(outer, ip_subnets=tuple(have))
    ipams = tuple(
        msgspec.structs.replace(i, subnets=tuple(new if s is outer else s for s in i.subnets))
        for i in d.ipams
    )
    return msgspec.structs.replace(d, ipams=ipams)


def normal_policy(policy: Any) -> Any:
    """MACs as HNS spells them, so that Remove matches what Add stored."""
    if isinstance(policy, p.RemoteSubnetRoute):
        s = policy.settings
        mac = normal_mac(s.distributed_router_mac_address, "RemoteSubnetRoute.DistributedRouterMacAddress")
        prefix = s.destination_prefix
        try:
            prefix = str(ipaddress.ip_network(prefix, strict=False))
        except ValueError:
            pass  # validate.py names it
        return p.RemoteSubnetRoute(
            msgspec.structs.replace(s, destination_prefix=prefix, distributed_router_mac_address=mac)
        )
    if isinstance(policy, p.DrMacAddress):
        return p.DrMacAddress(
            p.DrMacAddressSettings(normal_mac(policy.settings.address, "DrMacAddress.Address"))
        )
    return policy
