"""The behavior that every store must have. A store has no clock, so the times are arbitrary."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from raylens.core.errors import Conflict, InsufficientStorage, QueueFull, RaylensError
from raylens.jobs.files import StoredFile
from raylens.jobs.job import (
    Delivery,
    DeliveryState,
    Job,
    JobState,
    Problem,
    Progress,
    Webhook,
    new_id,
)
from raylens.jobs.store import Change, ComputeUpdate, JobQuery, JobStore, NextDue, TypeFilter
from raylens.jobs.transitions import (
    JobUpdate,
    cancel,
    expire,
    fail,
    requeue,
    start_or_fail,
    succeed,
)

NOW = 1_700_000_000.0
LEASE = 15.0
CAPACITY = 1000


def make_job(**fields: Any) -> Job:
    defaults: dict[str, Any] = {
        "id": new_id(),
        "type": "caption",
        "input": {"image": "blob:00", "prompt": "what’s \u0000 there? 🔭"},
        "created_at": NOW,
        "deadline": NOW + 3600,
        "max_attempts": 3,
        "rank": NOW,
    }
    return Job(**{**defaults, **fields})


def make_delivery(
    job: Job, url: str = "https://example.com/hook", next_at: float = NOW, **fields: Any
) -> Delivery:
    return Delivery(
        id=f"msg_{new_id()}",
        job_id=job.id,
        number=0,
        event="job.succeeded",
        webhook=Webhook(url, "whsec_c2VjcmV0"),
        body='{"type":"job.succeeded"}',
        created_at=NOW,
        next_at=next_at,
        **fields,
    )


def start_at(now: float = NOW, owner: str = "me") -> ComputeUpdate:
    return lambda stored: JobUpdate(start_or_fail(stored, now, owner, now + LEASE))


def succeed_at(stored: Job, end: float) -> JobUpdate:
    return JobUpdate(succeed(stored, {}, end))


def cancel_at(stored: Job, end: float = NOW) -> JobUpdate:
    return JobUpdate(cancel(stored, end))


async def get(store: JobStore, job_id: str) -> Job | None:
    return (await store.get([job_id])).get(job_id)


async def touch(store: JobStore, now: float, *digests: str) -> None:
    assert await store.touch_blobs(dict.fromkeys(digests, 10), now, math.inf) == set()


async def mark(store: JobStore, now: float) -> list[str]:
    """Mark the blobs that were touched before ``now`` as being removed for a minute."""
    return await store.mark_unused_blobs(now, now, now + 60, 10)


async def add_all(store: JobStore, *jobs: Job) -> None:
    assert await store.add(jobs, CAPACITY) == list(jobs)


async def add_deliveries(store: JobStore, job: Job, *deliveries: Delivery) -> None:
    change = Change(job.id, lambda stored: JobUpdate(stored, deliveries))
    (changed,) = await store.change([change])
    assert isinstance(changed, Job)


class TestAdding:
    async def test_a_job_is_returned_as_it_was_stored(self, store: JobStore) -> None:
        job = make_job(
            priority=-3,
            extra={"query": {"ids": []}},
            blobs=("ab" * 32, "cd" * 32),
            webhook=Webhook("https://example.com", None),
            idempotency_key="key",
            digest="d" * 64,
            run_after=NOW + 5,
            progress=Progress(1, 2),
            output={"caption": "x"},
            problem=Problem("overloaded", "no room", None),
        )
        await add_all(store, job)
        assert await get(store, job.id) == job

    async def test_getting_an_unknown_job_returns_none(self, store: JobStore) -> None:
        assert await get(store, "nothing") is None

    async def test_the_same_id_is_added_once(self, store: JobStore) -> None:
        job = make_job()
        await add_all(store, job)
        (canceled,) = await store.change([Change(job.id, cancel_at)])
        assert await store.add([job], CAPACITY) == [canceled]

    async def test_the_same_key_and_request_return_the_first_job(self, store: JobStore) -> None:
        first = make_job(idempotency_key="k", digest="a")
        second = make_job(idempotency_key="k", digest="a")
        await add_all(store, first)
        assert await store.add([second], 0) == [first]
        assert await get(store, second.id) is None

    async def test_the_same_key_with_another_request_is_a_conflict(self, store: JobStore) -> None:
        await add_all(store, make_job(idempotency_key="k", digest="a"))
        (result,) = await store.add([make_job(idempotency_key="k", digest="b")], CAPACITY)
        assert isinstance(result, Conflict)

    async def test_one_batch_may_contain_the_same_key_twice(self, store: JobStore) -> None:
        first = make_job(idempotency_key="k", digest="a")
        same_key = make_job(idempotency_key="k", digest="a")
        same_id = make_job(id=first.id)
        assert await store.add([first, same_key, same_id], CAPACITY) == [first] * 3

    async def test_two_processes_that_add_the_same_key_get_one_job(
        self, store: JobStore, other_store: JobStore
    ) -> None:
        for number in range(10):
            jobs = [make_job(idempotency_key=f"k{number}", digest="a") for _ in range(2)]
            (first,), (second,) = await asyncio.gather(
                store.add([jobs[0]], CAPACITY), other_store.add([jobs[1]], CAPACITY)
            )
            assert isinstance(first, Job)
            assert first == second

    async def test_a_full_queue_refuses_jobs_over_its_capacity(self, store: JobStore) -> None:
        jobs = [make_job() for _ in range(5)]
        results = await store.add(jobs, 3)
        assert results[:3] == jobs[:3]
        assert [type(result) for result in results[3:]] == [QueueFull, QueueFull]
        assert (await store.count_by_state())[JobState.QUEUED] == 3

    async def test_a_client_may_have_its_share_of_the_queue(self, store: JobStore) -> None:
        shares = {"ann": 2, "idle": 1}
        clients = ("ann", "bob", "ann", "ann", "bob", "bob")
        new = [make_job(client=client, rank=NOW + n) for n, client in enumerate(clients)]
        results = await store.add(new, CAPACITY, shares)
        assert [isinstance(result, QueueFull) for result in results] == [
            client == "ann" and number == 3 for number, client in enumerate(clients)
        ]
        assert isinstance(results[3], QueueFull)
        assert results[3].message == "your limit of 2 queued jobs is reached"
        assert [await store.count_queued(name) for name in ("ann", "bob", "idle")] == [2, 3, 0]
        await store.claim(1, NOW, start_at())
        (later,) = await store.add([make_job(client="ann")], CAPACITY, shares)
        assert isinstance(later, Job)
        assert await store.count_queued("ann") == 2

    async def test_only_queued_jobs_count_towards_the_capacity(self, store: JobStore) -> None:
        await add_all(store, make_job())
        await store.claim(1, NOW, start_at())
        (result,) = await store.add([make_job()], 1)
        assert not isinstance(result, RaylensError)


class TestListing:
    async def test_pages_cover_all_jobs_newest_first(self, store: JobStore) -> None:
        jobs = sorted((make_job() for _ in range(7)), key=lambda job: job.id, reverse=True)
        await add_all(store, *jobs)
        first = await store.list_jobs(JobQuery(3))
        second = await store.list_jobs(JobQuery(3, before_id=first[-1].id))
        third = await store.list_jobs(JobQuery(3, before_id=second[-1].id))
        assert first + second + third == jobs

    async def test_a_page_can_be_limited_to_a_type(self, store: JobStore) -> None:
        jobs = [make_job(type=name) for name in ("caption", "openai_batch", "openai_batch")]
        await add_all(store, *jobs)
        batches = await store.list_jobs(JobQuery(9, type="openai_batch"))
        assert {job.id for job in batches} == {job.id for job in jobs[1:]}

    async def test_a_page_can_be_limited_to_states(self, store: JobStore) -> None:
        jobs = [make_job() for _ in range(3)]
        await add_all(store, *jobs)
        await store.change([Change(jobs[1].id, cancel_at)])
        canceled = await store.list_jobs(JobQuery(10, [JobState.CANCELED]))
        assert [job.id for job in canceled] == [jobs[1].id]
        assert len(await store.list_jobs(JobQuery(10, [JobState.CANCELED, JobState.QUEUED]))) == 3

    async def test_a_page_can_be_limited_to_an_owner(self, store: JobStore) -> None:
        jobs = [make_job(owner=name) for name in ("ann", "bob", "")]
        await add_all(store, *jobs)
        listed = await store.list_jobs(JobQuery(9, owner="ann"))
        assert [(job.id, job.owner) for job in listed] == [(jobs[0].id, "ann")]
        assert len(await store.list_jobs(JobQuery(9))) == 3

    async def test_counts_and_durations(self, store: JobStore) -> None:
        await add_all(store, *(make_job() for _ in range(4)))
        claimed = await store.claim(3, NOW, start_at())
        for seconds, job in enumerate(claimed[:2], 1):
            await store.change([Change(job.id, partial(succeed_at, end=NOW + seconds))])
        assert await store.count_by_state() == {
            JobState.QUEUED: 1,
            JobState.RUNNING: 1,
            JobState.SUCCEEDED: 2,
            JobState.FAILED: 0,
            JobState.CANCELED: 0,
        }
        assert await store.recent_durations(10) == pytest.approx([2, 1])
        assert await store.recent_durations(1) == pytest.approx([2])


class TestClaiming:
    async def test_the_lowest_rank_goes_first_and_the_oldest_among_equals(
        self, store: JobStore
    ) -> None:
        jobs = [make_job(rank=NOW + rank) for rank in (3, 1, 2, 1)]
        await add_all(store, *jobs)
        by_rank = sorted(jobs, key=lambda job: (job.rank, job.id))
        claimed = [(await store.claim(1, NOW, start_at()))[0] for _ in jobs]
        assert [job.id for job in claimed] == [job.id for job in by_rank]

    async def test_a_claim_is_stored_with_its_lease(self, store: JobStore) -> None:
        await add_all(store, make_job())
        (claimed,) = await store.claim(5, NOW, start_at())
        assert (claimed.state, claimed.attempts, claimed.fence) == (JobState.RUNNING, 1, 1)
        assert (claimed.lease_owner, claimed.lease_until) == ("me", NOW + LEASE)
        assert claimed.started_at == NOW
        assert await get(store, claimed.id) == claimed

    async def test_a_job_is_not_claimed_before_it_is_due(self, store: JobStore) -> None:
        await add_all(store, make_job(run_after=NOW + 10))
        assert await store.claim(1, NOW + 9, start_at()) == []
        assert len(await store.claim(1, NOW + 10, start_at())) == 1

    async def test_a_job_under_a_lease_is_claimed_only_after_it_expires(
        self, store: JobStore, other_store: JobStore
    ) -> None:
        await add_all(store, make_job())
        (first,) = await store.claim(1, NOW, start_at())
        before = NOW + LEASE - 1
        after = NOW + LEASE
        assert await other_store.claim(1, before, start_at(before, "you")) == []
        (second,) = await other_store.claim(1, after, start_at(after, "you"))
        assert (second.id, second.attempts, second.fence) == (first.id, 2, 2)

    async def test_no_two_processes_claim_one_job(
        self, store: JobStore, other_store: JobStore
    ) -> None:
        jobs = [make_job() for _ in range(60)]
        await add_all(store, *jobs)

        async def claim_all(from_store: JobStore, owner: str) -> list[Job]:
            claimed: list[Job] = []
            while batch := await from_store.claim(3, NOW, start_at(NOW, owner)):
                claimed += batch
            return claimed

        claimed_by = await asyncio.gather(
            claim_all(store, "a"),
            claim_all(other_store, "b"),
            claim_all(store, "a"),
            claim_all(other_store, "b"),
        )
        claims = Counter(job.id for claimed in claimed_by for job in claimed)
        assert claims == Counter(job.id for job in jobs)

    async def test_a_claim_may_fail_a_job_instead(self, store: JobStore) -> None:
        await add_all(store, make_job(deadline=NOW - 1))
        (failed,) = await store.claim(1, NOW, start_at())
        assert failed.state is JobState.FAILED
        assert failed.problem is not None
        assert failed.problem.code == "deadline_exceeded"
        assert await get(store, failed.id) == failed

    async def test_only_a_renewed_lease_lasts_longer(self, store: JobStore) -> None:
        await add_all(store, make_job(), make_job())
        current, outdated = await store.claim(2, NOW, start_at())
        renewed = await store.renew({current.id: 1, outdated.id: 7, "nothing": 1}, NOW + 100)
        assert renewed == {current.id}
        after = NOW + LEASE
        assert [job.id for job in await store.claim(2, after, start_at(after))] == [outdated.id]

    async def test_the_lease_of_a_canceled_job_is_not_renewed(self, store: JobStore) -> None:
        await add_all(store, make_job())
        (claimed,) = await store.claim(1, NOW, start_at())
        await store.change([Change(claimed.id, cancel_at)])
        assert await store.renew({claimed.id: claimed.fence}, NOW + 100) == set()


class TestChanging:
    async def test_a_result_counts_only_with_the_current_fence(self, store: JobStore) -> None:
        await add_all(store, make_job())
        (old,) = await store.claim(1, NOW, start_at())
        (new,) = await store.claim(1, NOW + LEASE, start_at(NOW + LEASE))

        def succeed_with(caption: str) -> ComputeUpdate:
            return lambda stored: JobUpdate(succeed(stored, {"caption": caption}, NOW + 20))

        assert await store.change([Change(old.id, succeed_with("late"), old.fence)]) == [None]
        (ended,) = await store.change([Change(new.id, succeed_with("right"), new.fence)])
        assert isinstance(ended, Job)
        assert ended.output == {"caption": "right"}
        assert await store.change([Change(new.id, succeed_with("twice"), new.fence)]) == [None]
        assert await get(store, new.id) == ended

    async def test_an_illegal_transition_changes_nothing_and_fails_no_other(
        self, store: JobStore
    ) -> None:
        jobs = [make_job(), make_job()]
        await add_all(store, *jobs)
        await store.change([Change(jobs[0].id, cancel_at)])
        before = await get(store, jobs[0].id)
        cancel_later = partial(cancel_at, end=NOW + 1)
        results = await store.change([Change(job.id, cancel_later) for job in jobs])
        assert isinstance(results[0], Conflict)
        assert isinstance(results[1], Job)
        assert await get(store, jobs[0].id) == before
        assert await get(store, jobs[1].id) == results[1]

    async def test_several_changes_of_one_job_build_on_each_other(self, store: JobStore) -> None:
        await add_all(store, make_job())
        (claimed,) = await store.claim(1, NOW, start_at())

        def set_progress(done: int) -> Change:
            def update(stored: Job) -> JobUpdate:
                return JobUpdate(replace(stored, progress=Progress(done, 3)))

            return Change(claimed.id, update, claimed.fence)

        end = Change(claimed.id, partial(succeed_at, end=NOW), claimed.fence)
        results = await store.change([set_progress(1), set_progress(2), end, set_progress(3)])
        assert results[3] is None
        stored = await get(store, claimed.id)
        assert stored == results[2]
        assert stored is not None
        assert stored.progress == Progress(2, 3)

    async def test_changing_an_unknown_job_returns_none(self, store: JobStore) -> None:
        assert await store.change([Change("nothing", JobUpdate)]) == [None]

    async def test_a_job_and_its_deliveries_are_stored_together_or_not_at_all(
        self, store: JobStore
    ) -> None:
        job = make_job()
        await add_all(store, job)

        def fail_unexpectedly(stored: Job) -> JobUpdate:
            raise RuntimeError("a bug")

        def cancel_and_deliver(stored: Job) -> JobUpdate:
            return JobUpdate(cancel(stored, NOW), (make_delivery(stored),))

        valid = Change(job.id, cancel_and_deliver)
        with pytest.raises(RuntimeError, match="a bug"):
            await store.change([Change(job.id, fail_unexpectedly), valid])
        assert await store.deliveries(job.id) == []
        await store.change([valid])
        assert len(await store.deliveries(job.id)) == 1


class TestDeliveries:
    async def test_deliveries_are_returned_as_stored_and_numbered(self, store: JobStore) -> None:
        job = make_job()
        await add_all(store, job)
        deliveries = [make_delivery(job) for _ in range(3)]
        await add_deliveries(store, job, *deliveries[:2])
        await add_deliveries(store, job, deliveries[2])
        assert await store.deliveries(job.id) == [
            replace(delivery, number=number) for number, delivery in enumerate(deliveries, 1)
        ]

    async def test_a_due_delivery_is_claimed_once(
        self, store: JobStore, other_store: JobStore
    ) -> None:
        job = make_job()
        await add_all(store, job)
        due = make_delivery(job)
        later = make_delivery(job, next_at=NOW + 60)
        await add_deliveries(store, job, due, later)
        (claimed,) = await store.claim_deliveries(10, 4, NOW, NOW + 30, ())
        assert (claimed.id, claimed.fence, claimed.lease_until) == (due.id, 1, NOW + 30)
        assert await other_store.claim_deliveries(10, 4, NOW + 29, NOW + 60, ()) == []
        (reclaimed,) = await other_store.claim_deliveries(10, 4, NOW + 30, NOW + 90, ())
        assert (reclaimed.id, reclaimed.fence) == (due.id, 2)

    async def test_a_claim_takes_no_more_than_the_limit_per_host(self, store: JobStore) -> None:
        job = make_job()
        await add_all(store, job)
        slow = [
            make_delivery(job, f"https://slow.example/{number}", NOW - 10 + number)
            for number in range(6)
        ]
        fast = [make_delivery(job, "https://fast.example/", NOW) for _ in range(2)]
        await add_deliveries(store, job, *slow, *fast)
        claimed = await store.claim_deliveries(10, 2, NOW, NOW + 30, ())
        assert [delivery.id for delivery in claimed[:2]] == [delivery.id for delivery in slow[:2]]
        assert {delivery.id for delivery in claimed[2:]} == {delivery.id for delivery in fast}
        assert await store.claim_deliveries(10, 2, NOW, NOW + 30, ["slow.example"]) == []

    async def test_deliveries_over_the_limit_per_host_leave_room_for_other_hosts(
        self, store: JobStore
    ) -> None:
        job = make_job()
        await add_all(store, job)
        hosts = ("a.example", "a.example", "b.example")
        deliveries = [
            make_delivery(job, f"https://{host}/", NOW - 3 + index)
            for index, host in enumerate(hosts)
        ]
        await add_deliveries(store, job, *deliveries)
        claimed = await store.claim_deliveries(2, 1, NOW, NOW + 30, ())
        assert [delivery.id for delivery in claimed] == [deliveries[0].id, deliveries[2].id]

    async def test_an_attempt_is_settled_only_with_the_current_fence(self, store: JobStore) -> None:
        job = make_job()
        await add_all(store, job)
        await add_deliveries(store, job, make_delivery(job))
        (old,) = await store.claim_deliveries(1, 1, NOW, NOW + 30, ())
        (new,) = await store.claim_deliveries(1, 1, NOW + 30, NOW + 60, ())

        def delivered(delivery: Delivery) -> Delivery:
            state = DeliveryState.DELIVERED
            return replace(delivery, state=state, attempts=1, status=204, delivered_at=NOW + 31)

        assert not await store.settle_delivery(delivered(old), None, False)
        assert await store.settle_delivery(delivered(new), None, False)
        (stored,) = await store.deliveries(job.id)
        assert (stored.state, stored.status) == (DeliveryState.DELIVERED, 204)
        assert stored.delivered_at == NOW + 31
        assert stored.lease_until is None
        assert await store.claim_deliveries(1, 1, NOW + 99, NOW + 120, ()) == []

    async def test_a_pause_holds_back_all_deliveries_to_one_url(self, store: JobStore) -> None:
        job = make_job()
        await add_all(store, job)
        urls = ("https://a.example/slow", "https://a.example/slow", "https://a.example/other")
        deliveries = [make_delivery(job, url, NOW + number) for number, url in enumerate(urls)]
        await add_deliveries(store, job, *deliveries)
        (first,) = await store.claim_deliveries(1, 1, NOW, NOW + 30, ())
        retried = replace(first, attempts=1, next_at=NOW + 5)
        await store.settle_delivery(retried, NOW + 50, False)
        (other,) = await store.claim_deliveries(9, 9, NOW + 40, NOW + 60, ())
        assert other.webhook.url == "https://a.example/other"
        assert len(await store.claim_deliveries(9, 9, NOW + 50, NOW + 90, ())) == 2

    async def test_two_processes_that_pause_one_url_do_not_stop_each_other(
        self, store: JobStore, other_store: JobStore
    ) -> None:
        job = make_job()
        await add_all(store, job)
        await add_deliveries(store, job, *(make_delivery(job) for _ in range(40)))

        async def settle(through: JobStore, mine: list[Delivery], start: float) -> None:
            for number, delivery in enumerate(mine):
                retried = replace(delivery, attempts=1, next_at=start)
                assert await through.settle_delivery(retried, start + number, False)

        for start in range(1000, 6000, 1000):
            due = [
                await each.claim_deliveries(20, 20, NOW + start, NOW + start + 500, ())
                for each in (store, other_store)
            ]
            assert list(map(len, due)) == [20, 20]
            await asyncio.gather(
                settle(store, due[0], NOW + start + 600),
                settle(other_store, due[1][::-1], NOW + start + 600),
            )

    async def test_an_endpoint_that_is_gone_gets_nothing_until_a_redelivery(
        self, store: JobStore
    ) -> None:
        job = make_job()
        await add_all(store, job)
        await add_deliveries(store, job, make_delivery(job), make_delivery(job, next_at=NOW + 1))
        (first,) = await store.claim_deliveries(1, 1, NOW, NOW + 30, ())
        disabled = replace(first, state=DeliveryState.DISABLED, attempts=1, status=410)
        await store.settle_delivery(disabled, None, True)
        assert await store.claim_deliveries(9, 9, NOW + 1, NOW + 30, ()) == []
        states = [delivery.state for delivery in await store.deliveries(job.id)]
        assert states == [DeliveryState.DISABLED] * 2
        pending = await store.redeliver(job.id, 2, NOW + 5)
        assert pending is not None
        assert (pending.state, pending.attempts) == (DeliveryState.PENDING, 0)
        assert pending.next_at == NOW + 5
        (claimed,) = await store.claim_deliveries(9, 9, NOW + 5, NOW + 30, ())
        assert claimed.number == 2

    async def test_an_unknown_delivery_cannot_be_sent_again(self, store: JobStore) -> None:
        job = make_job()
        await add_all(store, job)
        assert await store.redeliver(job.id, 1, NOW) is None


class TestCleaning:
    async def test_a_job_is_purged_after_its_end_and_its_last_delivery(
        self, store: JobStore
    ) -> None:
        ended = make_job()
        with_delivery = make_job()
        queued = make_job()
        await add_all(store, ended, with_delivery, queued)

        def fail_now(stored: Job) -> JobUpdate:
            return JobUpdate(fail(stored, Problem("c", "m"), NOW))

        await store.change([Change(job.id, fail_now) for job in (ended, with_delivery)])
        await add_deliveries(store, with_delivery, make_delivery(with_delivery))
        assert await store.purge(NOW, 10) == 0
        assert await store.purge(NOW + 1, 10) == 1
        assert await get(store, ended.id) is None
        (delivery,) = await store.claim_deliveries(1, 1, NOW, NOW + 1, ())
        await store.settle_delivery(replace(delivery, state=DeliveryState.DELIVERED), None, False)
        assert await store.purge(NOW + 1, 10) == 1
        assert await store.deliveries(with_delivery.id) == []
        assert await get(store, queued.id) == queued

    async def test_a_purge_stops_at_its_limit(self, store: JobStore) -> None:
        jobs = [make_job() for _ in range(5)]
        await add_all(store, *jobs)
        await store.change([Change(job.id, cancel_at) for job in jobs])
        assert [await store.purge(NOW + 1, 3) for _ in range(3)] == [3, 2, 0]

    async def test_a_blob_is_removed_when_no_job_refers_to_it(self, store: JobStore) -> None:
        used, unused, recent = (letter * 64 for letter in "abc")
        job = make_job(blobs=(used,))
        await touch(store, NOW, used, unused)
        await touch(store, NOW + 100, recent)
        await add_all(store, job)
        assert await mark(store, NOW + 50) == [unused]
        await store.forget_blobs([unused])
        assert await mark(store, NOW + 50) == []
        await store.change([Change(job.id, cancel_at)])
        assert await store.purge(NOW + 1, 10) == 1
        assert await mark(store, NOW + 50) == [used]

    async def test_a_blob_that_is_touched_again_stays(self, store: JobStore) -> None:
        await touch(store, NOW, "a" * 64)
        await touch(store, NOW + 100, "a" * 64)
        assert await mark(store, NOW + 50) == []

    async def test_a_blob_that_is_being_removed_cannot_be_touched(self, store: JobStore) -> None:
        digest, other = "a" * 64, "b" * 64
        await touch(store, NOW, digest)
        assert await mark(store, NOW + 50) == [digest]
        sizes = {digest: 10, other: 10}
        assert await store.touch_blobs(sizes, NOW + 109, math.inf) == {digest}
        await store.forget_blobs([digest, other])  # the other one was touched, so it stays
        assert await store.touch_blobs(sizes, NOW + 109, 20) == set()
        with pytest.raises(InsufficientStorage):
            await store.touch_blobs({"c" * 64: 1}, NOW, 20)

    async def test_a_blob_that_could_not_be_removed_can_be_touched(self, store: JobStore) -> None:
        await touch(store, NOW, "a" * 64, "b" * 64)
        assert len(await mark(store, NOW + 50)) == 2
        await store.renew_marks(["a" * 64, "b" * 64], NOW + 500)
        assert await mark(store, NOW + 499) == []
        await store.unmark_blobs(["a" * 64, "b" * 64], NOW + 300)
        await touch(store, NOW + 60, "a" * 64)
        assert await mark(store, NOW + 300) == ["a" * 64]
        assert await mark(store, NOW + 301) == ["b" * 64]

    async def test_a_removal_that_takes_too_long_is_taken_over(self, store: JobStore) -> None:
        digest = "a" * 64
        await touch(store, NOW, digest)
        assert await mark(store, NOW + 50) == [digest]
        assert await mark(store, NOW + 109) == []
        assert await mark(store, NOW + 110) == [digest]
        assert await store.touch_blobs({digest: 10}, NOW + 170, math.inf) == set()
        await store.forget_blobs([digest])  # by the slow remover
        assert await store.touch_blobs({digest: 10}, NOW + 171, 10) == set()

    async def test_the_bytes_of_all_blobs_are_limited(self, store: JobStore) -> None:
        first, second = "a" * 64, "b" * 64
        await store.touch_blobs({first: 60}, NOW, 100)
        await store.touch_blobs({first: 60}, NOW, 100)  # the same blob
        with pytest.raises(InsufficientStorage, match="take 60 bytes, and 41 more were sent") as e:
            await store.touch_blobs({first: 60, second: 41}, NOW, 100)
        assert (e.value.limit, e.value.actual) == (100, 101)
        await store.touch_blobs({second: 40}, NOW, 100)
        assert sorted(await mark(store, NOW + 50)) == [first, second]
        await store.forget_blobs([first])
        await store.touch_blobs({"c" * 64: 60}, NOW, 100)

    async def test_a_blob_that_two_processes_add_counts_once(
        self, store: JobStore, other_store: JobStore
    ) -> None:
        sizes = {f"{number:064}": 10 for number in range(50)}
        await asyncio.gather(
            *(each.touch_blobs(sizes, NOW, 500) for each in (store, other_store) * 4)
        )
        assert await store.touch_blobs({"a" * 64: 500}, NOW, 1000) == set()
        with pytest.raises(InsufficientStorage):
            await store.touch_blobs({"b" * 64: 1}, NOW, 1000)

    async def test_a_removed_job_leaves_nothing_behind(self, store: JobStore) -> None:
        job = make_job(blobs=("a" * 64,), idempotency_key="k")
        await touch(store, NOW, "a" * 64)
        await add_all(store, job)
        with pytest.raises(Conflict, match="the job is still queued"):
            await store.remove(job.id)
        await store.change([Change(job.id, cancel_at)])
        await add_deliveries(store, job, make_delivery(job))
        removed = await store.remove(job.id)
        assert removed is not None
        assert removed.state is JobState.CANCELED
        assert await get(store, job.id) is None
        assert await store.deliveries(job.id) == []
        assert await mark(store, NOW + 1) == ["a" * 64]
        assert sum((await store.count_by_state()).values()) == 0
        assert await store.remove(job.id) is None
        await add_all(store, make_job(idempotency_key="k", digest="other"))

    async def test_pictures_of_failed_jobs_are_dropped_before_the_jobs(
        self, store: JobStore
    ) -> None:
        digests = [letter * 64 for letter in "abc"]
        failed, succeeded, late = (make_job(blobs=(digest,)) for digest in digests)
        await touch(store, NOW, *digests)
        await add_all(store, failed, succeeded, late)
        await store.claim(1, NOW, start_at())
        problem = Problem("c", "m")
        await store.change(
            [
                Change(failed.id, lambda stored: JobUpdate(fail(stored, problem, NOW))),
                Change(late.id, lambda stored: JobUpdate(fail(stored, problem, NOW + 10))),
            ]
        )
        assert await store.drop_pictures(NOW + 5, 10) == 1
        assert await store.drop_pictures(NOW + 5, 10) == 0
        assert await mark(store, NOW + 1) == [digests[0]]
        kept = await store.get([failed.id, late.id])
        assert kept[failed.id].pictures_removed
        assert not kept[late.id].pictures_removed
        assert kept[failed.id].blobs == failed.blobs


def make_file(file_id: str, purpose: str = "batch", expires_at: float = NOW + 99) -> StoredFile:
    return StoredFile(file_id, f"{file_id}.jsonl", purpose, NOW, expires_at)


class TestFiles:
    async def test_a_file_is_returned_as_it_was_added(self, store: JobStore) -> None:
        file = replace(make_file("f"), size=7)
        parts = ["a" * 64, "b" * 64, "a" * 64]
        for _ in range(2):  # the call was repeated
            await store.add_file(file, parts)
        assert await store.get_file("f") == file
        assert await store.file_parts("f") == parts
        assert [await store.file_part("f", number) for number in range(4)] == [*parts, None]
        assert await store.file_part("nothing", 0) is None
        assert await store.get_file("nothing") is None
        assert await store.file_parts("nothing") == []

    async def test_a_file_grows_while_its_job_is_held(self, store: JobStore) -> None:
        await add_all(store, make_job())
        (job,) = await store.claim(1, NOW, start_at())
        for digest, size in (("a" * 64, 3), ("b" * 64, 4), ("a" * 64, 3)):
            await store.append_to_file(make_file("f"), digest, size, job.id, job.fence)
        assert await store.get_file("f") == replace(make_file("f"), size=10)
        assert await store.file_parts("f") == ["a" * 64, "b" * 64, "a" * 64]
        for fence in (job.fence - 1, job.fence + 1):
            with pytest.raises(Conflict, match="no longer holds the job"):
                await store.append_to_file(make_file("f"), "c" * 64, 1, job.id, fence)
        await store.change([Change(job.id, cancel_at)])
        with pytest.raises(Conflict, match="no longer holds the job"):
            await store.append_to_file(make_file("f"), "c" * 64, 1, job.id, job.fence + 1)
        assert len(await store.file_parts("f")) == 3

    async def test_the_last_part_of_a_file_can_be_replaced(self, store: JobStore) -> None:
        await add_all(store, make_job())
        (job,) = await store.claim(1, NOW, start_at())
        await touch(store, NOW, *(letter * 64 for letter in "abc"))
        for digest, size, replaces in (("a", 3, None), ("b", 4, None), ("c", 5, "b")):
            await store.append_to_file(
                make_file("f"), digest * 64, size, job.id, job.fence, replaces and replaces * 64
            )
        assert await store.file_parts("f") == ["a" * 64, "c" * 64]
        assert await store.get_file("f") == replace(make_file("f"), size=12)
        assert await mark(store, NOW + 1) == ["b" * 64]
        with pytest.raises(RuntimeError, match="the last part of the file is another one"):
            await store.append_to_file(
                make_file("f"), "d" * 64, 1, job.id, job.fence, replaces="b" * 64
            )
        assert await store.get_file("f") == replace(make_file("f"), size=12)

    async def test_pages_cover_all_files_in_either_order(self, store: JobStore) -> None:
        for number in range(5):
            purpose = "vision" if number == 3 else "batch"
            await store.add_file(make_file(f"f{number}", purpose), ["a" * 64])

        async def ids(*arguments: Any) -> list[str]:
            return [file.id for file in await store.list_files(*arguments)]

        assert await ids(None, 2, None, True) == ["f4", "f3"]
        assert await ids(None, 9, "f3", True) == ["f2", "f1", "f0"]
        assert await ids("batch", 9, None, False) == ["f0", "f1", "f2", "f4"]
        assert await ids("batch", 9, "f1", False) == ["f2", "f4"]
        await store.add_file(replace(make_file("g"), owner="ann"), ["a" * 64])
        assert await ids(None, 9, None, False, "ann") == ["g"]
        assert "g" in await ids(None, 9, None, False)

    async def test_the_blobs_of_a_file_stay_as_long_as_it_does(self, store: JobStore) -> None:
        await touch(store, NOW, "a" * 64, "b" * 64)
        await store.add_file(make_file("f"), ["a" * 64])
        await store.add_file(make_file("g", expires_at=NOW + 5), ["b" * 64])
        assert await mark(store, NOW + 1) == []
        assert await store.remove_file("f")
        assert not await store.remove_file("f")
        assert await mark(store, NOW + 1) == ["a" * 64]
        assert await store.purge_files(NOW + 4, 9) == 0
        assert await store.purge_files(NOW + 5, 9) == 1
        assert await mark(store, NOW + 1) == ["b" * 64]


class TestTimes:
    async def test_nothing_is_due_in_an_empty_store(self, store: JobStore) -> None:
        assert await store.next_due() == NextDue()
        assert await store.next_delivery_due(()) == math.inf

    async def test_the_next_claim_and_expiry_are_known(self, store: JobStore) -> None:
        await add_all(
            store,
            make_job(run_after=NOW + 20, deadline=NOW + 90, model="a"),
            make_job(run_after=NOW + 10, deadline=NOW + 99, model="b"),
        )
        assert await store.next_due() == NextDue(NOW + 10, NOW + 90)
        assert await store.next_due(["b"]) == NextDue(NOW + 20, NOW + 90)
        await store.claim(1, NOW + 10, start_at(NOW + 10))
        assert await store.next_due() == NextDue(NOW + 20, NOW + 90)
        await store.claim(1, NOW + 20, start_at(NOW + 20))
        assert await store.next_due() == NextDue(NOW + 10 + LEASE, NOW + 90)
        fences = {job.id: job.fence for job in await store.list_jobs(JobQuery(9))}
        await store.renew(fences, NOW + 95)
        assert await store.next_due() == NextDue(NOW + 95, NOW + 95)

    async def test_jobs_of_held_models_are_not_claimed(self, store: JobStore) -> None:
        held, free = make_job(model="a"), make_job(model="b")
        await add_all(store, held, free)
        claimed = await store.claim(9, NOW, start_at(), ["a"])
        assert [job.id for job in claimed] == [free.id]
        # A lease that has expired is claimed whatever the model is.
        after = NOW + LEASE
        assert len(await store.claim(9, after, start_at(after), ["b"])) == 2

    async def test_types_are_claimed_apart(self, store: JobStore) -> None:
        watches = TypeFilter(frozenset({"watch"}), selects_others=False)
        others = TypeFilter(frozenset({"watch"}))
        watch, late, job = (
            make_job(type="watch", rank=NOW, run_after=NOW),
            make_job(type="watch", rank=NOW + 1, run_after=NOW + 30),
            make_job(run_after=NOW + 20),
        )
        await add_all(store, watch, late, job)
        assert (await store.next_due(types=others)).claim == NOW + 20
        assert (await store.next_due(types=watches)).claim == NOW
        claimed = await store.claim(9, NOW + 20, start_at(NOW + 20), types=others)
        assert [each.id for each in claimed] == [job.id]
        claimed = await store.claim(9, NOW + 20, start_at(NOW + 20), types=watches)
        assert [each.id for each in claimed] == [watch.id]
        # A lease that has expired is claimed by those of its type only, too.
        after = NOW + 20 + LEASE
        assert (await store.next_due(types=watches)).claim == min(NOW + 30, after)
        claimed = await store.claim(9, after, start_at(after), (), others)
        assert [each.id for each in claimed] == [job.id]
        claimed = await store.claim(9, after, start_at(after), (), watches)
        assert [each.id for each in claimed] == [watch.id, late.id]

    async def test_jobs_past_their_deadline_expire_unless_a_process_holds_them(
        self, store: JobStore
    ) -> None:
        late = [make_job(deadline=NOW - 1, run_after=NOW + 60) for _ in range(3)]
        running = make_job(deadline=NOW - 1, rank=NOW - 99)
        await add_all(store, running, make_job(), *late)
        await store.claim(1, NOW - 2, start_at(NOW - 2))

        def expire_now(stored: Job) -> JobUpdate:
            return JobUpdate(expire(stored, NOW))

        first = await store.expire(2, NOW, expire_now)
        second = await store.expire(2, NOW, expire_now)
        assert {job.id for job in first + second} == {job.id for job in late}
        assert {job.state for job in first + second} == {JobState.FAILED}
        assert await store.expire(2, NOW, expire_now) == []
        (dead,) = await store.expire(2, NOW - 2 + LEASE, expire_now)
        assert (dead.id, dead.state) == (running.id, JobState.FAILED)

    async def test_old_deliveries_are_purged_unless_they_are_pending(self, store: JobStore) -> None:
        job = make_job()
        await add_all(store, job)
        times = (NOW, NOW + 1, NOW + 2, NOW + 3)
        await add_deliveries(
            store, job, *(make_delivery(job, f"https://{time}.example/", time) for time in times)
        )
        for delivery in await store.claim_deliveries(3, 1, NOW + 2, NOW + 30, ()):
            if delivery.next_at != NOW + 1:
                settled = replace(delivery, state=DeliveryState.DELIVERED)
                await store.settle_delivery(settled, None, False)
        assert await store.purge_deliveries(NOW + 2, 9) == 1
        left = [delivery.next_at for delivery in await store.deliveries(job.id)]
        assert left == [NOW + 1, NOW + 2, NOW + 3]
        assert await store.purge_deliveries(NOW + 9, 9) == 1
        assert await store.purge_deliveries(NOW + 9, 9) == 0

    async def test_the_last_delivery_of_a_job_is_not_purged(self, store: JobStore) -> None:
        job = make_job()
        await add_all(store, job)
        await add_deliveries(store, job, make_delivery(job, "https://a.example/", NOW))
        (claimed,) = await store.claim_deliveries(1, 1, NOW, NOW + 30, ())
        await store.settle_delivery(replace(claimed, state=DeliveryState.DELIVERED), None, False)
        assert await store.purge_deliveries(NOW + 9, 9) == 0

    async def test_the_last_deliveries_are_read_page_by_page(self, store: JobStore) -> None:
        job = make_job()
        await add_all(store, job)
        new = [make_delivery(job, "https://a.example/", NOW + number) for number in range(5)]
        await add_deliveries(store, job, *new)
        pages = [await store.deliveries(job.id, 2), await store.deliveries(job.id, 2, 4)]
        assert [[each.number for each in page] for page in pages] == [[4, 5], [2, 3]]

    async def test_a_delivery_that_is_there_already_is_left_as_it_is(self, store: JobStore) -> None:
        job = make_job()
        await add_all(store, job)
        first = make_delivery(job, "https://a.example/", NOW)
        second = make_delivery(job, "https://a.example/", NOW)
        await add_deliveries(store, job, first)
        await store.claim_deliveries(1, 1, NOW, NOW + 30, ())
        await add_deliveries(store, job, first, second)
        deliveries = await store.deliveries(job.id)
        assert [each.id for each in deliveries] == [first.id, second.id]
        assert deliveries[0].lease_until == NOW + 30

    async def test_of_some_events_only_the_newest_delivery_is_kept(self, store: JobStore) -> None:
        job, other = make_job(), make_job()
        await add_all(store, job, other)

        def result(of: Job) -> Delivery:
            return replace(make_delivery(of, "https://a.example/", NOW), event="result")

        event = make_delivery(job, "https://a.example/", NOW)
        theirs, under_way, old, new = result(other), result(job), result(job), result(job)
        await add_deliveries(store, other, theirs)
        await add_deliveries(store, job, under_way)
        await store.claim_deliveries(9, 9, NOW, NOW + 30, ())
        await add_deliveries(store, job, event, old)

        def keep_newest(stored: Job) -> JobUpdate:
            return JobUpdate(stored, (new,), frozenset({"result"}))

        await store.change([Change(job.id, keep_newest)])
        kept = [each.id for each in await store.deliveries(job.id)]
        assert kept == [under_way.id, event.id, new.id]
        assert len(await store.deliveries(other.id)) == 1

    async def test_the_next_delivery_is_known(self, store: JobStore) -> None:
        job = make_job()
        await add_all(store, job)
        later = make_delivery(job, "https://a.example/", NOW + 9)
        await add_deliveries(store, job, later, make_delivery(job, "https://b.example/", NOW + 5))
        assert await store.next_delivery_due(()) == NOW + 5
        assert await store.next_delivery_due(["b.example"]) == NOW + 9
        await store.claim_deliveries(1, 1, NOW + 5, NOW + 30, ())
        assert await store.next_delivery_due(()) == NOW + 9


class TestCounting:
    async def test_the_counts_follow_every_change(self, store: JobStore) -> None:
        jobs = [make_job() for _ in range(6)]
        await add_all(store, *jobs)
        await store.claim(4, NOW, start_at())
        await store.change([Change(job.id, cancel_at) for job in jobs[:3]])
        await store.change([Change(jobs[0].id, lambda job: JobUpdate(requeue(job, NOW, 1, 60)))])
        await store.purge(NOW + 1, 1)
        listed = await store.list_jobs(JobQuery(100))
        counts = await store.count_by_state()
        assert {state: n for state, n in counts.items() if n} == Counter(
            job.state for job in listed
        )
        await store.check_counts()
        assert await store.count_by_state() == counts

    async def test_large_fields_can_be_left_out(self, store: JobStore) -> None:
        job = make_job(output={"results": [1]})
        await add_all(store, job)
        for fields, shown in (
            (["input", "output"], job),
            (["output"], replace(job, input={})),
            (["input"], replace(job, output=None)),
            ([], replace(job, input={}, output=None)),
        ):
            assert await store.list_jobs(JobQuery(1, bulky_fields=fields)) == [shown]
            assert await store.get([job.id], fields) == {job.id: shown}
        assert await store.list_jobs(JobQuery(1)) == [job]


async def test_the_clocks_of_processes_agree(store: JobStore, other_store: JobStore) -> None:
    assert await store.read_clock() == pytest.approx(time.time(), abs=1)
    assert await other_store.read_clock() == pytest.approx(time.time(), abs=1)


async def test_a_store_keeps_its_jobs_when_it_is_opened_again(
    store: JobStore, other_store: JobStore
) -> None:
    job = make_job()
    await add_all(store, job)
    assert await get(other_store, job.id) == job


async def test_the_bytes_of_a_client_are_those_of_its_jobs_and_files(store: JobStore) -> None:
    sizes = {"a" * 64: 1, "b" * 64: 10, "c" * 64: 100, "d" * 64: 1000}
    a, b, c, d = sizes
    await store.touch_blobs(sizes, NOW, math.inf)
    jobs = [
        make_job(client="ann", blobs=(a, b)),
        make_job(client="ann", blobs=(b,)),
        make_job(client="bob", blobs=(b, d)),
    ]
    await store.add(jobs, CAPACITY)
    file = StoredFile("file-1", "x.jsonl", "batch", NOW, NOW + 100, size=100, client="ann")
    await store.add_file(file, [c])
    clients = ("ann", "bob", "idle")
    assert [await store.client_bytes(client, ()) for client in clients] == [111, 1010, 0]
    assert await store.client_bytes("ann", {a, d}) == 110
    await store.remove_file(file.id)
    assert await store.client_bytes("ann", ()) == 11
