"""What the tables of the data path should hold and what its maps are written from: entries, and the rows they come to.

Owns what a change of entries changes in the maps, the order of writing, and making good a write that failed halfway.
Must not know interfaces or namespaces, but the attachment each local endpoint has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from overlace.network.vfp.tables import Delta, Entry, Key, LocalEndpoint, RemoteEndpoint, Tables

from . import unified
from .bpf_syscall import Map
from .family import V4, Family
from .maps import (
    TABLE_MAPS,
    Attachment,
    Row,
    encode,
    encode_remotes,
    endpoint_table,
)
from .rows import Changes, Rows

_MANY = 64


class Contents:
    """`map_of`: the open map of that name; `hosts`: what hosts' addresses are. `attached`: of local endpoints, by id; an
    endpoint's rows name it, so take them out before it changes and put them in after."""

    def __init__(self, map_of: Callable[[str], Map], hosts: Family = V4) -> None:
        self._map = map_of
        self._hosts = hosts
        self.attached: dict[str, Attachment] = {}
        self.tables = Tables()
        self.rows = Rows()
        self._local: dict[str, dict[Key, None]] = {}  # endpoint id -> keys of its entries, one per address
        self._doubtful = False  # a write failed halfway

    def local(self, endpoint_id: str) -> list[LocalEndpoint]:
        """The endpoint's entries, one per address."""
        entries = (self.tables.get(key) for key in self._local.get(endpoint_id, ()))
        return [e for e in entries if isinstance(e, LocalEndpoint)]

    def encode(self, entry: Entry) -> list[Row]:
        """The rows of one entry."""
        return encode(entry, self.attached, self._hosts)

    def replace(self, desired: Tables) -> tuple[Changes, dict[str, dict[bytes, bytes]]]:
        """Exactly these entries, whatever the maps hold: (what was written, what the maps held)."""
        self._doubtful = True  # until the maps have been compared
        self.tables, self.rows, self._local = Tables(), Rows(), {}
        self.change(tuple(desired), ())
        actual = self.dump()
        changes = self.rows.difference(actual)
        self._doubtful = False
        self.write(changes)
        return changes, actual

    def change(self, put: Iterable[Entry], remove: Iterable[Key]) -> Changes:
        """Bring tables and rows to the new state; what that changes in the maps."""
        put, remove = tuple(put), tuple(remove)
        many = self._change_many(put, remove)
        if many is not None:
            return many
        old = [e for key in (*remove, *(e.key for e in put)) if (e := self.tables.get(key)) is not None]
        new_rows = [row for entry in put for row in self.encode(entry)]  # before any change: may raise
        old_rows = [row for entry in old for row in self.encode(entry)]
        self.tables.apply(Delta(put, remove))
        for entry in old:
            if isinstance(entry, LocalEndpoint):
                keys = self._local.get(entry.endpoint_id, {})
                keys.pop(entry.key, None)
                if not keys:
                    self._local.pop(entry.endpoint_id, None)
        for entry in put:
            if isinstance(entry, LocalEndpoint):
                self._local.setdefault(entry.endpoint_id, {})[entry.key] = None
        return self.rows.replace(old_rows, new_rows)

    def _change_many(self, put: tuple[Entry, ...], remove: tuple[Key, ...]) -> Changes | None:
        """The same for what comes by the thousand, new or gone remote endpoints; None when there is more to do."""
        if len(put) + len(remove) < _MANY or (put and remove):
            return None
        if put:
            remotes = [e for e in put if type(e) is RemoteEndpoint]
            table = endpoint_table(remotes[0]) if remotes else ""
            alike = [e for e in remotes if endpoint_table(e) == table]
            if len(alike) == len(put):
                rows = encode_remotes(alike, self._hosts)  # before any change: may raise
                if not self.rows.has_any(table, rows) and self.tables.add(alike):
                    return self.rows.add(table, rows)
                return None
            if len(alike) < _MANY:
                return None
            rest = [e for e in put if not (type(e) is RemoteEndpoint and endpoint_table(e) == table)]
            return merge(self.change(rest, ()), self.change(alike, ()))
        old = [e for key in remove if type(e := self.tables.get(key)) is RemoteEndpoint]
        if len(old) != len(remove) or len({endpoint_table(e) for e in old}) > 1:
            return None
        changes = self.rows.take(endpoint_table(old[0]), encode_remotes(old, self._hosts))
        if changes is not None:
            self.tables.apply(Delta((), remove))
        return changes

    def dump(self) -> dict[str, dict[bytes, bytes]]:
        """What the maps hold, by map and key."""
        return {name: dict(self._map(name).items()) for name in TABLE_MAPS}

    def write(self, changes: Changes) -> None:
        """Write rows. After a failed write the maps are compared as a whole, whatever `changes` says."""
        if self._doubtful:
            changes = self.rows.difference(self.dump())
        self._doubtful = True
        try:
            for name in TABLE_MAPS:
                if changes.put.get(name):
                    self._map(name).put_many(changes.put[name])
            for name in reversed(TABLE_MAPS):
                if changes.remove.get(name):
                    self._map(name).delete_many(changes.remove[name])
        finally:
            if changes:
                unified.renew(self._map("generation"))
        self._doubtful = False


def merge(first: Changes, second: Changes) -> Changes:
    """Two changes in a row as one: a row taken out and put back is a plain write."""
    put = {name: dict(rows) for name, rows in first.put.items()}
    remove = {name: set(keys) for name, keys in first.remove.items()}
    for name, rows in second.put.items():
        put.setdefault(name, {}).update(rows)
        remove.get(name, set()).difference_update(rows)
    for name, keys in second.remove.items():
        remove.setdefault(name, set()).update(keys)
        for key in keys:
            put.get(name, {}).pop(key, None)
    return Changes(put, remove)
