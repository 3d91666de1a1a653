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
IDLE_S = 0.02
"""How long nothing happens before the loop asks when work is due, in seconds.

A busy loop is woken before, and saves the question.
"""
FAILURE_PAUSE_S = 1.0
"""Pause after a failed poll."""


class PollLoop:
    """Calls ``poll`` repeatedly: at once if it returned True, which means that there may be more
    work, and otherwise when woken or when work is due.

    ``find_next_due`` returns the seconds until work is due, or infinity. Errors are logged.
    ``name`` is the kind of work, for the log.
    """

    def __init__(
        self,
        poll: Callable[[], Awaitable[bool]],
        find_next_due: Callable[[], Awaitable[float]],
        name: str,
    ) -> None:
        self._poll = poll
        self._find_next_due = find_next_due
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
                if await self._poll() or await self._is_woken_within(IDLE_S):
                    continue
                due_in_s = await self._find_next_due()
                await self._is_woken_within(min(due_in_s, SAFETY_NET_S))
            except Exception as error:
                # The store itself logs that it is away.
                if getattr(error, "failure_class", None) is not FailureClass.CAPACITY:
                    logger.exception("polling the store for %s failed", self._name)
                await asyncio.sleep(FAILURE_PAUSE_S)

    async def _is_woken_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        return self._wake.is_set()
