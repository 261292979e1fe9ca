"""What the tables of the data path should hold and what its maps are written from: entries, and the rows they come to.

Owns what a change of entries changes in the maps, the order of writing, what is left out as no row can hold it, and
making good a write that failed halfway. Must not know interfaces or namespaces, but the attachment each local endpoint
has.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Mapping

import structlog

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
_FULL = (errno.E2BIG, errno.ENOSPC)  # of a hash, of a trie of prefixes
_log = structlog.get_logger(__name__)


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
        self._refused: dict[Key, tuple[Entry, str]] = {}
        self._doubtful = False  # a write failed halfway

    @property
    def refused(self) -> dict[Key, str]:
        """Entries that cannot be written, and why: they are left out, so that all others are as they should be."""
        return {key: why for key, (_, why) in self._refused.items()}

    def local(self, endpoint_id: str) -> list[LocalEndpoint]:
        """The endpoint's entries, one per address; also one that is left out."""
        entries = [self.tables.get(key) for key in self._local.get(endpoint_id, ())]
        entries += [entry for entry, _ in self._refused.values()]
        return [e for e in entries if isinstance(e, LocalEndpoint) and e.endpoint_id == endpoint_id]

    @property
    def local_ids(self) -> Collection[str]:
        """Of the endpoints that have entries."""
        return self._local.keys()

    def encode(self, entry: Entry) -> list[Row]:
        """The rows of one entry. Raises ValueError for one that cannot be written."""
        return encode(entry, self.attached, self._hosts)

    def replace(self, desired: Tables) -> tuple[Changes, dict[str, dict[bytes, bytes]]]:
        """Exactly these entries, whatever the maps hold: (what was written, what the maps held)."""
        fresh = Contents(self._map, self._hosts)  # until all is ready, what is remembered stays true
        fresh.attached = self.attached
        fresh._refused = {key: why for key, why in self._refused.items() if desired.get(key) is not None}
        fresh.change(tuple(desired), ())
        actual = self.dump()
        changes = fresh.rows.difference(actual)
        self.tables, self.rows, self._local = fresh.tables, fresh.rows, fresh._local
        self._refused = fresh._refused
        self._write(changes)
        return changes, actual

    def change(self, put: Iterable[Entry], remove: Iterable[Key]) -> Changes:
        """Bring tables and rows to the new state; what that changes in the maps. What cannot be written is `refused`, and
        nothing stays of what it was before."""
        put, remove = tuple(put), tuple(remove)
        many = self._change_many(put, remove)
        if many is not None:
            return many
        old = [e for key in (*remove, *(e.key for e in put)) if (e := self.tables.get(key)) is not None]
        old_rows = [row for entry in old for row in self.encode(entry)]
        new_rows: list[Row] = []
        refused: dict[Key, tuple[Entry, str]] = {}
        for entry in put:
            try:
                new_rows += self.encode(entry)
            except ValueError as e:
                refused[entry.key] = entry, str(e)
        self._note(refused, (*remove, *(e.key for e in put)))
        put = tuple(e for e in put if e.key not in refused)
        self.tables.apply(Delta(put, (*remove, *refused)))
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

    def _note(self, refused: Mapping[Key, tuple[Entry, str]], keys: Iterable[Key]) -> None:
        """Of the entries with these keys those are refused; said once each."""
        if not refused and not self._refused:
            return
        before = {key: self._refused.pop(key, None) for key in keys}
        for key, (entry, why) in refused.items():
            known = before.get(key)
            if known is None or known[1] != why:
                _log.error("the switch cannot hold an entry: it is left out", entry=key, error=why)
            self._refused[key] = entry, why

    def _change_many(self, put: tuple[Entry, ...], remove: tuple[Key, ...]) -> Changes | None:
        """The same for what comes by the thousand, new or gone remote endpoints; None when there is more to do."""
        if len(put) + len(remove) < _MANY or (put and remove):
            return None
        if put:
            remotes = [e for e in put if type(e) is RemoteEndpoint]
            table = endpoint_table(remotes[0]) if remotes else ""
            alike = [e for e in remotes if endpoint_table(e) == table]
            if len(alike) == len(put):
                try:
                    rows = encode_remotes(alike, self._hosts)
                except ValueError:
                    return None  # one by one it shows which
                if not self.rows.has_any(table, rows) and self.tables.add(alike):
                    self._note({}, (e.key for e in alike))
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
        """Write rows. After a failed write the maps are compared as a whole, whatever `changes` says. A full map keeps no
        row from the others, nor one that takes no new room. Raises OSError naming the map."""
        self._write(self.rows.difference(self.dump()) if self._doubtful else changes)

    def _write(self, changes: Changes) -> None:
        renewing, self._doubtful = bool(changes) or self._doubtful, True
        full: list[OSError] = []
        try:
            for name in TABLE_MAPS:
                if changes.put.get(name):
                    try:
                        self._put(name, changes.put[name], changes.remove.get(name, ()))
                    except OSError as e:
                        if e.errno not in _FULL:
                            raise
                        full.append(e)
            for name in reversed(TABLE_MAPS):
                if changes.remove.get(name):
                    self._map(name).delete_many(changes.remove[name])
        finally:
            if renewing:
                unified.renew(self._map("generation"))
        if full:
            raise full[0]
        self._doubtful = False

    def _put(self, name: str, rows: Mapping[bytes, bytes], stale: Iterable[bytes]) -> None:
        """Into a full map: what it no longer needs goes first, then what is there already is written, then what fits."""
        table = self._map(name)
        try:
            table.put_many(rows)
        except OSError as e:
            if e.errno not in _FULL:
                raise
            table.delete_many(stale)
            there = {key for key, _ in table.items()}
            table.put_many({key: value for key, value in rows.items() if key in there})
            table.put_many({key: value for key, value in rows.items() if key not in there})


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
