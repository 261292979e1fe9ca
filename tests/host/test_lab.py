"""The lab against this machine's kernel: hosts that are apart, and nothing left behind, whatever happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlace.lab import Lab, clean, processes
from overlace.lab.cluster import Cluster
from overlace.lab.layout import LabPlan
from overlace.lab.shop import image_name, push_images
from overlace.model.errors import Conflict, Internal, InvalidArgument, NotFound

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]

OVERLACE = [sys.executable, "-m", "overlace.cli.main"]
HANGS = ["sh", "-c", "sleep 600"]


def left_behind(plan: LabPlan) -> list[str]:
    """Everything of a lab that this machine still shows."""
    found = [f"netns {name}" for name in plan.netns if os.path.exists(f"/var/run/netns/{name}")]
    found += [
        f"mount {point}"
        for point, _, _ in processes.mounts()
        if processes.below(point, [plan.run, plan.data])
    ]
    found += [f"link {name}" for name in os.listdir("/sys/class/net") if name == plan.shell_link]
    found += [f"folder {path}" for path in (plan.run, plan.data) if os.path.exists(path)]
    for host in plan.hosts:
        if host.data_root:
            found += [str(path) for path in Path(clean.BPF_ROOT).glob(f"{host.instance}*")]
            found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/overlace/{host.instance}")]
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(word.startswith((plan.run.encode() + b"/", plan.data.encode() + b"/")) for word in words):
                found.append(f"process {entry}: {b' '.join(words).decode()}")
    return found


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up("tlab", linux=2, windows=1) as made:
        yield made
    assert not left_behind(made.plan)


def test_up_leaves_a_swarm(lab: Lab) -> None:
    listed = lab.docker(
        "linux-1", "node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.ManagerStatus}}"
    ).stdout
    assert sorted(line.strip() for line in listed.splitlines()) == [
        "linux-1 Ready Leader",
        "linux-2 Ready",
        "windows-1 Ready",
    ]


def test_the_emulated_host_says_what_it_is(lab: Lab) -> None:
    node = json.loads(lab.docker("linux-1", "node", "inspect", "windows-1").stdout)[0]["Description"]
    assert node["Platform"]["OS"] == "windows"
    assert node["Engine"]["Labels"]["com.overlace.emulated"] == "windows"


def test_hosts_are_apart_and_reach_each_other(lab: Lab) -> None:
    assert lab.exec("linux-2", "hostname").stdout == "linux-2\n"
    for name in ("linux-2", "windows-1", "client", "switch"):
        reached = lab.exec(name, "curl", "-sf", "--max-time", "5", f"http://{lab.registry}/v2/")
        assert reached.stdout.strip() == "{}"
    listeners = lab.exec("client", "ss", "-Hltn").stdout
    assert listeners == "", "a host's listeners are its own"


def test_the_world_beyond_the_underlay_answers_hosts(lab: Lab) -> None:
    server = subprocess.Popen(
        lab.command("switch", [sys.executable, "-m", "http.server", "--bind", "203.0.113.1", "8000"]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/var/empty" if os.path.isdir("/var/empty") else "/",
    )
    try:
        fetch = [
            "curl",
            "-sf",
            "--retry",
            "20",
            "--retry-connrefused",
            "--retry-delay",
            "0",
            "--max-time",
            "10",
        ]
        assert "<html" in lab.exec("linux-1", *fetch, "http://203.0.113.1:8000/").stdout.lower()
    finally:
        server.terminate()
        server.wait(10)


def test_json_is_the_documented_document(lab: Lab) -> None:
    done = subprocess.run(
        [*OVERLACE, "lab", "status", "tlab", "--json"], capture_output=True, text=True, check=True
    )
    document = json.loads(done.stdout)
    assert document["name"] == "tlab" and document["registry"] == lab.registry
    by_name = {host["name"]: host for host in document["hosts"]}
    assert set(by_name) == {"linux-1", "linux-2", "windows-1", "client"}
    keys = {"name", "os", "role", "address", "docker_host", "netns", "pid", "emulated", "windows_python"}
    assert all(set(host) == keys for host in by_name.values())
    assert by_name["linux-1"]["role"] == "manager" and by_name["linux-2"]["role"] == "worker"
    assert by_name["client"] | {"docker_host": None, "pid": None, "role": "client"} == by_name["client"]
    assert by_name["windows-1"]["emulated"] is True
    assert all(processes.alive(by_name[name]["pid"]) for name in ("linux-1", "linux-2", "windows-1"))


def test_exec_gives_the_exit_code_and_the_hosts_own_daemon(lab: Lab) -> None:
    done = subprocess.run(
        [
            *OVERLACE,
            "lab",
            "exec",
            "tlab",
            "linux-2",
            "--",
            "sh",
            "-c",
            "hostname; echo $DOCKER_HOST; exit 7",
        ],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 7
    assert done.stdout.splitlines() == ["linux-2", lab.host("linux-2").docker_host]


def test_a_name_in_use_is_refused_and_left_alone(lab: Lab) -> None:
    with pytest.raises(Conflict, match="lab tlab exists already"):
        Lab.up("tlab")
    assert lab.answers("linux-1")


def test_a_crashed_daemon_starts_again(lab: Lab) -> None:
    first = lab.pid("linux-2")
    lab.stop_daemon("linux-2", signal.SIGKILL)
    assert lab.pid("linux-2") is None
    lab.start_host("linux-2")
    assert lab.answers("linux-2") and lab.pid("linux-2") != first


def test_a_power_cut_takes_the_host_and_start_brings_it_back(lab: Lab) -> None:
    host = lab.host("linux-2")
    card = lab.exec("linux-2", "ip", "-br", "link", "show", "eth0").stdout.split()[2]
    lab.kill_host("linux-2")
    lab.kill_host("linux-2")  # off is off
    assert not os.path.exists(host.exec_root) and os.path.exists(host.data_root)
    with pytest.raises(Exception, match="switched off"):
        lab.exec("linux-2", "true")
    lab.start_host("linux-2")
    deadline = time.monotonic() + 30
    while (
        "linux-2 Ready"
        not in lab.docker("linux-1", "node", "ls", "--format", "{{.Hostname}} {{.Status}}").stdout
    ):
        assert time.monotonic() < deadline, "linux-2 did not come back to the swarm"
        time.sleep(0.2)
    now = lab.exec("linux-2", "ip", "-br", "link", "show", "eth0").stdout.split()[2]
    assert now == card, "its network card is the one it had: neighbours remember it"


def test_two_labs_side_by_side_and_one_goes_down_with_daemons_dead(lab: Lab) -> None:
    other = Lab.up("tlab2", linux=1, windows=0)
    try:
        assert other.plan.number != lab.plan.number
        nodes = other.docker("linux-1", "node", "ls", "-q").stdout.split()
        assert len(nodes) == 1
        other.stop_daemon("linux-1", signal.SIGKILL)
    finally:
        other.down()
    other.down()  # may be repeated
    assert not left_behind(other.plan)
    assert lab.answers("linux-1") and lab.answers("windows-1"), "the other lab goes on"


def test_down_takes_containers_whose_daemons_are_dead() -> None:
    with Lab.up("tdead", linux=1, windows=1) as dying:
        push_images(dying.registry)
        for service in ("web", "order"):
            dying.docker(
                "linux-1", "service", "create", "-d", "--name", service, image_name(dying.registry, service)
            )
        cluster = Cluster(dying)
        deadline = time.monotonic() + 60
        while [task.state for task in cluster.tasks()] != ["running", "running"]:
            assert time.monotonic() < deadline, cluster.tasks(running=False)
            time.sleep(0.1)
        for name in ("linux-1", "windows-1"):
            dying.stop_daemon(name, signal.SIGKILL)
        hosts = [host for host in dying.hosts if host.data_root]
        alive = {host.name: processes.find([host.netns], [host.exec_root, host.data_root]) for host in hosts}
        assert all(alive.values()), "containers outlive their daemon"
        assert not set(alive["linux-1"]) & set(alive["windows-1"]), "each process belongs to one host"
        subprocess.run([*OVERLACE, "lab", "down", "tdead"], check=True, capture_output=True)
        assert not [pid for pids in alive.values() for pid in pids if processes.alive(pid)]
        assert not left_behind(dying.plan)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_up_killed_half_way_leaves_what_down_can_take(sig: signal.Signals) -> None:
    starting = subprocess.Popen(
        [*OVERLACE, "lab", "up", "thalf", "--linux", "2"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert starting.stderr is not None
    for line in starting.stderr:
        if b"daemon at" in line:
            break
    plan = Lab.open("thalf").plan
    starting.send_signal(sig)
    starting.stderr.close()
    assert starting.wait(30) != 0
    if sig == signal.SIGKILL:
        assert left_behind(plan)
        subprocess.run([*OVERLACE, "lab", "down", "thalf"], check=True, capture_output=True)
    assert not left_behind(plan)


def test_a_lab_that_cannot_start_says_why_and_leaves_nothing() -> None:
    broken = ["sh", "-c", "echo 'cannot read the moon' >&2; exit 3"]
    with pytest.raises(Internal, match="cannot read the moon") as failure:
        Lab.up("tbroken", linux=1, windows=1, form_swarm=False, program=broken)
    assert "linux-1" in failure.value.message
    with pytest.raises(NotFound):
        Lab.open("tbroken")
    assert not [name for name in os.listdir("/var/run/netns") if name.startswith("tbroken-")]
    assert not os.path.exists("/run/overlace/labs/tbroken")


def test_a_daemon_that_hangs_is_given_up() -> None:
    started = time.monotonic()
    with pytest.raises(Internal, match="did not answer within 1 s"):
        Lab.up("thang", linux=1, windows=0, form_swarm=False, program=HANGS, timeout=1)
    assert time.monotonic() - started < 20
    assert not os.path.exists("/run/overlace/labs/thang")


def test_refused_counts_make_nothing() -> None:
    with pytest.raises(InvalidArgument, match="--linux is 2"):
        Lab.up("tmany", linux=2, managers=3)
    assert "tmany" not in Lab.names()


def test_labs_that_start_at_once_get_numbers_of_their_own() -> None:
    made: list[Lab] = []

    def up(name: str) -> None:
        made.append(Lab.up(name, linux=1, windows=0, form_swarm=False))

    threads = [threading.Thread(target=up, args=(f"tpar{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert len({lab.plan.number for lab in made}) == 3
    finally:
        for each in made:
            each.down()
