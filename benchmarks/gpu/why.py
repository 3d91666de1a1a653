"""Stage *why*: a profile of one second of steady work."""

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
from benchmarks.gpu.loads import TIMEOUT_S, Frontend, Workload, run_engine
from benchmarks.gpu.results import Line, StagePart
from benchmarks.gpu.setup import Setup
from benchmarks.gpu.trace import LAUNCHES, WAITS, Trace
from raylens.engine.async_engine import AsyncEngine

TOP = 10
"""Kernels or operators to print."""
PICTURES = 160
"""Different pictures, sent in turn. The engine's caches hold fewer."""
LAG = 2
"""Steps after which, on a GPU, the host has waited for everything that a step launched."""


@dataclass(frozen=True)
class Step:
    """One step of the engine. Times are by ``time.perf_counter``."""

    start: float
    end: float
    reads: bool
    """The step reads prompts or pictures."""

    @property
    def ms(self) -> float:
        return 1000 * (self.end - self.start)


@dataclass
class StepRecorder:
    """Records an engine's steps, and the id of the thread that runs them."""

    steps: list[Step] = field(default_factory=list)
    thread: int = 0

    def watch(self, engine: AsyncEngine) -> None:
        """Wrap the engine's ``step``.

        Does nothing if it is not found: ``step`` is not part of ``AsyncEngine``'s interface.
        """
        inner: Any = getattr(engine, "_engine", None)
        step = getattr(inner, "step", None)
        if step is None:
            return

        def record_step() -> Any:
            self.thread = threading.get_native_id()
            scheduler = inner.scheduler
            prefilling = len(scheduler.prefilling)
            waiting = len(scheduler.waiting)
            started = time.perf_counter()
            try:
                return step()
            finally:
                reads = prefilling > 0 or len(scheduler.waiting) < waiting
                self.steps.append(Step(started, time.perf_counter(), reads))

        inner.step = record_step

    def within(self, start: float, end: float) -> list[Step]:
        """Return the steps that started and ended in this interval.

        The step that runs while the profiler stops takes as long as stopping it, and is left out.
        """
        return [step for step in self.steps if start <= step.start and step.end <= end]


def parts(setup: Setup) -> Iterator[StagePart]:
    for name in setup.models:
        yield StagePart(name, partial(_profile_model, setup, name))


def _profile_model(setup: Setup, name: str) -> Iterator[Line]:
    # The warm-up profiler records nothing: losing its events is fine.
    warnings.filterwarnings("ignore", ".*Profiler clears events at the end of each cycle")
    workload = WORKLOADS[name][0]
    in_flight = 16
    seconds = 1.0
    if setup.is_tiny:
        workload = replace(workload, tokens=12)
        in_flight = 4
        seconds = 0.1
    model = setup.subject(name).model
    recorder = StepRecorder()
    frontend = Frontend(setup, model, workload.task)
    jpegs = setup.jpegs(workload.size, 8 if setup.is_tiny else PICTURES)
    profiler = make_profiler(setup.is_cuda)
    with make_profiler(setup.is_cuda):
        pass  # a process's first profiler takes seconds to start
    try:
        with run_engine(setup, model, in_flight) as engine:
            recorder.watch(engine)
            client = EngineClient(engine)
            run = _profile_load(client, frontend, jpegs, workload, in_flight, profiler, seconds)
            start, end = asyncio.run(run)
    finally:
        frontend.close()
    steps = recorder.within(start, end)
    title = f"{workload}, {in_flight} in flight"
    yield _steps_line(title, steps, end - start, LAG if setup.is_cuda else 0)
    if not setup.is_cuda:
        yield from _operator_lines(profiler)
        return
    path = setup.folder / "trace.json"
    profiler.export_chrome_trace(str(path))
    trace = Trace.read(path).first(end - start)
    yield from _gpu_lines(trace, end - start, len(steps), recorder.thread)


def make_profiler(is_cuda: bool) -> profile:
    """Return a profiler of the GPU, or of the CPU's operators in all threads.

    The operators are not profiled beside a GPU, because that would slow down the launches.
    """
    if not is_cuda:
        all_threads = _ExperimentalConfig(profile_all_threads=True)
        return profile(activities=[ProfilerActivity.CPU], experimental_config=all_threads)
    try:
        # Without trace_only, turning the events into Python objects takes seconds.
        config = _ExperimentalConfig(trace_only=True)
    except TypeError:  # an older torch
        config = None
    return profile(
        activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], experimental_config=config
    )


async def _profile_load(
    client: EngineClient,
    frontend: Frontend,
    jpegs: Sequence[bytes],
    workload: Workload,
    in_flight: int,
    profiler: profile,
    seconds: float,
) -> tuple[float, float]:
    """Profile a steady load, once there are twice as many answers as requests in flight.

    Returns the start and the end of the profiled interval, by ``time.perf_counter``.
    """
    pictures = itertools.cycle(jpegs)
    answered = 0
    ended = asyncio.Event()

    async def keep_sending() -> None:
        nonlocal answered
        while not ended.is_set():
            await frontend.make_sender(client, next(pictures), workload.tokens)()
            answered += 1

    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(keep_sending())
        while answered < 2 * in_flight:
            await asyncio.sleep(0.02)
        profiler.start()
        start = time.perf_counter()
        await asyncio.sleep(seconds)
        end = time.perf_counter()
        profiler.stop()
        ended.set()
    return start, end


def _operator_lines(profiler: profile) -> Iterator[Line]:
    """Report the CPU's operators that took the longest, without the operators that they call."""
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    for event in events[:TOP]:
        ms = event.self_cpu_time_total / 1000
        yield Line(
            f"{ms:8.1f} ms {event.count:6} × {event.key}",
            {"name": event.key, "ms": ms, "count": event.count},
        )


def _gpu_lines(trace: Trace, wall_s: float, steps: int, thread: int) -> Iterator[Line]:
    busy_s, gaps = trace.busy()
    yield _busy_line(busy_s / wall_s, gaps)
    yield _launches_line(trace, max(1, steps), thread)
    copies = trace.copies()
    phrases = [
        f"{count} {direction} of {size / 1e6:.2f} MB" for direction, (count, size) in copies.items()
    ]
    yield Line(f"copies: {', '.join(phrases) or 'none'}", {"copies": copies})
    attention = trace.attention()
    phrases = [f"{backend} {seconds / wall_s:.1%}" for backend, seconds in attention.items()]
    text = ", ".join(phrases) or "no kernel with a known name"
    yield Line(f"attention: {text}", {"attention": attention})
    for name, seconds, count in trace.largest(TOP):
        ms = 1000 * seconds
        share = seconds / busy_s
        figures = {"name": name, "ms": ms, "share": share, "count": count}
        yield Line(f"{ms:8.1f} ms {share:4.0%} {count:6} × {name}", figures)


def _busy_line(busy: float, gaps: np.ndarray) -> Line:
    """Report the share of the time in which the card is busy, and the gaps between its work."""
    gap_us = 0.0
    gap_p90_us = 0.0
    if len(gaps):
        gap_us = 1e6 * gaps.mean()
        gap_p90_us = 1e6 * np.quantile(gaps, 0.9)
    figures = {"busy": busy, "gap_us": gap_us, "gap_p90_us": gap_p90_us, "gaps": len(gaps)}
    idle = f"{len(gaps)} gaps of {gap_us:.0f} µs, p90 {gap_p90_us:.0f} µs"
    return Line(f"the card is busy {busy:.0%} of the time; {idle}", figures)


def _launches_line(trace: Trace, steps: int, thread: int) -> Line:
    """Report the launches of a step, and how long the host waits for the card."""
    launches = trace.calls(LAUNCHES, thread)
    waits = trace.calls(WAITS, thread)
    launch_ms = 1000 * sum(call.seconds for call in launches) / steps
    wait_ms = 1000 * sum(call.seconds for call in waits) / steps
    count = len(launches) / steps
    figures = {"launches": count, "launch_ms": launch_ms, "wait_ms": wait_ms}
    text = f"a step: {count:.0f} launches in {launch_ms:.2f} ms, {wait_ms:.2f} ms of waiting"
    return Line(text, figures)


def _steps_line(title: str, steps: Sequence[Step], seconds: float, lag: int) -> Line:
    """Report the steps that only decode, and those that read prompts or pictures.

    The ``lag`` steps after one that reads count as reading, because they wait for it.
    """
    decode_ms: list[float] = []
    read_ms: list[float] = []
    for index, step in enumerate(steps):
        recent = steps[max(0, index - lag) : index + 1]
        times = read_ms if any(step.reads for step in recent) else decode_ms
        times.append(step.ms)
    median = None
    p90 = None
    phrases = [f"{title}: {len(steps)} steps in {seconds:.2f} s"]
    decoding = f"{len(decode_ms)} that only decode"
    if decode_ms:
        median, p90 = (float(value) for value in np.quantile(decode_ms, (0.5, 0.9)))
        decoding += f", {median:.2f} ms (p90 {p90:.2f})"
    phrases.append(decoding)
    mean = None
    reading = f"{len(read_ms)} that read" + (" or wait for it" if lag else "")
    if read_ms:
        mean = float(np.mean(read_ms))
        reading += f", {mean:.2f} ms on average"
    phrases.append(reading)
    figures = {
        "steps": len(steps),
        "decode_ms": median,
        "decode_p90_ms": p90,
        "reading": len(read_ms),
        "reading_ms": mean,
    }
    return Line("; ".join(phrases), figures)
