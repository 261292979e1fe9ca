"""`docker node`: seeing hosts, labelling, draining and removing them."""

from __future__ import annotations

from collections.abc import Callable

from .bed import Docker, Swarm, eventually

Image = Callable[[str], str]


def test_ls_and_inspect(docker: Docker, swarm: Swarm) -> None:
    listed = docker.lines(
        "node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.Availability}} {{.ManagerStatus}}"
    )
    assert [line.strip() for line in sorted(listed)] == [
        "linux-1 Ready Active Leader",
        "linux-2 Ready Active",
        "windows-1 Ready Active",
    ]
    assert (
        docker("node", "ls", "--filter", "role=manager", "--format", "{{.Hostname}} {{.Self}}")
        == "linux-1 true"
    )
    assert docker("node", "ls", "-f", "name=windows-1", "-q") == swarm.node_id("windows-1")

    me = docker.one("node", "inspect", "self")
    assert me["ID"] == swarm.node_id("linux-1") and me["Status"]["State"] == "ready"
    assert me["Status"]["Addr"] == swarm.lab.manager.address
    assert (
        me["ManagerStatus"]["Leader"] and me["ManagerStatus"]["Addr"] == f"{swarm.lab.manager.address}:2377"
    )
    about = docker.one("node", "inspect", "windows-1")["Description"]
    assert about["Platform"] == {"Architecture": "x86_64", "OS": "windows"}
    assert about["Engine"]["Labels"]["com.overlace.emulated"] == "windows"
    assert about["Resources"]["NanoCPUs"] > 0 and about["Resources"]["MemoryBytes"] > 0
    assert "Operating System:\twindows" in docker("node", "inspect", "--pretty", "windows-1")
    assert docker.one("node", "inspect", me["ID"][:10])["ID"] == me["ID"], "an id's beginning is enough"
    assert "nosuch" in docker.refused("node", "inspect", "nosuch")


def test_labels(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker("node", "update", "--label-add", "zone=east", "--label-add", "ssd", "linux-2")
    try:
        assert docker.one("node", "inspect", "linux-2")["Spec"]["Labels"] == {"zone": "east", "ssd": ""}
        assert docker("node", "ls", "-f", "node.label=zone=east", "--format", "{{.Hostname}}") == "linux-2"
        docker(
            *("service", "create", "-d", "--name", "east", "--constraint", "node.labels.zone==east"),
            *("--restart-delay", "0s", image("app:1")),
        )
        assert set(swarm.where("east")) == {"linux-2"}
        docker("node", "update", "--label-rm", "zone", "linux-2")
        swarm.pending("east", "scheduling constraints not satisfied on ")
        docker("node", "update", "--label-add", "zone=east", "linux-1")
        assert set(swarm.where("east")) == {"linux-1"}, "a waiting task goes where it can as soon as it can"
    finally:
        docker.run("node", "update", "--label-rm", "ssd", "linux-2")
        docker.run("node", "update", "--label-rm", "zone", "linux-2")
        docker.run("node", "update", "--label-rm", "zone", "linux-1")
    assert docker.one("node", "inspect", "linux-1")["Spec"]["Labels"] == {}


def test_drain_moves_tasks_and_active_takes_new_ones(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker("service", "create", "-d", "--name", "spread", "--replicas", "4", image("app:1"))
    assert {host: len(there) for host, there in swarm.where("spread", 4).items()} == {
        "linux-1": 2,
        "linux-2": 2,
    }
    shown = docker.lines(
        "node", "ps", "linux-2", "-f", "desired-state=running", "--format", "{{.Name}} {{.CurrentState}}"
    )
    assert len([line for line in shown if line.startswith("spread.") and " Running " in line]) == 2
    docker("node", "update", "--availability", "drain", "linux-2")
    try:
        assert docker("node", "inspect", "-f", "{{.Spec.Availability}}", "linux-2") == "drain"
        eventually(lambda: set(swarm.where("spread", 4)) == {"linux-1"}, "all moved off the drained node")
        eventually(lambda: not swarm.containers("linux-2", "spread"), "its containers end")
        docker("service", "create", "-d", "--name", "later", "--replicas", "2", image("app:1"))
        assert set(swarm.where("later", 2)) == {"linux-1"}
        docker("node", "update", "--availability", "active", "linux-2")
        docker("service", "scale", "-d", "later=4")
        assert len(swarm.where("later", 4)["linux-2"]) == 2, "an active node takes tasks again"
        assert set(swarm.where("spread", 4)) == {"linux-1"}, "nothing is moved back"
    finally:
        docker("node", "update", "--availability", "active", "linux-2")


def test_a_drain_where_updates_start_first(anydocker: Docker, swarm: Swarm, image: Image) -> None:
    """The only replica stays until another runs. Where none can, the node is emptied at once, as by Docker."""
    docker = anydocker
    docker("node", "update", "--label-add", "shop=1", "linux-2")
    try:
        docker(
            *("service", "create", "-d", "--name", "only", "--constraint", "node.labels.shop==1"),
            *("--update-order", "start-first", "-p", "8761:80", image("app:1")),
        )
        swarm.running("only")
        docker("node", "update", "--availability", "drain", "linux-2")
        swarm.pending("only", "no suitable node")
        eventually(lambda: not swarm.containers("linux-2", "only"), "its container ends")
        docker("node", "update", "--label-add", "shop=1", "linux-1")
        eventually(lambda: set(swarm.where("only")) == {"linux-1"}, "it runs where it can again")
        docker("node", "update", "--availability", "active", "linux-2")
        url = f"http://{swarm.lab.host('linux-2').address}:8761/cgi-bin/who"
        eventually(lambda: swarm.answers(url), "it answers")
        docker("node", "update", "--availability", "drain", "linux-1")
        while set(swarm.where("only")) != {"linux-2"}:
            assert swarm.answers(url), "one of the two answers all the time"
        eventually(lambda: not swarm.containers("linux-1", "only"), "its container ends")
        assert swarm.answers(url)
    finally:
        for host in ("linux-1", "linux-2"):
            docker("node", "update", "--availability", "active", host)
            docker.run("node", "update", "--label-rm", "shop", host)


def test_pause_keeps_what_runs(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker(
        "service",
        "create",
        "-d",
        "--name",
        "paused",
        "--constraint",
        "node.hostname==linux-2",
        image("app:1"),
    )
    [task] = swarm.running("paused")
    docker("node", "update", "--availability", "pause", "linux-2")
    try:
        docker("service", "scale", "-d", "paused=2")
        waiting = swarm.pending("paused", "no suitable node")
        assert "1 node not available for new tasks" in waiting["Status"]["Err"]
        assert "scheduling constraints not satisfied on 2 nodes" in waiting["Status"]["Err"]
        assert swarm.inspect(task)["State"]["Running"]
    finally:
        docker("node", "update", "--availability", "active", "linux-2")
    assert task["ID"] in {t["ID"] for t in swarm.running("paused", 2)}


def test_refusals(docker: Docker, swarm: Swarm) -> None:
    words = docker.refused("node", "rm", "linux-1")
    assert (
        "is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal"
        in words
    )
    assert "is not down and can't be removed" in docker.refused("node", "rm", "linux-2")
    assert "attempting to demote the last manager of the swarm" in docker.refused("node", "demote", "linux-1")
    assert "nosuch" in docker.refused("node", "rm", "nosuch")
    node = swarm.nodes()["linux-2"]
    stale = f"/nodes/{node['ID']}/update?version={node['Version']['Index'] - 1}"
    assert "update out of sequence" in swarm.refusal("POST", stale, node["Spec"]).message
    bad = f"/nodes/{node['ID']}/update?version={node['Version']['Index']}"
    answer = swarm.refusal("POST", bad, node["Spec"] | {"Availability": "foo"})
    assert answer == (400, 'invalid Availability: "foo"')
    assert {name for name, n in swarm.nodes().items() if n["Status"]["State"] == "ready"} == {
        "linux-1",
        "linux-2",
        "windows-1",
    }
