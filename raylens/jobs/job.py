"""The nouns of the queue: a job, its states and the moves between them, and the deliveries that
tell of it.

Times are seconds since the epoch.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

PRIORITY_S = 60.0
"""What a step of priority is worth, in seconds of waiting: so no job waits for ever."""


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
TRANSITIONS: Mapping[JobState, frozenset[JobState]] = MappingProxyType(
    {
        # To failed: its deadline has passed before anyone took it.
        JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELED}),
        # To running: its lease has ended, and another takes it. To queued: it is tried again.
        JobState.RUNNING: frozenset({JobState.RUNNING, JobState.QUEUED, *TERMINAL}),
        JobState.SUCCEEDED: frozenset(),
        # By hand only.
        JobState.FAILED: frozenset({JobState.QUEUED}),
        JobState.CANCELED: frozenset({JobState.QUEUED}),
    }
)


@dataclass(frozen=True)
class Problem:
    """Why a job, or its last attempt, failed: an error of :mod:`raylens.core.errors` as data."""

    code: str
    message: str
    field: str | None = None


@dataclass(frozen=True)
class Progress:
    done: int
    total: int


@dataclass(frozen=True)
class Webhook:
    """Whom a job's end is told. Without a ``secret`` the server's own signs, and without that
    nothing does."""

    url: str
    secret: str | None = None


@dataclass(frozen=True)
class Job:
    """One job, as a store keeps it.

    ``input`` is JSON whose pictures are references to blobs, ``blob:<sha256>``; ``blobs`` are their
    digests. ``extra`` is what the sender wants back as it came. While a job runs, ``output`` is
    what its next attempt may go on from. ``fence`` grows with every claim, and a result counts only
    under the fence that it was claimed with.
    """

    id: str
    type: str
    input: dict[str, Any]
    created_at: float
    deadline: float
    max_attempts: int
    rank: float
    """Who goes first, by :func:`rank_of`."""
    state: JobState = JobState.QUEUED
    priority: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    blobs: tuple[str, ...] = ()
    webhook: Webhook | None = None
    idempotency_key: str | None = None
    digest: str = ""
    """Of the whole request: the same key with another one is a conflict."""
    run_after: float = 0.0
    attempts: int = 0
    """Ever begun; ``max_attempts`` bounds them."""
    progress: Progress | None = None
    output: dict[str, Any] | None = None
    problem: Problem | None = None
    started_at: float | None = None
    finished_at: float | None = None
    fence: int = 0
    lease_owner: str | None = None
    lease_until: float | None = None

    @property
    def seconds(self) -> float | None:
        """From the first attempt's start to the end."""
        return (
            None
            if self.started_at is None or self.finished_at is None
            else self.finished_at - self.started_at
        )


class DeliveryState(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
    """Given up, after the last of the schedule's attempts."""
    DISABLED = "disabled"
    """The endpoint has answered 410: it wants no more."""


@dataclass(frozen=True)
class Delivery:
    """One event on its way to one endpoint. ``id`` is its ``webhook-id``, the same in every
    attempt."""

    id: str
    job_id: str
    number: int
    """1 for the job's first."""
    event: str
    webhook: Webhook
    body: str
    created_at: float
    next_at: float
    state: DeliveryState = DeliveryState.PENDING
    attempts: int = 0
    status: int | None = None
    """What the endpoint answered last."""
    problem: str | None = None
    delivered_at: float | None = None
    fence: int = 0
    lease_until: float | None = None

    @property
    def host(self) -> str:
        """The endpoint's host and port."""
        return urlsplit(self.webhook.url).netloc.lower()


@dataclass(frozen=True)
class Stats:
    """How the queue stands. ``mean_s`` and ``p95_s``: seconds from start to end of the jobs that
    succeeded last."""

    counts: Mapping[JobState, int]
    capacity: int
    workers: int
    mean_s: float | None
    p95_s: float | None


def rank_of(priority: int, since: float) -> float:
    """Of a job that has waited since then."""
    return since - priority * PRIORITY_S


def new_id() -> str:
    """A UUID of version 7 (RFC 9562, section 5.7): in the order of time, to the millisecond."""
    random = int.from_bytes(os.urandom(10))
    value = (time.time_ns() // 1_000_000 & (1 << 48) - 1) << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))
