"""The OpenAI dialect: chat completions and models.

Format: OpenAI's API reference, "Chat" and "Models"; :mod:`raylens.api.openai_request` reads what is
sent.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from raylens.api import sse
from raylens.api.context import Context
from raylens.api.errors import body_of
from raylens.api.grounding_json import findings_as_json, reasoning_as_json
from raylens.api.model_selection import select_model
from raylens.api.openai_request import (
    ChatRequest,
    parse_messages,
    places_wanted,
    refuse_what_is_not_supported,
    sampling,
)
from raylens.core.errors import ModelFailed, RaylensError
from raylens.core.types import (
    Delta,
    Detect,
    Findings,
    Point,
    Task,
    TokenLogprob,
    Usage,
    VisionRequest,
)

logger = logging.getLogger(__name__)

PATH = "/v1/chat/completions"
_UNLIKELY = -9999.0
"""The least log probability that OpenAI tells; JSON has no infinity."""


def router(context: Context) -> APIRouter:
    """The dialect's routes."""
    routes = APIRouter(tags=["OpenAI"])

    @routes.post(PATH, summary="Chat about pictures")
    async def chat_completions(body: ChatRequest, http: Request) -> Any:
        refuse_what_is_not_supported(body)
        chat, pictures = await parse_messages(body, context)
        located = places_wanted(body, chat, context)
        task, chosen = located or chat, sampling(body, context)
        if located is not None or chat.reasoning:
            model = await select_model(context, body.model, "openai", task)
        else:
            model = context.catalog.resolve(body.model, "openai")
        request = context.request(http, model, task, chosen, body.recipe, bool(body.stream))
        reply = Reply(request, body)
        if body.stream:
            return await sse.stream(reply.events(context.service.generate(request, pictures)))
        # Not through FastAPI's encoder: it takes too long over the log probabilities of a long
        # answer.
        return JSONResponse(await reply.whole(context.service.generate(request, pictures)))

    @routes.get("/v1/models", summary="The models that are served")
    async def list_models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [_model(context, name) for name in context.catalog.models],
        }

    @routes.get("/v1/models/{name:path}", summary="One model, by name or alias")
    async def get_model(name: str) -> dict[str, Any]:
        if not name:
            return await list_models()
        return _model(context, context.catalog.resolve(name, "openai"))

    return routes


@dataclass
class _Answer:
    """One of a whole reply's answers, as its deltas come."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None
    findings: Findings | None = None

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.logprobs.extend(map(_logprob, delta.logprobs))
        if delta.finish_reason is not None:
            self.reason, self.findings = delta.finish_reason.value, delta.findings

    def choice(self, task: Task, with_logprobs: bool) -> dict[str, Any]:
        return {
            "message": {
                "role": "assistant",
                "content": self._content(task),
                "refusal": None,
                **_thoughts(self.findings),
            },
            "logprobs": {"content": self.logprobs, "refusal": None} if with_logprobs else None,
            "finish_reason": self.reason,
        }

    def _content(self, task: Task) -> str:
        return _places(self.findings) if isinstance(task, Detect | Point) else "".join(self.texts)


class Reply:
    """Deltas to one answer, whole or as chunks."""

    def __init__(self, request: VisionRequest, body: ChatRequest) -> None:
        self._n = request.sampling.n
        self._task = request.task
        self._logprobs = request.sampling.logprobs is not None
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": request.model,
        }
        self._include_usage = body.stream_options is not None and body.stream_options.include_usage

    async def whole(self, deltas: AsyncGenerator[Delta, None]) -> dict[str, Any]:
        """A ``chat.completion``; the pictures' warnings stand in ``warnings``."""
        answers = [_Answer() for _ in range(self._n)]
        usages: list[Usage] = []
        warnings: list[str] = []
        async with aclosing(deltas):
            async for delta in deltas:
                answers[delta.index].add(delta)
                warnings.extend(delta.warnings)
                if delta.usage is not None:
                    usages.append(delta.usage)
        if any(answer.reason is None for answer in answers):
            raise ModelFailed("the answer ended early")
        choices = [
            {"index": index, **answer.choice(self._task, self._logprobs)}
            for index, answer in enumerate(answers)
        ]
        reply = {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": _usage(usages),
        }
        return {**reply, "warnings": warnings} if warnings else reply

    async def events(self, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[str, None]:
        """``chat.completion.chunk`` events; an error after the first one is an event of its own."""
        begun: set[int] = set()
        usages: list[Usage] = []
        async with aclosing(deltas):
            try:
                async for delta in deltas:
                    if delta.index not in begun:
                        yield self._chunk(
                            delta.index,
                            {"role": "assistant", "content": ""},
                            warnings=delta.warnings,
                        )
                        begun.add(delta.index)
                    if content := self._content(delta):
                        yield self._chunk(delta.index, content, logprobs=delta.logprobs)
                    if delta.finish_reason is not None:
                        yield self._chunk(
                            delta.index, _thoughts(delta.findings), delta.finish_reason.value
                        )
                    if delta.usage is not None:
                        usages.append(delta.usage)
            except RaylensError as error:
                if not begun:
                    raise
                logger.warning("%s, after the stream began: %s", error.code, error.message)
                yield sse.event(body_of(PATH, error))
                return
        if self._include_usage:
            yield sse.event(
                {
                    **self._head,
                    "object": "chat.completion.chunk",
                    "choices": [],
                    "usage": _usage(usages),
                }
            )
        yield sse.event("[DONE]")

    def _content(self, delta: Delta) -> dict[str, Any]:
        """What a chunk says of an answer: its text, or, once it is complete, the places that it
        found."""
        if isinstance(self._task, Detect | Point):
            return {"content": _places(delta.findings)} if delta.finish_reason else {}
        return {"content": delta.text} if delta.text or delta.logprobs else {}

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        reason: str | None = None,
        warnings: tuple[str, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> str:
        told = (
            {"content": [_logprob(token) for token in logprobs], "refusal": None}
            if logprobs
            else None
        )
        choice = {"index": index, "delta": delta, "logprobs": told, "finish_reason": reason}
        chunk: dict[str, Any] = {
            **self._head,
            "object": "chat.completion.chunk",
            "choices": [choice],
        }
        if self._include_usage:
            chunk["usage"] = None
        if warnings:
            chunk["warnings"] = warnings
        return sse.event(chunk)


def _places(findings: Findings | None) -> str:
    return json.dumps(findings_as_json(findings), separators=(",", ":"))


def _thoughts(findings: Findings | None) -> dict[str, Any]:
    """As Moondream's client reads them from a message."""
    if findings is None or findings.reasoning is None:
        return {}
    reasoning = reasoning_as_json(findings.reasoning)
    return {
        "reasoning": reasoning["text"],
        "reasoning_details": {"grounding": reasoning["grounding"]},
    }


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    return {**_token(token), "top_logprobs": [_token(other) for other in token.top]}


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": max(_UNLIKELY, token.logprob),
        "bytes": list(token.data),
    }


def _usage(usages: list[Usage]) -> dict[str, int]:
    """The prompt counts once for all of its answers."""
    prompt = max((usage.prompt_tokens for usage in usages), default=0)
    completion = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _model(context: Context, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "raylens",
        "aliases": context.catalog.aliases(name),
    }
