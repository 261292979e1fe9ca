"""Crashes of daemons and hosts: what runs goes on, packets flow, and who comes back finds everything again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from overlace.lab import Lab

from .bed import Docker, Swarm, clis, eventually
from .images import push_images

ONE, TWO = "linux-1", "linux-2"
WHO = "cgi-bin/who"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def broken(apart: Lab, config: str) -> Iterator[Swarm]:
    """A swarm of two hosts to crash."""
    docker = Docker(list(clis().values())[-1], apart, config)
    docker("swarm", "init")
    token = docker("swarm", "join-token", "-q", "worker")
    docker("swarm", "join", "--token", token, apart.manager.address, host=TWO)
    push_images(apart.registry)
    yield Swarm(apart)
    for host in (ONE, TWO):
        apart.start_host(host)
    for host in (TWO, ONE):
        docker.run("swarm", "leave", "--force", host=host)


@pytest.fixture
def docker(broken: Swarm, config: str) -> Iterator[Docker]:
    docker = Docker(list(clis().values())[-1], broken.lab, config)
    for host in (ONE, TWO):
        broken.lab.start_host(host)
    ready(broken)
    heartbeat(docker, 5)
    yield docker
    for host in (ONE, TWO):
        broken.lab.start_host(host)
    eventually(lambda: broken.lab.answers(ONE), "the manager answers")
    for service in broken.get("/services"):
        broken.call("DELETE", f"/services/{service['ID']}")


def ready(swarm: Swarm) -> None:
    eventually(
        lambda: all(node["Status"]["State"] == "ready" for node in swarm.nodes().values()),
        "both nodes are ready",
    )


def deploy(docker: Docker, swarm: Swarm) -> dict[str, list[Json]]:
    """Two replicas, one on each host, behind port 8080."""
    docker(
        *("service", "create", "-d", "--name", "web", "--replicas", "2", "--replicas-max-per-node", "1"),
        *(
            "-p",
            "8080:80",
            "--restart-delay",
            "0s",
            "--hostname",
            "{{.Node.Hostname}}",
            f"{swarm.lab.registry}/app:1",
        ),
    )
    where = swarm.where("web", 2)
    assert set(where) == {ONE, TWO}
    for host in (ONE, TWO):
        for _ in range(2):
            swarm.answers(f"http://{swarm.lab.host(host).address}:8080/{WHO}")
    return where


def containers(swarm: Swarm, where: dict[str, list[Json]]) -> dict[str, tuple[str, int, str]]:
    """(id, pid, start) of the one container on each host."""
    found = {}
    for host, [task] in where.items():
        shown = swarm.inspect(task)
        found[host] = (shown["Id"], shown["State"]["Pid"], shown["State"]["StartedAt"])
    return found


@contextmanager
def requests(swarm: Swarm, host: str) -> Iterator[list[str]]:
    """Requests of the client through a host's published port, one after the other; their answers."""
    answers: list[str] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            answers.append(swarm.curl(f"http://{swarm.lab.host(host).address}:8080/{WHO}", seconds=2))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield answers
    finally:
        done.set()
        asking.join(20)


def more(answers: list[str], count: int = 10) -> None:
    """Wait for that many more answers."""
    wanted = len(answers) + count
    eventually(lambda: len(answers) >= wanted, f"{count} more requests were answered", 30)


def heartbeat(docker: Docker, seconds: int) -> None:
    """A node counts as down after three of these without a word."""
    docker("swarm", "update", "--dispatcher-heartbeat", f"{seconds}s")


def lost(answers: list[str]) -> int:
    return answers.count("")


def test_a_workers_daemon_is_killed(docker: Docker, broken: Swarm) -> None:
    swarm, lab = broken, broken.lab
    where = deploy(docker, swarm)
    before = containers(swarm, where)
    with requests(swarm, TWO) as answers:
        lab.stop_daemon(TWO, signal.SIGKILL)
        assert not lab.answers(TWO)
        more(answers, 20)
        for id, pid, _ in before.values():
            assert os.path.exists(f"/proc/{pid}"), f"container {id[:12]} did not survive"
        lab.start_host(TWO)
        ready(swarm)
        more(answers)
        assert containers(swarm, swarm.where("web", 2)) == before, "the same containers, not restarted"
    assert lost(answers) == 0, f"{lost(answers)} of {len(answers)} requests were lost"
    assert {task["ID"] for tasks in where.values() for task in tasks} == {
        t["ID"] for t in swarm.running("web", 2)
    }
    assert [c["Id"] for c in swarm.containers(TWO)] == [before[TWO][0]], "docker ps shows it again"
    assert docker("logs", before[TWO][0], host=TWO) == "app 1 says hello", "with its log"
    docker("service", "update", "-d", "--replicas-max-per-node", "2", "--replicas", "4", "web")
    assert len(swarm.where("web", 4)[TWO]) == 2, "and takes new tasks"


def test_the_managers_daemon_is_killed(docker: Docker, broken: Swarm) -> None:
    swarm, lab = broken, broken.lab
    docker("network", "create", "-d", "overlay", "kept")
    docker("secret", "create", "kept", "-", stdin="x")
    where = deploy(docker, swarm)
    before = containers(swarm, where)
    nodes = {name: node["ID"] for name, node in swarm.nodes().items()}
    with requests(swarm, ONE) as answers:
        lab.stop_daemon(ONE, signal.SIGKILL)
        assert "Cannot connect to the Docker daemon" in docker.refused("service", "ls")
        more(answers, 20)
        lab.start_host(ONE)
        ready(swarm)
        more(answers)
    assert lost(answers) == 0, f"{lost(answers)} of {len(answers)} requests were lost"
    assert {name: node["ID"] for name, node in swarm.nodes().items()} == nodes
    assert docker("network", "ls", "-f", "name=kept", "--format", "{{.Name}}") == "kept"
    assert docker("secret", "ls", "--format", "{{.Name}}") == "kept"
    assert containers(swarm, swarm.where("web", 2)) == before, "the same containers, not restarted"
    docker(
        "service",
        "create",
        "-d",
        "--name",
        "new",
        "--replicas",
        "2",
        "--network",
        "kept",
        f"{lab.registry}/app:1",
    )
    assert set(swarm.where("new", 2)) == {ONE, TWO}, "both hosts take new tasks"
    docker("service", "rm", "new")
    docker("secret", "rm", "kept")
    eventually(lambda: docker.run("network", "rm", "kept").returncode == 0, "the network can be removed")


def test_a_container_that_ends_while_its_daemon_is_down(docker: Docker, broken: Swarm) -> None:
    swarm, lab = broken, broken.lab
    where = deploy(docker, swarm)
    before = containers(swarm, where)
    lab.stop_daemon(TWO, signal.SIGKILL)
    os.kill(before[TWO][1], signal.SIGKILL)
    eventually(lambda: not os.path.exists(f"/proc/{before[TWO][1]}"), "the container's process is gone")
    lab.start_host(TWO)

    def replaced() -> bool:
        after = containers(swarm, swarm.where("web", 2))
        return after[TWO][0] != before[TWO][0] and after[ONE] == before[ONE]

    eventually(replaced, "what ended is noticed and replaced, the other left alone")
    said = docker(
        "service", "ps", "web", "-f", "desired-state=shutdown", "--no-trunc", "--format", "{{.Error}}"
    )
    assert "non-zero exit (137)" in said


def test_a_host_loses_power_and_comes_back(docker: Docker, broken: Swarm) -> None:
    swarm, lab = broken, broken.lab
    heartbeat(docker, 1)
    docker(
        *(
            "service",
            "create",
            "-d",
            "--name",
            "web",
            "--replicas",
            "4",
            "-p",
            "8080:80",
            "--restart-delay",
            "0s",
        ),
        *("--hostname", "{{.Node.Hostname}}", f"{lab.registry}/app:1"),
    )
    assert len(swarm.where("web", 4)[TWO]) == 2
    started = time.monotonic()
    lab.kill_host(TWO)
    eventually(lambda: set(swarm.where("web", 4)) == {ONE}, "its tasks run elsewhere", 30)
    assert time.monotonic() - started < 15
    assert docker("node", "ls", "-f", "name=linux-2", "--format", "{{.Status}}") == "Down"
    url = f"http://{lab.manager.address}:8080/{WHO}"
    swarm.answers(url)
    assert all(swarm.curl(url) for _ in range(12)), "no request goes to the dead"
    lab.start_host(TWO)
    ready(swarm)
    eventually(lambda: not swarm.containers(TWO), "what it ran before is not started again")
    assert swarm.answers(f"http://{lab.host(TWO).address}:8080/{WHO}")["host"] == ONE
    docker("service", "update", "-d", "--force", "--update-parallelism", "0", "web")
    swarm.updated("web")
    counts = {host: len(tasks) for host, tasks in swarm.where("web", 4).items()}
    assert counts == {ONE: 2, TWO: 2}, "and it takes its share of tasks again"


def test_the_managers_host_loses_power(docker: Docker, broken: Swarm) -> None:
    swarm, lab = broken, broken.lab
    where = deploy(docker, swarm)
    before = containers(swarm, where)
    lab.kill_host(ONE)
    url = f"http://{lab.host(TWO).address}:8080/{WHO}"
    assert any(swarm.curl(url, seconds=1) for _ in range(10)), "the worker goes on without any manager"
    lab.start_host(ONE)
    ready(swarm)

    def replaced() -> bool:
        after = containers(swarm, swarm.where("web", 2))
        assert after[TWO] == before[TWO], "the worker's container was not left alone"
        return after[ONE][0] != before[ONE][0]

    eventually(replaced, "what the power cut took is replaced, the worker's container left alone")
    swarm.answers(f"http://{lab.manager.address}:8080/{WHO}")


def test_a_worker_that_was_away_for_long(docker: Docker, broken: Swarm) -> None:
    """Down long enough that its tasks were moved: it ends its old containers when it is back."""
    swarm, lab = broken, broken.lab
    heartbeat(docker, 1)
    image = f"{lab.registry}/app:1"
    docker("service", "create", "-d", "--name", "web", "--replicas", "2", "--restart-delay", "0s", image)
    [task] = swarm.where("web", 2)[TWO]
    pid = swarm.inspect(task)["State"]["Pid"]
    lab.stop_daemon(TWO, signal.SIGKILL)
    eventually(lambda: set(swarm.where("web", 2)) == {ONE}, "its task runs elsewhere", 30)
    assert os.path.exists(f"/proc/{pid}"), "its old container still runs: nobody could tell it to stop"
    lab.start_host(TWO)
    ready(swarm)
    eventually(lambda: not os.path.exists(f"/proc/{pid}"), "the old container ends")
    eventually(lambda: not swarm.containers(TWO), "and nothing takes its place")
    assert set(swarm.where("web", 2)) == {ONE}
