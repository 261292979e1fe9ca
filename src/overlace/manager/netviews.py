"""Which network view each node needs, kept up to date at the cost of what changed.

Owns the rule (`plan_view`, from scratch) and an index that follows the store and yields one delta per
connected node that a change concerns. Entries are kept and hashed once per network, not per node: a node's
view is the union of its networks plus the nodes it shares them with, and its checksum the XOR of theirs.
Pure: no clock, sockets or store writes.

A node takes part in the networks of its assigned, not yet terminal tasks, and in the ingress network. A
network counts once it is allocated (has a VNI).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set

import msgspec

from overlace.manager.allocate.book import version_of
from overlace.model.capabilities import CLIENT_ADDRESS
from overlace.model.netview import (
    EndpointEntry,
    Entry,
    NetDelta,
    NetworkEntry,
    NodeEntry,
    ServiceEntry,
    container_mac,
    entry_hash,
)
from overlace.model.objects import Network, Node, Service, Task
from overlace.model.policy import ALLOW_FROM, ALLOW_TO, kept_policy
from overlace.model.specs import HOST_NETWORKS
from overlace.model.states import TaskState
from overlace.model.traffic import kept_affinity, kept_egress_limit
from overlace.store.base import View

KINDS = (Network.kind, Node.kind, Service.kind, Task.kind)
# a job's task is wanted at COMPLETE, and serves until it is
_WANTED = (TaskState.RUNNING, TaskState.COMPLETE)


# -- the rule ------------------------------------------------------------------------------------------


def takes_part(task: Task) -> bool:
    """Whether the task's addresses are in use, or soon will be, on the node it is assigned to."""
    return bool(task.node_id) and TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING


def is_serving(task: Task) -> bool:
    return task.status.state == TaskState.RUNNING and task.desired_state in _WANTED


def network_entry(network: Network) -> NetworkEntry | None:
    """None until the network is allocated."""
    if not network.vni:
        return None
    return NetworkEntry(
        id=network.id,
        name=network.spec.name,
        vni=network.vni,
        subnets=tuple(s.subnet for s in network.subnets),
        gateways=tuple(s.gateway for s in network.subnets),
        internal=network.spec.internal,
        ingress=network.spec.ingress,
        driver_opts=network.spec.options,
        allowed=kept_policy(ALLOW_FROM, network.spec.labels),
        allowed_to=kept_policy(ALLOW_TO, network.spec.labels),
    )


def node_entry(node: Node) -> NodeEntry | None:
    """None until the node has described itself, and once it is removed."""
    d = node.description
    if d is None or node.removed:
        return None
    return NodeEntry(
        id=node.id,
        hostname=d.hostname,
        provider_address=d.underlay_address,
        os=d.os,
        addresses=node.network_addresses,
        mtu=d.mtu,
        answers_probes=msgspec.UNSET if d.answers_probes else False,
        sees_clients=False if CLIENT_ADDRESS in d.lacks else msgspec.UNSET,
    )


def endpoint_entries(task: Task) -> list[EndpointEntry]:
    if not takes_part(task):
        return []
    serving = is_serving(task)
    entries = []
    own = task.service_labels if task.attachment else {}
    allowed, allowed_to = (kept_policy(label, own) for label in (ALLOW_FROM, ALLOW_TO))
    for attachment in task.networks:
        address, address6 = _address(attachment.addresses, 4), _address(attachment.addresses, 6)
        if address:
            entries.append(
                EndpointEntry(
                    task_id=task.id,
                    network_id=attachment.network_id,
                    node_id=task.node_id,
                    service_id=task.service_id,
                    service_name=task.service_name,
                    task_name=task.name,
                    address=address,
                    mac=container_mac(address),
                    aliases=attachment.aliases,
                    serving=serving,
                    address6=address6 or msgspec.UNSET,
                    allowed=msgspec.UNSET if allowed is None else allowed,
                    allowed_to=msgspec.UNSET if allowed_to is None else allowed_to,
                )
            )
    return entries


def service_entries(service: Service, ingress: Set[str]) -> list[ServiceEntry]:
    """One per network the service has a VIP on, or, with dnsrr, one per network without one. `ingress`: ids
    of the ingress networks, whose entry alone carries the published ports."""
    spec, endpoint = service.spec, service.endpoint
    wanted = {n.target: tuple(n.aliases) for n in spec.task_template.networks or spec.networks}
    vips: dict[str, list[str]] = {}
    for v in endpoint.virtual_ips if endpoint else ():
        vips.setdefault(v.network_id, []).append(v.address)
    ports = tuple(p for p in endpoint.ports if p.publish_mode == "ingress") if endpoint else ()
    mode = endpoint.spec.mode if endpoint else ""
    if not mode and spec.endpoint_spec is not None:
        mode = spec.endpoint_spec.mode
    allowed, allowed_to = (kept_policy(label, spec.labels) for label in (ALLOW_FROM, ALLOW_TO))
    affinity, egress = kept_affinity(spec.labels), kept_egress_limit(spec.labels)
    if mode == "dnsrr":
        vips |= {t: [] for t in wanted if t not in vips and t not in HOST_NETWORKS}
    return [
        ServiceEntry(
            service_id=service.id,
            network_id=network_id,
            name=spec.name,
            vip=_address(addresses, 4),
            aliases=wanted.get(network_id, ()),
            ports=ports if network_id in ingress else (),
            allowed=allowed,
            allowed_to=allowed_to,
            affinity=affinity,
            egress=egress,
            vip6=_address(addresses, 6) or msgspec.UNSET,
        )
        for network_id, addresses in vips.items()
    ]


def _address(addresses: Iterable[str], version: int) -> str:
    """The address of this family, without prefix length; "" when there is none."""
    return next((a.split("/")[0] for a in addresses if version_of(a) == version), "")


def plan_view(view: View, node_id: str) -> list[Entry]:
    """Everything this node's network needs, from scratch: the definition the index below must agree with."""
    networks = {n.id: e for n in view.all(Network) if (e := network_entry(n)) is not None}
    ingress = {i for i, e in networks.items() if e.ingress}
    nodes = {n.id: n for n in view.all(Node) if not n.removed}
    members: dict[str, set[str]] = {i: set(nodes) if i in ingress else set() for i in networks}
    endpoints: list[EndpointEntry] = []
    for task in view.all(Task):
        if takes_part(task):
            endpoints.extend(endpoint_entries(task))
            for attachment in task.networks:
                if attachment.network_id in members:
                    members[attachment.network_id].add(task.node_id)
    mine = {i for i, m in members.items() if node_id in m}
    entries: list[Entry] = [networks[i] for i in mine]
    entries += [e for e in endpoints if e.network_id in mine]
    for service in view.all(Service):
        entries += [e for e in service_entries(service, ingress) if e.network_id in mine]
    for peer in {node_id}.union(*(members[i] for i in mine)):
        if peer in nodes and (entry := node_entry(nodes[peer])) is not None:
            entries.append(entry)
    return entries


# -- the index -----------------------------------------------------------------------------------------


class _Group:
    """One network: its entries by key with their hashes, and how many tasks attach each node to it."""

    __slots__ = ("checksum", "entries", "ingress", "members", "put", "removed", "shown")

    def __init__(self) -> None:
        self.entries: dict[str, tuple[Entry, int]] = {}
        self.checksum = 0
        self.members: dict[str, int] = {}
        self.shown = False  # the network is there and allocated
        self.ingress = False
        # keys that changed since the last refresh
        self.put: set[str] = set()
        self.removed: set[str] = set()

    def set(self, key: str, entry: Entry | None) -> bool:
        """Put or remove (None) one entry; False when it is as before."""
        old = self.entries.get(key)
        if entry is None:
            if old is None:
                return False
            del self.entries[key]
            self.checksum ^= old[1]
            self.put.discard(key)
            self.removed.add(key)
            return True
        if old is not None:
            if old[0] == entry:
                return False
            self.checksum ^= old[1]
        digest = entry_hash(entry)
        self.entries[key] = (entry, digest)
        self.checksum ^= digest
        self.put.add(key)
        self.removed.discard(key)
        return True


class _Viewer:
    """What one connected node has been told."""

    __slots__ = ("networks", "node_sum", "nodes", "revision")

    def __init__(self) -> None:
        self.revision = 0
        self.networks: set[str] = set()
        self.nodes: dict[str, tuple[Entry, int]] = {}
        self.node_sum = 0


class NetViews:
    """The index. `rebuild` or `refresh` it to a store view, `complete` starts telling a node, `forget`
    stops."""

    def __init__(self) -> None:
        self._clear()
        self._viewers: dict[str, _Viewer] = {}
        self._revision = 1  # 0 means "from nothing" in a delta

    def _clear(self) -> None:
        self._groups: dict[str, _Group] = {}
        self._ingress: set[str] = set()
        self._present: set[str] = set()
        self._nodes: dict[str, tuple[Entry, int]] = {}
        self._services: dict[str, Service] = {}
        self._service_keys: dict[str, dict[str, str]] = {}  # service -> key -> network
        self._task_parts: dict[str, tuple[str, frozenset[str], dict[str, str]]] = {}
        self._joined: dict[str, dict[str, int]] = {}  # node -> network -> tasks
        # what the running refresh has touched
        self._dirty: set[str] = set()  # networks
        self._changed_nodes: set[str] = set()

    def rebuild(self, view: View) -> None:
        """Start over from a snapshot; every viewer is forgotten and needs `complete`."""
        self._clear()
        self._viewers.clear()
        kinds = (Network, Node, Service, Task)
        self.refresh(view, {kind.kind: [o.id for o in view.all(kind)] for kind in kinds})

    def complete(self, node_id: str) -> NetDelta:
        """All the node needs, replacing whatever it has; it gets deltas from now on."""
        viewer = self._viewers[node_id] = _Viewer()
        delta = self._tell(node_id, viewer, frozenset())
        viewer.revision = self._revision
        put = delta[0] if delta else []
        return NetDelta(0, self._revision, tuple(put), (), self._checksum(viewer))

    def forget(self, node_id: str) -> None:
        self._viewers.pop(node_id, None)

    def refresh(self, view: View, dirty: Mapping[str, Iterable[str]]) -> dict[str, NetDelta]:
        """Look again at the objects named in `dirty` (kind -> ids) and return what each viewer must hear."""
        for id in dirty.get(Network.kind, ()):
            self._network(id, view.get(Network, id))
        for id in dirty.get(Node.kind, ()):
            self._node(id, view.get(Node, id))
        for id in dirty.get(Service.kind, ()):
            self._service(id, view.get(Service, id))
        for id in dirty.get(Task.kind, ()):
            self._task(id, view.get(Task, id))
        deltas = self._deltas() if self._dirty or self._changed_nodes else {}
        for id in self._dirty:
            group = self._groups[id]
            group.put.clear()
            group.removed.clear()
            if not group.entries and not group.members and not group.shown:
                del self._groups[id]
        self._dirty.clear()
        self._changed_nodes.clear()
        return deltas

    # -- following objects -----------------------------------------------------------------------------

    def _group(self, network_id: str) -> _Group:
        group = self._groups.get(network_id)
        if group is None:
            group = self._groups[network_id] = _Group()
        return group

    def _set(self, network_id: str, key: str, entry: Entry | None) -> None:
        if self._group(network_id).set(key, entry):
            self._dirty.add(network_id)

    def _network(self, id: str, network: Network | None) -> None:
        entry = network_entry(network) if network is not None else None
        if entry is None and id not in self._groups:
            return
        self._set(id, f"network/{id}", entry)
        group = self._group(id)
        group.shown = entry is not None
        if entry is not None:
            group.ingress = entry.ingress
        if group.shown and group.ingress:
            if id not in self._ingress:
                self._ingress.add(id)
                self._ports_moved()
        elif id in self._ingress:
            self._ingress.discard(id)
            self._ports_moved()

    def _ports_moved(self) -> None:
        """The ingress network came or went: entries of services that publish ports say so."""
        for service in self._services.values():
            if service.endpoint is not None and service.endpoint.ports:
                self._service(service.id, service)

    def _node(self, id: str, node: Node | None) -> None:
        present = node is not None and not node.removed
        if present != (id in self._present):
            self._changed_nodes.add(id)
            (self._present.add if present else self._present.discard)(id)
        entry = node_entry(node) if node is not None else None
        old = self._nodes.get(id)
        if entry is None:
            if old is not None:
                del self._nodes[id]
                self._changed_nodes.add(id)
        elif old is None or old[0] != entry:
            self._nodes[id] = (entry, entry_hash(entry))
            self._changed_nodes.add(id)

    def _service(self, id: str, service: Service | None) -> None:
        fresh = {e.key: e for e in service_entries(service, self._ingress)} if service is not None else {}
        keys = self._service_keys.pop(id, {})
        for key, network_id in keys.items():
            if key not in fresh:
                self._set(network_id, key, None)
        for key, entry in fresh.items():
            self._set(entry.network_id, key, entry)
        if service is None:
            self._services.pop(id, None)
        else:
            self._services[id] = service
            if fresh:
                self._service_keys[id] = {key: e.network_id for key, e in fresh.items()}

    def _task(self, id: str, task: Task | None) -> None:
        old_node, old_networks, old_keys = self._task_parts.get(id, ("", frozenset(), {}))
        fresh: dict[str, EndpointEntry] = {}
        node, networks = "", frozenset[str]()
        if task is not None and takes_part(task):
            fresh = {e.key: e for e in endpoint_entries(task)}
            node, networks = task.node_id, frozenset(a.network_id for a in task.networks)
        for key, network_id in old_keys.items():
            if key not in fresh:
                self._set(network_id, key, None)
        for key, entry in fresh.items():
            self._set(entry.network_id, key, entry)
        if (node, networks) != (old_node, old_networks):
            for network_id in networks:
                self._join(node, network_id, 1)
            for network_id in old_networks:
                self._join(old_node, network_id, -1)
        if networks:
            self._task_parts[id] = (node, networks, {key: e.network_id for key, e in fresh.items()})
        else:
            self._task_parts.pop(id, None)

    def _join(self, node_id: str, network_id: str, step: int) -> None:
        group = self._group(network_id)
        before = group.members.get(node_id, 0)
        after = before + step
        joined = self._joined.setdefault(node_id, {})
        if after:
            group.members[node_id] = joined[network_id] = after
        else:
            del group.members[node_id], joined[network_id]
            if not joined:
                del self._joined[node_id]
        if not before or not after:
            self._dirty.add(network_id)
            self._changed_nodes.add(node_id)

    # -- telling ---------------------------------------------------------------------------------------

    def _networks(self, node_id: str) -> set[str]:
        """The shown networks this node takes part in."""
        found = {i for i in self._joined.get(node_id, ()) if self._groups[i].shown}
        return found | self._ingress if node_id in self._present else found

    def _members(self, network_id: str) -> Iterable[str]:
        """Nodes in this network; of one that has just gone, those that were."""
        group = self._groups[network_id]
        return self._present | group.members.keys() if group.ingress else group.members

    def _concerned(self) -> Iterator[str]:
        """Viewers the collected changes may concern; some more than once."""
        networks = set(self._dirty)
        for node_id in self._changed_nodes:
            if node_id in self._viewers:
                yield node_id
            networks.update(self._joined.get(node_id, ()), self._ingress)
        for network_id in networks:
            yield from (m for m in self._members(network_id) if m in self._viewers)

    def _deltas(self) -> dict[str, NetDelta]:
        deltas: dict[str, NetDelta] = {}
        revision = self._revision + 1
        for node_id in set(self._concerned()):
            viewer = self._viewers[node_id]
            told = self._tell(node_id, viewer, self._changed_nodes)
            if told is not None:
                put, remove = told
                deltas[node_id] = NetDelta(
                    viewer.revision, revision, tuple(put), tuple(remove), self._checksum(viewer)
                )
                viewer.revision = revision
        if deltas:
            self._revision = revision
        return deltas

    def _tell(self, node_id: str, viewer: _Viewer, changed: Set[str]) -> tuple[list[Entry], list[str]] | None:
        """Bring `viewer` up to date; what to put and remove, None for nothing."""
        put: list[Entry] = []
        remove: list[str] = []
        now = self._networks(node_id)
        candidates = set(changed)
        for network_id in viewer.networks - now:
            group = self._groups[network_id]
            remove += group.entries.keys() | group.removed
            candidates.update(self._members(network_id))
        for network_id in now - viewer.networks:
            put += (entry for entry, _ in self._groups[network_id].entries.values())
            candidates.update(self._members(network_id))
        # one set is walked: the smaller of what changed and what this node takes part in
        for network_id in now & viewer.networks & self._dirty:
            group = self._groups[network_id]
            put += (group.entries[key][0] for key in group.put)
            remove += group.removed
        if viewer.networks != now or not viewer.nodes:
            candidates.add(node_id)
        viewer.networks = now
        for peer in candidates:
            known = self._nodes.get(peer)
            wanted = known if known is not None and self._shares(peer, node_id, now) else None
            told = viewer.nodes.get(peer)
            if wanted is told or (wanted is not None and told is not None and wanted[0] == told[0]):
                continue
            if told is not None:
                viewer.node_sum ^= told[1]
                del viewer.nodes[peer]
            if wanted is not None:
                viewer.node_sum ^= wanted[1]
                viewer.nodes[peer] = wanted
                put.append(wanted[0])
            else:
                remove.append(f"node/{peer}")
        return (put, remove) if put or remove else None

    def _shares(self, peer: str, node_id: str, networks: set[str]) -> bool:
        if peer == node_id:
            return True
        if self._ingress and peer in self._present and not networks.isdisjoint(self._ingress):
            return True
        return not networks.isdisjoint(self._joined.get(peer, ()))

    def _checksum(self, viewer: _Viewer) -> int:
        total = viewer.node_sum
        for network_id in viewer.networks:
            total ^= self._groups[network_id].checksum
        return total
