"""The OpenAI dialect's request: the body of a chat completion, its messages, pictures and sampling.

An unsupported parameter is refused with a 400 that names it.
"""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator

from raylens.api.body import RecipeField
from raylens.api.context import Context
from raylens.core.errors import InvalidRequest
from raylens.core.types import (
    MAX_OBJECTS,
    Chat,
    Detect,
    PictureFile,
    Point,
    Role,
    SamplingParams,
    TextPart,
    VideoPart,
)
from raylens.core.wire import MAX_OBJECTS_LIMIT, Body, Messages, Text, read_messages

_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Unsupported parameters, with the values that have no effect. Null never has an effect."""


class PlainText(Body):
    type: Literal["text"]


class JsonObject(Body):
    type: Literal["json_object"]


class NamedSchema(Body):
    name: Text
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None
    """Ignored: an answer always follows its schema."""


class JsonSchema(Body):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[PlainText | JsonObject | JsonSchema, Field(discriminator="type")]
Penalty = Annotated[float, Field(ge=-2, le=2, strict=True)]


class GroundingOptions(Body):
    """Our own extension ``raylens``: boxes or points instead of text."""

    task: Literal["detect", "point"]
    object: Annotated[Text, Field(min_length=1)] | None = None
    """Object to find; by default, the text of the last message."""
    max_objects: Annotated[int, Field(ge=1, le=MAX_OBJECTS_LIMIT, strict=True)] = MAX_OBJECTS


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(Body):
    """Body of ``POST /v1/chat/completions``.

    ``top_k``, ``min_p`` and ``repetition_penalty`` come from vLLM's clients, ``reasoning`` from
    Moondream's client. ``recipe`` and ``raylens`` are our own. All others are OpenAI's.
    """

    model_config = ConfigDict(extra="allow")

    messages: Messages
    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, strict=True)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31, strict=True)] | None = None
    """-1 and 0 mean all tokens."""
    min_p: Annotated[float, Field(ge=0, le=1, strict=True)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10, strict=True)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    n: Annotated[int, Field(ge=1, strict=True)] | None = None
    stop: list[Text] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63, strict=True)] | None = None
    logprobs: Annotated[bool, Field(strict=True)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    recipe: RecipeField = None
    reasoning: Annotated[bool, Field(strict=True)] | None = None
    raylens: GroundingOptions | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _wrap_one_stop_string(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


def refuse_unsupported_parameters(body: ChatRequest) -> None:
    """Raise ``InvalidRequest`` for an unknown parameter, or an unsupported one with an effect."""
    for name, value in (body.model_extra or {}).items():
        if name not in _NEUTRAL_VALUES:
            raise InvalidRequest(f"{name[:64]}: unknown parameter", name[:64])
        if value is not None and value not in _NEUTRAL_VALUES[name]:
            raise InvalidRequest(f"{name}: not supported", name)


async def parse_messages(body: ChatRequest, context: Context) -> tuple[Chat, list[PictureFile]]:
    """Return the chat, and its pictures in the order of their appearance.

    Raises ``InvalidRequest`` or ``PayloadTooLarge``.
    """
    messages, urls = read_messages(body.messages, "messages")
    if messages[-1].role is not Role.USER:
        raise InvalidRequest("messages: expected the last message to be the user's", "messages")
    context.media.check_count(len(urls), "messages")
    texts = (
        part.text for message in messages for part in message.parts if isinstance(part, TextPart)
    )
    context.check_text_length(sum(map(len, texts)), "messages")
    pictures = await asyncio.gather(*(context.media.from_url(url, field) for url, field in urls))
    return Chat(messages, bool(body.reasoning)), list(pictures)


def parse_grounding_task(body: ChatRequest, chat: Chat, context: Context) -> Detect | Point | None:
    """Return the detect or point task of the field ``raylens``, or None if the field is absent.

    Raises ``InvalidRequest`` for parameters that have no meaning for boxes and points, and unless
    the chat has exactly one picture.
    """
    options = body.raylens
    if options is None:
        return None
    text_only_parameters = {
        "n": (body.n or 1) > 1,
        "response_format": _json_schema(body) is not None,
        "logprobs": body.logprobs,
        "reasoning": body.reasoning,
    }
    for field, is_in_use in text_only_parameters.items():
        if is_in_use:
            raise InvalidRequest(f"{field}: not supported together with raylens", field)
    _require_one_picture(chat)
    texts = (part.text for part in chat.messages[-1].parts if isinstance(part, TextPart))
    subject = options.object or " ".join(texts).strip()
    if not subject:
        raise InvalidRequest(
            "raylens.object: missing; the last message has no text to use instead",
            "raylens.object",
        )
    context.check_text_length(len(subject), "raylens.object")
    task_type = Detect if options.task == "detect" else Point
    return task_type(subject, options.max_objects)


def _require_one_picture(chat: Chat) -> None:
    parts = [part for message in chat.messages for part in message.parts]
    media = [part for part in parts if not isinstance(part, TextPart)]
    if len(media) != 1 or isinstance(media[0], VideoPart):
        raise InvalidRequest("messages: expected exactly one picture with raylens", "messages")


def build_sampling(body: ChatRequest, context: Context) -> SamplingParams:
    """Return the request's sampling parameters.

    Raises ``InvalidRequest`` if one is over its limit, or if two exclude each other.
    """
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("top_logprobs: expected logprobs to be true", "top_logprobs")
    if body.reasoning and _json_schema(body):
        raise InvalidRequest(
            "response_format: not supported together with reasoning, which follows no schema",
            "response_format",
        )
    return context.build_sampling(
        max_tokens=body.max_completion_tokens or body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(body.top_k or 0, 0),
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        seed=body.seed,
        stop=tuple(text for text in body.stop or () if text),
        n=body.n or 1,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        json_schema=_json_schema(body),
    )


def _json_schema(body: ChatRequest) -> str | None:
    """Return the answer's schema as compact JSON, or None for plain text.

    The schema's keys keep their order: the answer's keys follow it. Raises ``InvalidRequest`` if
    the schema is not valid JSON.
    """
    response_format = body.response_format
    if response_format is None or isinstance(response_format, PlainText):
        return None
    schema: dict[str, Any] = {"type": "object"}
    if isinstance(response_format, JsonSchema):
        schema = response_format.json_schema.schema_
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"response_format: expected a schema that is valid JSON ({type(error).__name__})",
            "response_format",
        ) from None
    return text
