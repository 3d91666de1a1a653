"""Group commit: what is asked for while the last batch is being written goes together in the next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupCommit(Generic[Item, Result]):
    """Calls ``write`` with the items that have come, at most ``limit`` at a time and one call after
    the other.

    A disk that takes milliseconds to make a transaction durable then bounds batches a second, and
    not items.
    """

    def __init__(
        self, write: Callable[[list[Item]], Awaitable[list[Result]]], limit: int = 256
    ) -> None:
        self._write = write
        self._limit = limit
        self._items: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        """The item's own result. Raises what ``write`` raised. An item is written even where its
        caller has gone."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._items.append((item, future))
        if self._task is None:
            self._task = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        try:
            while self._items:
                batch = [self._items.popleft() for _ in range(min(self._limit, len(self._items)))]
                await self._write_batch(batch)
        finally:
            self._task = None

    async def _write_batch(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._write([item for item, _ in batch])
        except Exception as error:
            if (
                len(batch) > 1
            ):  # one of them may be to blame, and none of the others shall pay for it
                for each in batch:
                    await self._write_batch([each])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
            return
        except BaseException:
            for _, future in batch:
                future.cancel()
            raise
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
