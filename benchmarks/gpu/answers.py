"""Requests of every kind to the pocket checkpoints, in one batch through the engine, and whether
two engines agree."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import numpy as np

from models.pocket.drawing import draw
from models.pocket.scenes import random_scene
from raylens.core.types import (
    Caption,
    Detect,
    Findings,
    FinishReason,
    Length,
    Point,
    Query,
    SamplingParams,
    Task,
    TokenLogprob,
    VisionRequest,
)
from raylens.engine.async_engine import AsyncEngine
from raylens.engine.limits import EngineLimits
from raylens.engine.model import Model, Pixels

SECONDS = 240.0
"""In which a batch must be answered."""
TOKENS = 40
NEAR = 1e-3
"""How far a logprob or a coordinate may lie from another engine's."""
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "color": {"type": "string", "maxLength": 12},
            "count": {"type": "integer", "maximum": 99},
        },
        "required": ["color", "count"],
        "additionalProperties": False,
    }
)
SEEDED = "seeds"
SAMPLINGS: dict[str, Sequence[SamplingParams]] = {
    "logprobs": [SamplingParams(TOKENS, logprobs=5)],
    "penalties": [
        SamplingParams(TOKENS, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.3)
    ],
    "schema": [SamplingParams(TOKENS, json_schema=SCHEMA)],
    SEEDED: [
        SamplingParams(TOKENS, temperature=1.0, top_p=0.9, n=2),
        SamplingParams(TOKENS, temperature=1.3, top_k=20),
        SamplingParams(TOKENS, temperature=0.8, min_p=0.05),
    ],
}


@dataclass(frozen=True)
class Asked:
    kind: str
    task: Task
    pixels: Pixels
    sampling: SamplingParams


@dataclass
class Said:
    """One answer."""

    text: str = ""
    tokens: int = 0
    reason: FinishReason | None = None
    findings: Findings | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)


def captions(count: int, sampling: SamplingParams, seed: int = 3) -> list[Asked]:
    """Greedy captions of scenes that the pocket models know."""
    return [
        Asked("caption", Caption(Length.LONG), pixels, sampling)
        for _, pixels in _scenes(count, seed)
    ]


def mixed(family: str, rounds: int) -> list[Asked]:
    """Every kind of request that the family can answer, about scenes."""
    asked: list[Asked] = []
    for number, (subject, pixels) in enumerate(_scenes(rounds, 7)):
        for kind, samplings in SAMPLINGS.items():
            for place, sampling in enumerate(samplings):
                seeded = replace(sampling, seed=10 * number + place)
                task = Query("What do you see?") if kind == "schema" else Caption(Length.LONG)
                asked.append(Asked(kind, task, pixels, seeded if kind == SEEDED else sampling))
        plain = SamplingParams(TOKENS)
        if family != "smolvlm":
            asked.append(Asked("detect", Detect("shape"), pixels, plain))
            asked.append(Asked("point", Point(subject), pixels, plain))
        if family == "moondream":
            asked.append(
                Asked(
                    "reasoning", Query("How many shapes are there?", reasoning=True), pixels, plain
                )
            )
    random.Random(1).shuffle(asked)
    return asked


def ask_all(model: Model, asked: Sequence[Asked], batch: int, threads: int) -> list[list[Said]]:
    """The answers to each request, which come to the engine all at once; ``batch`` of them run
    together."""
    limits = EngineLimits(max_batch_size=batch, kv_bytes=2**30)
    engine = AsyncEngine(model, limits, max_waiting=4 * len(asked), threads=threads)

    async def together() -> list[list[Said]]:
        async with asyncio.timeout(SECONDS):
            return await asyncio.gather(*(_answers(engine, model, each) for each in asked))

    try:
        return asyncio.run(together())
    finally:
        engine.stop()


async def _answers(engine: AsyncEngine, model: Model, asked: Asked) -> list[Said]:
    request = VisionRequest("", "", asked.task, time.time() + SECONDS, asked.sampling)
    said = [Said() for _ in range(asked.sampling.n)]
    async with aclosing(engine.generate(request, model.prepare(request, [asked.pixels]))) as deltas:
        async for delta in deltas:
            answer = said[delta.index]
            answer.text += delta.text
            answer.logprobs += delta.logprobs
            if delta.finish_reason is not None:
                assert delta.usage is not None
                answer.tokens, answer.reason, answer.findings = (
                    delta.usage.completion_tokens,
                    delta.finish_reason,
                    delta.findings,
                )
    return said


def agree(one: Said, other: Said) -> bool:
    """Whether two answers say the same, but for rounding in their numbers."""
    if (one.text, one.tokens, one.reason) != (other.text, other.tokens, other.reason):
        return False
    words, numbers = zip(
        *(_flat([said.findings and astuple(said.findings)]) for said in (one, other)), strict=True
    )
    data, likely = zip(*(_logprobs(said) for said in (one, other)), strict=True)
    return words[0] == words[1] and data[0] == data[1] and _near(*numbers) and _near(*likely)


def _logprobs(said: Said) -> tuple[list[bytes], list[float]]:
    """The chosen tokens, and all logprobs; which of two equally likely tokens stands first may
    differ."""
    numbers = [
        number
        for token in said.logprobs
        for number in (token.logprob, *sorted(t.logprob for t in token.top))
    ]
    return [token.data for token in said.logprobs], numbers


def _near(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and bool(np.allclose(one, other, rtol=0, atol=NEAR))


def _flat(values: Iterable[Any]) -> tuple[list[Any], list[float]]:
    """What nested tuples hold: all but floats, and the floats."""
    words: list[Any] = []
    numbers: list[float] = []
    for value in values:
        if isinstance(value, tuple):
            inner = _flat(value)
            words += [len(value), *inner[0]]
            numbers += inner[1]
        elif isinstance(value, float):
            numbers.append(value)
        else:
            words.append(value)
    return words, numbers


def _scenes(count: int, seed: int) -> Iterator[tuple[str, Pixels]]:
    """Names of a shape that is there, and pixels."""
    rng = random.Random(seed)
    for _ in range(count):
        scene = random_scene(rng, 400)
        yield scene.shapes[0].name, np.ascontiguousarray(draw(scene, rng))
