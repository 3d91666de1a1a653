"""JSON that more than one layer reads: well-formed text, and OpenAI's chat messages.

Clients send back whole messages of earlier answers, with keys of every server and library that they
have met. So messages are read liberally: null and empty values count as absent, and unknown keys
are ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from raylens.core.types import (
    Detail,
    ImagePart,
    MediaFile,
    Message,
    PictureFile,
    Role,
    TextPart,
    ToolCall,
    VideoFile,
    VideoPart,
)

MAX_MESSAGES = 1024
"""Messages of a chat. Each costs time, even if it is empty."""
MAX_PARTS = 1024
"""Parts of a message, tool calls in it, and frames of a video."""
MAX_JSON_TEXT_CHARS = 64 * 1024
"""Of JSON within a text, such as a form's field."""
MAX_STOP_STRINGS = 1024
"""Upper bound of ``limits.max_stop_strings``."""
MAX_OBJECTS_LIMIT = 1000
"""Upper bound of ``max_objects`` for detect and point."""
_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
    "function": Role.TOOL,
}
_TEXT_PARTS = {
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "text": "text",
}
"""Types of parts that hold text, and where."""
_VIDEO_PARTS = frozenset({"video", "video_url"})
_JPEG_FRAMES = re.compile(r"data:\s*video/jpeg\s*;\s*base64\s*,", re.IGNORECASE)
_UNTYPED = ("image_url", "image", "video_url", "video", "text")
"""Keys of parts without a type, which are the types that such parts have."""
_THOUGHTS = frozenset({"reasoning", "reasoning_text", "redacted_thinking", "thinking"})
"""Types of parts that hold earlier thoughts, which no template shows to a model again."""


class Body(BaseModel):
    """Part of a request's body. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


def is_absent(value: Any) -> bool:
    """Whether a JSON value is null or empty."""
    return value is None or (isinstance(value, str | list | dict) and not value)


_ABSENT: JsonSchemaValue = {"enum": [None, "", [], {}], "description": "counts as absent"}


class SparseBody(Body):
    """Part of a request's body. Null and empty values count as absent; unknown keys are refused."""

    @model_validator(mode="before")
    @classmethod
    def _drop_absent_values(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {key: item for key, item in value.items() if not is_absent(item)}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        described = handler.resolve_ref_schema(schema)
        required = described.get("required", ())
        for name, field in described.get("properties", {}).items():
            if name not in required and _ABSENT not in field.get("anyOf", ()):
                described["properties"][name] = {"anyOf": [field, _ABSENT]}
        return schema


class LenientBody(SparseBody):
    """Part of a request's body. Null and empty values count as absent; unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore")


def parse_json_text(text: str) -> Any:
    """Return the JSON in a text. Raises ``ValueError`` if it is too long, or none."""
    if len(text) > MAX_JSON_TEXT_CHARS:
        raise ValueError(f"{len(text)} characters of JSON; the limit is {MAX_JSON_TEXT_CHARS}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("the text is not valid JSON") from None


def well_formed(text: str) -> str:
    """Refuse half a surrogate pair: JSON can spell it, but no tokenizer accepts it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair at character {error.start}") from None
    return text


Text = Annotated[str, AfterValidator(well_formed)]
StopStrings = Annotated[list[Text], Field(max_length=MAX_STOP_STRINGS)]


def _check_json(value: Any) -> Any:
    """Refuse what JSON can't hold, but Python's parser lets through."""
    try:
        well_formed(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected valid JSON: {error}") from None
    return value


JsonValue = Annotated[Any, AfterValidator(_check_json)]
"""A value that is checked elsewhere, or only passed on."""


def _read_detail(value: Any) -> Any:
    return Detail.HIGH if value == "original" else value  # OpenAI's name for no resizing


class ImageUrl(LenientBody):
    url: Text
    detail: Annotated[Detail, BeforeValidator(_read_detail)] = Detail.AUTO


class ChatText(LenientBody):
    type: Literal["text"]
    text: Text = ""


class ChatImage(LenientBody):
    type: Literal["image_url"]
    image_url: ImageUrl
    field: str = "image_url.url"
    """The sender's name of the picture within the part."""

    @field_validator("image_url", mode="before")
    @classmethod
    def _accept_a_bare_string(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value


FramesPerSecond = Annotated[float, Field(ge=0.01, le=240, strict=True)]


class ChatFrames(LenientBody):
    """A video as a list of frames, the form that Qwen's clients send."""

    type: Literal["video"]
    video: Annotated[list[Text], Field(min_length=2, max_length=MAX_PARTS)]
    fps: FramesPerSecond = 2.0
    field: str = "video"
    """The sender's name of the frames within the part."""


class ChatVideo(LenientBody):
    """A video file, of which ``fps`` frames a second are sampled, at most ``max_frames``."""

    type: Literal["video_url"]
    video_url: Text
    fps: FramesPerSecond = 2.0
    max_frames: Annotated[int, Field(ge=2, le=MAX_PARTS, strict=True)] | None = None
    field: str = "video_url.url"
    """The sender's name of the video within the part."""


def _normalize_part(part: Any) -> Any:
    """Return a part in the form of chat completions; an empty text for what no model reads.

    Clients also send bare strings, parts without a type, the parts of OpenAI's Responses, Qwen's
    ``{"type": "image", "image": …}``, and the pictures of Anthropic's API, of MCP and of LangChain.
    """
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        return part
    kind = part.get("type") or _guess_type(part)
    if not isinstance(kind, str):
        raise ValueError("expected parts whose type is a text")
    if kind in _THOUGHTS:
        return {"type": "text"}
    if kind in _TEXT_PARTS:
        return {"type": "text", "text": part.get(_TEXT_PARTS[kind]) or ""}
    if kind in _PICTURE_PARTS:
        url, field = _PICTURE_PARTS[kind](part)
        return {"type": "image_url", "image_url": url, "field": field}
    if kind in _VIDEO_PARTS:
        return _normalize_video(kind, part)
    raise ValueError(
        f"parts of the type {kind[:64]!r} are not supported; expected 'text', 'image_url',"
        " 'video_url' or 'video', or 'input_text' and 'input_image' of Responses"
    )


def _normalize_video(kind: str, part: dict[str, Any]) -> dict[str, Any]:
    """Return a part with a video as :class:`ChatVideo` or :class:`ChatFrames`.

    Formats: Qwen's clients (``video``, ``fps``, ``max_frames`` or ``nframes``), and vLLM's
    (``video_url``, whose data URL of the type ``video/jpeg`` is a list of frames).
    """
    video: Any = part.get(kind)
    field, options = kind, part
    if isinstance(video, dict):
        field, options = f"{kind}.url", {**part, **video}
        video = video.get("url")
    if is_absent(video):
        raise ValueError(f"expected the video in {field}")
    video = split_frames(video)
    normalized = {"fps": options.get("fps"), "field": field}
    if isinstance(video, list):
        return {"type": "video", "video": video, **normalized}
    max_frames = options.get("max_frames") or options.get("nframes")
    return {"type": "video_url", "video_url": video, "max_frames": max_frames, **normalized}


def split_frames(video: Any) -> Any:
    """Return the frames of a ``data:video/jpeg`` URL as data URLs; any other value unchanged."""
    match = _JPEG_FRAMES.match(video) if isinstance(video, str) else None
    if match is None:
        return video
    texts = video[match.end() :].split(",", MAX_PARTS)  # with more commas, the last is no picture
    frames = [f"data:image/jpeg;base64,{frame}" for frame in texts]
    return frames * 2 if len(frames) == 1 else frames


def _guess_type(part: dict[str, Any]) -> str:
    """Return the type of a part that doesn't say it."""
    present = [key for key in _UNTYPED if not is_absent(part.get(key))]
    if len(present) > 1:
        raise ValueError(f"expected a type: the part has both {present[0]} and {present[1]}")
    return present[0] if present else "text"


# Each returns the value of ``image_url``, and the sender's name of the picture.


def _find_picture_of_chat(part: dict[str, Any]) -> tuple[Any, str]:
    url = part.get("image_url")
    return url, "image_url" if isinstance(url, str) else "image_url.url"


def _find_picture_of_responses(part: dict[str, Any]) -> tuple[Any, str]:
    if is_absent(part.get("image_url")):
        raise ValueError("expected the picture in image_url")
    return {"detail": part.get("detail"), "url": part["image_url"]}, "image_url"


def _find_picture(part: dict[str, Any]) -> tuple[Any, str]:
    """Read the formats of Qwen's clients (``image``), of Anthropic's Messages (``source``), and of
    the content blocks of LangChain (``url``, or ``base64`` or ``data`` with ``mime_type``) and MCP
    (``data`` with ``mimeType``).
    """
    for field in ("image", "url"):
        if not is_absent(part.get(field)):
            return part[field], field
    source = part.get("source")
    holder, prefix = (source, "source.") if isinstance(source, dict) else (part, "")
    if not is_absent(holder.get("url")):
        return holder["url"], f"{prefix}url"
    for field in ("base64", "data"):
        data = holder.get(field)
        if isinstance(data, str) and data:
            names = ("media_type", "mime_type", "mimeType")
            media_type = next((holder[name] for name in names if holder.get(name)), "image/png")
            return f"data:{media_type};base64,{data}", f"{prefix}{field}"
    raise ValueError("expected the picture in image or url")


_PICTURE_PARTS = {
    "image": _find_picture,
    "image_url": _find_picture_of_chat,
    "input_image": _find_picture_of_responses,
}


def _normalize_content(content: Any) -> Any:
    if isinstance(content, str | dict):
        content = [content]
    if not isinstance(content, list):
        raise ValueError("Input should be a string or a list of parts")
    return [part for part in content if part is not None]


ChatPart = Annotated[
    Annotated[ChatText | ChatImage | ChatVideo | ChatFrames, Field(discriminator="type")],
    BeforeValidator(_normalize_part),
]
Content = Annotated[
    list[ChatPart],
    Field(default_factory=list, max_length=MAX_PARTS),
    BeforeValidator(_normalize_content),
]


def _read_arguments(value: Any) -> Any:
    try:
        return json.dumps(value) if isinstance(value, dict) else value
    except RecursionError:
        raise ValueError("nested too deep") from None


class FunctionCall(LenientBody):
    name: Text
    arguments: Annotated[Text, BeforeValidator(_read_arguments)] = "{}"


CallId = Annotated[str, BeforeValidator(str)]


class ChatToolCall(LenientBody):
    id: CallId = ""
    function: FunctionCall


class ChatMessage(LenientBody):
    """A message as clients write it, or as any server answered it."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content
    refusal: Text = ""
    tool_calls: Annotated[list[ChatToolCall], Field(default_factory=list, max_length=MAX_PARTS)]
    tool_call_id: CallId = ""
    function_call: FunctionCall | None = None

    @field_validator("tool_calls", mode="before")
    @classmethod
    def _drop_absent_calls(cls, value: Any) -> Any:
        return [call for call in value if not is_absent(call)] if isinstance(value, list) else value

    @field_validator("function_call", mode="before")
    @classmethod
    def _drop_nameless_call(cls, value: Any) -> Any:
        """What is left of a stream without a call has an empty name."""
        return None if isinstance(value, dict) and is_absent(value.get("name")) else value

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The tools that the message calls. Only an assistant's has any."""
        functions = [call.function for call in self.tool_calls]
        if self.function_call is not None:
            functions.append(self.function_call)
        if self.role != "assistant":
            return ()
        return tuple(ToolCall(function.name, function.arguments) for function in functions)

    @property
    def text_length(self) -> int:
        """Characters of text, and of arguments of calls."""
        texts = [part.text for part in self.content if isinstance(part, ChatText)]
        texts += [call.name + call.arguments for call in self.calls]
        return sum(map(len, texts)) + (0 if self.content else len(self.refusal))


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]


class FrameRate(NamedTuple):
    """Which frames of a video file to sample."""

    fps: float = 2.0
    max_frames: int | None = None


class MediaUrl(NamedTuple):
    """The URL of a picture or video in a message, and its name in the request."""

    url: str
    field: str
    video: FrameRate | None = None
    """How to sample a video file; None for a picture, and for a frame."""
    frame_of: str | None = None
    """The request's name of the video, if this is one of its frames."""

    def to_file(self, data: bytes) -> MediaFile:
        """Return the picture or video whose bytes ``data`` are."""
        if self.video is None:
            return PictureFile(data, self.field)
        return VideoFile(data, self.field, self.video.fps, self.video.max_frames)


def read_messages(
    messages: Sequence[ChatMessage], field: str
) -> tuple[tuple[Message, ...], list[MediaUrl]]:
    """Return the messages, and their pictures and videos in order of appearance.

    ``field`` is the name of the messages in the request, such as ``input.messages``. The results of
    parallel calls are put into the order of the calls.
    """
    parsed: list[Message] = []
    media: list[MediaUrl] = []
    for number, message in _in_order_of_calls(messages):
        parts: list[TextPart | ImagePart | VideoPart] = []
        for index, part in enumerate(message.content):
            part_field = f"{field}.{number}.content.{index}"
            first = len(media)
            match part:
                case ChatText():
                    parts.append(TextPart(part.text))
                case ChatImage():
                    media.append(MediaUrl(part.image_url.url, f"{part_field}.{part.field}"))
                    parts.append(ImagePart(first, part.image_url.detail))
                case ChatVideo():
                    rate = FrameRate(part.fps, part.max_frames)
                    media.append(MediaUrl(part.video_url, f"{part_field}.{part.field}", rate))
                    parts.append(VideoPart((first,), part.fps))
                case ChatFrames():
                    video = f"{part_field}.{part.field}"
                    media += [
                        MediaUrl(url, f"{video}.{number}", frame_of=video)
                        for number, url in enumerate(part.video)
                    ]
                    parts.append(VideoPart(tuple(range(first, len(media))), part.fps))
        if not parts and message.refusal:
            parts.append(TextPart(message.refusal))
        parsed.append(Message(_ROLES[message.role], tuple(parts), message.calls))
    return tuple(parsed), media


def _in_order_of_calls(messages: Sequence[ChatMessage]) -> list[tuple[int, ChatMessage]]:
    """Return the messages with their numbers, and each turn's results in the order of its calls.

    Clients send results in the order in which tools end. Chat templates tell them apart by place.
    """
    keys: list[tuple[int, int]] = []
    turn = 0
    places: dict[str, int] = {}
    """Places of the turn's calls, by id."""
    for number, message in enumerate(messages):
        if message.role == "tool":
            keys.append((turn, places.get(message.tool_call_id, len(places)) + 1))
            continue
        if message.role != "assistant" or turn != number - 1:
            places = {}
        for call in message.tool_calls:
            places[call.id] = len(places)
        turn = number
        keys.append((turn, 0))
    order = sorted(range(len(messages)), key=keys.__getitem__)
    return [(number, messages[number]) for number in order]
