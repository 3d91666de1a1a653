"""Measures submissions, jobs, reads and restarts on SQLite and on PostgreSQL, in one run.

The model takes no time. Every figure is that of the queue, the transport and the load generator,
which shares the machine. The same run measures two baselines: a no-op route, and durable disk
writes a second.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import ray
import sqlalchemy as sa
from ray import serve

from deployments.graph import Graph
from raylens.core.config import AppConfig, JobsConfig
from raylens.core.types import Query
from raylens.jobs.factory import make_store
from raylens.jobs.inference import InferenceClient, InferenceOptions
from raylens.jobs.job import Job, JobState, new_id
from testing.ports import free_port
from testing.postgres import new_schema, postgres
from testing.stub_graph import BLOCKING_QUESTION, MODEL, build_stub_graph, is_queue_actor

WORKERS = 32
IN_FLIGHT = 64
HTTP_IN_FLIGHT = 16
BACKLOG = 10_000
"""Queued jobs at a restart."""
SETTLE_S = 15.0
"""Time after which PostgreSQL has counted the transactions before, in seconds."""
STREAMS = 300
"""Event streams that are open at once."""
QUESTION = "what is it?"
JOBS_PATH = "/api/v1/jobs"
NOOP_PATH = "/noop"
JOB_REQUEST = {"job_type": "query", "input": {"question": QUESTION, "model": MODEL}}
MIB = 2**20

Row = tuple[str, str, str]
"""What was measured, the figure, and the target."""


def make_job(question: str = QUESTION) -> Job:
    now = time.time()
    return Job(
        new_id(),
        "query",
        {"question": question},
        created_at=now,
        deadline=now + 3600,
        max_attempts=5,
        rank=now,
    )


class QueueActor:
    """The queue's actor, called without HTTP."""

    def __init__(self) -> None:
        (actor,) = [
            actor
            for actor in ray.util.list_named_actors(all_namespaces=True)
            if is_queue_actor(actor["name"])
        ]
        self._actor = ray.get_actor(actor["name"], namespace=actor["namespace"])

    async def call(self, method: str, *arguments: Any) -> Any:
        return await self._actor.call.remote(method, *arguments)

    async def submit(self, question: str = QUESTION) -> Job:
        job: Job = await self.call("submit", make_job(question), {})
        return job

    async def count_succeeded(self) -> int:
        stats = await self.call("stats")
        return int(stats.counts[JobState.SUCCEEDED])

    async def wait_until_succeeded(self, count: int) -> None:
        while await self.count_succeeded() < count:
            await asyncio.sleep(0.05)


class Server:
    """The graph of :mod:`testing.stub_graph` in a cluster of this process."""

    def __init__(self, jobs: dict[str, Any]) -> None:
        self._port = free_port()
        self._args = {"jobs": jobs, "log_level": "WARNING"}

    def __enter__(self) -> str:
        ray.init(address="local", num_cpus=4, log_to_driver=False, include_dashboard=False)
        serve.start(http_options={"host": "127.0.0.1", "port": self._port, "access_log": False})
        serve.run(build_stub_graph(self._args), name="raylens")
        return f"http://127.0.0.1:{self._port}"

    def __exit__(self, *_: object) -> None:
        serve.shutdown()
        ray.shutdown()


async def measure_calls(
    count: int, in_flight: int, call: Callable[[], Awaitable[Any]]
) -> list[float]:
    """Make ``count`` calls, and return the duration of each in seconds."""
    slots = asyncio.Semaphore(in_flight)

    async def measure() -> float:
        async with slots:
            started = time.perf_counter()
            await call()
            return time.perf_counter() - started

    return list(await asyncio.gather(*(measure() for _ in range(count))))


async def measure_rate(count: int, in_flight: int, call: Callable[[], Awaitable[Any]]) -> float:
    """Make ``count`` calls, and return the calls a second."""
    started = time.perf_counter()
    await measure_calls(count, in_flight, call)
    return count / (time.perf_counter() - started)


async def measure_queue(url: str, count: int) -> list[Row]:
    actor = QueueActor()
    await measure_calls(50, 8, actor.submit)
    await actor.wait_until_succeeded(50)
    return [
        *await measure_latency(actor),
        *await measure_throughput(actor, count),
        *await measure_http(actor, url, count),
    ]


async def measure_latency(actor: QueueActor) -> list[Row]:
    latencies = []
    for _ in range(100):
        submitted_at = time.time()
        job = await actor.submit()
        while not job.state.is_terminal:  # rarely asked, so that the questions cost nothing
            await asyncio.sleep(0.05)
            job = await actor.call("get", job.id)
        assert job.finished_at is not None
        latencies.append(job.finished_at - submitted_at)
    latency = median(latencies)
    overhead = latency - await measure_request_without_queue(100)
    return [
        ("one job alone, from submission to its end, p50", f"{1000 * latency:.1f} ms", ""),
        ("the same, minus the request without the queue", f"{1000 * overhead:.1f} ms", "≤ 10 ms"),
    ]


async def measure_request_without_queue(count: int) -> float:
    """Return the median duration of a job's request to the graph, in seconds."""
    config = AppConfig.model_validate({"models": [{"name": MODEL, "family": "smolvlm"}]})
    preprocessor = serve.get_deployment_handle("Preprocessor", app_name="raylens")
    model = serve.get_deployment_handle(MODEL, app_name="raylens")
    inference = InferenceClient(Graph(config, "raylens", preprocessor, {MODEL: model}), config)
    options = inference.resolve(InferenceOptions())
    durations = await measure_calls(
        count, 1, lambda: inference.ask("x", time.time() + 60, options, Query(QUESTION), ())
    )
    return median(durations)


async def measure_throughput(actor: QueueActor, count: int) -> list[Row]:
    before = await actor.count_succeeded()
    started = time.perf_counter()
    await measure_calls(count, IN_FLIGHT, actor.submit)
    submitting_s = time.perf_counter() - started
    await actor.wait_until_succeeded(before + count)
    total_s = time.perf_counter() - started
    return [
        ("submissions through the actor", f"{count / submitting_s:.0f} a second", "≥ 300"),
        (
            f"jobs from submission to end, {WORKERS} workers",
            f"{count / total_s:.0f} a second",
            "≥ 150",
        ),
    ]


async def measure_http(actor: QueueActor, url: str, count: int) -> list[Row]:
    limits = httpx.Limits(max_connections=IN_FLIGHT)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:

        async def post(path: str) -> Any:
            return (await client.post(path, json=JOB_REQUEST)).raise_for_status().json()

        async def rate_of(path: str) -> float:
            return await measure_rate(count // 2, HTTP_IN_FLIGHT, lambda: post(path))

        job_id = (await post(JOBS_PATH))["id"]
        await measure_calls(100, HTTP_IN_FLIGHT, lambda: post(NOOP_PATH))
        noop_rates = []
        running_rates = []
        for _ in range(2):
            noop_rates.append(await rate_of(NOOP_PATH))
            running_rates.append(await rate_of(JOBS_PATH))
        blocking = [await actor.submit(BLOCKING_QUESTION) for _ in range(WORKERS)]
        busy_rates = []
        for _ in range(2):
            noop_rates.append(await rate_of(NOOP_PATH))
            busy_rates.append(await rate_of(JOBS_PATH))
        for job in blocking:
            await actor.call("cancel", job.id)
        load = asyncio.create_task(measure_calls(count, HTTP_IN_FLIGHT, lambda: post(JOBS_PATH)))
        reads: list[float] = []
        while not load.done():
            reads += await measure_calls(1, 1, lambda: client.get(f"{JOBS_PATH}/{job_id}"))
    noop_rate = max(noop_rates)
    p50 = 1000 * median(reads)
    p99 = 1000 * quantiles(reads, n=100)[98]
    return [
        ("a no-op route, over HTTP", f"{noop_rate:.0f} a second", "the baseline"),
        _submission_row("all workers busy", max(busy_rates), noop_rate),
        _submission_row("jobs running meanwhile", max(running_rates), noop_rate),
        (f"`GET job` while {HTTP_IN_FLIGHT} submit, p50 / p99", f"{p50:.1f} / {p99:.1f} ms", ""),
    ]


def _submission_row(condition: str, rate: float, noop_rate: float) -> Row:
    figure = f"{rate:.0f} a second, {100 * rate / noop_rate:.0f} %"
    return f"submissions over HTTP, {condition}", figure, "≥ 60 % of the baseline"


async def fill_store(config: JobsConfig, delay_s: float = 0.0) -> None:
    """Add ``BACKLOG`` jobs, which become due after ``delay_s`` seconds."""
    store = make_store(config)
    await store.open()
    for _ in range(BACKLOG // 500):
        jobs = [replace(make_job(), run_after=time.time() + delay_s) for _ in range(500)]
        await store.add(jobs, BACKLOG + 1)
    await store.close()


async def measure_streams(url: str, store_url: str) -> list[Row]:
    """Measure what open event streams cost, on a queue of ``BACKLOG`` jobs that wait."""
    rows = []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        page = (await client.get(JOBS_PATH, params={"limit": STREAMS, "fields": "id"})).json()
        job_ids = [job["id"] for job in page["jobs"]]
        for count in (1, STREAMS):
            async with AsyncExitStack() as streams:
                for job_id in job_ids[:count]:
                    path = f"{JOBS_PATH}/{job_id}/events"
                    await streams.enter_async_context(client.stream("GET", path))
                rows += await measure_with_streams(client, count, store_url)
    return rows


async def measure_with_streams(client: httpx.AsyncClient, count: int, store_url: str) -> list[Row]:
    await asyncio.sleep(SETTLE_S)
    before = count_transactions(store_url)
    started = time.perf_counter()
    durations = await measure_calls(500, 1, lambda: client.get("/live"))
    await asyncio.sleep(max(0.0, 10 - (time.perf_counter() - started)))
    rate = (count_transactions(store_url) - before) / (time.perf_counter() - started)
    p50, p99 = 1000 * median(durations), 1000 * quantiles(durations, n=100)[98]
    rows = [
        (f"/live with {count} event streams, p50 / p99", f"{p50:.1f} / {p99:.1f} ms", "≤ 50 ms")
    ]
    if store_url != "sqlite":
        what = f"the store's transactions with {count} event streams"
        rows.append((what, f"{rate:.1f} a second", "flat"))
    return rows


def count_transactions(store_url: str) -> int:
    """Return the transactions that PostgreSQL has committed so far; 0 for SQLite."""
    if store_url == "sqlite":
        return 0
    engine = sa.create_engine(sa.make_url(store_url).set(drivername="postgresql+psycopg"))
    query = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
    with engine.begin() as db:
        count = db.exec_driver_sql(query).scalar_one()
    engine.dispose()
    return int(count)


async def measure_restart(url: str, started_at: float) -> list[Row]:
    """Measure a server that started over ``BACKLOG`` queued jobs.

    The rows are the time to list them all, the time until the last has ended, and the memory.
    """
    actor = QueueActor()
    listing_s = await measure_listing(url)
    memory = [actor_memory()]
    while await actor.count_succeeded() < BACKLOG:
        await asyncio.sleep(0.5)
        memory.append(actor_memory())
    total_s = time.time() - started_at
    return [
        (
            f"listing {BACKLOG} jobs over HTTP, 1,000 a page, while they run",
            f"{listing_s:.1f} s",
            "",
        ),
        (f"restart with {BACKLOG} waiting jobs, until all have ended", f"{total_s:.0f} s", ""),
        (
            "memory of the queue's actor, at the start / at most",
            f"{memory[0]:.0f} / {max(memory):.0f} MB",
            "flat",
        ),
    ]


async def measure_listing(url: str) -> float:
    """List all jobs page by page, and return the duration in seconds."""
    count = 0
    cursor: str | None = ""
    started = time.perf_counter()
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        while cursor is not None:
            response = await client.get(JOBS_PATH, params={"limit": 1000, "cursor": cursor})
            page = response.raise_for_status().json()
            count += len(page["jobs"])
            cursor = page["next_cursor"]
    assert count == BACKLOG
    return time.perf_counter() - started


def actor_memory() -> float:
    """Return the resident memory of the queue's actor, in MiB."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"JobQueueActor" in (process / "cmdline").read_bytes():
                resident_pages = int((process / "statm").read_text().split()[1])
                return resident_pages * os.sysconf("SC_PAGE_SIZE") / MIB
        except OSError:
            continue
    return 0.0


def measure_disk(folder: Path) -> float:
    """Return the number of durable 4 KiB writes a second."""
    count = 0
    started = time.perf_counter()
    with (folder / "probe").open("wb") as file:
        while time.perf_counter() - started < 1:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            count += 1
    return count / (time.perf_counter() - started)


def run(name: str, store: str, folder: Path, count: int) -> None:
    """Run all measurements over one store, and print a table row for each."""
    jobs: dict[str, Any] = {
        "store": store,
        "workers": WORKERS,
        "capacity": 2 * BACKLOG,
        "data_dir": str(folder),
    }
    with Server(jobs) as url:
        _run_and_print(name, measure_queue(url, count))
    jobs["data_dir"] = str(folder / "backlog")
    if store != "sqlite":
        jobs["store"] = new_schema(store)
    asyncio.run(fill_store(JobsConfig.model_validate(jobs)))
    started_at = time.time()
    with Server(jobs) as url:
        _run_and_print(name, measure_restart(url, started_at))
    jobs["data_dir"] = str(folder / "streams")
    if store != "sqlite":
        jobs["store"] = new_schema(store)
    asyncio.run(fill_store(JobsConfig.model_validate(jobs), delay_s=3600))
    with Server(jobs) as url:
        _run_and_print(name, measure_streams(url, jobs["store"]))


def _run_and_print(name: str, measurement: Coroutine[Any, Any, list[Row]]) -> None:
    for row in asyncio.run(measurement):
        print("| " + " | ".join((name, *row)) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--count", type=int, default=2000, help="number of jobs in each measurement"
    )
    parser.add_argument(
        "--store",
        choices=("sqlite", "postgres"),
        action="append",
        help="measure only this store; the default is both",
    )
    options = parser.parse_args()
    stores = options.store or ["sqlite", "postgres"]
    with tempfile.TemporaryDirectory(prefix="raylens-bench-") as path:
        folder = Path(path)
        print(f"{measure_disk(folder):.0f} durable writes of 4 KiB a second\n")
        print("| store | what | figure | target |\n| --- | --- | --- | --- |")
        if "sqlite" in stores:
            run("SQLite", "sqlite", folder / "sqlite", options.count)
        if "postgres" in stores:
            with postgres() as url:
                run("PostgreSQL", new_schema(url), folder / "postgres", options.count)


if __name__ == "__main__":
    main()
