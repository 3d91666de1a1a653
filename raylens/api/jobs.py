"""The jobs dialect: background jobs, their events, and their webhook deliveries."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import JSONResponse

from raylens.api import sse
from raylens.api.context import Context
from raylens.api.job_request import JobReader, JobRequest
from raylens.core.errors import InvalidRequest, RaylensError, UnknownJob
from raylens.jobs.job import Delivery, Job, JobState
from raylens.jobs.ports import JobService
from raylens.jobs.webhooks import format_timestamp

PATH = "/api/v1/jobs"
MAX_PAGE = 1000
KEEPALIVE_S = 15.0
_JOB_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def router(context: Context, jobs: JobService) -> APIRouter:
    """Return the dialect's routes."""
    routes = APIRouter(prefix=PATH, tags=["Jobs"])
    reader = JobReader(context)

    @routes.get("", summary="List the jobs, newest first")
    async def list_jobs(
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100, status: str = "", cursor: str = ""
    ) -> dict[str, Any]:
        # One job more than the limit tells whether a next page exists.
        matches = await jobs.list_jobs(_parse_states(status), limit + 1, _check_cursor(cursor))
        page = matches[:limit]
        return {
            "jobs": [job_as_json(job) for job in page],
            "next_cursor": page[-1].id if len(matches) > limit else None,
        }

    @routes.post("", status_code=202, summary="Submit a job")
    async def submit(body: JobRequest, http: Request) -> JSONResponse:
        submission = await reader.read(http, body)
        job = await jobs.submit(submission.job, submission.pictures)
        return JSONResponse(job_as_json(job), 202, {"Location": f"{PATH}/{job.id}"})

    @routes.get("/{job_id}", summary="Show a job")
    async def get(job_id: str) -> dict[str, Any]:
        return job_as_json(await jobs.get(check_job_id(job_id)))

    @routes.put("/{job_id}", summary="Queue a failed or canceled job again")
    async def retry(job_id: str) -> dict[str, Any]:
        return job_as_json(await jobs.requeue(check_job_id(job_id)))

    @routes.delete("/{job_id}", summary="Cancel a job")
    async def cancel(job_id: str) -> dict[str, Any]:
        return job_as_json(await jobs.cancel(check_job_id(job_id)))

    @routes.get(
        "/{job_id}/events",
        summary="Stream a job's state and progress as server-sent events until it ends",
    )
    async def events(job_id: str) -> Any:
        return await sse.stream(_events(jobs, check_job_id(job_id)))

    @routes.get("/{job_id}/deliveries", summary="List the deliveries of a job's webhooks")
    async def deliveries(job_id: str) -> dict[str, Any]:
        job_deliveries = await jobs.deliveries(check_job_id(job_id))
        return {"deliveries": [_delivery_as_json(delivery) for delivery in job_deliveries]}

    @routes.post(
        "/{job_id}/deliveries/{number}/redeliver",
        status_code=202,
        summary="Send a delivery again",
    )
    async def redeliver(job_id: str, number: Annotated[int, Path(ge=1)]) -> dict[str, Any]:
        return _delivery_as_json(await jobs.redeliver(check_job_id(job_id), number))

    return routes


def job_as_json(job: Job, *, with_input: bool = True) -> dict[str, Any]:
    """Return a job as every route shows it. The webhook's secret is left out."""
    problem = job.problem
    progress = job.progress
    waits_for_retry = job.state is JobState.QUEUED and job.attempts > 0
    body = {
        "id": job.id,
        "job_type": job.type,
        "status": job.state.value,
        "priority": job.priority,
        "attempts": job.attempts,
        "max_attempts": job.max_attempts,
        "progress": progress and {"done": progress.done, "total": progress.total},
        "input": job.input,
        "query": job.extra.get("query"),
        "domain_id": job.extra.get("domain_id"),
        "output": job.output if job.state is JobState.SUCCEEDED else None,
        "error": problem
        and {"code": problem.code, "message": problem.message, "field": problem.field},
        "webhook_url": job.webhook and job.webhook.url,
        "created_at": format_timestamp(job.created_at),
        "started_at": format_timestamp(job.started_at),
        "finished_at": format_timestamp(job.finished_at),
        "next_attempt_at": format_timestamp(job.run_after) if waits_for_retry else None,
        "deadline": format_timestamp(job.deadline),
    }
    if not with_input:
        del body["input"]
    return body


def _delivery_as_json(delivery: Delivery) -> dict[str, Any]:
    is_pending = delivery.state == "pending"
    return {
        "number": delivery.number,
        "webhook_id": delivery.id,
        "event": delivery.event,
        "url": delivery.webhook.url,
        "status": delivery.state.value,
        "attempts": delivery.attempts,
        "http_status": delivery.status,
        "error": delivery.problem,
        "created_at": format_timestamp(delivery.created_at),
        "next_attempt_at": format_timestamp(delivery.next_at) if is_pending else None,
        "delivered_at": format_timestamp(delivery.delivered_at),
    }


def check_job_id(job_id: str) -> str:
    """Return ``job_id`` if it has the form of this server's ids.

    No job has an id of another form: raises ``UnknownJob`` without a look-up.
    """
    if not _JOB_ID.fullmatch(job_id):
        raise UnknownJob(f"job_id: unknown job {job_id[:64]!r}", "job_id")
    return job_id


def _check_cursor(cursor: str) -> str | None:
    if cursor and not _JOB_ID.fullmatch(cursor):
        raise InvalidRequest("cursor: expected the next_cursor of a page", "cursor")
    return cursor or None


def _parse_states(status: str) -> frozenset[JobState]:
    names = [name for name in status.split(",") if name]
    known = [state.value for state in JobState]
    for name in names:
        if name not in known:
            raise InvalidRequest(
                f"status: unknown state {name[:32]!r}; known: {', '.join(known)}", "status"
            )
    return frozenset(map(JobState, names))


async def _events(jobs: JobService, job_id: str) -> AsyncGenerator[str, None]:
    """Yield ``state`` first and on every change of state or attempt, ``progress`` in between.

    Comments keep the connection alive.
    """
    previous: Job | None = None
    while previous is None or not previous.state.is_terminal:
        try:
            job = await jobs.watch(job_id, previous, KEEPALIVE_S)
        except RaylensError:
            if previous is None:
                raise
            return  # the client can reconnect
        if previous is None or (job.state, job.attempts) != (previous.state, previous.attempts):
            yield _job_event("state", job)
        elif job.progress != previous.progress:
            yield _job_event("progress", job)
        else:
            yield ": keepalive\n\n"
        previous = job


def _job_event(name: str, job: Job) -> str:
    return f"event: {name}\n{sse.event(job_as_json(job, with_input=False))}"
