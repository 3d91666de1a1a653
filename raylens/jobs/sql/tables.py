"""The schema of the SQL stores, and the conversion between rows and objects.

:mod:`raylens.jobs.sql.migrations` creates the same schema in the database.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    RowMapping,
    String,
    Table,
    Text,
    literal,
    literal_column,
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
    Column("model", String(128), nullable=False),
    Column("capacity_failures", Integer, nullable=False),
    Column("pictures_removed", Boolean, nullable=False),
    Column("owner", String(64), nullable=False),
    Column("client", String(64), nullable=False),
)
is_queued = jobs.c.state == literal_column("'queued'")
"""The condition of a partial index, which a database uses only if a query repeats it."""


def is_of_type(name: str) -> ColumnElement[bool]:
    """Return a condition with the name as a literal, so that a partial index can be used."""
    return jobs.c.type == literal(name, literal_execute=True)


is_batch = jobs.c.type == literal_column("'openai_batch'")
is_watch = jobs.c.type == literal_column("'watch'")
Index("jobs_by_state", jobs.c.state, jobs.c.id)
Index("jobs_by_owner", jobs.c.owner, jobs.c.id)
Index("jobs_by_client", jobs.c.client, jobs.c.state)
Index("jobs_by_deadline", jobs.c.deadline, sqlite_where=is_queued, postgresql_where=is_queued)
Index("batches", jobs.c.id, sqlite_where=is_batch, postgresql_where=is_batch)
Index(
    "watches",
    *(jobs.c.state, jobs.c.rank, jobs.c.id),
    sqlite_where=is_watch,
    postgresql_where=is_watch,
)
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
    Column("size", BigInteger, nullable=False),
    Column("removing_until", Float(53)),
)
job_blobs = Table(
    "job_blobs",
    metadata,
    Column("job_id", String(36), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("digest", String(64), primary_key=True),
)
Index("job_blobs_by_digest", job_blobs.c.digest)

files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("created_at", Float(53), nullable=False),
    Column("expires_at", Float(53), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("owner", String(64), nullable=False),
    Column("client", String(64), nullable=False),
)
Index("files_by_client", files.c.client)
file_parts = Table(
    "file_parts",
    metadata,
    Column("file_id", String(64), ForeignKey("files.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("digest", String(64), nullable=False),
)
Index("file_parts_by_digest", file_parts.c.digest)

counters = Table(
    "counters",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
"""The number of jobs in each state, by its name, and the bytes of all blobs."""
anchors = Table(
    "anchors",
    metadata,
    Column("boot_id", String(64), primary_key=True),
    Column("epoch", Float(53), nullable=False),
)
"""What to add to the monotonic clock of one start of the machine, to get the store's time."""

MUTABLE_COLUMNS = (
    "state",
    "rank",
    "output",
    "problem",
    "progress",
    "run_after",
    "deadline",
    "started_at",
    "finished_at",
    "attempts",
    "max_attempts",
    "capacity_failures",
    "fence",
    "lease_owner",
    "lease_until",
)
"""The columns that a transition may change."""


def job_to_row(job: Job) -> dict[str, Any]:
    names = [column.name for column in jobs.c]
    # The webhook columns are filled in below.
    row = {name: getattr(job, name) for name in names if hasattr(job, name)}
    for name in ("input", "extra", "blobs", "output"):
        row[name] = _to_json(getattr(job, name))
    for name in ("problem", "progress"):
        value = getattr(job, name)
        row[name] = None if value is None else _to_json(asdict(value))
    webhook = job.webhook
    row["webhook_url"] = webhook and webhook.url
    row["webhook_secret"] = webhook and webhook.secret
    return row


def job_from_row(row: RowMapping) -> Job:
    """Return the job of a row. Its input and output are empty if the row has none."""
    values: dict[str, Any] = {"input": "{}", "output": None, **row}
    url = values.pop("webhook_url")
    secret = values.pop("webhook_secret")
    for name in ("input", "extra", "output", "problem", "progress", "blobs"):
        values[name] = None if values[name] is None else json.loads(values[name])
    values["state"] = JobState(values["state"])
    values["blobs"] = tuple(values["blobs"])
    values["problem"] = values["problem"] and Problem(**values["problem"])
    values["progress"] = values["progress"] and Progress(**values["progress"])
    values["webhook"] = url and Webhook(url, secret)
    return Job(**values)


def delivery_to_row(delivery: Delivery) -> dict[str, Any]:
    names = [column.name for column in deliveries.c]
    # The columns ``url`` and ``secret`` are filled in below.
    row = {name: getattr(delivery, name) for name in names if hasattr(delivery, name)}
    row["url"] = delivery.webhook.url
    row["secret"] = delivery.webhook.secret
    return row


def delivery_from_row(row: RowMapping) -> Delivery:
    values: dict[str, Any] = dict(row)
    del values["host"]  # derived from the URL
    values["webhook"] = Webhook(values.pop("url"), values.pop("secret"))
    values["state"] = DeliveryState(values["state"])
    return Delivery(**values)


def _to_json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, separators=(",", ":"))
