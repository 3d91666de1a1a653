"""The moves of a job, as functions from a job to the next: the only place where its state changes."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from raylens.core.errors import Conflict, RaylensError
from raylens.jobs.job import TRANSITIONS, Job, JobState, Problem, rank_of


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter, as in "Exponential Backoff And Jitter" (AWS
    Architecture Blog, 2015).

    Seconds; an error's own ``retry_after`` is the least that is waited.
    """

    base_s: float
    longest_s: float

    def delay(self, attempt: int, retry_after: float | None) -> float:
        """Before the attempt after number ``attempt``, which counts from 1."""
        bound: float = min(self.longest_s, self.base_s * 2.0 ** min(attempt - 1, 32))
        return (retry_after or 0.0) + random.uniform(0, bound)


def stamp_arrival(job: Job, now: float) -> Job:
    """A new job by the store's clock, which may be another than that of whoever made it."""
    late = now - job.created_at
    return replace(
        job,
        created_at=now,
        rank=job.rank + late,
        deadline=job.deadline + late,
        run_after=job.run_after + late if job.run_after else now,
    )


def start(job: Job, now: float, owner: str, lease_until: float) -> Job:
    """A job that is due, claimed; or failed, where its time or its attempts are used up."""
    if now >= job.deadline:
        return fail(
            job, Problem("deadline_exceeded", "the deadline passed before the job was done"), now
        )
    if job.attempts >= job.max_attempts:
        return fail(
            job,
            Problem("attempt_lost", f"attempt {job.attempts}, the last one, died without a word"),
            now,
        )
    return replace(
        _moved(job, JobState.RUNNING),
        attempts=job.attempts + 1,
        fence=job.fence + 1,
        lease_owner=owner,
        lease_until=lease_until,
        started_at=now if job.started_at is None else job.started_at,
    )


def succeed(job: Job, output: dict[str, Any], now: float) -> Job:
    return replace(_ended(job, JobState.SUCCEEDED, now), output=output, problem=None)


def fail(job: Job, problem: Problem, now: float) -> Job:
    return replace(_ended(job, JobState.FAILED, now), problem=problem)


def cancel(job: Job, now: float) -> Job:
    """Takes effect at once: what a running attempt still brings has the wrong fence. Raises
    ``Conflict``.

    The lease stays known: until it ends, the attempt may go on in a process that hasn't heard of
    it.
    """
    return replace(
        _ended(job, JobState.CANCELED, now), fence=job.fence + 1, lease_until=job.lease_until
    )


def retry_or_fail(job: Job, error: RaylensError, policy: RetryPolicy, now: float) -> Job:
    """After a failed attempt: queued for the next, or failed where another can't help or there is
    none."""
    problem = Problem(error.code, error.message, error.field)
    if not error.retryable or job.attempts >= job.max_attempts:
        return fail(job, problem, now)
    run_after = now + policy.delay(job.attempts, error.retry_after)
    if run_after >= job.deadline:
        return fail(job, problem, now)
    return replace(_moved(job, JobState.QUEUED), run_after=run_after, problem=problem, **_NO_LEASE)


def retry(job: Job, now: float, attempts: int, timeout: float) -> Job:
    """By hand, from the end: with as many attempts and as much time as a new job has. Raises
    ``Conflict``."""
    if not job.state.is_terminal:
        raise Conflict(f"job_id: the job is {job.state}, and goes on by itself", "job_id")
    return replace(
        _moved(job, JobState.QUEUED),
        max_attempts=job.attempts + attempts,
        deadline=now + timeout,
        run_after=max(now, job.lease_until or now),
        rank=rank_of(job.priority, now),
        **_NO_LEASE,
        finished_at=None,
        started_at=None,
        problem=None,
    )


_NO_LEASE: dict[str, Any] = {"lease_owner": None, "lease_until": None}


def _ended(job: Job, state: JobState, now: float) -> Job:
    return replace(_moved(job, state), finished_at=now, **_NO_LEASE)


def _moved(job: Job, state: JobState) -> Job:
    if state not in TRANSITIONS[job.state]:
        raise Conflict(f"job_id: the job is {job.state}, and can't become {state}", "job_id")
    return replace(job, state=state)
