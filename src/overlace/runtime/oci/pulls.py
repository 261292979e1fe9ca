"""Pulls under way: asked for twice they are done once, and everybody who asked hears how they get on.

Owns the running pulls and what has been said of each layer. Must not know registries or the image store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path

from overlace.runtime.base import Image, Platform, PullProgress, RegistryAuth

Key = tuple[str, Platform, RegistryAuth | None]
_LOOK_SECONDS = 0.2


class Progress:
    """The last word on each layer of one pull; listeners that come late hear all that was said so far."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}
        self._listeners: list[PullProgress] = []

    def listen(self, listener: PullProgress) -> None:
        for layer, status in self._said.items():
            listener(layer, status)
        self._listeners.append(listener)

    def say(self, layers: Iterable[str], status: str) -> None:
        """`layers` are digests. A layer that was there already stays so."""
        for digest in layers:
            layer = digest.partition(":")[2][:12]
            if self._said.get(layer) in (status, "Already exists"):
                continue
            self._said[layer] = status
            for listener in self._listeners:
                listener(layer, status)

    async def watch(self, blobs: Mapping[str, Path]) -> None:
        """Say which layers have arrived, until all have (or the caller has had enough)."""
        waiting = dict(blobs)
        while waiting:
            here = [digest for digest, path in waiting.items() if path.exists()]
            self.say(here, "Download complete")
            for digest in here:
                del waiting[digest]
            await asyncio.sleep(_LOOK_SECONDS)


class Pulls:
    """Running pulls by name, platform and credentials."""

    def __init__(self) -> None:
        self._running: dict[Key, tuple[asyncio.Task[Image], Progress]] = {}

    async def join(
        self, key: Key, start: Callable[[Progress], Awaitable[Image]], listener: PullProgress | None
    ) -> Image:
        """Wait for the pull `key`, started unless it is under way. Cancelling the caller does not end it."""
        running = self._running.get(key)
        if running is None:
            progress = Progress()
            task = asyncio.ensure_future(start(progress))
            running = self._running[key] = task, progress
            task.add_done_callback(lambda done: self._ended(key, done))
        if listener is not None:
            running[1].listen(listener)
        return await asyncio.shield(running[0])

    def _ended(self, key: Key, task: asyncio.Task[Image]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            task.exception()  # told to whoever still waits; nobody has to

    def cancel(self) -> list[asyncio.Task[Image]]:
        """Break off all; returns the tasks to wait for."""
        tasks = [task for task, _ in self._running.values()]
        for task in tasks:
            task.cancel()
        return tasks
