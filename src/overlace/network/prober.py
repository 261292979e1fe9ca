"""The loop that keeps every path to another host measured.

Owns pace (a bounded number of probes a second whatever the number of hosts), jitter, the socket's life and who hears of
news. Must not decide what a probe means (paths.py) nor how it is sent (the data path).
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
import structlog

from overlace.model.objects import VXLAN_PORT
from overlace.model.paths import PathState
from overlace.network.paths import Path, has_drifted, is_news
from overlace.network.probe_message import CHECK, CHECKED, ECHO
from overlace.network.route_there import wrong_with_route

log = structlog.get_logger(__name__)
RATE = 40.0  # plain probes a second and host, at most
PERIOD = 1.0  # seconds between plain probes to one host, at least
DRIFT_SECONDS = 10.0  # between reports of figures alone
LOOK_SECONDS = 10.0  # between looks at the interface's own MTU
JITTER = 0.2


class Message(Protocol):
    @property
    def kind(self) -> int: ...
    @property
    def source(self) -> str: ...
    @property
    def nonce(self) -> int: ...
    @property
    def at(self) -> int: ...


class Socket(Protocol):
    """network/linux/probe.py and network/windows/probe.py have the real ones."""

    def listen(self, arrived: Callable[[], None]) -> None: ...
    def close(self) -> None: ...
    def send(
        self, kind: int, target: str, nonce: int, size: int = ..., *, checksum: bool = ..., slow: bool = ...
    ) -> int: ...
    def receive(self) -> Message | None: ...


class Prober:
    """`start`, `follow` whenever the hosts change, `close`. `changed` is called with what is news, once per batch;
    `corrupted` when a path's checksums are (the network card's work is to be taken from it). `checks`: whether checksums
    and fragments are tried."""

    def __init__(
        self,
        changed: Callable[[list[PathState]], None],
        corrupted: Callable[[str], None],
        look: Callable[[], None] = lambda: None,
        *,
        checks: bool = True,
        clock: Callable[[], int] = time.time_ns,
        rng: random.Random | None = None,
    ) -> None:
        self._changed = changed
        self._corrupted = corrupted
        self._look = look
        self._checks = checks
        self._clock = clock
        self._rng = rng or random.Random()
        self._socket: Socket | None = None
        self._paths: dict[str, Path] = {}  # by node id
        self._told: dict[str, PathState] = {}
        self._since: dict[str, tuple[str, int]] = {}  # node -> (state, since ns)
        self._sent: dict[int, tuple[str, int]] = {}  # nonce -> (node, ns)
        self._due: list[tuple[float, str]] = []
        self._widest = 1500
        self._wake = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._drift_at = 0.0
        self._look_at = 0.0

    # -- what the driver calls -------------------------------------------------------------------------------

    def start(self, socket: Socket) -> None:
        self._socket = socket
        socket.listen(self._read)
        self._drift_at = self._look_at = self._now()
        self._runner = asyncio.create_task(self._run(), name="path probes")

    async def close(self) -> None:
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
            self._runner = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def follow(self, hosts: Mapping[str, str], widest: int) -> None:
        """The other hosts, node id -> underlay address, and this host's own underlay MTU."""
        now = self._now()
        self._widest = widest
        for node in [n for n, p in self._paths.items() if hosts.get(n) != p.address]:
            del self._paths[node]
            self._told.pop(node, None)
            self._since.pop(node, None)
        period = max(PERIOD, len(hosts) / RATE)
        for node, address in hosts.items():
            path = self._paths.get(node)
            if path is None:
                first = now + self._rng.random() * period
                self._paths[node] = path = Path(node, address, widest, first, checks=self._checks)
                heapq.heappush(self._due, (first, node))
            path.period = period
            path.resize(widest, now)
        self._wake.set()

    def states(self) -> list[PathState]:
        """Every path as it is now."""
        return [self._report(path) for path in self._paths.values()]

    # -- the loop --------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _run(self) -> None:
        while True:
            try:
                self._step()
            except Exception:
                log.exception("probing failed, going on")
                await asyncio.sleep(1.0)
            pause = max(0.01, min(self._due[0][0] - self._now(), 1.0)) if self._due else 1.0
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    def _step(self) -> None:
        self._read()  # what waits has arrived: it must not be given up
        now = self._now()
        touched: set[str] = set()
        while self._due and self._due[0][0] <= now:
            _, node = heapq.heappop(self._due)
            path = self._paths.get(node)
            if path is None or node in touched:
                continue
            touched.add(node)
            path.expire(now)
            self._send(path, now)
        for node in touched:
            self._schedule(node)
        self._tell(touched)
        if now >= self._drift_at:
            self._drift_at = now + DRIFT_SECONDS
            self._tell(set(self._paths), drift=True)
            self._sent = {n: v for n, v in self._sent.items() if self._clock() - v[1] < 10_000_000_000}
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look()

    def _schedule(self, node: str) -> None:
        path = self._paths.get(node)
        if path is not None:
            heapq.heappush(self._due, (path.due_at(), node))

    def _send(self, path: Path, now: float) -> None:
        assert self._socket is not None
        for probe in path.plan(now):
            nonce = self._rng.getrandbits(63)
            kind = CHECK if probe.kind.startswith("check") else ECHO
            plain, slow = probe.kind == "check-plain", probe.kind == "check-slow"
            at = self._socket.send(kind, path.address, nonce, probe.size, checksum=not plain, slow=slow)
            self._sent[nonce] = (path.node, at)
            path.sent(nonce, probe, now)
        # hosts that started together must not go on in step
        path.period = max(PERIOD, len(self._paths) / RATE) * self._rng.uniform(1 - JITTER, 1 + JITTER)

    def _read(self) -> None:
        if self._socket is None:
            return
        touched: set[str] = set()
        now = self._now()
        while (message := self._socket.receive()) is not None:
            if message.kind == CHECK:  # the kernel has verified its checksum
                self._socket.send(CHECKED, message.source, message.nonce)
                continue
            found = self._sent.pop(message.nonce, None)
            path = self._paths.get(found[0]) if found is not None else None
            if found is None or path is None or message.source != path.address:
                continue
            if path.answered(message.nonce, max(1, (message.at - found[1]) // 1000), now):
                touched.add(path.node)
        for node in touched:
            self._schedule(node)
        if touched:
            self._wake.set()
        self._tell(touched)

    # -- news ------------------------------------------------------------------------------------------------

    def _report(self, path: Path) -> PathState:
        state = path.report()
        if state.state == "down":
            state = msgspec.structs.replace(state, route=wrong_with_route(path.address, VXLAN_PORT))
        was = self._since.get(path.node)
        if was is None or was[0] != state.state:
            was = self._since[path.node] = (state.state, self._clock())
        return msgspec.structs.replace(state, since=was[1])

    def _tell(self, nodes: set[str], *, drift: bool = False) -> None:
        news = []
        for node in nodes:
            path = self._paths.get(node)
            if path is None:
                continue
            state, before = self._report(path), self._told.get(node)
            if is_news(before, state) or (drift and before is not None and has_drifted(before, state)):
                self._told[node] = state
                news.append(state)
                if state.checksum == "bad" and (before is None or before.checksum != "bad"):
                    self._corrupted(node)
        if news:
            self._changed(news)
