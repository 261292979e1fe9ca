"""Several managers on etcd: who leads, what goes on without the leader, promotion, and the way out of a lost quorum.

One lab of three managers and a worker; the tests build on each other in this order, and each leaves three managers up.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlace.lab import Lab
from overlace.model.errors import OverlaceError

from .bed import Docker, Json, Swarm, eventually
from .conftest import CLIS, _up
from .images import push_images

MANAGERS = ("linux-1", "linux-2", "linux-3")
NO_LEADER = "The swarm does not have a leader. It's possible that too few managers are online."
ELECTION = 40  # seconds, on a machine that has other things to do


@pytest.fixture(scope="module")
def several() -> Iterator[Lab]:
    lab = _up("confh", linux=4, windows=0, managers=3)
    yield lab
    lab.down()


@pytest.fixture(scope="module")
def docker(several: Lab, config: str) -> Docker:
    assert CLIS, "no docker CLI on this machine: `make setup` provides one"
    return Docker(list(CLIS.values())[-1], several, config)


@pytest.fixture(scope="module")
def swarm(several: Lab) -> Swarm:
    return Swarm(several)


def standing(docker: Docker, host: str) -> dict[str, str]:
    """MANAGER STATUS by host name, as this host's daemon sees it."""
    lines = docker.lines("node", "ls", "--format", "{{.Hostname}}={{.ManagerStatus}}", host=host)
    return dict(line.split("=") for line in lines)


def wait_standing(docker: Docker, host: str, *, without: str = "") -> str:
    """The leader, once this host sees exactly one, which is not `without`."""

    def probe() -> str:
        leaders = [name for name, status in standing(docker, host).items() if status == "Leader"]
        assert len(leaders) == 1 and leaders[0] != without, leaders
        return leaders[0]

    return eventually(probe, f"{host} sees one leader", ELECTION)


def whole(docker: Docker, hosts: tuple[str, ...] = MANAGERS) -> str:
    """Wait until every manager sees all of `hosts` as managers in good order; returns the leader."""

    def probe() -> str:
        seen = {tuple(sorted(standing(docker, host).items())) for host in hosts}
        assert len(seen) == 1, seen
        status = dict(seen.pop())
        good = sorted(status[h] for h in hosts)
        assert good == ["Leader", *["Reachable"] * (len(hosts) - 1)], status
        assert not any(s for name, s in status.items() if name not in hosts), status
        return next(name for name in hosts if status[name] == "Leader")

    return eventually(probe, "all managers are there and agree", 90, step=0.3)


def networks(docker: Docker, host: str) -> set[str]:
    return set(docker.lines("network", "ls", "-f", "driver=overlay", "--format", "{{.Name}}", host=host))


def ready(swarm: Swarm, host: str, names: set[str]) -> None:
    def probe() -> bool:
        seen = {
            n["Description"]["Hostname"]
            for n in swarm.get("/nodes", host=host)
            if n["Status"]["State"] == "ready"
        }
        assert seen == names, seen
        return True

    eventually(probe, f"ready: {sorted(names)}", 60, step=0.2)


def test_every_manager_answers_and_takes_changes(docker: Docker, swarm: Swarm) -> None:
    leader = whole(docker)
    assert leader == "linux-1"
    follower = "linux-3"
    me = docker.one("node", "inspect", "self", host=follower)
    address = docker.lab.host(follower).address
    assert me["ManagerStatus"] == {"Reachability": "reachable", "Addr": f"{address}:2377"}
    info = docker.json("info", "--format", "{{json .Swarm}}", host=follower)
    assert (info["ControlAvailable"], info["Managers"], info["Nodes"], info["Error"]) == (True, 3, 4, "")
    assert {m["NodeID"] for m in info["RemoteManagers"]} == {swarm.node_id(h) for h in MANAGERS}
    assert docker("swarm", "join-token", "-q", "manager", host=follower) == docker(
        "swarm", "join-token", "-q", "manager"
    )

    # what was changed through one is there when the next command asks the same one
    for host in MANAGERS:
        docker("network", "create", "-d", "overlay", f"net-{host}", host=host)
        assert f"net-{host}" in networks(docker, host)
        docker("config", "create", f"conf-{host}", "-", stdin="x" * 900_000, host=host)
        assert docker.one("config", "inspect", f"conf-{host}", host=host)["Spec"]["Name"] == f"conf-{host}"
    assert "net-linux-1 already exists" in docker.refused(
        "network", "create", "-d", "overlay", "net-linux-1", host=follower
    )
    for host in MANAGERS:
        docker("network", "rm", f"net-{host}", host=follower)
        docker("config", "rm", f"conf-{host}", host=follower)
        assert f"net-{host}" not in networks(docker, follower)


def test_power_cut_of_the_leader_while_services_scale(docker: Docker, swarm: Swarm) -> None:
    leader = whole(docker)
    other = next(h for h in MANAGERS if h != leader)
    image = f"{docker.lab.registry}/none:1"
    docker(
        *("service", "create", "-q", "-d", "--name", "web", "--no-resolve-image", "--replicas", "1"),
        *("--restart-condition", "none", image),
        host=other,
    )
    acknowledged: list[int] = []
    stop = threading.Event()

    def scale() -> None:
        count = 1
        while not stop.is_set():
            count += 1
            service = swarm.get("/services/web", host=other)
            spec = service["Spec"] | {"Mode": {"Replicated": {"Replicas": count}}}
            try:
                url = f"/services/{service['ID']}/update?version={service['Version']['Index']}"
                swarm.call("POST", url, spec, host=other)
                acknowledged.append(count)
            except OverlaceError:
                continue  # not acknowledged: it may have been done, and the next look says

    scaling = threading.Thread(target=scale)
    scaling.start()
    try:
        eventually(lambda: len(acknowledged) >= 3, "the service scales")
        docker.lab.kill_host(leader)
        before = len(acknowledged)
        eventually(
            lambda: len(acknowledged) > before + 2, "the service scales on without its leader", ELECTION
        )
    finally:
        stop.set()
        scaling.join()
    now = wait_standing(docker, other, without=leader)
    assert (
        swarm.get("/services/web", host=other)["Spec"]["Mode"]["Replicated"]["Replicas"] >= acknowledged[-1]
    )
    docker("service", "scale", "-d", "web=7", host=other)

    def slots() -> bool:
        tasks = [
            t for t in swarm.get("/tasks", host=other, service=["web"]) if t["DesiredState"] != "shutdown"
        ]
        return len({t["Slot"] for t in tasks}) >= 1 and bool(tasks)

    eventually(slots, "the new leader decides")
    ready(swarm, other, {"linux-1", "linux-2", "linux-3", "linux-4"} - {leader})
    eventually(lambda: standing(docker, other)[leader] == "Unreachable", "the dead one is seen to be", 60)

    docker.lab.start_host(leader)
    assert whole(docker) == now, "the old leader comes back and follows"
    assert swarm.get("/services/web", host=leader)["Spec"]["Mode"]["Replicated"]["Replicas"] == 7
    docker("service", "rm", "web", host=leader)


def test_kill_9_of_daemon_and_of_etcd(docker: Docker, swarm: Swarm) -> None:
    leader = whole(docker)
    member = Path(docker.lab.host(leader).data_root) / "swarm" / "etcd" / "pid"
    etcd = int(member.read_text())
    docker.lab.stop_daemon(leader, signal.SIGKILL)
    assert Path(f"/proc/{etcd}").exists(), "etcd outlives the daemon"
    docker.lab.start_host(leader)
    whole(docker)
    assert int(member.read_text()) == etcd, "and is found again"

    os.kill(etcd, signal.SIGKILL)
    eventually(lambda: int(member.read_text()) != etcd, "etcd is started again")
    now = whole(docker)
    docker("network", "create", "-d", "overlay", "after", host=now)
    docker("network", "rm", "after", host=leader)


def test_containers_attach_while_the_leader_is_killed(docker: Docker, swarm: Swarm) -> None:
    """In the gap it waits for the next leader; who is attached stays so, and nothing keeps an address for good."""
    leader = whole(docker)
    worker, other = "linux-4", next(h for h in MANAGERS if h != leader)
    push_images(docker.lab.registry)
    app = f"{docker.lab.registry}/app:1"
    docker(
        "network", "create", "-d", "overlay", "--attachable", "--subnet", "10.77.0.0/29", "gap", host=leader
    )
    docker("run", "-d", "--name", "before", "--network", "gap", app, host=worker)

    def address(name: str) -> str:
        return str(
            docker.one("inspect", name, host=worker)["NetworkSettings"]["Networks"]["gap"]["IPAddress"]
        )

    def reaches(name: str) -> bool:
        asked = ("exec", "meanwhile", "timeout", "3", "wget", "-qO-", f"http://{name}/cgi-bin/who")
        return docker.run(*asked, host=worker).returncode == 0

    kept = address("before")
    docker.lab.stop_daemon(leader, signal.SIGKILL)
    eventually(
        lambda: (
            docker.run("run", "-d", "--name", "meanwhile", "--network", "gap", app, host=worker).returncode
            == 0
            or docker("rm", "-f", "meanwhile", host=worker) == ""
        ),
        "it starts with the next leader's address",
        60,
    )
    assert address("before") == kept and reaches("before")
    # the worker's daemon dies while it holds addresses
    docker.lab.stop_daemon(worker, signal.SIGKILL)
    docker.lab.start_host(leader)
    docker.lab.start_host(worker)
    whole(docker)
    assert reaches("before")
    for n in range(8):  # more often than the network has addresses
        docker("run", "--rm", "--network", "gap", app, "true", host=(worker, other)[n % 2], timeout=60)
    docker("rm", "-f", "before", "meanwhile", host=worker)
    eventually(
        lambda: docker.run("network", "rm", "gap", host=other).returncode == 0, "nobody holds it any more"
    )


def test_a_leader_cut_off_writes_nothing_and_comes_back_as_a_follower(docker: Docker, swarm: Swarm) -> None:
    leader = whole(docker)
    other = next(h for h in MANAGERS if h != leader)
    docker("network", "create", "-d", "overlay", "before", host=leader)
    docker.lab.set_link(leader, False)
    try:
        words = docker.refused(
            "network", "create", "-d", "overlay", "from-the-island", host=leader, timeout=60
        )
        assert NO_LEADER in words, words
        assert "before" in networks(docker, leader), "reading goes on"
        assert standing(docker, leader)[leader] == "Unknown", "and says that nobody is known to lead"
        wait_standing(docker, other, without=leader)
        docker("network", "create", "-d", "overlay", "meanwhile", host=other)
    finally:
        docker.lab.set_link(leader, True)
    assert whole(docker) != leader
    assert networks(docker, leader) >= {"before", "meanwhile"}
    assert "from-the-island" not in networks(docker, leader) | networks(docker, other)
    docker("network", "rm", "before", "meanwhile", host=other)


def test_promote_and_demote(docker: Docker, swarm: Swarm) -> None:
    leader = whole(docker)
    docker("node", "promote", "linux-4", host=leader)
    four = (*MANAGERS, "linux-4")
    whole(docker, four)
    docker("network", "create", "-d", "overlay", "by-the-new-one", host="linux-4")
    docker("network", "rm", "by-the-new-one", host="linux-4")
    words = docker.refused("node", "rm", "--force", "linux-4", host=leader)
    assert "must be demoted to worker before removal" in words

    # the leader itself may be demoted: another takes over
    docker("node", "demote", leader, host="linux-4")
    rest = tuple(h for h in four if h != leader)
    whole(docker, rest)
    eventually(
        lambda: "Worker nodes can't be used" in docker.refused("node", "ls", host=leader),
        "who was demoted is a worker",
        ELECTION,
    )
    state = Path(docker.lab.host(leader).data_root) / "swarm" / "etcd"
    eventually(lambda: not state.exists(), "and keeps no state")
    ready(swarm, "linux-4", {*four})
    docker("node", "promote", leader, host="linux-4")
    whole(docker, four)
    docker("node", "demote", "linux-4", host=leader)
    whole(docker)
    eventually(
        lambda: docker("info", "--format", "{{.Swarm.ControlAvailable}}", host="linux-4") == "false",
        "linux-4 is a worker again",
        ELECTION,
    )


def test_the_leader_and_another_are_demoted_at_once(docker: Docker, swarm: Swarm) -> None:
    leader = whole(docker)
    other, left = (h for h in MANAGERS if h != leader)
    docker("node", "demote", leader, other, host=left)
    whole(docker, (left,))
    docker("network", "create", "-d", "overlay", "by-the-last-one", host=left)
    docker("network", "rm", "by-the-last-one", host=left)
    for host in (leader, other):
        eventually(
            lambda host=host: docker("info", "--format", "{{.Swarm.ControlAvailable}}", host=host) == "false",  # type: ignore[misc]
            f"{host} is a worker",
            ELECTION,
        )
    docker("node", "promote", leader, other, host=left)
    whole(docker)


def test_quorum_is_guarded_lost_and_recovered(docker: Docker, swarm: Swarm) -> None:
    leader = whole(docker)
    first, second = (h for h in MANAGERS if h != leader)
    docker("network", "create", "-d", "overlay", "kept", host=leader)
    docker.lab.kill_host(first)
    eventually(lambda: standing(docker, leader)[first] == "Unreachable", "one manager is missed", 60)
    words = docker.refused("node", "demote", second, host=leader)
    assert "this would result in a loss of quorum" in words, "two are left, and one of them is unreachable"

    docker.lab.kill_host(second)
    words = eventually(
        lambda: docker.refused("network", "create", "-d", "overlay", "lost", host=leader, timeout=60),
        "nobody leads",
    )
    assert words.startswith("Error response from daemon: rpc error: code = Unknown desc = " + NO_LEADER), (
        words
    )
    assert "kept" in networks(docker, leader), "reading goes on"
    assert NO_LEADER in docker.json("info", "--format", "{{json .Swarm}}", host=leader)["Error"]

    docker("swarm", "init", "--force-new-cluster", host=leader, timeout=90)
    assert {h: s for h, s in standing(docker, leader).items() if s} == {leader: "Leader"}
    assert networks(docker, leader) == {"ingress", "kept"}
    ready(swarm, leader, {leader, "linux-4"})

    # the others come back to find that they are workers now
    for host in (first, second):
        docker.lab.start_host(host)
    ready(swarm, leader, {*MANAGERS, "linux-4"})
    for host in (first, second):
        eventually(
            lambda host=host: docker("info", "--format", "{{.Swarm.ControlAvailable}}", host=host) == "false",  # type: ignore[misc]
            f"{host} is a worker",
            60,
        )
    docker("node", "promote", first, second, host=leader)
    whole(docker)
    docker("network", "rm", "kept", host=first)


def test_a_manager_leaves_and_a_new_one_joins(docker: Docker, swarm: Swarm) -> None:
    leader = whole(docker)
    words = docker.refused("swarm", "leave", host=leader)
    assert "participating as a manager" in words and "--force" in words
    docker("swarm", "leave", "--force", host=leader, timeout=90)
    rest = tuple(h for h in MANAGERS if h != leader)
    gone = eventually(lambda: _down(swarm, rest[0], leader), "the others see it go")
    whole_without = wait_standing(docker, rest[0], without=leader)
    assert whole_without in rest
    docker("node", "rm", gone["ID"], host=rest[0])
    token = docker("swarm", "join-token", "-q", "manager", host=rest[0])
    # any manager lets a node in, not the leader alone
    via = docker.lab.host(next(h for h in rest if h != whole_without)).address
    docker("swarm", "join", "--token", token, f"{via}:2377", host=leader, timeout=90)
    whole(docker)


def _down(swarm: Swarm, host: str, name: str) -> Json | None:
    for node in swarm.get("/nodes", host=host):
        if node["Description"]["Hostname"] == name and node["Status"]["State"] == "down":
            assert "ManagerStatus" not in node, node
            return node
    return None
