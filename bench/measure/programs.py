"""The programs that make and take traffic: compiling them, serving in one namespace, asking from another.

Owns their command lines and what they print. Must not know which path lies between.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from overlace.lab import netns
from overlace.lab.shell import run
from overlace.model.errors import Internal

SOURCES = Path(__file__).parents[1] / "programs"
ASK_EXTRA = 15.0  # seconds an asking program may take beyond what it was given


def compile_programs(into: Path) -> None:
    """Build `traffic` and `tasks`, static, since a task's image holds nothing else."""
    into.mkdir(parents=True, exist_ok=True)
    for name in ("traffic", "tasks"):
        source = SOURCES / f"{name}.c"
        warnings = ["-Wall", "-Wextra", "-Werror"]
        argv = ["gcc", "-O2", *warnings, "-static", "-pthread", "-o", str(into / name), str(source)]
        run(argv, timeout=120)


def enter(namespace: str) -> list[str]:
    """The words that run a command in a namespace: a name, or a path of its file."""
    return ["nsenter", f"--net={namespace}", "--"] if "/" in namespace else netns.enter(namespace)


def _on(which: int) -> list[str]:
    """Run on the first (0) or last (-1) processor: else the scheduler decides anew each time, and figures jump.

    Servers run on the last. What streams asks from the first, so that both ends work at once. What waits for each
    answer asks from the last, too: across processors the time goes into waking the other one, and the path hides
    behind it. Ahead of what else the machine does, on all paths alike: where the kernel groups processes by
    session (autogroup, sched(7)), the group must be niced, too.
    """
    cpus = sorted(os.sched_getaffinity(0))
    ahead = ["setsid", "sh", "-c", 'echo -15 2>/dev/null >/proc/self/autogroup; exec nice -n -15 "$@"', "sh"]
    return [*ahead, *(["taskset", "-c", str(cpus[which])] if len(cpus) > 1 else [])]


class Server:
    """`traffic serve` and `iperf3 --server` in one namespace. `port` and the four after it are theirs."""

    def __init__(self, programs: Path, namespace: str, port: int, *, six: bool = False) -> None:
        """`six`: `traffic` serves on IPv6 (iperf3 serves both in any case)."""
        prefix = [*enter(namespace), *_on(-1)]
        self._traffic = subprocess.Popen(
            [*prefix, str(programs / "traffic"), "serve", str(port), *(["6"] if six else [])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self._traffic.stdout
        if self._traffic.stdout.readline() != b"ready\n":
            self.stop()
            raise Internal(f"traffic does not serve in {namespace}")
        self._iperf = subprocess.Popen(
            [*prefix, "iperf3", "--server", "--port", str(port + 4)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 5
        while f":{port + 4}" not in run([*enter(namespace), "ss", "-Hltn"]):
            if self._iperf.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise Internal(f"iperf3 does not serve in {namespace}")
            time.sleep(0.05)

    def stop(self) -> None:
        for process in (self._traffic, getattr(self, "_iperf", None)):
            if process is None:
                continue
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


def _ask(argv: Sequence[str], seconds: float) -> str:
    return run(argv, timeout=seconds + ASK_EXTRA)


def ask_rate(programs: Path, kind: str, namespace: str, address: str, port: int, seconds: float) -> float:
    """Units per second of `traffic rr|crr|udp`. Raises Internal with the program's words."""
    where = _on(0 if kind == "udp" else -1)
    argv = [*enter(namespace), *where, str(programs / "traffic"), kind, address, str(port), str(seconds)]
    count, took = _ask(argv, seconds).split()
    return int(count) / float(took)


def ask_throughput(namespace: str, address: str, port: int, seconds: float, streams: int) -> float:
    """Gb/s that arrived, by iperf3's receiving side."""
    argv = [*enter(namespace), *_on(0), "iperf3", "--client", address, "--port", str(port + 4), "--json"]
    said = json.loads(_ask([*argv, "--time", f"{seconds:g}", "--parallel", str(streams)], seconds))
    if "error" in said:
        raise Internal(f"iperf3: {said['error']}")
    return float(said["end"]["sum_received"]["bits_per_second"]) / 1e9
