"""Answers about one picture: Moondream's dialect, and previews of preprocessing."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raylens.api.answers.base import LEFT_OUT, Answer, Box, Place, WithWarnings


class Grounding(Answer):
    """A part of a reasoning's text, and the points that it is about."""

    start_idx: int
    end_idx: int
    points: list[tuple[float, float]]


class Reasoning(Answer):
    text: str
    grounding: list[Grounding]


class CaptionAnswer(WithWarnings):
    caption: str


class QueryAnswer(WithWarnings):
    answer: str
    reasoning: Reasoning = LEFT_OUT
    """Only if the request asks for it."""


class Findings(WithWarnings):
    objects: list[Box]


class Points(WithWarnings):
    points: list[Place]


Size = tuple[int, int]


class Geometry(Answer):
    """Sizes are (width, height) in pixels."""

    stored: Size
    original: Size
    processed: Size
    model: Size | None
    """The size to which the model resizes the picture; null if the model is away."""
    to_original: tuple[float, float, float, float, float, float]


class Step(Answer):
    name: str
    did: str
    ms: float


class Preview(Answer):
    model: str
    image_url: Annotated[str, Field(pattern="^data:image/jpeg;base64,")]
    geometry: Geometry
    steps: list[Step]
    warnings: list[str]
