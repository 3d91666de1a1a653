"""A cache that is bounded in bytes and evicts the least recently used entry first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class ByteLRU(Generic[K, V]):
    """LRU cache whose values take at most ``budget`` bytes."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        """Values and their sizes in bytes, least recently used first."""

    def get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, size: int) -> list[K]:
        """Store a value of ``size`` bytes, unless it exceeds the whole budget.

        Returns the keys that were evicted to make room.
        """
        self.remove(key)
        if size > self.budget:
            return []
        evicted = self.shrink(self.budget - size)
        self._entries[key] = value, size
        self.bytes += size
        return evicted

    def shrink(self, budget: int) -> list[K]:
        """Remove the oldest entries until the others take at most ``budget`` bytes.

        Returns the keys that were removed.
        """
        removed = []
        while self.bytes > budget:
            oldest = next(iter(self._entries))
            self.remove(oldest)
            removed.append(oldest)
        return removed

    def remove(self, key: K) -> None:
        """Remove an entry, if it exists."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= entry[1]

    def clear(self) -> None:
        self._entries.clear()
        self.bytes = 0
