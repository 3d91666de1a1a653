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
from raylens.jobs.blobs import digest_of, reference
from raylens.jobs.job import DeliveryState, Job, JobState, Progress
from raylens.jobs.memory import MemoryStore
from raylens.jobs.store import Apply, Change
from raylens.net.address import AddressRefused
from tests.unit.raylens.jobs.conftest import (
    URL,
    FakeSender,
    Parts,
    ended,
    job,
    serving,
    told,
    until,
)

PICTURE = b"the bytes of a picture"
DIGEST = digest_of(PICTURE)


class TestRunning:
    async def test_a_job_is_run_and_its_output_kept(self, parts: Parts) -> None:
        queue = parts.queue()
        async with serving(queue):
            sent = await queue.submit(
                job("caption", {"image": reference(DIGEST)}, blobs=(DIGEST,)), {DIGEST: PICTURE}
            )
            assert sent.state is JobState.QUEUED
            done = await ended(queue, sent.id)
        assert done.state is JobState.SUCCEEDED
        assert done.output == {"caption": "two circles", "model": "moondream"}
        assert done.attempts == 1
        assert parts.service.pictures == [PICTURE]

    async def test_no_more_run_at_once_than_there_are_workers(self, parts: Parts) -> None:
        parts.service.seconds = 0.02
        queue = parts.queue(workers=3)
        async with serving(queue):
            sent = [await queue.submit(job(), {}) for _ in range(9)]
            for each in sent:
                await ended(queue, each.id)
        assert parts.service.most_at_once == 3
        assert len(parts.service.requests) == 9

    async def test_an_overload_is_tried_again_and_attempts_are_counted(self, parts: Parts) -> None:
        parts.service.errors = [Overloaded("full", "model"), Overloaded("full", "model")]
        queue = parts.queue()
        async with serving(queue):
            done = await ended(queue, (await queue.submit(job(), {})).id)
        assert (done.state, done.attempts, done.problem) == (JobState.SUCCEEDED, 3, None)

    async def test_bad_input_and_bugs_are_not_tried_again(self, parts: Parts) -> None:
        parts.service.errors = [
            InvalidRequest("image: broken", "image"),
            ZeroDivisionError("a bug"),
        ]
        queue = parts.queue(workers=1)
        async with serving(queue):
            first = await ended(queue, (await queue.submit(job(), {})).id)
            second = await ended(queue, (await queue.submit(job(), {})).id)
        assert (first.state, first.attempts) == (JobState.FAILED, 1)
        assert first.problem is not None
        assert (first.problem.code, first.problem.field) == ("invalid_request", "image")
        assert (second.state, second.attempts) == (JobState.FAILED, 1)
        assert second.problem is not None
        assert second.problem.code == "internal_error"
        assert "a bug" not in second.problem.message

    async def test_attempts_end(self, parts: Parts) -> None:
        parts.service.errors = [Overloaded("full", "model")] * 9
        queue = parts.queue()
        async with serving(queue):
            done = await ended(queue, (await queue.submit(job(max_attempts=2), {})).id)
        assert (done.state, done.attempts) == (JobState.FAILED, 2)
        assert done.problem is not None
        assert done.problem.code == "overloaded"

    async def test_an_attempt_that_takes_too_long_is_stopped_and_tried_again(
        self, parts: Parts
    ) -> None:
        parts.service.seconds = 5
        queue = parts.queue(attempt_timeout_s=0.1)
        async with serving(queue):
            done = await ended(queue, (await queue.submit(job(max_attempts=2), {})).id)
        assert (done.state, done.attempts) == (JobState.FAILED, 2)
        assert done.problem is not None
        assert done.problem.code == "deadline_exceeded"
        assert parts.service.stopped == 2
        assert parts.service.running == 0

    async def test_a_deadline_ends_a_running_and_a_waiting_job(self, parts: Parts) -> None:
        parts.service.seconds = 5
        queue = parts.queue(workers=1)
        async with serving(queue):
            runs = await queue.submit(job(deadline=time.time() + 0.2), {})
            waits = await queue.submit(job(deadline=time.time() + 0.1), {})
            ends = [await ended(queue, each.id) for each in (runs, waits)]
        assert [done.state for done in ends] == [JobState.FAILED] * 2
        assert [done.problem and done.problem.code for done in ends] == ["deadline_exceeded"] * 2
        assert [done.attempts for done in ends] == [1, 0]

    async def test_a_higher_priority_goes_first_but_not_for_ever(self, parts: Parts) -> None:
        now = time.time()
        ranks = {"old": now - 300, "high": now - 60, "new": now}
        sent = {name: job(given={"question": name}, rank=rank) for name, rank in ranks.items()}
        queue = parts.queue(workers=1)
        for name in ("new", "high", "old"):
            await queue.submit(sent[name], {})
        async with serving(queue):
            for each in sent.values():
                await ended(queue, each.id)
        questions = [getattr(request.task, "question", "") for request in parts.service.requests]
        assert questions == ["old", "high", "new"]

    async def test_a_type_that_is_gone_waits_for_its_package(self, parts: Parts) -> None:
        queue = parts.queue()
        async with serving(queue):
            done = await ended(
                queue, (await queue.submit(job("no-such-type", max_attempts=2), {})).id
            )
        assert (done.state, done.attempts) == (JobState.FAILED, 2)


class TestSubmitting:
    async def test_a_full_queue_says_when_to_come_back(self, parts: Parts) -> None:
        queue = parts.queue(capacity=1)
        await queue.submit(job(), {})
        for pictures in ({}, {DIGEST: PICTURE}):
            with pytest.raises(QueueFull, match="the limit is 1") as caught:
                await queue.submit(job(), pictures)
            assert caught.value.retry_after is not None
            assert 1 <= caught.value.retry_after <= 60

    async def test_a_full_queue_still_knows_its_jobs(self, parts: Parts) -> None:
        queue = parts.queue(capacity=1)
        first = await queue.submit(job(idempotency_key="k", digest="d"), {})
        again = await queue.submit(
            job(idempotency_key="k", digest="d", blobs=(DIGEST,)), {DIGEST: PICTURE}
        )
        assert again == first
        with pytest.raises(Conflict):
            await queue.submit(job(idempotency_key="k", digest="e"), {})

    async def test_the_pictures_are_there_before_the_job_is(self, parts: Parts) -> None:
        put = parts.blobs.put
        order: list[str] = []

        class Watched(MemoryStore):
            async def add(self, jobs: Sequence[Job], capacity: int) -> Any:
                order.append("job")
                return await super().add(jobs, capacity)

            async def touch_blobs(self, digests: Any, now: float) -> None:
                order.append("touched")

        def put_slowly(digest: str, data: bytes) -> None:
            time.sleep(0.02)
            put(digest, data)
            order.append("blob")

        parts.store = Watched()
        parts.blobs.put = put_slowly  # type: ignore[method-assign]
        await parts.queue().submit(job(blobs=(DIGEST,)), {DIGEST: PICTURE})
        assert order == ["touched", "blob", "job"]

    async def test_what_is_not_there_is_unknown(self, parts: Parts) -> None:
        queue = parts.queue()
        for call in (queue.get, queue.cancel, queue.retry, queue.deliveries):
            with pytest.raises(UnknownJob, match="'nothing' is not here"):
                await call("nothing")
        sent = await queue.submit(job(), {})
        with pytest.raises(UnknownJob, match="none of number 1"):
            await queue.redeliver(sent.id, 1)


class TestCanceling:
    async def test_a_waiting_job_never_runs(self, parts: Parts) -> None:
        queue = parts.queue()
        sent = await queue.submit(job(), {})
        assert (await queue.cancel(sent.id)).state is JobState.CANCELED
        async with serving(queue):
            await asyncio.sleep(0.05)
        assert parts.service.requests == []

    async def test_a_running_jobs_work_stops(self, parts: Parts) -> None:
        parts.service.seconds = 30
        queue = parts.queue()
        async with serving(queue):
            sent = await queue.submit(job(), {})
            await until(lambda: parts.service.running)
            assert (await queue.cancel(sent.id)).state is JobState.CANCELED
            await until(lambda: not parts.service.running)
            assert (await queue.cancel(sent.id)).state is JobState.CANCELED
        assert parts.service.stopped == 1
        assert (await queue.get(sent.id)).state is JobState.CANCELED

    async def test_it_stops_where_another_process_runs_it(self, parts: Parts) -> None:
        parts.service.seconds = 30
        runs, asks = parts.queue(), parts.queue()
        async with serving(runs):
            sent = await asks.submit(job(), {})
            await until(lambda: parts.service.running)
            await asks.cancel(sent.id)
            await until(lambda: not parts.service.running)

    async def test_an_end_cannot_be_canceled_and_a_success_not_retried(self, parts: Parts) -> None:
        queue = parts.queue()
        async with serving(queue):
            done = await ended(queue, (await queue.submit(job(), {})).id)
            for call in (queue.cancel, queue.retry):
                with pytest.raises(Conflict, match="the job is succeeded"):
                    await call(done.id)

    async def test_a_canceled_job_runs_once_it_is_retried(self, parts: Parts) -> None:
        queue = parts.queue()
        sent = await queue.submit(job(), {})
        await queue.cancel(sent.id)
        assert (await queue.retry(sent.id)).state is JobState.QUEUED
        async with serving(queue):
            assert (await ended(queue, sent.id)).state is JobState.SUCCEEDED


class Flaky(MemoryStore):
    """Fails at what is named in ``broken``."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: set[str] = set()

    def _check(self, name: str) -> None:
        if name in self.broken:
            raise OSError("the database has gone")

    async def claim(self, count: int, now: float, apply: Apply) -> list[Job]:
        self._check("claim")
        return await super().claim(count, now, apply)

    async def change(self, changes: Sequence[Change]) -> Any:
        self._check("change")
        return await super().change(changes)

    async def renew(self, fences: Mapping[str, int], until: float) -> set[str]:
        self._check("renew")
        return await super().renew(fences, until)


class TestFaults:
    async def test_two_queues_never_run_one_job_at_once(self, parts: Parts) -> None:
        parts.service.seconds = 0.01
        runs: dict[str, int] = {}

        def answer(request: Any, pictures: Any) -> str:
            runs[request.id] = runs.get(request.id, 0) + 1
            return "x"

        parts.service.answer = answer
        one, two = parts.queue(workers=5), parts.queue(workers=5)
        async with serving(one, two):
            sent = [await one.submit(job(), {}) for _ in range(40)]
            for each in sent:
                await ended(two, each.id)
        assert runs == {each.id: 1 for each in sent}

    async def test_a_queue_that_dies_leaves_its_job_to_the_next(self, parts: Parts) -> None:
        parts.service.seconds = 30
        dies = parts.queue()
        async with serving(dies):
            sent = await dies.submit(job(), {})
            await until(lambda: parts.service.running)
        parts.service.seconds = 0
        lives = parts.queue()
        async with serving(lives):
            done = await ended(lives, sent.id)
        assert (done.state, done.attempts) == (JobState.SUCCEEDED, 2)

    async def test_a_lease_is_renewed_while_the_job_runs(self, parts: Parts) -> None:
        parts.service.seconds = 2.5
        one, two = parts.queue(), parts.queue()
        async with serving(one, two):
            done = await ended(one, (await one.submit(job(), {})).id)
        assert (done.state, done.attempts, len(parts.service.requests)) == (
            JobState.SUCCEEDED,
            1,
            1,
        )

    async def test_an_attempt_stops_before_its_lease_is_anothers(self, parts: Parts) -> None:
        """A queue that can't reach the store can't know whether its job has been taken over: it
        must assume so."""
        store = Flaky()
        parts.store = store
        parts.service.seconds = 30
        queue = parts.queue(lease_s=1.0)
        async with serving(queue):
            sent = await queue.submit(job(), {})
            await until(lambda: parts.service.running)
            store.broken |= {"renew", "claim"}
            await until(lambda: not parts.service.running, 3)
            stored = await queue.get(sent.id)
            assert stored.lease_until is not None
            assert time.time() < stored.lease_until
            store.broken.clear()
            parts.service.seconds = 0
            done = await ended(queue, sent.id)
        assert (done.state, done.attempts) == (JobState.SUCCEEDED, 2)

    async def test_a_store_that_fails_for_a_while_loses_no_result(self, parts: Parts) -> None:
        store = Flaky()
        parts.store = store
        parts.service.seconds = 0.1
        queue = parts.queue(lease_s=10)
        async with serving(queue):
            sent = await queue.submit(job(), {})
            await until(lambda: parts.service.running)
            store.broken |= {"change", "claim"}
            await until(lambda: not parts.service.running)
            store.broken.clear()
            done = await ended(queue, sent.id)
        assert (done.state, done.attempts, len(parts.service.requests)) == (
            JobState.SUCCEEDED,
            1,
            1,
        )

    async def test_progress_that_cannot_be_stored_costs_the_job_nothing(self, parts: Parts) -> None:
        store = Flaky()
        parts.store = store

        def answer(request: Any, pictures: Any) -> str:
            if pictures[0].data == b"2":
                store.broken.add("change")
                asyncio.get_running_loop().call_later(0.3, store.broken.clear)
            return "x"

        parts.service.answer = answer
        queue = parts.queue(batch_concurrency=1)
        async with serving(queue):
            done = await ended(queue, (await queue.submit(job("batch", BATCH), SIX)).id)
        assert (done.state, done.attempts) == (JobState.SUCCEEDED, 1)

    async def test_a_job_is_not_retried_while_it_runs_or_may_still_run(self, parts: Parts) -> None:
        parts.service.seconds = 30
        queue, other = parts.queue(lease_s=2), parts.queue()
        async with serving(queue):
            sent = await queue.submit(job(), {})
            await until(lambda: parts.service.running)
            with pytest.raises(Conflict, match="the job is running, and goes on by itself"):
                await queue.retry(sent.id)
            running = await queue.get(sent.id)
            assert (running.state, running.max_attempts) == (JobState.RUNNING, 3)
            # Another process cancels it, and queues it again: the attempt here doesn't know yet.
            await other.cancel(sent.id)
            again = await other.retry(sent.id)
            assert again.run_after == running.lease_until
            await until(lambda: not parts.service.running)
            parts.service.seconds = 0
            assert (await ended(queue, sent.id)).state is JobState.SUCCEEDED
        assert parts.service.most_at_once == 1

    async def test_a_claim_that_took_longer_than_its_lease_starts_nothing(
        self, parts: Parts
    ) -> None:
        class Slow(MemoryStore):
            slow = True

            async def claim(self, count: int, now: float, apply: Apply) -> list[Job]:
                claimed = await super().claim(count, now, apply)
                if claimed and self.slow:
                    self.slow = False
                    await asyncio.sleep(0.7)
                return claimed

        parts.store = Slow()
        queue = parts.queue()
        async with serving(queue):
            done = await ended(queue, (await queue.submit(job(), {})).id)
        assert (done.state, done.attempts, len(parts.service.requests)) == (
            JobState.SUCCEEDED,
            2,
            1,
        )

    async def test_a_disk_that_fails_is_tried_again(self, parts: Parts) -> None:
        parts.service.errors = [OSError("I/O error")]
        queue = parts.queue()
        async with serving(queue):
            done = await ended(queue, (await queue.submit(job(), {})).id)
        assert (done.state, done.attempts) == (JobState.SUCCEEDED, 2)

    async def test_one_submission_that_cannot_be_stored_hurts_no_other(self, parts: Parts) -> None:
        put = parts.blobs.put

        def full(digest: str, data: bytes) -> None:
            if data == b"3":
                raise OSError("no space left on device")
            put(digest, data)

        parts.blobs.put = full  # type: ignore[method-assign]
        queue = parts.queue()
        sent = [(job(blobs=(digest,)), {digest: data}) for digest, data in SIX.items()]
        results = await queue.submit_all(sent)
        assert [type(result) for result in results] == [Job, Job, Job, Overloaded, Job, Job]

    async def test_a_job_counts_by_the_stores_clock(self, parts: Parts) -> None:
        early = time.time() - 100
        made = job(created_at=early, rank=early - 60, deadline=early + 50)
        sent = await parts.queue().submit(made, {})
        assert sent.created_at == pytest.approx(time.time(), abs=5)
        assert sent.deadline - sent.created_at == pytest.approx(50)
        assert sent.created_at - sent.rank == pytest.approx(60)

    async def test_a_result_that_comes_too_late_is_dropped(self, parts: Parts) -> None:
        parts.service.seconds = 0.2
        queue = parts.queue()
        async with serving(queue):
            sent = await queue.submit(job(), {})
            await until(lambda: parts.service.running)
            # Another has it meanwhile.
            store = parts.store
            await store.change(
                [Change(sent.id, lambda stored: _moved(replace(stored, fence=stored.fence + 1)))]
            )
            await until(lambda: not parts.service.running)
            await asyncio.sleep(0.05)
            assert (await queue.get(sent.id)).state is JobState.RUNNING


def _moved(changed: Job) -> Any:
    from raylens.jobs.store import Transition

    return Transition(changed)


class TestWatching:
    async def test_a_watcher_hears_of_each_state_in_time(self, parts: Parts) -> None:
        parts.service.seconds = 0.05
        queue = parts.queue()
        sent = await queue.submit(job(), {})
        states = [sent.state]
        async with serving(queue):
            seen = sent
            while not seen.state.is_terminal:
                before = time.monotonic()
                seen = await queue.watch(sent.id, seen, 5)
                assert time.monotonic() - before < 1
                states.append(seen.state)
        assert states == [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]

    async def test_its_patience_ends(self, parts: Parts) -> None:
        queue = parts.queue()
        sent = await queue.submit(job(), {})
        assert await queue.watch(sent.id, sent, 0.02) == sent
        assert await queue.watch(sent.id, None, 5) == sent

    async def test_statistics(self, parts: Parts) -> None:
        parts.service.seconds = 0.02
        queue = parts.queue(capacity=7)
        empty = await queue.stats()
        assert (empty.mean_s, empty.p95_s) == (None, None)
        async with serving(queue):
            for _ in range(3):
                await ended(queue, (await queue.submit(job(), {})).id)
            stats = await queue.stats()
        assert (stats.counts[JobState.SUCCEEDED], stats.capacity, stats.workers) == (3, 7, 4)
        assert stats.mean_s is not None
        assert stats.p95_s is not None
        assert 0.02 <= stats.mean_s <= stats.p95_s < 1


SIX = {digest_of(b"%d" % n): b"%d" % n for n in range(6)}
BATCH: dict[str, Any] = {"images": [reference(digest) for digest in SIX], "prompt": "what is it?"}


class TestBatch:
    async def test_each_picture_has_its_answer_in_its_place(self, parts: Parts) -> None:
        def answer(request: Any, pictures: Any) -> str:
            return f"picture {pictures[0].data.decode()} of {pictures[0].field}"

        parts.service.answer = answer
        queue = parts.queue(batch_concurrency=2)
        async with serving(queue):
            done = await ended(queue, (await queue.submit(job("batch", BATCH), SIX)).id)
        assert done.output is not None
        captions = [result["caption"] for result in done.output["results"]]
        assert captions == [f"picture {n} of input.images.{n}" for n in range(6)]
        assert done.output["failed"] == 0
        assert done.progress == Progress(6, 6)
        assert parts.service.most_at_once == 2

    async def test_a_bad_picture_is_its_own_trouble_only(self, parts: Parts) -> None:
        parts.service.errors = [InvalidRequest("input.images.0: broken", "input.images.0")]
        queue = parts.queue(batch_concurrency=1)
        async with serving(queue):
            done = await ended(queue, (await queue.submit(job("batch", BATCH), SIX)).id)
        assert done.state is JobState.SUCCEEDED
        assert done.output is not None
        assert done.output["failed"] == 1
        assert done.output["results"][0]["error"]["code"] == "invalid_request"
        assert done.output["results"][5]["caption"] == "two circles"

    async def test_the_next_attempt_goes_on_where_the_last_one_died(self, parts: Parts) -> None:
        slow = asyncio.Event()

        def answer(request: Any, pictures: Any) -> str:
            if pictures[0].data == b"3" and not slow.is_set():
                slow.set()
                raise Overloaded("full", "model")
            return str(pictures[0].data.decode())

        parts.service.answer = answer
        parts.service.seconds = (
            0.3  # longer between two reports than their period, so that each is stored
        )
        queue = parts.queue(batch_concurrency=1, lease_s=10)
        async with serving(queue):
            sent = await queue.submit(job("batch", BATCH), SIX)
            done = await ended(queue, sent.id, 30)
        assert done.attempts == 2
        assert done.output is not None
        assert [result["caption"] for result in done.output["results"]] == [
            "0",
            "1",
            "2",
            "3",
            "4",
            "5",
        ]
        assert (
            len(parts.service.requests) < 10
        )  # 6, the one that failed, and at most a report's worth again

    async def test_a_picture_that_is_gone_is_an_error_and_not_a_crash(self, parts: Parts) -> None:
        queue = parts.queue()
        async with serving(queue):
            done = await ended(queue, (await queue.submit(job("batch", BATCH), {})).id)
        assert done.output is not None
        assert done.output["failed"] == 6


class TestWebhooks:
    async def test_the_end_is_told_once_and_with_the_output(self, parts: Parts) -> None:
        queue = parts.queue()
        async with serving(queue):
            sent = await queue.submit(job(**told()), {})
            await until(lambda: parts.sender.sent)
            await asyncio.sleep(0.05)
            (delivery,) = await queue.deliveries(sent.id)
        ((url, body, headers),) = parts.sender.sent
        assert url == URL
        data = json.loads(body)
        assert (data["type"], data["data"]["output"]["answer"]) == ("job.succeeded", "two circles")
        assert headers["webhook-id"] == delivery.id
        assert (delivery.state, delivery.status, delivery.attempts) == (
            DeliveryState.DELIVERED,
            204,
            1,
        )

    async def test_the_start_is_told_where_that_is_wanted_and_cancels_are_told_too(
        self, parts: Parts
    ) -> None:
        parts.service.seconds = 30
        queue = parts.queue(webhooks={"started": True})
        async with serving(queue):
            sent = await queue.submit(job(**told()), {})
            await until(lambda: parts.service.running)
            await queue.cancel(sent.id)
            await until(lambda: len(parts.sender.sent) == 2)
        assert {json.loads(body)["type"] for _, body, _ in parts.sender.sent} == {
            "job.started",
            "job.canceled",
        }

    async def test_a_failure_is_tried_again_after_what_the_endpoint_says(
        self, parts: Parts
    ) -> None:
        parts.sender = FakeSender([503, 204], {"retry-after": "1"})
        queue = parts.queue()
        async with serving(queue):
            sent = await queue.submit(job(**told()), {})
            await until(lambda: len(parts.sender.sent) == 1)
            await asyncio.sleep(0.05)
            (waits,) = await queue.deliveries(sent.id)
            assert waits.state is DeliveryState.PENDING
            assert (waits.status, waits.problem) == (503, "the endpoint answered 503")
            assert waits.next_at - time.time() > 4  # the schedule's own 5 s are more
            await queue.redeliver(sent.id, 1)
            await until(lambda: len(parts.sender.sent) == 2)
        ids = {headers["webhook-id"] for _, _, headers in parts.sender.sent}
        bodies = {body for _, body, _ in parts.sender.sent}
        assert len(ids) == len(bodies) == 1

    @pytest.mark.parametrize(
        ("answer", "state", "problem"),
        [
            (410, DeliveryState.DISABLED, "answered 410"),
            (302, DeliveryState.PENDING, "answered 302"),
            (
                AddressRefused("webhook_url: x leads to 10.0.0.1", "webhook_url"),
                DeliveryState.FAILED,
                "leads to 10",
            ),
            (httpx.ConnectError("refused"), DeliveryState.PENDING, "ConnectError: refused"),
            (OSError("no address"), DeliveryState.PENDING, "no address"),
        ],
    )
    async def test_what_came_of_an_attempt_is_kept(
        self, parts: Parts, answer: int | Exception, state: DeliveryState, problem: str
    ) -> None:
        parts.sender = FakeSender([answer])
        queue = parts.queue()
        async with serving(queue):
            sent = await queue.submit(job(**told()), {})
            await until(lambda: parts.sender.sent)
            await asyncio.sleep(0.05)
            (delivery,) = await queue.deliveries(sent.id)
        assert delivery.state is state
        assert problem in (delivery.problem or "")
        assert delivery.attempts == 1

    async def test_a_dead_receiver_slows_neither_jobs_nor_others_webhooks(
        self, parts: Parts
    ) -> None:
        class HalfDead(FakeSender):
            async def post(
                self, url: str, content: bytes, headers: dict[str, str], field: str
            ) -> httpx.Response:
                self.sent.append((url, content, headers))
                await asyncio.sleep(30 if "dead" in url else 0)
                return httpx.Response(204)

        from raylens.jobs.job import Webhook

        parts.sender = HalfDead()
        queue = parts.queue(webhooks={"max_at_once": 8, "max_per_host": 2})
        dead, alive = Webhook("https://dead.example/"), Webhook("https://alive.example/")
        async with serving(queue):
            sent = [await queue.submit(job(webhook=dead), {}) for _ in range(20)]
            sent += [await queue.submit(job(webhook=alive), {}) for _ in range(20)]
            for each in sent:
                assert (await ended(queue, each.id)).state is JobState.SUCCEEDED
            await until(lambda: sum("alive" in url for url, _, _ in parts.sender.sent) == 20)
        assert sum("dead" in url for url, _, _ in parts.sender.sent) == 2

    async def test_what_was_not_delivered_is_after_a_restart(self, parts: Parts) -> None:
        parts.sender = FakeSender(seconds=30)
        dies = parts.queue(webhooks={"timeout_s": 0.2})
        async with serving(dies):
            sent = await dies.submit(job(**told()), {})
            await until(lambda: parts.sender.sent)
        parts.sender = FakeSender()
        lives = parts.queue()
        async with serving(lives):
            await until(lambda: parts.sender.sent)
            await asyncio.sleep(0.05)
            (delivery,) = await lives.deliveries(sent.id)
        assert delivery.state is DeliveryState.DELIVERED

    async def test_an_attempt_that_breaks_in_an_unforeseen_way_counts(self, parts: Parts) -> None:
        parts.sender = FakeSender([ZeroDivisionError("a bug")])
        queue = parts.queue()
        async with serving(queue):
            sent = await queue.submit(job(**told()), {})
            await until(lambda: parts.sender.sent)
            await asyncio.sleep(0.05)
            (delivery,) = await queue.deliveries(sent.id)
        assert (delivery.attempts, delivery.problem) == (1, "ZeroDivisionError")
        assert delivery.next_at > time.time() + 4

    async def test_a_slow_answer_is_given_up(self, parts: Parts) -> None:
        parts.sender = FakeSender(seconds=30)
        queue = parts.queue(webhooks={"timeout_s": 0.05})
        async with serving(queue):
            sent = await queue.submit(job(**told()), {})
            await until(lambda: parts.sender.sent)
            await asyncio.sleep(0.2)
            (delivery,) = await queue.deliveries(sent.id)
        assert "no answer within 0.05 s" in (delivery.problem or "")


async def test_old_jobs_and_their_pictures_are_removed(parts: Parts) -> None:
    queue = parts.queue(result_ttl_s=0.01)
    sent = await queue.submit(job(blobs=(DIGEST,)), {DIGEST: PICTURE})
    await queue.cancel(sent.id)
    await asyncio.sleep(0.02)
    async with serving(queue):
        async with asyncio.timeout(5):
            with suppress(UnknownJob):
                while await queue.get(sent.id):
                    await asyncio.sleep(0.01)
    assert await parts.store.collect_blobs(time.time() + 1, 10, parts.blobs.remove) == 1
