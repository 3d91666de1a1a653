"""Measure what a client notices of others that hold connections and send almost nothing.

``python -m benchmarks.slow_clients`` starts a server and sends it a request at a time, first alone,
then beside 192 requests whose bodies trickle, 500 idle connections and heads of 20 MiB, all from
the same address, then alone again. The target: beside them, the p50 of a request is at most twice
that of the first phase, and none fails.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import math
import random
import sys
import time
from statistics import median, quantiles

import httpx

from benchmarks.target import target
from models.pocket.drawing import draw, encode
from models.pocket.scenes import random_scene
from testing.slow_clients import slow_clients

PATH = "/v1/caption"
PAUSE_S = 0.1
MAX_SLOWDOWN = 2.0


async def measure(url: str, name: str, count: int) -> list[float]:
    """Print a row of the table, and return the seconds of each request; infinity if one failed."""
    rng = random.Random(1)
    times, failed = [], 0
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        for _ in range(count):
            data, media_type = encode(draw(random_scene(rng, 512), rng), rng)
            image_url = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
            started = time.perf_counter()
            try:
                response = await client.post(PATH, json={"image_url": image_url})
                failed += response.status_code != 200
            except httpx.HTTPError:
                failed += 1
            times.append(time.perf_counter() - started)
            await asyncio.sleep(PAUSE_S)
    p99 = quantiles(times, n=100, method="inclusive")[98]
    print(f"| {name} | {1000 * median(times):.0f} | {1000 * p99:.0f} | {failed} |", flush=True)
    return times if not failed else [math.inf]


async def run(url: str, count: int) -> int:
    """Print the table. Returns the exit status: 0 if the target is met."""
    print("| phase | p50 ms | p99 ms | failed |\n| --- | --- | --- | --- |")
    await measure(url, "warm-up", 10)
    alone = await measure(url, "alone", count)
    async with slow_clients(url):
        beside = await measure(url, "beside slow clients", count)
    again = await measure(url, "alone again", count)
    is_met = max(map(median, (alone, again))) < math.inf
    return 0 if is_met and median(beside) <= MAX_SLOWDOWN * median(alone) else 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100, help="requests in each phase")
    arguments = parser.parse_args()
    with target(None) as url:
        sys.exit(asyncio.run(run(url, arguments.count)))


if __name__ == "__main__":
    main()
