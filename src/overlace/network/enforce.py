"""HNS documents made true on this Linux host, for clients that bring documents of their own.

Owns following the service: tables through the VFP compiler, and which endpoint's interface is in which network
namespace. Our own driver does this with its tasks; here the Namespace document says where: the first resource of type
Container whose Id is a path, or the name of a namespace in /var/run/netns or in the folder where a container engine keeps
its containers' namespaces, is the place; without one the namespace gets a sandbox of its own. Level-triggered: a failure
is made good by comparing everything at the next call.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import structlog

from overlace.model.paths import tunnel_overhead
from overlace.network.datapath import DataPath
from overlace.network.hns import policies as p
from overlace.network.hns.documents import (
    Guid,
    HostComputeEndpoint,
    HostComputeNamespace,
    HostComputeNetwork,
)
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.routes import ANYWHERE, routing_of
from overlace.network.hns.service import HnsService
from overlace.network.hns.validate import MIN_MTU
from overlace.network.vfp.compile import Compiler, vni_of
from overlace.network.vfp.tables import LocalEndpoint

NAMESPACES = Path("/var/run/netns")
_log = structlog.get_logger(__name__)


class HostDataPath(DataPath, Protocol):
    """What it needs beyond the driver's data path."""

    async def attach(
        self,
        endpoint: LocalEndpoint,
        sandbox: Path,
        ifname: str,
        default_route: bool,
        gateway: str,
        mtu: int,
        routes: tuple[str, ...] = (),
        *,
        six: LocalEndpoint | None = None,
        gateway6: str = "",
        through: tuple[tuple[str, str], ...] = (),
    ) -> None: ...
    async def free_ifname(self, sandbox: Path, mac: str) -> str: ...
    def port_counters(self, sandbox: Path, mac: str) -> dict[str, int]: ...


class NetworkEnforcer:
    """`host`: the underlay address, where published ports are. `containers`: the folder in which a running container's
    namespace is a file with its id as name; with it, an endpoint cannot be attached to a container that is not there."""

    def __init__(
        self, service: HnsService, datapath: HostDataPath, host: str, containers: Path | None = None
    ) -> None:
        self._service = service
        self._datapath = datapath
        self._containers = containers
        self._compiler = Compiler(service.state, host)
        self._placed: dict[Guid, Path] = {}
        self._sandboxes: dict[Guid, tuple[Path, str]] = {}  # with the MAC inside
        self._direct: dict[Guid, tuple[str, ...]] = {}  # subnets a placed endpoint's interface was given
        self._doubt = True

    async def open(self) -> None:
        """Bring the data path up to the kept documents. Namespaces that are gone meanwhile are said in the log."""
        changed = self._service.drain()
        self._compiler.update(changed)
        await self._datapath.reconcile(self._compiler.tables)
        self._doubt = False
        for guid in self._endpoints():
            try:
                if not self._is_over(guid):
                    await self._place(guid)
            except (OSError, HcnError) as e:
                _log.error("a kept endpoint cannot be attached again", endpoint=guid, error=str(e))

    def _is_over(self, guid: Guid) -> bool:
        """Whether its container ended while nobody followed: it is where it was until it is detached, as when that is
        seen."""
        where, d = self._place_of(guid, kept=True), self._service.state.get(guid, HostComputeEndpoint)
        if where is None or d is None or not where.is_absolute() or where.exists():
            return False
        _log.info("the container of a kept endpoint has ended", endpoint=guid, place=str(where))
        self._placed[guid], self._sandboxes[guid] = where, (where, d.mac_address)
        return True

    def counters(self, endpoint: Guid) -> dict[str, int]:
        """Of an attached endpoint's interface, by hcsshim's names; empty when it is nowhere."""
        place = self._sandboxes.get(endpoint)
        try:
            return self._datapath.port_counters(*place) if place is not None else {}
        except OSError:
            return {}  # its namespace went without a word

    async def follow(self) -> None:
        """Bring the data path up to what the service holds. Raises OSError, HcnError: for what this call asks for."""
        changed = self._service.drain()
        delta = self._compiler.update(changed)
        doubt, self._doubt = self._doubt, True
        for guid in self._touched(changed) if not doubt else set(self._placed):
            if guid in self._placed and self._place_of(guid) != self._placed[guid]:
                await self._datapath.detach(guid)
                del self._placed[guid], self._sandboxes[guid]
                self._direct.pop(guid, None)
        if doubt:
            await self._datapath.reconcile(self._compiler.tables)
        elif delta:
            await self._datapath.apply(delta)
        asked = self._touched(changed)
        for guid in asked if not doubt else self._endpoints():
            try:
                await self._place(guid)
            except (OSError, HcnError) as e:
                if guid in asked:
                    raise
                _log.error("a kept endpoint cannot be attached again", endpoint=guid, error=str(e))
        for guid in changed:
            if guid not in self._service.documents:
                await self._datapath.remove_sandbox(guid.lower())
        self._doubt = False

    def _endpoints(self) -> list[Guid]:
        return [d.id for d in self._service.documents.values() if isinstance(d, HostComputeEndpoint)]

    def _touched(self, changed: Iterable[Guid]) -> set[Guid]:
        """Endpoints whose place or routes may differ: their own change, their namespace's, their network's subnets'."""
        out: set[Guid] = set()
        for guid in changed:
            d = self._service.documents.get(guid)
            if isinstance(d, HostComputeNamespace):
                out.update(d.endpoints)
            elif isinstance(d, HostComputeNetwork):
                for endpoint in self._service.state.endpoints_of.get(guid, ()):
                    e = self._service.state.get(endpoint, HostComputeEndpoint)
                    placed = e is not None and endpoint in self._placed
                    if e is not None and placed and routing_of(e, d).direct != self._direct.get(endpoint):
                        out.add(endpoint)
            elif guid in self._placed or isinstance(d, HostComputeEndpoint):
                out.add(guid)
        return out

    def _place_of(self, endpoint: Guid, *, kept: bool = False) -> Path | None:
        """Where the endpoint's interface belongs; None: nowhere. A sandbox of ours is named, not yet made. `kept`: it was
        there already.

        Raises HcnError for a container that does not run."""
        d = self._service.state.get(endpoint, HostComputeEndpoint)
        if d is None or d.remote:
            return None
        namespace = self._service.state.get(d.host_compute_namespace, HostComputeNamespace)
        if namespace is None:
            return None
        for container in namespace.containers:
            if container.startswith("/"):
                return Path(container)
            if "/" not in container and (NAMESPACES / container).exists():
                return NAMESPACES / container
            if "/" not in container and self._containers is not None:
                place = self._containers / container
                if kept or place.exists() or self._placed.get(endpoint) == place:
                    return (
                        place  # where it was attached it stays until it is detached, also when that is gone
                    )
                raise HcnError(Code.SYSTEM_NOT_FOUND, f"ContainerId {container}: no such container runs")
        return Path(namespace.id.lower())

    async def _place(self, guid: Guid) -> None:
        where = self._place_of(guid)
        d = self._service.state.get(guid, HostComputeEndpoint)
        if where is None or d is None:
            return
        network = self._service.state.get(d.host_compute_network, HostComputeNetwork)
        assert network is not None  # the service holds no endpoint without its network
        entry = self._compiler.tables.get(("endpoint", vni_of(network), d.address))
        if not isinstance(entry, LocalEndpoint) or entry.endpoint_id != guid:
            return
        if where.is_absolute() and self._placed.get(guid) == where and not where.exists():
            return  # its container has ended, and took the interface with it
        balancer = self._service.state.source_vips(network.id).get(d.address)
        if balancer is not None:
            raise HcnError(
                Code.NAMESPACE_ATTACH_FAILED,
                f"endpoint {guid}: its address {d.address} is SourceVIP of load balancer {balancer}, whose answers its "
                "container would get: attach another endpoint",
            )
        routing = routing_of(d, network)
        sandbox = where if where.is_absolute() else await self._datapath.ensure_sandbox(where.name)
        await self._datapath.attach(
            entry,
            sandbox,
            await self._datapath.free_ifname(sandbox, entry.mac),
            self._has_default(d),
            routing.gateway,
            self._mtu(d, network),
            routing.direct,
            through=routing.through,
        )
        self._direct[guid] = routing.direct
        self._placed[guid] = where
        self._sandboxes[guid] = sandbox, entry.mac

    def _has_default(self, d: HostComputeEndpoint) -> bool:
        """Whether the namespace's way out is through this endpoint: the first that has a default route."""
        namespace = self._service.state.get(d.host_compute_namespace, HostComputeNamespace)
        for guid in namespace.endpoints if namespace is not None else ():
            other = self._service.state.get(guid, HostComputeEndpoint)
            if other is not None and any(r.destination_prefix == ANYWHERE for r in other.routes):
                return other.id == d.id
        return False

    def _mtu(self, d: HostComputeEndpoint, network: HostComputeNetwork) -> int:
        asked = p.policy_of(d.policies, p.InterfaceParameters)
        overhead = p.policy_of(d.policies, p.EncapOverhead)
        lost = tunnel_overhead(self._datapath.underlay().address) if network.type == "Overlay" else 0
        if overhead is not None:
            lost = max(lost, overhead.settings.overhead)
        fits = max(self._datapath.underlay().mtu - lost, MIN_MTU)  # of an underlay that became smaller
        return min(asked.settings.mtu or fits, fits) if asked is not None else fits
