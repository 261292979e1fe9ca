"""What a service gets: virtual addresses, published ports; and which networks it is on.

Owns `Endpoint`. What it has it keeps across updates. Must not touch tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from overlace.manager.allocate.book import AddressBook, PortKey, families, version_of
from overlace.manager.allocate.networks import is_allocated, is_overlay
from overlace.model.objects import Endpoint, Network, Service, VirtualIP
from overlace.model.specs import HOST_NETWORKS, EndpointSpec, NetworkAttachmentConfig, PortConfig, ServiceSpec
from overlace.store.base import View

DYNAMIC_PORTS = range(30000, 32768)


class Blocked(Exception):
    """Something cannot be allocated now; the text says what and, where there is one, the remedy."""


def endpoint_spec(spec: ServiceSpec) -> EndpointSpec:
    return spec.endpoint_spec or EndpointSpec()


def attachments(spec: ServiceSpec) -> list[NetworkAttachmentConfig]:
    """The networks a service asks for; the task template's win over the older place."""
    return spec.task_template.networks or spec.networks


def ingress_ports(spec: ServiceSpec) -> list[PortConfig]:
    return [port for port in endpoint_spec(spec).ports if port.publish_mode != "host"]


def host_mode_ports(spec: ServiceSpec) -> tuple[PortConfig, ...]:
    return tuple(port for port in endpoint_spec(spec).ports if port.publish_mode == "host")


def find_network(view: View, target: str) -> Network:
    """By id, else by name. Raises Blocked."""
    network = view.get(Network, target) or view.by_name(Network, target)
    if network is None:
        raise Blocked(f"network {target} not found")
    return network


def usable_network(view: View, target: str) -> Network:
    """As `find_network`, and allocated. Raises Blocked."""
    network = find_network(view, target)
    if not is_allocated(network):
        raise Blocked(
            f"network {network.spec.name} has no subnet yet: {network.error or 'it is being allocated'}"
        )
    return network


def _on_the_swarm(spec: ServiceSpec) -> list[NetworkAttachmentConfig]:
    """Without the networks every host has of its own: there is nothing to allocate on them."""
    return [config for config in attachments(spec) if config.target not in HOST_NETWORKS]


def service_networks(
    view: View, book: AddressBook, spec: ServiceSpec
) -> Iterator[tuple[Network, NetworkAttachmentConfig]]:
    """The service's own networks and, when it publishes in ingress mode, the ingress network; each once.

    Raises Blocked.
    """
    seen: set[str] = set()
    for config in _on_the_swarm(spec):
        network = usable_network(view, config.target)
        if network.id not in seen:
            seen.add(network.id)
            yield network, config
    if ingress_ports(spec):
        ingress = view.get(Network, book.ingress_id)
        if ingress is None:
            raise Blocked("service needs ingress network, but no ingress network is present")
        if ingress.id not in seen:
            yield usable_network(view, ingress.id), NetworkAttachmentConfig(target=ingress.id)


def exhausted(book: AddressBook, network: Network, what: str, version: int) -> Blocked:
    used, size = book.capacity(network.id, version)
    subnets = ", ".join(s.subnet for s in network.subnets if version_of(s.subnet) == version)
    return Blocked(
        f"no address left for {what} on network {network.spec.name} ({subnets}): {used} of {size} in use; "
        "scale down or remove services on it, or make a network with a larger subnet"
    )


def settled_endpoint(spec: ServiceSpec) -> Endpoint | None:
    """The endpoint of a service that needs nothing allocated, None for others. Given at its creation, it saves a
    second write, and clients that change what they have just created meet the version they were told.
    """
    if _on_the_swarm(spec) or ingress_ports(spec):
        return None
    asked = endpoint_spec(spec)
    return Endpoint(asked, tuple(asked.ports))


def plan_endpoint(view: View, book: AddressBook, service: Service) -> Service | None:
    """The service with its endpoint complete; None when it is already. Raises Blocked when it cannot be."""
    spec = endpoint_spec(service.spec)
    old = service.endpoint or Endpoint()
    ports = _ports(book, service, spec, old)
    vips: list[VirtualIP] = []
    if spec.mode in ("", "vip"):
        networks = [n for n, _ in service_networks(view, book, service.spec) if is_overlay(n)]
        networks.sort(key=lambda n: not n.spec.ingress)  # first, as in Docker: scripts read `VirtualIPs[0]`
        for network in networks:
            for version in families(network.subnets):
                vips.append(_vip(book, service, network, version, old))
    new = Endpoint(spec, ports, tuple(vips))
    if service.endpoint == new:
        return None
    return msgspec.structs.replace(service, endpoint=new)


def _vip(book: AddressBook, service: Service, network: Network, version: int, old: Endpoint) -> VirtualIP:
    """The service's address of one family on the network: what it has, else a free one. Raises Blocked."""
    for kept in old.virtual_ips:
        same = kept.network_id == network.id and version_of(kept.address) == version
        if same and book.contains(network.id, kept.address):
            return kept
    address = book.take(network.id, version)
    if address is None:
        raise exhausted(book, network, f"the virtual IP of service {service.spec.name}", version)
    return VirtualIP(network.id, address)


def _ports(book: AddressBook, service: Service, spec: EndpointSpec, old: Endpoint) -> tuple[PortConfig, ...]:
    """Published numbers filled in; a dynamic one stays while the rest of the port does."""
    earlier: dict[tuple[str, str, int], list[int]] = {}
    for port in old.ports:
        if port.publish_mode != "host" and port.published_port in DYNAMIC_PORTS:
            earlier.setdefault(_port_identity(port), []).append(port.published_port)
    mine: set[PortKey] = {(p.protocol, p.published_port) for p in spec.ports if p.published_port}
    ports: list[PortConfig] = []
    for port in spec.ports:
        if port.publish_mode == "host":
            ports.append(port)  # the node gives dynamic ones out itself
            continue
        number = port.published_port
        if number:
            holder = book.port_holder((port.protocol, number))
            if holder is not None and holder != service.id and (port.protocol, number) not in _held(old):
                raise Blocked(f"port '{number}' is already in use by service {holder} as an ingress port")
        else:
            number = _dynamic(book, service, port, earlier, mine)
            mine.add((port.protocol, number))
        ports.append(msgspec.structs.replace(port, published_port=number))
    return tuple(ports)


def _held(endpoint: Endpoint) -> set[PortKey]:
    return {(p.protocol, p.published_port) for p in endpoint.ports}


def _port_identity(port: PortConfig) -> tuple[str, str, int]:
    return port.name, port.protocol, port.target_port


def _dynamic(
    book: AddressBook,
    service: Service,
    port: PortConfig,
    earlier: Mapping[tuple[str, str, int], list[int]],
    mine: set[PortKey],
) -> int:
    kept = earlier.get(_port_identity(port))
    while kept:
        number = kept.pop(0)
        if (port.protocol, number) not in mine and book.port_holder((port.protocol, number)) in (
            None,
            service.id,
        ):
            return number
    for number in DYNAMIC_PORTS:
        key = (port.protocol, number)
        if key not in mine and book.port_holder(key) is None:
            return number
    raise Blocked(
        f"no published port left for service {service.spec.name}: all {port.protocol} ports from "
        f"{DYNAMIC_PORTS[0]} to {DYNAMIC_PORTS[-1]} are in use; publish on a port of your choice"
    )
