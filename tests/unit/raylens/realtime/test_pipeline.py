from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from models.pocket.drawing import draw as draw_scene
from models.pocket.scenes import Scene, random_scene
from raylens.core.errors import InvalidRequest, ModelFailed
from raylens.core.types import Caption, Detect, Length, Location, Point, Query, Region, Task
from raylens.realtime.overlay import GREEN, Pixels
from raylens.realtime.pipeline import FrameResult, MoondreamPipeline, draw
from raylens.realtime.settings import MoondreamConfig

BOX = Region(0.25, 0.25, 0.75, 0.75)
RESULT = FrameResult("a red circle", (BOX,), (Location(0.5, 0.5),))


class FakeModel:
    """Records its tasks, and answers with ``result``."""

    def __init__(self, result: FrameResult = RESULT) -> None:
        self.result = result
        self.tasks: list[Task] = []
        self.temperatures: list[float] = []
        self.error: Exception | None = None

    def __call__(self, pixels: Pixels, task: Task, temperature: float) -> FrameResult:
        self.tasks.append(task)
        self.temperatures.append(temperature)
        if self.error is not None:
            raise self.error
        return self.result


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


def frame(level: int = 128, height: int = 120, width: int = 160) -> Any:
    return np.full((1, height, width, 3), level, np.uint8)


def test_defaults_are_those_of_the_plugin() -> None:
    assert MoondreamConfig().model_dump(mode="json") == {
        "feature": "detect",
        "caption_length": "normal",
        "temperature": 0.5,
        "max_objects": 10,
        "inference_interval": 3,
        "overlay_opacity": 0.8,
        "font_scale": 1.0,
        "compile_model": False,
        "question": "What is in this image?",
        "detect_object": "person",
        # Our own.
        "tracking": True,
        "model": "",
        "frames": 1,
        "event_enter": 2,
        "event_leave": 2,
        "event_min_count": 1,
    }


@pytest.mark.parametrize(
    ("settings", "task"),
    [
        ({}, Detect("person", 10)),
        ({"feature": "point", "detect_object": "cat", "max_objects": 3}, Point("cat", 3)),
        ({"feature": "query", "question": "How many?"}, Query("How many?")),
        ({"feature": "caption", "caption_length": "long"}, Caption(Length.LONG)),
    ],
)
def test_a_feature_is_a_task(model: FakeModel, settings: dict[str, Any], task: Task) -> None:
    MoondreamPipeline(model, temperature=0.2, **settings)(video=[frame()])
    assert (model.tasks, model.temperatures) == ([task], [0.2])


@pytest.mark.parametrize(("interval", "seen"), [(1, [0, 1, 2, 3, 4, 5]), (3, [0, 3]), (4, [0, 4])])
def test_the_model_sees_one_frame_of_each_interval(
    model: FakeModel, interval: int, seen: list[int]
) -> None:
    pipeline = MoondreamPipeline(model, inference_interval=interval)
    frames = []
    for number in range(6):
        before = len(model.tasks)
        pipeline(video=[frame()])
        frames += [number] * (len(model.tasks) - before)
    assert frames == seen


def test_the_last_result_stays_between_two_of_them(model: FakeModel) -> None:
    pipeline = MoondreamPipeline(model)
    first = pipeline(video=[frame()])["video"]
    model.result = FrameResult()
    assert np.array_equal(pipeline(video=[frame()])["video"], first)
    assert np.array_equal(pipeline(video=[frame()])["video"], first)
    assert np.array_equal(pipeline(video=[frame()])["video"], frame() / np.float32(255))


@pytest.mark.parametrize(
    "change",
    [
        {"feature": "caption"},
        {"detect_object": "cat"},
    ],
)
def test_a_new_feature_or_prompt_is_answered_at_once(
    model: FakeModel, change: dict[str, Any]
) -> None:
    pipeline = MoondreamPipeline(model)
    pipeline(video=[frame()])
    pipeline(video=[frame()], **change)
    assert len(model.tasks) == 2
    pipeline(video=[frame()], **change)
    assert len(model.tasks) == 2


def test_other_settings_change_without_a_new_answer(model: FakeModel) -> None:
    pipeline = MoondreamPipeline(model)
    pipeline(video=[frame()])
    pipeline(video=[frame()], overlay_opacity=0.1, font_scale=2, question="unused")
    assert len(model.tasks) == 1


def test_after_a_failure_the_next_frame_is_seen(model: FakeModel) -> None:
    pipeline = MoondreamPipeline(model)
    model.error = ModelFailed("broken")
    with pytest.raises(ModelFailed):
        pipeline(video=[frame()])
    model.error = None
    pipeline(video=[frame()])
    assert len(model.tasks) == 2
    # Also if there is an older result.
    pipeline(video=[frame()])
    model.error = ModelFailed("broken")
    with pytest.raises(ModelFailed):
        pipeline(video=[frame()])
    model.error = None
    pipeline(video=[frame()])
    assert len(model.tasks) == 4


def test_a_frame_is_uint8_in_and_float32_out(model: FakeModel) -> None:
    model.result = FrameResult()
    output = MoondreamPipeline(model)(video=[frame(51)])["video"]
    assert output.shape == (1, 120, 160, 3)
    assert output.dtype == np.float32
    assert np.allclose(output, 0.2)


def test_tensors_are_frames_too(model: FakeModel) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.full((1, 20, 30, 3), 255, dtype=torch.uint8)
    model.result = FrameResult()
    assert MoondreamPipeline(model)(video=[tensor])["video"].shape == (1, 20, 30, 3)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ([], "video: 0 frames; expected one"),
        ([frame(), frame()], "video: 2 frames"),
        ([frame()[0]], r"video: shape \(120, 160, 3\); expected \(1, H, W, 3\)"),
        ([frame().astype(np.float32)], "video: float32 values; expected uint8"),
    ],
)
def test_other_frames_are_refused(model: FakeModel, video: list[Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        MoondreamPipeline(model)(video=video)


def test_invalid_parameters_are_refused(model: FakeModel) -> None:
    pipeline = MoondreamPipeline(model)
    for parameters in ({"temperature": 2}, {"feature": "segment"}, {"unknown": 1}):
        with pytest.raises(ValidationError):
            pipeline(video=[frame()], **parameters)


@pytest.mark.parametrize("feature", ["detect", "point"])
def test_numbers_of_a_tracker_are_on_the_frame(feature: str) -> None:
    settings = MoondreamConfig.model_validate({"feature": feature})
    plain, first, other = (
        draw(
            frame()[0], replace(RESULT, region_numbers=numbers, location_numbers=numbers), settings
        )
        for numbers in ((), (1,), (27,))
    )
    assert np.array_equal(plain, first)
    assert not np.array_equal(plain, other)


def test_question_and_answer_are_both_on_the_frame() -> None:
    pictures = [
        draw(
            frame()[0],
            FrameResult(answer),
            MoondreamConfig.model_validate({"feature": "query", "question": question}),
        )
        for question, answer in (("a", "b"), ("a", "c"), ("c", "b"))
    ]
    assert not any(np.array_equal(one, other) for one, other in combinations(pictures, 2))


def test_the_frame_itself_is_not_drawn_on() -> None:
    pixels = frame()[0]
    assert draw(pixels, None, MoondreamConfig()) is pixels
    draw(pixels, RESULT, MoondreamConfig())
    assert (pixels == 128).all()


def test_boxes_of_drawn_scenes_are_where_the_shapes_are() -> None:
    rng = random.Random(4)

    class Oracle:
        """Knows the scene."""

        scene: Scene

        def __call__(self, pixels: Pixels, task: Task, temperature: float) -> FrameResult:
            assert isinstance(task, Detect)
            return FrameResult("", tuple(Region(*box) for box in self.scene.boxes(task.subject)))

    oracle = Oracle()
    pipeline = MoondreamPipeline(
        oracle, detect_object="shape", inference_interval=1, font_scale=0.5
    )
    for _ in range(20):
        oracle.scene = random_scene(rng, 320)
        pixels = draw_scene(oracle.scene, rng)
        output = pipeline(video=[pixels[None]], overlay_opacity=1.0)["video"][0]
        drawn = np.rint(output * 255).astype(np.uint8)
        height, width = pixels.shape[:2]
        for x_min, y_min, x_max, _ in oracle.scene.boxes("shape"):
            middle = round((x_min + x_max) / 2 * (width - 1))
            assert tuple(drawn[round(y_min * (height - 1)), middle]) == GREEN
