"""Loads from the bytes of a JPEG to the last token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

import cv2

from benchmarks.engine.bench import HOUR, EngineClient
from benchmarks.engine.generate import Question
from benchmarks.engine.load import Answer, Ask, Load, drive
from benchmarks.gpu.setup import Setup, Size
from benchmarks.gpu.subjects import Subject
from preprocessing.decode import DecodeLimits
from preprocessing.pipeline import run
from raylens.engine.async_engine import AsyncEngine
from raylens.engine.limits import Limits
from raylens.engine.model import Model, Prompt
from raylens.recipe import DEFAULT
from raylens.types import Task, VisionRequest

LIMITS = DecodeLimits(max_bytes=20 * 2**20, max_pixels=64_000_000, min_side=4, max_side=16_384)
"""The server's."""
SECONDS, MOST_SECONDS = 5.0, 120.0
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
    front_s: float
    """Preprocessing and preparation of a picture, the mean."""
    prompt: Prompt
    """One of them."""


class Front:
    """From a JPEG to a prompt, in threads, as the server does it; ``seconds`` are those of each picture."""

    def __init__(self, model: Model, task: Task, threads: int) -> None:
        cv2.setNumThreads(1)  # several pictures at a time use the cores better
        self.seconds: list[float] = []
        self._model, self._task = model, task
        self._pool = ThreadPoolExecutor(threads, "front")

    def prepare(self, jpeg: bytes) -> Prompt:
        started = time.perf_counter()
        pixels = run(jpeg, DEFAULT, LIMITS).pixels
        prompt = self._model.prepare(VisionRequest("", "", self._task, time.time() + HOUR), [pixels])
        self.seconds.append(time.perf_counter() - started)
        return prompt

    def prepare_all(self, jpegs: Sequence[bytes]) -> list[Prompt]:
        return list(self._pool.map(self.prepare, jpegs))

    def asking(self, client: EngineClient, jpeg: bytes, tokens: int) -> Ask:
        async def ask() -> Answer:
            answer = Answer(tokens)
            prompt = await asyncio.get_running_loop().run_in_executor(self._pool, self.prepare, jpeg)
            await client.follow(Question(prompt, tokens), answer)
            return answer

        return ask

    def close(self) -> None:
        self._pool.shutdown()


@contextmanager
def running(setup: Setup, model: Model, in_flight: int) -> Iterator[AsyncEngine]:
    """An engine of its own, for so many requests at a time; its thread ends with the context."""
    limits = Limits(max_batch_size=in_flight, kv_bytes=(1 if setup.is_tiny else 24) * 2**30)
    engine = AsyncEngine(model, limits, max_waiting=in_flight, threads=setup.threads)
    try:
        yield engine
    finally:
        engine.stop()


def measure(setup: Setup, subject: Subject, workload: Workload, in_flight: int) -> Measured:
    """A load, after a whole batch that captures what is replayed, and says how many requests take a few seconds. No
    picture comes twice."""
    front = Front(subject.model, workload.task, setup.threads)
    pictures = setup.jpegs(workload.size, in_flight)

    async def load(client: EngineClient, jpegs: Sequence[bytes]) -> Load:
        async with asyncio.timeout(MOST_SECONDS):
            return await drive([front.asking(client, jpeg, workload.tokens) for jpeg in jpegs], in_flight)

    def shown(first: int, count: int) -> list[bytes]:
        return pictures[:1] * count if workload.same else setup.jpegs(workload.size, first + count)[first:]

    try:
        with running(setup, subject.model, in_flight) as engine:
            client = EngineClient(engine)
            warm = asyncio.run(load(client, shown(0, in_flight)))
            count = _requests(setup, warm.captions_per_s, in_flight)
            jpegs = shown(in_flight, count)
            front.seconds.clear()
            measured = asyncio.run(load(client, jpegs))
        return Measured(measured, fmean(front.seconds), front.prepare(pictures[0]))
    finally:
        front.close()


def _requests(setup: Setup, rate: float, in_flight: int) -> int:
    """As many as take ``SECONDS`` at this rate, and some batches at least: all begin at once, and the last ones end
    with few beside them."""
    if setup.is_tiny:
        return in_flight + 1
    return int(min(MOST, max(4, 2.5 * in_flight, SECONDS * rate)))
