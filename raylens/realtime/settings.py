"""The settings of the Moondream pipeline, with hints from which a page renders its controls.

Names, defaults and kinds of hints are those of Scope's plugin for Moondream, so that its frontend
can render them without a change. A field without hints is not shown. Further hints are for a page
that asks about single pictures: ``request`` is the field of a request's body in Moondream's
dialect, ``features`` are those that have the setting, and settings of one ``group`` are shown
together.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Category = Literal["configuration", "input"]
_TEXT = ("caption", "query")
_PLACES = ("detect", "point")
_LOOKED_FOR = ("query", "detect", "point")
_EVENTS = "Events"


class MoondreamFeature(StrEnum):
    """What the pipeline does with a frame."""

    CAPTION = "caption"
    QUERY = "query"
    DETECT = "detect"
    POINT = "point"


class CaptionLength(StrEnum):
    SHORT = "short"
    NORMAL = "normal"
    LONG = "long"


def _ui(order: int, category: Category = "configuration", **hints: Any) -> dict[str, Any]:
    return {"ui": {"order": order, "category": category, **hints}}


class MoondreamConfig(BaseModel):
    """Settings of one session. All but ``compile_model`` may change while it runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pipeline_id: ClassVar[str] = "moondream"
    pipeline_name: ClassVar[str] = "Moondream"
    pipeline_description: ClassVar[str] = "Captions, answers, boxes and points over live video."
    pipeline_version: ClassVar[str] = "1.0.0"

    feature: MoondreamFeature = Field(
        MoondreamFeature.DETECT,
        description="What to do with each frame.",
        json_schema_extra=_ui(1, label="Feature"),
    )
    caption_length: CaptionLength = Field(
        CaptionLength.NORMAL,
        description="How long captions are.",
        json_schema_extra=_ui(2, label="Caption length", request="length", features=["caption"]),
    )
    temperature: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="How random captions and answers are; 0 always gives the most likely one.",
        json_schema_extra=_ui(
            3, label="Temperature", request="settings.temperature", features=_TEXT
        ),
    )
    max_objects: int = Field(
        10,
        ge=1,
        le=50,
        description="The most boxes or points to return.",
        json_schema_extra=_ui(
            4, label="Max objects", request="settings.max_objects", features=_PLACES
        ),
    )
    inference_interval: int = Field(
        3,
        ge=1,
        le=30,
        description="The model sees one frame in this many; the others show its last result.",
        json_schema_extra=_ui(5, label="Inference interval"),
    )
    overlay_opacity: float = Field(
        0.8,
        ge=0.0,
        le=1.0,
        description="Opacity of boxes, points and text.",
        json_schema_extra=_ui(6, label="Overlay opacity"),
    )
    font_scale: float = Field(
        1.0,
        ge=0.5,
        le=3.0,
        description="Size of labels and text.",
        json_schema_extra=_ui(7, label="Font scale"),
    )
    compile_model: bool = Field(
        False,
        description="Has no effect here: models are compiled as their configuration says.",
        json_schema_extra=_ui(8, label="Compile model", is_load_param=True, hidden=True),
    )
    question: str = Field(
        "What is in this image?",
        max_length=2000,
        description="What to ask about the picture.",
        json_schema_extra=_ui(1, "input", label="Question", request="question", features=["query"]),
    )
    detect_object: str = Field(
        "person",
        max_length=200,
        description="One kind of object, such as a red car.",
        json_schema_extra=_ui(
            2, "input", label="Object to find", request="object", features=_PLACES
        ),
    )

    tracking: bool = Field(
        True,
        description="Moves boxes and points along with the video until the next result.",
        json_schema_extra=_ui(9, label="Tracking"),
    )
    model: str = Field(
        "",
        max_length=200,
        description="The model that answers; empty means the server's default.",
        json_schema_extra=_ui(10, label="Model"),
    )
    frames: int = Field(
        1,
        ge=1,
        le=256,
        description="How many frames one answer is about, one from each inference interval.",
        json_schema_extra=_ui(14, label="Frames", features=_TEXT),
    )
    event_enter: int = Field(
        2,
        ge=1,
        le=100,
        description="An event starts after this many results in a row with the object, or a yes.",
        json_schema_extra=_ui(11, label="Results until start", group=_EVENTS, features=_LOOKED_FOR),
    )
    event_leave: int = Field(
        2,
        ge=1,
        le=100,
        description="The event ends after this many results in a row without it.",
        json_schema_extra=_ui(12, label="Results until end", group=_EVENTS, features=_LOOKED_FOR),
    )
    event_min_count: int = Field(
        1,
        ge=1,
        le=50,
        description="How many objects it takes for an event.",
        json_schema_extra=_ui(13, label="Objects of an event", group=_EVENTS, features=_PLACES),
    )

    @property
    def is_about_video(self) -> bool:
        """Whether the model sees several frames at once."""
        return self.frames > 1 and self.feature in (
            MoondreamFeature.CAPTION,
            MoondreamFeature.QUERY,
        )

    @property
    def subject(self) -> tuple[MoondreamFeature, str]:
        """What a result is about."""
        return self.feature, self.prompt

    @property
    def prompt(self) -> str:
        """What the feature asks the model, beside the frame."""
        match self.feature:
            case MoondreamFeature.CAPTION:
                return self.caption_length.value
            case MoondreamFeature.QUERY:
                return self.question
        return self.detect_object
