"""The planner's documents as one host's HNS takes them: what its version knows, what HNS fills in itself, names. Pure.

Owns what differs from the documents of hosts whose HNS is ours. Must not decide what there should be: overlay.py does.
Source: Microsoft's HCN reference, hcsshim's feature table (hns/versions.py), what flannel and kube-proxy write.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from overlace.network.hns import policies as p
from overlace.network.hns.documents import (
    Dns,
    Document,
    Guid,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNamespace,
    HostComputeNetwork,
    LoadBalancerFlags,
    NamespaceResource,
)
from overlace.network.hns.versions import HnsVersion, supports

DNS_FIRST = 900  # before every ACL that a policy makes: names are no connection to a service
DNS_PORT = "53"


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What the documents depend on. `resolver`: where containers of overlay networks ask for names; `upstreams`: whom
    those of the host's own network ask."""

    version: HnsVersion
    resolver: str
    upstreams: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    nat: Guid = ""  # the host's own NAT network, where HNS takes no second one

    def has(self, feature: str) -> bool:
        return supports(self.version, feature)


def shape(d: Document, to: Shape, network_type: str, *, held: bool = False) -> Document | None:
    """`d` for that host; None: it gets none. `network_type`: of an endpoint's network. `held`: its namespace is a
    container engine's, which has the endpoints attached by itself."""
    if isinstance(d, HostComputeNetwork):
        return _network(d, to)
    if isinstance(d, HostComputeEndpoint):
        return d if d.remote else _endpoint(d, to, network_type)
    if isinstance(d, HostComputeLoadBalancer):
        return _balancer(d, to)
    if isinstance(d, HostComputeNamespace) and held:
        return None
    return d


def _network(d: HostComputeNetwork, to: Shape) -> HostComputeNetwork | None:
    if d.type != "Overlay":
        return d if not to.nat else None
    policies = tuple(x for x in d.policies if not isinstance(x, p.ProviderAddress))  # HNS's to say
    if to.has("HostRoute"):  # containers and their host, whose resolver they ask
        policies += (p.HostRoute(),)
    return msgspec.structs.replace(d, policies=policies)


def _endpoint(d: HostComputeEndpoint, to: Shape, network_type: str) -> HostComputeEndpoint:
    if network_type != "Overlay" and to.nat:  # addresses there are HNS's to give
        return msgspec.structs.replace(
            d, host_compute_network=to.nat, ip_configurations=(), routes=(), mac_address=""
        )
    if network_type != "Overlay":
        return msgspec.structs.replace(d, dns=Dns(search=to.search, server_list=to.upstreams))
    policies = d.policies
    if not any(
        isinstance(x, p.OutBoundNat) for x in policies
    ):  # an internal network: to the resolver, no further
        policies += (p.OutBoundNat(p.OutBoundNatSettings(destinations=(f"{to.resolver}/32",))),)
    if any(isinstance(x, p.Acl) and x.settings.direction == "Out" for x in policies):
        policies += tuple(_ask(to.resolver, protocol) for protocol in ("6", "17"))
    return msgspec.structs.replace(
        d, policies=policies, dns=Dns(search=to.search, server_list=(to.resolver,))
    )


def _ask(resolver: str, protocol: str) -> p.Acl:
    return p.Acl(
        p.AclSettings(
            action="Allow",
            direction="Out",
            protocols=protocol,
            remote_addresses=resolver,
            remote_ports=DNS_PORT,
            rule_type="Switch",
            priority=DNS_FIRST,
        )
    )


def _balancer(d: HostComputeLoadBalancer, to: Shape) -> HostComputeLoadBalancer:
    if not to.has("SessionAffinity") and any(m.distribution_type for m in d.port_mappings):
        # the service goes on without; the node says that it lacks affinity and gets no such task
        spread = tuple(
            msgspec.structs.replace(m, distribution_type=0, affinity_seconds=0) for m in d.port_mappings
        )
        d = msgspec.structs.replace(d, port_mappings=spread)
    if d.frontend_vips and to.has("DSR"):
        # answers go straight back, so that a container sees who asks and policies can tell; a published port's
        # client only knows this host, so there the answer has to come back through it
        d = msgspec.structs.replace(d, flags=d.flags | int(LoadBalancerFlags.EnableDirectServerReturn))
    return d


def way_out_first(d: HostComputeNamespace, documents: Mapping[Guid, Document]) -> HostComputeNamespace:
    """HNS gives every endpoint its subnet's default route: the first attached is the one a container takes."""

    def key(resource: NamespaceResource) -> bool:
        endpoint = documents.get(resource.data.id)
        return not (isinstance(endpoint, HostComputeEndpoint) and endpoint.routes)

    return msgspec.structs.replace(d, resources=tuple(sorted(d.resources, key=key)))
