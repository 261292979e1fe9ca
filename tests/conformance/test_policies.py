"""Who may speak to whom, session affinity and rate limits: from a file or a label to packets on every host."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .bed import Docker, Swarm, eventually, overlace, overlay_address

Image = Callable[[str], str]
WHO = "cgi-bin/who"


@pytest.fixture(scope="module", autouse=True)
def town(anydocker: Docker, swarm: Swarm, image: Image) -> Iterator[None]:
    """`asker` and `guarded` on every host; guarded is published on 8095."""
    create = ("service", "create", "-d", "--network", "walled", "--mode", "global", "--hostname")
    anydocker("network", "create", "-d", "overlay", "walled")
    anydocker(*create, "{{.Node.Hostname}}", "--name", "asker", image("multi:1"))
    anydocker(*create, "{{.Node.Hostname}}", "--name", "guarded", "-p", "8095:80", image("multi:1"))
    for name in ("asker", "guarded"):
        swarm.running(name, 3)
    yield
    for name in ("asker", "guarded"):
        anydocker("service", "rm", name)
    anydocker("network", "rm", "walled")


@pytest.fixture
def askers(swarm: Swarm) -> dict[str, Any]:
    return {host: tasks[0] for host, tasks in swarm.where("asker", 3).items()}


def dropped(swarm: Swarm, host: str, name: str = "drop_policy") -> int:
    found = swarm.get("/overlace/v1/vfp/counters", host=host)
    return int(next(c["Packets"] for c in found if c["Name"] == name))


def asks(swarm: Swarm, asker: Any, where: str = "guarded") -> str:
    said = swarm.fetch(asker, f"http://{where}/{WHO}", 1)
    return str(json.loads(said)["host"]) if said else ""


def test_a_file_of_policies(anydocker: Docker, swarm: Swarm, askers: dict[str, Any], tmp_path: Path) -> None:
    for host, asker in askers.items():
        eventually(lambda asker=asker: asks(swarm, asker), f"{host} reaches guarded")
    policy = tmp_path / "policy.yml"
    policy.write_text("services:\n  guarded:\n    allow-from: [ingress:tcp/80]\n")
    assert "guarded: +overlace.policy.allow-from=ingress:tcp/80" in overlace(
        anydocker, "policy", "apply", "-f", str(policy)
    )
    for host, asker in askers.items():
        eventually(lambda asker=asker: not asks(swarm, asker), f"{host} is kept from guarded")
    address = swarm.lab.host("linux-2").address
    assert swarm.answers(f"http://{address}:8095/{WHO}"), "clients outside are let in"
    # the sender's host refuses: nothing of it gets to the other
    there = next(t for t in swarm.running("guarded", 3) if swarm.host_of(t) == "linux-2")
    before = {host: dropped(swarm, host) for host in ("linux-1", "linux-2")}
    assert not asks(swarm, askers["linux-1"], overlay_address(there, "walled"))
    assert dropped(swarm, "linux-1") > before["linux-1"]
    assert dropped(swarm, "linux-2") == before["linux-2"]
    # both sides must allow
    policy.write_text(
        "services:\n  guarded: {allow-from: asker}\n  asker: {allow-to: 'guarded:tcp/80', egress-limit: 100mbit}\n"
    )
    overlace(anydocker, "policy", "apply", "-f", str(policy))
    for host, asker in askers.items():
        eventually(lambda asker=asker: asks(swarm, asker), f"{host} reaches guarded again")
    assert "allow-to:\n    - guarded:tcp/80" in overlace(anydocker, "policy", "show")
    trace = overlace(anydocker, "trace", "asker", "guarded", "--json")
    assert any("QOS_LAYER" in hop["What"] for hop in json.loads(trace)["Hops"])
    policy.write_text("services:\n  asker: {allow-to: none}\n")
    overlace(anydocker, "policy", "apply", "-f", str(policy))
    for host, asker in askers.items():
        eventually(lambda asker=asker: not asks(swarm, asker), f"{host} may open nothing")
    policy.write_text("services: {}\n")
    overlace(anydocker, "policy", "apply", "--prune", "-f", str(policy))
    for host, asker in askers.items():
        eventually(lambda asker=asker: asks(swarm, asker), f"{host} is free")
    assert overlace(anydocker, "policy", "show") == "services: {}\n"


def test_a_client_keeps_its_task(anydocker: Docker, swarm: Swarm, askers: dict[str, Any]) -> None:
    def seen(ask: Callable[[], str]) -> set[str]:
        return {eventually(ask, "guarded answers") for _ in range(9)}

    url = f"http://{swarm.lab.host('linux-1').address}:8095/{WHO}"

    def outside() -> str:
        said = swarm.curl(url)
        return str(json.loads(said)["host"]) if said else ""

    assert len(seen(lambda: asks(swarm, askers["linux-1"]))) == 3 and len(seen(outside)) == 3
    label = "overlace.session-affinity=client-ip"
    anydocker("service", "update", "-d", "--label-add", label, "guarded")
    for ask in (*(lambda a=a: asks(swarm, a) for a in askers.values()), outside):
        eventually(lambda ask=ask: len(seen(ask)) == 1, "every client keeps its task")
    anydocker("service", "update", "-d", "--label-rm", label.partition("=")[0], "guarded")
    eventually(lambda: len(seen(outside)) == 3, "and not any more")


def test_labels_that_mean_nothing_are_refused(anydocker: Docker, image: Image) -> None:
    for label, words in (
        ("overlace.policy.allow-to=ingress", "ingress belongs to the other label; here it is internet"),
        ("overlace.session-affinity=cookie", "write client-ip, client-ip:SECONDS or none"),
        ("overlace.egress-limit=fast", "write 8kbit to 100gbit"),
    ):
        assert words in anydocker.refused("service", "update", "-d", "--label-add", label, "guarded")
    refused = anydocker.refused(
        "network", "create", "-d", "overlay", "--label", "overlace.policy.allow-from=web:80", "w2"
    )
    assert "'80' is no protocol" in refused
