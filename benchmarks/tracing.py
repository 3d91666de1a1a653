"""Measure what tracing adds to a request.

``python -m benchmarks.tracing`` serves the whole application over a model that takes no time, as
:mod:`benchmarks.overhead` does, and sends each round the same requests: without tracing, with a
trace of every request, with one of a hundred, and without tracing again. A collector takes the
spans. ``--only code`` measures just our own code of a request, in this process, without Ray.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from statistics import median, quantiles
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from benchmarks.overhead import IN_FLIGHT, make_body, measure, our_graph, serving
from deployments.answer_spans import answer_span
from deployments.stage_spans import follow_answers, picture_spans
from deployments.tracing import EXPORTER, EXPORTER_VARIABLE, RATIO_VARIABLE
from raylens.core.types import (
    Caption,
    Delta,
    EngineTimings,
    FinishReason,
    StepReport,
    Usage,
    VisionRequest,
)
from testing.stub_graph import StubModel
from testing.trace_collector import running_collector


class StagedModel(StubModel):
    """Answers at once, and has the spans of a real model."""

    async def generate(self, request: VisionRequest, *pictures: Any) -> AsyncGenerator[Delta, None]:
        followed = follow_answers(_answer(), request, len(pictures))
        async with aclosing(followed) as deltas:
            async for delta in deltas:
                yield delta


async def _answer() -> AsyncGenerator[Delta, None]:
    timings = EngineTimings(arrived_at=time.time())
    yield Delta("nothing", 0, FinishReason.STOP, Usage(1, 1), timings=timings)


class _Handle:
    """A method of a Serve handle that does nothing."""

    def remote(self, *arguments: Any) -> None: ...


class _Discard(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


HANDLE = _Handle()
REQUEST = VisionRequest("id", "stub", Caption(), 0.0)
STEPS = [StepReport(name, "nothing to do", 0.0) for name in "abcd"]


async def follow_request() -> None:
    """Do what all processes together do for the spans of a request with a picture."""
    with answer_span(REQUEST, 1) as answer:
        answer.call(HANDLE)
        answer.call(HANDLE)
        with picture_spans("picture") as picture:
            picture.begin_work()
            picture.note(STEPS)
        async for delta in follow_answers(_answer(), REQUEST, 1):
            answer.note(delta)


async def cpu_microseconds(times: int) -> float:
    started = time.process_time()
    for _ in range(times):
        await follow_request()
    return 1e6 * (time.process_time() - started) / times


def measure_code() -> None:
    off = min(asyncio.run(cpu_microseconds(20_000)) for _ in range(3))
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(_Discard()))
    trace.set_tracer_provider(provider)

    async def traced() -> float:
        with trace.get_tracer("benchmark").start_as_current_span("request"):
            return await cpu_microseconds(100)

    on = min(asyncio.run(traced()) for _ in range(20))
    provider.shutdown()
    print(
        f"our own code of a request, µs of CPU: {off:.0f} untraced, {on:.0f} traced\n", flush=True
    )


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that start meanwhile."""
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


def measure_server(count: int) -> None:
    body = make_body()
    print(f"| tracing | alone p50 ms | p99 ms | requests/s, {IN_FLIGHT} in flight | CPU, ms |")
    print("| --- | --- | --- | --- | --- |")
    with running_collector(keeps=False) as collector:
        on = {EXPORTER_VARIABLE: EXPORTER, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        rounds = {
            "off": {},
            "every request": {**on, RATIO_VARIABLE: "1"},
            "one in a hundred": {**on, RATIO_VARIABLE: "0.01"},
            "off again": {},
        }
        for name, variables in rounds.items():
            with environment(variables), serving(our_graph(True, StagedModel)) as url:
                alone, rate, _, hops = asyncio.run(measure(url, body, count))
            p99 = quantiles(alone, n=100)[98]
            cpu = ", ".join(f"{hop} {value:.1f}" for hop, value in hops.items())
            row = f"{median(alone):.1f} | {p99:.1f} | {rate:.0f} | {cpu}"
            print(f"| {name} | {row} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=500, help="requests alone; twice at once")
    parser.add_argument("--only", choices=("code", "server"))
    arguments = parser.parse_args()
    if arguments.only != "server":
        measure_code()
    if arguments.only != "code":
        measure_server(arguments.count)


if __name__ == "__main__":
    main()
