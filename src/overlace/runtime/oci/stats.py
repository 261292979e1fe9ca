"""What a container uses right now: processor, memory, disk, network, from its cgroup and its network namespace.

Owns reading those files (cgroup v1 and v2, proc(5)) and nothing else; the parsers are pure.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from overlace.runtime.base import Interface, Usage

_CGROUPS = Path("/sys/fs/cgroup")
_SECOND = 1_000_000_000
_NO_LIMIT = 1 << 62  # cgroup v1 says "none" with a number close to 2^63


def read_usage(cgroup: str, pid: int) -> Usage:
    """`cgroup` as the runtime was given it, `pid` of the container's first process. What is gone reads as 0."""
    unified = _CGROUPS / cgroup.lstrip("/")
    if (_CGROUPS / "cgroup.controllers").exists():
        found = _unified(unified)
    else:
        found = _legacy(cgroup.lstrip("/"))
    text = _read(Path(f"/proc/{pid}/net/dev")) if pid else ""
    return Usage(**found, system=system_usage(_read(Path("/proc/stat"))), interfaces=parse_interfaces(text))


def _ticks() -> int:
    """In a second of cgroup v1's and proc's times."""
    return os.sysconf("SC_CLK_TCK")


def _unified(folder: Path) -> dict[str, Any]:
    cpu = parse_pairs(_read(folder / "cpu.stat"))
    return {
        "cpu_total": cpu.get("usage_usec", 0) * 1000,
        "cpu_user": cpu.get("user_usec", 0) * 1000,
        "cpu_kernel": cpu.get("system_usec", 0) * 1000,
        "memory": _number(folder / "memory.current"),
        "memory_limit": _number(folder / "memory.max"),
        "memory_stats": parse_pairs(_read(folder / "memory.stat")),
        "pids": _number(folder / "pids.current"),
        "pids_limit": _number(folder / "pids.max"),
        "io": parse_io(_read(folder / "io.stat")),
    }


def _legacy(cgroup: str) -> dict[str, Any]:
    def at(controller: str) -> Path:
        return _CGROUPS / controller / cgroup

    ticks = parse_pairs(_read(at("cpuacct") / "cpuacct.stat"))
    limit = _number(at("memory") / "memory.limit_in_bytes")
    return {
        "cpu_total": _number(at("cpuacct") / "cpuacct.usage"),
        "cpu_user": ticks.get("user", 0) * _SECOND // _ticks(),
        "cpu_kernel": ticks.get("system", 0) * _SECOND // _ticks(),
        "memory": _number(at("memory") / "memory.usage_in_bytes"),
        "memory_limit": 0 if limit >= _NO_LIMIT else limit,
        "memory_stats": parse_pairs(_read(at("memory") / "memory.stat")),
        "pids": _number(at("pids") / "pids.current"),
        "pids_limit": _number(at("pids") / "pids.max"),
        "io": parse_legacy_io(_read(at("blkio") / "blkio.throttle.io_service_bytes_recursive")),
    }


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int:
    """0 for `max`: no limit."""
    text = _read(path).strip()
    return int(text) if text.isdigit() else 0


def parse_pairs(text: str) -> dict[str, int]:
    """Lines of `name number`."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def parse_io(text: str) -> tuple[tuple[int, int, str, int], ...]:
    """io.stat: (major, minor, read | write, bytes)."""
    found = []
    for line in text.splitlines():
        device, *pairs = line.split()
        major, _, minor = device.partition(":")
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        for key, what in (("rbytes", "read"), ("wbytes", "write")):
            if values.get(key, "").isdigit():
                found.append((int(major), int(minor), what, int(values[key])))
    return tuple(found)


def parse_legacy_io(text: str) -> tuple[tuple[int, int, str, int], ...]:
    """blkio: lines of `8:0 Read 4096`."""
    found = []
    for line in text.splitlines():
        row = line.split()
        if len(row) == 3 and row[1] in ("Read", "Write"):
            major, _, minor = row[0].partition(":")
            found.append((int(major), int(minor), row[1].lower(), int(row[2])))
    return tuple(found)


def parse_interfaces(text: str) -> tuple[Interface, ...]:
    """/proc/<pid>/net/dev without loopback."""
    found = []
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        numbers = [int(word) for word in rest.split()]
        if name.strip() != "lo" and len(numbers) >= 12:
            found.append(Interface(name.strip(), *numbers[:4], *numbers[8:12]))
    return tuple(found)


def system_usage(text: str) -> int:
    """ns all processors of the host were switched on, idle or not (/proc/stat, as moby stats_unix.go counts)."""
    first = text.partition("\n")[0].split()
    if first[:1] != ["cpu"]:
        return 0
    return sum(int(word) for word in first[1:8]) * _SECOND // _ticks()
