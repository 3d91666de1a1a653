"""Caption jobs, submitted while parts of the cluster are killed, and how each of them ends."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from benchmarks.chaos.load import Outcome, Proxies
from testing.scenes import draw_scene

PATH = "/api/v1/jobs"
ENDED = ("succeeded", "failed", "canceled")
IN_FLIGHT = 8
PAUSE_S = 0.5
END_S = 120.0


@dataclass
class Endings:
    """The webhooks' events that say how a job has ended."""

    url: str = ""
    events: dict[str, set[tuple[str, str]]] = field(default_factory=lambda: defaultdict(set))
    """The (id, type) of each, by job."""


@contextmanager
def receiving() -> Iterator[Endings]:
    """Run a receiver of webhooks."""
    endings = Endings()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            event = json.loads(self.rfile.read(int(self.headers["content-length"])))
            key = self.headers["webhook-id"], event["type"]
            endings.events[event["data"]["job_id"]].add(key)
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endings.url = f"http://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield endings
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Jobs:
    """Submits jobs, each until it is accepted: its key makes that safe."""

    def __init__(self, proxies: Proxies, endings: Endings) -> None:
        self._proxies = proxies
        self._endings = endings
        self._http = httpx.AsyncClient(
            timeout=60, limits=httpx.Limits(max_connections=64, max_keepalive_connections=0)
        )
        self.accepted: dict[str, int] = {}
        """The number of each job, by its id."""
        self.tries: Counter[Outcome] = Counter()
        """What became of each request that submitted a job."""
        self.reasons: Counter[str] = Counter()

    async def submit_all(self, numbers: range) -> None:
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def submit_in_slot(number: int) -> None:
            async with slots:
                while not await self._submit(number):
                    await asyncio.sleep(PAUSE_S)
                await asyncio.sleep(PAUSE_S)

        await asyncio.gather(*map(submit_in_slot, numbers))

    async def _submit(self, number: int) -> bool:
        """Returns whether the job is accepted."""
        _, _, picture = draw_scene(number, max_side=128)
        job_input = {"image": picture, "length": "short", "webhook_url": self._endings.url}
        body = {"job_type": "caption", "input": job_input}
        outcome, reason = Outcome.FAILED, "no proxy takes connections"
        for port in self._proxies.in_turn():
            url = f"http://127.0.0.1:{port}{PATH}"
            try:
                response = await self._http.post(
                    url, json=body, headers={"Idempotency-Key": f"{number}"}
                )
            except httpx.ConnectError:
                continue
            except httpx.HTTPError as error:
                is_lost = port in self._proxies.killed
                outcome = Outcome.LOST if is_lost else Outcome.FAILED
                reason = f"{type(error).__name__}: {error}"
                break
            outcome, reason = _judge(response)
            if outcome is Outcome.ANSWERED:
                self.accepted[response.json()["id"]] = number
            break
        self.tries[outcome] += 1
        if outcome in (Outcome.FAILED, Outcome.REFUSED):
            self.reasons[reason] += 1
        return outcome is Outcome.ANSWERED

    async def wait_until_ended(self, count: int) -> list[dict[str, Any]]:
        """Return all jobs, once each has ended and its webhook has come."""
        jobs: list[dict[str, Any]] = []
        async with asyncio.timeout(END_S):
            while True:
                jobs = await self._list()
                waiting = [job for job in jobs if job["status"] not in ENDED]
                silent = [job for job in jobs if not self._endings.events[job["id"]]]
                if not waiting and not silent and len(jobs) >= count:
                    return jobs
                await asyncio.sleep(PAUSE_S)

    async def _list(self) -> list[dict[str, Any]]:
        jobs: list[dict[str, Any]] = []
        cursor: str | None = ""
        url = f"http://127.0.0.1:{self._proxies.in_turn()[0]}{PATH}"
        while cursor is not None:
            response = await self._http.get(url, params={"limit": 200, "cursor": cursor})
            page = response.raise_for_status().json()
            jobs += page["jobs"]
            cursor = page["next_cursor"]
        return jobs

    def find_faults(self, jobs: list[dict[str, Any]]) -> list[str]:
        """Return what is wrong with the jobs: each must have succeeded, once, and its submission
        must not have failed but by a clear 503."""
        listed = {job["id"] for job in jobs}
        faults = [f"lost: {job_id}" for job_id in self.accepted if job_id not in listed]
        faults += [f"not submitted: {job_id}" for job_id in listed - set(self.accepted)]
        faults += [
            f"{job['id']}: {job['status']} ({job.get('error')})"
            for job in jobs
            if job["status"] != "succeeded"
        ]
        if failed := self.tries[Outcome.FAILED]:
            faults.append(f"{failed} submissions failed")
        return faults + [
            f"{job_id}: ended {len(events)} times"
            for job_id, events in self._endings.events.items()
            if len(events) != 1
        ]

    async def close(self) -> None:
        await self._http.aclose()


def _judge(response: httpx.Response) -> tuple[Outcome, str]:
    if response.status_code == 202:
        return Outcome.ANSWERED, ""
    try:
        message = response.json().get("detail", "")
    except ValueError:
        message = ""
    if response.status_code == 503 and message and "retry-after" in response.headers:
        return Outcome.REFUSED, message
    return Outcome.FAILED, f"{response.status_code}: {response.text[:120]}"
