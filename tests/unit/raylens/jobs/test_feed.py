from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import aclosing

import pytest

from raylens.core.draining import POLL_PERIOD_S, Draining
from raylens.core.errors import Overloaded, UnknownJob
from raylens.jobs.changed_jobs import MAX_JOBS, ChangedJobsReader
from raylens.jobs.changes import ChangeLog
from raylens.jobs.feed import JobFeed
from raylens.jobs.job import BULKY_FIELDS, Job, JobState
from raylens.jobs.memory import MemoryStore
from raylens.jobs.queue import JobQueue
from raylens.jobs.store import StoreUnavailable
from tests.unit.raylens.jobs.conftest import QueueParts, make_job, now, serving

KEEPALIVE_S = 15.0


class CountingStore(MemoryStore):
    reads = 0
    error: Exception | None = None

    async def get(
        self, job_ids: Collection[str], bulky_fields: Collection[str] = BULKY_FIELDS
    ) -> dict[str, Job]:
        self.reads += 1
        if self.error is not None:
            raise self.error
        return await super().get(job_ids, bulky_fields)


async def watch_states(feed: JobFeed, job_id: str) -> list[JobState]:
    return [job.state async for job in feed.watch(job_id, KEEPALIVE_S)]


async def settle(queue: JobQueue) -> None:
    """Let the feed take in everything that has happened."""
    await asyncio.sleep(0.1)


async def test_a_watcher_gets_each_state_until_the_end(parts: QueueParts) -> None:
    parts.service.seconds = 1
    queue = parts.make_queue()
    feed = JobFeed(queue, 1)
    job = await queue.submit(make_job(), {})
    watching = asyncio.create_task(watch_states(feed, job.id))
    await settle(queue)
    async with serving(queue):
        states = await watching
    assert states == [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]


async def test_watches_end_when_the_process_drains_and_new_ones_get_one_version(
    parts: QueueParts,
) -> None:
    drains = False
    queue = parts.make_queue()
    feed = JobFeed(queue, 10, Draining(lambda: drains))
    jobs = [await queue.submit(make_job(), {}) for _ in range(3)]
    watching = [asyncio.create_task(watch_states(feed, job.id)) for job in jobs]
    await asyncio.sleep(10)
    assert not any(watch.done() for watch in watching)
    drains = True
    begun_at = now()
    assert await asyncio.gather(*watching) == [[JobState.QUEUED]] * 3
    assert now() - begun_at <= POLL_PERIOD_S
    assert feed.is_handed_over
    assert await watch_states(feed, jobs[0].id) == [JobState.QUEUED]
    assert now() - begun_at <= POLL_PERIOD_S


async def test_changes_arrive_at_once_and_those_of_other_processes_soon(parts: QueueParts) -> None:
    queue = parts.make_queue()
    other = parts.make_queue()
    feed = JobFeed(queue, 10)
    mine, theirs = [await queue.submit(make_job(), {}) for _ in range(2)]
    delays = {}

    async def watch(job_id: str) -> None:
        await watch_states(feed, job_id)
        delays[job_id] = now()

    watching = [asyncio.create_task(watch(job.id)) for job in (mine, theirs)]
    await asyncio.sleep(20)
    canceled_at = now()
    await queue.cancel(mine.id)
    await other.cancel(theirs.id)
    await asyncio.gather(*watching)
    assert delays[mine.id] - canceled_at < 0.05
    assert delays[theirs.id] - canceled_at < 3


async def test_an_unexpected_error_ends_no_stream(
    parts: QueueParts, caplog: pytest.LogCaptureFixture
) -> None:
    store = parts.store = CountingStore(parts.clock)
    queue = parts.make_queue()
    feed = JobFeed(queue, 10)
    job = await queue.submit(make_job(), {})
    watching = asyncio.create_task(watch_states(feed, job.id))
    await settle(queue)
    store.error = RuntimeError("Serve's controller is away")
    await asyncio.sleep(10)
    store.error = None
    assert "following the changes of jobs failed" in caplog.text
    await queue.cancel(job.id)
    assert (await watching)[-1] is JobState.CANCELED


async def test_the_number_of_watchers_costs_no_reads(parts: QueueParts) -> None:
    async def count_reads(watchers: int) -> int:
        store = parts.store = CountingStore(parts.clock)
        queue = parts.make_queue(capacity=1000)
        feed = JobFeed(queue, 1000)
        jobs = [await queue.submit(make_job(), {}) for _ in range(watchers)]
        watching = [asyncio.create_task(watch_states(feed, job.id)) for job in jobs]
        await settle(queue)
        store.reads = 0
        await asyncio.sleep(60)
        for task in watching:
            task.cancel()
        return store.reads

    few, many = await count_reads(2), await count_reads(200)
    assert many <= few <= 31


async def test_streams_over_the_limit_are_refused(parts: QueueParts) -> None:
    queue = parts.make_queue()
    feed = JobFeed(queue, 2)
    job = await queue.submit(make_job(), {})
    watching = [asyncio.create_task(watch_states(feed, job.id)) for _ in range(2)]
    await settle(queue)
    with pytest.raises(Overloaded, match="2 event streams are open; the limit is 2") as caught:
        await watch_states(feed, job.id)
    assert caught.value.retry_after == 5
    watching[0].cancel()
    await settle(queue)
    again = asyncio.create_task(watch_states(feed, job.id))
    await settle(queue)
    await queue.cancel(job.id)
    assert (await again)[-1] is (await watching[1])[-1] is JobState.CANCELED


async def test_an_unknown_job_takes_no_place(parts: QueueParts) -> None:
    feed = JobFeed(parts.make_queue(), 1)
    for _ in range(3):
        with pytest.raises(UnknownJob):
            await watch_states(feed, "nothing")


async def test_a_quiet_job_is_repeated_and_a_removed_one_ends_the_stream(
    parts: QueueParts,
) -> None:
    queue = parts.make_queue()
    feed = JobFeed(queue, 1)
    job = await queue.submit(make_job(), {})
    async with aclosing(feed.watch(job.id, KEEPALIVE_S)) as versions:
        started = now()
        first = await anext(versions)
        assert await anext(versions) == first
        assert now() - started == pytest.approx(KEEPALIVE_S)
        await parts.store.change([])
        parts.store._jobs.clear()  # type: ignore[attr-defined]
        assert await anext(versions, None) is None


async def test_a_queue_that_is_away_is_waited_for(parts: QueueParts) -> None:
    store = parts.store = CountingStore(parts.clock)
    queue = parts.make_queue()
    feed = JobFeed(queue, 1)
    job = await queue.submit(make_job(), {})
    watching = asyncio.create_task(watch_states(feed, job.id))
    await settle(queue)
    store.error = StoreUnavailable("away")
    await asyncio.sleep(30)
    await queue.cancel(job.id)
    await asyncio.sleep(30)
    store.error = None
    assert (await watching)[-1] is JobState.CANCELED


async def test_those_who_watch_all_jobs_share_the_reads(parts: QueueParts) -> None:
    async def count_reads(watchers: int) -> int:
        store = parts.store = CountingStore(parts.clock)
        queue = parts.make_queue(capacity=1000)
        feed = JobFeed(queue, 100)
        seen: list[set[str]] = [set() for _ in range(watchers)]

        async def watch(ids: set[str]) -> None:
            async for changed in feed.watch_all("", "", (), KEEPALIVE_S):
                ids.update(changed.versions or ())

        watching = [asyncio.create_task(watch(ids)) for ids in seen]
        await asyncio.sleep(1)
        jobs = {(await queue.submit(make_job(), {})).id for _ in range(100)}
        store.reads = 0
        for job_id in jobs:
            await queue.cancel(job_id)
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        for watch_task in watching:
            watch_task.cancel()
        assert all(ids == jobs for ids in seen)
        return store.reads

    alone = await count_reads(1)
    assert alone < 100
    assert await count_reads(50) <= 1.2 * alone


async def test_a_watch_of_all_jobs_outlasts_a_queue_that_is_away(parts: QueueParts) -> None:
    store = parts.store = CountingStore(parts.clock)
    queue = parts.make_queue()
    feed = JobFeed(queue, 10)
    seen: list[str | None] = []

    async def watch() -> None:
        async for changed in feed.watch_all("", "", (), KEEPALIVE_S):
            seen.extend(changed.versions or [None])

    watching = asyncio.create_task(watch())
    await asyncio.sleep(1)
    store.error = StoreUnavailable("away")
    job = await queue.submit(make_job(), {})
    await asyncio.sleep(10)
    assert seen == [None]
    store.error = None
    await asyncio.sleep(2)
    assert seen == [None, job.id]
    watching.cancel()
    store.error = StoreUnavailable("away")
    cursor = (await queue.wait_for_changes(None, 0)).cursor
    await queue.submit(make_job(), {})
    with pytest.raises(StoreUnavailable):
        await anext(feed.watch_all(cursor, "", (), KEEPALIVE_S))


async def test_who_has_missed_too_much_has_to_list_the_jobs(parts: QueueParts) -> None:
    queue = parts.make_queue(capacity=2 * MAX_JOBS)
    reader = ChangedJobsReader(queue)
    cursor = (await reader.read("", "", ())).cursor
    for _ in range(MAX_JOBS):
        await queue.submit(make_job(), {})
    changed = await reader.read(cursor, "", ())
    assert changed.versions is not None
    assert len(changed.versions) == MAX_JOBS
    await queue.submit(make_job(), {})
    assert (await reader.read(cursor, "", ())).versions is None


class TestChangeLog:
    async def test_changes_are_returned_since_the_cursor(self) -> None:
        log = ChangeLog()
        log.append("a")
        first = await log.wait(None, 60)
        assert first.owners is None
        log.append("b", "me")
        log.append("c")
        log.append("b", "me")
        second = await log.wait(first.cursor, 60)
        assert second.owners == {"b": "me", "c": ""}
        third = await log.wait(second.cursor, 60)
        assert third.owners == {}

    async def test_a_wait_ends_with_the_first_change(self) -> None:
        log = ChangeLog()
        cursor = (await log.wait(None, 0)).cursor
        waiting = asyncio.create_task(log.wait(cursor, 3600))
        await asyncio.sleep(60)
        log.append("a")
        assert (await waiting).owners == {"a": ""}
        assert asyncio.get_running_loop().time() < 61

    async def test_a_cursor_that_is_too_old_or_of_another_process_tells_nothing(self) -> None:
        log = ChangeLog(limit=2)
        cursor = (await log.wait(None, 0)).cursor
        for job_id in "abc":
            log.append(job_id)
        assert (await log.wait(cursor, 0)).owners is None
        assert (await ChangeLog().wait(cursor, 0)).owners is None
