"""Docker's predefined networks: listed on every host, and a service on each of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .bed import Docker, Swarm

Image = Callable[[str], str]


def test_they_are_listed_and_shown(docker: Docker, swarm: Swarm) -> None:
    listed = {
        line.split()[0]: line.split()[1:]
        for line in docker.lines("network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}")
    }
    assert listed["bridge"] == ["bridge", "local"]
    assert listed["host"] == ["host", "local"] and listed["none"] == ["null", "local"]
    shown = docker.one("network", "inspect", "host")
    assert (shown["Driver"], shown["Scope"], len(shown["Id"])) == ("host", "local", 64)
    assert "pre-defined network and cannot be removed" in docker.refused("network", "rm", "none")
    assert "operation is not permitted on predefined host network" in docker.refused(
        "network", "create", "-d", "overlay", "host"
    )


def test_a_service_on_the_hosts_own_network(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker(
        *("service", "create", "-d", "--name", "near", "--network", "host", "--mode", "global"),
        *("--constraint", "node.platform.os==linux", image("app:1")),
    )
    for task in swarm.running("near", 2):
        host = swarm.host_of(task)
        assert "NetworksAttachments" not in task or not task["NetworksAttachments"]
        address = swarm.lab.host(host).address
        assert f" {address}/" in swarm.inside(task, "ip -4 addr"), "it sees the host's own interfaces"
        assert swarm.inside(task, "hostname") == host
        assert swarm.curl(f"http://{address}/cgi-bin/who"), "and has the host's ports"
        assert "127.0.0.11" not in swarm.inside(task, "cat /etc/resolv.conf")
        shown = swarm.inspect(task)
        assert shown["HostConfig"]["NetworkMode"] == "host" and list(
            shown["NetworkSettings"]["Networks"]
        ) == ["host"]
    found = docker.one("service", "inspect", "near")
    assert found["Spec"]["TaskTemplate"]["Networks"] == [{"Target": "host"}]
    assert "host" in docker("service", "inspect", "--pretty", "near")
    said = docker.refused("service", "update", "-d", "--publish-add", "8080:80", "near")
    assert "conflicting options: port publishing and network host" in said


@pytest.mark.parametrize(("network", "interfaces"), [("none", 1), ("bridge", 2)])
def test_a_service_alone(docker: Docker, swarm: Swarm, image: Image, network: str, interfaces: int) -> None:
    docker("service", "create", "-d", "--name", "alone", "--network", network, image("app:1"))
    [task] = swarm.running("alone")
    assert len(swarm.inside(task, "ip -o link").splitlines()) == interfaces
    assert list(swarm.inspect(task)["NetworkSettings"]["Networks"]) == [network]


def test_a_windows_host_has_no_network_host(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker("service", "create", "-d", "--name", "far", "--network", "host", image("win:1"))
    swarm.pending("far", "a Windows host has no network host")
