"""The text Prometheus reads: names, labels, and that a standard parser takes it."""

from __future__ import annotations

from types import SimpleNamespace

import aiohttp
from network.world import HOST, ME, OTHER, endpoint, network, node
from prometheus_client.parser import text_string_to_metric_families

from overlace.daemon.metrics import MetricsServer, host_figures
from overlace.model.netview import NetView, NodeEntry
from overlace.model.paths import PathState
from overlace.network.counted import Carried, Held
from overlace.network.overlay_documents import guid_of
from overlace.network.vfp.reasons import Counter, explain_counters
from overlace.network.vfp.show import HitsShown
from overlace.observe.metrics import Figures, Fill, Traffic, render

FIGURES = Figures(
    packets={"delivered": 12, "drop_policy": 3},
    drops={("shop", "drop_policy"): 3},
    traffic=(Traffic("shop", 1000, 10, 2000, 20),),
    fill=(Fill("endpoints", 7, 262144),),
    flows=4,
    paths={
        "linux-2": PathState(node="n2", address="10.0.0.2", state="ok", rtt=250, mtu=1500),
        'od"d': PathState(node="n3", address="10.0.0.3", state="down", loss=100),
    },
    tasks={"running": 5},
    nodes={"ready": 2, "down": 1},
    store_revision=77,
)


def values(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (s.name, tuple(s.labels.values())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_every_figure_has_its_name_and_unit() -> None:
    found = values(render(FIGURES).decode())
    assert found[("overlace_packets_total", ("drop_policy",))] == 3
    assert found[("overlace_dropped_packets_total", ("shop", "drop_policy"))] == 3
    assert found[("overlace_network_receive_bytes_total", ("shop",))] == 1000
    assert found[("overlace_network_transmit_packets_total", ("shop",))] == 20
    assert found[("overlace_table_rows", ("endpoints",))] == 7
    assert found[("overlace_path_rtt_seconds", ("linux-2",))] == 0.00025
    assert found[("overlace_path_mtu_bytes", ("linux-2",))] == 1500
    assert found[("overlace_nodes", ("down",))] == 1
    assert found[("overlace_store_commits_total", ())] == 77


def test_a_path_without_answers_has_no_round_trip_and_any_name_is_escaped() -> None:
    found = values(render(FIGURES).decode())
    assert found[("overlace_path_up", ('od"d',))] == 0
    assert ("overlace_path_rtt_seconds", ('od"d',)) not in found


def test_a_worker_says_nothing_of_the_swarm() -> None:
    assert b"overlace_tasks" not in render(Figures())


async def test_the_address_serves_it_whatever_runs() -> None:
    server = MetricsServer("here", lambda: (None, None))
    await server.start("127.0.0.1:19323")
    try:
        async with aiohttp.ClientSession() as client:
            answer = await client.get("http://127.0.0.1:19323/metrics")
            assert answer.headers["Content-Type"].startswith("text/plain")
            assert 'node="here"' in await answer.text()
    finally:
        await server.close()


async def test_a_hosts_figures_are_named_by_network_and_peer() -> None:
    guid = guid_of("endpoint", "back", "t1")

    async def held() -> Held:
        return Held(
            (Carried(guid, 100, 1, 200, 2), Carried("OTHER", 1, 1, 1, 1)),
            {(4097, "drop_policy"): 4, (77, "drop_garbage"): 1},
            {"endpoints": (3, 262144), "unified_flows": (9, 65536)},
        )

    async def judged() -> dict[tuple[str, str, str], HitsShown]:
        return {("back", "IN", "block"): HitsShown(connections=2, packets=3, bytes=120)}

    async def counters() -> list[Counter]:
        return explain_counters({"delivered": 5})

    view = NetView(
        [
            network("back", 4097, 1),
            node(ME, HOST),
            node(OTHER, "10.0.0.2"),
            endpoint("t1", "back", ME, "10.0.1.7"),
        ]
    )
    paths = [PathState(node=OTHER, address="10.0.0.2", state="ok", rtt=300)]
    host = SimpleNamespace(
        agent=SimpleNamespace(view=view),
        driver=SimpleNamespace(
            held=held, switch=SimpleNamespace(counters=counters, judged=judged), paths=lambda: paths
        ),
    )
    figures = Figures(**await host_figures(host))  # type: ignore[arg-type]
    found = values(render(figures).decode())
    assert found[("overlace_network_receive_bytes_total", ("back",))] == 100
    assert found[("overlace_network_transmit_bytes_total", ("bridge",))] == 1
    assert found[("overlace_dropped_packets_total", ("back", "drop_policy"))] == 4
    assert found[("overlace_dropped_packets_total", ("", "drop_garbage"))] == 1
    assert found[("overlace_policy_packets_total", ("block", "in", "back"))] == 3
    assert found[("overlace_policy_connections_total", ("block", "in", "back"))] == 2
    assert found[("overlace_flows", ())] == 9
    peer = next(n.hostname for n in view.of(NodeEntry) if n.id == OTHER)
    assert found[("overlace_path_rtt_seconds", (peer,))] == 0.0003
