"""What the engine is measured against: plain ``generate``, alone and in static batches behind
``@serve.batch``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from ray import serve

from benchmarks.engine.checkpoint import REFERENCES
from benchmarks.engine.generate import Generate, Question
from benchmarks.engine.load import Answer, Ask

BATCH = 8
_batched: Callable[[Any], Any] = serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.05)


class StaticBatches:
    """The deployment of (b)."""

    def __init__(
        self, folder: str, family: str, dtype: torch.dtype, device: str, threads: int
    ) -> None:
        # One thread computes, as in the engine: OpenMP's teams of several would slow each other.
        # Ray gives its workers one core; the setting belongs to the thread.
        self._computing = ThreadPoolExecutor(
            1, initializer=torch.set_num_threads, initargs=(threads,)
        )
        self._generate = Generate(
            REFERENCES[family].from_pretrained(folder, dtype=dtype).to(device).eval()
        )

    @_batched
    async def caption(self, questions: list[Question]) -> list[int]:
        """A caller sends one question; so many tokens were answered."""
        await asyncio.get_running_loop().run_in_executor(self._computing, self._generate, questions)
        return [question.tokens for question in questions]


@contextmanager
def static_batches(
    folder: Path, family: str, dtype: torch.dtype, device: str, threads: int
) -> Iterator[Callable[[Question], Ask]]:
    """A Serve application in a Ray of its own; gone at the end, so that it shares the cores with
    nothing else."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        serve.start(proxy_location="Disabled")
        deployment = serve.deployment(StaticBatches).options(
            max_ongoing_requests=64,
            ray_actor_options={"num_cpus": 1, "num_gpus": float(device.startswith("cuda"))},
        )
        application = deployment.bind(str(folder), family, dtype, device, threads)
        handle = serve.run(application, name="static-batches", route_prefix=None)

        def asking(question: Question) -> Ask:
            async def ask() -> Answer:
                answer = Answer(question.tokens)
                await handle.caption.remote(question)
                answer.arrived()
                return answer

            return ask

        yield asking
    finally:
        serve.shutdown()
        ray.shutdown()


def alone(generate: Generate, question: Question) -> Answer:
    """(a): the answer comes whole."""
    answer = Answer(question.tokens)
    generate([question])
    answer.arrived()
    return answer
