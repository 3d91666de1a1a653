"""A job, its states, its webhook deliveries, and the state changes that are legal.

All times are seconds since the epoch, on the store's clock. What the queue returns to its callers
is on the wall clock: :func:`shift_times`.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from raylens.core.errors import UnknownJob

PRIORITY_STEP_S = 60.0
"""Head start in the queue that each priority level gives a job, in seconds.

Waiting this long makes up for one level of priority, so no job starves.
"""


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED})
ALLOWED_TRANSITIONS: Mapping[JobState, frozenset[JobState]] = MappingProxyType(
    {
        # to FAILED: the deadline passed before a process claimed the job.
        JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELED}),
        # to RUNNING: the lease expired and the job was claimed again. To QUEUED: a retry.
        JobState.RUNNING: frozenset({JobState.RUNNING, JobState.QUEUED, *TERMINAL}),
        JobState.SUCCEEDED: frozenset(),
        # to QUEUED: a user requeued the job.
        JobState.FAILED: frozenset({JobState.QUEUED}),
        JobState.CANCELED: frozenset({JobState.QUEUED}),
    }
)
"""The states that each state may change to."""


@dataclass(frozen=True)
class Problem:
    """The error that made a job or its most recent attempt fail.

    The fields are those of a :class:`raylens.core.errors.RaylensError`.
    """

    code: str
    message: str
    field: str | None = None


@dataclass(frozen=True)
class Progress:
    """Completed and total steps of a job: of the attempt that came furthest."""

    done: int
    total: int
    """0 if the job has no end."""

    @property
    def is_complete(self) -> bool:
        return 0 < self.total <= self.done


@dataclass(frozen=True)
class Webhook:
    """The endpoint that receives a job's deliveries.

    ``secret`` signs them. If it is None, the server's own secrets do. If there are none, the
    deliveries are unsigned.
    """

    url: str
    secret: str | None = None


BULKY_FIELDS = frozenset({"input", "output"})
"""Fields of a job that may be large. Whoever reads many jobs can leave them out."""


@dataclass(frozen=True)
class Job:
    """One job, as a store keeps it.

    A process claims a job under a lease. Each claim or cancellation increments ``fence``, the
    fencing token, and the store accepts a result only with the current fence.
    """

    id: str
    type: str
    input: dict[str, Any]
    """JSON. Each picture in it is a reference to a blob, ``blob:<sha256>``."""
    created_at: float
    deadline: float
    """The job fails if it hasn't succeeded by this time, on the store's clock."""
    max_attempts: int
    rank: float
    """Position in the queue: the lowest rank runs first. :func:`compute_rank` computes it."""
    model: str = ""
    """The model that the input names, or the default. It may be a lack of this model's capacity
    that a queued job waits for."""
    state: JobState = JobState.QUEUED
    priority: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    """JSON that is returned to the client unchanged."""
    blobs: tuple[str, ...] = ()
    """SHA-256 digests of the blobs that ``input`` refers to."""
    webhook: Webhook | None = None
    owner: str = ""
    """The name of the API key that submitted it; empty without keys."""
    client: str = ""
    """Whose limits it counts towards: the owner, or an address without keys."""
    idempotency_key: str | None = None
    digest: str = ""
    """SHA-256 of the whole submit request.

    Reusing ``idempotency_key`` with a different digest is a conflict.
    """
    run_after: float = 0.0
    """Earliest time of the next attempt. 0 in a new job means at once."""
    attempts: int = 0
    """Attempts used since the last progress, the running one included; at most ``max_attempts``."""
    capacity_failures: int = 0
    """Attempts since the last progress that ended for lack of capacity. They use up none."""
    progress: Progress | None = None
    output: dict[str, Any] | None = None
    """The result if the job has succeeded. Otherwise the results so far, from which the next
    attempt resumes."""
    problem: Problem | None = None
    started_at: float | None = None
    finished_at: float | None = None
    fence: int = 0
    lease_owner: str | None = None
    lease_until: float | None = None
    pictures_removed: bool = False
    """Whether the pictures were removed some time after the job had failed or been canceled."""

    @property
    def duration_s(self) -> float | None:
        """Seconds from the first attempt, or the first one after a requeue, to the job's end."""
        if self.started_at is None or self.finished_at is None:
            return None
        return self.finished_at - self.started_at


def unknown_job(job_id: str) -> UnknownJob:
    return UnknownJob(f"job_id: unknown job {job_id[:64]!r}", "job_id")


class DeliveryState(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
    """Given up: the retry schedule is exhausted, or the URL is not allowed."""
    DISABLED = "disabled"
    """The URL answered 410. Nothing more is sent to it until a delivery to it is redelivered."""


@dataclass(frozen=True)
class Delivery:
    """One webhook event for one endpoint."""

    id: str
    """The ``webhook-id`` header, the same in every attempt."""
    job_id: str
    number: int
    """Number within the job, from 1. 0 before the store has assigned one."""
    event: str
    webhook: Webhook
    body: str
    created_at: float
    next_at: float
    """Time of the next attempt."""
    state: DeliveryState = DeliveryState.PENDING
    attempts: int = 0
    status: int | None = None
    """HTTP status of the last response."""
    problem: str | None = None
    """Why the last attempt failed, as text."""
    delivered_at: float | None = None
    fence: int = 0
    """Fencing token: each claim and each redelivery increments it."""
    lease_until: float | None = None

    @property
    def host(self) -> str:
        """Host and port of the endpoint."""
        return urlsplit(self.webhook.url).netloc.lower()


_Item = TypeVar("_Item", Job, Delivery)


def shift_times(job: Job, seconds: float) -> Job:
    """Return the job with its times moved from one clock to another."""
    names = ("created_at", "deadline", "rank", "run_after", "started_at", "finished_at")
    return _shift(job, (*names, "lease_until"), seconds)


def shift_delivery_times(delivery: Delivery, seconds: float) -> Delivery:
    """Return the delivery with its times moved from one clock to another."""
    names = ("created_at", "next_at", "delivered_at", "lease_until")
    return _shift(delivery, names, seconds)


def _shift(item: _Item, names: tuple[str, ...], seconds: float) -> _Item:
    if not seconds:
        return item
    times = {name: getattr(item, name) for name in names}
    shifted = {name: time + seconds for name, time in times.items() if time is not None}
    return replace(item, **shifted)


@dataclass(frozen=True)
class Stats:
    """A snapshot of the queue."""

    counts: Mapping[JobState, int]
    """Number of jobs in each state."""
    capacity: int
    """Maximum number of jobs that may be queued."""
    workers: int
    """Maximum number of jobs that this process runs at a time."""
    mean_s: float | None
    """Mean duration of the jobs that succeeded most recently, in seconds."""
    p95_s: float | None
    """95th percentile of the same durations, in seconds."""


def compute_rank(priority: int, since: float) -> float:
    """Return the rank of a job that has waited since ``since``, in seconds since the epoch."""
    return since - priority * PRIORITY_STEP_S


def new_id() -> str:
    """Return a UUID of version 7 (RFC 9562, section 5.7).

    It sorts by creation time, to the millisecond.
    """
    milliseconds = (time.time_ns() // 1_000_000) & ((1 << 48) - 1)
    random_bits = int.from_bytes(os.urandom(10))
    value = (milliseconds << 80) | random_bits
    value = (value & ~(0xF << 76)) | (0x7 << 76)  # version 7
    value = (value & ~(0x3 << 62)) | (0x2 << 62)  # variant
    return str(uuid.UUID(int=value))
