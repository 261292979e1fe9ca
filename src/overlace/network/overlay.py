"""From the cluster's network view to the HNS documents this node must have. Pure.

Owns what each network, endpoint, service and published port means as HNS documents, and which documents an
object's change touches (cost follows the change). The same documents go to Windows' HNS and to ours. Must
not know VFP, the kernel or asyncio. What one object alone means is overlay_documents.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Network

import msgspec

from overlace.model.family import is_six
from overlace.model.netview import (
    EndpointEntry,
    Entry,
    NetView,
    NodeEntry,
    ServiceEntry,
    container_mac,
)
from overlace.model.protocols import WITH_PORTS
from overlace.network.endpoints import (
    LOCAL_NETWORK,
    LocalTask,
    container_of,
    endpoint_policies,
    party_of,
    restricts,
)
from overlace.network.hns.documents import (
    Distribution,
    Document,
    Guid,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNamespace,
    IpConfiguration,
    LoadBalancerFlags,
    LoadBalancerPortMapping,
    NamespaceResource,
    PortMappingFlags,
    ResourceData,
    Route,
    normal_mac,
)
from overlace.network.overlay_documents import (
    ANYWHERE,
    ANYWHERE6,
    OWNER,
    Host,
    gateway_network,
    guid_of,
    local_network,
    network_documents,
    node_documents,
    remote_documents,
)
from overlace.network.policy import HOSTS, Peers, Place
from overlace.network.subnets import gateway_of

Source = tuple[str, ...]  # what documents are made from: ("network", id), ("endpoint", key), ...


class OverlayPlanner:
    """Keeps the documents this node must have, following a view and the local tasks.

    `windows`: leave out what Windows' HNS refuses (load balancers without members or source VIP, IPv6). `direct`: the
    host's data path is ours, which gives clients' own addresses to every container that can answer them.
    """

    def __init__(
        self,
        node_id: str,
        provider_address: str,
        *,
        windows: bool = False,
        direct: bool = True,
        local_subnet: str = "172.17.0.0/16",
    ) -> None:
        self.windows = windows
        self._direct = direct
        self._host = Host(node_id, provider_address, windows, local_subnet)
        self.documents: dict[Guid, Document] = {}
        self._made: dict[Source, tuple[Guid, ...]] = {}
        self._known: dict[str, EndpointEntry] = {}  # endpoint entries as last seen, by key
        self._by_service: dict[tuple[str, str], dict[str, None]] = {}
        self._by_node: dict[str, dict[str, None]] = {}
        self._peers = Peers()
        self._unreachable: frozenset[str] = frozenset()
        # provider address as last seen, and whether containers there see clients outside, by node
        self._provider: dict[str, tuple[str, bool]] = {}
        self._tasks_of: dict[str, set[str]] = {}  # network id -> local task ids
        self._task_networks: dict[str, tuple[tuple[str, str], ...]] = {}  # task -> (network, service)
        self._subnets: dict[str, tuple[str, ...]] = {}  # by network id
        self._exceptions: tuple[str, ...] = ()

    @property
    def provider_address(self) -> str:
        """The underlay address of the host; may be set when it is found out late: refresh everything then."""
        return self._host.provider_address

    @provider_address.setter
    def provider_address(self, address: str) -> None:
        self._host = msgspec.structs.replace(self._host, provider_address=address)

    def refresh(
        self,
        view: NetView,
        changed: set[str] | None,
        tasks: Mapping[str, LocalTask],
        touched: Iterable[str] = (),
    ) -> set[Guid]:
        """Follow `view` (keys in `changed`, None: everything) and the tasks `touched`; returns the GUIDs
        whose document came, changed or went."""
        networks: dict[Source, None] = {}
        endpoints: dict[Source, None] = {}
        services: dict[Source, None] = {}
        task_sources: dict[Source, None] = {("task", t): None for t in touched}
        if changed is None:
            # `touched` and everything known or viewed: one pass over all sources
            changed = {e.key for e in view} | set(self._known)
            changed |= {"/".join(s) for s in self._made if s[0] in ("network", "node", "service")}
            # a service may have no document of its own and be in others' ACLs all the same
            changed |= {f"service/{network_id}/{id}" for network_id, id in self._peers.services()}
            # so may a host, whose endpoints must be looked at when it is back
            changed |= {f"node/{id}" for id in self._provider}
            task_sources = {("task", t): None for t in (*tasks, *self._task_networks, *touched)}
        dirty_endpoints: set[str] = set()
        for key in changed:
            kind, _, rest = key.partition("/")
            if kind == "endpoint":
                dirty_endpoints.add(key)
            elif kind == "service":
                services[("service", *rest.split("/"))] = None
                network_id, _, service_id = rest.partition("/")
                task_sources.update(  # its policy is part of its tasks' endpoints
                    {
                        ("task", t): None
                        for t in self._tasks_of.get(network_id, ())
                        if (network_id, service_id) in self._task_networks[t]
                    }
                )
                concerned, wide = self._peers.note(network_id, service_id, party_of(view.get(key)))
                wide = wide or restricts(view.network(network_id))
                task_sources.update(
                    {("task", t): None for t in (self._tasks_of.get(network_id, ()) if wide else concerned)}
                )
            elif kind == "node":
                networks[("node", rest)] = None
                task_sources.update({("task", t): None for t in self._peers.watchers(*HOSTS)})
                node = view.node(rest)
                nobody = ("", True)
                seen = (node.provider_address, node.sees_clients is not False) if node is not None else nobody
                if self._provider.get(rest, nobody) != seen:
                    if seen != nobody:
                        self._provider[rest] = seen
                    else:
                        del self._provider[rest]
                    dirty_endpoints.update(self._by_node.get(rest, ()))
                if rest == self._host.node_id:
                    services.update(
                        {("service", e.network_id, e.service_id): None for e in view.of(ServiceEntry)}
                    )
            elif kind == "network":
                networks[("network", rest)] = None
                network = view.network(rest)
                self._subnets.pop(rest, None)
                if network is not None:
                    self._subnets[rest] = network.subnets
                dirty_endpoints.update(e.key for e in view.endpoints(rest))
                services.update({("service", rest, e.service_id): None for e in view.services(rest)})
                networks.update({("node", n.id): None for n in view.of(NodeEntry) if rest in n.addresses})
                task_sources.update({("task", t): None for t in self._tasks_of.get(rest, ())})
                # an endpoint or service seen before its network waits for it under its own key
        exceptions = tuple(sorted({s for subnets in self._subnets.values() for s in subnets}))
        if exceptions != self._exceptions:
            self._exceptions = exceptions
            task_sources.update({("task", t): None for t in self._task_networks})
        if any(tasks[s[1]].task.on_local for s in task_sources if s[1] in tasks):
            networks[("network", LOCAL_NETWORK)] = None
        for key in dirty_endpoints:
            endpoints[("endpoint", *key.split("/")[1:])] = None
            for entry in (self._index(key, view), view.get(key)):
                if isinstance(entry, EndpointEntry):
                    services[("service", entry.network_id, entry.service_id)] = None
                    watching = self._peers.watchers(entry.network_id, entry.service_name)
                    task_sources.update({("task", t): None for t in watching})
            task_sources.update({("task", t): None for t in self._note_container(key, view)})
        out: set[Guid] = set()
        for source in networks:
            out |= self._make(source, self._network(source, view))
        for source in task_sources:
            for network_id, service_id in self._task_networks.get(source[1], ()):
                services[("service", network_id, service_id)] = None
            out |= self._make(source, self._task(source[1], view, tasks))
            for network_id, service_id in self._task_networks.get(source[1], ()):
                services[("service", network_id, service_id)] = None
        for source in endpoints:
            out |= self._make(source, remote_documents(self._host, "/".join(source), view))
        for source in services:
            out |= self._make(source, self._service(source, view))
        return out

    def set_unreachable(self, nodes: Iterable[str]) -> set[str]:
        """Hosts that do not answer this one: new connections leave their tasks out while a service has others. Returns
        the keys to refresh."""
        before, self._unreachable = self._unreachable, frozenset(nodes)
        return {key for node in before ^ self._unreachable for key in self._by_node.get(node, ())}

    # -- bookkeeping -----------------------------------------------------------------------------------------

    def _make(self, source: Source, documents: Sequence[Document]) -> set[Guid]:
        """Replace what `source` stands for; returns changed GUIDs."""
        out: set[Guid] = set()
        old = self._made.pop(source, ())
        new = {d.id: d for d in documents}
        for guid in old:
            if guid not in new:
                del self.documents[guid]
                out.add(guid)
        for guid, d in new.items():
            if self.documents.get(guid) != d:
                self.documents[guid] = d
                out.add(guid)
        if new:
            self._made[source] = tuple(new)
        return out

    def _index(self, key: str, view: NetView) -> EndpointEntry | None:
        """Bring the indexes up to `view` for one endpoint; returns the entry as it was before."""
        old = self._known.pop(key, None)
        if old is not None:
            self._by_service.get((old.network_id, old.service_id), {}).pop(key, None)
            if not self._by_service.get((old.network_id, old.service_id), True):
                del self._by_service[(old.network_id, old.service_id)]
            self._by_node.get(old.node_id, {}).pop(key, None)
            if not self._by_node.get(old.node_id, True):
                del self._by_node[old.node_id]
        new = view.get(key)
        if isinstance(new, EndpointEntry):
            self._known[key] = new
            self._by_service.setdefault((new.network_id, new.service_id), {})[key] = None
            self._by_node.setdefault(new.node_id, {})[key] = None
        self._peers.move(key, _named(old), _named(new))
        return old

    def _note_container(self, key: str, view: NetView) -> set[str]:
        """Local tasks whose ACLs follow what became of a container outside of services."""
        network_id = key.split("/")[1]
        concerned, wide = self._peers.note_container(network_id, key, container_of(view.get(key)))
        return (
            self._tasks_of.get(network_id, set())
            if wide or restricts(view.network(network_id))
            else concerned
        )

    # -- documents -------------------------------------------------------------------------------------------

    def _network(self, source: Source, view: NetView) -> list[Document]:
        if source[0] == "node":
            return node_documents(self._host, source[1], view)
        if source[1] == LOCAL_NETWORK:
            return [local_network(self._host)]
        n = view.network(source[1])
        return network_documents(self._host, n) if n is not None else []

    def _task(self, task_id: str, view: NetView, tasks: Mapping[str, LocalTask]) -> list[Document]:
        for network_id, _ in self._task_networks.pop(task_id, ()):
            members = self._tasks_of.get(network_id, set())
            members.discard(task_id)
            if not members:
                self._tasks_of.pop(network_id, None)
        self._peers.watch(task_id, set())
        local = tasks.get(task_id)
        if local is None:
            return []
        t = local.task
        self._task_networks[task_id] = tuple((n, t.service_id) for n, _ in local.placements)
        for network_id, _ in local.placements:
            self._tasks_of.setdefault(network_id, set()).add(task_id)
        via = gateway_network(t, view)
        out: list[Document] = []
        for network_id, text in local.placements:
            network = view.network(network_id)
            if network is None and network_id != LOCAL_NETWORK:
                continue
            address, _, length = text.partition("/")
            configs: tuple[IpConfiguration, ...] = (IpConfiguration(address, int(length)),)
            gateway = str(IPv4Network(self._host.local_subnet)[1])
            # (who comes back from its own VIP has the network's first gateway of the family as its name)
            gateways = [gateway]
            if network is not None:
                gateway = gateway_of(network, address)
                gateways = sorted(network.gateways, key=is_six)
                configs += self._host.addressed(network, [a] if (a := local.address6(network_id)) else ())
            routes = [Route(gateway, ANYWHERE)]
            if network is not None:
                routes += (Route(gateway_of(network, c.ip_address), ANYWHERE6) for c in configs[1:])
            out.append(
                HostComputeEndpoint(
                    id=guid_of("endpoint", network_id, task_id),
                    owner=OWNER,
                    name=t.task_name,
                    host_compute_network=guid_of("network", network_id),
                    mac_address=normal_mac(container_mac(address)),
                    ip_configurations=configs,
                    routes=tuple(routes) if network_id == via else (),
                    policies=endpoint_policies(
                        local,
                        network_id,
                        address,
                        view,
                        self._peers,
                        provider_address=self.provider_address,
                        gateways=gateways,
                        overlays=self._exceptions,
                        published=network_id == via,
                        six=not self.windows,
                    ),
                )
            )
        if out:
            resources = tuple(NamespaceResource("Endpoint", ResourceData(d.id)) for d in out)
            out.append(
                HostComputeNamespace(
                    id=guid_of("namespace", task_id),
                    owner=OWNER,
                    name=t.task_name,
                    type="Guest",
                    resources=resources,
                )
            )
        return out

    def _service(self, source: Source, view: NetView) -> list[Document]:
        _, network_id, service_id = source
        entry = view.get("/".join(source))
        if not isinstance(entry, ServiceEntry) or view.network(network_id) is None:
            return []
        me = view.node(self._host.node_id)
        source_vip = (me.addresses.get(network_id, "") if me is not None else "").split("/")[0]
        serving = {
            guid: self._known[key].node_id
            for key in self._by_service.get((network_id, service_id), ())
            if self._known[key].serving
            and (guid := guid_of("endpoint", network_id, self._known[key].task_id)) in self.documents
        }
        # all of them out of reach is no reason to refuse: it may be this host that is cut off
        members = sorted(g for g, node in serving.items() if node not in self._unreachable) or sorted(serving)
        if self.windows and (not members or not source_vip):
            return []
        base = HostComputeLoadBalancer(
            owner=OWNER,
            name=entry.name,
            host_compute_network=guid_of("network", network_id),
            host_compute_endpoints=tuple(members),
            source_vip=source_vip,
            flags=int(LoadBalancerFlags.EnableDirectServerReturn) if self._direct else 0,
        )
        spread = LoadBalancerPortMapping()
        if entry.affinity:  # Windows has its own idea of how long
            seconds = 0 if self.windows else entry.affinity
            spread = LoadBalancerPortMapping(
                distribution_type=int(Distribution.SOURCE_IP), affinity_seconds=seconds
            )
        out: list[Document] = []
        vips = tuple(vip.split("/")[0] for vip in entry.vips if self._host.takes(vip))
        if vips:
            every = msgspec.structs.replace(spread, flags=int(PortMappingFlags.INTERNAL_LOAD_BALANCER))
            out.append(
                msgspec.structs.replace(
                    base,
                    id=guid_of("vip", network_id, service_id),
                    frontend_vips=vips,
                    port_mappings=(every,),
                )
            )
        translated = tuple(g for g in members if source_vip and not self._sees_clients(serving[g]))
        if translated and self.windows:
            base = msgspec.structs.replace(base, flags=0)  # Windows' documents have all or none
        elif self._direct:
            base = msgspec.structs.replace(base, source_translated=translated)
        for port in entry.ports:
            if port.publish_mode != "ingress" or not port.published_port:
                continue
            mapping = msgspec.structs.replace(
                spread,
                protocol=WITH_PORTS[port.protocol],
                internal_port=port.target_port,
                external_port=port.published_port,
            )
            guid = guid_of("port", network_id, service_id, port.protocol, str(port.published_port))
            out.append(msgspec.structs.replace(base, id=guid, port_mappings=(mapping,)))
        return out

    def _sees_clients(self, node_id: str) -> bool:
        return node_id == self._host.node_id or self._provider.get(node_id, ("", True))[1]


def _named(e: Entry | None) -> Place | None:
    """Containers outside of services are parties of their own."""
    if not isinstance(e, EndpointEntry) or not e.service_name:
        return None
    return e.network_id, e.service_name, e.addresses
