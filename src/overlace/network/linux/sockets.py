"""Services at the socket level: where its programs can be attached, and which level does the work on this host.

Owns the choice and its reason. Which connections a program leaves to the packet level is bpf/socket.c's.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from overlace.network.balancing import Balancing, Wish, find_cgroup2

from .loader import SOCKET_LINK, SOCKET_PROGRAMS, Loader, LoadError

_log = structlog.get_logger(__name__)


def load(loader: Loader, wish: Wish) -> Balancing:
    """After loader.open(): the programs. Raises LoadError where the wish is `socket` and cannot be had."""
    if wish == "packet":
        return Balancing("packet", "as the daemon was told")
    cgroup = find_cgroup2(Path("/proc/self/mountinfo").read_text())
    if cgroup is None:
        return _without(wish, "no cgroup v2 is mounted")
    try:
        loader.open_sockets()
    except LoadError as e:
        return _without(wish, str(e))
    return Balancing("socket", str(cgroup))


def attach(loader: Loader, wish: Wish, level: Balancing) -> Balancing:
    """Have them attached where load() said; the maps are filled by now, or empty. Raises LoadError as load() does."""
    if level.level == "packet":
        loader.detach_sockets()
        return level
    try:
        loader.attach_sockets(Path(level.why))
    except OSError as e:
        return _without(wish, f"the cgroup {level.why} takes no programs: {e.strerror or e}")
    return level


def places(level: Balancing) -> dict[str, tuple[str, int]]:
    """By the links' names: which program there should be, and in which cgroup (its id)."""
    if level.level == "packet":
        return {}
    try:
        cgroup = Path(level.why).stat().st_ino
    except OSError:
        return {}
    return {f"{SOCKET_LINK}{name}": (name, cgroup) for programs in SOCKET_PROGRAMS for name in programs}


def links(level: Balancing) -> set[str]:
    """The names of the links there should be."""
    if level.level == "packet":
        return set()
    return {f"{SOCKET_LINK}{name}" for programs in SOCKET_PROGRAMS for name in programs}


def _without(wish: Wish, why: str) -> Balancing:
    if wish == "socket":
        raise LoadError(f"services cannot be balanced at the socket level: {why}")
    _log.warning("services are balanced at the packet level alone", reason=why)
    return Balancing("packet", why)
