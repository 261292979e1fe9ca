"""Which overlay networks the host's own processes reach (option overlace.host-access), and keeping it so.

Owns the rule (`plan_host_access`) and the order of effects. The node's own address on the network is an endpoint in a
sandbox of its own; what leads the host's packets there is the data path's. Must not make documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from overlace.model.netview import NetView, NetworkEntry
from overlace.model.traffic import host_access
from overlace.network.base import Inside
from overlace.network.hns.documents import Guid
from overlace.network.path_keeper import Interface
from overlace.network.vfp.tables import LocalEndpoint

log = structlog.get_logger(__name__)

SANDBOX_PREFIX = "host-"  # of the sandbox's name, before the endpoint's id
IFNAME = "eth0"


class HostAccess(msgspec.Struct, frozen=True):
    """One network as the host's own processes reach it."""

    endpoint_id: Guid
    network: str  # name
    sandbox: Path
    ifname: str  # of the endpoint, in the sandbox
    subnets: tuple[str, ...]
    mtu: int


class Place(msgspec.Struct, frozen=True):
    """The node's own endpoint on a network whose option asks for access."""

    network: str  # name
    entry: LocalEndpoint
    subnets: tuple[str, ...]
    mtu: int


class Effects(Protocol):
    """What it needs of a data path."""

    async def ensure_sandbox(self, sandbox_id: str, netns: Path | None = None) -> Path: ...
    async def attach(
        self,
        endpoint: LocalEndpoint,
        sandbox: Path,
        ifname: str,
        default_route: bool,
        gateway: str,
        mtu: int,
        routes: tuple[str, ...] = (),
    ) -> None: ...
    async def ensure_host_access(self, access: HostAccess) -> str: ...
    async def keep_host_access(self, endpoint_ids: frozenset[Guid]) -> None: ...


def asked(view: NetView) -> list[NetworkEntry]:
    """The networks of the view whose option asks for access from hosts."""
    return [n for n in view.of(NetworkEntry) if host_access(n.driver_opts) and not n.ingress]


def plan_host_access(
    networks: list[NetworkEntry], own: Mapping[str, LocalEndpoint], mtus: Mapping[str, int]
) -> dict[Guid, Place]:
    """By endpoint id. `own`: the node's own endpoints as the tables have them, by network id."""
    return {
        entry.endpoint_id: Place(n.name, entry, n.subnets, mtus[n.id])
        for n in networks
        if (entry := own.get(n.id)) is not None and n.id in mtus
    }


class HostAccesses:
    """Those of this host."""

    def __init__(self, datapath: Effects) -> None:
        self._datapath = datapath
        self._made: dict[Guid, tuple[Place, Path]] = {}
        self._refused: dict[Guid, str] = {}
        self.settled = False  # else the next pass looks at all of it

    def refused(self) -> list[str]:
        """Why a network is not reached from the host itself."""
        return sorted(self._refused.values())

    def inside(self) -> Iterator[Inside]:
        """The endpoints' interfaces."""
        return (Inside(guid, sandbox, IFNAME, False) for guid, (_, sandbox) in self._made.items())

    def interfaces(self, mtus: Mapping[str, int]) -> list[Interface]:
        """What MTU the endpoints' interfaces should have now; `mtus` by network name."""
        return [
            Interface(guid, sandbox, IFNAME, mtus[place.network])
            for guid, (place, sandbox) in self._made.items()
            if place.network in mtus
        ]

    async def follow(self, wanted: Mapping[Guid, Place]) -> None:
        """Have exactly these. What fails is logged and tried again with the next pass: tasks do not wait for it."""
        self.settled = False
        refused: dict[Guid, str] = {}
        try:
            await self._datapath.keep_host_access(frozenset(wanted))
            self._made = {guid: made for guid, made in self._made.items() if guid in wanted}
            for guid, place in wanted.items():
                sandbox = await self._datapath.ensure_sandbox(SANDBOX_PREFIX + guid)
                others = tuple(
                    s for s in place.subnets if ip_address(place.entry.address) not in ip_network(s)
                )
                await self._datapath.attach(place.entry, sandbox, IFNAME, False, "", place.mtu, others)
                self._made[guid] = place, sandbox
                access = HostAccess(guid, place.network, sandbox, IFNAME, place.subnets, place.mtu)
                why = await self._datapath.ensure_host_access(access)
                if why:
                    refused[guid] = (
                        f"the host itself cannot reach network {place.network}: {why}; "
                        "give the network another --subnet, or the host another route"
                    )
        except (OSError, RuntimeError) as e:
            log.warning("the host's own access to overlay networks is not as it should be", error=str(e))
        else:
            self.settled = not refused  # a route may go
        for guid, text in refused.items():
            if self._refused.get(guid) != text:
                log.warning("no access from the host itself", why=text)
        self._refused = refused
