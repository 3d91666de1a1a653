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

    @property
    def is_empty(self) -> bool:
        return self._item is None

    def put(self, item: T) -> T | None:
        """Store an item. Return the one that it replaces, if nobody has taken that."""
        replaced = self._item
        if not self._is_closed:
            self._item = item
            self._changed.set()
        return replaced

    def put_back(self, item: T) -> T | None:
        """Store an item that was taken, unless there is a newer one. Return it if there is."""
        return self.put(item) if self.is_empty else item

    def take(self) -> T | None:
        """Take the item, if there is one."""
        item, self._item = self._item, None
        return item

    async def wait(self) -> None:
        """Wait until there is an item. Raises ``Closed``."""
        while self.is_empty:
            if self._is_closed:
                raise Closed
            self._changed.clear()
            await self._changed.wait()

    async def get(self) -> T:
        """Take the item, when there is one. Raises ``Closed``."""
        await self.wait()
        item = self.take()
        assert item is not None
        return item

    def close(self) -> None:
        """Drop the item, and wake the consumer."""
        self._is_closed = True
        self._item = None
        self._changed.set()
