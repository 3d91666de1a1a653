"""What processes the frames of a session: the built-in pipeline, or a plugin's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict

from raylens.core.errors import InvalidRequest
from raylens.realtime.frames import Frame, FrameProcessor
from raylens.realtime.live_session import LiveSession
from raylens.realtime.plugins import Pipeline, load_registry
from raylens.realtime.processors import open_processor
from tests.unit.raylens.realtime.test_live_session import Model

PIXELS = np.full((20, 30, 3), 100, np.uint8)


class ShadeConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    pipeline_id: ClassVar[str] = "shade"
    shade: float = 0.5
    shape: str = "same"


class Shade:
    """Returns a frame of one shade, as Scope's plugins do: floats from 0 to 1."""

    made: ClassVar[list[Any]] = []

    def __init__(self, **parameters: Any) -> None:
        self.made.append((threading.current_thread().name, parameters))
        if parameters["shade"] < 0:
            raise RuntimeError("no such shade")

    def __call__(self, video: list[Any], **parameters: Any) -> dict[str, Any]:
        assert video[0].dtype == np.uint8
        shape = video[0].shape if parameters["shape"] == "same" else (2, 2)
        return {"video": np.full(shape, parameters["shade"], np.float32)}


SHADE = Pipeline("shade", "Shade", "", "1", Shade, ShadeConfig, "test")


@pytest.fixture
def executor() -> Iterator[Executor]:
    Shade.made.clear()
    with ThreadPoolExecutor(1, thread_name_prefix="frames") as executor:
        yield executor


def open_session(
    executor: Executor, pipeline: Pipeline, messages: list[Any], **parameters: Any
) -> FrameProcessor:
    return open_processor(
        pipeline, parameters, Model(), messages.append, executor, lambda pixels: pixels
    )


def frame(number: int = 0) -> Frame:
    return Frame(PIXELS, number, 0.0, 0.0)


async def test_a_plugin_shades_frames_in_a_thread(executor: Executor) -> None:
    messages: list[Any] = []
    session = open_session(executor, SHADE, messages, shade=0.2)
    assert Shade.made == []  # it may load a model, which must not hold up other sessions
    shown = await session.process(frame())
    assert shown.dtype == np.uint8
    assert shown.shape == PIXELS.shape
    assert (shown == 51).all()
    session.change({"shade": 1.0})
    assert (await session.process(frame(1)) == 255).all()
    ((thread, parameters),) = Shade.made
    assert thread.startswith("frames")
    assert parameters == {"shade": 0.2, "shape": "same"}
    assert messages == []
    session.change({"tint": 1, "shade": 0.6})
    assert messages == [{"type": "ignored", "parameters": ["tint"]}]
    assert (await session.process(frame(2)) == 153).all()
    with pytest.raises(InvalidRequest, match=r"parameters\.shade"):
        session.change({"shade": "dark"})
    await session.close()


async def test_a_plugins_failures_are_those_of_its_frames(executor: Executor) -> None:
    session = open_session(executor, SHADE, [], shade=-1)
    with pytest.raises(RuntimeError, match="no such shade"):
        await session.process(frame())
    session = open_session(executor, SHADE, [], shape="other")
    with pytest.raises(InvalidRequest, match=r"a frame of shape \(2, 2\)"):
        await session.process(frame())


async def test_parameters_of_other_pipelines_are_left_out_and_reported(
    executor: Executor,
) -> None:
    messages: list[Any] = []
    moondream = load_registry().pipelines["moondream"]
    session = open_session(executor, moondream, messages, feature="caption", prompts=[], noise=1)
    assert isinstance(session, LiveSession)
    assert messages == [{"type": "ignored", "parameters": ["noise", "prompts"]}]
    with pytest.raises(InvalidRequest, match=r"initialParameters\.feature"):
        open_session(executor, moondream, messages, feature="fly")


@pytest.mark.parametrize("limit", [8, 64])
async def test_the_frames_of_a_question_are_limited(executor: Executor, limit: int) -> None:
    moondream = load_registry().pipelines["moondream"]

    def open_with(frames: int) -> FrameProcessor:
        return open_processor(
            moondream, {"frames": frames}, Model(), print, executor, lambda pixels: pixels, limit
        )

    with pytest.raises(InvalidRequest, match=rf"initialParameters\.frames: .* limit is {limit}"):
        open_with(limit + 1)
    session = open_with(limit)
    with pytest.raises(InvalidRequest, match=rf"^parameters\.frames: .* limit is {limit}"):
        session.change({"frames": limit + 1})
    session.change({"frames": 2})
