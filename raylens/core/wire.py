"""JSON that more than one layer reads: well-formed text, and OpenAI's chat messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from raylens.core.types import Detail, ImagePart, Message, Role, TextPart, VideoPart

MAX_MESSAGES = 1024
"""Messages of a chat. Each costs time, even if it is empty."""
MAX_PARTS = 1024
"""Parts of a message, and frames of a video."""
MAX_OBJECTS_LIMIT = 1000
"""Upper bound of ``max_objects`` for detect and point."""
_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
}


class Body(BaseModel):
    """Part of a request's body. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


def well_formed(text: str) -> str:
    """Refuse half a surrogate pair: JSON can spell it, but no tokenizer accepts it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair at character {error.start}") from None
    return text


Text = Annotated[str, AfterValidator(well_formed)]


class ImageUrl(Body):
    url: Text
    detail: Detail = Detail.AUTO


class ChatText(Body):
    type: Literal["text"]
    text: Text


class ChatImage(Body):
    type: Literal["image_url"]
    image_url: ImageUrl

    @field_validator("image_url", mode="before")
    @classmethod
    def _accept_a_bare_string(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value


class ChatVideo(Body):
    """A video as a list of frames, the form that Qwen's clients send."""

    type: Literal["video"]
    video: Annotated[list[Text], Field(min_length=2, max_length=MAX_PARTS)]
    fps: Annotated[float, Field(ge=0.01, le=240, strict=True)] = 2.0


ChatPart = Annotated[ChatText | ChatImage | ChatVideo, Field(discriminator="type")]


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[ChatPart], Field(min_length=1, max_length=MAX_PARTS)]
    name: str | None = None
    refusal: None = None

    @field_validator("content", mode="before")
    @classmethod
    def _accept_a_bare_string(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [{"type": "text", "text": value}]
        if not isinstance(value, list):
            raise ValueError("Input should be a string or a list of parts")
        return value


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]


def read_messages(
    messages: Sequence[ChatMessage], field: str
) -> tuple[tuple[Message, ...], list[tuple[str, str]]]:
    """Return the messages, and (URL, field) of their pictures in order of appearance.

    ``field`` is the name of the messages in the request, such as ``input.messages``.
    """
    parsed: list[Message] = []
    pictures: list[tuple[str, str]] = []
    for number, message in enumerate(messages):
        parts: list[TextPart | ImagePart | VideoPart] = []
        for index, part in enumerate(message.content):
            part_field = f"{field}.{number}.content.{index}"
            first = len(pictures)
            match part:
                case ChatText():
                    parts.append(TextPart(part.text))
                case ChatImage():
                    pictures.append((part.image_url.url, f"{part_field}.image_url.url"))
                    parts.append(ImagePart(first, part.image_url.detail))
                case ChatVideo():
                    for frame, url in enumerate(part.video):
                        pictures.append((url, f"{part_field}.video.{frame}"))
                    parts.append(VideoPart(tuple(range(first, len(pictures))), part.fps))
        parsed.append(Message(_ROLES[message.role], tuple(parts)))
    return tuple(parsed), pictures
