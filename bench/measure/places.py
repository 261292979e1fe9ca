"""Where the bench works: namespaces, folders and addresses, all under names of its own, and taking them away.

Owns names and clean-up. Everything is listed here before it is made, so that the next run removes what a killed
run left. Must not measure.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from overlace.lab import clean, netns, processes
from overlace.lab.lab import Lab
from overlace.lab.layout import Host, Role
from overlace.lab.shell import run
from overlace.model.errors import Conflict, NotFound, OverlaceError

LAB = "ovbench"  # the overlace swarm of the deploy figures
RUN = Path("/run/overlace/bench")
DATA = Path("/var/lib/overlace/bench")
_LOCK = Path("/run/overlace/bench.lock")


def _host(name: str, address: str, role: Role = "worker", six: str = "") -> Host:
    return Host(
        name=name,
        os="linux",
        role=role,
        address=address,
        six=six,
        netns=f"ovbench-{name}",
        uts=str(RUN / "uts" / name),
        data_root=str(DATA / name),
        exec_root=str(RUN / name),
        log=str(RUN / "log" / f"{name}.log"),
        pidfile=str(RUN / "pid" / name),
    )


# Pairs of hosts joined by one veth each. The pairs never see each other, so they share addresses (RFC 5737
# TEST-NET-1). The hosts of over6 reach each other over IPv6 (RFC 3849).
PAIRS = {
    pair: (
        _host(f"{pair}-a", "192.0.2.1", six="2001:db8::1" if pair == "over6" else ""),
        _host(f"{pair}-b", "192.0.2.2", six="2001:db8::2" if pair == "over6" else ""),
    )
    for pair in ("bare", "bridge", "overlace", "over6")
}
# Docker's overlay keeps bridge and vxlan device in a namespace of their own on each host.
SEGMENTS = {"a": "ovbench-bridge-a-seg", "b": "ovbench-bridge-b-seg"}
# Containers of the paths the bench builds itself; overlace makes its own sandboxes.
CONTAINERS = {name: f"ovbench-{name}" for name in ("bridge-a1", "bridge-a2", "bridge-b1", "veth-1", "veth-2")}


def docker_hosts(addresses: tuple[str, str]) -> tuple[Host, Host]:
    """The two hosts of the docker swarm, on the lab's underlay."""
    return _host("docker-1", addresses[0], "manager"), _host("docker-2", addresses[1])


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One bench at a time on a machine; what an earlier one left is gone at the start, and all at the end.

    Raises Conflict when another is running.
    """
    _LOCK.parent.mkdir(parents=True, exist_ok=True)
    with open(_LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict("another bench is running on this machine; wait for its end") from None
        remove_all()
        try:
            yield
        finally:
            with uninterrupted():
                remove_all()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Taking things away is not stopped half-way by a second Ctrl-C: it takes seconds, and it comes to its end."""
    old = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def remove_all() -> None:
    """Take away everything of this file, whatever state it is in. Goes on after a failure, raises the first."""
    failures: list[Exception] = []

    def attempt(step: object, *args: object) -> None:
        assert callable(step)
        try:
            step(*args)
        except (OverlaceError, OSError) as error:
            failures.append(error)

    attempt(remove_swarms)
    for name in (*CONTAINERS.values(), *SEGMENTS.values()):
        if netns.exists(name):
            attempt(processes.kill_all, [name], [])
            attempt(netns.remove, name)
    for pair in PAIRS.values():
        for host in pair:
            attempt(clean.cut_power, host)
    for root in (RUN, DATA):
        attempt(clean.remove_mounts, [str(root)])
        attempt(clean.remove_tree, root)
    if failures:
        raise failures[0]


def remove_swarms() -> None:
    """Take both swarms of the deploy figures away: hosts, containers, data, cgroups."""
    for host in docker_hosts(("", "")):
        clean.cut_power(host)
        clean.remove_tree(host.data_root)
    # v1 has a folder per controller, v2 one.
    for pattern in ("ovbench-docker-*", "*/ovbench-docker-*"):
        for folder in Path("/sys/fs/cgroup").glob(pattern):
            _remove_cgroups(folder)
    with contextlib.suppress(NotFound):
        Lab.remove(LAB)


def _remove_cgroups(top: Path) -> None:
    for folder, _, _ in os.walk(top, topdown=False):
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(folder)


# A server takes a client's port again while it still waits (TIME_WAIT) if the timestamp grew. Clients give each address
# an offset of its own, which a balancer hides from the server: without offsets they grow always. For all and from the
# beginning: what a server remembers from before the change would hold up whoever comes after it.
GROWING_TIMESTAMPS = ("/proc/sys/net/ipv4/tcp_timestamps", "2")


def add_namespace(name: str) -> None:
    run(["ip", "netns", "add", name])
    inside(name, "ip", "link", "set", "lo", "up")
    # Short connections by the thousand use up the default range within one wait of TIME_WAIT.
    write(name, "/proc/sys/net/ipv4/ip_local_port_range", "1024 65000")
    write(name, *GROWING_TIMESTAMPS)


def inside(name: str, *argv: str) -> str:
    """Run a command in a namespace."""
    return run([*netns.enter(name), *argv])


def write(name: str, path: str, text: str) -> None:
    """Write a file of /proc/sys/net as a namespace sees it."""
    inside(name, "sh", "-c", 'echo "$1" > "$0"', path, text)


def join(first: str, second: str, *, ends: tuple[str, str] = ("eth0", "eth0"), mtu: int = 1500) -> None:
    """A veth pair between two namespaces, both ends up."""
    peer = ["type", "veth", "peer", "name", ends[1], "mtu", str(mtu), "netns", second]
    run(["ip", "link", "add", ends[0], "netns", first, "mtu", str(mtu), *peer])
    for name, end in zip((first, second), ends, strict=True):
        inside(name, "ip", "link", "set", end, "mtu", str(mtu), "up")


def scratch(name: str) -> Path:
    """A folder that goes at the end."""
    folder = RUN / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
