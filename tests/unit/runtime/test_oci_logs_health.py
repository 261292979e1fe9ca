"""The log format, tails, and what a probe's result means."""

from __future__ import annotations

import asyncio
import io
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlace.runtime.base import Container, ContainerConfig, Healthcheck, HealthLog, LogLine, LogOptions
from overlace.runtime.oci.health import next_delay, probe_argv, record_probe
from overlace.runtime.oci.logs import parse_line, read_log, rotate_if_large, rotated, tail_offset, wanted
from overlace.runtime.oci.watch import FolderWatch

SECOND = 1_000_000_000
STAMP = b"2026-11-23T12:32:30.439091492+00:00"


def test_lines_parse_with_their_time_stream_and_ending() -> None:
    assert parse_line(STAMP + b" stdout F hi there ") == LogLine(
        1795437150439091492, "stdout", b"hi there \n"
    )
    assert parse_line(STAMP + b" stderr P part") == LogLine(1795437150439091492, "stderr", b"part")
    assert parse_line(STAMP + b" stdout F ") == LogLine(1795437150439091492, "stdout", b"\n")
    elsewhere = parse_line(b"2026-11-23T07:32:30.439091492-05:00 stdout F x")
    assert elsewhere is not None and elsewhere.timestamp == 1795437150439091492


@pytest.mark.parametrize(
    "line", [b"", b"x", b"2026 stdout F x", STAMP + b" stdin F x", STAMP + b" stdout", b"a b c d"]
)
def test_foreign_lines_are_passed_over(line: bytes) -> None:
    assert parse_line(line) is None


def test_wanted_lines() -> None:
    line = LogLine(100, "stdout", b"x\n")
    assert wanted(line, LogOptions(since=100, until=100))
    assert not wanted(line, LogOptions(since=101)) and not wanted(line, LogOptions(until=99))
    assert not wanted(line, LogOptions(stdout=False))


entries = st.lists(
    st.tuples(st.sampled_from(["stdout", "stderr"]), st.integers(0, 3), st.integers(0, 40_000)), max_size=12
)


@given(entries, st.integers(0, 14), st.booleans())
def test_tail_is_the_last_lines_of_the_whole(
    items: list[tuple[str, int, int]], count: int, both: bool
) -> None:
    """Lines of several parts and of any length, against the plain way: read all, keep the last."""
    raw, logical = b"", []
    for stream, parts, size in items:
        start = len(raw)
        for _ in range(parts):
            raw += b"%s %s P %s\n" % (STAMP, stream.encode(), b"p" * size)
        raw += b"%s %s F end\n" % (STAMP, stream.encode())
        if both or stream == "stdout":
            logical.append(start)
    options = LogOptions(stderr=both)
    offset, lacking = tail_offset(io.BytesIO(raw), count, options)
    expected = logical[-count:] if count else []
    assert lacking == max(0, count - len(logical))
    got = [line for line in map(parse_line, raw[offset:].split(b"\n")) if line and wanted(line, options)]
    whole = [
        line
        for line in map(parse_line, raw[(expected or [len(raw)])[0] :].split(b"\n"))
        if line and wanted(line, options)
    ]
    assert got == whole


def test_a_line_that_goes_on_in_the_next_file_counts_once() -> None:
    older = io.BytesIO(b"%s stdout F one\n%s stdout F two\n%s stdout P thr\n" % (STAMP, STAMP, STAMP))
    begins_two = len(b"%s stdout F one\n" % STAMP)
    assert tail_offset(older, 1, LogOptions(), newest=False) == (begins_two, 0), "`three` was counted already"


class _Shim:
    """What conmon does with a log: append, and open a new file when told so through the control pipe."""

    def __init__(self, folder: Path, size: int, files: int) -> None:
        self.log, self._control = folder / "log", folder / "ctl"
        self._size, self._files, self._count = size, files, 0
        os.mkfifo(self._control)
        self._reader = os.open(self._control, os.O_RDONLY | os.O_NONBLOCK)

    def write(self, lines: int) -> None:
        with self.log.open("ab") as file:
            for _ in range(lines):
                self._count += 1
                file.write(STAMP + b" stdout F %d\n" % self._count)

    def rotate(self) -> bool:
        done = rotate_if_large(self.log, self._control, self._size, self._files) > 0
        assert not done or os.read(self._reader, 100) == b"2 0 0\n"
        return done

    def close(self) -> None:
        os.close(self._reader)


async def _read(log: Path, options: LogOptions, ended: asyncio.Event) -> list[int]:
    watch = FolderWatch()
    try:
        return [int(line.data) async for line in read_log(log, options, watch, ended.is_set, ended)]
    finally:
        watch.close()


@pytest.mark.parametrize(("files", "kept"), [(1, [21]), (2, [*range(11, 22)]), (3, [*range(1, 22)])])
async def test_a_log_keeps_the_files_it_is_told_to(tmp_path: Path, files: int, kept: list[int]) -> None:
    shim = _Shim(tmp_path, 100, files)
    for _ in range(2):
        shim.write(1)
        assert not shim.rotate()
        shim.write(9)
        assert shim.rotate()
    shim.write(1)
    ended = asyncio.Event()
    ended.set()
    assert await _read(shim.log, LogOptions(), ended) == kept
    assert await _read(shim.log, LogOptions(tail=3), ended) == kept[-3:]
    shim.close()


async def test_a_follower_loses_nothing_while_files_rotate_under_it(tmp_path: Path) -> None:
    shim, ended = _Shim(tmp_path, 100, 4), asyncio.Event()
    shim.write(5)
    reading = asyncio.create_task(_read(shim.log, LogOptions(follow=True), ended))
    for _ in range(4):
        await asyncio.sleep(0.03)
        for _ in range(2):  # twice before the follower looks again
            shim.write(9)
            shim.rotate()
            shim.write(3)
    ended.set()
    assert await reading == [*range(1, 102)]
    assert not rotated(shim.log, 4).exists()
    shim.close()


def _container(**fields: Any) -> Container:
    config = ContainerConfig(id="a" * 64, name="n", image="i", netns="")
    values = {
        "config": config,
        "status": "running",
        "image_id": "",
        "created_at": 0,
        "health": "starting",
        **fields,
    }
    return Container(**values)


def _probe(code: int, start: int = 100 * SECOND) -> HealthLog:
    return HealthLog(start, start + 1, code, "")


def test_health_turns_after_retries_in_a_row() -> None:
    check = Healthcheck(("CMD", "x"), retries=2)
    state = record_probe(_container(), check, _probe(1))
    assert (state.health, state.failing_streak) == ("starting", 1)
    state = record_probe(state, check, _probe(1))
    assert (state.health, state.failing_streak) == ("unhealthy", 2)
    state = record_probe(state, check, _probe(0))
    assert (state.health, state.failing_streak) == ("healthy", 0)
    state = record_probe(state, check, _probe(1))
    assert (state.health, state.failing_streak) == ("healthy", 1)


def test_the_start_period_forgives_until_first_healthy() -> None:
    check = Healthcheck(("CMD", "x"), retries=1, start_period=200 * SECOND)
    state = record_probe(_container(), check, _probe(1))
    assert (state.health, state.failing_streak) == ("starting", 0)
    assert record_probe(state, check, _probe(1, 200 * SECOND)).health == "unhealthy"
    healthy = record_probe(state, check, _probe(0))
    assert record_probe(healthy, check, _probe(1)).health == "unhealthy"


def test_only_five_probes_are_kept_and_delays_follow_docker() -> None:
    check = Healthcheck(("CMD", "x"), interval=30, start_interval=5, start_period=100)
    state = _container()
    for number in range(9):
        state = record_probe(state, check, _probe(0, number))
    assert [item.start for item in state.health_log] == [4, 5, 6, 7, 8]
    assert next_delay(_container(started_at=1000), check, 1099) == 5
    assert next_delay(_container(started_at=1000), check, 1100) == 30
    assert next_delay(_container(started_at=1000, health="healthy"), check, 1001) == 30


def test_probe_command_lines() -> None:
    assert probe_argv(Healthcheck(("CMD-SHELL", "a && b"))) == ("/bin/sh", "-c", "a && b")
    assert probe_argv(Healthcheck(("CMD", "a", "b"))) == ("a", "b")
