"""Jobs and their webhook deliveries as JSON."""

from __future__ import annotations

from typing import Any

from raylens.core.errors import InvalidRequest
from raylens.jobs.job import Delivery, Job, JobState
from raylens.jobs.types.watch import JOB_TYPE as WATCH
from raylens.jobs.webhooks import format_timestamp
from raylens.realtime.sources.guard import shown_source

FIELDS = (
    "id",
    "job_type",
    "status",
    "priority",
    "attempts",
    "max_attempts",
    "progress",
    "input",
    "query",
    "domain_id",
    "output",
    "partial_output",
    "error",
    "webhook_url",
    "created_at",
    "started_at",
    "finished_at",
    "next_attempt_at",
    "deadline",
)
"""The fields of a job."""
LIST_FIELDS = frozenset(FIELDS) - {"input", "partial_output"}
"""The fields that lists and events show."""


def find_bulky(fields: frozenset[str]) -> list[str]:
    """Return which of a job's bulky fields these need."""
    needs_output = not fields.isdisjoint(("output", "partial_output"))
    return ["input"] * ("input" in fields) + ["output"] * needs_output


def job_as_json(job: Job, fields: frozenset[str] = frozenset(FIELDS)) -> dict[str, Any]:
    """Return a job as every route shows it. The webhook's secret is left out."""
    problem = job.problem
    progress = job.progress
    has_succeeded = job.state is JobState.SUCCEEDED
    waits_for_retry = job.state is JobState.QUEUED and job.started_at is not None
    body = {
        "id": job.id,
        "job_type": job.type,
        "status": job.state.value,
        "priority": job.priority,
        "attempts": job.attempts,
        "max_attempts": job.max_attempts,
        "progress": progress and {"done": progress.done, "total": progress.total},
        "input": _shown_input(job),
        "query": job.extra.get("query"),
        "domain_id": job.extra.get("domain_id"),
        "output": job.output if has_succeeded else None,
        "partial_output": None if has_succeeded else job.output,
        "error": problem
        and {"code": problem.code, "message": problem.message, "field": problem.field},
        "webhook_url": job.webhook and job.webhook.url,
        "created_at": format_timestamp(job.created_at),
        "started_at": format_timestamp(job.started_at),
        "finished_at": format_timestamp(job.finished_at),
        "next_attempt_at": format_timestamp(job.run_after) if waits_for_retry else None,
        "deadline": format_timestamp(job.deadline),
    }
    return {name: body[name] for name in FIELDS if name in fields}


def _shown_input(job: Job) -> dict[str, Any]:
    if job.type != WATCH or "source" not in job.input:
        return job.input
    return {**job.input, "source": shown_source(job.input["source"])}


def delivery_as_json(delivery: Delivery) -> dict[str, Any]:
    is_pending = delivery.state == "pending"
    return {
        "number": delivery.number,
        "webhook_id": delivery.id,
        "event": delivery.event,
        "url": delivery.webhook.url,
        "status": delivery.state.value,
        "attempts": delivery.attempts,
        "http_status": delivery.status,
        "error": delivery.problem,
        "created_at": format_timestamp(delivery.created_at),
        "next_attempt_at": format_timestamp(delivery.next_at) if is_pending else None,
        "delivered_at": format_timestamp(delivery.delivered_at),
    }


def parse_fields(fields: str) -> frozenset[str]:
    """Return the names in a comma-separated list; the fields of lists if it is empty.

    Raises ``InvalidRequest`` if a name is unknown.
    """
    names = frozenset(name for name in fields.split(",") if name)
    for name in names:
        if name not in FIELDS:
            raise InvalidRequest(
                f"fields: unknown field {name[:32]!r}; known: {', '.join(FIELDS)}", "fields"
            )
    return names or LIST_FIELDS
