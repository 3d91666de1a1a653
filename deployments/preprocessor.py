"""The deployment that turns picture files into what a model should see."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from preprocessing.decode import DecodeLimits
from preprocessing.pipeline import ProcessedImage, run
from raylens.config import AppConfig
from raylens.errors import DeadlineExceeded
from raylens.logs import configure_logging
from raylens.types import VisionRequest


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

    async def process(self, request: VisionRequest, image: bytes) -> ProcessedImage:
        """Raises what :func:`preprocessing.pipeline.run` raises, and ``DeadlineExceeded`` before it starts too late."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._process, request, image)

    def _process(self, request: VisionRequest, image: bytes) -> ProcessedImage:
        if request.remaining <= 0:
            raise DeadlineExceeded("the deadline passed before the picture was processed", "deadline")
        return run(image, request.recipe, self._limits)
