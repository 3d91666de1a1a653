"""Requests of the OpenAI dialect: chat completions as they are sent, and what they ask for.

What is not supported is refused with a 400 that names it.
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
from raylens.core.wire import MAX_OBJECTS_ASKED, Body, Messages, Text, read_messages

_NEUTRAL: dict[str, tuple[Any, ...]] = {
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
"""Parameters that are not supported, with the values that ask for nothing; null always does."""


class PlainText(Body):
    type: Literal["text"]


class JsonObject(Body):
    type: Literal["json_object"]


class NamedSchema(Body):
    name: Text
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None
    """Accepted either way: an answer always follows its schema."""


class JsonSchema(Body):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[PlainText | JsonObject | JsonSchema, Field(discriminator="type")]
Penalty = Annotated[float, Field(ge=-2, le=2, strict=True)]


class Locate(Body):
    """Our own extension: boxes or points instead of words."""

    task: Literal["detect", "point"]
    object: Annotated[Text, Field(min_length=1)] | None = None
    """Unset takes the last message's text."""
    max_objects: Annotated[int, Field(ge=1, le=MAX_OBJECTS_ASKED, strict=True)] = MAX_OBJECTS


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(Body):
    """The request of ``POST /v1/chat/completions``.

    ``top_k``, ``min_p`` and ``repetition_penalty`` are not OpenAI's: vLLM's clients send them.
    ``reasoning`` is what Moondream's client sends, ``recipe`` and ``raylens`` are our own.
    """

    model_config = ConfigDict(extra="allow")

    messages: Messages
    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, strict=True)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31, strict=True)] | None = None
    """-1 and 0 mean all."""
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
    raylens: Locate | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _accept_one_stop_string(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


def refuse_what_is_not_supported(body: ChatRequest) -> None:
    """Raises ``InvalidRequest`` for a parameter that is unknown, or that asks for something that
    can't be had."""
    for name, value in (body.model_extra or {}).items():
        if name not in _NEUTRAL:
            raise InvalidRequest(f"{name[:64]}: no such parameter", name[:64])
        if value is not None and value not in _NEUTRAL[name]:
            raise InvalidRequest(f"{name}: not supported", name)


async def parse_messages(body: ChatRequest, context: Context) -> tuple[Chat, list[PictureFile]]:
    """The chat, and its pictures in the order of their appearance."""
    messages, waiting = read_messages(body.messages, "messages")
    if messages[-1].role is not Role.USER:
        raise InvalidRequest("messages: the last one should be the user's", "messages")
    context.media.check_count(len(waiting), "messages")
    texts = (
        part.text for message in messages for part in message.parts if isinstance(part, TextPart)
    )
    context.check_text(sum(map(len, texts)), "messages")
    pictures = await asyncio.gather(*(context.media.from_url(url, field) for url, field in waiting))
    return Chat(messages, bool(body.reasoning)), list(pictures)


def places_wanted(body: ChatRequest, chat: Chat, context: Context) -> Detect | Point | None:
    """The boxes or points that the request wants of its one picture, where it wants any. Raises
    ``InvalidRequest``."""
    wanted = body.raylens
    if wanted is None:
        return None
    too_much = {
        "n": (body.n or 1) > 1,
        "response_format": _json_schema(body) is not None,
        "logprobs": body.logprobs,
        "reasoning": body.reasoning,
    }
    for field, is_wanted in too_much.items():
        if is_wanted:
            raise InvalidRequest(f"{field}: not supported where places are wanted", field)
    parts = [part for message in chat.messages for part in message.parts]
    if sum(not isinstance(part, TextPart) for part in parts) != 1 or any(
        isinstance(part, VideoPart) for part in parts
    ):
        raise InvalidRequest("messages: one picture is needed, to find places in", "messages")
    texts = (part.text for part in chat.messages[-1].parts if isinstance(part, TextPart))
    subject = wanted.object or " ".join(texts).strip()
    if not subject:
        raise InvalidRequest("raylens.object: what should be found?", "raylens.object")
    context.check_text(len(subject), "raylens.object")
    kind = Detect if wanted.task == "detect" else Point
    return kind(subject, wanted.max_objects)


def sampling(body: ChatRequest, context: Context) -> SamplingParams:
    """How the request wants its tokens chosen. Raises ``InvalidRequest`` over a limit."""
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("top_logprobs: logprobs should be true beside it", "top_logprobs")
    if body.reasoning and _json_schema(body):
        raise InvalidRequest(
            "response_format: thoughts follow no schema; leave out reasoning", "response_format"
        )
    return context.sampling(
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
    """The schema that the answer follows, as compact JSON. Its keys keep their order: the answer's
    take it over."""
    wanted = body.response_format
    if wanted is None or isinstance(wanted, PlainText):
        return None
    schema = {"type": "object"} if isinstance(wanted, JsonObject) else wanted.json_schema.schema_
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except (ValueError, RecursionError) as error:
        why = type(error).__name__
        raise InvalidRequest(
            f"response_format: not a schema that can be read ({why})", "response_format"
        ) from None
    return text
