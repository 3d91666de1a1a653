"""Runs jobs while models are overloaded, the store is down and the disk is full, one after the
other, and prints what became of the jobs as JSON.

``python -m tests.trouble FOLDER SECONDS`` runs it in a process of its own, because Ray reads its
settings from the environment when it is imported. Each trouble lasts ``SECONDS``. FOLDER is on a
small disk of its own.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve

from raylens.core.errors import Overloaded
from raylens.core.types import Delta, VisionRequest
from testing.pictures import encode_picture, gradient
from testing.ports import free_port
from testing.postgres import Postgres, new_schema, postgres_server
from testing.stub_graph import MODEL, StubModel, build_stub_graph
from tests.receiver import Receiver, run_receiver

JOBS = 300
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
GENERATE_S = 0.05
TIMEOUT_S = 240
TERMINAL_STATES = ("succeeded", "failed", "canceled")
BUSY = (429, 503, 507)


class TroubledModel(StubModel):
    """Is overloaded as long as a file exists."""

    def __init__(self, overloaded: str) -> None:
        self._overloaded = Path(overloaded)

    async def generate(self, request: VisionRequest, *pictures: Any) -> AsyncGenerator[Delta, None]:
        if self._overloaded.exists():
            raise Overloaded("the queue is full", "model", None, None, 1.0)
        await asyncio.sleep(GENERATE_S)
        async for delta in super().generate(request):
            yield delta


@dataclass
class Refusals:
    """The answers that refused a submission, by the trouble of their time."""

    trouble: str = "none"
    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    details: dict[str, set[str]] = field(default_factory=dict)
    slowest_s: float = 0.0

    def add(self, response: httpx.Response, seconds: float, trouble: str) -> None:
        """``trouble`` is what there was when the request was sent."""
        assert response.status_code in BUSY, response.text
        assert int(response.headers["retry-after"]) >= 1
        if trouble != self.trouble:  # it began or ended meanwhile
            trouble = "none"
        self.statuses.setdefault(trouble, Counter())[response.status_code] += 1
        self.details.setdefault(trouble, set()).add(response.json()["detail"][:120])
        self.slowest_s = max(self.slowest_s, seconds)


def make_body(number: int, receiver: Receiver) -> dict[str, Any]:
    """Return a job with a picture of its own and a webhook."""
    picture = encode_picture(gradient(200 + number, 150))
    return {
        "job_type": "caption",
        "input": {
            "image": base64.b64encode(picture).decode(),
            "model": MODEL,
            "webhook_url": receiver.url,
        },
    }


async def submit(
    client: httpx.AsyncClient, number: int, receiver: Receiver, refusals: Refusals
) -> str:
    """Submit a job until it is accepted, and return its id."""
    body = make_body(number, receiver)
    while True:
        started, trouble = time.monotonic(), refusals.trouble
        response = await client.post(
            "/api/v1/jobs", json=body, headers={"Idempotency-Key": f"job-{number}"}
        )
        if response.status_code == 202:
            return str(response.json()["id"])
        refusals.add(response, time.monotonic() - started, trouble)
        await asyncio.sleep(random.uniform(0.5, 1.5))


@asynccontextmanager
async def trouble(
    refusals: Refusals,
    name: str,
    seconds: float,
    begin: Callable[[], Any],
    end: Callable[[], Any],
) -> AsyncIterator[None]:
    await asyncio.to_thread(begin)
    refusals.trouble = name
    try:
        yield
        await asyncio.sleep(seconds)
    finally:
        await asyncio.to_thread(end)
        refusals.trouble = "none"


def fill_disk(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


async def run(folder: Path, url: str, database: Postgres, seconds: float) -> dict[str, Any]:
    refusals = Refusals()
    overloaded = folder / "overloaded"
    filler = folder / "filler"
    with run_receiver(SECRET) as receiver:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            accepted: list[asyncio.Task[str]] = []

            async def submit_some(count: int) -> None:
                """Submit jobs at an even rate over the next trouble."""
                for _ in range(count):
                    number = len(accepted)
                    task = submit(client, number, receiver, refusals)
                    accepted.append(asyncio.create_task(task))
                    await asyncio.sleep(seconds / count)

            for name, begin, end in (
                ("overload", overloaded.touch, overloaded.unlink),
                ("store", database.stop, database.start),
                ("disk", lambda: fill_disk(folder), filler.unlink),
            ):
                async with trouble(refusals, name, 0, begin, end):
                    await submit_some(JOBS // 3)
                await asyncio.sleep(seconds / 3)
            ids = await asyncio.gather(*accepted)
            jobs = await wait_until_all_ended(client, receiver)
    return {
        "jobs": Counter(job["status"] for job in jobs),
        "lost": len(set(ids) - {job["id"] for job in jobs}),
        "attempts": Counter(job["attempts"] for job in jobs),
        "without_webhook": len(set(ids) - receiver.bodies.keys()),
        "wrong_webhooks": len(receiver.refused),
        "statuses": refusals.statuses,
        "details": {name: sorted(details) for name, details in refusals.details.items()},
        "slowest_refusal_s": refusals.slowest_s,
    }


async def wait_until_all_ended(
    client: httpx.AsyncClient, receiver: Receiver
) -> list[dict[str, Any]]:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            response = await client.get("/api/v1/jobs", params={"limit": 1000})
            jobs = list(response.raise_for_status().json()["jobs"])
            have_ended = all(job["status"] in TERMINAL_STATES for job in jobs)
            if len(jobs) == JOBS and have_ended and len(receiver.bodies) == JOBS:
                return jobs
            await asyncio.sleep(1)


def main() -> None:
    folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
    port = free_port()
    with postgres_server() as database:
        jobs = {
            "store": new_schema(database.url),
            "data_dir": str(folder / "data"),
            "min_free_bytes": 0,  # the disk is small
            "webhooks": {"allow": ["127.0.0.1"]},
        }
        ray.init(address="local", num_cpus=4, log_to_driver=False, include_dashboard=False)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        graph = build_stub_graph({"jobs": jobs}, TroubledModel, str(folder / "overloaded"))
        serve.run(graph, name="raylens")
        report = asyncio.run(run(folder, f"http://127.0.0.1:{port}", database, seconds))
        print(json.dumps(report))
        serve.shutdown()
        ray.shutdown()
    shutil.rmtree(folder / "data", ignore_errors=True)


if __name__ == "__main__":
    main()
