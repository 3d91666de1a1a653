"""The OpenAI dialect: chat completions and models.

Format: OpenAI's API reference, "Chat" and "Models". :mod:`raylens.api.openai_request` reads the
requests.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from raylens.api import sse
from raylens.api.answers import EVENTS, answers
from raylens.api.answers import openai as shapes
from raylens.api.context import Context
from raylens.api.errors import error_event
from raylens.api.field_names import rename_fields
from raylens.api.grounding_json import findings_as_json, reasoning_as_json
from raylens.api.model_selection import select_model
from raylens.api.openai_json import logprob_as_json, new_call_id
from raylens.api.openai_request import (
    ChatRequest,
    build_sampling,
    parse_chat,
    parse_grounding_task,
    refuse_unsupported_parameters,
)
from raylens.core.errors import ModelFailed, RaylensError
from raylens.core.types import (
    Delta,
    Detect,
    Findings,
    Point,
    Task,
    TokenLogprob,
    ToolCallDelta,
    Usage,
    VisionRequest,
)

PATH = "/v1/chat/completions"


def router(context: Context) -> APIRouter:
    """Return the dialect's routes."""
    routes = APIRouter(tags=["OpenAI"])

    @routes.post(PATH, summary="Chat about pictures", **answers(shapes.ChatCompletion, EVENTS))
    async def chat_completions(body: ChatRequest, http: Request) -> Any:
        refuse_unsupported_parameters(body)
        chat, pictures = await parse_chat(http, body, context)
        grounding = parse_grounding_task(body, chat, context)
        task = grounding or chat
        sampling = build_sampling(body, chat, context)
        if grounding is not None or chat.reasoning:
            model = await select_model(context, body.model, "openai", task, body.reasoning_field)
        else:
            model = context.catalog.resolve(body.model, "openai")
        request = context.build_request(http, model, task, sampling, body.recipe, bool(body.stream))
        deltas = rename_fields(context.service.generate(request, pictures), body.field_names)
        reply = Reply(request, body)
        if body.stream:
            return await sse.stream(reply.events(deltas))
        # FastAPI's encoder takes too long over the log probabilities of a long answer.
        return JSONResponse(await reply.complete(deltas))

    @routes.head("/v1/models", include_in_schema=False)
    @routes.get("/v1/models", summary="List the served models", **answers(shapes.ModelList))
    async def list_models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [_model_as_json(context, name) for name in context.catalog.models],
        }

    @routes.get(
        "/v1/models/{name:path}",
        summary="Show a model by name or alias",
        **answers(shapes.Model),
    )
    async def get_model(name: str) -> dict[str, Any]:
        if not name:
            return await list_models()
        return _model_as_json(context, context.catalog.resolve(name, "openai"))

    return routes


@dataclass
class _Answer:
    """One of a reply's answers, collected from its deltas."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    findings: Findings | None = None

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.logprobs.extend(map(logprob_as_json, delta.logprobs))
        for call in delta.tool_calls:
            if call.name is not None:
                function = {"name": call.name, "arguments": ""}
                self.tool_calls.append(
                    {"id": new_call_id(), "type": "function", "function": function}
                )
            self.tool_calls[call.index]["function"]["arguments"] += call.arguments
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason.value
            self.findings = delta.findings

    def as_choice(self, task: Task, with_logprobs: bool) -> dict[str, Any]:
        content = self._content(task)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content,
            "refusal": None,
            **_reasoning_fields(self.findings),
        }
        if self.tool_calls:
            message |= {"content": content or None, "tool_calls": self.tool_calls}
        return {
            "message": message,
            "logprobs": {"content": self.logprobs, "refusal": None} if with_logprobs else None,
            "finish_reason": self.finish_reason,
        }

    def _content(self, task: Task) -> str:
        if isinstance(task, Detect | Point):
            return _findings_text(self.findings)
        return "".join(self.texts)


class Reply:
    """The reply to a request, built from its deltas: a completion, or a stream of chunks."""

    def __init__(self, request: VisionRequest, body: ChatRequest) -> None:
        self._n = request.sampling.n
        self._task = request.task
        self._must_call = request.tools is not None and bool(request.tools.required)
        self._with_logprobs = request.sampling.logprobs is not None
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": request.model,
        }
        options = body.stream_options
        self._continuous_usage = options.continuous_usage_stats
        self._include_usage = options.include_usage or options.continuous_usage_stats
        self._usages: dict[int, Usage] = {}
        """The latest usage of each answer."""

    async def complete(self, deltas: AsyncGenerator[Delta, None]) -> dict[str, Any]:
        """Return a ``chat.completion``, with the pictures' warnings in ``warnings``.

        Raises ``ModelFailed`` if an answer ends without a finish reason.
        """
        answers = [_Answer() for _ in range(self._n)]
        warnings: list[str] = []
        async with aclosing(deltas):
            async for delta in deltas:
                answers[delta.index].add(delta)
                warnings.extend(delta.warnings)
                self._note(delta)
        if any(answer.finish_reason is None for answer in answers):
            raise ModelFailed("the answer ended early")
        choices = [
            {"index": index, **answer.as_choice(self._task, self._with_logprobs)}
            for index, answer in enumerate(answers)
        ]
        completion = {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": self._total_usage(),
        }
        return {**completion, "warnings": warnings} if warnings else completion

    async def events(self, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[str, None]:
        """Yield ``chat.completion.chunk`` events, then the usage if requested, then ``[DONE]``.

        An error after the first event is an event of its own, and ends the stream.
        """
        begun: set[int] = set()
        finished: set[int] = set()
        async with aclosing(deltas):
            try:
                async for delta in deltas:
                    self._note(delta)
                    if delta.index not in begun:
                        role = {"role": "assistant", "content": None if self._must_call else ""}
                        yield self._chunk(delta.index, role, warnings=delta.warnings)
                        begun.add(delta.index)
                    if content := self._content(delta):
                        yield self._chunk(delta.index, content, logprobs=delta.logprobs)
                    for call in delta.tool_calls:
                        yield self._chunk(delta.index, {"tool_calls": [_call_as_json(call)]})
                    if delta.finish_reason is not None:
                        finished.add(delta.index)
                        reasoning = _reasoning_fields(delta.findings)
                        yield self._chunk(delta.index, reasoning, delta.finish_reason.value)
                if len(finished) < self._n:
                    raise ModelFailed("the answer ended early")
            except RaylensError as error:
                if not begun:
                    raise
                yield error_event(PATH, error)
                return
        if self._include_usage:
            yield sse.event(
                {
                    **self._head,
                    "object": "chat.completion.chunk",
                    "choices": [],
                    "usage": self._total_usage(),
                }
            )
        yield sse.event("[DONE]")

    def _note(self, delta: Delta) -> None:
        if delta.usage is not None:
            self._usages[delta.index] = delta.usage
        self._head["model"] = delta.model or self._head["model"]

    def _total_usage(self) -> dict[str, int]:
        """Return the usage of all answers. They share one prompt, which counts once."""
        usages = self._usages.values()
        prompt = max((usage.prompt_tokens for usage in usages), default=0)
        completion = sum(usage.completion_tokens for usage in usages)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def _content(self, delta: Delta) -> dict[str, Any]:
        """Return a chunk's content: the delta's text, or the findings of a complete answer.

        Empty if the delta has neither.
        """
        if isinstance(self._task, Detect | Point):
            return {"content": _findings_text(delta.findings)} if delta.finish_reason else {}
        return {"content": delta.text} if delta.text or delta.logprobs else {}

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        warnings: tuple[str, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> str:
        choice: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        if logprobs:
            content = [logprob_as_json(token) for token in logprobs]
            choice["logprobs"] = {"content": content, "refusal": None}
        chunk: dict[str, Any] = {
            **self._head,
            "object": "chat.completion.chunk",
            "choices": [choice],
        }
        if self._include_usage:
            chunk["usage"] = self._total_usage() if self._continuous_usage else None
        if warnings:
            chunk["warnings"] = warnings
        return sse.event(chunk)


def _findings_text(findings: Findings | None) -> str:
    return json.dumps(findings_as_json(findings), separators=(",", ":"))


def _reasoning_fields(findings: Findings | None) -> dict[str, Any]:
    """Return the reasoning as the fields of a message that Moondream's client reads."""
    if findings is None or findings.reasoning is None:
        return {}
    reasoning = reasoning_as_json(findings.reasoning)
    return {
        "reasoning": reasoning["text"],
        "reasoning_details": {"grounding": reasoning["grounding"]},
    }


def _call_as_json(call: ToolCallDelta) -> dict[str, Any]:
    """Return a piece of a tool call. The first one has the call's id and name."""
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": new_call_id(), "type": "function", "function": function}


def _model_as_json(context: Context, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "raylens",
        "aliases": context.catalog.aliases(name),
    }
