"""The policies of a local task's endpoint as HNS documents. Pure.

Owns what a task's wish and its service's entry mean as endpoint policies. Must not know which documents there are
besides: that is overlay.py's.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from overlace.model.family import is_six
from overlace.model.netview import EndpointEntry, Entry, NetView, NetworkEntry, NodeEntry, ServiceEntry
from overlace.model.paths import tunnel_overhead
from overlace.model.protocols import WITH_PORTS
from overlace.network.base import TaskNetwork
from overlace.network.hns import policies as p
from overlace.network.policy import HOSTS, Party, Peers, names_of, plan_acls

LOCAL_SUBNET = "172.17.0.0/16"  # of the node's own NAT network, Docker's default
LOCAL_NETWORK = "bridge"  # name and id of the node's own NAT network


class LocalTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task of this node whose sandbox exists (or is being made)."""

    task: TaskNetwork
    mtu: dict[str, int] = {}  # by network id, fixed when the task came: HNS applies it once per endpoint
    local_address: str = ""  # with prefix length, on the node's NAT network, when it is on it
    names: dict[str, str] = {}  # of its interfaces by network id, where they are not eth0, eth1, … in order

    @property
    def placements(self) -> tuple[tuple[str, str], ...]:
        """(network id, address with prefix length) in interface order."""
        local = ((LOCAL_NETWORK, self.local_address),) if self.task.on_local else ()
        return local + tuple((a.network_id, a.addresses[0]) for a in self.task.attachments)

    @property
    def interfaces(self) -> dict[str, str]:
        """Interface names by network id."""
        return {n: self.names.get(n) or f"eth{i}" for i, (n, _) in enumerate(self.placements)}

    def address6(self, network_id: str) -> str:
        """Its IPv6 address on a network, with prefix length; "" when it has none."""
        own = (x for a in self.task.attachments if a.network_id == network_id for x in a.addresses)
        return next((x for x in own if is_six(x)), "")


def endpoint_policies(
    local: LocalTask,
    network_id: str,
    address: str,
    view: NetView,
    peers: Peers,
    *,
    provider_address: str,
    gateways: Sequence[str],
    overlays: Sequence[str],
    published: bool,
    six: bool,
) -> tuple[p.EndpointPolicy, ...]:
    """`gateways`: what a task that comes back from its own VIP is seen as, by family. `overlays`: subnets of the overlay
    networks known here. `published`: the endpoint carries the task's host ports. `six`: the host's HNS takes IPv6."""
    t, network = local.task, view.network(network_id)
    entry = view.get(f"service/{network_id}/{t.service_id}")
    service = entry if isinstance(entry, ServiceEntry) else None
    out: list[p.EndpointPolicy] = []
    egress = service.egress if service is not None else t.egress
    if egress:
        out.append(p.Qos(p.QosSettings(egress)))
    if network is not None:
        out.append(provider(provider_address))
        out.append(p.EncapOverhead(p.EncapOverheadSettings(tunnel_overhead(provider_address))))
        if not network.internal:
            addressed6 = six and local.address6(network_id)
            known = tuple(s for s in overlays if addressed6 or not is_six(s))
            out.append(p.OutBoundNat(p.OutBoundNatSettings(exceptions=known)))
    mtu = local.mtu.get(network_id, 0)
    if mtu:
        out.append(p.InterfaceParameters(p.InterfaceParametersSettings(mtu)))
    if published:
        out += [
            p.PortMapping(
                p.PortMappingSettings(WITH_PORTS[x.protocol], x.target_port, x.published_port, x.host_ip)
            )
            for x in t.host_ports
        ]
    if network is not None:
        address6 = local.address6(network_id).split("/")[0] if six else ""
        out += _acls(
            t, service, network, (address, address6), gateways, view, peers, overlays, published=published
        )
    return tuple(out)


def _acls(
    t: TaskNetwork,
    service: ServiceEntry | None,
    network: NetworkEntry,
    addresses: tuple[str, str],
    gateways: Sequence[str],
    view: NetView,
    peers: Peers,
    overlays: Sequence[str],
    *,
    published: bool,
) -> tuple[p.Acl, ...]:
    """What policies mean for the task's endpoint on `network`; none where nobody has one. The task watches whom its
    ACLs depend on."""
    default = Party(name="", allowed=network.allowed, allowed_to=network.allowed_to)
    name = t.service_name or peers.container_name(network.id, t.task_name)
    own = party_of(service) or Party(name=name, allowed=t.allowed, allowed_to=t.allowed_to)
    own = own.or_else(default)
    known = peers.parties(network.id, names_of(own.allowed, own.allowed_to), default)
    if not own.restricts and not any(peer.restricts for peer in known):
        return ()
    watched = {peer.name for peer in known} | ({t.task_name} if not t.service_id else set())
    peers.watch_also(t.task_id, {(network.id, name) for name in watched} | {HOSTS})
    ports = [(WITH_PORTS[x.protocol], x.target_port) for x in t.host_ports] if published else []
    if service is not None:
        ports += [
            (WITH_PORTS[x.protocol], x.target_port) for x in service.ports if x.publish_mode == "ingress"
        ]
    hosts = (n.addresses[network.id] for n in view.of(NodeEntry) if network.id in n.addresses)
    return plan_acls(
        own,
        addresses[0],
        known,
        gateway=next((g for g in gateways if not is_six(g)), ""),
        hosts=sorted(h.split("/")[0] for h in hosts),
        overlays=overlays,
        published=ports,
        address6=addresses[1],
        gateway6=next((g for g in gateways if is_six(g)), ""),
    )


def restricts(network: NetworkEntry | None) -> bool:
    """Whether services without a policy of their own have the network's."""
    return network is not None and (network.allowed is not None or network.allowed_to is not None)


def party_of(entry: Entry | None) -> Party | None:
    if not isinstance(entry, ServiceEntry):
        return None
    return Party(
        name=entry.name,
        vip=entry.vip,
        vip6=entry.vip6 or "",
        allowed=entry.allowed,
        allowed_to=entry.allowed_to,
    )


def container_of(entry: Entry | None) -> Party | None:
    """The party of a container outside of services; None for a service's task."""
    if not isinstance(entry, EndpointEntry) or entry.service_id or not entry.task_name:
        return None
    return Party(
        name=entry.task_name,
        addresses=entry.addresses,
        allowed=None if entry.allowed is msgspec.UNSET else entry.allowed,
        allowed_to=None if entry.allowed_to is msgspec.UNSET else entry.allowed_to,
    )


def provider(address: str) -> p.ProviderAddress:
    return p.ProviderAddress(p.ProviderAddressSettings(address))
