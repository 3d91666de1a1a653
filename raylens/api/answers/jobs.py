"""Answers about background jobs."""

from __future__ import annotations

from typing import Any, Literal

from raylens.api.answers.base import LEFT_OUT, Answer
from raylens.jobs.job import JobState


class Progress(Answer):
    done: int
    total: int


class JobProblem(Answer):
    code: str
    message: str
    field: str | None


class Job(Answer):
    """A job. Lists leave out ``input`` and ``partial_output``, or what ``fields`` doesn't name."""

    id: str
    job_type: str
    status: JobState
    priority: int
    attempts: int
    max_attempts: int
    progress: Progress | None
    input: dict[str, Any]
    query: Any
    domain_id: Any
    output: dict[str, Any] | None
    partial_output: dict[str, Any] | None
    error: JobProblem | None
    webhook_url: str | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    next_attempt_at: str | None
    deadline: str


class ListedJob(Answer):
    """A job with the fields that were asked for."""

    id: str = LEFT_OUT
    job_type: str = LEFT_OUT
    status: JobState = LEFT_OUT
    priority: int = LEFT_OUT
    attempts: int = LEFT_OUT
    max_attempts: int = LEFT_OUT
    progress: Progress | None = LEFT_OUT
    input: dict[str, Any] = LEFT_OUT
    query: Any = LEFT_OUT
    domain_id: Any = LEFT_OUT
    output: dict[str, Any] | None = LEFT_OUT
    partial_output: dict[str, Any] | None = LEFT_OUT
    error: JobProblem | None = LEFT_OUT
    webhook_url: str | None = LEFT_OUT
    created_at: str = LEFT_OUT
    started_at: str | None = LEFT_OUT
    finished_at: str | None = LEFT_OUT
    next_attempt_at: str | None = LEFT_OUT
    deadline: str = LEFT_OUT


class JobPage(Answer):
    jobs: list[ListedJob]
    next_cursor: str | None


class Delivery(Answer):
    number: int
    webhook_id: str
    event: str
    url: str
    status: Literal["pending", "delivered", "failed", "disabled"]
    attempts: int
    http_status: int | None
    error: str | None
    created_at: str
    next_attempt_at: str | None
    delivered_at: str | None


class Deliveries(Answer):
    deliveries: list[Delivery]
