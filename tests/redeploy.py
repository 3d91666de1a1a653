"""Redeploys the application while jobs run and a session asks about pictures, and prints what
became of them as JSON.

``python -m tests.redeploy FOLDER`` runs it in a process of its own, because Ray reads its settings
from the environment when it is imported.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import ray
import websockets
from ray import serve
from ray.serve import Application
from websockets.asyncio.client import ClientConnection

from raylens.core.types import Delta, VisionRequest
from testing.pictures import encode_picture, gradient
from testing.ports import free_port
from testing.stub_graph import StubModel, build_stub_graph, is_queue_actor

JOBS = int(os.environ.get("JOBS", "120"))
GENERATE_S = float(os.environ.get("GENERATE_S", "0.3"))
LEASE_S = float(os.environ.get("LEASE_S", "3"))
TIMEOUT_S = 120
PICTURE = encode_picture(gradient(64, 48))
RECONNECT_S = 1.0
"""As ``retry_after`` of a session's last error says."""
TERMINAL_STATES = ("succeeded", "failed", "canceled")


class SlowModel(StubModel):
    """Logs the start and the end of each request."""

    def __init__(self, folder: str) -> None:
        self._log = Path(folder) / f"log-{time.time_ns()}"

    async def generate(self, request: VisionRequest, *pictures: Any) -> AsyncGenerator[Delta, None]:
        started_at = time.time()
        try:
            yield Delta("It is ")
            await asyncio.sleep(GENERATE_S)
            async for delta in super().generate(request):
                yield delta
        finally:
            with self._log.open("a") as log:
                log.write(json.dumps([request.id, started_at, time.time()]) + "\n")


def build(folder: Path, workers: int) -> Application:
    jobs = {
        "data_dir": str(folder),
        "workers": workers,
        "capacity": JOBS,
        "lease_s": LEASE_S,
    }
    return build_stub_graph({"jobs": jobs}, SlowModel, str(folder))


def list_queue_actors() -> set[str]:
    actors = ray.util.list_named_actors(all_namespaces=True)
    names = [actor["name"] for actor in actors]
    return {name for name in names if is_queue_actor(name)}


async def list_jobs(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    response = await client.get("/api/v1/jobs", params={"limit": 1000})
    return list(response.json()["jobs"]) if response.status_code == 200 else []


async def run(folder: Path, url: str) -> dict[str, Any]:
    body = {"job_type": "query", "input": {"question": "what is it?"}}
    actors: set[str] = set()
    most_alive = 0
    jobs: list[dict[str, Any]] = []
    submitted: set[str] = set()
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        for _ in range(JOBS):
            response = await client.post("/api/v1/jobs", json=body)
            submitted.add(response.raise_for_status().json()["id"])
        following = asyncio.create_task(follow(url, max(submitted)))
        has_ended = asyncio.Event()
        showing = asyncio.create_task(show_pictures(url, has_ended))
        redeploy = asyncio.create_task(
            asyncio.to_thread(serve.run, build(folder, 5), name="raylens")
        )
        async with asyncio.timeout(TIMEOUT_S):
            while not redeploy.done() or not have_ended(jobs):
                alive = await asyncio.to_thread(list_queue_actors)
                actors |= alive
                most_alive = max(most_alive, len(alive))
                jobs = await list_jobs(client)
                await asyncio.sleep(0.1)
        await redeploy
        events = await asyncio.wait_for(following, 30)
        has_ended.set()
        answers, closes = await asyncio.wait_for(showing, 30)
    longest_gap_s, repeated = measure_gaps(folder)
    return {
        "jobs": Counter(job["status"] for job in jobs),
        "lost": len(submitted - {job["id"] for job in jobs}),
        "attempts": Counter(job["attempts"] for job in jobs),
        "actors": len(actors),
        "most_alive": most_alive,
        "overlaps": count_overlaps(folder),
        "repeated": repeated,
        "longest_gap_s": longest_gap_s,
        "events": events,
        "answers": answers,
        "closes": closes,
    }


async def follow(url: str, job_id: str) -> list[str]:
    """Follow a job as an EventSource does. Returns its states, ``retry`` for each stream that was
    handed over, and the name of each error."""
    seen: list[str] = []
    headers: dict[str, str] = {}
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        while True:
            wait_s = 0.1
            try:
                path = f"/api/v1/jobs/{job_id}/events"
                async with client.stream("GET", path, headers=headers) as response:
                    if response.status_code == 204:
                        return seen
                    async for line in response.aiter_lines():
                        name, _, value = line.partition(": ")
                        if name == "data":
                            seen.append(json.loads(value)["status"])
                        elif name == "id":
                            headers = {"Last-Event-ID": value}
                        elif name == "retry":
                            seen.append("retry")
                            wait_s = int(value) / 1000
            except httpx.HTTPError as error:
                seen.append(type(error).__name__)
            await asyncio.sleep(wait_s)


async def show_pictures(url: str, has_ended: asyncio.Event) -> tuple[Counter[str], list[int]]:
    """Ask about one picture after the other, in a new session if one is closed.

    Returns how often an answer was whole, or had which error, or was cut; and the codes with which
    sessions were closed.
    """
    answers: Counter[str] = Counter()
    closes: list[int] = []
    while not has_ended.is_set():
        try:
            async with websockets.connect(url.replace("http", "ws") + "/api/v1/ws") as socket:
                await socket.send("What is it?")
                while not has_ended.is_set():
                    await socket.send(PICTURE)
                    answers[await receive_answer(socket)] += 1
        except websockets.ConnectionClosed as error:
            closes.append(0 if error.rcvd is None else error.rcvd.code)
            await asyncio.sleep(RECONNECT_S)
        except (OSError, websockets.InvalidHandshake):  # nobody answers at the moment
            await asyncio.sleep(0.1)
    return answers, closes


async def receive_answer(socket: ClientConnection) -> str:
    is_begun = False
    while True:
        try:
            message = json.loads(await socket.recv())
        except websockets.ConnectionClosed:
            if is_begun:
                return "cut"
            raise
        if message["done"]:
            return str(message.get("code", "whole"))
        is_begun = True


def have_ended(jobs: list[dict[str, Any]]) -> bool:
    return len(jobs) >= JOBS and all(job["status"] in TERMINAL_STATES for job in jobs)


def find_gaps(folder: Path) -> list[float]:
    """Return the seconds from the end of an attempt to the start of the next one at its job, for
    all of those."""
    attempts: dict[str, list[tuple[float, float]]] = {}
    for log in folder.glob("log-*"):
        for line in log.read_text().splitlines():
            job_id, started_at, ended_at = json.loads(line)
            attempts.setdefault(job_id, []).append((started_at, ended_at))
    return [
        next_start - previous_end
        for spans in attempts.values()
        for (_, previous_end), (next_start, _) in pairwise(sorted(spans))
    ]


def count_overlaps(folder: Path) -> int:
    """Return how often an attempt at a job started before the previous one had ended."""
    return sum(gap < 0 for gap in find_gaps(folder))


def measure_gaps(folder: Path) -> tuple[float, int]:
    """Return how long a job has waited for its next attempt, and how many attempts were made
    again."""
    gaps = find_gaps(folder)
    return round(max(gaps, default=0.0), 2), len(gaps)


def main() -> None:
    folder = Path(sys.argv[1])
    port = free_port()
    ray.init(address="local", num_cpus=4, log_to_driver=False, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(folder, 4), name="raylens")
    print(json.dumps(asyncio.run(run(folder, f"http://127.0.0.1:{port}"))))
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
