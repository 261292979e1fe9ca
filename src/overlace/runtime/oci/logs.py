"""Reading container logs: conmon's k8s-file format, from the end, with follow and across rotations.

A log is `log` and, once rotated, `log.1` before it, `log.2` before that, and so on. Owns the format and the
rotation; must not know containers. Format (CRI):
`<RFC 3339 with ns> <stdout|stderr> <F|P>[:tags] <content>`; P is a part of a line,
F its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from overlace.runtime.base import LogLine, LogOptions
from overlace.runtime.oci.watch import FolderWatch

ROTATE_AT = 10 << 20  # bytes of one file, unless the container says otherwise
KEEP_FILES = 2  # the one being written included
_BLOCK = 1 << 16
_GATHER_SECONDS = 0.02  # after a change, let a burst of lines come together


@functools.lru_cache(maxsize=256)
def _second(text: bytes) -> int:
    return int(datetime.datetime.fromisoformat(text.decode()).timestamp()) * 1_000_000_000


def parse_line(line: bytes) -> LogLine | None:
    """One line of the file (no newline) as a LogLine; None for what is not in the format. Pure."""
    try:
        stamp, stream, tag, content = line.split(b" ", 3)
        head, _, rest = stamp.partition(b".")
        digits = rest[:9]
        timestamp = _second(head + rest[9:].replace(b"Z", b"+00:00")) + int(digits)
    except ValueError:
        return None
    if stream not in (b"stdout", b"stderr") or not digits.isdigit() or len(digits) != 9:
        return None
    name: Literal["stdout", "stderr"] = "stdout" if stream == b"stdout" else "stderr"
    return LogLine(timestamp, name, content if tag[:1] == b"P" else content + b"\n")


def wanted(line: LogLine, options: LogOptions) -> bool:
    """Whether the options ask for this line. Pure."""
    if not (options.stdout if line.stream == "stdout" else options.stderr):
        return False
    return line.timestamp >= options.since and not (options.until and line.timestamp > options.until)


def _lines_backwards(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(offset of its end, line) from the last complete line to the first, reading blocks from the end."""
    position = file.seek(0, os.SEEK_END)
    rest = b""
    end = position
    first = True
    while position > 0:
        size = min(_BLOCK, position)
        position -= size
        file.seek(position)
        pieces = (file.read(size) + rest).split(b"\n")
        rest = pieces[0]
        for piece in reversed(pieces[1:]):
            if first:  # behind the last newline: empty, or a line still being written
                first = False
                end -= len(piece)
                continue
            yield end, piece
            end -= len(piece) + 1
    if not first:
        yield end, rest


def tail_offset(file: BinaryIO, count: int, options: LogOptions, newest: bool = True) -> tuple[int, int]:
    """Offset from which the last `count` wanted lines start, and how many of them this file lacks. In a file that is not
    the `newest`, a last part without an end belongs to a line that the next file has counted."""
    seen = 0
    whole = newest  # whether the next part met (going backwards) begins another line
    for end, raw in _lines_backwards(file):
        line = parse_line(raw)
        if line is None or not (options.stdout if line.stream == "stdout" else options.stderr):
            continue
        if line.data.endswith(b"\n") or whole:
            if seen == count:
                return end, 0
            seen += 1
        whole = False
    return 0, count - seen


class _Feed:
    """A file being read line by line while somebody appends to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._rest = b""

    def read(self) -> list[bytes]:
        """Complete lines of the next block; empty at the present end."""
        data = self.file.read(_BLOCK)
        while data and b"\n" not in data:
            more = self.file.read(_BLOCK)
            if not more:
                break
            data += more
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        return lines

    def replaced(self, path: Path) -> bool:
        """Whether `path` is another file by now (rotated)."""
        try:
            return not self.reads(path.stat())
        except OSError:
            return False

    def reads(self, found: os.stat_result) -> bool:
        ours = os.fstat(self.file.fileno())
        return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)


async def read_log(
    path: Path, options: LogOptions, watch: FolderWatch, ended: Callable[[], bool], wake: asyncio.Event
) -> AsyncIterator[LogLine]:
    """Yield the wanted lines of `path`; with follow until `ended()` is true and all is read, or `until` has
    passed.

    `wake` is set by the owner when `ended()` may have changed.
    """
    with contextlib.ExitStack() as stack:
        changed = stack.enter_context(watch.listen(path.parent)) if options.follow else asyncio.Event()
        feeds = _open(path, options, stack)
        while True:
            last = ended()  # asked before reading: what was written before the end is read after
            for feed in feeds:
                while lines := feed.read():
                    for raw in lines:
                        line = parse_line(raw)
                        if line is not None and wanted(line, options):
                            yield line
                    await asyncio.sleep(0)
            fresh = []
            if not feeds or feeds[-1].replaced(path):
                fresh = _open_newer(path, feeds[-1] if feeds else None, stack)
            if fresh:
                # Lines may have been appended to the old file before it was put aside: read on there first.
                for done in feeds[:-1]:
                    done.file.close()
                feeds = [*feeds[-1:], *fresh]
                continue
            if not options.follow or last or (options.until and _now() > options.until):
                return
            await _either(changed, wake, (options.until - _now()) / 1e9 if options.until else None)
            if not ended():
                await asyncio.sleep(_GATHER_SECONDS)
            changed.clear()


def _open(path: Path, options: LogOptions, stack: contextlib.ExitStack) -> list[_Feed]:
    """The files to read, oldest first, placed where the tail begins."""
    feeds: list[_Feed] = []
    lacking = options.tail
    for candidate in _newest_first(path):
        if lacking == 0 and feeds:
            break
        feed = _open_feed(candidate, stack)
        if feed is None:
            continue
        if options.tail >= 0:
            offset, lacking = tail_offset(feed.file, lacking, options, not feeds)
            if lacking == 0 and options.tail == 0:
                offset = feed.file.seek(0, os.SEEK_END)
            feed.file.seek(offset)
        feeds.insert(0, feed)
    return feeds


def rotated(path: Path, number: int) -> Path:
    """Where the `number`th file before the one being written is."""
    return path.with_name(f"{path.name}.{number}")


def _newest_first(path: Path) -> Iterator[Path]:
    yield path
    for number in itertools.count(1):
        older = rotated(path, number)
        if not older.exists():
            return
        yield older


def _open_newer(path: Path, than: _Feed | None, stack: contextlib.ExitStack) -> list[_Feed]:
    """Files that came after the one being read, oldest first; empty while the next is not there yet."""
    found: list[_Feed] = []
    for candidate in _newest_first(path):
        feed = _open_feed(candidate, stack)
        if feed is None:
            break
        if than is not None and than.reads(os.fstat(feed.file.fileno())):
            break
        found.insert(0, feed)
    return found


def _open_feed(path: Path, stack: contextlib.ExitStack) -> _Feed | None:
    try:
        return _Feed(stack.enter_context(open(path, "rb")))
    except FileNotFoundError:
        return None


def _now() -> int:
    return time.time_ns()


async def _either(first: asyncio.Event, second: asyncio.Event, timeout: float | None) -> None:
    tasks = [asyncio.ensure_future(first.wait()), asyncio.ensure_future(second.wait())]
    try:
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def shim_max(size: int) -> int:
    """Where the shim drops everything and starts afresh, bytes; only reached while no daemon rotates."""
    return 3 * max(size, ROTATE_AT)


def rotate_if_large(path: Path, control: Path, size: int = 0, files: int = 0) -> float:
    """Put a log of `size` bytes aside, keep `files` with the new one, which the shim opens (conmon's control pipe,
    "2 0 0"). 0: the defaults. Returns how many times `size` the log had; 0 for one that stays.
    """
    size, files = size or ROTATE_AT, files or KEEP_FILES
    try:
        found = path.stat().st_size
        if found < size:
            return 0.0
        descriptor = os.open(control, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return 0.0
    try:
        for number in range(files - 1, 1, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(rotated(path, number - 1), rotated(path, number))
        if files > 1:
            os.replace(path, rotated(path, 1))
        else:
            path.unlink()
        os.write(descriptor, b"2 0 0\n")
        return found / size
    finally:
        os.close(descriptor)
