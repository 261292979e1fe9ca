"""Named network namespaces and running code inside one.

setns(2) changes a thread, so it happens in a thread made for it that ends afterwards; the daemon's own
threads never change namespace. Owns the sandboxes' files. Must not know what is attached to them.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")
_CLONE_NEWNET = 0x40000000
_MS_BIND = 4096
_MNT_DETACH = 2
_SO_NETNS_COOKIE = 71
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def _in_thread(function: Callable[[], _T]) -> _T:
    outcome: list[_T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            outcome.append(function())
        except BaseException as e:
            failure.append(e)

    thread = threading.Thread(target=body, name="overlace-netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def run_inside(namespace: Path | int, function: Callable[[], _T]) -> _T:
    """Call `function` in a namespace (its file, or an open descriptor of it) and return its result. Sockets
    it opens and processes it starts belong to that namespace. Raises FileNotFoundError when there is no such
    file."""
    fd = namespace if isinstance(namespace, int) else os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)

    def body() -> _T:
        _check(_libc.setns(fd, _CLONE_NEWNET), f"enter {namespace}")
        return function()

    try:
        return _in_thread(body)
    finally:
        if not isinstance(namespace, int):
            os.close(fd)


def namespace_number(namespace: Path | int) -> int:
    """32 bits that name a namespace: its cookie (SO_NETNS_COOKIE, Linux 5.14), never used twice until the
    next boot; before that the inode, which is used again. Never 0."""

    def body() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                cookie = probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
            except OSError:
                return os.stat("/proc/thread-self/ns/net").st_ino & 0xFFFFFFFF
            return int.from_bytes(cookie, sys.byteorder) & 0xFFFFFFFF or 1

    return run_inside(namespace, body)


def write_sysctl(name: str, value: str) -> None:
    """Set a net.* setting of the calling thread's namespace. Absent ones (no IPv6) are left."""
    try:
        Path("/proc/sys/net", name).write_text(value)
    except FileNotFoundError:
        pass


def read_sysctl(name: str) -> str:
    """A net.* setting of the calling thread's namespace; "" when absent."""
    try:
        return Path("/proc/sys/net", name).read_text().strip()
    except FileNotFoundError:
        return ""


def _is_namespace(path: Path) -> bool:
    """A file that nothing is mounted on is what a crash left between touch and mount."""
    try:
        return path.stat().st_dev == os.stat("/proc/self/ns/net").st_dev
    except FileNotFoundError:
        return False


def adopt_namespace(path: Path, made: Path) -> Path:
    """Keep the namespace `made` (of a process: `/proc/PID/ns/net`) by a mount on `path`, set as ours are. Idempotent;
    another one that was kept there is let go of. Raises FileNotFoundError when its process is gone."""
    number = made.stat().st_ino
    if not (_is_namespace(path) and path.stat().st_ino == number):
        remove_namespace(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o444)
        _check(
            _libc.mount(os.fsencode(made), os.fsencode(path), None, _MS_BIND, None), f"keep namespace {path}"
        )
    run_inside(path, _set_defaults)
    return path


def _set_defaults() -> None:
    """Of the calling thread's namespace: no IPv6 on interfaces to come, no reverse path filter, lo up."""
    from .netlink import Netlink

    write_sysctl("ipv6/conf/default/disable_ipv6", "1")
    for scope in ("all", "default"):
        write_sysctl(f"ipv4/conf/{scope}/rp_filter", "0")
    with Netlink() as netlink:
        netlink.set_link(1, up=True)


def ensure_namespace(path: Path) -> Path:
    """A network namespace kept by a mount on `path`, with lo up, no IPv6 on interfaces to come and no reverse
    path filter (a container's answers may leave by another interface than the question came in by)."""
    if _is_namespace(path):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o444)

    def body() -> None:
        _check(_libc.unshare(_CLONE_NEWNET), "new network namespace")
        _set_defaults()
        source = f"/proc/self/task/{threading.get_native_id()}/ns/net"
        _check(
            _libc.mount(source.encode(), str(path).encode(), None, _MS_BIND, None), f"keep namespace {path}"
        )

    _in_thread(body)
    return path


def remove_namespace(path: Path) -> None:
    """Let go of a namespace; it ends with its last process. Absent is fine."""
    while _is_namespace(path):
        _check(_libc.umount2(str(path).encode(), _MNT_DETACH), f"unmount {path}")
    path.unlink(missing_ok=True)
