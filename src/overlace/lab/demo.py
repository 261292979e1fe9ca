"""`make demo`: a mixed swarm at work, from an empty machine to a dead host, in a form one would show a
colleague.

Owns the story and its checks: every step is bounded in time and ends the demo with a sentence when it fails.
Must not reach into the product: it types docker commands, and reads the Engine API.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from overlace.lab import show
from overlace.lab.capture import Capture
from overlace.lab.cluster import Cluster, TaskInfo
from overlace.lab.lab import Lab, docker_program, say_on_stderr
from overlace.lab.layout import RuntimeKind
from overlace.lab.shell import tail
from overlace.lab.shop import push_images, source_dir
from overlace.lab.vxlan import Packet
from overlace.model.errors import Internal, OverlaceError

T = TypeVar("T")
STACK = "shop"
PORT = 8080
MAX_PACKETS = 40
WINDOWS_HERE = {  # by whether its agent is a Windows Python
    False: "windows-1 is emulated: there is no Windows kernel here. Its daemon reports Windows and gets the documents a"
    " real Windows host would get; its containers are Linux processes.",
    True: "windows-1 has no Windows kernel, but its daemon is the Windows program: the official CPython for Windows, run"
    " by Wine, that drives HNS through computenetwork.dll and Docker Engine through its named pipe. Both are played by"
    " Linux processes; its containers are Linux processes, too.",
}


def run_demo(name: str, keep: bool, runtime: RuntimeKind = "oci", windows_python: bool = False) -> int:
    """Run the whole demo in a lab called `name`; returns the exit code. With `keep` the lab stays up. `windows_python`:
    windows-1 is a host whose agent is a Windows Python, not an emulated one.
    """
    started = time.monotonic()
    lab: Lab | None = None
    failed = True
    try:
        show.heading(1, "A lab of separate hosts")
        lab = Lab.up(
            name,
            linux=2,
            windows=int(not windows_python),
            windows_python=int(windows_python),
            form_swarm=False,
            runtime=runtime,
            say=say_on_stderr,
        )
        Demo(lab).run()
        failed = False
    except (OverlaceError, subprocess.SubprocessError, OSError) as error:
        print(f"\nThe demo failed: {_words(error)}", flush=True)
        if lab is not None:
            _show_logs(lab)
    except KeyboardInterrupt:
        print("\nInterrupted.", flush=True)
    finally:
        if lab is not None and not keep:
            lab.down()
    if lab is not None:
        _end(lab, keep, time.monotonic() - started, failed)
    return 1 if failed else 0


def _slot(task: str) -> str:
    """A task's name without its id: shop_web.2.xyz -> shop_web.2."""
    return task.rpartition(".")[0] or task


def _words(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        said = (error.stderr or error.stdout or "").strip()
        return f"{shlex.join(map(str, error.cmd))} ended with {error.returncode}: {said}"
    return str(error)


def _show_logs(lab: Lab) -> None:
    for host in lab.hosts:
        if host.log:
            print(f"\nThe end of {host.log}:\n{tail(host.log, 12)}", flush=True)


def _end(lab: Lab, keep: bool, seconds: float, failed: bool) -> None:
    if not failed:
        print(f"\nEverything above ran on this machine in {seconds:.0f} s.", flush=True)
    if not keep:
        print(f"The lab {lab.name} is gone again; `make demo KEEP=1` leaves it up.", flush=True)
        return
    overlace = os.path.join(os.path.dirname(sys.executable), "overlace")
    docker, address = docker_program(), lab.host("windows-1").address
    if shutil.which("docker") == docker:
        docker = "docker"
    print(f"""
The lab {lab.name} stays up. Try:

    export DOCKER_HOST={lab.manager.docker_host}
    {docker} node ls
    {docker} service ps {STACK}_web
    {overlace} why {STACK}_order    # why it is where it is
    curl {address}:{PORT}
    {overlace} lab status {lab.name}
    {overlace} lab start {lab.name} linux-2    # its power was cut
    {docker} service logs {STACK}_web
    {overlace} lab exec {lab.name} client -- curl -s {address}:{PORT}
    {overlace} lab down {lab.name}""")


class Demo:
    """The steps, in order, on a lab whose daemons run and are not yet a swarm."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.cluster = Cluster(lab)
        self.manager = lab.manager
        self.last_answer = ""  # what the client was told last, for when that is not what it should be

    def run(self) -> None:
        self.show_hosts()
        self.form_swarm()
        self.deploy()
        self.show_placement()
        self.request()
        self.scale(8)
        self.kill()

    # -- helpers ----------------------------------------------------------------------

    def docker(self, where: str, *words: str, timeout: float = 60, quiet: bool = False, **env: str) -> str:
        """Type a docker command on a host, show it with its output, and return what it printed."""
        done = subprocess.run(
            [docker_program(), *words],
            env=self.lab.environment(where) | {"DOCKER_CLI_HINTS": "false"} | env,
            cwd=source_dir(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        typed = [*(f"{key}={value}" for key, value in env.items()), "docker", *map(shlex.quote, words)]
        if done.returncode != 0:
            show.command(where, typed, done.stdout + done.stderr)
            raise Internal(f"docker {' '.join(words)} ended with {done.returncode} on {where}")
        show.command(where, typed, "" if quiet else done.stdout)
        return done.stdout

    def wait(self, what: str, ready: Callable[[], T | None], timeout: float, pause: float = 0.1) -> T:
        """Ask every `pause` seconds until `ready` gives something, and return it.

        Raises Internal after `timeout` seconds.
        """
        started = time.monotonic()
        while (found := ready()) is None:
            if time.monotonic() - started > timeout:
                self.show_tasks(self.cluster.tasks(running=False))
                heard = f"; the client's last answer: {self.last_answer}" if self.last_answer else ""
                raise Internal(f"{what}: not within {timeout:g} s{heard}")
            time.sleep(pause)
        return found

    def get(self, address: str) -> dict[str, Any] | None:
        """One request from the client to a host's published port; None when it is not answered in full."""
        url = f"http://{address}:{PORT}/"
        done = self.lab.exec("client", "curl", "-sS", "--max-time", "5", url, check=False)
        self.last_answer = f"{url}: {(done.stdout or done.stderr).strip()}"
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            return None
        return answer if isinstance(answer, dict) and len(answer.get("chain", ())) == 3 else None

    def show_tasks(self, tasks: Sequence[TaskInfo]) -> None:
        show.table(
            ("TASK", "HOST", "STATE", "ADDRESSES", "ERROR"),
            [
                (
                    task.name,
                    task.node or "-",
                    task.state,
                    " ".join(f"{net}={address}" for net, address in sorted(task.addresses.items())),
                    task.error,
                )
                for task in tasks
            ],
        )

    # -- steps ----------------------------------------------------------------------

    def show_hosts(self) -> None:
        show.say(
            "Each host is a network namespace with its own daemon, address, image store and state folder;"
            f" a bridge joins them. {WINDOWS_HERE[self.lab.host('windows-1').windows_python]}"
        )
        print()
        rows = [
            (
                host.name,
                host.os + (" (emulated)" if host.emulated else " (Wine)" if host.windows_python else ""),
                host.address,
                host.docker_host or "-",
            )
            for host in self.lab.hosts
        ]
        show.table(("HOST", "OS", "ADDRESS", "DOCKER_HOST"), rows)
        pushed = push_images(self.lab.registry)
        show.say(f"The shop's images are in the lab's registry at {self.lab.registry}:")
        print()
        show.table(("IMAGE", "DIGEST"), [(name, digest[:19] + "…") for name, digest in pushed.items()])

    def form_swarm(self) -> None:
        show.heading(2, "A swarm, made with the docker CLI")
        manager = self.manager
        self.docker(manager.name, "swarm", "init", "--advertise-addr", manager.address)
        said = self.docker(manager.name, "swarm", "join-token", "worker")
        join = next(
            shlex.split(line) for line in said.splitlines() if line.strip().startswith("docker swarm join")
        )
        for host in self.lab.hosts:
            if host.role == "worker":
                self.docker(host.name, *join[1:])

        def ready() -> bool | None:
            return True if all(node.state == "ready" for node in self.cluster.nodes()) else None

        self.wait("every node ready", ready, 30)
        self.docker(manager.name, "node", "ls")
        show.say("From docker node inspect:")
        print()
        show.table(
            ("NODE", "OS", "BUILD", "ARCHITECTURE", "ROLE", "EMULATED"),
            [
                (
                    node.hostname,
                    node.os,
                    node.os_version,
                    node.architecture,
                    node.role,
                    "yes: Windows without a Windows kernel" if node.emulated else "no",
                )
                for node in self.cluster.nodes()
            ],
        )

    def deploy(self) -> None:
        show.heading(3, "docker stack deploy")
        started = time.monotonic()
        registry = self.lab.registry
        self.docker(self.manager.name, "stack", "deploy", "-c", "compose.yml", STACK, REGISTRY=registry)
        self.wait(
            "every task of the stack running", lambda: self.running({"web": 2, "order": 1, "store": 1}), 60
        )
        address = self.lab.host("windows-1").address
        self.wait("the shop answering", lambda: self.get(address), 30)
        show.say(f"All tasks run and the shop answers, {time.monotonic() - started:.1f} s after the command.")
        print()
        self.docker(self.manager.name, "stack", "services", STACK)

    def running(self, wanted: dict[str, int], without: str = "") -> list[TaskInfo] | None:
        """The tasks, when exactly as many run as wanted, none of them on host `without`."""
        tasks = [task for task in self.cluster.tasks() if task.service.startswith(f"{STACK}_")]
        counts = Counter(task.service.removeprefix(f"{STACK}_") for task in tasks if task.state == "running")
        settled = dict(counts) == wanted and len(tasks) == sum(wanted.values())
        return tasks if settled and all(task.node != without for task in tasks) else None

    def show_placement(self) -> None:
        show.heading(4, "Where each task landed, and why")
        tasks = self.cluster.tasks()
        self.show_tasks(tasks)
        for name in sorted(self.cluster.services()):
            show.say(f"{name}: {self.cluster.why(name)}.")
        print()
        show.say("The compose file says nothing about operating systems: the images' platforms do.")

    def request(self) -> None:
        show.heading(5, "One request from the client, and its packets on the wire")
        tasks = self.cluster.tasks()
        busy = {task.node for task in tasks if task.service == f"{STACK}_web"}
        # Prefer a host without a web task, so that the ingress network has to carry the request to one.
        entry = next(
            (host for host in self.lab.hosts if host.role != "client" and host.name not in busy), None
        )
        if entry is None:
            raise Internal("every host runs a web task; there is none to enter through")
        with tempfile.TemporaryDirectory(prefix="overlace-demo-") as folder:
            capture = Capture(self.lab, Path(folder) / "request.pcap")
            try:
                answer = self.get(entry.address)
            finally:
                packets = capture.stop()
        if answer is None:
            raise Internal(f"no good answer from {self.last_answer}")
        show.say(f"{entry.name} runs no web task, and answers on the published port all the same:")
        print()
        show.command("client", ["curl", f"http://{entry.address}:{PORT}/"], json.dumps(answer))
        show.say("The chain of containers it crossed:")
        print()
        show.table(
            ("", "SERVICE", "OS", "HOST", "ADDRESS", "TASK"),
            [
                (
                    f"{index}.",
                    hop["service"],
                    hop["os"],
                    hop["host"],
                    hop["address"],
                    hop["task"].rpartition(".")[0],
                )
                for index, hop in enumerate(answer["chain"], 1)
            ],
        )
        store = answer["chain"][-1]
        self.check_store(store)
        show.say(f"The store read its config ({store['greeting']!r}) and its secret (fingerprint matches).")
        print()
        self.show_packets(packets)

    def check_store(self, store: dict[str, Any]) -> None:
        """The store's answer must come from the config and the secret in the compose file's folder."""
        greeting = (source_dir() / "greeting.txt").read_text().strip()
        value = 0xCBF29CE484222325
        for byte in (source_dir() / "store_password.txt").read_bytes():
            value = (value ^ byte) * 0x100000001B3 % 2**64
        if store.get("greeting") != greeting or store.get("secret_fnv1a") != f"{value:016x}":
            raise Internal(f"the store has another config or secret than the compose file: {store}")

    def show_packets(self, packets: list[Packet]) -> None:
        if not packets:
            raise Internal("no VXLAN packet crossed the underlay during the request")
        hosts = {host.address: host.name for host in self.lab.hosts}
        networks = self.cluster.networks_by_vni()
        names = self.cluster.virtual_addresses()
        for task in self.cluster.tasks():
            names.update(
                {address: task.name.removeprefix(f"{STACK}_") for address in task.addresses.values()}
            )

        def end(address: str, port: int) -> str:
            name = names.get(address)
            return f"{address}:{port}" + (f" ({name})" if name else "")

        show.say(f"The {len(packets)} VXLAN packets on the underlay while that request was answered:")
        print()
        first = packets[0].time
        show.table(
            ("ms", "OUTER: FROM", "TO", "VNI", "INNER: FROM", "TO", "WHAT"),
            [
                (
                    f"{(packet.time - first) * 1000:.2f}",
                    hosts.get(packet.outer_source, packet.outer_source),
                    hosts.get(packet.outer_target, packet.outer_target),
                    f"{packet.vni} {networks.get(packet.vni, '')}".rstrip(),
                    end(packet.inner_source, packet.source_port),
                    end(packet.inner_target, packet.target_port),
                    packet.what,
                )
                for packet in packets[:MAX_PACKETS]
            ],
        )
        if len(packets) > MAX_PACKETS:
            show.say(f"… and {len(packets) - MAX_PACKETS} more.")

    def scale(self, replicas: int) -> None:
        show.heading(6, f"Scale web from 2 to {replicas}")
        entry = self.lab.host("windows-1").address
        web = f"{STACK}_web"
        before = {task.id for task in self.cluster.tasks() if task.service == web}
        seen: dict[str, str] = {}
        started = time.monotonic()
        self.docker(self.manager.name, "service", "scale", "-d", f"{web}={replicas}")

        def all_answered() -> bool | None:
            answer = self.get(entry)
            if answer is not None:
                seen[answer["chain"][0]["task"]] = answer["chain"][0]["host"]
            return True if len(seen) >= replicas else None

        self.wait(f"all {replicas} web tasks answering", all_answered, 60, pause=0)
        took = time.monotonic() - started
        self.check_only_added(before, {task.id for task in self.cluster.tasks() if task.service == web}, seen)
        show.say(f"All {replicas} have answered the client {took:.1f} s after the command.")
        print()
        show.table(("HOST", "WEB TASKS"), sorted(Counter(seen.values()).items()))

    def check_only_added(self, before: set[str], after: set[str], seen: dict[str, str]) -> None:
        """Scaling up starts tasks and leaves those that run alone; those that answered are those that there are."""
        answered = {name.rpartition(".")[2] for name in seen}
        if not before <= after:
            raise Internal(f"scaling up replaced running tasks: {', '.join(sorted(before - after))}")
        if answered != after:
            raise Internal(
                f"tasks {sorted(answered ^ after)} answered without being there, or the other way round"
            )

    def kill(self) -> None:
        victim = next(host for host in self.lab.hosts if host.role == "worker" and host.os == "linux")
        show.heading(7, f"Cut the power of {victim.name}")
        before = [task for task in self.cluster.tasks() if task.node == victim.name]
        wanted = Counter(task.service.removeprefix(f"{STACK}_") for task in self.cluster.tasks())
        show.say(f"{victim.name} runs {len(before)} tasks: {', '.join(task.name for task in before)}.")
        print()
        started = time.monotonic()
        self.lab.kill_host(victim.name)
        show.command("here", ["overlace", "lab", "kill", self.lab.name, victim.name])
        show.say("Nothing tells the manager; it notices when the heartbeats stay away …")
        print()

        def moved() -> list[TaskInfo] | None:
            return self.running(dict(wanted), without=victim.name)

        tasks = self.wait(f"the tasks of {victim.name} running elsewhere", moved, 90)
        took = time.monotonic() - started
        entry = self.lab.host("windows-1").address
        self.wait("the shop answering without it", lambda: self.get(entry), 30)
        show.say(
            f"All {len(before)} run elsewhere {took:.1f} s after the power cut, and the shop answered"
            f" again after {time.monotonic() - started:.1f} s."
        )
        print()
        self.docker(self.manager.name, "node", "ls")
        after = {(task.service, task.slot): task for task in tasks}
        show.table(
            ("TASK", "WAS ON", "NOW ON", "STATE"),
            [
                (
                    task.name,
                    task.node,
                    after[task.service, task.slot].node,
                    after[task.service, task.slot].state,
                )
                for task in before
                if (task.service, task.slot) in after
            ],
        )
