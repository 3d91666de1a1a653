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
from raylens.core.config import AppConfig
from raylens.core.errors import DeadlineExceeded, InvalidRequest
from raylens.core.recipe import ENHANCED, PLAIN, Denoise, Recipe
from raylens.core.types import PictureFile, Step
from testing.pictures import encoded, gradient, random_pixels

CONFIG = AppConfig.model_validate(
    {"models": [{"name": "a", "family": "smolvlm"}], "preprocessor_threads": 1}
)
LATE = time.time() + 600
SMALL = PictureFile(encoded(gradient(20, 20)), "file")


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


class Histogram:
    def __init__(self) -> None:
        self.values: list[float] = []

    def observe(self, value: float) -> None:
        self.values.append(value)


class FakeMetrics:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.queue_depth = Gauge()
        self.pictures = Outcomes()
        self.wait = Histogram()
        self.steps: list[list[str]] = []

    def observe(self, steps: Sequence[Step]) -> None:
        self.pictures.inc({"outcome": "ok"})
        self.steps.append([step.name for step in steps])


@pytest.fixture
def metrics() -> FakeMetrics:
    return FakeMetrics()


@pytest.fixture
def preprocessor(metrics: FakeMetrics) -> Preprocessor:
    made: Any = metrics
    return Preprocessor(CONFIG, made)


async def test_the_event_loop_goes_on_while_pictures_are_processed(
    preprocessor: Preprocessor,
) -> None:
    data = encoded(random_pixels(1500, 1200), "JPEG", quality=90)
    work = asyncio.gather(
        *(preprocessor.process(PictureFile(data, "file"), ENHANCED, LATE, "id") for _ in range(3))
    )
    ticks = 0
    while not work.done():
        await asyncio.sleep(0.001)
        ticks += 1
    assert all(isinstance(processed, ProcessedImage) for processed in await work)
    assert ticks > 20  # a loop that is blocked by the work would see its end after a tick or two


async def test_what_waits_counts_as_queue_depth(
    preprocessor: Preprocessor, metrics: FakeMetrics
) -> None:
    data = encoded(random_pixels(600, 400))
    await asyncio.gather(
        *(preprocessor.process(PictureFile(data, "file"), PLAIN, LATE, "id") for _ in range(4))
    )
    await asyncio.sleep(0.05)
    assert max(metrics.queue_depth.values) == 3
    assert metrics.queue_depth.values[-1] == 0
    assert metrics.pictures.counts == {"ok": 4}
    assert len(metrics.wait.values) == 4
    assert metrics.wait.values == sorted(metrics.wait.values)
    assert metrics.steps[0] == ["decode", "resize"]


async def test_a_call_that_is_canceled_while_it_waits_never_starts(
    preprocessor: Preprocessor, metrics: FakeMetrics
) -> None:
    held = threading.Event()
    preprocessor._pool.submit(held.wait)  # the pool has one thread
    waiting = asyncio.ensure_future(preprocessor.process(SMALL, PLAIN, LATE, "id"))
    await asyncio.sleep(0.02)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    held.set()
    assert isinstance(await preprocessor.process(SMALL, PLAIN, LATE, "id"), ProcessedImage)
    await asyncio.sleep(0.05)
    assert metrics.pictures.counts == {"canceled": 1, "ok": 1}
    assert metrics.queue_depth.values[-1] == 0


SLOW = Recipe(size=(4096, 4096), preserve_aspect_ratio=False, denoise=Denoise(True, "nlm"))
"""Ten seconds of work."""


async def test_a_deadline_ends_the_work_and_frees_its_thread(preprocessor: Preprocessor) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await preprocessor.process(SMALL, SLOW, time.time() + 1, "id")
    await preprocessor.process(SMALL, PLAIN, LATE, "id")
    assert time.monotonic() - started < 4


async def test_a_client_that_leaves_frees_its_thread(preprocessor: Preprocessor) -> None:
    work = asyncio.ensure_future(preprocessor.process(SMALL, SLOW, LATE, "id"))
    await asyncio.sleep(0.8)
    work.cancel()
    started = time.monotonic()
    await preprocessor.process(SMALL, PLAIN, LATE, "id")
    assert time.monotonic() - started < 3


async def test_errors_are_raised_and_counted_by_their_code(
    preprocessor: Preprocessor, metrics: FakeMetrics
) -> None:
    with pytest.raises(InvalidRequest, match=r"^messages\.0: the JPEG") as caught:
        await preprocessor.process(
            PictureFile(encoded(gradient(300, 300), "JPEG")[:1500], "messages.0"), PLAIN, LATE, "id"
        )
    assert caught.value.field == "messages.0"
    with pytest.raises(DeadlineExceeded, match="before the picture was processed"):
        await preprocessor.process(SMALL, PLAIN, time.time() - 1, "id")
    assert metrics.pictures.counts == {"invalid_request": 1, "deadline_exceeded": 1}


async def test_a_preview_is_a_file_with_its_steps(preprocessor: Preprocessor) -> None:
    shown = await preprocessor.preview(
        PictureFile(encoded(gradient(64, 48)), "file"), PLAIN, LATE, "id"
    )
    assert shown.jpeg.startswith(b"\xff\xd8\xff")
    assert (shown.original, shown.processed) == ((64, 48), (64, 48))
    assert [step.name for step in shown.steps] == ["decode", "resize", "encode"]
