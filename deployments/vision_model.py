"""The deployment that holds one vision-language model; the configuration names as many of it as there are models."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import numpy as np
import ray
import torch

from deployments.engine_metrics import EngineMetrics
from models.memory import hold_to_share, kv_budget
from models.registry import load_model, pick_device
from preprocessing.pipeline import ProcessedImage
from raylens.config import ModelConfig
from raylens.engine.async_engine import AsyncEngine
from raylens.engine.engine import Engine
from raylens.engine.limits import Limits
from raylens.engine.model import Model, Prompt
from raylens.engine.sequence import sequences
from raylens.errors import DeadlineExceeded, ModelFailed
from raylens.logs import configure_logging, request_id
from raylens.types import Caption, Delta, Detect, Location, ModelInfo, Point, Region, SamplingParams, VisionRequest

logger = logging.getLogger(__name__)

GAUGE_PERIOD_S = 0.5


class VisionModel:
    """Loads its model once, warms it up, and streams deltas from the engine's batches."""

    def __init__(self, config: ModelConfig, log_level: str) -> None:
        configure_logging(log_level)
        self._config = config
        threads = config.threads or torch.get_num_threads()
        torch.set_num_threads(1)  # only the engine's thread computes with more; AsyncEngine tells why
        started = time.monotonic()
        gpus = float(ray.get_runtime_context().get_assigned_resources().get("GPU", 0))
        hold_to_share(pick_device(config.device), gpus)
        self._model = load_model(config)
        limits = engine_limits(config, self._model, gpus)
        warm_up(self._model, limits)
        self._metrics = EngineMetrics(config.name)
        self._engine = AsyncEngine(
            self._model, limits, config.max_waiting, config.retry_after_s, self._metrics, threads
        )
        self._gauges: asyncio.Task[None] | None = None
        logger.info(
            "%s is ready on %s after %.1f s, with %.0f MiB for keys and values",
            config.name,
            self._model.device,
            time.monotonic() - started,
            limits.kv_bytes / 2**20,
        )

    async def generate(self, request: VisionRequest, *pictures: ProcessedImage) -> AsyncGenerator[Delta, None]:
        """The answer's deltas; the first carries the pictures' warnings. Closing the stream ends the work."""
        request_id.set(request.id)
        self._show_gauges()
        self._engine.check_room(request)
        if request.remaining <= 0:
            raise DeadlineExceeded("the deadline passed before the model saw the request", "deadline")
        prompt = await asyncio.to_thread(self._model.prepare, request, [picture.pixels for picture in pictures])
        warnings = _warnings(pictures)
        said: list[str] = []
        async with aclosing(self._engine.generate(request, prompt)) as deltas:
            async for delta in deltas:
                said.append(delta.text)
                if delta.finish_reason is not None and isinstance(request.task, Detect | Point):
                    delta = self._located(delta, request, "".join(said), prompt, pictures[0])
                yield dataclasses.replace(delta, warnings=warnings) if warnings else delta
                warnings = ()

    async def info(self) -> ModelInfo:
        return ModelInfo(
            name=self._config.name,
            checkpoint=self._config.checkpoint,
            family=self._config.family,
            device=self._model.device,
            tasks=tuple(sorted(self._model.tasks)),
        )

    async def check_health(self) -> None:
        """Called by Serve from time to time; it replaces a replica whose engine has stopped."""
        self._show_gauges()
        if self._engine.failure is not None:
            raise RuntimeError(f"the engine has stopped: {self._engine.failure!r}")

    def _located(
        self, delta: Delta, request: VisionRequest, text: str, prompt: Prompt, picture: ProcessedImage
    ) -> Delta:
        """The answer's last delta with what it found, in the original picture's coordinates."""
        regions, locations = self._model.locate(request.task, text, prompt)
        if isinstance(request.task, Detect):
            boxes = (picture.geometry.box(r.x_min, r.y_min, r.x_max, r.y_max) for r in regions)
            return dataclasses.replace(delta, regions=tuple(Region(*box) for box in boxes))
        points = (picture.geometry.point(location.x, location.y) for location in locations)
        return dataclasses.replace(delta, locations=tuple(Location(*point) for point in points))

    def _show_gauges(self) -> None:
        """From the first request or check on, for as long as the replica lives."""
        if self._gauges is None:
            self._gauges = asyncio.create_task(self._keep_gauges())

    async def _keep_gauges(self) -> None:
        while True:
            self._metrics.gauges(self._engine.gauges)
            await asyncio.sleep(GAUGE_PERIOD_S)


def engine_limits(config: ModelConfig, model: Model, gpus: float) -> Limits:
    """What the engine may take. Raises ``MemoryError`` where the replica's share of a GPU is too small."""
    kept = config.feature_cache + config.prefix_cache
    return Limits(
        max_batch_size=config.max_batch_size,
        kv_bytes=kv_budget(model.device, gpus, kept, config.kv_cache),
        feature_bytes=config.feature_cache,
        prefix_bytes=config.prefix_cache,
        prefill_tokens=config.max_prefill_tokens,
        stall_s=config.max_stall_s,
    )


def _warnings(pictures: Sequence[ProcessedImage]) -> tuple[str, ...]:
    """Those of all pictures, by number where there are several."""
    if len(pictures) == 1:
        return pictures[0].warnings
    return tuple(f"picture {n}: {warning}" for n, picture in enumerate(pictures, 1) for warning in picture.warnings)


def warm_up(model: Model, limits: Limits) -> None:
    """One short caption of a gray picture. Raises ``ModelFailed`` where the model can't make it."""
    request = VisionRequest(
        id="warm-up",
        model="",
        task=Caption(),
        deadline=time.time() + 600,
        sampling=SamplingParams(max_tokens=4),
    )
    prompt = model.prepare(request, [np.full((64, 64, 3), 128, np.uint8)])
    engine = Engine(model, limits)
    engine.check_fit(prompt, request.sampling.max_tokens)
    engine.scheduler.add(sequences(request, prompt, model.tokenizer))
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                raise ModelFailed(f"the warm-up failed: {output.error}")
