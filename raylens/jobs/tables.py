"""The schema of the SQL stores, as :mod:`raylens.jobs.migrations` makes it, and rows to nouns and
back."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from sqlalchemy import (
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    RowMapping,
    String,
    Table,
    Text,
)

from raylens.jobs.job import Delivery, DeliveryState, Job, JobState, Problem, Progress, Webhook

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("type", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("rank", Float(53), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("input", Text, nullable=False),
    Column("extra", Text, nullable=False),
    Column("blobs", Text, nullable=False),
    Column("output", Text),
    Column("problem", Text),
    Column("progress", Text),
    Column("webhook_url", Text),
    Column("webhook_secret", Text),
    Column("idempotency_key", String(255), unique=True),
    Column("digest", String(64), nullable=False),
    Column("created_at", Float(53), nullable=False),
    Column("run_after", Float(53), nullable=False),
    Column("deadline", Float(53), nullable=False),
    Column("started_at", Float(53)),
    Column("finished_at", Float(53)),
    Column("attempts", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("lease_owner", String(64)),
    Column("lease_until", Float(53)),
)
Index("jobs_by_state", jobs.c.state, jobs.c.id)
Index("jobs_by_rank", jobs.c.state, jobs.c.rank, jobs.c.id)
Index("jobs_by_end", jobs.c.state, jobs.c.finished_at)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("job_id", String(36), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("event", String(64), nullable=False),
    Column("url", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("secret", Text),
    Column("body", Text, nullable=False),
    Column("created_at", Float(53), nullable=False),
    Column("next_at", Float(53), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("status", Integer),
    Column("problem", Text),
    Column("delivered_at", Float(53)),
    Column("fence", Integer, nullable=False),
    Column("lease_until", Float(53)),
)
Index("deliveries_of_job", deliveries.c.job_id, deliveries.c.number, unique=True)
Index("deliveries_by_time", deliveries.c.state, deliveries.c.next_at, deliveries.c.id)

gone_endpoints = Table("gone_endpoints", metadata, Column("url", Text, primary_key=True))

blobs = Table(
    "blobs",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("touched_at", Float(53), nullable=False),
)
job_blobs = Table(
    "job_blobs",
    metadata,
    Column("job_id", String(36), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("digest", String(64), primary_key=True),
)
Index("job_blobs_by_digest", job_blobs.c.digest)

MUTABLE_COLUMNS = (
    *(
        "state",
        "rank",
        "output",
        "problem",
        "progress",
        "run_after",
        "deadline",
        "started_at",
        "finished_at",
    ),
    *("attempts", "max_attempts", "fence", "lease_owner", "lease_until"),
)
"""The columns of a job that change after it has been added."""


def job_row(job: Job) -> dict[str, Any]:
    row = {name: getattr(job, name) for column in jobs.c if hasattr(job, name := column.name)}
    for name in ("input", "extra", "blobs", "output"):
        row[name] = _dumps(getattr(job, name))
    for name in ("problem", "progress"):
        value = getattr(job, name)
        row[name] = None if value is None else _dumps(asdict(value))
    webhook = job.webhook
    return {
        **row,
        "webhook_url": webhook and webhook.url,
        "webhook_secret": webhook and webhook.secret,
    }


def job_of(row: RowMapping) -> Job:
    values: dict[str, Any] = dict(row)
    url, secret = values.pop("webhook_url"), values.pop("webhook_secret")
    for name in ("input", "extra", "output", "problem", "progress", "blobs"):
        values[name] = None if values[name] is None else json.loads(values[name])
    return Job(
        **{
            **values,
            "state": JobState(values["state"]),
            "blobs": tuple(values["blobs"]),
            "problem": values["problem"] and Problem(**values["problem"]),
            "progress": values["progress"] and Progress(**values["progress"]),
            "webhook": url and Webhook(url, secret),
        }
    )


def delivery_row(delivery: Delivery) -> dict[str, Any]:
    row = {
        name: getattr(delivery, name)
        for column in deliveries.c
        if hasattr(delivery, name := column.name)
    }
    return {**row, "url": delivery.webhook.url, "secret": delivery.webhook.secret}


def delivery_of(row: RowMapping) -> Delivery:
    values: dict[str, Any] = dict(row)
    webhook = Webhook(values.pop("url"), values.pop("secret"))
    del values["host"]  # it follows from the URL
    return Delivery(**{**values, "state": DeliveryState(values["state"]), "webhook": webhook})


def _dumps(value: Any) -> str | None:
    return None if value is None else json.dumps(value, separators=(",", ":"))
