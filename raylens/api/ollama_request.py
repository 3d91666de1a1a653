"""The requests of Ollama's API: chats and completions.

Format: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, TypeVar

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from raylens.api.context import Context
from raylens.api.errors import from_validation, invalid_json
from raylens.api.field_names import FieldNames
from raylens.api.openai_tools import dump_schema, parse_tools
from raylens.api.response_format import ANY_OBJECT
from raylens.core.errors import InvalidRequest
from raylens.core.types import Chat, MediaFile, SamplingParams, Tools
from raylens.core.wire import (
    MAX_MESSAGES,
    MAX_PARTS,
    ChatMessage,
    LenientBody,
    StopStrings,
    Text,
    is_absent,
    read_messages,
)

B = TypeVar("B", bound=BaseModel)
DATA_URL = "data:image/*;base64,"
"""Ollama's clients send bare base64. A picture's own first bytes tell its type."""


class Options(LenientBody):
    """Sampling options. Those that concern how Ollama runs a model are ignored."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] = 0
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    num_predict: int | None = None
    """Negative values mean no limit."""
    stop: StopStrings | Text = Field(default_factory=list)
    repeat_penalty: Annotated[float, Field(ge=0.01, le=10)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0


def _read_message(message: Any) -> Any:
    """Return a message in OpenAI's form: pictures are parts, and arguments are text."""
    if not isinstance(message, dict):
        return message
    images = _as_list(message, "images")
    pictures = [{"type": "image_url", "image_url": picture_url(image)} for image in images]
    content = message.get("content")
    parts = [content] if isinstance(content, str) else _as_list(message, "content")
    calls = []
    for call in _as_list(message, "tool_calls"):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise ValueError("tool_calls: expected objects with a function")
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
        calls.append({"function": {"name": function.get("name"), "arguments": text}})
    return {"role": message.get("role"), "content": pictures + parts, "tool_calls": calls}


def _as_list(message: dict[str, Any], key: str) -> list[Any]:
    value = message.get(key) or []
    if not isinstance(value, list):
        raise ValueError(f"{key}: expected a list")
    return value


def picture_url(image: Any) -> Any:
    """Return a picture's base64 as a data URL."""
    is_base64 = isinstance(image, str) and not image.startswith("data:")
    return DATA_URL + image if is_base64 else image


OllamaMessage = Annotated[ChatMessage, BeforeValidator(_read_message)]


class OllamaRequest(LenientBody):
    """What chats and completions share. ``keep_alive`` and others are ignored."""

    model: str = ""
    stream: bool = True
    format: Any = None
    """``json``, or a JSON schema."""
    options: Options = Field(default_factory=Options)
    think: bool | str = False
    field_names: ClassVar[FieldNames] = {"response_format": "format"}

    def build_sampling(self, context: Context, tools: Tools | None = None) -> SamplingParams:
        """Return the request's sampling parameters.

        Raises ``InvalidRequest`` if one is over its limit.
        """
        options = self.options
        limit = options.num_predict
        stop = [options.stop] if isinstance(options.stop, str) else options.stop
        return context.build_sampling(
            max_tokens=limit if limit is not None and limit > 0 else None,
            capped=True,
            temperature=0.0 if options.top_p == 0 else options.temperature,
            top_p=options.top_p or None,
            top_k=max(options.top_k, 0),
            min_p=options.min_p,
            repetition_penalty=options.repeat_penalty,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            seed=options.seed,
            stop=tuple(text for text in stop if text),
            json_schema=self._parse_format(),
            schema_field="format",
            section="options.",
            tools=tools,
        )

    def _parse_format(self) -> str | None:
        if is_absent(self.format):
            return None
        schema = ANY_OBJECT if self.format == "json" else self.format
        if not isinstance(schema, dict):
            raise InvalidRequest('format: expected "json" or a JSON schema', "format")
        return dump_schema(schema, "format")

    @property
    def reasons(self) -> bool:
        return self.think is True or self.think in ("low", "medium", "high", "true")


class ChatRequest(OllamaRequest):
    """Body of ``POST /api/chat``."""

    messages: Annotated[list[OllamaMessage], Field(default_factory=list, max_length=MAX_MESSAGES)]
    tools: Any = None

    def parse_tools(self) -> Tools | None:
        return parse_tools(self.tools, None, None)


class GenerateRequest(OllamaRequest):
    """Body of ``POST /api/generate``. ``raw`` continues the prompt without a chat template."""

    field_names: ClassVar[FieldNames] = {"response_format": "format", "messages": "prompt"}
    prompt: Text = ""
    system: Text = ""
    images: Annotated[list[Text], Field(default_factory=list, max_length=MAX_PARTS - 1)]
    """With the prompt, they are the parts of one message."""
    suffix: str = ""
    raw: bool = False


class ShowRequest(LenientBody):
    """Body of ``POST /api/show``. ``name`` is an older name of ``model``."""

    model: str = ""
    name: str = ""


async def parse_chat(
    http: Request,
    messages: Sequence[ChatMessage],
    context: Context,
    body: OllamaRequest,
    tools: Tools | None = None,
) -> tuple[Chat, list[MediaFile]]:
    """Return the chat, and its pictures in the order of their appearance.

    Raises ``InvalidRequest`` or ``PayloadTooLarge``.
    """
    parsed, urls = read_messages(messages, "messages")
    context.check_text_length(sum(message.text_length for message in messages), "messages")
    urls = [url._replace(field=_picture_field(url.field, body)) for url in urls]
    pictures = await context.read_media(http, urls, "images")
    return Chat(parsed, body.reasons, tools), pictures


def _picture_field(field: str, body: OllamaRequest) -> str:
    """Return the sender's name of a picture: it is the same one of its message's parts."""
    _, message, _, number, *_ = field.split(".")
    return (
        f"messages.{message}.images.{number}"
        if isinstance(body, ChatRequest)
        else f"images.{number}"
    )


def generate_messages(body: GenerateRequest) -> list[ChatMessage]:
    """Return the conversation of a completion: a system message, and the prompt with pictures."""
    messages = [_read_message({"role": "user", "content": body.prompt, "images": body.images})]
    if body.system:
        messages.insert(0, {"role": "system", "content": body.system})
    return [ChatMessage.model_validate(message) for message in messages]


def parse_body(body: bytes, request_type: type[B]) -> B:
    """Return the request in a body, whatever its Content-Type: Ollama doesn't look at it.

    Raises ``InvalidRequest``.
    """
    try:
        return request_type.model_validate(json.loads(body))
    except ValidationError as error:  # a ValueError, too
        raise from_validation(error.errors()) from None
    except (ValueError, RecursionError) as error:
        raise invalid_json(error) from None
