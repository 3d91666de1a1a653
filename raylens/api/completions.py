"""OpenAI's older completions API: a text, continued.

Format: OpenAI's API reference, "Completions".
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field, field_validator
from starlette.responses import JSONResponse

from raylens.api import sse
from raylens.api.answers import EVENTS, answers
from raylens.api.answers import openai as shapes
from raylens.api.context import Context
from raylens.api.errors import error_event
from raylens.api.openai_json import clip_logprob, new_id
from raylens.api.openai_request import (
    NEUTRAL_VALUES,
    Integer,
    Sampling,
    StreamOptions,
    refuse_extra_parameters,
)
from raylens.api.response_format import parse_response_format
from raylens.core.errors import InvalidRequest, ModelFailed, RaylensError
from raylens.core.types import Completion, Delta, TokenLogprob, Usage, VisionRequest
from raylens.core.wire import Text

PATH = "/v1/completions"
MAX_TOKENS = 16
"""OpenAI's default of ``max_tokens``, which is that of completions only."""
_NEUTRAL = {
    **{name: values for name, values in NEUTRAL_VALUES.items() if name != "echo"},
    "add_special_tokens": (True,),
    "suffix": (),
}


class CompletionRequest(Sampling):
    """Body of ``POST /v1/completions``."""

    model_config = ConfigDict(extra="allow")

    prompt: Annotated[list[Text], Field(min_length=1, max_length=64)]
    model: str | None = None
    max_tokens: Annotated[Integer, Field(ge=1)] = MAX_TOKENS
    n: Annotated[Integer, Field(ge=1)] | None = None
    logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None
    echo: bool = False
    response_format: Any = None
    stream: bool | None = None
    stream_options: StreamOptions = StreamOptions()

    @field_validator("prompt", mode="before")
    @classmethod
    def _wrap_one_text(cls, value: Any) -> Any:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or any(not isinstance(text, str) for text in texts):
            raise ValueError("expected a text, or a list of texts")
        return texts


def router(context: Context) -> APIRouter:
    """Return the dialect's route."""
    routes = APIRouter(tags=["OpenAI"])

    @routes.post(PATH, summary="Continue a text", **answers(shapes.TextCompletion, EVENTS))
    async def create_completion(body: CompletionRequest, http: Request) -> Any:
        refuse_extra_parameters(body.model_extra or {}, _NEUTRAL)
        if body.echo and body.logprobs is not None:
            raise InvalidRequest(
                "echo: not supported together with logprobs, which a prompt doesn't have", "echo"
            )
        context.check_text_length(sum(map(len, body.prompt)), "prompt")
        model = context.catalog.resolve(body.model, "openai")
        sampling = body.build(
            context,
            body.max_tokens,
            n=body.n or 1,
            logprobs=body.logprobs,
            json_schema=parse_response_format(body.response_format),
        )
        request = context.build_request(
            http, model, Completion(""), sampling, None, bool(body.stream)
        )
        requests = [
            replace(request, id=f"{request.id}-{number}" if number else request.id, task=task)
            for number, task in enumerate(map(Completion, body.prompt))
        ]
        reply = Reply(requests, body)
        if body.stream:
            return await sse.stream(reply.stream(context))
        return JSONResponse(await reply.complete(context))

    return routes


@dataclass
class _Choice:
    """One of a reply's texts, collected from its deltas."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    offset: int = 0
    """Characters of the text before this piece of it."""

    def as_json(self, index: int, with_logprobs: bool) -> dict[str, Any]:
        return {
            "index": index,
            "text": self.text,
            "logprobs": _logprobs_as_json(self.logprobs, self.offset) if with_logprobs else None,
            "finish_reason": self.finish_reason,
        }


class Reply:
    """The reply to a request, as a whole or as a stream of chunks.

    The prompts are continued one after another; choice i · n + j is the j-th text of prompt i.
    """

    def __init__(self, requests: Sequence[VisionRequest], body: CompletionRequest) -> None:
        self._requests = requests
        self._prompts = body.prompt if body.echo else [""] * len(body.prompt)
        self._n = requests[0].sampling.n
        self._with_logprobs = body.logprobs is not None
        options = body.stream_options
        self._continuous_usage = options.continuous_usage_stats
        self._include_usage = options.include_usage or options.continuous_usage_stats
        self._usages: dict[int, Usage] = {}
        """The latest usage of each choice."""
        self._head = {
            "id": new_id("cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": requests[0].model,
        }

    async def complete(self, context: Context) -> dict[str, Any]:
        """Return the completion. Raises ``ModelFailed`` if a text ends without finish reason."""
        choices = [_Choice(prompt) for prompt in self._prompts for _ in range(self._n)]
        warnings: list[str] = []
        async with aclosing(self._deltas(context)) as deltas:
            async for index, delta in deltas:
                choices[index].text += delta.text
                choices[index].logprobs += delta.logprobs
                warnings += delta.warnings
                if delta.finish_reason is not None:
                    choices[index].finish_reason = delta.finish_reason.value
        if any(choice.finish_reason is None for choice in choices):
            raise ModelFailed("the answer ended early")
        completion = {
            **self._head,
            "choices": [
                choice.as_json(index, self._with_logprobs) for index, choice in enumerate(choices)
            ],
            "usage": self._total_usage(),
        }
        return {**completion, "warnings": warnings} if warnings else completion

    async def stream(self, context: Context) -> AsyncGenerator[str, None]:
        """Yield chunks, then the usage if requested, then ``[DONE]``.

        An error after the first event is an event of its own, and ends the stream.
        """
        lengths: dict[int, int] = {}
        """Characters so far, by choice."""
        finished: set[int] = set()
        async with aclosing(self._deltas(context)) as deltas:
            try:
                async for index, delta in deltas:
                    text = delta.text
                    if index not in lengths:
                        text = self._prompts[index // self._n] + text
                    offset = lengths.get(index, 0)
                    lengths[index] = offset + len(text)
                    reason = delta.finish_reason
                    if reason is not None:
                        finished.add(index)
                    if text or delta.logprobs or reason is not None:
                        logprobs = list(delta.logprobs)
                        choice = _Choice(text, logprobs, reason and reason.value, offset)
                        yield self._chunk([choice.as_json(index, self._with_logprobs)])
                if len(finished) < self._n * len(self._requests):
                    raise ModelFailed("the answer ended early")
            except RaylensError as error:
                if not lengths:
                    raise
                yield error_event(PATH, error)
                return
        if self._include_usage:
            yield self._chunk([], self._total_usage())
        yield sse.event("[DONE]")

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> str:
        chunk: dict[str, Any] = {**self._head, "choices": choices}
        if self._include_usage:
            chunk["usage"] = self._total_usage() if self._continuous_usage else usage
        return sse.event(chunk)

    async def _deltas(self, context: Context) -> AsyncGenerator[tuple[int, Delta], None]:
        """Yield the deltas of all prompts, with the index of their choice."""
        for number, request in enumerate(self._requests):
            async with aclosing(context.service.generate(request, [])) as deltas:
                async for delta in deltas:
                    index = number * self._n + delta.index
                    if delta.usage is not None:
                        self._usages[index] = delta.usage
                    self._head["model"] = delta.model or self._head["model"]
                    yield index, delta

    def _total_usage(self) -> dict[str, int]:
        """Return the usage of all texts. Those of one prompt share it, so it counts once."""
        prompts = {index // self._n: usage.prompt_tokens for index, usage in self._usages.items()}
        prompt_tokens = sum(prompts.values())
        completion_tokens = sum(usage.completion_tokens for usage in self._usages.values())
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }


def _logprobs_as_json(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    offsets = [offset]
    for token in tokens:
        offsets.append(offsets[-1] + len(token.text))
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [clip_logprob(token.logprob) for token in tokens],
        "top_logprobs": [
            {other.text: clip_logprob(other.logprob) for other in token.top} for token in tokens
        ],
        "text_offset": offsets[:-1],
    }
