"""A log file for a daemon without a console (a Windows service), as a text stream that starts anew before it grows large.

Owns the file and the one before it. Must not know what is written.
"""

from __future__ import annotations

import io
import threading
from pathlib import Path


class LogFile(io.TextIOBase):
    """Appends to `path`; at `limit` bytes the file becomes `path`.1 and another begins."""

    def __init__(self, path: Path, limit: int = 10_000_000) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._limit = path, limit
        self._lock = threading.Lock()
        self._file = path.open("ab")

    def write(self, text: str) -> int:
        with self._lock:
            if self._file.tell() >= self._limit and text.strip():
                self._turn()
            self._file.write(text.encode("utf-8", "backslashreplace"))
            self._file.flush()
        return len(text)

    def _turn(self) -> None:
        self._file.close()
        try:
            self._path.replace(f"{self._path}.1")
        except OSError:  # somebody reads one of them, on Windows: it grows until they are done
            pass
        self._file = self._path.open("ab")

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        with self._lock:
            self._file.close()
        super().close()
