"""This node's networks and its containers' place on them, for `docker network` and `docker inspect`.

Owns how the agent's knowledge is put into the API's words. Pure reading; must not change anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from ipaddress import IPv4Network

from overlace.agent.container import container_id
from overlace.agent.standalone.keeper import Keeper
from overlace.agent.standalone.network import plan_attachments
from overlace.agent.standalone.records import Record
from overlace.api.backend import ContainerAddress, EngineOptions, LocalEndpoint, LocalNetwork
from overlace.daemon.host import NodeHost
from overlace.model.netview import NetView, NetworkEntry, NodeEntry
from overlace.model.objects import Subnet
from overlace.model.specs import VNI_OPTION, host_network
from overlace.network.base import Attached
from overlace.network.endpoints import LOCAL_NETWORK, LOCAL_SUBNET
from overlace.network.overlay_documents import guid_of
from overlace.network.subnets import prefix_of


def local_networks(
    host: NodeHost | None, node_id: str, engine: EngineOptions, containers: Keeper
) -> Sequence[LocalNetwork]:
    """The host's own networks and every swarm network this node takes part in (`host` None: it is in no swarm)."""
    view = host.agent.view if host is not None else NetView()
    attached = {
        one.id: one.container_id for record in containers.records() for one in plan_attachments(record.wish)
    }
    return [
        _bridge(host, engine, containers),
        *own_networks(engine),
        *(
            LocalNetwork(
                id=n.id,
                name=n.name,
                internal=n.internal,
                ingress=n.ingress,
                subnets=tuple(Subnet(s, g) for s, g in zip(n.subnets, n.gateways, strict=True)),
                options={VNI_OPTION: str(n.vni), **n.driver_opts},
                endpoints=tuple(
                    LocalEndpoint(
                        container_id=attached.get(e.task_id) or container_id(e.task_id),
                        name=e.task_name,
                        endpoint_id=guid_of("endpoint", n.id, attached.get(e.task_id, e.task_id)),
                        mac=e.mac,
                        address=f"{e.address}/{prefix_of(n, e.address)}",
                        address6=f"{e.address6}/{prefix_of(n, e.address6)}" if e.address6 else "",
                    )
                    for e in view.endpoints(n.id)
                    if e.node_id == node_id
                ),
                peers=tuple(
                    (p.hostname, p.provider_address) for p in view.of(NodeEntry) if n.id in p.addresses
                ),
            )
            for n in view.of(NetworkEntry)
        ),
    ]


def own_networks(engine: EngineOptions) -> list[LocalNetwork]:
    """The host's stack and no network at all, as Docker lists them."""
    return [
        LocalNetwork(
            id=_own_id(engine.id, name), name=name, driver=driver, scope="local", created_at=engine.started_at
        )
        for name, driver in (("host", "host"), ("none", "null"))
    ]


def _bridge(host: NodeHost | None, engine: EngineOptions, containers: Keeper) -> LocalNetwork:
    """The host's NAT network, where containers and tasks without a network are."""
    subnet = host.driver.local_subnet if host is not None else IPv4Network(LOCAL_SUBNET)
    tasks = host.agent.worker.all_attached() if host is not None else []
    return LocalNetwork(
        id=_own_id(engine.id, LOCAL_NETWORK),
        name=LOCAL_NETWORK,
        driver="bridge",
        scope="local",
        created_at=engine.started_at,
        subnets=(Subnet(str(subnet), str(subnet[1])),),
        endpoints=tuple(
            LocalEndpoint(
                container_id=container_id(task.id),
                name=task.name,
                endpoint_id=guid_of("endpoint", LOCAL_NETWORK, task.id),
                mac=attached.macs.get(LOCAL_NETWORK, ""),
                address=attached.addresses[LOCAL_NETWORK],
            )
            for task, attached in tasks
            if not task.networks and LOCAL_NETWORK in attached.addresses
        )
        + tuple(
            LocalEndpoint(
                container_id=record.wish.id,
                name=record.wish.config.name,
                endpoint_id=guid_of("endpoint", LOCAL_NETWORK, record.wish.id),
                mac=single.macs.get(LOCAL_NETWORK, ""),
                address=single.addresses[LOCAL_NETWORK],
            )
            for record in containers.records()
            if (single := containers.attached(record.wish.id)) is not None
            and LOCAL_NETWORK in single.addresses
        ),
    )


def _own_id(engine_id: str, name: str) -> str:
    """64 hex digits, as Docker has for networks of one host; the same after a restart."""
    return hashlib.sha256(f"{engine_id} {name}".encode()).hexdigest()


def container_addresses(host: NodeHost, container: str, engine_id: str) -> Sequence[ContainerAddress]:
    """The networks of one container on this host; empty when it has none (any more)."""
    found = host.agent.worker.attached(container)
    if found is None:
        return ()
    task, attached = found
    mode = host_network(task.spec.networks)
    if mode in ("host", "none"):
        return [ContainerAddress(network=mode, network_id=_own_id(engine_id, mode))]
    view = host.agent.view
    ids = {n.name: n.id for a in task.networks if (n := view.network(a.network_id)) is not None}
    keys = dict(ids)  # what endpoints are named by
    if not task.networks:
        ids, keys = {LOCAL_NETWORK: _own_id(engine_id, LOCAL_NETWORK)}, {LOCAL_NETWORK: LOCAL_NETWORK}
    aliases = {a.network_id: a.aliases for a in task.networks}
    return [
        ContainerAddress(
            network=name,
            network_id=ids.get(name, ""),
            endpoint_id=guid_of("endpoint", keys[name], task.id) if name in keys else "",
            address=address,
            address6=attached.addresses6.get(name, ""),
            gateway=attached.gateways.get(name, ""),
            gateway6=attached.gateways6.get(name, ""),
            ports6=attached.ports6 == name,
            mac=attached.macs.get(name, ""),
            aliases=tuple(aliases.get(ids.get(name, ""), ())),
        )
        for name, address in attached.addresses.items()
    ]


def standalone_addresses(
    record: Record, attached: Attached | None, engine_id: str
) -> Sequence[ContainerAddress]:
    """The networks of a standalone container; without addresses while it does not run."""
    wish = record.wish
    if wish.mode:
        return [ContainerAddress(network=wish.mode, network_id=_own_id(engine_id, wish.mode))]
    shown = []
    for joined in wish.networks:
        local = joined.name == LOCAL_NETWORK
        key = LOCAL_NETWORK if local else joined.network_id
        there = attached is not None and joined.name in attached.addresses
        shown.append(
            ContainerAddress(
                network=joined.name,
                network_id=_own_id(engine_id, joined.name) if local else joined.network_id,
                endpoint_id=guid_of("endpoint", key, wish.id) if there else "",
                address=attached.addresses[joined.name] if there and attached else "",
                address6=attached.addresses6.get(joined.name, "") if there and attached else "",
                gateway=attached.gateways.get(joined.name, "") if there and attached else "",
                gateway6=attached.gateways6.get(joined.name, "") if there and attached else "",
                ports6=attached is not None and attached.ports6 == joined.name,
                mac=attached.macs.get(joined.name, "") if there and attached else "",
                aliases=joined.aliases,
            )
        )
    return shown
