"""Whether a document claims what another has: an address, a VIP, a port that clients outside see.

Owns these refusals, both ways round (pure functions of document and state): of two rows with one key the data path
would hold one, and taking that away would leave the other's owner without. Must not change state.
"""

from __future__ import annotations

import ipaddress

from overlace.model.protocols import WITH_PORTS
from overlace.network.hns.addresses import check_not_edge
from overlace.network.hns.documents import (
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNetwork,
)
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.remotes import is_placeholder
from overlace.network.hns.state import State, outer_keys, vip_keys

BALANCED = {0: "any", **{number: word for word, number in WITH_PORTS.items()}}


def check_outer(
    d: HostComputeEndpoint | HostComputeLoadBalancer, network: HostComputeNetwork | None, state: State
) -> None:
    """That no port it has towards clients outside is another's, nor given twice. Raises HcnError."""
    seen: set[tuple[str, int, int]] = set()
    for key in outer_keys(d, network, state.host):
        address, protocol, port = key
        holder = state.by_outer.get(key)
        if key in seen or (holder is not None and holder != d.id):
            of = f" of {address}" if address else ""
            raise HcnError(
                Code.PORT_ALREADY_EXISTS,
                f"ExternalPort {port}/{BALANCED.get(protocol, protocol)}{of} is taken by "
                f"{holder if holder not in (None, d.id) else 'this document itself'}: choose another",
            )
        seen.add(key)


def check_vips(d: HostComputeLoadBalancer, network: HostComputeNetwork, state: State) -> None:
    """That its VIPs are nobody's address, but that of a remote endpoint that stands for the VIP, and no frontend of them
    is another's, nor given twice. Raises HcnError."""
    nets = [ipaddress.ip_network(s.ip_address_prefix) for s in network.subnets]
    gateways = {r.next_hop for s in network.subnets for r in s.routes}
    for vip in d.frontend_vips:
        check_not_edge(ipaddress.ip_address(vip), nets, "FrontendVIPs")
        taken = state.get(state.by_address.get((network.id, vip), ""), HostComputeEndpoint)
        if taken is not None and not is_placeholder(taken, network):
            raise HcnError(
                Code.ADDR_INVALID_OR_RESERVED,
                f"FrontendVIPs {vip} is an endpoint's address ({taken.id}): use another",
            )
        if vip in gateways:
            raise HcnError(
                Code.ADDR_INVALID_OR_RESERVED,
                f"FrontendVIPs {vip} is the gateway of network {network.name}: use another",
            )
    seen: set[tuple[str, str, int, int]] = set()
    for key in vip_keys(d):
        _, vip, protocol, port = key
        what = f"FrontendVIPs {vip} with ExternalPort {port}/{BALANCED.get(protocol, protocol)}"
        if key in seen:
            raise HcnError(Code.PORT_ALREADY_EXISTS, f"{what} is given twice: keep one")
        holder = state.by_vip.get(key)
        if holder is not None and holder != d.id:
            raise HcnError(
                Code.PORT_ALREADY_EXISTS, f"{what} is taken by load balancer {holder}: use another"
            )
        seen.add(key)


def check_not_vip(address: str, network: HostComputeNetwork, state: State) -> None:
    """That an endpoint's address is no VIP of its network. Raises HcnError."""
    holders = state.vips.get((network.id, address))
    if holders:
        raise HcnError(
            Code.ADDR_INVALID_OR_RESERVED,
            f"IpConfigurations.IpAddress {address} is a VIP of load balancer {min(holders)}: use another",
        )


def check_network_fits(d: HostComputeNetwork, state: State) -> None:
    """That its endpoints and load balancers keep what they have under the new subnets and gateways. Raises HcnError."""
    for subnet in d.subnets:
        for route in subnet.routes:
            holder = state.by_address.get((d.id, route.next_hop)) or min(
                state.vips.get((d.id, route.next_hop), ()), default=None
            )
            if holder is not None:
                raise HcnError(
                    Code.ADDR_INVALID_OR_RESERVED,
                    f"Routes.NextHop {route.next_hop} is the address of {holder}: use another, or delete that one",
                )
    before = state.get(d.id, HostComputeNetwork)
    if before is None or _prefixes(before) != _prefixes(d):
        nets = [ipaddress.ip_network(prefix) for prefix in _prefixes(d)]
        for guid in state.endpoints_of.get(d.id, ()):
            endpoint = state.get(guid, HostComputeEndpoint)
            for config in endpoint.ip_configurations if endpoint is not None else ():
                field = f"Subnets: endpoint {guid} has IpAddress"
                check_not_edge(ipaddress.ip_address(config.ip_address), nets, field)
        for (network, vip), holders in state.vips.items():
            if network == d.id:
                field = f"Subnets: load balancer {min(holders)} has FrontendVIPs"
                check_not_edge(ipaddress.ip_address(vip), nets, field)
    for guid in state.network_balancers.get(d.id, ()):
        balancer = state.get(guid, HostComputeLoadBalancer)
        if balancer is not None:
            check_outer(balancer, d, state)


def _prefixes(d: HostComputeNetwork) -> list[str]:
    return [s.ip_address_prefix for s in d.subnets]
