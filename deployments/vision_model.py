"""The deployment that holds one vision-language model; the configuration names as many of it as there are models."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import numpy as np
import torch

from models.registry import load_model
from preprocessing.pipeline import ProcessedImage
from raylens.config import ModelConfig
from raylens.engine.async_engine import AsyncEngine
from raylens.engine.engine import Engine
from raylens.engine.model import Model
from raylens.engine.sequence import sequences
from raylens.errors import DeadlineExceeded, ModelFailed
from raylens.logs import configure_logging, request_id
from raylens.types import Caption, Delta, ModelInfo, SamplingParams, VisionRequest

logger = logging.getLogger(__name__)


class VisionModel:
    """Loads its model once, warms it up, and streams deltas from the engine's batches."""

    def __init__(self, config: ModelConfig, log_level: str) -> None:
        configure_logging(log_level)
        self._config = config
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        started = time.monotonic()
        self._model = load_model(config)
        warm_up(self._model)
        self._engine = AsyncEngine(self._model, config.max_batch_size, config.max_waiting, config.retry_after_s)
        logger.info("%s is ready on %s after %.1f s", config.name, self._model.device, time.monotonic() - started)

    async def generate(self, request: VisionRequest, *pictures: ProcessedImage) -> AsyncGenerator[Delta, None]:
        """The answer's deltas; the first carries the pictures' warnings. Closing the stream ends the work."""
        request_id.set(request.id)
        self._engine.check_room(request.sampling.n)
        if request.remaining <= 0:
            raise DeadlineExceeded("the deadline passed before the model saw the request", "deadline")
        prompt = await asyncio.to_thread(self._model.prepare, request, [picture.pixels for picture in pictures])
        warnings = _warnings(pictures)
        async with aclosing(self._engine.generate(request, prompt)) as deltas:
            async for delta in deltas:
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

    def check_health(self) -> None:
        """Called by Serve, which replaces a replica whose engine has stopped."""
        if self._engine.failure is not None:
            raise RuntimeError(f"the engine has stopped: {self._engine.failure!r}")


def _warnings(pictures: Sequence[ProcessedImage]) -> tuple[str, ...]:
    """Those of all pictures, by number where there are several."""
    if len(pictures) == 1:
        return pictures[0].warnings
    return tuple(f"picture {n}: {warning}" for n, picture in enumerate(pictures, 1) for warning in picture.warnings)


def warm_up(model: Model) -> None:
    """One short caption of a gray picture. Raises ``ModelFailed`` where the model can't make it."""
    request = VisionRequest(
        id="warm-up",
        model="",
        task=Caption(),
        deadline=time.time() + 600,
        sampling=SamplingParams(max_tokens=4),
    )
    prompt = model.prepare(request, [np.full((64, 64, 3), 128, np.uint8)])
    engine = Engine(model, max_batch_size=1)
    engine.scheduler.add(sequences(request, prompt, model.tokenizer))
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                raise ModelFailed(f"the warm-up failed: {output.error}")
