"""Files of the runtime's own: atomic documents, and paths looked up inside a root file system.

Must not know what the documents mean. Nothing here ever follows a symlink out of the given root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path, PurePosixPath

from overlace.model.errors import Internal, InvalidArgument

_CLOSED_AT_EXEC = getattr(os, "O_CLOEXEC", 0)  # on Windows what is opened is not inherited anyway
_MAX_LINKS = 255  # as Linux's own limit per lookup is 40, any honest image passes


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600, sync: bool = False) -> None:
    """Replace `path` so that a reader, or a crash, sees the old or the new content and nothing between.

    `sync` also survives a power cut. Raises Internal with the system's words (no space left …).
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _CLOSED_AT_EXEC, mode)
        with open(descriptor, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise Internal(f"cannot write {path}: {error.strerror}") from error


def scoped_path(root: Path, inside: str) -> Path:
    """The host path of `inside` (absolute within `root`), symlinks resolved as if `root` were `/`.

    Parts that do not exist are taken as they are. For file systems nobody changes meanwhile (an image, a
    container that does not run). Raises InvalidArgument on a symlink loop.
    """
    pending = [part for part in PurePosixPath(inside).parts if part != "/"]
    resolved: list[str] = []
    links = 0
    while pending:
        part = pending.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            if resolved:
                resolved.pop()
            continue
        candidate = root.joinpath(*resolved, part)
        try:
            target = os.readlink(candidate)
        except OSError:
            resolved.append(part)
            continue
        links += 1
        if links > _MAX_LINKS:
            raise InvalidArgument(f"too many levels of symbolic links in {inside}")
        if target.startswith("/"):
            resolved = []
        pending = [piece for piece in target.split("/") if piece] + pending
    return root.joinpath(*resolved)


def read_scoped(root: Path, inside: str) -> str:
    """A regular file's text within a root file system, empty when there is none."""
    path = scoped_path(root, inside)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return ""
        return file.read(4 << 20).decode("utf-8", "replace")


def tree_size(path: Path) -> int:
    """Bytes in the regular files below `path`, each file once however many links it has; what vanishes meanwhile
    does not count.
    """
    total = 0
    counted: set[tuple[int, int]] = set()
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                found = os.lstat(os.path.join(folder, name))
            except OSError:
                continue
            if not stat.S_ISREG(found.st_mode) or (found.st_dev, found.st_ino) in counted:
                continue
            if found.st_nlink > 1:
                counted.add((found.st_dev, found.st_ino))
            total += found.st_size
    return total


def remove_tree(path: Path) -> None:
    """Remove a folder of ours whatever is in it; absent is fine. Raises Internal with the system's words."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Internal(f"cannot remove {path}: {error.strerror}") from error
