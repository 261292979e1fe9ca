"""Figures of the control plane: polling the Engine API, the containers' resolver, programming a host's tables.

Owns what is asked and how often. The API's and the resolver's run on the swarms of the deploy figures, both with the
same service on them.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import deploy
from measure.datapath_host import DataPathHost
from measure.figures import Figure, Peer
from measure.paths import VNI, docker_entries, mac_of
from measure.places import PAIRS, SEGMENTS
from measure.programs import enter
from measure.swarms import Swarm
from overlace.lab.shell import run
from overlace.model.errors import Internal, OverlaceError
from overlace.network.vfp.tables import Delta, RemoteEndpoint

Say = Callable[[str], None]
GROUP = "control plane"
POLLED = ("/services", "/tasks", "/nodes")
SERVICE, REPLICAS = "standing", 20


def measure(
    programs: Path, swarms: tuple[Swarm, Swarm], rounds: int, seconds: float, say: Say
) -> Iterator[Figure]:
    """Polls and questions per second, with one client that waits for each answer."""
    for swarm in swarms:
        say(f"control: {REPLICAS} tasks on {swarm.name}")
        swarm.create(SERVICE, REPLICAS)
        deploy.answered(programs, swarm, SERVICE, REPLICAS)
    time.sleep(2)  # states are still being reported
    asks: list[tuple[str, Callable[[Swarm], float]]] = [
        (f"GET {url}", lambda swarm, url=url: poll_rate(swarm.manager.socket, url, seconds))  # type: ignore[misc]
        for url in POLLED
    ]
    asks.append(("names asked of the resolver", lambda swarm: _dns_rate(programs, swarm, seconds)))
    for name, ask in asks:
        say(f"control: {name}")
        figure = Figure(name, "/s", [Peer(deploy.DOCKER)], group=GROUP)
        for _ in range(rounds):
            for swarm in swarms:
                samples = figure.samples if swarm.name == "overlace" else figure.peers[0].samples
                try:
                    samples.append(ask(swarm))
                except (OverlaceError, OSError) as error:
                    say(f"  {swarm.name}: {name} could not be measured: {error}")
                    samples.append(None)
        yield figure


def poll_rate(path: str, url: str, seconds: float) -> float:
    """Answers per second to GETs of `url`, one after the other on one connection. Raises Internal unless all are
    200."""
    request = f"GET {url} HTTP/1.1\r\nHost: docker\r\n\r\n".encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(path)
        count, began = 0, time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            connection.sendall(request)
            status = _read_answer(connection)
            if status != 200:
                raise Internal(f"GET {url}: {status}")
            count += 1
    return count / (now - began)


def _read_answer(connection: socket.socket) -> int:
    """Read one HTTP/1.1 answer to its end; return its status."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    fields = dict(line.split(b": ", 1) for line in lines[1:])
    if fields.get(b"transfer-encoding") == b"chunked":
        while not body.endswith(b"0\r\n\r\n"):  # JSON never ends a chunk like that
            body += _more(connection)
    else:
        missing = int(fields[b"content-length"]) - len(body)
        while missing > 0:
            missing -= len(_more(connection))
    return int(lines[0].split()[1])


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 18)
    if not data:
        raise Internal("the API closed the connection")
    return data


def _dns_rate(programs: Path, swarm: Swarm, seconds: float) -> float:
    argv = [*enter(swarm.prober), str(programs / "tasks"), "dns", f"tasks.{SERVICE}", str(seconds)]
    count, took = run(argv, timeout=seconds + 15).split()
    return int(count) / float(took)


def measure_programming(host: DataPathHost, endpoints: int, rounds: int, say: Say) -> Iterator[Figure]:
    """Remote endpoints entered into a host's tables, against the neighbour and forwarding entries Docker's design
    needs for them, given to `ip` and `bridge` in one batch each."""
    say(f"control: {endpoints} remote endpoints into the tables")
    figure = Figure(
        f"{endpoints:,} remote endpoints programmed", "/s", [Peer("docker's design")], group=GROUP
    )
    addresses = [f"10.{200 + (i >> 16)}.{i >> 8 & 255}.{i & 255}" for i in range(endpoints)]
    provider = PAIRS["overlace"][1].address
    entries = tuple(RemoteEndpoint(VNI, address, mac_of(address), provider) for address in addresses)
    batches = [
        "\n".join(lines) + "\n"
        for lines in zip(*(docker_entries(a, provider) for a in addresses), strict=True)
    ]
    for _ in range(rounds):
        took, _ = host.timed("apply", Delta(put=entries))
        figure.samples.append(endpoints / took)
        host.call("apply", Delta(remove=tuple(entry.key for entry in entries)))
        began = time.monotonic()
        for program, batch in zip(("ip", "bridge"), batches, strict=True):
            run([*enter(SEGMENTS["a"]), program, "-batch", "-"], stdin=batch)
        figure.peers[0].samples.append(endpoints / (time.monotonic() - began))
        run(
            [
                *enter(SEGMENTS["a"]),
                "ip",
                "neigh",
                "flush",
                "dev",
                "vxlan0",
                "nud",
                "permanent",
                "to",
                "10.192.0.0/10",
            ]
        )
        removals = batches[1].replace("fdb replace", "fdb del")
        run([*enter(SEGMENTS["a"]), "bridge", "-batch", "-"], stdin=removals)
    yield figure


def measure_update(host: DataPathHost, rounds: int, say: Say) -> Figure:
    """One remote endpoint that moved to another host, until the tables say so."""
    say("control: one endpoint moves")
    figure = Figure(
        "an endpoint moved, until programmed",
        "s",
        [Peer("docker's design")],
        group=GROUP,
        less_is_better=True,
    )
    address, providers = "10.1.0.250", ("192.0.2.2", "192.0.2.3")
    for i in range(rounds):
        entry = RemoteEndpoint(VNI, address, mac_of(address), providers[i % 2])
        figure.samples.append(host.timed("apply", Delta(put=(entry,)))[0])
        began = time.monotonic()
        for program, batch in zip(("ip", "bridge"), docker_entries(address, providers[i % 2]), strict=True):
            run([*enter(SEGMENTS["a"]), program, *batch.split()])
        figure.peers[0].samples.append(time.monotonic() - began)
    host.call("apply", Delta(remove=(("endpoint", VNI, address),)))
    return figure
