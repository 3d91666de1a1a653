"""Webhooks by the Standard Webhooks specification 1.0.0: bodies, signatures, retry schedule.

https://www.standardwebhooks.com
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from raylens.jobs.job import Delivery, Job, JobState, Webhook
from raylens.net.retry_after import parse_retry_after

MAX_BODY_BYTES = 20_000
"""Bodies are smaller than this: a larger one links to the output instead of containing it."""
MAX_MESSAGE_CHARS = 2000
"""Longest error message in a body."""
STARTED = "job.started"
EVENTS: Mapping[JobState, str] = {
    JobState.RUNNING: STARTED,
    JobState.SUCCEEDED: "job.succeeded",
    JobState.FAILED: "job.failed",
    JobState.CANCELED: "job.canceled",
}
"""The event for each state. A queued job has none."""
RETRY_DELAYS_S = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Seconds between attempts: ten attempts in all."""
JITTER = 0.1
"""Each delay is lengthened by a random amount, at most this fraction of it."""
MAX_HONORED_RETRY_AFTER_S = 86_400.0
"""Longest ``Retry-After`` that is honored, in seconds."""
_SECRET_PREFIX = "whsec_"
MIN_SECRET_BYTES = 24
MAX_SECRET_BYTES = 64


def make_delivery(job: Job, now: float, result_url: str) -> Delivery | None:
    """Return the delivery for a job's state.

    ``now`` is in seconds since the epoch. Return None if the job has no webhook or is queued.
    """
    event = EVENTS.get(job.state)
    if job.webhook is None or event is None:
        return None
    return _deliver(job, job.webhook, event, _make_body(event, job, now, result_url), now)


def make_event_delivery(
    job: Job, event: str, event_data: Mapping[str, Any], now: float
) -> Delivery | None:
    """Return the delivery of something that happened while a job runs.

    ``now`` is in seconds since the epoch. Return None if the job has no webhook.
    """
    if job.webhook is None:
        return None
    data = {"job_id": job.id, "job_type": job.type, **event_data}
    body = {"type": event, "timestamp": format_timestamp(now), "data": data}
    return _deliver(job, job.webhook, event, _to_json(body), now)


def _deliver(job: Job, webhook: Webhook, event: str, body: str, now: float) -> Delivery:
    return Delivery(
        id=f"msg_{uuid.uuid4().hex}",
        job_id=job.id,
        number=0,
        event=event,
        webhook=webhook,
        body=body,
        created_at=now,
        next_at=now,
    )


def _make_body(event: str, job: Job, now: float, result_url: str) -> str:
    """Return ``{type, timestamp, data}`` as JSON, shorter than ``MAX_BODY_BYTES``.

    If the output doesn't fit, ``data.output`` is null and ``data.result_url`` links to it.
    """
    error = None
    if job.state is JobState.FAILED and job.problem is not None:
        problem = job.problem
        error = {
            "code": problem.code,
            "message": problem.message[:MAX_MESSAGE_CHARS],
            "field": problem.field,
        }
    data: dict[str, Any] = {
        "job_id": job.id,
        "job_type": job.type,
        "status": job.state.value,
        "attempts": job.attempts,
        "created_at": format_timestamp(job.created_at),
        "started_at": format_timestamp(job.started_at),
        "finished_at": format_timestamp(job.finished_at),
        "error": error,
        "output": job.output if job.state is JobState.SUCCEEDED else None,
    }
    body = {"type": event, "timestamp": format_timestamp(now), "data": data}
    text = _to_json(body)
    if len(text) < MAX_BODY_BYTES:  # escaped JSON is ASCII: a character is a byte
        return text
    data["output"] = None
    data["result_url"] = result_url
    return _to_json(body)


def make_headers(delivery: Delivery, secrets: Sequence[str], now: float) -> dict[str, str]:
    """Return the headers for an attempt made at ``now``, in seconds since the epoch.

    There is one signature for each secret, and no signature header if there are no secrets.
    """
    timestamp = str(int(now))
    headers = {
        "Content-Type": "application/json",
        "webhook-id": delivery.id,
        "webhook-timestamp": timestamp,
    }
    if secrets:
        content = f"{delivery.id}.{timestamp}.{delivery.body}".encode()
        headers["webhook-signature"] = " ".join(_sign(secret, content) for secret in secrets)
    return headers


def check_secret(secret: str) -> str:
    """Return the secret if it is valid.

    Raises ``ValueError`` unless it is ``whsec_`` followed by the base64 encoding of 24 to 64 bytes.
    """
    try:
        length = len(_decode_secret(secret))
    except (ValueError, binascii.Error):
        length = 0
    is_valid_length = MIN_SECRET_BYTES <= length <= MAX_SECRET_BYTES
    if not secret.startswith(_SECRET_PREFIX) or not is_valid_length:
        raise ValueError("expected whsec_ followed by the base64 encoding of 24 to 64 random bytes")
    return secret


def _decode_secret(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)


def _sign(secret: str, content: bytes) -> str:
    digest = hmac.digest(_decode_secret(secret), content, hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


class Outcome(Enum):
    """The outcome of a delivery attempt. The values are labels of a metric."""

    DELIVERED = "delivered"
    RETRY = "again"
    GONE = "gone"
    """The URL answered 410. Nothing more is sent to it until a delivery to it is redelivered."""
    BLOCKED = "refused"
    """The URL is not allowed, and nothing was sent."""


@dataclass(frozen=True)
class DeliveryResult:
    """The result of a delivery attempt."""

    outcome: Outcome
    status: int | None = None
    """HTTP status of the response, if there was one."""
    problem: str | None = None
    """Why the attempt failed, as text."""
    retry_after_s: float | None = None
    """Shortest time until the next attempt, in seconds."""
    pause_s: float | None = None
    """Seconds during which nothing else is sent to the same URL."""


def classify_response(status: int, retry_after: str | None, now: float) -> DeliveryResult:
    """Return the result of an attempt that got a response.

    ``retry_after`` is its ``Retry-After`` header, and ``now`` is in seconds since the epoch.

    A 2xx status means delivered; 410 disables the endpoint. Every other status, 3xx included, is
    retried. 429, 502, 504 and any ``Retry-After`` header also pause all deliveries to the URL.
    """
    if 200 <= status < 300:
        return DeliveryResult(Outcome.DELIVERED, status)
    problem = f"the endpoint answered {status}"
    if status == 410:
        return DeliveryResult(Outcome.GONE, status, problem)
    pause = parse_retry_after(retry_after, MAX_HONORED_RETRY_AFTER_S, now)
    if pause is None and status in (429, 502, 504):
        pause = RETRY_DELAYS_S[0]
    return DeliveryResult(Outcome.RETRY, status, problem, retry_after_s=pause, pause_s=pause)


def next_delay(attempts: int, retry_after_s: float | None) -> float | None:
    """Return the seconds to wait after attempt number ``attempts``, or None if it was the last."""
    if attempts > len(RETRY_DELAYS_S):
        return None
    delay = RETRY_DELAYS_S[attempts - 1] * random.uniform(1, 1 + JITTER)
    return max(delay, retry_after_s or 0.0)


def format_timestamp(time: float | None) -> str | None:
    """Format a time as ISO 8601 in UTC, to the millisecond."""
    if time is None:
        return None
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds")


def _to_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
