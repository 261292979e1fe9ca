"""A v1 body written over an object that is there: what v1 has no word for stays as it was.

Owns that rule (pure). v1 clients read an object, change a member and POST the whole (hcsshim's internal/hns, Update):
what they never saw they cannot mean to remove. What the two forms mean is v1.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

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
    LoadBalancerFlags,
    LoadBalancerPortMapping,
    MacPool,
    PortMappingFlags,
    Route,
    Subnet,
)
from overlace.network.hns.routes import ANYWHERE, ANYWHERE6
from overlace.network.hns.v1 import has_v1_word

_ENDPOINT_BITS = (
    EndpointFlags.REMOTE
    | EndpointFlags.DisableInterComputeCommunication
    | EndpointFlags.EnableLowInterfaceMetric
)
_NETWORK_WORDS = (p.NetAdapterName, p.SourceMacAddress, p.AutomaticDns, p.HostRoute, p.VxlanPort)
_DEFAULTS = ("HostDefault", "GuestDefault")


def carry_over(old: Document, new: Document) -> Document:
    """`new`, as a v1 body says it, with what only v2 can say of `old`. They are of one kind."""
    new = _base(old, new)
    if isinstance(old, HostComputeNetwork) and isinstance(new, HostComputeNetwork):
        return _network(old, new)
    if isinstance(old, HostComputeEndpoint) and isinstance(new, HostComputeEndpoint):
        return _endpoint(old, new)
    if isinstance(old, HostComputeLoadBalancer) and isinstance(new, HostComputeLoadBalancer):
        return _balancer(old, new)
    if isinstance(old, HostComputeNamespace) and isinstance(new, HostComputeNamespace):
        same = (old.type in _DEFAULTS) == (new.type in _DEFAULTS)
        number = new.namespace_id or old.namespace_id
        return msgspec.structs.replace(new, type=old.type if same else new.type, namespace_id=number)
    return new


def _base(old: Document, new: Document) -> Document:
    beside = old.additional_params if isinstance(old.additional_params, dict) else {}
    own = new.additional_params if isinstance(new.additional_params, dict) else {}
    kept = {k: v for k, v in beside.items() if k != "V1"} | own
    return msgspec.structs.replace(
        new,
        name=new.name or old.name,
        owner=new.owner or old.owner,
        health=old.health,
        telemetry=old.telemetry,
        additional_params=kept or None,
    )


def _dns(old: Dns, new: Dns, *, search: bool) -> Dns:
    """`search`: v1 has a word for the search list, which it has of endpoints."""
    kept = new.search if search else old.search
    return msgspec.structs.replace(new, search=kept, options=old.options)


def _routes(old: tuple[Route, ...], new: tuple[Route, ...]) -> tuple[Route, ...]:
    """v1 has one gateway of each family."""
    return (*new, *(r for r in old if r.destination_prefix not in (ANYWHERE, ANYWHERE6)))


def _network(old: HostComputeNetwork, new: HostComputeNetwork) -> HostComputeNetwork:
    kept = tuple(x for x in old.policies if not isinstance(x, _NETWORK_WORDS))
    ipams = old.ipams
    if new.subnets:
        before = {s.ip_address_prefix: s for s in old.subnets}
        subnets = tuple(_subnet(before.get(s.ip_address_prefix), s) for s in new.subnets)
        ipams = (Ipam(old.ipams[0].type if old.ipams else "Static", subnets),)
    return msgspec.structs.replace(
        new,
        policies=(*new.policies, *kept),
        ipams=ipams,
        mac_pool=new.mac_pool if new.mac_pool.ranges else MacPool(old.mac_pool.ranges),
        dns=_dns(old.dns, new.dns, search=False),
        flags=old.flags,
        multicast_rate=old.multicast_rate,
    )


def _subnet(old: Subnet | None, new: Subnet) -> Subnet:
    if old is None:
        return new
    return msgspec.structs.replace(
        new,
        id=old.id,
        name=old.name,
        ip_subnets=old.ip_subnets,
        flags=old.flags,
        routes=_routes(old.routes, new.routes),
    )


def _endpoint(old: HostComputeEndpoint, new: HostComputeEndpoint) -> HostComputeEndpoint:
    wordless = tuple(
        x
        for x in old.policies
        if not has_v1_word(x) and not isinstance(x, p.EncapOverhead)  # a member of v1
    )
    before = {c.ip_address: c.ip_subnet_id for c in old.ip_configurations}
    configs = tuple(
        msgspec.structs.replace(c, ip_subnet_id=before.get(c.ip_address, "")) for c in new.ip_configurations
    )
    return msgspec.structs.replace(
        new,
        policies=(*(_policy(x, old.policies) for x in new.policies), *wordless),
        ip_configurations=configs or old.ip_configurations,
        mac_address=new.mac_address or old.mac_address,
        dns=_dns(old.dns, new.dns, search=True),
        routes=_routes(old.routes, new.routes),
        flags=new.flags | old.flags & ~int(_ENDPOINT_BITS),
    )


def _policy(x: Any, old: tuple[Any, ...]) -> Any:
    """A policy with the members v1 does not show, of the one that says the same otherwise."""
    match x:
        case p.PortMapping():
            told = int(p.NatFlags.ExternalPortReserved)
            found = _same(x, old, lambda s: msgspec.structs.replace(s, flags=0))
            flags = x.settings.flags | (found.flags & ~told if found is not None else 0)
            return p.PortMapping(msgspec.structs.replace(x.settings, flags=flags))
        case p.OutBoundNat():
            found = _same(x, old, lambda s: msgspec.structs.replace(s, flags=0))
        case p.SdnRoute():
            found = _same(x, old, lambda s: msgspec.structs.replace(s, automatic_endpoint_monitor=False))
        case p.L4Proxy():
            found = _same(x, old, lambda s: msgspec.structs.replace(s, protocol=0))
        case _:
            return x
    return type(x)(found) if found is not None else x


def _same(x: Any, old: tuple[Any, ...], plain: Callable[[Any], Any]) -> Any | None:
    """Settings of the old policy of this kind that are the same but for what `plain` takes away."""
    wanted = plain(x.settings)
    return next((o.settings for o in old if type(o) is type(x) and plain(o.settings) == wanted), None)


def _balancer(old: HostComputeLoadBalancer, new: HostComputeLoadBalancer) -> HostComputeLoadBalancer:
    before = {(m.protocol, m.internal_port, m.external_port): m for m in old.port_mappings}

    def mapping(m: LoadBalancerPortMapping) -> LoadBalancerPortMapping:
        was = before.get((m.protocol, m.internal_port, m.external_port))
        if was is None:
            return m
        hidden = was.flags & ~int(PortMappingFlags.INTERNAL_LOAD_BALANCER)
        return msgspec.structs.replace(was, flags=m.flags | hidden)

    return msgspec.structs.replace(
        new,
        host_compute_network=new.host_compute_network or old.host_compute_network,
        port_mappings=tuple(mapping(m) for m in new.port_mappings),
        flags=new.flags | old.flags & ~int(LoadBalancerFlags.EnableDirectServerReturn),
    )
