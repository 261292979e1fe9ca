"""Create and remove networks.

Owns the rules of swarm-scoped overlay networks: addressing, VNIs, options, the one ingress network. A subnet
or VNI that is another network's is refused here, where Docker accepts it and fails later, unseen.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

import msgspec

from overlace.manager.allocate.book import version_of
from overlace.manager.allocate.networks import FIRST_VNI, LAST_VNI
from overlace.manager.allocate.room import explain_pool
from overlace.manager.control.base import Core, swarm
from overlace.manager.control.lookup import find
from overlace.manager.control.names import check_dns_name
from overlace.manager.control.words import unsupported
from overlace.model.errors import Conflict, FailedPrecondition, InvalidArgument, PermissionDenied
from overlace.model.objects import Cluster, Network, Node, Service
from overlace.model.policy import LABELS, check_network_labels
from overlace.model.specs import (
    HOST_ACCESS_OPTION,
    MAX_MTU,
    MAX_MULTICAST_RATE,
    MIN_MTU,
    MTU_OPTION,
    MULTICAST_OPTION,
    MULTICAST_RATE_OPTION,
    VNI_OPTION,
    IpamConfig,
    NetworkSpec,
)
from overlace.model.traffic import host_access
from overlace.store.base import Delete, Put, View
from overlace.store.memory import name_conflict

_PREFIXES = {4: (8, 29), 6: (16, 125)}  # lengths a subnet may have: largest, smallest
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class Networks(Core):
    async def create_network(self, spec: NetworkSpec) -> tuple[str, str]:
        """The new network's id, and a warning when few subnets are left or hosts lack what an option asks ("" otherwise).

        Raises InvalidArgument, Conflict, Unimplemented.
        """
        if not spec.config_from:
            check_network(spec)
        async with self._lock:
            view = self.store.view()
            if spec.config_from:
                spec = _filled(view, spec)
                check_network(spec)
            network = Network(id=self._new_id(), spec=spec)
            if view.by_name(Network, spec.name) is not None:
                raise name_conflict(network)
            check_against_others(view, spec)
            await self._commit([Put(network, expect=0)])
        own = any(config.subnet for config in spec.ipam.config if version_of(config.subnet) == 4)
        cluster = next(iter(view.all(Cluster)), None)
        warnings = ["" if own or cluster is None else explain_pool(cluster, view.all(Network))]
        if host_access(spec.options):
            warnings.append(_explain_host_access(view.all(Node)))
        return network.id, "; ".join(w for w in warnings if w)

    async def set_network_policy(self, id: str, labels: Mapping[str, str]) -> None:
        """Give the network these overlace.policy labels in place of those it has; its other labels stay. Docker changes
        no label of a network; a policy must be able to follow.

        Raises NotFound, InvalidArgument, PermissionDenied.
        """
        strange = next((label for label in labels if label not in LABELS), "")
        if strange:
            raise InvalidArgument(f"label {strange} is no policy; {', '.join(LABELS)} are")
        async with self._lock:
            network = find(self.store.view(), Network, id)
            if network.spec.config_only:
                raise PermissionDenied(
                    f"{network.spec.name} is a configuration: networks made of it have policies"
                )
            kept = {label: text for label, text in network.spec.labels.items() if label not in LABELS}
            spec = msgspec.structs.replace(network.spec, labels=kept | dict(labels))
            check_network_labels(spec.labels)
            if spec != network.spec:
                changed = msgspec.structs.replace(network, spec=spec)
                await self._commit([Put(changed, expect=network.version)])

    async def remove_network(self, id: str) -> None:
        """Raises NotFound, FailedPrecondition while a service needs it."""
        async with self._lock:
            view = self.store.view()
            network = find(view, Network, id)
            _check_unused(view, network)
            await self._commit([Delete("network", network.id)])


def _filled(view: View, spec: NetworkSpec) -> NetworkSpec:
    """The spec with the settings of the configuration network it names. Raises NotFound, PermissionDenied."""
    source = find(view, Network, spec.config_from)
    if not source.spec.config_only:
        raise PermissionDenied(f"{spec.config_from} is not a configuration only network")
    return msgspec.structs.replace(
        spec,
        config_from=source.spec.name,
        ipam=source.spec.ipam,
        options=source.spec.options,
        labels=source.spec.labels,
        enable_ipv6=source.spec.enable_ipv6,
    )


def _check_unused(view: View, network: Network) -> None:
    """Tasks of services that are gone do not count: they are on their way out (Docker's stack rm stumbles
    over them)."""
    if network.spec.config_only:
        if any(other.spec.config_from == network.spec.name for other in view.all(Network)):
            raise PermissionDenied(f'configuration network "{network.spec.name}" is in use')
        return
    if network.spec.ingress:
        for service in view.all(Service):
            endpoint = service.spec.endpoint_spec
            if endpoint is not None and any(port.publish_mode == "ingress" for port in endpoint.ports):
                raise swarm(
                    FailedPrecondition(
                        f"ingress network cannot be removed because service {service.id} depends on it"
                    )
                )
        return
    for service in view.services_of_network(network.id):
        raise swarm(FailedPrecondition(f"network {network.id} is in use by service {service.id}"))
    for task in view.tasks_of_network(network.id):
        used = task.attachment or view.get(Service, task.service_id) is not None
        if used and not task.status.state.terminal:
            raise swarm(FailedPrecondition(f"network {network.id} is in use by task {task.id}"))


def check_network(spec: NetworkSpec) -> None:
    """Raises InvalidArgument or Unimplemented for the first thing wrong with the spec itself."""
    check_dns_name(spec.name)
    check_network_labels(spec.labels)
    if spec.driver not in ("", "overlay") and not spec.config_only:
        raise unsupported(
            f"network driver {spec.driver}", "networks of a swarm are overlays (--driver overlay)"
        )
    if spec.scope not in ("", "swarm"):
        raise unsupported(f"network scope {spec.scope}", "an overlay's scope is swarm")
    if spec.ingress and spec.attachable:
        raise swarm(InvalidArgument("ingress network cannot be attachable"))
    if spec.ingress and spec.internal:
        raise swarm(InvalidArgument("ingress network cannot be internal"))
    if spec.ipam.driver not in ("", "default"):
        raise unsupported(f"IPAM driver {spec.ipam.driver}", "addresses are given out by the swarm (default)")
    if spec.ipam.options:
        raise unsupported(f"IPAM option {next(iter(spec.ipam.options))}", "leave the IPAM options out")
    for config in spec.ipam.config:
        _check_ipam(config, six=spec.enable_ipv6)
    for version in _PREFIXES:
        _check_apart([c.subnet for c in spec.ipam.config if version_of(c.subnet) == version])
    _check_options(spec.options)


def _check_apart(subnets: list[str]) -> None:
    """A network's own subnets: each said, none within another."""
    if len(subnets) > 1 and "" in subnets:
        raise InvalidArgument("ipam configuration: of several subnets each must be given")
    nets = [ipaddress.ip_network(subnet) for subnet in subnets if subnet]
    for i, one in enumerate(nets):
        for other in nets[i + 1 :]:
            if one.overlaps(other):
                raise InvalidArgument(f"ipam configuration: subnets {one} and {other} of the network overlap")


def _check_ipam(config: IpamConfig, *, six: bool) -> None:
    if not config.subnet:
        if config.gateway or config.range or config.auxiliary_addresses:
            raise InvalidArgument("ipam configuration: a gateway or range needs a subnet")
        return
    subnet = _network("subnet", config.subnet)
    if subnet.version == 6 and not six:
        raise InvalidArgument(
            f"invalid subnet {subnet}: the network has no IPv6; create it with --ipv6 (EnableIPv6), or leave the"
            " subnet out"
        )
    spelled = str(subnet) == config.subnet if subnet.version == 4 else _is_masked(config.subnet)
    if not spelled:
        raise InvalidArgument(f"invalid subnet {config.subnet}: it should be {subnet}")
    shortest, longest = _PREFIXES[subnet.version]
    if not shortest <= subnet.prefixlen <= longest:
        raise InvalidArgument(
            f"invalid subnet {subnet}: its prefix length must be between {shortest} and {longest}"
        )
    if (
        subnet.is_multicast
        or subnet.is_loopback
        or subnet.is_link_local
        or subnet.is_unspecified
        or (subnet.version == 6 and subnet.is_reserved)
    ):
        raise InvalidArgument(
            f"invalid subnet {subnet}: containers cannot have such addresses; use a private range"
        )
    if config.range:
        within = _network("range", config.range)
        if not _within(within, subnet):
            raise swarm(
                InvalidArgument(f"ipam configuration: subnet {subnet} does not contain range {config.range}")
            )
    for what, text in (("gateway", config.gateway), *config.auxiliary_addresses.items()):
        if text:
            _check_address(what, text, subnet)


def _is_masked(prefix: str) -> bool:
    """No bit set behind the prefix length. (An IPv6 prefix has many spellings, all of them are taken.)"""
    try:
        ipaddress.ip_network(prefix)
    except ValueError:
        return False
    return True


def _within(inner: IPNetwork, outer: IPNetwork) -> bool:
    return inner.version == outer.version and inner[0] in outer and inner[-1] in outer


def _check_address(what: str, text: str, subnet: IPNetwork) -> None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise swarm(InvalidArgument(f"ipam configuration: invalid {what} {text}")) from None
    if address not in subnet:
        raise swarm(InvalidArgument(f"ipam configuration: subnet {subnet} does not contain {what} {text}"))
    if address in (subnet[0], subnet[-1]):
        raise InvalidArgument(f"ipam configuration: {what} {text} is the first or last address of {subnet}")


def _network(what: str, text: str) -> IPNetwork:
    try:
        found = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise swarm(InvalidArgument(f"ipam configuration: invalid {what} {text}")) from None
    if "/" not in text:
        raise swarm(InvalidArgument(f"ipam configuration: invalid {what} {text}: a prefix length is missing"))
    return found


def _check_options(options: dict[str, str]) -> None:
    for key, value in options.items():
        if key == "encrypted":
            if value.lower() not in ("false", "0"):
                raise unsupported(
                    "option encrypted",
                    "this network's traffic would cross the underlay in clear; leave it out",
                )
        elif key == VNI_OPTION:
            _check_vni(value)
        elif key == MTU_OPTION:
            _check_mtu(value)
        elif key in (MULTICAST_OPTION, HOST_ACCESS_OPTION):
            if value not in ("true", "false"):
                raise InvalidArgument(f"option {key}: '{value}': write true or false")
        elif key == MULTICAST_RATE_OPTION:
            if not value.isdecimal() or not 1 <= int(value[:10]) <= MAX_MULTICAST_RATE or len(value) > 10:
                raise InvalidArgument(
                    f"option {key}: '{value}' is no rate; give packets per second, from 1 to {MAX_MULTICAST_RATE}"
                )
            if options.get(MULTICAST_OPTION) != "true":
                raise InvalidArgument(f"option {key} needs {MULTICAST_OPTION}=true")
        else:
            raise InvalidArgument(
                f"unknown option {key} for an overlay network; known are {VNI_OPTION}, {MTU_OPTION}, "
                f"{MULTICAST_OPTION}, {MULTICAST_RATE_OPTION}, {HOST_ACCESS_OPTION} and encrypted=false"
            )


def _explain_host_access(nodes: Iterable[Node]) -> str:
    """Which hosts the option does nothing on; "" when there are none."""
    found = sorted(
        n.description.hostname
        for n in nodes
        if n.description is not None and not n.removed and n.description.os == "windows"
    )
    return f"option {HOST_ACCESS_OPTION} does nothing on Windows hosts: {', '.join(found)}" if found else ""


def _check_mtu(value: str) -> None:
    if not value.isdecimal() or not MIN_MTU <= int(value) <= MAX_MTU:
        raise InvalidArgument(
            f"option {MTU_OPTION}: '{value}' is not an MTU; give a number between {MIN_MTU} and {MAX_MTU}"
        )


def _check_vni(value: str) -> int:
    text = value.strip()
    if not text.isdigit():
        raise InvalidArgument(f"option {VNI_OPTION}: '{value}' is not a VNI; give one number")
    if not FIRST_VNI <= int(text) <= LAST_VNI:
        raise InvalidArgument(
            f"option {VNI_OPTION}: VNI {text} cannot be used: Windows hosts need {FIRST_VNI} or more,"
            f" and {LAST_VNI} is the largest there is"
        )
    return int(text)


def check_against_others(view: View, spec: NetworkSpec) -> None:
    """Raises Conflict for an address range or VNI that another network has, and for a second ingress
    network."""
    asked_vni = spec.options.get(VNI_OPTION)
    vni = _check_vni(asked_vni) if asked_vni is not None else 0
    mine = [ipaddress.ip_network(config.subnet) for config in spec.ipam.config if config.subnet]
    for other in view.all(Network):
        if spec.config_only or other.spec.config_only:
            continue  # settings take no room: who is made from them does
        if spec.ingress and other.spec.ingress:
            raise swarm(Conflict(f"ingress network ({other.id}) is already present"))
        other_vni = other.vni or int(other.spec.options.get(VNI_OPTION) or 0)
        if vni and vni == other_vni:
            raise Conflict(f"option {VNI_OPTION}: VNI {vni} is network {other.spec.name}'s; choose another")
        taken = [subnet.subnet for subnet in other.subnets] or [
            c.subnet for c in other.spec.ipam.config if c.subnet
        ]
        for text in taken:
            theirs = ipaddress.ip_network(text, strict=False)
            for subnet in mine:
                if subnet.overlaps(theirs):
                    raise Conflict(
                        f"Pool overlaps with other one on this address space: subnet {subnet} of network"
                        f" {spec.name} overlaps subnet {theirs} of network {other.spec.name}"
                    )
