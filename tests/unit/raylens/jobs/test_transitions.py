from __future__ import annotations

import itertools
import uuid
from dataclasses import replace
from typing import Any

import pytest

from raylens.core.errors import Conflict, InvalidRequest, ModelFailed, Overloaded
from raylens.jobs.job import ALLOWED_TRANSITIONS, TERMINAL, Job, JobState, Problem, Progress, new_id
from raylens.jobs.transitions import (
    RetryPolicy,
    cancel,
    end_failed_attempt,
    expire,
    fail,
    report_progress,
    requeue,
    start_or_fail,
    succeed,
)

NOW = 1_700_000_000.0
POLICY = RetryPolicy(1.0, 60.0)


def make_job(state: JobState = JobState.QUEUED, **fields: Any) -> Job:
    defaults: dict[str, Any] = {
        "id": "j",
        "type": "caption",
        "input": {},
        "created_at": NOW,
        "deadline": NOW + 100,
        "max_attempts": 3,
        "rank": NOW,
    }
    return Job(state=state, **{**defaults, **fields})


def test_a_terminal_state_can_only_be_left_by_requeueing() -> None:
    assert {
        state: targets for state, targets in ALLOWED_TRANSITIONS.items() if state in TERMINAL
    } == {
        JobState.SUCCEEDED: frozenset(),
        JobState.FAILED: frozenset({JobState.QUEUED}),
        JobState.CANCELED: frozenset({JobState.QUEUED}),
    }


@pytest.mark.parametrize("state", JobState)
def test_only_the_listed_transitions_are_possible(state: JobState) -> None:
    before = make_job(state)
    functions = {
        JobState.RUNNING: lambda: start_or_fail(before, NOW, "me", NOW + 15),
        JobState.SUCCEEDED: lambda: succeed(before, {}, NOW),
        JobState.FAILED: lambda: fail(before, Problem("c", "m"), NOW),
        JobState.CANCELED: lambda: cancel(before, NOW),
        JobState.QUEUED: lambda: requeue(before, NOW, 3, 100),
    }
    for target, function in functions.items():
        is_retry = state is JobState.RUNNING and target is JobState.QUEUED
        if target in ALLOWED_TRANSITIONS[state] and not is_retry:
            assert function().state is target
        else:
            with pytest.raises(
                Conflict, match=rf"a {state} job can't become|the job is still {state}"
            ):
                function()


def test_each_start_counts_an_attempt_and_increments_the_fence() -> None:
    first = start_or_fail(make_job(), NOW + 1, "a", NOW + 16)
    second = start_or_fail(first, NOW + 20, "b", NOW + 35)
    assert (first.attempts, first.fence, first.started_at) == (1, 1, NOW + 1)
    assert (second.attempts, second.fence, second.lease_owner) == (2, 2, "b")
    assert second.started_at == NOW + 1


def test_a_job_whose_last_attempt_is_lost_fails() -> None:
    failed = start_or_fail(make_job(JobState.RUNNING, attempts=3), NOW, "me", NOW + 15)
    assert failed.state is JobState.FAILED
    assert failed.problem is not None
    assert failed.problem.code == "attempt_lost"


def test_a_job_past_its_deadline_fails_and_does_not_start() -> None:
    failed = start_or_fail(make_job(), NOW + 100, "me", NOW + 115)
    assert (failed.state, failed.attempts, failed.finished_at) == (JobState.FAILED, 0, NOW + 100)


def make_running(**fields: Any) -> Job:
    return replace(start_or_fail(make_job(), NOW, "me", NOW + 15), **fields)


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_lack_of_capacity_uses_up_no_attempt(attempts: int) -> None:
    running = make_running(attempts=attempts)
    queued = end_failed_attempt(running, Overloaded("full", "model"), POLICY, NOW)
    assert (queued.state, queued.attempts) == (JobState.QUEUED, attempts - 1)
    assert queued.capacity_failures == 1
    assert NOW <= queued.run_after <= NOW + 1
    assert queued.problem == Problem("overloaded", "full", "model")
    assert (queued.lease_owner, queued.lease_until) == (None, None)


def test_a_transient_failure_uses_up_an_attempt() -> None:
    queued = end_failed_attempt(make_running(), ModelFailed("it broke"), POLICY, NOW)
    assert (queued.state, queued.attempts) == (JobState.QUEUED, 1)
    failed = end_failed_attempt(make_running(attempts=3), ModelFailed("it broke"), POLICY, NOW)
    assert (failed.state, failed.problem) == (JobState.FAILED, Problem("model_failed", "it broke"))


def test_a_permanent_failure_ends_the_job() -> None:
    failed = end_failed_attempt(make_running(), InvalidRequest("broken", "image"), POLICY, NOW)
    assert failed.state is JobState.FAILED
    assert failed.problem == Problem("invalid_request", "broken", "image")


def test_no_job_waits_past_its_deadline() -> None:
    error = Overloaded("full", retry_after=200)
    queued = end_failed_attempt(make_running(), error, POLICY, NOW)
    assert queued.run_after == queued.deadline
    expired = expire(queued, queued.deadline)
    assert expired.problem is not None
    assert expired.problem.message == (
        "the deadline passed before the job finished; the last error: full"
    )


def test_progress_makes_the_attempts_count_from_the_current_one() -> None:
    running = make_running(attempts=3, capacity_failures=4, progress=Progress(5, 9))
    same = report_progress(running, Progress(5, 9), {"x": 1})
    assert (same.attempts, same.capacity_failures, same.output) == (3, 4, {"x": 1})
    further = report_progress(same, Progress(6, 9), None)
    assert (further.attempts, further.capacity_failures, further.output) == (1, 0, {"x": 1})


def test_a_job_without_its_pictures_cannot_be_requeued() -> None:
    failed = fail(make_running(pictures_removed=True), Problem("c", "m"), NOW)
    with pytest.raises(Conflict, match="the pictures of the job have been removed"):
        requeue(failed, NOW, 3, 100)


def test_backoff_doubles_up_to_its_bound_and_honors_retry_after() -> None:
    longest = [
        max(POLICY.delay(attempt, None) for _ in range(400)) for attempt in (1, 2, 3, 8, 100)
    ]
    assert longest == pytest.approx([1, 2, 4, 60, 60], rel=0.1)
    assert all(7 <= POLICY.delay(1, 7) <= 8 for _ in range(50))


@pytest.mark.parametrize(
    ("retry_after", "longest"),
    [(1e300, 3601), (-5, 1), (float("inf"), 1), (float("nan"), 1), (None, 1)],
)
def test_an_odd_retry_after_is_bounded(retry_after: float | None, longest: float) -> None:
    delays = [POLICY.delay(1, retry_after) for _ in range(50)]
    assert longest - 1 <= min(delays) <= max(delays) <= longest


def test_a_requeued_job_gets_new_attempts_and_the_rank_of_a_new_job() -> None:
    last = replace(start_or_fail(make_job(), NOW, "me", NOW + 15), attempts=3)
    failed = fail(last, Problem("c", "m"), NOW + 50)
    requeued = requeue(failed, NOW + 200, 3, 500)
    assert (requeued.state, requeued.attempts, requeued.max_attempts) == (JobState.QUEUED, 0, 3)
    assert (requeued.deadline, requeued.rank) == (NOW + 700, NOW + 200)
    assert (requeued.problem, requeued.finished_at) == (None, None)
    assert start_or_fail(requeued, NOW + 201, "me", NOW + 216).started_at == NOW + 201
    failed_again = fail(replace(requeued, priority=2), Problem("c", "m"), NOW + 300)
    assert requeue(failed_again, NOW + 400, 3, 500).rank == NOW + 400 - 120


def test_canceling_invalidates_the_fence_of_the_running_attempt() -> None:
    running = start_or_fail(make_job(), NOW, "me", NOW + 15)
    assert cancel(running, NOW).fence == running.fence + 1


def test_ids_are_uuids_of_version_7_and_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = itertools.count(1_700_000_000_000_000_000, 1_000_000)
    monkeypatch.setattr("raylens.jobs.job.time.time_ns", lambda: next(times))
    ids = [new_id() for _ in range(5)]
    assert ids == sorted(ids)
    assert {uuid.UUID(job_id).version for job_id in ids} == {7}
    assert {uuid.UUID(job_id).variant for job_id in ids} == {uuid.RFC_4122}
