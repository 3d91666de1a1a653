"""Places for requests that something else answers: so many at a time, and so many that wait."""

from __future__ import annotations

import asyncio

from models.remote.errors import late
from raylens.core.config import ModelConfig
from raylens.core.errors import Overloaded
from raylens.core.types import VisionRequest
from raylens.engine.metrics import Gauges


class ConcurrencyLimiter:
    """``max_batch_size`` at a time, and ``max_waiting`` more in line; first come, first served."""

    def __init__(self, config: ModelConfig) -> None:
        self._places = asyncio.Semaphore(config.max_batch_size)
        self.size = config.max_batch_size
        self._capacity = config.max_batch_size + config.max_waiting
        self._retry_after = config.retry_after_s
        self._taken = 0

    @property
    def gauges(self) -> Gauges:
        running = min(self._taken, self.size)
        return Gauges(waiting=self._taken - running, running=running)

    def check(self) -> None:
        """Raises ``Overloaded`` where nobody may wait any more."""
        if self._taken >= self._capacity:
            raise Overloaded(
                f"{self._taken} requests run or wait; the limit is {self._capacity}",
                "model",
                self._capacity,
                self._taken,
                self._retry_after,
            )

    async def enter(self, request: VisionRequest) -> None:
        """Takes a place, once there is one. Raises ``Overloaded``, or ``DeadlineExceeded`` where
        none comes in time."""
        self.check()
        self._taken += 1
        try:
            async with asyncio.timeout(max(0.0, request.remaining)):
                await self._places.acquire()
        except BaseException as error:
            self._taken -= 1
            if isinstance(error, TimeoutError):
                raise late() from None
            raise

    def leave(self) -> None:
        """Gives a place back."""
        self._places.release()
        self._taken -= 1
