"""A place for the newest of several items."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Latest(Generic[T]):
    """Holds one item at most. A newer one takes its place."""

    def __init__(self) -> None:
        self._item: T | None = None
        self._is_there = asyncio.Event()

    def put(self, item: T) -> T | None:
        """Hold an item. Returns the one that it replaces."""
        replaced, self._item = self._item, item
        self._is_there.set()
        return replaced

    def put_back(self, item: T) -> T | None:
        """Hold an item that was taken, unless there is a newer one. Returns the one that is held no
        longer, if there is one."""
        return item if self._item is not None else self.put(item)

    def take(self) -> T | None:
        """Return the item, which is held no longer."""
        item, self._item = self._item, None
        self._is_there.clear()
        return item

    async def wait(self) -> None:
        """Wait until there is an item."""
        await self._is_there.wait()

    @property
    def is_empty(self) -> bool:
        return self._item is None
