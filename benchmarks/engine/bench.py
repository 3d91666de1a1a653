"""State shared by all rows: options, weights, machine rates, and requests."""

from __future__ import annotations

import io
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.engine.checkpoint import Checkpoint, build
from benchmarks.engine.generate import Generate, Request
from benchmarks.engine.limits import (
    INT4_BYTES,
    Machine,
    TextShape,
    VisionShape,
    Work,
    measure_machine,
    run_in_thread,
)
from benchmarks.engine.load import LoadResult, Send, Timeline
from benchmarks.photograph import draw_photograph
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
DEFAULT_TILES_PER_STEP = DEFAULTS.tiles_per_batch


@dataclass(frozen=True)
class Options:
    """Command-line options of the benchmark."""

    family: str
    scale: str
    dtype: str
    device: str
    quantize: Quantize | None
    threads: int
    tiles_per_step: int
    short: bool
    """Few requests and tokens: a smoke test whose figures mean nothing."""

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


class Bench:
    """Builds each part when a row first needs it."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.options = options
        self._folder = folder
        self._seeds = itertools.count()
        self._rng = random.Random(5)
        self.machines: list[Machine] = []
        """All measurements of the machine, the newest last."""
        self.engine_alone: LoadResult | None = None
        """One tile through the engine, kept for the rows that compare with it."""

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return build(
            self.options.family, self.options.scale, self.options.torch_dtype, self.options.device
        )

    @cached_property
    def folder(self) -> Path:
        """Folder of the saved checkpoint, for other processes."""
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
    def vision(self) -> VisionShape:
        return VisionShape.from_config(self.checkpoint.model.config)

    @cached_property
    def text(self) -> TextShape:
        return TextShape.from_config(
            self.checkpoint.model.config,
            INT4_BYTES if self.options.quantize == "int4" else self._itemsize,
            self.model.kv_spec,
            self._itemsize,
        )

    @property
    def machine(self) -> Machine:
        """Newest measurement of the machine."""
        return self.machines[-1]

    @property
    def limits(self) -> str:
        """Measurements with the lowest and the highest memory bandwidth, in words."""
        bandwidth = attrgetter("gigabytes")
        return f"{min(self.machines, key=bandwidth)} to {max(self.machines, key=bandwidth)}"

    def measure(self) -> Machine:
        """Measure the machine as it is now.

        Other processes on it change its rates from one minute to the next.
        """
        options = self.options
        picture = self.make_request(1).prompt.pictures[0]
        patches = picture.num_tokens * self.vision.patches_per_token
        work = partial(
            measure_machine,
            self.vision,
            (patches, patches * options.tiles_per_step),
            options.torch_dtype,
            options.device,
            options.quantize,
        )
        self.machines.append(self.compute(work))
        return self.machine

    @property
    def _itemsize(self) -> int:
        """Bytes of a weight, except of the text model's layers with ``int4``."""
        return 1 if self.options.quantize else self.options.torch_dtype.itemsize

    def compute(self, work: Callable[[], T]) -> T:
        """Run ``work`` outside an engine, with all threads."""
        return run_in_thread(work, self.options.threads)

    def cap_requests(self, count: int) -> int:
        """Return ``count``, or at most 2 in a short run."""
        return min(count, 2) if self.options.short else count

    def cap_tokens(self, tokens: int) -> int:
        """Return ``tokens``, or a sixteenth of it (at least 4) in a short run."""
        return max(4, tokens // 16) if self.options.short else tokens

    def make_jpeg(self, detail: Detail = Detail.LOW) -> bytes:
        """Return a new picture of one tile or, at high detail, of the checkpoint's maximum."""
        shape = self.checkpoint.shape
        side = shape.tile * (shape.tiles_per_side if detail is Detail.HIGH else 1)
        return draw_photograph(side, side, next(self._seeds))

    def make_request(self, tokens: int, detail: Detail = Detail.LOW) -> Request:
        """Return a request about a new picture."""
        return Request(self.make_prompt(decode_jpeg(self.make_jpeg(detail)), detail), tokens)

    def make_requests(self, count: int, tokens: int, detail: Detail = Detail.LOW) -> list[Request]:
        return [self.make_request(tokens, detail) for _ in range(count)]

    def make_prompt(
        self, pixels: NDArray[np.uint8], detail: Detail, text: str = QUESTION
    ) -> Prompt:
        chat = Chat((Message(Role.USER, (ImagePart(0, detail), TextPart(text))),))
        return self.model.prepare(VisionRequest("", "", chat, time.time() + HOUR), [pixels])

    def draw_lengths(self, count: int, shortest: int, longest: int) -> list[int]:
        """Draw answer lengths in tokens, uniformly between the two bounds."""
        return [
            self._rng.randint(self.cap_tokens(shortest), self.cap_tokens(longest))
            for _ in range(count)
        ]

    def draw_gaps(self, count: int, mean: float) -> list[float]:
        """Draw the seconds between arrivals of a Poisson process."""
        return [self._rng.expovariate(1 / mean) for _ in range(count)]

    def least_work(self, requests: Sequence[Request], batch: int) -> Work:
        """Return the least work that answers all requests, if decode steps have ``batch`` rows."""
        total = Work()
        for request in requests:
            prompt = request.prompt
            for picture in prompt.pictures:
                total += self.vision.work(picture.num_tokens, 0)
            total += Work(self.vision.work(0, self._itemsize).bytes)
            total += self.text.prefill(len(prompt.token_ids))
            total += self.text.answer(len(prompt.token_ids), request.tokens, batch)
        return total

    @contextmanager
    def engine(self, batch: int) -> Iterator[EngineClient]:
        """Run a new engine; its thread ends with the context."""
        engine = AsyncEngine(
            self.model,
            EngineLimits(max_batch_size=batch, kv_bytes=KV_BYTES, max_deltas_per_s=math.inf),
            max_waiting=64,
            num_threads=self.options.threads,
        )
        try:
            yield EngineClient(engine)
        finally:
            engine.stop()


class EngineClient:
    """Sends requests to an :class:`AsyncEngine`, and records when the pieces arrive."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    def make_sender(self, request: Request) -> Send:
        async def send() -> Timeline:
            timeline = Timeline(request.tokens)
            await self.follow(request, timeline)
            return timeline

        return send

    async def follow(self, request: Request, timeline: Timeline) -> None:
        """Send a request, and fill in ``timeline`` as its answer arrives."""
        sampling = SamplingParams(max_tokens=request.tokens)
        # The engine reads nothing else from the request: the prompt holds the rest.
        vision_request = VisionRequest("", "", Chat(()), time.time() + HOUR, sampling)
        async with aclosing(self._engine.generate(vision_request, request.prompt)) as deltas:
            async for delta in deltas:
                timeline.record_piece()
                if delta.finish_reason is not None:
                    assert delta.usage is not None
                    tokens = delta.usage.completion_tokens
                    assert tokens == request.tokens, f"{tokens} tokens instead of {request.tokens}"


def decode_jpeg(jpeg: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
