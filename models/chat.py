"""What families that are asked in chat templates share: tasks as messages, and users' text that
stays text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from transformers import GenerationConfig, PreTrainedTokenizerBase

from raylens.core.errors import InvalidRequest, UnsupportedTask
from raylens.core.types import (
    Caption,
    Chat,
    Detect,
    ImagePart,
    Length,
    Message,
    Point,
    Query,
    Role,
    Task,
    TextPart,
    VideoPart,
)

CAPTION_PROMPTS = {
    Length.SHORT: "Caption this image in one short sentence.",
    Length.NORMAL: "Describe this image.",
    Length.LONG: "Describe this image in detail.",
}


def messages_of(
    task: Task, image_count: int, can: frozenset[str], prompts: dict[str, str]
) -> tuple[Message, ...]:
    """A task as a conversation; ``prompts`` has the words for detect and point. Raises
    ``UnsupportedTask``."""
    if task.name not in can:
        raise UnsupportedTask(
            f"this model can't {task.name}; it can {', '.join(sorted(can))}", "model"
        )
    match task:
        case Chat(messages, reasoning=False):
            return messages
        case Chat() | Query(reasoning=True):
            raise UnsupportedTask("reasoning: this model has learned no such thing", "reasoning")
        case Caption(length):
            text = CAPTION_PROMPTS[length]
        case Query(question, spatial_refs=()):
            text = question
        case Query():
            raise UnsupportedTask(
                "spatial_refs: this model has learned no such thing", "spatial_refs"
            )
        case Detect(subject) | Point(subject):
            text = prompts[task.name].format(subject)
    pictures = tuple(ImagePart(index) for index in range(image_count))
    return (Message(Role.USER, (*pictures, TextPart(text))),)


def image_parts(messages: Sequence[Message]) -> list[ImagePart]:
    """The pictures in the order in which the messages show them. Raises ``UnsupportedTask`` for a
    video."""
    shown = visual_parts(messages)
    if any(isinstance(part, VideoPart) for part in shown):
        raise UnsupportedTask("messages: this model reads pictures, but no videos", "messages")
    return [part for part in shown if isinstance(part, ImagePart)]


def visual_parts(messages: Sequence[Message]) -> list[ImagePart | VideoPart]:
    """Pictures and videos in the order in which the messages show them."""
    return [
        part for message in messages for part in message.parts if not isinstance(part, TextPart)
    ]


class ChatText:
    """A checkpoint's chat template, and its control tokens, which a user's text can't speak."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, default_template: str | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._template = tokenizer.chat_template or default_template
        self._control_tokens = tuple(tokenizer.get_added_vocab())

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as text, up to where the model's answer begins."""
        turns = [
            {"role": message.role.value, "content": self._content(message)} for message in messages
        ]
        text: str = self._tokenizer.apply_chat_template(
            turns, chat_template=self._template, add_generation_prompt=True, tokenize=False
        )
        return text

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _content(self, message: Message) -> list[dict[str, str]]:
        """The template's parts. Texts that stand together are one: a control token could be spread
        over several."""
        content: list[dict[str, str]] = []
        for kind, parts in groupby(message.parts, key=type):
            if kind is TextPart:
                text = "".join(part.text for part in parts if isinstance(part, TextPart))
                content.append(
                    {"type": "text", "text": no_control_tokens(text, self._control_tokens)}
                )
            else:
                content += [{"type": "video" if kind is VideoPart else "image"} for _ in parts]
        return content


def no_control_tokens(text: str, control_tokens: Iterable[str]) -> str:
    """A user's text in which none is spoken: a space goes behind the first character of each."""
    for token in control_tokens:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


_PROMPT_FIELDS = {Chat.name: "messages", Query.name: "question", Caption.name: "image_url"}
"""What a request calls most of its prompt; a detect or point, its ``object``."""


def check_length(task: Task, tokens: int, max_length: int) -> None:
    """Raises ``InvalidRequest`` where a prompt leaves no room for an answer."""
    if tokens >= max_length:
        field = _PROMPT_FIELDS.get(task.name, "object")
        raise InvalidRequest(
            f"{field}: the prompt takes {tokens} tokens or more, pictures included; the model's context is"
            f" {max_length}",
            field,
            max_length,
            tokens,
        )


def eos_ids(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig) -> frozenset[int]:
    listed = generation.eos_token_id
    ids = listed if isinstance(listed, list) else [listed]
    return frozenset(int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None)


def picture_key(pixels: NDArray[np.uint8], *policy: object) -> bytes:
    """Digest of a picture and of how it is cut."""
    digest = hashlib.blake2b(repr((pixels.shape, policy)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def picture_part(key: bytes, number: int) -> bytes:
    """The key of one of a picture's parts."""
    return hashlib.blake2b(key + number.to_bytes(4, "big"), digest_size=16).digest()
