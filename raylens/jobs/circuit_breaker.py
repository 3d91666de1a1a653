"""Holds back the jobs of a model that lacks capacity, so that an outage costs a few probes only.

Source of the pattern: Michael T. Nygard, "Release It!", 2007, chapter 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from raylens.jobs.transitions import RetryPolicy


@dataclass
class _Breaker:
    failures: int
    open_until: float


class CircuitBreakers:
    """One breaker per model. Times are in seconds, on any one clock.

    A lack of capacity opens the model's breaker for the error's ``retry_after`` and a backoff. Then
    jobs may run again: if they lack capacity too, the breaker opens for longer; otherwise it
    closes.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._breakers: dict[str, _Breaker] = {}

    def record_failure(self, model: str, retry_after: float | None, now: float) -> None:
        """Record that a job of this model lacked capacity."""
        breaker = self._breakers.setdefault(model, _Breaker(0, -math.inf))
        if breaker.open_until > now:
            return  # the job had started before the breaker opened
        breaker.failures += 1
        breaker.open_until = now + self._policy.delay(breaker.failures, retry_after)

    def record_capacity(self, model: str) -> None:
        """Record that a job of this model had the capacity that it needed."""
        self._breakers.pop(model, None)

    def find_open(self, now: float) -> dict[str, float]:
        """Return the models whose jobs are held back, and until when."""
        return {
            model: breaker.open_until
            for model, breaker in self._breakers.items()
            if breaker.open_until > now
        }
