"""A limit on the requests that run at a time and on those that wait, and runtimes that have one."""

from __future__ import annotations

import asyncio

from models.remote.errors import deadline_exceeded
from models.runtime import Runtime
from raylens.core.config import ModelConfig
from raylens.core.errors import Overloaded
from raylens.core.types import VisionRequest
from raylens.engine.metrics import Gauges


class ConcurrencyLimiter:
    """Slots for ``max_batch_size`` running requests and ``max_waiting`` waiting ones, first in,
    first out."""

    def __init__(self, config: ModelConfig) -> None:
        self.max_running = config.max_batch_size
        self._slots = asyncio.Semaphore(config.max_batch_size)
        self._surplus = 0
        """Slots that are taken away once they are free."""
        self._capacity = config.max_batch_size + config.max_waiting
        self._retry_after = config.retry_after_s
        self._requests = 0
        """Number of requests that are running or waiting."""

    async def configure(self, config: ModelConfig) -> None:
        """Take other limits. Requests that are running or waiting go on."""
        for _ in range(config.max_batch_size - self.max_running):
            self._free_slot()
        self._surplus += max(0, self.max_running - config.max_batch_size)
        self.max_running = config.max_batch_size
        self._capacity = config.max_batch_size + config.max_waiting
        self._retry_after = config.retry_after_s
        while self._surplus and not self._slots.locked():
            await self._slots.acquire()
            self._surplus -= 1

    @property
    def gauges(self) -> Gauges:
        running = min(self._requests, self.max_running)
        load = self._requests / self.max_running
        return Gauges(
            waiting=self._requests - running,
            running=running,
            load=load,
            max_waiting=self._capacity - self.max_running,
        )

    def check_capacity(self) -> None:
        """Raise ``Overloaded`` if all slots are taken and the queue is full."""
        if self._requests >= self._capacity:
            raise Overloaded(
                f"{self._requests} requests are running or waiting; the limit is {self._capacity}",
                "model",
                self._capacity,
                self._requests,
                self._retry_after,
            )

    async def acquire(self, request: VisionRequest) -> None:
        """Wait for a slot and take it.

        Raises ``Overloaded``, or ``DeadlineExceeded`` if no slot is free before the deadline.
        """
        self.check_capacity()
        self._requests += 1
        try:
            async with asyncio.timeout(max(0.0, request.remaining)):
                await self._slots.acquire()
        except BaseException as error:
            self._requests -= 1
            if isinstance(error, TimeoutError):
                raise deadline_exceeded() from None
            raise

    def release(self) -> None:
        """Free a slot."""
        self._free_slot()
        self._requests -= 1

    def _free_slot(self) -> None:
        if self._surplus:
            self._surplus -= 1
        else:
            self._slots.release()


class LimitedRuntime(Runtime):
    """A runtime whose load is what its limiter counts."""

    def __init__(self, config: ModelConfig) -> None:
        self._limiter = ConcurrencyLimiter(config)

    @property
    def gauges(self) -> Gauges:
        return self._limiter.gauges

    async def configure(self, config: ModelConfig) -> None:
        await self._limiter.configure(config)

    def check_capacity(self, request: VisionRequest) -> None:
        self._limiter.check_capacity()
