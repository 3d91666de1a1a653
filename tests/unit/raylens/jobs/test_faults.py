"""Stores that fail, processes that die, and clocks that step."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import pytest

from raylens.core.errors import Conflict, InsufficientStorage, ModelFailed, Overloaded
from raylens.jobs.blobs import compute_digest
from raylens.jobs.clock import SystemClock
from raylens.jobs.job import BULKY_FIELDS, Job, JobState
from raylens.jobs.memory import MemoryStore
from raylens.jobs.store import Change, StoreUnavailable
from raylens.jobs.transitions import JobUpdate
from tests.unit.raylens.jobs.conftest import (
    ALL_METHODS,
    FlakyStore,
    QueueParts,
    make_job,
    now,
    run_jobs,
    serving,
    wait_until,
    wait_until_ended,
)


class TestStore:
    @pytest.mark.parametrize(
        "error", [StoreUnavailable("away"), InsufficientStorage("the disk is full")]
    )
    async def test_an_outage_of_30_s_loses_and_fails_no_job(
        self, parts: QueueParts, error: Exception
    ) -> None:
        store = FlakyStore(parts)
        parts.store = store
        parts.service.seconds = 1
        store.error = error
        queue = parts.make_queue()
        async with serving(queue):
            jobs = [await queue.submit(make_job(), {}) for _ in range(40)]
            await asyncio.sleep(3.5)
            store.failing |= ALL_METHODS
            with pytest.raises(type(error)):
                await queue.get(jobs[0].id)
            with pytest.raises(type(error)):
                await queue.submit(make_job(), {})
            await asyncio.sleep(30)
            store.failing.clear()
            ended = [await wait_until_ended(queue, job.id) for job in jobs]
        assert {(job.state, job.attempts) for job in ended} == {(JobState.SUCCEEDED, 1)}

    async def test_an_attempt_stops_before_its_lease_expires(self, parts: QueueParts) -> None:
        """A queue that can't reach the store must assume that another has claimed its job."""
        store = FlakyStore(parts)
        parts.store = store
        parts.service.seconds = 300
        queue = parts.make_queue()
        async with serving(queue):
            job = await queue.submit(make_job(), {})
            await wait_until(lambda: parts.service.running)
            store.failing |= {"renew", "claim", "change"}
            await wait_until(lambda: not parts.service.running, 15)
            stored = await queue.get(job.id)
            assert stored.lease_until is not None
            assert now() < stored.lease_until
            store.failing.clear()
            ended = await wait_until_ended(queue, job.id)
        assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 1)

    async def test_a_job_that_cannot_be_queued_again_holds_up_no_other(
        self, parts: QueueParts
    ) -> None:
        class PickyStore(FlakyStore):
            refused = ""

            async def change(self, changes: Sequence[Change]) -> Any:
                if self.refused in {change.id for change in changes}:
                    raise ValueError("this job can't be written")
                return await super().change(changes)

        store = PickyStore(parts)
        parts.store = store
        parts.service.seconds = 60
        queue = parts.make_queue()
        async with serving(queue):
            await queue.submit(job := make_job(), {})
            await wait_until(lambda: parts.service.running)
            store.failing |= ALL_METHODS
            await asyncio.sleep(30)
            store.refused = job.id
            store.failing.clear()
            await queue.submit(other := make_job(), {})
            await asyncio.sleep(5)
            assert (await queue.get(other.id)).state is JobState.RUNNING
            store.refused = ""
            for each in (other, job):
                assert (await wait_until_ended(queue, each.id)).state is JobState.SUCCEEDED

    async def test_a_result_survives_a_failing_store(self, parts: QueueParts) -> None:
        store = FlakyStore(parts)
        parts.store = store
        parts.service.seconds = 1
        queue = parts.make_queue()
        async with serving(queue):
            job = await queue.submit(make_job(), {})
            await wait_until(lambda: parts.service.running)
            store.failing |= {"change", "claim"}
            await asyncio.sleep(60)  # the lease is renewed meanwhile
            store.failing.clear()
            ended = await wait_until_ended(queue, job.id)
        assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 1)
        assert len(parts.service.requests) == 1

    async def test_a_result_is_given_up_when_the_attempt_has_no_time_left(
        self, parts: QueueParts
    ) -> None:
        store = FlakyStore(parts)
        parts.store = store
        queue = parts.make_queue()
        async with serving(queue):
            store.failing.add("change")
            job = await queue.submit(make_job(), {})
            await asyncio.sleep(700)
            store.failing.clear()
            ended = await wait_until_ended(queue, job.id)
        assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 1)
        assert len(parts.service.requests) == 2

    async def test_a_result_that_the_store_refuses_fails_the_job(self, parts: QueueParts) -> None:
        class PickyStore(MemoryStore):
            async def change(self, changes: Sequence[Change]) -> Any:
                results = await super().change(changes)
                if any(isinstance(job, Job) and job.output for job in results):
                    raise TypeError("this output can't be stored")
                return results

        parts.store = PickyStore(parts.clock)
        queue = parts.make_queue()
        async with serving(queue):
            job = await queue.submit(make_job(), {})
            await wait_until(lambda: parts.service.requests)
            await asyncio.sleep(1)
            # A store in memory has no transactions: the result was stored before the error.
            assert (await queue.get(job.id)).state is JobState.SUCCEEDED
            other = await queue.submit(make_job(), {})
            assert (await wait_until_ended(queue, other.id)).state.is_terminal

    async def test_progress_that_cannot_be_stored_does_not_fail_the_job(
        self, parts: QueueParts
    ) -> None:
        store = FlakyStore(parts)
        parts.store = store
        parts.service.seconds = 1
        pictures = {compute_digest(b"%d" % number): b"%d" % number for number in range(6)}

        def answer(request: Any, pictures: Any) -> str:
            if pictures[0].data == b"2":
                store.failing.add("change")
                asyncio.get_running_loop().call_later(1.5, store.failing.clear)
            return "x"

        parts.service.answer = answer
        job_input = {"images": [f"blob:{digest}" for digest in pictures]}
        (ended,) = await run_jobs(
            parts.make_queue(), make_job("batch", job_input), pictures=pictures
        )
        assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 1)

    async def test_a_store_that_hangs_is_a_503_within_seconds(self, parts: QueueParts) -> None:
        class HangingStore(MemoryStore):
            async def add(self, new_jobs: Sequence[Job], capacity: int, *rest: Any) -> Any:
                await asyncio.sleep(3600)

            async def get(
                self, job_ids: Collection[str], bulky_fields: Collection[str] = BULKY_FIELDS
            ) -> dict[str, Job]:
                await asyncio.sleep(3600)
                return {}

        parts.store = HangingStore(parts.clock)
        queue = parts.make_queue()
        started = now()
        results = await asyncio.gather(
            *(queue.submit(make_job(), {}) for _ in range(40)),
            queue.get("x"),
            return_exceptions=True,
        )
        assert now() - started == pytest.approx(5, abs=0.1)
        assert {type(result) for result in results} == {Overloaded}
        assert all(isinstance(r, Overloaded) and r.retry_after == 5 for r in results)

    async def test_a_submission_that_cannot_be_stored_does_not_fail_others(
        self, parts: QueueParts
    ) -> None:
        put = parts.blobs.put
        pictures = {compute_digest(b"%d" % number): b"%d" % number for number in range(6)}

        def put_or_fail(digest: str, data: bytes) -> None:
            if data == b"3":
                raise StoreUnavailable("storing a picture failed")
            put(digest, data)

        parts.blobs.put = put_or_fail  # type: ignore[method-assign]
        queue = parts.make_queue()
        submissions = [
            (make_job(blobs=(digest,)), {digest: data}) for digest, data in pictures.items()
        ]
        results = await queue.submit_all(submissions)
        expected = [Job, Job, Job, StoreUnavailable, Job, Job]
        assert [type(result) for result in results] == expected


class TestProcesses:
    async def test_two_queues_never_run_the_same_job(self, parts: QueueParts) -> None:
        parts.service.seconds = 1
        runs: dict[str, int] = {}

        def answer(request: Any, pictures: Any) -> str:
            runs[request.id] = runs.get(request.id, 0) + 1
            return "x"

        parts.service.answer = answer
        queue = parts.make_queue(workers=5)
        other_queue = parts.make_queue(workers=5)
        async with serving(queue, other_queue):
            jobs = [await queue.submit(make_job(), {}) for _ in range(40)]
            for job in jobs:
                await wait_until_ended(other_queue, job.id)
        assert runs == {job.id: 1 for job in jobs}

    async def test_the_job_of_a_dead_queue_is_run_by_another(self, parts: QueueParts) -> None:
        parts.service.seconds = 300
        dead_queue = parts.make_queue()
        async with serving(dead_queue):
            job = await dead_queue.submit(make_job(), {})
            await wait_until(lambda: parts.service.running)
        parts.service.seconds = 0
        queue = parts.make_queue()
        died_at = now()
        async with serving(queue):
            ended = await wait_until_ended(queue, job.id)
        assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 2)
        assert now() - died_at == pytest.approx(15, abs=1)

    async def test_a_job_whose_attempts_are_all_lost_fails(self, parts: QueueParts) -> None:
        parts.service.seconds = 300
        job = make_job()
        await parts.make_queue().submit(job, {})
        for attempt in range(1, 6):
            async with serving(parts.make_queue()):
                await wait_until(lambda: parts.service.running)
                assert (await parts.store.get([job.id]))[job.id].attempts == attempt
        queue = parts.make_queue()
        async with serving(queue):
            ended = await wait_until_ended(queue, job.id)
        assert ended.state is JobState.FAILED
        assert ended.problem is not None
        assert ended.problem.code == "attempt_lost"

    async def test_a_job_that_another_queue_accepted_starts_soon(self, parts: QueueParts) -> None:
        queue = parts.make_queue()
        async with serving(queue):
            await asyncio.sleep(100)
            job = await parts.make_queue().submit(make_job(), {})
            ended = await wait_until_ended(queue, job.id)
        assert ended.started_at is not None
        assert ended.started_at - ended.created_at <= 5

    async def test_a_lease_is_renewed_while_the_job_runs(self, parts: QueueParts) -> None:
        parts.service.seconds = 300
        queue = parts.make_queue()
        other_queue = parts.make_queue()
        async with serving(queue, other_queue):
            ended = await wait_until_ended(queue, (await queue.submit(make_job(), {})).id)
        assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 1)
        assert len(parts.service.requests) == 1

    async def test_a_job_is_not_retried_while_an_attempt_may_still_run(
        self, parts: QueueParts
    ) -> None:
        parts.service.seconds = 300
        queue = parts.make_queue()
        other_queue = parts.make_queue()
        async with serving(queue):
            job = await queue.submit(make_job(), {})
            await wait_until(lambda: parts.service.running)
            with pytest.raises(Conflict, match="the job is still running"):
                await queue.requeue(job.id)
            running = await queue.get(job.id)
            assert (running.state, running.max_attempts) == (JobState.RUNNING, 5)
            # The attempt in the first process goes on until that process notices the cancellation.
            await other_queue.cancel(job.id)
            requeued = await other_queue.requeue(job.id)
            assert requeued.run_after == running.lease_until
            await wait_until(lambda: not parts.service.running)
            parts.service.seconds = 0
            assert (await wait_until_ended(queue, job.id)).state is JobState.SUCCEEDED
        assert parts.service.most_at_once == 1

    async def test_a_claim_that_takes_most_of_its_lease_starts_nothing(
        self, parts: QueueParts
    ) -> None:
        class SlowStore(MemoryStore):
            is_slow = True

            async def claim(self, *arguments: Any) -> list[Job]:
                claimed = await super().claim(*arguments)
                if claimed and self.is_slow:
                    self.is_slow = False
                    await asyncio.sleep(10)
                return claimed

        parts.store = SlowStore(parts.clock)
        (ended,) = await run_jobs(parts.make_queue(), make_job())
        assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 1)
        assert len(parts.service.requests) == 1

    async def test_a_result_with_an_old_fence_is_discarded(self, parts: QueueParts) -> None:
        def claim_again(stored: Job) -> JobUpdate:
            return JobUpdate(replace(stored, fence=stored.fence + 1))

        parts.service.seconds = 1
        queue = parts.make_queue()
        async with serving(queue):
            job = await queue.submit(make_job(), {})
            await wait_until(lambda: parts.service.running)
            await parts.store.change([Change(job.id, claim_again)])
            await wait_until(lambda: not parts.service.running)
            await asyncio.sleep(1)
            assert (await queue.get(job.id)).state is JobState.RUNNING


class TestClocks:
    @pytest.mark.parametrize("step", [15.0, -15.0, 86_400.0, -86_400.0])
    async def test_a_step_of_the_wall_clock_disturbs_no_job(
        self, parts: QueueParts, step: float
    ) -> None:
        parts.service.seconds = 20
        queue = parts.make_queue(workers=1)
        async with serving(queue):
            running = await queue.submit(make_job(), {})
            queued = await queue.submit(make_job(), {})
            await wait_until(lambda: parts.service.running)
            parts.clock.step = step
            other_queue = parts.make_queue(workers=1)  # another process reads the new time
            async with serving(other_queue):
                await asyncio.sleep(8)
                assert len(parts.service.requests) == 2
                ended = [
                    await wait_until_ended(queue, running.id),
                    await wait_until_ended(other_queue, queued.id),
                ]
        assert {(job.state, job.attempts) for job in ended} == {(JobState.SUCCEEDED, 1)}
        assert len(parts.service.requests) == 2
        # What people see is on the wall clock.
        finished_at = max(job.finished_at or 0 for job in ended)
        assert finished_at == pytest.approx(parts.clock.time(), abs=2)

    @pytest.mark.parametrize("step", [20.0, -20.0])
    async def test_a_step_of_the_stores_clock_disturbs_no_job(
        self, parts: QueueParts, step: float
    ) -> None:
        read_clock = parts.store.read_clock

        async def read_stepped_clock() -> float:
            return await read_clock() + (step if parts.service.requests else 0.0)

        parts.store.read_clock = read_stepped_clock  # type: ignore[method-assign]
        parts.service.seconds = 300
        ended = await run_jobs(parts.make_queue(), *(make_job() for _ in range(4)))
        assert {(job.state, job.attempts) for job in ended} == {(JobState.SUCCEEDED, 1)}
        assert len(parts.service.requests) == 4

    async def test_the_times_of_a_new_job_are_moved_to_the_stores_clock(
        self, parts: QueueParts
    ) -> None:
        early = now() - 100
        job = make_job(created_at=early, rank=early - 60, deadline=early + 50)
        stored = await parts.make_queue().submit(job, {})
        assert stored.created_at == pytest.approx(now())
        assert stored.deadline - stored.created_at == pytest.approx(50)
        assert stored.created_at - stored.rank == pytest.approx(60)

    async def test_a_short_backoff_is_as_short_as_it_says(self, parts: QueueParts) -> None:
        parts.service.errors = [ModelFailed("x")] * 3
        queue = parts.make_queue(backoff_s=0.01, max_backoff_s=0.01)
        started = now()
        await run_jobs(queue, make_job())
        assert now() - started < 0.1

    async def test_an_idle_queue_hardly_polls(self, parts: QueueParts) -> None:
        claims = 0

        class CountingStore(MemoryStore):
            async def claim(self, *arguments: Any) -> list[Job]:
                nonlocal claims
                claims += 1
                return await super().claim(*arguments)

        parts.store = CountingStore(parts.clock)
        async with serving(parts.make_queue()):
            await asyncio.sleep(600)
        assert claims <= 2 * 121  # for jobs, and for watches

    def test_the_monotonic_clock_is_that_of_the_machine(self) -> None:
        clock = SystemClock()
        assert clock.monotonic() <= SystemClock().monotonic()
        assert clock.boot_id
        assert clock.boot_id == SystemClock().boot_id
