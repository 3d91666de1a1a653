"""A loop that polls for work when it is woken, when work is due, and once in a while."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from raylens.core.errors import FailureClass

logger = logging.getLogger(__name__)

SAFETY_NET_S = 5.0
"""Longest time between two polls. Other processes that share the store add work without a wake."""
FAILURE_PAUSE_S = 1.0
"""Pause after a failed poll."""
MIN_WAIT_S = 0.001
"""Shortest wait for work that is due soon: the loop's clock may run slightly ahead."""


class PollLoop:
    """Calls ``poll`` repeatedly.

    ``poll`` returns the seconds until more work is due: 0 if there may be more at once, infinity if
    none is known. Errors are logged. ``name`` is the kind of work, for the log.
    """

    def __init__(self, poll: Callable[[], Awaitable[float]], name: str) -> None:
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
            due_in_s = await self._poll_or_log()
            if due_in_s <= 0:
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(min(max(due_in_s, MIN_WAIT_S), SAFETY_NET_S)):
                    await self._wake.wait()

    async def _poll_or_log(self) -> float:
        try:
            return await self._poll()
        except Exception as error:
            # The store itself logs that it is away.
            if getattr(error, "failure_class", None) is not FailureClass.CAPACITY:
                logger.exception("polling the store for %s failed", self._name)
        await asyncio.sleep(FAILURE_PAUSE_S)
        return 0.0
