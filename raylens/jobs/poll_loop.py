"""A loop that polls for work when it is woken, and periodically."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

POLL_PERIOD_S = 1.0
"""Seconds between periodic polls, and the pause after a failed poll.

Periodic polls find work that has become due and work that other processes have added.
"""


class PollLoop:
    """Calls ``poll`` repeatedly.

    If it returned True, there may be more work and it is called again at once; otherwise when
    woken, or after ``POLL_PERIOD_S``. Errors are logged. ``name`` is the kind of work, for the log.
    """

    def __init__(self, poll: Callable[[], Awaitable[bool]], name: str) -> None:
        self._poll = poll
        self._name = name
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Poll soon: there may be work."""
        self._wake.set()

    async def serve(self) -> None:
        """Poll until canceled."""
        while True:
            self._wake.clear()
            try:
                if await self._poll():
                    continue
            except Exception:
                logger.exception("polling the store for %s failed", self._name)
                await asyncio.sleep(POLL_PERIOD_S)
                continue
            try:
                async with asyncio.timeout(POLL_PERIOD_S):
                    await self._wake.wait()
            except TimeoutError:
                continue
