"""The family ``qwen2_5_vl``: Qwen2.5-VL."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import PositiveInt, model_validator

from raylens.core.families import Family, FamilySettings
from raylens.core.types import Caption, Chat, Completion, Detect, Point, Query


class Qwen2_5_VLSettings(FamilySettings):
    """Bounds of a picture's area in pixels after resizing; unset means the checkpoint's own."""

    min_pixels: PositiveInt | None = None
    max_pixels: PositiveInt | None = None

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels: {self.min_pixels}; max_pixels is {self.max_pixels}")
        return self


FAMILY = Family(
    name="qwen2_5_vl",
    load="models.qwen2_5_vl.model:load",
    footprint="models.chat_model:read_footprint",
    tasks=frozenset(
        {Caption.name, Query.name, Detect.name, Point.name, Chat.name, Completion.name}
    ),
    settings=Qwen2_5_VLSettings,
    pocket=Path(__file__).parents[1] / "pocket" / "qwen2_5_vl",
    model_types=("qwen2_5_vl",),
    verifier="models.qwen2_5_vl.verify:reference",
    grounding="models.qwen2_5_vl.server_grounding:GROUNDING",
)
