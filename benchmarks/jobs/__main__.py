"""``python -m benchmarks.jobs``: submissions, jobs, reads and restarts, on SQLite and on
PostgreSQL, in one run.

The model takes no time, so every figure is the queue's, the transport's and the load generator's
own, which shares the machine. Baselines of the same run: a route that does nothing, and the disk's
durable writes a second.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import ray
from ray import serve

from benchmarks.jobs.app import BLOCK, MODEL, build_app
from deployments.graph import Graph
from raylens.core.config import AppConfig, JobsConfig
from raylens.core.types import Query
from raylens.jobs.factory import make_store
from raylens.jobs.inference import InferenceClient, Options
from raylens.jobs.job import Job, JobState, new_id
from testing.postgres import new_schema, postgres

WORKERS = 32
IN_FLIGHT = 64
BACKLOG = 10_000
MIB = 2**20


def job(question: str = "what is it?") -> Job:
    now = time.time()
    given = {"question": question}
    return Job(
        new_id(), "query", given, created_at=now, deadline=now + 3600, max_attempts=5, rank=now
    )


class Actor:
    """The queue's actor, called without HTTP."""

    def __init__(self) -> None:
        (found,) = [
            each
            for each in ray.util.list_named_actors(all_namespaces=True)
            if "DEPLOYMENT_ACTOR" in each["name"].upper()
        ]
        self._actor = ray.get_actor(found["name"], namespace=found["namespace"])

    async def __call__(self, method: str, *arguments: Any) -> Any:
        return await self._actor.call.remote(method, *arguments)


class Server:
    """The graph of :mod:`benchmarks.jobs.app` in this process's cluster."""

    def __init__(self, jobs: dict[str, Any]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._args = {"jobs": jobs, "log_level": "WARNING"}

    def __enter__(self) -> str:
        ray.init(address="local", num_cpus=4, log_to_driver=False, include_dashboard=False)
        serve.start(http_options={"host": "127.0.0.1", "port": self._port, "access_log": False})
        serve.run(build_app(self._args), name="raylens")
        return f"http://127.0.0.1:{self._port}"

    def __exit__(self, *_: object) -> None:
        serve.shutdown()
        ray.shutdown()


async def at_once(count: int, in_flight: int, call: Callable[[], Awaitable[Any]]) -> list[float]:
    """Makes ``count`` calls, and tells the seconds that each took."""
    room = asyncio.Semaphore(in_flight)

    async def one() -> float:
        async with room:
            started = time.perf_counter()
            await call()
            return time.perf_counter() - started

    return list(await asyncio.gather(*(one() for _ in range(count))))


async def until_done(actor: Actor, count: int) -> None:
    while (await actor("stats")).counts[JobState.SUCCEEDED] < count:
        await asyncio.sleep(0.05)


async def measure(store: str, url: str, count: int) -> list[tuple[str, str, str]]:
    """Rows: what, the figure, the target."""
    actor = Actor()
    await at_once(50, 8, lambda: actor("submit", job(), {}))
    await until_done(actor, 50)

    alone = []
    for _ in range(100):
        began = time.time()
        sent = await actor("submit", job(), {})
        while not sent.state.is_terminal:
            sent = await actor("watch", sent.id, sent, 5)
        alone.append(sent.finished_at - began)
    direct = await directly(100)
    queued = 1000 * (median(alone) - direct)
    rows = [
        ("one job alone, from submission to its end, p50", f"{1000 * median(alone):.1f} ms", ""),
        ("less the same request without the queue", f"{queued:.1f} ms", "≤ 10 ms"),
    ]

    before = (await actor("stats")).counts[JobState.SUCCEEDED]
    started = time.perf_counter()
    await at_once(count, IN_FLIGHT, lambda: actor("submit", job(), {}))
    accepted = time.perf_counter() - started
    await until_done(actor, before + count)
    ended = time.perf_counter() - started
    rows.append(("submissions through the actor", f"{count / accepted:.0f} a second", "≥ 300"))
    rows.append(
        (
            f"jobs from submission to end, {WORKERS} workers",
            f"{count / ended:.0f} a second",
            "≥ 150",
        )
    )

    body = {"job_type": "query", "input": {"question": "what is it?", "model": MODEL}}
    limits = httpx.Limits(max_connections=IN_FLIGHT)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:

        async def post(path: str) -> Any:
            return (await client.post(path, json=body)).raise_for_status().json()

        known = (await post("/api/v1/jobs"))["id"]
        await at_once(100, 16, lambda: post("/noop"))
        rates: dict[str, float] = {}
        reads: list[float] = []

        async def rate(name: str, path: str) -> None:
            started = time.perf_counter()
            await at_once(count // 2, 16, lambda: post(path))
            rates[name] = max(rates.get(name, 0.0), count / 2 / (time.perf_counter() - started))

        for _ in range(2):
            await rate("nothing", "/noop")
            await rate("running", "/api/v1/jobs")
        blocking = [await actor("submit", job(BLOCK), {}) for _ in range(WORKERS)]
        for _ in range(2):
            await rate("nothing", "/noop")
            await rate("waiting", "/api/v1/jobs")
        for each in blocking:
            await actor("cancel", each.id)
        load = asyncio.create_task(at_once(count, 16, lambda: post("/api/v1/jobs")))
        while not load.done():
            reads += await at_once(1, 1, lambda: client.get(f"/api/v1/jobs/{known}"))
        nothing = rates["nothing"]
        rows.append(
            ("a route that does nothing, over HTTP", f"{nothing:.0f} a second", "the baseline")
        )
        for name, what in (("waiting", "all workers busy"), ("running", "jobs running meanwhile")):
            share = f"{rates[name]:.0f} a second, {100 * rates[name] / nothing:.0f} %"
            rows.append((f"submissions over HTTP, {what}", share, "≥ 60 % of the baseline"))
        p50, p99 = 1000 * median(reads), 1000 * quantiles(reads, n=100)[98]
        rows.append(("`GET job` while 16 submit, p50 / p99", f"{p50:.1f} / {p99:.1f} ms", ""))
    return rows


async def directly(count: int) -> float:
    """Seconds that a job's own request takes of the graph, p50."""
    config = AppConfig.model_validate({"models": [{"name": MODEL, "family": "smolvlm"}]})
    names = ("Preprocessor", MODEL)
    preprocessor, model = (serve.get_deployment_handle(name, app_name="raylens") for name in names)
    inference = InferenceClient(Graph(config, "raylens", preprocessor, {MODEL: model}), config)
    options = inference.resolve(Options())
    times = await at_once(
        count, 1, lambda: inference.ask("x", time.time() + 60, options, Query("what is it?"), ())
    )
    return median(times)


async def fill(config: JobsConfig) -> None:
    store = make_store(config)
    await store.open()
    for _ in range(BACKLOG // 500):
        await store.add([job() for _ in range(500)], BACKLOG + 1)
    await store.close()


async def backlog(url: str, started: float) -> list[tuple[str, str, str]]:
    """A start over ``BACKLOG`` waiting jobs: the memory, a list of all of them, and until the last
    has ended."""
    actor = Actor()
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        listing, cursor, listed, most = time.perf_counter(), "", 0, 0.0
        while cursor is not None:
            response = await client.get("/api/v1/jobs", params={"limit": 1000, "cursor": cursor})
            page = response.raise_for_status().json()
            listed, cursor = listed + len(page["jobs"]), page["next_cursor"]
        took = time.perf_counter() - listing
    assert listed == BACKLOG
    sizes = [memory()]
    while (await actor("stats")).counts[JobState.SUCCEEDED] < BACKLOG:
        await asyncio.sleep(0.5)
        sizes.append(memory())
        most = max(most, sizes[-1])
    drained = time.time() - started
    return [
        (f"{BACKLOG} jobs listed over HTTP, 1,000 a page, while they run", f"{took:.1f} s", ""),
        (f"a start over {BACKLOG} waiting jobs, until all have ended", f"{drained:.0f} s", ""),
        (
            "memory of the queue's actor: at the start, at most",
            f"{sizes[0]:.0f} / {most:.0f} MB",
            "flat",
        ),
    ]


def memory() -> float:
    """Of the queue's actor, in MiB."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"JobQueueActor" in (folder / "cmdline").read_bytes():
                return (
                    int((folder / "statm").read_text().split()[1])
                    * os.sysconf("SC_PAGE_SIZE")
                    / MIB
                )
        except OSError:
            continue
    return 0.0


def fsyncs(folder: Path) -> float:
    """Durable writes of 4 KiB a second."""
    count, started = 0, time.perf_counter()
    with (folder / "probe").open("wb") as file:
        while time.perf_counter() - started < 1:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            count += 1
    return count / (time.perf_counter() - started)


def run(name: str, store: str, folder: Path, count: int) -> None:
    base = {"store": store, "workers": WORKERS, "capacity": 2 * BACKLOG, "data_dir": str(folder)}

    def show(rows: list[tuple[str, str, str]]) -> None:
        for row in rows:
            print("| " + " | ".join((name, *row)) + " |", flush=True)

    with Server(base) as url:
        _run(measure(name, url, count), show)
    fresh = {**base, "data_dir": str(folder / "backlog")}
    if store != "sqlite":
        fresh["store"] = new_schema(store)
    asyncio.run(fill(JobsConfig.model_validate(fresh)))
    started = time.time()
    with Server(fresh) as url:
        _run(backlog(url, started), show)


def _run(
    work: Coroutine[Any, Any, list[tuple[str, str, str]]], show: Callable[[Any], None]
) -> None:
    show(asyncio.run(work))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000, help="jobs of a measurement")
    parser.add_argument(
        "--store", choices=("sqlite", "postgres"), action="append", help="this one; both by default"
    )
    options = parser.parse_args()
    stores = options.store or ["sqlite", "postgres"]
    with tempfile.TemporaryDirectory(prefix="raylens-bench-") as name:
        folder = Path(name)
        print(f"{fsyncs(folder):.0f} durable writes of 4 KiB a second\n")
        print("| store | what | figure | target |\n| --- | --- | --- | --- |")
        if "sqlite" in stores:
            run("SQLite", "sqlite", folder / "sqlite", options.count)
        if "postgres" in stores:
            with postgres() as url:
                run("PostgreSQL", new_schema(url), folder / "postgres", options.count)


if __name__ == "__main__":
    main()
