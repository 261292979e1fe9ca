"""What containers wrote, as `GET /containers/ID/logs` gives it, back into lines.

Pure: bytes in, lines out. Must not call the engine. The frame: one byte stream number, three zero bytes, length as a
big-endian 32-bit number (Docker Engine API, "Attach to a container", stream format).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from overlace.runtime.base import LogLine, LogOptions
from overlace.runtime.docker.convert import timestamp

Stream = Literal["stdout", "stderr"]
_HEADER = 8


def log_params(options: LogOptions) -> dict[str, str]:
    """The query that asks for `options`, every line with its time."""
    params = {
        "stdout": str(int(options.stdout)),
        "stderr": str(int(options.stderr)),
        "follow": str(int(options.follow)),
        "timestamps": "1",
        "tail": "all" if options.tail < 0 else str(options.tail),
    }
    for name, moment in (("since", options.since), ("until", options.until)):
        if moment:
            params[name] = f"{moment // 1_000_000_000}.{moment % 1_000_000_000:09d}"
    return params


def frames(data: bytes) -> tuple[list[tuple[Stream, bytes]], bytes]:
    """The whole frames at the start of `data`, and what is left."""
    found: list[tuple[Stream, bytes]] = []
    at = 0
    while len(data) - at >= _HEADER:
        end = at + _HEADER + int.from_bytes(data[at + 4 : at + _HEADER], "big")
        if len(data) < end:
            break
        found.append(("stderr" if data[at] == 2 else "stdout", data[at + _HEADER : end]))
        at = end
    return found, data[at:]


class LogReader:
    """Feeds on pieces of the stream in any cut; `tty`: the container has a terminal, so that there are no frames."""

    def __init__(self, tty: bool) -> None:
        self._tty = tty
        self._rest = b""

    def feed(self, piece: bytes) -> Iterator[LogLine]:
        self._rest += piece
        if self._tty:
            *whole, self._rest = self._rest.split(b"\n")
            for line in whole:
                yield _line("stdout", line + b"\n")
            return
        pieces, self._rest = frames(self._rest)
        for stream, data in pieces:
            yield _line(stream, data)

    def end(self) -> Iterator[LogLine]:
        """What is left when the stream ended: of a terminal, a line without its end."""
        if self._tty and self._rest:
            yield _line("stdout", self._rest)
        self._rest = b""


def _line(stream: Stream, data: bytes) -> LogLine:
    stamp, _, text = data.partition(b" ")
    try:
        return LogLine(timestamp(stamp.decode()), stream, text)
    except ValueError:  # the engine's own words in the middle of a stream, without a time
        return LogLine(0, stream, data)
