"""`overlace vfp` against a server on a socket: what is programmed on a host, as people see it."""

from __future__ import annotations

import asyncio
import json
import sys

import msgspec
import pytest
from click.testing import CliRunner, Result
from network.test_mutations import rich
from network.world import HOST, running

from overlace.api.routes.vfp import show_flow
from overlace.cli.main import cli, main
from overlace.model.errors import NotFound
from overlace.network.balancing import Balancing
from overlace.network.counted import Hit
from overlace.network.hns.documents import HostComputeEndpoint
from overlace.network.overlay_documents import guid_of
from overlace.network.switch import Switch
from overlace.network.vfp.access import NO_RULE
from overlace.network.vfp.compile import compile_all
from overlace.network.vfp.flows import UnifiedFlow
from overlace.network.vfp.model import Packet
from overlace.network.vfp.tables import AccessList

from .conftest import Api
from .doubles import FakeBackend

BACK = guid_of("endpoint", "back", "t1")


async def counts() -> dict[str, int]:
    return {"delivered": 12, "drop_isolation": 3, "drop_arp": 0}


def flow(point: str, to: str, size: int) -> UnifiedFlow:
    packet = Packet("10.0.1.9", "10.0.1.10", 6, 40000, 80)
    return UnifiedFlow(
        point=point, ifindex=7, came=packet, went=packet, verdict="deliver", vni=4097, from_provider="",
        provider_address="", to_ifindex=8, mac="02:42:0a:00:01:0a", packets=1, bytes=size, idle=0, generation=1,
        current=True, to_endpoint=to,
    )  # fmt: skip


async def flows() -> list[UnifiedFlow]:
    return [flow("host", "", 10), flow(BACK, "", 20), flow("tunnel", BACK, 30)]


async def test_flows_of_a_port_are_those_from_and_to_it() -> None:
    switch = Switch(running().hns.state, HOST, counts, flows)
    assert [f.bytes for f in await switch.flows()] == [30, 20, 10]
    assert [f.bytes for f in await switch.flows("10.0.1.9")] == [30, 20]
    with pytest.raises(NotFound, match="no port 'nobody'"):
        await switch.flows("nobody")


def test_addresses_of_either_family_are_told_from_ports() -> None:
    six = Packet("fd00::9", "fd00::a", 132, 40000, 80)
    came = show_flow(msgspec.structs.replace(flow("host", "", 1), came=six), {})["Came"]
    assert came == "[fd00::9]:40000 > [fd00::a]:80 sctp"
    assert show_flow(flow("host", "", 1), {})["Came"] == "10.0.1.9:40000 > 10.0.1.10:80 tcp"


@pytest.fixture
def host(backend: FakeBackend, server: str, monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    backend.switch = Switch(running().hns.state, HOST, counts, flows)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{server}")
    return backend


async def overlace(*words: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, cli, ["vfp", *words])


async def test_ports_and_their_layers(host: FakeBackend) -> None:
    listed = await overlace("ports")
    (line,) = (x for x in listed.stdout.splitlines() if x.startswith(BACK))
    assert {"web.1.t1", "back", "4097", "10.0.1.9/24", "Enabled"} <= set(line.split())
    assert "Services are balanced" not in listed.stdout  # by a switch that does not say
    level = Balancing("packet", "no cgroup v2 is mounted")
    host.switch = Switch(running().hns.state, HOST, counts, flows, balancing=lambda: level)
    said = (await overlace("ports")).stdout
    assert "Services are balanced at the packet level (no cgroup v2 is mounted)." in said
    assert json.loads((await overlace("ports", "--json")).stdout)[0]["Balancing"] == level.words
    (port,) = json.loads((await overlace("layers", "10.0.1.9", "--json")).stdout)
    assert port["Layers"][0]["Name"] == "FW_ADMIN_LAYER_ID"
    shown = (await overlace("layers", "web.1")).stdout
    assert shown.count("VNET_ENCAP_LAYER") == 2  # on two networks


async def test_rules_as_vfpctrl_prints_them(host: FakeBackend) -> None:
    shown = (await overlace("rules", BACK, "--layer", "slb_lb_layer")).stdout
    assert "LAYER : SLB_LB_LAYER" in shown and "FW_ADMIN" not in shown
    rule = shown[shown.index("RULE : LB_web_10.0.1.5") :]
    assert "Destination IP : 10.0.1.5/32" in rule and "balance over 10.0.1." in rule
    wrong = await overlace("rules", BACK, "--layer", "NONE")
    assert wrong.exit_code == 2 and "overlace vfp layers" in wrong.output


async def test_counters_say_what_they_count(host: FakeBackend) -> None:
    shown = (await overlace("counters")).stdout
    assert "12" in shown and "drop_isolation" in shown and "not on that network" in shown
    assert "drop_arp" not in shown and "drop_arp" in (await overlace("counters", "--all")).stdout


async def test_rules_have_the_packets_that_count_for_them(host: FakeBackend) -> None:
    world = rich()
    endpoint = world.hns.get(HostComputeEndpoint, guid_of("endpoint", "back", "t5"))
    tables = compile_all(world.hns.state, HOST)
    (into,) = (
        x for x in tables if isinstance(x, AccessList) and (x.address, x.direction) == ("10.0.1.13", "IN")
    )
    blocked = next(i for i, r in enumerate(into.rules) if r.action == "block" and r.local_ports == (90, 99))
    last = next(i for i, r in enumerate(into.rules) if r.remote == ("10.0.1.8/29",))

    async def hits() -> list[Hit]:
        return [
            Hit(into.number, 7, 0, 1, 5, 300, endpoint.id),  # the tier's rule that passes
            Hit(into.number, 7, blocked, 2, 2, 80, endpoint.id),  # one of the two ranges of its rule
            Hit(into.number, 7, blocked - 1, 1, 1, 40, endpoint.id),
            Hit(into.number, 7, last, 1, 5, 300, endpoint.id),
            Hit(into.number, 7, NO_RULE, 4, 4, 160, endpoint.id),
            Hit(into.number + 2, 7, 0, 9, 9, 9, endpoint.id),  # of the list before this one
        ]

    host.switch = switch = Switch(world.hns.state, HOST, counts, flows, hits=hits)
    found = json.loads((await overlace("counters", endpoint.id, "--json")).stdout)
    assert [(r["Group"], r["Type"], r["Hits"]["Packets"], r["Hits"]["Connections"]) for r in found] == [
        ("FW_first_IN", "pass", 5, 1),
        ("FW_first_IN", "block", 3, 3),
        ("FW_ACL_IN", "allow", 5, 1),
        ("FW_IN", "block", 4, 4),
    ]
    assert "1 connection, 5 packets, 300 bytes" in (await overlace("rules", endpoint.id)).stdout
    assert "FW" not in (await overlace("counters", "web.1")).stdout, "nothing judges it inbound"
    judged = await switch.judged()
    assert {key: (h.connections, h.packets) for key, h in judged.items()} == {
        ("back", "IN", "allow"): (1, 5),
        ("back", "IN", "block"): (7, 7),
    }


async def test_refusals_are_one_sentence(
    host: FakeBackend, api: Api, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            await asyncio.to_thread(main, ["vfp", *words])
        assert ended.value.code == 1
        return capsys.readouterr().err

    monkeypatch.setattr(sys, "argv", ["overlace"])
    assert await fails("rules", "nobody") == (
        "overlace: no port 'nobody' on this host: `overlace vfp ports` lists them\n"
    )
    host.switch = None
    assert "takes part in no swarm" in await fails("ports")
    assert "no answer from /nowhere" in await fails("ports", "-H", "unix:///nowhere")
    assert "use unix:///path/to/socket or tcp://HOST:PORT" in await fails("ports", "-H", "ssh://host")
    status, body, _ = await api("GET", "/overlace/v1/vfp/ports")
    assert status == 503 and "docker swarm init" in body["message"]


async def test_flows_say_what_they_cannot_show(host: FakeBackend) -> None:
    said = await overlace("flows")
    assert "less than eight packets" in said.stderr and "less than" not in said.stdout

    async def watched() -> int:
        return 17

    host.switch = Switch(running().hns.state, HOST, counts, flows, watched=watched)
    assert (await overlace("flows", "--json")).stderr == ""


async def test_drops_are_followed_like_flows(host: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped, looks = {(4097, "drop_policy"): 2, (4096, "drop_arp"): 1}, 0

    async def drops() -> dict[tuple[int, str], int]:
        return dropped

    def between_looks(seconds: float) -> None:
        nonlocal looks
        looks += 1
        dropped[4097, "drop_policy"] += 3
        dropped[4096, "drop_arp"] += 1
        if looks == 2:
            raise KeyboardInterrupt

    host.switch = Switch(running().hns.state, HOST, counts, flows, drops)
    monkeypatch.setattr("overlace.cli.vfp.time.sleep", between_looks)
    said = [x for x in (await overlace("flows", "--follow", "10.0.1.9")).stdout.splitlines() if "drop" in x]
    assert len(said) == 1 and said[0].startswith("dropped drop_policy  network back  packets 3"), said


async def test_a_flow_names_the_port_it_goes_to(host: FakeBackend) -> None:
    shown = await overlace("flows")
    assert "web.1.t1" in shown.stdout and BACK not in shown.stdout
    found = json.loads((await overlace("flows", "--json")).stdout)
    assert {(f["To"], f["ToName"]) for f in found if f["To"]} == {(BACK, "web.1.t1")}, "scripts have the GUID"
