"""Every `--filter` and every field of `--format` the docker CLI has for the swarm's objects, and old API versions.

What a filter must show was measured on dockerd 20.10 beside this one; where ours differs on purpose, it says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .bed import Docker, Swarm, eventually

Image = Callable[[str], str]
Json = dict[str, Any]


@pytest.fixture(scope="module")
def seeded(swarm: Swarm, anydocker: Docker, image: Image) -> Iterator[dict[str, str]]:
    """One of everything; ids by what they are, to be put into filters."""
    docker = anydocker
    net = docker("network", "create", "-d", "overlay", "--attachable", "--label", "kind=list", "lnet")
    secret = docker("secret", "create", "--label", "kind=list", "lsecret", "-", stdin="x")
    config = docker("config", "create", "--label", "kind=list", "lconfig", "-", stdin="x")
    service = docker(
        *(
            "service",
            "create",
            "-d",
            "--name",
            "lweb",
            "--label",
            "tier=front",
            "--replicas",
            "2",
            "-p",
            "8750:80",
        ),
        *(
            "--network",
            "lnet",
            "--secret",
            "lsecret",
            "--constraint",
            "node.hostname==linux-2",
            image("app:1"),
        ),
    )
    docker("service", "create", "-d", "--name", "lglobal", "--mode", "global", image("multi:1"))
    job = ("--mode", "replicated-job", "--replicas", "2", "--max-concurrent", "1")
    docker("service", "create", "-d", "--name", "ljob", *job, image("app:1"), "true")
    docker(
        "service",
        "create",
        "-d",
        "--name",
        "lst_a",
        "--label",
        "com.docker.stack.namespace=lst",
        image("app:1"),
    )
    docker("node", "update", "--label-add", "kind=list", "linux-2")
    task = swarm.running("lweb", 2)[0]["ID"]
    swarm.running("lglobal", 3)
    swarm.running("lst_a")
    eventually(
        lambda: (
            docker("service", "ls", "-f", "name=ljob", "--format", "{{.Replicas}}") == "0/1 (2/2 completed)"
        ),
        "the job completes",
    )
    yield {"NET": net, "SECRET": secret, "CONFIG": config, "SERVICE": service, "TASK": task}
    docker("node", "update", "--label-rm", "kind", "linux-2")
    docker("service", "rm", "lweb", "lglobal", "ljob", "lst_a")
    for kind, name in (("secret", "lsecret"), ("config", "lconfig"), ("network", "lnet")):
        eventually(lambda kind=kind, name=name: docker.run(kind, "rm", name).returncode == 0, f"{kind} goes")


MINE = {"lweb", "lglobal", "ljob", "lst_a", "lnet", "lsecret", "lconfig"}
FILTERS: dict[str, dict[str, str]] = {
    "service ls": {
        "id=SERVICE": "lweb",
        "id=SHORT-SERVICE": "lweb",
        "label=tier": "lweb",
        "label=tier=front": "lweb",
        "label=tier=back": "",
        "mode=replicated": "lst_a lweb",
        "mode=global": "lglobal",
        "mode=replicated-job": "ljob",
        "mode=global-job": "",
        "mode=odd": "",
        "name=lwe": "lweb",
        "name=LWEB": "",
        "name=web": "",
    },
    "service ps lweb": {
        "id=TASK": "lweb",
        "name=lweb.": "lweb",
        "name=other": "",
        "node=linux-2": "lweb",
        "node=linux-1": "",
        "desired-state=running": "lweb",
        "desired-state=shutdown": "",
    },
    "node ps linux-2": {"name=lweb": "lweb", "desired-state=shutdown": "", "label=tier=front": "lweb"},
    "node ls": {
        "id=NODE": "linux-2",
        "name=linux-": "linux-1 linux-2",
        "role=manager": "linux-1",
        "role=worker": "linux-2 windows-1",
        "membership=accepted": "linux-1 linux-2 windows-1",
        "membership=pending": "",
        "node.label=kind": "linux-2",
        "node.label=kind=list": "linux-2",
        "node.label=kind=other": "",
        "label=com.overlace.emulated": "windows-1",
    },
    "stack ps lst": {"name=lst_a": "lst_a", "desired-state=running": "lst_a", "name=other": ""},
    "stack services lst": {"name=lst": "lst_a", "mode=replicated": "lst_a", "label=other": ""},
    "network ls": {
        "id=NET": "lnet",
        "id=SHORT-NET": "lnet",
        "name=lne": "lnet",
        "driver=overlay": "lnet",
        "driver=bridge": "",
        "scope=swarm": "lnet",
        "scope=local": "",
        "type=custom": "lnet",
        "type=builtin": "",
        "label=kind": "lnet",
        "label=kind=list": "lnet",
        "label=kind=other": "",
        "dangling=false": "lnet",  # Docker calls a swarm network dangling that services use (moby#36036 and others)
        "dangling=true": "",
    },
    "secret ls": {
        "id=SECRET": "lsecret",
        "name=lsec": "lsecret",
        "label=kind": "lsecret",
        "label=kind=x": "",
    },
    "config ls": {
        "id=CONFIG": "lconfig",
        "name=lcon": "lconfig",
        "label=kind": "lconfig",
        "label=kind=x": "",
    },
}
REFUSED = {
    "service ls": ("foo=x", "nvalid filter"),
    "service ps lweb": ("desired-state=odd", "invalid desired-state filter: 'odd'"),
    "node ls": ("role=odd", "Invalid role filter: 'odd'"),
    "network ls": ("type=odd", "invalid filter"),
    "secret ls": ("foo=x", "nvalid filter"),
    "config ls": ("names=lconfig", "nvalid filter"),
}


@pytest.mark.parametrize("command", FILTERS)
def test_filters(docker: Docker, swarm: Swarm, seeded: dict[str, str], command: str) -> None:
    words = {"NODE": swarm.node_id("linux-2"), **seeded}
    field = "{{.Hostname}}" if command == "node ls" else "{{.Name}}"
    for given, wanted in FILTERS[command].items():
        key, _, value = given.partition("=")
        id = words.get(value.removeprefix("SHORT-"), value)
        text = f"{key}={id[:9] if value.startswith('SHORT-') else id}"
        done = docker.run(*command.split(), "--filter", text, "--format", field)
        listed = {line.strip().partition(".")[0] for line in done.stdout.splitlines()}
        if command == "node ls":
            shown = listed
        else:
            shown = listed & MINE
        nothing = done.returncode == 0 or "nothing found in stack" in done.stderr.lower()
        assert nothing and shown == set(wanted.split()), f"{command} --filter {text}: {done}"


@pytest.mark.parametrize("command", REFUSED)
def test_filters_that_are_none(docker: Docker, seeded: dict[str, str], command: str) -> None:
    given, words = REFUSED[command]
    assert words in docker.refused(*command.split(), "--filter", given)


# Fields of `{{json .}}`: those of CLI 28; an older one has some less.
FIELDS: dict[str, dict[str, str]] = {
    "node ls --filter name=linux-1": {
        "Availability": "Active",
        "EngineVersion": "0.1.0",
        "Hostname": "linux-1",
        "ManagerStatus": "Leader",
        "Self": "True",
        "Status": "Ready",
        "TLSStatus": "Ready",
    },
    "service ls --filter name=lweb": {
        "Image": "IMAGE",
        "Mode": "replicated",
        "Name": "lweb",
        "Ports": "*:8750->80/tcp",
        "Replicas": "2/2",
    },
    "service ps lweb --filter id=TASK": {
        "DesiredState": "Running",
        "Error": "",
        "Image": "IMAGE",
        "Node": "linux-2",
        "Ports": "",
    },
    "stack ls": {"Name": "lst", "Services": "1"},
    "stack services lst": {"Mode": "replicated", "Name": "lst_a", "Ports": "", "Replicas": "1/1"},
    "stack ps lst": {"DesiredState": "Running", "Error": "", "Name": "lst_a.1", "Ports": ""},
    "network ls --filter id=NET": {
        "Driver": "overlay",
        "IPv6": "false",
        "Internal": "false",
        "Labels": "kind=list",
        "Name": "lnet",
        "Scope": "swarm",
    },
    "secret ls --filter id=SECRET": {"Driver": "", "Labels": "kind=list", "Name": "lsecret"},
    "config ls --filter id=CONFIG": {"Labels": "kind=list", "Name": "lconfig"},
}


@pytest.mark.parametrize("command", FIELDS)
def test_fields(docker: Docker, seeded: dict[str, str], image: Image, command: str) -> None:
    argv = [f"id={seeded[word[3:]]}" if word[:3] == "id=" else word for word in command.split()]
    found = json.loads(docker(*argv, "--format", "{{json .}}"))
    assert len(found.get("ID", "x" * 12)) >= 12
    wanted = {key: image("app:1") if value == "IMAGE" else value for key, value in FIELDS[command].items()}
    shown = {key: str(found[key]) for key in wanted if key in found}
    assert (
        shown == {key: value for key, value in wanted.items() if key in found}
        and len(shown) >= len(wanted) - 1
    )
    for field in found:  # and each by a template of its own
        said = docker(*argv, "--format", f"{{{{.{field}}}}}")
        assert said or not found[field], f"{field} is {found[field]} as JSON, and nothing by itself"
    assert len(docker(*argv).splitlines()) == 2, "a heading and one line"


def test_pretty(docker: Docker, seeded: dict[str, str]) -> None:
    service = docker("service", "inspect", "--pretty", "lweb")
    for words in (
        "Service Mode:\tReplicated\n Replicas:\t2",
        "Constraints:\t[node.hostname==linux-2]",
        "UpdateConfig:\n Parallelism:\t1\n On failure:\tpause\n Monitoring Period: 5s\n Max failure ratio: 0",
        "Target:\tlsecret\n  Source:\tlsecret",
        "Networks: lnet",
        "Endpoint Mode:\tvip",
        "PublishedPort = 8750",
    ):
        assert words in service, f"{words!r} in {service}"
    node = docker("node", "inspect", "--pretty", "linux-2")
    for words in (
        "Labels:\n - kind=list",
        "State:\t\t\tReady",
        "Architecture:\t\tx86_64",
        "Network:\t\tbridge, host, null, overlay",
    ):
        assert words in node, f"{words!r} in {node}"
    assert "BEGIN CERTIFICATE" in docker("swarm", "ca")
    assert "kind=list" in docker("secret", "inspect", "--pretty", "lsecret")
    info = docker("info")
    for words in (
        "Is Manager: true",
        "Nodes: 3",
        "Managers: 1",
        "Default Address Pool: 10.0.0.0/8",
        "SubnetSize: 24",
    ):
        assert words in info, f"{words!r} in {info}"
    version = docker("version")
    assert " Engine:\n  Version:          0.1.0" in version, version
    assert docker("info", "--format", "{{.Swarm.Cluster.Spec.Raft.SnapshotInterval}}") == "10000"


@pytest.mark.parametrize("version", ["1.24", "1.30", "1.37", "1.40", "1.41", "1.44", "1.47"])
def test_older_versions(
    docker: Docker, seeded: dict[str, str], version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that speaks less sees the same swarm."""
    environment = docker.environment
    monkeypatch.setattr(
        docker, "environment", lambda host: environment(host) | {"DOCKER_API_VERSION": version}
    )
    if docker.run("version").stdout.count("API version:") < 2:
        pytest.skip(f"this CLI does not speak {version}")
    number = tuple(map(int, version.split(".")))
    assert "linux-1" in docker("node", "ls") and "lnet" in docker("network", "ls")
    assert "2/2" in docker("service", "ls", "--filter", "name=lweb")
    assert docker.one("service", "inspect", "lweb")["Spec"]["Labels"] == {"tier": "front"}
    assert len(docker("service", "ps", "-q", "lweb").splitlines()) == 2
    assert docker.one("network", "inspect", "lnet")["Attachable"] is True
    if number >= (1, 25):
        assert "lst" in docker("stack", "ls") and "lsecret" in docker("secret", "ls")
    if number >= (1, 29):
        assert "app 1 says hello" in docker("service", "logs", "--raw", "lweb")
    docker("service", "update", *(["-d"] if number >= (1, 29) else []), "--label-add", "tier=front", "lweb")


def test_versions_nobody_speaks(docker: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = docker.environment
    monkeypatch.setattr(
        docker, "environment", lambda host: environment(host) | {"DOCKER_API_VERSION": "1.99"}
    )
    said = docker.refused("node", "ls")
    assert "client version 1.99 is too new. Maximum supported API version is 1.51" in said
