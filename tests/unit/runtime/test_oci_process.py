"""Tools are run to their end, or brought to it, and nothing of them stays with us."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from pathlib import Path

import pytest

from overlace.model.errors import Internal
from overlace.runtime.oci.health import run_probe
from overlace.runtime.oci.process import run_tool

SECOND = 10**9


async def test_output_and_exit_code_come_back() -> None:
    finished = await run_tool(["sh", "-c", "echo out; echo words >&2; exit 3"])
    assert (finished.code, finished.stdout, finished.stderr) == (3, b"out\n", "words")
    assert (await run_tool(["sh", "-c", "kill -9 $$"])).code == 137
    with pytest.raises(Internal, match=r"cannot run /no/such/tool: No such file"):
        await run_tool(["/no/such/tool"])


async def test_a_tool_that_takes_too_long_is_killed_though_its_child_holds_the_pipe() -> None:
    before = set(os.listdir("/proc/self/fd"))
    started = time.monotonic()
    with pytest.raises(Internal, match=r"sh did not end within 0.2 s and was killed"):
        await run_tool(["sh", "-c", "sleep 5 & sleep 5"], timeout=0.2)
    assert time.monotonic() - started < 4
    await asyncio.sleep(0)
    gc.collect()  # an unclosed transport would tell, and warnings are errors
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 1  # the listing's own


async def test_a_caller_that_gives_up_takes_the_tool_along() -> None:
    running = asyncio.create_task(run_tool(["sh", "-c", "sleep 5 & sleep 5"]))
    await asyncio.sleep(0.1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.sleep(0)
    gc.collect()


async def test_a_probe_that_leaves_a_child_behind_has_its_own_result(tmp_path: Path) -> None:
    """The child holds the pipe of the probe's output: neither is it waited for, nor does it make the probe late."""
    started = time.monotonic()
    probe = await run_probe(["sh", "-c", "echo fine; sleep 8 & exit 0"], tmp_path / "pid", 6 * SECOND)
    assert (probe.exit_code, probe.output) == (0, "fine\n")
    failed = await run_probe(["sh", "-c", "sleep 8 & exit 7"], tmp_path / "pid", 6 * SECOND)
    assert failed.exit_code == 7
    assert time.monotonic() - started < 6
    gc.collect()


async def test_a_probe_over_its_time_is_ended_though_a_child_of_its_goes_on(tmp_path: Path) -> None:
    started = time.monotonic()
    probe = await run_probe(["sh", "-c", "echo slow; sleep 8 & sleep 8"], tmp_path / "pid", SECOND // 2)
    assert (probe.exit_code, probe.output) == (-1, "Health check exceeded timeout (0.5s): slow\n")
    assert time.monotonic() - started < 6
    gc.collect()
