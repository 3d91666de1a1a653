from __future__ import annotations

import asyncio
import time

import pytest

from models.remote.concurrency import ConcurrencyLimiter
from raylens.core.config import ModelConfig
from raylens.core.errors import Overloaded
from raylens.core.types import Caption, SamplingParams, VisionRequest


def config(max_batch_size: int, max_waiting: int = 8) -> ModelConfig:
    return ModelConfig(
        name="a", family="smolvlm", max_batch_size=max_batch_size, max_waiting=max_waiting
    )


class Load:
    """Requests that hold their slots until they are told to end."""

    def __init__(self, limiter: ConcurrencyLimiter) -> None:
        self._limiter = limiter
        self._end = asyncio.Semaphore(0)
        self.running = 0

    async def begin(self, requests: int) -> None:
        for _ in range(requests):
            self._tasks = asyncio.create_task(self._run())
        await self.settle()

    async def end(self, requests: int) -> None:
        for _ in range(requests):
            self._end.release()
        await self.settle()

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def _run(self) -> None:
        deadline = time.time() + 60
        await self._limiter.acquire(VisionRequest("id", "a", Caption(), deadline, SamplingParams()))
        self.running += 1
        await self._end.acquire()
        self.running -= 1
        self._limiter.release()


async def test_more_slots_are_there_at_once() -> None:
    limiter = ConcurrencyLimiter(config(2))
    load = Load(limiter)
    await load.begin(6)
    assert load.running == 2
    await limiter.configure(config(5))
    await load.settle()
    assert load.running == 5
    assert limiter.gauges.waiting == 1
    await load.end(6)
    assert load.running == 0


async def test_fewer_slots_are_left_once_requests_have_ended() -> None:
    limiter = ConcurrencyLimiter(config(4))
    load = Load(limiter)
    await load.begin(3)
    await limiter.configure(config(1, 4))
    await load.begin(2)
    assert load.running == 3
    await load.end(2)
    assert load.running == 1
    await load.end(1)
    assert load.running == 1
    await load.begin(3)
    with pytest.raises(Overloaded, match="the limit is 5"):
        limiter.check_capacity()
    await limiter.configure(config(3))
    await load.settle()
    assert load.running == 3
    await load.end(10)
    assert load.running == 0


async def test_slots_that_are_taken_away_and_given_back_while_busy_are_counted_once() -> None:
    limiter = ConcurrencyLimiter(config(4))
    load = Load(limiter)
    await load.begin(8)
    for slots in (1, 3, 2, 4):
        await limiter.configure(config(slots))
    assert load.running == 4
    await load.end(1)
    assert load.running == 4
    await load.end(7)
    await load.begin(6)
    assert load.running == 4
    await load.end(6)
