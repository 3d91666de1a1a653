"""A redeploy while jobs run: ``python -m tests.redeploy FOLDER`` prints as JSON what came of it.

A process of its own, with Ray's settings in its environment: they are read when Ray is imported.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve
from ray.serve import Application

from benchmarks.jobs.app import MODEL, BenchIngress, StubModel, StubPreprocessor
from deployments.app import job_queue
from raylens.core.config import AppConfig
from raylens.core.types import Delta, VisionRequest

JOBS = 120
SECONDS = 0.3
ENDED = ("succeeded", "failed", "canceled")


class SlowModel(StubModel):
    """Writes down when it begins and ends with a job."""

    def __init__(self, folder: str) -> None:
        self._log = Path(folder) / f"log-{time.time_ns()}"

    async def generate(self, request: VisionRequest, *pictures: Any) -> AsyncGenerator[Delta, None]:
        began = time.time()
        try:
            await asyncio.sleep(SECONDS)
            async for delta in super().generate(request):
                yield delta
        finally:
            with self._log.open("a") as log:
                log.write(json.dumps([request.id, began, time.time()]) + "\n")


def build(folder: Path, workers: int) -> Application:
    jobs = {
        "data_dir": str(folder),
        "workers": workers,
        "capacity": JOBS,
        "lease_s": 3,
        "max_attempts": 20,
    }
    args = {"models": [{"name": MODEL, "family": "smolvlm"}], "jobs": jobs}
    config = AppConfig.model_validate(args)
    few = {"num_cpus": 0.1}
    model = serve.deployment(SlowModel).options(
        name=MODEL, max_ongoing_requests=64, ray_actor_options=few
    )
    preprocessor = serve.deployment(StubPreprocessor).options(
        name="Preprocessor", ray_actor_options=few
    )
    ingress = serve.deployment(BenchIngress).options(
        name="Ingress", ray_actor_options=few, deployment_actors=[job_queue(config, args)]
    )
    return ingress.bind(config, preprocessor.bind(), {MODEL: model.bind(str(folder))})


def actors() -> set[str]:
    named = ray.util.list_named_actors(all_namespaces=True)
    return {each["name"] for each in named if "DEPLOYMENT_ACTOR" in each["name"].upper()}


async def jobs_of(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    answer = await client.get("/api/v1/jobs", params={"limit": 1000})
    return list(answer.json()["jobs"]) if answer.status_code == 200 else []


async def run(folder: Path, url: str) -> dict[str, Any]:
    body = {"job_type": "query", "input": {"question": "what is it?"}}
    seen: set[str] = set()
    most = 0
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        sent = {
            (await client.post("/api/v1/jobs", json=body)).raise_for_status().json()["id"]
            for _ in range(JOBS)
        }
        redeploy = asyncio.create_task(
            asyncio.to_thread(serve.run, build(folder, 5), name="raylens")
        )
        jobs: list[dict[str, Any]] = []
        async with asyncio.timeout(120):
            while (
                not redeploy.done()
                or len(jobs) < JOBS
                or any(job["status"] not in ENDED for job in jobs)
            ):
                alive = await asyncio.to_thread(actors)
                seen |= alive
                most = max(most, len(alive))
                jobs = await jobs_of(client)
                await asyncio.sleep(0.1)
        await redeploy
    return {
        "jobs": Counter(job["status"] for job in jobs),
        "lost": len(sent - {job["id"] for job in jobs}),
        "attempts": Counter(job["attempts"] for job in jobs),
        "actors": len(seen),
        "most_alive": most,
        "overlaps": overlaps(folder),
    }


def overlaps(folder: Path) -> int:
    """How often an attempt at a job began before the one before it had ended."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for log in folder.glob("log-*"):
        for line in log.read_text().splitlines():
            job, began, ended = json.loads(line)
            spans.setdefault(job, []).append((began, ended))
    pairs = [pair for each in spans.values() for pair in pairwise(sorted(each))]
    return sum(later[0] < earlier[1] for earlier, later in pairs)


def main() -> None:
    folder = Path(sys.argv[1])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray.init(address="local", num_cpus=4, log_to_driver=False, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(folder, 4), name="raylens")
    print(json.dumps(asyncio.run(run(folder, f"http://127.0.0.1:{port}"))))
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
