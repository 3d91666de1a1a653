"""A job that captions many pictures with one prompt."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from pydantic import Field

from raylens.core.errors import RaylensError
from raylens.jobs.types.base import JobContext, JobType, PictureReference
from raylens.jobs.types.picture import CaptionFields, make_caption


class BatchInput(CaptionFields):
    images: Annotated[list[PictureReference], Field(min_length=1)]


class BatchJob(JobType):
    """Output: ``{"results": […], "failed": n}``, with a caption or an error for each picture.

    Finished results are stored, and the next attempt makes only the missing ones.
    """

    name = "batch"
    input_model = BatchInput

    async def run(self, job_input: BatchInput, context: JobContext) -> dict[str, Any]:
        total = len(job_input.images)
        results: list[dict[str, Any] | None] = [None] * total
        partial = (context.job.output or {}).get("results", ())
        for index, result in enumerate(partial[:total]):
            results[index] = result
        slots = asyncio.Semaphore(context.config.batch_concurrency)
        report_lock = asyncio.Lock()  # keeps stored reports in order

        async def process(index: int) -> None:
            async with slots:
                results[index] = await _caption_or_error(index, job_input, context)
            async with report_lock:
                done = total - results.count(None)
                await context.report(done, total, {"results": list(results)})

        try:
            async with asyncio.TaskGroup() as group:
                for index in range(total):
                    if results[index] is None:
                        group.create_task(process(index))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return {"results": results, "failed": sum("error" in (result or {}) for result in results)}


async def _caption_or_error(
    index: int, job_input: BatchInput, context: JobContext
) -> dict[str, Any]:
    """Return a picture's caption, or a non-retryable error, which concerns only this picture.

    Raises retryable errors: they end the attempt.
    """
    field = f"input.images.{index}"
    try:
        return await make_caption(job_input.images[index], field, job_input, context)
    except RaylensError as error:
        if error.retryable:
            raise
        return {"error": {"code": error.code, "message": error.message, "field": error.field}}
