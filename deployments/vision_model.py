"""The deployment that holds one vision-language model; the configuration names as many of it as there are models."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import ray
import torch

from deployments.engine_metrics import EngineMetrics
from models.memory import hold_to_share, kv_budget
from models.registry import load_model, pick_device
from preprocessing.geometry import Geometry
from preprocessing.pipeline import ProcessedImage
from raylens.config import ModelConfig
from raylens.engine.async_engine import AsyncEngine
from raylens.engine.engine import Engine
from raylens.engine.limits import Limits
from raylens.engine.model import Model
from raylens.engine.sequence import sequences
from raylens.errors import DeadlineExceeded, ModelFailed
from raylens.logs import configure_logging, request_id
from raylens.types import (
    Caption,
    Delta,
    Found,
    Location,
    ModelInfo,
    Query,
    Region,
    SamplingParams,
    Task,
    VisionRequest,
)

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
        if pictures:
            request = replace(request, task=in_processed(request.task, pictures[0].geometry))
        prompt = await asyncio.to_thread(self._model.prepare, request, [picture.pixels for picture in pictures])
        warnings = _warnings(pictures)
        async with aclosing(self._engine.generate(request, prompt)) as deltas:
            async for delta in deltas:
                if delta.found is not None and pictures:
                    delta = replace(delta, found=in_original(delta.found, pictures[0].geometry))
                yield replace(delta, warnings=warnings) if warnings else delta
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


def in_original(found: Found, geometry: Geometry) -> Found:
    """What was found in a processed picture, in the coordinates of the original."""
    regions, locations, reasoning = found.regions, found.locations, found.reasoning
    if regions is not None:
        regions = tuple(_region(region, geometry) for region in regions)
    if locations is not None:
        locations = _locations(locations, geometry)
    if reasoning is not None:
        groundings = (replace(part, points=_locations(part.points, geometry)) for part in reasoning.groundings)
        reasoning = replace(reasoning, groundings=tuple(groundings))
    return Found(regions, locations, reasoning)


def in_processed(task: Task, geometry: Geometry) -> Task:
    """A task about places in the original picture, in the coordinates of the processed one."""
    if not isinstance(task, Query) or not task.places:
        return task
    back = geometry.inverse()
    places = (
        _region(place, back) if isinstance(place, Region) else Location(*back.point(place.x, place.y))
        for place in task.places
    )
    return replace(task, places=tuple(places))


def _region(region: Region, geometry: Geometry) -> Region:
    return Region(*geometry.box(region.x_min, region.y_min, region.x_max, region.y_max))


def _locations(points: Sequence[Location], geometry: Geometry) -> tuple[Location, ...]:
    return tuple(Location(*geometry.point(point.x, point.y)) for point in points)


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
