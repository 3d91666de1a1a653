from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from raylens.core.errors import (
    Conflict,
    InsufficientStorage,
    InvalidRequest,
    Overloaded,
    QueueFull,
    UnknownJob,
)
from raylens.jobs.blobs import BlobMissing, BlobStorage, compute_digest, make_reference
from raylens.jobs.job import Job, JobState, new_id
from raylens.jobs.memory import MemoryStore
from raylens.jobs.queue import JobQueue
from raylens.jobs.store import Change, StoreUnavailable
from tests.unit.raylens.jobs.conftest import (
    FlakyStore,
    QueueParts,
    make_job,
    now,
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

    async def test_a_paused_queue_ends_what_runs_and_begins_nothing(
        self, parts: QueueParts
    ) -> None:
        parts.service.seconds = 5
        queue = parts.make_queue(workers=1)
        async with serving(queue):
            first, second = [await queue.submit(make_job(), {}) for _ in range(2)]
            await wait_until(lambda: queue.running == 1)
            queue.pause(100)
            assert (await wait_until_ended(queue, first.id)).state is JobState.SUCCEEDED
            await asyncio.sleep(90)
            assert queue.running == 0
            assert (await queue.get(second.id)).state is JobState.QUEUED
            assert (await wait_until_ended(queue, second.id)).state is JobState.SUCCEEDED

    async def test_a_pause_shortens_no_longer_one(self, parts: QueueParts) -> None:
        queue = parts.make_queue()
        async with serving(queue):
            queue.pause(100)
            queue.pause(10)
            job = await queue.submit(make_job(), {})
            await asyncio.sleep(90)
            assert (await queue.get(job.id)).state is JobState.QUEUED
            assert (await wait_until_ended(queue, job.id)).state is JobState.SUCCEEDED

    @pytest.mark.parametrize("hands_over", [False, True])
    async def test_a_claim_on_its_way_escapes_no_pause(
        self, parts: QueueParts, hands_over: bool
    ) -> None:
        class SlowStore(FlakyStore):
            is_claiming = False

            async def claim(self, *args: Any) -> list[Job]:
                if jobs := await super().claim(*args):
                    self.is_claiming = True
                    await asyncio.sleep(2)
                    self.is_claiming = False
                return jobs

            async def change(self, changes: Sequence[Change]) -> Any:
                await asyncio.sleep(0.1)
                return await super().change(changes)

        parts.store = store = SlowStore(parts)
        queue = parts.make_queue(workers=2)
        async with serving(queue):
            job = await queue.submit(make_job(), {})
            await wait_until(lambda: store.is_claiming)
            queue.pause()
            assert queue.running == 1
            if hands_over:
                await queue.hand_over()
            else:
                await wait_until(lambda: queue.running == 0, 10)
            # The process may end now.
            stored = await queue.get(job.id)
            assert (stored.state, stored.attempts) == (JobState.QUEUED, 0)
            await asyncio.sleep(60)
            assert parts.service.requests == []

    async def test_another_queue_begins_at_once_what_is_handed_over(
        self, parts: QueueParts
    ) -> None:
        parts.service.seconds = 60
        old = parts.make_queue(workers=2)
        new = parts.make_queue(workers=2)
        async with serving(old):
            jobs = [await old.submit(make_job(), {}) for _ in range(2)]
            await wait_until(lambda: old.running == 2)
            async with serving(new):
                begun_at = now()
                old.pause()
                await old.hand_over()
                new.wake()
                assert old.running == 0
                assert now() - begun_at < 1
                for job in jobs:
                    ended = await wait_until_ended(new, job.id)
                    assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 1)
                # No lease of 15 s, and no period of 5 s until the next poll, has passed before.
                assert now() - begun_at < 60 + 1

    async def test_a_deadline_ends_a_running_and_a_queued_job(self, parts: QueueParts) -> None:
        parts.service.seconds = 500
        queue = parts.make_queue(workers=1)
        async with serving(queue):
            running = await queue.submit(make_job(deadline=now() + 2), {})
            queued = await queue.submit(make_job(deadline=now() + 1), {})
            ended = [await wait_until_ended(queue, job.id) for job in (running, queued)]
        assert [job.state for job in ended] == [JobState.FAILED] * 2
        assert [job.problem and job.problem.code for job in ended] == ["deadline_exceeded"] * 2
        assert [job.attempts for job in ended] == [1, 0]

    async def test_a_higher_priority_goes_first_but_not_forever(self, parts: QueueParts) -> None:
        ranks = {"old": now() - 300, "high": now() - 60, "new": now()}
        jobs = {name: make_job(job_input={"question": name}, rank=ranks[name]) for name in ranks}
        queue = parts.make_queue(workers=1)
        for name in ("new", "high", "old"):
            await queue.submit(jobs[name], {})
        async with serving(queue):
            for job in jobs.values():
                await wait_until_ended(queue, job.id)
        questions = [getattr(request.task, "question", "") for request in parts.service.requests]
        assert questions == ["old", "high", "new"]


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
            async def add(self, jobs: Sequence[Job], capacity: int, *rest: Any) -> Any:
                order.append("job")
                return await super().add(jobs, capacity, *rest)

            async def touch_blobs(self, *arguments: Any) -> set[str]:
                order.append("touched")
                return await super().touch_blobs(*arguments)

        def put_slowly(digest: str, data: bytes) -> None:
            time.sleep(0.02)
            put(digest, data)
            order.append("blob")

        parts.store = RecordingStore(parts.clock)
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
            await asyncio.sleep(60)
        assert parts.service.requests == []

    async def test_the_attempt_at_a_canceled_job_stops(self, parts: QueueParts) -> None:
        parts.service.seconds = 500
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
        parts.service.seconds = 500
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


class TestLimits:
    async def test_pictures_over_the_quota_are_refused_with_the_numbers(
        self, parts: QueueParts
    ) -> None:
        queue = parts.make_queue(max_picture_bytes=2 * len(PICTURE) + 1)
        message = "pictures and files of jobs take 44 bytes, and 22 more were sent; the limit is 45"
        pictures = [PICTURE, PICTURE[::-1], PICTURE.upper()]
        for picture in pictures[:2]:
            await submit_picture(queue, picture)
        await submit_picture(queue, PICTURE)  # already stored
        with pytest.raises(InsufficientStorage, match=message) as caught:
            await submit_picture(queue, pictures[2])
        assert caught.value.retry_after is not None
        await queue.submit(make_job(), {})  # without pictures

    async def test_a_repeated_submission_is_answered_when_the_disk_is_nearly_full(
        self, parts: QueueParts
    ) -> None:
        queue = parts.make_queue()
        job = make_job(idempotency_key="key", digest="same")
        first = await queue.submit(job, {})
        parts.free_bytes = 0
        await asyncio.sleep(2)
        again = make_job(idempotency_key="key", digest="same")
        assert await queue.submit(again, {}) == first
        with pytest.raises(Conflict):
            await queue.submit(replace(again, digest="other"), {})
        with pytest.raises(InsufficientStorage):
            await queue.submit(replace(again, idempotency_key="new"), {})

    async def test_nothing_is_accepted_when_the_disk_is_nearly_full(
        self, parts: QueueParts
    ) -> None:
        queue = parts.make_queue()
        parts.free_bytes = 512 * 2**20 - 1
        with pytest.raises(InsufficientStorage, match=r"536870911 free bytes.*536870912") as caught:
            await queue.submit(make_job(), {})
        assert caught.value.retry_after is not None
        parts.free_bytes += 1
        await asyncio.sleep(2)
        await queue.submit(make_job(), {})

    async def test_a_disk_that_cannot_be_read_is_a_503(self, parts: QueueParts) -> None:
        def fail() -> float:
            raise FileNotFoundError("/data")

        queue = parts.make_queue()
        queue._pictures._free_bytes = fail
        for submit in (queue.submit(make_job(), {}), submit_picture(queue, PICTURE)):
            with pytest.raises(StoreUnavailable, match="the disk of the job queue can't be read"):
                await submit

    async def test_a_picture_that_is_being_removed_is_stored_again(self, parts: QueueParts) -> None:
        await parts.store.touch_blobs({DIGEST: 1}, now() - 1000, 10)
        assert await parts.store.mark_unused_blobs(now(), now(), now() + 60, 9) == [DIGEST]
        queue = parts.make_queue()
        submission = asyncio.create_task(submit_picture(queue, PICTURE))
        await asyncio.sleep(3)
        assert not submission.done()
        await parts.store.forget_blobs([DIGEST])
        await submission
        assert parts.blobs.get(DIGEST) == PICTURE


async def submit_picture(queue: JobQueue, picture: bytes) -> Job:
    digest = compute_digest(picture)
    job = make_job("caption", {"image": make_reference(digest)}, blobs=(digest,))
    return await queue.submit(job, {digest: picture})


class TestCleaning:
    async def test_old_jobs_and_their_pictures_are_removed(self, parts: QueueParts) -> None:
        queue = parts.make_queue(result_ttl_s=3600)
        async with serving(queue):
            job = await submit_picture(queue, PICTURE)
            assert (await wait_until_ended(queue, job.id)).state is JobState.SUCCEEDED
            await asyncio.sleep(3600 - 60)
            assert parts.blobs.get(DIGEST) == PICTURE
            await asyncio.sleep(300)
            with pytest.raises(UnknownJob):
                await queue.get(job.id)
        with pytest.raises(BlobMissing):
            parts.blobs.get(DIGEST)

    async def test_a_failed_jobs_pictures_are_removed_before_it(self, parts: QueueParts) -> None:
        parts.service.errors = [InvalidRequest("broken", "image")]
        queue = parts.make_queue(failed_pictures_ttl_s=3600)
        async with serving(queue):
            job = await submit_picture(queue, PICTURE)
            assert (await wait_until_ended(queue, job.id)).state is JobState.FAILED
            await asyncio.sleep(3600 - 60)
            assert parts.blobs.get(DIGEST) == PICTURE
            await asyncio.sleep(300)
            assert (await queue.get(job.id)).state is JobState.FAILED
            with pytest.raises(Conflict, match="the pictures of the job have been removed"):
                await queue.requeue(job.id)
        with pytest.raises(BlobMissing):
            parts.blobs.get(DIGEST)

    async def test_a_removed_job_takes_its_pictures_with_it(self, parts: QueueParts) -> None:
        queue = parts.make_queue()
        async with serving(queue):
            job = await submit_picture(queue, PICTURE)
            await wait_until_ended(queue, job.id)
            await asyncio.sleep(200)
            assert (await queue.remove(job.id)).id == job.id
            await asyncio.sleep(1)
            with pytest.raises(BlobMissing):
                parts.blobs.get(DIGEST)
            with pytest.raises(UnknownJob):
                await queue.remove(job.id)
            running = await submit_picture(queue, PICTURE)
            with pytest.raises(Conflict, match="the job is still queued"):
                await queue.remove(running.id)

    async def test_a_slow_removal_takes_no_picture_of_a_new_job(self, parts: QueueParts) -> None:
        class SlowBlobs(BlobStorage):
            async def remove_async(self, digest: str) -> None:
                await asyncio.sleep(200)
                await super().remove_async(digest)

        parts.blobs = SlowBlobs(f"memory://{new_id()}")
        parts.blobs.put(DIGEST, PICTURE)
        await parts.store.touch_blobs({DIGEST: 1}, now() - 1000, 100)
        queue = parts.make_queue()
        async with serving(queue):
            for _ in range(19):
                await asyncio.sleep(5)
                with pytest.raises(Overloaded):
                    await submit_picture(queue, PICTURE)
            await asyncio.sleep(10)
            job = await submit_picture(queue, PICTURE)
            await asyncio.sleep(300)
            assert (await queue.get(job.id)).state is JobState.SUCCEEDED
            assert parts.blobs.get(DIGEST) == PICTURE

    async def test_slow_removals_hold_up_no_job(self, parts: QueueParts) -> None:
        parts.service.seconds = 60
        removed = 0

        class SlowBlobs(BlobStorage):
            async def remove_async(self, digest: str) -> None:
                nonlocal removed
                await asyncio.sleep(10)
                removed += 1

        parts.blobs = SlowBlobs(f"memory://{new_id()}")
        old = {compute_digest(b"%d" % number): 1 for number in range(100)}
        await parts.store.touch_blobs(old, now() - 1000, 1000)
        queue = parts.make_queue()
        async with serving(queue):
            started = now()
            job = await submit_picture(queue, PICTURE)
            assert now() - started < 1
            ended = await wait_until_ended(queue, job.id)
            assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 1)
            await asyncio.sleep(3600)
        assert removed >= 100
        assert parts.blobs.get(DIGEST) == PICTURE

    async def test_a_removal_that_fails_is_tried_again_and_stops_no_other(
        self, parts: QueueParts
    ) -> None:
        pictures = [f"{number}".encode() for number in range(60)]
        digests = [compute_digest(picture) for picture in pictures]
        stuck = set(digests[:12])

        class FlakyBlobs(BlobStorage):
            async def remove_async(self, digest: str) -> None:
                if digest in stuck:
                    raise StoreUnavailable("removing a picture failed")
                await super().remove_async(digest)

        blobs = parts.blobs = FlakyBlobs(f"memory://{new_id()}")

        def stored() -> set[str]:
            return {digest for digest in digests if blobs._filesystem.exists(blobs._path(digest))}

        for digest, picture in zip(digests, pictures, strict=True):
            blobs.put(digest, picture)
            await parts.store.touch_blobs({digest: 1}, now() - 1000, 100)
        queue = parts.make_queue()
        async with serving(queue):
            await asyncio.sleep(600)
            assert stored() == stuck
            await submit_picture(queue, pictures[0])  # it can be used meanwhile
            stuck.clear()
            await asyncio.sleep(2 * 3600)
            assert stored() == {digests[0]}


class TestMetrics:
    async def test_every_end_is_counted_once(self, parts: QueueParts) -> None:
        parts.service.seconds = 1
        parts.service.errors = [InvalidRequest("broken")]
        queue = parts.make_queue(workers=1)
        async with serving(queue):
            failed, succeeded, canceled, expired = [
                await queue.submit(job, {})
                for job in (make_job(), make_job(), make_job(), make_job(deadline=now() + 0.5))
            ]
            await queue.cancel(canceled.id)
            await queue.cancel(canceled.id)
            for job in (failed, succeeded, expired):
                await wait_until_ended(queue, job.id)
        assert sorted(state for _, state in parts.metrics.ends) == [
            JobState.CANCELED,
            JobState.FAILED,
            JobState.FAILED,
            JobState.SUCCEEDED,
        ]
        assert {"invalid_request", "ok"} <= set(parts.metrics.attempts)

    async def test_the_oldest_due_job_is_measured_and_those_of_later_are_not(
        self, parts: QueueParts
    ) -> None:
        parts.service.seconds = 100
        queue = parts.make_queue(workers=1)
        async with serving(queue):
            await queue.submit(make_job(), {})
            await asyncio.sleep(10)
            assert parts.metrics.waits[-1] == 0  # it runs
            await queue.submit(make_job(), {})
            await asyncio.sleep(30)
            assert parts.metrics.waits[-1] == pytest.approx(30, abs=5)
            await asyncio.sleep(75)
            assert parts.metrics.waits[-1] == 0

    async def test_a_store_that_fails_is_reported_as_away_until_it_answers(
        self, parts: QueueParts
    ) -> None:
        store = FlakyStore(parts)
        queue = replace(parts, store=store).make_queue()
        async with serving(queue):
            await asyncio.sleep(1)
            assert parts.metrics.is_available == [True]
            store.failing.add("count_by_state")
            await asyncio.sleep(5)
            assert parts.metrics.is_available == [True, False]
            store.failing.clear()
            await asyncio.sleep(5)
            assert parts.metrics.is_available == [True, False, True]

    async def test_the_free_space_is_measured_if_a_disk_holds_the_files(
        self, parts: QueueParts
    ) -> None:
        async with serving(parts.make_queue()):
            await asyncio.sleep(1)
            assert parts.metrics.free_bytes == []
        parts.free_bytes = 5000
        async with serving(parts.make_queue(min_free_bytes=1000)):
            await asyncio.sleep(1)
            assert parts.metrics.free_bytes == [(5000, 1000)]

    async def test_statistics(self, parts: QueueParts) -> None:
        parts.service.seconds = 2
        queue = parts.make_queue(capacity=7)
        empty = await queue.stats()
        assert (empty.mean_s, empty.p95_s) == (None, None)
        async with serving(queue):
            for _ in range(3):
                await wait_until_ended(queue, (await queue.submit(make_job(), {})).id)
            stats = await queue.stats()
        assert (stats.counts[JobState.SUCCEEDED], stats.capacity, stats.workers) == (3, 7, 2)
        assert stats.mean_s == pytest.approx(2)
        assert stats.p95_s == pytest.approx(2)
