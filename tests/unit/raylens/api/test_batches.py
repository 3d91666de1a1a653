"""Files and batches, called with OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
import math
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal, cast
from urllib.parse import quote

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types import Batch

from raylens.api.app import create_app
from raylens.core.config import AppConfig
from raylens.core.errors import ModelFailed, Overloaded
from raylens.core.types import Chat, MediaFile, Priority, TextPart, VisionRequest
from raylens.jobs.blobs import BlobStorage
from raylens.jobs.files import StoredFile
from raylens.jobs.job import new_id
from raylens.jobs.memory import MemoryStore
from raylens.jobs.priority import BackgroundService
from raylens.jobs.queue import JobQueue
from raylens.jobs.types.openai_batch import OpenAIBatchJob
from testing.virtual_time import VirtualClock, VirtualTimePolicy
from tests.unit.raylens.api.conftest import DATA_URL
from tests.unit.raylens.jobs.conftest import (
    FakeService,
    FakeWebhookClient,
    QueueParts,
    make_job,
    serving,
)

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
CONFIG = AppConfig.model_validate(
    {
        "models": [
            {"name": "moondream", "family": "moondream"},
            {"name": "smolvlm", "family": "smolvlm"},
        ],
        "limits": {"max_body_bytes": 100_000},
        "jobs": {"max_file_bytes": 200_000, "max_batch_requests": 200},
    }
)


@pytest.fixture
def event_loop_policy() -> VirtualTimePolicy:
    return VirtualTimePolicy()


def question_of(request: VisionRequest) -> str:
    assert isinstance(request.task, Chat)
    texts = [part.text for part in request.task.messages[-1].parts if isinstance(part, TextPart)]
    return " ".join(texts)


def answer(request: VisionRequest, pictures: Sequence[MediaFile]) -> str:
    return f"the answer to {question_of(request)}"


@pytest.fixture
def model() -> FakeService:
    return FakeService(answer)


@pytest.fixture
def parts(model: FakeService) -> QueueParts:
    clock = VirtualClock()
    store = MemoryStore(clock)
    blobs = BlobStorage(f"memory://{new_id()}")
    parts = QueueParts(clock, store, blobs, model, FakeWebhookClient(), CONFIG)
    app = create_app(BackgroundService(model), CONFIG)

    def make_transport(client: str) -> httpx.AsyncBaseTransport:
        return httpx.ASGITransport(app, raise_app_exceptions=False, client=(client, 0))

    parts.types["openai_batch"] = OpenAIBatchJob(make_transport, CONFIG)
    return parts


@pytest.fixture
def queue(parts: QueueParts) -> JobQueue:
    return parts.make_queue()


@pytest.fixture
async def client(model: FakeService, queue: JobQueue) -> AsyncIterator[AsyncOpenAI]:
    app = create_app(model, CONFIG, queue)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        httpx.AsyncClient(transport=transport) as http,
        AsyncOpenAI(
            base_url="http://localhost/v1", api_key="x", http_client=cast(Any, http), max_retries=0
        ) as client,
    ):
        yield client


def line(number: int, **changes: Any) -> str:
    """Return a line. ``changes`` are made to its request, or to the request's body."""
    content = [
        {"type": "text", "text": f"question {number}"},
        {"type": "image_url", "image_url": {"url": DATA_URL}},
    ]
    body = {"model": "moondream", "messages": [{"role": "user", "content": content}]}
    request = {"custom_id": f"id-{number}", "method": "POST", "url": ENDPOINT, "body": body}
    for name, value in changes.items():
        (request if name in request else body)[name] = value
    return json.dumps(request)


async def create(
    client: AsyncOpenAI, lines: Sequence[str], window: str = "24h", **options: Any
) -> Batch:
    file = await client.files.create(
        file=("requests.jsonl", "\n".join(lines).encode()), purpose="batch"
    )
    return await client.batches.create(
        input_file_id=file.id, endpoint=ENDPOINT, completion_window=cast(Any, window), **options
    )


async def wait_for_end(client: AsyncOpenAI, batch: Batch) -> Batch:
    async with asyncio.timeout(2 * 86_400):
        while batch.status in ("validating", "in_progress", "finalizing"):
            await asyncio.sleep(10)
            batch = await client.batches.retrieve(batch.id)
    return batch


async def run(client: AsyncOpenAI, queue: JobQueue, lines: Sequence[str], **options: Any) -> Batch:
    async with serving(queue):
        return await wait_for_end(client, await create(client, lines, **options))


async def read_results(client: AsyncOpenAI, file_id: str | None) -> dict[Any, dict[str, Any]]:
    """Return the lines of a file by their ``custom_id``."""
    assert file_id is not None
    text = (await client.files.content(file_id)).text
    lines = [json.loads(text_line) for text_line in text.splitlines()]
    assert len({result["id"] for result in lines}) == len(lines)
    return {result["custom_id"]: result for result in lines}


class TestFiles:
    async def test_a_file_can_be_stored_read_listed_and_deleted(self, client: AsyncOpenAI) -> None:
        files = [
            await client.files.create(file=(f"{number}.jsonl", b"x" * number), purpose="batch")
            for number in (1, 2, 3)
        ]
        assert (files[1].bytes, files[1].filename, files[1].status) == (2, "2.jsonl", "processed")
        assert (await client.files.retrieve(files[1].id)) == files[1]
        assert (await client.files.content(files[1].id)).content == b"xx"
        listed = [file.id async for file in client.files.list(limit=2)]
        assert listed == [file.id for file in reversed(files)]
        oldest_first = [file.id async for file in client.files.list(order="asc", purpose="batch")]
        assert oldest_first == [file.id for file in files]
        assert [file async for file in client.files.list(purpose="vision")] == []
        assert (await client.files.delete(files[0].id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.content(files[0].id)
        with pytest.raises(openai.NotFoundError):
            await client.files.delete(files[0].id)

    async def test_few_uploads_are_in_memory_at_once(
        self, client: AsyncOpenAI, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        running: list[int] = []
        add_file = queue.add_file

        async def add_slowly(file: StoredFile, data: bytes) -> StoredFile:
            running.append(running[-1] + 1 if running else 1)
            await asyncio.sleep(1)
            running.append(running[-1] - 1)
            return await add_file(file, data)

        monkeypatch.setattr(queue, "add_file", add_slowly)
        uploads = [client.files.create(file=("x.jsonl", b"x"), purpose="batch") for _ in range(10)]
        assert len({file.id for file in await asyncio.gather(*uploads)}) == 10
        assert max(running) == 4

    async def test_a_large_file_is_stored_and_read_in_parts(
        self, client: AsyncOpenAI, parts: QueueParts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("raylens.jobs.queue.PART_BYTES", 1000)
        data = b"x" * 2500 + b"y" * 1000
        file = await client.files.create(file=("x.jsonl", data), purpose="batch")
        assert len(await parts.store.file_parts(file.id)) == 4
        assert (await client.files.content(file.id)).content == data
        assert file.bytes == 3500

    @pytest.mark.parametrize(
        ("sent", "shown"),
        [
            ("../../etc/passwd", "passwd"),
            ("C:\\data\\requests.jsonl", "requests.jsonl"),
            ("a\x00b\u202e.jsonl", "ab.jsonl"),
            ("naïve ☃.jsonl", "naïve ☃.jsonl"),
            ("x" * 300, "x" * 255),
        ],
    )
    async def test_a_filename_is_what_can_be_printed_of_its_last_part(
        self, client: AsyncOpenAI, sent: str, shown: str
    ) -> None:
        head = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\n'
        disposition = f'Content-Disposition: form-data; name="file"; filename="{sent}"'
        response = await client._client.post(
            "http://localhost/v1/files",
            content=head + disposition.encode() + b"\r\n\r\n{}\r\n--x--\r\n",
            headers={"Content-Type": "multipart/form-data; boundary=x"},
        )
        assert (response.status_code, response.json()["filename"]) == (200, shown)

    @pytest.mark.parametrize("file_id", ["file-nothing", "a\x00b", "file-" + "0" * 32])
    async def test_an_id_of_no_file_is_unknown(self, client: AsyncOpenAI, file_id: str) -> None:
        for call in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError, match="file_id: unknown file"):
                await call(quote(file_id))
        if file_id != "file-" + "0" * 32:
            with pytest.raises(openai.NotFoundError, match="file_id: unknown file"):
                await client.files.list(after=file_id)
        assert [file async for file in client.files.list(purpose="a\x00b")] == []

    @pytest.mark.parametrize(
        ("data", "purpose", "error", "message"),
        [
            (b"x" * 200_001, "batch", openai.APIStatusError, "200001 bytes; the limit is 200000"),
            (b"x" * 400_000, "batch", openai.APIStatusError, "the limit is 265536 bytes"),
            (b"", "batch", openai.BadRequestError, "file: the file is empty"),
            (b"x", "fine-tune", openai.BadRequestError, "purpose: expected one of batch"),
        ],
    )
    async def test_a_file_that_is_of_no_use_is_refused(
        self,
        client: AsyncOpenAI,
        data: bytes,
        purpose: Any,
        error: type[openai.APIStatusError],
        message: str,
    ) -> None:
        with pytest.raises(error, match=message):
            await client.files.create(file=("x", data), purpose=purpose)


class TestBatches:
    async def test_fifty_requests_run_and_two_bad_lines_are_errors(
        self, client: AsyncOpenAI, queue: JobQueue, model: FakeService
    ) -> None:
        lines = [line(number) for number in range(50)]
        lines[7] = "not JSON"
        lines[20] = line(20, body={"model": "no-such", "messages": [{"content": "x"}]})
        batch = await run(client, queue, lines, metadata={"name": "test"})
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert batch.request_counts.model_dump() == {"total": 50, "completed": 48, "failed": 2}
        assert (batch.metadata, batch.endpoint) == ({"name": "test"}, ENDPOINT)
        assert None not in (batch.completed_at, batch.in_progress_at, batch.expires_at)
        results = await read_results(client, batch.output_file_id)
        assert results.keys() == {f"id-{number}" for number in range(50) if number not in (7, 20)}
        for number in (0, 49):
            response = results[f"id-{number}"]["response"]
            assert response["status_code"] == 200
            assert response["body"]["object"] == "chat.completion"
            message = response["body"]["choices"][0]["message"]
            assert message["content"] == f"the answer to question {number}"
        errors = await read_results(client, batch.error_file_id)
        assert errors[None]["error"] == {
            "code": "invalid_json_line",
            "message": "line 8: not valid JSON",
        }
        assert errors["id-20"]["response"]["status_code"] == 400
        assert errors["id-20"]["response"]["body"]["error"]["param"].startswith("messages.0")
        assert {request.priority for request in model.requests} == {Priority.JOB}

    async def test_the_requests_of_each_batch_are_those_of_its_client(
        self, model: FakeService, queue: JobQueue
    ) -> None:
        app = create_app(model, CONFIG, queue)
        async with serving(queue):
            for address in ("192.0.2.1", "192.0.2.2"):
                transport = httpx.ASGITransport(app, client=(address, 1))
                async with (
                    httpx.AsyncClient(transport=transport) as http,
                    AsyncOpenAI(
                        base_url="http://localhost/v1", api_key="x", http_client=cast(Any, http)
                    ) as client,
                ):
                    await wait_for_end(client, await create(client, [line(1)]))
        assert [request.client for request in model.requests] == ["192.0.2.1", "192.0.2.2"]

    @pytest.mark.parametrize(
        ("bad", "code"),
        [
            ("[1]", "invalid_custom_id"),
            (line(1, custom_id=5), "invalid_custom_id"),
            (line(1, custom_id="x" * 513), "invalid_custom_id"),
            (line(1, method="GET"), "invalid_method"),
            (line(1, url="/v1/models"), "invalid_url"),
            (line(1, body=None), "invalid_body"),
            (line(1, body={"messages": [], "stream": True}), "invalid_body"),
            (line(0), "duplicate_custom_id"),
            (line(1, custom_id="\ud800"), "invalid_custom_id"),
            (line(1, custom_id="\ud800", method="GET"), "invalid_custom_id"),
            (line(1, priority=math.nan), "invalid_json_line"),
            (line(1, padding="x" * 100_000), "line_too_long"),
        ],
    )
    async def test_a_line_that_is_no_request_is_an_error_of_its_own(
        self,
        client: AsyncOpenAI,
        queue: JobQueue,
        model: FakeService,
        bad: str,
        code: str,
    ) -> None:
        batch = await run(client, queue, ["\ufeff" + line(0), " \r", bad + "\r", "", line(2)])
        assert batch.request_counts is not None
        assert batch.request_counts.model_dump() == {"total": 3, "completed": 2, "failed": 1}
        (error,) = (await read_results(client, batch.error_file_id)).values()
        assert error["error"]["code"] == code
        assert error["error"]["message"].startswith("line 3: ")
        assert len(model.requests) == 2

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"temperature": 10**4000}, "temperature"),
            ({"stop": "\ud800"}, "stop.0"),
        ],
    )
    async def test_a_request_that_is_invalid_is_the_response_of_its_line(
        self,
        client: AsyncOpenAI,
        queue: JobQueue,
        model: FakeService,
        changes: dict[str, Any],
        field: str,
    ) -> None:
        batch = await run(client, queue, [line(0), line(1, **changes), line(2)])
        assert batch.request_counts is not None
        assert batch.request_counts.model_dump() == {"total": 3, "completed": 2, "failed": 1}
        errors = await read_results(client, batch.error_file_id)
        assert errors["id-1"]["response"]["status_code"] == 400
        assert errors["id-1"]["response"]["body"]["error"]["param"] == field
        assert len(model.requests) == 2

    async def test_overloads_are_waited_out_and_failures_retried(
        self, client: AsyncOpenAI, queue: JobQueue, model: FakeService
    ) -> None:
        calls: dict[str, int] = {}

        def answer_or_fail(request: VisionRequest, pictures: Any) -> str:
            question = question_of(request)
            calls[question] = calls.get(question, 0) + 1
            if question == "question 3" and calls[question] < 8:
                raise Overloaded("full", "model", retry_after=0.001)
            if question == "question 5" and calls[question] < 3:
                raise ModelFailed("it broke")
            if question == "question 9":
                raise ModelFailed("it always breaks")
            return "x"

        model.answer = answer_or_fail
        batch = await run(client, queue, [line(number) for number in range(12)])
        assert batch.status == "completed"
        assert (calls["question 3"], calls["question 5"], calls["question 9"]) == (8, 3, 5)
        assert {calls[f"question {number}"] for number in (0, 1, 2, 4, 6, 7, 8, 10, 11)} == {1}
        errors = await read_results(client, batch.error_file_id)
        assert errors.keys() == {"id-9"}
        assert errors["id-9"]["response"]["status_code"] == 500
        assert len(await read_results(client, batch.output_file_id)) == 11

    async def test_a_batch_whose_process_dies_answers_each_request_once(
        self, client: AsyncOpenAI, parts: QueueParts, queue: JobQueue, model: FakeService
    ) -> None:
        model.seconds = 0.02
        batch = await create(client, [line(number) for number in range(150)])
        async with serving(parts.make_queue(lease_s=1)):
            async with asyncio.timeout(20):
                while len(model.requests) < 100:
                    await asyncio.sleep(0.01)
        asked = len(model.requests)
        async with serving(queue):
            batch = await wait_for_end(client, batch)
        assert batch.status == "completed"
        assert len(await read_results(client, batch.output_file_id)) == 150
        assert len(model.requests) <= 150 + asked - 64  # those whose results were not stored yet

    async def test_a_canceled_batch_keeps_what_is_done(
        self, client: AsyncOpenAI, queue: JobQueue, model: FakeService
    ) -> None:
        model.seconds = 0.1
        async with serving(queue):
            batch = await create(client, [line(number) for number in range(180)])
            async with asyncio.timeout(20):
                while batch.request_counts is None or batch.request_counts.completed == 0:
                    await asyncio.sleep(0.01)
                    batch = await client.batches.retrieve(batch.id)
            canceled = await client.batches.cancel(batch.id)
        assert canceled.status == "cancelled"
        assert canceled.cancelled_at is not None
        batch = await client.batches.retrieve(batch.id)
        assert batch.request_counts is not None
        results = await read_results(client, batch.output_file_id)
        assert 64 <= batch.request_counts.completed <= len(results) < 180

    async def test_requests_that_come_too_late_are_errors(
        self, client: AsyncOpenAI, queue: JobQueue, model: FakeService
    ) -> None:
        generate = model.generate

        async def hang_at_1(request: VisionRequest, pictures: Any) -> Any:
            if question_of(request) == "question 1":
                await asyncio.sleep(86_400)
            async for delta in generate(request, pictures):
                yield delta

        model.generate = hang_at_1  # type: ignore[method-assign]
        async with serving(queue):
            batch = await create(client, [line(number) for number in range(3)], window="5m")
            batch = await wait_for_end(client, batch)
        assert batch.status == "expired"
        assert None not in (batch.expired_at, batch.expires_at)
        assert batch.expires_at == batch.created_at + 300
        assert batch.expired_at == pytest.approx(batch.expires_at, abs=2)
        errors = await read_results(client, batch.error_file_id)
        assert errors.keys() == {"id-1"}
        assert errors["id-1"]["error"]["code"] == "batch_expired"
        assert (await read_results(client, batch.output_file_id)).keys() == {"id-0", "id-2"}

    async def test_a_batch_that_waits_for_capacity_to_the_end_says_so_for_each_line(
        self, client: AsyncOpenAI, queue: JobQueue, model: FakeService
    ) -> None:
        def refuse(request: VisionRequest, pictures: Any) -> str:
            raise Overloaded("full", "model", retry_after=3600.0)

        model.answer = refuse
        async with serving(queue):
            batch = await create(client, [line(number) for number in range(150)], window="10m")
            batch = await wait_for_end(client, batch)
        assert batch.status == "expired"
        assert batch.expired_at is not None
        assert batch.expires_at is not None
        assert batch.expired_at < batch.expires_at + 120
        errors = await read_results(client, batch.error_file_id)
        assert errors.keys() == {f"id-{number}" for number in range(150)}
        assert {error["error"]["code"] for error in errors.values()} == {"batch_expired"}
        assert len(model.requests) < 50

    async def test_no_line_is_lost_if_the_window_ends_while_results_are_stored(
        self, client: AsyncOpenAI, parts: QueueParts, queue: JobQueue, model: FakeService
    ) -> None:
        append = parts.store.append_to_file

        async def append_slowly(*arguments: Any) -> None:
            await asyncio.sleep(10)
            await append(*arguments)

        parts.store.append_to_file = append_slowly  # type: ignore[assignment, method-assign]
        model.seconds = 3
        async with serving(queue):
            batch = await create(client, [line(number) for number in range(200)], window="1m")
            batch = await wait_for_end(client, batch)
        assert batch.status == "expired"
        results = await read_results(client, batch.output_file_id)
        errors = await read_results(client, batch.error_file_id)
        assert results.keys() | errors.keys() == {f"id-{number}" for number in range(200)}
        assert not results.keys() & errors.keys()
        assert len(model.requests) <= len(results) + 4  # no line was asked again

    @pytest.mark.parametrize("refused", [{0}, set(range(8)), set(range(0, 100, 2))])
    async def test_lines_without_capacity_do_not_hold_up_the_others(
        self, client: AsyncOpenAI, queue: JobQueue, model: FakeService, refused: set[int]
    ) -> None:
        def answer_or_refuse(request: VisionRequest, pictures: Any) -> str:
            if request.model == "smolvlm":
                raise Overloaded("full", "model", retry_after=1.0)
            return "x"

        model.answer = answer_or_refuse
        lines = [line(n, model="smolvlm" if n in refused else "moondream") for n in range(100)]
        async with serving(queue):
            batch = await create(client, lines)
            await asyncio.sleep(120)
            batch = await client.batches.retrieve(batch.id)
            assert batch.request_counts is not None
            assert batch.status == "in_progress"
            assert batch.request_counts.completed == 100 - len(refused)
            model.answer = answer
            batch = await wait_for_end(client, batch)
        assert batch.status == "completed"
        assert len(await read_results(client, batch.output_file_id)) == 100

    @pytest.mark.parametrize("step", [2 * 86_400.0, -2 * 86_400.0])
    async def test_a_step_of_the_wall_clock_does_not_move_the_window(
        self,
        client: AsyncOpenAI,
        parts: QueueParts,
        queue: JobQueue,
        model: FakeService,
        step: float,
    ) -> None:
        model.seconds = 10
        async with serving(queue):
            batch = await create(client, [line(number) for number in range(40)], window="3m")
            await asyncio.sleep(25)
            parts.clock.step = step
            await asyncio.sleep(40)
            batch = await client.batches.retrieve(batch.id)
            assert batch.status == "in_progress"
            model.seconds = 1000
            await asyncio.sleep(180)
            batch = await client.batches.retrieve(batch.id)
        assert batch.status == "expired"
        assert batch.request_counts is not None
        assert batch.request_counts.completed >= 24
        assert batch.request_counts.completed + batch.request_counts.failed == 40

    async def test_a_batch_that_is_queued_again_has_its_window_again(
        self, client: AsyncOpenAI, parts: QueueParts, model: FakeService
    ) -> None:
        model.seconds = 10
        queue = parts.make_queue(timeout_s=300)
        async with serving(queue):
            batch = await create(client, [line(number) for number in range(40)], window="2h")
            await asyncio.sleep(25)
            batch = await client.batches.cancel(batch.id)
            await queue.requeue(str(uuid.UUID(batch.id.removeprefix("batch_"))))
            batch = await client.batches.retrieve(batch.id)
            assert batch.expires_at is not None
            assert batch.expires_at == pytest.approx(batch.created_at + 25 + 7200, abs=2)
            batch = await wait_for_end(client, batch)
        assert batch.status == "completed"
        assert len(await read_results(client, batch.output_file_id)) == 40

    async def test_the_files_of_a_long_batch_have_few_parts(
        self, client: AsyncOpenAI, parts: QueueParts, queue: JobQueue, model: FakeService
    ) -> None:
        model.seconds = 10
        async with serving(queue):
            batch = await create(client, [line(number) for number in range(200)])
            await asyncio.sleep(200)
            batch = await client.batches.retrieve(batch.id)
            assert batch.output_file_id is not None
            file = await client.files.retrieve(batch.output_file_id)
            response = await client.files.content(file.id)
            assert len(response.content) == int(response.response.headers["content-length"])
            batch = await wait_for_end(client, batch)
        assert len(await read_results(client, batch.output_file_id)) == 200
        assert len(await parts.store.file_parts(file.id)) == 1

    async def test_a_model_that_is_down_does_not_slow_down_another(
        self, client: AsyncOpenAI, queue: JobQueue, model: FakeService
    ) -> None:
        def answer_or_refuse(request: VisionRequest, pictures: Any) -> str:
            if request.model == "smolvlm":
                raise Overloaded("full", "model", retry_after=5.0)
            return "x"

        model.answer = answer_or_refuse
        model.seconds = 0.2
        names = ["moondream" if number % 20 == 9 else "smolvlm" for number in range(200)]
        lines = [line(number, model=name) for number, name in enumerate(names)]
        async with serving(queue):
            batch = await create(client, lines)
            await asyncio.sleep(20)
            batch = await client.batches.retrieve(batch.id)
            assert batch.request_counts is not None
            assert batch.request_counts.completed == 10
            await asyncio.sleep(3600)
        assert len(model.requests) < 1500  # a few every 35 s

    async def test_a_canceled_batch_shows_all_results_that_are_stored(
        self, client: AsyncOpenAI, queue: JobQueue, model: FakeService
    ) -> None:
        model.seconds = 0.01
        async with serving(queue):
            batch = await create(client, [line(number) for number in range(200)])
            while len(model.requests) < 70:
                await asyncio.sleep(0.005)
            canceled = await client.batches.cancel(batch.id)
            assert canceled.output_file_id is not None
            results = await read_results(client, canceled.output_file_id)
            assert canceled.request_counts is not None
            assert canceled.request_counts.completed == len(results) == 64
            done = await wait_for_end(client, await create(client, [line(1)]))
            with pytest.raises(openai.ConflictError, match="the batch is already completed"):
                await client.batches.cancel(done.id)

    async def test_a_file_with_a_missing_part_is_not_run(
        self,
        client: AsyncOpenAI,
        parts: QueueParts,
        queue: JobQueue,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("raylens.jobs.queue.PART_BYTES", 1000)
        async with serving(queue):
            batch = await create(client, [line(number) for number in range(40)])
            digests = await parts.store.file_parts(batch.input_file_id)
            for digest in (digests[0], digests[1]):
                parts.blobs.remove(digest)
            batch = await wait_for_end(client, batch)
        assert batch.status == "failed"
        assert batch.errors is not None
        assert batch.errors.data is not None
        assert batch.errors.data[0].message == "input_file_id: a part of the file is missing"
        with pytest.raises(openai.NotFoundError, match=r"a part of file .* is missing"):
            await client.files.content(batch.input_file_id)

    async def test_the_input_file_stays_until_its_batch_has_ended(
        self, client: AsyncOpenAI, queue: JobQueue, model: FakeService
    ) -> None:
        file = await client.files.create(file=("x.jsonl", line(1).encode()), purpose="batch")
        await asyncio.sleep(29 * 86_400)
        batch = await client.batches.create(
            input_file_id=file.id, endpoint=ENDPOINT, completion_window=cast(Any, "7d")
        )
        await asyncio.sleep(5 * 86_400)
        async with serving(queue):
            await asyncio.sleep(300)
            batch = await wait_for_end(client, batch)
        assert batch.status == "completed"

    async def test_a_request_that_hangs_is_an_error_with_its_id(
        self, client: AsyncOpenAI, queue: JobQueue, model: FakeService
    ) -> None:
        model.seconds = 86_400
        batch = await run(client, queue, [line(1)])
        assert batch.status == "completed"
        errors = await read_results(client, batch.error_file_id)
        assert errors["id-1"]["error"]["code"] == "deadline_exceeded"
        assert len(model.requests) == 5

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (["", " "], "input_file_id: the file has no lines"),
            (["{}"] * 201, "input_file_id: 201 requests; the limit is 200"),
        ],
    )
    async def test_a_file_that_is_no_batch_fails(
        self, client: AsyncOpenAI, queue: JobQueue, lines: list[str], message: str
    ) -> None:
        batch = await run(client, queue, lines)
        assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
        assert batch.errors is not None
        assert batch.errors.data is not None
        assert batch.errors.data[0].message == message
        assert batch.failed_at is not None

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"input_file_id": "file-nothing"}, "input_file_id: unknown file 'file-nothing'"),
            ({"endpoint": "/v1/embeddings"}, "endpoint: expected one of /v1/chat/completions"),
            ({"completion_window": "8d"}, "completion_window: expected a time such as 24h"),
            ({"completion_window": "soon"}, "completion_window: expected a time such as 24h"),
            ({"metadata": {"x" * 65: "y"}}, "metadata"),
        ],
    )
    async def test_an_invalid_batch_is_refused_with_the_fields_name(
        self, client: AsyncOpenAI, changes: dict[str, Any], message: str
    ) -> None:
        file = await client.files.create(file=("x.jsonl", line(1).encode()), purpose="batch")
        options: dict[str, Any] = {
            "input_file_id": file.id,
            "endpoint": ENDPOINT,
            "completion_window": "24h",
        }
        with pytest.raises(openai.BadRequestError, match=message):
            await client.batches.create(**{**options, **changes})

    async def test_a_file_of_another_purpose_is_refused(self, client: AsyncOpenAI) -> None:
        file = await client.files.create(file=("x.png", b"x"), purpose="vision")
        with pytest.raises(openai.BadRequestError, match="the file's purpose is vision, not batch"):
            await client.batches.create(
                input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h"
            )

    async def test_batches_are_listed_page_by_page_without_other_jobs(
        self, client: AsyncOpenAI, parts: QueueParts, queue: JobQueue
    ) -> None:
        batches = [await create(client, [line(1)]) for _ in range(5)]
        listed = [batch.id async for batch in client.batches.list(limit=2)]
        assert listed == [batch.id for batch in reversed(batches)]
        other = make_job()
        await queue.submit(other, {})
        assert len([batch async for batch in client.batches.list()]) == 5
        for batch_id in ("batch_x", "batch_" + "0" * 32, "batch_" + other.id.replace("-", "")):
            for call in (client.batches.retrieve, client.batches.cancel):
                with pytest.raises(openai.NotFoundError, match="batch_id: unknown batch"):
                    await call(batch_id)

    async def test_a_key_makes_it_safe_to_create_a_batch_again(self, client: AsyncOpenAI) -> None:
        file = await client.files.create(file=("x.jsonl", line(1).encode()), purpose="batch")

        async def create_again(window: Literal["24h"]) -> Batch:
            return await client.batches.create(
                input_file_id=file.id,
                endpoint=ENDPOINT,
                completion_window=window,
                extra_headers={"Idempotency-Key": "key"},
            )

        assert (await create_again("24h")).id == (await create_again("24h")).id
        with pytest.raises(openai.ConflictError):
            await create_again(cast(Any, "12h"))
