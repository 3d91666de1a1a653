"""Requests of every category to the pocket checkpoints, their answers from one batch of the engine,
and a comparison of two engines' answers."""

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
from raylens.core.families import family_named
from raylens.core.types import (
    REASONING,
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

TIMEOUT_S = 240.0
"""Timeout of a whole batch."""
TOKENS = 40
TOLERANCE = 1e-3
"""Largest difference between two engines' logprobs or coordinates."""
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
"""Sampling parameters by category of request."""


@dataclass(frozen=True)
class PocketRequest:
    """A request to a pocket checkpoint."""

    category: str
    task: Task
    pixels: Pixels
    sampling: SamplingParams


@dataclass
class Reply:
    """One answer, gathered from its deltas."""

    text: str = ""
    tokens: int = 0
    finish_reason: FinishReason | None = None
    findings: Findings | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)


def caption_requests(count: int, sampling: SamplingParams, seed: int = 3) -> list[PocketRequest]:
    """Return requests for captions of scenes that the pocket models know."""
    return [
        PocketRequest("caption", Caption(Length.LONG), pixels, sampling)
        for _, pixels in _scenes(count, seed)
    ]


def mixed_requests(family: str, rounds: int) -> list[PocketRequest]:
    """Return requests of every category that the family supports, about ``rounds`` scenes."""
    tasks = family_named(family).tasks
    requests: list[PocketRequest] = []
    for number, (subject, pixels) in enumerate(_scenes(rounds, 7)):
        requests += _sampling_requests(number, pixels)
        sampling = SamplingParams(TOKENS)
        if Detect.name in tasks:
            requests.append(PocketRequest("detect", Detect("shape"), pixels, sampling))
        if Point.name in tasks:
            requests.append(PocketRequest("point", Point(subject), pixels, sampling))
        if REASONING in tasks:
            reasoning = Query("How many shapes are there?", reasoning=True)
            requests.append(PocketRequest("reasoning", reasoning, pixels, sampling))
    random.Random(1).shuffle(requests)
    return requests


def _sampling_requests(scene_number: int, pixels: Pixels) -> Iterator[PocketRequest]:
    for category, samplings in SAMPLINGS.items():
        for index, sampling in enumerate(samplings):
            task = Query("What do you see?") if category == "schema" else Caption(Length.LONG)
            if category == SEEDED:
                sampling = replace(sampling, seed=10 * scene_number + index)
            yield PocketRequest(category, task, pixels, sampling)


def answer_all(
    model: Model, requests: Sequence[PocketRequest], batch: int, threads: int
) -> list[list[Reply]]:
    """Send all requests to a new engine at once, and return the replies to each.

    The engine runs ``batch`` sequences together.
    """
    limits = EngineLimits(max_batch_size=batch, kv_bytes=2**30)
    engine = AsyncEngine(model, limits, max_waiting=4 * len(requests), num_threads=threads)

    async def answer() -> list[list[Reply]]:
        async with asyncio.timeout(TIMEOUT_S):
            return await asyncio.gather(*(_answer(engine, model, request) for request in requests))

    try:
        return asyncio.run(answer())
    finally:
        engine.stop()


async def _answer(engine: AsyncEngine, model: Model, request: PocketRequest) -> list[Reply]:
    deadline = time.time() + TIMEOUT_S
    vision_request = VisionRequest("", "", request.task, deadline, request.sampling)
    prompt = model.prepare(vision_request, [request.pixels])
    replies = [Reply() for _ in range(request.sampling.n)]
    async with aclosing(engine.generate(vision_request, prompt)) as deltas:
        async for delta in deltas:
            reply = replies[delta.index]
            reply.text += delta.text
            reply.logprobs += delta.logprobs
            if delta.finish_reason is not None:
                assert delta.usage is not None
                reply.tokens = delta.usage.completion_tokens
                reply.finish_reason = delta.finish_reason
                reply.findings = delta.findings
    return replies


def is_equivalent(reply: Reply, other: Reply) -> bool:
    """Whether two replies are the same, except for rounding in their numbers."""
    if reply.text != other.text:
        return False
    if (reply.tokens, reply.finish_reason) != (other.tokens, other.finish_reason):
        return False
    values, numbers = _flatten([reply.findings and astuple(reply.findings)])
    other_values, other_numbers = _flatten([other.findings and astuple(other.findings)])
    tokens, logprobs = _split_logprobs(reply)
    other_tokens, other_logprobs = _split_logprobs(other)
    return (
        values == other_values
        and tokens == other_tokens
        and _is_close(numbers, other_numbers)
        and _is_close(logprobs, other_logprobs)
    )


def _split_logprobs(reply: Reply) -> tuple[list[bytes], list[float]]:
    """Return the sampled tokens, and all logprobs.

    Top logprobs are sorted by value: the order of two equally likely tokens may differ.
    """
    logprobs = []
    for token in reply.logprobs:
        logprobs.append(token.logprob)
        logprobs += sorted(top.logprob for top in token.top)
    return [token.data for token in reply.logprobs], logprobs


def _is_close(numbers: Sequence[float], others: Sequence[float]) -> bool:
    if len(numbers) != len(others):
        return False
    return bool(np.allclose(numbers, others, rtol=0, atol=TOLERANCE))


def _flatten(values: Iterable[Any]) -> tuple[list[Any], list[float]]:
    """Split nested tuples into their floats, and everything else with the tuples' lengths."""
    others: list[Any] = []
    numbers: list[float] = []
    for value in values:
        if isinstance(value, tuple):
            inner_others, inner_numbers = _flatten(value)
            others += [len(value), *inner_others]
            numbers += inner_numbers
        elif isinstance(value, float):
            numbers.append(value)
        else:
            others.append(value)
    return others, numbers


def _scenes(count: int, seed: int) -> Iterator[tuple[str, Pixels]]:
    """Yield the name of a shape in a random scene, and the scene's pixels."""
    rng = random.Random(seed)
    for _ in range(count):
        scene = random_scene(rng, 400)
        yield scene.shapes[0].name, np.ascontiguousarray(draw(scene, rng))
