"""Making a swarm of a lab's hosts through the Engine API, as `docker swarm init` and `join` do.

Owns the order of those calls. Must not know how nodes join.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from overlace.lab import engine
from overlace.lab.layout import Host
from overlace.lab.shell import tail
from overlace.model.errors import Internal, OverlaceError
from overlace.model.objects import SWARM_PORT


def init(manager: Host) -> str:
    """Make the first manager; return its node id."""
    body = {"ListenAddr": f"0.0.0.0:{SWARM_PORT}", "AdvertiseAddr": manager.underlay, "Spec": {}}
    node: str = engine.call(manager.socket, "POST", "/swarm/init", body, timeout=60)
    return node


def join(host: Host, manager: Host) -> None:
    """Join `host` with the manager's token for its role."""
    tokens = engine.call(manager.socket, "GET", "/swarm")["JoinTokens"]
    body = {
        "ListenAddr": f"0.0.0.0:{SWARM_PORT}",
        "AdvertiseAddr": host.underlay,
        "RemoteAddrs": [
            f"[{manager.six}]:{SWARM_PORT}" if manager.six else f"{manager.address}:{SWARM_PORT}"
        ],
        "JoinToken": tokens["Manager" if host.role == "manager" else "Worker"],
    }
    engine.call(host.socket, "POST", "/swarm/join", body, timeout=60)


def nodes(manager: Host) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = engine.call(manager.socket, "GET", "/nodes")
    return answer


def form(hosts: Sequence[Host], say: Callable[[str], None], timeout: float) -> None:
    """Init on the first manager, join the others, and wait until every node is ready."""
    manager = next(host for host in hosts if host.role == "manager")
    say(f"swarm: init on {manager.name}")
    with _log_of(manager):
        init(manager)
    for host in hosts:
        if host is not manager and host.role != "client":
            say(f"swarm: {host.name} joins as {host.role}")
            with _log_of(host):
                join(host, manager)
    wanted = {host.name for host in hosts if host.role != "client"}
    wait_ready(manager, wanted, timeout)


@contextlib.contextmanager
def _log_of(host: Host) -> Iterator[None]:
    """What failed on a host is told with the end of its daemon's log: the lab goes down, and the log with it."""
    try:
        yield
    except OverlaceError as error:
        end = f"the end of {host.log}:\n{tail(host.log)}"
        raise Internal(f"{host.name}: {error.message}; {end}") from error


def wait_ready(manager: Host, names: set[str], timeout: float) -> None:
    """Wait until the nodes with these host names are ready. Raises Internal naming those that are not."""
    deadline = time.monotonic() + timeout
    while True:
        ready = {
            node["Description"]["Hostname"] for node in nodes(manager) if node["Status"]["State"] == "ready"
        }
        if names <= ready:
            return
        if time.monotonic() > deadline:
            late = ", ".join(sorted(names - ready))
            raise Internal(
                f"not ready after {timeout:g} s: {late}; the end of {manager.log}:\n{tail(manager.log)}"
            )
        time.sleep(0.1)
