"""Becoming and ceasing to be a member: `docker swarm` on hosts that start outside of any swarm."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from overlace.lab import Lab

from .bed import Docker, Swarm, eventually

TOKEN = re.compile(r"SWMTKN-1-[0-9a-z]{50}-[0-9a-z]{25}")
ONE, TWO = "linux-1", "linux-2"


@pytest.fixture
def hosts(apart: Lab, cli: str, config: str) -> Iterator[Docker]:
    """Each CLI against hosts that are in no swarm, and are not afterwards."""
    docker = Docker(cli, apart, config)
    yield docker
    for host in (TWO, ONE):
        docker.run("swarm", "leave", "--force", host=host)


def state(docker: Docker, host: str) -> str:
    return docker("info", "--format", "{{.Swarm.LocalNodeState}}", host=host)


def token(docker: Docker, role: str = "worker") -> str:
    return docker("swarm", "join-token", "-q", role)


def join(docker: Docker, secret: str, host: str = TWO) -> subprocess.CompletedProcess[str]:
    return docker.run("swarm", "join", "--token", secret, docker.lab.manager.address, host=host)


def test_outside_a_swarm(hosts: Docker) -> None:
    assert state(hosts, ONE) == "inactive"
    for command in (
        ("node", "ls"),
        ("service", "ls"),
        ("stack", "ls"),
        ("secret", "ls"),
        ("swarm", "join-token", "worker"),
    ):
        words = hosts.refused(*command)
        assert "not a swarm manager" in words and 'Use "docker swarm init"' in words, command
    assert "not a swarm manager" in hosts.refused("network", "create", "-d", "overlay", "x")
    assert "This node is not part of a swarm" in hosts.refused("swarm", "leave")


def test_init_join_leave(hosts: Docker) -> None:
    said = hosts("swarm", "init")
    assert "Swarm initialized" in said and f"{hosts.lab.manager.address}:2377" in said
    worker, manager = token(hosts), token(hosts, "manager")
    assert worker in said, "the command to copy holds the worker's token"
    assert TOKEN.fullmatch(worker) and TOKEN.fullmatch(manager) and worker != manager
    assert worker.split("-")[2] == manager.split("-")[2], "both pin the same CA"
    assert "already part of a swarm" in hosts.refused("swarm", "init")

    done = join(hosts, worker)
    assert done.returncode == 0 and "This node joined a swarm as a worker." in done.stdout, done
    assert state(hosts, TWO) == "active"
    eventually(
        lambda: (
            hosts.lines("node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.ManagerStatus}}")
            == ["linux-1 Ready Leader", "linux-2 Ready"]
            or (hosts("node", "ls") and None)
        ),
        "both nodes are ready",
    )
    again = join(hosts, worker)
    assert again.returncode != 0 and "already part of a swarm" in again.stderr

    for command in (
        ("node", "ls"),
        ("service", "ls"),
        ("service", "create", "x"),
        ("swarm", "join-token", "worker"),
    ):
        words = hosts.refused(*command, host=TWO)
        assert "Worker nodes can't be used to view or modify cluster state" in words, command

    words = hosts.refused("swarm", "leave")
    assert "Removing the last manager erases all current state of the swarm." in words and "--force" in words
    assert state(hosts, ONE) == "active", "a refused leave changes nothing"

    assert "Node left the swarm." in hosts("swarm", "leave", host=TWO)
    assert state(hosts, TWO) == "inactive"
    eventually(
        lambda: hosts("node", "ls", "--filter", "name=linux-2", "--format", "{{.Status}}") == "Down",
        "the manager sees that the worker left",
    )
    hosts("node", "rm", "linux-2")
    assert hosts.lines("node", "ls", "--format", "{{.Hostname}}") == ["linux-1"]
    assert join(hosts, worker).returncode == 0, "who left may come back"

    hosts("swarm", "leave", "--force")
    assert state(hosts, ONE) == "inactive"
    assert "not a swarm manager" in hosts.refused("node", "ls")
    hosts("swarm", "leave", "--force", host=TWO)  # its manager is gone for good: it must not wait for it
    assert state(hosts, TWO) == "inactive"


def test_tokens(hosts: Docker, swarm: Swarm) -> None:
    hosts("swarm", "init")
    worker, manager = token(hosts), token(hosts, "manager")
    secret = worker.rpartition("-")[2]
    wrong = worker.removesuffix(secret) + ("0" * 25 if secret != "0" * 25 else "1" * 25)
    foreign = swarm.get("/swarm")["JoinTokens"]["Worker"]

    for bad in ("x", "", wrong):
        done = join(hosts, bad)
        assert done.returncode != 0 and "invalid join token" in done.stderr, (bad, done)
    done = join(hosts, foreign)
    assert done.returncode != 0 and "remote CA does not match fingerprint" in done.stderr
    assert foreign.split("-")[2] in done.stderr and worker.split("-")[2] in done.stderr
    assert state(hosts, TWO) == "inactive"
    assert hosts.lines("node", "ls", "--format", "{{.Hostname}}") == ["linux-1"], "nothing half-made is left"

    nobody = hosts.run("swarm", "join", "--token", worker, f"{hosts.lab.host(TWO).address}:2377", host=TWO)
    assert nobody.returncode != 0 and f"{hosts.lab.host(TWO).address}:2377" in nobody.stderr
    assert state(hosts, TWO) == "inactive"

    said = hosts("swarm", "join-token", "--rotate", "worker")
    fresh = token(hosts)
    assert fresh in said and fresh != worker and token(hosts, "manager") == manager
    done = join(hosts, worker)
    assert done.returncode != 0 and "invalid join token" in done.stderr, "a rotated token opens nothing"
    assert join(hosts, fresh).returncode == 0


def test_swarm_update_and_bad_addresses(hosts: Docker) -> None:
    words = hosts.refused("swarm", "init", "--advertise-addr", "nosuch0")
    assert "advertise address must be a non-zero IP address or network interface" in words
    assert "listen address must be an IP address or network interface" in hosts.refused(
        "swarm", "init", "--listen-addr", "nosuch0"
    )
    assert state(hosts, ONE) == "inactive"
    hosts("swarm", "init", "--advertise-addr", hosts.lab.manager.address, "--task-history-limit", "3")
    assert hosts("info", "--format", "{{.Swarm.Cluster.Spec.Orchestration.TaskHistoryRetentionLimit}}") == "3"
    hosts("swarm", "update", "--task-history-limit", "7")
    assert hosts("info", "--format", "{{.Swarm.Cluster.Spec.Orchestration.TaskHistoryRetentionLimit}}") == "7"
    assert "minimum certificate expiry time is: 1h0m0s" in hosts.refused(
        "swarm", "update", "--cert-expiry", "10m"
    )
    assert "not supported yet" in hosts.refused("swarm", "update", "--autolock")


def test_address_pools(hosts: Docker) -> None:
    """Networks come from the swarm's own pool, in its size; the last ones come with a warning, then they wait."""
    pool = ("--default-addr-pool", "10.60.0.0/22", "--default-addr-pool", "10.61.0.0/24")
    hosts("swarm", "init", *pool, "--default-addr-pool-mask-length", "24")
    info = hosts("info")
    assert "10.60.0.0/22" in info and "10.61.0.0/24" in info and "SubnetSize: 24" in info
    made = ["ingress"]
    for name in ("one", "two", "three", "four"):
        hosts("network", "create", "-d", "overlay", name)
        made.append(name)
    found = [hosts.one("network", "inspect", name)["IPAM"]["Config"][0]["Subnet"] for name in made]
    assert found == [f"10.60.{n}.0/24" for n in range(4)] + ["10.61.0.0/24"]
    said = hosts.said("info")
    assert "WARNING: 0 of 5 subnets of size /24 are left in the default address pool" in said
    hosts("network", "create", "-d", "overlay", "five")

    def without() -> str:
        return str(hosts.one("network", "inspect", "five").get("Error", ""))

    assert "no free subnet of size /24 is left" in eventually(without, "the network says what it waits for")
    hosts("network", "rm", "two")
    eventually(lambda: not without(), "it gets the subnet that is free again")
    assert hosts.one("network", "inspect", "five")["IPAM"]["Config"][0]["Subnet"] == "10.60.2.0/24"


def test_a_node_removed_by_force(hosts: Docker) -> None:
    hosts("swarm", "init")
    assert join(hosts, token(hosts)).returncode == 0
    eventually(
        lambda: hosts("node", "ls", "-f", "name=linux-2", "--format", "{{.Status}}") == "Ready", "it is ready"
    )
    words = hosts.refused("node", "rm", "linux-2")
    assert "is not down and can't be removed" in words
    assert hosts("node", "rm", "--force", "linux-2") == "linux-2"
    assert hosts.lines("node", "ls", "--format", "{{.Hostname}}") == ["linux-1"]
    eventually(
        lambda: "was removed from the swarm" in hosts("info", "--format", "{{.Swarm.Error}}", host=TWO),
        "the node learns it, and says so",
    )
    assert "Node left the swarm." in hosts("swarm", "leave", host=TWO)
    assert join(hosts, token(hosts)).returncode == 0, "and may come back, as a new node"


def test_what_the_swarm_cannot_do_says_so(hosts: Docker) -> None:
    hosts("swarm", "init")
    for command, words in (
        (("swarm", "update", "--autolock"), "AutoLockManagers is not supported yet"),
        (("swarm", "ca", "--rotate", "--detach"), "CA rotation is not supported yet"),
        (("swarm", "unlock-key"), "no unlock key is set"),
        (("swarm", "unlock"), "swarm is not locked"),
    ):
        said = hosts.run(*command)
        assert words in said.stdout + said.stderr, f"{command}: {said}"
    hosts(
        "swarm",
        "update",
        "--max-snapshots",
        "3",
        "--snapshot-interval",
        "5000",
        "--dispatcher-heartbeat",
        "3s",
    )
    raft = hosts.json("info", "--format", "{{json .Swarm.Cluster.Spec.Raft}}")
    assert (raft["KeepOldSnapshots"], raft["SnapshotInterval"]) == (3, 5000)
    assert hosts("info", "--format", "{{.Swarm.Cluster.Spec.Dispatcher.HeartbeatPeriod}}") == "3s"
    assert hosts("swarm", "ca").startswith("-----BEGIN CERTIFICATE-----")


def test_a_swarm_reached_over_ipv6(hosts: Docker) -> None:
    """Managers are found, joined and followed at IPv6 addresses, and tunnels between hosts run over IPv6 then."""
    six = {ONE: "fd00:77::1", TWO: "fd00:77::2"}
    for host, address in six.items():
        command = ["ip", "-6", "addr", "replace", f"{address}/64", "dev", "eth0", "nodad"]
        subprocess.run(hosts.lab.command(host, command), check=True, timeout=20)
    words = hosts.refused("swarm", "init", "--advertise-addr", "fd00:77::9")
    assert "address fd00:77::9 is not on any interface of this host" in words

    said = hosts("swarm", "init", "--advertise-addr", six[ONE])
    assert f"[{six[ONE]}]:2377" in said, "the command to copy has brackets"
    refused = hosts.run("swarm", "join", "--token", token(hosts), f"[{six[ONE]}]:2377", host=TWO)
    assert f"is IPv4, and {six[ONE]} of {ONE} is IPv6: there is no tunnel between them" in refused.stderr
    assert "join with --data-path-addr and an IPv6 address of this host" in refused.stderr
    joined = hosts.run(
        *("swarm", "join", "--token", token(hosts), "--advertise-addr", six[TWO], f"[{six[ONE]}]:2377"),
        host=TWO,
    )
    assert joined.returncode == 0 and "joined a swarm as a worker" in joined.stdout, joined
    found = hosts.json("info", "--format", "{{json .Swarm}}", host=TWO)
    assert found["NodeAddr"] == six[TWO]
    assert [m["Addr"] for m in found["RemoteManagers"]] == [f"[{six[ONE]}]:2377"]
    node = hosts.one("node", "inspect", ONE)
    assert node["ManagerStatus"]["Addr"] == f"[{six[ONE]}]:2377" and node["Status"]["Addr"] == six[ONE]

    hosts("node", "promote", TWO)  # the store goes over to etcd, whose members speak over IPv6 too
    eventually(
        lambda: (
            hosts.lines("node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}", host=TWO)
            == [f"{ONE} Leader", f"{TWO} Reachable"]
        ),
        "two managers that reach each other",
        60,
    )
    assert hosts.one("node", "inspect", TWO)["ManagerStatus"]["Addr"] == f"[{six[TWO]}]:2377"
    hosts("network", "create", "-d", "overlay", "told", host=TWO)  # passed on to the leader
    assert hosts.one("network", "inspect", "told")["Name"] == "told"
