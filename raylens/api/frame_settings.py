"""What a session of live pictures asks about each of them, and the messages that change it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError

from raylens.api.body import RecipeField
from raylens.api.context import Context
from raylens.api.errors import from_validation
from raylens.api.model_selection import select_model
from raylens.api.moondream import RequestSettings
from raylens.core.errors import InvalidRequest
from raylens.core.types import (
    Caption,
    Chat,
    Detect,
    Length,
    Message,
    Point,
    Query,
    Role,
    SamplingParams,
    Task,
    TextPart,
    VideoPart,
)
from raylens.core.wire import SparseBody, Text

SETTINGS = "settings"
PING = "ping"
PONG = "pong"
DESCRIBE_VIDEO = "Describe the video."
_PROMPTS = ("prompt", "question", "object")
"""Names of the prompt, as different clients call it."""
_PICTURES = ("image", "image_url")


class TaskName(StrEnum):
    CAPTION = "caption"
    QUERY = "query"
    DETECT = "detect"
    POINT = "point"


class Sampling(RequestSettings):
    """As in the Moondream dialect, and a seed. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")

    seed: int | None = None


class FrameSettings(SparseBody):
    """Settings of a session. They hold for the pictures that come after them."""

    model: str | None = None
    task: TaskName | None = None
    """Without one, the prompt is a question, and without a prompt, pictures get captions."""
    prompt: Text = ""
    """A question, or the object that detect and point look for."""
    length: Length = Length.NORMAL
    """Of captions."""
    reasoning: bool = False
    sampling: Sampling = Sampling()
    recipe: RecipeField = None
    frames: Annotated[int, Field(ge=1)] = 1
    """With 2 or more, a question is about that many of the last pictures, as about a video."""
    frame_interval_s: Annotated[float, Field(ge=0, le=60)] = 0.0
    """The least time between two of these."""

    @property
    def task_name(self) -> TaskName:
        return self.task or (TaskName.QUERY if self.prompt else TaskName.CAPTION)

    def build_task(self, times: Sequence[float]) -> Task:
        """Return the task about pictures that came at ``times``, in seconds."""
        if self.frames > 1:
            return video_question(self.prompt or DESCRIBE_VIDEO, times, self.reasoning)
        max_objects = self.sampling.max_objects
        match self.task_name:
            case TaskName.CAPTION:
                return Caption(self.length)
            case TaskName.QUERY:
                return Query(self.prompt, self.reasoning)
            case TaskName.DETECT:
                return Detect(self.prompt, max_objects)
            case TaskName.POINT:
                return Point(self.prompt, max_objects)

    def build_sampling(self, context: Context) -> SamplingParams:
        """Return the sampling parameters. Raises ``InvalidRequest`` if one is over its limit."""
        chosen = self.sampling
        return context.build_sampling(
            max_tokens=chosen.max_tokens,
            temperature=chosen.temperature if chosen.top_p != 0 else 0.0,
            top_p=chosen.top_p or None,
            seed=chosen.seed,
            section="sampling.",
        )

    async def select_model(self, context: Context) -> str:
        """Return the model that answers. Raises what
        :func:`raylens.api.model_selection.select_model` raises."""
        return await select_model(context, self.model, "realtime", self.build_task([0.0]), "task")

    async def check(self, context: Context) -> None:
        """Raise ``RaylensError`` if no picture could be answered with these settings."""
        context.check_text_length(len(self.prompt), "prompt")
        limit = context.config.realtime.max_frames
        if self.frames > limit:
            raise InvalidRequest(f"frames: {self.frames}; the limit is {limit}", "frames", limit)
        if self.frames > 1 and self.task not in (None, TaskName.QUERY):
            message = f"frames: {self.task} is about one picture; expected 1, or the task query"
            raise InvalidRequest(message, "frames", 1, self.frames)
        if self.task is not None and self.task is not TaskName.CAPTION and not self.prompt:
            raise InvalidRequest(f"prompt: expected one for the task {self.task}", "prompt")
        self.build_sampling(context)
        model = await self.select_model(context)
        context.resolve_recipe(model, self.recipe)

    def changed(self, changes: Mapping[str, Any]) -> FrameSettings:
        """Return the settings with changes; null resets one. Raises ``InvalidRequest``."""
        values = {**self.model_dump(exclude_unset=True), **changes}
        if self.sampling and isinstance(changes.get("sampling"), Mapping):
            sampling = self.sampling.model_dump(exclude_unset=True)
            values["sampling"] = {**sampling, **changes["sampling"]}
        try:
            return FrameSettings.model_validate(values)
        except ValidationError as error:
            raise from_validation(error.errors()) from None

    def with_prompt(self, text: str) -> FrameSettings:
        """Return the settings with another prompt, which captions have no use for."""
        task = None if self.task is TaskName.CAPTION else self.task
        return self.changed({"prompt": text.strip(), "task": task})

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def video_question(prompt: str, times: Sequence[float], reasoning: bool = False) -> Chat:
    """Return a question about pictures as about a video, with their times in seconds."""
    timestamps = tuple(time - times[0] for time in times)
    video = VideoPart(tuple(range(len(times))), timestamps=timestamps)
    return Chat((Message(Role.USER, (video, TextPart(prompt))),), reasoning)


@dataclass(frozen=True)
class Control:
    """A JSON message: a ping, or changed settings, a picture, or both."""

    kind: str
    """PING, PONG or SETTINGS."""
    changes: Mapping[str, Any]
    picture: Any = None
    """A data URL or raw base64."""


def parse_control(text: str) -> Control | None:
    """Return a control message; None if the text is a prompt.

    A control message is a JSON object with a ``type``, or with nothing but settings and a picture.
    Raises ``InvalidRequest`` if its type is unknown.
    """
    if not text.lstrip().startswith("{"):
        return None
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None
    known = {*FrameSettings.model_fields, *_PROMPTS, *_PICTURES}
    kind = message.pop("type", None)
    if kind in (PING, PONG):
        return Control(kind, {})
    if kind is None and not (message and message.keys() <= known):
        return None
    if kind not in (None, SETTINGS):
        raise InvalidRequest(
            f"type: unknown control message {str(kind)[:64]!r}; known: {SETTINGS}, {PING}", "type"
        )
    pictures = [message.pop(name) for name in _PICTURES if name in message]
    prompts = [message.pop(name) for name in _PROMPTS if name in message]
    if prompts:
        message["prompt"] = prompts[0]
    return Control(SETTINGS, message, next(iter(pictures), None))
