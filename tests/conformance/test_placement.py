"""Where tasks land: by what the image runs on, by constraints, spread."""

from __future__ import annotations

import json
from collections.abc import Callable

from .bed import Docker, Swarm, eventually

Image = Callable[[str], str]
HOSTS = {"linux-1", "linux-2", "windows-1"}


def test_the_image_decides(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker("service", "create", "-d", "--name", "win", "--replicas", "2", "-p", "8950:80", image("win:1"))
    docker("service", "create", "-d", "--name", "lin", "--replicas", "3", image("app:1"))
    docker("service", "create", "-d", "--name", "any", "--replicas", "3", image("multi:1"))
    assert set(swarm.where("win", 2)) == {"windows-1"}
    assert set(swarm.where("lin", 3)) == {"linux-1", "linux-2"}
    anywhere = swarm.where("any", 3)
    assert set(anywhere) == HOSTS, "an image for all runs on all"
    for host, [task] in anywhere.items():
        wanted = "windows" if host == "windows-1" else "linux"
        said = swarm.inside(task, "cat /etc/platform")
        assert said == wanted, f"{host} runs the variant for {said}"
    platforms = docker.one("service", "inspect", "win")["Spec"]["TaskTemplate"]["Placement"]["Platforms"]
    assert [p["OS"] for p in platforms] == ["windows"]
    found = swarm.answers(f"http://{swarm.lab.host('linux-2').address}:8950/cgi-bin/who")
    assert found["platform"] == "windows", "a Linux host leads to the Windows service"

    docker("node", "update", "--availability", "drain", "windows-1")
    try:
        err = swarm.pending("win", "no suitable node")["Status"]["Err"]
        assert err == "no suitable node (unsupported platform on 2 nodes; 1 node not available for new tasks)"
        assert set(swarm.where("any", 3)) == {"linux-1", "linux-2"}
    finally:
        docker("node", "update", "--availability", "active", "windows-1")
    assert set(swarm.where("win", 2)) == {"windows-1"}


def test_constraints(docker: Docker, swarm: Swarm, image: Image) -> None:
    swarm_nodes = swarm.nodes()
    cases: dict[str, tuple[tuple[str, ...], set[str]]] = {
        "id": ((f"node.id=={swarm_nodes['linux-2']['ID']}",), {"linux-2"}),
        "hostname": (("node.hostname != linux-2", "node.platform.os == linux"), {"linux-1"}),
        "role": (("node.role==manager",), {"linux-1"}),
        "worker": (("node.role!=manager",), {"linux-2", "windows-1"}),
        "os": (("node.platform.os==windows",), {"windows-1"}),
        "notos": (("node.platform.os!=windows",), {"linux-1", "linux-2"}),
        "arch": (("node.platform.arch==x86_64",), HOSTS),
        "ip": ((f"node.ip=={swarm.lab.host('linux-2').address}",), {"linux-2"}),
        "engine": (("engine.labels.com.overlace.emulated==windows",), {"windows-1"}),
        "label": (("node.labels.size==big",), {"linux-2"}),
        "notlabel": (("node.labels.size!=big",), {"linux-1", "windows-1"}),
    }
    docker("node", "update", "--label-add", "size=big", "linux-2")
    try:
        for name, (constraints, _) in cases.items():
            options = [word for text in constraints for word in ("--constraint", text)]
            docker("service", "create", "-d", "--name", name, "--mode", "global", *options, image("multi:1"))
        for name, (constraints, hosts) in cases.items():
            assert set(swarm.where(name, len(hosts))) == hosts, constraints
    finally:
        docker("node", "update", "--label-rm", "size", "linux-2")


def test_spread_over_a_label(docker: Docker, swarm: Swarm, image: Image) -> None:
    for host, rack in (("linux-1", "a"), ("linux-2", "b"), ("windows-1", "b")):
        docker("node", "update", "--label-add", f"rack={rack}", host)
    try:
        docker(
            *("service", "create", "-d", "--name", "spread", "--replicas", "8"),
            *("--placement-pref", "spread=node.labels.rack", image("multi:1")),
        )
        counts = {host: len(tasks) for host, tasks in swarm.where("spread", 8).items()}
        assert counts == {"linux-1": 4, "linux-2": 2, "windows-1": 2}, "half to each rack"
    finally:
        for host in HOSTS:
            docker("node", "update", "--label-rm", "rack", host)


def test_reservations_are_counted(docker: Docker, swarm: Swarm, image: Image) -> None:
    """Two tasks that each reserve more than half a host's memory never share it."""
    memory = swarm.nodes()["linux-1"]["Description"]["Resources"]["MemoryBytes"]
    docker(
        "service",
        "create",
        "-d",
        "--name",
        "heavy",
        "--replicas",
        "3",
        "--reserve-memory",
        str(memory * 6 // 10),
        image("app:1"),
    )
    err = swarm.pending("heavy", "insufficient resources on 2 nodes")["Status"]["Err"]
    assert "unsupported platform on 1 node" in err
    eventually(
        lambda: len([t for t in swarm.tasks("heavy") if t["Status"]["State"] == "running"]) == 2, "two run"
    )
    limits = ("--limit-memory", "32m", "--limit-cpu", "0.5")
    docker("service", "create", "-d", "--name", "bound", *limits, image("app:1"))
    found = swarm.inspect(swarm.running("bound")[0])
    assert (found["HostConfig"]["Memory"], found["HostConfig"]["NanoCpus"]) == (32 << 20, 500_000_000)
    assert json.loads(docker("service", "inspect", "bound"))[0]["Spec"]["TaskTemplate"]["Resources"]["Limits"]


def test_generic_resources(anydocker: Docker, swarm: Swarm, image: Image) -> None:
    """The lab's Linux hosts pretend two GPUs by name and three licences each."""
    docker = anydocker
    manager = next(n for n, node in swarm.nodes().items() if node["Spec"]["Role"] == "manager")
    shown = docker.one("node", "inspect", "self")["Description"]["Resources"]["GenericResources"]
    assert shown == [
        {"NamedResourceSpec": {"Kind": "gpu", "Value": f"{manager}-gpu0"}},
        {"NamedResourceSpec": {"Kind": "gpu", "Value": f"{manager}-gpu1"}},
        {"DiscreteResourceSpec": {"Kind": "licence", "Value": 3}},
    ]
    docker(
        *(
            "service",
            "create",
            "-d",
            "--name",
            "renders",
            "--replicas",
            "3",
            "--constraint",
            f"node.hostname=={manager}",
        ),
        *("--generic-resource", "gpu=1", "--generic-resource", "licence=1", image("app:1")),
    )
    swarm.pending("renders", "insufficient resources on 2 nodes")
    there = [t for t in swarm.tasks("renders") if t["Status"]["State"] != "pending"]
    held = {task["GenericResources"][0]["NamedResourceSpec"]["Value"]: task for task in there}
    assert set(held) == {f"{manager}-gpu0", f"{manager}-gpu1"}

    def running() -> bool:
        return sum(t["Status"]["State"] == "running" for t in swarm.tasks("renders")) == 2

    eventually(running, "two of them run")
    ids = {task["ID"]: name for name, task in held.items()}
    for task in [t for t in swarm.tasks("renders") if t["ID"] in ids]:
        name, environment = ids[task["ID"]], swarm.inspect(task)["Config"]["Env"]
        assert f"DOCKER_RESOURCE_GPU={name}" in environment and "DOCKER_RESOURCE_LICENCE=1" in environment
    why = json.dumps(swarm.call("GET", "/overlace/v1/why?of=renders"))
    assert "needs 1 of gpu, 0 of 2 are free" in why, why
    docker("service", "scale", "-d", "renders=2")
    docker(
        "service", "update", "-d", "--generic-resource-rm", "licence", "--update-parallelism", "0", "renders"
    )
    swarm.updated("renders")
    swarm.running("renders", 2)
