"""The workloads. Each function yields the rows of one; :data:`ROWS` names them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median

import httpx

from benchmarks.engine.baselines import BATCH, alone, static_batches
from benchmarks.engine.bench import Bench, EngineClient, pixels_of
from benchmarks.engine.decode import decode_step
from benchmarks.engine.generate import Question
from benchmarks.engine.limits import timed
from benchmarks.engine.load import Answer, Ask, Load, drive
from benchmarks.engine.over_http import asking, server
from benchmarks.engine.report import Check, Row
from raylens.core.types import Detail
from raylens.engine.model import PictureInput

ALONE, STATIC, ENGINE, HTTP = (
    "(a) generate, one at a time",
    "(b) static batches of 8",
    "engine",
    "engine over HTTP",
)
ONE, MANY, MIXED = "one tile, 128 tokens", "many tiles, 48 tokens", "one tile, 16 to 256 tokens"
WARM_UP = 4
"""Tokens of the requests that go before each measurement."""
CONTEXT, STEPS = 112, 32
"""Decode alone goes from so many tokens so many steps on: 128 on the average."""


def one_tile(bench: Bench) -> Iterator[Row]:
    """8 at a time against both baselines."""
    load, limit = _one_tile_load(bench), _one_tile_limit(bench)
    baseline = _alone(bench, bench.questions(bench.count(3), bench.length(128)))
    yield Row.of(ONE, ALONE, baseline, limit)
    checks = [_faster(load, baseline, "(a)", 5)]
    if bench.options.family == "smolvlm":
        batches = _static(bench, bench.questions(bench.count(2 * BATCH), bench.length(128)), BATCH)
        yield Row.of(ONE, STATIC, batches, limit)
        checks.append(_faster(load, batches, "(b)", 1.3))
    checks.append(Check("the limit", limit * load.captions_per_s, 0.55))
    yield Row.of(ONE, ENGINE, load, limit, checks)


def http(bench: Bench) -> Iterator[Row]:
    """The same through the whole graph, one replica of each deployment."""
    tokens = bench.length(128)

    async def run(url: str) -> Load:
        async with httpx.AsyncClient(base_url=url, timeout=600) as client:
            asks = [
                [asking(client, bench.jpeg(), length) for _ in range(count)]
                for count, length in ((BATCH, WARM_UP), (bench.count(3 * BATCH), tokens))
            ]
            await drive(asks[0], BATCH)
            return await drive(asks[1], BATCH)

    with server(bench.options, bench.folder, BATCH) as url:
        load = asyncio.run(run(url))
    yield Row.of(
        ONE,
        HTTP,
        load,
        _one_tile_limit(bench),
        [_faster(load, _one_tile_load(bench), "the engine alone", 0.9)],
    )


def mixed(bench: Bench) -> Iterator[Row]:
    """Answers of random lengths that are asked for at random, 16 in flight; the same list for (b)
    and the engine."""
    batch = 2 * BATCH
    lengths = bench.random_lengths(bench.count(2 * batch), 16, 256)
    gaps = bench.random_gaps(len(lengths), 0.2)
    limit = 0.0
    loads = []
    for run in (_static, _engine):
        questions = [bench.question(tokens) for tokens in lengths]
        limit = bench.work(questions, batch).seconds(bench.machine) / len(questions)
        loads.append(run(bench, questions, batch, gaps))
    static, load = loads
    yield Row.of(MIXED, STATIC, static, limit)
    first = Check("(b)'s first token p99", load.first[1] / static.first[1], 0.5, at_most=True)
    yield Row.of(MIXED, ENGINE, load, limit, [_faster(load, static, "(b)", 2), first])


def many_tiles(bench: Bench) -> Iterator[Row]:
    """``detail: high``, 8 at a time, and the vision tower by itself."""
    tokens = bench.length(48)
    questions = bench.questions(bench.count(BATCH), tokens, Detail.HIGH)
    tiles = questions[0].prompt.pictures
    limit = bench.work(questions, BATCH).seconds(bench.machine) / len(questions)
    load = _engine(bench, questions, BATCH)
    baseline = _alone(bench, bench.questions(bench.count(2), tokens, Detail.HIGH))
    yield Row.of(MANY, ALONE, baseline, limit)
    yield Row.of(MANY, ENGINE, load, limit, [_faster(load, baseline, "(a)", 1.5)])
    seconds = _encoding_time(bench, tiles)
    rate = sum(bench.tower.work(tile.tokens, 0).operations for tile in tiles) / seconds / 1e9
    share = rate / bench.machine.gflops
    note = f"{rate:.0f} GFLOP/s, {1000 * seconds / len(tiles):.0f} ms a tile"
    checks = (Check("the measured GEMM rate", share, 0.7),)
    yield Row(f"vision tower, {len(tiles)} tiles", ENGINE, of_limit=share, checks=checks, note=note)


def decode(bench: Bench) -> Iterator[Row]:
    """The model's decode steps without an engine around them."""
    for rows, target in ((1, 0.60), (BATCH, 0.45)):
        bench.measure()  # close to the steps: memory's speed changes most
        seconds = bench.compute(partial(decode_step, bench.model, rows, CONTEXT, STEPS))
        share = bench.text.decode(rows, CONTEXT + STEPS / 2).seconds(bench.machine) / seconds
        note, checks = (
            f"{1000 * seconds:.1f} ms a step",
            (Check("the memory's limit", share, target),),
        )
        name = f"decode alone, batch {rows}"
        yield Row(
            name, ENGINE, tokens_per_s=rows / seconds, of_limit=share, checks=checks, note=note
        )


def gap(bench: Bench) -> Iterator[Row]:
    """A picture of many tiles enters while 4 answers run: the longest that one of them stands
    still."""
    one = bench.question(1).prompt.pictures
    encoding = _encoding_time(bench, one)
    running, big = bench.questions(4, 160), bench.question(WARM_UP, Detail.HIGH)
    with bench.engine(BATCH) as client:
        longest = asyncio.run(_longest_gap(bench, client, running, big))
    note = f"{1000 * longest:.0f} ms; a tile takes {1000 * encoding:.0f} ms"
    checks = (Check("a tile's encoding time", longest / encoding, 1.3, at_most=True),)
    yield Row("many tiles enter, 4 streams run", ENGINE, checks=checks, note=note)


def again(bench: Bench) -> Iterator[Row]:
    """A second question about the same picture."""
    for name, detail, pictures in (("one tile", Detail.LOW, 5), ("many tiles", Detail.HIGH, 2)):
        with bench.engine(BATCH) as client:
            firsts, seconds = asyncio.run(
                _asked_twice(bench, client, detail, bench.count(pictures))
            )
        note = f"{1000 * firsts:.0f} ms, then {1000 * seconds:.0f} ms to the first token"
        checks = (Check("the first's first token", seconds / firsts, 0.2, at_most=True),)
        yield Row(f"the same picture again, {name}", ENGINE, checks=checks, note=note)


ROWS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "one_tile": one_tile,
    "http": http,
    "mixed": mixed,
    "many_tiles": many_tiles,
    "decode": decode,
    "gap": gap,
    "again": again,
}
OF_FAMILY = {"smolvlm": tuple(ROWS), "qwen2_5_vl": ("one_tile", "decode")}
"""What is run where no row is named."""


def _faster(load: Load, baseline: Load, name: str, target: float) -> Check:
    return Check(name, load.captions_per_s / baseline.captions_per_s, target)


def _alone(bench: Bench, questions: Sequence[Question]) -> Load:
    answers: list[Answer] = []

    def ask_all() -> float:
        bench.generate([Question(questions[0].prompt, WARM_UP)])
        return timed(
            lambda: answers.extend(alone(bench.generate, question) for question in questions), "cpu"
        )

    return Load(bench.compute(ask_all), tuple(answers))


def _static(
    bench: Bench, questions: Sequence[Question], in_flight: int, gaps: Sequence[float] = ()
) -> Load:
    options = bench.options
    serving = static_batches(
        bench.folder, options.family, options.torch_dtype, options.device, options.threads
    )
    with serving as ask:
        return asyncio.run(_warm_then(bench, ask, questions, in_flight, gaps))


def _engine(
    bench: Bench, questions: Sequence[Question], in_flight: int, gaps: Sequence[float] = ()
) -> Load:
    with bench.engine(in_flight) as client:
        return asyncio.run(_warm_then(bench, client.asking, questions, in_flight, gaps))


async def _warm_then(
    bench: Bench,
    ask: Callable[[Question], Ask],
    questions: Sequence[Question],
    in_flight: int,
    gaps: Sequence[float],
) -> Load:
    """The requests' load, after one batch of short answers about other pictures."""
    await drive([ask(question) for question in bench.questions(BATCH, WARM_UP)], in_flight)
    return await drive([ask(question) for question in questions], in_flight, gaps)


def _one_tile_load(bench: Bench) -> Load:
    """The engine alone, measured once for the two rows that need it."""
    if bench.engine_alone is None:
        bench.engine_alone = _engine(
            bench, bench.questions(bench.count(3 * BATCH), bench.length(128)), BATCH
        )
    return bench.engine_alone


def _one_tile_limit(bench: Bench) -> float:
    return bench.work([bench.question(bench.length(128))], BATCH).seconds(bench.machine)


def _encoding_time(bench: Bench, pictures: Sequence[PictureInput]) -> float:
    """Seconds that the vision tower takes for pictures, the median of several."""
    times = bench.compute(
        lambda: [
            timed(lambda: list(bench.model.encode(pictures)), bench.options.device)
            for _ in range(4)
        ]
    )
    return median(times[1:])


async def _longest_gap(
    bench: Bench, client: EngineClient, running: Sequence[Question], big: Question
) -> float:
    """Seconds between two pieces of a running answer, while the big one enters."""
    await client.asking(bench.question(WARM_UP, Detail.HIGH))()
    streams = [Answer(question.tokens) for question in running]
    entering = Answer(big.tokens)
    async with asyncio.TaskGroup() as group:
        for question, answer in zip(running, streams, strict=True):
            group.create_task(client.follow(question, answer))
        while min(len(answer.arrivals) for answer in streams) < WARM_UP:
            await asyncio.sleep(0.005)
        entering = await client.asking(big)()
    entered = entering.arrivals[0]
    assert min(answer.arrivals[-1] for answer in streams) > entered, (
        "the streams ended before the picture was read"
    )
    return max(
        gap
        for answer in streams
        for gap, end in zip(answer.gaps, answer.arrivals[1:], strict=True)
        if entering.sent <= end <= entered + gap
    )


async def _asked_twice(
    bench: Bench, client: EngineClient, detail: Detail, pictures: int
) -> tuple[float, float]:
    """Median seconds to the first token, of the first question about a picture and of the second."""
    await client.asking(bench.question(WARM_UP, detail))()
    times: list[list[float]] = [[], []]
    for _ in range(pictures):
        pixels = pixels_of(bench.jpeg(detail))
        for place, text in enumerate(("Describe this image.", "How many things are there?")):
            answer = await client.asking(Question(bench.prompt(pixels, detail, text), WARM_UP))()
            times[place].append(answer.first)
    return median(times[0]), median(times[1])
