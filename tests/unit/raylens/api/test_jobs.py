from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from raylens.api.app import create_app
from raylens.core.config import AppConfig
from raylens.jobs.blobs import Blobs, digest_of, reference
from raylens.jobs.inference import InferenceClient
from raylens.jobs.job import new_id
from raylens.jobs.memory import MemoryStore
from raylens.jobs.queue import JobQueue
from raylens.jobs.registry import job_types
from tests.unit.raylens.api.conftest import DATA_URL, PICTURE
from tests.unit.raylens.jobs.conftest import FakeSender, FakeService, serving

RAW = base64.b64encode(PICTURE).decode()
BLOB = reference(digest_of(PICTURE))
PATH = "/api/v1/jobs"
CONFIG = AppConfig.model_validate(
    {
        "models": [{"name": "moondream", "family": "moondream", "aliases": ["moon"]}],
        "limits": {"max_image_bytes": 20_000, "max_tokens": 100},
        "jobs": {"capacity": 5, "max_images": 3, "backoff_s": 0.01},
    }
)


@pytest.fixture
def model() -> FakeService:
    return FakeService()


@pytest.fixture
def sender() -> FakeSender:
    return FakeSender()


@pytest.fixture
def queue(model: FakeService, sender: FakeSender) -> JobQueue:
    blobs = Blobs(f"memory://{new_id()}")
    return JobQueue(
        MemoryStore(), blobs, job_types(), InferenceClient(model, CONFIG), sender, [], CONFIG.jobs
    )


@pytest.fixture
async def http(model: FakeService, queue: JobQueue) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(model, CONFIG, queue), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as made:
        yield made


def caption(**more: Any) -> dict[str, Any]:
    return {"job_type": "caption", "input": {"image": DATA_URL, **more}}


async def posted(http: httpx.AsyncClient, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    response = await http.post(
        PATH, json=body, headers={key.replace("_", "-"): value for key, value in headers.items()}
    )
    assert response.status_code == 202, response.text
    return dict(response.json())


async def ended(http: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while True:
            job = dict((await http.get(f"{PATH}/{job_id}")).json())
            if job["status"] not in ("queued", "running"):
                return job
            await asyncio.sleep(0.01)


class TestSubmitting:
    async def test_a_job_is_accepted_run_and_shown(
        self, http: httpx.AsyncClient, queue: JobQueue
    ) -> None:
        job = await posted(
            http, {**caption(length="short"), "query": {"ids": []}, "domain_id": "", "priority": 3}
        )
        assert job == {
            "id": job["id"],
            "job_type": "caption",
            "status": "queued",
            "priority": 3,
            "attempts": 0,
            "max_attempts": 5,
            "progress": None,
            "input": {"image": BLOB, "length": "short"},
            "query": {"ids": []},
            "domain_id": None,
            "output": None,
            "error": None,
            "webhook_url": None,
            "created_at": job["created_at"],
            "started_at": None,
            "finished_at": None,
            "next_attempt_at": None,
            "deadline": job["deadline"],
        }
        async with serving(queue):
            done = await ended(http, job["id"])
        assert done["output"] == {"caption": "two circles", "model": "moondream"}
        assert (done["status"], done["attempts"]) == ("succeeded", 1)

    async def test_it_says_where_the_job_is(self, http: httpx.AsyncClient) -> None:
        response = await http.post(PATH, json=caption())
        assert (await http.get(response.headers["location"])).json() == response.json()

    @pytest.mark.parametrize(
        ("kind", "given"),
        [
            (
                "caption",
                {"image": RAW, "prompt": "what is it?", "webhook_url": "", "webhook_secret": None},
            ),
            ("query", {"image": DATA_URL, "question": "what?"}),
            ("query", {"prompt": "what is red?"}),
            ("detect", {"image": RAW, "object": "circle", "max_objects": 3}),
            ("point", {"image": RAW, "prompt": "circle"}),
            (
                "chat",
                {
                    "messages": [
                        {"role": "system", "content": "Be brief."},
                        {
                            "role": "user",
                            "content": [
                                {"type": "image_url", "image_url": DATA_URL},
                                {
                                    "type": "image_url",
                                    "image_url": {"url": DATA_URL, "detail": "low"},
                                },
                                {"type": "text", "text": "image"},
                            ],
                        },
                    ]
                },
            ),
            ("batch", {"images": [RAW, DATA_URL], "length": "long"}),
            (
                "task_timing_v1",
                {"prompt": "Is it red?", "images": [{"image": RAW, "timestamp": 1.5}]},
            ),
            (
                "caption",
                {"image": RAW, "model": "moon", "recipe": "plain", "settings": {"max_tokens": 5}},
            ),
        ],
    )
    async def test_every_type_of_job_runs(
        self, http: httpx.AsyncClient, queue: JobQueue, kind: str, given: dict[str, Any]
    ) -> None:
        job = await posted(http, {"job_type": kind, "input": given})
        assert RAW not in json.dumps(job)
        async with serving(queue):
            done = await ended(http, job["id"])
        assert done["status"] == "succeeded", done["error"]
        assert done["output"]

    @pytest.mark.parametrize(
        ("body", "status", "said"),
        [
            (
                {"job_type": "dance", "input": {}},
                422,
                "job_type: 'dance' is not known; there are: caption, query",
            ),
            ({"input": {}}, 422, "job_type"),
            ({"job_type": "caption", "inputs": {}}, 422, "inputs"),
            ({"job_type": "caption", "priority": 1000}, 422, "priority"),
            ({"job_type": "caption", "priority": True}, 422, "priority"),
            (
                {**caption(), "query": {"x": "y" * 20_000}},
                422,
                "query: 20009 bytes as JSON; the limit is 16384",
            ),
            (caption(webhook_url="http://xn--/"), 422, "input.webhook_url: not a URL"),
            ({"job_type": "caption"}, 422, "input.image: Field required"),
            (caption(colour="red"), 422, "input.colour: Extra inputs"),
            (caption(length="huge"), 422, "input.length"),
            (caption(prompt=5), 422, "input.prompt"),
            (
                {"job_type": "caption", "input": {"image": "blob:" + "0" * 64}},
                422,
                "input.image: blob: URLs",
            ),
            (
                {"job_type": "caption", "input": {"image": "https://x.example/a.png"}},
                422,
                "input.image: https: URLs",
            ),
            (
                {"job_type": "caption", "input": {"image": "no base64!"}},
                422,
                "input.image: the base64 is broken",
            ),
            (
                {"job_type": "caption", "input": {"image": "A" * 40_000}},
                413,
                "input.image: a picture of",
            ),
            (
                {"job_type": "batch", "input": {"images": [RAW] * 4}},
                422,
                "input: 4 pictures; the limit is 3",
            ),
            (
                {"job_type": "batch", "input": {"images": [RAW, "!"]}},
                422,
                "input.images.1: the base64 is broken",
            ),
            ({"job_type": "batch", "input": {"images": []}}, 422, "input.images"),
            ({"job_type": "query", "input": {}}, 422, "question: one is needed"),
            ({"job_type": "chat", "input": {"messages": []}}, 422, "input.messages"),
            (
                {
                    "job_type": "caption",
                    "input": {"image": [[[[[[[[[[[[[[[[[[RAW]]]]]]]]]]]]]]]]]]},
                },
                422,
                "nested too deep",
            ),
            (caption(model="no-such"), 404, "input.model: 'no-such' is not served here"),
            (caption(recipe="no-such"), 422, "input.recipe"),
            (
                caption(settings={"max_tokens": 5000}),
                422,
                "input.settings.max_tokens: 5000; the limit is 100",
            ),
            (caption(timeout_s=-1), 422, "input.timeout_s"),
            (
                caption(webhook_url="ftp://example.com"),
                422,
                "input.webhook_url: an http:// or https:// URL",
            ),
            (
                caption(webhook_url="http://169.254.169.254/"),
                422,
                "input.webhook_url: 169.254.169.254 leads to",
            ),
            (caption(webhook_url="http://2130706433/"), 422, "not a public address"),
            (caption(webhook_secret="whsec_" + "A" * 32), 422, "there is no webhook_url"),
            (
                caption(webhook_url="https://example.com", webhook_secret="x"),
                422,
                "input.webhook_secret: a secret is",
            ),
            (
                {"job_type": "task_timing_v1", "query": {"ids": ["a"]}, "input": {"prompt": "x"}},
                422,
                "query.ids: no source of pictures is configured",
            ),
        ],
    )
    async def test_bad_input_is_refused_and_named(
        self, http: httpx.AsyncClient, body: dict[str, Any], status: int, said: str
    ) -> None:
        response = await http.post(PATH, json=body)
        assert said in response.json()["detail"]
        assert response.status_code == status
        assert len(response.text) < 1000
        assert (await http.get(PATH)).json()["jobs"] == []

    @pytest.mark.parametrize(
        "odd", ['"\\ud800"', "NaN", "1e400", "[" * 900 + "]" * 900, '{"\\udfff": 1}']
    )
    async def test_what_could_not_be_given_back_is_not_taken(
        self, http: httpx.AsyncClient, odd: str
    ) -> None:
        body = '{"job_type": "query", "input": {"question": "x"}, "query": {"x": ODD}}'.replace(
            "ODD", odd
        )
        response = await http.post(PATH, content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 422, response.text
        assert (await http.get(PATH)).json()["jobs"] == []

    async def test_a_full_queue_is_a_429_with_retry_after(self, http: httpx.AsyncClient) -> None:
        for _ in range(5):
            await posted(http, caption())
        response = await http.post(PATH, json=caption())
        assert (response.status_code, response.json()["detail"]) == (
            429,
            "5 jobs wait; the limit is 5",
        )
        assert int(response.headers["retry-after"]) >= 1

    async def test_a_key_makes_a_request_safe_to_send_again(self, http: httpx.AsyncClient) -> None:
        first = await posted(http, caption(), idempotency_key="k-1")
        assert await posted(http, caption(), idempotency_key="k-1") == first
        assert (await posted(http, caption(), idempotency_key="k-2"))["id"] != first["id"]
        other = await http.post(
            PATH, json=caption(length="long"), headers={"Idempotency-Key": "k-1"}
        )
        assert (other.status_code, other.json()["detail"]) == (
            409,
            "Idempotency-Key: another request came under this key",
        )
        bad = await http.post(PATH, json=caption(), headers={"Idempotency-Key": "a key"})
        assert bad.status_code == 422

    async def test_a_webhooks_secret_is_told_to_nobody(
        self, http: httpx.AsyncClient, queue: JobQueue, sender: FakeSender
    ) -> None:
        secret = "whsec_" + base64.b64encode(b"s" * 32).decode()
        job = await posted(
            http, caption(webhook_url="https://example.com/hook", webhook_secret=secret)
        )
        async with serving(queue):
            await ended(http, job["id"])
            while not sender.sent:
                await asyncio.sleep(0.01)
            told = await http.get(f"{PATH}/{job['id']}/deliveries")
        assert secret not in json.dumps(job) + told.text
        assert "webhook-signature" in sender.sent[0][2]


class TestReading:
    async def test_pages_are_linked_by_cursors(self, http: httpx.AsyncClient) -> None:
        sent = [(await posted(http, caption()))["id"] for _ in range(5)]
        first = (await http.get(PATH, params={"limit": 3})).json()
        second = (await http.get(PATH, params={"limit": 3, "cursor": first["next_cursor"]})).json()
        shown = [job["id"] for job in first["jobs"] + second["jobs"]]
        assert shown == sorted(sent, reverse=True)
        assert second["next_cursor"] is None

    async def test_a_list_may_be_of_some_states(self, http: httpx.AsyncClient) -> None:
        one, _ = [(await posted(http, caption()))["id"] for _ in range(2)]
        await http.delete(f"{PATH}/{one}")
        jobs = (await http.get(PATH, params={"status": "canceled,failed"})).json()["jobs"]
        assert [job["id"] for job in jobs] == [one]

    @pytest.mark.parametrize(
        ("query", "field"),
        [
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("status=done", "status: 'done' is none of"),
            ("cursor=zzz", "cursor"),
            ("cursor=%00", "cursor"),
        ],
    )
    async def test_a_list_that_cannot_be_is_a_422(
        self, http: httpx.AsyncClient, query: str, field: str
    ) -> None:
        response = await http.get(f"{PATH}?{query}")
        assert response.status_code == 422
        assert field in response.json()["detail"]

    async def test_what_is_not_there_is_a_404(self, http: httpx.AsyncClient) -> None:
        calls = [
            http.get(f"{PATH}/x"),
            http.delete(f"{PATH}/%00"),
            http.get(f"{PATH}/01a20e72-9167-72a4-85ae-09206c53dc66"),
            http.put(f"{PATH}/x"),
            http.delete(f"{PATH}/x"),
            http.get(f"{PATH}/x/events"),
            http.get(f"{PATH}/x/deliveries"),
            http.post(f"{PATH}/x/deliveries/1/redeliver"),
            http.get("/caption/job/x"),
        ]
        for response in await asyncio.gather(*calls):
            assert response.status_code == 404
            assert "is not here" in response.json()["detail"]

    async def test_cancel_and_retry(self, http: httpx.AsyncClient) -> None:
        job_id = (await posted(http, caption()))["id"]
        assert (await http.put(f"{PATH}/{job_id}")).status_code == 409
        assert (await http.delete(f"{PATH}/{job_id}")).json()["status"] == "canceled"
        assert (await http.put(f"{PATH}/{job_id}")).json()["status"] == "queued"

    async def test_events_tell_of_states_and_progress_until_the_end(
        self, http: httpx.AsyncClient, queue: JobQueue, model: FakeService
    ) -> None:
        model.seconds = 0.3
        job = await posted(http, {"job_type": "batch", "input": {"images": [RAW] * 3}})
        async with serving(queue):
            response = await http.get(f"{PATH}/{job['id']}/events")
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [part.split("\n") for part in response.text.strip().split("\n\n")]
        names = [lines[0] for lines in events]
        told = [json.loads(lines[1].removeprefix("data: ")) for lines in events]
        assert set(names) <= {"event: state", "event: progress"}
        assert [job["status"] for job in told][-1] == "succeeded"
        assert told[-1]["progress"] == {"done": 3, "total": 3}
        assert all("input" not in job for job in told)

    async def test_deliveries_are_listed_and_sent_again(
        self, http: httpx.AsyncClient, queue: JobQueue, sender: FakeSender
    ) -> None:
        sender.statuses = [500]
        job = await posted(http, caption(webhook_url="https://example.com/hook"))
        where = f"{PATH}/{job['id']}/deliveries"
        async with serving(queue):
            await ended(http, job["id"])
            async with asyncio.timeout(5):
                while not (await http.get(where)).json()["deliveries"][0]["attempts"]:
                    await asyncio.sleep(0.01)
            (failed,) = (await http.get(where)).json()["deliveries"]
            assert failed["status"] == "pending"
            assert (failed["http_status"], failed["error"]) == (500, "the endpoint answered 500")
            again = await http.post(f"{where}/1/redeliver")
            assert again.status_code == 202
            async with asyncio.timeout(5):
                while (await http.get(where)).json()["deliveries"][0]["status"] != "delivered":
                    await asyncio.sleep(0.01)
        assert (await http.post(f"{where}/7/redeliver")).status_code == 404
        assert (await http.post(f"{where}/zero/redeliver")).status_code == 422


class TestCaptionService:
    async def test_a_caption_by_job_id(self, http: httpx.AsyncClient, queue: JobQueue) -> None:
        response = await http.post(
            "/caption/generate",
            json={"image_data": RAW, "prompt": "Describe it", "webhook_url": ""},
        )
        assert response.status_code == 202
        assert response.json() == {"job_id": response.json()["job_id"], "status": "queued"}
        where = f"/caption/job/{response.json()['job_id']}"
        waits = (await http.get(where)).json()
        assert waits == {
            "job_id": response.json()["job_id"],
            "status": "queued",
            "caption": None,
            "error": None,
            "created_at": waits["created_at"],
            "started_at": None,
            "finished_at": None,
        }
        async with serving(queue):
            await ended(http, response.json()["job_id"])
        assert (await http.get(where)).json()["caption"] == "two circles"

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ({}, "image_data: Field required"),
            ({"image_data": "!"}, "image_data: the base64 is broken"),
            ({"image_data": ""}, "image_data"),
            (
                {"image_data": RAW, "webhook_url": "http://10.0.0.1/"},
                "webhook_url: 10.0.0.1 leads to",
            ),
        ],
    )
    async def test_bad_input_is_named_as_this_dialect_names_it(
        self, http: httpx.AsyncClient, body: dict[str, Any], said: str
    ) -> None:
        response = await http.post("/caption/generate", json=body)
        assert response.status_code == 422
        assert response.json()["detail"].startswith(said)

    async def test_statistics(self, http: httpx.AsyncClient, queue: JobQueue) -> None:
        first, second, third = [(await posted(http, caption()))["id"] for _ in range(3)]
        await http.delete(f"{PATH}/{third}")
        async with serving(queue):
            await ended(http, first)
            await ended(http, second)
        stats = (await http.get("/caption/stats")).json()
        assert stats["mean_seconds"] >= 0
        assert stats["p95_seconds"] >= 0
        del stats["mean_seconds"], stats["p95_seconds"]
        assert stats == {
            "waiting": 0,
            "running": 0,
            "done": 2,
            "failed": 0,
            "canceled": 1,
            "capacity": 5,
            "workers": 2,
        }


async def test_without_a_queue_there_are_no_such_routes(model: FakeService) -> None:
    transport = httpx.ASGITransport(create_app(model, CONFIG))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        assert (await http.get(PATH)).status_code == 404
        assert (await http.get("/caption/stats")).status_code == 404
