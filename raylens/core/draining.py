"""Whether this process is about to end: requests that would last for long are handed over then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

POLL_PERIOD_S = 0.5


class Draining:
    """Tells that a process drains: it takes no new requests, and ends when the others have.

    ``has_begun`` asks; it must be quick. It is asked every ``POLL_PERIOD_S`` seconds, by one task,
    as soon as anybody waits.
    """

    def __init__(
        self,
        has_begun: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._ask = has_begun
        self._sleep = sleep
        self._begun = asyncio.Event()
        self._polling: asyncio.Task[None] | None = None

    @property
    def has_begun(self) -> bool:
        return self._ask()

    async def wait(self) -> None:
        """Return when the process drains."""
        if self._polling is None or self._polling.done():
            self._begun = asyncio.Event()  # a proxy that has drained may be needed again
            self._polling = asyncio.create_task(self._poll(self._begun))
        await self._begun.wait()

    async def _poll(self, begun: asyncio.Event) -> None:
        while not self._ask():
            await self._sleep(POLL_PERIOD_S)
        begun.set()
