"""Healthchecks as Docker runs them.

`record_probe`, `next_delay` are pure decisions (moby `daemon/health.go`); `run_probe` runs one inside a
container. Must not own container state: results are handed to the caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from overlace.runtime.base import Container, Healthcheck, HealthLog, HealthStatus
from overlace.runtime.oci.process import exit_of, let_go, tool_environment

_KEPT = 5
_OUTPUT_MAX = 4096  # bytes, as Docker's `maxOutputLen`
_SECOND = 1_000_000_000


def probe_argv(check: Healthcheck) -> tuple[str, ...]:
    """The command line of a check. `CMD-SHELL` goes to /bin/sh, also on an emulated Windows host."""
    kind, *rest = check.test
    return ("/bin/sh", "-c", *rest) if kind == "CMD-SHELL" else tuple(rest)


def record_probe(container: Container, check: Healthcheck, probe: HealthLog) -> Container:
    """The container after one probe. Failures within the start period do not count while it was never
    healthy.
    """
    status: HealthStatus = container.health or "starting"
    streak = container.failing_streak
    if probe.exit_code == 0:
        status, streak = "healthy", 0
    elif not (status == "starting" and probe.start - container.started_at < check.start_period):
        streak += 1
        if streak >= check.retries:
            status = "unhealthy"
    kept = (*container.health_log, probe)[-_KEPT:]
    return msgspec.structs.replace(container, health=status, failing_streak=streak, health_log=kept)


def next_delay(container: Container, check: Healthcheck, now: int) -> int:
    """ns until the next probe: the start interval within the start period, else the interval."""
    if container.health == "starting" and now - container.started_at < check.start_period:
        return check.start_interval
    return check.interval


async def run_probe(argv: Sequence[str], pid_file: Path, timeout: int) -> HealthLog:
    """Run one probe by the runtime's exec; one over `timeout` ns is killed and counts as exit code -1."""
    start = time.time_ns()
    pid_file.unlink(missing_ok=True)
    output = bytearray()
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=tool_environment(),
        )
    except OSError as error:
        return HealthLog(start, time.time_ns(), -1, f"cannot run {argv[0]}: {error.strerror}")
    ended = False
    try:
        async with asyncio.timeout(timeout / _SECOND):
            await _collect(process, output)
        ended = True
    except TimeoutError:
        pass
    finally:
        if not ended:
            _kill(process, pid_file)
        let_go(process)
        await asyncio.shield(process.wait())
    text = output.decode("utf-8", "replace")
    if not ended:
        return HealthLog(
            start,
            time.time_ns(),
            -1,
            f"Health check exceeded timeout ({timeout / _SECOND:g}s): {text}".rstrip(": "),
        )
    return HealthLog(start, time.time_ns(), process.returncode or 0, text)


async def _collect(process: asyncio.subprocess.Process, output: bytearray) -> None:
    """The first `_OUTPUT_MAX` bytes of output; the rest is dropped so that the probe never blocks."""

    async def drain() -> None:
        assert process.stdout is not None
        while chunk := await process.stdout.read(_OUTPUT_MAX):
            output.extend(chunk[: _OUTPUT_MAX - len(output)])

    reader = asyncio.create_task(drain())
    try:
        await exit_of(process)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(
                reader, 0.2
            )  # what the probe wrote is there; a process it left behind may never close
    finally:
        reader.cancel()


def _kill(process: asyncio.subprocess.Process, pid_file: Path) -> None:
    """End the probe itself (its host pid is in `pid_file`) and the exec that waits for it."""
    with contextlib.suppress(OSError, ValueError):
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        process.kill()
