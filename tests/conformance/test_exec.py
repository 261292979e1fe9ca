"""`docker exec` and `docker top`: looking into a task's container with the real CLI."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Callable

from .bed import Docker, Json, Swarm

Image = Callable[[str], str]


def place(docker: Docker, swarm: Swarm, image: Image, name: str) -> tuple[str, str]:
    """(host, container) of a service of one task."""
    docker("service", "create", "-d", "--name", name, "-e", "SAYS=hello", image("app:1"))
    [task] = swarm.running(name)
    return swarm.host_of(task), task["Status"]["ContainerStatus"]["ContainerID"]


def test_exec(docker: Docker, swarm: Swarm, image: Image) -> None:
    host, container = place(docker, swarm, image, "inside")
    done = docker.run("exec", container, "sh", "-c", "echo $SAYS; echo oops >&2; exit 7", host=host)
    assert (done.returncode, done.stdout, done.stderr) == (7, "hello\n", "oops\n")
    options = ("-i", "-w", "/tmp", "-e", "A=b")
    piped = docker(
        "exec", *options, container, "sh", "-c", "cat; pwd; echo $A", host=host, stdin="from here\n"
    )
    assert piped.splitlines() == ["from here", "/tmp", "b"]
    assert docker("exec", "-u", "9:9", container, "id", "-u", host=host) == "9"
    done = docker.run("exec", container, "nosuch", host=host)
    assert done.returncode == 127 and "OCI runtime exec failed" in done.stdout + done.stderr
    assert docker("exec", "-d", container, "touch", "/tmp/made", host=host) == ""
    docker("exec", container, "sh", "-c", "until test -e /tmp/made; do sleep 0.05; done", host=host)
    much = docker("exec", container, "sh", "-c", "yes 0123456789 | head -n 200000", host=host)
    assert len(much) == 200000 * 11 - 1, "nothing of it is lost at the end"


def test_a_terminal(docker: Docker, swarm: Swarm, image: Image) -> None:
    host, container = place(docker, swarm, image, "screen")
    ours, theirs = pty.openpty()
    os.set_blocking(ours, True)
    subprocess.run(["stty", "rows", "31", "cols", "71"], stdin=theirs, check=True)
    with subprocess.Popen(
        [docker.program, "exec", "-it", container, "sh"],
        env=docker.environment(host), stdin=theirs, stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        seen = b""
        # the CLI tells the size once the shell runs, so the shell asks until it has come
        os.write(ours, b"until stty size | grep -q 31; do sleep 0.05; done; stty size; tty; exit 4\n")
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # the CLI closed its end
                break
            if not piece:
                break
            seen += piece
        assert process.wait(20) == 4, seen
    os.close(ours)
    assert b"31 71\r\n" in seen and b"/dev/pts/" in seen, seen


def test_attach_and_wait(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker(
        *(
            "service",
            "create",
            "-d",
            "--name",
            "talks",
            "--restart-condition",
            "none",
            "--entrypoint",
            "/bin/sh",
        ),
        *(image("app:1"), "-c", "until test -e /go; do echo waiting; sleep 0.1; done; exit 9"),
    )
    [task] = swarm.running("talks")
    host, container = swarm.host_of(task), task["Status"]["ContainerStatus"]["ContainerID"]
    with docker.following("wait", container, host=host) as waits:
        with docker.following("attach", "--no-stdin", container, host=host) as looks:
            looks.wait_for(lambda line: line == "waiting", "its output")
            docker("exec", container, "touch", "/go", host=host)
            assert looks.ends() == 9, "attach ends with the program's own code"
        assert waits.wait_for(str.strip, "wait tells the code") == "9"


def test_leaving_a_terminal(docker: Docker, swarm: Swarm, image: Image) -> None:
    host, container = place(docker, swarm, image, "left")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [docker.program, "exec", "-it", container, "sh"],
        env=docker.environment(host), stdin=theirs, stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        os.write(ours, b"echo ready$((1+1)); sleep 1234\n")
        seen = b""
        while b"ready2" not in seen:
            seen += os.read(ours, 4096)
        os.write(ours, b"\x10\x11")
        assert process.wait(20) == 1, "the CLI says that it left"
    os.close(ours)
    assert "sleep 1234" in docker("top", container, host=host), "what runs there goes on"


def test_instances(docker: Docker, swarm: Swarm, image: Image) -> None:
    """What clients other than the CLI see of one (docker-py's low-level API)."""
    host, container = place(docker, swarm, image, "seen")
    made: Json = swarm.call(
        "POST", f"/containers/{container}/exec", {"Cmd": ["sh", "-c", "exit 3"]}, host=host
    )
    shown = swarm.get(f"/exec/{made['Id']}/json", host=host)
    assert shown["Running"] is False and shown["ExitCode"] is None and shown["ContainerID"] == container
    assert (shown["ProcessConfig"]["entrypoint"], shown["ProcessConfig"]["arguments"]) == (
        "sh",
        ["-c", "exit 3"],
    )
    swarm.call("POST", f"/exec/{made['Id']}/start", {}, host=host)
    assert swarm.get(f"/exec/{made['Id']}/json", host=host)["ExitCode"] == 3
    assert swarm.refusal("POST", f"/exec/{made['Id']}/start", {}, host=host).status == 409
    assert swarm.refusal("GET", "/exec/nosuch/json", host=host) == (404, "No such exec instance: nosuch")
    empty = swarm.refusal("POST", f"/containers/{container}/exec", {"Cmd": []}, host=host)
    assert empty == (400, "No exec command specified")


def test_top(docker: Docker, swarm: Swarm, image: Image) -> None:
    host, container = place(docker, swarm, image, "busy")
    lines = docker.lines("top", container, host=host)
    assert lines[0].split()[:2] == ["UID", "PID"] and any("httpd" in line for line in lines[1:])
    assert "httpd" in docker("top", container, "-o", "pid,comm", host=host)


def test_stats(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker(
        "service",
        "create",
        "-d",
        "--name",
        "uses",
        "--limit-memory",
        "64M",
        "--limit-pids",
        "40",
        image("app:1"),
    )
    [task] = swarm.running("uses")
    host, container = swarm.host_of(task), task["Status"]["ContainerStatus"]["ContainerID"]
    columns = "{{.MemUsage}}|{{.PIDs}}|{{.CPUPerc}}|{{.NetIO}}"
    line = docker("stats", "--no-stream", "--format", columns, container, host=host)
    memory, pids, cpu, network = line.split("|")
    assert memory.endswith("/ 64MiB") and not memory.startswith("0B"), line
    assert int(pids) >= 3 and cpu.endswith("%") and "--" not in network
