"""The deployment's class without Serve: what it does to its event loop, its queue and its metrics."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from deployments.preprocessor import Preprocessor
from preprocessing.pipeline import ProcessedImage
from raylens.config import AppConfig
from raylens.errors import DeadlineExceeded, InvalidRequest
from raylens.recipe import ENHANCED, PLAIN
from raylens.types import Step
from tests.pictures import encoded, gradient, random_pixels

CONFIG = AppConfig.model_validate({"models": [{"name": "a", "family": "smolvlm"}], "preprocessor_threads": 1})
LATE = time.time() + 600


class Gauge:
    def __init__(self) -> None:
        self.values: list[float] = []

    def set(self, value: float) -> None:
        self.values.append(value)


class Outcomes:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def inc(self, tags: dict[str, str]) -> None:
        self.counts[tags["outcome"]] += 1


class FakeMetrics:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.queue_depth = Gauge()
        self.pictures = Outcomes()
        self.observed: list[tuple[float, list[str]]] = []

    def observe(self, waited: float, steps: Sequence[Step]) -> None:
        self.pictures.inc({"outcome": "ok"})
        self.observed.append((waited, [step.name for step in steps]))


@pytest.fixture
def metrics() -> FakeMetrics:
    return FakeMetrics()


@pytest.fixture
def preprocessor(metrics: FakeMetrics) -> Preprocessor:
    made: Any = metrics
    return Preprocessor(CONFIG, made)


async def test_the_event_loop_goes_on_while_pictures_are_processed(preprocessor: Preprocessor) -> None:
    data = encoded(random_pixels(1500, 1200), "JPEG", quality=90)
    work = asyncio.gather(*(preprocessor.process(data, ENHANCED, LATE, "id") for _ in range(3)))
    ticks = 0
    while not work.done():
        await asyncio.sleep(0.001)
        ticks += 1
    assert all(isinstance(processed, ProcessedImage) for processed in await work)
    assert ticks > 20  # a loop that is blocked by the work would see its end after a tick or two


async def test_what_waits_counts_as_queue_depth(preprocessor: Preprocessor, metrics: FakeMetrics) -> None:
    data = encoded(random_pixels(600, 400))
    await asyncio.gather(*(preprocessor.process(data, PLAIN, LATE, "id") for _ in range(4)))
    await asyncio.sleep(0.05)
    assert max(metrics.queue_depth.values) == 3
    assert metrics.queue_depth.values[-1] == 0
    assert metrics.pictures.counts == {"ok": 4}
    waits = [waited for waited, _ in metrics.observed]
    assert waits == sorted(waits)
    assert metrics.observed[0][1] == ["decode", "resize"]


async def test_a_call_that_is_canceled_while_it_waits_never_starts(
    preprocessor: Preprocessor, metrics: FakeMetrics
) -> None:
    held = threading.Event()
    preprocessor._pool.submit(held.wait)  # the pool has one thread
    waiting = asyncio.ensure_future(preprocessor.process(encoded(gradient(20, 20)), PLAIN, LATE, "id"))
    await asyncio.sleep(0.02)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    held.set()
    assert isinstance(await preprocessor.process(encoded(gradient(20, 20)), PLAIN, LATE, "id"), ProcessedImage)
    await asyncio.sleep(0.05)
    assert metrics.pictures.counts == {"ok": 1}
    assert metrics.queue_depth.values[-1] == 0


async def test_errors_are_raised_and_counted_by_their_code(preprocessor: Preprocessor, metrics: FakeMetrics) -> None:
    with pytest.raises(InvalidRequest):
        await preprocessor.process(encoded(gradient(300, 300), "JPEG")[:1500], PLAIN, LATE, "id")
    with pytest.raises(DeadlineExceeded, match="before the picture was processed"):
        await preprocessor.process(encoded(gradient(20, 20)), PLAIN, time.time() - 1, "id")
    assert metrics.pictures.counts == {"invalid_request": 1, "deadline_exceeded": 1}


async def test_a_preview_is_a_file_with_its_steps(preprocessor: Preprocessor) -> None:
    shown = await preprocessor.preview(encoded(gradient(64, 48)), PLAIN, LATE, "id")
    assert shown.jpeg.startswith(b"\xff\xd8\xff")
    assert (shown.original, shown.processed) == ((64, 48), (64, 48))
    assert [step.name for step in shown.steps] == ["decode", "resize", "encode"]
