"""A mixed swarm whose Linux hosts run containers with a Docker Engine of their own, through restarts of every part."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from overlace.lab import Lab

from .bed import Docker, Swarm, clis, eventually
from .images import push_images

ONE, TWO, WINDOWS = "linux-1", "linux-2", "windows-1"
WHO = "cgi-bin/who"


@pytest.fixture(scope="module")
def engines() -> Iterator[Lab]:
    lab = Lab.up(f"confd-{os.getpid()}", linux=2, windows=1, runtime="docker")
    try:
        push_images(lab.registry)
        yield lab
    finally:
        lab.down()


@pytest.fixture(scope="module")
def docker(engines: Lab, config: str) -> Docker:
    return Docker(list(clis().values())[-1], engines, config)


@pytest.fixture(scope="module")
def swarm(engines: Lab) -> Swarm:
    return Swarm(engines)


def engine(docker: Docker, host: str, *argv: str) -> str:
    """What `docker` prints when it asks a host's Docker Engine instead of its overlace."""
    return docker("-H", f"unix://{docker.lab.host(host).engine_socket}", *argv)


def hosts_that_answer(swarm: Swarm, entry: str) -> set[str]:
    answers = [swarm.curl(f"http://{swarm.lab.host(entry).address}:8080/{WHO}", seconds=3) for _ in range(2)]
    assert all(answers), f"nobody answers at {entry}"
    return {json.loads(answer)["host"] for answer in answers}


def test_a_mixed_swarm_on_docker_engines_survives_restarts_of_every_part(
    docker: Docker, swarm: Swarm
) -> None:
    registry = swarm.lab.registry
    docker("network", "create", "-d", "overlay", "shop")
    docker("service", "create", "-d", "--name", "order", "--network", "shop", f"{registry}/win:1")
    docker(
        *("service", "create", "-d", "--name", "web", "--replicas", "2", "--replicas-max-per-node", "1"),
        *("--network", "shop", "-p", "8080:80", "--hostname", "{{.Node.Hostname}}", f"{registry}/app:1"),
    )
    assert set(swarm.where("web", 2)) == {ONE, TWO} and set(swarm.where("order", 1)) == {WINDOWS}
    both = {ONE, TWO}

    def all_answer() -> bool:
        return all(hosts_that_answer(swarm, host) == both for host in (ONE, TWO, WINDOWS))

    eventually(all_answer, "both tasks answer at every host, the emulated Windows one included")
    (name,) = engine(docker, TWO, "ps", "--format", "{{.Names}}").split()
    assert (
        name.startswith("web.") and engine(docker, TWO, "network", "ls", "-q", "-f", "driver=overlay") == ""
    )
    # the Windows service by name, from a container that a Docker Engine runs, and the task's log from its engine
    assert "windows" in engine(docker, TWO, "exec", name, "wget", "-qO-", f"http://order/{WHO}")
    eventually(lambda: "says hello" in docker("service", "logs", "web"), "the log of tasks on Docker Engines")

    lab = swarm.lab
    before = {t for t in docker("service", "ps", "-q", "web").split()}
    for number in (signal.SIGTERM, signal.SIGKILL):
        lab.stop_daemon(TWO, number)
        lab.start_host(TWO)
        lab.stop_engine(TWO, number)
        assert hosts_that_answer(swarm, ONE) == both  # the containers and their packets need no engine
        lab.start_engine(TWO)
        eventually(all_answer, f"all answer after {number.name} to overlace and dockerd")
    assert {t for t in docker("service", "ps", "-q", "web").split()} == before

    def no_error() -> bool:
        return not docker("service", "ps", "--format", "{{.Error}}", "web").strip()

    eventually(no_error, "what failed for a moment is no longer told")
    lab.kill_host(TWO)
    lab.start_host(TWO)
    eventually(lambda: set(swarm.where("web", 2)) == both, "the power-cut host runs a task again", 60)
    eventually(all_answer, "all answer after a power cut", 60)
    docker("service", "rm", "web", "order")
    eventually(
        lambda: engine(docker, TWO, "ps", "-aq") == "" == engine(docker, ONE, "ps", "-aq"),
        "containers go",
        30,
    )
    docker("network", "rm", "shop")
