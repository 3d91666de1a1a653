"""The sources that one process watches for clients, and the sessions that it follows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager
from typing import Any

from raylens.api.access_log import RequestMetrics
from raylens.api.client_limits import own_limits, session_place
from raylens.api.frame_questions import FrameQuestions
from raylens.api.shared import Shared
from raylens.api.watch_request import source_guard
from raylens.api.watches import PATH
from raylens.core.draining import Draining
from raylens.core.errors import Overloaded, PermissionDenied
from raylens.core.key_source import KeySource
from raylens.core.keys import Scope
from raylens.jobs.types.watch import END
from raylens.realtime.frames import Report
from raylens.realtime.live_session import LiveSession
from raylens.realtime.messages import error_message
from raylens.realtime.ports import SessionClient
from raylens.realtime.sessions import validate_settings
from raylens.realtime.settings import MoondreamConfig
from raylens.realtime.sources.base import Source, SourceKind, SourceOptions, SourceUnavailable
from raylens.realtime.sources.live import LiveFrames, SourceState, SourceStatus
from raylens.realtime.sources.opening import open_source
from raylens.realtime.watch import Outbox, SessionFeed, SourceStates, SourceWatch

FOLLOWED = SourceOptions(is_followed=True, follows_links=False)
"""Links in a folder could lead out of ``media_root``."""
KEY_GONE = "its key is no longer valid"
STOPPING = "this part of the server is about to stop"


class SourceWatches:
    """Watches as many sources as there is room for, and stops when the process drains.

    ``room`` returns how many sources and sessions there may be, less the sessions that there are.
    """

    def __init__(
        self,
        shared: Shared,
        metrics: RequestMetrics,
        keys: KeySource,
        executor: Executor,
        draining: Draining,
        room: Callable[[], int],
    ) -> None:
        self._shared = shared
        self._metrics = metrics
        self._keys = keys
        self._executor = executor
        self._draining = draining
        self._room = room
        self._watches: set[SourceWatch] = set()

    def __len__(self) -> int:
        return len(self._watches)

    def stop(self) -> None:
        """End all watches, so that another process goes on with them."""
        for watch in self._watches:
            watch.stop()

    async def watch(
        self, source: str, pipeline: Mapping[str, Any], fps: float, client: SessionClient
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Watch a source as :meth:`raylens.jobs.types.watch.Watcher.watch` says."""
        questions = self._questions(client)
        watch = self._open(questions, source, pipeline, fps)
        self._check_room()
        self._watches.add(watch)
        limits = own_limits(self._shared.config.client_limits)
        try:
            async with (
                _valid_key(questions, watch.stop),
                session_place(self._shared.leases, limits),
                aclosing(watch.messages()) as messages,
            ):
                async for message in messages:
                    yield message
        finally:
            self._watches.discard(watch)

    async def follow(
        self, feed: SessionFeed, client: SessionClient
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield what a session says until it ends, as ``Watcher.watch`` does."""
        outbox = Outbox()
        async with _valid_key(self._questions(client), outbox.end):
            with feed.followed_by(outbox):
                async with aclosing(outbox.messages()) as messages:
                    async for message in messages:
                        yield message
        yield END

    def _questions(self, client: SessionClient) -> FrameQuestions:
        """Raises ``PermissionDenied``."""
        questions = FrameQuestions(
            self._shared, self._metrics, self._keys, client, PATH, "WATCH", Scope.JOBS
        )
        questions.identify()
        return questions

    def _open(
        self, questions: FrameQuestions, source: str, pipeline: Mapping[str, Any], fps: float
    ) -> SourceWatch:
        config = self._shared.config
        settings = validate_settings(MoondreamConfig, pipeline, "pipeline")
        guard = source_guard(config)
        loop = asyncio.get_running_loop()

        def open_admitted() -> Source:
            admission = guard.admit(guard.parse(source))
            address = asyncio.run_coroutine_threadsafe(admission, loop).result()
            if address.kind is SourceKind.FOLDER:  # which may be empty for long
                loop.call_soon_threadsafe(states.tell, SourceState(SourceStatus.CONNECTED))
            return open_source(address, FOLLOWED, tell_problem)

        def tell_problem(problem: str) -> None:
            error = SourceUnavailable(problem.replace(f"{guard.root}/", ""), "source")
            loop.call_soon_threadsafe(outbox.put, error_message(error))

        def open_session(report: Report) -> LiveSession:
            max_frames = config.realtime.max_frames
            return LiveSession(questions, settings, report, self._executor, max_frames=max_frames)

        outbox = Outbox()
        states = SourceStates(outbox)
        frames = LiveFrames(open_admitted, states.tell)
        return SourceWatch(frames.frames(), open_session, outbox, fps)

    def _check_room(self) -> None:
        """Raise ``Overloaded`` if nothing more can be watched."""
        if self._draining.has_begun:
            raise Overloaded(STOPPING, retry_after=1.0)
        if len(self) >= self._room():
            message = "as many sessions and watches are open as there may be"
            raise Overloaded(message, retry_after=5.0)


@asynccontextmanager
async def _valid_key(
    questions: FrameQuestions, stop: Callable[[Exception], None]
) -> AsyncIterator[None]:
    """Stop what needs a client's key once that is no longer valid."""
    questions.on_denied = lambda: stop(PermissionDenied(KEY_GONE))
    watching = asyncio.create_task(questions.watch_key())
    try:
        yield
    finally:
        watching.cancel()
