"""What all descriptions share."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def _drop_default(schema: dict[str, Any]) -> None:
    del schema["default"]


LEFT_OUT: Any = Field(default=None, json_schema_extra=_drop_default)
"""Marks a field that an answer may leave out."""


class Answer(BaseModel):
    """An object without other fields than these."""

    model_config = ConfigDict(extra="forbid")


class WithWarnings(Answer):
    warnings: list[str] = LEFT_OUT
    """What was odd about the pictures, and steps that were skipped; left out if there are none."""


class Box(Answer):
    """A box in fractions of the upright picture."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


class Place(Answer):
    """A point in fractions of the upright picture."""

    x: float
    y: float
