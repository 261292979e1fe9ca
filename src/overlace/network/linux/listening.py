"""At which ports the programs of a container listen, as the kernel has it.

Owns the reading of /proc for a network namespace that is not ours. Must not know tasks' names, nor judge.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from overlace.model.findings import OpenSockets, Socket
from overlace.model.protocols import SCTP, TCP, UDP
from overlace.network.socket_tables import read_sctp, read_table

PROC = Path("/proc")
MAX_SOCKETS = 256  # told of one task
# proc(5): the state in the fourth column of /proc/net/tcp and udp
_TABLES = {TCP: (("tcp", "tcp6"), "0A"), UDP: (("udp", "udp6"), "07")}
_STOPPED = ("T", "t")  # proc_pid_stat(5)


def of_sandboxes(sandboxes: Mapping[str, Path], protocol: int, proc: Path = PROC) -> list[OpenSockets]:
    """By task. A sandbox without a process has no sockets; what cannot be read is said."""
    wanted: dict[int, str] = {}
    found: dict[str, OpenSockets] = {}
    for task_id, path in sandboxes.items():
        try:
            wanted[path.stat().st_ino] = task_id
        except OSError as e:
            found[task_id] = OpenSockets(task_id=task_id, error=f"its namespace: {e.strerror}")
    inside: dict[str, list[int]] = {task_id: [] for task_id in wanted.values()}
    for pid in _pids(proc):
        try:
            task = wanted.get(os.stat(proc / str(pid) / "ns/net").st_ino)
        except OSError:
            continue  # it ended
        if task is not None:
            inside[task].append(pid)
    for task_id, pids in inside.items():
        try:
            found[task_id] = OpenSockets(task_id=task_id, sockets=_sockets(pids, protocol, proc))
        except OSError as e:
            found[task_id] = OpenSockets(task_id=task_id, error=f"its sockets: {e.strerror}")
    return [found[task_id] for task_id in sandboxes if task_id in found]


def _pids(proc: Path) -> list[int]:
    return sorted(int(name) for name in os.listdir(proc) if name.isdecimal())


def _sockets(pids: Sequence[int], protocol: int, proc: Path) -> tuple[Socket, ...]:
    for pid in pids:  # every process of the namespace sees the same
        try:
            rows = list(_rows(proc / str(pid) / "net", protocol))
        except FileNotFoundError:
            continue  # it ended
        stopped = _stopped(pids, {inode for _, inode in rows}, proc) if rows else set()
        return tuple(msgspec.structs.replace(s, stopped=inode in stopped) for s, inode in rows[:MAX_SOCKETS])
    return ()


def _rows(net: Path, protocol: int) -> Iterator[tuple[Socket, int]]:
    if protocol == SCTP:
        if net.exists() and not (net / "sctp").exists():
            raise OSError(errno.EPROTONOSUPPORT, "the kernel has no SCTP")
        yield from read_sctp((net / "sctp/eps").read_text())
        return
    names, state = _TABLES[protocol]
    for name in names:
        try:
            text = (net / name).read_text()
        except FileNotFoundError:
            if name.endswith("6"):  # no IPv6 in this kernel
                continue
            raise
        yield from read_table(text, state)


def _stopped(pids: Sequence[int], inodes: set[int], proc: Path) -> set[int]:
    """Those of the sockets that stopped processes alone hold."""
    held: dict[int, bool] = {}  # inode: by stopped processes alone
    for pid in pids:
        try:
            state = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
            links = [os.readlink(entry.path) for entry in os.scandir(proc / str(pid) / "fd")]
        except OSError:
            continue
        for link in links:
            if link.startswith("socket:[") and (inode := int(link[8:-1])) in inodes:
                held[inode] = held.get(inode, True) and state in _STOPPED
    return {inode for inode, stopped in held.items() if stopped}
