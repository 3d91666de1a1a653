"""A queue in this process, over a store in memory, a fake model and a fake webhook client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from raylens.core.config import AppConfig, JobsConfig
from raylens.core.ports import VisionService
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
from raylens.jobs.blobs import BlobStorage
from raylens.jobs.inference import InferenceClient
from raylens.jobs.job import Job, Webhook, new_id
from raylens.jobs.memory import MemoryStore
from raylens.jobs.queue import JobQueue
from raylens.jobs.registry import load_job_types
from raylens.jobs.store import JobStore
from raylens.jobs.webhook_dispatcher import WebhookClient

APP = AppConfig.model_validate({"models": [{"name": "moondream", "family": "moondream"}]})
URL = "https://hooks.example.com/raylens"


def _answer_two_circles(request: VisionRequest, pictures: Sequence[PictureFile]) -> str:
    return "two circles"


@dataclass
class FakeService(VisionService):
    """A vision service that answers each request with ``answer``, after ``seconds``.

    It first raises each of ``errors``, one a request.
    """

    answer: Callable[[VisionRequest, Sequence[PictureFile]], str] = _answer_two_circles
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
            text = self.answer(request, pictures)
            yield Delta(text, 0, FinishReason.STOP, Usage(1, 1), findings=Findings())
        except (asyncio.CancelledError, GeneratorExit):
            self.stopped += 1
            raise
        finally:
            self.running -= 1

    async def preprocess(
        self, picture: PictureFile, recipe: Recipe, deadline: float, request_id: str
    ) -> ProcessedPicture:
        raise NotImplementedError

    async def model_info(self, name: str) -> ModelInfo:
        raise NotImplementedError


@dataclass
class FakeWebhookClient(WebhookClient):
    """Answers with each of ``statuses``, and then with 204."""

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


def jobs_config(**settings: Any) -> JobsConfig:
    defaults = {"lease_s": 1.0, "backoff_s": 0.01, "max_backoff_s": 0.02, "workers": 4}
    return JobsConfig.model_validate({**defaults, **settings})


@dataclass
class QueueParts:
    """The parts of a queue. Tests inspect them, and share them between queues."""

    store: JobStore
    blobs: BlobStorage
    service: FakeService
    webhook_client: FakeWebhookClient

    def make_queue(self, secrets: Sequence[str] = (), **settings: Any) -> JobQueue:
        return JobQueue(
            self.store,
            self.blobs,
            load_job_types(),
            InferenceClient(self.service, APP),
            self.webhook_client,
            secrets,
            jobs_config(**settings),
        )


@pytest.fixture
def parts() -> QueueParts:
    return QueueParts(
        MemoryStore(), BlobStorage(f"memory://{new_id()}"), FakeService(), FakeWebhookClient()
    )


@asynccontextmanager
async def serving(*queues: JobQueue) -> AsyncIterator[None]:
    """Run queues, and cancel them at the end. All their tasks end as well."""
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


def make_job(
    job_type: str = "query", job_input: dict[str, Any] | None = None, **fields: Any
) -> Job:
    now = time.time()
    defaults: dict[str, Any] = {
        "id": new_id(),
        "type": job_type,
        "input": job_input or {"question": "how many?"},
        "created_at": now,
        "deadline": now + 60,
        "max_attempts": 3,
        "rank": now,
    }
    return Job(**{**defaults, **fields})


def make_job_with_webhook() -> Job:
    return make_job(webhook=Webhook(URL))


async def wait_until_ended(queue: JobQueue, job_id: str, timeout_s: float = 10.0) -> Job:
    async with asyncio.timeout(timeout_s):
        job: Job | None = None
        while job is None or not job.state.is_terminal:
            job = await queue.watch(job_id, job, 1.0)
        return job


async def wait_until(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
