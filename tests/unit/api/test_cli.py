"""The real docker CLIs against the API: what a person types, and what they see."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from overlace.api.backend import ContainerAddress
from overlace.manager.logs import LogRecord
from overlace.model.objects import Service, Task
from overlace.model.specs import ContainerSpec

from .conftest import Api, Docker, Result
from .doubles import FakeBackend, ResolvedImage, container, image, until

pytestmark = [pytest.mark.timeout(180), pytest.mark.slow]

STACK = """
version: "3.8"
services:
  web:
    image: registry:5000/shop/web:1
    deploy:
      replicas: 2
      placement: {constraints: ["node.platform.os==linux"]}
      update_config: {parallelism: 1, order: start-first}
      resources: {limits: {cpus: "0.5", memory: 64M}}
    ports: ["8080:80"]
    networks: [front]
    secrets: [s1]
    configs: [{source: c1, target: /etc/c1}]
    environment: {A: "1"}
    healthcheck: {test: ["CMD", "true"], interval: 5s}
  order:
    image: registry:5000/shop/order:1
    networks: {front: {aliases: [orders]}}
networks: {front: {driver: overlay}}
secrets: {s1: {file: FILE}}
configs: {c1: {file: FILE}}
"""


def good(result: Result) -> str:
    assert result.code == 0, result
    return result.out


def bad(result: Result) -> str:
    assert result.code != 0, result
    return result.err


async def test_outside_a_swarm(docker: Docker, api: Api) -> None:
    assert "Server: Overlace" in good(await docker("version"))
    info = good(await docker("info"))
    assert "Swarm: inactive" in info and "Operating System:" in info
    assert 'Use "docker swarm init"' in bad(await docker("node", "ls"))
    assert "This node is not part of a swarm" in bad(await docker("swarm", "leave"))
    assert "invalid join token" in bad(await docker("swarm", "join", "--token", "x", "172.28.1.11"))
    assert "docker swarm init" in bad(await docker("network", "create", "-d", "overlay", "x"))
    assert "create an overlay network" in bad(await docker("network", "create", "x"))
    assert "manifest unknown" in bad(await docker("run", "busybox")), "it pulls first"
    assert "No such object: nosuch" in bad(await docker("inspect", "nosuch"))


async def test_init_join_leave(docker: Docker, backend: FakeBackend) -> None:
    out = good(await docker("swarm", "init", "--advertise-addr", "172.28.1.11", "--task-history-limit", "3"))
    assert "Swarm initialized" in out and "172.28.1.11:2377" in out
    assert backend.asked[0].spec.orchestration.task_history_retention_limit == 3
    token = good(await docker("swarm", "join-token", "-q", "worker")).strip()
    assert token.startswith("SWMTKN-1-")
    assert "docker swarm join --token" in good(await docker("swarm", "join-token", "manager"))
    assert "already part of a swarm" in bad(await docker("swarm", "init"))
    info = good(await docker("info"))
    assert "Is Manager: true" in info and "Managers: 1" in info and "Nodes: 2" in info
    good(await docker("swarm", "update", "--task-history-limit", "7"))
    assert "Limit: 7" in good(await docker("info"))
    assert "erases all current state" in bad(await docker("swarm", "leave"))
    good(await docker("swarm", "leave", "--force"))
    assert "This node joined a swarm as a worker" in good(
        await docker("swarm", "join", "--token", token, "172.28.1.11")
    )
    assert backend.asked[-1].remote_addrs == ["172.28.1.11:2377"]
    assert "Worker nodes can't be used" in bad(await docker("service", "ls"))


async def test_nodes(docker: Docker, swarm: Api) -> None:
    listed = good(await docker("node", "ls"))
    assert "one" in listed and "win" in listed and "Leader" in listed and " * " in listed
    good(await docker("node", "update", "--label-add", "zone=a", "--availability", "pause", "win"))
    shown = json.loads(good(await docker("node", "inspect", "win")))[0]
    assert shown["Spec"]["Labels"] == {"zone": "a"} and shown["Spec"]["Availability"] == "pause"
    assert shown["Description"]["Engine"]["Labels"]["com.overlace.emulated"] == "windows"
    assert "Operating System:\twindows" in good(await docker("node", "inspect", "--pretty", "win"))
    assert "win" not in good(await docker("node", "ls", "--filter", "role=manager"))
    good(await docker("node", "ps", "self"))
    assert "must be demoted to worker before removal" in bad(await docker("node", "rm", "one"))
    assert "nosuch" in bad(await docker("node", "inspect", "nosuch"))
    good(await docker("node", "rm", "--force", "win"))
    assert "win" not in good(await docker("node", "ls"))


async def test_a_service_created_attached_converges(docker: Docker, swarm: Api, backend: FakeBackend) -> None:
    assert backend.manager is not None
    backend.manager.known["registry:5000/shop/web:1"] = ResolvedImage()
    good(await docker("network", "create", "-d", "overlay", "shop"))
    good(await docker("secret", "create", "s1", "-", stdin="hush"))
    good(await docker("config", "create", "c1", "-", stdin="port=80"))
    created = await docker(
        "service", "create", "--name", "web", "--replicas", "2", "--network", "shop", "--publish", "8080:80",
        "--secret", "s1", "--config", "source=c1,target=/etc/c1", "--update-monitor", "1s",
        "--constraint", "node.platform.os==linux", "registry:5000/shop/web:1", "serve",
    )  # fmt: skip
    assert "converged" in good(created)
    service = next(iter(backend.manager.store.view().all(Service)))
    spec = service.spec.task_template.container_spec
    assert isinstance(spec, ContainerSpec) and spec.image.startswith("registry:5000/shop/web:1@sha256:")
    placement = service.spec.task_template.placement
    assert placement is not None and [(p.os, p.architecture) for p in placement.platforms] == [
        ("linux", "amd64")
    ]
    line = good(await docker("service", "ls")).splitlines()[1]
    assert "web" in line and "replicated" in line and "2/2" in line and "*:8080->80/tcp" in line
    assert good(await docker("service", "ps", "web")).count("Running") >= 2
    pretty = good(await docker("service", "inspect", "--pretty", "web"))
    assert "Networks: shop" in pretty and "PublishedPort = 8080" in pretty and "Source:\ts1" in pretty
    good(await docker("service", "scale", "-d", "web=3"))
    good(await docker("service", "update", "-d", "--env-add", "A=1", "--publish-rm", "80", "web"))
    good(await docker("service", "rollback", "-d", "web"))
    assert (
        json.loads(good(await docker("service", "inspect", "web")))[0]["Spec"]["Mode"]["Replicated"][
            "Replicas"
        ]
        == 3
    )
    assert "is in use by" in bad(await docker("secret", "rm", "s1"))
    assert "in use" in bad(await docker("network", "rm", "shop"))
    assert "already exists" in bad(await docker("network", "create", "-d", "overlay", "shop"))
    tasks = good(await docker("service", "ps", "-q", "web")).split()
    assert json.loads(good(await docker("inspect", tasks[0])))[0]["ServiceID"] == service.id
    assert json.loads(good(await docker("inspect", "web")))[0]["Spec"]["Name"] == "web"
    assert good(await docker("service", "rm", "web")).strip() == "web"
    for noun, name in (("secret", "s1"), ("config", "c1"), ("network", "shop")):
        await asyncio.sleep(0.05)
        good(await docker(noun, "rm", name))


async def test_refusals_a_person_meets(docker: Docker, swarm: Api) -> None:
    create = ("service", "create", "-d", "--no-resolve-image")
    good(await docker(*create, "--name", "a", "--publish", "8080:80", "x"))
    for words, message in (
        (("--name", "a", "x"), "service a already exists"),
        (("--name", "b", "--publish", "8080:80", "x"), "port '8080' is already in use by service 'a'"),
        (("--name", "-b", "x"), "name must be valid as a DNS name component"),
        (("--constraint", "node.role", "x"), "constraint expected one operator from ==, !="),
        (("--network", "nosuch", "x"), "nosuch"),  # the CLIs have words of their own
        (("--secret", "nosuch", "x"), "secret not found: nosuch"),
        (("BAD:IMG:x",), "BAD:IMG:x"),
        (("--limit-memory", "1k", "x"), "Must be at least 4MiB"),
    ):
        assert message in bad(await docker(*create, *words)), words
    assert "nosuch" in bad(await docker("service", "rm", "nosuch"))
    assert "no such service: nosuch" in bad(await docker("service", "ps", "nosuch"))


async def test_a_stack(docker: Docker, swarm: Api, tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    payload.write_text("hush")
    compose = tmp_path / "stack.yml"
    compose.write_text(STACK.replace("FILE", str(payload)))
    for _ in range(2):  # again: an update of everything, and nothing changes
        good(await docker("stack", "deploy", "-c", str(compose), "shop"))
    assert "shop" in good(await docker("stack", "ls"))
    assert "2/2" in good(await docker("stack", "services", "shop"))
    assert good(await docker("stack", "ps", "shop")).count("Running") >= 3
    assert {"shop_front", "shop_s1", "shop_c1"} <= {
        good(await docker("network", "ls", "--format", "{{.Name}}", "--filter", "name=shop")).strip(),
        good(await docker("secret", "ls", "--format", "{{.Name}}")).strip(),
        good(await docker("config", "ls", "--format", "{{.Name}}")).strip(),
    }
    shown = json.loads(good(await docker("network", "inspect", "-v", "shop_front")))[0]
    assert set(shown["Services"]) == {"shop_web", "shop_order"} and shown["Peers"][0]["Name"] == "one"
    smaller = tmp_path / "smaller.yml"
    smaller.write_text("version: '3.8'\nservices:\n  order:\n    image: registry:5000/shop/order:1\n")
    good(await docker("stack", "deploy", "-c", str(smaller), "--prune", "shop"))
    assert "shop_web" not in good(await docker("stack", "services", "shop"))
    await asyncio.sleep(0.1)
    good(await docker("stack", "rm", "shop"))
    assert good(await docker("stack", "ls", "--format", "{{.Name}}")).strip() == ""


async def test_logs(docker: Docker, swarm: Api, backend: FakeBackend) -> None:
    good(await docker("service", "create", "-d", "--no-resolve-image", "--name", "web", "x"))
    assert backend.manager is not None
    store = backend.manager.store
    await until(lambda: bool(list(store.view().all(Task))))
    task = next(iter(backend.manager.store.view().all(Task)))
    backend.manager.lines = [
        LogRecord(task, 1_700_000_000_000_000_000, "stdout", b"hello\n"),
        LogRecord(task, 1_700_000_000_000_000_001, "stderr", b"trouble\n"),
    ]
    shown = await docker("service", "logs", "--timestamps", "web")
    assert "2023-11-14T22:13:20.000000000Z web.1." in good(shown) and "@one    | hello" in shown.out
    assert "| trouble" in shown.err
    assert good(await docker("service", "logs", "--raw", task.id)).strip() == "hello"


async def test_this_host(docker: Docker, backend: FakeBackend, api: Api) -> None:
    backend.runtime.put(container(health="healthy"))
    backend.addresses["c" * 64] = [
        ContainerAddress(network="shop", network_id="n", address="10.0.9.11/24", mac="02:42:0a:00:09:0b")
    ]
    listed = good(await docker("ps"))
    assert "cccccccccccc" in listed and "web.1.task" in listed and "(healthy)" in listed
    shown = json.loads(good(await docker("inspect", "web.1.task")))[0]
    assert shown["NetworkSettings"]["Networks"]["shop"]["IPAddress"] == "10.0.9.11"
    backend.runtime.registry["registry:5000/shop/web:1"] = image()
    pulled = good(await docker("pull", "registry:5000/shop/web:1"))
    assert "Pulling from shop/web" in pulled and "Downloaded newer image" in pulled
    assert "222222222222: Pulling fs layer\n222222222222: Pull complete\n" in pulled
    assert "up to date" in good(await docker("pull", "registry:5000/shop/web:1"))
    assert "manifest unknown" in bad(await docker("pull", "registry:5000/nope"))
    assert "registry:5000/shop/web" in good(await docker("images"))
    assert json.loads(good(await docker("image", "inspect", "registry:5000/shop/web:1")))[0]["Os"] == "linux"
    assert "Local Volumes" in good(await docker("system", "df"))
    assert "4.1kB (virtual 5MB)" in good(await docker("ps", "--size"))
    shown = json.loads(good(await docker("ps", "--format", "{{json .}}")))
    assert shown["Size"].startswith("4.1kB"), "json asks for the size, too"
    shown = json.loads(good(await docker("inspect", "--size", "web.1.task")))[0]
    assert (shown["SizeRw"], shown["SizeRootFs"]) == (4096, 5_004_096)
    assert "Untagged" in good(await docker("rmi", "registry:5000/shop/web:1"))
    ran = await docker("exec", "-i", "web.1.task", "parrot", stdin="one\ntwo\n")
    assert (ran.code, ran.out, ran.err) == (5, "one\ntwo\n", "parrot")
    line = "{{.Name}} {{.MemUsage}} {{.NetIO}} {{.BlockIO}} {{.PIDs}}"
    used = good(await docker("stats", "--no-stream", "--format", line, "web.1.task"))
    assert used.strip() == "web.1.task 2MiB / 1GiB 1kB / 7kB 2kB / 3kB 4"
    assert "PID" in good(await docker("top", "web.1.task"))
    assert "not supported yet" in bad(await docker("cp", "web.1.task:/x", "-"))


async def test_events(docker: Docker, swarm: Api) -> None:
    watching = asyncio.create_task(docker("events", "--filter", "type=service", timeout=4))
    await asyncio.sleep(1.5)
    good(await docker("service", "create", "-d", "--no-resolve-image", "--name", "web", "x"))
    good(await docker("service", "scale", "-d", "web=2"))
    out = (await watching).out
    assert "service create" in out and "name=web" in out and "replicas.new=2" in out
