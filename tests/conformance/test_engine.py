"""One host's engine through the CLI: what it is, its images and containers, events, and what it cannot do yet."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from .bed import Docker, Swarm, eventually

Image = Callable[[str], str]


def test_version(docker: Docker) -> None:
    shown = docker.json("version", "--format", "{{json .}}")
    server = shown["Server"]
    assert server["Platform"]["Name"] == "Overlace" and server["Os"] == "linux"
    assert (server["ApiVersion"], server["MinAPIVersion"]) == ("1.51", "1.24")
    assert shown["Client"]["ApiVersion"] in ("1.41", "1.50", "1.51"), "negotiated, not refused"
    assert "Server: Overlace" in docker("version")
    windows = docker.json("version", "--format", "{{json .Server}}", host="windows-1")
    assert windows["Os"] == "windows"
    assert "on Linux" in windows["Components"][0]["Details"]["Emulated"], "what is emulated says so"


def test_info(docker: Docker, swarm: Swarm) -> None:
    info = docker.json("info", "--format", "{{json .}}")
    assert not info.get("ServerErrors")
    assert info["Name"] == "linux-1" and info["OSType"] == "linux" and info["NCPU"] > 0
    mine = info["Swarm"]
    assert mine["LocalNodeState"] == "active" and mine["ControlAvailable"]
    assert (mine["Nodes"], mine["Managers"]) == (3, 1)
    assert mine["NodeID"] == swarm.node_id("linux-1") and mine["NodeAddr"] == swarm.lab.manager.address
    text = docker("info")
    assert "Is Manager: true" in text and "Nodes: 3" in text

    worker = docker.json("info", "--format", "{{json .}}", host="linux-2")["Swarm"]
    assert worker["LocalNodeState"] == "active" and not worker["ControlAvailable"]
    assert worker["RemoteManagers"][0]["NodeID"] == swarm.node_id("linux-1")

    windows = docker.json("info", "--format", "{{json .}}", host="windows-1")
    assert windows["OSType"] == "windows" and "com.overlace.emulated=windows" in windows["Labels"]


def test_images(docker: Docker, image: Image) -> None:
    app, multi = image("app:1"), image("multi:1")
    said = docker("pull", app, host="linux-2")
    assert "Digest: sha256:" in said and said.splitlines()[-1].endswith(app)
    assert "Image is up to date" in docker("pull", app, host="linux-2")
    listed = docker.lines("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", host="linux-2")
    assert app in listed
    found = docker.one("image", "inspect", app, host="linux-2")
    assert (found["Os"], found["Architecture"], found["Config"]["Cmd"]) == ("linux", "amd64", ["/app"])
    assert found["RepoDigests"][0].startswith(f"{image('app')}@sha256:")
    assert docker.one("inspect", app, host="linux-2")["Id"] == found["Id"], "probed as an image"
    assert found["Id"].removeprefix("sha256:").startswith(docker("images", "-q", app, host="linux-2"))

    docker("pull", multi, host="linux-2")
    docker("pull", multi, host="windows-1")
    assert docker.one("image", "inspect", multi, host="linux-2")["Os"] == "linux"
    windows = docker.one("image", "inspect", multi, host="windows-1")
    assert (windows["Os"], windows["OsVersion"]) == ("windows", "10.0.20348.2527")

    docker("image", "rm", multi, host="linux-2")
    assert multi not in docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", host="linux-2")
    assert "No such image" in docker.refused("image", "inspect", multi, host="linux-2")
    assert "No such image" in docker.refused("image", "rm", multi, host="linux-2")


def test_images_that_cannot_be_pulled(docker: Docker, image: Image) -> None:
    assert "manifest unknown" in docker.refused("pull", image("nosuch:1"))
    words = docker.refused("pull", image("win:1"))
    assert "is for windows(10.0.20348.2527)/amd64, this host runs linux/amd64" in words
    words = docker.refused("pull", image("newwin:1"), host="windows-1")
    assert "is for windows(10.0.26100.1742)/amd64, this host runs windows(10.0.20348.2527)/amd64" in words
    assert image("win:1") not in docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}")


def test_containers(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker("service", "create", "-d", "--name", "seen", "--env", "A=b c", image("app:1"))
    [task] = swarm.running("seen")
    host = swarm.host_of(task)
    name = f"seen.1.{task['ID']}"
    shown = docker.json("ps", "--format", "{{json .}}", "--filter", f"name={name}", host=host)
    assert (
        shown["Names"] == name
        and shown["Status"].startswith("Up ")
        and shown["Image"].startswith(image("app:1"))
    )
    id = docker("ps", "-q", "--no-trunc", "-f", f"name={name}", host=host)
    assert len(id) == 64 and id == task["Status"]["ContainerStatus"]["ContainerID"]

    for ref in (id, id[:12], name):
        found = docker.one("inspect", ref, host=host)
        assert found["Id"] == id and found["Name"] == f"/{name}"
    assert found["State"]["Running"] and found["State"]["Pid"] > 0 and "A=b c" in found["Config"]["Env"]
    assert found["Config"]["Labels"]["com.docker.swarm.service.name"] == "seen"
    assert docker("inspect", "--format", "{{.State.Status}}", id, host=host) == "running"

    assert docker("logs", name, host=host) == "app 1 says hello"
    assert docker("logs", "--timestamps", name, host=host).endswith("Z app 1 says hello")
    assert "image is being used" in docker.refused("image", "rm", found["Image"], host=host)


def test_inspect_probes_every_kind(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker("network", "create", "-d", "overlay", "probed-net")
    docker("secret", "create", "probed-secret", "-", stdin="x")
    docker("config", "create", "probed-config", "-", stdin="x")
    docker("service", "create", "-d", "--name", "probed-service", image("app:1"))
    [task] = swarm.running("probed-service")
    assert docker.one("inspect", "probed-net")["Driver"] == "overlay"
    assert docker.one("inspect", "probed-service")["Spec"]["Name"] == "probed-service"
    assert docker.one("inspect", "windows-1")["Description"]["Hostname"] == "windows-1"
    assert docker.one("inspect", task["ID"])["NodeID"] == task["NodeID"]
    assert docker.one("inspect", "probed-secret")["Spec"]["Name"] == "probed-secret"
    assert docker.one("inspect", "--type", "service", "probed-service")["ID"]
    assert "No such object: nosuch" in docker.refused("inspect", "nosuch")
    for kind in (
        "container",
        "image",
        "network",
        "node",
        "service",
        "task",
        "secret",
        "config",
        "volume",
        "plugin",
    ):
        if kind == "config":
            continue  # the CLI does not look for configs
        words = docker.refused("inspect", "--type", kind, "nosuch")
        assert "nosuch" in words.lower(), f"{kind}: {words}"


def test_events(docker: Docker, swarm: Swarm, image: Image) -> None:
    def about(kind: str, action: str, key: str, value: str) -> Callable[[str], bool]:
        def wanted(line: str) -> bool:
            event = json.loads(line)
            return (event["Type"], event["Action"]) == (kind, action) and event["Actor"]["Attributes"].get(
                key
            ) == value

        return wanted

    worker = ("events", "--filter", "type=container", "--format", "{{json .}}")
    with (
        docker.following("events", "--format", "{{json .}}") as events,
        docker.following(*worker, host="linux-2") as far,
    ):
        docker("network", "create", "-d", "overlay", "loud-net")
        while not events.seen:  # the subscription may be a moment later than the first event
            try:
                events.wait_for(about("network", "create", "name", "loud-net"), "the network's event", 2)
            except AssertionError:
                docker("network", "rm", "loud-net")
                docker("network", "create", "-d", "overlay", "loud-net")
        docker(
            *("service", "create", "-d", "--name", "loud", "--constraint", "node.hostname==linux-2"),
            *("--stop-grace-period", "2s", image("app:1")),
        )
        events.wait_for(about("service", "create", "name", "loud"), "the service's event")
        swarm.running("loud")
        label = "com.docker.swarm.service.name"
        far.wait_for(about("container", "create", label, "loud"), "the container is created")
        far.wait_for(about("container", "start", label, "loud"), "the container starts")
        docker("service", "update", "-d", "--replicas", "0", "loud")
        events.wait_for(about("service", "update", "replicas.new", "0"), "the update")
        far.wait_for(about("container", "die", label, "loud"), "the container ends")
        docker("node", "update", "--label-add", "loud=1", "linux-2")
        events.wait_for(about("node", "update", "name", "linux-2"), "the node's update")
        docker("node", "update", "--label-rm", "loud", "linux-2")
        docker("service", "rm", "loud")
        events.wait_for(about("service", "remove", "name", "loud"), "the removal")
    past = docker(  # the CLI sends whole seconds: up to the end of this one
        "events", "--since", "1m", "--until=-1s", "--filter", "type=service", "--filter", "event=remove"
    )
    assert "loud" in past, "events of a moment ago are still told"
    replayed = (
        "events",
        "--since",
        "1m",
        "--until=-1s",
        "--format",
        "{{.Type}} {{.Action}} {{.Actor.Attributes.name}}",
    )
    for filters, wanted, unwanted in (
        (("type=network",), "network create loud-net", "service"),
        (("service=lou",), "service update loud", "network"),
        (("node=linux-2",), "node update linux-2", "service"),
        (("scope=swarm", "event=create"), "service create loud", "update"),
        (("scope=local", "type=service"), "", "service"),
        (("label=name=loud", "type=service"), "service remove loud", "node"),
    ):
        told = docker(*replayed, *(word for one in filters for word in ("--filter", one)))
        assert wanted in told and unwanted not in told, f"{filters}: {told}"


NOT_YET = [
    (("network", "create", "plain"), "create an overlay network"),
    (("plugin", "install", "--grant-all-permissions", "x"), "plugins are not supported"),
    (("import", "-"), "push the image to a registry"),
    (("search", "x"), "ask the registry itself"),
    (("image", "prune", "-f"), "remove images by name"),
]
NOT_YET_CONTAINER = [
    (("cp", "ID:/etc/version", "-"), "docker cp is not supported yet"),
    (("diff", "ID"), "docker diff is not supported yet"),
    (("commit", "ID", "x"), "push them to a registry"),
]


@pytest.mark.parametrize(
    ("command", "words"), NOT_YET, ids=lambda value: value[0] if isinstance(value, tuple) else ""
)
def test_what_is_not_there_yet_says_so(docker: Docker, command: tuple[str, ...], words: str) -> None:
    assert words in docker.refused(*command)


def test_what_containers_cannot_do_yet_is_said(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker("service", "create", "-d", "--name", "owned", image("app:1"))
    [task] = swarm.running("owned")
    host, id = swarm.host_of(task), task["Status"]["ContainerStatus"]["ContainerID"]
    for command, words in NOT_YET_CONTAINER:
        said = docker.refused(*(word.replace("ID", id) for word in command), host=host)
        assert words in said, f"docker {command[0]}: {said}"
    assert swarm.inspect(task)["State"]["Running"], "nothing of that touched it"


def test_not_there_is_501_and_never_a_wrong_success(swarm: Swarm) -> None:
    for method, url, body in (
        ("POST", "/images/load", None),
        ("POST", "/build", None),
    ):
        answer = swarm.refusal(method, url, body)
        assert answer.status == 501 and len(answer.message.split()) > 3, (url, answer)
    assert swarm.refusal("GET", "/nosuchpath") == (404, "page not found")
    assert swarm.refusal("GET", "/v9.99/info").message.startswith("client version 9.99 is too new.")
    assert swarm.refusal("GET", "/services?filters={%22foo%22:[%22x%22]}") == (400, "invalid filter 'foo'")


def test_signals_reach_a_task_and_one_that_ends_it_has_it_replaced(
    docker: Docker, swarm: Swarm, image: Image
) -> None:
    program = "trap 'echo reloaded' HUP; while :; do sleep 0.1; done"
    docker(
        "service",
        "create",
        "-d",
        "--name",
        "sig",
        "--restart-delay",
        "0s",
        image("app:1"),
        "sh",
        "-c",
        program,
    )
    [task] = swarm.running("sig")
    host, id = swarm.host_of(task), task["Status"]["ContainerStatus"]["ContainerID"]
    assert "invalid signal" in docker.refused("kill", "-s", "NOPE", id, host=host)
    docker("kill", "-s", "HUP", id, host=host)
    eventually(lambda: "reloaded" in docker("service", "logs", "sig"), "the log tells of the signal")
    docker("kill", id, host=host)
    eventually(
        lambda: [one["ID"] for one in swarm.running("sig") if one["ID"] != task["ID"]], "another task runs"
    )
