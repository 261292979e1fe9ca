"""A daemon on damaged state: it answers, says what is wrong, and `swarm leave --force` leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overlace.lab import Lab
from overlace.lab.shop import image_name, push_images

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]
H = "linux-1"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up("tsurvive", linux=1, windows=0) as made:
        push_images(made.registry)
        yield made


def wait(what: str, probe: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not probe():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)


def docker(lab: Lab, *argv: str) -> str:
    return lab.docker(H, *argv).stdout.strip()


def state(lab: Lab) -> str:
    return docker(lab, "info", "--format", "{{.Swarm.LocalNodeState}}")


def deploy(lab: Lab) -> None:
    if state(lab) == "inactive":
        docker(lab, "swarm", "init")
    docker(lab, "network", "create", "-d", "overlay", "n1")
    image = image_name(lab.registry, "store")
    docker(lab, "service", "create", "-d", "--name", "a", "--network", "n1", "--replicas", "2", image)
    wait("two tasks", lambda: docker(lab, "service", "ls", "--format", "{{.Replicas}}") == "2/2", 60)


def left(lab: Lab) -> list[str]:
    """What a swarm still holds on the host: containers and their shims, interfaces, namespaces, pins."""
    host = lab.host(H)
    found = [str(p) for p in Path(host.data_root).glob("containers/*")]
    found += [str(p) for p in Path(host.exec_root).glob("bundles/*")]
    found += [str(p) for p in Path(host.exec_root).glob("network/netns/*")]
    found += [str(p) for p in Path("/sys/fs/bpf/overlace").glob(f"{host.instance}*")]
    links = lab.exec(H, "ip", "-br", "link").stdout.splitlines()
    found += [line for line in links if line.split("@")[0].split()[0] not in ("lo", "eth0")]
    shims = subprocess.run(["pgrep", "-f", f"conmon.*{host.exec_root}/"], capture_output=True, text=True)
    return found + shims.stdout.split()


def overwrite(path: Path) -> None:
    path.write_bytes(b"{x" * 3000)
    for log in path.parent.glob(f"{path.name}-*"):
        log.unlink()


@pytest.mark.parametrize("damaged", ["membership.json", "store.db", "certificates/node.pem", "certificates"])
def test_damaged_state_is_told_and_can_be_left(lab: Lab, damaged: str) -> None:
    deploy(lab)
    lab.stop_daemon(H, signal.SIGKILL)
    path = Path(lab.host(H).data_root) / "swarm" / damaged
    shutil.rmtree(path) if path.is_dir() else overwrite(path)
    lab.start_host(H)
    assert state(lab) == "error"
    said = docker(lab, "info", "--format", "{{.Swarm.Error}}")
    assert "swarm" in said and ("damaged" in said or "no certificate" in said)
    refused = lab.docker(H, "swarm", "init", check=False)
    assert "already part of a swarm" in refused.stderr
    docker(lab, "swarm", "leave", "--force")
    assert state(lab) == "inactive"
    assert left(lab) == []


def test_a_crash_in_the_middle_of_leaving_is_cleaned_up(lab: Lab) -> None:
    deploy(lab)
    lab.stop_daemon(H, signal.SIGKILL)
    (Path(lab.host(H).data_root) / "swarm" / "membership.json").unlink()
    lab.start_host(H)
    assert state(lab) == "inactive"
    assert left(lab) == []


def test_what_only_needs_time_is_tried_again(lab: Lab) -> None:
    deploy(lab)
    before = docker(lab, "ps", "-q")
    lab.stop_daemon(H, signal.SIGKILL)
    hold = "import socket, time; s = socket.create_server(('127.0.0.1', 2377)); time.sleep(60)"
    holder = subprocess.Popen(lab.command(H, [sys.executable, "-c", hold]))
    try:
        wait("the port is held", lambda: ":2377" in lab.exec(H, "ss", "-Hltn").stdout)
        lab.start_host(H)
        wait("the daemon has tried", lambda: state(lab) == "error")
    finally:
        holder.terminate()
        holder.wait()
    wait("active again", lambda: state(lab) == "active", 30)
    assert docker(lab, "ps", "-q") == before
    docker(lab, "swarm", "leave", "--force")
    assert left(lab) == []
