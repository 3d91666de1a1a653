"""Shapes of JSON that more than one layer reads: well-formed text, and OpenAI's chat messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from raylens.core.types import Detail, ImagePart, Message, Role, TextPart, VideoPart

MAX_MESSAGES, MAX_PARTS = 1024, 1024
"""Of a chat, and of a message: each costs time even where it is empty."""
MAX_OBJECTS_ASKED = 1000
"""Of a detect or point."""
_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
}


class Body(BaseModel):
    """A part of a request's body; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


def _well_formed(text: str) -> str:
    """JSON can spell half of a surrogate pair, which is no character and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair at character {error.start}") from None
    return text


Text = Annotated[str, AfterValidator(_well_formed)]


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
    """A video as its frames, as Qwen's clients send it."""

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
    """The messages, and the URLs of their pictures in the order of their appearance, each with its
    place under ``field``."""
    read: list[Message] = []
    urls: list[tuple[str, str]] = []
    for number, message in enumerate(messages):
        parts: list[TextPart | ImagePart | VideoPart] = []
        for place, part in enumerate(message.content):
            where, first = f"{field}.{number}.content.{place}", len(urls)
            match part:
                case ChatText():
                    parts.append(TextPart(part.text))
                case ChatImage():
                    urls.append((part.image_url.url, f"{where}.image_url.url"))
                    parts.append(ImagePart(first, part.image_url.detail))
                case ChatVideo():
                    urls += [
                        (url, f"{where}.video.{frame}") for frame, url in enumerate(part.video)
                    ]
                    parts.append(VideoPart(tuple(range(first, len(urls))), part.fps))
        read.append(Message(_ROLES[message.role], tuple(parts)))
    return tuple(read), urls
