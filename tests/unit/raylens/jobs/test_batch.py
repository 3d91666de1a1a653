from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from raylens.core.errors import InvalidRequest, ModelFailed, Overloaded
from raylens.jobs.blobs import compute_digest, make_reference
from raylens.jobs.job import Job, JobState, Progress
from tests.unit.raylens.jobs.conftest import (
    QueueParts,
    make_job,
    run_jobs,
    serving,
    wait_until,
    wait_until_ended,
)


def make_pictures(count: int) -> dict[str, bytes]:
    """Return pictures by digest. The bytes of each are its number."""
    return {compute_digest(b"%d" % number): b"%d" % number for number in range(count)}


def make_batch(count: int, **fields: Any) -> Job:
    digests = tuple(make_pictures(count))
    job_input = {"images": list(map(make_reference, digests)), "prompt": "what is it?"}
    return make_job("batch", job_input, blobs=digests, **fields)


async def run_batch(parts: QueueParts, count: int, **settings: Any) -> Job:
    job = make_batch(count)
    (ended,) = await run_jobs(parts.make_queue(**settings), job, pictures=make_pictures(count))
    return ended


def results_of(job: Job) -> list[Any]:
    assert job.output is not None
    return list(job.output["results"])


def answer_by_number(
    answer: Callable[[int, int], str],
) -> tuple[Callable[[Any, Any], str], Counter[int]]:
    """Return an answer function, and its number of calls by picture.

    ``answer`` takes the number of the picture and of the call for it, from 1.
    """
    calls: Counter[int] = Counter()

    def answer_request(request: Any, pictures: Any) -> str:
        number = int(pictures[0].data)
        calls[number] += 1
        return answer(number, calls[number])

    return answer_request, calls


async def test_the_captions_are_in_the_order_of_the_pictures(parts: QueueParts) -> None:
    def answer(request: Any, pictures: Any) -> str:
        return f"picture {pictures[0].data.decode()} of {pictures[0].field}"

    parts.service.answer = answer
    parts.service.seconds = 1
    ended = await run_batch(parts, 10)
    assert [result["caption"] for result in results_of(ended)] == [
        f"picture {number} of input.images.{number}" for number in range(10)
    ]
    assert ended.output is not None
    assert ended.output.keys() == {"results", "failed"}
    assert ended.output["failed"] == 0
    assert ended.progress == Progress(10, 10)
    assert parts.service.most_at_once == 4


async def test_an_invalid_or_missing_picture_fails_alone(parts: QueueParts) -> None:
    parts.service.errors = [InvalidRequest("input.images.0: broken", "input.images.0")]
    pictures = make_pictures(6)
    del pictures[compute_digest(b"4")]
    (ended,) = await run_jobs(parts.make_queue(), make_batch(6), pictures=pictures)
    assert ended.state is JobState.SUCCEEDED
    assert ended.output is not None
    assert ended.output["failed"] == 2
    results = results_of(ended)
    assert results[0]["error"]["code"] == "invalid_request"
    assert results[4]["error"] == {
        "code": "invalid_request",
        "message": "input.images.4: the stored file is missing",
        "field": "input.images.4",
    }
    assert results[5]["caption"] == "two circles"


async def test_a_batch_goes_on_through_overloads(parts: QueueParts) -> None:
    def answer(number: int, call: int) -> str:
        if number % 20 == 19 and call == 1:
            raise Overloaded("full", "model", retry_after=1)
        return str(number)

    parts.service.answer, calls = answer_by_number(answer)
    ended = await run_batch(parts, 200)
    assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 1)
    assert [result["caption"] for result in results_of(ended)] == list(map(str, range(200)))
    # Only the pictures that met an overload were asked about twice.
    assert calls.total() == 210


async def test_a_picture_at_which_the_model_fails_is_retried_alone(parts: QueueParts) -> None:
    def answer(number: int, call: int) -> str:
        if number == 1 or (number == 2 and call < 3):
            raise ModelFailed("broken")
        return str(number)

    parts.service.answer, calls = answer_by_number(answer)
    ended = await run_batch(parts, 5)
    assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 1)
    assert calls == {0: 1, 1: 5, 2: 3, 3: 1, 4: 1}
    results = results_of(ended)
    assert results[1]["error"]["code"] == "model_failed"
    assert [result.get("caption") for result in results] == ["0", None, "2", "3", "4"]


async def test_pictures_that_take_too_long_become_errors(parts: QueueParts) -> None:
    generate = parts.service.generate

    async def hang_at_1(request: Any, pictures: Any) -> Any:
        if pictures[0].data == b"1":
            await asyncio.sleep(10**6)
        async for delta in generate(request, pictures):
            yield delta

    parts.service.generate = hang_at_1  # type: ignore[method-assign]
    ended = await run_batch(parts, 4)
    results = results_of(ended)
    assert results[1]["error"]["code"] == "deadline_exceeded"
    assert [result.get("caption") for result in results].count("two circles") == 3


async def test_attempts_at_a_picture_are_counted_across_attempts_at_the_job(
    parts: QueueParts,
) -> None:
    def answer(number: int, call: int) -> str:
        if number == 0:
            raise ModelFailed("broken") if call % 2 else Overloaded("full", "model")
        return str(number)

    parts.service.answer, calls = answer_by_number(answer)
    ended = await run_batch(parts, 3)
    assert ended.state is JobState.SUCCEEDED
    assert calls[0] == 9  # five failures, and four overloads between them
    assert "error" in results_of(ended)[0]


async def test_results_can_be_read_while_the_last_picture_takes_long(parts: QueueParts) -> None:
    generate = parts.service.generate

    async def take_long_at_5(request: Any, pictures: Any) -> Any:
        await asyncio.sleep(400 if pictures[0].data == b"5" else 0.01)
        async for delta in generate(request, pictures):
            yield delta

    parts.service.generate = take_long_at_5  # type: ignore[method-assign]
    queue = parts.make_queue()
    job = make_batch(6)
    async with serving(queue):
        await queue.submit(job, make_pictures(6))
        await asyncio.sleep(2)
        running = await queue.get(job.id)
        assert running.progress == Progress(5, 6)
        await wait_until_ended(queue, job.id)


async def test_the_results_so_far_can_be_read(parts: QueueParts) -> None:
    def answer(number: int, call: int) -> str:
        if number == 3:
            raise Overloaded("full", "model", retry_after=60)
        return str(number)

    parts.service.answer, _ = answer_by_number(answer)
    queue = parts.make_queue(batch_concurrency=1)
    async with serving(queue):
        job = await queue.submit(make_batch(6), make_pictures(6))
        await wait_until(lambda: len(parts.service.requests) == 4)
        await asyncio.sleep(1)
        waiting = await queue.get(job.id)
        assert (waiting.state, waiting.progress) == (JobState.QUEUED, Progress(3, 6))
        captions = [result and result["caption"] for result in results_of(waiting)]
        assert captions == ["0", "1", "2", None, None, None]
        await queue.cancel(job.id)
    assert results_of(await queue.get(job.id)) == results_of(waiting)


async def test_a_batch_that_takes_longer_than_an_attempt_may_is_not_stopped(
    parts: QueueParts,
) -> None:
    parts.service.seconds = 100
    ended = await run_batch(parts, 100)
    assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 1)
    assert ended.duration_s is not None
    assert ended.duration_s >= 2500


async def test_a_batch_whose_process_dies_resumes(parts: QueueParts) -> None:
    parts.service.seconds = 1
    job = make_batch(60)
    await parts.make_queue().submit(job, make_pictures(60))
    for _ in range(8):  # more often than max_attempts
        async with serving(parts.make_queue()):
            parts.service.requests.clear()
            await wait_until(lambda: len(parts.service.requests) >= 6)
    queue = parts.make_queue()
    async with serving(queue):
        ended = await wait_until_ended(queue, job.id)
    assert ended.state is JobState.SUCCEEDED
    assert all(result["caption"] == "two circles" for result in results_of(ended))
