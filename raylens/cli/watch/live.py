"""Watching a live source: its newest frame, for as long as it is wanted."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Executor
from typing import Any, TypeVar

from raylens.cli.errors import ClientError
from raylens.cli.watch.plan import Plan
from raylens.cli.watch.questions import LiveQuestions
from raylens.cli.watch.sink import Sink
from raylens.realtime.frames import Frame
from raylens.realtime.live_session import LiveSession
from raylens.realtime.sources.live import SourceState, SourceStatus

T = TypeVar("T")


class LiveWatch:
    """Shows frames as they come, with the newest answer.

    ``drawing`` runs what takes longer.
    """

    def __init__(
        self,
        frames: AsyncGenerator[Frame, None],
        questions: LiveQuestions,
        plan: Plan,
        sink: Sink,
        drawing: Executor,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._frames = frames
        self._fatal = questions.fatal
        self._plan = plan
        self._sink = sink
        self._drawing = drawing
        self._wall_clock = wall_clock
        self._problem: OSError | None = None
        self._failed_at: int | None = None
        self._session = LiveSession(
            questions,
            plan.settings,
            self._take,
            drawing,
            min_interval_s=0.0 if plan.fps is None else 1 / plan.fps,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until the source ends, until ``stop`` is set, or for the plan's seconds.

        Raises ``InvalidRequest`` if the source can't be watched, ``ClientError``, and ``OSError``
        if something can't be written.
        """
        ending = asyncio.create_task(self._wait_for_end(stop))
        try:
            async with contextlib.aclosing(self._frames):
                while (frame := await self._next(ending)) is not None:
                    await self._show(frame)
                    self._check()
        finally:
            ending.cancel()
            await self._session.close()
        self._check()

    async def _wait_for_end(self, stop: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._plan.seconds):
                await stop.wait()

    async def _next(self, ending: asyncio.Task[Any]) -> Frame | None:
        """Return the next frame; None if the watch is over."""
        waiting = asyncio.ensure_future(anext(self._frames, None))
        try:
            await asyncio.wait((waiting, ending, self._fatal), return_when=asyncio.FIRST_COMPLETED)
            self._check()
            return await waiting if waiting.done() and not ending.done() else None
        finally:
            if not waiting.done():
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)

    async def _show(self, frame: Frame) -> None:
        if self._sink.started_at is None:
            self._sink.started_at = self._wall_clock()
        if self._sink.needs_drawing:
            pixels = await self._session.process(frame)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._drawing, self._sink.write_frame, pixels, frame.time_s)
            self._sink.show(pixels)
        else:
            await self._session.observe(frame)
        self._sink.add_frame(frame.time_s)

    def _check(self) -> None:
        if self._problem is not None:
            raise self._problem
        if self._fatal.done():
            error: ClientError = self._fatal.result()
            raise error

    def _take(self, message: Mapping[str, Any]) -> None:
        """Take what the session reports."""
        try:
            match message["type"]:
                case "result":
                    record = {name: message[name] for name in _FIELDS if name in message}
                    self._sink.add_result({**record, "age_ms": message["timings"]["age_ms"]})
                case "event":
                    self._sink.add_event(message["event"])
                case "error" if message["status"] == 500:  # the model failed on this frame
                    problem = {"code": message["code"], "message": message["error"]}
                    self._sink.add_failure({"frame_id": message["frame_id"], "error": problem})
        except OSError as error:
            self._problem = error


_FIELDS = ("frame_id", "time_s", "text", "objects", "points")


class SourceReports:
    """Tells the user about each outage of a source, once."""

    def __init__(self, name: str, notify: Callable[[str], None]) -> None:
        self._name = name
        self._notify = notify
        self._is_lost = False
        self.problem: str | None = None
        """Why the source was lost last."""

    def __call__(self, state: SourceState) -> None:
        self.problem = state.problem or self.problem
        if state.status is SourceStatus.LOST and not self._is_lost:
            self._is_lost = True
            self._notify(f"{state.problem}; trying again")
        elif state.status is SourceStatus.CONNECTED and self._is_lost:
            self._is_lost = False
            self._notify(f"{self._name}: it is there again")


class Sparing:
    """Tells the user only now and then about a problem that may come with every frame."""

    def __init__(
        self,
        notify: Callable[[str], None],
        period_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._notify = notify
        self._period_s = period_s
        self._clock = clock
        self._told_at = float("-inf")
        self._untold = 0

    def __call__(self, problem: str) -> None:
        now = self._clock()
        if now < self._told_at + self._period_s:
            self._untold += 1
            return
        more = f" (and {self._untold} more before)" if self._untold else ""
        self._notify(problem + more)
        self._told_at, self._untold = now, 0
