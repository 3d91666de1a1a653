"""The workloads. Each function yields the rows of one workload; :data:`ROWS` names them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median

import httpx

from benchmarks.engine.baselines import BATCH, generate_alone, static_batches
from benchmarks.engine.bench import Bench, EngineClient, decode_jpeg
from benchmarks.engine.decode import measure_decode_step
from benchmarks.engine.generate import Request
from benchmarks.engine.limits import measure_seconds
from benchmarks.engine.load import LoadResult, Send, Timeline, drive
from benchmarks.engine.over_http import make_sender, server
from benchmarks.engine.report import Check, Row
from raylens.core.types import Detail
from raylens.engine.model import PictureInput

ALONE = "(a) generate, one at a time"
STATIC = "(b) static batches of 8"
ENGINE = "engine"
HTTP = "engine over HTTP"

ONE_TILE = "one tile, 128 tokens"
MANY_TILES = "many tiles, 48 tokens"
MIXED = "one tile, 16 to 256 tokens"

WARM_UP = 4
"""Tokens of the requests that run before each measurement."""
CONTEXT = 112
"""Tokens in the cache before the first of the decode steps alone."""
STEPS = 32
"""Decode steps alone. The mean context is ``CONTEXT + STEPS / 2`` = 128 tokens."""


def one_tile(bench: Bench) -> Iterator[Row]:
    """8 requests at a time through the engine and both baselines."""
    load = _measure_one_tile(bench)
    limit = _one_tile_limit(bench)
    baseline = _run_alone(bench, bench.make_requests(bench.cap_requests(3), bench.cap_tokens(128)))
    yield Row.from_load(ONE_TILE, ALONE, baseline, limit)
    checks = [_check_speedup(load, baseline, "(a)", 5)]
    if bench.options.family == "smolvlm":
        count = bench.cap_requests(2 * BATCH)
        batches = _run_static(bench, bench.make_requests(count, bench.cap_tokens(128)), BATCH)
        yield Row.from_load(ONE_TILE, STATIC, batches, limit)
        checks.append(_check_speedup(load, batches, "(b)", 1.3))
    checks.append(Check("the limit", limit * load.captions_per_s, 0.55))
    yield Row.from_load(ONE_TILE, ENGINE, load, limit, checks)


def http(bench: Bench) -> Iterator[Row]:
    """The same requests through the whole graph, with one replica of each deployment."""
    count = bench.cap_requests(3 * BATCH)
    tokens = bench.cap_tokens(128)

    async def run(url: str) -> LoadResult:
        async with httpx.AsyncClient(base_url=url, timeout=600) as client:
            warm_up = [make_sender(client, bench.make_jpeg(), WARM_UP) for _ in range(BATCH)]
            sends = [make_sender(client, bench.make_jpeg(), tokens) for _ in range(count)]
            await drive(warm_up, BATCH)
            return await drive(sends, BATCH)

    with server(bench.options, bench.folder, BATCH) as url:
        load = asyncio.run(run(url))
    limit = _one_tile_limit(bench)
    check = _check_speedup(load, _measure_one_tile(bench), "the engine alone", 0.9)
    yield Row.from_load(ONE_TILE, HTTP, load, limit, [check])


def mixed(bench: Bench) -> Iterator[Row]:
    """Answers of random lengths, arriving at random, at most 16 in flight.

    (b) and the engine get the same lengths and gaps.
    """
    batch = 2 * BATCH
    lengths = bench.draw_lengths(bench.cap_requests(2 * batch), 16, 256)
    gaps = bench.draw_gaps(len(lengths), 0.2)
    limit = 0.0
    loads = []
    for run in (_run_static, _run_engine):
        requests = [bench.make_request(tokens) for tokens in lengths]
        limit = bench.least_work(requests, batch).seconds(bench.machine) / len(requests)
        loads.append(run(bench, requests, batch, gaps))
    static, load = loads
    yield Row.from_load(MIXED, STATIC, static, limit)
    first_token = Check("(b)'s first token p99", load.first[1] / static.first[1], 0.5, at_most=True)
    checks = [_check_speedup(load, static, "(b)", 2), first_token]
    yield Row.from_load(MIXED, ENGINE, load, limit, checks)


def many_tiles(bench: Bench) -> Iterator[Row]:
    """Pictures at ``detail: high``, 8 at a time, and the vision encoder by itself."""
    tokens = bench.cap_tokens(48)
    requests = bench.make_requests(bench.cap_requests(BATCH), tokens, Detail.HIGH)
    tiles = requests[0].prompt.pictures
    limit = bench.least_work(requests, BATCH).seconds(bench.machine) / len(requests)
    load = _run_engine(bench, requests, BATCH)
    baseline = _run_alone(bench, bench.make_requests(bench.cap_requests(2), tokens, Detail.HIGH))
    yield Row.from_load(MANY_TILES, ALONE, baseline, limit)
    speedup = _check_speedup(load, baseline, "(a)", 1.5)
    yield Row.from_load(MANY_TILES, ENGINE, load, limit, [speedup])
    yield _measure_encoder(bench, tiles)


def _measure_encoder(bench: Bench, tiles: Sequence[PictureInput]) -> Row:
    seconds = _measure_encoding(bench, tiles)
    rate = sum(bench.vision.work(tile.num_tokens, 0).operations for tile in tiles) / seconds / 1e9
    share = rate / bench.machine.gflops
    return Row(
        f"vision encoder, {len(tiles)} tiles",
        ENGINE,
        of_limit=share,
        checks=(Check("the measured GEMM rate", share, 0.7),),
        note=f"{rate:.0f} GFLOP/s, {1000 * seconds / len(tiles):.0f} ms a tile",
    )


def decode(bench: Bench) -> Iterator[Row]:
    """The model's decode steps without an engine around them."""
    for rows, target in ((1, 0.60), (BATCH, 0.45)):
        bench.measure()  # right before the steps, because memory bandwidth varies the most
        seconds = bench.compute(partial(measure_decode_step, bench.model, rows, CONTEXT, STEPS))
        share = bench.text.decode(rows, CONTEXT + STEPS / 2).seconds(bench.machine) / seconds
        yield Row(
            f"decode alone, batch {rows}",
            ENGINE,
            tokens_per_s=rows / seconds,
            of_limit=share,
            checks=(Check("the memory's limit", share, target),),
            note=f"{1000 * seconds:.1f} ms a step",
        )


def gap(bench: Bench) -> Iterator[Row]:
    """The longest pause of 4 running answers while a picture of many tiles is read."""
    tile = bench.make_request(1).prompt.pictures
    encoding_s = _measure_encoding(bench, tile)
    running = bench.make_requests(4, 160)
    arriving = bench.make_request(WARM_UP, Detail.HIGH)
    with bench.engine(BATCH) as client:
        longest_s = asyncio.run(_measure_longest_gap(bench, client, running, arriving))
    yield Row(
        "many tiles arrive while 4 answers run",
        ENGINE,
        checks=(Check("a tile's encoding time", longest_s / encoding_s, 1.3, at_most=True),),
        note=f"{1000 * longest_s:.0f} ms; a tile takes {1000 * encoding_s:.0f} ms",
    )


def same_picture(bench: Bench) -> Iterator[Row]:
    """Two questions about the same picture, one after the other."""
    for name, detail, pictures in (("one tile", Detail.LOW, 5), ("many tiles", Detail.HIGH, 2)):
        count = bench.cap_requests(pictures)
        with bench.engine(BATCH) as client:
            first_s, second_s = asyncio.run(_ask_twice(bench, client, detail, count))
        yield Row(
            f"the same picture again, {name}",
            ENGINE,
            checks=(Check("the first's first token", second_s / first_s, 0.2, at_most=True),),
            note=f"{1000 * first_s:.0f} ms, then {1000 * second_s:.0f} ms to the first token",
        )


ROWS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "one_tile": one_tile,
    "http": http,
    "mixed": mixed,
    "many_tiles": many_tiles,
    "decode": decode,
    "gap": gap,
    "same_picture": same_picture,
}
DEFAULT_ROWS = {"smolvlm": tuple(ROWS), "qwen2_5_vl": ("one_tile", "decode")}
"""Workloads of each family that run if none is named."""


def _check_speedup(load: LoadResult, baseline: LoadResult, name: str, target: float) -> Check:
    return Check(name, load.captions_per_s / baseline.captions_per_s, target)


def _run_alone(bench: Bench, requests: Sequence[Request]) -> LoadResult:
    """Run baseline (a) after a short warm-up answer."""
    timelines: list[Timeline] = []

    def run_all() -> None:
        timelines.extend(generate_alone(bench.generate, request) for request in requests)

    def warm_up_and_run() -> float:
        bench.generate([Request(requests[0].prompt, WARM_UP)])
        return measure_seconds(run_all, "cpu")

    return LoadResult(bench.compute(warm_up_and_run), tuple(timelines))


def _run_static(
    bench: Bench, requests: Sequence[Request], in_flight: int, gaps: Sequence[float] = ()
) -> LoadResult:
    """Run baseline (b)."""
    options = bench.options
    application = static_batches(
        bench.folder, options.family, options.torch_dtype, options.device, options.threads
    )
    with application as make_static_sender:
        return asyncio.run(_warm_up_and_drive(bench, make_static_sender, requests, in_flight, gaps))


def _run_engine(
    bench: Bench, requests: Sequence[Request], in_flight: int, gaps: Sequence[float] = ()
) -> LoadResult:
    with bench.engine(in_flight) as client:
        return asyncio.run(_warm_up_and_drive(bench, client.make_sender, requests, in_flight, gaps))


async def _warm_up_and_drive(
    bench: Bench,
    make_send: Callable[[Request], Send],
    requests: Sequence[Request],
    in_flight: int,
    gaps: Sequence[float],
) -> LoadResult:
    """Send the requests after a batch of short answers about other pictures."""
    warm_up = bench.make_requests(BATCH, WARM_UP)
    await drive([make_send(request) for request in warm_up], in_flight)
    return await drive([make_send(request) for request in requests], in_flight, gaps)


def _measure_one_tile(bench: Bench) -> LoadResult:
    """Return the engine's load of one tile, measured once for the two rows that need it."""
    if bench.engine_alone is None:
        count = bench.cap_requests(3 * BATCH)
        requests = bench.make_requests(count, bench.cap_tokens(128))
        bench.engine_alone = _run_engine(bench, requests, BATCH)
    return bench.engine_alone


def _one_tile_limit(bench: Bench) -> float:
    """Return the least seconds of a caption of one tile."""
    request = bench.make_request(bench.cap_tokens(128))
    return bench.least_work([request], BATCH).seconds(bench.machine)


def _measure_encoding(bench: Bench, pictures: Sequence[PictureInput]) -> float:
    """Return the median seconds that the vision encoder takes, without the first of 4 calls."""

    def encode() -> list[object]:
        return list(bench.model.encode(pictures))

    times = bench.compute(lambda: [measure_seconds(encode, bench.options.device) for _ in range(4)])
    return median(times[1:])


async def _measure_longest_gap(
    bench: Bench, client: EngineClient, running: Sequence[Request], arriving: Request
) -> float:
    """Return the longest gap in seconds between pieces of the running answers, while the
    ``arriving`` request's picture is read."""
    await client.make_sender(bench.make_request(WARM_UP, Detail.HIGH))()
    streams = [Timeline(request.tokens) for request in running]
    async with asyncio.TaskGroup() as group:
        for request, stream in zip(running, streams, strict=True):
            group.create_task(client.follow(request, stream))
        while min(len(stream.arrivals) for stream in streams) < WARM_UP:
            await asyncio.sleep(0.005)
        arrival = await client.make_sender(arriving)()
    first_token = arrival.arrivals[0]
    assert min(stream.arrivals[-1] for stream in streams) > first_token, (
        "the running answers ended before the picture was read"
    )
    gaps = []
    for stream in streams:
        for seconds, end in zip(stream.gaps, stream.arrivals[1:], strict=True):
            if arrival.sent <= end <= first_token + seconds:
                gaps.append(seconds)
    return max(gaps)


async def _ask_twice(
    bench: Bench, client: EngineClient, detail: Detail, pictures: int
) -> tuple[float, float]:
    """Return the median seconds to the first token of a picture's first and second question."""
    await client.make_sender(bench.make_request(WARM_UP, detail))()
    questions = ("Describe this image.", "How many things are there?")
    times: list[list[float]] = [[], []]
    for _ in range(pictures):
        pixels = decode_jpeg(bench.make_jpeg(detail))
        for question, question_times in zip(questions, times, strict=True):
            prompt = bench.make_prompt(pixels, detail, question)
            timeline = await client.make_sender(Request(prompt, WARM_UP))()
            question_times.append(timeline.first)
    return median(times[0]), median(times[1])
