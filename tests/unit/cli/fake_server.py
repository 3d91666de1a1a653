"""A fake of the server's job queue, and pictures to send to it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from raylens.api.job_json import parse_fields
from raylens.api.jobs import MAX_IDS
from raylens.cli.client import TERMINAL
from raylens.cli.errors import BUSY

TIMES = {
    "created_at": "2026-03-01T10:00:00Z",
    "started_at": None,
    "finished_at": None,
    "deadline": None,
}
QUEUED = {
    "status": "queued",
    "attempts": 0,
    "max_attempts": 5,
    "progress": None,
    "output": None,
    "error": None,
}
ANSWER_KEYS = {"caption": "caption", "query": "answer", "detect": "objects"}
BLURRED = {"code": "model_failed", "message": "too blurred, they say", "field": None}


class FakeServer:
    """The routes of the job queue. A job runs when its events are requested.

    It also runs when it is requested by ``ids``: the first time it starts, the second time it ends.

    A picture is a text, and its answer is made from that text. Bytes that are no text are read as
    Latin-1.
    """

    def __init__(self, answer: Callable[[str], Any] = lambda picture: f"a {picture}") -> None:
        self.answer = answer
        """Returns a picture's answer, or its job's error as a dictionary."""
        self.jobs: dict[str, dict[str, Any]] = {}
        self.job_ids: dict[str, str] = {}
        """Job ids by idempotency key."""
        self.pictures: dict[str, str] = {}
        """Pictures by job id."""
        self.inputs: list[dict[str, Any]] = []
        """The inputs of all submissions, without their pictures."""
        self.submissions: list[str] = []
        """The pictures of all submissions."""
        self.without_pictures: set[str] = set()
        """Ids of failed jobs whose pictures have been removed."""
        self.retries: list[str] = []
        """Job ids of all retries."""
        self.pages: list[str] = []
        """Query strings of all requests for a list, except those for certain jobs."""
        self.polls: list[list[str]] = []
        """Ids of all requests for certain jobs."""
        self.streams = 0
        """Number of requests for events."""
        self.starts_at = 0
        """Number of submissions before the first job runs."""
        self.busy_replies = 0
        """Number of submissions that are still to be refused with ``busy_reply``."""
        self.busy_reply = (429, "50 jobs wait; the limit is 50")
        self.broken_streams = 0
        """Number of event streams that are still to end before their job does."""
        self.lost_jobs = 0
        """Number of jobs that are still to be lost when they are requested by ``ids``."""
        self.refusals: dict[str, tuple[int, str]] = {}
        """Status and detail that refuse a picture."""
        self.on_end: Callable[[str], None] = lambda picture: None
        self.max_in_flight = 0
        """Largest number of unfinished jobs at a time."""
        routes = [
            Route("/api/v1/jobs", self._submit, methods=["POST"]),
            Route("/api/v1/jobs", self._list),
            Route("/api/v1/jobs/{id}", self._handle_job, methods=["GET", "PUT", "DELETE"]),
            Route("/api/v1/jobs/{id}/cancel", self._cancel, methods=["POST"]),
            Route("/api/v1/jobs/{id}/events", self._follow),
        ]
        self.transport: httpx.AsyncBaseTransport = httpx.ASGITransport(Starlette(routes=routes))

    @property
    def client_arguments(self) -> dict[str, Any]:
        """Arguments of a client of this server that waits briefly."""
        return {"transport": self.transport, "sleep": nap}

    def add(self, job_id: str, **changes: Any) -> dict[str, Any]:
        self.jobs[job_id] = {
            "id": job_id,
            "job_type": "caption",
            "priority": 0,
            "input": {},
            **QUEUED,
            **TIMES,
            **changes,
        }
        return self.jobs[job_id]

    async def _submit(self, request: Request) -> Response:
        body = await request.json()
        key = request.headers["Idempotency-Key"]
        picture = base64.b64decode(body["input"].pop("image"), validate=True).decode("latin-1")
        if self.busy_replies:
            self.busy_replies -= 1
            return refuse(*self.busy_reply)
        if picture in self.refusals:
            return refuse(*self.refusals[picture])
        self.submissions.append(picture)
        self.inputs.append(body["input"])
        if self.job_ids.get(key) not in self.jobs:
            job_id = f"job-{len(self.submissions)}"
            self.job_ids[key] = job_id
            self.pictures[job_id] = picture
            self.add(job_id, job_type=body["job_type"])
        in_flight = sum(job["status"] not in TERMINAL for job in self.jobs.values())
        self.max_in_flight = max(self.max_in_flight, in_flight)
        return JSONResponse(self.jobs[self.job_ids[key]], 202)

    async def _list(self, request: Request) -> Response:
        query = request.query_params
        if "ids" in query:
            return self._poll(query["ids"].split(","), query.get("fields", ""))
        self.pages.append(str(query))
        jobs = list(self.jobs.values())
        if "status" in query:
            jobs = [job for job in jobs if job["status"] in query["status"].split(",")]
        start = int(query.get("cursor", 0))
        end = start + int(query["limit"])
        return encode_list(jobs[start:end], "", str(end) if end < len(jobs) else None)

    def _poll(self, job_ids: list[str], fields: str) -> Response:
        """Run each of the jobs one step further, and return them, newest first."""
        if len(job_ids) > MAX_IDS:
            return refuse(422, f"ids: {len(job_ids)} ids; the limit is {MAX_IDS}")
        self.polls.append(job_ids)
        jobs = [job for job_id, job in list(self.jobs.items()) if job_id in job_ids]
        if len(self.submissions) >= self.starts_at:
            for job in jobs:
                self._run_step(job)
        return encode_list([job for job in reversed(jobs) if job["id"] in self.jobs], fields)

    def _run_step(self, job: dict[str, Any]) -> None:
        if self.lost_jobs:
            self.lost_jobs -= 1
            del self.jobs[job["id"]]
        elif job["status"] == "queued":
            job.update(status="running", attempts=1)
        elif job["status"] == "running":
            self._end(job, self.pictures.get(job["id"], "picture"))

    async def _handle_job(self, request: Request) -> Response:
        job = self.jobs.get(request.path_params["id"])
        if job is None:
            return refuse(404, "job_id: it is not here")
        if request.method == "PUT":
            if job["status"] not in ("failed", "canceled"):
                return refuse(409, f"job_id: a {job['status']} job can't become queued")
            if job["id"] in self.without_pictures:
                return refuse(409, "job_id: the pictures of the job have been removed")
            self.retries.append(job["id"])
            job.update(QUEUED)
        elif request.method == "DELETE" and job["status"] in TERMINAL:
            del self.jobs[job["id"]]
        elif request.method == "DELETE":
            job["status"] = "canceled"
        return JSONResponse(job)

    async def _cancel(self, request: Request) -> Response:
        job = self.jobs.get(request.path_params["id"])
        if job is None:
            return refuse(404, "job_id: it is not here")
        if job["status"] in ("succeeded", "failed"):
            return refuse(409, f"job_id: a {job['status']} job can't become canceled")
        job["status"] = "canceled"
        return JSONResponse(job)

    async def _follow(self, request: Request) -> Response:
        job_id = request.path_params["id"]
        self.streams += 1
        if job_id not in self.jobs:
            return refuse(404, "job_id: it is not here")
        return StreamingResponse(self._run(self.jobs[job_id]), media_type="text/event-stream")

    async def _run(self, job: dict[str, Any]) -> AsyncIterator[str]:
        yield encode_event("state", job)
        await asyncio.sleep(0.005)
        if job["status"] not in TERMINAL:
            job.update(status="running", attempts=1)
            yield encode_event("state", job) + ": keepalive\n\n"
            job["progress"] = {"done": 1, "total": 2}
            yield encode_event("progress", job)
            if self.broken_streams:
                self.broken_streams -= 1
                return
            self._end(job, self.pictures.get(job["id"], "picture"))
        yield encode_event("state", job)

    def _end(self, job: dict[str, Any], picture: str) -> None:
        outcome = self.answer(picture)
        if isinstance(outcome, dict):
            job.update(status="failed", error=outcome)
        else:
            output = {ANSWER_KEYS[job["job_type"]]: outcome, "model": "moondream"}
            job.update(status="succeeded", output=output)
        self.on_end(picture)


async def skip(seconds: float) -> None:
    """Wait for other tasks only."""
    await asyncio.sleep(0)


async def nap(seconds: float) -> None:
    """Wait for a hundredth of the time, which leaves the processor to other threads."""
    await asyncio.sleep(seconds / 100)


def refuse(status: int, detail: str) -> Response:
    headers = {"Retry-After": "0"} if status in BUSY else {}
    return JSONResponse({"detail": detail}, status, headers)


def encode_list(
    jobs: list[dict[str, Any]], fields: str, next_cursor: str | None = None
) -> Response:
    shown = parse_fields(fields)
    shown_jobs = [{name: job[name] for name in job if name in shown} for job in jobs]
    return JSONResponse({"jobs": shown_jobs, "next_cursor": next_cursor})


def encode_event(name: str, job: dict[str, Any]) -> str:
    fields = {key: value for key, value in job.items() if key != "input"}
    return f"event: {name}\ndata: {json.dumps(fields, ensure_ascii=False)}\n\n"


def fail_for(*pictures: str) -> Callable[[str], Any]:
    """Return a ``FakeServer.answer`` that fails for the given pictures."""
    return lambda picture: BLURRED if picture in pictures else f"a {picture}"


class FlakyTransport(httpx.AsyncBaseTransport):
    """A connection that fails for the first requests; only for those that ``affects`` selects."""

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        failures: int,
        affects: Callable[[httpx.Request], bool] = lambda request: True,
    ) -> None:
        self._inner = inner
        self._failures = failures
        self._affects = affects

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._failures > 0 and self._affects(request):
            self._failures -= 1
            raise httpx.ConnectError("connection refused")
        return await self._inner.handle_async_request(request)


def is_poll(request: httpx.Request) -> bool:
    return "ids" in request.url.params


class ForgetfulTransport(httpx.AsyncBaseTransport):
    """A connection that loses the answer to the first request of one method."""

    def __init__(self, inner: httpx.AsyncBaseTransport, method: str) -> None:
        self._inner = inner
        self._method: str | None = method

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        if request.method == self._method:
            self._method = None
            raise httpx.ReadError("connection reset")
        return response


def write_pictures(folder: Path, *names: str) -> Path:
    """Write files that contain their names up to the first dot, and return ``folder``."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name.partition(".")[0])
    return folder
