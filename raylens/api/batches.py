"""The part of OpenAI's API that runs files of requests: each batch is one job of the queue.

Format: OpenAI's API reference, "Batch".
"""

from __future__ import annotations

import hashlib
import re
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from raylens.api.answers import answers
from raylens.api.answers import openai as shapes
from raylens.api.files import check_file_id, page_as_json
from raylens.api.job_request import read_idempotency_key
from raylens.core.config import AppConfig
from raylens.core.errors import Conflict, InvalidRequest, RaylensError, UnknownJob
from raylens.core.wire import Text, well_formed
from raylens.jobs.files import UnknownFile
from raylens.jobs.job import Job, JobState, compute_rank, new_id
from raylens.jobs.ports import JobService
from raylens.jobs.store import JobQuery
from raylens.jobs.types.openai_batch import (
    ENDPOINTS,
    JOB_TYPE,
    LAST_LINES_S,
    OpenAIBatchInput,
    error_file_id,
    output_file_id,
    parse_window,
)

PATH = "/v1/batches"
MAX_PAGE = 100
MAX_METADATA = 16
"""Entries of ``metadata``."""
_PREFIX = "batch_"
_BATCH_ID = re.compile(r"batch_([0-9a-f]{8})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{12})")

Metadata = Annotated[
    dict[
        Annotated[str, Field(max_length=64), AfterValidator(well_formed)],
        Annotated[str, Field(max_length=512), AfterValidator(well_formed)],
    ],
    Field(max_length=MAX_METADATA),
]


class BatchRequest(BaseModel):
    """Body of ``POST /v1/batches``. Unknown fields are ignored, as OpenAI's clients add some."""

    model_config = ConfigDict(extra="ignore")

    input_file_id: Text
    endpoint: Text
    completion_window: Text = "24h"
    metadata: Metadata | None = None


def router(jobs: JobService, config: AppConfig) -> APIRouter:
    """Return the routes on batches."""
    routes = APIRouter(prefix=PATH, tags=["OpenAI"])

    @routes.post("", summary="Run a file of requests in the background", **answers(shapes.Batch))
    async def create(body: BatchRequest, http: Request) -> dict[str, Any]:
        window_s = parse_window(body.completion_window)
        if body.endpoint not in ENDPOINTS:
            known = ", ".join(ENDPOINTS)
            raise InvalidRequest(f"endpoint: expected one of {known}", "endpoint")
        await _check_input_file(jobs, body.input_file_id, window_s + LAST_LINES_S)
        job = _make_job(body, window_s, config, read_idempotency_key(http))
        return batch_as_json(await jobs.submit(job, {}))

    @routes.get("", summary="List batches, newest first", **answers(shapes.BatchPage))
    async def list_batches(
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20, after: str | None = None
    ) -> dict[str, Any]:
        before_id = None if after is None else _job_id(after)
        # One batch more than the limit tells whether a next page exists.
        query = JobQuery(limit + 1, type=JOB_TYPE, before_id=before_id)
        batches = [batch_as_json(job) for job in await jobs.list_jobs(query)]
        return page_as_json(batches, limit)

    @routes.get("/{batch_id}", summary="Show a batch", **answers(shapes.Batch))
    async def get(batch_id: str) -> dict[str, Any]:
        return batch_as_json(await _get_job(jobs, batch_id))

    @routes.post(
        "/{batch_id}/cancel",
        summary="Cancel a batch; what is done stays in its files",
        **answers(shapes.Batch),
    )
    async def cancel(batch_id: str) -> dict[str, Any]:
        job = await _get_job(jobs, batch_id)
        try:
            return batch_as_json(await jobs.cancel(job.id))
        except Conflict as error:
            status = batch_as_json(await _get_job(jobs, batch_id))["status"]
            raise Conflict(f"batch_id: the batch is already {status}", "batch_id") from error

    return routes


async def _check_input_file(jobs: JobService, file_id: str, seconds: float) -> None:
    """Raise ``InvalidRequest`` unless the file may be the input of a batch. Keep it for that."""
    field = "input_file_id"
    try:
        file = await jobs.keep_file(check_file_id(file_id), seconds)
    except UnknownFile:
        raise InvalidRequest(f"{field}: unknown file {file_id[:64]!r}", field) from None
    if file.purpose != "batch":
        raise InvalidRequest(f"{field}: the file's purpose is {file.purpose}, not batch", field)


def _make_job(body: BatchRequest, window_s: float, config: AppConfig, key: str | None) -> Job:
    now = time.time()
    batch_input = OpenAIBatchInput(
        input_file_id=body.input_file_id,
        endpoint=body.endpoint,
        completion_window=body.completion_window,
    )
    return Job(
        id=new_id(),
        type=JOB_TYPE,
        input=batch_input.model_dump(mode="json", exclude_unset=True),
        created_at=now,
        deadline=now + window_s + LAST_LINES_S,
        max_attempts=config.jobs.max_attempts,
        rank=compute_rank(0, now),
        extra={"metadata": body.metadata} if body.metadata else {},
        idempotency_key=key,
        digest=hashlib.sha256(body.model_dump_json().encode()).hexdigest(),
        run_after=now,
    )


def batch_as_json(job: Job) -> dict[str, Any]:
    """Return a batch as OpenAI's clients expect it."""
    output = job.output or {}
    status = _status(job, output)
    finished_at = _seconds(job.finished_at)
    problem = job.problem if status == "failed" else None
    return {
        "id": _PREFIX + job.id.replace("-", ""),
        "object": "batch",
        "endpoint": job.input.get("endpoint"),
        "errors": problem
        and {
            "object": "list",
            "data": [
                {"code": problem.code, "message": problem.message, "param": None, "line": None}
            ],
        },
        "input_file_id": job.input.get("input_file_id"),
        "completion_window": job.input.get("completion_window"),
        "status": status,
        "output_file_id": output_file_id(job) if output.get("completed") else None,
        "error_file_id": error_file_id(job) if output.get("failed") else None,
        "created_at": int(job.created_at),
        "in_progress_at": _seconds(job.started_at),
        "expires_at": int(job.deadline - LAST_LINES_S),
        "finalizing_at": finished_at if status == "completed" else None,
        "completed_at": finished_at if status == "completed" else None,
        "failed_at": finished_at if status == "failed" else None,
        "expired_at": finished_at if status == "expired" else None,
        "cancelling_at": finished_at if status == "cancelled" else None,
        "cancelled_at": finished_at if status == "cancelled" else None,
        "request_counts": {
            "total": output.get("total", 0),
            "completed": output.get("completed", 0),
            "failed": output.get("failed", 0),
        },
        "metadata": job.extra.get("metadata"),
    }


def _status(job: Job, output: dict[str, Any]) -> str:
    match job.state:
        case JobState.SUCCEEDED:
            return "expired" if output.get("expired") else "completed"
        case JobState.CANCELED:
            return "cancelled"
        case JobState.FAILED:
            is_late = job.problem is not None and job.problem.code == "deadline_exceeded"
            return "expired" if is_late else "failed"
        case _:
            return "validating" if job.started_at is None else "in_progress"


def _seconds(timestamp: float | None) -> int | None:
    return None if timestamp is None else int(timestamp)


async def _get_job(jobs: JobService, batch_id: str) -> Job:
    """Return the job of a batch. Raises ``UnknownJob``."""
    job_id = _job_id(batch_id)
    job = (await jobs.get_many([job_id])).get(job_id)
    if job is None or job.type != JOB_TYPE:
        raise _unknown_batch(batch_id)
    return job


def _job_id(batch_id: str) -> str:
    """Return the id of a batch's job. Raises ``UnknownJob`` if no batch has such an id."""
    match = _BATCH_ID.fullmatch(batch_id)
    if match is None:
        raise _unknown_batch(batch_id)
    return "-".join(match.groups())


def _unknown_batch(batch_id: str) -> RaylensError:
    return UnknownJob(f"batch_id: unknown batch {batch_id[:64]!r}", "batch_id")
