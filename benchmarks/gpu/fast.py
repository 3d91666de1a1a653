"""Stage *fast*: requests a second, beside the card's limits, transformers' static batches and
published figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial

from benchmarks.engine.decode import decode_step
from benchmarks.engine.generate import Generate
from benchmarks.engine.limits import in_a_thread, timed
from benchmarks.engine.load import Percentiles
from benchmarks.gpu.loads import Front, Measured, Workload, measure
from benchmarks.gpu.results import Line, Part, goal
from benchmarks.gpu.setup import Setup
from benchmarks.gpu.subjects import FAMILIES
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
EXTRAS = {"moondream2": (Workload(SHORT, VGA, 3), Workload(SHORT, (378, 378), 3, same=True))}
"""Measured once every model has had its turn."""
PUBLISHED = {
    ("moondream2", 3, 1): "its own engine, cached prefix: 41.9",
    ("moondream2", 3, 64): "its own engine, cached prefix: 57.0",
    ("moondream2", 30, 1): "its own engine: 16.2",
    ("moondream2", 30, 64): "its own engine: 48.8",
    ("qwen2.5-vl-3b", 128, 64): "vLLM, bound by its front end: 4.3",
    ("qwen2.5-vl-7b", 128, 64): "vLLM, bound by its front end: 3.1",
}
"""Requests a second on an H100, by model, tokens and requests in flight."""
GOALS = {
    ("moondream2", 30, 64): 50.0,
    ("moondream2", 30, 16): 50.0,
    ("qwen2.5-vl-7b", 128, 64): 10.0,
}
"""The same, as wanted here."""
DECODE_GOAL = 0.6
"""Of the memory's limit, Qwen2.5-VL-7B's steps of one row."""
CONTEXT, STEPS = 500, 32
SHORTENED = 4
"""``generate`` says so much less to one request alone, which takes long."""


def parts(setup: Setup) -> Iterator[Part]:
    batches = (4, 1) if setup.is_tiny else (64, 16, 1)
    yield Part("limits", partial(_limits, setup))
    for name in setup.models:
        yield Part(f"{name}, decode", partial(_decode, setup, name, batches[::-1]))
        yield from _loads(setup, name, WORKLOADS[name], batches)
    for some in (batches[:1], batches[1:]):
        for name in setup.models:
            if FAMILIES[name] != "moondream":  # transformers has no Moondream
                workload = _given(setup, WORKLOADS[name][0])
                for batch in some:
                    yield Part(
                        f"{name}, generate, batch {batch}",
                        partial(_static, setup, name, workload, batch),
                    )
    for name in setup.models:
        yield from _loads(setup, name, EXTRAS.get(name, ()), batches)


def _loads(
    setup: Setup, name: str, workloads: Sequence[Workload], batches: Sequence[int]
) -> Iterator[Part]:
    for workload in workloads:
        given = _given(setup, workload)
        for in_flight in batches:
            yield Part(
                f"{name}, {given}, {in_flight} in flight",
                partial(_load, setup, name, given, in_flight),
            )


def _given(setup: Setup, workload: Workload) -> Workload:
    return replace(workload, tokens=min(workload.tokens, 6)) if setup.is_tiny else workload


def _limits(setup: Setup) -> Iterator[Line]:
    yield Line(str(setup.card), asdict(setup.card))


def _load(setup: Setup, name: str, workload: Workload, in_flight: int) -> Iterator[Line]:
    """The engine, from a JPEG's bytes to the last token."""
    subject = setup.subject(name)
    measured = measure(setup, subject, workload, in_flight)
    rate = measured.load.captions_per_s
    least = subject.least(measured.prompt, workload.tokens, in_flight).seconds(setup.card.machine)
    share = None if workload.same else least * rate
    yield _line(measured, share, PUBLISHED.get((name, workload.tokens, in_flight)))
    wanted = None if setup.is_tiny else GOALS.get((name, workload.tokens, in_flight))
    if wanted is not None:
        yield goal(f"{workload}, {in_flight} in flight, requests/s", rate, wanted)


def _line(measured: Measured, share: float | None, published: str | None) -> Line:
    load, preprocess_ms, prepare_ms = (
        measured.load,
        1000 * measured.preprocess_s,
        1000 * measured.prepare_s,
    )
    words = [
        f"{load.captions_per_s:.2f} requests/s, {load.tokens_per_s:.0f} tokens/s",
        f"first {_pair(load.first)} ms",
        f"gaps {_pair(load.between)} ms",
        *([] if share is None else [f"{share:.0%} of the limit"]),
        f"front {preprocess_ms:.0f}+{prepare_ms:.0f} ms",
        f"{len(load.answers)} in {load.seconds:.1f} s",
    ]
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
        "prompt_tokens": len(measured.prompt.token_ids),
        "published": published,
    }
    return Line("; ".join(words) + (f" [{published}]" if published else ""), figures)


def _pair(pair: Percentiles | None) -> str:
    return "–" if pair is None else f"{pair[0]:.0f}/{pair[1]:.0f}"


def _static(setup: Setup, name: str, workload: Workload, batch: int) -> Iterator[Line]:
    """transformers' ``generate`` on a batch whose pixels are ready: it has no front end."""
    subject = setup.subject(name, reference=True)
    front = Front(setup, subject.model, workload.task)
    try:
        prompts = front.prompts(setup.jpegs(workload.size, batch))
    finally:
        front.close()
    generate = Generate(subject.reference)
    given = generate.inputs(prompts)
    tokens = max(2, workload.tokens // SHORTENED) if batch == 1 else workload.tokens

    def answer() -> float:
        """Seconds of the whole answer, by those of its first token if not all were said."""
        generate.answer(generate.inputs(prompts[:1]), 2)
        first, said = (
            timed(partial(generate.answer, given, count), setup.device) for count in (1, tokens)
        )
        return (
            said
            if tokens == workload.tokens
            else first + (said - first) * (workload.tokens - 1) / (tokens - 1)
        )

    seconds = in_a_thread(answer, setup.threads)
    rate = batch / seconds
    least = subject.least(prompts[0], workload.tokens, batch).seconds(setup.card.machine)
    words = [
        f"{rate:.2f} requests/s, {rate * workload.tokens:.0f} tokens/s",
        f"{least * rate:.0%} of the limit",
        "no front end",
        *([f"{tokens} of {workload.tokens} tokens, scaled"] if tokens < workload.tokens else []),
    ]
    figures = {
        "requests_per_s": rate,
        "of_limit": least * rate,
        "seconds": seconds,
        "said_tokens": tokens,
    }
    yield Line("; ".join(words), figures)


def _decode(setup: Setup, name: str, batches: tuple[int, ...]) -> Iterator[Line]:
    """Decode steps without an engine around them."""
    subject = setup.subject(name)
    context, steps = (60, 8) if setup.is_tiny else (CONTEXT, STEPS)
    for rows in batches:
        seconds = in_a_thread(
            partial(decode_step, subject.model, rows, context, steps), setup.threads
        )
        share = subject.text.decode(rows, context + steps / 2).seconds(setup.card.machine) / seconds
        figures = {"rows": rows, "ms": 1000 * seconds, "of_limit": share}
        yield Line(
            f"{rows} rows: {1000 * seconds:.2f} ms a step, {share:.0%} of the memory's limit",
            figures,
        )
        if name == "qwen2.5-vl-7b" and rows == 1 and not setup.is_tiny:
            yield goal("a step of one row, share of the memory's limit", share, DECODE_GOAL)
