"""`docker stack` with a compose file of Linux and Windows services."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .bed import Docker, Swarm, eventually, overlay_address

Image = Callable[[str], str]

COMPOSE = """\
version: "3.8"
services:
  web:
    image: {registry}/app:1
    ports: ["8900:80"]
    networks: [front]
    environment: {{COLOR: "{color}"}}
    deploy:
      replicas: 2
      update_config: {{parallelism: 2, monitor: 300ms}}
  order:
    image: {registry}/win:1
    networks:
      front: {{aliases: [orders]}}
      back: {{}}
  store:
    image: {registry}/app:1
    networks: [back]
    secrets: [password]
    configs: [{{source: settings, target: /etc/settings}}]
    healthcheck: {{test: ["CMD", "true"], interval: 200ms}}
    deploy:
      placement: {{constraints: ["node.hostname==linux-2"]}}
networks:
  front: {{}}
  back: {{driver: overlay, internal: true}}
secrets:
  password: {{file: ./password}}
configs:
  settings: {{file: ./settings}}
"""


@pytest.fixture
def compose(tmp_path: Path, swarm: Swarm) -> Callable[..., str]:
    """Write the compose file, with changes, and give its path."""

    def write(color: str = "red", *, without: str = "", instead: tuple[str, str] = ("", "")) -> str:
        text = COMPOSE.format(registry=swarm.lab.registry, color=color)
        if without:
            head, _, tail = text.partition(f"  {without}:\n")
            rest = tail.splitlines(keepends=True)
            while rest and rest[0].startswith("    "):
                rest.pop(0)
            text = head + "".join(rest)
        if instead[0]:
            assert instead[0] in text
            text = text.replace(*instead)
        (tmp_path / "password").write_text("s3cr3t")
        (tmp_path / "settings").write_text("a = 1\n")
        path = tmp_path / "compose.yml"
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def nothing_left(docker: Docker, swarm: Swarm):
    yield
    docker.run("stack", "rm", "shop")


@pytest.mark.usefixtures("nothing_left")
def test_stack(docker: Docker, swarm: Swarm, compose: Callable[..., str]) -> None:
    said = docker.said("stack", "deploy", "-c", compose(), "shop")
    for made in ("network shop_front", "secret shop_password", "config shop_settings", "service shop_web"):
        assert f"Creating {made}" in said
    assert swarm.where("shop_web", 2).keys() == {"linux-1", "linux-2"}
    [order] = swarm.running("shop_order")
    assert swarm.host_of(order) == "windows-1", "nothing but the image says that it needs Windows"
    [store] = swarm.running("shop_store")
    assert swarm.host_of(store) == "linux-2"
    assert swarm.inside(store, "cat /run/secrets/password /etc/settings") == "s3cr3ta = 1"

    assert docker("stack", "ls", "--format", "{{.Name}} {{.Services}}") == "shop 3"
    listed = docker.lines("stack", "services", "shop", "--format", "{{.Name}} {{.Mode}} {{.Replicas}}")
    assert sorted(listed) == [
        f"shop_{name} replicated {n}/{n}" for name, n in (("order", 1), ("store", 1), ("web", 2))
    ]
    listed = docker.lines("stack", "ps", "shop", "--format", "{{.Name}} {{.Node}}")
    assert f"shop_order.1 {swarm.host_of(order)}" in listed and len(listed) == 4

    web = swarm.running("shop_web", 2)[0]
    for name in (
        "order",
        "orders",
        "shop_order",
        "tasks.order",
    ):  # short names too: compose gives them as aliases
        found = eventually(
            lambda name=name: swarm.fetch(web, f"http://{name}/cgi-bin/who", 1), f"web reaches {name}"
        )
        assert '"platform": "windows"' in found
    assert swarm.resolve(web, "store") == set(), "they share no network"
    assert swarm.resolve(order, "tasks.store") == {overlay_address(store, "shop_back")}
    assert eventually(lambda: swarm.fetch(order, "http://store/cgi-bin/who", 1), "order reaches the store")
    assert swarm.answers(f"http://{swarm.lab.host('windows-1').address}:8900/cgi-bin/who")["color"] == "red"

    # again: nothing changes what is the same
    before = {t["ID"] for name in ("web", "order", "store") for t in swarm.tasks(f"shop_{name}")}
    said = docker.said("stack", "deploy", "-c", compose(), "shop")
    assert "Updating service shop_web" in said
    assert {t["ID"] for name in ("web", "order", "store") for t in swarm.tasks(f"shop_{name}")} == before
    # a change touches its service alone
    docker("stack", "deploy", "-c", compose("blue"), "shop")
    swarm.updated("shop_web")
    assert swarm.answers(f"http://{swarm.lab.manager.address}:8900/cgi-bin/who")["color"] == "blue"
    after = {t["ID"] for name in ("order", "store") for t in swarm.tasks(f"shop_{name}")}
    assert after <= before and len(after) == 2
    # what the file no longer names goes with --prune, and only then
    docker("stack", "deploy", "-c", compose("blue", without="order"), "shop")
    assert docker("stack", "ls", "--format", "{{.Services}}") == "3"
    docker("stack", "deploy", "--prune", "-c", compose("blue", without="order"), "shop")
    assert docker("stack", "ls", "--format", "{{.Services}}") == "2"

    said = docker.said("stack", "rm", "shop")
    assert "Removing service shop_web" in said and "Removing network shop_front" in said
    assert docker("stack", "ls", "--format", "{{.Name}}") == ""
    for kind in ("services", "secrets", "configs"):
        assert swarm.get(f"/{kind}") == []
    assert [n["Name"] for n in swarm.get("/networks", scope=["swarm"])] == ["ingress"]
    eventually(
        lambda: not any(swarm.containers(h.name) for h in swarm.lab.hosts if h.exec_root),
        "its containers end",
    )


@pytest.mark.usefixtures("nothing_left")
def test_compose_errors(docker: Docker, swarm: Swarm, compose: Callable[..., str]) -> None:
    for instead, words in (
        (("networks: [front]\n", "networks: [nosuch]\n"), 'undefined network "nosuch"'),
        (("secrets: [password]", "secrets: [nosuch]"), "nosuch"),
        (("replicas: 2", "replicas: many"), "replicas"),
        (("    ports:", "    prots:"), "Additional property prots is not allowed"),
        (("file: ./password", "file: ./nofile"), "nofile"),
        (
            ("  front: {}\n", "  front: {external: true}\n"),
            'network "front" is declared as external, but could not be found',
        ),
    ):
        said = docker.refused("stack", "deploy", "-c", compose(instead=instead), "shop")
        assert words in said, f"{instead}: {said}"
        assert swarm.get("/services") == [], instead
    said = docker.refused(
        "stack", "deploy", "-c", compose(instead=("node.hostname==linux-2", "node.hostname")), "shop"
    )
    assert "constraint expected one operator from ==, !=" in said
    assert "shop_store" not in docker("service", "ls", "--format", "{{.Name}}")
    said = docker.run("stack", "rm", "nosuch")
    assert "Nothing found in stack: nosuch" in said.stdout + said.stderr
    changed = compose()
    docker("stack", "deploy", "-c", changed, "shop")
    Path(changed).with_name("settings").write_text("a = 2\n")
    said = docker.refused("stack", "deploy", "-c", changed, "shop")
    assert "only updates to Labels are allowed" in said, "a config is never changed under those who read it"
