"""The state transitions of a job: pure functions that take a job and return its next version.

All changes of a job's state are made here. No function does I/O. ``now`` is in seconds since the
epoch, on the store's clock.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Any

from raylens.core.errors import Conflict, FailureClass, RaylensError
from raylens.jobs.job import (
    ALLOWED_TRANSITIONS,
    Delivery,
    Job,
    JobState,
    Problem,
    Progress,
    compute_rank,
)

MAX_RETRY_AFTER_S = 3600.0
"""Longest ``Retry-After`` that is obeyed, in seconds."""
_NO_LEASE: dict[str, Any] = {"lease_owner": None, "lease_until": None}


@dataclass(frozen=True)
class JobUpdate:
    """A changed job, and the new deliveries to store with it, in one transaction.

    The store numbers the deliveries. One that it has already is left as it is.
    """

    job: Job
    deliveries: tuple[Delivery, ...] = ()
    only_newest: frozenset[str] = frozenset()
    """Names of events of which the job keeps the newest delivery only, and those under way."""


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter.

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    base_s: float
    """Upper bound of the random backoff after the first failure, in seconds.

    It doubles after each further failure.
    """
    max_s: float
    """Limit on that bound, in seconds."""

    def delay(self, failures: int, retry_after: float | None) -> float:
        """Return the seconds to wait after failure number ``failures``, counted from 1.

        The backoff is added to the error's own ``retry_after``, in seconds, of which at most
        ``MAX_RETRY_AFTER_S`` count.
        """
        wait_s = retry_after or 0.0
        wait_s = min(max(wait_s, 0.0), MAX_RETRY_AFTER_S) if math.isfinite(wait_s) else 0.0
        bound: float = min(self.max_s, self.base_s * 2.0 ** min(failures - 1, 32))
        return wait_s + random.uniform(0, bound)


def move_to_store_clock(job: Job, now: float) -> Job:
    """Convert a submitted job's times from the submitting machine's clock to the store's.

    ``created_at`` becomes ``now``, and the other times shift by the same amount.
    """
    shift = now - job.created_at
    return replace(
        job,
        created_at=now,
        rank=job.rank + shift,
        deadline=job.deadline + shift,
        run_after=job.run_after + shift if job.run_after else now,
    )


def start_or_fail(job: Job, now: float, owner: str, lease_until: float) -> Job:
    """Start the next attempt of a claimed job.

    Fail the job instead if its deadline has passed or no attempt is left. Raises ``Conflict`` if
    the job has ended.
    """
    if now >= job.deadline:
        return expire(job, now)
    if job.attempts >= job.max_attempts:
        message = f"attempt {job.attempts}, the last one, ended without a result"
        return fail(job, Problem("attempt_lost", message), now)
    return replace(
        _with_state(job, JobState.RUNNING),
        attempts=job.attempts + 1,
        fence=job.fence + 1,
        lease_owner=owner,
        lease_until=lease_until,
        started_at=now if job.started_at is None else job.started_at,
    )


def expire(job: Job, now: float) -> Job:
    """Fail a job whose deadline has passed. Raises ``Conflict`` if the job has ended."""
    message = "the deadline passed before the job finished"
    if job.problem is not None:
        message += f"; the last error: {job.problem.message}"
    return fail(job, Problem("deadline_exceeded", message), now)


def succeed(job: Job, output: dict[str, Any], now: float) -> Job:
    """End a job with its output. Raises ``Conflict`` if the job isn't running."""
    return replace(_finish(job, JobState.SUCCEEDED, now), output=output, problem=None)


def fail(job: Job, problem: Problem, now: float) -> Job:
    """End a job with a problem. Raises ``Conflict`` if the job has ended."""
    return replace(_finish(job, JobState.FAILED, now), problem=problem)


def cancel(job: Job, now: float) -> Job:
    """Cancel a job at once. Raises ``Conflict`` if it has ended.

    The new fence invalidates the result of an attempt that is still running. ``lease_until`` is
    kept: until then, the attempt may go on in a process that has not noticed the cancellation.
    """
    canceled = _finish(job, JobState.CANCELED, now)
    return replace(canceled, fence=job.fence + 1, lease_until=job.lease_until)


def report_progress(job: Job, progress: Progress, partial: dict[str, Any] | None) -> Job:
    """Store how far a job has come, and its output so far unless that is None.

    The furthest step counts: an attempt that starts from the beginning again takes nothing back.
    Further steps than before make the attempts count from the current one again: ``max_attempts``
    bounds the attempts without progress.
    """
    done_before = job.progress.done if job.progress is not None else 0
    furthest = replace(progress, done=max(progress.done, done_before))
    reported = replace(job, progress=furthest, output=job.output if partial is None else partial)
    if progress.done <= done_before:
        return reported
    return replace(reported, attempts=min(job.attempts, 1), capacity_failures=0)


def end_failed_attempt(job: Job, error: RaylensError, policy: RetryPolicy, now: float) -> Job:
    """Queue a running job again after a failed attempt, or fail it.

    - Lack of capacity: the job is queued again until its deadline. The attempt doesn't count.
    - A transient failure: the job is queued again if an attempt is left.
    - A permanent one: the job fails.
    """
    problem = Problem(error.code, error.message, error.field)
    if error.failure_class is FailureClass.CAPACITY:
        failures = job.capacity_failures + 1
        released = release(replace(job, capacity_failures=failures))
    elif error.failure_class is FailureClass.TRANSIENT and job.attempts < job.max_attempts:
        failures = job.attempts
        released = replace(_with_state(job, JobState.QUEUED), **_NO_LEASE)
    else:
        return fail(job, problem, now)
    run_after = min(now + policy.delay(failures, error.retry_after), job.deadline)
    return replace(released, run_after=run_after, problem=problem)


def release(job: Job) -> Job:
    """Queue a running job again as if its attempt had not been made."""
    queued = _with_state(job, JobState.QUEUED)
    return replace(queued, attempts=max(0, job.attempts - 1), **_NO_LEASE)


def requeue(job: Job, now: float, max_attempts: int, timeout_s: float) -> Job:
    """Queue a failed or canceled job again, at a user's request.

    Its attempts count from the start, and its deadline is ``timeout_s`` seconds from now. It waits
    for an old lease to expire, because a canceled attempt may still be running under it. Raises
    ``Conflict`` if the job is in any other state, or if its pictures have been removed.
    """
    if not job.state.is_terminal:
        raise Conflict(f"job_id: the job is still {job.state}", "job_id")
    if job.pictures_removed:
        raise Conflict("job_id: the pictures of the job have been removed", "job_id")
    return replace(
        _with_state(job, JobState.QUEUED),
        attempts=0,
        max_attempts=max_attempts,
        capacity_failures=0,
        deadline=now + timeout_s,
        run_after=max(now, job.lease_until or now),
        rank=compute_rank(job.priority, now),
        **_NO_LEASE,
        finished_at=None,
        started_at=None,
        problem=None,
    )


def _finish(job: Job, state: JobState, now: float) -> Job:
    return replace(_with_state(job, state), finished_at=now, **_NO_LEASE)


def _with_state(job: Job, state: JobState) -> Job:
    if state not in ALLOWED_TRANSITIONS[job.state]:
        raise Conflict(f"job_id: a {job.state} job can't become {state}", "job_id")
    return replace(job, state=state)
