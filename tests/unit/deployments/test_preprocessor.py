"""The deployment class without Serve: its event loop, its queue and its metrics."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from deployments.preprocessor import Preprocessor
from models.pocket.video_files import encode_video
from preprocessing.clip import ProcessedVideo
from preprocessing.pipeline import ProcessedImage
from raylens.core.config import AppConfig
from raylens.core.errors import DeadlineExceeded, InvalidRequest, PayloadTooLarge
from raylens.core.recipe import ENHANCED, PLAIN, Denoise, Recipe
from raylens.core.types import Caller, PictureFile, StepReport, VideoFile
from testing.pictures import encode_picture, gradient, random_pixels

CONFIG = AppConfig.model_validate(
    {
        "models": [{"name": "a", "family": "smolvlm"}],
        "preprocessor_threads": 1,
        "limits": {"max_filter_s": 60},
    }
)
CALLER = Caller(
    "id", math.inf
)  # a deadline counted from here would pass while slower suites run first
SMALL = PictureFile(encode_picture(gradient(20, 20)), "file")
SLOW = Recipe(size=(4096, 4096), preserve_aspect_ratio=False, denoise=Denoise(True, "nlm"))
"""Ten seconds of work."""


class FakeGauge:
    def __init__(self) -> None:
        self.values: list[float] = []

    def set(self, value: float) -> None:
        self.values.append(value)


class FakeCounter:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def inc(self, tags: dict[str, str]) -> None:
        self.counts[tags["outcome"]] += 1


class FakeHistogram:
    def __init__(self) -> None:
        self.values: list[float] = []

    def observe(self, value: float) -> None:
        self.values.append(value)


class FakeMetrics:
    """Records every observation."""

    def __init__(self) -> None:
        self.queue_depth = FakeGauge()
        self.pictures = FakeCounter()
        self.wait = FakeHistogram()
        self.steps: list[list[str]] = []

    def observe(self, steps: Sequence[StepReport]) -> None:
        self.pictures.inc({"outcome": "ok"})
        self.steps.append([step.name for step in steps])


@pytest.fixture
def metrics() -> FakeMetrics:
    return FakeMetrics()


@pytest.fixture
def preprocessor(metrics: FakeMetrics) -> Preprocessor:
    fake: Any = metrics
    return Preprocessor(CONFIG, fake)


async def test_the_event_loop_keeps_running_while_pictures_are_processed(
    preprocessor: Preprocessor,
) -> None:
    data = encode_picture(random_pixels(1500, 1200), "JPEG", quality=90)
    work = asyncio.gather(
        *(preprocessor.process(PictureFile(data, "file"), ENHANCED, CALLER) for _ in range(3))
    )
    ticks = 0
    while not work.done():
        await asyncio.sleep(0.001)
        ticks += 1
    assert all(isinstance(processed, ProcessedImage) for processed in await work)
    assert ticks > 20  # if the work blocked the loop, it would be done after a tick or two


async def test_waiting_pictures_count_as_queue_depth(
    preprocessor: Preprocessor, metrics: FakeMetrics
) -> None:
    data = encode_picture(random_pixels(600, 400))
    await asyncio.gather(
        *(preprocessor.process(PictureFile(data, "file"), PLAIN, CALLER) for _ in range(4))
    )
    await asyncio.sleep(0.05)
    assert max(metrics.queue_depth.values) == 3
    assert metrics.queue_depth.values[-1] == 0
    assert metrics.pictures.counts == {"ok": 4}
    assert len(metrics.wait.values) == 4
    assert metrics.steps[0] == ["decode", "resize"]


async def test_a_health_check_sets_the_queue_depth_again_which_ray_would_drop(
    preprocessor: Preprocessor, metrics: FakeMetrics
) -> None:
    await preprocessor.check_health()
    await preprocessor.check_health()
    assert metrics.queue_depth.values == [0, 0]


async def test_a_call_canceled_while_it_waits_never_starts(
    preprocessor: Preprocessor, metrics: FakeMetrics
) -> None:
    release = threading.Event()
    preprocessor._pool.submit(release.wait, CALLER)  # the pool has one thread
    waiting = asyncio.ensure_future(preprocessor.process(SMALL, PLAIN, CALLER))
    await asyncio.sleep(0.02)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    release.set()
    assert isinstance(await preprocessor.process(SMALL, PLAIN, CALLER), ProcessedImage)
    await asyncio.sleep(0.05)
    assert metrics.pictures.counts == {"canceled": 1, "ok": 1}
    assert metrics.queue_depth.values[-1] == 0


async def test_a_passed_deadline_stops_the_work_and_frees_its_thread(
    preprocessor: Preprocessor,
) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await preprocessor.process(SMALL, SLOW, Caller("id", time.time() + 1))
    await preprocessor.process(SMALL, PLAIN, CALLER)
    assert time.monotonic() - started < 4


async def test_cancellation_stops_the_work_and_frees_its_thread(
    preprocessor: Preprocessor,
) -> None:
    work = asyncio.ensure_future(preprocessor.process(SMALL, SLOW, CALLER))
    await asyncio.sleep(0.8)
    work.cancel()
    started = time.monotonic()
    await preprocessor.process(SMALL, PLAIN, CALLER)
    assert time.monotonic() - started < 3


async def test_errors_name_the_field_and_are_counted_by_code(
    preprocessor: Preprocessor, metrics: FakeMetrics
) -> None:
    damaged = PictureFile(encode_picture(gradient(300, 300), "JPEG")[:1500], "messages.0")
    with pytest.raises(InvalidRequest, match=r"^messages\.0: the JPEG") as caught:
        await preprocessor.process(damaged, PLAIN, CALLER)
    assert caught.value.field == "messages.0"
    with pytest.raises(DeadlineExceeded, match="before the picture was processed"):
        await preprocessor.process(SMALL, PLAIN, Caller("id", time.time() - 1))
    assert metrics.pictures.counts == {"invalid_request": 1, "deadline_exceeded": 1}


async def test_a_preview_is_a_jpeg_with_its_steps(preprocessor: Preprocessor) -> None:
    picture = PictureFile(encode_picture(gradient(64, 48)), "file")
    preview = await preprocessor.preview(picture, PLAIN, CALLER)
    assert preview.jpeg.startswith(b"\xff\xd8\xff")
    assert (preview.original, preview.processed) == ((64, 48), (64, 48))
    assert [step.name for step in preview.steps] == ["decode", "resize", "encode"]


async def test_a_video_is_sampled_as_its_request_asks(preprocessor: Preprocessor) -> None:
    frames = [random_pixels(32, 32)] * 16
    video = VideoFile(encode_video(frames, 8), "video_url", 4.0, 6)
    processed = await preprocessor.process(video, PLAIN, CALLER)
    assert isinstance(processed, ProcessedVideo)
    assert processed.frames.shape == (6, 32, 32, 3)
    broken = VideoFile(video.data[:-9], "messages.0.content.1.video_url.url")
    with pytest.raises(InvalidRequest) as caught:
        await preprocessor.process(broken, PLAIN, CALLER)
    assert caught.value.field == "messages.0.content.1.video_url.url"
    assert caught.value.message.startswith("messages.0.content.1.video_url.url: the MP4 video of")


async def test_changed_limits_hold_for_the_next_picture() -> None:
    preprocessor = Preprocessor(CONFIG)
    await preprocessor.reconfigure({"limits": {"max_image_pixels": 399}})
    with pytest.raises(PayloadTooLarge, match="the limit is 399"):
        await preprocessor.process(SMALL, PLAIN, CALLER)
    await preprocessor.reconfigure({})
    await preprocessor.process(SMALL, PLAIN, CALLER)
