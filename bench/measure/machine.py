"""What the figures were measured on.

Owns reading the machine's facts. Must not name people, addresses or folders: results may be shown around.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path

from measure.peer import Docker


def _first(path: str, key: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    found = (line.split(":" if ":" in line else "=", 1)[1] for line in lines if line.startswith(key))
    return next(found, "").strip().strip('"')


def said(*argv: str, environment: dict[str, str] | None = None) -> str:
    """The first line a program prints, '' when it cannot be had."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout or done.stderr).strip().partition("\n")[0]


def facts(docker: Docker | None = None) -> dict[str, object]:
    """Kernel, processors, memory, versions, revision and load, as they are now."""
    here = Path(__file__).parents[2]
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "system": _first("/etc/os-release", "PRETTY_NAME"),
        "processor": _first("/proc/cpuinfo", "model name"),
        "processors": os.cpu_count(),
        "memory_kib": int((_first("/proc/meminfo", "MemTotal") or "0").split()[0]),
        "load_before": os.getloadavg(),
        "python": platform.python_version(),
        "iperf3": said("iperf3", "--version"),
        "runc": said("runc", "--version"),
        "dockerd": said(docker.dockerd, "--version", environment=docker.environment) if docker else "",
        "revision": said("git", "-C", str(here), "rev-parse", "HEAD"),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
