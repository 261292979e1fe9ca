"""What one host's HNS is wanted to hold: the planner's documents in its shape, kept up to date by what changed. Pure.

Owns putting other hosts' own addresses into their network as routes, where HNS has those: one policy for an endpoint
object per host and network. Must not decide what there should be, nor call HNS.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from overlace.model.netview import NodeEntry
from overlace.network.hns import policies as p
from overlace.network.hns.documents import (
    Document,
    Guid,
    HostComputeEndpoint,
    HostComputeNamespace,
    HostComputeNetwork,
)
from overlace.network.overlay_documents import guid_of
from overlace.network.windows.shape import Shape, shape, way_out_first


class Wanted:
    """`documents` follow `form`."""

    def __init__(self) -> None:
        self.documents: dict[Guid, Document] = {}
        self._hosts: dict[Guid, dict[Guid, None]] = {}  # network -> hosts' own addresses, as endpoints
        self._network_of: dict[Guid, Guid] = {}  # the same the other way round

    def know(self, hosts: Iterable[NodeEntry]) -> None:
        """Hosts as they are now; one that went takes its documents along."""
        for host in hosts:
            for network_id in host.addresses:
                guid, network = guid_of("node", network_id, host.id), guid_of("network", network_id)
                self._hosts.setdefault(network, {})[guid] = None
                self._network_of[guid] = network

    def form(
        self, made: Mapping[Guid, Document], to: Shape, ids: Iterable[Guid] | None, held: Collection[Guid]
    ) -> set[Guid]:
        """Follow the planner's documents `made` for `ids` (None: all of them); returns whose form may differ now. `held`:
        namespaces of containers that an engine has."""
        looked = {*self.documents, *made} if ids is None else set(ids)
        looked |= {self._network_of[guid] for guid in looked if guid in self._network_of}
        for guid in looked:
            d = made.get(guid)
            network = made.get(getattr(d, "host_compute_network", ""))
            kind = network.type if isinstance(network, HostComputeNetwork) else ""
            if isinstance(d, HostComputeNamespace):
                d = way_out_first(d, made)
            formed = shape(d, to, kind, held=guid in held) if d is not None else None
            if to.has("RemoteSubnet"):
                if guid in self._network_of and isinstance(formed, HostComputeEndpoint) and formed.remote:
                    formed = None
                elif isinstance(formed, HostComputeNetwork):
                    formed = self._with_routes(formed, made)
            if formed is not None:
                self.documents[guid] = formed
            else:
                self.documents.pop(guid, None)
        return looked

    def _with_routes(self, d: HostComputeNetwork, made: Mapping[Guid, Document]) -> HostComputeNetwork:
        """To other hosts' own addresses, from which their load balancers' connections come. A route's router MAC is the
        destination's own here: the prefix is one address."""
        routes = []
        for guid in self._hosts.get(d.id, ()):
            e = made.get(guid)
            provider = (
                p.policy_of(e.policies, p.ProviderAddress) if isinstance(e, HostComputeEndpoint) else None
            )
            if not isinstance(e, HostComputeEndpoint) or not e.remote or provider is None:
                continue
            settings = p.RemoteSubnetRouteSettings(
                destination_prefix=f"{e.address}/32",
                isolation_id=d.vsid,
                provider_address=provider.settings.provider_address,
                distributed_router_mac_address=e.mac_address,
            )
            routes.append(p.RemoteSubnetRoute(settings))
        return msgspec.structs.replace(d, policies=(*d.policies, *routes)) if routes else d
