"""Named and anonymous volumes: folders below `<data-root>/volumes`, filled from the image when fresh.

Owns those folders. Must not know containers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from overlace.model.errors import Internal, OverlaceError
from overlace.runtime.base import StoredVolume
from overlace.runtime.oci.files import remove_tree, scoped_path
from overlace.runtime.oci.locks import KeyedLocks
from overlace.runtime.oci.process import run_tool


class VolumeStore:
    """`<root>/<name>/_data`, as Docker's local driver lays them out."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._locks = KeyedLocks()

    async def ensure(self, name: str, image_root: Path, target: str, *, fill: bool = True) -> Path:
        """The volume's folder. With `fill` a new or empty one first gets what the image has at `target`, owner and
        mode included.
        """
        data = self._root / name / "_data"
        async with self._locks.hold(name):
            try:
                data.mkdir(parents=True, exist_ok=True)
                source = scoped_path(image_root, target)
                if fill and source.is_dir() and not any(data.iterdir()):
                    await self._fill(source, data, name)
            except OSError as error:
                raise Internal(f"volume {name}: {error.strerror}: {error.filename}") from error
        return data

    async def _fill(self, source: Path, data: Path, name: str) -> None:
        """Copy beside and rename, so that a crash never leaves a half-filled volume that looks used."""
        partial = data.with_name("_data.new")
        await asyncio.to_thread(remove_tree, partial)
        finished = await run_tool(["cp", "--archive", "--reflink=auto", "--", str(source), str(partial)])
        if finished.code != 0:
            await asyncio.to_thread(remove_tree, partial)
            raise Internal(f"volume {name}: cannot copy the image's content: {finished.stderr}")
        os.rmdir(data)
        os.rename(partial, data)

    def all(self) -> list[StoredVolume]:
        """Every volume there is, by name."""
        found = []
        for data in sorted(self._root.glob("*/_data")):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                made = data.parent.stat().st_mtime_ns
                found.append(StoredVolume(data.parent.name, str(data), made))
        return found

    async def remove(self, name: str) -> None:
        """Remove a volume with its content; absent is fine."""
        async with self._locks.hold(name):
            try:
                await asyncio.to_thread(remove_tree, self._root / name)
            except OverlaceError as error:
                raise Internal(f"volume {name}: {error.message}") from error
