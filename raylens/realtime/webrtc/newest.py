"""A place for one item, in which the newest replaces the one that waits."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """Nothing will come any more."""


class Newest(Generic[T]):
    """Holds at most one item, so that a slow consumer never falls behind."""

    def __init__(self) -> None:
        self._item: T | None = None
        self._changed = asyncio.Event()
        self._is_closed = False

    def put(self, item: T) -> bool:
        """Store an item. Return whether it replaced one that nobody has taken."""
        replaced = self._item is not None
        if not self._is_closed:
            self._item = item
            self._changed.set()
        return replaced

    async def get(self) -> T:
        """Take the item, when there is one. Raises ``Closed``."""
        while self._item is None:
            if self._is_closed:
                raise Closed
            self._changed.clear()
            await self._changed.wait()
        item, self._item = self._item, None
        return item

    def close(self) -> None:
        """Drop the item, and wake the consumer."""
        self._is_closed = True
        self._item = None
        self._changed.set()
