"""The deployment that holds one vision-language model; the configuration names as many of it as
there are models."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import count

from deployments.engine_metrics import PrometheusEngineMetrics
from models.malloc_trim import malloc_trim
from models.runtime import Runtime
from preprocessing.coordinates import in_original, in_processed
from preprocessing.pipeline import ProcessedImage
from raylens.core.config import ModelConfig
from raylens.core.errors import DeadlineExceeded
from raylens.core.logs import configure_logging, request_id
from raylens.core.types import (
    Delta,
    ModelInfo,
    VisionRequest,
)
from raylens.engine.metrics import EngineMetrics

logger = logging.getLogger(__name__)

GAUGE_PERIOD_S = 0.5
TRIM_ROUNDS = 40
"""Of the gauges, between two times that unused memory is given back."""


class VisionModel:
    """Makes its runtime once, and streams deltas from it."""

    def __init__(self, config: ModelConfig, log_level: str) -> None:
        configure_logging(log_level)
        self._config = config
        started = time.monotonic()
        self._metrics = PrometheusEngineMetrics(config.name)
        self._runtime = make_runtime(config, self._metrics)
        self._gauges: asyncio.Task[None] | None = None
        seconds = time.monotonic() - started
        logger.info("%s is ready on %s after %.1f s", config.name, self._runtime.device, seconds)

    async def generate(
        self, request: VisionRequest, *pictures: ProcessedImage
    ) -> AsyncGenerator[Delta, None]:
        """The answer's deltas; the first carries the pictures' warnings. Closing the stream ends
        the work."""
        request_id.set(request.id)
        self._show_gauges()
        self._runtime.check_capacity(request)
        if request.remaining <= 0:
            raise DeadlineExceeded(
                "the deadline passed before the model saw the request", "deadline"
            )
        if pictures:
            request = replace(request, task=in_processed(request.task, pictures[0].geometry))
        pixels, warnings = [picture.pixels for picture in pictures], _warnings(pictures)
        async with aclosing(self._runtime.generate(request, pixels)) as deltas:
            async for delta in deltas:
                if delta.findings is not None and pictures:
                    delta = replace(
                        delta, findings=in_original(delta.findings, pictures[0].geometry)
                    )
                yield replace(delta, warnings=warnings) if warnings else delta
                warnings = ()

    async def info(self) -> ModelInfo:
        return ModelInfo(
            name=self._config.name,
            checkpoint=self._config.checkpoint,
            family=self._config.family,
            device=self._runtime.device,
            tasks=tuple(sorted(self._runtime.tasks)),
        )

    async def check_health(self) -> None:
        """Called by Serve from time to time; it replaces a replica whose engine has stopped."""
        self._show_gauges()
        if self._runtime.failure is not None:
            raise RuntimeError(f"the engine has stopped: {self._runtime.failure!r}")

    def _show_gauges(self) -> None:
        """From the first request or check on, for as long as the replica lives."""
        if self._gauges is None:
            self._gauges = asyncio.create_task(self._keep_gauges())

    async def _keep_gauges(self) -> None:
        for round in count(1):
            self._metrics.gauges(self._runtime.gauges)
            if round % TRIM_ROUNDS == 0:
                await asyncio.to_thread(malloc_trim)
            await asyncio.sleep(GAUGE_PERIOD_S)


def make_runtime(config: ModelConfig, metrics: EngineMetrics) -> Runtime:
    """What the configuration asks for. Raises ``ImportError``, which names the extra, where its
    library isn't here."""
    # A runtime's own libraries are heavy or extras: only the one that is wanted is imported.
    if config.runtime == "engine":
        from deployments.engine_runtime import EngineRuntime

        return EngineRuntime(config, metrics)
    try:
        if config.runtime == "openai":
            from models.remote.openai import OpenAIRuntime

            return OpenAIRuntime(config, config.remote)
        from models.remote import moondream

        make = moondream.cloud if config.runtime == "cloud" else moondream.photon
        return make(config, config.remote)
    except ImportError as error:
        extra = "openai" if config.runtime == "openai" else "photon"
        raise ImportError(
            f"the runtime {config.runtime} needs pip install 'raylens[{extra}]': {error}"
        ) from error


def _warnings(pictures: Sequence[ProcessedImage]) -> tuple[str, ...]:
    """Those of all pictures, by number where there are several."""
    if len(pictures) == 1:
        return pictures[0].warnings
    return tuple(
        f"picture {n}: {warning}"
        for n, picture in enumerate(pictures, 1)
        for warning in picture.warnings
    )
