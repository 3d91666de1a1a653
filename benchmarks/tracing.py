"""Measure what tracing adds to a request.

``python -m benchmarks.tracing`` serves the whole application over a model that takes no time, as
:mod:`benchmarks.overhead` does, and sends each round the same requests: without tracing, with a
trace of every request, with one of a hundred, and without tracing again. A collector takes the
spans.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from statistics import median, quantiles
from typing import Any

from benchmarks.overhead import IN_FLIGHT, make_body, measure, our_graph, serving
from deployments.stage_spans import follow_answers
from deployments.tracing import EXPORTER, EXPORTER_VARIABLE, RATIO_VARIABLE
from raylens.core.types import Delta, EngineTimings, FinishReason, Usage, VisionRequest
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


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that start meanwhile."""
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=500, help="requests alone; twice at once")
    count = parser.parse_args().count
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


if __name__ == "__main__":
    main()
