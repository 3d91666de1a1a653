"""A queue in this process, over a store in memory, a fake model and a fake webhook client.

Time is virtual: a test that waits for a day takes milliseconds.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from raylens.core.config import AppConfig, JobsConfig
from raylens.core.key_source import KeySource
from raylens.core.ports import VisionService
from raylens.core.recipe import Recipe
from raylens.core.types import (
    Caller,
    Delta,
    Findings,
    FinishReason,
    MediaFile,
    ModelInfo,
    PictureFile,
    Priority,
    ProcessedPicture,
    Usage,
    VisionRequest,
)
from raylens.jobs.blobs import BlobStorage
from raylens.jobs.clock import Clock, StoreClock
from raylens.jobs.inference import InferenceClient
from raylens.jobs.job import BULKY_FIELDS, Job, JobState, Webhook, new_id
from raylens.jobs.job_files import JobFiles
from raylens.jobs.memory import MemoryStore
from raylens.jobs.metrics import JobMetrics
from raylens.jobs.picture_storage import PictureStorage
from raylens.jobs.queue import JobQueue
from raylens.jobs.registry import load_job_types
from raylens.jobs.runner import TypedJobRunner
from raylens.jobs.store import Change, JobStore, StoreUnavailable
from raylens.jobs.types.base import JobType
from raylens.jobs.webhook_dispatcher import WebhookClient
from testing.virtual_time import EPOCH, VirtualClock, VirtualTimePolicy

APP = AppConfig.model_validate({"models": [{"name": "moondream", "family": "moondream"}]})
URL = "https://hooks.example.com/raylens"


def _answer_two_circles(request: VisionRequest, pictures: Sequence[MediaFile]) -> str:
    return "two circles"


@dataclass
class FakeService(VisionService):
    """A vision service that answers each request with ``answer``, after ``seconds``.

    It first raises each of ``errors``, one a request.
    """

    answer: Callable[[VisionRequest, Sequence[MediaFile]], str] = _answer_two_circles
    find: Callable[[VisionRequest], Findings] = lambda _: Findings()
    seconds: float = 0.0
    errors: list[Exception] = field(default_factory=list)
    requests: list[VisionRequest] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)
    running: int = 0
    most_at_once: int = 0
    stopped: int = 0
    tasks: tuple[str, ...] = ("caption", "query", "detect", "point")

    async def generate(
        self, request: VisionRequest, pictures: Sequence[MediaFile]
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
            yield Delta(text, 0, FinishReason.STOP, Usage(1, 1), findings=self.find(request))
        except (asyncio.CancelledError, GeneratorExit):
            self.stopped += 1
            raise
        finally:
            self.running -= 1

    async def preprocess(
        self, picture: PictureFile, recipe: Recipe, caller: Caller
    ) -> ProcessedPicture:
        raise NotImplementedError

    async def model_info(self, name: str) -> ModelInfo:
        return ModelInfo(name, "pocket", "moondream", "cpu", self.tasks)


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


@pytest.fixture
def event_loop_policy() -> VirtualTimePolicy:
    return VirtualTimePolicy()


@dataclass
class QueueParts:
    """The parts of a queue. Tests inspect them, and share them between queues."""

    machine: Clock
    store: JobStore
    blobs: BlobStorage
    service: FakeService
    webhook_client: FakeWebhookClient
    app: AppConfig = APP
    types: dict[str, JobType] = field(default_factory=lambda: dict(load_job_types()))
    metrics: RecordingMetrics = field(default_factory=lambda: RecordingMetrics())
    free_bytes: float = math.inf

    @property
    def clock(self) -> VirtualClock:
        assert isinstance(self.machine, VirtualClock)
        return self.machine

    def make_queue(self, secrets: Sequence[str] = (), **settings: Any) -> JobQueue:
        """Return a queue with the default configuration, but for ``settings``."""
        config = JobsConfig.model_validate({**self.app.jobs.model_dump(), **settings})
        inference = InferenceClient(self.service, self.app)
        clock = StoreClock(self.machine)
        pictures = PictureStorage(self.store, self.blobs, config, clock, lambda: self.free_bytes)
        files = JobFiles(self.store, pictures)
        runner = TypedJobRunner(self.types, inference, self.blobs, files, config, self.machine)
        return JobQueue(
            self.store,
            pictures,
            runner,
            self.webhook_client,
            secrets,
            config,
            clock,
            self.metrics,
            KeySource(self.app).limits_of,
        )


class RecordingMetrics(JobMetrics):
    """The ends of jobs and of attempts, in order, and the latest state of the queue."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, JobState]] = []
        self.attempts: list[str] = []
        self.waits: list[float] = []
        self.is_available: list[bool] = []
        self.free_bytes: list[tuple[float, float]] = []

    def record_wait(self, seconds: float) -> None:
        self.waits.append(seconds)

    def record_store(self, is_available: bool) -> None:
        self.is_available.append(is_available)

    def record_free_bytes(self, free: float, limit: float) -> None:
        self.free_bytes.append((free, limit))

    def record_end(self, job_type: str, state: JobState, duration_s: float | None) -> None:
        self.ends.append((job_type, state))

    def record_attempt(self, job_type: str, code: str) -> None:
        self.attempts.append(code)


@pytest.fixture
def parts() -> QueueParts:
    clock = VirtualClock()
    blobs = BlobStorage(f"memory://{new_id()}")
    return QueueParts(clock, MemoryStore(clock), blobs, FakeService(), FakeWebhookClient())


class FlakyStore(MemoryStore):
    """A store whose methods named in ``failing`` raise ``error``."""

    def __init__(self, parts: QueueParts) -> None:
        super().__init__(parts.clock)
        self.failing: set[str] = set()
        self.error: Exception = StoreUnavailable("the database has gone")

    def _check(self, method: str) -> None:
        if method in self.failing:
            raise self.error

    async def count_by_state(self) -> dict[JobState, int]:
        self._check("count_by_state")
        return await super().count_by_state()

    async def claim(self, *arguments: Any) -> list[Job]:
        self._check("claim")
        return await super().claim(*arguments)

    async def change(self, changes: Sequence[Change]) -> Any:
        self._check("change")
        return await super().change(changes)

    async def renew(self, fences: Mapping[str, int], until: float) -> set[str]:
        self._check("renew")
        return await super().renew(fences, until)

    async def add(self, new_jobs: Sequence[Job], capacity: int, *rest: Any) -> Any:
        self._check("add")
        return await super().add(new_jobs, capacity, *rest)

    async def get(
        self, job_ids: Collection[str], bulky_fields: Collection[str] = BULKY_FIELDS
    ) -> dict[str, Job]:
        self._check("get")
        return await super().get(job_ids, bulky_fields)


ALL_METHODS = {"claim", "change", "renew", "add", "get"}


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
    """Return a job with the default limits, submitted now."""
    now = EPOCH + asyncio.get_running_loop().time()
    config = JobsConfig()
    defaults: dict[str, Any] = {
        "id": new_id(),
        "type": job_type,
        "input": job_input or {"question": "how many?"},
        "created_at": now,
        "deadline": now + config.timeout_s,
        "max_attempts": config.max_attempts,
        "rank": now,
        "model": "moondream",
    }
    return Job(**{**defaults, **fields})


def make_job_with_webhook() -> Job:
    return make_job(webhook=Webhook(URL))


async def wait_until_ended(queue: JobQueue, job_id: str) -> Job:
    return await wait_for(queue, job_id, lambda job: job.state.is_terminal)


async def wait_for(queue: JobQueue, job_id: str, condition: Callable[[Job], bool]) -> Job:
    cursor: str | None = None
    async with asyncio.timeout(7 * 86_400):
        while True:
            changes = await queue.wait_for_changes(cursor, 60)
            job = await queue.get(job_id)
            if condition(job):
                return job
            cursor = changes.cursor


async def run_jobs(queue: JobQueue, *jobs: Job, pictures: Mapping[str, bytes] = {}) -> list[Job]:
    """Submit jobs to a queue, and return them once all have ended."""
    async with serving(queue):
        for job in jobs:
            await queue.submit(job, pictures)
        return [await wait_until_ended(queue, job.id) for job in jobs]


async def wait_until(condition: Callable[[], Any], timeout_s: float = 600.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def now() -> float:
    """Return the time of the queue's clock, if the wall clock has not been set."""
    return EPOCH + asyncio.get_running_loop().time()
