"""Many deadlines, mostly pushed back before they are due: who has not been heard of for too long.

Owns the times only (any monotonic unit). Pushing one back is O(1): the heap is put right when the old time
comes up. Must not know nodes or clocks.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

K = TypeVar("K")


class Deadlines(Generic[K]):
    def __init__(self) -> None:
        self._at: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._in_heap: dict[K, float] = {}  # earliest heap entry of each key
        self._count = 0

    def __contains__(self, key: K) -> bool:
        return key in self._at

    def set(self, key: K, at: float) -> None:
        self._at[key] = at
        if key not in self._in_heap or at < self._in_heap[key]:
            self._push(key, at)

    def drop(self, key: K) -> None:
        self._at.pop(key, None)

    def next(self) -> float | None:
        """No deadline is due before this; None when there is none at all."""
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[K]:
        """Take out and return the keys whose deadline has come."""
        found: list[K] = []
        while self._heap and self._heap[0][0] <= now:
            was, _, key = heapq.heappop(self._heap)
            if self._in_heap.get(key) != was:
                continue  # an earlier entry of this key stood for it
            del self._in_heap[key]
            at = self._at.get(key)
            if at is None:
                continue
            if at <= now:
                del self._at[key]
                found.append(key)
            else:
                self._push(key, at)
        return found

    def extend(self, by: float) -> None:
        """Give every deadline that much more time."""
        for key in self._at:
            self._at[key] += by

    def _push(self, key: K, at: float) -> None:
        self._count += 1
        self._in_heap[key] = at
        heapq.heappush(self._heap, (at, self._count, key))
