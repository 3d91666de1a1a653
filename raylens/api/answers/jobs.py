"""Answers about background jobs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import create_model

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


_optional: dict[str, Any] = {
    name: (field.annotation, LEFT_OUT) for name, field in Job.model_fields.items()
}
ListedJob = create_model(
    "ListedJob",
    __base__=Answer,
    __doc__="A job with the fields that were asked for.",
    **_optional,
)


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
