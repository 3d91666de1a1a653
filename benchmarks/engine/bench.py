"""What all rows share: the options, the weights in their two forms, the machine's limits, and
requests."""

from __future__ import annotations

import io
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.engine.checkpoint import Checkpoint, build
from benchmarks.engine.generate import Generate, Question
from benchmarks.engine.limits import Machine, Text, Tower, Work, in_a_thread, measure_machine
from benchmarks.engine.load import Answer, Ask, Load
from benchmarks.photograph import photograph
from models.linear import Quantize
from models.options import DEFAULTS, LoadOptions
from raylens.core.types import (
    Chat,
    Detail,
    ImagePart,
    Message,
    Role,
    SamplingParams,
    TextPart,
    VisionRequest,
)
from raylens.engine.async_engine import AsyncEngine
from raylens.engine.limits import EngineLimits
from raylens.engine.model import Model, Prompt

T = TypeVar("T")
QUESTION = "Describe this image."
KV_BYTES = 3 * 2**30
HOUR = 3600.0
DEFAULT_TILES_PER_STEP = DEFAULTS.tiles


@dataclass(frozen=True)
class Options:
    family: str
    scale: str
    dtype: str
    device: str
    quantize: Quantize | None
    threads: int
    tiles_per_step: int
    short: bool
    """Few requests and tokens: shows that everything runs, and measures nothing."""

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


class Bench:
    """Each part is made when a row first needs it."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.options = options
        self._folder = folder
        self._seeds = itertools.count()
        self._rng = random.Random(5)
        self.machines: list[Machine] = []
        self.engine_alone: Load | None = None
        """One tile through the engine, for the rows that compare with it."""

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return build(
            self.options.family, self.options.scale, self.options.torch_dtype, self.options.device
        )

    @cached_property
    def folder(self) -> Path:
        """The checkpoint as files, for other processes."""
        self.checkpoint.save(self._folder)
        return self._folder

    @cached_property
    def generate(self) -> Generate:
        return Generate(self.checkpoint.model)

    @cached_property
    def model(self) -> Model:
        options = self.options
        return self.checkpoint.load(
            LoadOptions(
                dtype=options.torch_dtype,
                device=options.device,
                tiles_per_step=options.tiles_per_step,
                quantize=options.quantize,
            )
        )

    @cached_property
    def tower(self) -> Tower:
        return Tower.of(self.checkpoint.model.config)

    @cached_property
    def text(self) -> Text:
        return Text.of(self.checkpoint.model.config, self._itemsize, self.model.kv_shape)

    @property
    def machine(self) -> Machine:
        """As it was last measured."""
        return self.machines[-1]

    @property
    def limits(self) -> str:
        """From the least to the most that was measured of the machine's memory."""
        least, most = (
            end(self.machines, key=lambda machine: machine.gigabytes) for end in (min, max)
        )
        return f"{least} to {most}"

    def measure(self) -> Machine:
        """What the machine can do now: others' work on it changes that from one minute to the next."""
        options = self.options
        patches = self.question(1).prompt.pictures[0].tokens * self.tower.merged
        work = partial(
            measure_machine,
            self.tower,
            (patches, patches * options.tiles_per_step),
            options.torch_dtype,
            options.device,
            options.quantize,
        )
        self.machines.append(self.compute(work))
        return self.machine

    @property
    def _itemsize(self) -> int:
        return 1 if self.options.quantize == "int8" else self.options.torch_dtype.itemsize

    def compute(self, work: Callable[[], T]) -> T:
        """What is measured outside an engine, with all of the threads."""
        return in_a_thread(work, self.options.threads)

    def count(self, requests: int) -> int:
        return min(requests, 2) if self.options.short else requests

    def length(self, tokens: int) -> int:
        return max(4, tokens // 16) if self.options.short else tokens

    def jpeg(self, detail: Detail = Detail.LOW) -> bytes:
        """A picture that was not shown before, of one tile or of as many as the checkpoint allows."""
        shape = self.checkpoint.shape
        side = shape.tile * (shape.tiles_per_side if detail is Detail.HIGH else 1)
        return photograph(side, side, next(self._seeds))

    def question(self, tokens: int, detail: Detail = Detail.LOW) -> Question:
        """About a picture that was not shown before."""
        return Question(self.prompt(pixels_of(self.jpeg(detail)), detail), tokens)

    def prompt(self, pixels: NDArray[np.uint8], detail: Detail, text: str = QUESTION) -> Prompt:
        chat = Chat((Message(Role.USER, (ImagePart(0, detail), TextPart(text))),))
        return self.model.prepare(VisionRequest("", "", chat, time.time() + HOUR), [pixels])

    def questions(self, count: int, tokens: int, detail: Detail = Detail.LOW) -> list[Question]:
        return [self.question(tokens, detail) for _ in range(count)]

    def random_lengths(self, count: int, shortest: int, longest: int) -> list[int]:
        return [
            self._rng.randint(self.length(shortest), self.length(longest)) for _ in range(count)
        ]

    def random_gaps(self, count: int, mean: float) -> list[float]:
        """Seconds between arrivals at random (a Poisson process)."""
        return [self._rng.expovariate(1 / mean) for _ in range(count)]

    def work(self, questions: Sequence[Question], batch: int) -> Work:
        """The least that these answers take, where decode steps have ``batch`` rows."""
        total = Work()
        for question in questions:
            prompt = question.prompt
            for picture in prompt.pictures:
                total += self.tower.work(picture.tokens, 0)
            total += Work(self.tower.work(0, self._itemsize).bytes)
            total += self.text.prefill(len(prompt.token_ids))
            total += self.text.answer(len(prompt.token_ids), question.tokens, batch)
        return total

    @contextmanager
    def engine(self, batch: int) -> Iterator[EngineClient]:
        """An engine of its own, warmed up; its thread ends with the context."""
        engine = AsyncEngine(
            self.model,
            EngineLimits(max_batch_size=batch, kv_bytes=KV_BYTES),
            max_waiting=64,
            threads=self.options.threads,
        )
        try:
            yield EngineClient(engine)
        finally:
            engine.stop()


class EngineClient:
    """Asks an :class:`AsyncEngine`, and notes when the pieces come."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    def asking(self, question: Question) -> Ask:
        async def ask() -> Answer:
            answer = Answer(question.tokens)
            await self.follow(question, answer)
            return answer

        return ask

    async def follow(self, question: Question, answer: Answer) -> None:
        """Fills ``answer`` as it comes."""
        sampling = SamplingParams(max_tokens=question.tokens)
        # The engine reads no more of a request than this: the prompt holds the rest.
        request = VisionRequest("", "", Chat(()), time.time() + HOUR, sampling)
        async with aclosing(self._engine.generate(request, question.prompt)) as deltas:
            async for delta in deltas:
                answer.arrived()
                if delta.usage is not None:
                    said = delta.usage.completion_tokens
                    assert said == question.tokens, f"{said} tokens instead of {question.tokens}"


def pixels_of(jpeg: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
