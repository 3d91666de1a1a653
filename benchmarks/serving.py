"""Measure the speed of the graph over HTTP.

``python -m benchmarks.serving`` captions the same drawn scene, one request at a time and then many
at a time. The baseline of the same run is ``GET /live``, which goes through proxy and ingress but
not through preprocessor and model.
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

Send = Callable[[httpx.AsyncClient], Awaitable[tuple[float, float]]]
"""Sends one request; returns the seconds to the first piece of the answer and to its end."""


async def get_live(client: httpx.AsyncClient) -> tuple[float, float]:
    started = time.perf_counter()
    (await client.get("/live")).raise_for_status()
    elapsed = time.perf_counter() - started
    return elapsed, elapsed


def make_caption_sender(picture_url: str) -> Send:
    async def send(client: httpx.AsyncClient) -> tuple[float, float]:
        started = time.perf_counter()
        first = 0.0
        body = {"image_url": picture_url, "length": "normal", "stream": True}
        async with client.stream("POST", "/v1/caption", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not first and line:
                    first = time.perf_counter() - started
        return first, time.perf_counter() - started

    return send


async def measure(
    name: str, send: Send, client: httpx.AsyncClient, count: int, in_flight: int
) -> str:
    """Return one row of the table, measured after a warm-up."""
    slots = asyncio.Semaphore(in_flight)

    async def send_one() -> tuple[float, float]:
        async with slots:
            return await send(client)

    await asyncio.gather(*(send_one() for _ in range(min(count, 2 * in_flight))))
    started = time.perf_counter()
    times = await asyncio.gather(*(send_one() for _ in range(count)))
    rate = count / (time.perf_counter() - started)
    firsts = [1000 * first for first, _ in times]
    totals = [1000 * total for _, total in times]
    first_p99 = quantiles(firsts, n=100)[98]
    total_p99 = quantiles(totals, n=100)[98]
    return (
        f"| {name} | {in_flight} | {rate:.1f} | {median(firsts):.1f} | {first_p99:.1f}"
        f" | {median(totals):.1f} | {total_p99:.1f} |"
    )


async def run(url: str, count: int) -> None:
    rng = random.Random(7)
    data, media_type = encode(draw(random_scene(rng, 512), rng), rng)
    send = make_caption_sender(f"data:{media_type};base64,{base64.b64encode(data).decode()}")
    print(
        "| request | in flight | per second | first piece p50 ms | first piece p99 ms"
        " | whole answer p50 ms | whole answer p99 ms |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        for in_flight in (1, 16):
            print(await measure("GET /live (baseline)", get_live, client, count, in_flight))
            print(await measure("caption, streamed", send, client, count, in_flight))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default=None, help="measure the server at this URL")
    parser.add_argument("--count", type=int, default=200)
    arguments = parser.parse_args()
    with target(arguments.url) as url:
        asyncio.run(run(url, arguments.count))


if __name__ == "__main__":
    main()
