"""`docker run`: containers of one host, with the real CLI, on hosts in a swarm and on a host in none."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overlace.lab import Lab

from .bed import Docker, Swarm, eventually, overlace
from .images import push_images

Image = Callable[[str], str]


@pytest.fixture(autouse=True)
def no_containers_left(lab: Lab, anydocker: Docker) -> Iterator[None]:
    """Standalone containers a test made are gone after it."""
    yield
    for host in ("linux-1", "linux-2"):
        left = anydocker("ps", "-aq", "--filter", "is-task=false", host=host).split()
        if left:
            anydocker("rm", "-f", "-v", *left, host=host)


def status(docker: Docker, name: str, host: str | None = None) -> str:
    return docker("ps", "-a", "--filter", f"name=^{name}$", "--format", "{{.Status}}", host=host)


def test_run_once(docker: Docker, image: Image) -> None:
    app = image("app:1")
    done = docker.run("run", "--rm", app, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (7, "out\n", "err")
    assert docker("run", "--rm", "-i", app, "cat", stdin="to and fro") == "to and fro"
    missing = docker.run("run", "--rm", app, "nosuch")
    assert (
        missing.returncode == 127 and 'exec: "nosuch": executable file not found in $PATH' in missing.stderr
    )
    assert docker("ps", "-aq", "--filter", "is-task=false") == ""


def test_a_terminal(docker: Docker, image: Image) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [
            docker.program,
            "run",
            "--rm",
            "-it",
            image("app:1"),
            "sh",
            "-c",
            "tty; read line; echo got $line; exit 3",
        ],
        env=docker.environment(None),
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    os.set_blocking(leader, False)
    seen = b""

    def says(what: bytes) -> bool:
        nonlocal seen
        try:
            seen += os.read(leader, 4096)
        except BlockingIOError:
            pass
        except OSError:
            """The other side has ended."""
        return what in seen

    try:
        eventually(lambda: says(b"/dev/pts/"), "it has a terminal")
        os.write(leader, b"hello\n")
        eventually(lambda: says(b"got hello"), "it reads what is typed")
        assert process.wait(20) == 3
    finally:
        process.kill()
        process.wait(10)
        os.close(leader)


def test_the_life_of_one(docker: Docker, image: Image) -> None:
    id = docker("run", "-d", "--name", "box", "-e", "A=b", "-l", "mine=1", image("app:1"), "sleep", "1000")
    assert docker("ps", "-q", "--no-trunc", "--filter", "label=mine=1") == id
    assert docker("exec", "box", "sh", "-c", "echo $A") == "b"
    assert "container is running: stop the container before removing" in docker.refused("rm", "box")
    said = docker.refused("run", "-d", "--name", "box", image("app:1"))
    assert 'The container name "/box" is already in use' in said
    docker("stop", "-t", "0", "box")
    assert status(docker, "box").startswith("Exited (137)")
    docker("start", "box")
    docker("restart", "-t", "0", "box")
    docker("rename", "box", "crate")
    assert status(docker, "crate").startswith("Up")
    with docker.following("wait", "crate") as waiting:
        docker("kill", "-s", "KILL", "crate")
        waiting.wait_for(lambda line: "137" in line, "its exit code")
    docker("rm", "crate")
    assert docker.refused("inspect", "crate")


def test_events_of_one(docker: Docker, image: Image) -> None:
    id = docker("run", "-d", "--name", "told", image("app:1"), "sleep", "1000")
    docker("kill", "-s", "USR1", "told")
    docker("stop", "-t", "0", "told")
    docker("rm", "told")
    shown = '{{.Action}} {{index .Actor.Attributes "signal"}}'
    lines = docker.lines(
        "events",
        "--since",
        "1m",
        "--until",
        str(int(time.time()) + 1),
        "--filter",
        "container=told",
        "--format",
        shown,
    )
    words = [line.split() for line in lines]
    assert [w[0] for w in words] == ["create", "start", "kill", "kill", "die", "stop", "destroy"], lines
    assert [w[1:] for w in words if w[0] == "kill"] == [["10"], ["15"]]
    networks = docker.lines(
        *("events", "--since", "1m", "--until", str(int(time.time()) + 1), "--filter", "type=network"),
        *("--format", "{{.Action}} {{.Actor.Attributes.name}} {{.Actor.Attributes.container}}"),
    )
    assert [line for line in networks if id in line] == [f"connect bridge {id}", f"disconnect bridge {id}"]


def test_ports_of_the_host(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker("run", "-d", "--name", "web", "-p", "8088:80", image("app:1"))
    assert docker("port", "web") == "80/tcp -> 0.0.0.0:8088"
    url = f"http://{swarm.lab.manager.address}:8088/cgi-bin/who"
    eventually(lambda: swarm.curl(url), "the published port answers")
    said = docker.refused("run", "-d", "--name", "late", "-p", "8088:80", image("app:1"))
    assert "Bind for 0.0.0.0:8088 failed: port is already allocated" in said
    assert status(docker, "late") == "Created"
    docker("stop", "-t", "0", "web")
    docker("start", "late")


def test_ports_of_one_address_of_the_host(docker: Docker, swarm: Swarm, image: Image) -> None:
    """Of this host alone, and of an address that came while the daemon ran; a service is at that one, too."""
    lab, app, more = swarm.lab, image("app:1"), "198.18.7.1"
    device = json.loads(lab.exec("linux-1", "ip", "-j", "-4", "addr", "show", "scope", "global").stdout)[0][
        "ifname"
    ]
    lab.exec("linux-1", "ip", "addr", "add", f"{more}/32", "dev", device)
    lab.exec("client", "ip", "route", "add", f"{more}/32", "via", lab.manager.address)
    try:
        docker("run", "-d", "--name", "here", "--hostname", "here", "-p", "127.0.0.1:8091:80", app)
        docker("run", "-d", "--name", "there", "--hostname", "there", "-p", f"{more}:8091:80", app)
        assert docker("port", "here") == "80/tcp -> 127.0.0.1:8091"
        assert f"{more}:8091->80/tcp" in docker("ps", "--filter", "name=there", "--format", "{{.Ports}}")
        assert swarm.answers("http://127.0.0.1:8091/cgi-bin/who", host="linux-1")["host"] == "here"
        assert swarm.answers(f"http://{more}:8091/cgi-bin/who")["host"] == "there"
        assert not swarm.curl(f"http://{lab.manager.address}:8091/", seconds=1)
        for address, words in (
            ("0.0.0.0", "Bind for 0.0.0.0:8091 failed: port is already allocated"),
            ("127.0.0.1", "Bind for 127.0.0.1:8091 failed: port is already allocated"),
            ("198.18.7.99", "listen tcp4 198.18.7.99:8091: bind: cannot assign requested address"),
        ):
            assert words in docker.refused("run", "-d", "-p", f"{address}:8091:80", app)
        docker("service", "create", "-d", "--name", "all", "-p", "8092:80", app)
        swarm.running("all")
        assert swarm.answers(f"http://{more}:8092/cgi-bin/who")
    finally:
        docker.run("service", "rm", "all")
        lab.exec("client", "ip", "route", "del", f"{more}/32")
        lab.exec("linux-1", "ip", "addr", "del", f"{more}/32", "dev", device)


def test_names_of_what_is_not_done(docker: Docker, image: Image) -> None:
    for options, field in (
        (("--privileged",), "HostConfig.Privileged"),
        (("--pid", "host"), "HostConfig.PidMode"),
        (("--device", "/dev/null"), "HostConfig.Devices"),
        (("--cpuset-cpus", "0"), "HostConfig.CpusetCpus"),
        (("--volumes-from", "x"), "HostConfig.VolumesFrom"),
        (("--network", "container:x"), "HostConfig.NetworkMode"),
    ):
        assert f"{field} " in docker.refused("run", *options, image("app:1"), "true")


def test_a_host_in_no_swarm_and_its_policies(apart: Lab, cli: str, config: str) -> None:
    """Over the daemon's death and a power cut."""
    push_images(apart.registry)
    docker, host, app = Docker(cli, apart, config), "linux-2", f"{apart.registry}/app:1"

    def run(name: str, *options: str) -> None:
        docker("run", "-d", "--name", name, *options, app, "sleep", "1000", host=host)

    def pid(name: str) -> int:
        return int(docker("inspect", "-f", "{{.State.Pid}}", name, host=host))

    try:
        run("always", "--restart", "always")
        run("unless", "--restart", "unless-stopped")
        run("plain", "-p", "8089:80")
        run("stopped", "--restart", "unless-stopped")
        run("once", "--rm")
        docker("stop", "-t", "0", "stopped", host=host)
        plain, unless = pid("plain"), pid("unless")
        apart.stop_daemon(host, signal.SIGKILL)
        os.kill(unless, signal.SIGKILL)
        apart.start_host(host)
        eventually(lambda: status(docker, "unless", host).startswith("Up"), "what ended unseen starts again")
        assert pid("plain") == plain, "containers go on"
        assert docker("port", "plain", host=host) == "80/tcp -> 0.0.0.0:8089"
        assert status(docker, "stopped", host).startswith("Exited")
        for verb in (("init", "--advertise-addr", apart.host(host).address), ("leave", "--force")):
            docker("swarm", *verb, host=host)
            assert pid("plain") == plain, "it goes on whether or not its host is in a swarm"
            ip = docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "plain", host=host)
            assert docker("run", "--rm", app, "ping", "-c", "1", "-W", "3", ip, host=host)
        apart.kill_host(host)
        apart.start_host(host)
        for name in ("always", "unless"):
            eventually(
                lambda n=name: status(docker, n, host).startswith("Up"), f"{name} starts after a power cut"
            )
        eventually(lambda: status(docker, "once", host) == "", "--rm after a power cut")
        assert status(docker, "plain", host).startswith("Exited (137)")
        assert status(docker, "stopped", host).startswith("Exited")
        ip = docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "always", host=host)
        assert docker("run", "--rm", app, "ping", "-c", "1", "-W", "3", ip, host=host)
    finally:
        left = docker("ps", "-aq", host=host).split()
        if left:
            docker("rm", "-f", *left, host=host)


def test_a_services_container_may_be_stopped_and_is_replaced(
    docker: Docker, swarm: Swarm, image: Image
) -> None:
    docker("service", "create", "-d", "--name", "kept", "--restart-delay", "0s", image("app:1"))
    [task] = swarm.running("kept")
    host, id = swarm.host_of(task), task["Status"]["ContainerStatus"]["ContainerID"]
    docker("stop", "-t", "1", id, host=host)

    def another() -> bool:
        [now] = swarm.running("kept")
        return now["ID"] != task["ID"]

    eventually(another, "its service starts another")
    [task] = swarm.running("kept")
    host, id = swarm.host_of(task), task["Status"]["ContainerStatus"]["ContainerID"]
    docker("rm", "-f", id, host=host)
    eventually(another, "its service starts another")
    assert "belongs to a service" in docker.refused(
        "rename", docker("ps", "-q", host=host).split()[0], "x1", host=host
    )


# -- attachable networks -----------------------------------------------------------------------------------------


def test_an_attachable_network_over_two_hosts(docker: Docker, swarm: Swarm, image: Image) -> None:
    one, two, app = "linux-1", "linux-2", image("app:1")
    docker("network", "create", "-d", "overlay", "--attachable", "open")
    docker("run", "-d", "--name", "box1", "--network", "open", "--network-alias", "nick", app, host=one)
    docker("run", "-d", "--name", "box2", "--network", "open", "-p", "8087:80", app, host=two)
    docker("service", "create", "-d", "--name", "shop", "--network", "open", app)
    swarm.running("shop")

    def asks(box: str, name: str, host: str) -> str:
        return docker("exec", box, "wget", "-qO-", f"http://{name}/cgi-bin/who", host=host)

    for box, names, host in (("box2", ("box1", "nick", "shop"), two), ("box1", ("box2", "shop"), one)):
        for name in names:
            eventually(lambda b=box, n=name, h=host: asks(b, n, h), f"{box} reaches {name}")
    [task] = swarm.running("shop")
    assert swarm.fetch(task, "http://box1/cgi-bin/who"), "a service's task reaches a container by its name"
    assert swarm.curl(f"http://{swarm.lab.host(two).address}:8087/cgi-bin/who"), "its published port answers"
    found = docker.one("network", "inspect", "open", host=two)["Containers"]
    assert "box2" in {c["Name"] for c in found.values()} and "box1" not in {c["Name"] for c in found.values()}
    shown = docker.one("inspect", "box2", host=two)["NetworkSettings"]["Networks"]["open"]
    assert shown["IPAddress"] and shown["NetworkID"] == docker.one("network", "inspect", "open")["Id"]
    assert "box" not in docker("node", "ps", "linux-1", "linux-2"), "they are no tasks for people"
    docker("service", "rm", "shop")
    eventually(
        lambda: "is in use by task" in docker.refused("network", "rm", "open"), "boxes hold the network"
    )
    docker("rm", "-f", "box1", host=one)
    docker("rm", "-f", "box2", host=two)
    eventually(lambda: docker.run("network", "rm", "open").returncode == 0, "nobody holds it any more")


def test_policies_and_traces_know_containers(
    docker: Docker, anydocker: Docker, swarm: Swarm, image: Image, tmp_path: Path
) -> None:
    one, two, app = "linux-1", "linux-2", image("app:1")
    docker("network", "create", "-d", "overlay", "--attachable", "open")
    label, bind = "overlace.policy.allow-from=front:tcp/80", f"{tmp_path}:/mnt:ro"
    inside = ("--network", "open", app)
    docker(
        "run",
        "-d",
        "--name",
        "vault",
        "--network-alias",
        "safe",
        "--label",
        label,
        "-v",
        bind,
        *inside,
        host=one,
    )
    docker("run", "-d", "--name", "front", *inside, host=two)
    docker("run", "-d", "--name", "stranger", *inside, host=two)
    found = docker.one("inspect", "vault", host=one)
    assert found["Mounts"][0]["Mode"] == "ro" and not found["Mounts"][0]["RW"]
    assert found["NetworkSettings"]["Networks"]["open"]["DNSNames"] == ["vault", "safe", found["Id"][:12]]

    def reaches(name: str) -> bool:
        asked = ("exec", name, "timeout", "3", "wget", "-qO-", "http://vault/cgi-bin/who")
        return docker.run(*asked, host=two).returncode == 0

    eventually(lambda: reaches("front"), "whom the label names is let in")
    assert not reaches("stranger")
    other = docker.one("inspect", "stranger", host=two)["Id"]
    for who, code, outcome in (("front", 0, "reaches vault on linux-1"), (other, 1, "broken")):
        said = json.loads(overlace(anydocker, "trace", who, "vault", "--json", code=code))
        assert said["Outcome"].startswith(outcome), said
    wrong = docker.refused("run", "--label", "overlace.policy.allow-from=web:http", app)
    assert "is no protocol" in wrong


def test_which_networks_do_not_attach(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker("network", "create", "-d", "overlay", "closed")
    docker("network", "create", "-d", "overlay", "--attachable", "--subnet", "10.55.0.0/24", "open")
    app = image("app:1")
    for host in ("linux-1", "linux-2"):
        said = docker.refused("run", "--rm", "--network", "closed", app, "true", host=host)
        assert (
            "Could not attach to network closed: rpc error: code = PermissionDenied desc = network closed not manually "
            "attachable"
        ) in said
        assert "network nosuch not found" in docker.refused(
            "run", "--rm", "--network", "nosuch", app, host=host
        )
    shown = docker(
        "run", "--rm", "--network", "open", "--ip", "10.55.0.77", app, "ip", "-4", "addr", "show", "eth0"
    )
    assert "inet 10.55.0.77/24" in shown
    docker("run", "-d", "--name", "first", "--network", "open", "--ip", "10.55.0.77", app)
    said = docker.refused("run", "--rm", "--network", "open", "--ip", "10.55.0.77", app, host="linux-2")
    assert "Address already in use" in said
    assert "is in no subnet" in docker.refused("run", "--rm", "--network", "open", "--ip", "10.66.0.7", app)


def test_attachments_outlive_the_daemons_of_both_ends(anydocker: Docker, lab: Lab, image: Image) -> None:
    docker, one, two = anydocker, "linux-1", "linux-2"
    docker("network", "create", "-d", "overlay", "--attachable", "open")
    docker(
        "run", "-d", "--name", "box1", "--network", "open", "--restart", "always", image("app:1"), host=one
    )
    docker("run", "-d", "--name", "box2", "--network", "open", image("app:1"), host=two)

    def reach() -> str:
        return docker("exec", "box2", "wget", "-qO-", "http://box1/cgi-bin/who", host=two)

    def address() -> str:
        inside = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return docker("inspect", "-f", inside, "box2", host=two)

    eventually(reach, "they reach each other")
    before = address()
    for host in (one, two):
        lab.stop_daemon(host, signal.SIGKILL)
        lab.start_host(host)
    eventually(reach, "and do so after their daemons died")
    eventually(lambda: address() == before, "with the address it had")
    docker("kill", "box1", host=one)
    docker("start", "box1", host=one)
    eventually(reach, "a container that was started again is found under its name")


def test_networks_of_a_container_that_runs(docker: Docker, swarm: Swarm, lab: Lab, image: Image) -> None:
    app = image("app:1")
    for name in ("open1", "open2"):
        docker("network", "create", "-d", "overlay", "--attachable", name)
    docker("run", "-d", "--name", "web", "-p", "8086:80", app)
    docker("run", "-d", "--name", "far", "--network", "open1", app, host="linux-2")

    def far(name: str) -> str:
        return docker("exec", "far", "wget", "-qO-", f"http://{name}/cgi-bin/who", host="linux-2")

    def networks() -> set[str]:
        return set(docker.one("inspect", "web")["NetworkSettings"]["Networks"])

    docker("network", "connect", "--alias", "nick", "open1", "web")
    eventually(lambda: far("web") and far("nick"), "it is reached on its new network")
    assert networks() == {"bridge", "open1"}
    assert swarm.curl(f"http://{lab.manager.address}:8086/cgi-bin/who"), "its port is still published"
    said = docker.refused("network", "connect", "open1", "web")
    assert "endpoint with name web already exists in network open1" in said
    docker("network", "connect", "open2", "web")
    docker("network", "disconnect", "bridge", "web")
    lab.stop_daemon("linux-1", signal.SIGKILL)
    lab.start_host("linux-1")
    eventually(lambda: far("web"), "a new daemon finds it as it was")
    assert networks() == {"open1", "open2"}
    docker("network", "disconnect", "open1", "web")
    assert "is not connected to network open1" in docker.refused("network", "disconnect", "open1", "web")
    eventually(
        lambda: (
            "bad address"
            in docker.refused("exec", "far", "ping", "-c", "1", "-W", "1", "web", host="linux-2")
        ),
        "",
    )
    docker("restart", "-t", "0", "web")
    assert networks() == {"open2"}
    docker("rm", "-f", "web")
    docker("rm", "-f", "far", host="linux-2")
    eventually(
        lambda: docker.run("network", "rm", "open1", "open2").returncode == 0, "nobody is on them any more"
    )
