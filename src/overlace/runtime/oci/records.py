"""What the runtime remembers of a container across its own death: one `state.json` per container, written
atomically.

Owns the folder layout of a container and the record's form. Must not start or stop anything.

    <data-root>/containers/<id>/   state.json, diff/ (writable layer), work/, log, log.1, etc/ (hosts …),
    files/ (configs) <exec-root>/bundles/<id>/      config.json, rootfs/ (overlay), secrets/ (tmpfs), pid,
    shim.pid, exit/
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from overlace.runtime.base import Container
from overlace.runtime.oci.files import write_atomically
from overlace.runtime.oci.spec import HostMount, Resolved
from overlace.runtime.oci.users import User


class Record(msgspec.Struct, frozen=True):
    """A container as persisted; everything `start` needs is decided here already."""

    container: Container
    resolved: Resolved
    user: User
    binds: tuple[HostMount, ...] = ()
    anonymous_volumes: tuple[str, ...] = ()  # removed with the container
    secrets: bool = False  # needs its secrets tmpfs to start


class Places:
    """Paths of one container's things."""

    def __init__(self, data_root: Path, exec_root: Path, container_id: str) -> None:
        self.data = data_root / "containers" / container_id
        self.state = self.data / "state.json"
        self.upper, self.work = self.data / "diff", self.data / "work"
        self.log = self.data / "log"
        self.etc, self.files = self.data / "etc", self.data / "files"
        self.bundle = exec_root / "bundles" / container_id
        self.rootfs, self.secrets = self.bundle / "rootfs", self.bundle / "secrets"


def save(places: Places, record: Record) -> None:
    """Raises Internal with the system's words when the disk does not take it."""
    write_atomically(places.state, msgspec.json.encode(record))


def load(places: Places) -> Record | None:
    """None for a container that was never completely created (or whose record a power cut spoiled)."""
    try:
        return msgspec.json.decode(places.state.read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return None


def ids_below(folder: Path) -> Iterator[str]:
    """Names of container folders."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    yield from sorted(names)
