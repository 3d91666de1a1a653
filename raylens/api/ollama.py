"""Ollama's API, which many tools speak and nothing else: chats and completions.

Format: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from raylens.api import sse
from raylens.api.answers import answers
from raylens.api.answers import ollama as shapes
from raylens.api.context import Context
from raylens.api.field_names import rename_fields
from raylens.api.model_selection import select_model
from raylens.api.ollama_models import resolve
from raylens.api.ollama_request import (
    ChatRequest,
    GenerateRequest,
    OllamaRequest,
    generate_messages,
    parse_body,
    parse_chat,
)
from raylens.api.picture_body import describe_json
from raylens.core.errors import InvalidRequest, ModelFailed, RaylensError
from raylens.core.types import (
    Chat,
    Completion,
    Delta,
    FinishReason,
    MediaFile,
    ToolCallDelta,
    Usage,
    VisionRequest,
)

logger = logging.getLogger(__name__)

CHAT_PATH = "/api/chat"
GENERATE_PATH = "/api/generate"
MEDIA_TYPE = "application/x-ndjson"


def router(context: Context) -> APIRouter:
    """Return the routes that answer prompts."""
    routes = APIRouter(tags=["Ollama"])

    @routes.post(
        CHAT_PATH,
        summary="Chat about pictures, as with Ollama",
        openapi_extra=describe_json(ChatRequest),
        **answers(shapes.ChatAnswer, MEDIA_TYPE),
    )
    async def chat(http: Request) -> Response:
        body = parse_body(await http.body(), ChatRequest)
        model = resolve(context, body.model)
        if not body.messages:
            return _loaded(model, {"message": {"role": "assistant", "content": ""}})
        tools = body.parse_tools()
        context.check_prompt_text(tools)
        task, pictures = await parse_chat(http, body.messages, context, body, tools)
        return await _answer(context, http, body, model, task, pictures)

    @routes.post(
        GENERATE_PATH,
        summary="Answer a prompt, as with Ollama",
        openapi_extra=describe_json(GenerateRequest),
        **answers(shapes.GenerateAnswer, MEDIA_TYPE),
    )
    async def generate(http: Request) -> Response:
        body = parse_body(await http.body(), GenerateRequest)
        if body.suffix:
            raise InvalidRequest("suffix: not supported", "suffix")
        model = resolve(context, body.model)
        if not body.prompt and not body.images:
            return _loaded(model, {"response": ""})
        if body.raw:
            for field, is_in_use in (("images", body.images), ("think", body.reasons)):
                if is_in_use:
                    raise InvalidRequest(f"{field}: not supported together with raw", field)
            context.check_text_length(len(body.prompt), "prompt")
            completion = Completion(body.prompt)
            return await _answer(context, http, body, model, completion, [])
        task, pictures = await parse_chat(http, generate_messages(body), context, body)
        return await _answer(context, http, body, model, task, pictures)

    return routes


async def _answer(
    context: Context,
    http: Request,
    body: OllamaRequest,
    model: str,
    task: Chat | Completion,
    pictures: Sequence[MediaFile],
) -> Response:
    tools = task.tools if isinstance(task, Chat) else None
    if body.reasons:
        model = await select_model(context, model, "openai", task, "think")
    sampling = body.build_sampling(context, tools)
    request = context.build_request(http, model, task, sampling, None, body.stream)
    reply = Reply(request, body.model or model, is_chat=isinstance(body, ChatRequest))
    deltas = rename_fields(context.service.generate(request, list(pictures)), body.field_names)
    if body.stream:
        return await sse.stream(reply.lines(deltas), MEDIA_TYPE)
    return JSONResponse(await reply.complete(deltas))


def _loaded(model: str, content: dict[str, Any]) -> Response:
    """Return the answer to a request without a prompt, by which clients load a model."""
    return JSONResponse(
        {"model": model, "created_at": _now(), **content, "done": True, "done_reason": "load"}
    )


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@dataclass
class _Call:
    """A tool call that may lack the end of its arguments."""

    name: str
    arguments: str = ""

    def as_json(self) -> dict[str, Any]:
        try:
            arguments = json.loads(self.arguments)
        except ValueError:
            arguments = {}  # of an answer that was cut off
        return {"function": {"name": self.name, "arguments": arguments}}


class Reply:
    """The reply to a request, as a whole or as a stream of lines. Each line is a JSON object."""

    def __init__(self, request: VisionRequest, model: str, is_chat: bool) -> None:
        self._model = model
        self._is_chat = is_chat
        self._started_at = time.perf_counter()
        self._first_delta_at: float | None = None
        self._usage = Usage(0, 0)
        self._finish_reason: FinishReason | None = None
        self._thinking = ""
        self._warnings: list[str] = []
        self._call: _Call | None = None
        """The call whose arguments are coming."""

    async def complete(self, deltas: AsyncGenerator[Delta, None]) -> dict[str, Any]:
        """Return the whole answer. Raises ``ModelFailed`` if it ends without a finish reason."""
        texts: list[str] = []
        calls: list[_Call] = []
        async with aclosing(deltas):
            async for delta in deltas:
                texts.append(delta.text)
                calls += self.add(delta)
        return self.last("".join(texts), calls)

    async def lines(self, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[str, None]:
        """Yield a line for each piece of text and each call, and a last one with the usage.

        An error after the first line is a line of its own, and ends the stream.
        """
        has_begun = False
        async with aclosing(deltas):
            try:
                async for delta in deltas:
                    calls = self.add(delta)
                    if delta.text or calls:
                        yield _line(self.piece(delta.text, calls, done=False))
                        has_begun = True
                yield _line(self.last("", []))
            except RaylensError as error:
                if not has_begun:
                    raise
                logger.warning("%s after the stream began: %s", error.code, error.message)
                yield _line({"error": error.message})

    def add(self, delta: Delta) -> list[_Call]:
        """Note a delta. Returns the calls that it completes: Ollama sends them whole."""
        if self._first_delta_at is None:
            self._first_delta_at = time.perf_counter()
        self._model = delta.model or self._model
        self._usage = delta.usage or self._usage
        self._warnings += delta.warnings
        completed = []
        for piece in delta.tool_calls:
            completed += self._add_call(piece)
        if delta.finish_reason is not None:
            self._finish_reason = delta.finish_reason
            if delta.findings is not None and delta.findings.reasoning is not None:
                self._thinking = delta.findings.reasoning.text
            completed += self._take_call()
        return completed

    def _add_call(self, piece: ToolCallDelta) -> list[_Call]:
        completed = []
        if piece.name is not None:
            completed = self._take_call()
            self._call = _Call(piece.name)
        if self._call is not None:
            self._call.arguments += piece.arguments
        return completed

    def _take_call(self) -> list[_Call]:
        call, self._call = self._call, None
        return [] if call is None else [call]

    def piece(self, text: str, calls: Sequence[_Call], done: bool) -> dict[str, Any]:
        head = {"model": self._model, "created_at": _now()}
        if not self._is_chat:
            return {**head, "response": text, "done": done}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            message["tool_calls"] = [call.as_json() for call in calls]
        return {**head, "message": message, "done": done}

    def last(self, text: str, calls: Sequence[_Call]) -> dict[str, Any]:
        """Return the last line: what is left of the answer, and its usage. Times are in ns."""
        if self._finish_reason is None:
            raise ModelFailed("the answer ended early")
        piece = self.piece(text, calls, done=True)
        if self._thinking:
            target = piece["message"] if self._is_chat else piece
            target["thinking"] = self._thinking
        if not self._is_chat:
            piece["context"] = []
        if self._warnings:
            piece["warnings"] = self._warnings
        now = time.perf_counter()
        first = now if self._first_delta_at is None else self._first_delta_at
        return {
            **piece,
            "done_reason": "length" if self._finish_reason is FinishReason.LENGTH else "stop",
            "total_duration": _nanoseconds(now - self._started_at),
            "load_duration": 0,
            "prompt_eval_count": self._usage.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(first - self._started_at),
            "eval_count": self._usage.completion_tokens,
            "eval_duration": _nanoseconds(now - first),
        }


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _line(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n"
