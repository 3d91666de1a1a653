"""Measure what a client notices while another one floods the server.

``python -m benchmarks.flood`` starts a server with two keys, and has the key ``steady`` send one
request a second in four phases:

1. alone;
2. while ``flood`` keeps the model's batch full, and no more: the baseline;
3. while ``flood`` sends four times the requests a second that the server answered in phase 2;
4. alone again, 5 seconds later.

The targets: in phase 3 no request of ``steady`` is refused, and its p99 is at most 1.3 times that
of phase 2; the p99 of refusals is at most 100 ms; phase 4 is as phase 1, and the server's memory
has not grown.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import httpx
import psutil

from benchmarks.target import target
from models.pocket.drawing import draw, encode
from models.pocket.scenes import random_scene
from raylens.cli.processes import find_marked
from raylens.core.keys import generate_key, hash_key

MODEL = "smolvlm"
BATCH = 16
"""``max_batch_size`` of the model in serve_config.yaml."""
OVERLOAD = 4
PAUSE_S = 5.0
MAX_SLOWDOWN = 1.3
MAX_REFUSAL_S = 0.1
KEYS = {name: generate_key() for name in ("steady", "flood")}
MARK = "raylens-flood"


@dataclass
class Phase:
    """What one phase has seen. Times are in seconds."""

    name: str
    steady_s: list[float] = field(default_factory=list)
    steady_refused: int = 0
    flood: Counter[int] = field(default_factory=Counter)
    refusal_s: list[float] = field(default_factory=list)
    seconds: float = 0.0
    bytes_after: int = 0

    def row(self) -> str:
        refusals = f"{1000 * p99(self.refusal_s):.0f}" if self.refusal_s else "–"
        refused = self.flood.total() - self.flood[200]
        return (
            f"| {self.name} | {1000 * median(self.steady_s):.0f} | {1000 * p99(self.steady_s):.0f}"
            f" | {self.steady_refused} | {self.flood[200] / self.seconds:.1f} | {refused}"
            f" | {refusals} | {self.bytes_after / 2**20:.0f} |"
        )


def p99(values: list[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[98] if len(values) > 1 else values[0]


def add_keys(config: dict[str, Any]) -> None:
    keys = [{"name": name, "hash": hash_key(key)} for name, key in KEYS.items()]
    config["applications"][0]["args"]["auth"] = {"keys": keys}


class Sender:
    """Sends requests of one key, each about a picture of its own."""

    def __init__(self, url: str, key: str, seed: int) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
        headers = {"Authorization": f"Bearer {KEYS[key]}"}
        self.client = httpx.AsyncClient(base_url=url, headers=headers, timeout=60, limits=limits)
        rng = random.Random(seed)
        self._bodies = [self._body(rng) for _ in range(64)]
        self._next = 0

    @staticmethod
    def _body(rng: random.Random) -> dict[str, Any]:
        data, media_type = encode(draw(random_scene(rng, 512), rng), rng)
        url = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
        return {"model": MODEL, "image_url": url, "length": "long"}

    async def send(self) -> tuple[int, float]:
        """Return the status of a request, and its seconds."""
        self._next += 1
        body = self._bodies[self._next % len(self._bodies)]
        started = time.perf_counter()
        response = await self.client.post("/v1/caption", json=body)
        return response.status_code, time.perf_counter() - started


async def be_steady(sender: Sender, phase: Phase, seconds: float) -> None:
    """Send one request a second."""

    async def send() -> None:
        status, elapsed = await sender.send()
        phase.steady_s.append(elapsed)
        phase.steady_refused += status != 200

    async with asyncio.TaskGroup() as group:
        for _ in range(round(seconds)):
            group.create_task(send())
            await asyncio.sleep(1)


async def flood(sender: Sender, phase: Phase) -> None:
    try:
        status, elapsed = await sender.send()
    except httpx.TimeoutException:
        status, elapsed = 0, sender.client.timeout.read or 0.0
    phase.flood[status] += 1
    if status != 200:
        phase.refusal_s.append(elapsed)


async def fill_batch(sender: Sender, phase: Phase) -> None:
    async def repeat() -> None:
        while True:
            await flood(sender, phase)

    async with asyncio.TaskGroup() as group:
        for _ in range(BATCH - 1):
            group.create_task(repeat())


async def flood_at(sender: Sender, phase: Phase, per_second: float) -> None:
    async with asyncio.TaskGroup() as group:
        due = time.perf_counter()
        while True:
            group.create_task(flood(sender, phase))
            due += 1 / per_second
            await asyncio.sleep(max(0.0, due - time.perf_counter()))


@asynccontextmanager
async def running(work: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def server_bytes() -> int:
    """Return the memory of the server's processes that nothing else uses."""
    total = 0
    for process in find_marked("RAYLENS_TEST", MARK):
        with suppress(psutil.Error):
            total += psutil.Process(process.pid).memory_full_info().uss
    return total


async def run(url: str, seconds: float) -> int:
    """Print the table. Returns the exit status: 0 if all targets are met."""
    steady, flooding = Sender(url, "steady", 1), Sender(url, "flood", 2)
    for _ in range(10):
        await steady.send()
    phases = [Phase(name) for name in ("alone", "full batch", "flood", "alone again")]
    alone, full, flooded, after = phases

    async def measure(phase: Phase, work: Any = None) -> None:
        started = time.perf_counter()
        async with running(work or asyncio.sleep(0)):
            await be_steady(steady, phase, seconds)
        phase.seconds = time.perf_counter() - started
        phase.bytes_after = server_bytes()
        print(phase.row(), flush=True)

    print(
        "| phase | steady p50 ms | p99 ms | refused | flood answered/s | flood refused"
        " | refusal p99 ms | server MiB |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    await measure(alone)
    await measure(full, fill_batch(flooding, full))
    rate = OVERLOAD * full.flood[200] / full.seconds
    await measure(flooded, flood_at(flooding, flooded, rate))
    await asyncio.sleep(PAUSE_S)
    await measure(after)
    slowdown = p99(flooded.steady_s) / p99(full.steady_s)
    told = f"{slowdown:.2f} of a full batch"
    print(f"\nthe flood: {rate:.0f} requests/s; p99 of steady: {told}")
    is_met = (
        flooded.steady_refused == 0
        and slowdown <= MAX_SLOWDOWN
        and p99(flooded.refusal_s) <= MAX_REFUSAL_S
    )
    return 0 if is_met else 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of each phase")
    arguments = parser.parse_args()
    with target(None, add_keys, {"RAYLENS_TEST": MARK}) as url:
        status = asyncio.run(run(url, arguments.seconds))
    raise SystemExit(status)


if __name__ == "__main__":
    main()
