"""The deployment that turns picture files into what a model should see."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from preprocessing.decode import DecodeLimits
from preprocessing.pipeline import ProcessedImage, run
from raylens.config import AppConfig
from raylens.errors import DeadlineExceeded
from raylens.logs import configure_logging, request_id
from raylens.types import Recipe


class Preprocessor:
    """Decodes and processes one picture a call, in a small pool of threads; the event loop stays free."""

    def __init__(self, config: AppConfig) -> None:
        configure_logging(config.log_level)
        limits = config.limits
        self._limits = DecodeLimits(
            max_bytes=limits.max_image_bytes,
            max_pixels=limits.max_image_pixels,
            min_side=limits.min_image_side,
            max_side=limits.max_image_side,
        )
        self._threads = ThreadPoolExecutor(config.preprocessor_threads, thread_name_prefix="preprocess")

    async def process(self, image: bytes, recipe: Recipe, deadline: float, identity: str) -> ProcessedImage:
        """Raises what :func:`preprocessing.pipeline.run` raises, and ``DeadlineExceeded`` where it would start late."""
        request_id.set(identity)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._process, image, recipe, deadline)

    def _process(self, image: bytes, recipe: Recipe, deadline: float) -> ProcessedImage:
        if time.time() >= deadline:
            raise DeadlineExceeded("the deadline passed before the picture was processed", "deadline")
        return run(image, recipe, self._limits)
