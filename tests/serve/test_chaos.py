"""Jobs while the processes that work on them are killed."""

from __future__ import annotations

import asyncio
import base64
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from raylens.cli.processes import await_end, marked
from testing.scenes import drawn
from testing.server import running
from tests.receiver import Receiver, receiving
from tests.serve.conftest import ROOT

JOBS = 500
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
IN_FLIGHT = 32
PATIENCE_S = 240.0
ENDED = ("succeeded", "failed", "canceled")
VICTIMS = (
    "ray::JobQueueActor",
    "ray::ServeReplica:raylens:moondream",
    "ray::ServeReplica:raylens:Ingress",
)


@contextmanager
def server(data_dir: Path, mark: str) -> Iterator[str]:
    """The shipped configuration with Moondream alone, a queue of 500 and short leases; its
    processes carry ``mark``."""

    def change(config: dict[str, Any]) -> None:
        (application,) = config["applications"]
        args = application["args"]
        args["models"] = [model for model in args["models"] if model["name"] == "moondream"]
        others = ("smolvlm", "qwen2.5-vl")
        application["deployments"] = [
            each for each in application["deployments"] if each["name"] not in others
        ]
        args["jobs"] = {
            "data_dir": str(data_dir),
            "capacity": JOBS,
            "workers": 8,
            "lease_s": 3,
            "max_attempts": 50,
            "webhooks": {"allow": ["127.0.0.1"]},
        }

    environment = {"RAYLENS_TEST": mark, "RAYLENS_WEBHOOK_SECRETS": SECRET}
    with running(ROOT / "serve_config.yaml", change, environment) as url:
        yield url


def kill(mark: str, title: str) -> None:
    """Ends one process of the server's, by its title, without a chance to say anything."""
    for pid in marked("RAYLENS_TEST", mark):
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").startswith(title):
                os.kill(pid, signal.SIGKILL)
                return


def kill_all(mark: str) -> None:
    """The whole cluster at once. Leaves alone the process that only watches it."""
    for pid in marked("RAYLENS_TEST", mark):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


async def submit(url: list[str], number: int, receiver: Receiver, accepted: dict[str, int]) -> None:
    """Tries until the job is accepted, wherever the server is by then; the key makes that safe."""
    _, _, picture = drawn(number, max_side=128)
    body = {
        "job_type": "caption",
        "input": {"image": picture, "length": "short", "webhook_url": receiver.url},
    }
    async with httpx.AsyncClient(timeout=30) as client:
        while True:
            with suppress(httpx.HTTPError):
                response = await client.post(
                    f"{url[0]}/api/v1/jobs", json=body, headers={"Idempotency-Key": f"{number}"}
                )
                if response.status_code == 202:
                    accepted[response.json()["id"]] = number
                    return
                assert response.status_code in (404, 429, 500, 502, 503, 504), response.text
            await asyncio.sleep(0.5)


async def submit_all(url: list[str], receiver: Receiver, accepted: dict[str, int]) -> None:
    room = asyncio.Semaphore(IN_FLIGHT)

    async def one(number: int) -> None:
        async with room:
            await submit(url, number, receiver, accepted)

    await asyncio.gather(*(one(number) for number in range(JOBS)))


async def all_jobs(url: str) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = []
    cursor: str | None = ""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        while cursor is not None:
            page = (
                (await client.get("/api/v1/jobs", params={"limit": 200, "cursor": cursor}))
                .raise_for_status()
                .json()
            )
            jobs += page["jobs"]
            cursor = page["next_cursor"]
    return jobs


async def until_all_have_ended(url: str, receiver: Receiver) -> list[dict[str, Any]]:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with suppress(httpx.HTTPError):
                jobs = await all_jobs(url)
                told = [job for job in jobs if receiver.bodies.get(job["id"])]
                if (
                    len(jobs) == JOBS
                    and len(told) == JOBS
                    and all(job["status"] in ENDED for job in jobs)
                ):
                    return jobs
            await asyncio.sleep(1)


async def test_nothing_is_lost_or_ends_twice_whatever_is_killed(tmp_path: Path) -> None:
    """Queue, model and ingress are killed at random moments while 500 jobs are submitted and run,
    then the whole cluster; it starts again over the same folder."""
    rng = random.Random(0)
    accepted: dict[str, int] = {}
    killed: Counter[str] = Counter()
    with receiving(SECRET) as receiver:
        first, second = f"chaos-{time.time_ns()}", f"chaos-again-{time.time_ns()}"
        with server(tmp_path, first) as url:
            where = [url]
            submitting = asyncio.create_task(submit_all(where, receiver, accepted))
            for victim in (*VICTIMS, VICTIMS[0]):
                await asyncio.sleep(rng.uniform(2, 6))
                await asyncio.to_thread(kill, first, victim)
                killed[victim] += 1
            await asyncio.sleep(rng.uniform(1, 3))
            await asyncio.to_thread(kill_all, first)
        await asyncio.to_thread(await_end, "RAYLENS_TEST", first, 30)
        with server(tmp_path, second) as url:
            where[0] = url
            await submitting
            jobs = await until_all_have_ended(url, receiver)
            deliveries = await deliveries_of(url, jobs)
    assert {job["id"] for job in jobs} == set(accepted)
    assert len(accepted) == JOBS
    assert Counter(job["status"] for job in jobs) == {"succeeded": JOBS}
    scenes = {job["id"]: drawn(accepted[job["id"]], max_side=128)[0] for job in jobs}
    wrong = [job for job in jobs if job["output"]["caption"] != scenes[job["id"]].caption("short")]
    assert len(wrong) <= JOBS // 50
    assert receiver.refused == []
    # One end each: one terminal event, under one id, however often it was sent.
    assert all(len(events) == 1 for events in receiver.bodies.values())
    assert all(
        event["type"] == "job.succeeded"
        for events in receiver.bodies.values()
        for event in events.values()
    )
    assert all(len(each) == 1 for each in deliveries)
    print(
        f"killed {dict(killed)} and the cluster; {sum(job['attempts'] > 1 for job in jobs)} jobs took more than one "
        f"attempt, {max(job['attempts'] for job in jobs)} at most; "
        f"{sum(times > 1 for times in receiver.times.values())} webhooks came more than once"
    )


async def deliveries_of(url: str, jobs: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        answers = [
            (await client.get(f"/api/v1/jobs/{job['id']}/deliveries")).json() for job in jobs[:50]
        ]
    return [answer["deliveries"] for answer in answers]
