"""A limit on how often something may happen, by key."""

from __future__ import annotations

from collections import deque

from raylens.core.errors import TooManyRequests


class RateLimit:
    """Allows ``limit`` events of one key within any ``period_s`` seconds."""

    def __init__(self, limit: int, period_s: float) -> None:
        self._limit = limit
        self._period_s = period_s
        self._times: dict[str, deque[float]] = {}

    def check(self, key: str, now: float, what: str) -> None:
        """Record an event. Raises ``TooManyRequests`` if it is one too many.

        ``what`` describes the events in the error's message.
        """
        self._forget_old(now)
        times = self._times.setdefault(key, deque())
        if len(times) >= self._limit:
            wait_s = times[0] + self._period_s - now
            message = f"{what}: the limit is {self._limit} in {self._period_s:g} s"
            raise TooManyRequests(message, None, self._limit, len(times), wait_s)
        times.append(now)

    def _forget_old(self, now: float) -> None:
        for key, times in list(self._times.items()):
            while times and times[0] <= now - self._period_s:
                times.popleft()
            if not times:
                del self._times[key]
