"""The rows that should be in the maps, wanted by one entry or by several, and what a change of entries changes. Pure.

Owns how often a row is wanted and what holds where its values differ. Must not know entries (maps.py encodes them).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from .family import of_table
from .maps import TABLE_MAPS, Row


class Changes(msgspec.Struct, frozen=True):
    """Rows to write and keys to remove, by map."""

    put: dict[str, dict[bytes, bytes]]
    remove: dict[str, set[bytes]]

    def __bool__(self) -> bool:
        return any(self.put.values()) or any(self.remove.values())


def _agreed(name: str, values: Sequence[bytes]) -> bytes:
    """Of a row that several want. Two interfaces of a container that lead to the same subnet: which of them a connection
    takes is the container's routes' business, and VNI 0 leaves it to the packet level."""
    if of_table(name)[1] == "reaches" and any(value != values[0] for value in values):
        return bytes(len(values[0]))
    return values[-1]


class Rows:
    """The rows that should be in the maps, with a count of the entries that want each: two networks may share
    a subnet, two frontends a VIP or a list of backends."""

    def __init__(self) -> None:
        self._all: dict[
            tuple[str, bytes], list[bytes]
        ] = {}  # of rows that more than one wants: each one's value
        self._value: dict[str, dict[bytes, bytes]] = {name: {} for name in TABLE_MAPS}

    def replace(self, old: Iterable[Row], new: Iterable[Row]) -> Changes:
        """Exchange rows and return what that changes."""
        touched: dict[tuple[str, bytes], bytes | None] = {}

        def note(row: Row) -> None:
            where = (row.map, row.key)
            if where not in touched:
                touched[where] = self._value[row.map].get(row.key)

        for row in old:
            note(row)
            where = (row.map, row.key)
            if where in self._all:
                self._less(row)
            else:
                self._value[row.map].pop(row.key, None)
        for row in new:
            note(row)
            have = self._value[row.map].get(row.key)
            if have is None:
                self._value[row.map][row.key] = row.value
                continue
            values = self._all.setdefault((row.map, row.key), [have])
            values.append(row.value)
            self._value[row.map][row.key] = _agreed(row.map, values)
        changes = Changes({}, {})
        for (name, key), before in touched.items():
            after = self._value[name].get(key)
            if after is None:
                if before is not None:
                    changes.remove.setdefault(name, set()).add(key)
            elif after != before:
                changes.put.setdefault(name, {})[key] = after
        return changes

    def _less(self, row: Row) -> None:
        where = (row.map, row.key)
        values = self._all[where]
        values.remove(row.value)
        self._value[row.map][row.key] = _agreed(row.map, values)
        if len(values) == 1:
            del self._all[where]

    def has_any(self, name: str, keys: Mapping[bytes, bytes]) -> bool:
        return not self._value[name].keys().isdisjoint(keys)

    def add(self, name: str, rows: dict[bytes, bytes]) -> Changes:
        """As replace((), ...) for rows of one map none of which is there."""
        self._value[name].update(rows)
        return Changes({name: rows}, {})

    def take(self, name: str, rows: Mapping[bytes, bytes]) -> Changes | None:
        """As replace(..., ()) for rows of one map that nobody else wants; None, and nothing done, otherwise."""
        mine = self._value[name]
        if (
            any(where[0] == name and where[1] in rows for where in self._all)
            or not rows.keys() <= mine.keys()
        ):
            return None
        for key in rows:
            del mine[key]
        return Changes({}, {name: set(rows)})

    def counts(self) -> dict[str, int]:
        """Rows by map."""
        return {name: len(rows) for name, rows in self._value.items()}

    def difference(self, actual: Mapping[str, Mapping[bytes, bytes]]) -> Changes:
        """What turns `actual` (dumped maps) into these rows."""
        changes = Changes({}, {})
        for name in TABLE_MAPS:
            have, want = actual.get(name, {}), self._value[name]
            changes.put[name] = {k: v for k, v in want.items() if have.get(k) != v}
            changes.remove[name] = {k for k in have if k not in want}
        return changes
