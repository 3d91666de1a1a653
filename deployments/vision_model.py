"""The deployment of one vision-language model. Each model of the configuration has its own."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import count

from deployments.autoscaling import ENGINE_LOAD
from deployments.engine_metrics import PrometheusEngineMetrics
from deployments.live_deployment import LiveDeployment, Settings
from deployments.loopback import bind_to_loopback
from deployments.stage_spans import follow_answers
from models.malloc_trim import malloc_trim
from models.runtime import Runtime
from preprocessing.clip import ProcessedVideo, expand
from preprocessing.coordinates import in_original, in_processed
from preprocessing.pipeline import ProcessedImage
from raylens.core.config import AppConfig, ModelConfig
from raylens.core.errors import (
    DeadlineExceeded,
    RaylensError,
    UnsupportedTask,
    picture_field,
    picture_index,
)
from raylens.core.live_settings import apply_settings
from raylens.core.logs import configure_logging, current_request_id
from raylens.core.types import (
    Delta,
    MemoryUsage,
    ModelInfo,
    Task,
    Timings,
    VisionRequest,
    required_capability,
)
from raylens.engine.metrics import EngineMetrics

logger = logging.getLogger(__name__)

GAUGE_PERIOD_S = 0.5
UPDATES_PER_TRIM = 40
"""Updates of the gauges for each time that unused memory is returned to the operating system."""


class VisionModel(LiveDeployment):
    """Creates the model's runtime, and streams deltas from it."""

    def __init__(
        self,
        config: ModelConfig,
        app: AppConfig,
        runtime: Runtime | None = None,
    ) -> None:
        """``config`` is this model's in ``app``. Without a ``runtime``, make the one it names."""
        bind_to_loopback()
        configure_logging(app.log_settings, re.sub(r"[^\w.-]", "_", config.name))
        self._config = config
        self._app = app
        started = time.monotonic()
        self._metrics = PrometheusEngineMetrics(config.name)
        self._runtime = runtime or make_runtime(config, self._metrics, app.vram_threshold)
        self._gauge_task: asyncio.Task[None] | None = None
        seconds = time.monotonic() - started
        logger.info("%s is ready on %s after %.1f s", config.name, self._runtime.device, seconds)

    async def configure(self, settings: Settings) -> None:
        models = apply_settings(self._app, settings).models
        (config,) = (model for model in models if model.name == self._config.name)
        await self._runtime.configure(config)

    async def generate(
        self, request: VisionRequest, *media: ProcessedImage | ProcessedVideo
    ) -> AsyncGenerator[Delta, None]:
        """Yield the answer's deltas. The first one carries the warnings about pictures and videos.

        Closing the generator aborts the request.
        """
        current_request_id.set(request.id)
        self._start_gauge_task()
        self._check_task(request.task)
        self._runtime.check_capacity(request)
        if request.remaining <= 0:
            raise DeadlineExceeded(
                "the deadline passed before the request reached the model", "deadline"
            )
        expansion = expand(request.task, media, self._runtime.frames_as_pictures)
        request = replace(request, task=expansion.task)
        # Only a task about a single picture has places in it.
        geometry = media[0].geometry if media and isinstance(media[0], ProcessedImage) else None
        if geometry is not None:
            request = replace(request, task=in_processed(request.task, geometry))
        warnings = _collect_warnings(media) + expansion.warnings
        preprocessed = Timings(sum(step.seconds for item in media for step in item.steps))
        is_first = True
        generated = self._runtime.generate(request, expansion.pictures)
        try:
            async with aclosing(follow_answers(generated, request, len(media))) as deltas:
                async for delta in deltas:
                    if delta.findings is not None and geometry is not None:
                        findings = in_original(delta.findings, geometry)
                        delta = replace(delta, findings=findings)
                    if delta.timings is not None or is_first:
                        timings = delta.timings or preprocessed
                        timings = Timings(
                            preprocessed.preprocess, timings.queue, timings.prefill, timings.decode
                        )
                        delta = replace(delta, timings=timings)
                        is_first = False
                    if warnings:
                        delta = replace(delta, warnings=warnings + delta.warnings)
                        warnings = ()
                    yield delta
        except RaylensError as error:
            index = picture_index(error.field)
            if index is None:
                raise
            raise error.about(picture_field(expansion.owners[index])) from None

    def _check_task(self, task: Task) -> None:
        """Raise ``UnsupportedTask`` for a task that the ingress could not check, because no replica
        was running."""
        capability = required_capability(task)
        if capability not in self._runtime.tasks:
            name = self._config.name
            raise UnsupportedTask(f"model: {capability} is not supported by {name}", "model")

    async def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (width, height) to which the model resizes a picture of ``size``."""
        return self._runtime.input_size(*size)

    async def info(self) -> ModelInfo:
        config = self._config
        is_ours = config.runtime == "engine"
        return ModelInfo(
            name=config.name,
            checkpoint=config.remote.model or config.checkpoint,
            family=config.family,
            device=self._runtime.device,
            tasks=tuple(sorted(self._runtime.tasks)),
            dtype=(config.quantize or config.dtype) if is_ours else None,
            parameters=self._runtime.parameters,
            max_pictures=self._runtime.max_pictures,
            frames_as_pictures=self._runtime.frames_as_pictures,
        )

    async def memory_usage(self) -> MemoryUsage | None:
        """Return the memory of this replica; None if its model runs elsewhere."""
        return self._runtime.memory_usage()

    async def clear_memory(self) -> MemoryUsage | None:
        """Empty the caches, return unused memory, and return what is left."""
        await self._runtime.clear_memory()
        return self._runtime.memory_usage()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what :func:`deployments.autoscaling.EngineLoadPolicy` scales by."""
        return {ENGINE_LOAD: self._runtime.gauges.load}

    async def check_health(self) -> None:
        """Raise ``RuntimeError`` if the engine has stopped. Serve then replaces the replica."""
        self._start_gauge_task()
        if self._runtime.failure is not None:
            raise RuntimeError(f"the engine has stopped: {self._runtime.failure!r}")

    def _start_gauge_task(self) -> None:
        """Start the gauge task with the first request or health check: it needs an event loop."""
        if self._gauge_task is None:
            self._gauge_task = asyncio.create_task(self._update_gauges())

    async def _update_gauges(self) -> None:
        """Update the gauges periodically, for as long as the replica lives."""
        for update in count(1):
            self._metrics.set_gauges(self._runtime.gauges)
            memory = self._runtime.memory_usage()
            if memory is not None:
                self._metrics.set_memory(memory)
            if update % UPDATES_PER_TRIM == 0:
                await asyncio.to_thread(malloc_trim)
            await asyncio.sleep(GAUGE_PERIOD_S)


def make_runtime(
    config: ModelConfig, metrics: EngineMetrics, vram_threshold: float | None
) -> Runtime:
    """Create the runtime that the configuration names.

    Raises ``ImportError``, which names the extra to install, if Moondream's clients are missing.
    """
    # The runtimes' libraries are heavy: only the one in use is imported.
    if config.runtime == "engine":
        from deployments.engine_runtime import EngineRuntime

        return EngineRuntime(config, metrics, vram_threshold)
    if config.runtime == "openai":
        from models.remote.openai import OpenAIRuntime

        return OpenAIRuntime(config, config.remote)
    try:
        from models.remote import moondream

        make_remote = moondream.cloud if config.runtime == "cloud" else moondream.photon
        return make_remote(config, config.remote)
    except ImportError as error:
        raise ImportError(
            f"the runtime {config.runtime} needs pip install 'raylens[photon]': {error}"
        ) from error


def _collect_warnings(media: Sequence[ProcessedImage | ProcessedVideo]) -> tuple[str, ...]:
    """Return the warnings about all pictures and videos, numbered if there are several."""
    if len(media) == 1:
        return media[0].warnings
    return tuple(
        f"{'video' if isinstance(item, ProcessedVideo) else 'picture'} {number}: {warning}"
        for number, item in enumerate(media, 1)
        for warning in item.warnings
    )
