"""OpenAI's Responses API, without state.

Format: OpenAI's API reference, "Responses" and "Streaming events". Each event has a number, and
names its item by its index.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from raylens.api import sse
from raylens.api.answers import EVENTS, answers
from raylens.api.answers import openai as shapes
from raylens.api.context import Context
from raylens.api.field_names import rename_fields
from raylens.api.model_selection import select_model
from raylens.api.openai_json import logprob_as_json, new_call_id, new_id
from raylens.api.responses_input import RecentItems
from raylens.api.responses_request import (
    FIELD_NAMES,
    ResponsesRequest,
    build_sampling,
    parse_chat,
    refuse_unsupported_parameters,
)
from raylens.core.errors import ModelFailed, RaylensError
from raylens.core.types import Delta, FinishReason, ToolCallDelta, Usage, VisionRequest

logger = logging.getLogger(__name__)

PATH = "/v1/responses"
Event = tuple[str, dict[str, Any]]
"""The type of an event, and its fields besides type and number."""


def router(context: Context) -> APIRouter:
    """Return the dialect's route."""
    routes = APIRouter(tags=["OpenAI"])
    recent = RecentItems()

    @routes.post(PATH, summary="Chat about pictures, in items", **answers(shapes.Response, EVENTS))
    async def create_response(body: ResponsesRequest, http: Request) -> Any:
        refuse_unsupported_parameters(body)
        chat, pictures = await parse_chat(http, body, context, recent)
        sampling = build_sampling(body, chat, context)
        if chat.reasoning:
            model = await select_model(context, body.model, "openai", chat, "reasoning.effort")
        else:
            model = context.catalog.resolve(body.model, "openai")
        request = context.build_request(http, model, chat, sampling, body.recipe, bool(body.stream))
        reply = Reply(request, body, RecentItems(0) if body.store is False else recent)
        deltas = rename_fields(context.service.generate(request, pictures), FIELD_NAMES)
        if body.stream:
            return await sse.stream(reply.stream(deltas))
        return JSONResponse(await reply.complete(deltas))

    return routes


class Reply:
    """A response, built from its deltas: as a whole, or as a stream of events."""

    def __init__(self, request: VisionRequest, body: ResponsesRequest, recent: RecentItems) -> None:
        self._recent = recent
        self._items: list[dict[str, Any]] = []
        """Finished items, and perhaps an open one, in the order of the answer."""
        self._logprobs: list[dict[str, Any]] = []
        """Those of tokens whose text has not come yet: it may become a call."""
        self._usage: Usage | None = None
        self._finish_reason: FinishReason | None = None
        self._warnings: list[str] = []
        sampling = request.sampling
        self._head: dict[str, Any] = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "model": request.model,
            "background": False,
            "error": None,
            "instructions": body.instructions or None,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning.effort, "summary": None},
            "store": False,
            "temperature": sampling.temperature,
            "text": {"format": body.text.format or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": sampling.top_p,
            "truncation": "disabled",
        }

    async def complete(self, deltas: AsyncGenerator[Delta, None]) -> dict[str, Any]:
        """Return the response, with the pictures' warnings in ``warnings``.

        Raises ``ModelFailed`` if the answer ends without a finish reason.
        """
        async with aclosing(deltas):
            async for delta in deltas:
                for _ in self._add(delta):
                    pass
        return self._finish()

    async def stream(self, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[str, None]:
        """Yield the events of the response.

        An error after the first event is the event ``response.failed``, and ends the stream.
        """
        number = 0

        def render(event: Event) -> str:
            nonlocal number
            kind, fields = event
            text = sse.event({"type": kind, "sequence_number": number, **fields}, kind)
            number += 1
            return text

        async with aclosing(deltas):
            try:
                async for delta in deltas:
                    self._head["model"] = delta.model or self._head["model"]
                    if number == 0:
                        for kind in ("response.created", "response.in_progress"):
                            yield render((kind, {"response": self._as_json("in_progress")}))
                    for event in self._add(delta):
                        yield render(event)
                response = self._finish()
                yield render((f"response.{response['status']}", {"response": response}))
            except RaylensError as error:
                if number == 0:
                    raise
                logger.warning("%s after the stream began: %s", error.code, error.message)
                failed = self._as_json("failed")
                failed["error"] = {"code": "server_error", "message": error.message}
                yield render(("response.failed", {"response": failed}))

    def _finish(self) -> dict[str, Any]:
        if self._finish_reason is None:
            raise ModelFailed("the answer ended early")
        self._recent.remember(self._items)
        is_cut = self._finish_reason is FinishReason.LENGTH
        return self._as_json("incomplete" if is_cut else "completed")

    def _as_json(self, status: str) -> dict[str, Any]:
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        response = {
            **self._head,
            "status": status,
            "incomplete_details": details,
            "output": list(self._items),
            "usage": self._usage and _usage_as_json(self._usage),
        }
        return {**response, "warnings": self._warnings} if self._warnings else response

    def _add(self, delta: Delta) -> Iterator[Event]:
        """Add a delta to the items, and yield its events."""
        self._head["model"] = delta.model or self._head["model"]
        self._warnings += delta.warnings
        self._usage = delta.usage or self._usage
        self._logprobs += map(logprob_as_json, delta.logprobs)
        if delta.text:
            yield from self._add_text(delta.text)
        for call in delta.tool_calls:
            yield from self._add_call(call)
        if delta.finish_reason is not None:
            self._finish_reason = delta.finish_reason
            if not self._items or self._is_open("message"):
                yield from self._add_text("")
            is_cut = delta.finish_reason is FinishReason.LENGTH
            yield from self._close_item("incomplete" if is_cut else "completed")
            if delta.findings is not None and delta.findings.reasoning is not None:
                yield from self._add_reasoning(delta.findings.reasoning.text)

    def _add_text(self, text: str) -> Iterator[Event]:
        """Add text with the log probabilities so far. Without both, only open the message."""
        if not self._is_open("message"):
            yield from self._close_item()
            yield from self._open_message()
        logprobs, self._logprobs = self._logprobs, []
        if not (text or logprobs):
            return
        content = self._items[-1]["content"][0]
        content["text"] += text
        content["logprobs"] += logprobs
        fields = {**self._place(), "content_index": 0, "delta": text, "logprobs": logprobs}
        yield "response.output_text.delta", fields

    def _add_reasoning(self, text: str) -> Iterator[Event]:
        """Add the thoughts as the last item: they are known at the end of the answer only."""
        summary = [{"type": "summary_text", "text": text}]
        item = {"type": "reasoning", "id": new_id("rs"), "summary": summary, "status": "completed"}
        yield from self._open(item)
        yield "response.output_item.done", {"output_index": len(self._items) - 1, "item": item}

    def _add_call(self, call: ToolCallDelta) -> Iterator[Event]:
        self._logprobs = []  # calls have none
        if call.name is not None:
            yield from self._close_item()
            item = {
                "type": "function_call",
                "id": new_id("fc"),
                "call_id": new_call_id(),
                "name": call.name,
                "arguments": "",
                "status": "in_progress",
            }
            yield from self._open(item)
        if call.arguments:
            self._items[-1]["arguments"] += call.arguments
            fields = {**self._place(), "delta": call.arguments}
            yield "response.function_call_arguments.delta", fields

    @property
    def _open_item(self) -> dict[str, Any] | None:
        """The item that is not finished yet."""
        is_open = bool(self._items) and self._items[-1]["status"] == "in_progress"
        return self._items[-1] if is_open else None

    def _is_open(self, kind: str) -> bool:
        item = self._open_item
        return item is not None and item["type"] == kind

    def _place(self) -> dict[str, Any]:
        """Return the fields by which events name the last item."""
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    def _open(self, item: dict[str, Any]) -> Iterator[Event]:
        self._items.append(item)
        added = {"output_index": len(self._items) - 1, "item": dict(item)}
        yield "response.output_item.added", added

    def _open_message(self) -> Iterator[Event]:
        item: dict[str, Any] = {
            "type": "message",
            "id": new_id("msg"),
            "role": "assistant",
            "content": [],
            "status": "in_progress",
        }
        yield from self._open(item)
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item["content"] = [part]
        fields = {**self._place(), "content_index": 0, "part": dict(part)}
        yield "response.content_part.added", fields

    def _close_item(self, status: str = "completed") -> Iterator[Event]:
        item = self._open_item
        if item is None:
            return
        item["status"] = status
        place = self._place()
        if item["type"] == "message":
            part = item["content"][0]
            text = {"text": part["text"], "logprobs": part["logprobs"]}
            yield "response.output_text.done", {**place, "content_index": 0, **text}
            yield "response.content_part.done", {**place, "content_index": 0, "part": part}
        else:
            arguments = {"name": item["name"], "arguments": item["arguments"]}
            yield "response.function_call_arguments.done", {**place, **arguments}
        yield "response.output_item.done", {"output_index": place["output_index"], "item": item}


def _usage_as_json(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
