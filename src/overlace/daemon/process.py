"""The daemon as a process of its operating system: its privileges, folders, lock, pid file, and being asked to stop.

Owns what differs there between Linux and Windows. Must not know what the daemon does.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from overlace.daemon import windows
from overlace.model.errors import Conflict, InvalidArgument, PermissionDenied, Unavailable
from overlace.model.system import ON_WINDOWS

DESCRIPTORS = 65536


def need_privileges() -> None:
    """Raises PermissionDenied for a user that cannot do what the daemon does."""
    if ON_WINDOWS:
        if not windows.is_administrator():
            raise PermissionDenied(
                "overlace daemon drives HNS and Docker Engine: run it as an administrator (an elevated prompt)"
            )
    elif os.geteuid() != 0:
        raise PermissionDenied("overlace daemon makes namespaces and loads eBPF programs: run it as root")


def take_descriptors() -> None:
    """Each container costs two descriptors; the usual soft limit, 1024, is for programs that use select(2). Windows has
    no such limit.

    No more than needed: containers inherit it, and some programs close every descriptor they might have.
    """
    if ON_WINDOWS:
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def make_folder(option: str, folder: str) -> None:
    """A folder of ours: on Windows for administrators and the system alone, whatever its parent lets through; on Linux
    what is inside has modes of its own. Raises InvalidArgument."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True, mode=0o711)
        if ON_WINDOWS:
            windows.keep_to_administrators(folder)
    except OSError as e:
        raise InvalidArgument(f"cannot use {option} {folder}: {e.strerror}; choose another folder") from e


@contextlib.contextmanager
def only_one(data_root: Path) -> Iterator[None]:
    """Two daemons on one data root would undo each other's work. Raises Conflict, Unavailable."""
    try:
        lock = (data_root / "daemon.lock").open("a")
    except OSError as e:
        raise Unavailable(f"cannot write to --data-root {data_root}: {e.strerror}") from e
    with lock:
        try:
            _lock(lock)
        except OSError:
            raise Conflict(
                f"another overlace daemon uses {data_root}: stop it, or give this one another --data-root"
            ) from None
        yield


def _lock(file: IO[str]) -> None:
    """Held until the file is closed, or its process ends. Raises OSError when another process has it."""
    if ON_WINDOWS:
        msvcrt = importlib.import_module("msvcrt")
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        return
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def pidfile(path: str) -> Iterator[None]:
    """Raises InvalidArgument when it cannot be written. No path: none is kept."""
    if not path:
        yield
        return
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{os.getpid()}\n")
    except OSError as e:
        raise InvalidArgument(f"cannot write --pidfile {path}: {e.strerror}; choose another place") from e
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if file.read_text().strip() == str(os.getpid()):
                file.unlink()


@contextlib.contextmanager
def stop_requests(stop: Callable[[], None]) -> Iterator[None]:
    """Have `stop` called in the running loop when somebody asks this process to end: SIGTERM or SIGINT; on Windows
    Ctrl-C, Ctrl-Break, or `windows.stop_event`, which is how a program without our console asks."""
    loop = asyncio.get_running_loop()
    if not ON_WINDOWS:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        yield
        return

    def asked(*_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has stopped already
            loop.call_soon_threadsafe(stop)

    if threading.current_thread() is threading.main_thread():  # a service has no console to be asked from
        for name in ("SIGINT", "SIGBREAK"):
            signal.signal(getattr(signal, name), asked)
    with windows.stop_event(os.getpid(), asked):
        yield
