"""The Moondream pipeline over the frames of a video, independent of how they arrive.

In the interface of Scope's pipelines (``daydreamlive/scope``), a frame is a batch of one picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raylens.core.errors import InvalidRequest
from raylens.core.types import (
    Caption,
    Detect,
    Findings,
    Length,
    Location,
    Point,
    Query,
    Region,
    Task,
)
from raylens.realtime.overlay import Overlay, Pixels
from raylens.realtime.settings import MoondreamConfig, MoondreamFeature

Tasks = Caption | Query | Detect | Point


@dataclass(frozen=True)
class FrameResult:
    """What the model found in a frame."""

    text: str = ""
    regions: tuple[Region, ...] = ()
    locations: tuple[Location, ...] = ()
    region_numbers: tuple[int, ...] = ()
    """The number of each region, as a tracker gives them; if empty, 1, 2, 3…"""
    location_numbers: tuple[int, ...] = ()
    """The number of each location, likewise."""


class FrameModel(Protocol):
    """Answers a task about one picture."""

    def __call__(self, pixels: Pixels, task: Task, temperature: float, /) -> FrameResult:
        """Raises any of :mod:`raylens.core.errors`."""
        ...


class FrameCache:
    """The last result of one session, and the decision which frames get a new one.

    Every ``inference_interval``-th frame gets one, counted from the first frame. So do the frame at
    which the feature or its prompt changes, and those after a failure.
    """

    def __init__(self) -> None:
        self._number = -1
        self._subject: tuple[MoondreamFeature, str] | None = None
        self._is_missing = True
        self.result: FrameResult | None = None

    def is_due(self, settings: MoondreamConfig) -> bool:
        """Count a frame, and return whether it needs a new result."""
        self._number += 1
        if settings.subject != self._subject:
            self._subject = settings.subject
            self.result = None
        is_turn = self._number % settings.inference_interval == 0
        self._is_missing = self._is_missing or is_turn or self.result is None
        return self._is_missing

    def store(self, result: FrameResult) -> None:
        """Keep the result of a frame that was due."""
        self.result = result
        self._is_missing = False


def task_of(settings: MoondreamConfig) -> Tasks:
    """Return what a frame asks the model."""
    match settings.feature:
        case MoondreamFeature.CAPTION:
            return Caption(Length(settings.caption_length.value))
        case MoondreamFeature.QUERY:
            return Query(settings.question)
        case MoondreamFeature.DETECT:
            return Detect(settings.detect_object, settings.max_objects)
        case MoondreamFeature.POINT:
            return Point(settings.detect_object, settings.max_objects)


def result_of(text: str, findings: Findings | None) -> FrameResult:
    """Return the result of a complete answer."""
    findings = findings or Findings()
    return FrameResult(text, findings.regions or (), findings.locations or ())


def draw(frame: Pixels, result: FrameResult | None, settings: MoondreamConfig) -> Pixels:
    """Return a copy of the frame with the result on it, or the frame itself if there is none."""
    if result is None:
        return frame
    overlay = Overlay(frame, settings.overlay_opacity, settings.font_scale)
    match settings.feature:
        case MoondreamFeature.CAPTION:
            overlay.text(result.text)
        case MoondreamFeature.QUERY:
            overlay.query(settings.question, result.text)
        case MoondreamFeature.DETECT:
            overlay.boxes(result.regions, result.region_numbers)
        case MoondreamFeature.POINT:
            overlay.points(result.locations, result.location_numbers)
    return overlay.render()


class MoondreamPipeline:
    """Annotates frames, one at a time. Not thread-safe.

    ``load_params`` are the settings of frames that bring no parameters of their own.
    """

    def __init__(self, model: FrameModel, /, **load_params: Any) -> None:
        self._model = model
        self._settings = MoondreamConfig.model_validate(load_params)
        self._cache = FrameCache()

    @staticmethod
    def get_config_class() -> type[MoondreamConfig]:
        return MoondreamConfig

    def __call__(self, video: Sequence[Any], **parameters: Any) -> dict[str, NDArray[np.float32]]:
        """Return ``{"video": frame}`` with the annotated frame, float32 (1, H, W, C) in [0, 1].

        ``video`` holds one frame, uint8 (1, H, W, C) in [0, 255]: an array, or a tensor on a CPU.
        ``parameters`` change the settings of this frame. Raises ``InvalidRequest`` for another
        shape, pydantic's ``ValidationError`` for invalid parameters, and what the model raises.
        """
        frame = read_frame(video)
        settings = self._settings
        if parameters:
            settings = MoondreamConfig.model_validate({**settings.model_dump(), **parameters})
        if self._cache.is_due(settings):
            self._cache.store(self._model(frame, task_of(settings), settings.temperature))
        annotated = draw(frame, self._cache.result, settings)
        return {"video": (annotated.astype(np.float32) / np.float32(255))[None]}


def read_frame(video: Sequence[Any]) -> Pixels:
    """Return the picture (H, W, C) of a list with one frame (1, H, W, C).

    Raises ``InvalidRequest`` if it has another shape or type.
    """
    if len(video) != 1:
        raise InvalidRequest(f"video: {len(video)} frames; expected one", "video")
    frame = np.asarray(video[0])
    if frame.ndim != 4 or frame.shape[0] != 1 or frame.shape[3] != 3:
        raise InvalidRequest(f"video: shape {frame.shape}; expected (1, H, W, 3)", "video")
    if frame.dtype != np.uint8:
        raise InvalidRequest(f"video: {frame.dtype} values; expected uint8 of 0 to 255", "video")
    return np.ascontiguousarray(frame[0])
