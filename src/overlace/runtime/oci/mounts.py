"""Mounts the runtime makes on the host: a container's overlay root and its secrets tmpfs.

Owns the mount system calls and nothing else. Constants: include/uapi/linux/mount.h.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Iterator
from pathlib import Path

from overlace.model.errors import Internal

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 0x2, 0x4, 0x8
_MS_PRIVATE = 1 << 18
_MNT_DETACH = 2


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _mount(source: str, target: Path, kind: str, flags: int, data: str) -> None:
    if (
        _libc().mount(
            source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), os.fsencode(data)
        )
        != 0
    ):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))


def _escape(path: Path) -> str:
    # overlayfs splits its options at commas and lowerdir at colons; a backslash keeps either
    # (Documentation/filesystems/overlayfs).
    return str(path).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def mount_overlay(lower: Path, upper: Path, work: Path, target: Path) -> None:
    """Mount `lower` (read-only) under `upper` at `target`. Raises Internal with the kernel's words and a
    remedy.
    """
    data = f"lowerdir={_escape(lower)},upperdir={_escape(upper)},workdir={_escape(work)}"
    try:
        _mount("overlay", target, "overlay", 0, data)
        _mount("none", target, "none", _MS_PRIVATE, "")
    except OSError as error:
        hint = ""
        if error.errno in (errno.EINVAL, errno.ENODEV):
            hint = "; put the data root on a file system that can hold an overlay's upper layer (ext4, xfs)"
        raise Internal(f"cannot mount overlay at {target}: {error.strerror}{hint}") from error


def mount_tmpfs(target: Path, mode: int = 0o755) -> None:
    """A tmpfs for secrets: no devices, no set-uid, no execution and, where the kernel can (6.4), never
    swapped out.
    """
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    try:
        try:
            _mount("overlace-secrets", target, "tmpfs", flags, f"mode={mode:o},noswap")
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _mount("overlace-secrets", target, "tmpfs", flags, f"mode={mode:o}")
    except OSError as error:
        raise Internal(f"cannot mount tmpfs at {target}: {error.strerror}") from error


def unmount(target: Path) -> None:
    """Unmount all that is mounted at `target`, lazily when busy; not mounted is fine."""
    while _libc().umount2(os.fsencode(target), 0) == 0:
        pass
    if ctypes.get_errno() == errno.EBUSY:
        while _libc().umount2(os.fsencode(target), _MNT_DETACH) == 0:
            pass
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOENT):
        raise Internal(f"cannot unmount {target}: {os.strerror(code)}")


def mounted_below(folder: Path) -> Iterator[Path]:
    """Mount points at or below `folder`, deepest first (one read of /proc/self/mountinfo)."""
    prefix = os.fsencode(folder)
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            raw = line.split()[4]
            point = (
                raw.replace(b"\\040", b" ")
                .replace(b"\\011", b"\t")
                .replace(b"\\012", b"\n")
                .replace(b"\\134", b"\\")
            )
            if point == prefix or point.startswith(prefix + b"/"):
                found.append(point)
    for point in sorted(found, key=lambda item: item.count(b"/"), reverse=True):
        yield Path(os.fsdecode(point))
