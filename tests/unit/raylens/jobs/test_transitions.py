from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raylens.core.errors import Conflict, InvalidRequest, ModelFailed, Overloaded
from raylens.jobs.job import TERMINAL, TRANSITIONS, Job, JobState, Problem, new_id
from raylens.jobs.transitions import RetryPolicy, cancel, fail, retry, retry_or_fail, start, succeed

T = 1_700_000_000.0
POLICY = RetryPolicy(1.0, 60.0)


def job(state: JobState = JobState.QUEUED, **more: Any) -> Job:
    given: dict[str, Any] = {
        "id": "j",
        "type": "caption",
        "input": {},
        "created_at": T,
        "deadline": T + 100,
        "max_attempts": 3,
        "rank": T,
        **more,
    }
    return Job(state=state, **given)


def test_an_end_is_left_by_hand_only() -> None:
    assert {state: moves for state, moves in TRANSITIONS.items() if state in TERMINAL} == {
        JobState.SUCCEEDED: frozenset(),
        JobState.FAILED: frozenset({JobState.QUEUED}),
        JobState.CANCELED: frozenset({JobState.QUEUED}),
    }


@pytest.mark.parametrize("state", JobState)
def test_no_function_makes_a_move_that_is_not_written_down(state: JobState) -> None:
    before = job(state)
    moves = {
        JobState.RUNNING: lambda: start(before, T, "me", T + 15),
        JobState.SUCCEEDED: lambda: succeed(before, {}, T),
        JobState.FAILED: lambda: fail(before, Problem("c", "m"), T),
        JobState.CANCELED: lambda: cancel(before, T),
        JobState.QUEUED: lambda: retry(before, T, 3, 100),
    }
    for target, move in moves.items():
        by_hand = target is JobState.QUEUED
        if target in TRANSITIONS[state] and not (by_hand and state is JobState.RUNNING):
            assert move().state is target
        else:
            with pytest.raises(Conflict, match=f"the job is {state}"):
                move()


def test_each_start_counts_an_attempt_and_raises_the_fence() -> None:
    first = start(job(), T + 1, "a", T + 16)
    second = start(first, T + 20, "b", T + 35)
    assert (first.attempts, first.fence, first.started_at) == (1, 1, T + 1)
    assert (second.attempts, second.fence, second.lease_owner) == (2, 2, "b")
    assert second.started_at == T + 1


def test_a_job_whose_attempts_all_died_fails_and_says_so() -> None:
    lost = start(job(JobState.RUNNING, attempts=3), T, "me", T + 15)
    assert lost.state is JobState.FAILED
    assert lost.problem is not None
    assert lost.problem.code == "attempt_lost"


def test_past_its_deadline_a_job_fails_and_does_not_start() -> None:
    late = start(job(), T + 100, "me", T + 115)
    assert (late.state, late.attempts, late.finished_at) == (JobState.FAILED, 0, T + 100)


def test_an_overload_is_tried_again_and_bad_input_is_not() -> None:
    running = start(job(), T, "me", T + 15)
    waits = retry_or_fail(running, Overloaded("full", "model"), POLICY, T)
    assert waits.state is JobState.QUEUED
    assert T <= waits.run_after <= T + 1
    assert waits.problem == Problem("overloaded", "full", "model")
    assert (waits.lease_owner, waits.lease_until) == (None, None)
    for error in (InvalidRequest("image: broken", "image"), ModelFailed("it broke")):
        assert retry_or_fail(running, error, POLICY, T).state is JobState.FAILED


def test_the_last_attempt_and_the_deadline_end_the_retries() -> None:
    last = replace(start(job(), T, "me", T + 15), attempts=3)
    assert retry_or_fail(last, Overloaded("full"), POLICY, T).state is JobState.FAILED
    running = start(job(), T, "me", T + 15)
    late = retry_or_fail(running, Overloaded("full", None, None, None, 200), POLICY, T)
    assert late.state is JobState.FAILED


def test_backoff_doubles_up_to_its_bound_and_honours_retry_after() -> None:
    longest = [
        max(POLICY.delay(attempt, None) for _ in range(400)) for attempt in (1, 2, 3, 8, 100)
    ]
    assert longest == pytest.approx([1, 2, 4, 60, 60], rel=0.1)
    assert all(7 <= POLICY.delay(1, 7) <= 8 for _ in range(50))


def test_a_retry_by_hand_begins_anew_behind_those_that_wait() -> None:
    failed = fail(replace(start(job(), T, "me", T + 15), attempts=3), Problem("c", "m"), T + 50)
    fresh = retry(failed, T + 200, 3, 500)
    assert (fresh.state, fresh.attempts, fresh.max_attempts) == (JobState.QUEUED, 3, 6)
    assert (fresh.deadline, fresh.rank, fresh.problem, fresh.finished_at) == (
        T + 700,
        T + 200,
        None,
        None,
    )
    assert start(fresh, T + 201, "me", T + 216).started_at == T + 201
    again = retry(fail(replace(fresh, priority=2), Problem("c", "m"), T + 300), T + 400, 3, 500)
    assert again.rank == T + 400 - 120


def test_what_a_canceled_attempt_still_brings_has_the_wrong_fence() -> None:
    running = start(job(), T, "me", T + 15)
    assert cancel(running, T).fence == running.fence + 1


def test_ids_are_uuids_of_version_7_in_the_order_of_time() -> None:
    import time
    import uuid

    made = []
    for _ in range(5):
        made.append(new_id())
        time.sleep(0.002)
    assert made == sorted(made)
    assert {uuid.UUID(each).version for each in made} == {7}
    assert {uuid.UUID(each).variant for each in made} == {uuid.RFC_4122}
