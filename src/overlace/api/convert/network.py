"""Networks in their two forms: the swarm object inside a task, and the resource `docker network inspect`
shows. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from overlace.api.backend import LocalEndpoint, LocalNetwork
from overlace.api.codec import rfc3339
from overlace.api.convert.common import Json, document, header
from overlace.model.objects import Network, Node, Service, Subnet, Task
from overlace.model.specs import VNI_OPTION, IpamConfig
from overlace.model.states import TaskState


def _options(network: Network) -> dict[str, str]:
    options = dict(network.spec.options)
    if network.vni:
        options[VNI_OPTION] = str(network.vni)
    return options


def swarm_network(network: Network) -> Json:
    """moby api/types/swarm Network, as it appears in a task's NetworksAttachments."""
    spec = network.spec
    shown: Json = {
        "Name": spec.name,
        "Labels": dict(spec.labels),
        "DriverConfiguration": {
            "Name": spec.driver,
            **({"Options": dict(spec.options)} if spec.options else {}),
        },
        "IPAMOptions": {"Driver": {"Name": spec.ipam.driver}},
        "Scope": "swarm",
    }
    if spec.ipam.config:
        shown["IPAMOptions"]["Configs"] = [
            _swarm_ipam(c.subnet, c.range, c.gateway) for c in spec.ipam.config
        ]
    for key, on in (
        ("IPv6Enabled", spec.enable_ipv6),
        ("Internal", spec.internal),
        ("Attachable", spec.attachable),
        ("Ingress", spec.ingress),
    ):
        if on:
            shown[key] = True
    return {
        **header(network),
        "Spec": shown,
        "DriverState": {"Name": spec.driver, "Options": _options(network)},
        "IPAMOptions": {
            "Driver": {"Name": spec.ipam.driver},
            "Configs": [_swarm_ipam(s.subnet, s.ip_range, s.gateway) for s in network.subnets],
        },
    }


def _swarm_ipam(subnet: str, span: str, gateway: str) -> Json:
    """moby api/types/swarm IPAMConfig: its range is `Range`, where a network resource has `IPRange`."""
    return {key: text for key, text in (("Subnet", subnet), ("Range", span), ("Gateway", gateway)) if text}


def _ipam_configs(subnets: Iterable[Subnet], asked: Iterable[IpamConfig] = ()) -> list[Json]:
    """`asked`: what the user gave, for the addresses to be left alone."""
    auxiliary = {
        str(ipaddress.ip_network(c.subnet, strict=False)): dict(c.auxiliary_addresses)
        for c in asked
        if c.auxiliary_addresses
    }
    return [
        {
            "Subnet": s.subnet,
            **({"IPRange": s.ip_range} if s.ip_range else {}),
            "Gateway": s.gateway,
            **({"AuxiliaryAddresses": auxiliary[s.subnet]} if s.subnet in auxiliary else {}),
        }
        for s in subnets
    ]


def _resource(
    *,
    id: str,
    name: str,
    created_at: int,
    scope: str,
    driver: str,
    ipam: Json,
    internal: bool = False,
    attachable: bool = False,
    ingress: bool = False,
    ipv6: bool = False,
    options: Mapping[str, str],
    labels: Mapping[str, str],
    containers: Json,
    config_from: str = "",
    config_only: bool = False,
) -> Json:
    return {
        "Name": name,
        "Id": id,
        "Created": rfc3339(created_at),
        "Scope": scope,
        "Driver": driver,
        "EnableIPv4": True,
        "EnableIPv6": ipv6,
        "IPAM": ipam,
        "Internal": internal,
        "Attachable": attachable,
        "Ingress": ingress,
        "ConfigFrom": {"Network": config_from},
        "ConfigOnly": config_only,
        "Containers": containers,
        "Options": dict(options),
        "Labels": dict(labels),
    }


def network(found: Network) -> Json:
    """An overlay as listed: without who is on it."""
    spec = found.spec
    shown = _resource(
        id=found.id,
        name=spec.name,
        created_at=found.created_at,
        scope="swarm",
        driver=spec.driver,
        ipam={
            "Driver": spec.ipam.driver or "default",
            "Options": spec.ipam.options or None,
            "Config": _ipam_configs(found.subnets, spec.ipam.config)
            or [document(c) for c in spec.ipam.config],
        },
        internal=spec.internal,
        attachable=spec.attachable,
        ingress=spec.ingress,
        ipv6=spec.enable_ipv6,
        options=_options(found),
        labels=spec.labels,
        containers={},
        config_from=spec.config_from,
        config_only=spec.config_only,
    )
    if found.error:
        # not a member Docker has: its users learn of a failed allocation from manager logs only
        shown["Error"] = found.error
    if found.warning:
        shown["Warning"] = found.warning
    return shown


def local_network(found: LocalNetwork) -> Json:
    shown = _resource(
        id=found.id,
        name=found.name,
        created_at=found.created_at,
        scope=found.scope,
        driver=found.driver,
        ipam={"Driver": "default", "Options": None, "Config": _ipam_configs(found.subnets)},
        internal=found.internal,
        attachable=found.attachable,
        ingress=found.ingress,
        ipv6=any(":" in s.subnet for s in found.subnets),
        options=found.options,
        labels=found.labels,
        containers=local_containers(found.endpoints),
    )
    if found.peers:
        shown["Peers"] = [{"Name": name, "IP": address} for name, address in found.peers]
    return shown


def local_containers(endpoints: Iterable[LocalEndpoint]) -> Json:
    return {
        e.container_id: {
            "Name": e.name,
            "EndpointID": e.endpoint_id,
            "MacAddress": e.mac,
            "IPv4Address": e.address,
            "IPv6Address": e.address6,
        }
        for e in endpoints
    }


def peers(nodes: Iterable[Node], tasks: Iterable[Task], found: Network) -> list[Json]:
    """Hosts that take part: those that run a task of the network; for the ingress network every ready one."""
    taking_part = {t.node_id for t in tasks if TaskState.ASSIGNED <= t.status.state <= TaskState.RUNNING}
    shown = []
    for node in nodes:
        about = node.description
        if about is None or not (
            node.id in taking_part or (found.spec.ingress and found.id in node.network_addresses)
        ):
            continue
        shown.append({"Name": about.hostname, "IP": about.underlay_address or node.status.addr})
    return sorted(shown, key=lambda p: p["Name"])


def verbose_services(
    found: Network, services: Mapping[str, Service], tasks: Iterable[Task], nodes: Mapping[str, Node]
) -> Json:
    """`docker network inspect -v`: services on the network with VIP, ports and running tasks."""
    shown: Json = {}
    for service in services.values():
        vip = ""
        endpoint = service.endpoint
        if endpoint is not None:
            vips = [v.address for v in endpoint.virtual_ips if v.network_id == found.id]
            vip = str(ipaddress.ip_interface(vips[0]).ip) if vips else ""
        ports = [
            f"Target: {p.target_port}, Publish: {p.published_port}"
            for p in (endpoint.ports if endpoint and found.spec.ingress else ())
        ]
        shown[service.spec.name] = {"VIP": vip, "Ports": ports, "LocalLBIndex": 0, "Tasks": []}
    for task in tasks:
        owner = services.get(task.service_id)
        if owner is None or task.status.state != TaskState.RUNNING:
            continue
        node = nodes.get(task.node_id)
        about = node.description if node else None
        for attachment in task.networks:
            if attachment.network_id == found.id and attachment.addresses:
                shown[owner.spec.name]["Tasks"].append(
                    {
                        "Name": task.name,
                        "EndpointID": "",
                        "EndpointIP": str(ipaddress.ip_interface(attachment.addresses[0]).ip),
                        "Info": {"Host IP": about.underlay_address if about else ""},
                    }
                )
    return shown
