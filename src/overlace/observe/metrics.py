"""Prometheus metrics of one host and, on a manager, of the swarm: names, help, and their text form.

Owns the names (they are an interface: docs/observability.md lists them). Pure: figures are handed over. Must not read
kernels, stores or clocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from overlace.model.paths import PathState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Traffic(msgspec.Struct, frozen=True):
    """Of one network's containers on this host, as their interfaces count it."""

    network: str
    received_bytes: int
    received_packets: int
    sent_bytes: int
    sent_packets: int


class Fill(msgspec.Struct, frozen=True):
    table: str
    rows: int
    room: int


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """A moment of one host. `packets`: by what became of them; `drops`: (network, reason) -> packets; `paths`: other
    host's name -> what was measured; `tasks`, `nodes`: state -> how many (None: no manager)."""

    packets: Mapping[str, int] = {}
    drops: Mapping[tuple[str, str], int] = {}
    judged: Mapping[tuple[str, str, str], tuple[int, int, int]] = {}
    traffic: tuple[Traffic, ...] = ()
    fill: tuple[Fill, ...] = ()
    flows: int = 0
    paths: Mapping[str, PathState] = {}
    tasks: Mapping[str, int] | None = None
    nodes: Mapping[str, int] | None = None
    services: int = 0
    store_revision: int = 0
    sessions: int = 0
    loop_lag: float = 0.0  # seconds the event loop was late at the last look
    version: str = ""
    node: str = ""  # hostname


def families(f: Figures) -> Iterator[Metric]:
    """Every metric of the host."""
    info = GaugeMetricFamily("overlace_build_info", "The daemon's version.", labels=("version", "node"))
    info.add_metric((f.version, f.node), 1)
    yield info
    yield GaugeMetricFamily(
        "overlace_event_loop_lag_seconds", "How late the event loop was.", value=f.loop_lag
    )
    packets = CounterMetricFamily(
        "overlace_packets", "Packets by what became of them in the data path.", labels=("reason",)
    )
    for reason, n in f.packets.items():
        packets.add_metric((reason,), n)
    yield packets
    drops = CounterMetricFamily(
        "overlace_dropped_packets", "Packets dropped, by network and reason.", labels=("network", "reason")
    )
    for (network, reason), n in sorted(f.drops.items()):
        drops.add_metric((network, reason), n)
    yield drops
    for i, (what, words) in enumerate(
        (
            ("connections", "Connections access rules decided about"),
            ("packets", "Packets of connections access rules decided about"),
            ("bytes", "Bytes of IP packets of connections access rules decided about"),
        )
    ):
        judged = CounterMetricFamily(
            f"overlace_policy_{what}",
            f"{words}, by network, direction as the container sees it, and what the rule says.",
            labels=("network", "direction", "action"),
        )
        for (network, direction, action), counted in sorted(f.judged.items()):
            judged.add_metric((network, direction.lower(), action), counted[i])
        yield judged
    yield from _traffic(f.traffic)
    yield GaugeMetricFamily("overlace_flows", "Unified flows the data path remembers.", value=f.flows)
    rows = GaugeMetricFamily("overlace_table_rows", "Rows in the data path's tables.", labels=("table",))
    room = GaugeMetricFamily("overlace_table_rows_max", "Rows a table can hold.", labels=("table",))
    for fill in f.fill:
        rows.add_metric((fill.table,), fill.rows)
        room.add_metric((fill.table,), fill.room)
    yield rows
    yield room
    yield from _paths(f.paths)
    if f.tasks is not None and f.nodes is not None:
        yield from _swarm(f, f.tasks, f.nodes)


def _traffic(traffic: Iterable[Traffic]) -> Iterator[Metric]:
    for field, unit, words in (
        ("received_bytes", "network_receive_bytes", "Bytes containers received, by network."),
        ("received_packets", "network_receive_packets", "Packets containers received, by network."),
        ("sent_bytes", "network_transmit_bytes", "Bytes containers sent, by network."),
        ("sent_packets", "network_transmit_packets", "Packets containers sent, by network."),
    ):
        family = CounterMetricFamily(f"overlace_{unit}", words, labels=("network",))
        for one in traffic:
            family.add_metric((one.network,), getattr(one, field))
        yield family


def _paths(paths: Mapping[str, PathState]) -> Iterator[Metric]:
    labels = ("peer",)
    up = GaugeMetricFamily("overlace_path_up", "1: the other host answers through the tunnel.", labels=labels)
    rtt = GaugeMetricFamily(
        "overlace_path_rtt_seconds", "Round trip through the tunnel, median.", labels=labels
    )
    loss = GaugeMetricFamily("overlace_path_loss_ratio", "Probes that were not answered.", labels=labels)
    mtu = GaugeMetricFamily("overlace_path_mtu_bytes", "Largest IP packet the underlay takes.", labels=labels)
    for peer, p in sorted(paths.items()):
        up.add_metric((peer,), int(p.state in ("ok", "lossy")))
        loss.add_metric((peer,), p.loss / 100)
        if p.rtt:
            rtt.add_metric((peer,), p.rtt / 1e6)
        if p.mtu:
            mtu.add_metric((peer,), p.mtu)
    yield from (up, rtt, loss, mtu)


def _swarm(f: Figures, tasks: Mapping[str, int], nodes: Mapping[str, int]) -> Iterator[Metric]:
    shown = GaugeMetricFamily("overlace_tasks", "Tasks by state.", labels=("state",))
    for state, n in tasks.items():
        shown.add_metric((state,), n)
    yield shown
    hosts = GaugeMetricFamily("overlace_nodes", "Nodes by state.", labels=("state",))
    for state, n in nodes.items():
        hosts.add_metric((state,), n)
    yield hosts
    yield GaugeMetricFamily("overlace_services", "Services.", value=f.services)
    yield GaugeMetricFamily("overlace_sessions", "Agents connected to this manager.", value=f.sessions)
    yield CounterMetricFamily("overlace_store_commits", "Commits of the store.", value=f.store_revision)


class _Once(Collector):
    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        return families(self._figures)


def render(figures: Figures) -> bytes:
    """The text exposition format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(figures))
    return generate_latest(registry)
