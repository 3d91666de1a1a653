"""``runtime: openai``: a server with OpenAI's chat completions API, such as vLLM, Ollama, llama.cpp
or raylens itself.

It is reached through OpenAI's own client.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import httpx
import openai
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import Choice
from openai.types.completion_usage import CompletionUsage

from models.chat import task_messages
from models.grounding import Grounding
from models.remote.concurrency import LimitedRuntime
from models.remote.errors import (
    api_key,
    deadline_exceeded,
    error_from_status,
    server_unreachable,
)
from models.remote.pictures import chat_messages
from raylens.core.config import ModelConfig, RemoteConfig
from raylens.core.errors import ModelFailed, RaylensError
from raylens.core.families import family_named, load_attribute
from raylens.core.types import (
    Caption,
    Chat,
    Delta,
    Detect,
    Findings,
    FinishReason,
    Point,
    Query,
    Task,
    TokenLogprob,
    ToolCallDelta,
    Tools,
    Usage,
    VisionRequest,
)
from raylens.engine.model import Pixels

TEXT_TASKS = frozenset({Caption.name, Query.name, Chat.name})
GROUNDING_TASKS = frozenset({Detect.name, Point.name})
API_KEY_ENV = "OPENAI_API_KEY"

CONNECT_TIMEOUT_S = 10.0
_FINISH_REASONS = {
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
}
"""All others are ``STOP``."""


class OpenAIRuntime(LimitedRuntime):
    device = "remote"
    failure: BaseException | None = None

    def __init__(
        self, config: ModelConfig, remote: RemoteConfig, client: openai.AsyncOpenAI | None = None
    ) -> None:
        super().__init__(config)
        self._grounding = _load_grounding(config.family)
        self.tasks = TEXT_TASKS | (GROUNDING_TASKS if self._grounding else frozenset())
        if config.family is not None:
            self.tasks &= family_named(config.family).tasks
        self._model = remote.model or config.checkpoint
        self._family_settings = config.family_settings
        self._client = client or _make_client(remote)

    async def generate(
        self, request: VisionRequest, pictures: Sequence[Pixels]
    ) -> AsyncGenerator[Delta, None]:
        await self._limiter.acquire(request)
        try:
            sent_pictures, messages = await asyncio.to_thread(self._prepare, request, pictures)
            answers = _Answers(request.sampling.n, self._grounding)
            async with self._stream(request, messages) as chunks:
                async for chunk in chunks:
                    for delta in answers.add(chunk):
                        yield delta
            for delta in answers.final_deltas(request, sent_pictures):
                yield delta
        finally:
            self._limiter.release()

    def _prepare(
        self, request: VisionRequest, pictures: Sequence[Pixels]
    ) -> tuple[Sequence[Pixels], list[dict[str, Any]]]:
        """Return the pictures as they are sent, and the messages."""
        prompts: Mapping[str, str] = {}
        if self._grounding is not None:
            settings = self._family_settings
            pictures = [self._grounding.resize(picture, settings) for picture in pictures]
            prompts = self._grounding.prompts
        messages = task_messages(request.task, len(pictures), self.tasks, prompts)
        return pictures, chat_messages(messages, pictures)

    @asynccontextmanager
    async def _stream(
        self, request: VisionRequest, messages: list[dict[str, Any]]
    ) -> AsyncGenerator[openai.AsyncStream[ChatCompletionChunk], None]:
        """Open the stream of chunks. Leaving it closes the connection, and the server stops."""
        create: Any = self._client.chat.completions.create
        try:
            stream = await create(
                model=self._model,
                messages=messages,
                stream=True,
                stream_options={"include_usage": True},
                timeout=_timeout(request),
                **_parameters(request),
                **_task_parameters(request.task),
            )
            async with stream:
                yield stream
        except openai.OpenAIError as error:
            raise _to_raylens_error(error) from error
        except json.JSONDecodeError:
            raise ModelFailed("the runtime's server sent no chat completion") from None
        except UnicodeError:
            # The error's message would hold the key.
            raise ModelFailed("the API key has characters that no HTTP header can hold") from None


def _load_grounding(family: str | None) -> Grounding | None:
    """Return the family's grounding: other families have no prompts that work on every server."""
    path = None if family is None else family_named(family).grounding
    grounding: Grounding | None = None if path is None else load_attribute(path)
    return grounding


def _timeout(request: VisionRequest) -> httpx.Timeout:
    remaining = max(0.001, request.remaining)
    return httpx.Timeout(remaining, connect=min(remaining, CONNECT_TIMEOUT_S))


def _make_client(remote: RemoteConfig) -> openai.AsyncOpenAI:
    is_openai = (remote.base_url or "").startswith("https://api.openai.com/")
    key = api_key(remote, API_KEY_ENV, is_default_server=is_openai)
    return openai.AsyncOpenAI(
        api_key=key or "none",  # the client requires one
        base_url=remote.base_url,
        max_retries=0,
    )


class _Calls:
    """The tool calls of an answer, numbered in the order of their arrival.

    Servers differ in how they number theirs: from 0, from 1, or all alike, with an id for each.
    """

    def __init__(self) -> None:
        self.count = 0
        self._open: dict[int, tuple[int, str]] = {}
        """Number and id (or name) of the last call, by the server's number."""

    def add(self, piece: Any) -> ToolCallDelta:
        """Return a piece of a call as a delta. Raises ``ModelFailed`` if a call has no name."""
        function = piece.function
        name = (function and function.name) or None
        arguments = (function and function.arguments) or ""
        identity = piece.id or name
        number, known = self._open.get(piece.index or 0, (0, None))
        if known is not None and identity in (None, known):
            return ToolCallDelta(number, None, arguments)
        if name is None:
            raise ModelFailed("the runtime's server sent a tool call without a name")
        self._open[piece.index or 0] = self.count, str(identity)
        self.count += 1
        return ToolCallDelta(self.count - 1, name, arguments)


class _Answers:
    """The texts and finish reasons of a request's answers so far.

    The server sends the usage after the finish reasons. The last delta of an answer has both, so it
    is held back until the stream ends.
    """

    def __init__(self, count: int, grounding: Grounding | None) -> None:
        self._grounding = grounding
        self._finish_reasons: list[FinishReason | None] = [None] * count
        self._texts: list[list[str]] = [[] for _ in range(count)]
        self._calls = [_Calls() for _ in range(count)]
        self._usage: CompletionUsage | None = None

    def add(self, chunk: ChatCompletionChunk) -> list[Delta]:
        """Add a chunk and return its deltas. Raises ``ModelFailed``."""
        if chunk.usage is not None:
            self._usage = chunk.usage
        deltas = (self._add_choice(choice) for choice in chunk.choices or ())
        return [delta for delta in deltas if delta is not None]

    def _add_choice(self, choice: Choice) -> Delta | None:
        index = choice.index or 0
        if index >= len(self._texts):
            raise ModelFailed("the runtime's server sent more answers than requested")
        text = (choice.delta and choice.delta.content) or ""
        self._texts[index].append(text)
        if choice.finish_reason is not None:
            self._finish_reasons[index] = _FINISH_REASONS.get(
                choice.finish_reason, FinishReason.STOP
            )
        pieces = (choice.delta and choice.delta.tool_calls) or ()
        calls = tuple(self._calls[index].add(piece) for piece in pieces)
        tokens = (choice.logprobs and choice.logprobs.content) or []
        logprobs = tuple(_token_logprob(token) for token in tokens)
        if not (text or logprobs or calls):
            return None
        return Delta(text, index, logprobs=logprobs, tool_calls=calls)

    def final_deltas(self, request: VisionRequest, pictures: Sequence[Pixels]) -> list[Delta]:
        """Return the last delta of each answer. Raises ``ModelFailed`` if one is not finished."""
        if None in self._finish_reasons:
            raise ModelFailed("the runtime's server ended an answer early")
        prompt_tokens = self._usage.prompt_tokens if self._usage else 0
        completion_tokens = self._usage.completion_tokens if self._usage else 0
        deltas = []
        for index, finish_reason in enumerate(self._finish_reasons):
            if self._calls[index].count and finish_reason is FinishReason.STOP:
                finish_reason = FinishReason.TOOL_CALLS  # servers say "stop" after a forced call
            # The server's count is of all answers together.
            usage = Usage(prompt_tokens, completion_tokens if index == 0 else 0)
            findings = self._findings(request, "".join(self._texts[index]), pictures)
            deltas.append(
                Delta(index=index, finish_reason=finish_reason, usage=usage, findings=findings)
            )
        return deltas

    def _findings(self, request: VisionRequest, text: str, pictures: Sequence[Pixels]) -> Findings:
        task = request.task
        if not isinstance(task, Detect | Point) or self._grounding is None:
            return Findings()
        height, width = pictures[0].shape[:2]
        if isinstance(task, Detect):
            regions = self._grounding.regions(text, width, height)
            return Findings(regions=regions[: task.max_objects])
        locations = self._grounding.locations(text, width, height)
        return Findings(locations=locations[: task.max_objects])


def _parameters(request: VisionRequest) -> dict[str, Any]:
    """Return the sampling parameters that differ from the defaults.

    A server need not support a parameter that the request does not set.
    """
    sampling = request.sampling
    parameters = {
        # Only if the request set it: otherwise the server knows better what is left.
        "max_tokens": sampling.max_tokens if sampling.guaranteed_tokens is None else None,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p if sampling.top_p < 1 else None,
        "presence_penalty": sampling.presence_penalty or None,
        "frequency_penalty": sampling.frequency_penalty or None,
        "seed": sampling.seed,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias} or None,
        "stop": list(sampling.stop) or None,
        "n": sampling.n if sampling.n > 1 else None,
        "logprobs": True if sampling.logprobs is not None else None,
        "top_logprobs": sampling.logprobs or None,
        "response_format": _response_format(sampling.json_schema),
        "extra_body": _extra_body(request),
    }
    return {name: value for name, value in parameters.items() if value is not None}


def _task_parameters(task: Task) -> dict[str, Any]:
    """Return the parameters of a chat's tools."""
    if not isinstance(task, Chat) or task.tools is None:
        return {}
    parameters: dict[str, Any] = {
        "tools": [json.loads(tool.definition) for tool in task.tools.functions],
        "tool_choice": _tool_choice(task.tools),
    }
    if not task.tools.parallel:
        parameters["parallel_tool_calls"] = False
    return parameters


def _tool_choice(tools: Tools) -> Any:
    if len(tools.required) == 1:
        return {"type": "function", "function": {"name": tools.required[0]}}
    return "required" if tools.required else "auto"


def _extra_body(request: VisionRequest) -> dict[str, Any]:
    """Return the parameters that OpenAI's API lacks, under vLLM's names."""
    sampling, task = request.sampling, request.task
    extra: dict[str, Any] = {}
    if isinstance(task, Chat) and task.pixel_limits is not None:
        limits = {
            name: value for name, value in asdict(task.pixel_limits).items() if value is not None
        }
        extra["mm_processor_kwargs"] = limits
    if isinstance(task, Chat) and task.template_variables:
        extra["chat_template_kwargs"] = dict(task.template_variables)
    if isinstance(task, Chat) and task.continues_answer:
        extra |= {"continue_final_message": True, "add_generation_prompt": False}
    if sampling.min_tokens:
        extra["min_tokens"] = sampling.min_tokens
    if sampling.stop_token_ids:
        extra["stop_token_ids"] = list(sampling.stop_token_ids)
    if sampling.top_k != 0:
        extra["top_k"] = sampling.top_k
    if sampling.min_p != 0:
        extra["min_p"] = sampling.min_p
    if sampling.repetition_penalty != 1:
        extra["repetition_penalty"] = sampling.repetition_penalty
    return extra


def _response_format(schema: str | None) -> dict[str, Any] | None:
    if schema is None:
        return None
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": json.loads(schema), "strict": True},
    }


def _token_logprob(token: Any) -> TokenLogprob:
    alternatives = getattr(token, "top_logprobs", None) or ()
    top = tuple(_token_logprob(alternative) for alternative in alternatives)
    data = bytes(token.bytes) if token.bytes is not None else token.token.encode()
    return TokenLogprob(token.token, data, token.logprob, top)


def _to_raylens_error(error: openai.OpenAIError) -> RaylensError:
    match error:
        case openai.APITimeoutError():
            return deadline_exceeded()
        case openai.APIConnectionError():
            return server_unreachable()
        case openai.APIStatusError():
            retry_after = error.response.headers.get("retry-after")
            return error_from_status(error.status_code, retry_after, error.message)
    return ModelFailed(f"the runtime's server failed: {type(error).__name__}")
