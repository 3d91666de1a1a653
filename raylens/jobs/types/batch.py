"""Many pictures, one prompt."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from pydantic import Field

from raylens.core.errors import RaylensError
from raylens.jobs.types.base import Picture, Run
from raylens.jobs.types.picture import Captionable, caption


class BatchInput(Captionable):
    images: Annotated[list[Picture], Field(min_length=1)]


class BatchJob:
    """``{"results": […], "failed": n}``: for each picture its caption, or the error that it alone
    has.

    What is done is kept: an attempt that dies is gone on with, and not begun anew.
    """

    name = "batch"
    input_model = BatchInput

    async def run(self, given: BatchInput, run: Run) -> dict[str, Any]:
        total = len(given.images)
        results: list[dict[str, Any] | None] = [None] * total
        for number, result in enumerate((run.job.output or {}).get("results", ())[:total]):
            results[number] = result
        room = asyncio.Semaphore(run.config.batch_concurrency)
        reporting = asyncio.Lock()

        async def one(number: int) -> None:
            async with room:
                results[number] = await _caption_or_error(number, given, run)
            async with reporting:
                done = total - results.count(None)
                await run.report(done, total, {"results": list(results)})

        try:
            async with asyncio.TaskGroup() as group:
                for number in range(total):
                    if results[number] is None:
                        group.create_task(one(number))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return {"results": results, "failed": sum("error" in (result or {}) for result in results)}


async def _caption_or_error(number: int, given: BatchInput, run: Run) -> dict[str, Any]:
    """Raises what another attempt may mend; what it can't is this picture's own result."""
    try:
        return await caption(given.images[number], f"input.images.{number}", given, run)
    except RaylensError as error:
        if error.retryable:
            raise
        return {"error": {"code": error.code, "message": error.message, "field": error.field}}
