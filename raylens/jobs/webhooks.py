"""Webhooks as Standard Webhooks 1.0.0 has them (https://www.standardwebhooks.com): events, bodies,
signatures, and what an endpoint's answer means."""

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

from raylens.jobs.job import Delivery, Job, JobState
from raylens.net.retry_after import parse_retry_after

MAX_BODY = 20_000
"""Bytes; a larger result is left where it is, and the body tells where."""
STARTED = "job.started"
EVENTS: Mapping[JobState, str] = {
    JobState.RUNNING: STARTED,
    JobState.SUCCEEDED: "job.succeeded",
    JobState.FAILED: "job.failed",
    JobState.CANCELED: "job.canceled",
}
SCHEDULE = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Seconds between the attempts: ten attempts in all."""
JITTER = 0.1
_PREFIX = "whsec_"
LONGEST_RETRY_AFTER = 86_400.0


def delivery(job: Job, now: float, result_url: str) -> Delivery | None:
    """What tells a job's webhook of the state that the job is in now; None where it has none, or
    waits."""
    event = EVENTS.get(job.state)
    if job.webhook is None or event is None:
        return None
    return Delivery(
        id=f"msg_{uuid.uuid4().hex}",
        job_id=job.id,
        number=0,
        event=event,
        webhook=job.webhook,
        body=body(event, job, now, result_url),
        created_at=now,
        next_at=now,
    )


def body(event: str, job: Job, now: float, result_url: str) -> str:
    """``{type, timestamp, data}``, under ``MAX_BODY`` bytes whatever the job's result."""
    problem = job.problem if job.state is JobState.FAILED else None
    data: dict[str, Any] = {
        "job_id": job.id,
        "job_type": job.type,
        "status": job.state.value,
        "attempts": job.attempts,
        "created_at": iso(job.created_at),
        "started_at": iso(job.started_at),
        "finished_at": iso(job.finished_at),
        "error": problem
        and {"code": problem.code, "message": problem.message[:2000], "field": problem.field},
    }
    output = job.output if job.state is JobState.SUCCEEDED else None
    whole = _json({"type": event, "timestamp": iso(now), "data": {**data, "output": output}})
    if len(whole) < MAX_BODY:
        return whole
    return _json(
        {
            "type": event,
            "timestamp": iso(now),
            "data": {**data, "output": None, "result_url": result_url},
        }
    )


def headers(delivery: Delivery, secrets: Sequence[str], now: float) -> dict[str, str]:
    """Of an attempt at ``now``; signed with each of the secrets, or not at all where there is none."""
    timestamp = str(int(now))
    signed = {
        "Content-Type": "application/json",
        "webhook-id": delivery.id,
        "webhook-timestamp": timestamp,
    }
    if secrets:
        content = f"{delivery.id}.{timestamp}.{delivery.body}".encode()
        signed["webhook-signature"] = " ".join(_signature(secret, content) for secret in secrets)
    return signed


def check_secret(secret: str) -> str:
    """The secret. Raises ``ValueError`` unless it is ``whsec_`` and the base64 of 24 to 64 bytes."""
    try:
        length = len(_key(secret))
    except (ValueError, binascii.Error):
        length = 0
    if not secret.startswith(_PREFIX) or not 24 <= length <= 64:
        raise ValueError("a secret is whsec_ and the base64 of 24 to 64 random bytes")
    return secret


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)


def _signature(secret: str, content: bytes) -> str:
    return "v1," + base64.b64encode(hmac.digest(_key(secret), content, hashlib.sha256)).decode()


class Outcome(Enum):
    DELIVERED = "delivered"
    RETRY = "again"
    GONE = "gone"


@dataclass(frozen=True)
class Verdict:
    """What an endpoint's answer means. ``slow_s``: how long nothing else should be sent there, in
    seconds."""

    outcome: Outcome
    retry_after_s: float | None = None
    slow_s: float | None = None


def judge(status: int, retry_after: str | None, now: float) -> Verdict:
    """2xx delivers, 410 ends all, 429, 502 and 504 slow down, and all else, 3xx too, is tried
    again."""
    if 200 <= status < 300:
        return Verdict(Outcome.DELIVERED)
    if status == 410:
        return Verdict(Outcome.GONE)
    wait = parse_retry_after(retry_after, LONGEST_RETRY_AFTER, now)
    if wait is None and status in (429, 502, 504):
        wait = SCHEDULE[0]
    return Verdict(Outcome.RETRY, wait, wait)


def next_attempt(attempts: int, retry_after: float | None) -> float | None:
    """Seconds after attempt number ``attempts`` until the next; None where that was the last."""
    if attempts > len(SCHEDULE):
        return None
    wait = SCHEDULE[attempts - 1] * random.uniform(1, 1 + JITTER)
    return max(wait, retry_after or 0.0)


def iso(moment: float | None) -> str | None:
    return (
        None
        if moment is None
        else datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
    )


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
