"""The routes of watches, over a queue whose watcher plays a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from raylens.api.app import create_app
from raylens.core.config import AppConfig
from raylens.core.errors import UnknownSession
from raylens.jobs.blobs import BlobStorage
from raylens.jobs.job import new_id
from raylens.jobs.memory import MemoryStore
from raylens.jobs.queue import JobQueue
from raylens.jobs.types.watch import WatchJob
from raylens.net.lookup import Address
from raylens.realtime.ports import SessionClient, WebRtcService
from testing.virtual_time import VirtualClock, VirtualTimePolicy
from tests.unit.raylens.jobs.conftest import FakeService, FakeWebhookClient, QueueParts, serving
from tests.unit.raylens.jobs.test_watch import AT, CONNECTED, LOST, Script, event, result

PATH = "/api/v1/watches"
SOURCE = "rtsp://user:secret@camera.example/1"
HOOK = "https://hooks.example.com/x"


def make_config(**fields: Any) -> AppConfig:
    return AppConfig.model_validate(
        {
            "models": [
                {"name": "moondream", "family": "moondream"},
                {"name": "smolvlm", "family": "smolvlm"},
            ],
            "jobs": {"watches": {"allow": ["camera.example"], "max_running": 3}},
            **fields,
        }
    )


async def look_up(host: str) -> Sequence[Address]:
    return [ip_address("192.168.1.20" if host == "camera.example" else "93.184.216.34")]


@pytest.fixture
def event_loop_policy() -> VirtualTimePolicy:
    return VirtualTimePolicy()


@pytest.fixture
def config() -> AppConfig:
    return make_config()


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def parts(script: Script, config: AppConfig) -> QueueParts:
    clock = VirtualClock()
    blobs = BlobStorage(f"memory://{new_id()}")
    parts = QueueParts(clock, MemoryStore(clock), blobs, FakeService(), FakeWebhookClient(), config)
    parts.types["watch"] = WatchJob(script)
    return parts


@pytest.fixture
def queue(parts: QueueParts) -> JobQueue:
    return parts.make_queue()


@pytest.fixture
def webrtc() -> WebRtcService | None:
    return None


@pytest.fixture
async def client(
    parts: QueueParts, queue: JobQueue, config: AppConfig, webrtc: WebRtcService | None
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(parts.service, config, queue, look_up=look_up, webrtc=webrtc)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        serving(queue),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield client


async def start(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post(PATH, json={"source": SOURCE, **fields})
    assert response.status_code == 202, response.text
    watch: dict[str, Any] = response.json()
    assert response.headers["location"] == f"{PATH}/{watch['id']}"
    return watch


async def shown(client: httpx.AsyncClient, watch: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = (await client.get(f"{PATH}/{watch['id']}")).json()
    return body


async def test_a_watch_runs_shows_what_it_sees_and_is_stopped(
    client: httpx.AsyncClient, script: Script
) -> None:
    script.calls = [[CONNECTED, result(1), event("started", AT + 1)]]
    watch = await start(client, pipeline={"detect_object": "cat"}, fps=2)
    assert watch["status"] == "queued"
    assert watch["source"] == "rtsp://camera.example/1"
    await asyncio.sleep(2)
    (seen,) = script.inputs
    assert (seen.source, seen.fps) == (SOURCE, 2)
    assert seen.pipeline["detect_object"] == "cat"
    running = await shown(client, watch)
    assert running["status"] == "running"
    assert running["connection"]["status"] == "connected"
    assert running["last_result"]["frame_id"] == 1
    (started,) = running["recent_events"]
    assert started["event"]["subject"] == "person"
    assert started["at"] == "2023-11-14T22:13:21.000+00:00"
    stopped = await client.delete(f"{PATH}/{watch['id']}")
    assert stopped.json()["status"] == "canceled"
    await asyncio.sleep(1)
    assert script.open == 0
    again = await client.put(f"{PATH}/{watch['id']}")
    assert again.json()["status"] == "queued"
    await asyncio.sleep(16)  # the old attempt might go on until its lease ends
    assert script.open == 1
    await client.delete(f"{PATH}/{watch['id']}")
    removed = await client.delete(f"{PATH}/{watch['id']}")
    assert removed.status_code == 200
    assert (await client.get(f"{PATH}/{watch['id']}")).status_code == 404


async def test_watches_are_listed_with_the_jobs_and_by_themselves(
    client: httpx.AsyncClient,
) -> None:
    watches = [await start(client) for _ in range(3)]
    page = (await client.get(PATH, params={"limit": 2})).json()
    assert [each["id"] for each in page["watches"]] == [watches[2]["id"], watches[1]["id"]]
    rest = (await client.get(PATH, params={"cursor": page["next_cursor"]})).json()
    assert [each["id"] for each in rest["watches"]] == [watches[0]["id"]]
    assert rest["next_cursor"] is None
    jobs = (await client.get("/api/v1/jobs", params={"fields": "id,input,job_type"})).json()["jobs"]
    assert {job["job_type"] for job in jobs} == {"watch"}
    assert "secret" not in json.dumps(jobs)


async def test_settings_that_suit_a_watch_are_the_defaults(
    client: httpx.AsyncClient, script: Script
) -> None:
    watch = await start(client)
    assert watch["fps"] == 1.0
    assert watch["pipeline"]["temperature"] == 0.0
    assert watch["pipeline"]["tracking"] is False
    assert watch["pipeline"]["inference_interval"] == 1
    assert watch["events"] == ["event.started", "event.ended"]
    captions = await start(client, pipeline={"feature": "caption"})
    assert captions["events"] == ["result"]


async def test_a_webhook_is_a_url_or_an_object(client: httpx.AsyncClient) -> None:
    secret = "whsec_" + "A" * 44
    assert (await start(client, webhook=HOOK))["webhook_url"] == HOOK
    watch = await start(client, webhook={"url": HOOK, "secret": secret})
    assert watch["webhook_url"] == HOOK
    assert secret not in json.dumps(await shown(client, watch))


@pytest.mark.parametrize(
    ("changes", "field", "text"),
    [
        ({"source": "rtsp://other.example/1"}, "source", "jobs.watches.allow"),
        ({"source": "/etc"}, "source", "media_root"),
        ({"source": ""}, "source", "at least 1 character"),
        ({"source": "rtsp://" + "a" * 3000}, "source", "2048"),
        ({"source": 7}, "source", "string"),
        ({"source": "ftp://camera.example/1"}, "source", "unknown scheme"),
        ({"fps": 0}, "fps", "greater than 0"),
        ({"fps": 31}, "fps", "30"),
        ({"fps": "often"}, "fps", "number"),
        ({"pipeline": {"feature": "count"}}, "pipeline.feature", "detect"),
        ({"pipeline": {"detect_objekt": "cat"}}, "pipeline.detect_objekt", "known: feature"),
        ({"pipeline": {"event_enter": 0}}, "pipeline.event_enter", "1"),
        ({"pipeline": {"frames": 17}}, "pipeline.frames", "limit is 16"),
        ({"pipeline": {"model": "gpt"}}, "model", "gpt"),
        ({"pipeline": 3}, "pipeline", "dictionary"),
        ({"events": ["started"]}, "events", "event.started"),
        ({"events": ["event.started"], "pipeline": {"feature": "caption"}}, "events", "result"),
        ({"webhook": "ftp://x"}, "webhook.url", "http"),
        ({"webhook": "http://127.0.0.1/x"}, "webhook.url", "public"),
        ({"webhook": {"url": HOOK, "secret": "x"}}, "webhook.secret", "whsec_"),
        ({"webhook": {"secret": "x"}}, "webhook.url", "required"),
        ({"sauce": 1}, "sauce", "Extra inputs"),
    ],
)
async def test_bad_requests_name_the_field(
    client: httpx.AsyncClient, changes: dict[str, Any], field: str, text: str
) -> None:
    response = await client.post(PATH, json={"source": SOURCE, **changes})
    assert response.status_code in (404, 422), response.text
    message = json.dumps(response.json())
    assert field in message
    assert text in message
    assert "secret@" not in message
    assert (await client.get(PATH)).json()["watches"] == []


async def test_more_watches_than_may_run_are_refused(client: httpx.AsyncClient) -> None:
    watches = [await start(client) for _ in range(3)]
    response = await client.post(PATH, json={"source": SOURCE})
    assert response.status_code == 429
    assert "3 watches run; the limit is 3 (jobs.watches.max_running)" in response.text
    assert "retry-after" in response.headers
    await client.delete(f"{PATH}/{watches[0]['id']}")
    await start(client)
    response = await client.put(f"{PATH}/{watches[0]['id']}")
    assert response.status_code == 429


async def test_the_same_submission_twice_is_one_watch(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "door"}
    body = {"source": SOURCE}
    first = await client.post(PATH, json=body, headers=headers)
    second = await client.post(PATH, json=body, headers=headers)
    assert first.json()["id"] == second.json()["id"]
    other = await client.post(PATH, json={**body, "fps": 2}, headers=headers)
    assert other.status_code == 409


async def test_other_jobs_are_no_watches(client: httpx.AsyncClient) -> None:
    job_id = new_id()
    for method in ("GET", "PUT", "DELETE"):
        response = await client.request(method, f"{PATH}/{job_id}")
        assert response.status_code == 404
        assert f"unknown watch '{job_id}'" in response.text
    assert (await client.get(f"{PATH}/x")).status_code == 404


async def read_events(
    client: httpx.AsyncClient, watch: dict[str, Any], last: str = ""
) -> list[tuple[str, dict[str, Any]]]:
    """Return the events of a stream that ends with its watch."""
    headers = {"Last-Event-ID": last} if last else {}
    response = await client.get(f"{PATH}/{watch['id']}/events", headers=headers)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in response.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "event" in fields:
            events.append((fields["event"], json.loads(fields["data"])))
    return events


async def test_a_stream_tells_states_results_and_events(
    client: httpx.AsyncClient, script: Script
) -> None:
    gate = asyncio.Event()

    class Gated(Script):
        async def watch(self, job: Any, watch_input: Any) -> Any:
            yield CONNECTED
            yield event("started", AT)
            await gate.wait()
            for message in (result(2), event("ended", AT + 3), LOST):
                yield message
                await asyncio.sleep(2)
            await asyncio.Event().wait()

    script.watch = Gated().watch  # type: ignore[method-assign]
    watch = await start(client)
    await asyncio.sleep(1)
    streams = [
        asyncio.create_task(read_events(client, watch)),
        asyncio.create_task(read_events(client, watch, "0")),
    ]
    await asyncio.sleep(1)
    gate.set()
    await asyncio.sleep(10)
    await client.delete(f"{PATH}/{watch['id']}")
    fresh, resumed = await asyncio.gather(*streams)
    kinds = [name for name, _ in fresh]
    assert kinds == ["state", "result", "event", "state", "state"]
    assert fresh[0][1]["connection"]["status"] == "connected"
    assert fresh[2][1]["number"] == 2
    assert fresh[3][1]["connection"]["status"] == "lost"
    assert fresh[4][1]["status"] == "canceled"
    assert fresh[4][1]["source"] == "rtsp://camera.example/1"
    # Whoever reconnects gets the events that it has missed.
    assert [data["number"] for name, data in resumed if name == "event"] == [1, 2]


async def test_clients_of_a_watch_that_has_ended_come_back_once(
    client: httpx.AsyncClient,
) -> None:
    watch = await start(client)
    await asyncio.sleep(1)
    await client.delete(f"{PATH}/{watch['id']}")
    response = await client.get(f"{PATH}/{watch['id']}/events")
    (last_id,) = [line[4:] for line in response.text.splitlines() if line.startswith("id: ")]
    headers = {"Last-Event-ID": last_id}
    response = await client.get(f"{PATH}/{watch['id']}/events", headers=headers)
    assert response.status_code == 204


@pytest.mark.parametrize("last", ["x", "-1", "9" * 5000, "٣", "1.running"])
async def test_an_odd_last_event_is_none(client: httpx.AsyncClient, last: str) -> None:
    watch = await start(client)
    await client.delete(f"{PATH}/{watch['id']}")
    headers = [(b"Last-Event-ID", last.encode())]
    response = await client.get(f"{PATH}/{watch['id']}/events", headers=headers)
    assert response.status_code == 200
    assert "event: state" in response.text


async def test_a_watch_is_no_way_round_its_limit(client: httpx.AsyncClient) -> None:
    responses = await asyncio.gather(
        *(client.post(PATH, json={"source": SOURCE}) for _ in range(8))
    )
    assert sorted(response.status_code for response in responses) == [202] * 3 + [429] * 5
    watch_id = next(each.json()["id"] for each in responses if each.status_code == 202)
    await client.delete(f"{PATH}/{watch_id}")
    await start(client)
    assert (await client.put(f"/api/v1/jobs/{watch_id}")).status_code == 429


class TestFolders:
    @pytest.fixture
    def config(self, tmp_path: Path) -> AppConfig:
        (tmp_path / "door").mkdir()
        return make_config(media_root=str(tmp_path))

    async def test_a_folder_below_the_media_root_is_watched(
        self, client: httpx.AsyncClient, tmp_path: Path
    ) -> None:
        await start(client, source="door")
        await start(client, source=f"file://{tmp_path}/door")
        response = await client.post(PATH, json={"source": "/etc"})
        assert "source: not a folder in the folder media_root" in response.text


class Sessions:
    """A session of a client."""

    async def state(self, session_id: str, client: SessionClient) -> dict[str, Any]:
        if session_id != "abc-1":
            raise UnknownSession(f"unknown session {session_id!r}", "session_id")
        return {"sessionId": session_id}


class TestSessions:
    @pytest.fixture
    def webrtc(self) -> WebRtcService:
        return cast(WebRtcService, Sessions())

    async def test_a_session_may_be_watched_as_it_is(
        self, client: httpx.AsyncClient, script: Script
    ) -> None:
        watch = await start(client, source="session:abc-1", events=["event.started", "result"])
        assert watch["pipeline"] == {}
        await asyncio.sleep(1)
        assert script.inputs[0].session_id == "abc-1"

    async def test_a_session_has_settings_of_its_own(self, client: httpx.AsyncClient) -> None:
        changes: list[dict[str, Any]] = [{"fps": 2}, {"pipeline": {}}]
        for change in changes:
            body = {"source": "session:abc-1", **change}
            response = await client.post(PATH, json=body)
            assert response.status_code == 422
            assert "the session has settings of its own" in response.text

    async def test_an_unknown_session_is_refused(self, client: httpx.AsyncClient) -> None:
        response = await client.post(PATH, json={"source": "session:xyz"})
        assert response.status_code == 404
        assert "unknown session 'xyz'" in response.text


async def test_without_live_video_there_are_no_sessions(client: httpx.AsyncClient) -> None:
    response = await client.post(PATH, json={"source": "session:abc-1"})
    assert response.status_code == 404
