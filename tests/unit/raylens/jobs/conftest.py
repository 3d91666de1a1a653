"""A queue in this process: a store in memory, a model that answers at once, a receiver of webhooks
that remembers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from raylens.core.config import AppConfig, JobsConfig
from raylens.core.recipe import Recipe
from raylens.core.types import (
    Delta,
    Findings,
    FinishReason,
    ModelInfo,
    PictureFile,
    Priority,
    ProcessedPicture,
    Usage,
    VisionRequest,
)
from raylens.jobs.blobs import Blobs
from raylens.jobs.inference import InferenceClient
from raylens.jobs.job import Job, Webhook, new_id
from raylens.jobs.memory import MemoryStore
from raylens.jobs.queue import JobQueue
from raylens.jobs.registry import job_types
from raylens.jobs.store import JobStore

APP = AppConfig.model_validate({"models": [{"name": "moondream", "family": "moondream"}]})
URL = "https://hooks.example.com/raylens"


@dataclass
class FakeService:
    """Answers each request with ``answer``, after ``seconds``; ``errors`` are raised first, one a
    request."""

    answer: Callable[[VisionRequest, Sequence[PictureFile]], str] = lambda request, pictures: (
        "two circles"
    )
    seconds: float = 0.0
    errors: list[Exception] = field(default_factory=list)
    requests: list[VisionRequest] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)
    running: int = 0
    most_at_once: int = 0
    stopped: int = 0

    async def generate(
        self, request: VisionRequest, pictures: Sequence[PictureFile]
    ) -> AsyncGenerator[Delta, None]:
        assert request.priority is Priority.JOB
        self.requests.append(request)
        self.pictures += [picture.data for picture in pictures]
        self.running += 1
        self.most_at_once = max(self.running, self.most_at_once)
        try:
            if self.errors:
                raise self.errors.pop(0)
            await asyncio.sleep(self.seconds)
            yield Delta(
                self.answer(request, pictures),
                0,
                FinishReason.STOP,
                Usage(1, 1),
                findings=Findings(),
            )
        except (asyncio.CancelledError, GeneratorExit):
            self.stopped += 1
            raise
        finally:
            self.running -= 1

    async def preprocess(
        self, picture: PictureFile, recipe: Recipe, deadline: float, identity: str
    ) -> ProcessedPicture:
        raise NotImplementedError

    async def model_info(self, name: str) -> ModelInfo:
        raise NotImplementedError


@dataclass
class FakeSender:
    """Answers with ``statuses`` in turn, and then with 204."""

    statuses: list[int | Exception] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    sent: list[tuple[str, bytes, dict[str, str]]] = field(default_factory=list)

    async def post(
        self, url: str, content: bytes, headers: dict[str, str], field: str
    ) -> httpx.Response:
        self.sent.append((url, content, headers))
        await asyncio.sleep(self.seconds)
        status = self.statuses.pop(0) if self.statuses else 204
        if isinstance(status, Exception):
            raise status
        return httpx.Response(status, headers=self.headers)


def settings(**more: Any) -> JobsConfig:
    given = {"lease_s": 1.0, "backoff_s": 0.01, "max_backoff_s": 0.02, "workers": 4, **more}
    return JobsConfig.model_validate(given)


@dataclass
class Parts:
    """What a queue is made of, for tests to look at and to share between queues."""

    store: JobStore
    blobs: Blobs
    service: FakeService
    sender: FakeSender

    def queue(self, secrets: Sequence[str] = (), **more: Any) -> JobQueue:
        return JobQueue(
            self.store,
            self.blobs,
            job_types(),
            InferenceClient(self.service, APP),
            self.sender,
            secrets,
            settings(**more),
        )


@pytest.fixture
def parts(request: pytest.FixtureRequest) -> Parts:
    return Parts(MemoryStore(), Blobs(f"memory://{new_id()}"), FakeService(), FakeSender())


@asynccontextmanager
async def serving(*queues: JobQueue) -> AsyncIterator[None]:
    """The queues at work. Cancelling is how they end, and all that works for them ends too."""
    for queue in queues:
        await queue.open()
    tasks = [asyncio.create_task(queue.serve()) for queue in queues]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await asyncio.sleep(0)


def job(kind: str = "query", given: dict[str, Any] | None = None, **more: Any) -> Job:
    import time

    now = time.time()
    made: dict[str, Any] = {
        "id": new_id(),
        "type": kind,
        "input": given or {"question": "how many?"},
        "created_at": now,
        "deadline": now + 60,
        "max_attempts": 3,
        "rank": now,
        **more,
    }
    return Job(**made)


def told() -> dict[str, Any]:
    return {"webhook": Webhook(URL)}


async def ended(queue: JobQueue, job_id: str, patience_s: float = 10.0) -> Job:
    async with asyncio.timeout(patience_s):
        seen: Job | None = None
        while seen is None or not seen.state.is_terminal:
            seen = await queue.watch(job_id, seen, 1.0)
        return seen


async def until(condition: Callable[[], Any], patience_s: float = 10.0) -> None:
    async with asyncio.timeout(patience_s):
        while not condition():
            await asyncio.sleep(0.005)
