"""Named and anonymous volumes: folders below `<data-root>/volumes`, filled from the image when fresh.

Owns those folders, what they were made with and what is mounted there (the driver's options type, device and o, moby
volume/local). Must not know containers: who uses a volume is told by its callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import msgspec

from overlace.model.errors import Internal, InvalidArgument, OverlaceError
from overlace.model.volumes import check_volume_name, check_volume_options
from overlace.runtime.base import StoredVolume
from overlace.runtime.oci.files import remove_tree, scoped_path, tree_size, write_atomically
from overlace.runtime.oci.locks import KeyedLocks
from overlace.runtime.oci.mounts import mounted_below, unmount
from overlace.runtime.oci.process import run_tool

_MOUNT_SECONDS = 60.0


def _mounted(folder: Path) -> bool:
    """Whether anything is mounted at or below it; `os.path.ismount` does not see a bind mount of the same disk."""
    return any(True for _ in mounted_below(folder))


class _Made(msgspec.Struct, frozen=True):
    """What a volume was made with; `volume.json` beside its data."""

    labels: dict[str, str] = {}
    options: dict[str, str] = {}


class VolumeStore:
    """`<root>/<name>/_data`, as Docker's local driver lays them out."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._locks = KeyedLocks()

    async def create(self, name: str, labels: Mapping[str, str], options: Mapping[str, str]) -> StoredVolume:
        """One that is there already is given back as it is. Raises InvalidArgument, Internal."""
        name = name or secrets.token_hex(32)
        check_volume_name(name)
        check_volume_options(options)
        async with self._locks.hold(name):
            try:
                self._make(name, labels, options)
            except OSError as error:
                raise Internal(f"volume {name}: {error.strerror}: {error.filename}") from error
        return self._stored(name)

    def _make(self, name: str, labels: Mapping[str, str], options: Mapping[str, str]) -> Path:
        folder = self._root / name
        if not (folder / "_data").exists():
            folder.mkdir(parents=True, exist_ok=True)
            if labels or options:
                made = _Made(dict(labels), {key: value for key, value in options.items() if value})
                write_atomically(folder / "volume.json", msgspec.json.encode(made), sync=True)
            (folder / "_data").mkdir(exist_ok=True)
        return folder / "_data"

    async def ensure(
        self,
        name: str,
        labels: Mapping[str, str],
        options: Mapping[str, str],
        *,
        image_root: Path,
        target: str,
        fill: bool = True,
    ) -> Path:
        """The volume's folder, with what its options say mounted there. With `fill` a new or empty one first gets what
        the image has at `target`, owner and mode included. Labels and options are those of a volume made by this call.
        """
        async with self._locks.hold(name):
            try:
                data = self._make(name, labels, options)
                made = self._read(name)
                if made.options.get("device"):
                    await self._mount(name, data, made.options)
                    fill = False  # what is mounted is somebody's already
                source = scoped_path(image_root, target)
                if fill and source.is_dir() and not any(data.iterdir()):
                    await self._fill(source, data, name)
            except OSError as error:
                raise Internal(f"volume {name}: {error.strerror}: {error.filename}") from error
        return data

    async def _mount(self, name: str, data: Path, options: Mapping[str, str]) -> None:
        if _mounted(data):
            return
        # -i: the kernel's own mount, as Docker; a helper would want its own programs on the host
        argv = ["mount", "-i", "-t", options["type"]]
        if options.get("o"):
            argv += ["-o", options["o"]]
        finished = await run_tool([*argv, "--", options["device"], str(data)], timeout=_MOUNT_SECONDS)
        if finished.code != 0:
            words = (
                finished.stderr.splitlines()[0] if finished.stderr else f"mount ended with {finished.code}"
            )
            raise InvalidArgument(
                f"error while mounting volume '{data}': failed to mount local volume {name}: {words}"
            )

    async def release(self, name: str) -> None:
        """No container has it any more: unmount what its options had mounted."""
        async with self._locks.hold(name):
            data = self._root / name / "_data"
            if self._read(name).options.get("device") and _mounted(data):
                await asyncio.to_thread(unmount, data)

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
                found.append(self._stored(data.parent.name))
        return found

    def _stored(self, name: str) -> StoredVolume:
        folder = self._root / name
        made = self._read(name)
        return StoredVolume(name, str(folder / "_data"), folder.stat().st_mtime_ns, made.labels, made.options)

    def _read(self, name: str) -> _Made:
        try:
            return msgspec.json.decode((self._root / name / "volume.json").read_bytes(), type=_Made)
        except FileNotFoundError:
            return _Made()
        except (OSError, msgspec.DecodeError) as error:
            raise Internal(f"volume {name}: cannot read what it was made with: {error}") from None

    async def remove(self, name: str) -> int:
        """Remove a volume with its content and say how many bytes that was; what is mounted there is unmounted first,
        never removed. Absent is fine."""
        async with self._locks.hold(name):
            try:
                data = self._root / name / "_data"
                if _mounted(data):
                    await asyncio.to_thread(unmount, data)
                if _mounted(data):
                    raise Internal("what is mounted there cannot be unmounted")
                size = await asyncio.to_thread(tree_size, data)
                await asyncio.to_thread(remove_tree, self._root / name)
                return size
            except OverlaceError as error:
                raise Internal(f"volume {name}: {error.message}") from error
