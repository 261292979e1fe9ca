"""Docker's own overlay network against ours: two real swarms on one underlay, the same kinds of traffic between a task of
one host and a task of the other, and how soon a new task is reached.

Owns these figures. Both swarms are those of the deploy figures (swarms.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import network, programs
from measure.figures import Figure, Peer
from measure.paths import Way
from measure.swarms import NETWORK, Swarm
from overlace.lab import engine
from overlace.model.errors import Internal, OverlaceError

Say = Callable[[str], None]
GROUP = "network: a real Docker swarm's overlay between two hosts"
DOCKER = "docker swarm"
PORT = 7300
RESOLUTION = 0.01  # seconds of /proc's times; a network may be there before the process is
LIMIT = 30.0  # seconds until a new task is reached
KINDS = tuple(
    network.Kind(kind.name, kind.unit, kind.how, {DOCKER: kind.targets[network.DOCKER]}, kind.streams)
    for kind in network.ACROSS
)


def measure(
    folder: Path, swarms: tuple[Swarm, Swarm], rounds: int, seconds: float, updates: int, say: Say
) -> Iterator[Figure]:
    with contextlib.ExitStack() as stack:
        between = {}
        for swarm in swarms:
            (client, _), (server, address) = swarm.probers()
            running = programs.Server(folder, server, PORT)
            stack.callback(running.stop)
            name = "overlace" if swarm.name == "overlace" else DOCKER
            between[name] = Way(name, client, server, address, PORT)
        yield from network.compare(folder, GROUP, between, KINDS, rounds, seconds, say)
    yield _update(folder, swarms, updates, say)


def _update(folder: Path, swarms: tuple[Swarm, Swarm], rounds: int, say: Say) -> Figure:
    """From the making of a task's first process until a packet of a container on the other host gets an
    answer from it; that one sends all the time."""
    say(f"{GROUP}: a new task, until it is reached")
    figure = Figure(
        "a task started, until reached from the other host",
        "s",
        [Peer(DOCKER)],
        group=GROUP,
        less_is_better=True,
    )
    for turn in range(rounds):
        for swarm in swarms:
            samples = figure.samples if swarm.name == "overlace" else figure.peers[0].samples
            try:
                samples.append(_reached(folder, swarm, f"reach{turn}"))
            except (OverlaceError, OSError, ValueError) as error:
                say(f"  {swarm.name}: could not be measured: {error}")
                samples.append(None)
    return figure


def _reached(folder: Path, swarm: Swarm, service: str) -> float:
    swarm.create(service, 1, constraints=("node.role==worker",))
    try:
        address = _address(swarm, service)
        argv = [*programs.enter(swarm.prober), str(folder / "tasks"), "first", address, "80", f"{LIMIT:g}"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT + 10)
        if done.returncode:
            raise Internal(done.stderr.strip())
        return max(float(done.stdout) - _started(swarm, service), RESOLUTION)
    finally:
        swarm.remove(service)


def _started(swarm: Swarm, service: str) -> float:
    """When the task's first process was made, in seconds since 1970; to a hundredth, as proc(5) has it. What engines say
    they note at different moments."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        (container,) = swarm.containers(service, (swarm.hosts[1],))
        state = engine.call(swarm.hosts[1].socket, "GET", f"/containers/{container['Id']}/json")["State"]
        if state["Running"] and state["Pid"]:
            ticks = int(Path(f"/proc/{state['Pid']}/stat").read_text().rpartition(")")[2].split()[19])
            since_boot = ticks / os.sysconf("SC_CLK_TCK")
            return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot
        time.sleep(0.01)
    raise Internal(f"{swarm.name}: the container of {service} is not noted as started")


def _address(swarm: Swarm, service: str) -> str:
    """The task's, which is known before its container is."""
    wanted = urllib.parse.quote(json.dumps({"service": [service], "desired-state": ["running"]}))
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        for task in swarm.call("GET", f"/tasks?filters={wanted}"):
            for attached in task.get("NetworksAttachments") or ():
                if attached["Network"]["Spec"]["Name"] == NETWORK and attached.get("Addresses"):
                    return str(attached["Addresses"][0]).partition("/")[0]
        time.sleep(0.002)
    raise Internal(f"{swarm.name}: the task of {service} has no address after {LIMIT:g} s")
