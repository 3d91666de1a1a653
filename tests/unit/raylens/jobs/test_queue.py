from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import httpx
import pytest

from raylens.core.errors import Conflict, InvalidRequest, Overloaded, QueueFull, UnknownJob
from raylens.jobs.blobs import compute_digest, make_reference
from raylens.jobs.job import DeliveryState, Job, JobState, Progress, Webhook
from raylens.jobs.memory import MemoryStore
from raylens.jobs.store import Change, ComputeUpdate
from raylens.jobs.transitions import JobUpdate
from raylens.net.address import AddressRefused
from tests.unit.raylens.jobs.conftest import (
    URL,
    FakeWebhookClient,
    QueueParts,
    make_job,
    make_job_with_webhook,
    serving,
    wait_until,
    wait_until_ended,
)

PICTURE = b"the bytes of a picture"
DIGEST = compute_digest(PICTURE)


class TestRunning:
    async def test_a_job_runs_and_its_output_is_stored(self, parts: QueueParts) -> None:
        queue = parts.make_queue()
        job = make_job("caption", {"image": make_reference(DIGEST)}, blobs=(DIGEST,))
        async with serving(queue):
            queued = await queue.submit(job, {DIGEST: PICTURE})
            assert queued.state is JobState.QUEUED
            ended = await wait_until_ended(queue, job.id)
        assert ended.state is JobState.SUCCEEDED
        assert ended.output == {"caption": "two circles", "model": "moondream"}
        assert ended.attempts == 1
        assert parts.service.pictures == [PICTURE]

    async def test_no_more_jobs_run_at_once_than_there_are_workers(self, parts: QueueParts) -> None:
        parts.service.seconds = 0.02
        queue = parts.make_queue(workers=3)
        async with serving(queue):
            jobs = [await queue.submit(make_job(), {}) for _ in range(9)]
            for job in jobs:
                await wait_until_ended(queue, job.id)
        assert parts.service.most_at_once == 3
        assert len(parts.service.requests) == 9

    async def test_an_overload_is_retried_and_attempts_are_counted(self, parts: QueueParts) -> None:
        parts.service.errors = [Overloaded("full", "model"), Overloaded("full", "model")]
        queue = parts.make_queue()
        async with serving(queue):
            job = await queue.submit(make_job(), {})
            ended = await wait_until_ended(queue, job.id)
        assert (ended.state, ended.attempts, ended.problem) == (JobState.SUCCEEDED, 3, None)

    async def test_invalid_input_and_bugs_are_not_retried(self, parts: QueueParts) -> None:
        invalid = InvalidRequest("image: broken", "image")
        parts.service.errors = [invalid, ZeroDivisionError("a bug")]
        queue = parts.make_queue(workers=1)
        async with serving(queue):
            first = await wait_until_ended(queue, (await queue.submit(make_job(), {})).id)
            second = await wait_until_ended(queue, (await queue.submit(make_job(), {})).id)
        assert (first.state, first.attempts) == (JobState.FAILED, 1)
        assert first.problem is not None
        assert (first.problem.code, first.problem.field) == ("invalid_request", "image")
        assert (second.state, second.attempts) == (JobState.FAILED, 1)
        assert second.problem is not None
        assert second.problem.code == "internal_error"
        assert "a bug" not in second.problem.message

    async def test_a_job_fails_after_its_last_attempt(self, parts: QueueParts) -> None:
        parts.service.errors = [Overloaded("full", "model")] * 9
        queue = parts.make_queue()
        async with serving(queue):
            job = await queue.submit(make_job(max_attempts=2), {})
            ended = await wait_until_ended(queue, job.id)
        assert (ended.state, ended.attempts) == (JobState.FAILED, 2)
        assert ended.problem is not None
        assert ended.problem.code == "overloaded"

    async def test_an_attempt_that_takes_too_long_is_stopped_and_retried(
        self, parts: QueueParts
    ) -> None:
        parts.service.seconds = 5
        queue = parts.make_queue(attempt_timeout_s=0.1)
        async with serving(queue):
            job = await queue.submit(make_job(max_attempts=2), {})
            ended = await wait_until_ended(queue, job.id)
        assert (ended.state, ended.attempts) == (JobState.FAILED, 2)
        assert ended.problem is not None
        assert ended.problem.code == "deadline_exceeded"
        assert parts.service.stopped == 2
        assert parts.service.running == 0

    async def test_a_deadline_ends_a_running_and_a_queued_job(self, parts: QueueParts) -> None:
        parts.service.seconds = 5
        queue = parts.make_queue(workers=1)
        async with serving(queue):
            running = await queue.submit(make_job(deadline=time.time() + 0.2), {})
            queued = await queue.submit(make_job(deadline=time.time() + 0.1), {})
            ended = [await wait_until_ended(queue, job.id) for job in (running, queued)]
        assert [job.state for job in ended] == [JobState.FAILED] * 2
        assert [job.problem and job.problem.code for job in ended] == ["deadline_exceeded"] * 2
        assert [job.attempts for job in ended] == [1, 0]

    async def test_a_higher_priority_goes_first_but_not_forever(self, parts: QueueParts) -> None:
        now = time.time()
        ranks = {"old": now - 300, "high": now - 60, "new": now}
        jobs = {name: make_job(job_input={"question": name}, rank=ranks[name]) for name in ranks}
        queue = parts.make_queue(workers=1)
        for name in ("new", "high", "old"):
            await queue.submit(jobs[name], {})
        async with serving(queue):
            for job in jobs.values():
                await wait_until_ended(queue, job.id)
        questions = [getattr(request.task, "question", "") for request in parts.service.requests]
        assert questions == ["old", "high", "new"]

    async def test_a_job_of_an_uninstalled_type_is_retried(self, parts: QueueParts) -> None:
        queue = parts.make_queue()
        async with serving(queue):
            job = await queue.submit(make_job("no-such-type", max_attempts=2), {})
            ended = await wait_until_ended(queue, job.id)
        assert (ended.state, ended.attempts) == (JobState.FAILED, 2)


class TestSubmitting:
    async def test_a_full_queue_refuses_with_a_retry_after(self, parts: QueueParts) -> None:
        queue = parts.make_queue(capacity=1)
        await queue.submit(make_job(), {})
        for pictures in ({}, {DIGEST: PICTURE}):
            with pytest.raises(QueueFull, match="the limit is 1") as caught:
                await queue.submit(make_job(), pictures)
            assert caught.value.retry_after is not None
            assert 1 <= caught.value.retry_after <= 60

    async def test_a_full_queue_still_finds_a_job_by_its_key(self, parts: QueueParts) -> None:
        queue = parts.make_queue(capacity=1)
        first = await queue.submit(make_job(idempotency_key="k", digest="d"), {})
        repeated = make_job(idempotency_key="k", digest="d", blobs=(DIGEST,))
        assert await queue.submit(repeated, {DIGEST: PICTURE}) == first
        with pytest.raises(Conflict):
            await queue.submit(make_job(idempotency_key="k", digest="e"), {})

    async def test_the_pictures_are_stored_before_the_job(self, parts: QueueParts) -> None:
        put = parts.blobs.put
        order: list[str] = []

        class RecordingStore(MemoryStore):
            async def add(self, jobs: Sequence[Job], capacity: int) -> Any:
                order.append("job")
                return await super().add(jobs, capacity)

            async def touch_blobs(self, digests: Any, now: float) -> None:
                order.append("touched")

        def put_slowly(digest: str, data: bytes) -> None:
            time.sleep(0.02)
            put(digest, data)
            order.append("blob")

        parts.store = RecordingStore()
        parts.blobs.put = put_slowly  # type: ignore[method-assign]
        await parts.make_queue().submit(make_job(blobs=(DIGEST,)), {DIGEST: PICTURE})
        assert order == ["touched", "blob", "job"]

    async def test_an_unknown_job_or_delivery_is_an_error(self, parts: QueueParts) -> None:
        queue = parts.make_queue()
        for method in (queue.get, queue.cancel, queue.requeue, queue.deliveries):
            with pytest.raises(UnknownJob, match="unknown job 'nothing'"):
                await method("nothing")
        job = await queue.submit(make_job(), {})
        with pytest.raises(UnknownJob, match="has no delivery 1"):
            await queue.redeliver(job.id, 1)


class TestCanceling:
    async def test_a_canceled_job_in_the_queue_never_runs(self, parts: QueueParts) -> None:
        queue = parts.make_queue()
        job = await queue.submit(make_job(), {})
        assert (await queue.cancel(job.id)).state is JobState.CANCELED
        async with serving(queue):
            await asyncio.sleep(0.05)
        assert parts.service.requests == []

    async def test_the_attempt_at_a_canceled_job_stops(self, parts: QueueParts) -> None:
        parts.service.seconds = 30
        queue = parts.make_queue()
        async with serving(queue):
            job = await queue.submit(make_job(), {})
            await wait_until(lambda: parts.service.running)
            assert (await queue.cancel(job.id)).state is JobState.CANCELED
            await wait_until(lambda: not parts.service.running)
            assert (await queue.cancel(job.id)).state is JobState.CANCELED
        assert parts.service.stopped == 1
        assert (await queue.get(job.id)).state is JobState.CANCELED

    async def test_the_attempt_stops_in_another_process_too(self, parts: QueueParts) -> None:
        parts.service.seconds = 30
        queue = parts.make_queue()
        other_queue = parts.make_queue()
        async with serving(queue):
            job = await other_queue.submit(make_job(), {})
            await wait_until(lambda: parts.service.running)
            await other_queue.cancel(job.id)
            await wait_until(lambda: not parts.service.running)

    async def test_a_succeeded_job_can_be_neither_canceled_nor_retried(
        self, parts: QueueParts
    ) -> None:
        queue = parts.make_queue()
        async with serving(queue):
            ended = await wait_until_ended(queue, (await queue.submit(make_job(), {})).id)
            for method in (queue.cancel, queue.requeue):
                with pytest.raises(Conflict, match="a succeeded job can't become"):
                    await method(ended.id)

    async def test_a_canceled_job_runs_after_a_retry(self, parts: QueueParts) -> None:
        queue = parts.make_queue()
        job = await queue.submit(make_job(), {})
        await queue.cancel(job.id)
        assert (await queue.requeue(job.id)).state is JobState.QUEUED
        async with serving(queue):
            assert (await wait_until_ended(queue, job.id)).state is JobState.SUCCEEDED


class FlakyStore(MemoryStore):
    """A store whose methods named in ``failing`` raise."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: set[str] = set()

    def _check(self, method: str) -> None:
        if method in self.failing:
            raise OSError("the database has gone")

    async def claim(self, count: int, now: float, update: ComputeUpdate) -> list[Job]:
        self._check("claim")
        return await super().claim(count, now, update)

    async def change(self, changes: Sequence[Change]) -> Any:
        self._check("change")
        return await super().change(changes)

    async def renew(self, fences: Mapping[str, int], until: float) -> set[str]:
        self._check("renew")
        return await super().renew(fences, until)


class TestFaults:
    async def test_two_queues_never_run_the_same_job(self, parts: QueueParts) -> None:
        parts.service.seconds = 0.01
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
        parts.service.seconds = 30
        dead_queue = parts.make_queue()
        async with serving(dead_queue):
            job = await dead_queue.submit(make_job(), {})
            await wait_until(lambda: parts.service.running)
        parts.service.seconds = 0
        queue = parts.make_queue()
        async with serving(queue):
            ended = await wait_until_ended(queue, job.id)
        assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 2)

    async def test_a_lease_is_renewed_while_the_job_runs(self, parts: QueueParts) -> None:
        parts.service.seconds = 2.5
        queue = parts.make_queue()
        other_queue = parts.make_queue()
        async with serving(queue, other_queue):
            ended = await wait_until_ended(queue, (await queue.submit(make_job(), {})).id)
        assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 1)
        assert len(parts.service.requests) == 1

    async def test_an_attempt_stops_before_its_lease_expires(self, parts: QueueParts) -> None:
        """A queue that can't reach the store must assume that another has claimed its job."""
        store = FlakyStore()
        parts.store = store
        parts.service.seconds = 30
        queue = parts.make_queue(lease_s=1.0)
        async with serving(queue):
            job = await queue.submit(make_job(), {})
            await wait_until(lambda: parts.service.running)
            store.failing |= {"renew", "claim"}
            await wait_until(lambda: not parts.service.running, 3)
            stored = await queue.get(job.id)
            assert stored.lease_until is not None
            assert time.time() < stored.lease_until
            store.failing.clear()
            parts.service.seconds = 0
            ended = await wait_until_ended(queue, job.id)
        assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 2)

    async def test_a_result_survives_a_failing_store(self, parts: QueueParts) -> None:
        store = FlakyStore()
        parts.store = store
        parts.service.seconds = 0.1
        queue = parts.make_queue(lease_s=10)
        async with serving(queue):
            job = await queue.submit(make_job(), {})
            await wait_until(lambda: parts.service.running)
            store.failing |= {"change", "claim"}
            await wait_until(lambda: not parts.service.running)
            store.failing.clear()
            ended = await wait_until_ended(queue, job.id)
        assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 1)
        assert len(parts.service.requests) == 1

    async def test_progress_that_cannot_be_stored_does_not_fail_the_job(
        self, parts: QueueParts
    ) -> None:
        store = FlakyStore()
        parts.store = store

        def answer(request: Any, pictures: Any) -> str:
            if pictures[0].data == b"2":
                store.failing.add("change")
                asyncio.get_running_loop().call_later(0.3, store.failing.clear)
            return "x"

        parts.service.answer = answer
        queue = parts.make_queue(batch_concurrency=1)
        async with serving(queue):
            job = await queue.submit(make_job("batch", BATCH), SIX_PICTURES)
            ended = await wait_until_ended(queue, job.id)
        assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 1)

    async def test_a_job_is_not_retried_while_an_attempt_may_still_run(
        self, parts: QueueParts
    ) -> None:
        parts.service.seconds = 30
        queue = parts.make_queue(lease_s=2)
        other_queue = parts.make_queue()
        async with serving(queue):
            job = await queue.submit(make_job(), {})
            await wait_until(lambda: parts.service.running)
            with pytest.raises(Conflict, match="the job is still running"):
                await queue.requeue(job.id)
            running = await queue.get(job.id)
            assert (running.state, running.max_attempts) == (JobState.RUNNING, 3)
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

            async def claim(self, count: int, now: float, update: ComputeUpdate) -> list[Job]:
                claimed = await super().claim(count, now, update)
                if claimed and self.is_slow:
                    self.is_slow = False
                    await asyncio.sleep(0.7)
                return claimed

        parts.store = SlowStore()
        queue = parts.make_queue()
        async with serving(queue):
            ended = await wait_until_ended(queue, (await queue.submit(make_job(), {})).id)
        assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 2)
        assert len(parts.service.requests) == 1

    async def test_an_attempt_that_starts_after_the_deadline_took_longer_than_0_s(
        self, parts: QueueParts
    ) -> None:
        class SlowStore(MemoryStore):
            async def claim(self, count: int, now: float, update: ComputeUpdate) -> list[Job]:
                claimed = await super().claim(count, now, update)
                if claimed:
                    await asyncio.sleep(1.0)
                return claimed

        parts.store = SlowStore()
        parts.service.seconds = 5
        queue = parts.make_queue(lease_s=10)
        job = await queue.submit(make_job(deadline=time.time() + 0.2), {})
        async with serving(queue):
            ended = await wait_until_ended(queue, job.id)
        assert (ended.state, ended.attempts) == (JobState.FAILED, 1)
        assert ended.problem is not None
        assert ended.problem.message == "the attempt did not finish in the 0 s it had"

    async def test_an_io_error_is_retried(self, parts: QueueParts) -> None:
        parts.service.errors = [OSError("I/O error")]
        queue = parts.make_queue()
        async with serving(queue):
            ended = await wait_until_ended(queue, (await queue.submit(make_job(), {})).id)
        assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 2)

    async def test_a_submission_that_cannot_be_stored_does_not_fail_others(
        self, parts: QueueParts
    ) -> None:
        put = parts.blobs.put

        def put_or_fail(digest: str, data: bytes) -> None:
            if data == b"3":
                raise OSError("no space left on device")
            put(digest, data)

        parts.blobs.put = put_or_fail  # type: ignore[method-assign]
        queue = parts.make_queue()
        submissions = [
            (make_job(blobs=(digest,)), {digest: data}) for digest, data in SIX_PICTURES.items()
        ]
        results = await queue.submit_all(submissions)
        assert [type(result) for result in results] == [Job, Job, Job, Overloaded, Job, Job]

    async def test_the_times_of_a_new_job_are_moved_to_the_stores_clock(
        self, parts: QueueParts
    ) -> None:
        early = time.time() - 100
        job = make_job(created_at=early, rank=early - 60, deadline=early + 50)
        stored = await parts.make_queue().submit(job, {})
        assert stored.created_at == pytest.approx(time.time(), abs=5)
        assert stored.deadline - stored.created_at == pytest.approx(50)
        assert stored.created_at - stored.rank == pytest.approx(60)

    async def test_a_result_with_an_old_fence_is_discarded(self, parts: QueueParts) -> None:
        def claim_again(stored: Job) -> JobUpdate:
            return JobUpdate(replace(stored, fence=stored.fence + 1))

        parts.service.seconds = 0.2
        queue = parts.make_queue()
        async with serving(queue):
            job = await queue.submit(make_job(), {})
            await wait_until(lambda: parts.service.running)
            await parts.store.change([Change(job.id, claim_again)])
            await wait_until(lambda: not parts.service.running)
            await asyncio.sleep(0.05)
            assert (await queue.get(job.id)).state is JobState.RUNNING


class TestWatching:
    async def test_a_watcher_gets_each_state_within_a_second(self, parts: QueueParts) -> None:
        parts.service.seconds = 0.05
        queue = parts.make_queue()
        job = await queue.submit(make_job(), {})
        states = [job.state]
        async with serving(queue):
            while not job.state.is_terminal:
                started = time.monotonic()
                job = await queue.watch(job.id, job, 5)
                assert time.monotonic() - started < 1
                states.append(job.state)
        assert states == [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]

    async def test_a_watch_ends_at_its_timeout(self, parts: QueueParts) -> None:
        queue = parts.make_queue()
        job = await queue.submit(make_job(), {})
        assert await queue.watch(job.id, job, 0.02) == job
        assert await queue.watch(job.id, None, 5) == job

    async def test_statistics(self, parts: QueueParts) -> None:
        parts.service.seconds = 0.02
        queue = parts.make_queue(capacity=7)
        empty = await queue.stats()
        assert (empty.mean_s, empty.p95_s) == (None, None)
        async with serving(queue):
            for _ in range(3):
                await wait_until_ended(queue, (await queue.submit(make_job(), {})).id)
            stats = await queue.stats()
        assert (stats.counts[JobState.SUCCEEDED], stats.capacity, stats.workers) == (3, 7, 4)
        assert stats.mean_s is not None
        assert stats.p95_s is not None
        assert 0.02 <= stats.mean_s <= stats.p95_s < 1


SIX_PICTURES = {compute_digest(b"%d" % number): b"%d" % number for number in range(6)}
BATCH: dict[str, Any] = {
    "images": [make_reference(digest) for digest in SIX_PICTURES],
    "prompt": "what is it?",
}


def answer_with_name(request: Any, pictures: Any) -> str:
    return f"picture {pictures[0].data.decode()} of {pictures[0].field}"


class TestBatch:
    async def test_the_captions_are_in_the_order_of_the_pictures(self, parts: QueueParts) -> None:
        parts.service.answer = answer_with_name
        queue = parts.make_queue(batch_concurrency=2)
        async with serving(queue):
            job = await queue.submit(make_job("batch", BATCH), SIX_PICTURES)
            ended = await wait_until_ended(queue, job.id)
        assert ended.output is not None
        captions = [result["caption"] for result in ended.output["results"]]
        assert captions == [f"picture {number} of input.images.{number}" for number in range(6)]
        assert ended.output["failed"] == 0
        assert ended.progress == Progress(6, 6)
        assert parts.service.most_at_once == 2

    async def test_an_invalid_picture_fails_alone(self, parts: QueueParts) -> None:
        parts.service.errors = [InvalidRequest("input.images.0: broken", "input.images.0")]
        queue = parts.make_queue(batch_concurrency=1)
        async with serving(queue):
            job = await queue.submit(make_job("batch", BATCH), SIX_PICTURES)
            ended = await wait_until_ended(queue, job.id)
        assert ended.state is JobState.SUCCEEDED
        assert ended.output is not None
        assert ended.output["failed"] == 1
        assert ended.output["results"][0]["error"]["code"] == "invalid_request"
        assert ended.output["results"][5]["caption"] == "two circles"

    async def test_the_next_attempt_resumes_after_the_last_report(self, parts: QueueParts) -> None:
        has_failed = asyncio.Event()

        def answer(request: Any, pictures: Any) -> str:
            if pictures[0].data == b"3" and not has_failed.is_set():
                has_failed.set()
                raise Overloaded("full", "model")
            return str(pictures[0].data.decode())

        parts.service.answer = answer
        # Two pictures take longer than the period of progress reports.
        parts.service.seconds = 0.3
        queue = parts.make_queue(batch_concurrency=1, lease_s=10)
        async with serving(queue):
            job = await queue.submit(make_job("batch", BATCH), SIX_PICTURES)
            ended = await wait_until_ended(queue, job.id, 30)
        assert ended.attempts == 2
        assert ended.output is not None
        captions = [result["caption"] for result in ended.output["results"]]
        assert captions == ["0", "1", "2", "3", "4", "5"]
        # Six pictures, the one that failed, and those since the last stored report.
        assert len(parts.service.requests) < 10

    async def test_a_missing_picture_is_an_error_of_its_own(self, parts: QueueParts) -> None:
        queue = parts.make_queue()
        async with serving(queue):
            job = await queue.submit(make_job("batch", BATCH), {})
            ended = await wait_until_ended(queue, job.id)
        assert ended.output is not None
        assert ended.output["failed"] == 6


class TestWebhooks:
    async def test_the_end_is_delivered_once_with_the_output(self, parts: QueueParts) -> None:
        queue = parts.make_queue()
        async with serving(queue):
            job = await queue.submit(make_job_with_webhook(), {})
            await wait_until(lambda: parts.webhook_client.sent)
            await asyncio.sleep(0.05)
            (delivery,) = await queue.deliveries(job.id)
        ((url, content, headers),) = parts.webhook_client.sent
        assert url == URL
        body = json.loads(content)
        assert body["type"] == "job.succeeded"
        assert body["data"]["output"]["answer"] == "two circles"
        assert headers["webhook-id"] == delivery.id
        assert delivery.state is DeliveryState.DELIVERED
        assert (delivery.status, delivery.attempts) == (204, 1)

    async def test_the_start_if_enabled_and_a_cancellation_are_delivered(
        self, parts: QueueParts
    ) -> None:
        parts.service.seconds = 30
        queue = parts.make_queue(webhooks={"started": True})
        async with serving(queue):
            job = await queue.submit(make_job_with_webhook(), {})
            await wait_until(lambda: parts.service.running)
            await queue.cancel(job.id)
            await wait_until(lambda: len(parts.webhook_client.sent) == 2)
        events = {json.loads(content)["type"] for _, content, _ in parts.webhook_client.sent}
        assert events == {"job.started", "job.canceled"}

    async def test_a_failed_delivery_is_retried_after_the_longer_of_schedule_and_retry_after(
        self, parts: QueueParts
    ) -> None:
        parts.webhook_client = FakeWebhookClient([503, 204], {"retry-after": "1"})
        queue = parts.make_queue()
        async with serving(queue):
            job = await queue.submit(make_job_with_webhook(), {})
            await wait_until(lambda: len(parts.webhook_client.sent) == 1)
            await asyncio.sleep(0.05)
            (pending,) = await queue.deliveries(job.id)
            assert pending.state is DeliveryState.PENDING
            assert (pending.status, pending.problem) == (503, "the endpoint answered 503")
            assert pending.next_at - time.time() > 4  # the schedule begins with 5 s
            await queue.redeliver(job.id, 1)
            await wait_until(lambda: len(parts.webhook_client.sent) == 2)
        ids = {headers["webhook-id"] for _, _, headers in parts.webhook_client.sent}
        contents = {content for _, content, _ in parts.webhook_client.sent}
        assert len(ids) == len(contents) == 1

    @pytest.mark.parametrize(
        ("status", "state", "problem"),
        [
            (410, DeliveryState.DISABLED, "answered 410"),
            (302, DeliveryState.PENDING, "answered 302"),
            (
                AddressRefused("webhook_url: x resolves to 10.0.0.1", "webhook_url"),
                DeliveryState.FAILED,
                "resolves to 10",
            ),
            (httpx.ConnectError("refused"), DeliveryState.PENDING, "ConnectError: refused"),
            (OSError("no address"), DeliveryState.PENDING, "no address"),
        ],
    )
    async def test_the_result_of_an_attempt_is_stored(
        self, parts: QueueParts, status: int | Exception, state: DeliveryState, problem: str
    ) -> None:
        parts.webhook_client = FakeWebhookClient([status])
        queue = parts.make_queue()
        async with serving(queue):
            job = await queue.submit(make_job_with_webhook(), {})
            await wait_until(lambda: parts.webhook_client.sent)
            await asyncio.sleep(0.05)
            (delivery,) = await queue.deliveries(job.id)
        assert delivery.state is state
        assert problem in (delivery.problem or "")
        assert delivery.attempts == 1

    async def test_a_dead_receiver_delays_neither_jobs_nor_other_webhooks(
        self, parts: QueueParts
    ) -> None:
        class HalfDeadClient(FakeWebhookClient):
            async def post(
                self, url: str, content: bytes, headers: dict[str, str], field: str
            ) -> httpx.Response:
                self.sent.append((url, content, headers))
                await asyncio.sleep(30 if "dead" in url else 0)
                return httpx.Response(204)

        parts.webhook_client = HalfDeadClient()
        queue = parts.make_queue(webhooks={"max_at_once": 8, "max_per_host": 2})
        dead = Webhook("https://dead.example/")
        alive = Webhook("https://alive.example/")
        async with serving(queue):
            jobs = [await queue.submit(make_job(webhook=dead), {}) for _ in range(20)]
            jobs += [await queue.submit(make_job(webhook=alive), {}) for _ in range(20)]
            for job in jobs:
                assert (await wait_until_ended(queue, job.id)).state is JobState.SUCCEEDED
            await wait_until(
                lambda: sum("alive" in url for url, _, _ in parts.webhook_client.sent) == 20
            )
        assert sum("dead" in url for url, _, _ in parts.webhook_client.sent) == 2

    async def test_an_interrupted_delivery_is_sent_again_after_a_restart(
        self, parts: QueueParts
    ) -> None:
        parts.webhook_client = FakeWebhookClient(seconds=30)
        dead_queue = parts.make_queue(webhooks={"timeout_s": 0.2})
        async with serving(dead_queue):
            job = await dead_queue.submit(make_job_with_webhook(), {})
            await wait_until(lambda: parts.webhook_client.sent)
        parts.webhook_client = FakeWebhookClient()
        queue = parts.make_queue()
        async with serving(queue):
            await wait_until(lambda: parts.webhook_client.sent)
            await asyncio.sleep(0.05)
            (delivery,) = await queue.deliveries(job.id)
        assert delivery.state is DeliveryState.DELIVERED

    async def test_an_unexpected_error_counts_as_an_attempt(self, parts: QueueParts) -> None:
        parts.webhook_client = FakeWebhookClient([ZeroDivisionError("a bug")])
        queue = parts.make_queue()
        async with serving(queue):
            job = await queue.submit(make_job_with_webhook(), {})
            await wait_until(lambda: parts.webhook_client.sent)
            await asyncio.sleep(0.05)
            (delivery,) = await queue.deliveries(job.id)
        assert (delivery.attempts, delivery.problem) == (1, "ZeroDivisionError")
        assert delivery.next_at > time.time() + 4

    async def test_a_slow_response_is_a_failed_attempt(self, parts: QueueParts) -> None:
        parts.webhook_client = FakeWebhookClient(seconds=30)
        queue = parts.make_queue(webhooks={"timeout_s": 0.05})
        async with serving(queue):
            job = await queue.submit(make_job_with_webhook(), {})
            await wait_until(lambda: parts.webhook_client.sent)
            await asyncio.sleep(0.2)
            (delivery,) = await queue.deliveries(job.id)
        assert "no answer within 0.05 s" in (delivery.problem or "")


async def test_old_jobs_and_their_pictures_are_removed(parts: QueueParts) -> None:
    queue = parts.make_queue(result_ttl_s=0.01)
    job = await queue.submit(make_job(blobs=(DIGEST,)), {DIGEST: PICTURE})
    await queue.cancel(job.id)
    await asyncio.sleep(0.02)
    async with serving(queue):
        async with asyncio.timeout(5):
            with suppress(UnknownJob):
                while await queue.get(job.id):
                    await asyncio.sleep(0.01)
    assert await parts.store.remove_unused_blobs(time.time() + 1, 10, parts.blobs.remove) == 1
