"""Jobs survive while the processes that run them are killed."""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from raylens.cli.processes import find_marked, wait_for_exit
from testing.scenes import draw_scene
from testing.server import running_server
from tests.receiver import Receiver, run_receiver
from tests.serve.conftest import ROOT

JOBS = 500
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
IN_FLIGHT = 32
TIMEOUT_S = 240.0
TERMINAL_STATES = ("succeeded", "failed", "canceled")
VICTIMS = (
    "ray::JobQueueActor",
    "ray::ServeReplica:raylens:moondream",
    "ray::ServeReplica:raylens:Ingress",
)


@contextmanager
def server(data_dir: Path, mark: str) -> Iterator[str]:
    """Run the shipped configuration with Moondream alone, a queue of 500 and short leases.

    The server's processes carry ``mark``. Yields the server's URL.
    """

    def change(config: dict[str, Any]) -> None:
        (application,) = config["applications"]
        args = application["args"]
        args["models"] = [model for model in args["models"] if model["name"] == "moondream"]
        removed = ("smolvlm", "qwen2.5-vl")
        application["deployments"] = [
            deployment
            for deployment in application["deployments"]
            if deployment["name"] not in removed
        ]
        args["jobs"] = {
            "data_dir": str(data_dir),
            "capacity": JOBS,
            "workers": 8,
            "lease_s": 3,
            "webhooks": {"allow": ["127.0.0.1"]},
        }

    environment = {"RAYLENS_TEST": mark, "RAYLENS_WEBHOOK_SECRETS": SECRET}
    with running_server(ROOT / "serve_config.yaml", change, environment) as url:
        yield url


def kill(mark: str, title: str) -> None:
    """Kill one of the server's processes, by its title, with SIGKILL."""
    for process in find_marked("RAYLENS_TEST", mark):
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(title):
                process.kill()
                return


def kill_all(mark: str) -> None:
    """Kill the whole cluster at once, except for the process that only watches it."""
    for process in find_marked("RAYLENS_TEST", mark):
        with suppress(psutil.Error):
            process.kill()


@dataclass
class Address:
    """URL of the current server."""

    url: str


async def submit(
    address: Address, number: int, receiver: Receiver, accepted: dict[str, int]
) -> None:
    """Submit a job again and again until a server accepts it.

    The idempotency key makes that safe.
    """
    _, _, picture = draw_scene(number, max_side=128)
    body = {
        "job_type": "caption",
        "input": {"image": picture, "length": "short", "webhook_url": receiver.url},
    }
    async with httpx.AsyncClient(timeout=30) as client:
        while True:
            with suppress(httpx.HTTPError):
                response = await client.post(
                    f"{address.url}/api/v1/jobs",
                    json=body,
                    headers={"Idempotency-Key": f"{number}"},
                )
                if response.status_code == 202:
                    accepted[response.json()["id"]] = number
                    return
                assert response.status_code in (404, 429, 500, 502, 503, 504), response.text
            await asyncio.sleep(0.5)


async def submit_all(address: Address, receiver: Receiver, accepted: dict[str, int]) -> None:
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def submit_in_slot(number: int) -> None:
        async with slots:
            await submit(address, number, receiver, accepted)

    await asyncio.gather(*map(submit_in_slot, range(JOBS)))


async def list_jobs(url: str) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = []
    cursor: str | None = ""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        while cursor is not None:
            response = await client.get("/api/v1/jobs", params={"limit": 200, "cursor": cursor})
            page = response.raise_for_status().json()
            jobs += page["jobs"]
            cursor = page["next_cursor"]
    return jobs


async def wait_until_all_ended(url: str, receiver: Receiver) -> list[dict[str, Any]]:
    """Return all jobs, once each has ended and its webhook has been received."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            with suppress(httpx.HTTPError):
                jobs = await list_jobs(url)
                delivered = [job for job in jobs if receiver.bodies.get(job["id"])]
                have_ended = all(job["status"] in TERMINAL_STATES for job in jobs)
                if len(jobs) == len(delivered) == JOBS and have_ended:
                    return jobs
            await asyncio.sleep(1)


@pytest.mark.cluster  # for its time
async def test_no_job_is_lost_or_ends_twice_whatever_is_killed(tmp_path: Path) -> None:
    """Kill the queue, the model and the ingress at random moments while 500 jobs are submitted and
    run, then the whole cluster; start it again over the same folder."""
    rng = random.Random(0)
    accepted: dict[str, int] = {}
    killed: Counter[str] = Counter()
    with run_receiver(SECRET) as receiver:
        first = f"chaos-{time.time_ns()}"
        second = f"chaos-again-{time.time_ns()}"
        with server(tmp_path, first) as url:
            address = Address(url)
            submissions = asyncio.create_task(submit_all(address, receiver, accepted))
            for victim in (*VICTIMS, VICTIMS[0]):
                await asyncio.sleep(rng.uniform(2, 6))
                await asyncio.to_thread(kill, first, victim)
                killed[victim] += 1
            await asyncio.sleep(rng.uniform(1, 3))
            await asyncio.to_thread(kill_all, first)
        await asyncio.to_thread(wait_for_exit, "RAYLENS_TEST", first, 30)
        with server(tmp_path, second) as url:
            address.url = url
            await submissions
            jobs = await wait_until_all_ended(url, receiver)
            deliveries = await list_deliveries(url, jobs)
    assert {job["id"] for job in jobs} == set(accepted)
    assert len(accepted) == JOBS
    assert Counter(job["status"] for job in jobs) == {"succeeded": JOBS}
    scenes = {job["id"]: draw_scene(accepted[job["id"]], max_side=128)[0] for job in jobs}
    wrong = [job for job in jobs if job["output"]["caption"] != scenes[job["id"]].caption("short")]
    assert len(wrong) <= JOBS // 50
    assert receiver.refused == []
    # Each job ends once: its terminal event has one id, however often it is sent.
    assert all(len(events) == 1 for events in receiver.bodies.values())
    assert all(
        event["type"] == "job.succeeded"
        for events in receiver.bodies.values()
        for event in events.values()
    )
    assert all(len(of_one_job) == 1 for of_one_job in deliveries)
    retried = sum(job["attempts"] > 1 for job in jobs)
    most_attempts = max(job["attempts"] for job in jobs)
    repeated = sum(times > 1 for times in receiver.times.values())
    print(
        f"killed {dict(killed)} and the cluster; {retried} jobs took more than one attempt,"
        f" {most_attempts} at most; {repeated} webhooks were received more than once"
    )


async def list_deliveries(url: str, jobs: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        bodies = [
            (await client.get(f"/api/v1/jobs/{job['id']}/deliveries")).json() for job in jobs[:50]
        ]
    return [body["deliveries"] for body in bodies]
