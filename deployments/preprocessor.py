"""The deployment that turns picture files into what a model should see."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import cv2
from ray.serve.metrics import Counter, Gauge, Histogram

from preprocessing.decode import DecodeLimits
from preprocessing.encode import to_jpeg
from preprocessing.pipeline import ProcessedImage, run
from raylens.core.config import AppConfig
from raylens.core.errors import DeadlineExceeded, RaylensError
from raylens.core.logs import configure_logging, request_id
from raylens.core.recipe import Recipe
from raylens.core.types import PictureFile, ProcessedPicture, Step

Result = TypeVar("Result")


class Preprocessor:
    """Decodes and processes one picture a call, in a small pool of threads; the event loop stays
    free."""

    def __init__(self, config: AppConfig, metrics: PreprocessorMetrics | None = None) -> None:
        configure_logging(config.log_level)
        limits = config.limits
        self._limits = DecodeLimits(
            max_bytes=limits.max_image_bytes,
            max_pixels=limits.max_image_pixels,
            min_side=limits.min_image_side,
            max_side=limits.max_image_side,
        )
        # Several pictures at a time use the cores better than several threads on one picture.
        cv2.setNumThreads(1)
        self._pool = ThreadPoolExecutor(
            config.preprocessor_threads, thread_name_prefix="preprocess"
        )
        self._pool_size = config.preprocessor_threads
        self._in_pool = 0
        self._metrics = metrics or PreprocessorMetrics()

    async def process(
        self, picture: PictureFile, recipe: Recipe, deadline: float, identity: str
    ) -> ProcessedImage:
        """Raises as :func:`preprocessing.pipeline.run` does, with the picture's own name in
        messages.

        A call that is canceled, or whose deadline passes, ends at the next step, or never starts.
        """
        request_id.set(identity)
        processed = await self._in_thread(
            lambda check: run(picture.data, recipe, self._limits, check), picture, deadline
        )
        self._metrics.observe(processed.steps)
        return processed

    async def preview(
        self, picture: PictureFile, recipe: Recipe, deadline: float, identity: str
    ) -> ProcessedPicture:
        """The processed picture as a file, for people to look at. Raises as :meth:`process` does."""
        request_id.set(identity)
        shown = await self._in_thread(
            lambda check: _preview(run(picture.data, recipe, self._limits, check), recipe),
            picture,
            deadline,
        )
        self._metrics.observe(shown.steps)
        return shown

    async def _in_thread(
        self, work: Callable[[Callable[[], None]], Result], picture: PictureFile, deadline: float
    ) -> Result:
        """``work`` in the pool, with a function that ends it by raising where its result is of no
        use any more."""
        queued, loop, left = time.perf_counter(), asyncio.get_running_loop(), threading.Event()

        def check() -> None:
            if left.is_set() or time.time() >= deadline:
                raise DeadlineExceeded(
                    "the deadline passed before the picture was processed", "deadline"
                )

        def start() -> Result:
            loop.call_soon_threadsafe(self._metrics.wait.observe, time.perf_counter() - queued)
            check()
            return work(check)

        self._count(+1)
        future = self._pool.submit(start)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._count, -1))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._metrics.pictures.inc(tags={"outcome": "canceled"})
            raise
        except Exception as error:
            self._metrics.pictures.inc(tags={"outcome": getattr(error, "code", RaylensError.code)})
            if isinstance(error, RaylensError) and error.field == "image":
                raise error.about(picture.field) from None
            raise
        finally:
            left.set()

    def _count(self, change: int) -> None:
        self._in_pool += change
        self._metrics.queue_depth.set(max(0, self._in_pool - self._pool_size))


def _preview(processed: ProcessedImage, recipe: Recipe) -> ProcessedPicture:
    started, geometry = time.perf_counter(), processed.geometry
    jpeg = to_jpeg(processed.pixels, recipe.jpeg_quality, recipe.optimize)
    encoded = Step("encode", f"JPEG, quality {recipe.jpeg_quality}", time.perf_counter() - started)
    return ProcessedPicture(
        jpeg,
        geometry.original,
        geometry.processed,
        geometry.to_original,
        (*processed.steps, encoded),
        processed.warnings,
    )


class PreprocessorMetrics:
    """What Prometheus sees of a replica; Ray puts ``ray_`` before the names, and Serve its tags
    beside ours."""

    def __init__(self) -> None:
        self.queue_depth = Gauge(
            "raylens_preprocessor_queue_depth", "Pictures in this replica that wait for a thread."
        )
        self.pictures = Counter(
            "raylens_preprocessor_pictures",
            "Pictures by outcome: ok, canceled, or the error's code.",
            ("outcome",),
        )
        boundaries = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]
        self.wait = Histogram(
            "raylens_preprocessor_wait_seconds",
            "Seconds that a picture waited for a thread.",
            boundaries,
        )
        self._step = Histogram(
            "raylens_preprocessor_step_seconds",
            "Seconds of a step of preprocessing.",
            boundaries,
            ("step",),
        )

    def observe(self, steps: Sequence[Step]) -> None:
        self.pictures.inc(tags={"outcome": "ok"})
        for step in steps:
            self._step.observe(step.seconds, tags={"step": step.name})
