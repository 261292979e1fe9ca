"""A lab host whose agent is the real one under a Windows Python, in a swarm with a Linux host.

What this shows: the agent as a Windows program (its event loop, named pipes, ctypes, files) joined over the real
underlay; it drives HNS by its DLL and an engine by its pipe, and packets of its containers cross the underlay. Not the
real HNS, VFP or Docker on Windows: Linux plays those, and the containers are Linux processes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from overlace.lab import Lab, processes
from overlace.lab.cluster import Cluster, TaskInfo
from overlace.lab.shop import LINUX, WINDOWS, image_name, push_images, source_dir
from overlace.lab.windows import host as windows
from overlace.network.hns import policies as p
from overlace.network.hns.documents import HostComputeEndpoint, HostComputeNetwork
from overlace.network.hns.journal import Journal
from overlace.network.hns.state import State
from overlace.network.linux.netns import run_inside
from overlace.network.vfp.model import HOST_PORT, Packet
from overlace.network.vfp.simulate import simulate

pytestmark = [pytest.mark.host, pytest.mark.timeout(240)]
HOST = "windows-1"
CRASHED, ASKED = signal.SIGKILL, signal.SIGTERM


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up("winpy", linux=1, windows=0, windows_python=1) as made:
        # a Windows Python starts slowly under Wine: that is no node that went down
        made.docker("linux-1", "swarm", "update", "--dispatcher-heartbeat", "20s")
        push_images(made.registry)
        environment = made.environment("linux-1") | {"REGISTRY": made.registry}
        subprocess.run(
            ["docker", "stack", "deploy", "-c", "compose.yml", "shop"],
            cwd=source_dir(),
            env=environment,
            check=True,
            capture_output=True,
        )
        yield made


def until(what: str, ready: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.1)


def change(lab: Lab, *words: str) -> None:
    """A change of what may just be changing by itself: docker reads its version and writes, and then reads again."""
    until(" ".join(words), lambda: not lab.docker("linux-1", *words, check=False).returncode)


def ask(lab: Lab, host: str, port: int = 8080, path: str = "/") -> str:
    url = f"http://{lab.host(host).address}:{port}{path}"
    done = lab.exec("client", "curl", "-sS", "--max-time", "3", url, check=False)
    return done.stdout or done.stderr


def chain(lab: Lab, entry: str) -> list[tuple[str, str]]:
    """The (service, operating system) of each container that had a part in an answer; empty when it is none."""
    try:
        answer = json.loads(ask(lab, entry))
    except ValueError:
        return []
    return [(hop["service"], hop["os"]) for hop in answer.get("chain", ())]


WHOLE = [("web", "linux"), ("order", "windows"), ("store", "linux")]


def all_well(lab: Lab) -> bool:
    return chain(lab, HOST) == WHOLE and chain(lab, "linux-1") == WHOLE


def order(lab: Lab) -> TaskInfo:
    found = [t for t in Cluster(lab).tasks() if t.service == "shop_order"]
    assert len(found) == 1, found
    return found[0]


def containers(lab: Lab) -> str | None:
    """What runs on the Windows host, None while its engine does not answer the agent."""
    done = lab.docker(HOST, "ps", "-q", "--no-trunc", check=False)
    return done.stdout if done.returncode == 0 else None


def nothing_ends(lab: Lab) -> bool:
    """Whether every container on the Windows host is a running task's."""
    tasks = [t for t in Cluster(lab).tasks() if t.node == HOST and t.state == "running"]
    return len((containers(lab) or "").split()) == len(tasks)


def states(lab: Lab) -> dict[str, str]:
    return {node.hostname: node.state for node in Cluster(lab).nodes()}


def test_the_agent_is_a_windows_program_that_joined_the_swarm(lab: Lab) -> None:
    pid = lab.pid(HOST)
    assert pid is not None
    assert Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"\\python.exe")
    version = json.loads(lab.docker(HOST, "version", "--format", "{{json .Server}}").stdout)
    assert (version["Os"], version["Arch"]) == ("windows", "amd64")
    node = next(n for n in Cluster(lab).nodes() if n.hostname == HOST)
    assert (node.os, node.os_version, node.state, node.role) == (
        "windows",
        "10.0.20348.2527",
        "ready",
        "worker",
    )
    assert node.emulated, "there is no Windows kernel, and it says so"


def test_it_is_never_a_manager(lab: Lab) -> None:
    refused = lab.docker("linux-1", "node", "promote", HOST, check=False)
    assert "is a Windows host and can only be a worker" in refused.stderr
    assert next(n for n in Cluster(lab).nodes() if n.hostname == HOST).role == "worker"


def test_containers_on_both_systems_meet_by_name_vip_and_published_port(lab: Lab) -> None:
    until("the shop answering at both hosts", lambda: all_well(lab))
    assert order(lab).node == HOST


def test_the_agent_measures_the_ways_to_linux_hosts(lab: Lab) -> None:
    """From it by the agent's own socket, under a Windows Python; to it, the Linux program that plays VFP answers."""
    command = [sys.executable, "-m", "overlace.cli.main", "network", "health", "ingress", "--format", "json"]
    command += ["-H", lab.host("linux-1").docker_host or ""]

    def cells() -> dict[str, tuple[str, int]]:
        shown = json.loads(subprocess.run(command, check=False, capture_output=True).stdout)
        return {p["From"]: (p["State"], p["Mtu"]) for p in shown["Paths"]}

    until("both ways measured", lambda: cells() == {HOST: ("ok", 1500), "linux-1": ("ok", 1500)})


def test_logs_and_exec_reach_a_task_on_windows(lab: Lab) -> None:
    said = lab.docker("linux-1", "service", "logs", "shop_order").stdout
    assert "order on windows-1 (windows): listening on port 80" in said
    container = lab.docker(HOST, "ps", "-q", "--filter", "name=shop_order").stdout.strip()
    assert lab.docker(HOST, "exec", container, "/shop", "health").returncode == 0
    failed = lab.docker(HOST, "exec", container, "/no-such-program", check=False)
    assert failed.returncode and "no such file or directory" in failed.stderr


def test_secrets_and_configs_reach_a_task_on_windows(lab: Lab) -> None:
    image = image_name(lab.registry, "order")
    lab.docker("linux-1", "secret", "create", "password", "-", stdin="s3cret")
    lab.docker("linux-1", "config", "create", "words", "-", stdin="hello from a config")
    lab.docker(
        "linux-1", "service", "create", "--detach", "--name", "vault", "--publish", "8081:80",
        "--secret", "password", "--config", r"source=words,target=C:\words.txt",
        "--env", "SECRET_FILE=/ProgramData/Docker/secrets/password", "--env", "CONFIG_FILE=/words.txt",
        "--env", "NODE_OS={{.Node.Platform.OS}}", image, "store",
    )  # fmt: skip
    until("the vault telling its config", lambda: "hello from a config" in ask(lab, "linux-1", 8081))
    assert '"os": "windows"' in ask(lab, HOST, 8081)
    record = Path(windows.record_of(lab.host(HOST))).read_text()
    assert "s3cret" not in record, "a secret is given to nobody but its container"
    lab.docker("linux-1", "service", "rm", "vault")


def containers_of(lab: Lab, host: str, service: str) -> list[str]:
    return lab.docker(host, "ps", "-q", "--filter", f"name={service}").stdout.split()


def peers_of(lab: Lab, host: str, service: str) -> set[str]:
    """Whom the tasks of a service on this host have connections with, by their own sockets."""
    found = set()
    for container in containers_of(lab, host, service):
        about = json.loads(lab.docker(host, "inspect", container).stdout)[0]
        pid = str(about["State"]["Pid"])
        shown = subprocess.run(
            ["nsenter", "-t", pid, "-n", "ss", "-Htn", "sport", "=", ":80"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        found |= {
            row.split()[4].rpartition(":")[0].strip("[]").removeprefix("::ffff:")
            for row in shown.splitlines()
        }
    return found


def test_a_published_port_shows_the_client_between_linux_hosts_and_its_entry_otherwise(lab: Lab) -> None:
    """HNS sends no answer back through the node its client came in by, nor takes one back for it; ours does both. One
    service has tasks on both."""
    push_images(lab.registry, {"both": (LINUX, WINDOWS)})
    lab.docker(
        "linux-1", "service", "create", "--detach", "--name", "both", "--mode", "global", "--publish", "8085:80",
        "--env", "NODE_OS={{.Node.Platform.OS}}", "--env", "SECRET_FILE=/etc/hosts", "--env", "CONFIG_FILE=/etc/hosts",
        image_name(lab.registry, "both"), "store",
    )  # fmt: skip
    until("a task on each host", lambda: _nodes_of(lab, "both") == {HOST, "linux-1"})
    view = json.loads(lab.docker("linux-1", "network", "inspect", "ingress").stdout)[0]
    client = lab.host("client")
    ingress = ip_network(view["IPAM"]["Config"][0]["Subnet"])
    until("both tasks answering", lambda: {_os_at(lab, 8085) for _ in range(4)} == {"linux", "windows"})
    nodes = set()
    for entry, other in (("linux-1", HOST), (HOST, "linux-1")):
        address = lab.host(entry).address
        with contextlib.ExitStack() as held:
            for _ in range(16):  # either task gets some
                held.enter_context(
                    run_inside(
                        Path("/var/run/netns") / client.netns,
                        lambda at=address: socket.create_connection((at, 8085), 5),
                    )
                )
            until(
                "connections at both", lambda e=entry, o=other: all(peers_of(lab, h, "both") for h in (e, o))
            )
            assert peers_of(lab, entry, "both") == {client.address}
            nodes |= peers_of(lab, other, "both")
        until("none left", lambda: not peers_of(lab, HOST, "both") | peers_of(lab, "linux-1", "both"))
    assert len(nodes) == 2 and all(ip_address(n) in ingress for n in nodes), nodes
    told = json.loads(lab.docker("linux-1", "inspect", "--type", "service", "both").stdout)[0]
    assert told["Notes"][0].startswith(
        f"{HOST}: HNS, on every Windows, brings answers to clients outside back"
    )
    shown = lab.exec("linux-1", "overlace", "trace", "client", "both", "--via", HOST).stdout
    assert f"{HOST}: HNS, on every Windows" in shown, shown
    node = json.loads(lab.docker("linux-1", "node", "inspect", HOST).stdout)[0]
    assert "com.overlace.lacks.client-address" in node["Description"]["Engine"]["Labels"]
    lab.docker("linux-1", "service", "rm", "both")


def hns_of(lab: Lab, folder: Path) -> State:
    """The documents that the Windows host's HNS holds."""
    shutil.copytree(Path(lab.host(HOST).data_root) / "hns", folder)
    state = State()
    for d in Journal(folder).load().values():
        state.put(d)
    return state


def test_a_policy_becomes_acls_in_hns_that_hold(lab: Lab, tmp_path: Path) -> None:
    """At the receiver's end: packets are put into the tunnel as the Linux host would send them, past its own ACLs."""
    until("the shop answering before", lambda: all_well(lab))
    allow = "overlace.policy.allow-from=shop_web:tcp/80,shop_web:udp/9999"
    change(lab, "service", "update", "--detach", "--label-add", allow, "shop_order")
    seen = itertools.count()

    def own(state: State) -> HostComputeEndpoint:
        return next(e for e in named(state, "shop_order") if not e.remote)

    def named(state: State, service: str) -> list[HostComputeEndpoint]:
        every = [d for d in state.documents.values() if isinstance(d, HostComputeEndpoint)]
        shop = next(n.id for n in state.documents.values() if n.name == "shop_shop")
        return [e for e in every if e.name.startswith(f"{service}.") and e.host_compute_network == shop]

    def acls() -> list[p.AclSettings]:
        policies = own(hns_of(lab, tmp_path / str(next(seen)))).policies
        return [x.settings for x in policies if isinstance(x, p.Acl)]

    until("ACLs at the Windows host's HNS", lambda: any(a.local_ports == "9999" for a in acls()))
    state = hns_of(lab, tmp_path / "last")
    order_, web, store = own(state), named(state, "shop_web")[0], named(state, "shop_store")[0]
    network = state.get(order_.host_compute_network, HostComputeNetwork)
    assert network is not None and web.remote and store.remote
    pid = json.loads(lab.docker(HOST, "inspect", containers_of(lab, HOST, "shop_order")[0]).stdout)[0][
        "State"
    ]["Pid"]
    inside = Path(f"/proc/{pid}/ns/net")

    def bound(port: int) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("0.0.0.0", port))
        made.settimeout(5)
        return made

    with (
        run_inside(inside, lambda: bound(9999)) as allowed,
        run_inside(inside, lambda: bound(9998)) as other,
        run_inside(
            Path("/var/run/netns") / lab.host("linux-1").netns,
            lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        ) as wire,
    ):
        expected = []
        for sender, port in ((store, 9999), (web, 9998), (store, 9998), (web, 9999)):
            packet = Packet(sender.address, order_.address, 17, 40000, port)
            verdict = simulate(state, lab.host(HOST).address, HOST_PORT, "IN", packet, network.vsid)
            if verdict.action == "deliver":
                expected.append((sender.address, port))
            wire.sendto(_tunnelled(packet, network.vsid, order_.mac_address), (lab.host(HOST).address, 4789))
        assert expected == [(web.address, 9999)], "what the simulator says of the documents"
        assert allowed.recvfrom(100)[1][0] == web.address, "the last one sent: those before it did not come"
        for silent in (allowed, other):
            silent.setblocking(False)
            with pytest.raises(BlockingIOError):
                silent.recv(100)
    for source, broken in (("shop_web", False), ("shop_store", True)):
        command = [sys.executable, "-m", "overlace.cli.main", "trace", source, "shop_order", "--port", "80"]
        done = subprocess.run(
            [*command, "-H", lab.host("linux-1").docker_host or ""],
            check=False,
            capture_output=True,
            text=True,
        )
        assert bool(done.returncode) == broken, done.stdout
        assert ("overlace.policy.allow-from" in done.stdout) == broken
    assert all_well(lab), "web still reaches order"
    change(lab, "service", "update", "--detach", "--label-rm", "overlace.policy.allow-from", "shop_order")
    until("no ACLs any more", lambda: not acls())


def _tunnelled(packet: Packet, vni: int, mac: str) -> bytes:
    """As the Linux host encapsulates it: VXLAN header (RFC 7348), Ethernet, IPv4, UDP without checksum."""
    body = struct.pack("!HHHH", packet.sport, packet.dport, 12, 0) + b"ping"
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 17, 0)
    ends = socket.inet_aton(packet.src) + socket.inet_aton(packet.dst)
    total = sum(struct.unpack("!10H", head + ends))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)
    ethernet = bytes.fromhex(mac.replace("-", "")) + b"\2\0\0\0\0\1" + b"\x08\x00"
    return struct.pack("!BxxxI", 8, vni << 8) + ethernet + head + ends + body


def _nodes_of(lab: Lab, service: str) -> set[str]:
    return {t.node for t in Cluster(lab).tasks() if t.service == service and t.state == "running"}


def _os_at(lab: Lab, port: int) -> str:
    try:
        answer = json.loads(ask(lab, "linux-1", port))
    except ValueError:
        return ""
    return str(answer["chain"][0]["os"])


def test_an_update_replaces_the_task_while_the_service_answers(lab: Lab) -> None:
    before = order(lab).id
    with Traffic(lab) as traffic:
        lab.docker(
            "linux-1",
            "service",
            "update",
            "--detach",
            "--force",
            "--update-order",
            "start-first",
            "shop_order",
        )
        until("another task of order running", lambda: _replaced(lab, before))
    assert not traffic.failures, traffic.failures[:5]
    until("the shop answering after the update", lambda: all_well(lab))


def _replaced(lab: Lab, before: str) -> bool:
    found = [t for t in Cluster(lab).tasks() if t.service == "shop_order"]
    return len(found) == 1 and found[0].id != before and found[0].state == "running"


class Traffic:
    """New connections, one after the other, to a published port at both hosts, until the block ends. They go to a web
    task by the routing mesh, at whose end no name is looked up."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answered = 0
        self.failures: list[str] = []

    def _run(self) -> None:
        while not self._end.is_set():
            for entry in (HOST, "linux-1"):
                said = ask(self._lab, entry, path="/health")
                if "curl" in said or not said:
                    self.failures.append(f"{entry}: {said}")
                else:
                    self.answered += 1

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


@pytest.mark.parametrize("sig", [ASKED, CRASHED], ids=["asked", "crashed"])
@pytest.mark.parametrize("part", ["daemon", "engine", "hns"])
def test_a_restart_of_one_part_ends_no_container_and_drops_nothing(
    lab: Lab, part: str, sig: signal.Signals
) -> None:
    until("the shop answering before", lambda: all_well(lab))
    until("containers of earlier tasks gone", lambda: nothing_ends(lab))
    task = order(lab).id
    running = containers(lab)
    assert running
    with Traffic(lab) as traffic:
        lab.restart(HOST, part, sig)
        until("the shop answering again", lambda: all_well(lab))
        until("the same containers", lambda: containers(lab) == running)
        until("the node ready", lambda: states(lab) == {HOST: "ready", "linux-1": "ready"})
    assert traffic.answered and not traffic.failures, traffic.failures[:5]
    assert order(lab).id == task


def test_names_are_answered_while_the_agent_is_away(lab: Lab) -> None:
    """The container of order looks its next service up for every request."""
    until("the shop answering before", lambda: all_well(lab))
    until("names in reserve", lambda: list(Path(lab.host(HOST).data_root).rglob("standby.place")))
    lab.stop_daemon(HOST, CRASHED)
    try:
        until("names while the agent is away", lambda: all_well(lab), 20)
        assert lab.docker(HOST, "version", check=False).returncode, "it is away"
    finally:
        lab.start_host(HOST)
    until("the node ready", lambda: states(lab)[HOST] == "ready")
    until("the shop answering after", lambda: all_well(lab))


def test_an_hns_that_hangs_holds_up_what_is_new_and_nothing_else(lab: Lab) -> None:
    """It answers no call and does not end. What runs keeps its packets; what began meanwhile goes on when it is back."""
    until("the shop answering before", lambda: all_well(lab))
    before = order(lab).id
    known = {t.id for t in Cluster(lab).tasks(running=False)}
    pid = processes.read_pid(windows.pidfile_of(lab.host(HOST), "hns"), lab.host(HOST).netns)
    assert pid
    with Traffic(lab) as traffic:
        os.kill(pid, signal.SIGSTOP)
        try:
            assert all_well(lab)
            lab.docker("linux-1", "service", "update", "--detach", "--force", "shop_order")
            until(
                "a new task",
                lambda: (
                    {t.id for t in Cluster(lab).tasks(running=False) if t.service == "shop_order"} - known
                ),
            )
            assert not _replaced(lab, before), "it cannot have an endpoint"
        finally:
            os.kill(pid, signal.SIGCONT)
        until("the new task running", lambda: _replaced(lab, before))
        until("the shop answering again", lambda: all_well(lab))
    assert not traffic.failures, traffic.failures[:5]


def test_a_drained_host_gives_its_tasks_back(lab: Lab) -> None:
    change(lab, "node", "update", "--availability", "drain", HOST)
    until("no container left", lambda: containers(lab) == "")
    assert not any((Path(lab.host(HOST).exec_root) / "engine" / "namespaces").iterdir())
    change(lab, "node", "update", "--availability", "active", HOST)
    until("the shop answering again", lambda: all_well(lab))


def test_a_host_that_lost_its_power_comes_back(lab: Lab) -> None:
    before = order(lab).id
    lab.kill_host(HOST)
    assert not processes.find([lab.host(HOST).netns], [lab.host(HOST).exec_root])
    lab.start_host(HOST)
    until("the node ready", lambda: states(lab)[HOST] == "ready")
    until("the shop answering again", lambda: all_well(lab))
    assert order(lab).id != before


def test_nothing_is_left_of_it(lab: Lab) -> None:
    """Last: the fixture's own `down` finds nothing more to do."""
    lab.down()
    host = lab.host(HOST)
    assert not os.path.exists(host.data_root) and not os.path.exists(host.exec_root)
    assert not processes.find([], [host.data_root, host.exec_root])
    assert not [p for p in processes.mounts() if processes.below(p[0], [host.data_root, host.exec_root])]
