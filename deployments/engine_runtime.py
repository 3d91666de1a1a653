"""The runtime that computes in this process: the engine with a model of one of the families."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import numpy as np
import ray
import torch

from models.memory import (
    kv_cache_bytes,
    limit_gpu_memory,
    make_memory_guard,
    memory_usage,
    report_oversized_weights,
    return_unused_memory,
)
from models.registry import load_model, pick_device
from models.runtime import Runtime
from raylens.core.config import ModelConfig
from raylens.core.errors import ModelFailed
from raylens.core.types import (
    Caption,
    Chat,
    Delta,
    Detect,
    MemoryUsage,
    Message,
    Query,
    Role,
    SamplingParams,
    Task,
    TextPart,
    VisionRequest,
)
from raylens.engine.async_engine import AsyncEngine
from raylens.engine.engine import Engine
from raylens.engine.limits import MIB, EngineLimits
from raylens.engine.metrics import EngineMetrics, Gauges
from raylens.engine.model import Model, Pixels
from raylens.engine.sequence import make_sequences

logger = logging.getLogger(__name__)

WARM_UP_DEADLINE_S = 600


class EngineRuntime(Runtime):
    """Loads a model, warms it up, and runs it in an :class:`AsyncEngine`."""

    def __init__(
        self, config: ModelConfig, metrics: EngineMetrics, vram_threshold: float | None = None
    ) -> None:
        num_threads = config.threads or torch.get_num_threads()
        # Only the engine's thread runs multi-threaded torch operations; see AsyncEngine.
        torch.set_num_threads(1)
        gpus = float(ray.get_runtime_context().get_assigned_resources().get("GPU", 0))
        self._gpus = gpus
        limit_gpu_memory(pick_device(config.device), gpus)
        with report_oversized_weights(pick_device(config.device), gpus):
            self._model = load_model(config)
        self.tasks = self._model.tasks
        self.device = self._model.device
        self.parameters = self._model.parameters
        self.max_pictures = self._model.max_pictures
        self.frames_as_pictures = self._model.frames_as_pictures
        limits = engine_limits(config, self._model, gpus)
        warm_up(self._model, limits)
        return_unused_memory()  # that of reading the checkpoint
        self._engine = AsyncEngine(
            self._model,
            limits,
            config.max_waiting,
            config.retry_after_s,
            metrics,
            num_threads,
            make_memory_guard(self.device, gpus, limits.kv_bytes, vram_threshold),
        )
        logger.info("the KV cache has a budget of %.0f MiB", limits.kv_bytes / MIB)

    @property
    def failure(self) -> BaseException | None:
        return self._engine.failure

    @property
    def gauges(self) -> Gauges:
        return self._engine.gauges

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        return self._model.input_size(width, height)

    def memory_usage(self) -> MemoryUsage:
        return memory_usage(self.device, self._gpus)

    async def clear_memory(self) -> None:
        await self._engine.clear_caches()
        await asyncio.to_thread(return_unused_memory)

    async def configure(self, config: ModelConfig) -> None:
        await self._engine.change_limits(
            config.max_batch_size,
            config.max_waiting,
            config.max_prefill_slice_s,
            config.retry_after_s,
        )

    def check_capacity(self, request: VisionRequest) -> None:
        self._engine.check_capacity(request)

    async def generate(
        self, request: VisionRequest, pictures: Sequence[Pixels]
    ) -> AsyncGenerator[Delta, None]:
        prompt = await asyncio.to_thread(self._model.prepare, request, pictures)
        async with aclosing(self._engine.generate(request, prompt)) as deltas:
            async for delta in deltas:
                yield delta


def engine_limits(config: ModelConfig, model: Model, gpus: float) -> EngineLimits:
    """Return the limits of a replica that has been assigned ``gpus`` GPUs.

    Raises ``MemoryError`` if its share of a GPU is too small.
    """
    other_caches = config.feature_cache + config.prefix_cache
    return EngineLimits(
        max_batch_size=config.max_batch_size,
        kv_bytes=kv_cache_bytes(model.device, gpus, other_caches, config.kv_cache),
        feature_bytes=config.feature_cache,
        prefix_bytes=config.prefix_cache,
        max_prefill_tokens=config.max_prefill_tokens,
        max_prefill_slice_s=config.max_prefill_slice_s,
        max_deltas_per_s=config.max_deltas_per_s,
    )


def warm_up(model: Model, limits: EngineLimits) -> None:
    """Generate a short answer: a gray picture's caption, if the model makes captions.

    Raises ``ModelFailed`` if that fails.
    """
    task, pictures = _warm_up_task(model.tasks)
    request = VisionRequest(
        id="warm-up",
        model="",
        task=task,
        deadline=time.time() + WARM_UP_DEADLINE_S,
        sampling=SamplingParams(max_tokens=4),
    )
    prompt = model.prepare(request, pictures)
    engine = Engine(model, limits)
    engine.check_fit(prompt, request.sampling.max_tokens, task.prompt_field)
    engine.scheduler.add(make_sequences(request, prompt, model.tokenizer))
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                raise ModelFailed(f"the warm-up failed: {output.error}")


def _warm_up_task(tasks: frozenset[str]) -> tuple[Task, list[Pixels]]:
    """Return a task that the model supports, with its pictures."""
    gray = np.full((64, 64, 3), 128, np.uint8)
    if Caption.name in tasks:
        return Caption(), [gray]
    if Query.name in tasks:
        return Query("Hello"), []
    if Chat.name in tasks:
        return Chat((Message(Role.USER, (TextPart("Hello"),)),)), []
    return Detect("cat"), [gray]
