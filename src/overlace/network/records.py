"""The tasks of this node that have a sandbox, on disk: what a restarted daemon must know before anyone tells
it.

Owns the records' files (one JSON file per task, replaced atomically) and the addresses of the node's NAT
network. Must not touch the kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network
from pathlib import Path

import msgspec
import structlog

from overlace.model.errors import Unavailable
from overlace.network.base import TaskNetwork
from overlace.network.endpoints import LocalTask

log = structlog.get_logger(__name__)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """`asked` as the agent said it; `local` with port numbers, MTUs and the local address filled in."""

    asked: TaskNetwork
    local: LocalTask
    sandbox: str = ""  # path of the namespace, once it was made
    mtu: dict[str, int] = {}  # by network id, where it was changed after the task came


class Records:
    """Records by task id, mirrored in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_id: dict[str, Record] = {}

    def load(self) -> None:
        """Read them all; a damaged file is dropped (the agent attaches its task anew)."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self._folder.glob("*.json")):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=Record)
            except msgspec.MsgspecError as e:
                log.warning("dropping a damaged task network record", path=str(path), error=str(e))
                path.unlink()
                continue
            self._by_id[record.asked.task_id] = record

    def get(self, task_id: str) -> Record | None:
        return self._by_id.get(task_id)

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self._by_id.values()))

    def ids(self) -> list[str]:
        return list(self._by_id)

    def put(self, record: Record) -> None:
        task_id = record.asked.task_id
        path = self._folder / f"{task_id}.json"
        temporary = self._folder / f".{task_id}.new"
        temporary.write_bytes(msgspec.json.encode(record))
        os.replace(temporary, path)
        self._by_id[task_id] = record

    def remove(self, task_id: str) -> None:
        (self._folder / f"{task_id}.json").unlink(missing_ok=True)
        self._by_id.pop(task_id, None)

    def clear(self) -> None:
        for task_id in list(self._by_id):
            self.remove(task_id)


class LocalAddresses:
    """Addresses of the node's NAT network; the lowest free one after the last given, so that none returns at
    once."""

    def __init__(self, subnet: str) -> None:
        self.subnet = IPv4Network(subnet)
        self._last = 1  # .1 is the gateway

    def take(self, taken: Iterable[str]) -> str:
        """An address with prefix length. Raises Unavailable when none is left."""
        used = {t.split("/")[0] for t in taken}
        size = self.subnet.num_addresses
        for step in range(1, size):
            offset = (self._last + step) % size
            if offset < 2 or offset == size - 1:
                continue
            address = str(self.subnet[offset])
            if address not in used:
                self._last = offset
                return f"{address}/{self.subnet.prefixlen}"
        raise Unavailable(f"no address left in the node's local network {self.subnet}: stop a task on it")
