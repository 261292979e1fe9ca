"""Being told of changes in folders by the kernel (inotify(7)), for any number of listeners over one
descriptor.

Owns the inotify descriptor. Must not know what is watched. Where the kernel has no instance left to give (its
limit `fs.inotify.max_user_instances`), listeners are woken by the clock instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_IN_MODIFY, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE_SELF = 0x2, 0x80, 0x100, 0x400
_MASK = _IN_MODIFY | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE_SELF
_HEADER = struct.Struct("iIII")
_FALLBACK_SECONDS = 0.25
_libc = ctypes.CDLL(None, use_errno=True)


class FolderWatch:
    """`listen(folder)` gives an Event set at every change in that folder; the listener clears it."""

    def __init__(self) -> None:
        self._descriptor = -1
        self._listeners: dict[int, set[asyncio.Event]] = {}

    @contextlib.contextmanager
    def listen(self, folder: Path) -> Iterator[asyncio.Event]:
        """Watch while the block runs. A folder that does not exist never changes."""
        event = asyncio.Event()
        watch = self._add(folder)
        if watch < 0:
            ticker = asyncio.create_task(_tick(event))
            try:
                yield event
            finally:
                ticker.cancel()
            return
        self._listeners.setdefault(watch, set()).add(event)
        try:
            yield event
        finally:
            listeners = self._listeners.get(watch)
            if listeners is not None:
                listeners.discard(event)
                if not listeners:
                    del self._listeners[watch]
                    _libc.inotify_rm_watch(self._descriptor, watch)

    def close(self) -> None:
        """Wake every listener and let the descriptor go."""
        for listeners in self._listeners.values():
            for event in listeners:
                event.set()
        self._listeners.clear()
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _add(self, folder: Path) -> int:
        if self._descriptor < 0:
            self._descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            if self._descriptor < 0:
                return -1
            asyncio.get_running_loop().add_reader(self._descriptor, self._read)
        return int(_libc.inotify_add_watch(self._descriptor, os.fsencode(folder), _MASK))

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, 65536)
        except BlockingIOError:
            return
        offset = 0
        while offset + _HEADER.size <= len(data):
            watch, _, _, length = _HEADER.unpack_from(data, offset)
            offset += _HEADER.size + length
            # -1: the queue overflowed, so anything may have changed
            groups = self._listeners.values() if watch == -1 else (self._listeners.get(watch, ()),)
            for group in groups:
                for event in group:
                    event.set()


async def _tick(event: asyncio.Event) -> None:
    while True:
        await asyncio.sleep(_FALLBACK_SECONDS)
        event.set()
