"""Requests sent many at a time, and when their answers came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

Percentiles = tuple[float, float]
"""p50 and p99, in milliseconds."""


@dataclass
class Answer:
    """When an answer was asked for, and when each piece of it came, by ``time.perf_counter``."""

    tokens: int
    sent: float = field(default_factory=time.perf_counter)
    arrivals: list[float] = field(default_factory=list)

    @property
    def first(self) -> float:
        """Seconds to its first piece."""
        return self.arrivals[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between one piece and the next."""
        return np.diff(self.arrivals).tolist()

    def arrived(self) -> None:
        self.arrivals.append(time.perf_counter())


Ask = Callable[[], Awaitable[Answer]]
"""Sends one request and takes in its answer."""


@dataclass(frozen=True)
class Load:
    """What a run of requests came to."""

    seconds: float
    answers: tuple[Answer, ...]

    @property
    def captions_per_s(self) -> float:
        return len(self.answers) / self.seconds

    @property
    def tokens_per_s(self) -> float:
        return sum(answer.tokens for answer in self.answers) / self.seconds

    @property
    def first(self) -> Percentiles:
        return percentiles([answer.first for answer in self.answers])

    @property
    def between(self) -> Percentiles | None:
        """None where answers came whole."""
        gaps = [gap for answer in self.answers for gap in answer.gaps]
        return percentiles(gaps) if gaps else None


def percentiles(seconds: Sequence[float]) -> Percentiles:
    p50, p99 = np.percentile(seconds, (50, 99)) * 1000
    return float(p50), float(p99)


async def drive(asks: Sequence[Ask], in_flight: int, gaps: Sequence[float] = ()) -> Load:
    """Sends all, ``in_flight`` at most at a time, with these seconds between one and the next where
    there are any."""
    places = asyncio.Semaphore(in_flight)

    async def one(ask: Ask) -> Answer:
        try:
            return await ask()
        finally:
            places.release()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for number, ask in enumerate(asks):
            if gaps:
                await asyncio.sleep(gaps[number])
            await places.acquire()
            tasks.append(group.create_task(one(ask)))
    return Load(time.perf_counter() - started, tuple(task.result() for task in tasks))
