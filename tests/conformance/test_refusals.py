"""Bad input for services, and services no node can run: what is said, and that nothing half-made is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .bed import Docker, Swarm, eventually

Image = Callable[[str], str]

REFUSED = [
    (("--name", "bad_/name"), "name must be valid as a DNS name component"),
    (("--name", "x" * 64), "name must be 63 characters or fewer"),
    (("--constraint", "node.role"), "constraint expected one operator from ==, !="),
    (("--constraint", "node.role=manager"), "constraint expected one operator from ==, !="),
    (("--constraint", "1bad==x"), "key '1bad' is invalid"),
    (("--constraint", "node.role==a>b"), "value 'a>b' is invalid"),
    (("--reserve-cpu", "0.0000001"), "Must be at least 0.001"),
    (("--limit-memory", "1000"), "invalid memory value 1000: Must be at least 4MiB"),
    (("--network", "nosuchnet"), "nosuchnet"),
    (("--network", "ingress"), 'Service cannot be explicitly attached to the ingress network "ingress"'),
    (("--secret", "nosuchsecret"), "secret not found: nosuchsecret"),
    (("--config", "nosuchconfig"), "config not found: nosuchconfig"),
    (("-p", "8800:80", "-p", "8800:81"), "duplicate published ports provided"),
    (
        ("-p", "8800:80", "--endpoint-mode", "dnsrr"),
        "port published with ingress mode can't be used with dnsrr mode",
    ),
    (("--mount", "type=tmpfs,dst=/a", "--mount", "type=tmpfs,dst=/a"), "duplicate mount point: /a"),
    (("--env", "A={{.Foo}}"), "can't evaluate field Foo"),
    (("--update-max-failure-ratio", "2"), "update-maxfailureratio cannot be less than 0 or bigger than 1"),
    (
        ("--health-cmd", "true", "--health-interval", "1us"),
        "Interval in HealthConfig cannot be less than 1ms",
    ),
    (("--log-driver", "syslog"), "syslog"),
]


@pytest.mark.parametrize(
    ("options", "words"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_refused(docker: Docker, swarm: Swarm, image: Image, options: tuple[str, ...], words: str) -> None:
    name = () if "--name" in options else ("--name", "refused")
    said = docker.refused("service", "create", "-d", *name, *options, image("app:1"))
    assert words in said, said
    assert swarm.get("/services") == [], "nothing half-made is left"


def test_names_and_ports_are_taken_once(docker: Docker, swarm: Swarm, image: Image) -> None:
    id = docker("service", "create", "-d", "--name", "first", "-p", "8801:80", image("app:1"))
    said = docker.refused("service", "create", "-d", "--name", "first", image("app:1"))
    assert "name conflicts with an existing object: service first already exists" in said
    said = docker.refused("service", "create", "-d", "--name", "second", "-p", "8801:80", image("app:1"))
    assert f"port '8801' is already in use by service 'first' ({id}) as an ingress port" in said
    said = docker.refused(
        "service",
        "create",
        "-d",
        "--name",
        "second",
        "-p",
        "mode=host,published=8801,target=80",
        image("app:1"),
    )
    assert "port '8801' is already in use by service 'first'" in said
    docker("service", "create", "-d", "--name", "second", "-p", "8802:80", image("app:1"))
    said = docker.refused("service", "update", "-d", "--publish-add", "8801:81", "second")
    assert "port '8801' is already in use by service 'first'" in said
    docker("service", "create", "-d", "--name", "udp", "-p", "8801:53/udp", image("app:1"))
    docker("service", "rm", "first")
    docker("service", "update", "-d", "--publish-add", "8801:81", "second")


def test_words_and_status_of_the_api(swarm: Swarm, image: Image) -> None:
    def spec(**more: Any) -> dict[str, Any]:
        return {"Name": "raw", "TaskTemplate": {"ContainerSpec": {"Image": image("app:1")}}} | more

    def refused(body: Any, status: int, words: str) -> None:
        answer = swarm.refusal("POST", "/services/create", body)
        assert answer.status == status and words in answer.message, answer

    refused({"Name": "raw", "TaskTemplate": {}}, 400, "mismatched Runtime and *Spec fields")
    refused({"Name": "raw", "TaskTemplate": {"ContainerSpec": {}}}, 400, "image reference must be provided")
    refused(
        {"Name": "raw", "TaskTemplate": {"ContainerSpec": {"Image": "BAD:IMG:x"}}},
        400,
        '"BAD:IMG:x" is not a valid repository/tag',
    )
    refused(spec(Mode={"Replicated": {"Replicas": -1}}), 400, "Replicas")
    refused(spec(Mode={"Replicated": {}, "Global": {}}), 400, "must specify only one service mode")
    refused(spec(Mode={"ReplicatedJob": {}}, UpdateConfig={}), 400, "Jobs may not have an update config")
    refused(spec(UpdateConfig={"FailureAction": "foo"}), 400, "unrecognized update failure action foo")
    refused(spec(Networks=[{"Target": "nosuch"}]), 400, "network nosuch not found")
    assert swarm.get("/services") == []

    id = swarm.call("POST", "/services/create", spec())["ID"]
    refused(spec(), 409, "name conflicts with an existing object: service raw already exists")
    swarm.running("raw")  # by then nobody but us changes it
    old = swarm.get(f"/services/{id}")
    version = old["Version"]["Index"]
    swarm.call("POST", f"/services/{id}/update?version={version}", spec(Labels={"a": "b"}))
    answer = swarm.refusal("POST", f"/services/{id}/update?version={version}", spec(Labels={"a": "c"}))
    assert "update out of sequence" in answer.message, "clients retry on these words"
    answer = swarm.refusal("POST", f"/services/{id}/update?version=x", spec())
    assert answer.status == 400 and "invalid service version 'x'" in answer.message
    assert swarm.get(f"/services/{id}")["Spec"]["Labels"] == {"a": "b"}
    version = swarm.get(f"/services/{id}")["Version"]["Index"]
    answer = swarm.refusal("POST", f"/services/{id}/update?version={version}", spec(Name="other"))
    assert answer.status == 501 and "renaming services is not supported" in answer.message
    answer = swarm.refusal("POST", f"/services/{id}/update?version={version}", spec(Mode={"Global": {}}))
    assert answer.status == 501 and "service mode change is not allowed" in answer.message
    assert swarm.refusal("GET", f"/services/{id}/logs").status == 400


def test_no_node_will_do(docker: Docker, swarm: Swarm, image: Image) -> None:
    """The task waits and says how many nodes each filter turned away."""
    cases = {
        "nowhere": (
            ("--constraint", "node.labels.zone==moon"),
            "app:1",
            "scheduling constraints not satisfied on 3 nodes",
        ),
        "unknownkey": (
            ("--constraint", "node.nosuch==x"),
            "app:1",
            "scheduling constraints not satisfied on 3 nodes",
        ),
        "large": (("--reserve-memory", "1000g"), "app:1", "insufficient resources on 3 nodes"),
        "busy": (("--reserve-cpu", "500"), "app:1", "insufficient resources on 3 nodes"),
        "arm": ((), "arm:1", "unsupported platform on 3 nodes"),
        "oldwindows": ((), "oldwin:1", "unsupported platform on 3 nodes"),
        "newwindows": ((), "newwin:1", "unsupported platform on 3 nodes"),
        "both": (
            ("--constraint", "node.platform.os==windows"),
            "app:1",
            "scheduling constraints not satisfied on 2 nodes",
        ),
    }
    for name, (options, which, _) in cases.items():
        docker("service", "create", "-d", "--name", name, *options, image(which))
    for name, (_, _, words) in cases.items():
        err = swarm.pending(name, words)["Status"]["Err"]
        assert err.startswith("no suitable node ("), err
    assert "unsupported platform on 1 node)" in swarm.pending("both", "unsupported")["Status"]["Err"]
    said = docker("service", "ps", "arm", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}")
    assert said.startswith("Pending ") and "no suitable node (unsupported platform on 3 nodes)" in said
    docker("service", "update", "-d", "--constraint-rm", "node.labels.zone==moon", "nowhere")
    swarm.running("nowhere")


def test_host_ports_are_one_per_node(docker: Docker, swarm: Swarm, image: Image) -> None:
    port = "mode=host,published=8803,target=80"
    docker("service", "create", "-d", "--name", "held", "--replicas", "3", "-p", port, image("app:1"))
    err = swarm.pending("held", "host-mode port already in use on 2 nodes")["Status"]["Err"]
    assert "unsupported platform on 1 node" in err
    there = [t for t in swarm.tasks("held") if t["Status"]["State"] == "running"]
    eventually(
        lambda: len([t for t in swarm.tasks("held") if t["Status"]["State"] == "running"]) == 2, "two run"
    )
    assert len({t["NodeID"] for t in swarm.tasks("held") if t.get("NodeID")}) == 2, there


def test_max_replicas_per_node(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker(
        "service",
        "create",
        "-d",
        "--name",
        "few",
        "--replicas",
        "3",
        "--replicas-max-per-node",
        "1",
        image("app:1"),
    )
    swarm.pending("few", "max replicas per node limit exceed")
    eventually(
        lambda: len([t for t in swarm.tasks("few") if t["Status"]["State"] == "running"]) == 2, "two run"
    )


def test_images_that_cannot_be_had(docker: Docker, swarm: Swarm, image: Image) -> None:
    said = docker.said(
        "service", "create", "-d", "--name", "unknown", "--restart-delay", "1h", image("nosuch:1")
    )
    assert "could not be accessed on a registry to record" in said, "a warning, not a refusal"
    task = swarm.pending("unknown", "manifest unknown")
    assert task["Status"]["State"] == "rejected"
    silent = f"{swarm.lab.plan.address(249)}:5000/x:1"  # nobody has this address
    said = docker.said("service", "create", "-d", "--name", "silent", "--replicas", "0", silent)
    assert f"image {silent} could not be accessed on a registry" in said
    assert (
        docker.one("service", "inspect", "silent")["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] == silent
    )
