"""The baselines: plain ``generate``, one request at a time and in static batches behind
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

from benchmarks.engine.checkpoint import TRANSFORMERS_CLASSES
from benchmarks.engine.generate import Generate, Request
from benchmarks.engine.load import Send, Timeline

BATCH = 8
_batched: Callable[[Any], Any] = serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.05)


class StaticBatches:
    """The Serve deployment of baseline (b)."""

    def __init__(
        self, folder: str, family: str, dtype: torch.dtype, device: str, threads: int
    ) -> None:
        # One thread computes, as in the engine: OpenMP teams of several threads would slow each
        # other down. Ray gives its workers one core, and torch keeps this setting per thread.
        self._executor = ThreadPoolExecutor(
            1, initializer=torch.set_num_threads, initargs=(threads,)
        )
        self._generate = Generate(
            TRANSFORMERS_CLASSES[family].from_pretrained(folder, dtype=dtype).to(device).eval()
        )

    @_batched
    async def caption(self, requests: list[Request]) -> list[int]:
        """Return the number of tokens that were generated for each request.

        Serve gathers the list: a caller sends one request.
        """
        await asyncio.get_running_loop().run_in_executor(self._executor, self._generate, requests)
        return [request.tokens for request in requests]


@contextmanager
def static_batches(
    folder: Path, family: str, dtype: torch.dtype, device: str, threads: int
) -> Iterator[Callable[[Request], Send]]:
    """Run baseline (b) as a Serve application in a Ray cluster of its own.

    The cluster shuts down with the context, to leave the cores to the next measurement.
    """
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

        def make_sender(request: Request) -> Send:
            async def send() -> Timeline:
                timeline = Timeline(request.tokens)
                await handle.caption.remote(request)
                timeline.record_piece()
                return timeline

            return send

        yield make_sender
    finally:
        serve.shutdown()
        ray.shutdown()


def generate_alone(generate: Generate, request: Request) -> Timeline:
    """Run one request of baseline (a). The whole answer arrives as one piece."""
    timeline = Timeline(request.tokens)
    generate([request])
    timeline.record_piece()
    return timeline
