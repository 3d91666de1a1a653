"""The jobs dialect: background jobs, their events and their webhooks' deliveries."""

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
from raylens.jobs.webhooks import iso

PATH = "/api/v1/jobs"
MAX_PAGE = 1000
KEEPALIVE_S = 15.0
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def router(context: Context, jobs: JobService) -> APIRouter:
    """The dialect's routes."""
    routes = APIRouter(prefix=PATH, tags=["Jobs"])
    reader = JobReader(context)

    @routes.get("", summary="The jobs, newest first")
    async def list_jobs(
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100, status: str = "", cursor: str = ""
    ) -> dict[str, Any]:
        page = await jobs.page(_states(status), limit + 1, _cursor(cursor))
        more = len(page) > limit
        shown = page[:limit]
        return {
            "jobs": [job_as_json(job) for job in shown],
            "next_cursor": shown[-1].id if more else None,
        }

    @routes.post("", status_code=202, summary="Submit a job")
    async def submit(body: JobRequest, http: Request) -> JSONResponse:
        submission = await reader.read(http, body)
        job = await jobs.submit(submission.job, submission.pictures)
        return JSONResponse(job_as_json(job), 202, {"Location": f"{PATH}/{job.id}"})

    @routes.get("/{job_id}", summary="One job")
    async def get(job_id: str) -> dict[str, Any]:
        return job_as_json(await jobs.get(known_form(job_id)))

    @routes.put("/{job_id}", summary="Queue a failed or canceled job again")
    async def retry(job_id: str) -> dict[str, Any]:
        return job_as_json(await jobs.retry(known_form(job_id)))

    @routes.delete("/{job_id}", summary="Cancel a job")
    async def cancel(job_id: str) -> dict[str, Any]:
        return job_as_json(await jobs.cancel(known_form(job_id)))

    @routes.get(
        "/{job_id}/events", summary="State and progress, as server-sent events until the end"
    )
    async def events(job_id: str) -> Any:
        return await sse.stream(_events(jobs, known_form(job_id)))

    @routes.get("/{job_id}/deliveries", summary="The deliveries of a job's webhooks")
    async def deliveries(job_id: str) -> dict[str, Any]:
        return {
            "deliveries": [
                _delivery_as_json(delivery)
                for delivery in await jobs.deliveries(known_form(job_id))
            ]
        }

    @routes.post(
        "/{job_id}/deliveries/{number}/redeliver", status_code=202, summary="Send one again"
    )
    async def redeliver(job_id: str, number: Annotated[int, Path(ge=1)]) -> dict[str, Any]:
        return _delivery_as_json(await jobs.redeliver(known_form(job_id), number))

    return routes


def job_as_json(job: Job, *, with_input: bool = True) -> dict[str, Any]:
    """A job as every route shows it. A webhook's secret is never told."""
    problem, progress = job.problem, job.progress
    shown = {
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
        "created_at": iso(job.created_at),
        "started_at": iso(job.started_at),
        "finished_at": iso(job.finished_at),
        "next_attempt_at": iso(job.run_after)
        if job.state is JobState.QUEUED and job.attempts
        else None,
        "deadline": iso(job.deadline),
    }
    if not with_input:
        del shown["input"]
    return shown


def _delivery_as_json(delivery: Delivery) -> dict[str, Any]:
    return {
        "number": delivery.number,
        "webhook_id": delivery.id,
        "event": delivery.event,
        "url": delivery.webhook.url,
        "status": delivery.state.value,
        "attempts": delivery.attempts,
        "http_status": delivery.status,
        "error": delivery.problem,
        "created_at": iso(delivery.created_at),
        "next_attempt_at": iso(delivery.next_at) if delivery.state == "pending" else None,
        "delivered_at": iso(delivery.delivered_at),
    }


def known_form(job_id: str) -> str:
    """An id as this server gives them: others need not be looked for. Raises ``UnknownJob``."""
    if not _ID.fullmatch(job_id):
        raise UnknownJob(f"job_id: {job_id[:64]!r} is not here", "job_id")
    return job_id


def _cursor(cursor: str) -> str | None:
    if cursor and not _ID.fullmatch(cursor):
        raise InvalidRequest("cursor: not one that a page ended with", "cursor")
    return cursor or None


def _states(status: str) -> frozenset[JobState]:
    names = [name for name in status.split(",") if name]
    known = [state.value for state in JobState]
    for name in names:
        if name not in known:
            raise InvalidRequest(f"status: {name[:32]!r} is none of {', '.join(known)}", "status")
    return frozenset(map(JobState, names))


async def _events(jobs: JobService, job_id: str) -> AsyncGenerator[str, None]:
    """``state`` at first and whenever it changes, ``progress`` between; comments keep the
    connection alive."""
    seen: Job | None = None
    while seen is None or not seen.state.is_terminal:
        try:
            job = await jobs.watch(job_id, seen, KEEPALIVE_S)
        except RaylensError:
            if seen is None:
                raise
            return  # it can be asked for again
        is_new_state = seen is None or (job.state, job.attempts) != (seen.state, seen.attempts)
        if is_new_state or seen is None or job.progress != seen.progress:
            name = "state" if is_new_state else "progress"
            yield f"event: {name}\n{sse.event(job_as_json(job, with_input=False))}"
        else:
            yield ": keepalive\n\n"
        seen = job
