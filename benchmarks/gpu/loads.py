"""Loads that run from the bytes of a JPEG to the last token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

from benchmarks.engine.bench import HOUR, EngineClient
from benchmarks.engine.generate import Request
from benchmarks.engine.load import LoadResult, Send, Timeline, drive
from benchmarks.gpu.pixels import preprocess
from benchmarks.gpu.setup import Setup, Size
from benchmarks.gpu.subjects import Subject
from raylens.core.types import Task, VisionRequest
from raylens.engine.async_engine import AsyncEngine
from raylens.engine.limits import EngineLimits
from raylens.engine.model import Model, Pixels, Prompt

TARGET_SECONDS = 3.5
"""Intended duration of a load."""
TIMEOUT_S = 120.0
"""Timeout of a load."""
MAX_REQUESTS = 640
"""Maximum number of requests of a load."""


@dataclass(frozen=True)
class Workload:
    """Requests that differ only in their picture."""

    task: Task
    size: Size
    tokens: int
    same_picture: bool = False

    def __str__(self) -> str:
        prefix = "the same picture, " if self.same_picture else ""
        return f"{prefix}{self.size[0]}×{self.size[1]}, {self.tokens} tokens"


@dataclass(frozen=True)
class Measurement:
    """Result of a load."""

    load: LoadResult
    preprocess_s: float
    """Mean seconds to preprocess a picture."""
    prepare_s: float
    """Mean seconds to prepare a prompt."""
    prompt: Prompt
    """One of the prompts."""


class Frontend:
    """Turns JPEGs into prompts as the server does.

    Other processes preprocess the pictures. A thread beside the engine's prepares the prompts.
    ``preprocess_s`` and ``prepare_s`` record the seconds of each call.
    """

    def __init__(self, setup: Setup, model: Model, task: Task) -> None:
        self.preprocess_s: list[float] = []
        self.prepare_s: list[float] = []
        self._model = model
        self._task = task
        self._processes = setup.processes
        self._threads = ThreadPoolExecutor(setup.threads, "frontend")

    def prompts(self, jpegs: Sequence[bytes]) -> list[Prompt]:
        return [
            self._prepare(pixels, seconds)
            for pixels, seconds in self._processes.map(preprocess, jpegs)
        ]

    def make_sender(self, client: EngineClient, jpeg: bytes, tokens: int) -> Send:
        async def send() -> Timeline:
            timeline = Timeline(tokens)
            loop = asyncio.get_running_loop()
            pixels, seconds = await loop.run_in_executor(self._processes, preprocess, jpeg)
            prompt = await loop.run_in_executor(self._threads, self._prepare, pixels, seconds)
            await client.follow(Request(prompt, tokens), timeline)
            return timeline

        return send

    def clear_times(self) -> None:
        """Discard the seconds recorded so far."""
        self.preprocess_s.clear()
        self.prepare_s.clear()

    def close(self) -> None:
        self._threads.shutdown()

    def _prepare(self, pixels: Pixels, preprocess_s: float) -> Prompt:
        started = time.perf_counter()
        request = VisionRequest("", "", self._task, time.time() + HOUR)
        prompt = self._model.prepare(request, [pixels])
        self.preprocess_s.append(preprocess_s)
        self.prepare_s.append(time.perf_counter() - started)
        return prompt


@contextmanager
def run_engine(setup: Setup, model: Model, in_flight: int) -> Iterator[AsyncEngine]:
    """Run a new engine for ``in_flight`` requests at a time; its thread ends with the context."""
    limits = EngineLimits(max_batch_size=in_flight, kv_bytes=(1 if setup.is_tiny else 24) * 2**30)
    engine = AsyncEngine(model, limits, max_waiting=in_flight, num_threads=setup.threads)
    try:
        yield engine
    finally:
        engine.stop()


def measure(setup: Setup, subject: Subject, workload: Workload, in_flight: int) -> Measurement:
    """Measure a load after a warm-up of one whole batch.

    The warm-up captures the CUDA graphs, and its rate sets the number of requests for a load of a
    few seconds. No picture is sent twice, unless the workload is about the same picture.
    """
    frontend = Frontend(setup, subject.model, workload.task)
    warm_up_jpegs = setup.jpegs(workload.size, in_flight)

    async def drive_jpegs(client: EngineClient, jpegs: Sequence[bytes]) -> LoadResult:
        sends = [frontend.make_sender(client, jpeg, workload.tokens) for jpeg in jpegs]
        async with asyncio.timeout(TIMEOUT_S):
            return await drive(sends, in_flight)

    def choose_jpegs(first: int, count: int) -> list[bytes]:
        if workload.same_picture:
            return warm_up_jpegs[:1] * count
        return setup.jpegs(workload.size, first + count)[first:]

    try:
        with run_engine(setup, subject.model, in_flight) as engine:
            client = EngineClient(engine)
            warm_up = asyncio.run(drive_jpegs(client, choose_jpegs(0, in_flight)))
            count = _count_requests(setup, warm_up.captions_per_s, in_flight)
            jpegs = choose_jpegs(in_flight, count)
            frontend.clear_times()
            load = asyncio.run(drive_jpegs(client, jpegs))
        preprocess_s = fmean(frontend.preprocess_s)
        prepare_s = fmean(frontend.prepare_s)
        (prompt,) = frontend.prompts(warm_up_jpegs[:1])
        return Measurement(load, preprocess_s, prepare_s, prompt)
    finally:
        frontend.close()


def _count_requests(setup: Setup, rate: float, in_flight: int) -> int:
    """Return the number of requests that take ``TARGET_SECONDS`` at this rate.

    It is at least a few batches: all requests start at once, and the last ones end in a batch that
    is partly empty.
    """
    if setup.is_tiny:
        return in_flight + 1
    return int(min(MAX_REQUESTS, max(4, 2.5 * in_flight, TARGET_SECONDS * rate)))
