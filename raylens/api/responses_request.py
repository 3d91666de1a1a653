"""The request of OpenAI's Responses API, without state: every request has the whole conversation.

Format: OpenAI's API reference, "Responses".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import ConfigDict, Field

from raylens.api.body import RecipeField
from raylens.api.context import Context
from raylens.api.openai_request import (
    ANY_VALUE,
    NEUTRAL_VALUES,
    Integer,
    MaxTokens,
    Sampling,
    check_reasoning,
    is_effort,
    parse_messages,
    refuse_extra_parameters,
)
from raylens.api.openai_tools import parse_tools
from raylens.api.response_format import parse_response_format
from raylens.api.responses_input import RecentItems, name_of_output, read_input
from raylens.core.errors import InvalidRequest
from raylens.core.types import Chat, MediaFile, Message, Role, SamplingParams, TextPart
from raylens.core.wire import JsonValue, LenientBody, Text

MAX_INCLUDES = 64
LOGPROBS = "message.output_text.logprobs"
"""The entry of ``include`` that asks for log probabilities."""
FIELD_NAMES = {
    "messages": "input",
    "response_format": "text.format",
}
"""As :data:`raylens.api.field_names.FieldNames`."""
_NEUTRAL = {
    **NEUTRAL_VALUES,
    "background": (False,),
    "context_management": (),
    "conversation": (),
    "max_tool_calls": (ANY_VALUE,),
    "moderation": (),
    "prompt": (),
    "stream_options": (ANY_VALUE,),
    "truncation": ("disabled", "auto"),
}


class TextOptions(LenientBody):
    format: JsonValue = None
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(LenientBody):
    effort: str | None = None


class ResponsesRequest(Sampling):
    """Body of ``POST /v1/responses``. ``recipe`` is our own."""

    model_config = ConfigDict(extra="allow")

    input: Any
    """A text, or a list of items; :func:`read_input` reads it."""
    model: str | None = None
    instructions: Text = ""
    max_output_tokens: MaxTokens = None
    text: TextOptions = TextOptions()
    tools: JsonValue = None
    tool_choice: JsonValue = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions = ReasoningOptions()
    include: Annotated[list[str], Field(default_factory=list, max_length=MAX_INCLUDES)]
    top_logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None
    metadata: JsonValue = None
    store: bool | None = None
    previous_response_id: str | None = None
    stream: bool | None = None
    recipe: RecipeField = None

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in self.include or bool(self.top_logprobs)


def refuse_unsupported_parameters(body: ResponsesRequest) -> None:
    """Raise ``InvalidRequest`` for state, and for parameters that are unknown or unsupported."""
    for field, is_in_use in (
        ("store", body.store),
        ("previous_response_id", body.previous_response_id),
    ):
        if is_in_use:
            raise InvalidRequest(
                f"{field}: not supported; responses are not stored, so send the whole"
                " conversation as input",
                field,
            )
    refuse_extra_parameters(body.model_extra or {}, _NEUTRAL)


async def parse_chat(
    http: Request, body: ResponsesRequest, context: Context, recent: RecentItems
) -> tuple[Chat, list[MediaFile]]:
    """Return the conversation with its tools, and its pictures in the order of their appearance.

    Raises ``InvalidRequest`` or ``PayloadTooLarge``.
    """
    tools = parse_tools(body.tools, body.tool_choice, body.parallel_tool_calls)
    context.check_prompt_text(tools)
    messages = read_input(body.input, recent)
    rename = partial(name_of_output, body.input)
    chat, pictures = await parse_messages(http, messages, context, "input", rename)
    context.check_text_length(len(body.instructions), "instructions")
    turns = _join_turns(chat.messages)
    if body.instructions:
        turns = (Message(Role.SYSTEM, (TextPart(body.instructions),)), *turns)
    if not turns:
        raise InvalidRequest("input: expected at least one message", "input")
    return Chat(turns, is_effort(body.reasoning.effort or "none"), tools), pictures


def _join_turns(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Join the items of one turn of the assistant's: its text and its calls."""
    joined: list[Message] = []
    for message in messages:
        if message.role is not Role.ASSISTANT:
            joined.append(message)
        elif joined and joined[-1].role is Role.ASSISTANT:
            last = joined[-1]
            joined[-1] = replace(
                last,
                parts=last.parts + message.parts,
                tool_calls=last.tool_calls + message.tool_calls,
            )
        elif message.parts or message.tool_calls:
            joined.append(message)
    return tuple(joined)


def build_sampling(body: ResponsesRequest, chat: Chat, context: Context) -> SamplingParams:
    """Return the request's sampling parameters.

    Raises ``InvalidRequest`` if one is over its limit, or if two exclude each other.
    """
    json_schema = parse_response_format(body.text.format, "text.format")
    check_reasoning(chat, json_schema, "text.format")
    return body.build(
        context,
        body.max_output_tokens,
        logprobs=(body.top_logprobs or 0) if body.wants_logprobs else None,
        json_schema=json_schema,
        schema_field="text.format",
        tools=chat.tools,
    )
