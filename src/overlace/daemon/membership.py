"""This node's membership of a swarm, on disk: one small file, written last and removed first.

Owns `<data-root>/swarm/`, and beside it the engine's own id. Without the file the node is in no swarm, whatever else lies
in the folder, so a crash in the middle of init or join leaves nothing half-joined. Must not start or stop anything.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path

import msgspec

from overlace.model.errors import Internal
from overlace.runtime.oci.files import write_atomically
from overlace.wire.messages import Manager


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    node_id: str
    cluster_id: str
    role: str  # worker | manager
    advertise_addr: str  # host:port other nodes reach this one's manager at
    listen_addr: str  # host:port
    underlay_address: str  # VTEP
    managers: tuple[Manager, ...] = ()


class MembershipFile:
    def __init__(self, data_root: Path) -> None:
        self.folder = data_root / "swarm"
        self._file = self.folder / "membership.json"

    def load(self) -> Membership | None:
        """None: in no swarm. Raises Internal when the file is there and unreadable."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Membership)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as e:
            raise Internal(
                f"{self._file} is damaged ({e}): restore it, or remove the folder {self.folder} to leave the swarm"
            ) from e

    def prepare(self) -> None:
        """An empty folder of our own for what init or join will write."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, mode=0o700)

    def save(self, membership: Membership) -> None:
        new = self._file.with_suffix(".new")
        with new.open("wb") as f:
            f.write(msgspec.json.encode(membership))
            f.flush()
            os.fsync(f.fileno())
        new.replace(self._file)

    def forget(self) -> None:
        self._file.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def engine_id(data_root: Path) -> str:
    """The engine's own id, made once."""
    path = data_root / "engine-id"
    with contextlib.suppress(OSError):
        if kept := path.read_text(errors="replace").strip():
            return kept
    new = secrets.token_hex(16)
    write_atomically(path, f"{new}\n".encode())
    return new
