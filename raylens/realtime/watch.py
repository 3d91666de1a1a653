"""Watching a source without showing it: results and events, as they come."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any

from raylens.realtime.frames import Frame, Report
from raylens.realtime.live_session import LiveSession
from raylens.realtime.sources.live import SourceState, SourceStatus


class SessionFeed:
    """Passes what a session tells its client on to whoever follows the session."""

    TOLD = frozenset({"result", "error", "event"})

    def __init__(self) -> None:
        self._followers: set[Outbox] = set()
        self.has_ended = False

    def passing_on(self, report: Report) -> Report:
        """Return a function that reports to the client and to all followers."""

        def report_to_all(message: dict[str, Any]) -> None:
            report(message)
            if message["type"] in self.TOLD:
                for outbox in self._followers:
                    outbox.put(message)

        return report_to_all

    def end(self) -> None:
        """Let all followers know that the session has ended."""
        self.has_ended = True
        for outbox in self._followers:
            outbox.end()

    @contextmanager
    def followed_by(self, outbox: Outbox) -> Iterator[None]:
        """Put what the session says into an outbox, which ends with the session."""
        if self.has_ended:
            outbox.end()
        self._followers.add(outbox)
        try:
            yield
        finally:
            self._followers.discard(outbox)


class SourceStates:
    """Tells the states of a source, each change once."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._status: SourceStatus | None = None

    def tell(self, state: SourceState) -> None:
        if state.status is self._status:
            return
        self._status = state.status
        self._outbox.put(
            {
                "type": "source",
                "status": state.status.value,
                "problem": state.problem,
                "attempts": state.attempts,
            }
        )


OpenSession = Callable[[Report], LiveSession]
"""Opens a session that reports to a function."""


class Outbox:
    """Messages on their way to whoever stores them, which may take a while.

    Every event is kept. A result or an error replaces the one that waits.
    """

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._events: deque[dict[str, Any]] = deque()
        self._newest: dict[str, Any] | None = None
        self._has_changed = asyncio.Event()
        self._failure: Exception | None = None
        self._has_ended = False

    def put(self, message: Mapping[str, Any]) -> None:
        stamped = {"at": round(self._wall_clock(), 3), **message}
        if message["type"] in ("result", "error"):
            self._newest = stamped
        else:
            self._events.append(stamped)
        self._has_changed.set()

    def end(self, failure: Exception | None = None) -> None:
        self._has_ended = True
        self._failure = failure
        self._has_changed.set()

    async def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the messages until the end. Raises the failure that is the end."""
        while True:
            # The result that an event is about comes before it.
            newest, self._newest = self._newest, None
            if newest is not None:
                yield newest
            elif self._events:
                yield self._events.popleft()
            elif self._has_ended:
                if self._failure is not None:
                    raise self._failure
                return
            else:
                self._has_changed.clear()
                await self._has_changed.wait()


class SourceWatch:
    """Shows a session at most ``fps`` frames a second, and collects what it says.

    It is used once. ``outbox`` takes what else is to be told.
    """

    def __init__(
        self,
        frames: AsyncGenerator[Frame, None],
        open_session: OpenSession,
        outbox: Outbox,
        fps: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._frames = frames
        self._session = open_session(self._report)
        self._outbox = outbox
        self._fps = fps
        self._clock = clock
        self._sleep = sleep
        self._opened_at = clock()
        self._opened_at_wall = wall_clock()
        self._stopping = asyncio.Event()
        self._failure: Exception | None = None

    async def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield what the session says, until the frames end or :meth:`stop` is called.

        Raises what getting the frames raises, and what ``stop`` was called with.
        """
        observing = asyncio.create_task(self._observe())
        try:
            async with aclosing(self._outbox.messages()) as messages:
                async for message in messages:
                    yield message
        finally:
            observing.cancel()
            await asyncio.wait({observing})

    def stop(self, failure: Exception | None = None) -> None:
        """End the watch. What has started ends, and is still told."""
        if not self._stopping.is_set():
            self._failure = failure
            self._stopping.set()

    def _report(self, message: dict[str, Any]) -> None:
        """Tell what the session says, with the time of what it says that of."""
        event = message.get("event", {})
        time_s = event.get("ended_at", event.get("time_s", message.get("time_s")))
        if time_s is not None:
            message = {"at": round(self._opened_at_wall + time_s, 3), **message}
        self._outbox.put(message)

    async def _observe(self) -> None:
        """Show frames to the session until something ends that, and close everything."""
        showing = asyncio.ensure_future(self._show_frames())
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({showing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (showing, stopping):
                task.cancel()
            failure, _ = await asyncio.gather(showing, stopping, return_exceptions=True)
            if isinstance(failure, Exception):
                self._failure = failure
            try:
                await self._session.close()
                await self._frames.aclose()
            finally:
                self._outbox.end(self._failure)

    async def _show_frames(self) -> None:
        """Show the newest frame whenever the one before is answered and the next one is due.

        So no frame is passed over without a newer one, as in a folder that gets one now and then.
        """
        due_at = self._clock()
        async for frame in self._frames:
            shown = replace(frame, time_s=frame.received_at - self._opened_at)
            await self._session.observe(shown)
            await self._session.wait_until_answered()
            due_at = max(due_at + 1 / self._fps, self._clock())
            await self._sleep(due_at - self._clock())
