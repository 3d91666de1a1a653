"""Group commit: items that arrive while a batch is being written share the next batch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupCommit(Generic[Item, Result]):
    """Writes items in batches of at most ``limit``, one batch at a time.

    A durable commit takes milliseconds, which caps the commits per second. With batching, that caps
    batches, not items.
    """

    def __init__(
        self, write: Callable[[list[Item]], Awaitable[list[Result]]], limit: int = 256
    ) -> None:
        self._write = write
        self._limit = limit
        self._pending: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """Write an item, and return its result. Raises what ``write`` raised.

        The item is written even if the caller is canceled.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._pending.append((item, future))
        if self._task is None:
            self._task = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        try:
            while self._pending:
                size = min(self._limit, len(self._pending))
                await self._write_batch([self._pending.popleft() for _ in range(size)])
        finally:
            self._task = None

    async def _write_batch(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._write([item for item, _ in batch])
        except Exception as error:
            if len(batch) > 1:
                # One item may have made the whole batch fail: write each item on its own.
                for pair in batch:
                    await self._write_batch([pair])
                return
            _, future = batch[0]
            if not future.done():
                future.set_exception(error)
            return
        except BaseException:
            # The writer was canceled, so its waiting callers are canceled too.
            for _, future in batch:
                future.cancel()
            raise
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
