"""What the routes of networks and endpoints mean: a network's gateways, and where a container's interface leads.

Owns reading and checking them (pure functions of documents). SDN routes are the switch's, not the container's: see
compile.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address, ip_network

import msgspec

from overlace.model.family import is_six
from overlace.network.hns import policies as p
from overlace.network.hns.addresses import check_address, check_prefix
from overlace.network.hns.documents import HostComputeEndpoint, HostComputeNetwork
from overlace.network.hns.errors import Code, HcnError

ANYWHERE, ANYWHERE6 = "0.0.0.0/0", "::/0"


class Routing(msgspec.Struct, frozen=True):
    """Of a container's interface, IPv4: `gateway` of its default route, CIDRs it reaches `direct`ly (its network's
    further subnets), and CIDRs `through` a router, with the router's address."""

    gateway: str = ""
    direct: tuple[str, ...] = ()
    through: tuple[tuple[str, str], ...] = ()


def gateways_of(network: HostComputeNetwork) -> tuple[str, ...]:
    """The addresses at which the network's own router answers: next hops of its subnets' default routes."""
    hops = (
        r.next_hop for s in network.subnets for r in s.routes if r.destination_prefix in (ANYWHERE, ANYWHERE6)
    )
    return tuple(dict.fromkeys(hops))


def routing_of(d: HostComputeEndpoint, network: HostComputeNetwork) -> Routing:
    """Where the interface of a local endpoint leads."""
    address = ip_address(d.address)
    direct = [
        s.ip_address_prefix
        for s in network.subnets
        if (net := ip_network(s.ip_address_prefix)).version == 4 and address not in net
    ]
    hops = {r.destination_prefix: r.next_hop for r in d.routes if not is_six(r.destination_prefix)}
    gateway = hops.pop(ANYWHERE, "")
    return Routing(gateway, tuple(direct), tuple((to, hop) for to, hop in hops.items() if to not in direct))


def check_subnet_routes(policies: Sequence[p.NetworkPolicy]) -> None:
    """That each prefix is behind one other host, which this one is not. Raises HcnError."""
    own = p.policy_of(tuple(policies), p.ProviderAddress)
    seen: set[str] = set()
    for policy in policies:
        if not isinstance(policy, p.RemoteSubnetRoute):
            continue
        s = policy.settings
        if own is not None and s.provider_address == own.settings.provider_address:
            raise HcnError(
                Code.INVALID_POLICY,
                f"RemoteSubnetRoute.ProviderAddress {s.provider_address} of {s.destination_prefix} is this host's own: "
                "name the host that has the prefix",
            )
        if s.destination_prefix in seen:
            raise HcnError(
                Code.POLICY_ALREADY_EXISTS,
                f"RemoteSubnetRoute.DestinationPrefix {s.destination_prefix} is there twice: take the old one out first",
            )
        seen.add(s.destination_prefix)


def check_routes(d: HostComputeEndpoint) -> None:
    """That an endpoint's routes can be written down. Raises HcnError."""
    seen: set[str] = set()
    for r in d.routes:
        check_prefix(r.destination_prefix, "Routes.DestinationPrefix", six=True)
        check_address(r.next_hop, "Routes.NextHop", six=True)
        if is_six(r.destination_prefix) != is_six(r.next_hop):
            raise HcnError(
                Code.INVALID_IP,
                f"Routes[{r.destination_prefix}].NextHop {r.next_hop}: let both be of one family",
            )
        if r.destination_prefix in seen:
            raise HcnError(Code.BAD_PARAMETER, f"Routes names {r.destination_prefix} twice: keep one")
        seen.add(r.destination_prefix)
