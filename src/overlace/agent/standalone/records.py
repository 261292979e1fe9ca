"""What this host knows of each standalone container, and its files: one per container, replaced atomically.

Owns the records' shape and their folder. Must not decide anything, nor start, stop or connect.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import structlog

from overlace.model.specs import PortConfig
from overlace.runtime.base import ContainerConfig
from overlace.runtime.oci.files import write_atomically

log = structlog.get_logger(__name__)

BRIDGE = "bridge"
RestartName = Literal["no", "always", "unless-stopped", "on-failure"]


class Restart(msgspec.Struct, frozen=True):
    """Docker's restart policy; `most`: times on-failure tries, 0 for no end."""

    name: RestartName = "no"
    most: int = 0


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """One network of a container: the host's own bridge, or the swarm's `target`, as asked for by name or id; `name` and
    `network_id` are the swarm's once it has said."""

    name: str
    target: str = ""
    network_id: str = ""
    aliases: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()  # asked for, without prefix length
    turn: int = 0  # of the container, at which it came on it: an address of an earlier one is no longer its


class Dns(msgspec.Struct, frozen=True):
    """The container's own, instead of the host's."""

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """A standalone container as asked for. `config` has no network namespace and no resolv.conf: those are this host's.

    `shown`: `Config` and `HostConfig` as `docker inspect` shows them, for what the runtime's config does not say.
    """

    config: ContainerConfig
    mode: Literal["", "host", "none"] = ""
    networks: tuple[Joined, ...] = ()
    ports: tuple[PortConfig, ...] = ()
    dns: Dns = Dns()
    restart: Restart = Restart()
    auto_remove: bool = False
    console: tuple[int, int] | None = None  # first size of its terminal, (height, width) in cells
    shown: dict[str, dict[str, Any]] = {}

    @property
    def id(self) -> str:
        return self.config.id


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A container and how far things are. `handled`: the end (ns) of the last run whose end was dealt with."""

    wish: Wish
    wanted: Literal["created", "running", "stopped", "removed"] = "created"
    by_hand: bool = False  # somebody stopped it: it is not started again on its own
    started: bool = False  # it ran at least once
    restarts: int = 0  # times it was started again since somebody started it
    handled: int = 0
    turns: int = 0  # times it asked for networks


class Records:
    """Records by container id, mirrored in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_id: dict[str, Record] = {}

    def load(self) -> None:
        """Read them all; a damaged one is set aside: its container is then no longer ours to drive."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted(self._folder.glob("*.json")):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=Record)
            except msgspec.MsgspecError as error:
                log.warning("a damaged record of a container is set aside", path=str(path), error=str(error))
                path.replace(path.with_suffix(".unreadable"))
                continue
            self._by_id[record.wish.id] = record

    def get(self, id: str) -> Record | None:
        return self._by_id.get(id)

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self._by_id.values()))

    def put(self, record: Record) -> None:
        """Raises Internal when the disk does not take it; nothing has changed then."""
        write_atomically(self._folder / f"{record.wish.id}.json", msgspec.json.encode(record))
        self._by_id[record.wish.id] = record

    def remove(self, id: str) -> None:
        (self._folder / f"{id}.json").unlink(missing_ok=True)
        self._by_id.pop(id, None)
