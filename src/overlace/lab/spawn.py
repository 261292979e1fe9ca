"""Processes that stay: starting them, waiting until they do their work, ending them.

Owns pid files, logs and the words when one dies. Must not know what any of them is for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from overlace.lab import processes
from overlace.lab.shell import tail
from overlace.model.errors import Internal


def spawn(argv: Sequence[str], log: str, pidfile: str, more: Mapping[str, str] | None = None) -> None:
    """Start `argv` for good: its own session, output to the log, pid in the file, no child of ours. `more` is added to
    its environment.

    `setsid --fork` hands it to init, which reaps it: a dead daemon leaves no zombie in a long-lived test
    process. nsenter and unshare exec, so the shell's pid is the program's.
    """
    for path in (log, pidfile):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(pidfile).unlink(missing_ok=True)
    shell = ["setsid", "--fork", "sh", "-c", 'echo $$ > "$0.new" && mv "$0.new" "$0" && exec "$@"', pidfile]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
    with open(log, "ab") as out:
        subprocess.run(
            [*shell, *argv],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd="/",
            env=environment | {"PYTHONUNBUFFERED": "1"} | dict(more or {}),
        )


def wait_until(
    what: str, ready: Callable[[], bool], pidfile: str, log: str, timeout: float, step: float = 0.05
) -> None:
    """Wait for `ready`. Raises Internal with the log's end when the process dies first or `timeout`
    seconds pass.
    """
    deadline = time.monotonic() + timeout
    while not ready():
        try:
            pid = int(Path(pidfile).read_text())
        except (OSError, ValueError):
            pid = None  # the shell has not written it yet
        if pid is not None and not processes.alive(pid):
            raise Internal(f"{what} ended at once; the end of {log}:\n{tail(log)}")
        if time.monotonic() > deadline:
            raise Internal(f"{what} did not answer within {timeout:g} s; the end of {log}:\n{tail(log)}")
        time.sleep(step)


def stop(what: str, pidfile: str, namespace: str, log: str, sig: signal.Signals, timeout: float) -> None:
    """Send `sig` to the process of `pidfile` and wait for its end; none: nothing to do. Raises Internal when it goes
    on."""
    pid = processes.read_pid(pidfile, namespace)
    if pid is None:
        return
    os.kill(pid, sig)
    wait_gone(what, pid, f"after {sig.name}", log, timeout)


def wait_gone(what: str, pid: int, since: str, log: str, timeout: float) -> None:
    """Raises Internal with the log's end when the process goes on for more than `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while processes.alive(pid):
        if time.monotonic() > deadline:
            raise Internal(
                f"{what} (pid {pid}) goes on {timeout:g} s {since}; the end of {log}:\n{tail(log)}"
            )
        time.sleep(0.02)
