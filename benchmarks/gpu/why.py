"""Stage *why*: where the time of a second of steady work goes."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

from benchmarks.engine.bench import EngineClient
from benchmarks.gpu.fast import WORKLOADS
from benchmarks.gpu.loads import MOST_SECONDS, Front, Workload, running
from benchmarks.gpu.results import Line, Part
from benchmarks.gpu.setup import Setup
from benchmarks.gpu.trace import LAUNCHES, WAITS, Trace
from raylens.engine.async_engine import AsyncEngine

SHOWN = 10
PICTURES = 160
"""Shown in turns: more than the engine keeps."""
LAG = 2
"""So many steps later at the latest, the host of a card that looks ahead has waited for what a step
launched."""


@dataclass(frozen=True)
class Step:
    """From when to when, by ``time.perf_counter``."""

    start: float
    end: float
    reads: bool
    """Prompts or pictures."""

    @property
    def ms(self) -> float:
        return 1000 * (self.end - self.start)


@dataclass
class Steps:
    """The engine's steps, and the thread that does them."""

    taken: list[Step] = field(default_factory=list)
    thread: int = 0

    def watch(self, engine: AsyncEngine) -> None:
        """Does nothing if the engine has no steps under this name: they are its own affair."""
        inner: Any = getattr(engine, "_engine", None)
        step = getattr(inner, "step", None)
        if step is None:
            return

        def timed() -> Any:
            self.thread = threading.get_native_id()
            scheduler = inner.scheduler
            prefilling, waiting = len(scheduler.prefilling), len(scheduler.waiting)
            started = time.perf_counter()
            try:
                return step()
            finally:
                reads = prefilling > 0 or len(scheduler.waiting) < waiting
                self.taken.append(Step(started, time.perf_counter(), reads))

        inner.step = timed

    def within(self, start: float, end: float) -> list[Step]:
        """Those that began and ended in this time: while the profiler stops, a step takes as long
        as that does."""
        return [step for step in self.taken if start <= step.start and step.end <= end]


def parts(setup: Setup) -> Iterator[Part]:
    for name in setup.models:
        yield Part(name, partial(_why, setup, name))


def _why(setup: Setup, name: str) -> Iterator[Line]:
    # The first of two profilers watches nothing; its events may go.
    warnings.filterwarnings("ignore", ".*Profiler clears events at the end of each cycle")
    workload, in_flight, seconds = WORKLOADS[name][0], 16, 1.0
    if setup.is_tiny:
        workload, in_flight, seconds = replace(workload, tokens=12), 4, 0.1
    model, steps = setup.subject(name).model, Steps()
    front = Front(setup, model, workload.task)
    jpegs = setup.jpegs(workload.size, 8 if setup.is_tiny else PICTURES)
    watched = profiler(setup.is_cuda)
    with profiler(setup.is_cuda):
        pass  # the first one takes seconds to begin
    try:
        with running(setup, model, in_flight) as engine:
            steps.watch(engine)
            work = _profiled(
                EngineClient(engine), front, jpegs, workload, in_flight, watched, seconds
            )
            start, end = asyncio.run(work)
    finally:
        front.close()
    taken = steps.within(start, end)
    yield _told(
        f"{workload}, {in_flight} in flight", taken, end - start, LAG if setup.is_cuda else 0
    )
    if not setup.is_cuda:
        yield from _operators(watched)
        return
    path = setup.folder / "trace.json"
    watched.export_chrome_trace(str(path))
    yield from _of_card(Trace.read(path).first(end - start), end - start, len(taken), steps.thread)


def profiler(is_cuda: bool) -> profile:
    """The CPU's operators are watched in all threads, but not beside a card: they would slow what
    is watched."""
    if not is_cuda:
        whole = _ExperimentalConfig(profile_all_threads=True)
        return profile(activities=[ProfilerActivity.CPU], experimental_config=whole)
    try:
        config = _ExperimentalConfig(
            trace_only=True
        )  # else making objects of the events takes seconds
    except TypeError:  # an older torch
        config = None
    return profile(
        activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], experimental_config=config
    )


async def _profiled(
    client: EngineClient,
    front: Front,
    jpegs: Sequence[bytes],
    workload: Workload,
    in_flight: int,
    watched: profile,
    seconds: float,
) -> tuple[float, float]:
    """From when to when was watched, once every place had two answers."""
    pictures, answered, ended = itertools.cycle(jpegs), 0, asyncio.Event()

    async def keep_asking() -> None:
        nonlocal answered
        while not ended.is_set():
            await front.asking(client, next(pictures), workload.tokens)()
            answered += 1

    async with asyncio.timeout(MOST_SECONDS), asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(keep_asking())
        while answered < 2 * in_flight:
            await asyncio.sleep(0.02)
        watched.start()
        start = time.perf_counter()
        await asyncio.sleep(seconds)
        end = time.perf_counter()
        watched.stop()
        ended.set()
    return start, end


def _operators(watched: profile) -> Iterator[Line]:
    """The CPU's, by the time that they take themselves."""
    events = sorted(watched.key_averages(), key=lambda event: -event.self_cpu_time_total)
    for event in events[:SHOWN]:
        ms = event.self_cpu_time_total / 1000
        yield Line(
            f"{ms:8.1f} ms {event.count:6} × {event.key}",
            {"name": event.key, "ms": ms, "count": event.count},
        )


def _of_card(trace: Trace, wall: float, steps: int, thread: int) -> Iterator[Line]:
    busy, gaps = trace.busy()
    between = 1e6 * np.array((gaps.mean(), np.quantile(gaps, 0.9))) if len(gaps) else np.zeros(2)
    figures = {
        "busy": busy / wall,
        "gap_us": between[0],
        "gap_p90_us": between[1],
        "gaps": len(gaps),
    }
    idle = f"{len(gaps)} gaps of {between[0]:.0f} µs, p90 {between[1]:.0f} µs"
    yield Line(f"the card is busy {busy / wall:.0%} of the time; {idle}", figures)
    launches, waits = (trace.calls(marks, thread) for marks in (LAUNCHES, WAITS))
    each = max(1, steps)
    waited, launched = (
        1000 * sum(call.seconds for call in calls) / each for calls in (waits, launches)
    )
    figures = {"launches": len(launches) / each, "launch_ms": launched, "wait_ms": waited}
    yield Line(
        f"a step: {figures['launches']:.0f} launches in {launched:.2f} ms, {waited:.2f} ms of waiting",
        figures,
    )
    copies = trace.copies()
    told = ", ".join(
        f"{count} {way} of {size / 1e6:.2f} MB" for way, (count, size) in copies.items()
    )
    yield Line(f"copies: {told or 'none'}", {"copies": copies})
    attention = trace.attention()
    told = ", ".join(f"{backend} {each / wall:.1%}" for backend, each in attention.items())
    yield Line(f"attention: {told or 'none known by its name'}", {"attention": attention})
    for name, total, count in trace.largest(SHOWN):
        figures = {"name": name, "ms": 1000 * total, "share": total / busy, "count": count}
        yield Line(f"{1000 * total:8.1f} ms {total / busy:4.0%} {count:6} × {name}", figures)


def _told(what: str, steps: Sequence[Step], seconds: float, lag: int) -> Line:
    """``lag``: steps after one that reads count as reading, because they wait for it."""
    reads = [
        any(step.reads for step in steps[max(0, place - lag) : place + 1])
        for place in range(len(steps))
    ]
    plain = [step.ms for step, read in zip(steps, reads, strict=True) if not read]
    reading = [step.ms for step, read in zip(steps, reads, strict=True) if read]
    median, p90 = (
        (float(value) for value in np.quantile(plain, (0.5, 0.9))) if plain else (None, None)
    )
    mean = float(np.mean(reading)) if reading else None
    waits = " or wait for it" if lag else ""
    words = [
        f"{what}: {len(steps)} steps in {seconds:.2f} s",
        f"{len(plain)} that only decode" + (f", {median:.2f} ms (p90 {p90:.2f})" if plain else ""),
        f"{len(reading)} that read{waits}" + (f", {mean:.2f} ms on the average" if reading else ""),
    ]
    figures = {
        "steps": len(steps),
        "decode_ms": median,
        "decode_p90_ms": p90,
        "reading": len(reading),
    }
    return Line("; ".join(words), {**figures, "reading_ms": mean})
