from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import httpx
import pytest

from raylens.api.app import create_app
from raylens.api.shared import Shared
from raylens.core.config import AppConfig
from raylens.core.draining import Draining
from raylens.core.errors import Overloaded, UnsupportedMedia
from raylens.core.keys import hash_key
from raylens.core.types import MediaFile, PictureFile
from raylens.jobs.blobs import BlobStorage, compute_digest, make_reference
from raylens.jobs.job import Job, JobState, new_id
from raylens.jobs.memory import MemoryStore
from raylens.jobs.queue import JobQueue
from raylens.net.lookup import Address
from testing.virtual_time import VirtualClock, VirtualTimePolicy
from tests.unit.raylens.api.conftest import DATA_URL, PICTURE
from tests.unit.raylens.jobs.conftest import (
    FakeService,
    FakeWebhookClient,
    QueueParts,
    serving,
)

RAW = base64.b64encode(PICTURE).decode()
BLOB = make_reference(compute_digest(PICTURE))
PATH = "/api/v1/jobs"
CONFIG = AppConfig.model_validate(
    {
        "models": [{"name": "moondream", "family": "moondream", "aliases": ["moon"]}],
        "limits": {"max_image_bytes": 20_000, "max_images": 2, "max_tokens": 100},
        "jobs": {"capacity": 5, "max_images": 3, "max_event_streams": 2},
    }
)


@pytest.fixture
def model() -> FakeService:
    return FakeService()


@pytest.fixture
def webhook_client() -> FakeWebhookClient:
    return FakeWebhookClient()


@pytest.fixture
def event_loop_policy() -> VirtualTimePolicy:
    return VirtualTimePolicy()


@pytest.fixture
def parts(model: FakeService, webhook_client: FakeWebhookClient) -> QueueParts:
    clock = VirtualClock()
    blobs = BlobStorage(f"memory://{new_id()}")
    return QueueParts(clock, MemoryStore(clock), blobs, model, webhook_client, CONFIG)


@pytest.fixture
def queue(parts: QueueParts) -> JobQueue:
    return parts.make_queue()


async def look_up(host: str) -> list[Address]:
    """Find the address of a host as the internet would, without asking it."""
    addresses = {"localhost": "127.0.0.1", "intern.example": "10.0.0.5", "example.com": "1.1.1.1"}
    if host not in addresses:
        raise OSError("not found")
    return [ip_address(addresses[host])]


def check_media(media: MediaFile) -> None:
    start, noun = (b"\x89PNG", "picture") if isinstance(media, PictureFile) else (b"\0", "video")
    if not media.data.startswith(start):
        raise UnsupportedMedia(f"{media.field}: not a {noun}", media.field)


@pytest.fixture
async def http(model: FakeService, queue: JobQueue) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(model, CONFIG, queue, check_media=check_media, look_up=look_up)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


def user_message(text: str, pictures: int = 0) -> list[dict[str, Any]]:
    picture = {"type": "image_url", "image_url": {"url": DATA_URL}}
    return [{"role": "user", "content": [{"type": "text", "text": text}, *[picture] * pictures]}]


def caption_job(**fields: Any) -> dict[str, Any]:
    return {"job_type": "caption", "input": {"image": DATA_URL, **fields}}


async def submit(http: httpx.AsyncClient, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    header_values = {name.replace("_", "-"): value for name, value in headers.items()}
    response = await http.post(PATH, json=body, headers=header_values)
    assert response.status_code == 202, response.text
    return dict(response.json())


async def wait_until_ended(http: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while True:
            job = dict((await http.get(f"{PATH}/{job_id}")).json())
            if job["status"] not in ("queued", "running"):
                return job
            await asyncio.sleep(0.01)


def read_events(text: str) -> list[tuple[str, Any, str]]:
    """Return the name, the data and the id of each event of a stream."""
    parts = [dict(re.findall(r"^(\w+): (.*)$", part, re.MULTILINE)) for part in text.split("\n\n")]
    return [
        (part["event"], json.loads(part["data"]), part.get("id", ""))
        for part in parts
        if "event" in part
    ]


class TestSubmitting:
    async def test_a_job_is_accepted_run_and_shown(
        self, http: httpx.AsyncClient, queue: JobQueue
    ) -> None:
        job = await submit(
            http,
            {**caption_job(length="short"), "query": {"ids": []}, "domain_id": "", "priority": 3},
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
            "partial_output": None,
            "error": None,
            "webhook_url": None,
            "created_at": job["created_at"],
            "started_at": None,
            "finished_at": None,
            "next_attempt_at": None,
            "deadline": job["deadline"],
        }
        async with serving(queue):
            done = await wait_until_ended(http, job["id"])
        assert done["output"] == {"caption": "two circles", "model": "moondream"}
        assert (done["status"], done["attempts"]) == ("succeeded", 1)

    async def test_the_location_header_leads_to_the_job(self, http: httpx.AsyncClient) -> None:
        response = await http.post(PATH, json=caption_job())
        assert (await http.get(response.headers["location"])).json() == response.json()

    @pytest.mark.parametrize(
        ("job_type", "job_input"),
        [
            (
                "caption",
                {"image": RAW, "prompt": "what is it?", "webhook_url": "", "webhook_secret": None},
            ),
            ("query", {"image": DATA_URL, "question": "what?"}),
            ("query", {"prompt": "what is red?"}),
            ("detect", {"image": RAW, "object": "circle", "max_objects": 3}),
            ("detect", {"image": RAW, "objects": ["circle", "square"]}),
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
        self, http: httpx.AsyncClient, queue: JobQueue, job_type: str, job_input: dict[str, Any]
    ) -> None:
        job = await submit(http, {"job_type": job_type, "input": job_input})
        assert RAW not in json.dumps(job)
        async with serving(queue):
            done = await wait_until_ended(http, job["id"])
        assert done["status"] == "succeeded", done["error"]
        assert done["output"]

    @pytest.mark.parametrize(
        ("body", "status", "message"),
        [
            (
                {"job_type": "dance", "input": {}},
                422,
                "job_type: unknown type 'dance'; known: caption, query",
            ),
            ({"input": {}}, 422, "job_type"),
            ({"job_type": "caption", "inputs": {}}, 422, "inputs"),
            ({"job_type": "caption", "priority": 1000}, 422, "priority"),
            ({"job_type": "caption", "priority": True}, 422, "priority"),
            (
                {**caption_job(), "query": {"x": "y" * 20_000}},
                422,
                "query: 20009 bytes as JSON; the limit is 16384",
            ),
            (
                caption_job(webhook_url="http://xn--/"),
                422,
                "input.webhook_url: 'xn--': not a host name",
            ),
            ({"job_type": "caption"}, 422, "input.image: Field required"),
            (caption_job(colour="red"), 422, "input.colour: Extra inputs"),
            (caption_job(length="huge"), 422, "input.length"),
            (caption_job(prompt=5), 422, "input.prompt"),
            (
                {"job_type": "caption", "input": {"image": "blob:" + "0" * 64}},
                422,
                "input.image: blob: URLs",
            ),
            (
                {"job_type": "caption", "input": {"image": "ftp://x.example/a.png"}},
                422,
                "input.image: ftp: URLs",
            ),
            (
                {"job_type": "caption", "input": {"image": "no base64!"}},
                422,
                "input.image: invalid base64",
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
                "input.images.1: invalid base64",
            ),
            ({"job_type": "batch", "input": {"images": []}}, 422, "input.images"),
            (
                {"job_type": "query", "input": {}},
                422,
                "question: expected exactly one of question and prompt",
            ),
            (
                {"job_type": "detect", "input": {"image": RAW, "object": "a", "objects": ["b"]}},
                422,
                "object: expected exactly one of object, objects and prompt",
            ),
            (
                {"job_type": "point", "input": {"image": RAW, "objects": ["b"] * 101}},
                422,
                "input.objects",
            ),
            ({"job_type": "chat", "input": {"messages": []}}, 422, "input.messages"),
            (
                {
                    "job_type": "caption",
                    "input": {"image": [[[[[[[[[[[[[[[[[[RAW]]]]]]]]]]]]]]]]]]},
                },
                422,
                "nested too deep; the limit is 16 levels",
            ),
            (
                caption_job(model="no-such"),
                404,
                "input.model: unknown model 'no-such'; known: moondream",
            ),
            (caption_job(recipe="no-such"), 422, "input.recipe"),
            (
                caption_job(settings={"max_tokens": 5000}),
                422,
                "input.settings.max_tokens: 5000; the limit is 100",
            ),
            (caption_job(timeout_s=-1), 422, "input.timeout_s"),
            (
                caption_job(webhook_url="ftp://example.com"),
                422,
                "input.webhook_url: expected an http:// or https:// URL",
            ),
            (
                caption_job(webhook_url="http://169.254.169.254/"),
                422,
                "input.webhook_url: 169.254.169.254 is not a public address",
            ),
            (caption_job(webhook_url="http://2130706433/"), 422, "not a public address"),
            (
                caption_job(webhook_url="http://localhost:9911/"),
                422,
                "input.webhook_url: localhost leads to an address that is not public",
            ),
            (
                caption_job(webhook_url="https://intern.example/"),
                422,
                "input.webhook_url: intern.example leads to an address that is not public",
            ),
            (
                {"job_type": "caption", "input": {"image": base64.b64encode(b"noise").decode()}},
                415,
                "input.image: not a picture",
            ),
            (
                {"job_type": "chat", "input": {"messages": user_message("x" * 100_001)}},
                422,
                "input.messages: 100001 characters; the limit is 100000",
            ),
            (
                {"job_type": "chat", "input": {"messages": user_message("x", 3)}},
                422,
                "input: 3 pictures; the limit is 2",
            ),
            (
                caption_job(prompt="x" * 100_001),
                422,
                "input.prompt: 100001 characters; the limit is 100000",
            ),
            (
                {**caption_job(), "domain_id": "x" * 257},
                422,
                "domain_id: String should have at most 256 characters",
            ),
            (
                caption_job(webhook_secret="whsec_" + "A" * 32),
                422,
                "input.webhook_secret: input.webhook_url is missing",
            ),
            (
                caption_job(webhook_url="https://example.com", webhook_secret="x"),
                422,
                "input.webhook_secret: expected whsec_ followed by the base64",
            ),
            (
                {"job_type": "task_timing_v1", "query": {"ids": ["a"]}, "input": {"prompt": "x"}},
                422,
                "query.ids: no source of pictures is configured",
            ),
        ],
    )
    async def test_invalid_input_is_refused_with_the_fields_name(
        self, http: httpx.AsyncClient, body: dict[str, Any], status: int, message: str
    ) -> None:
        response = await http.post(PATH, json=body)
        assert message in response.json()["detail"]
        assert response.status_code == status
        assert len(response.text) < 1000
        assert (await http.get(PATH)).json()["jobs"] == []

    @pytest.mark.parametrize("job_type", ["detect", "point"])
    async def test_a_task_that_the_model_can_not_do_is_refused_at_once(
        self, model: FakeService, http: httpx.AsyncClient, job_type: str
    ) -> None:
        model.tasks = ("caption", "query")
        body = {"job_type": job_type, "input": {"image": DATA_URL, "object": "cat"}}
        response = await http.post(PATH, json=body)
        assert response.status_code == 422
        assert response.json()["detail"] == (
            f"input.model: {job_type} is not supported by moondream; no served model supports it"
        )

    async def test_null_counts_as_absent(self, http: httpx.AsyncClient) -> None:
        body = {**caption_job(prompt=None), "priority": None, "query": None, "domain_id": None}
        assert (await http.post(PATH, json=body)).status_code == 202
        response = await http.post(PATH, json={"job_type": "caption", "input": None})
        assert response.json()["detail"] == "input.image: Field required"

    @pytest.mark.parametrize(
        "value", ['"\\ud800"', "NaN", "1e400", "[" * 900 + "]" * 900, '{"\\udfff": 1}']
    )
    async def test_a_query_that_cannot_be_sent_back_unchanged_is_refused(
        self, http: httpx.AsyncClient, value: str
    ) -> None:
        template = '{"job_type": "query", "input": {"question": "x"}, "query": {"x": VALUE}}'
        body = template.replace("VALUE", value)
        response = await http.post(PATH, content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 422, response.text
        assert (await http.get(PATH)).json()["jobs"] == []

    async def test_a_full_queue_is_a_429_with_retry_after(self, http: httpx.AsyncClient) -> None:
        for _ in range(5):
            await submit(http, caption_job())
        response = await http.post(PATH, json=caption_job())
        assert response.status_code == 429
        assert response.json()["detail"] == "5 jobs are queued; the limit is 5"
        assert int(response.headers["retry-after"]) >= 1

    async def test_an_idempotency_key_makes_a_request_safe_to_repeat(
        self, http: httpx.AsyncClient
    ) -> None:
        first = await submit(http, caption_job(), idempotency_key="k-1")
        assert await submit(http, caption_job(), idempotency_key="k-1") == first
        assert (await submit(http, caption_job(), idempotency_key="k-2"))["id"] != first["id"]
        conflict = await http.post(
            PATH, json=caption_job(length="long"), headers={"Idempotency-Key": "k-1"}
        )
        assert conflict.status_code == 409
        message = "Idempotency-Key: already used for a different request"
        assert conflict.json()["detail"] == message
        invalid = await http.post(PATH, json=caption_job(), headers={"Idempotency-Key": "a key"})
        assert invalid.status_code == 422

    async def test_a_webhooks_secret_is_never_shown(
        self, http: httpx.AsyncClient, queue: JobQueue, webhook_client: FakeWebhookClient
    ) -> None:
        secret = "whsec_" + base64.b64encode(b"s" * 32).decode()
        job = await submit(
            http, caption_job(webhook_url="https://example.com/hook", webhook_secret=secret)
        )
        async with serving(queue):
            await wait_until_ended(http, job["id"])
            while not webhook_client.sent:
                await asyncio.sleep(0.01)
            deliveries = await http.get(f"{PATH}/{job['id']}/deliveries")
        assert secret not in json.dumps(job) + deliveries.text
        assert "webhook-signature" in webhook_client.sent[0][2]


class TestReading:
    async def test_pages_are_linked_by_cursors(self, http: httpx.AsyncClient) -> None:
        job_ids = [(await submit(http, caption_job()))["id"] for _ in range(5)]
        first = (await http.get(PATH, params={"limit": 3})).json()
        second = (await http.get(PATH, params={"limit": 3, "cursor": first["next_cursor"]})).json()
        pages = [job["id"] for job in first["jobs"] + second["jobs"]]
        assert pages == sorted(job_ids, reverse=True)
        assert second["next_cursor"] is None

    async def test_a_list_can_be_filtered_by_state(self, http: httpx.AsyncClient) -> None:
        canceled, _ = [(await submit(http, caption_job()))["id"] for _ in range(2)]
        await http.delete(f"{PATH}/{canceled}")
        jobs = (await http.get(PATH, params={"status": "canceled,failed"})).json()["jobs"]
        assert [job["id"] for job in jobs] == [canceled]

    @pytest.mark.parametrize(
        ("query", "message"),
        [
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("status=done", "status: unknown state 'done'; known: queued, running"),
            ("cursor=zzz", "cursor: expected the next_cursor of a page"),
            ("cursor=%00", "cursor: expected the next_cursor of a page"),
            ("ids=a&status=done", "status: unknown state 'done'; known: queued, running"),
            ("ids=a&cursor=zzz", "cursor: expected the next_cursor of a page"),
        ],
    )
    async def test_an_invalid_list_request_is_a_422(
        self, http: httpx.AsyncClient, query: str, message: str
    ) -> None:
        response = await http.get(f"{PATH}?{query}")
        assert response.status_code == 422
        assert message in response.json()["detail"]

    async def test_an_unknown_job_is_a_404(self, http: httpx.AsyncClient) -> None:
        calls = [
            http.get(f"{PATH}/x"),
            http.delete(f"{PATH}/%00"),
            http.get(f"{PATH}/01a20e72-9167-72a4-85ae-09206c53dc66"),
            http.put(f"{PATH}/x"),
            http.delete(f"{PATH}/x"),
            http.post(f"{PATH}/x/cancel"),
            http.get(f"{PATH}/x/events"),
            http.get(f"{PATH}/x/deliveries"),
            http.post(f"{PATH}/x/deliveries/1/redeliver"),
            http.get("/caption/job/x"),
        ]
        for response in await asyncio.gather(*calls):
            assert response.status_code == 404
            assert "job_id: unknown job" in response.json()["detail"]

    async def test_cancel_and_retry(self, http: httpx.AsyncClient) -> None:
        job_id = (await submit(http, caption_job()))["id"]
        assert (await http.put(f"{PATH}/{job_id}")).status_code == 409
        assert (await http.delete(f"{PATH}/{job_id}")).json()["status"] == "canceled"
        assert (await http.put(f"{PATH}/{job_id}")).json()["status"] == "queued"
        for _ in range(2):
            canceled = await http.post(f"{PATH}/{job_id}/cancel")
            assert canceled.json()["status"] == "canceled"

    async def test_deleting_a_job_that_has_ended_removes_it(
        self, http: httpx.AsyncClient, queue: JobQueue
    ) -> None:
        job_id = (await submit(http, caption_job()))["id"]
        async with serving(queue):
            await wait_until_ended(http, job_id)
        refusal = await http.post(f"{PATH}/{job_id}/cancel")
        assert refusal.status_code == 409
        assert refusal.json()["detail"] == "job_id: a succeeded job can't become canceled"
        removed = await http.delete(f"{PATH}/{job_id}")
        assert (removed.status_code, removed.json()["status"]) == (200, "succeeded")
        assert (await http.get(f"{PATH}/{job_id}")).status_code == 404
        assert (await http.delete(f"{PATH}/{job_id}")).status_code == 404

    async def test_a_list_shows_the_fields_that_are_asked_for(
        self, http: httpx.AsyncClient
    ) -> None:
        job_id = (await submit(http, caption_job()))["id"]
        (job,) = (await http.get(PATH)).json()["jobs"]
        assert not {"input", "partial_output"} & job.keys()
        assert {"id", "output", "error", "created_at"} <= job.keys()
        response = await http.get(PATH, params={"fields": "input,id"})
        assert response.json()["jobs"] == [{"id": job_id, "input": {"image": BLOB}}]
        refused = await http.get(PATH, params={"fields": "id,secret"})
        assert refused.status_code == 422
        assert refused.json()["detail"].startswith("fields: unknown field 'secret'; known: id, ")

    async def test_a_list_can_be_of_some_ids(self, http: httpx.AsyncClient) -> None:
        ids = [(await submit(http, caption_job()))["id"] for _ in range(3)]
        unknown = "01a20e72-9167-72a4-85ae-09206c53dc66"
        params = {"ids": ",".join([ids[0], unknown, "x", ids[2]]), "fields": "id"}
        page = (await http.get(PATH, params=params)).json()
        assert page == {"jobs": [{"id": ids[2]}, {"id": ids[0]}], "next_cursor": None}
        await http.delete(f"{PATH}/{ids[2]}")
        canceled = (await http.get(PATH, params={**params, "status": "canceled"})).json()
        assert canceled["jobs"] == [{"id": ids[2]}]
        many = ",".join(new_id() for _ in range(201))
        refused = await http.get(PATH, params={"ids": many})
        assert refused.status_code == 422
        assert refused.json()["detail"] == "ids: 201 ids; the limit is 200"

    async def test_the_results_so_far_of_a_running_job_are_shown(
        self, http: httpx.AsyncClient, queue: JobQueue, model: FakeService
    ) -> None:
        model.errors = [Overloaded("full", "model", retry_after=3600)]
        job = await submit(http, {"job_type": "batch", "input": {"images": [RAW] * 3}})
        async with serving(queue):
            await asyncio.sleep(60)
            waiting = (await http.get(f"{PATH}/{job['id']}")).json()
        assert (waiting["status"], waiting["output"]) == ("queued", None)
        assert waiting["error"]["code"] == "overloaded"
        assert waiting["next_attempt_at"] is not None
        results = waiting["partial_output"]["results"]
        assert [result and result["caption"] for result in results] == [
            None,
            "two circles",
            "two circles",
        ]

    async def test_event_streams_over_the_limit_are_a_503(
        self, http: httpx.AsyncClient, queue: JobQueue
    ) -> None:
        job_id = (await submit(http, caption_job()))["id"]
        streams = [asyncio.create_task(http.get(f"{PATH}/{job_id}/events")) for _ in range(2)]
        await asyncio.sleep(1)
        refused = await http.get(f"{PATH}/{job_id}/events")
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "5"
        assert refused.json()["detail"] == "2 event streams are open; the limit is 2"
        await http.delete(f"{PATH}/{job_id}")
        for stream in streams:
            assert (await stream).status_code == 200

    async def test_events_show_states_and_progress_until_the_job_ends(
        self, http: httpx.AsyncClient, queue: JobQueue, model: FakeService
    ) -> None:
        model.seconds = 0.3
        job = await submit(http, {"job_type": "batch", "input": {"images": [RAW] * 3}})
        async with serving(queue):
            response = await http.get(f"{PATH}/{job['id']}/events")
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [part.split("\n") for part in response.text.strip().split("\n\n")]
        names = [lines[0] for lines in events]
        jobs = [json.loads(lines[1].removeprefix("data: ")) for lines in events]
        assert set(names) <= {"event: state", "event: progress"}
        assert [job["status"] for job in jobs][-1] == "succeeded"
        assert jobs[-1]["progress"] == {"done": 3, "total": 3}
        assert all("input" not in job for job in jobs)

    async def test_a_stream_of_events_is_handed_over_without_a_lost_or_repeated_one(
        self, parts: QueueParts, queue: JobQueue, model: FakeService
    ) -> None:
        model.seconds = 20
        drains = False
        old, new = [
            httpx.AsyncClient(
                transport=httpx.ASGITransport(create_app(model, CONFIG, queue, shared=shared)),
                base_url="http://localhost",
            )
            for shared in (Shared(CONFIG, queue, draining=Draining(lambda: drains)), None)
        ]
        async with old, new, serving(queue):
            job = await submit(old, caption_job())
            events = f"{PATH}/{job['id']}/events"
            first = asyncio.create_task(old.get(events))
            await asyncio.sleep(10)  # longer than a poll: the job runs
            drains = True
            text = (await first).text
            begun = list(re.findall(r'"status":"(\w+)"', text))
            assert begun[-1] == "running"
            assert re.search(r"\n\nretry: \d{3,4}\n\n$", text)
            last_id = re.findall(r"^id: (\w+)$", text, re.MULTILINE)[-1]
            rest = await new.get(events, headers={"Last-Event-ID": last_id})
            assert rest.text.startswith(": keepalive\n\nevent: state\ndata: ")
            assert re.findall(r'"status":"(\w+)"', rest.text) == ["succeeded"]
            last_id = re.findall(r"^id: (\w+)$", rest.text, re.MULTILINE)[-1]
            end = await new.get(events, headers={"Last-Event-ID": last_id})
            assert end.status_code == 204  # an EventSource reconnects until it gets that
            again = await new.get(events)
            assert re.findall(r'"status":"(\w+)"', again.text) == ["succeeded"]

    async def test_events_show_an_error_even_if_the_state_is_the_same_again(
        self, http: httpx.AsyncClient, queue: JobQueue, parts: QueueParts, model: FakeService
    ) -> None:
        model.errors = [Overloaded("full", "model", retry_after=30)]
        job = await submit(http, caption_job())
        stream = asyncio.create_task(http.get(f"{PATH}/{job['id']}/events"))
        await asyncio.sleep(1)
        other = parts.make_queue()  # in another process, so that the changes are found later
        async with serving(other):
            await stream
        events = (await stream).text.split("\n\n")
        assert any('"overloaded"' in event and '"queued"' in event for event in events)

    async def test_a_stream_shows_the_changes_of_all_jobs_and_goes_on_where_it_ended(
        self, http: httpx.AsyncClient, parts: QueueParts, queue: JobQueue, model: FakeService
    ) -> None:
        drains = False
        shared = Shared(CONFIG, queue, draining=Draining(lambda: drains))
        transport = httpx.ASGITransport(create_app(model, CONFIG, queue, shared=shared))
        events = f"{PATH}/events?fields=id,status,input,output"
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as old:
            stream = asyncio.create_task(old.get(events))
            await asyncio.sleep(1)
            first, second = [await submit(http, caption_job()) for _ in range(2)]
            async with serving(queue):
                await wait_until_ended(http, second["id"])
                await asyncio.sleep(20)
                drains = True
                begun = read_events((await stream).text)
        assert begun[0][:2] == ("reset", {})
        shown = [data for name, data, _ in begun if name == "job" and data["id"] == first["id"]]
        assert shown[-1] == {
            "id": first["id"],
            "status": "succeeded",
            "input": {"image": BLOB},
            "output": {"caption": "two circles", "model": "moondream"},
        }
        assert {data["id"] for _, data, _ in begun[1:]} == {first["id"], second["id"]}
        assert ": keepalive" in (await stream).text
        last_id = [event_id for *_, event_id in begun if event_id][-1]
        await http.delete(f"{PATH}/{first['id']}")
        drains = True
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as new:
            rest = await new.get(events, headers={"Last-Event-ID": last_id})
            assert [event[:2] for event in read_events(rest.text)] == [
                ("removed", {"id": first["id"]})
            ]
            for unknown in (
                "",
                "x",
                "x:1",
                last_id.split(":")[0] + ":99",
                last_id + "0" * 5000,
                ":",
            ):
                other = await new.get(events, headers={"Last-Event-ID": unknown})
                assert [event[0] for event in read_events(other.text)] == ["reset"]
            wrong = await new.get(f"{PATH}/events?fields=colour")
        assert wrong.json()["detail"].startswith("fields: unknown field 'colour'")

    async def test_the_pictures_of_a_job_can_be_downloaded_with_its_key_alone(
        self, queue: JobQueue, model: FakeService
    ) -> None:
        keys = [{"name": name, "hash": hash_key(f"rl-{name}")} for name in ("ann", "bob")]
        config = AppConfig.model_validate({**CONFIG.model_dump(), "auth": {"keys": keys}})
        transport = httpx.ASGITransport(create_app(model, config, queue))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            ann, bob = [{"Authorization": f"Bearer rl-{name}"} for name in ("ann", "bob")]
            job = (await http.post(PATH, json=caption_job(), headers=ann)).json()
            other = (
                await http.post(
                    PATH, json={"job_type": "query", "input": {"prompt": "?"}}, headers=ann
                )
            ).json()
            digest = compute_digest(PICTURE)
            answer = await http.get(f"{PATH}/{job['id']}/pictures/{digest}", headers=ann)
            assert answer.content == PICTURE
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["content-disposition"] == "attachment"
            for path, key in (
                (f"{job['id']}/pictures/{digest}", bob),
                (f"{job['id']}/pictures/{digest[:-1]}", ann),
                (f"{job['id']}/pictures/..%2F..", ann),
                (f"{other['id']}/pictures/{digest}", ann),
                (f"{new_id()}/pictures/{digest}", ann),
            ):
                assert (await http.get(f"{PATH}/{path}", headers=key)).status_code == 404, path

    async def test_a_stream_of_all_jobs_shows_a_key_its_own_only(
        self, queue: JobQueue, model: FakeService
    ) -> None:
        keys = [{"name": name, "hash": hash_key(f"rl-{name}")} for name in ("ann", "bob")]
        config = AppConfig.model_validate({**CONFIG.model_dump(), "auth": {"keys": keys}})
        drains = False
        shared = Shared(config, queue, draining=Draining(lambda: drains))
        transport = httpx.ASGITransport(create_app(model, config, queue, shared=shared))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            own = {name: {"Authorization": f"Bearer rl-{name}"} for name in ("ann", "bob")}
            streams = {
                name: asyncio.create_task(http.get(f"{PATH}/events", headers=own[name]))
                for name in own
            }
            await asyncio.sleep(1)
            response = await http.post(PATH, json=caption_job(), headers=own["ann"])
            job_id = response.json()["id"]
            await asyncio.sleep(1)
            await http.post(f"{PATH}/{job_id}/cancel", headers=own["ann"])
            await http.delete(f"{PATH}/{job_id}", headers=own["ann"])
            await asyncio.sleep(1)
            drains = True
            seen = {name: read_events((await stream).text) for name, stream in streams.items()}
        assert {data["id"] for _, data, _ in seen["ann"][1:]} == {job_id}
        assert seen["ann"][-1][0] == "removed"
        assert [name for name, *_ in seen["bob"]] == ["reset"]

    @pytest.mark.parametrize("had_keys", [True, False])
    async def test_a_stream_of_all_jobs_ends_if_the_key_is_no_longer_valid(
        self, queue: JobQueue, model: FakeService, had_keys: bool
    ) -> None:
        def config_of(*names: str) -> AppConfig:
            keys = [{"name": name, "hash": hash_key(f"rl-{name}")} for name in names]
            return AppConfig.model_validate({**CONFIG.model_dump(), "auth": {"keys": keys}})

        config = config_of("ann", "bob") if had_keys else CONFIG
        shared = Shared(config, queue)
        transport = httpx.ASGITransport(create_app(model, config, queue, shared=shared))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            key = {"Authorization": "Bearer rl-ann"}
            stream = asyncio.create_task(http.get(f"{PATH}/events", headers=key))
            await asyncio.sleep(1)
            shared.configure(config_of("bob"))
            job_id = (await submit(http, caption_job(), authorization="Bearer rl-bob"))["id"]
            events = (await asyncio.wait_for(stream, 60)).text
        assert [name for name, *_ in read_events(events)] == ["reset"]
        assert job_id not in events

    async def test_deleting_a_job_that_has_just_ended_keeps_its_result(
        self, http: httpx.AsyncClient, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = await submit(http, caption_job())
        async with serving(queue):
            await wait_until_ended(http, job["id"])
        ended = await queue.get(job["id"])

        async def get_as_it_was(job_id: str) -> Job:
            return replace(ended, state=JobState.RUNNING)

        with monkeypatch.context() as patch:
            patch.setattr(queue, "get", get_as_it_was)
            assert (await http.delete(f"{PATH}/{job['id']}")).status_code == 409
        assert (await http.get(f"{PATH}/{job['id']}")).json()["output"] is not None

    async def test_a_redelivery_of_nothing_uses_up_no_limit(
        self, http: httpx.AsyncClient, queue: JobQueue
    ) -> None:
        job = await submit(http, caption_job(webhook_url="https://example.com/hook"))
        path = f"{PATH}/{job['id']}/deliveries"
        async with serving(queue):
            await wait_until_ended(http, job["id"])
            for _ in range(20):
                assert (await http.post(f"{path}/999/redeliver")).status_code == 404
            assert (await http.post(f"{path}/1/redeliver")).status_code == 202

    async def test_deliveries_are_listed_and_can_be_sent_again(
        self, http: httpx.AsyncClient, queue: JobQueue, webhook_client: FakeWebhookClient
    ) -> None:
        webhook_client.statuses = [500]
        job = await submit(http, caption_job(webhook_url="https://example.com/hook"))
        path = f"{PATH}/{job['id']}/deliveries"
        async with serving(queue):
            await wait_until_ended(http, job["id"])
            async with asyncio.timeout(5):
                while not (await http.get(path)).json()["deliveries"][0]["attempts"]:
                    await asyncio.sleep(0.01)
            (failed,) = (await http.get(path)).json()["deliveries"]
            assert failed["status"] == "pending"
            assert (failed["http_status"], failed["error"]) == (500, "the endpoint answered 500")
            redelivery = await http.post(f"{path}/1/redeliver")
            assert redelivery.status_code == 202
            async with asyncio.timeout(5):
                while (await http.get(path)).json()["deliveries"][0]["status"] != "delivered":
                    await asyncio.sleep(0.01)
        assert (await http.post(f"{path}/7/redeliver")).status_code == 404
        for number in (2**31, 2**63, 10**40):
            assert (await http.post(f"{path}/{number}/redeliver")).status_code == 404
        assert (await http.post(f"{path}/zero/redeliver")).status_code == 422


class TestCaptionService:
    async def test_a_caption_by_job_id(self, http: httpx.AsyncClient, queue: JobQueue) -> None:
        response = await http.post(
            "/caption/generate",
            json={"image_data": RAW, "prompt": "Describe it", "webhook_url": ""},
        )
        assert response.status_code == 202
        assert response.json() == {"job_id": response.json()["job_id"], "status": "queued"}
        path = f"/caption/job/{response.json()['job_id']}"
        queued = (await http.get(path)).json()
        assert queued == {
            "job_id": response.json()["job_id"],
            "status": "queued",
            "caption": None,
            "error": None,
            "created_at": queued["created_at"],
            "started_at": None,
            "finished_at": None,
        }
        async with serving(queue):
            await wait_until_ended(http, response.json()["job_id"])
        assert (await http.get(path)).json()["caption"] == "two circles"

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ({}, "image_data: Field required"),
            ({"image_data": "!"}, "image_data: invalid base64"),
            ({"image_data": ""}, "image_data"),
            (
                {"image_data": RAW, "webhook_url": "http://10.0.0.1/"},
                "webhook_url: 10.0.0.1 is not a public address",
            ),
        ],
    )
    async def test_an_error_names_the_field_of_this_dialect(
        self, http: httpx.AsyncClient, body: dict[str, Any], message: str
    ) -> None:
        response = await http.post("/caption/generate", json=body)
        assert response.status_code == 422
        assert response.json()["detail"].startswith(message)

    async def test_statistics(self, http: httpx.AsyncClient, queue: JobQueue) -> None:
        first, second, third = [(await submit(http, caption_job()))["id"] for _ in range(3)]
        await http.delete(f"{PATH}/{third}")
        async with serving(queue):
            await wait_until_ended(http, first)
            await wait_until_ended(http, second)
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


async def test_requests_that_wait_for_the_queue_take_no_place_of_others(
    model: FakeService, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"limits": {"max_in_flight": 1}, "jobs": {"max_requests": 2, "max_reads": 3}}
    config = AppConfig.model_validate({**CONFIG.model_dump(exclude_unset=True), **limits})

    async def submit_slowly(job: Job, pictures: Any) -> Job:
        await asyncio.sleep(60)
        return job

    async def get_slowly(job_id: str) -> Job:
        await asyncio.sleep(60)
        return Job(job_id, "caption", {}, created_at=0, deadline=0, max_attempts=1, rank=0)

    monkeypatch.setattr(queue, "submit", submit_slowly)
    monkeypatch.setattr(queue, "get", get_slowly)
    app = create_app(model, config, queue)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        waiting = [asyncio.create_task(http.post(PATH, json=caption_job())) for _ in range(2)]
        await asyncio.sleep(1)
        for path, body in ((PATH, caption_job()), ("/caption/generate", {"image_data": RAW})):
            refused = await http.post(path, json=body)
            assert refused.status_code == 503
            assert refused.json()["detail"] == "2 requests are in flight; the limit is 2"
        one = f"{PATH}/{new_id()}"
        waiting += [asyncio.create_task(http.get(one)) for _ in range(3)]
        await asyncio.sleep(1)
        for path in (one, "/caption/stats", "/v1/files"):
            refused = await http.get(path)
            assert refused.status_code == 503
            assert "3 requests are in flight; the limit is 3" in refused.text
        assert (await http.post("/v1/caption", json={})).status_code == 400
        assert (await http.get("/live")).status_code == 200
        assert [(await task).status_code for task in waiting] == [202, 202, 200, 200, 200]


async def test_without_a_queue_the_job_routes_are_absent(model: FakeService) -> None:
    transport = httpx.ASGITransport(create_app(model, CONFIG))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        assert (await http.get(PATH)).status_code == 404
        assert (await http.get("/caption/stats")).status_code == 404
