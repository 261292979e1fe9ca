"""A Windows host's ways to the others: measured by its agent, and the MTU endpoints get by that.

Owns when measuring begins and ends, and how long a new task waits for it. Must not know HNS: its endpoints take their MTU
once, so that nothing here changes one that is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import msgspec
import structlog

from overlace.model.netview import NetView, NodeEntry
from overlace.model.paths import PathState, tunnel_overhead
from overlace.network.mtu import peers, plan_mtus
from overlace.network.path_keeper import PathKeeper
from overlace.network.windows.probe import PlainProbeSocket

log = structlog.get_logger(__name__)


class Adapter(msgspec.Struct, frozen=True):
    """The underlay's."""

    ifname: str
    mtu: int


class HostPaths:
    """What network/path_keeper.py needs of a host: `mtu_now` is asked for its adapter's MTU, now and then."""

    def __init__(self, address: str, mtu: int, mtu_now: Callable[[], int] | None = None) -> None:
        self._address = address
        self._mtu_now = mtu_now
        self.mtu = mtu

    async def open_probe(self) -> PlainProbeSocket:
        return PlainProbeSocket(self._address)

    async def look_at_underlay(self) -> Adapter:
        if self._mtu_now is not None:
            self.mtu = await asyncio.to_thread(self._mtu_now) or self.mtu
        return Adapter("", self.mtu)

    async def set_paths(self, mtus: Mapping[str, int]) -> None:
        """HNS has no MTU of a path: endpoints get theirs as they are made."""

    async def resize(self, endpoint_id: str, sandbox: Path, ifname: str, mtu: int) -> None:
        raise AssertionError("HNS takes an endpoint's MTU once")

    async def leave_checksums_to_the_kernel(self) -> bool:
        return False


class HostPathKeeper:
    """`told` hears of every change; `patience`: seconds that `mtus` waits, at most."""

    def __init__(
        self, paths: HostPaths, told: Callable[[Sequence[PathState]], None], patience: float
    ) -> None:
        self._paths = paths
        self._path_keeper = PathKeeper(paths, lambda: (), told, lambda nodes: None, checks=False)
        self._patience = patience
        self._open = False

    async def open(self) -> bool:
        """Begin, if it has not; False where the host has not got its underlay address (yet): try again."""
        if not self._open:
            try:
                await self._path_keeper.open(self._paths.mtu)
            except OSError as e:
                log.warning("paths cannot be measured yet", error=str(e))
                return False
            self._open = True
        return True

    async def close(self) -> None:
        await self._path_keeper.close()
        self._open = False

    def follow(self, view: NetView, me: str, changed: Collection[str] | None) -> None:
        if changed is None or any(key.startswith("node/") for key in changed):
            others = (n for n in view.of(NodeEntry) if n.id != me and n.measurable)
            self._path_keeper.follow({n.id: (n.provider_address, n.hostname) for n in others})

    def states(self) -> list[PathState]:
        return self._path_keeper.states()

    async def mtus(self, view: NetView, network_ids: Collection[str], me: str) -> dict[str, int]:
        """As endpoints made now should have them: once the paths to the networks' other hosts are measured."""
        await self._path_keeper.settled(
            {n.id for net in network_ids for n in peers(view, net, me)}, self._patience
        )
        overhead = tunnel_overhead("")  # over IPv4: HNS has no other
        return plan_mtus(view, network_ids, me, self._paths.mtu, self._path_keeper.measured(), overhead)
