"""Watches: jobs that run until they are stopped, and tell of what they see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from raylens.core.config import AppConfig
from raylens.core.errors import ModelFailed, PermissionDenied, QueueFull
from raylens.jobs.job import DeliveryState, Job, JobState, Webhook
from raylens.jobs.memory import MemoryStore
from raylens.jobs.store import Change, StoreUnavailable
from raylens.jobs.types.base import ENDLESS_S
from raylens.jobs.types.watch import END, MAX_RECENT_EVENTS, WatchInput, WatchJob, WatchRecord
from tests.unit.raylens.jobs.conftest import (
    URL,
    FlakyStore,
    QueueParts,
    make_job,
    now,
    run_jobs,
    serving,
    wait_until,
    wait_until_ended,
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
    details = {"type": kind, "subject": subject, "time_s": at - AT, "frame_id": 1, "count": 2}
    return {"type": "event", "event": details, "at": at}


@dataclass
class Script:
    """A watcher whose every call plays the next of some lists, and then waits."""

    calls: list[Sequence[Step]] = field(default_factory=list)
    inputs: list[WatchInput] = field(default_factory=list)
    open: int = 0
    gate: asyncio.Event | None = None

    async def watch(
        self, job: Job, watch_input: WatchInput
    ) -> AsyncGenerator[dict[str, Any], None]:
        self.inputs.append(watch_input)
        self.open += 1
        try:
            if self.gate is not None:
                await self.gate.wait()
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
    return replace(job, deadline=job.created_at + ENDLESS_S, max_attempts=100)


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
        "event": start["event"],
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
        for _ in range(2):
            await queue.submit(make_watch(), {})
        await wait_until(lambda: script.open == 2)
        caption = await queue.submit(make_job(), {})
        await wait_until_state(queue, caption, JobState.SUCCEEDED)
        assert script.open == 2


async def test_no_more_watches_start_than_may_run(parts: QueueParts, script: Script) -> None:
    async with serving(queue := parts.make_queue(watches={"max_running": 2})):
        results = await asyncio.gather(
            *(queue.submit(make_watch(), {}) for _ in range(6)), return_exceptions=True
        )
        watches = [each for each in results if isinstance(each, Job)]
        refused = [each for each in results if isinstance(each, QueueFull)]
        assert (len(watches), len(refused)) == (2, 4)
        assert "2 watches run; the limit is 2" in refused[0].message
        # One that is stopped makes room for another, and may then not start again.
        await queue.cancel(watches[0].id)
        other = await queue.submit(make_watch(), {})
        with pytest.raises(QueueFull):
            await queue.requeue(watches[0].id)
        await queue.cancel(other.id)
        assert (await queue.requeue(watches[0].id)).max_attempts == 100


async def test_a_client_has_a_share_of_the_watches(parts: QueueParts, script: Script) -> None:
    key = {"name": "a", "hash": "sha256:" + "0" * 64, "limits": {"max_sessions": 1}}
    parts.app = AppConfig.model_validate({**parts.app.model_dump(), "auth": {"keys": [key]}})
    async with serving(queue := parts.make_queue()):
        own = [replace(make_watch(), owner="a", client="a") for _ in range(2)]
        await queue.submit(own[0], {})
        with pytest.raises(QueueFull, match="1 of your watches run; your limit is 1"):
            await queue.submit(own[1], {})
        await queue.submit(make_watch(), {})


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


async def test_a_stop_tells_the_end_of_what_had_started(parts: QueueParts, script: Script) -> None:
    script.calls = [[CONNECTED, event("started", AT + 1), result(4)], [CONNECTED]]
    async with serving(queue := parts.make_queue()):
        job = await queue.submit(make_watch(), {})
        await wait_until(lambda: sent(parts))
        await asyncio.sleep(1)
        canceled = await queue.cancel(job.id)
        await wait_until(lambda: len(sent(parts)) == 3)
        assert canceled.output is not None
        assert canceled.output["recent_events"][-1]["event"]["type"] == "ended"
        events = [each.event for each in await queue.deliveries(job.id)]
        assert events == ["watch.event.started", "watch.event.ended", "job.canceled"]
        # Started again, it has nothing to end.
        await queue.requeue(job.id)
        await wait_until(lambda: len(script.inputs) == 2)
        await asyncio.sleep(1)
    assert len(sent(parts)) == 3


async def test_a_lost_replica_is_waited_out_and_ends_what_had_started(
    parts: QueueParts, script: Script
) -> None:
    lost = ModelFailed("the replica is lost")
    again: list[Sequence[Step]] = [[CONNECTED, lost] for _ in range(20)]
    script.calls = [
        [CONNECTED, event("started", AT + 1), result(4), lost],
        *again,
        [CONNECTED, event("started", AT + 90)],
    ]
    async with serving(queue := parts.make_queue()):
        job = await queue.submit(make_watch(), {})
        await wait_until(lambda: len(sent(parts)) == 3, 3600)
        assert (await queue.get(job.id)).state is JobState.RUNNING
    bodies = [body["data"]["event"] for body in sent(parts)]
    assert [body["type"] for body in bodies] == ["started", "ended", "started"]
    assert bodies[1] == {
        "type": "ended",
        "subject": "person",
        "time_s": 1.0,
        "ended_at": 4.0,
        "duration_s": 3.0,
        "frame_id": 4,
        "count": 2,
        "interrupted": True,
    }


async def test_a_watch_that_sees_nothing_gives_up_some_time(
    parts: QueueParts, script: Script
) -> None:
    script.calls = [[CONNECTED, ModelFailed("the replica is lost")] for _ in range(200)]
    started = now()
    async with serving(queue := parts.make_queue()):
        job = await queue.submit(make_watch(), {})
        failed = await wait_until_ended(queue, job.id)
    assert (failed.state, failed.attempts) == (JobState.FAILED, 100)
    # The waits grow up to a minute, of which a random part is waited.
    assert now() - started > 1200


async def test_ends_of_an_interruption_are_told_as_others(
    parts: QueueParts, script: Script
) -> None:
    """To those who asked for them, and all of them although the process dies meanwhile."""
    lost = ModelFailed("the replica is lost")
    starts = [event("started", AT, subject) for subject in ("cat", "dog")]
    script.calls = [[CONNECTED, *starts, lost], [CONNECTED]]
    async with serving(queue := parts.make_queue()):
        await queue.submit(make_watch(events=("source.lost", "event.started")), {})
        await wait_until(lambda: len(script.inputs) == 2)
        await asyncio.sleep(1)
        assert [body["type"] for body in sent(parts)] == ["watch.event.started"] * 2
    parts.webhook_client.sent.clear()
    script.calls = [[CONNECTED, *starts, lost], [CONNECTED]]
    store = DyingStore(parts.machine)
    parts.store = store
    queue = parts.make_queue()
    async with serving(queue):
        await queue.submit(make_watch(), {})
        await wait_until(lambda: len(script.inputs) == 3)
        store.changes_left = 3  # until another process has to go on
        await wait_until(lambda: store.changes_left == 0)
    store.changes_left = None
    async with serving(parts.make_queue()):
        await wait_until(lambda: len(sent(parts)) == 4)
    told = [(body["data"]["event"]["subject"], body["type"]) for body in sent(parts)]
    kinds = ("watch.event.ended", "watch.event.started")
    assert sorted(told) == [(subject, kind) for subject in ("cat", "dog") for kind in kinds]


class DyingStore(MemoryStore):
    """Refuses all changes after some, as a process that has died."""

    changes_left: int | None = None

    async def change(self, changes: Sequence[Change]) -> Any:
        if self.changes_left is not None:
            if self.changes_left == 0:
                raise StoreUnavailable("it has died")
            self.changes_left -= 1
        return await super().change(changes)


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


@pytest.mark.parametrize("seconds", [8, 60, 600])
async def test_events_wait_for_a_store_that_is_away(
    parts: QueueParts, script: Script, seconds: float
) -> None:
    """Also if the lease ends meanwhile."""
    store = FlakyStore(parts)
    parts.store = store
    gate = asyncio.Event()
    script.gate = gate
    script.calls = [[CONNECTED, event("started", AT)]]
    async with serving(queue := parts.make_queue()):
        job = await queue.submit(make_watch(), {})
        await wait_until(lambda: script.open == 1)
        store.failing = {"change", "renew", "claim"}
        gate.set()
        await asyncio.sleep(seconds)
        store.failing = set()
        await wait_until(lambda: sent(parts))
        first = (await queue.deliveries(job.id))[0]
    assert first.state is DeliveryState.DELIVERED
    assert sent(parts)[0]["type"] == "watch.event.started"


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
    script.calls = [[event("started", AT), event("ended", AT + 1)]]
    async with serving(queue := parts.make_queue(result_ttl_s=3600)):
        job = await queue.submit(make_watch(), {})
        await wait_until(lambda: len(sent(parts)) == 2)
        assert [each.number for each in await queue.deliveries(job.id)] == [1, 2]
        await asyncio.sleep(3800)
        # The last one stays, so that no number is given twice.
        assert [each.number for each in await queue.deliveries(job.id)] == [2]


async def test_of_results_only_the_newest_waits_for_an_endpoint(
    parts: QueueParts, script: Script
) -> None:
    parts.webhook_client.statuses = [500] * 1000
    steps = [result(number) for number in range(50)]
    script.calls = [[CONNECTED, *steps, event("started", AT + 60)]]
    async with serving(queue := parts.make_queue()):
        job = await queue.submit(make_watch(events=("result", "event.started")), {})
        await wait_until(lambda: script.open == 1)
        await asyncio.sleep(30)
        deliveries = await queue.deliveries(job.id)
    assert len(deliveries) <= 4
    assert [each.event for each in deliveries[-2:]] == ["watch.result", "watch.event.started"]
    assert json.loads(deliveries[-2].body)["data"]["result"]["frame_id"] == 49


async def test_a_long_session_says_nothing_of_how_long_jobs_take(
    parts: QueueParts, script: Script
) -> None:
    async with serving(queue := parts.make_queue()):
        script.gate = asyncio.Event()
        script.calls = [[END]]
        job = await queue.submit(make_watch(source="session:a-1"), {})
        await asyncio.sleep(36_000)
        script.gate.set()
        await wait_until_state(queue, job, JobState.SUCCEEDED)
        assert (await queue.stats()).mean_s is None


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
