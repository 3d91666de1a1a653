"""A job that captions many pictures with one prompt."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from pydantic import Field

from raylens.core.errors import RaylensError
from raylens.jobs.types.base import JobContext, JobType, Picture
from raylens.jobs.types.picture import CaptionOptions, make_caption


class BatchInput(CaptionOptions):
    images: Annotated[list[Picture], Field(min_length=1)]


class BatchJob(JobType):
    """Output: ``{"results": […], "failed": n}``, with a caption or an error for each picture.

    Finished captions are stored, and the next attempt resumes after them.
    """

    name = "batch"
    input_model = BatchInput

    async def run(self, job_input: BatchInput, context: JobContext) -> dict[str, Any]:
        total = len(job_input.images)
        results: list[dict[str, Any] | None] = [None] * total
        partial = (context.job.output or {}).get("results", ())
        for number, result in enumerate(partial[:total]):
            results[number] = result
        limit = asyncio.Semaphore(context.config.batch_concurrency)
        report_lock = asyncio.Lock()

        async def process(number: int) -> None:
            async with limit:
                results[number] = await _caption_or_error(number, job_input, context)
            async with report_lock:
                done = total - results.count(None)
                await context.report(done, total, {"results": list(results)})

        try:
            async with asyncio.TaskGroup() as group:
                for number in range(total):
                    if results[number] is None:
                        group.create_task(process(number))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return {"results": results, "failed": sum("error" in (result or {}) for result in results)}


async def _caption_or_error(
    number: int, job_input: BatchInput, context: JobContext
) -> dict[str, Any]:
    """Return a picture's caption, or the error that only this picture has.

    Raises retryable errors: they end the attempt.
    """
    field = f"input.images.{number}"
    try:
        return await make_caption(job_input.images[number], field, job_input, context)
    except RaylensError as error:
        if error.retryable:
            raise
        return {"error": {"code": error.code, "message": error.message, "field": error.field}}
