"""The deployment that prepares picture files for a model."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import cv2
from ray.serve.metrics import Counter, Gauge, Histogram

from deployments.live_deployment import LiveDeployment, Settings
from deployments.loopback import bind_to_loopback
from deployments.picture_limits import picture_limits, video_limits
from deployments.stage_spans import PictureSpans, picture_spans
from preprocessing.clip import ProcessedVideo, run_video
from preprocessing.encode import to_jpeg
from preprocessing.memory import MemoryBudget
from preprocessing.pipeline import ProcessedImage, run
from preprocessing.video import Sampling
from raylens.core.config import AppConfig
from raylens.core.errors import DeadlineExceeded, RaylensError
from raylens.core.fair_pool import FairPool
from raylens.core.live_settings import apply_settings
from raylens.core.logs import configure_logging, current_request_id
from raylens.core.recipe import Recipe
from raylens.core.types import Caller, MediaFile, PictureFile, ProcessedPicture, StepReport

Result = TypeVar("Result")


class Preprocessor(LiveDeployment):
    """Decodes and processes one picture per call in a small thread pool, which its clients share
    fairly.

    The event loop stays free.
    """

    def __init__(self, config: AppConfig, metrics: PreprocessorMetrics | None = None) -> None:
        bind_to_loopback()
        configure_logging(config.log_settings, "preprocessor")
        self._config = config
        self._limits = picture_limits(config.limits)
        self._video_limits = video_limits(config.limits)
        # Several pictures in parallel use the cores better than several threads on one picture.
        cv2.setNumThreads(1)
        self._pool = FairPool(config.preprocessor_threads, "preprocess")
        self._pool_size = config.preprocessor_threads
        self._memory = MemoryBudget(config.preprocessor_memory)
        self._pending = 0
        """Pictures that are queued or running in the pool."""
        self._metrics = metrics or PreprocessorMetrics()

    async def configure(self, settings: Settings) -> None:
        limits = apply_settings(self._config, settings).limits
        self._limits = picture_limits(limits)
        self._video_limits = video_limits(limits)

    async def process(
        self, media: MediaFile, recipe: Recipe, caller: Caller
    ) -> ProcessedImage | ProcessedVideo:
        """Decode a picture or a video, and apply the recipe.

        A call that is canceled or passes its deadline stops at the next step, or never starts.
        Raises what :func:`preprocessing.pipeline.run` and :func:`preprocessing.clip.run_video`
        raise; messages name the request's field of the picture or video.
        """
        current_request_id.set(caller.request_id)
        kind = "picture" if isinstance(media, PictureFile) else "video"
        with picture_spans(kind) as spans:
            processed = await self._run_in_pool(
                lambda check: self._process(media, recipe, check), media, caller, spans
            )
            spans.note(processed.steps)
        self._metrics.observe(processed.steps)
        return processed

    def _process(
        self, media: MediaFile, recipe: Recipe, check: Callable[[], None]
    ) -> ProcessedImage | ProcessedVideo:
        if isinstance(media, PictureFile):
            return self._run(media, recipe, check)
        sampling = Sampling(media.frames_per_second, media.max_frames)
        with self._memory.open(check) as reserve:
            return run_video(media.data, sampling, recipe, self._video_limits, check, reserve)

    def _run(
        self, picture: PictureFile, recipe: Recipe, check: Callable[[], None]
    ) -> ProcessedImage:
        with self._memory.open(check) as reserve:
            return run(picture.data, recipe, self._limits, check, reserve)

    async def preview(
        self, picture: PictureFile, recipe: Recipe, caller: Caller
    ) -> ProcessedPicture:
        """Return the processed picture as a JPEG file for people to look at.

        Raises what :meth:`process` raises.
        """
        current_request_id.set(caller.request_id)
        with picture_spans("picture") as spans:
            preview = await self._run_in_pool(
                lambda check: _encode_preview(self._run(picture, recipe, check), recipe),
                picture,
                caller,
                spans,
            )
            spans.note(preview.steps)
        self._metrics.observe(preview.steps)
        return preview

    async def check_health(self) -> None:
        """Set the gauge again: Ray drops a gauge that isn't set for some 20 seconds."""
        self._change_pending(0)

    async def _run_in_pool(
        self,
        work: Callable[[Callable[[], None]], Result],
        media: MediaFile,
        caller: Caller,
        spans: PictureSpans,
    ) -> Result:
        """Run ``work`` in the pool.

        ``work`` receives a function to call between steps. That function raises
        ``DeadlineExceeded`` once the deadline has passed or the caller has been canceled.
        """
        submitted_at = time.perf_counter()
        loop = asyncio.get_running_loop()
        abandoned = threading.Event()

        def check() -> None:
            if abandoned.is_set() or time.time() >= caller.deadline:
                raise DeadlineExceeded(
                    "the deadline passed before the picture was processed", "deadline"
                )

        def start() -> Result:
            spans.begin_work()
            wait = time.perf_counter() - submitted_at
            loop.call_soon_threadsafe(self._metrics.wait.observe, wait)
            check()
            return work(check)

        self._change_pending(+1)
        future = self._pool.submit(start, caller)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._change_pending, -1))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._metrics.pictures.inc(tags={"outcome": "canceled"})
            raise
        except Exception as error:
            self._metrics.pictures.inc(tags={"outcome": getattr(error, "code", RaylensError.code)})
            if isinstance(error, RaylensError) and error.field in ("image", "video"):
                raise error.about(media.field) from None
            raise
        finally:
            abandoned.set()

    def _change_pending(self, change: int) -> None:
        self._pending += change
        self._metrics.queue_depth.set(max(0, self._pending - self._pool_size))


def _encode_preview(processed: ProcessedImage, recipe: Recipe) -> ProcessedPicture:
    started = time.perf_counter()
    geometry = processed.geometry
    jpeg = to_jpeg(processed.pixels, recipe.jpeg_quality, recipe.optimize)
    encode_step = StepReport(
        "encode", f"JPEG, quality {recipe.jpeg_quality}", time.perf_counter() - started
    )
    return ProcessedPicture(
        jpeg,
        processed.stored_size,
        geometry.original,
        geometry.processed,
        geometry.to_original,
        (*processed.steps, encode_step),
        processed.warnings,
    )


class PreprocessorMetrics:
    """Prometheus metrics of one replica.

    Ray prefixes the names with ``ray_``, and Serve adds its own tags.
    """

    def __init__(self) -> None:
        self.queue_depth = Gauge(
            "raylens_preprocessor_queue_depth", "Pictures in this replica waiting for a thread."
        )
        self.pictures = Counter(
            "raylens_preprocessor_pictures",
            "Pictures by outcome: ok, canceled, or the code of the error.",
            ("outcome",),
        )
        boundaries = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]
        self.wait = Histogram(
            "raylens_preprocessor_wait_seconds",
            "Seconds a picture waited for a thread.",
            boundaries,
        )
        self._step = Histogram(
            "raylens_preprocessor_step_seconds",
            "Seconds a preprocessing step took.",
            boundaries,
            ("step",),
        )

    def observe(self, steps: Sequence[StepReport]) -> None:
        """Count a processed picture and record the duration of each of its steps."""
        self.pictures.inc(tags={"outcome": "ok"})
        for step in steps:
            self._step.observe(step.seconds, tags={"step": step.name})
