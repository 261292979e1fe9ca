"""Two swarms of two hosts on one underlay, overlace's and Docker's, driven by the same Engine API calls.

Owns bringing them up and what both are asked: services, the prober's network, when a service is gone. Must not time
anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from measure import places
from measure.peer import Docker
from overlace.lab import engine, netns, swarm
from overlace.lab.daemons import wait_until
from overlace.lab.lab import Lab
from overlace.lab.layout import OUTSIDE_ADDRESS, Host
from overlace.model.errors import Internal, OverlaceError
from overlace.runtime.base import Platform
from overlace.runtime.oci.mkimage import Variant, push, write_layout

Say = Callable[[str], None]
UP_TIMEOUT = 60.0
NETWORK, PROBER = "bench", "prober"
_SERVICE_LABEL = "com.docker.swarm.service.name"


class Swarm(msgspec.Struct):
    """A swarm that is up, with a prober task on the manager."""

    name: str
    hosts: tuple[Host, ...]
    image: str
    network: str = ""
    prober: str = ""  # file of the prober's network namespace

    @property
    def manager(self) -> Host:
        return self.hosts[0]

    def call(self, method: str, url: str, body: object = None, *, timeout: float = 60) -> Any:
        return engine.call(self.manager.socket, method, url, body, timeout=timeout)

    def create(
        self, name: str, replicas: int | None, command: str = "serve", constraints: tuple[str, ...] = ()
    ) -> str:
        """Create a service with the same words on both swarms (`replicas` None: one on each host); return its id."""
        body = {
            "Name": name,
            "TaskTemplate": {
                "ContainerSpec": {"Image": self.image, "Command": ["/tasks", command]},
                "Networks": [{"Target": self.network}],
                "Placement": {"Constraints": list(constraints)},
            },
            "Mode": {"Global": {}} if replicas is None else {"Replicated": {"Replicas": replicas}},
            "EndpointSpec": {"Mode": "dnsrr"},
        }
        created: str = self.call("POST", "/services/create", body)["ID"]
        return created

    def containers(self, service: str, hosts: tuple[Host, ...] = ()) -> list[dict[str, Any]]:
        """A service's containers on all hosts, stopped ones included."""
        wanted = urllib.parse.quote(json.dumps({"label": [f"{_SERVICE_LABEL}={service}"]}))
        return [
            container
            for host in hosts or self.hosts
            for container in engine.call(host.socket, "GET", f"/containers/json?all=1&filters={wanted}")
        ]

    def _pid(self, host: Host) -> int | None:
        """The process of the prober's task on a host, None while there is none."""
        for container in self.containers(PROBER, (host,)):
            try:
                state = engine.call(host.socket, "GET", f"/containers/{container['Id']}/json")["State"]
            except engine.EngineError:  # listed a moment ago, and gone
                continue
            if state["Running"] and state["Pid"]:
                return int(state["Pid"])
        return None

    def probers(self) -> list[tuple[str, str]]:
        """(file of the network namespace, address on the bench's network) of the prober's task on each host."""
        found = []
        for host in self.hosts:
            pid = self._pid(host)
            running = [c for c in self.containers(PROBER, (host,)) if c["State"] == "running"]
            if not pid or not running:
                raise Internal(f"{self.name}: the prober does not run on {host.name}")
            shown = engine.call(host.socket, "GET", f"/containers/{running[0]['Id']}/json")
            address = shown["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]
            found.append((f"/proc/{pid}/ns/net", str(address)))
        return found

    def remove(self, service: str, timeout: float = 120) -> None:
        """Remove a service and wait until none of its containers is left."""
        self.call("DELETE", f"/services/{service}")
        deadline = time.monotonic() + timeout
        while left := self.containers(service):
            if time.monotonic() > deadline:
                raise Internal(f"{self.name}: {len(left)} containers of {service} left after {timeout:g} s")
            time.sleep(0.1)

    def start_prober(self) -> None:
        """A task on each host; the bench asks from the network namespace of the manager's. So the image and the
        network are on both hosts before anything is timed. Raises Internal when they do not run.
        """
        self.network = self.call(
            "POST", "/networks/create", {"Name": NETWORK, "Driver": "overlay", "CheckDuplicate": True}
        )["Id"]
        self.create(PROBER, None, "sleep")
        deadline = time.monotonic() + UP_TIMEOUT
        while time.monotonic() < deadline:
            pids = [self._pid(host) for host in self.hosts]
            if all(pids):
                self.prober = f"/proc/{pids[0]}/ns/net"
                return
            time.sleep(0.1)
        tasks = [task["Status"] for task in self.call("GET", "/tasks")]
        raise Internal(f"{self.name}: the prober does not run: {tasks}")


@contextlib.contextmanager
def both(programs: Path, docker: Docker, say: Say) -> Iterator[tuple[Swarm, Swarm]]:
    """(overlace's swarm, Docker's), ready to deploy on; taken down at the end by places.remove_all()."""
    say("deploy: overlace's swarm of two hosts")
    lab = Lab.up(places.LAB, linux=2, windows=0, timeout=UP_TIMEOUT)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        # A resolver whose upstream is silent makes its client wait for the time-out on every unknown name.
        daemons.append(_start_name_server(lab, programs))
        image = _push_image(lab.registry, programs)
        ours = Swarm("overlace", tuple(host for host in lab.hosts if host.role != "client"), image)
        say("deploy: Docker's swarm of two hosts")
        hosts = places.docker_hosts((lab.plan.address(21), lab.plan.address(22)))
        for host in hosts:
            netns.ensure_host(lab.plan, host)
            daemons.append(_start_dockerd(host, lab.registry, docker))
        for host in hosts:
            _wait_dockerd(host, UP_TIMEOUT)
        swarm.form(hosts, lambda _: None, UP_TIMEOUT)
        theirs = Swarm("docker", hosts, image)
        for each in (ours, theirs):
            each.start_prober()
        yield ours, theirs
    finally:
        with places.uninterrupted():
            try:
                places.remove_swarms()
            finally:
                for daemon in daemons:
                    daemon.wait(10)


def _start_name_server(lab: Lab, programs: Path) -> subprocess.Popen[bytes]:
    server = subprocess.Popen(
        lab.command("switch", [str(programs / "tasks"), "nxdomain", OUTSIDE_ADDRESS]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert server.stdout
    with server.stdout:
        if server.stdout.readline() != b"ready\n":
            raise Internal("the name server beyond the underlay does not start")
    return server


def _push_image(registry: str, programs: Path) -> str:
    """The task's image into the lab's registry; return its name with digest, as the docker CLI pins it."""
    scratch = places.scratch("image")
    rootfs = scratch / "rootfs"
    for folder in ("etc", "proc", "sys", "dev", "run", "tmp"):
        (rootfs / folder).mkdir(parents=True, exist_ok=True)
    (rootfs / "tasks").write_bytes((programs / "tasks").read_bytes())
    (rootfs / "tasks").chmod(0o755)
    layout, name = scratch / "layout", f"{registry}/bench-task:1"
    variant = Variant(Platform(os="linux", architecture="amd64"), rootfs, {"Cmd": ["/tasks", "serve"]})
    write_layout(layout, [variant], "1")
    return f"{name}@{asyncio.run(push(layout, '1', name))}"


def _start_dockerd(host: Host, registry: str, docker: Docker) -> subprocess.Popen[bytes]:
    """A daemon as a host of its own, with Docker's defaults."""
    for folder in (
        host.data_root,
        host.exec_root,
        str(Path(host.log).parent),
        str(Path(host.pidfile).parent),
    ):
        Path(folder).mkdir(parents=True, exist_ok=True)
    argv = [docker.dockerd, "--data-root", host.data_root, "--exec-root", host.exec_root]
    argv += ["--pidfile", host.pidfile, "--host", f"unix://{host.socket}", "--insecure-registry", registry]
    argv += ["--dns", OUTSIDE_ADDRESS, "--config-file", f"{host.exec_root}/daemon.json"]
    argv += ["--cgroup-parent", f"/ovbench-{host.name}", "--exec-opt", "native.cgroupdriver=cgroupfs"]
    Path(host.exec_root, "daemon.json").write_text("{}")  # not this machine's own settings
    environment = {key: value for key, value in docker.environment.items() if not key.startswith("DOCKER_")}
    with open(host.log, "ab") as log:
        return subprocess.Popen(
            [*netns.enter(host.netns, host.uts), *argv],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is the bench's: it takes daemons away in order
        )


def _wait_dockerd(host: Host, timeout: float) -> None:
    def ready() -> bool:
        with contextlib.suppress(OverlaceError):
            return bool(engine.ping(host.socket) and engine.call(host.socket, "GET", "/info")["ID"])
        return False

    wait_until(f"dockerd of {host.name}", ready, host.pidfile, host.log, timeout)
