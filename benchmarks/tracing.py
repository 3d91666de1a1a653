"""Measure what tracing adds to a request.

``python -m benchmarks.tracing`` serves the whole application over a model that takes no time, as
:mod:`benchmarks.overhead` does, with tracing on and a collector that takes the spans. Traced and
untraced requests, by the flag of ``traceparent``, take turns, so that both meet the same machine.
``--only code`` measures just our own code of a request, in this process, without Ray.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from statistics import median, quantiles
from typing import Any

import httpx
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from benchmarks.overhead import (
    HOPS,
    IN_FLIGHT,
    KEY,
    cpu_seconds,
    make_body,
    our_graph,
    serving,
)
from deployments.answer_spans import answer_span
from deployments.stage_spans import follow_answers, picture_spans
from deployments.tracing import EXPORTER, EXPORTER_VARIABLE
from raylens.core.types import (
    Caption,
    Delta,
    EngineTimings,
    FinishReason,
    StepReport,
    Usage,
    VisionRequest,
)
from testing.bare_graph import PATH
from testing.stub_graph import StubModel
from testing.trace_collector import running_collector

FLAGS = {"00": "untraced", "01": "traced"}
BLOCK = 100
EXPORT_S = 0.2
"""The period of the processes' exports."""


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


class Pair:
    """Sends traced and untraced requests in turn."""

    def __init__(self, client: httpx.AsyncClient, body: bytes) -> None:
        self._client = client
        self._body = body
        self.alone: dict[str, list[float]] = {flag: [] for flag in FLAGS}
        """Milliseconds."""
        self.seconds = dict.fromkeys(FLAGS, 0.0)
        """Of all blocks with ``IN_FLIGHT`` in flight."""
        self.cpu = {flag: dict.fromkeys(HOPS, 0.0) for flag in FLAGS}
        """CPU seconds of each hop in these blocks."""

    async def send(self, flag: str) -> float:
        parent = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{flag}"
        headers = {"Content-Type": "application/json", "traceparent": parent}
        started = time.perf_counter()
        response = await self._client.post(PATH, content=self._body, headers=headers)
        response.raise_for_status()
        return 1000 * (time.perf_counter() - started)

    async def send_block(self, flag: str) -> None:
        """Send ``BLOCK`` requests, and wait until their spans are exported, too."""
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def send() -> None:
            async with slots:
                await self.send(flag)

        before = cpu_seconds()
        started = time.perf_counter()
        await asyncio.gather(*(send() for _ in range(BLOCK)))
        self.seconds[flag] += time.perf_counter() - started
        await asyncio.sleep(3 * EXPORT_S)
        for hop, total in cpu_seconds().items():
            self.cpu[flag][hop] += total - before[hop]


async def measure_pairs(url: str, body: bytes, count: int) -> tuple[Pair, int]:
    """Return the measurements, and how many requests of each kind the blocks had."""
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
        warm_up = Pair(client, body)
        for flag in FLAGS:
            await warm_up.send_block(flag)
        pair = Pair(client, body)
        for _ in range(count):
            for flag in FLAGS:
                pair.alone[flag].append(await pair.send(flag))
        blocks = max(1, count // BLOCK)
        for _ in range(blocks):
            for flag in FLAGS:
                await pair.send_block(flag)
        return pair, blocks * BLOCK


def measure_server(count: int) -> None:
    body = make_body()
    with running_collector(keeps=False) as collector:
        variables = {
            EXPORTER_VARIABLE: EXPORTER,
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": str(int(1000 * EXPORT_S)),
        }
        with environment(variables), serving(our_graph(True, StagedModel)) as url:
            pair, requests = asyncio.run(measure_pairs(url, body, count))
    print(f"| request | alone p50 ms | p90 ms | requests/s, {IN_FLIGHT} in flight | CPU, ms |")
    print("| --- | --- | --- | --- | --- |")
    for flag, name in FLAGS.items():
        alone = pair.alone[flag]
        hops = {hop: 1000 * used / requests for hop, used in pair.cpu[flag].items()}
        cpu = ", ".join(f"{hop} {used:.1f}" for hop, used in hops.items())
        rate = requests / pair.seconds[flag]
        p90 = quantiles(alone, n=10)[8]
        print(f"| {name} | {median(alone):.1f} | {p90:.1f} | {rate:.0f} | {cpu} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=400, help="requests alone and at once")
    parser.add_argument("--only", choices=("code", "server"))
    arguments = parser.parse_args()
    if arguments.only != "server":
        measure_code()
    if arguments.only != "code":
        measure_server(arguments.count)


if __name__ == "__main__":
    main()
