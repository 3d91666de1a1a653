"""One live video: which frames the model sees, what it found, and how that is shown.

Frames are shown at once, with the last result. The model is asked about one frame at a time, so
that its answers are as new as it is fast, and never queue.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar

from raylens.core.errors import RaylensError
from raylens.realtime.frames import Frame, FrameProcessor, Report
from raylens.realtime.overlay import Pixels
from raylens.realtime.pipeline import FrameCache, FrameResult, draw
from raylens.realtime.settings import MoondreamConfig
from raylens.realtime.tracking.tracker import Tracker

logger = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_S = 1.0
"""Without a question after a failure that names no other time."""


@dataclass(frozen=True)
class ModelAnswer:
    """What a model says of a frame."""

    result: FrameResult
    model: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds of each stage."""


class AskModel(Protocol):
    async def __call__(self, pixels: Pixels, settings: MoondreamConfig, /) -> ModelAnswer:
        """Raises any of :mod:`raylens.core.errors`."""
        ...


class LiveSession(FrameProcessor):
    """Shows the answers of the Moondream pipeline on the frames of one video.

    ``executor`` runs what would block the event loop, and ``on_close`` is awaited at the end.
    """

    def __init__(
        self,
        ask: AskModel,
        settings: MoondreamConfig,
        report: Report,
        executor: Executor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._settings = settings
        self._report = report
        self._executor = executor
        self._clock = clock
        self._cache = FrameCache()
        self._tracker = Tracker()
        self._drawing = asyncio.Lock()
        """The tracker and the overlay are used by one thread at a time."""
        self._asking: asyncio.Task[None] | None = None
        self._ask_after = float("-inf")

    async def process(self, frame: Frame) -> Pixels:
        settings = self._settings
        is_due = self._cache.is_due(settings)
        if is_due and self._asking is None and self._clock() >= self._ask_after:
            self._asking = asyncio.create_task(self._answer(frame, settings))
        return await self._run(self._show, frame, settings, self._cache.result)

    def change(self, parameters: Mapping[str, Any]) -> None:
        self._settings = self._settings.changed(parameters)

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    def _show(self, frame: Frame, settings: MoondreamConfig, result: FrameResult | None) -> Pixels:
        """Return the frame with a result that has followed the picture."""
        if settings.tracking:
            self._tracker.add(frame.id, frame.pixels)
            result = result and self._followed(result)
        return draw(frame.pixels, result, settings)

    def _followed(self, result: FrameResult) -> FrameResult:
        shown = self._tracker.shown()
        return replace(
            result,
            regions=shown.regions,
            region_numbers=shown.region_numbers,
            locations=shown.locations,
            location_numbers=shown.location_numbers,
        )

    async def _answer(self, frame: Frame, settings: MoondreamConfig) -> None:
        """Ask the model about a frame, and report what it says."""
        asked_at = self._clock()
        try:
            answer = await self._ask(frame.pixels, settings)
        except RaylensError as error:
            self._ask_after = self._clock() + (error.retry_after or RETRY_S)
            self._report({"type": "error", "frame_id": frame.id, **error_json(error)})
            return
        except Exception:
            logger.exception("a frame's request failed")
            self._ask_after = self._clock() + RETRY_S
            self._report({"type": "error", "frame_id": frame.id, "message": "internal error"})
            return
        finally:
            self._asking = None
        if settings.subject != self._settings.subject:
            return  # nobody asks that any more
        result = await self._run(self._take, frame, settings, answer.result)
        self._cache.store(result)
        self._report(
            {
                "type": "result",
                "frame_id": frame.id,
                "pts": frame.time_s,
                "feature": settings.feature.value,
                **result_json(result, settings),
                "model": answer.model,
                "timings": {
                    **answer.timings,
                    "model_ms": _milliseconds(self._clock() - asked_at),
                    "age_ms": _milliseconds(self._clock() - frame.received_at),
                },
            }
        )

    def _take(self, frame: Frame, settings: MoondreamConfig, result: FrameResult) -> FrameResult:
        """Give the objects of a result their numbers."""
        if not settings.tracking:
            return result
        numbers = self._tracker.observe(frame.id, result.regions, result.locations)
        return replace(result, **numbers)

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        async with self._drawing:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, partial(function, *arguments))


def error_json(error: RaylensError) -> dict[str, Any]:
    details = {"field": error.field, "retry_after": error.retry_after}
    present = {name: value for name, value in details.items() if value is not None}
    return {"message": error.message, "code": error.code, **present}


def result_json(result: FrameResult, settings: MoondreamConfig) -> dict[str, Any]:
    """Return what a result holds, with the numbers of its objects."""
    ...


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 1)
