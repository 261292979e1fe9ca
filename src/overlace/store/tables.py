"""Copy-on-write tables: the maps a snapshot is made of.

Owns `Table`, a map split into shards, and `Index`, a map of small tables. Both are shared between the store
and its snapshots: a write copies only the root and the one shard it touches, once per snapshot taken (the
"generation"), so taking a snapshot is O(1) and a write costs what it changes. Must not know objects,
revisions or events.

Order is deterministic for one history of writes (no randomised hashes), which seeded simulations rely on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar
from zlib import crc32

V = TypeVar("V")

_FAN_OUT = 8
_SPLIT_AT = 256  # entries per shard; a dict of this size copies in about 1 us


class Table(Generic[V]):
    """A map from text to V. `put` and `delete` return the table to use from now on: itself when this
    generation already owns it, else a copy that shares all shards but the one written."""

    __slots__ = ("_fresh", "_generation", "_mask", "_shards", "count")

    def __init__(self, generation: int = 0) -> None:
        self._shards: list[dict[str, V]] = [{}]
        self._mask = 0
        self._generation = generation
        self._fresh: set[int] = {0}  # shards this generation owns
        self.count = 0

    def get(self, key: str) -> V | None:
        if self._mask == 0:
            return self._shards[0].get(key)
        return self._shards[crc32(key.encode()) & self._mask].get(key)

    def __contains__(self, key: str) -> bool:
        shard = self._shards[crc32(key.encode()) & self._mask] if self._mask else self._shards[0]
        return key in shard

    def __len__(self) -> int:
        return self.count

    def keys(self) -> Iterator[str]:
        for shard in self._shards:
            yield from shard

    def values(self) -> Iterator[V]:
        for shard in self._shards:
            yield from shard.values()

    def put(self, key: str, value: V, generation: int) -> Table[V]:
        table, shard = self._writable(key, generation)
        before = len(shard)
        shard[key] = value
        if len(shard) != before:
            table.count += 1
            if table.count > _SPLIT_AT * len(table._shards):
                table._split()
        return table

    def delete(self, key: str, generation: int) -> Table[V]:
        if key not in self:
            return self
        table, shard = self._writable(key, generation)
        del shard[key]
        table.count -= 1
        return table

    def _writable(self, key: str, generation: int) -> tuple[Table[V], dict[str, V]]:
        table = self
        if table._generation != generation:
            table = Table.__new__(Table)
            table._shards = self._shards.copy()
            table._mask = self._mask
            table._generation = generation
            table._fresh = set()
            table.count = self.count
        at = crc32(key.encode()) & table._mask if table._mask else 0
        shard = table._shards[at]
        if at not in table._fresh:
            shard = table._shards[at] = shard.copy()
            table._fresh.add(at)
        return table, shard

    def _split(self) -> None:
        count = len(self._shards) * _FAN_OUT
        shards: list[dict[str, V]] = [{} for _ in range(count)]
        mask = count - 1
        for shard in self._shards:
            for key, value in shard.items():
                shards[crc32(key.encode()) & mask][key] = value
        self._shards = shards
        self._mask = mask
        self._fresh = set(range(count))


class Index:
    """Ids by a key that many objects may share."""

    __slots__ = ("_table",)

    def __init__(self, table: Table[Table[None]] | None = None) -> None:
        self._table: Table[Table[None]] = table if table is not None else Table()

    def ids(self, key: str) -> Iterator[str]:
        inner = self._table.get(key)
        return inner.keys() if inner is not None else iter(())

    def __iter__(self) -> Iterator[str]:
        return self._table.keys()

    def add(self, key: str, id: str, generation: int) -> Index:
        inner = self._table.get(key)
        if inner is None:
            inner = Table(generation)
        elif id in inner:
            return self
        return self._with(self._table.put(key, inner.put(id, None, generation), generation))

    def discard(self, key: str, id: str, generation: int) -> Index:
        inner = self._table.get(key)
        if inner is None or id not in inner:
            return self
        if len(inner) == 1:
            return self._with(self._table.delete(key, generation))
        return self._with(self._table.put(key, inner.delete(id, generation), generation))

    def _with(self, table: Table[Table[None]]) -> Index:
        return self if table is self._table else Index(table)
