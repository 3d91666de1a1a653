"""Watching a video: every frame, as fast as the server answers, and always with the same result."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

from raylens.cli.watch.pace import Pace
from raylens.cli.watch.plan import Plan
from raylens.cli.watch.sink import Sink
from raylens.core.errors import ModelFailed
from raylens.realtime.events import Event
from raylens.realtime.frames import Frame
from raylens.realtime.live_session import SubjectEvents, result_json, shrink
from raylens.realtime.overlay import Pixels
from raylens.realtime.pipeline import FrameResult, draw
from raylens.realtime.settings import MoondreamConfig
from raylens.realtime.sources.base import Source
from raylens.realtime.tracking.followed import FollowedObjects

MAX_AHEAD_BYTES = 256 * 2**20
"""Of the frames that are read before earlier ones have their answers."""
HALF_TICK_S = 0.0005
"""Times in files are rounded: a frame is due if it is this much too early."""

Ask = Callable[[Sequence[Frame], MoondreamConfig], Awaitable[FrameResult]]


@dataclass(frozen=True)
class _Item:
    frame: Frame
    question: asyncio.Task[FrameResult] | None


class RecordedWatch:
    """Asks about the frames that are due, several at a time, and applies the answers in order.

    A frame waits for its own answer, so that what is shown depends only on the video and the
    answers. ``reading`` is a single thread, to which the source belongs.
    """

    def __init__(self, source: Source, ask: Ask, plan: Plan, sink: Sink, reading: Executor) -> None:
        self._source = source
        self._ask = ask
        self._plan = plan
        self._settings = plan.settings
        self._sink = sink
        self._reading = reading
        self._pace = None if plan.fps is None else Pace(plan.fps)
        self._ahead: deque[_Item] = deque()
        self._clip: deque[Frame] = deque(maxlen=max(1, plan.settings.frames - 1))
        self._next_id = 0
        self._has_ended = False
        self._problem: Exception | None = None
        self._followed = FollowedObjects()
        self._events = SubjectEvents()
        self._result: FrameResult | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until the end, or until ``stop`` is set.

        Raises ``SourceUnavailable`` if the video ends early, after all that can be read,
        ``InvalidRequest`` if it can't be read at all, ``ClientError``, and ``OSError`` if the
        results can't be written.
        """
        try:
            while not stop.is_set():
                await self._read_ahead()
                if not self._ahead:
                    break
                await self._handle(self._ahead.popleft(), stop)
            self._write_events(self._events.finish())
        finally:
            await self._cancel()
        if self._problem is not None and not stop.is_set():
            raise self._problem

    async def _read_ahead(self) -> None:
        """Read on while there is room for questions and frames."""
        while not self._has_ended and (not self._ahead or self._has_room()):
            try:
                read = await self._in_thread(self._source.read)
            except Exception as error:
                self._problem = error
                read = None
            if read is None:
                self._has_ended = True
                return
            frame = Frame(read.pixels, self._next_id, read.time_s, 0.0)
            self._next_id += 1
            question = None
            if self._is_due(frame):
                question = asyncio.ensure_future(
                    self._ask(self._frames_about(frame), self._settings)
                )
            self._ahead.append(_Item(frame, question))

    def _frames_about(self, frame: Frame) -> list[Frame]:
        """Return the frames that a question is about: the last ones that were due."""
        frames = [*self._clip, frame]
        if self._settings.is_about_video:
            self._clip.append(replace(frame, pixels=shrink(frame.pixels)))
        return frames

    def _has_room(self) -> bool:
        asked = [item.question for item in self._ahead if item.question is not None]
        size = sum(item.frame.pixels.nbytes for item in self._ahead)
        waiting = sum(not question.done() for question in asked)
        return waiting < self._plan.in_flight and size < MAX_AHEAD_BYTES

    def _is_due(self, frame: Frame) -> bool:
        if self._pace is not None:
            return self._pace.is_due(frame.time_s + HALF_TICK_S)
        return frame.id % self._settings.inference_interval == 0

    async def _handle(self, item: _Item, stop: asyncio.Event) -> None:
        frame = item.frame
        found = None
        if item.question is not None:
            found = await self._answer_of(item.frame, item.question, stop)
            if stop.is_set():
                return
        drawn = await self._in_thread(self._apply, frame, found)
        if found is not None and self._result is not None:
            self._write_result(frame, self._result)
        self._sink.add_frame(frame.time_s)
        if drawn is not None:
            self._sink.show(drawn)

    async def _answer_of(
        self, frame: Frame, question: asyncio.Task[FrameResult], stop: asyncio.Event
    ) -> FrameResult | None:
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait((question, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not question.done():
                question.cancel()
                await asyncio.gather(question, return_exceptions=True)
                return None
            return await question
        except ModelFailed as error:
            problem = {"code": error.code, "message": error.message}
            self._sink.add_failure({**_about(frame), "error": problem})
            return None
        finally:
            stopping.cancel()

    def _apply(self, frame: Frame, found: FrameResult | None) -> Pixels | None:
        """Follow the objects to a frame, take its result, and draw it, in the reading thread."""
        if self._settings.tracking:
            self._followed.add(frame)
        if found is not None:
            self._result = found
            if self._settings.tracking:
                self._result = self._followed.observe(frame, found)
        if not self._sink.needs_drawing:
            return None
        shown = self._result
        if shown is not None and self._settings.tracking:
            shown = self._followed.move(shown)
        pixels = draw(frame.pixels, shown, self._settings)
        self._sink.write_frame(pixels, frame.time_s)
        return pixels

    def _write_result(self, frame: Frame, result: FrameResult) -> None:
        self._sink.add_result({**_about(frame), **result_json(result, self._settings.feature)})
        self._write_events(self._events.add(frame, self._settings, result))

    def _write_events(self, events: list[Event]) -> None:
        for event in events:
            self._sink.add_event(event.as_json())

    async def _cancel(self) -> None:
        questions = [item.question for item in self._ahead if item.question is not None]
        for question in questions:
            question.cancel()
        await asyncio.gather(*questions, return_exceptions=True)

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reading, function, *arguments)


def _about(frame: Frame) -> dict[str, Any]:
    return {"frame_id": frame.id, "time_s": round(frame.time_s, 3)}
