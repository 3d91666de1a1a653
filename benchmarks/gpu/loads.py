"""Loads from the bytes of a JPEG to the last token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

from benchmarks.engine.bench import HOUR, EngineClient
from benchmarks.engine.generate import Question
from benchmarks.engine.load import Answer, Ask, Load, drive
from benchmarks.gpu.pixels import preprocess
from benchmarks.gpu.setup import Setup, Size
from benchmarks.gpu.subjects import Subject
from raylens.core.types import Task, VisionRequest
from raylens.engine.async_engine import AsyncEngine
from raylens.engine.limits import EngineLimits
from raylens.engine.model import Model, Pixels, Prompt

SECONDS, MOST_SECONDS = 3.5, 120.0
"""That a load should take, and may take."""
MOST = 640
"""Requests of a load."""


@dataclass(frozen=True)
class Workload:
    """Requests that differ in their picture."""

    task: Task
    size: Size
    tokens: int
    same: bool = False
    """All show the same picture."""

    def __str__(self) -> str:
        shown = "the same picture, " if self.same else ""
        return f"{shown}{self.size[0]}×{self.size[1]}, {self.tokens} tokens"


@dataclass(frozen=True)
class Measured:
    load: Load
    preprocess_s: float
    """Of a picture, the mean."""
    prepare_s: float
    """Of a prompt, the mean."""
    prompt: Prompt
    """One of them."""


class Front:
    """From a JPEG to a prompt, as the server does it: other processes preprocess, and a prompt is
    prepared in a thread beside the engine's. ``preprocess_s`` and ``prepare_s`` are the seconds
    that each took."""

    def __init__(self, setup: Setup, model: Model, task: Task) -> None:
        self.preprocess_s: list[float] = []
        self.prepare_s: list[float] = []
        self._model, self._task = model, task
        self._processes = setup.processes
        self._threads = ThreadPoolExecutor(setup.threads, "front")

    def prompts(self, jpegs: Sequence[bytes]) -> list[Prompt]:
        return [self._prepare(*made) for made in self._processes.map(preprocess, jpegs)]

    def asking(self, client: EngineClient, jpeg: bytes, tokens: int) -> Ask:
        async def ask() -> Answer:
            answer, loop = Answer(tokens), asyncio.get_running_loop()
            made = await loop.run_in_executor(self._processes, preprocess, jpeg)
            prompt = await loop.run_in_executor(self._threads, self._prepare, *made)
            await client.follow(Question(prompt, tokens), answer)
            return answer

        return ask

    def forget(self) -> None:
        """What was measured so far."""
        self.preprocess_s.clear()
        self.prepare_s.clear()

    def close(self) -> None:
        self._threads.shutdown()

    def _prepare(self, pixels: Pixels, preprocess_s: float) -> Prompt:
        started = time.perf_counter()
        prompt = self._model.prepare(
            VisionRequest("", "", self._task, time.time() + HOUR), [pixels]
        )
        self.preprocess_s.append(preprocess_s)
        self.prepare_s.append(time.perf_counter() - started)
        return prompt


@contextmanager
def running(setup: Setup, model: Model, in_flight: int) -> Iterator[AsyncEngine]:
    """An engine of its own, for so many requests at a time; its thread ends with the context."""
    limits = EngineLimits(max_batch_size=in_flight, kv_bytes=(1 if setup.is_tiny else 24) * 2**30)
    engine = AsyncEngine(model, limits, max_waiting=in_flight, threads=setup.threads)
    try:
        yield engine
    finally:
        engine.stop()


def measure(setup: Setup, subject: Subject, workload: Workload, in_flight: int) -> Measured:
    """A load, after a whole batch that captures what is replayed, and says how many requests take a
    few seconds. No picture comes twice."""
    front = Front(setup, subject.model, workload.task)
    pictures = setup.jpegs(workload.size, in_flight)

    async def load(client: EngineClient, jpegs: Sequence[bytes]) -> Load:
        async with asyncio.timeout(MOST_SECONDS):
            return await drive(
                [front.asking(client, jpeg, workload.tokens) for jpeg in jpegs], in_flight
            )

    def shown(first: int, count: int) -> list[bytes]:
        return (
            pictures[:1] * count
            if workload.same
            else setup.jpegs(workload.size, first + count)[first:]
        )

    try:
        with running(setup, subject.model, in_flight) as engine:
            client = EngineClient(engine)
            warm = asyncio.run(load(client, shown(0, in_flight)))
            count = _requests(setup, warm.captions_per_s, in_flight)
            jpegs = shown(in_flight, count)
            front.forget()
            measured = asyncio.run(load(client, jpegs))
        means = fmean(front.preprocess_s), fmean(front.prepare_s)
        return Measured(measured, *means, front.prompts(pictures[:1])[0])
    finally:
        front.close()


def _requests(setup: Setup, rate: float, in_flight: int) -> int:
    """As many as take ``SECONDS`` at this rate, and some batches at least: all begin at once, and
    the last ones end with few beside them."""
    if setup.is_tiny:
        return in_flight + 1
    return int(min(MOST, max(4, 2.5 * in_flight, SECONDS * rate)))
