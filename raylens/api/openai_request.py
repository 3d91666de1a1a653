"""The OpenAI dialect's request: the body of a chat completion, its messages, pictures and sampling.

Null and empty values count as absent. An unsupported parameter that would change the answer is
refused with a 400 that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from raylens.api.body import RecipeField
from raylens.api.context import Context
from raylens.api.field_names import FieldNames
from raylens.api.openai_tools import parse_tools
from raylens.api.response_format import parse_response_format
from raylens.core.errors import InvalidRequest
from raylens.core.types import (
    MAX_OBJECTS,
    Chat,
    Detect,
    MediaFile,
    PixelLimits,
    Point,
    SamplingParams,
    TextPart,
    Tools,
    VideoPart,
)
from raylens.core.wire import (
    MAX_OBJECTS_LIMIT,
    ChatMessage,
    JsonValue,
    LenientBody,
    Messages,
    SparseBody,
    StopStrings,
    Text,
    is_absent,
    read_messages,
)

ANY_VALUE = object()
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    # OpenAI's
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": (),
    "modalities": (["text"],),
    "prediction": (),
    "verbosity": ("medium",),
    "web_search_options": (),
    # vLLM's
    "add_generation_prompt": (True, False),
    "add_special_tokens": (False,),
    "allowed_token_ids": (),
    "bad_words": (),
    "best_of": (1,),
    "cache_salt": (ANY_VALUE,),
    "echo": (False,),
    "enable_thinking": (False,),
    "ignore_eos": (False,),
    "include_reasoning": (ANY_VALUE,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "priority": (ANY_VALUE,),
    "prompt_logprobs": (0,),
    "request_id": (ANY_VALUE,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "use_beam_search": (False,),
    # Advice to other servers
    "metadata": (ANY_VALUE,),
    "prompt_cache_key": (ANY_VALUE,),
    "prompt_cache_retention": (ANY_VALUE,),
    "safety_identifier": (ANY_VALUE,),
    "service_tier": (ANY_VALUE,),
    "store": (ANY_VALUE,),
    "thinking": ({"type": "disabled"},),
    "user": (ANY_VALUE,),
}
"""Unsupported parameters, with the values that have no effect. Null and empty values never have
an effect."""

Strict = Field(strict=True)


def _accept_whole_floats(value: Any) -> Any:
    """JSON doesn't tell 5.0 from 5, and some languages write the former."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _read_max_tokens(value: Any) -> Any:
    """-1 means no limit to clients of llama.cpp and LM Studio."""
    return None if value == -1 and not isinstance(value, bool) else value


Integer = Annotated[int, BeforeValidator(_accept_whole_floats), Strict]
MaxTokens = Annotated[Annotated[Integer, Field(ge=1)] | None, BeforeValidator(_read_max_tokens)]
TOKEN_ID = Field(ge=0, lt=2**31)
TokenId = Annotated[Integer, TOKEN_ID]
MAX_STOP_TOKENS = 128
MAX_BIASES = 1024
Penalty = Annotated[float, Field(ge=-2, le=2, strict=True)]


class GroundingOptions(SparseBody):
    """Our own extension ``raylens``: boxes or points instead of text."""

    task: Literal["detect", "point"]
    object: Annotated[Text, Field(min_length=1)] | None = None
    """Object to find; by default, the text of the last message."""
    max_objects: Annotated[int, Field(ge=1, le=MAX_OBJECTS_LIMIT, strict=True)] = MAX_OBJECTS


class StreamOptions(LenientBody):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    """vLLM's: whether every chunk has the usage so far. It includes ``include_usage``."""


class PictureOptions(LenientBody):
    """vLLM's ``mm_processor_kwargs``: bounds of a resized picture's area, in pixels.

    ``size`` holds the same bounds under the names that transformers has for them.
    """

    min_pixels: Annotated[Integer, Field(ge=1, lt=2**31)] | None = None
    max_pixels: Annotated[Integer, Field(ge=1, lt=2**31)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_size(cls, value: Any) -> Any:
        size = value.get("size") if isinstance(value, dict) else None
        if not isinstance(size, dict):
            return value
        bounds = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
        named = {ours: size[theirs] for ours, theirs in bounds.items() if theirs in size}
        return named | {key: item for key, item in value.items() if item is not None}


class Sampling(LenientBody):
    """The sampling parameters that OpenAI's dialects share.

    ``top_k``, ``min_p``, ``repetition_penalty``, ``min_tokens`` and ``stop_token_ids`` come from
    vLLM's clients. All others are OpenAI's.
    """

    temperature: Annotated[float, Field(ge=0, le=2, strict=True)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, strict=True)] | None = None
    """0 means greedy."""
    top_k: Annotated[Integer, Field(ge=-1, lt=2**31)] | None = None
    """-1 and 0 mean all tokens."""
    min_p: Annotated[float, Field(ge=0, le=1, strict=True)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10, strict=True)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[Integer, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopStrings | None = None
    min_tokens: Annotated[Integer, Field(ge=0, lt=2**31)] = 0
    stop_token_ids: Annotated[
        list[TokenId], Field(default_factory=list, max_length=MAX_STOP_TOKENS)
    ]
    logit_bias: Annotated[
        dict[Annotated[int, TOKEN_ID], Annotated[float, Field(ge=-100, le=100)]],
        Field(default_factory=dict, max_length=MAX_BIASES),
    ]

    @field_validator("stop", mode="before")
    @classmethod
    def _wrap_one_stop_string(cls, value: Any) -> Any:
        if isinstance(value, list):
            return [text for text in value if text is not None]
        return [value] if isinstance(value, str) else value

    def build(self, context: Context, max_tokens: int | None, **others: Any) -> SamplingParams:
        """Return the request's sampling parameters.

        Raises ``InvalidRequest`` if one is over its limit.
        """
        return context.build_sampling(
            max_tokens=max_tokens,
            capped=True,
            min_tokens=self.min_tokens,
            temperature=0.0 if self.top_p == 0 else self.temperature,
            top_p=self.top_p or None,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            seed=self.seed,
            stop=tuple(text for text in self.stop or () if text),
            stop_token_ids=tuple(self.stop_token_ids),
            logit_bias=tuple(self.logit_bias.items()),
            **others,
        )


class ChatRequest(Sampling):
    """Body of ``POST /v1/chat/completions``.

    ``chat_template_kwargs``, ``continue_final_message`` and ``mm_processor_kwargs`` come from
    vLLM's clients, ``reasoning`` from Moondream's client. ``recipe`` and ``raylens`` are our own.
    """

    model_config = ConfigDict(extra="allow")

    messages: Messages
    model: str | None = None
    max_tokens: MaxTokens = None
    max_completion_tokens: MaxTokens = None
    n: Annotated[Integer, Field(ge=1)] | None = None
    logprobs: Annotated[bool, Strict] | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None
    response_format: Any = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions = StreamOptions()
    recipe: RecipeField = None
    reasoning: bool | dict[str, Any] | None = None
    """True, or OpenRouter's object with ``effort`` or ``enabled``."""
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[Text, JsonValue] | None = None
    continue_final_message: bool = False
    mm_processor_kwargs: PictureOptions = PictureOptions()
    raylens: GroundingOptions | None = None

    @property
    def field_names(self) -> FieldNames:
        """The names of fields that the client has chosen."""
        return {"max_tokens": "max_completion_tokens"} if self.max_completion_tokens else {}

    @property
    def reasoning_field(self) -> str:
        """The field that asks for reasoning; ``model`` if none does."""
        if not self.reasons:
            return "model"
        return "reasoning_effort" if is_absent(self.reasoning) else "reasoning"

    @property
    def reasons(self) -> bool:
        """Whether the model should think before it answers."""
        asked = self.reasoning
        if isinstance(asked, dict):
            asked = is_effort(asked.get("effort")) and asked.get("enabled") is not False
        return is_effort(self.reasoning_effort or "none") if asked is None else asked

    def parse_tools(self) -> Tools | None:
        return parse_tools(self.tools, self.tool_choice, self.parallel_tool_calls)


def is_effort(effort: Any) -> bool:
    """Whether an effort asks for thoughts."""
    return effort not in ("none", "minimal")


def refuse_unsupported_parameters(body: ChatRequest) -> None:
    """Raise ``InvalidRequest`` for an unknown parameter, or an unsupported one with an effect."""
    refuse_extra_parameters(body.model_extra or {}, NEUTRAL_VALUES)


def refuse_extra_parameters(
    extra: dict[str, Any], neutral_values: dict[str, tuple[Any, ...]]
) -> None:
    """Raise ``InvalidRequest`` unless all of ``extra`` have one of their neutral values."""
    for name, value in extra.items():
        if name not in neutral_values:
            raise InvalidRequest(f"{name[:64]}: unknown parameter", name[:64])
        neutral = neutral_values[name]
        if not is_absent(value) and value not in neutral and ANY_VALUE not in neutral:
            raise InvalidRequest(f"{name}: not supported", name)


async def parse_messages(
    http: Request,
    messages: Sequence[ChatMessage],
    context: Context,
    field: str = "messages",
    rename: Callable[[str], str] = str,
) -> tuple[Chat, list[MediaFile]]:
    """Return the chat, and its pictures in the order of their appearance.

    ``field`` is the name of the messages in the request, and ``rename`` returns the sender's name
    of a picture. Raises ``InvalidRequest`` or
    ``PayloadTooLarge``, and what a download raises.
    """
    parsed, urls = read_messages(messages, field)
    context.check_text_length(sum(message.text_length for message in messages), field)
    urls = [url._replace(field=rename(url.field)) for url in urls]
    return Chat(parsed), await context.read_media(http, urls, field)


async def parse_chat(
    http: Request, body: ChatRequest, context: Context
) -> tuple[Chat, list[MediaFile]]:
    """Return the chat with its tools, and its pictures in the order of their appearance.

    Raises ``InvalidRequest`` or ``PayloadTooLarge``.
    """
    tools = body.parse_tools()
    context.check_prompt_text(tools, body.chat_template_kwargs)
    chat, pictures = await parse_messages(http, body.messages, context)
    if body.continue_final_message and not chat.continues_answer:
        raise InvalidRequest(
            "continue_final_message: expected the last message to be text of the assistant's",
            "continue_final_message",
        )
    if (body.model_extra or {}).get("add_generation_prompt") is False and not chat.continues_answer:
        raise InvalidRequest(
            "add_generation_prompt: expected the last message to be text of the assistant's, which"
            " the answer continues",
            "add_generation_prompt",
        )
    limits = body.mm_processor_kwargs
    has_limits = limits.min_pixels is not None or limits.max_pixels is not None
    chat = Chat(
        chat.messages,
        body.reasons,
        tools,
        PixelLimits(limits.min_pixels, limits.max_pixels) if has_limits else None,
        body.chat_template_kwargs or {},
    )
    return chat, pictures


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
        "response_format": parse_response_format(body.response_format) is not None,
        "tools": chat.tools is not None,
        "logprobs": body.logprobs,
        "reasoning": chat.reasoning,
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


def build_sampling(body: ChatRequest, chat: Chat, context: Context) -> SamplingParams:
    """Return the request's sampling parameters.

    Raises ``InvalidRequest`` if one is over its limit, or if two exclude each other.
    """
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("top_logprobs: expected logprobs to be true", "top_logprobs")
    json_schema = parse_response_format(body.response_format)
    check_reasoning(chat, json_schema)
    return body.build(
        context,
        body.max_completion_tokens or body.max_tokens,
        n=body.n or 1,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        json_schema=json_schema,
        tools=chat.tools,
    )


def check_reasoning(
    chat: Chat, json_schema: str | None, schema_field: str = "response_format"
) -> None:
    """Raise ``InvalidRequest`` if thoughts, which follow no grammar, would have to follow one."""
    if not chat.reasoning:
        return
    for field, is_in_use in ((schema_field, json_schema), ("tools", chat.tools)):
        if is_in_use:
            raise InvalidRequest(
                f"{field}: not supported together with reasoning, which follows no schema", field
            )
