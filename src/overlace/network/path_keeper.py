"""This host's ways to the others: measured, and what follows from it on the host: MTUs, offload, the log.

Owns the prober and the passes that bring interfaces and the data path to what was measured; each is repeated until it
went well. Must not know views or tasks: the driver says which hosts there are and what interfaces.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog

from overlace.model.paths import PathState
from overlace.network.prober import Prober, Socket

log = structlog.get_logger(__name__)
RETRY_SECONDS = 1.0


class Interface(msgspec.Struct, frozen=True):
    """A container's, and the MTU it should have."""

    endpoint_id: str
    sandbox: Path
    ifname: str
    mtu: int


class Underlay(Protocol):
    @property
    def mtu(self) -> int: ...
    @property
    def ifname(self) -> str: ...


class Measurable(Protocol):
    """What is needed of a data path."""

    async def open_probe(self) -> Socket: ...
    async def set_paths(self, mtus: Mapping[str, int]) -> None: ...
    async def look_at_underlay(self) -> Underlay: ...
    async def resize(self, endpoint_id: str, sandbox: Path, ifname: str, mtu: int) -> None: ...
    async def leave_checksums_to_the_kernel(self) -> bool: ...


class PathKeeper:
    """`interfaces` gives what should be, and keeps it for a restart; `told` hears of every change;
    `unreachable` of the hosts that answered once and do not now. `checks`: whether checksums and fragments are tried."""

    def __init__(
        self,
        datapath: Measurable,
        interfaces: Callable[[], Iterable[Interface]],
        told: Callable[[Sequence[PathState]], None],
        unreachable: Callable[[frozenset[str]], None],
        *,
        checks: bool = True,
    ) -> None:
        self._datapath = datapath
        self._interfaces = interfaces
        self._told = told
        self._on_unreachable = unreachable
        self._seen: set[str] = set()  # hosts that have answered: one that never did may not be able to
        self._unreachable: frozenset[str] = frozenset()
        self._prober = Prober(self._changed, self._corrupted, self._look, checks=checks)
        self._hosts: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._states: dict[str, PathState] = {}
        self._set: dict[str, int] | None = None
        self._resized: dict[str, Interface] = {}
        self._own = 0
        self._dirty = asyncio.Event()
        self._heard = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._aside: set[asyncio.Task[None]] = set()

    async def open(self, own_mtu: int) -> None:
        self._own = own_mtu
        self._prober.start(await self._datapath.open_probe())
        self._keeper = asyncio.create_task(self._keep(), name="path MTUs")

    async def close(self) -> None:
        await self._prober.close()
        jobs = [*self._aside, *([self._keeper] if self._keeper is not None else [])]
        self._keeper = None
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    def follow(self, hosts: Mapping[str, tuple[str, str]]) -> None:
        """The other hosts: node id -> (underlay address, name)."""
        self._names = {node: name for node, (_, name) in hosts.items()}
        self._hosts = {node: address for node, (address, _) in hosts.items()}
        for node in [n for n, s in self._states.items() if self._hosts.get(n) != s.address]:
            del self._states[node]
        self._seen.intersection_update(self._hosts)
        self._prober.follow(self._hosts, self._own)
        self._dirty.set()

    def states(self) -> list[PathState]:
        return self._prober.states()

    def measured(self) -> dict[str, int]:
        """Path MTU by underlay address, where it is known."""
        return {s.address: s.mtu for s in self._states.values() if s.mtu}

    async def settled(self, nodes: Collection[str], seconds: float) -> None:
        """Until the path MTU to each of these hosts is known, or that it does not answer; not longer than `seconds`."""

        def open_question(node: str) -> bool:
            state = self._states.get(node)
            return node in self._hosts and (state is None or not (state.mtu or state.state == "down"))

        if self._keeper is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while any(map(open_question, nodes)):
                    self._heard.clear()
                    await self._heard.wait()

    def touch(self) -> None:
        """Interfaces changed: look at their MTUs again."""
        self._dirty.set()

    # -- news ------------------------------------------------------------------------------------------------

    def _changed(self, news: list[PathState]) -> None:
        for state in news:
            before = self._states.get(state.node)
            self._states[state.node] = state
            name = self._names.get(state.node, state.node)
            if state.state == "down" and (before is None or before.state != "down"):
                log.warning("no answer through the tunnel", host=name, address=state.address)
            elif before is not None and before.state == "down" and state.state != "down":
                log.info("the tunnel is answered again", host=name, address=state.address)
            if before is not None and before.mtu and state.mtu != before.mtu:
                log.warning("path MTU changed", host=name, was=before.mtu, now=state.mtu)
            if state.state in ("ok", "lossy"):
                self._seen.add(state.node)
        self._heard.set()
        if self.measured() != self._set:
            self._dirty.set()
        down = frozenset(n for n, s in self._states.items() if s.state == "down" and n in self._seen)
        if down != self._unreachable:
            self._unreachable = down
            self._on_unreachable(down)
        self._told(news)

    def _look(self) -> None:
        self._spawn(self._look_at_underlay())

    async def _look_at_underlay(self) -> None:
        own = (await self._datapath.look_at_underlay()).mtu
        if own != self._own:
            log.warning("the underlay's MTU changed", was=self._own, now=own)
            self._own = own
            self._prober.follow(self._hosts, own)
            self._dirty.set()

    def _corrupted(self, node: str) -> None:
        self._spawn(self._mend_checksums(node))

    async def _mend_checksums(self, node: str) -> None:
        name = self._names.get(node, node)
        if await self._datapath.leave_checksums_to_the_kernel():
            log.warning(
                "the network card corrupts checksums inside the tunnel: the kernel computes them from now on",
                host=name,
            )
        else:
            log.error(
                "checksums inside the tunnel arrive corrupted, and the card does not let go of them",
                host=name,
            )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        async def quietly() -> None:
            try:
                await work
            except Exception as e:  # nobody waits for it; the prober asks again
                log.warning("could not look after the underlay", error=str(e) or type(e).__name__)

        task = asyncio.create_task(quietly())
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    # -- bringing the host to it -----------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self._pass()
            except Exception as e:
                log.warning("path MTUs could not be applied, will retry", error=str(e))
                await asyncio.sleep(RETRY_SECONDS)
                self._dirty.set()

    async def _pass(self) -> None:
        measured = self.measured()
        if measured != self._set:
            await self._datapath.set_paths(measured)
            self._set = measured
        wanted = {one.endpoint_id: one for one in self._interfaces()}
        for id, one in wanted.items():
            if self._resized.get(id) != one:
                await self._datapath.resize(one.endpoint_id, one.sandbox, one.ifname, one.mtu)
                self._resized[id] = one
        self._resized = {id: one for id, one in self._resized.items() if id in wanted}
