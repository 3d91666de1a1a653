"""Measure what raylens adds to three bare Serve deployments, and what each hop of a request takes.

``python -m benchmarks.overhead`` serves a model that takes no time behind three graphs, one after
the other, and sends each the same JSON with the same JPEG of 100 KB:

- ``bare``: an ingress, a deployment that decodes the picture, and the model, and nothing else;
- ``raylens``: the whole application, with keys and limits.

Both are measured again with a preprocessor that returns at once.

The targets: alone, the p50 of raylens is at most 5 ms above that of ``bare``; with 32 in flight it
answers at least 0.75 times as many requests a second. ``Server-Timing`` tells the stages of a
request alone, and the CPU time of each process its hops under load.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from statistics import fmean, median, quantiles

import httpx
import numpy as np
import psutil
import ray
from PIL import Image
from ray import serve
from ray.serve import Application

from raylens.core.keys import generate_key, hash_key
from testing.bare_graph import PATH, bare_graph
from testing.ports import free_port
from testing.stub_graph import MODEL, StubModel, build_stub_graph

KEY = generate_key()
MAX_ADDED_MS = 5.0
MIN_SHARE = 0.75
IN_FLIGHT = 32
WARM_UP = 400
HOPS = {
    "proxy": "ProxyActor",
    "ingress": "Ingress",
    "preprocessor": "Preprocessor",
    "model": f":{MODEL}",
}
"""Marks of the names of the processes that a request passes through."""
PICTURE_BYTES = 100_000
LIMITS = {"requests_per_minute": 10_000_000, "tokens_per_minute": 10**9, "max_in_flight": 1000}


def make_jpeg() -> bytes:
    """Return a JPEG of about ``PICTURE_BYTES``: a blurred photograph-like noise."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (60, 80, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((1024, 768), Image.Resampling.BICUBIC)
    best = b""
    for quality in range(30, 100):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        best = buffer.getvalue()
        if len(best) >= PICTURE_BYTES:
            break
    return best


def make_body(jpeg: bytes | None = None) -> bytes:
    """Return the JSON of a request with the picture, by default that of :func:`make_jpeg`."""
    picture_url = f"data:image/jpeg;base64,{base64.b64encode(jpeg or make_jpeg()).decode()}"
    fields = {"image_url": picture_url, "question": "What?", "model": MODEL}
    return httpx.Request("POST", "http://x", json=fields).read()


def our_graph(is_preprocessed: bool, model: type[StubModel] = StubModel) -> Application:
    args = {
        "log_level": "WARNING",
        "jobs": {"enabled": False},
        "client_limits": LIMITS,
        "auth": {"keys": [{"name": "overhead", "hash": hash_key(KEY)}]},
    }
    return build_stub_graph(args, model, real_preprocessor=is_preprocessed)


@contextmanager
def serving(application: Application) -> Iterator[str]:
    port = free_port()
    ray.init(address="local", num_cpus=4, log_to_driver=False, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port, "access_log": False})
    serve.run(application, name="raylens", route_prefix="/")
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


class Load:
    def __init__(self, client: httpx.AsyncClient, body: bytes) -> None:
        self._client = client
        self._body = body
        self.stages: dict[str, list[float]] = {}

    async def send(self) -> float:
        headers = {"Content-Type": "application/json", "X-Server-Timing": "1"}
        started = time.perf_counter()
        response = await self._client.post(PATH, content=self._body, headers=headers)
        elapsed = 1000 * (time.perf_counter() - started)
        response.raise_for_status()
        for entry in response.headers.get("Server-Timing", "").split(", "):
            if entry:
                name, _, duration = entry.partition(";dur=")
                self.stages.setdefault(name, []).append(float(duration))
        return elapsed

    async def alone(self, count: int) -> list[float]:
        return [await self.send() for _ in range(count)]

    async def rate(self, count: int) -> float:
        """Return the requests a second with ``IN_FLIGHT`` in flight."""
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def send() -> None:
            async with slots:
                await self.send()

        started = time.perf_counter()
        await asyncio.gather(*(send() for _ in range(count)))
        return count / (time.perf_counter() - started)


def cpu_seconds() -> dict[str, float]:
    """Return the CPU time of each hop so far."""
    result = dict.fromkeys(HOPS, 0.0)
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error):
            name = " ".join(process.info["cmdline"] or [])
            for hop, mark in HOPS.items():
                if name.startswith("ray::") and mark in name:
                    result[hop] += sum(process.cpu_times()[:2])
    return result


async def measure(
    url: str, body: bytes, count: int
) -> tuple[list[float], float, dict[str, float], dict[str, float]]:
    """Return the milliseconds alone, the rate with ``IN_FLIGHT``, the median milliseconds of each
    stage alone, and the milliseconds of CPU that each hop takes for a request at that rate."""
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
        load = Load(client, body)
        await load.rate(WARM_UP)  # the cluster before it is still ending, too
        await load.alone(50)
        load.stages.clear()
        alone = await load.alone(count)
        stages = {name: median(values) for name, values in load.stages.items()}
        before = cpu_seconds()
        rate = await load.rate(2 * count)
        used = {hop: total - before[hop] for hop, total in cpu_seconds().items()}
        return alone, rate, stages, {hop: 1000 * used[hop] / (2 * count) for hop in HOPS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=500, help="requests alone; twice at once")
    arguments = parser.parse_args()
    jpeg = make_jpeg()
    body = make_body(jpeg)
    graphs = {
        f"{name}, {what}": (make, is_preprocessed)
        for what, is_preprocessed in (("preprocessing", True), ("no preprocessing", False))
        for name, make in (("bare", bare_graph), ("raylens", our_graph), ("bare again", bare_graph))
    }
    print(f"a JPEG of {len(jpeg)} bytes\n")
    rate_name = f"requests/s, {IN_FLIGHT} in flight"
    print(f"| graph | alone p50 ms | p99 ms | {rate_name} | stages, ms | CPU, ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    medians, rates = {}, {}
    for name, (make, is_preprocessed) in graphs.items():
        with serving(make(is_preprocessed)) as url:
            alone, rate, stages, hops = asyncio.run(measure(url, body, arguments.count))
        medians[name], rates[name] = median(alone), rate
        p99 = quantiles(alone, n=100)[98]
        told = ", ".join(f"{stage} {value:.1f}" for stage, value in stages.items())
        cpu = ", ".join(f"{hop} {value:.1f}" for hop, value in hops.items())
        row = f"{median(alone):.1f} | {p99:.1f} | {rate:.0f} | {told} | {cpu}"
        print(f"| {name} | {row} |", flush=True)
    is_met = True
    for what in ("preprocessing", "no preprocessing"):
        bare = [f"bare, {what}", f"bare again, {what}"]
        added = medians[f"raylens, {what}"] - fmean(medians[name] for name in bare)
        share = rates[f"raylens, {what}"] / fmean(rates[name] for name in bare)
        is_met = is_met and added <= MAX_ADDED_MS and share >= MIN_SHARE
        print(f"\n{what}: {added:.1f} ms more; {share:.2f} of the rate")
    raise SystemExit(not is_met)


if __name__ == "__main__":
    main()
