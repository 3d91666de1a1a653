"""One live video: which frames the model sees, what it found, and how that is shown.

Frames are shown at once, with the last result. The model is asked about one frame at a time, so
that its answers are as new as it is fast, and never queue.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import cv2

from raylens.core.errors import ModelNotLoaded, Overloaded, RaylensError, TooManyRequests
from raylens.core.types import Location, Region
from raylens.realtime.events import (
    Event,
    EventDetector,
    FrameDetails,
    count_objects,
    judge,
    subject_of,
)
from raylens.realtime.frames import Frame, FrameProcessor, Report
from raylens.realtime.messages import INTERNAL_ERROR, error_message
from raylens.realtime.overlay import Pixels
from raylens.realtime.pipeline import FrameCache, FrameResult, draw, task_of
from raylens.realtime.sessions import change_settings, take_known
from raylens.realtime.settings import MoondreamConfig, MoondreamFeature
from raylens.realtime.tracking.followed import FollowedObjects

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_CLIP_SIDE = 640
"""Pixels, of the longest side of a frame that waits to become part of a question."""
MAX_FRAMES = 16
"""Of one question, if nobody says otherwise."""
RETRY_S = 1.0
"""Without a question after a failure that names no other time."""
_RETRYABLE = (TooManyRequests, Overloaded, ModelNotLoaded)
"""Failures that say nothing about the frame: it is asked about again."""


@dataclass(frozen=True)
class ModelAnswer:
    """What a model says of a frame."""

    result: FrameResult
    model: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds of each stage."""
    warnings: Sequence[str] = ()


class AskModel(Protocol):
    async def __call__(self, frames: Sequence[Frame], settings: MoondreamConfig, /) -> ModelAnswer:
        """``frames`` are one, or those of a video in their order. Raises any of
        :mod:`raylens.core.errors`."""
        ...


class LiveSession(FrameProcessor):
    """Shows the answers of the Moondream pipeline on the frames of one video.

    It reports each answer, and what has started or ended. ``executor`` runs what would block the
    event loop. Questions are at least ``min_interval_s`` apart, however many frames come.
    """

    def __init__(
        self,
        ask: AskModel,
        settings: MoondreamConfig,
        report: Report,
        executor: Executor,
        clock: Callable[[], float] = time.monotonic,
        max_frames: int = MAX_FRAMES,
        min_interval_s: float = 0.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._ask = ask
        self._settings = settings
        self._report = report
        self._executor = executor
        self._clock = clock
        self._max_frames = max_frames
        self._min_interval_s = min_interval_s
        self._sleep = sleep
        self._newest: Frame | None = None
        self._cache = FrameCache()
        self._followed = FollowedObjects()
        self._events = SubjectEvents()
        self._clip: deque[Frame] = deque()
        """The last frames, one of each interval, for questions about several."""
        self._drawing = asyncio.Lock()
        """The tracker and the overlay are used by one thread at a time."""
        self._asking: asyncio.Task[None] | None = None
        self._ask_after = float("-inf")

    async def process(self, frame: Frame) -> Pixels:
        settings = self._settings
        await self.observe(frame)
        return await self._run(self._show, frame, settings)

    async def observe(self, frame: Frame) -> None:
        """Take a frame as :meth:`process` does, but don't draw it."""
        settings = self._settings
        self._newest = frame
        is_due = self._cache.is_due(settings)
        # The frame comes first, so that the tracker knows it before its answer.
        if settings.tracking:
            await self._run(self._followed.add, frame)
        if settings.is_about_video:
            await self._run(self._sample, frame, settings)
        if is_due and self._asking is None and self._clock() >= self._ask_after:
            self._space_questions()
            self._asking = asyncio.create_task(self._answer_newest(frame, settings))

    def _space_questions(self) -> None:
        """Have the next question wait. Frames come a little late, which must not add up."""
        now, due = self._clock(), self._ask_after
        is_late = now - due >= self._min_interval_s
        self._ask_after = (now if is_late else due) + self._min_interval_s

    def change(self, parameters: Mapping[str, Any]) -> None:
        known = take_known(MoondreamConfig, parameters, self._report)
        settings = change_settings(self._settings, known, self._max_frames)
        if settings.subject != self._settings.subject or not settings.tracking:
            self._followed = FollowedObjects()  # another thread may still use the old ones
        if not settings.is_about_video:
            self._clip.clear()
        self._settings = settings

    async def wait_until_answered(self) -> None:
        """Return when no question is being answered, nor waits for a model."""
        if self._asking is not None:
            await asyncio.wait({self._asking})

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        self._report_events(self._events.finish())

    def _show(self, frame: Frame, settings: MoondreamConfig) -> Pixels:
        """Return the frame with the last result, whose objects have followed the picture."""
        result = self._cache.result
        if result is not None and settings.tracking:
            result = self._followed.move(result)
        return draw(frame.pixels, result, settings)

    def _sample(self, frame: Frame, settings: MoondreamConfig) -> None:
        last = self._clip[-1] if self._clip else None
        if last is None or (
            frame.id - last.id >= settings.inference_interval
            and frame.time_s - last.time_s >= self._min_interval_s
        ):
            self._clip.append(replace(frame, pixels=shrink(frame.pixels)))
        while len(self._clip) > settings.frames:
            self._clip.popleft()

    async def _answer_newest(self, frame: Frame, settings: MoondreamConfig) -> None:
        """Ask the model about a frame. If it is away or has no room, ask again later, about the
        newest frame."""
        try:
            while (wait_s := await self._answer(frame, settings)) is not None:
                await self._sleep(max(wait_s, self._min_interval_s))
                self._space_questions()
                frame, settings = self._newest or frame, self._settings
        finally:
            self._asking = None

    async def _answer(self, frame: Frame, settings: MoondreamConfig) -> float | None:
        """Ask the model about a frame, and report what it says.

        Returns after how many seconds to ask again, and None if the model has answered.
        """
        asked_at = self._clock()
        try:
            answer = await self._ask(self._frames_of(frame, settings), settings)
            answered_at = self._clock()
            result = await self._run(self._take, frame, settings, answer.result)
            if result is None:
                return None  # nobody asks that any more
            self._report(
                {
                    "type": "result",
                    "frame_id": frame.id,
                    "time_s": round(frame.time_s, 3),
                    "feature": settings.feature.value,
                    **result_json(result, settings.feature),
                    **({"warnings": list(answer.warnings)} if answer.warnings else {}),
                    "model": answer.model,
                    "timings": {
                        **answer.timings,
                        "model_ms": _milliseconds(answered_at - asked_at),
                        "age_ms": _milliseconds(answered_at - frame.received_at),
                    },
                }
            )
            self._report_events(self._events.add(frame, settings, result))
        except Exception as error:
            return self._fail(frame, error)
        return None

    def _frames_of(self, frame: Frame, settings: MoondreamConfig) -> list[Frame]:
        """Return the frames that a question is about; a frame itself is the last of them."""
        if not settings.is_about_video:
            return [frame]
        earlier = [each for each in self._clip if each.id < frame.id]
        return [*earlier[1 - settings.frames :], frame]

    def _fail(self, frame: Frame, error: Exception) -> float | None:
        """Report why a frame has no answer, and leave the model alone for a while.

        Returns after how many seconds to ask again; None if the frame is to blame.
        """
        if not isinstance(error, RaylensError):
            logger.error("a frame's request failed", exc_info=error)
            error = INTERNAL_ERROR
        wait_s = error.retry_after or RETRY_S
        self._ask_after = self._clock() + wait_s
        self._report({**error_message(error), "frame_id": frame.id})
        return wait_s if isinstance(error, _RETRYABLE) else None

    def _take(
        self, frame: Frame, settings: MoondreamConfig, result: FrameResult
    ) -> FrameResult | None:
        """Keep a result, whose objects get numbers; None if another question was asked since."""
        if settings.subject != self._settings.subject:
            return None
        if settings.tracking:
            result = self._followed.observe(frame, result)
        self._cache.store(result)
        return result

    def _report_events(self, events: list[Event]) -> None:
        for event in events:
            self._report({"type": "event", "event": event.as_json()})

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        async with self._drawing:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, partial(function, *arguments))


class SubjectEvents:
    """The events of what a session asks at a time."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._detector: EventDetector | None = None

    def add(self, frame: Frame, settings: MoondreamConfig, result: FrameResult) -> list[Event]:
        """Take a frame's result. Returns what has started or ended, also because the session asks
        something else now."""
        events = []
        key = (*settings.subject, settings.event_enter, settings.event_leave)
        if key != self._key:
            events = self.finish()
            self._key = key
            if settings.feature is not MoondreamFeature.CAPTION:
                subject = subject_of(task_of(settings))
                self._detector = EventDetector(subject, settings.event_enter, settings.event_leave)
        if self._detector is not None:
            task = task_of(settings)
            details = FrameDetails(frame.id, count_objects(task, result))
            verdict = judge(task, result, settings.event_min_count)
            events += self._detector.add(frame.time_s, verdict, details)
        return events

    def finish(self) -> list[Event]:
        """Return the end of what has started."""
        detector, self._detector = self._detector, None
        return [] if detector is None else detector.finish()


def result_json(result: FrameResult, feature: MoondreamFeature) -> dict[str, Any]:
    """Return what a result says: a text, or objects or points with their numbers."""
    if feature in (MoondreamFeature.CAPTION, MoondreamFeature.QUERY):
        return {"text": result.text}
    is_detect = feature is MoondreamFeature.DETECT
    places: Sequence[Region | Location] = result.regions if is_detect else result.locations
    numbers = result.region_numbers if is_detect else result.location_numbers
    objects = [
        {"number": number, **asdict(place)}
        for number, place in zip(numbers or range(1, len(places) + 1), places, strict=True)
    ]
    return {"objects" if is_detect else "points": objects}


def shrink(pixels: Pixels) -> Pixels:
    """Return a frame of a video at a size that leaves room for others in memory."""
    height, width = pixels.shape[:2]
    scale = MAX_CLIP_SIDE / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized: Pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return resized


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 1)
