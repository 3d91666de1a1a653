"""Watching a source: which frames the model sees, and what is told of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from raylens.core.errors import InvalidRequest, ModelNotLoaded, PermissionDenied
from raylens.core.types import Region
from raylens.realtime.frames import Frame, Report
from raylens.realtime.live_session import LiveSession, ModelAnswer
from raylens.realtime.pipeline import FrameResult
from raylens.realtime.settings import MoondreamConfig
from raylens.realtime.sources.live import SourceState, SourceStatus
from raylens.realtime.watch import Outbox, SessionFeed, SourceStates, SourceWatch

PIXELS = np.zeros((24, 32, 3), np.uint8)
PERSON = Region(0.1, 0.1, 0.5, 0.9)


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


class Camera:
    """Frames at times that a test chooses."""

    def __init__(self) -> None:
        self._frames: asyncio.Queue[Frame | Exception | None] = asyncio.Queue()
        self.count = 0
        self.is_closed = False

    def show(self, *times: float) -> None:
        for time in times:
            self._frames.put_nowait(Frame(PIXELS, self.count, 0.0, time))
            self.count += 1

    def fail(self, error: Exception) -> None:
        self._frames.put_nowait(error)

    def end(self) -> None:
        self._frames.put_nowait(None)

    async def frames(self) -> AsyncGenerator[Frame, None]:
        try:
            while (frame := await self._frames.get()) is not None:
                if isinstance(frame, Exception):
                    raise frame
                yield frame
        finally:
            self.is_closed = True


class Scene:
    """A watch of a camera, and a model that sees a person while it is told so."""

    def __init__(self, executor: Executor, fps: float = 1.0) -> None:
        self.camera = Camera()
        self.outbox = Outbox(lambda: 500.0)
        self.is_person_there = True
        self.asked: list[int] = []
        self.messages: list[dict[str, Any]] = []

        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)

        def open_session(report: Report) -> LiveSession:
            settings = MoondreamConfig(
                tracking=False, inference_interval=1, event_enter=1, event_leave=1
            )
            return LiveSession(self.ask, settings, report, executor, sleep=sleep)

        self.failures: list[Exception] = []
        self.waits: list[float] = []
        self.gate = asyncio.Event()
        self.gate.set()

        self.watch = SourceWatch(
            self.camera.frames(),
            open_session,
            self.outbox,
            fps,
            lambda: 100.0 + sum(self.waits),
            lambda: 1000.0,
            sleep,
        )
        self.reading = asyncio.create_task(self._read())

    async def ask(self, frames: Sequence[Frame], settings: MoondreamConfig, /) -> ModelAnswer:
        self.asked.append(frames[-1].id)
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop()
        return ModelAnswer(FrameResult("", (PERSON,) if self.is_person_there else ()))

    async def _read(self) -> None:
        async for message in self.watch.messages():
            self.messages.append(message)

    async def told(self, count: int) -> list[dict[str, Any]]:
        async with asyncio.timeout(10):
            while len(self.messages) < count:
                await asyncio.sleep(0.001)
        return self.messages


async def test_results_and_events_are_told_in_their_order(executor: Executor) -> None:
    scene = Scene(executor)
    scene.camera.show(100.0)
    result, started = await scene.told(2)
    assert result["type"] == "result"
    assert result["at"] == started["at"] == 1000.0
    assert started["event"] == {
        "type": "started",
        "subject": "person",
        "time_s": 0.0,
        "frame_id": 0,
        "count": 1,
    }
    scene.is_person_there = False
    scene.camera.show(103.5)
    *_, ended = await scene.told(4)
    assert ended["event"]["type"] == "ended"
    assert ended["event"]["duration_s"] == 1.75  # in the middle between two frames
    assert ended["at"] == 1001.75
    scene.camera.end()
    await scene.reading
    assert scene.camera.is_closed


async def test_the_model_sees_no_more_frames_than_asked_for(executor: Executor) -> None:
    scene = Scene(executor, fps=2.0)
    scene.camera.show(*(100.0 + step for step in range(4)))
    scene.camera.end()
    await scene.reading
    assert scene.asked == [0, 1, 2, 3]
    assert scene.waits == [0.5] * 4


async def test_every_frame_is_asked_about_unless_a_newer_one_has_come(executor: Executor) -> None:
    """The frames of a source are the newest: a slow model must not pass over the last one."""
    scene = Scene(executor, fps=30)
    scene.gate.clear()
    scene.camera.show(100.0, 100.1)
    await wait_until(lambda: scene.asked == [0])
    scene.gate.set()
    await wait_until(lambda: scene.asked == [0, 1])
    scene.camera.end()
    await scene.reading


async def test_a_frame_is_asked_about_again_if_the_model_was_away(executor: Executor) -> None:
    """No newer one may come for long, as in a folder."""
    scene = Scene(executor)
    scene.failures = [ModelNotLoaded("gone", "model", retry_after=7.0)]
    scene.camera.show(100.0)
    error, result, _ = await scene.told(3)
    assert (error["type"], result["type"]) == ("error", "result")
    assert scene.asked == [0, 0]
    assert scene.waits[0] == 7.0
    scene.camera.end()
    await scene.reading


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_stop_tells_the_end_of_what_has_started(executor: Executor) -> None:
    scene = Scene(executor)
    scene.camera.show(100.0)
    await scene.told(2)
    scene.watch.stop()
    await scene.reading
    assert [message["type"] for message in scene.messages] == ["result", "event", "event"]
    assert scene.messages[-1]["event"]["type"] == "ended"
    assert scene.camera.is_closed


async def test_a_stop_with_a_reason_raises_it_after_all_was_told(executor: Executor) -> None:
    scene = Scene(executor)
    scene.camera.show(100.0)
    await scene.told(2)
    scene.watch.stop(PermissionDenied("the key is gone"))
    with pytest.raises(PermissionDenied, match="the key is gone"):
        await scene.reading
    assert scene.messages[-1]["event"]["type"] == "ended"


async def test_a_watch_that_is_stopped_before_it_begins_ends(executor: Executor) -> None:
    scene = Scene(executor)
    scene.watch.stop()
    await asyncio.wait_for(scene.reading, 10)
    assert scene.messages == []


async def test_the_first_reason_for_a_stop_counts(executor: Executor) -> None:
    scene = Scene(executor)
    scene.camera.show(100.0)
    await scene.told(2)
    scene.watch.stop(PermissionDenied("first"))
    scene.watch.stop(PermissionDenied("second"))
    with pytest.raises(PermissionDenied, match="first"):
        await scene.reading
    assert scene.messages[-1]["event"]["type"] == "ended"


async def test_a_source_that_is_of_no_use_ends_the_watch(executor: Executor) -> None:
    scene = Scene(executor)
    scene.camera.fail(InvalidRequest("source: not allowed", "source"))
    with pytest.raises(InvalidRequest, match="not allowed"):
        await scene.reading


async def test_a_reader_that_leaves_ends_the_session(executor: Executor) -> None:
    scene = Scene(executor)
    scene.camera.show(100.0)
    await scene.told(1)
    scene.reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scene.reading
    assert scene.camera.is_closed


async def test_a_slow_reader_gets_every_event_and_the_newest_result() -> None:
    outbox = Outbox(lambda: 1.0)
    for number in range(5):
        outbox.put({"type": "result", "frame_id": number})
        outbox.put({"type": "event", "event": {"number": number}})
    states = SourceStates(outbox)
    states.tell(SourceState(SourceStatus.LOST, "no answer", 2))
    states.tell(SourceState(SourceStatus.LOST, "no answer", 3))
    outbox.end()
    messages = [message async for message in outbox.messages()]
    assert [message["type"] for message in messages] == ["result", *["event"] * 5, "source"]
    assert messages[0]["frame_id"] == 4
    assert messages[-1] == {
        "type": "source",
        "status": "lost",
        "problem": "no answer",
        "attempts": 2,
        "at": 1.0,
    }


async def test_followers_of_a_session_hear_what_it_says_until_it_ends() -> None:
    feed = SessionFeed()
    told: list[dict[str, Any]] = []
    report = feed.passing_on(told.append)
    report({"type": "result", "frame_id": 0})  # before anybody follows

    async def follow() -> list[dict[str, Any]]:
        outbox = Outbox()
        with feed.followed_by(outbox):
            return [message async for message in outbox.messages()]

    followers = [asyncio.create_task(follow()) for _ in range(2)]
    await asyncio.sleep(0)
    report({"type": "event", "event": {"type": "started"}})
    report({"type": "ignored", "parameters": ["x"]})
    feed.end()
    for messages in await asyncio.gather(*followers):
        assert [message["type"] for message in messages] == ["event"]
    assert len(told) == 3
    assert await follow() == []
