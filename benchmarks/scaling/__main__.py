"""Measure how models scale: throughput by replicas, autoscaling, and questions about one picture.

``python -m benchmarks.scaling`` starts servers whose model answers after a fixed time, so that the
rest of the graph is what is measured. The targets:

- With 2 and 4 replicas the throughput is at least 0.9 times 2 and 4 times that of one.
- Under a step of load, a model goes from 1 to 4 replicas and back, and from 0 to 1; no request
  fails, and a second replica answers within 15 s. ``--plot`` writes a picture of it.
- With 4 replicas, three questions about each picture, and one picture in 30% of all requests, at
  least 0.6 of the requests meet a replica that has seen their picture, and no replica takes more
  than 1.25 times its share.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import ray
import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from testing.pictures import encode_picture, random_pixels
from testing.ports import free_port

PATH = "/v1/query"
MODEL = "timed"
BATCH = 4
WAITING = 60
SECONDS = 0.2
MIN_LINEAR = 0.9
MAX_UP_S = 15.0
MIN_HITS = 0.6
MAX_SHARE = 1.25


@dataclass(frozen=True)
class Answer:
    """One request. Times are in seconds since the start of the measurement."""

    sent_at: float
    seconds: float
    status: int
    replica: str = ""
    was_seen: bool = False


def timed(scaling: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return the shipped configuration with one timed model, scaled as ``scaling`` says."""
    config: dict[str, Any] = yaml.safe_load(Path("serve_config.yaml").read_text())
    (application,) = config["applications"]
    application["import_path"] = "testing.timed_graph:build_timed_app"
    model = {
        "name": MODEL,
        "family": "smolvlm",
        "checkpoint": str(seconds),
        "max_batch_size": BATCH,
        "max_waiting": WAITING,
    }
    application["args"] = {"models": [model], "jobs": {"enabled": False}}
    by_name = {deployment["name"]: deployment for deployment in application["deployments"]}
    deployment = {
        **by_name["smolvlm"],
        "name": MODEL,
        "ray_actor_options": {"num_cpus": 0.1},
        "autoscaling_config": {**by_name["smolvlm"]["autoscaling_config"], **scaling},
    }
    if "num_replicas" in scaling:
        del deployment["autoscaling_config"]
        deployment |= scaling
    application["deployments"] = [by_name["Ingress"], by_name["Preprocessor"], deployment]
    return config


@contextmanager
def server(scaling: dict[str, Any], seconds: float = SECONDS) -> Iterator[str]:
    with deployed(timed(scaling, seconds), num_cpus=4) as url:
        yield url


@contextmanager
def deployed(config: dict[str, Any], num_cpus: int) -> Iterator[str]:
    """Deploy a Serve config on a Ray of its own, and yield the URL."""
    port = free_port()
    config["http_options"]["port"] = port
    ray.init(address="local", num_cpus=num_cpus, log_to_driver=False, include_dashboard=False)
    serve.start(http_options=config["http_options"])
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=True)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


class Client:
    """Asks questions, and keeps what became of them."""

    def __init__(self, url: str) -> None:
        limits = httpx.Limits(max_connections=256)
        self._http = httpx.AsyncClient(base_url=url, timeout=90, limits=limits)
        self._started = time.perf_counter()
        self.answers: list[Answer] = []

    @property
    def now(self) -> float:
        return time.perf_counter() - self._started

    async def ask(self, image_url: str | None = None) -> None:
        sent_at = self.now
        picture = {} if image_url is None else {"image_url": image_url}
        body = {"model": MODEL, "question": "what is it?", **picture}
        response = await self._http.post(PATH, json=body)
        replica, _, verdict = (response.json().get("answer") or "").partition(" ")
        seconds = self.now - sent_at
        status = response.status_code
        self.answers.append(Answer(sent_at, seconds, status, replica, verdict == "seen"))

    async def keep_asking(self, in_flight: int, seconds: float) -> None:
        """Have ``in_flight`` requests in flight at any time."""
        until = self.now + seconds

        async def ask_on() -> None:
            while self.now < until:
                await self.ask()

        await asyncio.gather(*(ask_on() for _ in range(in_flight)))

    @property
    def failed(self) -> int:
        return sum(answer.status != 200 for answer in self.answers)


async def measure_throughput(url: str, replicas: int, seconds: float) -> float:
    """Return the answers a second."""
    client = Client(url)
    await client.keep_asking(2 * BATCH * replicas, 3)
    client = Client(url)
    await client.keep_asking(2 * BATCH * replicas, seconds)
    return len(client.answers) / client.now


def compare_throughput(seconds: float) -> bool:
    """Print a table of the throughput by replicas. Returns whether the target is met."""
    print("| replicas | requests/s | of linear |\n| --- | --- | --- |")
    rates: dict[int, float] = {}
    for replicas in (1, 2, 4):
        with server({"num_replicas": replicas}) as url:
            rates[replicas] = asyncio.run(measure_throughput(url, replicas, seconds))
        linear = rates[replicas] / (replicas * rates[1])
        print(f"| {replicas} | {rates[replicas]:.1f} | {linear:.2f} |", flush=True)
    return all(rates[count] >= MIN_LINEAR * count * rates[1] for count in rates)


async def step(url: str, loads: Sequence[tuple[int, float]]) -> Client:
    """Send loads (requests in flight, seconds), one after the other."""
    client = Client(url)
    for in_flight, seconds in loads:
        await client.keep_asking(in_flight, seconds)
    return client


def replicas_by_second(answers: Sequence[Answer]) -> list[int]:
    """Return how many replicas answered in each second."""
    seen: dict[int, set[str]] = {}
    for answer in answers:
        seen.setdefault(int(answer.sent_at + answer.seconds), set()).add(answer.replica)
    return [len(seen.get(second, ())) for second in range(max(seen) + 1)]


def scale(plot: Path | None, load_s: float, calm_s: float) -> bool:
    """Print what happens under a step of load. Returns whether the target is met."""
    fast = {"max_replicas": 4, "downscale_delay_s": 15}
    loads = [(2, 10.0), (4 * BATCH, load_s), (2, calm_s)]
    with server(fast) as url:
        client = asyncio.run(step(url, loads))
    counts = replicas_by_second(client.answers)
    step_at = loads[0][1]
    up_at = next((second for second, count in enumerate(counts) if count > 1), 10**6)
    print(
        f"\n1 to {max(counts)} to {counts[-2]} replicas: {client.failed} of"
        f" {len(client.answers)} failed; the second one answers after {up_at - step_at:.0f} s"
    )
    if plot is not None:
        draw_step(plot, loads, client.answers, counts)
    is_met = client.failed == 0 and max(counts) == 4 and counts[-2] == 1
    is_met &= up_at - step_at <= MAX_UP_S
    with server({**fast, "min_replicas": 0}) as url:
        client = asyncio.run(step(url, [(1, 5.0)]))
    first = max(client.answers, key=lambda answer: answer.seconds)
    print(
        f"0 to 1: {client.failed} of {len(client.answers)} failed; the first one took"
        f" {first.seconds:.1f} s"
    )
    return is_met and client.failed == 0


def draw_step(
    path: Path, loads: Sequence[tuple[int, float]], answers: Sequence[Answer], counts: Sequence[int]
) -> None:
    """Draw the load, the replicas and the latency over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, middle, bottom) = pyplot.subplots(3, sharex=True, figsize=(8, 6))
    at, times, in_flight = 0.0, [0.0], [0]
    for load, seconds in loads:
        times += [at, at + seconds]
        in_flight += [load, load]
        at += seconds
    top.plot(times, in_flight)
    top.set_ylabel("requests in flight")
    middle.step(range(len(counts)), counts, where="post")
    middle.set_ylabel("replicas that answer")
    bottom.plot([answer.sent_at for answer in answers], [a.seconds for a in answers], ".", ms=2)
    bottom.set_ylabel("latency, s")
    bottom.set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=80)


async def ask_about_pictures(url: str, pictures: int, in_flight: int) -> Client:
    """Ask three questions about each picture, and about one of them in 30% of all requests."""
    rng = random.Random(0)
    urls = [_small_picture(seed) for seed in range(pictures + 1)]
    order = 3 * urls[1:]
    order += [urls[0]] * round(len(order) * 0.3 / 0.7)
    rng.shuffle(order)
    client = Client(url)
    remaining = iter(order)

    async def ask_on() -> None:
        for image_url in remaining:
            await client.ask(image_url)

    await asyncio.gather(*(ask_on() for _ in range(in_flight)))
    return client


def _small_picture(seed: int) -> str:
    picture = encode_picture(random_pixels(32, 32, seed))
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def check_affinity(pictures: int) -> bool:
    """Print hits and shares. Returns whether the target is met."""
    replicas = 4
    with server({"num_replicas": replicas}, 0.05) as url:
        client = asyncio.run(ask_about_pictures(url, pictures, 16))
    counts = Counter(answer.replica for answer in client.answers)
    hits = sum(answer.was_seen for answer in client.answers) / len(client.answers)
    share = max(counts.values()) * replicas / len(client.answers)
    print(
        f"\naffinity: {hits:.3f} of {len(client.answers)} requests met a replica that had seen"
        f" their picture; the busiest replica took {share:.2f} of its share"
    )
    return client.failed == 0 and hits >= MIN_HITS and share <= MAX_SHARE


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plot", type=Path, help="a PNG file for the step of load")
    arguments = parser.parse_args()
    parts: list[Callable[[], bool]] = [
        lambda: compare_throughput(20),
        lambda: scale(arguments.plot, 60, 60),
        lambda: check_affinity(200),
    ]
    sys.exit(0 if all([part() for part in parts]) else 1)


if __name__ == "__main__":
    main()
