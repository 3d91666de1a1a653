"""``runtime: openai``: a server that speaks OpenAI's chat completions, such as vLLM, Ollama,
llama.cpp or raylens itself, through OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import openai
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import Choice
from openai.types.completion_usage import CompletionUsage
from PIL import Image

from models.chat import messages_of
from models.qwen2_5_vl.grounding import locations, regions
from models.qwen2_5_vl.model import GROUNDING_PROMPTS, resized_size
from models.remote.concurrency import ConcurrencyLimiter
from models.remote.errors import key_of, late, of_status, unreachable
from models.remote.pictures import chat_messages
from raylens.core.config import ModelConfig, RemoteConfig
from raylens.core.errors import ModelFailed, RaylensError
from raylens.core.types import (
    Caption,
    Chat,
    Delta,
    Detect,
    Findings,
    FinishReason,
    Point,
    Query,
    SamplingParams,
    TokenLogprob,
    Usage,
    VisionRequest,
)
from raylens.engine.metrics import Gauges
from raylens.engine.model import Pixels

TALKS = frozenset({Caption.name, Query.name, Chat.name})
KEY = "OPENAI_API_KEY"
SIDE, LEAST, MOST = 28, 4 * 28 * 28, 1280 * 28 * 28
"""A picture for Qwen2.5-VL is brought to whole image tokens and to an area that servers don't
change any more, within ``min_pixels`` and ``max_pixels`` where these are given: the boxes and
points that come back are pixels of it."""


class OpenAIRuntime:
    """Implements :class:`models.runtime.Runtime`."""

    device = "remote"
    failure: BaseException | None = None

    def __init__(
        self, config: ModelConfig, remote: RemoteConfig, client: openai.AsyncOpenAI | None = None
    ) -> None:
        # Other families have no words for places that every server understands.
        self._finds = config.family == "qwen2_5_vl"
        self.tasks = TALKS | ({Detect.name, Point.name} if self._finds else frozenset())
        self._model = remote.model or config.checkpoint
        self._limiter = ConcurrencyLimiter(config)
        self._bounds = config.min_pixels or LEAST, config.max_pixels or MOST
        self._client = client or _client(remote)

    @property
    def gauges(self) -> Gauges:
        """Implements :attr:`models.runtime.Runtime.gauges`."""
        return self._limiter.gauges

    def check_capacity(self, request: VisionRequest) -> None:
        """Implements :meth:`models.runtime.Runtime.check_capacity`."""
        self._limiter.check()

    async def generate(
        self, request: VisionRequest, pictures: Sequence[Pixels]
    ) -> AsyncGenerator[Delta, None]:
        """Implements :meth:`models.runtime.Runtime.generate`."""
        await self._limiter.enter(request)
        try:
            seen, messages = await asyncio.to_thread(self._prepare, request, pictures)
            ends = _Ends(request.sampling.n)
            async with self._asked(request, messages) as chunks:
                async for chunk in chunks:
                    for delta in ends.take(chunk):
                        yield delta
            for delta in ends.deltas(request, seen):
                yield delta
        finally:
            self._limiter.leave()

    def _prepare(
        self, request: VisionRequest, pictures: Sequence[Pixels]
    ) -> tuple[Sequence[Pixels], list[dict[str, Any]]]:
        """The pictures as they are sent, and the messages."""
        seen = [self._whole_tokens(picture) for picture in pictures] if self._finds else pictures
        return seen, chat_messages(
            messages_of(request.task, len(seen), self.tasks, GROUNDING_PROMPTS), seen
        )

    def _whole_tokens(self, picture: Pixels) -> Pixels:
        height, width = resized_size(picture, SIDE, *self._bounds)
        return np.asarray(
            Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
        )

    @asynccontextmanager
    async def _asked(
        self, request: VisionRequest, messages: list[dict[str, Any]]
    ) -> AsyncGenerator[openai.AsyncStream[ChatCompletionChunk], None]:
        """The chunks; leaving closes the connection, which tells the server that nobody waits any
        more."""
        create: Any = self._client.chat.completions.create
        try:
            stream = await create(
                model=self._model,
                messages=messages,
                stream=True,
                stream_options={"include_usage": True},
                timeout=max(0.001, request.remaining),
                **_parameters(request.sampling),
            )
            async with stream:
                yield stream
        except openai.OpenAIError as error:
            raise _translated(error) from error


def _client(remote: RemoteConfig) -> openai.AsyncOpenAI:
    is_its_maker = (remote.base_url or "").startswith("https://api.openai.com/")
    key = key_of(remote, KEY, is_its_maker=is_its_maker)
    return openai.AsyncOpenAI(
        api_key=key or "none", base_url=remote.base_url, max_retries=0
    )  # it insists on some key


class _Ends:
    """The answers' ends: usage comes behind them, and belongs to them here."""

    def __init__(self, answers: int) -> None:
        self._reasons: list[FinishReason | None] = [None] * answers
        self._texts: list[list[str]] = [[] for _ in range(answers)]
        self.usage: CompletionUsage | None = None

    def take(self, chunk: ChatCompletionChunk) -> list[Delta]:
        """What a chunk says of the answers."""
        if chunk.usage is not None:
            self.usage = chunk.usage
        deltas = (self._take(choice) for choice in chunk.choices)
        return [delta for delta in deltas if delta is not None]

    def _take(self, choice: Choice) -> Delta | None:
        if choice.index >= len(self._reasons):
            raise ModelFailed("the runtime's server sent an answer too many")
        text = choice.delta.content or ""
        self._texts[choice.index].append(text)
        if choice.finish_reason is not None:
            is_cut = choice.finish_reason == "length"
            self._reasons[choice.index] = FinishReason.LENGTH if is_cut else FinishReason.STOP
        told = (choice.logprobs and choice.logprobs.content) or []
        logprobs = tuple(_logprob(token) for token in told)
        return Delta(text, choice.index, logprobs=logprobs) if text or logprobs else None

    def deltas(self, request: VisionRequest, pictures: Sequence[Pixels]) -> list[Delta]:
        """The last of each answer. Raises ``ModelFailed`` where one has no end."""
        if None in self._reasons:
            raise ModelFailed("the runtime's server ended an answer early")
        prompt, said = (
            (self.usage.prompt_tokens, self.usage.completion_tokens) if self.usage else (0, 0)
        )
        return [
            Delta(
                index=index,
                finish_reason=reason,
                usage=Usage(prompt, 0 if index else said),
                findings=_found(request, "".join(self._texts[index]), pictures),
            )
            for index, reason in enumerate(self._reasons)
        ]


def _found(request: VisionRequest, text: str, pictures: Sequence[Pixels]) -> Findings:
    task = request.task
    if not isinstance(task, Detect | Point):
        return Findings()
    height, width = pictures[0].shape[:2]
    if isinstance(task, Detect):
        return Findings(regions=regions(text, width, height)[: task.max_objects])
    return Findings(locations=locations(text, width, height)[: task.max_objects])


def _parameters(sampling: SamplingParams) -> dict[str, Any]:
    """What the request asks for; what it leaves alone isn't sent, so that a server need not know
    it."""
    wanted = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p if sampling.top_p < 1 else None,
        "presence_penalty": sampling.presence_penalty or None,
        "frequency_penalty": sampling.frequency_penalty or None,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
        "n": sampling.n if sampling.n > 1 else None,
        "logprobs": True if sampling.logprobs is not None else None,
        "top_logprobs": sampling.logprobs or None,
        "response_format": _response_format(sampling.json_schema),
        "extra_body": {
            name: value
            for name, value, neutral in (
                ("top_k", sampling.top_k, 0),
                ("min_p", sampling.min_p, 0),
                ("repetition_penalty", sampling.repetition_penalty, 1),
            )
            if value != neutral
        },
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _response_format(schema: str | None) -> dict[str, Any] | None:
    if schema is None:
        return None
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": json.loads(schema), "strict": True},
    }


def _logprob(token: Any) -> TokenLogprob:
    top = tuple(_logprob(other) for other in getattr(token, "top_logprobs", None) or ())
    data = bytes(token.bytes) if token.bytes is not None else token.token.encode()
    return TokenLogprob(token.token, data, token.logprob, top)


def _translated(error: openai.OpenAIError) -> RaylensError:
    """The project's own error for one of the client's."""
    match error:
        case openai.APITimeoutError():
            return late()
        case openai.APIConnectionError():
            return unreachable()
        case openai.APIStatusError():
            return of_status(
                error.status_code, error.response.headers.get("retry-after"), error.message
            )
    return ModelFailed(f"the runtime's server failed: {type(error).__name__}")
