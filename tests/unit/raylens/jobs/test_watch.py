"""Watches: jobs that run until they are stopped, and tell of what they see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from raylens.core.errors import Overloaded, PermissionDenied
from raylens.jobs.job import DeliveryState, Job, JobState, Webhook
from raylens.jobs.types.base import ENDLESS_S
from raylens.jobs.types.watch import END, MAX_RECENT_EVENTS, WatchInput, WatchJob, WatchRecord
from tests.unit.raylens.jobs.conftest import (
    URL,
    FlakyStore,
    QueueParts,
    make_job,
    run_jobs,
    serving,
    wait_until,
)

AT = 1_700_000_000.0
CONNECTED = {"type": "source", "status": "connected", "problem": None, "at": AT}
LOST = {"type": "source", "status": "lost", "problem": "no answer", "at": AT + 9}


class End:
    """The process hands the watch over."""


Step = dict[str, Any] | Exception | End


def result(number: int) -> dict[str, Any]:
    return {"type": "result", "frame_id": number, "objects": [], "at": AT + number}


def event(kind: str, at: float, subject: str = "person") -> dict[str, Any]:
    return {"type": "event", "event": {"type": kind, "subject": subject}, "at": at}


@dataclass
class Script:
    """A watcher whose every call plays the next of some lists, and then waits."""

    calls: list[Sequence[Step]] = field(default_factory=list)
    inputs: list[WatchInput] = field(default_factory=list)
    open: int = 0

    async def watch(
        self, job: Job, watch_input: WatchInput
    ) -> AsyncGenerator[dict[str, Any], None]:
        self.inputs.append(watch_input)
        self.open += 1
        try:
            for step in self.calls.pop(0) if self.calls else ():
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, End):
                    return
                yield step
            await asyncio.Event().wait()
        finally:
            self.open -= 1


@pytest.fixture
def script(parts: QueueParts) -> Script:
    script = Script()
    parts.types["watch"] = WatchJob(script)
    return script


def make_watch(**fields: Any) -> Job:
    watch_input = WatchInput.model_validate({"source": "rtsp://camera/1", **fields})
    stored = watch_input.model_dump(mode="json", exclude_unset=True)
    job = make_job("watch", stored, webhook=Webhook(URL))
    return replace(job, deadline=job.created_at + ENDLESS_S)


def sent(parts: QueueParts) -> list[dict[str, Any]]:
    return [json.loads(content) for _, content, _ in parts.webhook_client.sent]


async def record_of(queue: Any, job: Job) -> dict[str, Any]:
    output: dict[str, Any] = (await queue.get(job.id)).output
    return output


async def test_events_reach_the_webhook_and_results_the_record(
    parts: QueueParts, script: Script
) -> None:
    start, end = event("started", AT + 1), event("ended", AT + 5)
    script.calls = [[CONNECTED, result(1), start, result(5), end, result(6)]]
    async with serving(queue := parts.make_queue()):
        job = await queue.submit(make_watch(), {})
        await wait_until(lambda: len(sent(parts)) == 2)
        await asyncio.sleep(1)  # the last result is stored
        record = await record_of(queue, job)
        assert (await queue.get(job.id)).state is JobState.RUNNING
    assert [body["type"] for body in sent(parts)] == ["watch.event.started", "watch.event.ended"]
    data = sent(parts)[0]["data"]
    assert data == {
        "job_id": job.id,
        "job_type": "watch",
        "at": "2023-11-14T22:13:21.000+00:00",
        "event": {"type": "started", "subject": "person"},
    }
    assert record["source"]["status"] == "connected"
    assert record["result"]["frame_id"] == 6
    assert [each["number"] for each in record["recent_events"]] == [1, 2]
    assert record["started"] == {}


async def test_a_webhook_hears_what_it_asks_for(parts: QueueParts, script: Script) -> None:
    script.calls = [[CONNECTED, result(1), event("started", AT), LOST]]
    async with serving(queue := parts.make_queue()):
        await queue.submit(make_watch(events=("result", "source.lost")), {})
        await wait_until(lambda: len(sent(parts)) == 2)
    assert [body["type"] for body in sent(parts)] == ["watch.result", "watch.source.lost"]
    assert sent(parts)[0]["data"]["result"] == {"frame_id": 1, "objects": []}
    assert sent(parts)[1]["data"]["source"] == {"status": "lost", "problem": "no answer"}


async def test_watches_take_no_worker_from_other_jobs(parts: QueueParts, script: Script) -> None:
    async with serving(queue := parts.make_queue(workers=1, watches={"max_running": 2})):
        watches = [await queue.submit(make_watch(), {}) for _ in range(3)]
        await wait_until(lambda: script.open == 2)
        caption = await queue.submit(make_job(), {})
        await wait_until_state(queue, caption, JobState.SUCCEEDED)
        states = [(await queue.get(watch.id)).state for watch in watches]
        assert sorted(states) == [JobState.QUEUED, JobState.RUNNING, JobState.RUNNING]
        # One that is stopped makes room for the next.
        await queue.cancel(watches[states.index(JobState.RUNNING)].id)
        waiting = watches[states.index(JobState.QUEUED)]
        await wait_until_state(queue, waiting, JobState.RUNNING)
        assert script.open == 2


async def test_busy_workers_hold_up_no_watch(parts: QueueParts, script: Script) -> None:
    parts.service.seconds = 1e6
    async with serving(queue := parts.make_queue(workers=1)):
        await queue.submit(make_job(), {})
        await wait_until(lambda: parts.service.running == 1)
        await queue.submit(make_watch(), {})
        await wait_until(lambda: script.open == 1)


async def test_a_stopped_watch_ends_and_starts_again(parts: QueueParts, script: Script) -> None:
    async with serving(queue := parts.make_queue()):
        job = await queue.submit(make_watch(), {})
        await wait_until(lambda: script.open == 1)
        assert (await queue.cancel(job.id)).state is JobState.CANCELED
        await wait_until(lambda: script.open == 0)
        again = await queue.requeue(job.id)
        assert again.deadline > again.created_at + ENDLESS_S / 2
        await wait_until(lambda: script.open == 1)
        assert (await queue.get(job.id)).state is JobState.RUNNING


async def test_a_lost_replica_is_waited_out_and_ends_what_had_started(
    parts: QueueParts, script: Script
) -> None:
    lost = Overloaded("the replica is lost", retry_after=1.0)
    script.calls = [
        [CONNECTED, event("started", AT + 1), result(4), lost],
        *([lost],) * 20,
        [CONNECTED, event("started", AT + 90)],
    ]
    async with serving(queue := parts.make_queue()):
        job = await queue.submit(make_watch(), {})
        await wait_until(lambda: len(sent(parts)) == 3)
        assert (await queue.get(job.id)).state is JobState.RUNNING
    bodies = [body["data"]["event"] for body in sent(parts)]
    assert [body["type"] for body in bodies] == ["started", "ended", "started"]
    assert bodies[1] == {
        "type": "ended",
        "subject": "person",
        "duration_s": 3.0,
        "interrupted": True,
    }


async def test_a_watch_goes_on_when_its_process_hands_it_over(
    parts: QueueParts, script: Script
) -> None:
    script.calls = [[CONNECTED, End()]]
    async with serving(queue := parts.make_queue()):
        job = await queue.submit(make_watch(), {})
        await wait_until(lambda: len(script.inputs) == 2)
        assert (await queue.get(job.id)).state is JobState.RUNNING
        assert script.open == 1


async def test_a_watch_survives_the_death_of_every_process(
    parts: QueueParts, script: Script
) -> None:
    job = make_watch()
    for number in range(20):
        async with serving(queue := parts.make_queue()):
            if number == 0:
                await queue.submit(job, {})
            await wait_until(lambda: script.open == 1)
            await asyncio.sleep(5)
    stored = (await parts.store.get([job.id]))[job.id]
    assert stored.state is JobState.RUNNING
    assert len(script.inputs) == 20


async def test_a_watch_that_may_not_go_on_fails(parts: QueueParts, script: Script) -> None:
    script.calls = [[CONNECTED, PermissionDenied("the key 'a' is no longer valid")]]
    async with serving(queue := parts.make_queue()):
        job = await queue.submit(make_watch(), {})
        await wait_until_state(queue, job, JobState.FAILED)
        failed = await queue.get(job.id)
        await wait_until(lambda: len(sent(parts)) == 1)
    assert failed.problem is not None
    assert failed.problem.message == "the key 'a' is no longer valid"
    assert sent(parts)[0]["type"] == "job.failed"


async def test_events_wait_for_a_store_that_is_away(parts: QueueParts, script: Script) -> None:
    store = FlakyStore(parts)
    parts.store = store
    script.calls = [[CONNECTED, event("started", AT), event("ended", AT + 1)]]
    async with serving(queue := parts.make_queue()):
        job = await queue.submit(make_watch(), {})
        await wait_until(lambda: script.open == 1)
        store.failing = {"change"}
        await asyncio.sleep(8)  # less than a lease
        store.failing = set()
        await wait_until(lambda: len(sent(parts)) == 2)
        deliveries = await queue.deliveries(job.id)
    assert [each.state for each in deliveries] == [DeliveryState.DELIVERED] * 2


async def test_a_drain_hands_watches_over(parts: QueueParts, script: Script) -> None:
    async with serving(queue := parts.make_queue()):
        job = await queue.submit(make_watch(), {})
        await wait_until(lambda: script.open == 1)
        assert queue.drain() == 1
        await wait_until(lambda: queue.drain() == 0)
        assert (await queue.get(job.id)).state is JobState.QUEUED
        other = parts.make_queue()
        async with serving(other):
            await wait_until(lambda: script.open == 1)


async def test_old_deliveries_of_a_running_watch_are_deleted(
    parts: QueueParts, script: Script
) -> None:
    script.calls = [[event("started", AT)]]
    async with serving(queue := parts.make_queue(result_ttl_s=3600)):
        job = await queue.submit(make_watch(), {})
        await wait_until(lambda: len(sent(parts)) == 1)
        assert len(await queue.deliveries(job.id)) == 1
        await asyncio.sleep(3800)
        assert await queue.deliveries(job.id) == []


async def test_a_watch_succeeds_when_its_session_ends(parts: QueueParts, script: Script) -> None:
    script.calls = [[event("started", AT), event("ended", AT + 1), END]]
    (job,) = await run_jobs(parts.make_queue(), make_watch(source="session:abc-1"))
    assert job.state is JobState.SUCCEEDED
    assert script.inputs[0].session_id == "abc-1"
    assert job.output is not None
    assert [each["number"] for each in job.output["recent_events"]] == [1, 2]


def test_a_record_keeps_the_newest_events() -> None:
    record = WatchRecord()
    for number in range(MAX_RECENT_EVENTS + 5):
        record.add(event("started", AT + number, f"object {number}"))
    stored = WatchRecord.read(json.loads(json.dumps(record.as_json())))
    numbers = [each["number"] for each in stored.recent_events]
    assert numbers == list(range(6, MAX_RECENT_EVENTS + 6))
    assert stored.events == MAX_RECENT_EVENTS + 5


async def wait_until_state(queue: Any, job: Job, state: JobState) -> None:
    async with asyncio.timeout(600):
        while (await queue.get(job.id)).state is not state:
            await asyncio.sleep(0.1)
