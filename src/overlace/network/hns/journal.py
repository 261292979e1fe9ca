"""HNS's state on disk: `hns.journal`, one JSON line per change, rewritten whole when it has grown well past what
lives.

Owns the file. Must not know what documents mean, except which name another. A torn last line (crash while
writing) is dropped: that change was never acknowledged. A damaged line in the middle is kept aside in
`hns.journal.damaged`, said in the log and left out, with every document that cannot be without it. No fsync:
after a power loss the kernel state these documents describe is gone as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog

from overlace.network.hns.documents import (
    KINDS,
    Document,
    Guid,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNamespace,
    HostComputeNetwork,
    HostComputeRoute,
    encode,
)

JOURNAL = "hns.journal"
_log = structlog.get_logger(__name__)


def put_line(d: Document) -> bytes:
    return b'{"kind":"%s","put":%s}' % (d.kind.encode(), encode(d))


def delete_line(guid: Guid) -> bytes:
    return b'{"del":"%s"}' % guid.encode()


class Journal:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._path = folder / JOURNAL
        self._lines = 0

    def load(self) -> dict[Guid, Document]:
        """What was there, repaired. Raises OSError."""
        data = self._path.read_bytes() if self._path.exists() else b""
        lines = data.split(b"\n")
        torn = lines.pop() != b""
        found: dict[Guid, Document] = {}
        damaged: list[bytes] = []
        for line in lines:
            try:
                record = msgspec.json.decode(line)
                if "del" in record:
                    found.pop(record["del"], None)
                else:
                    d: Document = msgspec.convert(record["put"], KINDS[record["kind"]])
                    found[d.id] = d
            except (msgspec.MsgspecError, KeyError, TypeError, UnicodeDecodeError):
                damaged.append(line)
        if damaged:
            with open(self._folder / (JOURNAL + ".damaged"), "ab") as f:
                f.write(b"\n".join(damaged) + b"\n")
            _log.error(
                "damaged lines in HNS's journal are left out", lines=len(damaged), file=str(self._path)
            )
        repaired, lost = repair(found)
        if lost:
            _log.error("documents without what they refer to are left out", ids=sorted(lost))
        self._lines = len(lines)
        if torn or damaged or repaired != found or self._grown(len(found)):
            self.rewrite(repaired.values())
        return repaired

    def _grown(self, documents: int) -> bool:
        return self._lines > 1000 + 4 * documents

    def append(self, lines: list[bytes], documents: Iterable[Document], count: int) -> None:
        """Keep `lines`; all or nothing. `documents` and their `count`: what lives, should it be time to
        rewrite. Raises OSError, with the file as it was."""
        self._lines += len(lines)
        if self._grown(count):
            self.rewrite(documents)
            return
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with open(self._path, "ab", buffering=0) as f:
                data = b"\n".join(lines) + b"\n"
                if f.write(data) != len(data):
                    raise OSError(f"{self._path}: written in part: no space left?")
        except OSError:
            if self._path.exists():
                os.truncate(self._path, size)
            self._lines -= len(lines)
            raise

    def rewrite(self, documents: Iterable[Document]) -> None:
        lines = [put_line(d) for d in documents]
        temporary = self._folder / (JOURNAL + ".new")
        temporary.write_bytes(b"".join(line + b"\n" for line in lines))
        os.replace(temporary, self._path)
        self._lines = len(lines)


def repair(found: dict[Guid, Document]) -> tuple[dict[Guid, Document], set[Guid]]:
    """Documents that hold together, and the ids left out: what a crash between two lines or a damaged line
    leaves is made consistent. Namespaces decide which endpoint is where."""
    networks = {g for g, d in found.items() if isinstance(d, HostComputeNetwork)}
    endpoints = {
        g
        for g, d in found.items()
        if isinstance(d, HostComputeEndpoint) and d.host_compute_network in networks
    }
    lost: set[Guid] = set()
    place: dict[Guid, Guid] = {}
    out: dict[Guid, Document] = {}
    for guid, d in found.items():
        if isinstance(d, HostComputeNamespace):
            kept = tuple(
                r
                for r in d.resources
                if r.type != "Endpoint"
                or (r.data.id in endpoints and place.setdefault(r.data.id, guid) == guid)
            )
            if kept != d.resources:
                found = {**found, guid: msgspec.structs.replace(d, resources=kept)}
    for guid, d in found.items():
        if isinstance(d, HostComputeEndpoint):
            if guid not in endpoints:
                lost.add(guid)
                continue
            if d.host_compute_namespace != place.get(guid, ""):
                d = msgspec.structs.replace(d, host_compute_namespace=place.get(guid, ""))
        elif isinstance(d, (HostComputeLoadBalancer, HostComputeRoute)) and (
            d.host_compute_network not in networks or not endpoints.issuperset(d.host_compute_endpoints)
        ):
            lost.add(guid)
            continue
        out[guid] = d
    return out, lost
