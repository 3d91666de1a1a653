"""Measure what a client notices while another one floods the server.

``python -m benchmarks.flood`` starts a server with two keys and one replica of each deployment, and
has the key ``steady`` send one request a second in four phases:

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
import json
import random
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from benchmarks.target import target
from models.pocket.drawing import draw, encode
from models.pocket.scenes import random_scene
from raylens.cli.processes import find_marked
from raylens.core.keys import generate_key, hash_key

MODEL = "smolvlm"
FULL = 47
"""Requests in flight that, with one of ``steady``, keep a batch of 16 (``max_batch_size`` in
serve_config.yaml) full: they spend two thirds of their time elsewhere."""
OVERLOAD = 4
PATH = "/v1/caption"
MAX_CONNECTIONS = 256
"""Of the flood. What finds none free isn't sent."""
PAUSE_S = 5.0
MAX_SLOWDOWN = 1.3
MAX_REFUSAL_S = 0.1
MAX_AFTER = 1.5
"""How many times longer a request may take after the flood than before it: noise."""
MAX_GROWTH = 1.1
"""Of the memory since the full batch."""
KEYS = {name: generate_key() for name in ("steady", "flood")}
MARK = "raylens-flood"


@dataclass
class Phase:
    """What one phase has seen. Times are in seconds."""

    name: str
    steady_s: list[float] = field(default_factory=list)
    steady_refused: int = 0
    flood: Counter[str] = field(default_factory=Counter)
    refusal_s: list[float] = field(default_factory=list)
    seconds: float = 0.0
    bytes_after: int = 0

    def row(self) -> str:
        refusals = f"{1000 * p99(self.refusal_s):.0f}" if self.refusal_s else "–"
        answered = self.flood["200"]
        refused = self.flood["503"] + self.flood["429"]
        return (
            f"| {self.name} | {1000 * median(self.steady_s):.0f} | {1000 * p99(self.steady_s):.0f}"
            f" | {self.steady_refused} | {answered / self.seconds:.1f} | {refused}"
            f" | {refusals} | {self.bytes_after / 2**20:.0f} |"
        )


def p99(values: list[float]) -> float:
    if not values:
        return 0.0
    return quantiles(values, n=100, method="inclusive")[98] if len(values) > 1 else values[0]


def change(config: dict[str, Any]) -> None:
    """Add the keys, and fix the number of replicas: what the server can do must not change while it
    is measured."""
    for deployment in config["applications"][0]["deployments"]:
        deployment.pop("autoscaling_config", None)
    keys = [{"name": name, "hash": hash_key(key)} for name, key in KEYS.items()]
    config["applications"][0]["args"]["auth"] = {"keys": keys}


def make_bodies(seed: int) -> list[dict[str, Any]]:
    """Return requests about pictures that the server has not seen."""
    rng = random.Random(seed)
    bodies = []
    for _ in range(64):
        data, media_type = encode(draw(random_scene(rng, 512), rng), rng)
        url = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
        bodies.append({"model": MODEL, "image_url": url, "length": "long"})
    return bodies


async def be_steady(url: str, phase: Phase, seconds: float) -> None:
    """Send one request a second."""
    bodies = make_bodies(1)
    headers = {"Authorization": f"Bearer {KEYS['steady']}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:

        async def send(number: int) -> None:
            started = time.perf_counter()
            response = await client.post(PATH, json=bodies[number % len(bodies)])
            phase.steady_s.append(time.perf_counter() - started)
            phase.steady_refused += response.status_code != 200

        async with asyncio.TaskGroup() as group:
            for number in range(round(seconds)):
                group.create_task(send(number))
                await asyncio.sleep(1)


async def flood(url: str, phase: Phase, seconds: float, rate: float) -> None:
    """Send requests at a rate; with a rate of 0, keep the batch full, and no more."""
    address = urlsplit(url)
    settings = {
        "host": address.hostname,
        "port": address.port,
        "requests": [base64.b64encode(_as_http(body)).decode() for body in make_bodies(2)],
        "rate": rate,
        "seconds": seconds,
        "connections": MAX_CONNECTIONS if rate else FULL,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.raw_sender"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate(json.dumps(settings).encode())
    report = json.loads(output)
    phase.flood.update(report["statuses"])
    phase.refusal_s = report["refusal_s"]


def _as_http(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEYS['flood']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def server_bytes() -> int:
    """Return the memory of the server's processes that nothing else uses."""
    total = 0
    for process in find_marked("RAYLENS_TEST", MARK):
        with suppress(psutil.Error):
            total += psutil.Process(process.pid).memory_full_info().uss
    return total


async def measure(url: str, phase: Phase, seconds: float, rate: float | None = None) -> None:
    """Measure a phase. Without a rate, nobody floods."""
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        group.create_task(be_steady(url, phase, seconds))
        if rate is not None:
            group.create_task(flood(url, phase, seconds, rate))
    phase.seconds = time.perf_counter() - started
    phase.bytes_after = server_bytes()
    print(phase.row(), flush=True)


async def run(url: str, seconds: float) -> int:
    """Print the table. Returns the exit status: 0 if all targets are met."""
    await be_steady(url, Phase("warm-up"), 5)
    alone, full, flooded, after = map(Phase, ("alone", "full batch", "flood", "alone again"))
    print(
        "| phase | steady p50 ms | p99 ms | refused | flood answered/s | flood refused"
        " | refusal p99 ms | server MiB |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    await measure(url, alone, seconds)
    await measure(url, full, seconds, 0.0)
    rate = OVERLOAD * full.flood["200"] / full.seconds
    await measure(url, flooded, seconds, rate)
    await asyncio.sleep(PAUSE_S)
    await measure(url, after, seconds)
    slowdown = p99(flooded.steady_s) / p99(full.steady_s)
    told = f"{slowdown:.2f} of a full batch"
    print(f"\nthe flood: {rate:.0f} requests/s; p99 of steady: {told}")
    print(f"the flood's answers: {dict(flooded.flood)}")
    is_met = (
        sum(phase.steady_refused for phase in (alone, full, flooded, after)) == 0
        and full.flood["200"] > 0
        and len(flooded.refusal_s) > 0
        and slowdown <= MAX_SLOWDOWN
        and p99(flooded.refusal_s) <= MAX_REFUSAL_S
        and median(after.steady_s) <= MAX_AFTER * median(alone.steady_s)
        and after.bytes_after <= MAX_GROWTH * full.bytes_after
    )
    return 0 if is_met else 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of each phase")
    arguments = parser.parse_args()
    with target(None, change, {"RAYLENS_TEST": MARK}) as url:
        status = asyncio.run(run(url, arguments.seconds))
    raise SystemExit(status)


if __name__ == "__main__":
    main()
