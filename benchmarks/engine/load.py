"""Send many requests at a time, and record when their answers arrive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

Percentiles = tuple[float, float]
"""p50 and p99, in milliseconds."""


@dataclass
class Timeline:
    """When a request was sent and when each piece of its answer arrived, by
    ``time.perf_counter``."""

    tokens: int
    sent: float = field(default_factory=time.perf_counter)
    arrivals: list[float] = field(default_factory=list)

    @property
    def first(self) -> float:
        """Seconds from sending to the first piece."""
        return self.arrivals[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between consecutive pieces."""
        return np.diff(self.arrivals).tolist()

    def record_piece(self) -> None:
        self.arrivals.append(time.perf_counter())


Send = Callable[[], Awaitable[Timeline]]
"""Sends one request and receives its whole answer."""


@dataclass(frozen=True)
class LoadResult:
    """Timelines of all answers of a load, and the seconds that it took."""

    seconds: float
    answers: tuple[Timeline, ...]

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
        """Percentiles of the gaps between pieces; None if every answer arrived in one piece."""
        gaps = [gap for answer in self.answers for gap in answer.gaps]
        return percentiles(gaps) if gaps else None


def percentiles(seconds: Sequence[float]) -> Percentiles:
    p50, p99 = np.percentile(seconds, (50, 99)) * 1000
    return float(p50), float(p99)


async def drive(sends: Sequence[Send], in_flight: int, gaps: Sequence[float] = ()) -> LoadResult:
    """Send all requests, at most ``in_flight`` at a time.

    ``gaps``, if any, are the seconds to wait before each request.
    """
    slots = asyncio.Semaphore(in_flight)

    async def send_and_release(send: Send) -> Timeline:
        try:
            return await send()
        finally:
            slots.release()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for number, send in enumerate(sends):
            if gaps:
                await asyncio.sleep(gaps[number])
            await slots.acquire()
            tasks.append(group.create_task(send_and_release(send)))
    return LoadResult(time.perf_counter() - started, tuple(task.result() for task in tasks))
