"""Which processes belong to a host of the lab, and ending them.

Owns the reading of /proc. A process belongs to a host when it is in the host's network namespace (daemon,
container shims, a shell someone opened), in a namespace the host's daemon made below its exec root
(containers), or when its root file system lies below the host's data root (containers, wherever their
network is). Nothing else is touched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from overlace.lab.netns import NETNS_DIR, inode
from overlace.model.errors import Internal


def alive(pid: int) -> bool:
    """True when the process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def read_pid(pidfile: str, netns: str) -> int | None:
    """The process named in `pidfile`, if it runs in that host's namespace: a pid used again elsewhere is
    not ours.
    """
    try:
        pid = int(Path(pidfile).read_text())
    except (OSError, ValueError):
        return None
    if not alive(pid) or inode(f"/proc/{pid}/ns/net") != inode(f"{NETNS_DIR}/{netns}"):
        return None
    return pid


def mounts() -> list[tuple[str, str, str]]:
    """(mount point, root, type) of every mount we see, oldest first (proc_pid_mountinfo(5))."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        words = left.split(" ")
        found.append((_unescape(words[4]), words[3], right.split(" ")[0]))
    return found


def _unescape(text: str) -> str:
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


def below(path: str, roots: Collection[str]) -> bool:
    return any(path == root or path.startswith(root + "/") for root in roots)


def namespaces_below(roots: Collection[str]) -> set[int]:
    """Inodes of the network namespaces pinned by files below `roots`."""
    found = set()
    for point, root, kind in mounts():
        if kind == "nsfs" and root.startswith("net:[") and below(point, roots):
            found.add(int(root[5:-1]))
    return found


def find(netns: Collection[str], roots: Collection[str]) -> list[int]:
    """Pids of all processes of the hosts with these namespaces and roots, ourselves and our ancestors
    excepted.
    """
    wanted = {inode(f"{NETNS_DIR}/{name}") for name in netns} | namespaces_below(roots)
    wanted.discard(None)
    ours = set(_ancestors())
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in ours:
            continue
        at = inode(f"/proc/{entry}/ns/net")
        if at is not None and (at in wanted or _root_below(entry, roots)) and alive(int(entry)):
            found.append(int(entry))
    return found


def _ancestors() -> Iterator[int]:
    pid = os.getpid()
    while pid > 0:
        yield pid
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return


def _root_below(pid: str, roots: Collection[str]) -> bool:
    """True when the process's / is an overlay whose layers lie below one of `roots`."""
    try:
        with open(f"/proc/{pid}/mountinfo") as lines:
            for line in lines:
                left, _, right = line.partition(" - ")
                if left.split(" ")[4] == "/" and right.startswith("overlay "):
                    return any(f"upperdir={root}/" in right for root in roots)
    except OSError:
        pass
    return False


def kill_all(netns: Collection[str], roots: Collection[str], timeout: float = 10) -> int:
    """SIGKILL every process that belongs to these hosts until none is left; return how many it were.

    Repeats, since a process may fork while we look. Raises Internal naming those that did not die.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + timeout
    while pids := find(netns, roots):
        if time.monotonic() > deadline:
            raise Internal(f"processes {pids} of the lab did not die within {timeout:g} s of SIGKILL")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.update(pids)
        time.sleep(0.02)
    return len(killed)
