"""What each class of failure does to a job, with the default configuration."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import datetime
from enum import Enum
from typing import Any

import numpy as np
import pytest

from raylens.core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    ModelNotLoaded,
    Overloaded,
)
from raylens.jobs.failures import InvalidOutput, to_json
from raylens.jobs.job import Job, JobState, Progress
from raylens.jobs.types.base import JobContext, JobInput, JobType
from tests.unit.raylens.jobs.conftest import (
    ALL_METHODS,
    FlakyStore,
    QueueParts,
    make_job,
    now,
    run_jobs,
    serving,
    wait_for,
    wait_until_ended,
)

OVERLOADED = Overloaded("full", "model", retry_after=1)


def code_of(job: Job) -> str | None:
    return None if job.problem is None else job.problem.code


class FunctionJob(JobType):
    """A job type whose work is a function of the context."""

    name = "plugin"
    input_model = JobInput

    def __init__(self, work: Any) -> None:
        self._work = work

    async def run(self, job_input: JobInput, context: JobContext) -> Any:
        return await self._work(context)


async def run_plugin(parts: QueueParts, work: Any, **fields: Any) -> Job:
    """Run a job of a type whose work is ``work``."""
    parts.types["plugin"] = FunctionJob(work)
    job = make_job("plugin", {"model": "moondream"}, **fields)
    (ended,) = await run_jobs(parts.make_queue(), job)
    return ended


class TestCapacity:
    async def test_jobs_wait_while_a_model_is_overloaded_for_30_s(self, parts: QueueParts) -> None:
        overloaded_until = now() + 30

        def answer(request: Any, pictures: Any) -> str:
            if now() < overloaded_until:
                raise OVERLOADED
            return "x"

        parts.service.answer = answer
        queue = parts.make_queue()
        jobs = [make_job() for _ in range(50)]
        ended = await run_jobs(queue, *jobs)
        assert {job.state for job in ended} == {JobState.SUCCEEDED}
        assert {(job.attempts, job.problem) for job in ended} == {(1, None)}
        # The circuit breaker lets only a few jobs find out that the model is overloaded.
        assert len(parts.service.requests) < 80
        assert max(job.finished_at or 0 for job in ended) - overloaded_until < 120

    async def test_an_unknown_type_waits_for_a_release_that_has_it(self, parts: QueueParts) -> None:
        queue = parts.make_queue()
        async with serving(queue):
            job = await queue.submit(make_job("new-type"), {})
            await asyncio.sleep(60)
            waiting = await queue.get(job.id)
        assert waiting.state is JobState.QUEUED
        assert waiting.problem is not None
        assert waiting.problem.message == "job_type: 'new-type' is not installed"
        parts.types["new-type"] = parts.types["query"]
        async with serving(queue := parts.make_queue()):
            assert (await wait_until_ended(queue, job.id)).state is JobState.SUCCEEDED

    @pytest.mark.parametrize("error", [OVERLOADED, ModelNotLoaded("lost", "model")])
    async def test_capacity_is_waited_for_until_the_deadline(
        self, parts: QueueParts, error: Exception
    ) -> None:
        def answer(request: Any, pictures: Any) -> str:
            raise error

        parts.service.answer = answer
        queue = parts.make_queue()
        job = make_job(deadline=now() + 1800)
        (ended,) = await run_jobs(queue, job)
        assert ended.state is JobState.FAILED
        assert ended.finished_at == pytest.approx(job.deadline, abs=1)
        assert ended.problem is not None
        assert ended.problem.code == "deadline_exceeded"
        assert ended.problem.message.startswith("the deadline passed before the job finished; the")
        assert str(error) in ended.problem.message
        assert ended.attempts == 0

    async def test_retry_after_is_obeyed(self, parts: QueueParts) -> None:
        parts.service.errors = [Overloaded("full", "model", retry_after=100)]
        queue = parts.make_queue()
        async with serving(queue):
            job = await queue.submit(make_job(), {})
            waiting = await wait_for(queue, job.id, lambda job: job.problem is not None)
            assert waiting.state is JobState.QUEUED
            assert 100 <= waiting.run_after - now() <= 101
            assert code_of(waiting) == "overloaded"
            ended = await wait_until_ended(queue, job.id)
        assert ended.started_at is not None
        assert ended.finished_at is not None
        assert 100 <= ended.finished_at - ended.started_at < 103

    async def test_jobs_of_other_models_run_meanwhile(self, parts: QueueParts) -> None:
        def answer(request: Any, pictures: Any) -> str:
            if request.task.question == "held":
                raise OVERLOADED
            return "x"

        parts.service.answer = answer
        queue = parts.make_queue(workers=1, capacity=100)
        held = [make_job(job_input={"question": "held"}) for _ in range(40)]
        free = [make_job(model="another") for _ in range(5)]
        async with serving(queue):
            for job in (*held, *free):
                await queue.submit(job, {})
            for job in free:
                await wait_until_ended(queue, job.id)
            questions = [getattr(r.task, "question", "") for r in parts.service.requests]
            assert questions.count("held") < 6

    async def test_another_lack_of_capacity_holds_back_no_other_job(
        self, parts: QueueParts
    ) -> None:
        parts.types["plugin"] = FunctionJob(self._raise_overloaded)
        queue = parts.make_queue(workers=1)
        waiting = make_job("plugin", {"model": "moondream"})
        async with serving(queue):
            await queue.submit(waiting, {})
            await asyncio.sleep(0.01)
            started = now()
            for job in [await queue.submit(make_job(), {}) for _ in range(5)]:
                await wait_until_ended(queue, job.id)
            assert now() - started < 0.5
            assert (await queue.get(waiting.id)).state is JobState.QUEUED

    @staticmethod
    async def _raise_overloaded(context: JobContext) -> dict[str, Any]:
        raise Overloaded("no license is free", retry_after=1)

    async def test_a_success_ends_the_wait_of_the_others(self, parts: QueueParts) -> None:
        parts.service.errors = [OVERLOADED]
        queue = parts.make_queue(workers=1)
        ended = await run_jobs(queue, *(make_job() for _ in range(20)))
        assert max(job.finished_at or 0 for job in ended) - now() < 5


class TestTransient:
    async def test_a_failure_of_the_model_uses_up_an_attempt(self, parts: QueueParts) -> None:
        parts.service.errors = [ModelFailed("x"), DeadlineExceeded("y")]
        (ended,) = await run_jobs(parts.make_queue(), make_job())
        assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 3)

    async def test_a_job_fails_after_its_last_attempt(self, parts: QueueParts) -> None:
        parts.service.errors = [ModelFailed("broken")] * 9
        (ended,) = await run_jobs(parts.make_queue(), make_job())
        assert (ended.state, ended.attempts, code_of(ended)) == (JobState.FAILED, 5, "model_failed")

    async def test_waits_for_capacity_in_between_use_up_none(self, parts: QueueParts) -> None:
        failures = [ModelFailed("broken"), OVERLOADED, OVERLOADED, OVERLOADED]
        parts.service.errors = [*failures * 4]
        (ended,) = await run_jobs(parts.make_queue(), make_job())
        assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 5)

    async def test_an_attempt_that_takes_too_long_is_stopped_and_retried(
        self, parts: QueueParts
    ) -> None:
        parts.service.seconds = 5000
        (ended,) = await run_jobs(parts.make_queue(), make_job())
        assert (ended.state, ended.attempts) == (JobState.FAILED, 5)
        assert code_of(ended) == "deadline_exceeded"
        assert parts.service.stopped == 5
        assert parts.service.running == 0

    async def test_a_timeout_of_the_work_is_not_that_of_the_attempt(
        self, parts: QueueParts
    ) -> None:
        async def work(context: JobContext) -> dict[str, Any]:
            raise TimeoutError("timed out")

        ended = await run_plugin(parts, work)
        assert (ended.state, ended.attempts) == (JobState.FAILED, 5)
        assert ended.problem is not None
        assert ended.problem.message == "internal error: TimeoutError; see the server's log"

    @pytest.mark.parametrize(
        "error", [SystemExit("no GPU"), asyncio.CancelledError(), BaseException()]
    )
    async def test_whatever_the_work_raises_ends_only_its_attempt(
        self, parts: QueueParts, error: BaseException
    ) -> None:
        async def work(context: JobContext) -> dict[str, Any]:
            raise error

        ended = await run_plugin(parts, work)
        assert (ended.state, ended.attempts) == (JobState.FAILED, 5)
        assert ended.problem is not None
        assert ended.problem.message.startswith(f"internal error: {type(error).__name__};")

    async def test_work_that_ignores_its_cancellation_holds_up_nothing(
        self, parts: QueueParts
    ) -> None:
        async def work(context: JobContext) -> dict[str, Any]:
            while True:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(30)
                if parts.clock.step:
                    return {}

        parts.types["plugin"] = FunctionJob(work)
        queue = parts.make_queue()
        stubborn = [make_job("plugin", {"model": "moondream"}) for _ in range(4)]
        async with serving(queue):
            for job in stubborn:
                await queue.submit(job, {})
            await queue.submit(caption := make_job(), {})
            await asyncio.sleep(1)
            canceled = await queue.cancel(stubborn[0].id)
            ended = [await wait_until_ended(queue, job.id) for job in (*stubborn[1:], caption)]
            parts.clock.step = 1.0
            await asyncio.sleep(30)  # the abandoned work ends
        assert canceled.state is JobState.CANCELED
        assert {code_of(job) for job in ended[:-1]} == {"deadline_exceeded"}
        assert {job.attempts for job in ended[:-1]} == {5}
        assert ended[-1].state is JobState.SUCCEEDED

    async def test_attempts_that_come_no_further_use_up_attempts(self, parts: QueueParts) -> None:
        async def work(context: JobContext) -> dict[str, Any]:
            for done in range(6):
                await context.report(done, 10)
                await asyncio.sleep(1)
            raise ModelFailed("always at the sixth step")

        ended = await run_plugin(parts, work)
        assert (ended.state, ended.attempts) == (JobState.FAILED, 5)
        assert ended.progress == Progress(5, 10)

    async def test_attempts_with_progress_do_not_add_up(self, parts: QueueParts) -> None:
        async def work(context: JobContext) -> dict[str, Any]:
            done = (context.job.output or {}).get("done", 0) + 1
            await context.report(done, 20, {"done": done})
            if done < 20:
                raise ModelFailed("again")
            return {"done": done}

        ended = await run_plugin(parts, work)
        assert (ended.state, ended.output) == (JobState.SUCCEEDED, {"done": 20})

    async def test_a_failed_job_keeps_its_output_so_far(self, parts: QueueParts) -> None:
        async def work(context: JobContext) -> dict[str, Any]:
            for done in (1, 2, 3):
                await context.report(done, 9, {"done": done})
            raise InvalidRequest("stop")

        ended = await run_plugin(parts, work)
        assert (ended.state, ended.output) == (JobState.FAILED, {"done": 3})
        assert ended.progress == Progress(3, 9)


class TestPermanent:
    async def test_invalid_input_ends_the_job_at_once(self, parts: QueueParts) -> None:
        parts.service.errors = [InvalidRequest("image: broken", "image")]
        (ended,) = await run_jobs(parts.make_queue(), make_job())
        assert (ended.state, ended.attempts) == (JobState.FAILED, 1)
        assert ended.problem is not None
        assert (ended.problem.code, ended.problem.field) == ("invalid_request", "image")

    async def test_an_input_that_another_release_accepted_ends_the_job(
        self, parts: QueueParts
    ) -> None:
        (ended,) = await run_jobs(parts.make_queue(), make_job("query", {"old": 1}))
        assert (ended.state, ended.attempts) == (JobState.FAILED, 1)
        assert ended.problem is not None
        assert ended.problem.field == "input.old"

    @pytest.mark.parametrize(
        ("output", "message"),
        [
            ({"at": [datetime(2026, 1, 1)]}, "output.at.0: a value of type datetime is not JSON"),
            ({"x": {"y": float("nan")}}, "output.x.y: nan is not JSON"),
            ({"x": "\ud800"}, "output.x: text with half a surrogate pair is not JSON"),
            ({(1, 2): 3}, "output: a key of type tuple is not JSON"),
            ({"x": b"bytes"}, "output.x: a value of type bytes is not JSON"),
            ([1], "output: a value of type list; expected an object"),
            (None, "output: a value of type NoneType; expected an object"),
        ],
    )
    async def test_an_output_that_is_not_json_ends_the_job_at_once(
        self, parts: QueueParts, output: Any, message: str
    ) -> None:
        async def work(context: JobContext) -> Any:
            return output

        ended = await run_plugin(parts, work)
        assert (ended.state, ended.attempts, code_of(ended)) == (
            JobState.FAILED,
            1,
            "invalid_output",
        )
        assert ended.problem is not None
        assert ended.problem.message == message

    async def test_a_report_that_is_not_json_ends_the_job_too(self, parts: QueueParts) -> None:
        async def work(context: JobContext) -> dict[str, Any]:
            await context.report(1, 9, {"at": datetime(2026, 1, 1)})
            await asyncio.sleep(1)
            await context.report(2, 9, {"at": datetime(2026, 1, 1)})
            return {}

        ended = await run_plugin(parts, work)
        assert (ended.state, code_of(ended)) == (JobState.FAILED, "invalid_output")

    async def test_a_report_that_is_not_json_does_not_stop_the_queue_after_an_outage(
        self, parts: QueueParts
    ) -> None:
        async def work(context: JobContext) -> dict[str, Any]:
            await context.report(1, 9, {"done": 1})
            await context.report(2, 9, {"done": datetime(2026, 1, 1)})
            await asyncio.sleep(60)
            return {}

        store = FlakyStore(parts)
        parts.store = store
        parts.types["plugin"] = FunctionJob(work)
        queue = parts.make_queue()
        async with serving(queue):
            await queue.submit(job := make_job("plugin", {"model": "moondream"}), {})
            await asyncio.sleep(1)
            store.failing |= ALL_METHODS
            await asyncio.sleep(30)
            store.failing.clear()
            await queue.submit(caption := make_job(), {})
            ended = [await wait_until_ended(queue, each.id) for each in (caption, job)]
        assert [code_of(each) for each in ended] == [None, "invalid_output"]

    async def test_steps_are_integers_of_any_kind(self, parts: QueueParts) -> None:
        async def work(context: JobContext) -> dict[str, Any]:
            done: Any = 1.5 if context.job.extra else np.int64(3)
            await context.report(done, 10)
            return {}

        ended = await run_plugin(parts, work)
        assert (ended.state, ended.progress) == (JobState.SUCCEEDED, Progress(3, 10))
        ended = await run_plugin(parts, work, extra={"fraction": True})
        assert (ended.state, code_of(ended)) == (JobState.FAILED, "invalid_output")

    async def test_the_last_report_before_a_failure_may_be_invalid(self, parts: QueueParts) -> None:
        async def work(context: JobContext) -> dict[str, Any]:
            await context.report(1, 9, {"done": 1})
            await context.report(2, 9, {"done": datetime(2026, 1, 1)})
            raise InvalidRequest("stop")

        ended = await run_plugin(parts, work)
        assert (ended.state, ended.output, code_of(ended)) == (
            JobState.FAILED,
            {"done": 1},
            "invalid_request",
        )


class Color(Enum):
    RED = 1


def test_an_output_is_returned_as_it_reads_after_it_was_stored() -> None:
    assert to_json({"a": (1, 2), 3: None}) == {"a": [1, 2], "3": None}
    with pytest.raises(InvalidOutput, match=r"output.a.1.b: a value of type Color is not JSON"):
        to_json({"a": [0, {"b": Color.RED}]})


def test_an_output_that_contains_itself_is_refused() -> None:
    output: dict[str, Any] = {}
    output["self"] = output
    with pytest.raises(InvalidOutput):
        to_json(output)
