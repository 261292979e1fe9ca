"""`overlace plan` and `overlace stack deploy` beside the real `docker stack deploy`, on one swarm."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .bed import Docker, Json, Swarm, eventually

STACK = "comp"
FILES = Path(__file__).parents[1] / "unit/compose/files"
SHOP = """\
version: "3.8"
x-common: &common
  logging: {{driver: json-file, options: {{max-size: 1m}}}}
  networks: [front]
services:
  web:
    <<: *common
    image: {registry}/app:1
    ports: ["8950:80", "8951:81/udp"]
    networks: {{front: {{aliases: [shop]}}, back: {{}}}}
    environment: {{COLOR: "${{COLOR-red}}", EMPTY: "", NUMBER: 1.0}}
    command: ["/app"]
    labels: {{of: container}}
    stop_grace_period: 3s
    ulimits: {{nofile: {{soft: 1000, hard: 2000}}, core: 0}}
    cap_add: [net_admin]
    cap_drop: [MKNOD]
    sysctls: {{net.ipv4.ip_unprivileged_port_start: "80"}}
    extra_hosts: ["elsewhere:192.0.2.7"]
    dns: [192.0.2.53]
    init: true
    volumes:
      - data:/data
      - /anonymous
      - {{type: tmpfs, target: /scratch, tmpfs: {{size: 1000000}}}}
    secrets: [password, {{source: password, target: again, mode: 0400}}]
    configs: [{{source: settings, target: /etc/settings}}]
    healthcheck: {{test: ["CMD", "true"], interval: 200ms, timeout: 5s, retries: 2}}
    deploy:
      replicas: 2
      labels: {{of: service}}
      update_config: {{parallelism: 2, monitor: 300ms, order: stop-first}}
      rollback_config: {{parallelism: 0}}
      restart_policy: {{condition: on-failure, delay: 1s}}
      resources: {{limits: {{cpus: "0.5", memory: 64M}}, reservations: {{memory: 8M}}}}
      placement:
        constraints: ["node.platform.os==linux"]
        preferences: [{{spread: node.labels.zone}}]
        max_replicas_per_node: 2
  everywhere:
    <<: *common
    image: {registry}/app:1
    user: "0:0"
    working_dir: /tmp
    deploy: {{mode: global, endpoint_mode: dnsrr}}
  order:
    image: {registry}/win:1
networks:
  front: {{attachable: true, labels: {{a: b}}}}
  back: {{internal: true, driver_opts: {{com.docker.network.driver.mtu: "1400"}}}}
volumes: {{data: {{labels: {{of: volume}}}}}}
secrets: {{password: {{file: ./password}}}}
configs: {{settings: {{file: ./settings, name: named-settings}}}}
"""
CHAIN = """\
services:
  web:
    image: {registry}/app:1
    depends_on:
      db: {{condition: service_healthy}}
      migrate: {{condition: service_completed_successfully}}
  migrate:
    image: {registry}/app:1
    command: ["true"]
    depends_on: [db]
    deploy: {{mode: replicated-job}}
  db:
    image: {registry}/app:1
    configs: [{{source: gate, target: /gate}}]
    healthcheck: {{test: 'grep -q open /gate', interval: 100ms, retries: 1000000}}
configs: {{gate: {{file: ./gate}}}}
"""


class Overlace:
    """The overlace command, as a person uses it against the lab's manager."""

    def __init__(self, docker: Docker, folder: Path) -> None:
        self._docker = docker
        self.folder = folder
        self.file = folder / "compose.yml"

    @contextmanager
    def start(self, *argv: str) -> Iterator[subprocess.Popen[str]]:
        """A running command; it ends with the block."""
        with subprocess.Popen(
            [sys.executable, "-m", "overlace.cli.main", *argv],
            env=self._docker.environment(None),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.SIG_DFL
            ),  # a shell's background job ignores it
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, *argv: str, status: int = 0) -> str:
        with self.start(*argv) as process:
            said, _ = process.communicate(timeout=60)
        assert process.returncode == status, f"{argv}: {process.returncode}\n{said}"
        return said

    def plan(self, *more: str, status: int) -> str:
        return self.run("plan", "-c", str(self.file), *more, STACK, status=status)

    def deploy(self, *more: str, status: int = 0) -> str:
        return self.run("stack", "deploy", "-c", str(self.file), *more, STACK, status=status)


Write = Callable[..., None]


@pytest.fixture
def overlace(anydocker: Docker, swarm: Swarm, tmp_path: Path) -> Iterator[Overlace]:
    (tmp_path / "password").write_text("s3cr3t")
    (tmp_path / "settings").write_text("a = 1\n")
    (tmp_path / "gate").write_text("shut")
    yield Overlace(anydocker, tmp_path)
    anydocker.run("stack", "rm", STACK)


@pytest.fixture
def write(overlace: Overlace, swarm: Swarm) -> Write:
    def to_file(template: str = SHOP, *changes: tuple[str, str]) -> None:
        text = template.format(registry=swarm.lab.registry)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        overlace.file.write_text(text)

    return to_file


def services(swarm: Swarm) -> dict[str, Json]:
    label = [f"com.docker.stack.namespace={STACK}"]
    return {one["Spec"]["Name"].removeprefix(f"{STACK}_"): one for one in swarm.get("/services", label=label)}


def tasks(swarm: Swarm) -> set[str]:
    return {task["ID"] for name in services(swarm) for task in swarm.tasks(f"{STACK}_{name}")}


def names(swarm: Swarm, kind: str) -> list[str]:
    return sorted(one["Spec"]["Name"] for one in swarm.get(f"/{kind}"))


def docker_deploys(docker: Docker, overlace: Overlace) -> None:
    docker("stack", "deploy", "-c", str(overlace.file), STACK)


def test_what_docker_deployed_is_taken_over(
    anydocker: Docker, swarm: Swarm, overlace: Overlace, write: Write
) -> None:
    write()
    assert "+ service comp_web" in overlace.plan(status=2)
    docker_deploys(anydocker, overlace)
    swarm.running("comp_web", 2)
    assert "comp: nothing would change." in overlace.plan(status=0)
    before = tasks(swarm)
    assert "nothing to change" in overlace.deploy()
    assert tasks(swarm) == before

    write(SHOP, ("${COLOR-red}", "blue"), ("replicas: 2", "replicas: 1"))
    said = overlace.plan(status=2)
    assert "services.web.environment.COLOR: red -> blue" in said
    assert "services.web.deploy.replicas: 2 -> 1" in said
    told = json.loads(overlace.plan("--format", "json", status=2))
    [action] = told["actions"]
    assert (action["action"], action["kind"], action["name"]) == ("update", "service", "comp_web")
    assert {"path": "services.web.deploy.replicas", "before": 2, "after": 1} in action["fields"]
    assert len(action["fields"]) == 2
    untouched = {task["ID"] for name in ("everywhere", "order") for task in swarm.tasks(f"comp_{name}")}
    assert "Updating service comp_web" in overlace.deploy("--detach=false")
    assert untouched <= tasks(swarm)
    assert overlace.plan(status=0)


def test_files_of_every_version_are_read_as_docker_reads_them(
    anydocker: Docker, swarm: Swarm, overlace: Overlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY", swarm.lab.registry)
    monkeypatch.setenv("HOST_ONLY", "here")
    files = sorted(FILES.glob("v3.*.yml"))
    assert len(files) > 10
    for overlace.file in files:
        docker_deploys(anydocker, overlace)
        assert "nothing would change" in overlace.plan(status=0), overlace.file
        anydocker("stack", "rm", STACK)


def test_docker_takes_over_what_overlace_deployed(
    anydocker: Docker, swarm: Swarm, overlace: Overlace, write: Write
) -> None:
    write()
    said = overlace.deploy("--detach=false")
    for made in ("network comp_front", "secret comp_password", "config named-settings", "service comp_web"):
        assert f"Creating {made}" in said
    [web, _] = swarm.running("comp_web", 2)
    assert swarm.inside(web, "cat /run/secrets/again /etc/settings") == "s3cr3ta = 1"
    ours, before = services(swarm), tasks(swarm)
    docker_deploys(anydocker, overlace)
    theirs = services(swarm)
    for name, service in ours.items():
        assert theirs[name]["Spec"] == service["Spec"], name
    assert tasks(swarm) == before
    assert overlace.plan(status=0)
    anydocker("stack", "rm", STACK)
    assert services(swarm) == {} and names(swarm, "secrets") == names(swarm, "configs") == []


def test_changed_files_become_new_versions(swarm: Swarm, overlace: Overlace, write: Write) -> None:
    write()
    overlace.deploy()
    swarm.running("comp_web", 2)
    (overlace.folder / "password").write_text("changed")
    (overlace.folder / "settings").write_text("a = 2\n")
    said = overlace.plan(status=2)
    assert re.search(r"-/\+ secret comp_password-[0-9a-f]{12}  \(the content changed", said)
    assert re.search(r"services\.web\.secrets\.password: comp_password -> comp_password-[0-9a-f]{12}\n", said)
    assert "- secret comp_password  (replaced by comp_password-" in said
    assert names(swarm, "secrets") == ["comp_password"], "a plan changes nothing"
    overlace.deploy()
    web = swarm.running("comp_web", 2)[0]
    assert swarm.inside(web, "cat /run/secrets/password /etc/settings") == "changeda = 2"
    [secret], [config] = names(swarm, "secrets"), names(swarm, "configs")
    assert secret.startswith("comp_password-") and config.startswith("named-settings-")
    assert overlace.plan(status=0)
    # back again: yet another version, the one in use goes
    (overlace.folder / "password").write_text("s3cr3t")
    assert "Keeping secret" in overlace.deploy("-d")
    overlace.deploy()
    [other] = names(swarm, "secrets")
    assert other.startswith("comp_password-") and other != secret
    assert overlace.plan(status=0)


def test_services_start_in_order(swarm: Swarm, overlace: Overlace, write: Write) -> None:
    write(CHAIN)
    with overlace.start("stack", "deploy", "-c", str(overlace.file), STACK) as deploy:
        eventually(lambda: "db" in services(swarm), "the database is asked for")
        starting = eventually(lambda: [t for t in swarm.tasks("comp_db") if _pid(t)], "the database starts")
        assert starting[0]["Status"]["State"] == "starting", "it is not healthy"
        eventually(lambda: "migrate" in services(swarm), "migrate only needs it started")
        eventually(lambda: _completed(swarm, "comp_migrate"), "migrate completes")
        assert deploy.poll() is None and "web" not in services(swarm), "web waits for a healthy database"
        deploy.send_signal(signal.SIGINT)
        said, _ = deploy.communicate(timeout=20)
    assert deploy.returncode == 130 and "run it again to go on" in said
    said = overlace.deploy("--wait-timeout", "300ms", status=1)
    assert "service web: depends_on db (service_healthy): not within 0.3 s: 0 of 1 tasks running" in said
    assert "overlace why comp_db" in said and "web" not in services(swarm)
    jobs = [task["ID"] for task in swarm.tasks("comp_migrate", wanted=False)]
    # the gate opens: a new version of the config, a new task of the database, then web
    (overlace.folder / "gate").write_text("open")
    overlace.deploy()
    [database] = swarm.running("comp_db")
    [web] = swarm.tasks("comp_web")
    assert database["Status"]["Timestamp"] < web["CreatedAt"]
    assert [task["ID"] for task in swarm.tasks("comp_migrate", wanted=False)] == jobs, "it does not run again"


def _pid(task: Json) -> Any:
    return task["Status"].get("ContainerStatus", {}).get("PID")


def _completed(swarm: Swarm, service: str) -> bool:
    return any(task["Status"]["State"] == "complete" for task in swarm.tasks(service, wanted=False))


def test_a_dependency_that_fails_for_good_is_told(swarm: Swarm, overlace: Overlace, write: Write) -> None:
    write(
        CHAIN,
        ('["true"]', '["sh", "-c", "exit 3"]'),
        ("mode: replicated-job", "restart_policy: {condition: none}"),
    )
    (overlace.folder / "gate").write_text("open")
    said = overlace.deploy(status=1)
    assert (
        "depends_on migrate (service_completed_successfully): 0 of 1 tasks completed, and no more will"
        in said
    )
    assert "exit" in said and "(3)" in said
    assert "web" not in services(swarm)


def test_mode_change_and_prune(swarm: Swarm, overlace: Overlace, write: Write) -> None:
    file = "services:\n  a: {{image: '{registry}/app:1'}}\n  b: {{image: '{registry}/app:1'}}\n"
    write(file)
    overlace.deploy()
    old = services(swarm)["a"]["ID"]
    write(
        file.replace("  b: {{image: '{registry}/app:1'}}\n", ""), ("app:1'", "app:1', deploy: {mode: global}")
    )
    said = overlace.plan(status=2)
    assert "-/+ service comp_a  (the mode of a service cannot be changed" in said
    assert "services.a.deploy.mode: replicated -> global" in said
    assert "! comp_b: in the stack, not in the file; it stays (--prune removes it)" in said
    assert "- service comp_b  (not in the file)" in overlace.plan("--prune", status=2)
    overlace.deploy("--prune")
    now = services(swarm)
    assert now.keys() == {"a"} and now["a"]["ID"] != old and "Global" in now["a"]["Spec"]["Mode"]


def test_errors(swarm: Swarm, overlace: Overlace, write: Write) -> None:
    write(SHOP, ("replicas: 2", "replicas: many"), ("stop_grace_period:", "stop_grace_perod:"))
    said = overlace.plan(status=1)
    assert re.search(r'compose\.yml:30:17: services\.web\.deploy\.replicas: .*not the text "many"', said), (
        said
    )
    assert "services.web.stop_grace_perod: unknown key; did you mean stop_grace_period?" in said
    assert overlace.deploy(status=1) == said.replace("plan", "stack deploy")
    write(SHOP, ("front: {attachable: true, labels: {a: b}}", "front: {external: true}"))
    said = overlace.deploy(status=1)
    assert 'network "front" is declared as external, but could not be found' in said
    write(SHOP, ("    init: true\n", "    init: true\n    privileged: true\n    links: [order]\n"))
    said = overlace.plan(status=1)
    assert "services.web.privileged: a swarm cannot honour it" in said
    said = overlace.plan("--leave-out-unsupported", status=2)
    assert "services.web.privileged: left out" in said and "services.web.links: left out" in said
    assert "No such option" in overlace.plan("--nonsense", status=1), "2 means that something would change"
    assert services(swarm) == {}
    # the daemon's own words
    write(SHOP, ("node.platform.os==linux", "node.platform.os"))
    assert "constraint expected one operator from ==, !=" in overlace.deploy(status=1)
    # a network that is not as the file says is named, and stays
    overlace.run("stack", "deploy", "-c", str(overlace.file), STACK, status=1)
    write(SHOP, ("back: {internal: true,", "back: {"))
    said = overlace.plan(status=2)
    assert "! networks.back.internal: true -> false: a network cannot be changed" in said
