"""A live video's session: the newest answer on every frame, one question at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from raylens.core.errors import InvalidRequest, Overloaded
from raylens.core.types import Location, Region
from raylens.realtime.frames import Frame
from raylens.realtime.live_session import AskModel, LiveSession, ModelAnswer
from raylens.realtime.overlay import GREEN, RED, Pixels
from raylens.realtime.pipeline import FrameResult
from raylens.realtime.settings import MoondreamConfig

FRAME_S = 1 / 30
SIDE = 40
"""Of the square that moves, in pixels."""


def draw_square(left: int) -> Pixels:
    pixels = np.full((240, 320, 3), 200, np.uint8)
    pixels[100 : 100 + SIDE, left : left + SIDE] = (40, 60, 220)
    return pixels


def square(left: int) -> Region:
    return Region(left / 320, 100 / 240, (left + SIDE) / 320, (100 + SIDE) / 240)


@dataclass
class Model(AskModel):
    """Answers when it is told to."""

    asked: list[tuple[list[Frame], MoondreamConfig]] = field(default_factory=list)
    answers: asyncio.Queue[ModelAnswer | Exception] = field(default_factory=asyncio.Queue)

    async def __call__(self, frames: Sequence[Frame], settings: MoondreamConfig, /) -> ModelAnswer:
        self.asked.append((list(frames), settings))
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def find(self, *regions: Region) -> None:
        self.answers.put_nowait(ModelAnswer(FrameResult("", regions), "m", {"queue_ms": 1.0}))

    def say(self, text: str) -> None:
        self.answers.put_nowait(ModelAnswer(FrameResult(text)))


class Video:
    """Shows frames to a session at 30 frames a second."""

    def __init__(self, executor: Executor, min_interval_s: float = 0.0, **settings: Any) -> None:
        self.model = Model()
        self.messages: list[dict[str, Any]] = []
        self.now = 100.0
        self.frames = 0
        defaults = {"inference_interval": 1, "detect_object": "square"}
        config = MoondreamConfig.model_validate({**defaults, **settings})
        self.session = LiveSession(
            self.model,
            config,
            self.messages.append,
            executor,
            lambda: self.now,
            min_interval_s=min_interval_s,
            sleep=self._sleep,
        )
        self.waits: list[float] = []
        self.waited = asyncio.Event()
        """Ends a wait after a failure."""

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await self.waited.wait()

    async def show(self, pixels: Pixels) -> Pixels:
        frame = Frame(pixels, self.frames, self.frames * FRAME_S, self.now)
        shown = await self.session.process(frame)
        self.frames += 1
        self.now += FRAME_S
        await asyncio.sleep(0)  # the question begins
        return shown

    async def answered(self, count: int) -> list[dict[str, Any]]:
        """Return the results once there are so many."""
        async with asyncio.timeout(10):
            while len(self.of_type("result")) < count:
                await asyncio.sleep(0)
        return self.of_type("result")

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == kind]


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def edges(pixels: Pixels, color: tuple[int, int, int] = GREEN) -> tuple[int, int]:
    """Return the first and the last column with pixels of about a color."""
    is_near = np.abs(pixels[90:150].astype(int) - color).max(axis=2) < 60
    columns = np.flatnonzero(is_near.any(axis=0))
    return int(columns[0]), int(columns[-1])


async def test_frames_are_shown_at_once_and_one_is_asked_about_at_a_time(
    executor: Executor,
) -> None:
    video = Video(executor)
    for _ in range(5):
        assert np.array_equal(await video.show(draw_square(50)), draw_square(50))
    assert len(video.model.asked) == 1
    video.model.find(square(50))
    (result,) = await video.answered(1)
    assert result["frame_id"] == 0
    (found,) = result["objects"]
    assert found["number"] == 1
    assert found["x_min"] == pytest.approx(50 / 320)
    assert result["model"] == "m"
    assert result["timings"]["queue_ms"] == 1.0
    # The frame was five frames old when its answer came.
    assert result["timings"]["age_ms"] == pytest.approx(5000 * FRAME_S, abs=1)
    shown = await video.show(draw_square(50))
    left, right = edges(shown)
    assert abs(left - 50) <= 3
    assert abs(right - 90) <= 3
    assert len(video.model.asked) == 2


async def test_boxes_follow_the_picture_until_the_next_answer(executor: Executor) -> None:
    video = Video(executor, inference_interval=30)
    await video.show(draw_square(50))
    for step in range(1, 5):  # frames that come before the answer
        await video.show(draw_square(50 + 4 * step))
    video.model.find(square(50))
    await video.answered(1)
    for step in range(5, 20):
        shown = await video.show(draw_square(50 + 4 * step))
        left, right = edges(shown)
        assert abs(left - (50 + 4 * step)) <= 4
        assert abs(right - (90 + 4 * step)) <= 4
    assert len(video.model.asked) == 1


async def test_boxes_stay_without_tracking(executor: Executor) -> None:
    video = Video(executor, inference_interval=30, tracking=False)
    await video.show(draw_square(50))
    video.model.find(square(50))
    await video.answered(1)
    for step in range(10):
        left, _ = edges(await video.show(draw_square(50 + 4 * step)))
        assert abs(left - 50) <= 3


async def test_numbers_stay_with_objects(executor: Executor) -> None:
    video = Video(executor)
    for turn in range(4):
        await video.show(draw_square(50 + 6 * turn))
        others = [Region(0.8, 0.1, 0.9, 0.2)] if turn % 2 else []
        video.model.find(*others, square(50 + 6 * turn))
        await video.answered(turn + 1)
    numbers = [
        [found["number"] for found in result["objects"]] for result in video.of_type("result")
    ]
    assert [each[-1] for each in numbers] == [1, 1, 1, 1]
    assert [each[0] for each in numbers[1::2]] == [2, 2]


async def test_every_interval_has_a_question(executor: Executor) -> None:
    video = Video(executor, inference_interval=3)
    for turn in range(7):
        await video.show(draw_square(turn))
        if turn % 3 == 0:
            video.model.find()
            await video.answered(turn // 3 + 1)
    assert [frame.id for (frame,), _ in video.model.asked] == [0, 3, 6]


async def test_another_question_is_asked_at_once_and_the_old_answer_is_left_out(
    executor: Executor,
) -> None:
    video = Video(executor, inference_interval=30)
    await video.show(draw_square(50))
    video.session.change({"feature": "query", "question": "How many?"})
    video.model.find(square(50))  # the answer to the old question
    await asyncio.sleep(0.01)
    shown = await video.show(draw_square(50))
    assert video.of_type("result") == []
    assert np.array_equal(shown, draw_square(50))
    assert video.model.asked[-1][1].question == "How many?"
    video.model.say("one")
    (result,) = await video.answered(1)
    assert result["text"] == "one"
    assert result["feature"] == "query"
    shown = await video.show(draw_square(50))
    assert not np.array_equal(shown[-60:], draw_square(50)[-60:])  # Q and A
    assert np.array_equal(shown[:100], draw_square(50)[:100])


async def test_points_are_drawn_and_reported(executor: Executor) -> None:
    video = Video(executor, feature="point")
    await video.show(draw_square(50))
    result = FrameResult("", (), (Location(70 / 320, 120 / 240),))
    video.model.answers.put_nowait(ModelAnswer(result))
    (report,) = await video.answered(1)
    (point,) = report["points"]
    assert point == {"number": 1, "x": pytest.approx(70 / 320), "y": pytest.approx(0.5)}
    left, right = edges(await video.show(draw_square(50)), RED)
    assert left < 70 < right


async def test_an_invalid_change_changes_nothing(executor: Executor) -> None:
    video = Video(executor)
    with pytest.raises(InvalidRequest, match=r"parameters\.temperature"):
        video.session.change({"temperature": 3, "detect_object": "circle"})
    with pytest.raises(InvalidRequest, match=r"parameters\.frames: 17; the limit is 16"):
        video.session.change({"frames": 17, "detect_object": "circle"})
    assert video.messages == []
    await video.show(draw_square(0))
    (_, settings) = video.model.asked[0]
    assert (settings.detect_object, settings.frames) == ("square", 1)


async def test_parameters_of_other_pipelines_are_reported_at_each_change(
    executor: Executor,
) -> None:
    video = Video(executor)
    video.session.change({"speed": 3, "max_objects": 4, "noise": 1})
    video.session.change({"speed": 4})
    assert video.messages == [
        {"type": "ignored", "parameters": ["noise", "speed"]},
        {"type": "ignored", "parameters": ["speed"]},
    ]
    await video.show(draw_square(0))
    (_, settings) = video.model.asked[0]
    assert (settings.detect_object, settings.max_objects) == ("square", 4)


async def test_a_failure_is_reported_and_waited_out(executor: Executor) -> None:
    video = Video(executor)
    await video.show(draw_square(50))
    video.model.answers.put_nowait(Overloaded("full", "model", retry_after=0.5))
    while not video.messages:
        await asyncio.sleep(0)
    assert video.messages == [
        {
            "type": "error",
            "frame_id": 0,
            "error": "full",
            "code": "overloaded",
            "status": 503,
            "field": "model",
            "retry_after": 0.5,
        }
    ]
    for _ in range(14):
        await video.show(draw_square(50))
    assert len(video.model.asked) == 1
    assert video.waits == [0.5]
    video.waited.set()
    video.model.find(Region(0.2, 0.4, 0.4, 0.6))
    (result,) = await video.answered(1)
    assert result["frame_id"] == 14  # the newest
    await video.session.wait_until_answered()


async def test_a_frame_that_is_to_blame_is_not_asked_about_again(executor: Executor) -> None:
    video = Video(executor)
    await video.show(draw_square(50))
    video.model.answers.put_nowait(KeyError("secret"))
    await video.session.wait_until_answered()
    assert [message["type"] for message in video.messages] == ["error"]
    assert "secret" not in str(video.messages)
    for _ in range(29):
        await video.show(draw_square(50))
    assert len(video.model.asked) == 1
    for _ in range(3):
        await video.show(draw_square(50))
    (_, ([later], _)) = video.model.asked
    assert later.id > 29
    await video.session.close()


async def test_what_starts_and_ends_is_reported(executor: Executor) -> None:
    video = Video(executor, event_leave=3)
    is_seen = [False, True, True, True, False, True, False, False, False, True, True]
    for turn, seen in enumerate(is_seen):
        await video.show(draw_square(50))
        video.model.find(*([square(50)] if seen else []))
        await video.answered(turn + 1)
    await video.session.close()
    events = [message["event"] for message in video.of_type("event")]
    assert [(event["type"], event["frame_id"]) for event in events] == [
        ("started", 1),
        ("ended", 6),
        ("started", 9),
        ("ended", 10),
    ]
    assert all(event["subject"] == "square" for event in events)
    assert events[1]["duration_s"] == pytest.approx(5 * FRAME_S, abs=FRAME_S)


async def test_a_changed_question_ends_the_events_of_the_old_one(executor: Executor) -> None:
    video = Video(executor)
    for turn in range(2):
        await video.show(draw_square(50))
        video.model.find(square(50))
        await video.answered(turn + 1)
    video.session.change({"feature": "query", "question": "Is it blue?"})
    for turn in range(2):
        await video.show(draw_square(50))
        video.model.say("Yes.")
        await video.answered(turn + 3)
    events = [message["event"] for message in video.of_type("event")]
    kinds = [(event["type"], event["subject"]) for event in events]
    assert kinds == [("started", "square"), ("ended", "square"), ("started", "Is it blue?")]


async def test_closing_cancels_the_question(executor: Executor) -> None:
    video = Video(executor)
    await video.show(draw_square(50))
    await video.session.close()
    assert video.messages == []
    assert not video.session._asking


async def test_a_question_may_be_about_the_last_frames(executor: Executor) -> None:
    video = Video(
        executor, feature="query", question="What happens?", frames=3, inference_interval=2
    )
    for turn in range(9):
        await video.show(np.zeros((720, 1280, 3), np.uint8))
        if turn % 2 == 0:
            video.model.say("nothing")
            await video.answered(turn // 2 + 1)
    asked = [[frame.id for frame in frames] for frames, _ in video.model.asked]
    assert asked == [[0], [0, 2], [0, 2, 4], [2, 4, 6], [4, 6, 8]]
    assert video.model.asked[-1][0][0].pixels.shape == (360, 640, 3)


async def test_boxes_are_of_one_frame_whatever_the_number_of_frames(executor: Executor) -> None:
    video = Video(executor, frames=3)
    for turn in range(3):
        await video.show(draw_square(50))
        video.model.find(square(50))
        await video.answered(turn + 1)
    assert [len(frames) for frames, _ in video.model.asked] == [1, 1, 1]


async def test_questions_are_as_far_apart_as_they_are_told(executor: Executor) -> None:
    video = Video(executor, min_interval_s=2.5 * FRAME_S)
    for _ in range(16):
        video.model.find()
        await video.show(draw_square(50))
        await video.answered(len(video.model.asked))
    assert [frames[0].id for frames, _ in video.model.asked] == [0, 3, 5, 8, 10, 13, 15]
    await video.session.close()


async def test_the_frames_of_a_question_are_as_far_apart_too(executor: Executor) -> None:
    video = Video(executor, 10 * FRAME_S - 0.001, feature="query", frames=3)
    for number in range(31):
        await video.show(draw_square(50))
        if number % 10 == 0:
            video.model.say("yes")
            await video.answered(number // 10 + 1)
    assert [frame.id for frame in video.model.asked[-1][0]] == [10, 20, 30]
    await video.session.close()
