from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from ray.exceptions import RayActorError

from deployments.job_client import JobQueueClient
from raylens.core.errors import Overloaded
from raylens.jobs.changes import Changes
from raylens.jobs.job import Job, new_id
from testing.virtual_time import VirtualTimePolicy

TIMEOUT_S = 5.0
PICTURES = {"a" * 64: bytes(100_000)}
"""More bytes than calls share."""


@pytest.fixture
def event_loop_policy() -> VirtualTimePolicy:
    return VirtualTimePolicy()


class FakeMethod:
    """The actor's method ``call``: a coroutine function behind ``remote``."""

    def __init__(self, call: Any) -> None:
        self.remote = call


class FakeActor:
    """An actor whose calls take ``seconds`` and return their arguments, or raise ``error``."""

    def __init__(self, seconds: float = 0.0, error: Exception | None = None) -> None:
        self.seconds = seconds
        self.error = error
        self.calls: list[tuple[Any, ...]] = []
        self.call = FakeMethod(self._call)

    async def _call(self, method: str, *arguments: Any) -> Any:
        self.calls.append((method, *arguments))
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return arguments[0] if method == "submit" else [job for job, _ in arguments[0]]


def make_job() -> Job:
    return Job(new_id(), "query", {}, created_at=0, deadline=1, max_attempts=1, rank=0)


async def submit_all(client: JobQueueClient, count: int) -> tuple[list[Any], float]:
    """Submit jobs together. Return the results, and the seconds until the last one came."""
    clock = asyncio.get_running_loop().time
    started = clock()
    calls = (client.submit(make_job(), {}) for _ in range(count))
    results = await asyncio.gather(*calls, return_exceptions=True)
    return results, clock() - started


def find_none() -> Any:
    raise ValueError("no such actor")


async def test_without_an_actor_every_submission_is_refused_within_seconds() -> None:
    results, seconds = await submit_all(JobQueueClient(TIMEOUT_S, find_none), 200)
    assert seconds == pytest.approx(TIMEOUT_S, abs=1)
    assert {type(result) for result in results} == {Overloaded}
    assert all(result.retry_after == 5 for result in results)


@pytest.mark.parametrize(
    "actor", [FakeActor(seconds=3600), FakeActor(error=RayActorError()), FakeActor(seconds=3)]
)
async def test_submissions_behind_a_slow_or_dead_actor_have_one_deadline(
    actor: FakeActor,
) -> None:
    results, seconds = await submit_all(JobQueueClient(TIMEOUT_S, lambda: actor), 200)
    assert seconds <= TIMEOUT_S + 1
    assert {type(result) for result in results} <= {Overloaded, Job}
    # Jobs whose callers have given up are not sent any more.
    calls = len(actor.calls)
    await asyncio.sleep(60)
    assert len(actor.calls) == calls


async def test_a_restart_of_the_actor_is_waited_out() -> None:
    dead, alive = FakeActor(error=RayActorError()), FakeActor()
    started = asyncio.get_running_loop().time()
    actors = iter([dead] * 8 + [alive] * 8)
    client = JobQueueClient(TIMEOUT_S, lambda: next(actors))
    job = make_job()
    assert await client.submit(job, {}) == job
    assert asyncio.get_running_loop().time() - started == pytest.approx(2, abs=0.1)


async def test_a_wait_for_changes_may_take_longer() -> None:
    actor = FakeActor(seconds=8)
    client = JobQueueClient(TIMEOUT_S, lambda: actor)
    with pytest.raises(Overloaded):
        await client.stats()

    async def wait(method: str, *arguments: Any) -> Changes:
        await asyncio.sleep(8)
        return Changes("c", None)

    actor.call = FakeMethod(wait)
    assert (await client.wait_for_changes(None, 10)).cursor == "c"


async def test_jobs_that_arrive_together_share_calls() -> None:
    actor = FakeActor(seconds=0.1)
    results, _ = await submit_all(JobQueueClient(TIMEOUT_S, lambda: actor), 65)
    assert [type(result) for result in results] == [Job] * 65
    assert len(actor.calls) == 3


async def test_calls_share_one_look_up_which_takes_no_thread_of_others() -> None:
    looked_up = 0
    may_end = threading.Event()

    def find_slowly() -> Any:
        nonlocal looked_up
        looked_up += 1
        may_end.wait(10)
        return FakeActor()

    client = JobQueueClient(3600.0, find_slowly)
    calls = [asyncio.create_task(client.submit(make_job(), PICTURES)) for _ in range(64)]
    assert await asyncio.to_thread(lambda: "a decoded picture") == "a decoded picture"
    may_end.set()
    assert all(isinstance(job, Job) for job in await asyncio.gather(*calls))
    assert looked_up == 1
