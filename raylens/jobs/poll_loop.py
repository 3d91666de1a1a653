"""Work that is looked for again and again: whenever there may be some, and every now and then
without a reason."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

POLL_S = 1.0
"""How long nothing is looked for without a reason. Things fall due, and other processes leave some;
and a store that has just failed is let alone for so long."""


class PollLoop:
    """Calls ``poll`` at once where the last call says that there may be more, else when it is
    woken, or after ``POLL_S``. An error is logged, and ends nothing."""

    def __init__(self, poll: Callable[[], Awaitable[bool]], what: str) -> None:
        self._poll = poll
        self._what = what
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    async def serve(self) -> None:
        """Until it is canceled."""
        while True:
            self._wake.clear()
            try:
                if await self._poll():
                    continue
            except Exception:
                logger.exception("the store can't be asked for %s", self._what)
                await asyncio.sleep(POLL_S)
                continue
            try:
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()
            except TimeoutError:
                continue
