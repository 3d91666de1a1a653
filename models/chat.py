"""What the families with a chat template share: turning tasks into messages, and keeping control
tokens out of users' text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from jinja2 import Environment, meta
from numpy.typing import NDArray
from transformers import GenerationConfig, PreTrainedTokenizerBase

from raylens.core.errors import InvalidRequest, UnsupportedTask
from raylens.core.types import (
    Caption,
    Chat,
    Completion,
    Detect,
    ImagePart,
    Length,
    Message,
    Point,
    Query,
    Role,
    Task,
    TextPart,
    ToolCall,
    Tools,
    VideoPart,
    VisionRequest,
)
from raylens.engine.tool_calls import CLOSING, OPENING, ToolCallStyle

CAPTION_PROMPTS = {
    Length.SHORT: "Caption this image in one short sentence.",
    Length.NORMAL: "Describe this image.",
    Length.LONG: "Describe this image in detail.",
}


def task_messages(
    task: Task, image_count: int, supported: frozenset[str], prompts: Mapping[str, str]
) -> tuple[Message, ...]:
    """Return a task as a conversation.

    ``supported`` holds the names of the tasks that the model supports, and ``prompts`` the
    templates for detect and point, with ``{}`` for the subject. Raises ``UnsupportedTask``.
    """
    if task.name not in supported:
        raise UnsupportedTask(
            f"model: {task.name} is not supported; this model supports"
            f" {', '.join(sorted(supported))}",
            "model",
        )
    match task:
        case Chat(messages, reasoning=False):
            return messages
        case Chat() | Query(reasoning=True):
            raise UnsupportedTask("reasoning: not supported by this model", "reasoning")
        case Caption(length):
            text = CAPTION_PROMPTS[length]
        case Query(question, spatial_refs=()):
            text = question
        case Query():
            raise UnsupportedTask("spatial_refs: not supported by this model", "spatial_refs")
        case Completion():
            raise UnsupportedTask("model: this model's runtime can't continue a text", "model")
        case Detect(subject) | Point(subject):
            text = prompts[task.name].format(subject)
    pictures = tuple(ImagePart(index) for index in range(image_count))
    return (Message(Role.USER, (*pictures, TextPart(text))),)


def image_parts(messages: Sequence[Message]) -> list[ImagePart]:
    """Return the pictures in message order. Raises ``UnsupportedTask`` if there is a video."""
    parts = visual_parts(messages)
    if any(isinstance(part, VideoPart) for part in parts):
        raise UnsupportedTask("messages: this model reads pictures, but no videos", "messages")
    return [part for part in parts if isinstance(part, ImagePart)]


def visual_parts(messages: Sequence[Message]) -> list[ImagePart | VideoPart]:
    """Return the pictures and videos in message order."""
    return [
        part for message in messages for part in message.parts if not isinstance(part, TextPart)
    ]


MAX_ARGUMENT_DEPTH = 100
_STANDARD_VARIABLES = frozenset(
    {"add_generation_prompt", "documents", "messages", "raise_exception", "strftime_now", "tools"}
)
"""Variables of chat templates that ``apply_chat_template`` sets."""


class ChatText:
    """A checkpoint's tokenizer and chat template, which treat users' text as plain text."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        default_template: str | None = None,
        template: str | None = None,
        placeholders: Iterable[str] = (),
    ) -> None:
        """``template`` stands in for the checkpoint's, and ``default_template`` for a missing one.

        ``placeholders`` are further texts that take effect in rendered text.
        """
        self._tokenizer = tokenizer
        self._template = str(template or tokenizer.chat_template or default_template)
        self._control_tokens = (*tokenizer.get_added_vocab(), *placeholders)
        variables = meta.find_undeclared_variables(Environment().parse(self._template))
        self._knows_tools = "tools" in variables
        self._knows_results = "tool" in self._template
        self._own_variables = variables - _STANDARD_VARIABLES - set(tokenizer.special_tokens_map)

    def render(self, messages: Sequence[Message], request: VisionRequest | None = None) -> str:
        """Return the conversation as text that ends where the model's answer begins, or goes on.

        A template that doesn't know tools doesn't list those of the request.
        """
        continues = messages[-1].is_unfinished_answer
        task = None if request is None else request.task
        tools = None if request is None else request.tools
        given = task.template_variables if isinstance(task, Chat) else {}
        text: str = self._tokenizer.apply_chat_template(
            [self._turn(message) for message in messages],
            tools=self._definitions(tools) if tools is not None and self._knows_tools else None,
            chat_template=self._template,
            add_generation_prompt=not continues,
            continue_final_message=continues,
            tokenize=False,
            **{name: value for name, value in given.items() if name in self._own_variables},
        )
        return text

    def encode_completion(self, text: str, placeholders: Iterable[str]) -> list[int]:
        """Return the token ids of a text to continue; control tokens in it take effect.

        ``placeholders`` are the tokens that stand for pictures, which a text doesn't have.
        """
        ids: list[int] = self._tokenizer.encode(break_control_tokens(text, placeholders))
        start = self._tokenizer.bos_token_id
        return ids or [self._tokenizer.eos_token_id if start is None else start]

    def tool_call_style(self, tools: Tools | None) -> ToolCallStyle:
        """Return how an answer writes its calls."""
        return tool_call_style(tools, self._knows_tools)

    def _definitions(self, tools: Tools) -> list[dict[str, Any]]:
        return [
            json.loads(break_control_tokens(tool.definition, self._control_tokens))
            for tool in tools.functions
        ]

    def _turn(self, message: Message) -> dict[str, Any]:
        """Return a message as the template takes it."""
        role = message.role
        if role is Role.TOOL and not self._knows_results:
            role = Role.USER
        calls = [
            break_control_tokens(call_text(call), self._control_tokens)
            for call in message.tool_calls
        ]
        content = self._content(message)
        if not self._knows_tools:
            content += [{"type": "text", "text": _tagged(call)} for call in calls]
            calls = []
        if not content and not calls:
            content = [{"type": "text", "text": ""}]
        turn: dict[str, Any] = {"role": role.value, "content": content}
        if calls:
            functions = map(json.loads, calls)
            turn["tool_calls"] = [{"type": "function", "function": call} for call in functions]
        return turn

    def encode(self, text: str) -> list[int]:
        """Return the token ids of rendered text; control tokens in it take effect."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _content(self, message: Message) -> list[dict[str, str]]:
        """Return the message's parts as the template takes them.

        Consecutive texts are joined first, because a control token could be split across them.
        """
        content: list[dict[str, str]] = []
        for part_type, parts in groupby(message.parts, key=type):
            if part_type is TextPart:
                text = "".join(part.text for part in parts if isinstance(part, TextPart))
                text = break_control_tokens(text, self._control_tokens)
                content.append({"type": "text", "text": text})
            else:
                name = "video" if part_type is VideoPart else "image"
                content += [{"type": name} for _ in parts]
        return content


def tool_call_style(tools: Tools | None, knows_tools: bool) -> ToolCallStyle:
    """Return how an answer writes its calls.

    A model that doesn't know tools doesn't know the envelope of a call, and is spared it if there
    is only one function to call.
    """
    is_named = tools is not None and len(tools.required) == 1
    return ToolCallStyle.ARGUMENTS if is_named and not knows_tools else ToolCallStyle.TAGGED


def call_text(call: ToolCall) -> str:
    """Return a call as a JSON object of its name and its arguments.

    Arguments that no template could write are a text, such as those of an answer that was cut off.
    """
    try:
        arguments = json.loads(call.arguments)
        json.dumps(arguments, ensure_ascii=False).encode()
        _check_depth(arguments)
    except (ValueError, RecursionError):
        arguments = call.arguments
    return json.dumps({"name": call.name, "arguments": arguments}, ensure_ascii=False)


def _check_depth(value: Any, levels: int = MAX_ARGUMENT_DEPTH) -> None:
    """Raise ``ValueError`` if a JSON value is nested too deep for a template's recursion."""
    if levels == 0:
        raise ValueError("nested too deep")
    members = value.values() if isinstance(value, dict) else value
    for member in members if isinstance(value, dict | list) else ():
        _check_depth(member, levels - 1)


def _tagged(call: str) -> str:
    return f"{OPENING}\n{call}\n{CLOSING}"


def message_text(message: Message) -> str:
    """Return the text of a message, with the calls in it."""
    texts = [part.text for part in message.parts if isinstance(part, TextPart)]
    return "".join([*texts, *(_tagged(call_text(call)) for call in message.tool_calls)])


def refuse_pixel_limits(task: Task) -> None:
    """Raise ``UnsupportedTask`` if a request bounds the size of pictures.

    For families whose pictures have sizes of their own.
    """
    if isinstance(task, Chat) and task.pixel_limits is not None:
        raise UnsupportedTask(
            "mm_processor_kwargs: min_pixels and max_pixels are not supported by this model",
            "mm_processor_kwargs",
        )


def break_control_tokens(text: str, control_tokens: Iterable[str]) -> str:
    """Break up the control tokens in a user's text, by a space after each one's first character."""
    for token in control_tokens:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def check_prompt_length(task: Task, num_tokens: int, max_length: int) -> None:
    """Raise ``InvalidRequest`` if a prompt leaves no room for an answer."""
    if num_tokens >= max_length:
        field = task.prompt_field
        raise InvalidRequest(
            f"{field}: the prompt takes {num_tokens} tokens or more, pictures included;"
            f" the model's context is {max_length}",
            field,
            max_length,
            num_tokens,
        )


def read_eos_ids(
    tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig
) -> frozenset[int]:
    """Return the ids of the tokens that end an answer."""
    configured = generation.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None)


def picture_key(pixels: NDArray[np.uint8], *policy: object) -> bytes:
    """Return a digest of a picture and of the ``policy`` by which it is preprocessed."""
    digest = hashlib.blake2b(repr((pixels.shape, policy)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def part_key(key: bytes, number: int) -> bytes:
    """Return the key of a part of a picture."""
    return hashlib.blake2b(key + number.to_bytes(4, "big"), digest_size=16).digest()
