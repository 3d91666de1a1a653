"""The newest frames of a source, for asyncio, through all of its outages."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

from raylens.core.errors import InvalidRequest, RaylensError
from raylens.realtime.frames import Frame
from raylens.realtime.sources.base import Source, SourceFrame, SourceUnavailable

logger = logging.getLogger(__name__)


class SourceStatus(StrEnum):
    CONNECTING = "connecting"
    CONNECTED = "connected"
    LOST = "lost"
    """It will be tried again."""


@dataclass(frozen=True)
class SourceState:
    status: SourceStatus
    problem: str | None = None
    """Why the source is lost, or was."""
    attempts: int = 0
    """To connect, since the last frame."""


@dataclass(frozen=True)
class Backoff:
    """Waits between attempts, which double, up to a limit.

    A wait is between a half of that and all of it, so that many sources don't try at once.
    """

    first_s: float = 1.0
    longest_s: float = 30.0
    good_after_s: float = 10.0
    """Once a source has delivered frames for this long, its failures are forgotten."""

    def wait_s(self, failures: int, share: float) -> float:
        """Return the wait after this many failures in a row. ``share`` is between 0 and 1."""
        longest = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 32))
        return longest * (0.5 + 0.5 * share)


_BACKOFF = Backoff()


class LiveFrames:
    """Reads a source in a thread, and connects again if it fails.

    ``open_source`` is called in that thread. ``report`` gets each change of the source's state, on
    the event loop. ``InvalidRequest`` ends it, since another attempt would fail, too.
    """

    def __init__(
        self,
        open_source: Callable[[], Source],
        report: Callable[[SourceState], None] = lambda state: None,
        *,
        reconnect: Backoff = _BACKOFF,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        pick: Callable[[], float] = random.random,
    ) -> None:
        self._open_source = open_source
        self._report = report
        self._reconnect = reconnect
        self._sleep = sleep
        self._clock = clock
        self._pick = pick
        self._next_id = 0
        self._started_at: float | None = None
        self._last_s = -1.0
        self.received = 0
        """Frames that came."""
        self.dropped = 0
        """Frames that nobody took, since a newer one came."""

    async def frames(self) -> AsyncGenerator[Frame, None]:
        """Yield the newest frame each time that the caller asks for one.

        Ends with the source, if that has an end. Raises ``InvalidRequest``. ``aclose`` frees the
        thread and the source.
        """
        failures = 0
        problem: str | None = None
        while True:
            self._report(SourceState(SourceStatus.CONNECTING, problem, failures + 1))
            reader = _Reader(self._open_source, self._clock)
            first_at: float | None = None
            try:
                async with contextlib.aclosing(self._read(reader)) as frames:
                    async for frame in frames:
                        if first_at is None:
                            first_at = frame.received_at
                            self._report(SourceState(SourceStatus.CONNECTED))
                        yield frame
                return
            except InvalidRequest:
                raise
            except RaylensError as error:
                problem = error.message
            was_good = (
                first_at is not None and self._clock() - first_at >= self._reconnect.good_after_s
            )
            failures = 1 if was_good else failures + 1
            self._report(SourceState(SourceStatus.LOST, problem, failures))
            await self._sleep(self._reconnect.wait_s(failures, self._pick()))

    async def _read(self, reader: _Reader) -> AsyncGenerator[Frame, None]:
        reader.start()
        try:
            while (taken := await reader.take()) is not None:
                self.received += taken.count
                self.dropped += taken.count - 1
                self._next_id += taken.count
                yield self._number(taken)
        finally:
            self.received += reader.waiting
            self.dropped += reader.waiting
            self._next_id += reader.waiting
            await reader.stop()
        if reader.error is not None:
            raise reader.error

    def _number(self, taken: _Taken) -> Frame:
        """Return a frame whose id and time go on after a new connection."""
        if self._started_at is None:
            self._started_at = taken.received_at
        self._last_s = max(self._last_s, taken.received_at - self._started_at)
        return Frame(taken.frame.pixels, self._next_id - 1, self._last_s, taken.received_at)


@dataclass(frozen=True)
class _Taken:
    """The newest frame, and the number of frames since the one before that was taken."""

    frame: SourceFrame
    received_at: float
    count: int


class _Reader:
    """Reads a source in a thread of its own. Only the newest frame is kept.

    The thread shares no queue with the event loop, so that frames can't pile up in one.
    """

    STOP_TIMEOUT_S = 1.0

    def __init__(self, open_source: Callable[[], Source], clock: Callable[[], float]) -> None:
        self._open_source = open_source
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._newest: _Taken | None = None
        self._is_stopped = False
        self._source: Source | None = None
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self.error: RaylensError | None = None

    @property
    def waiting(self) -> int:
        """Frames that came since the last one was taken."""
        newest = self._newest
        return 0 if newest is None else newest.count

    def start(self) -> None:
        threading.Thread(target=self._run, name="live-source", daemon=True).start()

    async def take(self) -> _Taken | None:
        """Wait for a frame, and return the newest; None after the last one."""
        while True:
            self._changed.clear()
            with self._lock:
                taken, self._newest = self._newest, None
            if taken is not None or self._ended.is_set():
                return taken
            await self._changed.wait()

    async def stop(self) -> None:
        """End the thread, and wait until it has freed the source."""
        with self._lock:
            self._is_stopped = True
            self._newest = None
            source = self._source
        if source is not None:
            source.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), self.STOP_TIMEOUT_S)

    def _run(self) -> None:
        try:
            self._read_all()
        except RaylensError as error:
            self.error = error
        except Exception as error:
            logger.error("a source failed", exc_info=error)
            self.error = SourceUnavailable("source: an internal error", "source")
        finally:
            if self._source is not None:
                self._source.close()
            self._call(self._end)

    def _read_all(self) -> None:
        source = self._open_source()
        with self._lock:
            self._source = source
            is_stopped = self._is_stopped
        while not is_stopped and (frame := source.read()) is not None:
            received_at = self._clock()
            with self._lock:
                is_stopped = self._is_stopped
                has_news = self._newest is None
                if not is_stopped:
                    self._newest = _Taken(frame, received_at, self.waiting + 1)
            if has_news:
                self._call(self._changed.set)

    def _call(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(function)

    def _end(self) -> None:
        self._ended.set()
        self._changed.set()
