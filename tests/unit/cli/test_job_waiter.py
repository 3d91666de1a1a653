from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from raylens.api.jobs import MAX_IDS
from raylens.cli.client import Client
from raylens.cli.errors import StatusError, Unreachable
from raylens.cli.job_waiter import JobWaiter
from tests.unit.cli.fake_server import BLURRED, FakeServer, FlakyTransport, is_poll, skip


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
async def waiter(server: FakeServer) -> AsyncIterator[JobWaiter]:
    async with (
        Client(transport=server.transport, sleep=skip) as client,
        JobWaiter(client) as waiter,
    ):
        yield waiter


async def let_others_run() -> None:
    """Let every task run until it waits for something that doesn't come."""
    for _ in range(100):
        await asyncio.sleep(0)


async def test_many_waits_share_few_requests(server: FakeServer, waiter: JobWaiter) -> None:
    ids = [f"job-{number}" for number in range(MAX_IDS + 50)]
    for job_id in ids:
        server.add(job_id)
    jobs = await asyncio.gather(*map(waiter.wait_for_end, ids))
    assert [job["id"] for job in jobs] == ids
    assert all(set(job) == {"id", "status", "output", "error"} for job in jobs)
    assert jobs[0]["output"] == {"caption": "a picture", "model": "moondream"}
    assert list(map(len, server.polls)) == [MAX_IDS, 50] * 2
    assert server.streams == 0


async def test_waits_for_the_same_job_ask_once_and_all_end(
    server: FakeServer, waiter: JobWaiter
) -> None:
    server.add("a")
    first, second = await asyncio.gather(waiter.wait_for_end("a"), waiter.wait_for_end("a"))
    assert first == second
    assert server.polls == [["a"], ["a"]]


async def test_the_first_poll_finds_a_job_that_ended_before_it(
    server: FakeServer, waiter: JobWaiter
) -> None:
    server.add("a", status="failed", error=BLURRED)
    job = await waiter.wait_for_end("a")
    assert (job["status"], job["error"]) == ("failed", BLURRED)
    assert server.polls == [["a"]]


async def test_a_lost_job_is_not_found_and_the_others_are_waited_for(
    server: FakeServer, waiter: JobWaiter
) -> None:
    server.add("a")
    lost = asyncio.create_task(waiter.wait_for_end("lost"))
    assert (await waiter.wait_for_end("a"))["status"] == "succeeded"
    with pytest.raises(StatusError, match="the server has lost the job lost") as error:
        await lost
    assert error.value.status == 404
    assert server.polls == [["a", "lost"], ["a"]]


async def test_polls_become_rarer_until_a_job_ends(server: FakeServer) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        server.jobs["a"]["status"] = "queued" if len(waits) < 5 else "succeeded"
        await asyncio.sleep(0)

    server.add("a")
    server.add("b", status="succeeded")
    async with (
        Client(transport=server.transport, sleep=sleep) as client,
        JobWaiter(client) as waiter,
    ):
        await waiter.wait_for_end("a")
        await waiter.wait_for_end("b")
    assert waits[:6] == [0.25, 0.5, 1.0, 1.0, 1.0, 0.25]


async def test_nothing_is_asked_for_without_a_wait(server: FakeServer, waiter: JobWaiter) -> None:
    server.add("a")
    server.add("b", status="running")
    task = asyncio.create_task(waiter.wait_for_end("a"))
    await asyncio.sleep(0)
    task.cancel()
    await let_others_run()
    assert server.polls == []
    await waiter.wait_for_end("b")
    await let_others_run()
    assert server.polls == [["b"]]


async def test_waits_outlast_an_outage(server: FakeServer) -> None:
    server.transport = FlakyTransport(server.transport, 5, is_poll)
    server.add("a")
    server.add("b")
    async with (
        Client(transport=server.transport, sleep=skip) as client,
        JobWaiter(client) as waiter,
    ):
        jobs = await asyncio.gather(waiter.wait_for_end("a"), waiter.wait_for_end("b"))
    assert [job["status"] for job in jobs] == ["succeeded"] * 2


async def test_a_poll_that_fails_for_good_ends_every_wait_and_a_later_wait_polls_again(
    server: FakeServer,
) -> None:
    server.transport = FlakyTransport(server.transport, 1, is_poll)
    server.add("a", status="succeeded")
    async with (
        Client(patience_s=0, transport=server.transport, sleep=skip) as client,
        JobWaiter(client) as waiter,
    ):
        waits = (waiter.wait_for_end("a"), waiter.wait_for_end("b"))
        errors = await asyncio.gather(*waits, return_exceptions=True)
        assert [type(error) for error in errors] == [Unreachable] * 2
        assert (await waiter.wait_for_end("a"))["status"] == "succeeded"


@pytest.mark.parametrize("body", [{}, {"jobs": [{}]}], ids=["no jobs", "no ids"])
async def test_an_answer_that_makes_no_sense_ends_the_wait(body: dict[str, Any]) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=body))
    async with Client(transport=transport, sleep=skip) as client, JobWaiter(client) as waiter:
        with pytest.raises(KeyError):
            await waiter.wait_for_end("a")


async def test_a_wait_is_not_ended_by_the_answer_to_an_earlier_question() -> None:
    asked = asyncio.Event()
    may_answer = asyncio.Event()
    statuses = iter(["failed", "succeeded"])

    async def respond(request: httpx.Request) -> httpx.Response:
        asked.set()
        await may_answer.wait()
        return httpx.Response(200, json={"jobs": [{"id": "a", "status": next(statuses)}]})

    transport = httpx.MockTransport(respond)
    async with Client(transport=transport, sleep=skip) as client, JobWaiter(client) as waiter:
        first = asyncio.create_task(waiter.wait_for_end("a"))
        await asked.wait()
        second = asyncio.create_task(waiter.wait_for_end("a"))
        await asyncio.sleep(0)
        may_answer.set()
        assert (await first)["status"] == "failed"
        assert (await second)["status"] == "succeeded"
