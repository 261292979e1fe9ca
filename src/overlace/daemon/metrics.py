"""`--metrics-addr`: the host's figures for Prometheus, read when they are asked for.

Owns the HTTP server and where each figure comes from. Their names are observe.metrics'.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable

import structlog
from aiohttp import web

from overlace import __version__
from overlace.daemon.host import NodeHost
from overlace.daemon.manager import ManagerSide
from overlace.model.errors import NotLeading, OverlaceError, Unavailable
from overlace.model.netview import NetworkEntry, NodeEntry
from overlace.model.objects import Node, Service, Task
from overlace.network.overlay_documents import guid_of
from overlace.network.vfp.compile import LOCAL_VNI
from overlace.observe.metrics import CONTENT_TYPE, Figures, Fill, Traffic, render

log = structlog.get_logger(__name__)
LAG_SECONDS = 1.0  # between looks at the event loop


async def host_figures(host: NodeHost) -> dict[str, object]:
    """What the host's own half says."""
    view = host.agent.view
    held = await host.driver.held()
    names = {n.vni: n.name for n in view.of(NetworkEntry)} | {LOCAL_VNI: "bridge"}
    network_of = {
        guid_of("endpoint", n.id, e.task_id): n.name
        for n in view.of(NetworkEntry)
        for e in view.endpoints(n.id)
    }
    sums: dict[str, list[int]] = {}
    for c in held.carried:
        into = sums.setdefault(network_of.get(c.endpoint_id, "bridge"), [0, 0, 0, 0])
        for i, n in enumerate((c.received_bytes, c.received_packets, c.sent_bytes, c.sent_packets)):
            into[i] += n
    dropped: Counter[tuple[str, str]] = Counter()
    for (vni, reason), n in held.drops.items():
        dropped[(names.get(vni, ""), reason)] += n
    peers = {n.id: n.hostname for n in view.of(NodeEntry)}
    return {
        "packets": {c.name: c.packets for c in await host.driver.switch.counters()},
        "judged": {
            key: (n.connections, n.packets, n.bytes) for key, n in (await host.driver.switch.judged()).items()
        },
        "drops": dropped,
        "traffic": tuple(Traffic(name, *n) for name, n in sorted(sums.items())),
        "fill": tuple(Fill(table, rows, room) for table, (rows, room) in held.fill.items()),
        "flows": sum(held.fill.get(table, (0, 0))[0] for table in ("unified_flows", "unified_flows6")),
        "paths": {peers.get(p.node, p.node): p for p in host.driver.paths()},
    }


def manager_figures(manager: ManagerSide) -> dict[str, object]:
    """What the manager's half says."""
    view = manager.store.view()
    return {
        "tasks": Counter(t.status.state.word for t in view.all(Task)),
        "nodes": Counter(n.status.state.word for n in view.all(Node) if not n.removed),
        "services": sum(1 for _ in view.all(Service)),
        "store_revision": view.revision,
        "sessions": _sessions(manager),
    }


def _sessions(manager: ManagerSide) -> int:
    try:
        return len(manager.leading.dispatcher.connected())
    except NotLeading:
        return 0


# the daemon's halves as they are now: they come and go
Parts = Callable[[], tuple[NodeHost | None, ManagerSide | None]]


class MetricsServer:
    """GET /metrics. `parts` is asked at each scrape."""

    def __init__(self, hostname: str, parts: Parts) -> None:
        self._hostname = hostname
        self._parts = parts
        self._lag = 0.0
        self._runner: web.AppRunner | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def start(self, address: str) -> None:
        """Raises Unavailable when the address cannot be used."""
        app = web.Application()
        app.router.add_get("/metrics", self._serve)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        host, _, port = address.rpartition(":")
        try:
            await web.TCPSite(self._runner, host.strip("[]"), int(port)).start()
        except OSError as e:
            await self._runner.cleanup()
            raise Unavailable(f"cannot serve --metrics-addr {address}: {e.strerror}; choose another") from e
        self._watcher = asyncio.create_task(self._watch_lag(), name="event loop lag")

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        if self._runner is not None:
            await self._runner.cleanup()

    async def _watch_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self._lag = max(0.0, loop.time() - due)

    async def _serve(self, request: web.Request) -> web.Response:
        figures: dict[str, object] = {}
        side, manager = self._parts()
        try:
            if side is not None:
                figures |= await host_figures(side)
        except (OSError, RuntimeError, KeyError, OverlaceError) as e:  # it is just starting or leaving
            log.info("no figures of the host", error=str(e))
        if manager is not None:
            with contextlib.suppress(Unavailable):  # its store has not opened yet
                figures |= manager_figures(manager)
        known = Figures(**figures, loop_lag=self._lag, version=__version__, node=self._hostname)  # type: ignore[arg-type]
        return web.Response(body=render(known), headers={"Content-Type": CONTENT_TYPE})
