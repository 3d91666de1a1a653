"""The HTTP application over a fake service instead of the deployment graph."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from raylens.api.app import create_app
from raylens.core.config import AppConfig
from raylens.core.errors import ModelNotLoaded, RaylensError
from raylens.core.ports import VisionService
from raylens.core.recipe import Recipe
from raylens.core.types import (
    Caller,
    Delta,
    Detect,
    Findings,
    FinishReason,
    Location,
    MediaFile,
    MemoryUsage,
    ModelInfo,
    PictureFile,
    Point,
    ProcessedPicture,
    Reasoning,
    Region,
    StepReport,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    Usage,
    VisionRequest,
)
from testing.pictures import encode_picture, gradient

PICTURE = encode_picture(gradient(16, 12))
DATA_URL = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
TEXT_TASKS = ("caption", "chat", "query")
CONFIG = AppConfig.model_validate(
    {
        "models": [
            {"name": "smolvlm", "family": "smolvlm", "aliases": ["small"]},
            {
                "name": "other",
                "family": "smolvlm",
                "checkpoint": "org/other",
                "recipe": "mine",
                "max_image_size": 640,
                "expected_response_time": 7,
            },
        ],
        "recipes": {"mine": {"name": "enhanced", "denoise": {"method": "nlm"}}},
        "limits": {
            "max_body_bytes": 40_000,
            "body_patience_s": 0.2,
            "max_in_flight": 6,
            "max_image_bytes": 20_000,
            "max_images": 3,
            "max_tokens": 100,
            "max_text_chars": 2000,
            "max_schema_bytes": 200,
        },
        "defaults": {"timeout_s": 20, "max_timeout_s": 30, "max_tokens": 50},
    }
)


@dataclass
class FakeService(VisionService):
    """Answers with ``words``, and records its requests.

    With an ``error``, it raises that after ``before_error`` words. An empty word stands for the
    first byte of a two-byte character.
    """

    words: tuple[str, ...] = ("two ", "red ", "circles")
    error: RaylensError | None = None
    before_error: int = 0
    warnings: tuple[str, ...] = ()
    regions: tuple[Region, ...] | None = (Region(0.1, 0.2, 0.3, 0.4), Region(0.5, 0.5, 1.0, 1.0))
    locations: tuple[Location, ...] | None = (Location(0.2, 0.3), Location(0.75, 0.75))
    reasoning: Reasoning | None = None
    logprob: float = -0.5
    requests: list[VisionRequest] = field(default_factory=list)
    media: list[MediaFile] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)
    picture_fields: list[str] = field(default_factory=list)
    recipes: list[Recipe] = field(default_factory=list)
    callers: list[Caller] = field(default_factory=list)
    on_demand: dict[str, str] = field(default_factory=dict)
    closed: int = 0
    tool_calls: tuple[ToolCallDelta, ...] = ()
    """Sent after the words, one at a time."""
    delay_s: float = 0.0
    timings: Timings | None = None
    answers_as: str | None = None
    """The fallback that answers."""
    loaded: frozenset[str] = frozenset({"smolvlm", "other"})
    tasks: dict[str, tuple[str, ...]] = field(default_factory=dict)

    async def generate(
        self, request: VisionRequest, pictures: Sequence[MediaFile]
    ) -> AsyncGenerator[Delta, None]:
        self.requests.append(request)
        self.media.extend(pictures)
        self.pictures.extend(picture.data for picture in pictures)
        self.picture_fields.extend(picture.field for picture in pictures)
        try:
            await asyncio.sleep(self.delay_s)
            for number, word in enumerate(self.words):
                if self.error is not None and number == self.before_error:
                    raise self.error
                for index in range(request.sampling.n):
                    warnings = self.warnings if number == index == 0 else ()
                    logprobs = self._logprobs(word, request)
                    yield Delta(
                        word,
                        index,
                        warnings=warnings,
                        logprobs=logprobs,
                        timings=self.timings,
                        model=self.answers_as,
                    )
            for index in range(request.sampling.n):
                for call in self.tool_calls:
                    yield Delta(index=index, tool_calls=(call,), usage=Usage(7, 1))
                yield self._last(index, request)
        finally:
            self.closed += 1

    def _last(self, index: int, request: VisionRequest) -> Delta:
        regions = self.regions if isinstance(request.task, Detect) else None
        locations = self.locations if isinstance(request.task, Point) else None
        usage = Usage(7, len(self.words))
        reasoning = self.reasoning if getattr(request.task, "reasoning", False) else None
        reason = FinishReason.TOOL_CALLS if self.tool_calls else FinishReason.STOP
        findings = Findings(regions, locations, reasoning)
        return Delta("", index, reason, usage, findings=findings)

    def _logprobs(self, word: str, request: VisionRequest) -> tuple[TokenLogprob, ...]:
        count = request.sampling.logprobs
        if count is None:
            return ()
        text = word or "\ufffd"
        data = word.encode() or b"\xc3"
        alternatives = tuple(
            TokenLogprob(f"{rank}", b"%d" % rank, self.logprob - rank) for rank in range(count)
        )
        return (TokenLogprob(text, data, self.logprob, alternatives),)

    async def preprocess(
        self, picture: PictureFile, recipe: Recipe, caller: Caller
    ) -> ProcessedPicture:
        if self.error is not None:
            raise self.error
        self.pictures.append(picture.data)
        self.recipes.append(recipe)
        self.callers.append(caller)
        steps = (StepReport("decode", "PNG", 0.0125),)
        return ProcessedPicture(
            b"jpeg", (12, 16), (16, 12), (8, 6), (1, 0, 0, 0, 1, 0), steps, self.warnings
        )

    async def input_size(self, model: str, size: tuple[int, int]) -> tuple[int, int]:
        await self.model_info(model)
        return size[0] // 2, size[1] // 2

    async def memory_usage(self) -> list[MemoryUsage]:
        return [MemoryUsage("cpu", "node", 8 * 2**30, 2 * 2**30, 3 * 2**30)]

    async def clear_memory(self) -> list[MemoryUsage]:
        return [MemoryUsage("cpu", "node", 8 * 2**30, 2 * 2**30, 2 * 2**30)]

    async def model_info(self, name: str) -> ModelInfo:
        if name not in self.loaded:
            error = ModelNotLoaded(f"{name} is down", "model", retry_after=2)
            error.on_demand = self.on_demand.get(name)
            raise error
        tasks = self.tasks.get(name, TEXT_TASKS)
        return ModelInfo(name, "pocket", "smolvlm", "cpu", tasks, "float32", 1234, 8, 4)


@pytest.fixture
def service() -> FakeService:
    return FakeService()


class CurrentService(VisionService):
    """The service of the test that runs."""

    current: FakeService

    def generate(
        self, request: VisionRequest, pictures: Sequence[MediaFile]
    ) -> AsyncGenerator[Delta, None]:
        return self.current.generate(request, pictures)

    async def preprocess(
        self, picture: PictureFile, recipe: Recipe, caller: Caller
    ) -> ProcessedPicture:
        return await self.current.preprocess(picture, recipe, caller)

    async def input_size(self, model: str, size: tuple[int, int]) -> tuple[int, int]:
        return await self.current.input_size(model, size)

    async def memory_usage(self) -> list[MemoryUsage]:
        return await self.current.memory_usage()

    async def clear_memory(self) -> list[MemoryUsage]:
        return await self.current.clear_memory()

    async def model_info(self, name: str) -> ModelInfo:
        return await self.current.model_info(name)


@pytest.fixture(scope="module")
def current_service() -> CurrentService:
    return CurrentService()


@pytest.fixture(scope="module")
def shared_app(current_service: CurrentService) -> FastAPI:
    """One application for all tests of a module, because FastAPI takes long to make one."""
    return create_app(current_service, CONFIG)


@pytest.fixture
async def client(
    service: FakeService, current_service: CurrentService, shared_app: FastAPI
) -> AsyncIterator[httpx.AsyncClient]:
    current_service.current = service
    transport = httpx.ASGITransport(shared_app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield http


def chat(*content: Any, **parameters: Any) -> dict[str, Any]:
    """Return a chat request with one user message; a string is a text part."""
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    return {"messages": [{"role": "user", "content": parts}], **parameters}


def image(url: str = DATA_URL, **options: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **options}}
