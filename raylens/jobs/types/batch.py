"""A job that captions many pictures with one prompt."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from raylens.core.config import MAX_JOB_PICTURES
from raylens.core.errors import RaylensError
from raylens.jobs.types.base import JobContext, JobType, PictureReference
from raylens.jobs.types.picture import CaptionFields, error_as_json, make_caption
from raylens.jobs.types.units import UnitAttempt, UnitRunner


class BatchInput(CaptionFields):
    images: Annotated[list[PictureReference], Field(min_length=1, max_length=MAX_JOB_PICTURES)]


class BatchJob(JobType):
    """Output: ``{"results": […], "failed": n}``, with a caption or an error for each picture.

    Finished results are stored, and the next attempt makes only the missing ones. Until the job has
    ended, a missing result is null, and ``attempts`` counts the failed attempts by picture.
    """

    name = "batch"
    input_model = BatchInput
    retries_units = True

    async def run(self, job_input: BatchInput, context: JobContext) -> dict[str, Any]:
        total = len(job_input.images)
        partial = context.job.output or {}
        results: list[dict[str, Any] | None] = [None] * total
        results[:] = [*partial.get("results", ()), *results][:total]

        async def caption(attempt: UnitAttempt) -> dict[str, Any]:
            image = job_input.images[attempt.unit]
            field = f"input.images.{attempt.unit}"
            return await make_caption(image, field, job_input, context, attempt.deadline)

        async def finish(index: int, result: dict[str, Any] | RaylensError) -> None:
            if isinstance(result, RaylensError):
                result = {"error": error_as_json(result)}
            results[index] = result
            await report()

        async def report() -> None:
            done = total - results.count(None)
            partial = {"results": list(results), "attempts": runner.attempts_as_json}
            await context.report(done, total, partial)

        runner = UnitRunner(
            context,
            context.config.batch_concurrency,
            partial.get("attempts", {}),
            caption,
            finish,
            report,
        )
        await runner.run(index for index in range(total) if results[index] is None)
        return {"results": results, "failed": sum("error" in (result or {}) for result in results)}
