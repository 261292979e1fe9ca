"""Published ports over IPv6 and containers' way out, through the docker CLI: an ingress network with both families."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from overlace.lab import Lab

from .bed import Docker, Swarm, clis, eventually
from .images import push_images

ONE, TWO = "linux-1", "linux-2"
OWN = {ONE: "2001:db8:99::1", TWO: "2001:db8:99::2", "client": "2001:db8:99::200"}
SEEN = {
    name: address.rpartition(":")[2] for name, address in OWN.items()
}  # the app says what is behind the last colon


@pytest.fixture(scope="module")
def both(apart: Lab, config: str) -> Iterator[tuple[Docker, Swarm]]:
    """A swarm of two hosts with IPv6 addresses, whose ingress network has IPv6."""
    device = {}
    for name, address in OWN.items():
        links = json.loads(apart.exec(name, "ip", "-j", "-4", "addr", "show", "scope", "global").stdout)
        device[name] = links[0]["ifname"]
        apart.exec(name, "ip", "addr", "add", f"{address}/64", "dev", device[name], "nodad")
    docker = Docker(list(clis().values())[-1], apart, config)
    docker("swarm", "init")
    token = docker("swarm", "join-token", "-q", "worker")
    docker("swarm", "join", "--token", token, apart.manager.address, host=TWO)
    push_images(apart.registry)
    docker.run("network", "rm", "ingress", stdin="y\n")
    docker("network", "create", "-d", "overlay", "--ingress", "--ipv6", "ingress")
    swarm = Swarm(apart)
    yield docker, swarm
    for service in swarm.get("/services"):
        swarm.call("DELETE", f"/services/{service['ID']}")
    for host in (TWO, ONE):
        docker.run("swarm", "leave", "--force", host=host)
    for name, address in OWN.items():
        apart.exec(name, "ip", "addr", "del", f"{address}/64", "dev", device[name])


def test_any_node_answers_with_the_clients_address_kept(both: tuple[Docker, Swarm]) -> None:
    docker, swarm = both
    image = f"{swarm.lab.registry}/app:1"
    docker("service", "create", "-d", "--name", "web", "--replicas", "2", "-p", "8080:80", image)
    swarm.running("web", 2)
    for name in (ONE, TWO):
        got = [swarm.answers(f"http://[{OWN[name]}]:8080/cgi-bin/who", timeout=30) for _ in range(4)]
        assert {g["client"] for g in got} == {SEEN["client"]} and len({g["host"] for g in got}) == 2
        assert swarm.answers("http://[::1]:8080/cgi-bin/who", host=name)["client"] == SEEN[name]
    [shown] = docker.one("network", "inspect", "ingress")["IPAM"]["Config"][1:]
    assert ":" in shown["Subnet"]
    docker("service", "rm", "web")
    eventually(lambda: not swarm.curl(f"http://[{OWN[ONE]}]:8080/", seconds=1), "the port is given back")


def test_host_mode_and_the_way_out(both: tuple[Docker, Swarm]) -> None:
    docker, swarm = both
    docker("network", "create", "-d", "overlay", "--ipv6", "--attachable", "six")
    image = f"{swarm.lab.registry}/app:1"
    docker(
        *("service", "create", "-d", "--name", "own", "--mode", "global", "--network", "six"),
        *("-p", "mode=host,published=8090,target=80", image),
    )
    tasks = swarm.running("own", 2)
    for name in (ONE, TWO):
        assert swarm.answers(f"http://[{OWN[name]}]:8090/cgi-bin/who", timeout=30)["client"] == SEEN["client"]
        ports = docker("ps", "--filter", "name=own", "--format", "{{.Ports}}", host=name)
        assert ports == "0.0.0.0:8090->80/tcp, [::]:8090->80/tcp"
    one = tasks[0]
    home = swarm.host_of(one)
    away = TWO if home == ONE else ONE
    seen = json.loads(swarm.fetch(one, f"http://[{OWN[away]}]:8090/cgi-bin/who"))
    assert seen["client"] == SEEN[home], "outside, a container has its host's address"
    docker("run", "-d", "--name", "box", "--network", "six", "-p", "8070:80", image)
    assert docker("port", "box", "80").splitlines() == ["0.0.0.0:8070", "[::]:8070"]
    assert swarm.answers(f"http://[{OWN[ONE]}]:8070/cgi-bin/who")["client"] == SEEN["client"]
    docker("rm", "-f", "box")
    docker("service", "rm", "own")
