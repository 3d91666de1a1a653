"""The caption service's queue: captions in the background, by job id."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import field_validator
from starlette.responses import JSONResponse

from raylens.api.context import Context
from raylens.api.job_request import JobReader, JobRequest
from raylens.api.jobs import known_form
from raylens.core.errors import RaylensError
from raylens.core.wire import Body, Text
from raylens.jobs.job import Job, JobState
from raylens.jobs.ports import JobService
from raylens.jobs.webhooks import iso


class GenerateRequest(Body):
    """``image_data`` is raw base64 or a data URL."""

    image_data: Text
    prompt: Text | None = None
    webhook_url: Text | None = None
    model: Text | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_absent(cls, value: Any) -> Any:
        return None if value == "" else value


def router(context: Context, jobs: JobService) -> APIRouter:
    """The dialect's routes."""
    routes = APIRouter(prefix="/caption", tags=["Caption service"])
    reader = JobReader(context)

    @routes.post("/generate", status_code=202, summary="Caption a picture in the background")
    async def generate(body: GenerateRequest, http: Request) -> JSONResponse:
        given = body.model_dump(exclude_none=True)
        given["image"] = given.pop("image_data")
        try:
            submission = await reader.read(http, JobRequest(job_type="caption", input=given))
        except RaylensError as error:
            raise error.about(_own_name(error.field)) from None
        job = await jobs.submit(submission.job, submission.pictures)
        return JSONResponse({"job_id": job.id, "status": job.state.value}, 202)

    @routes.get("/job/{job_id}", summary="How a caption's job stands")
    async def job(job_id: str) -> dict[str, Any]:
        return _job_as_json(await jobs.get(known_form(job_id)))

    @routes.get("/stats", summary="How the queue stands")
    async def stats() -> dict[str, Any]:
        now = await jobs.stats()
        return {
            "waiting": now.counts[JobState.QUEUED],
            "running": now.counts[JobState.RUNNING],
            "done": now.counts[JobState.SUCCEEDED],
            "failed": now.counts[JobState.FAILED],
            "canceled": now.counts[JobState.CANCELED],
            "capacity": now.capacity,
            "workers": now.workers,
            "mean_seconds": now.mean_s and round(now.mean_s, 4),
            "p95_seconds": now.p95_s and round(now.p95_s, 4),
        }

    return routes


def _own_name(field: str | None) -> str:
    return {"input.image": "image_data"}.get(field or "", (field or "").removeprefix("input."))


def _job_as_json(job: Job) -> dict[str, Any]:
    output = job.output if job.state is JobState.SUCCEEDED else None
    return {
        "job_id": job.id,
        "status": job.state.value,
        "caption": output and output.get("caption"),
        "error": job.problem.message
        if job.problem is not None and job.state is JobState.FAILED
        else None,
        "created_at": iso(job.created_at),
        "started_at": iso(job.started_at),
        "finished_at": iso(job.finished_at),
    }
