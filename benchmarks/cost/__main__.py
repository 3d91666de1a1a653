"""Measure what a request costs in each process, in CPU time.

``python -m benchmarks.cost`` sends requests to a server whose model only waits, so that everything
but the model is measured, and prints the milliseconds of CPU time that each process takes for one.
It then prints what the processes take while nothing happens, by the number of replicas, and how
long a picture takes from the preprocessor's node to the model's.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import psutil
import ray
from ray import serve
from ray.cluster_utils import Cluster

from benchmarks.photograph import draw_photograph
from benchmarks.scaling.__main__ import MODEL, deployed, timed

PROCESSES = {
    "ray::ProxyActor": "proxy",
    "ray::ServeReplica:raylens:Ingress": "ingress",
    "ray::ServeReplica:raylens:Preprocessor": "preprocessor",
    f"ray::ServeReplica:raylens:{MODEL}": "model's replica",
    "ray::JobQueueActor": "job queue",
    "ray::ServeController": "controller",
    "raylet": "raylet",
    "gcs_server": "GCS",
}
IN_FLIGHT = 4
PARTS = 32
"""Of an answer that is streamed."""
IDLE_S = 15.0


@dataclass(frozen=True)
class Kind:
    name: str
    path: str
    body: dict[str, Any]


def kinds() -> list[Kind]:
    def picture(width: int, height: int) -> str:
        data = base64.b64encode(draw_photograph(width, height, 0)).decode()
        return f"data:image/jpeg;base64,{data}"

    question = {"model": MODEL, "question": "what is it?"}
    with_picture = {**question, "image_url": picture(640, 480)}
    return [
        Kind("a question", "/v1/query", question),
        Kind("with a picture of 640×480", "/v1/query", with_picture),
        Kind("with one of 1920×1080", "/v1/query", {**question, "image_url": picture(1920, 1080)}),
        Kind(
            f"a picture, {PARTS} streamed parts",
            "/v1/query",
            {**with_picture, "stream": True},
        ),
        Kind(
            "a job with a picture",
            "/api/v1/jobs",
            {
                "job_type": "query",
                "input": {
                    "image": with_picture["image_url"],
                    "question": "what is it?",
                    "model": MODEL,
                },
            },
        ),
    ]


@contextmanager
def server(replicas: int, folder: str) -> Iterator[str]:
    scaling = {"min_replicas": replicas, "max_replicas": replicas}  # autoscaled, as shipped
    config = timed(scaling, 0.005)
    (application,) = config["applications"]
    application["args"]["jobs"] = {"data_dir": folder, "capacity": 10_000, "workers": IN_FLIGHT}
    application["args"]["dialect_models"] = {"jobs": MODEL}
    application["args"]["models"][0]["checkpoint"] = f"0.001*{PARTS}"
    application["deployments"][-1]["ray_actor_options"] = {"num_cpus": 0.01}
    with deployed(config, num_cpus=8) as url:
        yield url


def cpu_seconds() -> dict[str, float]:
    """Return the CPU time of this server's processes by their names, in seconds."""
    seconds = dict.fromkeys(PROCESSES.values(), 0.0)
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline()) or process.name()
            times = process.cpu_times()
        except psutil.Error:
            continue
        program = command.split(" ")[0].rsplit("/", 1)[-1]
        for mark, name in PROCESSES.items():
            if command.startswith(mark) or program == mark:
                seconds[name] += times.user + times.system
                break
    return seconds


def idle(seconds: float) -> dict[str, float]:
    """Return the CPU seconds a second of each process while nothing happens."""
    before = cpu_seconds()
    time.sleep(seconds)
    after = cpu_seconds()
    return {name: (after[name] - before[name]) / seconds for name in PROCESSES.values()}


def status_cost() -> float:
    """Return the CPU milliseconds that the controller takes to tell the application's status."""
    rate = idle(5.0)["controller"]
    before, started = cpu_seconds()["controller"], time.perf_counter()
    for _ in range(100):
        serve.status()
    seconds = time.perf_counter() - started
    return 1000 * (cpu_seconds()["controller"] - before - rate * seconds) / 100


async def send(url: str, kind: Kind, requests: int) -> None:
    """Send requests, ``IN_FLIGHT`` at a time, and wait until all jobs have ended."""
    remaining = iter(range(requests))
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:

        async def ask_on() -> None:
            for _ in remaining:
                response = await http.post(kind.path, json=kind.body)
                response.raise_for_status()

        await asyncio.gather(*(ask_on() for _ in range(IN_FLIGHT)))
        while kind.path == "/api/v1/jobs":
            counts = (await http.get("/caption/stats")).json()
            if not counts["waiting"] + counts["running"]:
                return
            await asyncio.sleep(0.2)


def measure(url: str, kind: Kind, requests: int, idle_rates: dict[str, float]) -> dict[str, float]:
    """Return the CPU milliseconds a request of each process, without what it takes anyway."""
    asyncio.run(send(url, kind, 40))
    before, started = cpu_seconds(), time.perf_counter()
    asyncio.run(send(url, kind, requests))
    after, seconds = cpu_seconds(), time.perf_counter() - started
    return {
        name: 1000 * (after[name] - before[name] - rate * seconds) / requests
        for name, rate in idle_rates.items()
    }


class _Holder:
    def make(self, shape: tuple[int, int, int]) -> np.ndarray[Any, Any]:
        return np.zeros(shape, np.uint8)

    def read(self, pixels: np.ndarray[Any, Any]) -> int:
        return int(pixels[0, 0, 0])


def measure_transfers(repeats: int) -> None:
    """Print the time of a call with a picture of the same node, and with one of another node."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "resources": {"a": 1}})
    cluster.add_node(num_cpus=1, resources={"b": 1})
    ray.init(address=cluster.address, log_to_driver=False)
    actor = ray.remote(_Holder)
    near, far = (actor.options(num_cpus=0, resources={name: 0.1}) for name in "ab")
    model, holders = near.remote(), {"same": near.remote(), "other": far.remote()}
    print("\na call with a picture | same node, ms | other node, ms")
    for width, height in ((640, 480), (2048, 1536)):
        medians = []
        for holder in holders.values():
            seconds = []
            for _ in range(repeats):
                picture = holder.make.remote((height, width, 3))
                ray.wait([picture], fetch_local=False)
                started = time.perf_counter()
                ray.get(model.read.remote(picture))
                seconds.append(time.perf_counter() - started)
            medians.append(1000 * statistics.median(seconds))
        print(f"{width}×{height} | {medians[0]:.1f} | {medians[1]:.1f}", flush=True)
    ray.shutdown()
    cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=300, help="of each kind")
    parser.add_argument("--replicas", type=int, nargs="*", default=[1, 17])
    arguments = parser.parse_args()
    names = list(PROCESSES.values())
    with tempfile.TemporaryDirectory() as folder, server(1, folder) as url:
        rates = idle(IDLE_S)
        print(f"CPU milliseconds a request | {' | '.join(names)} | all")
        for kind in kinds():
            costs = measure(url, kind, arguments.requests, rates)
            cells = [f"{costs[name]:.1f}" for name in names]
            print(f"{kind.name} | {' | '.join(cells)} | {sum(costs.values()):.1f}", flush=True)
    print(f"\nidle, CPU milliseconds a second | {' | '.join(names)} | controller, of a status")
    for replicas in arguments.replicas:
        with tempfile.TemporaryDirectory() as folder, server(replicas, folder):
            time.sleep(10)
            rates = idle(2 * IDLE_S)
            cells = [f"{1000 * rates[name]:.1f}" for name in names]
            print(
                f"{replicas} model replicas | {' | '.join(cells)} | {status_cost():.1f}", flush=True
            )
    measure_transfers(40)


if __name__ == "__main__":
    main()
