from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Any

import pytest

from raylens.core.errors import Conflict, InvalidRequest, ModelFailed, Overloaded
from raylens.jobs.job import ALLOWED_TRANSITIONS, TERMINAL, Job, JobState, Problem, new_id
from raylens.jobs.transitions import (
    RetryPolicy,
    cancel,
    fail,
    requeue,
    retry_or_fail,
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


def test_an_overload_is_retried_and_invalid_input_is_not() -> None:
    running = start_or_fail(make_job(), NOW, "me", NOW + 15)
    queued = retry_or_fail(running, Overloaded("full", "model"), POLICY, NOW)
    assert queued.state is JobState.QUEUED
    assert NOW <= queued.run_after <= NOW + 1
    assert queued.problem == Problem("overloaded", "full", "model")
    assert (queued.lease_owner, queued.lease_until) == (None, None)
    for error in (InvalidRequest("image: broken", "image"), ModelFailed("it broke")):
        assert retry_or_fail(running, error, POLICY, NOW).state is JobState.FAILED


def test_the_last_attempt_and_the_deadline_end_the_retries() -> None:
    last = replace(start_or_fail(make_job(), NOW, "me", NOW + 15), attempts=3)
    assert retry_or_fail(last, Overloaded("full"), POLICY, NOW).state is JobState.FAILED
    running = start_or_fail(make_job(), NOW, "me", NOW + 15)
    past_deadline = Overloaded("full", retry_after=200)
    assert retry_or_fail(running, past_deadline, POLICY, NOW).state is JobState.FAILED


def test_backoff_doubles_up_to_its_bound_and_honors_retry_after() -> None:
    longest = [
        max(POLICY.delay(attempt, None) for _ in range(400)) for attempt in (1, 2, 3, 8, 100)
    ]
    assert longest == pytest.approx([1, 2, 4, 60, 60], rel=0.1)
    assert all(7 <= POLICY.delay(1, 7) <= 8 for _ in range(50))


def test_a_requeued_job_gets_new_attempts_and_the_rank_of_a_new_job() -> None:
    last = replace(start_or_fail(make_job(), NOW, "me", NOW + 15), attempts=3)
    failed = fail(last, Problem("c", "m"), NOW + 50)
    requeued = requeue(failed, NOW + 200, 3, 500)
    assert (requeued.state, requeued.attempts, requeued.max_attempts) == (JobState.QUEUED, 3, 6)
    assert (requeued.deadline, requeued.rank) == (NOW + 700, NOW + 200)
    assert (requeued.problem, requeued.finished_at) == (None, None)
    assert start_or_fail(requeued, NOW + 201, "me", NOW + 216).started_at == NOW + 201
    failed_again = fail(replace(requeued, priority=2), Problem("c", "m"), NOW + 300)
    assert requeue(failed_again, NOW + 400, 3, 500).rank == NOW + 400 - 120


def test_canceling_invalidates_the_fence_of_the_running_attempt() -> None:
    running = start_or_fail(make_job(), NOW, "me", NOW + 15)
    assert cancel(running, NOW).fence == running.fence + 1


def test_ids_are_uuids_of_version_7_and_sort_by_time() -> None:
    ids = []
    for _ in range(5):
        ids.append(new_id())
        time.sleep(0.002)
    assert ids == sorted(ids)
    assert {uuid.UUID(job_id).version for job_id in ids} == {7}
    assert {uuid.UUID(job_id).variant for job_id in ids} == {uuid.RFC_4122}
