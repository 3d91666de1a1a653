"""The runtime that computes here: our engine around a model of one of the families."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import numpy as np
import ray
import torch

from models.memory import hold_to_share, kv_budget, loading
from models.registry import load_model, pick_device
from raylens.core.config import ModelConfig
from raylens.core.errors import ModelFailed
from raylens.core.types import Caption, Delta, SamplingParams, VisionRequest
from raylens.engine.async_engine import AsyncEngine
from raylens.engine.engine import Engine
from raylens.engine.limits import EngineLimits
from raylens.engine.metrics import EngineMetrics, Gauges
from raylens.engine.model import Model, Pixels
from raylens.engine.sequence import sequences

logger = logging.getLogger(__name__)


class EngineRuntime:
    """Implements :class:`models.runtime.Runtime`. Loads its model and warms it up."""

    def __init__(self, config: ModelConfig, metrics: EngineMetrics) -> None:
        threads = config.threads or torch.get_num_threads()
        torch.set_num_threads(
            1
        )  # only the engine's thread computes with more; AsyncEngine tells why
        gpus = float(ray.get_runtime_context().get_assigned_resources().get("GPU", 0))
        hold_to_share(pick_device(config.device), gpus)
        with loading(pick_device(config.device), gpus):
            self._model = load_model(config)
        self.tasks, self.device = self._model.tasks, self._model.device
        limits = engine_limits(config, self._model, gpus)
        warm_up(self._model, limits)
        self._engine = AsyncEngine(
            self._model, limits, config.max_waiting, config.retry_after_s, metrics, threads
        )
        logger.info("%.0f MiB for keys and values", limits.kv_bytes / 2**20)

    @property
    def failure(self) -> BaseException | None:
        """Implements :attr:`models.runtime.Runtime.failure`."""
        return self._engine.failure

    @property
    def gauges(self) -> Gauges:
        """Implements :attr:`models.runtime.Runtime.gauges`."""
        return self._engine.gauges

    def check_capacity(self, request: VisionRequest) -> None:
        """Implements :meth:`models.runtime.Runtime.check_capacity`."""
        self._engine.check_capacity(request)

    async def generate(
        self, request: VisionRequest, pictures: Sequence[Pixels]
    ) -> AsyncGenerator[Delta, None]:
        """Implements :meth:`models.runtime.Runtime.generate`."""
        prompt = await asyncio.to_thread(self._model.prepare, request, pictures)
        async with aclosing(self._engine.generate(request, prompt)) as deltas:
            async for delta in deltas:
                yield delta


def engine_limits(config: ModelConfig, model: Model, gpus: float) -> EngineLimits:
    """What the engine may take. Raises ``MemoryError`` where the replica's share of a GPU is too
    small."""
    kept = config.feature_cache + config.prefix_cache
    return EngineLimits(
        max_batch_size=config.max_batch_size,
        kv_bytes=kv_budget(model.device, gpus, kept, config.kv_cache),
        feature_bytes=config.feature_cache,
        prefix_bytes=config.prefix_cache,
        prefill_tokens=config.max_prefill_tokens,
        max_prefill_slice_s=config.max_prefill_slice_s,
    )


def warm_up(model: Model, limits: EngineLimits) -> None:
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
