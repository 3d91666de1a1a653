"""What every store must do. Times are made up: the stores know none of their own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from raylens.core.errors import Conflict, QueueFull, RaylensError
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
from raylens.jobs.store import Change, JobStore, Transition
from raylens.jobs.transitions import cancel, fail, start, succeed

T = 1_700_000_000.0
LEASE = 15.0
ROOM = 1000


def job(**more: Any) -> Job:
    given: dict[str, Any] = {
        "id": new_id(),
        "type": "caption",
        "input": {"image": "blob:00", "prompt": "what’s \u0000 there? 🔭"},
        "created_at": T,
        "deadline": T + 3600,
        "max_attempts": 3,
        "rank": T,
        **more,
    }
    return Job(**given)


def webhook_for(
    made: Job, url: str = "https://example.com/hook", next_at: float = T, **more: Any
) -> Delivery:
    return Delivery(
        id=f"msg_{new_id()}",
        job_id=made.id,
        number=0,
        event="job.succeeded",
        webhook=Webhook(url, "whsec_c2VjcmV0"),
        body='{"type":"job.succeeded"}',
        created_at=T,
        next_at=next_at,
        **more,
    )


def starting(now: float = T, owner: str = "me") -> Callable[[Job], Transition]:
    return lambda stored: Transition(start(stored, now, owner, now + LEASE))


def succeeding(stored: Job, end: float) -> Transition:
    return Transition(succeed(stored, {}, end))


async def added(store: JobStore, *jobs: Job) -> None:
    assert await store.add(jobs, ROOM) == list(jobs)


async def with_deliveries(store: JobStore, *made: Delivery, of: Job) -> None:
    (changed,) = await store.change([Change(of.id, lambda stored: Transition(stored, made))])
    assert isinstance(changed, Job)


class TestAdding:
    async def test_a_job_comes_back_as_it_went_in(self, store: JobStore) -> None:
        made = job(
            priority=-3,
            extra={"query": {"ids": []}},
            blobs=("ab" * 32, "cd" * 32),
            webhook=Webhook("https://example.com", None),
            idempotency_key="key",
            digest="d" * 64,
            run_after=T + 5,
            progress=Progress(1, 2),
            output={"caption": "x"},
            problem=Problem("overloaded", "no room", None),
        )
        await added(store, made)
        assert await store.get(made.id) == made

    async def test_what_is_not_there_is_none(self, store: JobStore) -> None:
        assert await store.get("nothing") is None

    async def test_the_same_id_is_added_once(self, store: JobStore) -> None:
        made = job()
        await added(store, made)
        (changed,) = await store.change(
            [Change(made.id, lambda stored: Transition(cancel(stored, T)))]
        )
        assert await store.add([made], ROOM) == [changed]

    async def test_the_same_key_and_request_give_the_first_job(self, store: JobStore) -> None:
        first, second = job(idempotency_key="k", digest="a"), job(idempotency_key="k", digest="a")
        await added(store, first)
        assert await store.add([second], 0) == [first]
        assert await store.get(second.id) is None

    async def test_the_same_key_with_another_request_is_a_conflict(self, store: JobStore) -> None:
        await added(store, job(idempotency_key="k", digest="a"))
        (refused,) = await store.add([job(idempotency_key="k", digest="b")], ROOM)
        assert isinstance(refused, Conflict)

    async def test_one_batch_may_hold_the_same_key_twice(self, store: JobStore) -> None:
        first = job(idempotency_key="k", digest="a")
        again = job(idempotency_key="k", digest="a")
        assert await store.add([first, again, job(id=first.id)], ROOM) == [first] * 3

    async def test_two_processes_that_add_the_same_key_get_one_job(
        self, store: JobStore, other: JobStore
    ) -> None:
        for number in range(10):
            one, two = (job(idempotency_key=f"k{number}", digest="a") for _ in range(2))
            ((first,), (second,)) = await asyncio.gather(
                store.add([one], ROOM), other.add([two], ROOM)
            )
            assert isinstance(first, Job)
            assert first == second

    async def test_a_full_queue_refuses_what_is_over_its_capacity(self, store: JobStore) -> None:
        jobs = [job() for _ in range(5)]
        results = await store.add(jobs, 3)
        assert results[:3] == jobs[:3]
        assert [type(result) for result in results[3:]] == [QueueFull, QueueFull]
        assert await store.waiting(10) == 3
        assert await store.waiting(2) == 2

    async def test_only_waiting_jobs_take_room(self, store: JobStore) -> None:
        await added(store, job())
        await store.claim(1, T, starting())
        assert not isinstance((await store.add([job()], 1))[0], RaylensError)


class TestListing:
    async def test_pages_go_from_the_newest_on_and_miss_none(self, store: JobStore) -> None:
        jobs = sorted((job() for _ in range(7)), key=lambda made: made.id, reverse=True)
        await added(store, *jobs)
        first = await store.page((), 3, None)
        second = await store.page((), 3, first[-1].id)
        assert first + second + await store.page((), 3, second[-1].id) == jobs

    async def test_a_page_may_be_of_some_states(self, store: JobStore) -> None:
        jobs = [job() for _ in range(3)]
        await added(store, *jobs)
        await store.change([Change(jobs[1].id, lambda stored: Transition(cancel(stored, T)))])
        assert [found.id for found in await store.page([JobState.CANCELED], 10, None)] == [
            jobs[1].id
        ]
        assert len(await store.page([JobState.CANCELED, JobState.QUEUED], 10, None)) == 3

    async def test_counts_and_durations(self, store: JobStore) -> None:
        jobs = [job() for _ in range(4)]
        await added(store, *jobs)
        claimed = await store.claim(3, T, starting())
        for seconds, done in enumerate(claimed[:2], 1):
            end = T + seconds
            await store.change([Change(done.id, partial(succeeding, end=end))])
        counts = await store.counts()
        assert counts == {
            JobState.QUEUED: 1,
            JobState.RUNNING: 1,
            JobState.SUCCEEDED: 2,
            JobState.FAILED: 0,
            JobState.CANCELED: 0,
        }
        assert await store.durations(10) == pytest.approx([2, 1])
        assert await store.durations(1) == pytest.approx([2])


class TestClaiming:
    async def test_the_lowest_rank_goes_first_and_the_oldest_among_equals(
        self, store: JobStore
    ) -> None:
        jobs = [job(rank=T + rank) for rank in (3, 1, 2, 1)]
        await added(store, *jobs)
        expected = sorted(jobs, key=lambda made: (made.rank, made.id))
        taken = [(await store.claim(1, T, starting()))[0].id for _ in jobs]
        assert taken == [made.id for made in expected]

    async def test_a_claim_is_stored_with_its_lease(self, store: JobStore) -> None:
        await added(store, job())
        (claimed,) = await store.claim(5, T, starting())
        assert (claimed.state, claimed.attempts, claimed.fence) == (JobState.RUNNING, 1, 1)
        assert (claimed.lease_owner, claimed.lease_until, claimed.started_at) == (
            "me",
            T + LEASE,
            T,
        )
        assert await store.get(claimed.id) == claimed

    async def test_what_is_not_due_waits(self, store: JobStore) -> None:
        await added(store, job(run_after=T + 10))
        assert await store.claim(1, T + 9, starting()) == []
        assert len(await store.claim(1, T + 10, starting())) == 1

    async def test_a_lease_keeps_others_away_until_it_ends(
        self, store: JobStore, other: JobStore
    ) -> None:
        await added(store, job())
        (first,) = await store.claim(1, T, starting())
        assert await other.claim(1, T + LEASE - 1, starting(T + LEASE - 1, "you")) == []
        (second,) = await other.claim(1, T + LEASE, starting(T + LEASE, "you"))
        assert (second.id, second.attempts, second.fence) == (first.id, 2, 2)

    async def test_no_two_processes_claim_one_job(self, store: JobStore, other: JobStore) -> None:
        jobs = [job() for _ in range(60)]
        await added(store, *jobs)

        async def take_all(from_store: JobStore, owner: str) -> list[Job]:
            taken: list[Job] = []
            while claimed := await from_store.claim(3, T, starting(T, owner)):
                taken += claimed
            return taken

        shares = await asyncio.gather(
            *(take_all(each, name) for each, name in ((store, "a"), (other, "b")) * 2)
        )
        taken = Counter(claimed.id for share in shares for claimed in share)
        assert taken == Counter(made.id for made in jobs)

    async def test_a_claim_may_end_a_job_instead(self, store: JobStore) -> None:
        await added(store, job(deadline=T - 1))
        (ended,) = await store.claim(1, T, starting())
        assert ended.state is JobState.FAILED
        assert ended.problem is not None
        assert ended.problem.code == "deadline_exceeded"
        assert await store.get(ended.id) == ended

    async def test_a_renewed_lease_lasts_longer(self, store: JobStore) -> None:
        jobs = [job(), job()]
        await added(store, *jobs)
        claimed = await store.claim(2, T, starting())
        held = await store.renew({claimed[0].id: 1, claimed[1].id: 7, "nothing": 1}, T + 100)
        assert held == {claimed[0].id}
        assert [late.id for late in await store.claim(2, T + LEASE, starting(T + LEASE))] == [
            claimed[1].id
        ]

    async def test_the_lease_of_a_job_that_was_canceled_is_not_renewed(
        self, store: JobStore
    ) -> None:
        await added(store, job())
        (claimed,) = await store.claim(1, T, starting())
        await store.change([Change(claimed.id, lambda stored: Transition(cancel(stored, T)))])
        assert await store.renew({claimed.id: claimed.fence}, T + 100) == set()


class TestChanging:
    async def test_a_result_counts_under_its_fence_only(self, store: JobStore) -> None:
        await added(store, job())
        (old,) = await store.claim(1, T, starting())
        (new,) = await store.claim(1, T + LEASE, starting(T + LEASE))

        def done(answer: str) -> Callable[[Job], Transition]:
            return lambda stored: Transition(succeed(stored, {"caption": answer}, T + 20))

        assert await store.change([Change(old.id, done("late"), old.fence)]) == [None]
        (ended,) = await store.change([Change(new.id, done("right"), new.fence)])
        assert isinstance(ended, Job)
        assert ended.output == {"caption": "right"}
        assert await store.change([Change(new.id, done("twice"), new.fence)]) == [None]
        assert await store.get(new.id) == ended

    async def test_an_illegal_move_changes_nothing_and_hurts_no_other(
        self, store: JobStore
    ) -> None:
        jobs = [job(), job()]
        await added(store, *jobs)
        await store.change([Change(jobs[0].id, lambda stored: Transition(cancel(stored, T)))])
        before = await store.get(jobs[0].id)
        results = await store.change(
            [Change(made.id, lambda stored: Transition(cancel(stored, T + 1))) for made in jobs]
        )
        assert isinstance(results[0], Conflict)
        assert isinstance(results[1], Job)
        assert await store.get(jobs[0].id) == before
        assert await store.get(jobs[1].id) == results[1]

    async def test_several_changes_of_one_job_build_on_each_other(self, store: JobStore) -> None:
        await added(store, job())
        (claimed,) = await store.claim(1, T, starting())

        def progress(done: int) -> Change:
            return Change(
                claimed.id,
                lambda stored: Transition(replace(stored, progress=Progress(done, 3))),
                claimed.fence,
            )

        end = Change(claimed.id, lambda stored: Transition(succeed(stored, {}, T)), claimed.fence)
        results = await store.change([progress(1), progress(2), end, progress(3)])
        assert results[3] is None
        stored = await store.get(claimed.id)
        assert stored == results[2]
        assert stored is not None
        assert stored.progress == Progress(2, 3)

    async def test_a_change_of_what_is_not_there_is_none(self, store: JobStore) -> None:
        assert await store.change([Change("nothing", Transition)]) == [None]

    async def test_a_change_and_its_deliveries_are_one(self, store: JobStore) -> None:
        made = job()
        await added(store, made)

        def breaks(stored: Job) -> Transition:
            raise RuntimeError("a bug")

        good = Change(made.id, lambda stored: Transition(cancel(stored, T), (webhook_for(stored),)))
        with pytest.raises(RuntimeError, match="a bug"):
            await store.change([Change(made.id, breaks), good])
        assert await store.deliveries(made.id) == []
        await store.change([good])
        assert len(await store.deliveries(made.id)) == 1


class TestDeliveries:
    async def test_they_come_back_as_they_went_in_and_are_numbered(self, store: JobStore) -> None:
        made = job()
        await added(store, made)
        first, second, third = (webhook_for(made) for _ in range(3))
        await with_deliveries(store, first, second, of=made)
        await with_deliveries(store, third, of=made)
        assert await store.deliveries(made.id) == [
            replace(delivery, number=number)
            for number, delivery in enumerate((first, second, third), 1)
        ]

    async def test_the_due_are_claimed_once(self, store: JobStore, other: JobStore) -> None:
        made = job()
        await added(store, made)
        due, later = webhook_for(made), webhook_for(made, next_at=T + 60)
        await with_deliveries(store, due, later, of=made)
        (claimed,) = await store.claim_deliveries(10, 4, T, T + 30, ())
        assert (claimed.id, claimed.fence, claimed.lease_until) == (due.id, 1, T + 30)
        assert await other.claim_deliveries(10, 4, T + 29, T + 60, ()) == []
        (again,) = await other.claim_deliveries(10, 4, T + 30, T + 90, ())
        assert (again.id, again.fence) == (due.id, 2)

    async def test_one_host_gets_no_more_than_its_share(self, store: JobStore) -> None:
        made = job()
        await added(store, made)
        slow = [webhook_for(made, f"https://slow.example/{n}", T - 10 + n) for n in range(6)]
        fast = [webhook_for(made, "https://fast.example/", T) for _ in range(2)]
        await with_deliveries(store, *slow, *fast, of=made)
        claimed = await store.claim_deliveries(10, 2, T, T + 30, ())
        assert [delivery.id for delivery in claimed[:2]] == [delivery.id for delivery in slow[:2]]
        assert {delivery.id for delivery in claimed[2:]} == {delivery.id for delivery in fast}
        assert await store.claim_deliveries(10, 2, T, T + 30, ["slow.example"]) == []

    async def test_an_attempt_is_settled_under_its_fence(self, store: JobStore) -> None:
        made = job()
        await added(store, made)
        await with_deliveries(store, webhook_for(made), of=made)
        (old,) = await store.claim_deliveries(1, 1, T, T + 30, ())
        (new,) = await store.claim_deliveries(1, 1, T + 30, T + 60, ())
        delivered = {
            "state": DeliveryState.DELIVERED,
            "attempts": 1,
            "status": 204,
            "delivered_at": T + 31,
        }
        assert not await store.settle_delivery(replace(old, **delivered), None, False)  # type: ignore[arg-type]
        assert await store.settle_delivery(replace(new, **delivered), None, False)  # type: ignore[arg-type]
        (stored,) = await store.deliveries(made.id)
        assert (stored.state, stored.status, stored.delivered_at) == (
            DeliveryState.DELIVERED,
            204,
            T + 31,
        )
        assert stored.lease_until is None
        assert await store.claim_deliveries(1, 1, T + 99, T + 120, ()) == []

    async def test_a_slow_endpoint_holds_all_that_goes_there_and_nothing_else(
        self, store: JobStore
    ) -> None:
        made = job()
        await added(store, made)
        urls = ("https://a.example/slow", "https://a.example/slow", "https://a.example/other")
        sent = (webhook_for(made, url, T + number) for number, url in enumerate(urls))
        await with_deliveries(store, *sent, of=made)
        (first,) = await store.claim_deliveries(1, 1, T, T + 30, ())
        await store.settle_delivery(replace(first, attempts=1, next_at=T + 5), T + 50, False)
        (free,) = await store.claim_deliveries(9, 9, T + 40, T + 60, ())
        assert free.webhook.url == "https://a.example/other"
        assert len(await store.claim_deliveries(9, 9, T + 50, T + 90, ())) == 2

    async def test_an_endpoint_that_is_gone_gets_nothing_until_it_is_wanted_again(
        self, store: JobStore
    ) -> None:
        made = job()
        await added(store, made)
        await with_deliveries(store, webhook_for(made), webhook_for(made, next_at=T + 1), of=made)
        (first,) = await store.claim_deliveries(1, 1, T, T + 30, ())
        await store.settle_delivery(
            replace(first, state=DeliveryState.DISABLED, attempts=1, status=410), None, True
        )
        assert await store.claim_deliveries(9, 9, T + 1, T + 30, ()) == []
        assert [stored.state for stored in await store.deliveries(made.id)] == [
            DeliveryState.DISABLED
        ] * 2
        again = await store.redeliver(made.id, 2, T + 5)
        assert again is not None
        assert (again.state, again.attempts, again.next_at) == (DeliveryState.PENDING, 0, T + 5)
        (claimed,) = await store.claim_deliveries(9, 9, T + 5, T + 30, ())
        assert claimed.number == 2

    async def test_a_delivery_that_is_not_there_cannot_be_sent_again(self, store: JobStore) -> None:
        made = job()
        await added(store, made)
        assert await store.redeliver(made.id, 1, T) is None


class TestCleaning:
    async def test_a_job_is_purged_after_its_end_and_after_its_deliveries(
        self, store: JobStore
    ) -> None:
        ended, told, waits = job(), job(), job()
        await added(store, ended, told, waits)
        for made in (ended, told):
            await store.change(
                [Change(made.id, lambda stored: Transition(fail(stored, Problem("c", "m"), T)))]
            )
        await with_deliveries(store, webhook_for(told), of=told)
        assert await store.purge(T, 10) == 0
        assert await store.purge(T + 1, 10) == 1
        assert await store.get(ended.id) is None
        (delivery,) = await store.claim_deliveries(1, 1, T, T + 1, ())
        await store.settle_delivery(replace(delivery, state=DeliveryState.DELIVERED), None, False)
        assert await store.purge(T + 1, 10) == 1
        assert await store.deliveries(told.id) == []
        assert await store.get(waits.id) == waits

    async def test_a_purge_stops_at_its_limit(self, store: JobStore) -> None:
        jobs = [job() for _ in range(5)]
        await added(store, *jobs)
        await store.change(
            [Change(made.id, lambda stored: Transition(cancel(stored, T))) for made in jobs]
        )
        assert [await store.purge(T + 1, 3) for _ in range(3)] == [3, 2, 0]

    async def test_blobs_go_when_no_job_refers_to_them(self, store: JobStore) -> None:
        used, unused, fresh = "a" * 64, "b" * 64, "c" * 64
        made = job(blobs=(used,))
        await store.touch_blobs([used, unused], T)
        await store.touch_blobs([fresh], T + 100)
        await added(store, made)
        removed: list[str] = []
        assert await store.collect_blobs(T + 50, 10, removed.append) == 1
        assert removed == [unused]
        await store.change([Change(made.id, lambda stored: Transition(cancel(stored, T)))])
        assert await store.purge(T + 1, 10) == 1
        assert await store.collect_blobs(T + 50, 10, removed.append) == 1
        assert removed == [unused, used]
        assert await store.collect_blobs(T + 50, 10, removed.append) == 0

    async def test_a_blob_that_is_touched_again_stays(self, store: JobStore) -> None:
        await store.touch_blobs(["a" * 64], T)
        await store.touch_blobs(["a" * 64], T + 100)
        assert await store.collect_blobs(T + 50, 10, lambda digest: None) == 0

    async def test_a_blob_that_cannot_be_removed_is_tried_again(self, store: JobStore) -> None:
        await store.touch_blobs(["a" * 64], T)

        def fails(digest: str) -> None:
            raise OSError("the disk is read-only")

        with pytest.raises(OSError, match="read-only"):
            await store.collect_blobs(T + 1, 10, fails)
        assert await store.collect_blobs(T + 1, 10, lambda digest: None) == 1


async def test_the_clocks_of_one_machine_agree(store: JobStore) -> None:
    assert abs(await store.skew()) < 1


async def test_it_opens_again_with_all_that_it_had(store: JobStore, other: JobStore) -> None:
    made = job()
    await added(store, made)
    assert await other.get(made.id) == made
