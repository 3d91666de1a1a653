"""Runs work within a time limit, whatever it does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from raylens.core.errors import DeadlineExceeded, RaylensError
from raylens.jobs.failures import error_of

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

STOP_S = 5.0
"""How long work may take to stop after its cancellation, in seconds."""
_abandoned: set[asyncio.Task[Any]] = set()
"""Tasks that did not stop. The event loop itself keeps only weak references."""


async def run_in_time(work: Coroutine[Any, Any, Result], timeout_s: float) -> Result:
    """Return the result of some work.

    Raises ``DeadlineExceeded`` if it takes longer than ``timeout_s`` seconds, and otherwise what
    :func:`raylens.jobs.failures.error_of` makes of what the work raises.

    The work is canceled if it is late or if the caller is canceled. If it doesn't stop, the caller
    goes on without it.
    """
    task = asyncio.create_task(_translate_errors(work))
    try:
        await asyncio.wait({task}, timeout=timeout_s)
        if not task.done():
            raise DeadlineExceeded(f"not finished in {timeout_s:.0f} s")
        return task.result()
    finally:
        if not task.done():
            await _stop(task)


async def _translate_errors(work: Coroutine[Any, Any, Result]) -> Result:
    try:
        return await work
    except RaylensError:
        raise
    except BaseException as exception:
        raise error_of(exception) from exception


async def _stop(task: asyncio.Task[Any]) -> None:
    _abandoned.add(task)
    task.add_done_callback(_forget)
    task.cancel()
    await asyncio.wait({task}, timeout=STOP_S)
    if not task.done():
        logger.error("work goes on %g s after its cancellation; it is abandoned", STOP_S)


def _forget(task: asyncio.Task[Any]) -> None:
    _abandoned.discard(task)
    if not task.cancelled():
        task.exception()  # otherwise asyncio logs it as never retrieved
