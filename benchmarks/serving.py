"""How fast the graph answers over HTTP.

``python -m benchmarks.serving`` sends the same drawn scene, as one caption after another and many
at a time. The baseline is ``GET /live`` in the same run: proxy and ingress without preprocessor and
model.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import random
import time
from collections.abc import Awaitable, Callable
from statistics import median, quantiles

import httpx

from benchmarks.target import target
from models.pocket.drawing import draw, encode
from models.pocket.scenes import random_scene

Ask = Callable[[httpx.AsyncClient], Awaitable[tuple[float, float]]]
"""Sends one request; seconds to the first piece of the answer, and to its end."""


async def live(client: httpx.AsyncClient) -> tuple[float, float]:
    started = time.perf_counter()
    (await client.get("/live")).raise_for_status()
    elapsed = time.perf_counter() - started
    return elapsed, elapsed


def caption(url: str) -> Ask:
    async def ask(client: httpx.AsyncClient) -> tuple[float, float]:
        started, first = time.perf_counter(), 0.0
        body = {"image_url": url, "length": "normal", "stream": True}
        async with client.stream("POST", "/v1/caption", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not first and line:
                    first = time.perf_counter() - started
        return first, time.perf_counter() - started

    return ask


async def measure(
    name: str, ask: Ask, client: httpx.AsyncClient, count: int, in_flight: int
) -> str:
    """One row of the table."""
    places = asyncio.Semaphore(in_flight)

    async def one() -> tuple[float, float]:
        async with places:
            return await ask(client)

    await asyncio.gather(*(one() for _ in range(min(count, 2 * in_flight))))
    started = time.perf_counter()
    times = await asyncio.gather(*(one() for _ in range(count)))
    rate = count / (time.perf_counter() - started)
    firsts, wholes = [1000 * t[0] for t in times], [1000 * t[1] for t in times]
    return (
        f"| {name} | {in_flight} | {rate:.1f} | {median(firsts):.1f} | {quantiles(firsts, n=100)[98]:.1f}"
        f" | {median(wholes):.1f} | {quantiles(wholes, n=100)[98]:.1f} |"
    )


async def run(url: str, count: int) -> None:
    rng = random.Random(7)
    data, media_type = encode(draw(random_scene(rng, 512), rng), rng)
    ask = caption(f"data:{media_type};base64,{base64.b64encode(data).decode()}")
    print(
        "| request | in flight | per second | first p50 ms | first p99 ms | whole p50 ms | whole p99 ms |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        for in_flight in (1, 16):
            print(await measure("GET /live (baseline)", live, client, count, in_flight))
            print(await measure("caption, streamed", ask, client, count, in_flight))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default=None, help="a server that runs already")
    parser.add_argument("--count", type=int, default=200)
    arguments = parser.parse_args()
    with target(arguments.url) as url:
        asyncio.run(run(url, arguments.count))


if __name__ == "__main__":
    main()
