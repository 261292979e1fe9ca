"""What one object of the network view means as HNS documents: networks, nodes, remote endpoints. Pure.

Owns the documents' content and their GUIDs, which are uuid5 of cluster ids, so that a restarted node recognises its own.
Which of them a change touches, and those made from several objects (tasks, services), are overlay.py's.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Network

import msgspec

from overlace.model.family import is_six
from overlace.model.netview import EndpointEntry, NetView, NetworkEntry, NodeEntry, container_mac
from overlace.model.traffic import host_access, multicast_rate
from overlace.network.base import TaskNetwork
from overlace.network.endpoints import LOCAL_NETWORK, provider
from overlace.network.hns import policies as p
from overlace.network.hns.documents import (
    Document,
    EndpointFlags,
    Guid,
    HostComputeEndpoint,
    HostComputeNamespace,
    HostComputeNetwork,
    Ipam,
    IpConfiguration,
    NamespaceResource,
    ResourceData,
    Route,
    Subnet,
    normal_mac,
)
from overlace.network.subnets import prefix_of

OWNER = "overlace"
NAMES = uuid.UUID("7d1f6f0a-3c53-5f0e-9d0a-6f7665726c61")
ANYWHERE, ANYWHERE6 = "0.0.0.0/0", "::/0"


@lru_cache(maxsize=65536)
def guid_of(*parts: str) -> Guid:
    """The GUID of a cluster object's document, e.g. guid_of("endpoint", network_id, task_id)."""
    return str(uuid.uuid5(NAMES, "/".join(parts))).upper()


def gateway_network(task: TaskNetwork, view: NetView) -> str:
    """Id of the network that carries the task's default route and host ports: the first that is neither
    internal nor ingress, else ingress, else none (""): a task on internal networks only reaches nothing else.
    """
    if task.on_local:
        return LOCAL_NETWORK
    ingress = ""
    for a in task.attachments:
        network = view.network(a.network_id)
        if network is None or network.internal:
            continue
        if network.ingress:
            ingress = network.id
            continue
        return network.id
    return ingress


class Host(msgspec.Struct, frozen=True):
    """The host the documents are for; `windows`: they are for Windows' HNS, which knows no IPv6 on overlay networks."""

    node_id: str
    provider_address: str
    windows: bool = False
    local_subnet: str = "172.17.0.0/16"

    def reach(self, node: NodeEntry) -> str:
        """The node's address, if there is a tunnel to it: over IPv6 there is none from a host that has IPv4."""
        alike = is_six(node.provider_address) == is_six(self.provider_address)
        return node.provider_address if alike or not self.provider_address else ""

    def takes(self, address: str) -> bool:
        """Whether this host's HNS takes an address or prefix of this family on overlay networks."""
        return not (self.windows and is_six(address))

    def addressed(self, network: NetworkEntry, addresses: Iterable[str]) -> tuple[IpConfiguration, ...]:
        """The addresses (with or without prefix) that this host's HNS takes, as the network's."""
        bare = (a.split("/")[0] for a in addresses if self.takes(a))
        return tuple(IpConfiguration(a, prefix_of(network, a)) for a in bare)


def network_documents(host: Host, n: NetworkEntry) -> list[Document]:
    """An overlay network."""
    vsid = p.Vsid(p.IsolationSettings(n.vni))
    subnets = tuple(
        Subnet(
            ip_address_prefix=s,
            policies=(vsid,),
            routes=(Route(gateway, ANYWHERE6 if is_six(s) else ANYWHERE),),
        )
        for s, gateway in zip(n.subnets, n.gateways, strict=False)
        if host.takes(s)
    )
    return [
        HostComputeNetwork(
            id=guid_of("network", n.id),
            owner=OWNER,
            name=n.name,
            type="Overlay",
            ipams=(Ipam("Static", subnets),),
            policies=(p.ProviderAddress(p.ProviderAddressSettings(host.provider_address)),),
            multicast_rate=0 if host.windows else multicast_rate(n.driver_opts),
        )
    ]


def local_network(host: Host) -> HostComputeNetwork:
    """The node's own NAT network."""
    gateway = str(IPv4Network(host.local_subnet)[1])
    subnet = Subnet(ip_address_prefix=host.local_subnet, routes=(Route(gateway, ANYWHERE),))
    return HostComputeNetwork(
        id=guid_of("network", LOCAL_NETWORK),
        owner=OWNER,
        name=LOCAL_NETWORK,
        type="NAT",
        ipams=(Ipam("Static", (subnet,)),),
    )


def node_documents(host: Host, node_id: str, view: NetView) -> list[Document]:
    """A node's own address on each network: our source VIP here, a remote endpoint elsewhere; where the option says
    so, the endpoint from which this host's own processes speak."""
    node = view.node(node_id)
    if node is None or (node_id != host.node_id and node.provider_address and not host.reach(node)):
        return []
    out: list[Document] = []
    for network_id, text in sorted(node.addresses.items()):
        network = view.network(network_id)
        if network is None:
            continue
        address = text.split("/")[0]
        remote = node_id != host.node_id
        out.append(
            HostComputeEndpoint(
                id=guid_of("node", network_id, node_id),
                owner=OWNER,
                name=f"{network.name}-{node.hostname or node_id}",
                host_compute_network=guid_of("network", network_id),
                mac_address=normal_mac(container_mac(address)),
                ip_configurations=(IpConfiguration(address, prefix_of(network, address)),),
                policies=(provider(node.provider_address if remote else host.provider_address),),
                flags=int(EndpointFlags.REMOTE) if remote else 0,
            )
        )
        if not remote and not host.windows and host_access(network.driver_opts) and not network.ingress:
            own = NamespaceResource("Endpoint", ResourceData(out[-1].id))
            out.append(
                HostComputeNamespace(
                    id=guid_of("namespace", "node", network_id, node_id),
                    owner=OWNER,
                    name=f"{network.name}-{node.hostname or node_id}",
                    type="Guest",
                    resources=(own,),
                )
            )
    return out


def remote_documents(host: Host, key: str, view: NetView) -> list[Document]:
    """An endpoint on another host, by its entry's key."""
    e = view.get(key)
    if not isinstance(e, EndpointEntry) or e.node_id == host.node_id:
        return []
    node, network = view.node(e.node_id), view.network(e.network_id)
    if node is None or network is None or not host.reach(node):
        return []
    return [
        HostComputeEndpoint(
            id=guid_of("endpoint", e.network_id, e.task_id),
            owner=OWNER,
            name=e.task_name,
            host_compute_network=guid_of("network", e.network_id),
            mac_address=normal_mac(e.mac),
            ip_configurations=host.addressed(network, e.addresses),
            policies=(provider(node.provider_address),),
            flags=int(EndpointFlags.REMOTE),
        )
    ]
