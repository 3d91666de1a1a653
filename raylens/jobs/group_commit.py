"""Group commit: items that arrive while a batch is being written share the next batch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from raylens.core.errors import FailureClass

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupCommit(Generic[Item, Result]):
    """Writes items in batches of at most ``limit``, one batch at a time.

    A durable commit takes milliseconds, which caps the commits per second. With batching, that caps
    batches, not items. If a batch fails, its items are written one by one, except for lack of
    capacity, which no item is to blame for.
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

        If the caller is canceled before the item's batch has begun, the item is not written.
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
                batch = [self._pending.popleft() for _ in range(size)]
                await self._write_batch([pair for pair in batch if not pair[1].cancelled()])
        finally:
            self._task = None

    async def _write_batch(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        if not batch:
            return
        try:
            results = await self._write([item for item, _ in batch])
        except Exception as error:
            await self._on_failure(batch, error)
        except BaseException:
            # The writer was canceled, so its waiting callers are canceled too.
            for _, future in batch:
                future.cancel()
            raise
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)

    async def _on_failure(
        self, batch: list[tuple[Item, asyncio.Future[Result]]], error: Exception
    ) -> None:
        may_pass = getattr(error, "failure_class", None) is FailureClass.CAPACITY
        if len(batch) > 1 and not may_pass:
            # One item may have made the whole batch fail: write each item on its own.
            for pair in batch:
                await self._write_batch([pair])
            return
        for _, future in batch:
            if not future.done():
                future.set_exception(error)
