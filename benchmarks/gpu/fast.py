"""Stage *fast*: requests a second, beside the card's limits, transformers' static batches and
published figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial

import torch

from benchmarks.engine.checkpoint import TRANSFORMERS_CLASSES
from benchmarks.engine.decode import measure_decode_step
from benchmarks.engine.generate import Generate
from benchmarks.engine.limits import measure_seconds, run_in_thread
from benchmarks.engine.load import Percentiles
from benchmarks.gpu.loads import Frontend, Measurement, Workload, measure
from benchmarks.gpu.results import Line, StagePart, make_goal_line
from benchmarks.gpu.setup import Setup
from benchmarks.gpu.subjects import FAMILY_BY_MODEL
from raylens.core.types import Caption, Query

VGA = (640, 480)
SHORT = Query("What is in this picture?")
WORKLOADS = {
    "moondream2": (
        Workload(Caption(), (378, 378), 30),
        Workload(Caption(), VGA, 30),
        Workload(SHORT, (378, 378), 3),
    ),
    "qwen2.5-vl-7b": (Workload(Caption(), VGA, 128),),
    "qwen2.5-vl-3b": (Workload(Caption(), VGA, 128),),
    "smolvlm2-2.2b": (Workload(Caption(), VGA, 128),),
}
EXTRA_WORKLOADS = {
    "moondream2": (
        Workload(SHORT, VGA, 3),
        Workload(SHORT, (378, 378), 3, same_picture=True),
    )
}
"""Measured after the workloads of every model."""
PUBLISHED = {
    ("moondream2", 3, 1): "its own engine, cached prefix: 41.9",
    ("moondream2", 3, 64): "its own engine, cached prefix: 57.0",
    ("moondream2", 30, 1): "its own engine: 16.2",
    ("moondream2", 30, 64): "its own engine: 48.8",
    ("qwen2.5-vl-3b", 128, 64): "vLLM, bound by its front end: 4.3",
    ("qwen2.5-vl-7b", 128, 64): "vLLM, bound by its front end: 3.1",
}
"""Published requests a second on an H100, by model, tokens and requests in flight."""
GOALS = {
    ("moondream2", 30, 64): 50.0,
    ("moondream2", 30, 16): 50.0,
    ("qwen2.5-vl-7b", 128, 64): 10.0,
}
"""Minimum requests a second, by model, tokens and requests in flight."""
DECODE_GOAL = 0.6
"""Minimum share of the memory's limit of Qwen2.5-VL-7B's decode steps of one row."""
CONTEXT = 500
"""Tokens in the cache before the first of the decode steps alone."""
STEPS = 32
SHORTENING = 4
"""``generate`` stops at this fraction of the tokens for a single request, which is slow."""


def parts(setup: Setup) -> Iterator[StagePart]:
    batches = (4, 1) if setup.is_tiny else (64, 16, 1)
    yield StagePart("limits", partial(_measure_card, setup))
    for name in setup.models:
        decode = partial(_measure_decode, setup, name, batches[::-1])
        yield StagePart(f"{name}, decode", decode)
        yield from _load_parts(setup, name, WORKLOADS[name], batches)
    for some_batches in (batches[:1], batches[1:]):
        for name in setup.models:
            if FAMILY_BY_MODEL[name] in TRANSFORMERS_CLASSES:  # not Moondream
                yield from _generate_parts(setup, name, some_batches)
    for name in setup.models:
        yield from _load_parts(setup, name, EXTRA_WORKLOADS.get(name, ()), batches)


def _load_parts(
    setup: Setup, name: str, workloads: Sequence[Workload], batches: Sequence[int]
) -> Iterator[StagePart]:
    for workload in workloads:
        scaled = _scale_workload(setup, workload)
        for in_flight in batches:
            load = partial(_measure_load, setup, name, scaled, in_flight)
            yield StagePart(f"{name}, {scaled}, {in_flight} in flight", load)


def _generate_parts(setup: Setup, name: str, batches: Sequence[int]) -> Iterator[StagePart]:
    workload = _scale_workload(setup, WORKLOADS[name][0])
    for batch in batches:
        generate = partial(_measure_generate, setup, name, workload, batch)
        yield StagePart(f"{name}, generate, batch {batch}", generate)


def _scale_workload(setup: Setup, workload: Workload) -> Workload:
    return replace(workload, tokens=min(workload.tokens, 6)) if setup.is_tiny else workload


def _measure_card(setup: Setup) -> Iterator[Line]:
    yield Line(str(setup.card), asdict(setup.card))


def _measure_load(setup: Setup, name: str, workload: Workload, in_flight: int) -> Iterator[Line]:
    """Measure the engine, from a JPEG's bytes to the last token."""
    key = (name, workload.tokens, in_flight)
    subject = setup.subject(name)
    measurement = measure(setup, subject, workload, in_flight)
    rate = measurement.load.captions_per_s
    work = subject.least_work(measurement.prompt, workload.tokens, in_flight)
    share = None if workload.same_picture else work.seconds(setup.card.machine) * rate
    yield _load_line(measurement, share, PUBLISHED.get(key))
    goal = None if setup.is_tiny else GOALS.get(key)
    if goal is not None:
        yield make_goal_line(f"{workload}, {in_flight} in flight, requests/s", rate, goal)


def _load_line(measurement: Measurement, share: float | None, published: str | None) -> Line:
    load = measurement.load
    preprocess_ms = 1000 * measurement.preprocess_s
    prepare_ms = 1000 * measurement.prepare_s
    phrases = [
        f"{load.captions_per_s:.2f} requests/s, {load.tokens_per_s:.0f} tokens/s",
        f"first token {_format_percentiles(load.first)} ms",
        f"between tokens {_format_percentiles(load.between)} ms",
    ]
    if share is not None:
        phrases.append(f"{share:.0%} of the limit")
    phrases.append(f"front end {preprocess_ms:.0f}+{prepare_ms:.0f} ms")
    phrases.append(f"{len(load.answers)} requests in {load.seconds:.1f} s")
    suffix = f" [{published}]" if published else ""
    figures = {
        "requests_per_s": load.captions_per_s,
        "tokens_per_s": load.tokens_per_s,
        "first_ms": load.first,
        "gap_ms": load.between,
        "of_limit": share,
        "front_ms": preprocess_ms + prepare_ms,
        "preprocess_ms": preprocess_ms,
        "prepare_ms": prepare_ms,
        "requests": len(load.answers),
        "seconds": load.seconds,
        "prompt_tokens": len(measurement.prompt.token_ids),
        "published": published,
    }
    return Line("; ".join(phrases) + suffix, figures)


def _format_percentiles(percentiles: Percentiles | None) -> str:
    return "–" if percentiles is None else f"{percentiles[0]:.0f}/{percentiles[1]:.0f}"


def _measure_generate(setup: Setup, name: str, workload: Workload, batch: int) -> Iterator[Line]:
    """Measure transformers' ``generate`` on a batch whose pixels are ready: it has no front end."""
    subject = setup.subject(name, reference=True)
    frontend = Frontend(setup, subject.model, workload.task)
    try:
        prompts = frontend.prompts(setup.jpegs(workload.size, batch))
    finally:
        frontend.close()
    generate = Generate(subject.reference)
    inputs = generate.inputs(prompts)
    tokens = max(2, workload.tokens // SHORTENING) if batch == 1 else workload.tokens

    def measure_whole_answer() -> float:
        """Return the seconds of the whole answer, extrapolated if only a part is generated."""
        generate.answer(generate.inputs(prompts[:1]), 2)
        first_s = _time_generate(generate, inputs, 1, setup.device)
        seconds = _time_generate(generate, inputs, tokens, setup.device)
        if tokens == workload.tokens:
            return seconds
        return first_s + (seconds - first_s) * (workload.tokens - 1) / (tokens - 1)

    seconds = run_in_thread(measure_whole_answer, setup.threads)
    rate = batch / seconds
    work = subject.least_work(prompts[0], workload.tokens, batch)
    share = work.seconds(setup.card.machine) * rate
    phrases = [
        f"{rate:.2f} requests/s, {rate * workload.tokens:.0f} tokens/s",
        f"{share:.0%} of the limit",
        "no front end",
    ]
    if tokens < workload.tokens:
        phrases.append(f"extrapolated from {tokens} of {workload.tokens} tokens")
    figures = {
        "requests_per_s": rate,
        "of_limit": share,
        "seconds": seconds,
        "said_tokens": tokens,
    }
    yield Line("; ".join(phrases), figures)


def _time_generate(
    generate: Generate, inputs: dict[str, torch.Tensor], tokens: int, device: str
) -> float:
    return measure_seconds(partial(generate.answer, inputs, tokens), device)


def _measure_decode(setup: Setup, name: str, batches: tuple[int, ...]) -> Iterator[Line]:
    """Measure decode steps without an engine around them."""
    subject = setup.subject(name)
    context = 60 if setup.is_tiny else CONTEXT
    steps = 8 if setup.is_tiny else STEPS
    for rows in batches:
        measure_step = partial(measure_decode_step, subject.model, rows, context, steps)
        seconds = run_in_thread(measure_step, setup.threads)
        work = subject.text.decode(rows, context + steps / 2)
        share = work.seconds(setup.card.machine) / seconds
        ms = 1000 * seconds
        figures = {"rows": rows, "ms": ms, "of_limit": share}
        yield Line(f"batch {rows}: {ms:.2f} ms a step, {share:.0%} of the memory's limit", figures)
        if name == "qwen2.5-vl-7b" and rows == 1 and not setup.is_tiny:
            text = "a decode step at batch 1, share of the memory's limit"
            yield make_goal_line(text, share, DECODE_GOAL)
