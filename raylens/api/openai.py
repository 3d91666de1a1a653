"""The OpenAI dialect: chat completions and models.

Format: OpenAI's API reference, "Chat" and "Models". What is not supported is refused with a 400 that names it.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field, field_validator

from raylens.api import sse
from raylens.api.body import Body, RecipeField, Text
from raylens.api.context import Context
from raylens.api.errors import body_of
from raylens.errors import InvalidRequest, ModelFailed, RaylensError
from raylens.types import (
    Chat,
    Delta,
    Detail,
    ImagePart,
    Message,
    PictureFile,
    Role,
    SamplingParams,
    TextPart,
    Usage,
    VisionRequest,
)

logger = logging.getLogger(__name__)

PATH = "/v1/chat/completions"
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning": (False,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Parameters that are not supported, with the values that ask for nothing; null always does."""
_ROLES = {"system": Role.SYSTEM, "developer": Role.SYSTEM, "user": Role.USER, "assistant": Role.ASSISTANT}


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


ChatPart = Annotated[ChatText | ChatImage, Field(discriminator="type")]


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[ChatPart], Field(min_length=1)]
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


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(Body):
    """The request of ``POST /v1/chat/completions``."""

    model_config = ConfigDict(extra="allow")

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, strict=True)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    n: Annotated[int, Field(ge=1, strict=True)] | None = None
    stop: list[Text] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63, strict=True)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    recipe: RecipeField = None
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


def router(context: Context) -> APIRouter:
    """The dialect's routes."""
    routes = APIRouter(tags=["OpenAI"])

    @routes.post(PATH, summary="Chat about pictures")
    async def chat_completions(body: ChatRequest, http: Request) -> Any:
        _refuse_what_is_not_supported(body)
        model = context.catalog.resolve(body.model, "openai")
        task, pictures = await _parse_messages(body, context)
        request = context.request(http, model, task, _sampling(body, context), body.recipe)
        reply = Reply(request, body)
        if body.stream:
            return await sse.stream(reply.events(context.service.generate(request, pictures)))
        return await reply.whole(context.service.generate(request, pictures))

    @routes.get("/v1/models", summary="The models that are served")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(context, name) for name in context.catalog.models]}

    @routes.get("/v1/models/{name:path}", summary="One model, by name or alias")
    async def get_model(name: str) -> dict[str, Any]:
        if not name:
            return await list_models()
        return _model(context, context.catalog.resolve(name, "openai"))

    return routes


class Reply:
    """Deltas to one answer, whole or as chunks."""

    def __init__(self, request: VisionRequest, body: ChatRequest) -> None:
        self._n = request.sampling.n
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": request.model,
        }
        self._include_usage = body.stream_options is not None and body.stream_options.include_usage

    async def whole(self, deltas: AsyncGenerator[Delta, None]) -> dict[str, Any]:
        """A ``chat.completion``; the pictures' warnings stand in ``warnings``."""
        texts: list[list[str]] = [[] for _ in range(self._n)]
        reasons: list[str | None] = [None] * self._n
        usages: list[Usage] = []
        warnings: list[str] = []
        async with aclosing(deltas):
            async for delta in deltas:
                texts[delta.index].append(delta.text)
                warnings.extend(delta.warnings)
                if delta.finish_reason is not None:
                    reasons[delta.index] = delta.finish_reason.value
                if delta.usage is not None:
                    usages.append(delta.usage)
        if None in reasons:
            raise ModelFailed("the answer ended early")
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(text), "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        reply = {**self._head, "object": "chat.completion", "choices": choices, "usage": _usage(usages)}
        return {**reply, "warnings": warnings} if warnings else reply

    async def events(self, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[str, None]:
        """``chat.completion.chunk`` events; an error after the first one is an event of its own."""
        begun: set[int] = set()
        usages: list[Usage] = []
        async with aclosing(deltas):
            try:
                async for delta in deltas:
                    if delta.index not in begun:
                        yield self._chunk(delta.index, {"role": "assistant", "content": ""}, warnings=delta.warnings)
                        begun.add(delta.index)
                    if delta.text:
                        yield self._chunk(delta.index, {"content": delta.text})
                    if delta.finish_reason is not None:
                        yield self._chunk(delta.index, {}, delta.finish_reason.value)
                    if delta.usage is not None:
                        usages.append(delta.usage)
            except RaylensError as error:
                if not begun:
                    raise
                logger.warning("%s, after the stream began: %s", error.code, error.message)
                yield sse.event(body_of(PATH, error))
                return
        if self._include_usage:
            yield sse.event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(usages)})
        yield sse.event("[DONE]")

    def _chunk(
        self, index: int, delta: dict[str, str], reason: str | None = None, warnings: tuple[str, ...] = ()
    ) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        chunk: dict[str, Any] = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        if self._include_usage:
            chunk["usage"] = None
        if warnings:
            chunk["warnings"] = warnings
        return sse.event(chunk)


def _refuse_what_is_not_supported(body: ChatRequest) -> None:
    """Raises ``InvalidRequest`` for a parameter that is unknown, or that asks for something that can't be had."""
    for name, value in (body.model_extra or {}).items():
        if name not in _NEUTRAL:
            raise InvalidRequest(f"{name[:64]}: no such parameter", name[:64])
        if value is not None and value not in _NEUTRAL[name]:
            raise InvalidRequest(f"{name}: not supported", name)


async def _parse_messages(body: ChatRequest, context: Context) -> tuple[Chat, list[PictureFile]]:
    """The chat, and its pictures in the order of their appearance."""
    messages: list[Message] = []
    waiting: list[tuple[str, str]] = []
    for number, message in enumerate(body.messages):
        parts: list[TextPart | ImagePart] = []
        for place, part in enumerate(message.content):
            if isinstance(part, ChatText):
                parts.append(TextPart(part.text))
                continue
            field = f"messages.{number}.content.{place}.image_url.url"
            parts.append(ImagePart(len(waiting), part.image_url.detail))
            waiting.append((part.image_url.url, field))
        messages.append(Message(_ROLES[message.role], tuple(parts)))
    if messages[-1].role is not Role.USER:
        raise InvalidRequest("messages: the last one should be the user's", "messages")
    context.media.check_count(len(waiting), "messages")
    texts = (part.text for message in messages for part in message.parts if isinstance(part, TextPart))
    context.check_text(sum(map(len, texts)), "messages")
    pictures = await asyncio.gather(*(context.media.from_url(url, field) for url, field in waiting))
    return Chat(tuple(messages)), list(pictures)


def _sampling(body: ChatRequest, context: Context) -> SamplingParams:
    return context.sampling(
        max_tokens=body.max_completion_tokens or body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=body.seed,
        stop=tuple(text for text in body.stop or () if text),
        n=body.n or 1,
    )


def _usage(usages: list[Usage]) -> dict[str, int]:
    """The prompt counts once for all of its answers."""
    prompt = max((usage.prompt_tokens for usage in usages), default=0)
    completion = sum(usage.completion_tokens for usage in usages)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _model(context: Context, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "raylens",
        "aliases": context.catalog.aliases(name),
    }
