"""The caption service's dialect: captions in the background."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from raylens.api.answers import answers
from raylens.api.answers import services as shapes
from raylens.api.job_request import JobReader, JobRequest
from raylens.api.jobs import check_job_id
from raylens.core.errors import RaylensError
from raylens.core.wire import SparseBody, Text
from raylens.jobs.job import Job, JobState
from raylens.jobs.ports import JobService
from raylens.jobs.webhooks import format_timestamp


class GenerateRequest(SparseBody):
    """Body of ``POST /caption/generate``. ``image_data`` is raw base64 or a data URL."""

    image_data: Text
    prompt: Text | None = None
    webhook_url: Text | None = None
    model: Text | None = None


def router(reader: JobReader, jobs: JobService) -> APIRouter:
    """Return the dialect's routes."""
    routes = APIRouter(prefix="/caption", tags=["Caption service"])

    @routes.post(
        "/generate",
        status_code=202,
        summary="Caption a picture in the background",
        **answers(shapes.QueuedCaption, status=202),
    )
    async def generate(body: GenerateRequest, http: Request) -> JSONResponse:
        job_input = body.model_dump(exclude_none=True)
        job_input["image"] = job_input.pop("image_data")
        try:
            request = JobRequest(job_type="caption", input=job_input)
            job = await reader.submit(http, request, jobs)
        except RaylensError as error:
            if not (error.field or "").startswith("input"):
                raise
            raise error.about(_dialect_field(error.field)) from None
        return JSONResponse({"job_id": job.id, "status": job.state.value}, 202)

    @routes.get("/job/{job_id}", summary="Show a caption job", **answers(shapes.CaptionJob))
    async def job(job_id: str) -> dict[str, Any]:
        return _job_as_json(await jobs.get(check_job_id(job_id)))

    @routes.get("/stats", summary="Show the queue's statistics", **answers(shapes.QueueStats))
    async def stats() -> dict[str, Any]:
        current = await jobs.stats()
        return {
            "waiting": current.counts[JobState.QUEUED],
            "running": current.counts[JobState.RUNNING],
            "done": current.counts[JobState.SUCCEEDED],
            "failed": current.counts[JobState.FAILED],
            "canceled": current.counts[JobState.CANCELED],
            "capacity": current.capacity,
            "workers": current.workers,
            "mean_seconds": current.mean_s and round(current.mean_s, 4),
            "p95_seconds": current.p95_s and round(current.p95_s, 4),
        }

    return routes


def _dialect_field(job_field: str | None) -> str:
    """Return this dialect's name for a field of the jobs dialect."""
    if job_field == "input.image":
        return "image_data"
    return (job_field or "").removeprefix("input.")


def _job_as_json(job: Job) -> dict[str, Any]:
    output = job.output if job.state is JobState.SUCCEEDED else None
    problem = job.problem if job.state is JobState.FAILED else None
    return {
        "job_id": job.id,
        "status": job.state.value,
        "caption": output and output.get("caption"),
        "error": problem and problem.message,
        "created_at": format_timestamp(job.created_at),
        "started_at": format_timestamp(job.started_at),
        "finished_at": format_timestamp(job.finished_at),
    }
