"""Keys: every route needs one, and what a key has made is nobody else's."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from raylens.api import playground
from raylens.api.app import create_app
from raylens.api.auth import OPEN_PATHS
from raylens.core.config import AppConfig
from raylens.core.keys import Scope, hash_key
from raylens.jobs.blobs import BlobStorage
from raylens.jobs.job import new_id
from raylens.jobs.memory import MemoryStore
from testing.virtual_time import VirtualClock, VirtualTimePolicy
from tests.unit.raylens.api.conftest import CONFIG, DATA_URL, FakeService
from tests.unit.raylens.jobs.conftest import FakeService as JobModel
from tests.unit.raylens.jobs.conftest import FakeWebhookClient, QueueParts

ANN, BOB, ROOT, READER = "rl-ann", "rl-bob", "rl-root", "rl-reader"
KEYS = [
    {"name": "ann", "hash": hash_key(ANN)},
    {"name": "bob", "hash": hash_key(BOB)},
    {"name": "root", "hash": hash_key(ROOT), "scopes": list(Scope)},
    {"name": "reader", "hash": hash_key(READER), "scopes": ["infer"]},
]
SECURED = AppConfig.model_validate(
    {**CONFIG.model_dump(exclude_unset=True), "auth": {"keys": KEYS}}
)
JOB = {"job_type": "caption", "input": {"image": DATA_URL}}
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}


@pytest.fixture
def event_loop_policy() -> VirtualTimePolicy:
    return VirtualTimePolicy()


@pytest.fixture
def app(service: FakeService) -> FastAPI:
    clock = VirtualClock()
    blobs = BlobStorage(f"memory://{new_id()}")
    store = MemoryStore(clock)
    parts = QueueParts(clock, store, blobs, JobModel(), FakeWebhookClient(), SECURED)
    return create_app(service, SECURED, parts.make_queue())


@asynccontextmanager
async def connect(
    app: FastAPI, key: str | None, **headers: str
) -> AsyncIterator[httpx.AsyncClient]:
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://localhost", headers=headers
    ) as client:
        yield client


def routes_of(app: FastAPI) -> list[tuple[str, str]]:
    """Return the method and a path of every route."""
    routers = [getattr(route, "original_router", None) for route in app.routes]
    routes = [*app.routes, *(route for router in routers if router for route in router.routes)]
    return [
        (method, re.sub(r"{[^}]*}", new_id(), route.path))
        for route in routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    ]


@pytest.mark.parametrize("key", [None, "", "rl-unknown", hash_key(ANN), f"{ANN}x"])
async def test_every_route_but_probes_and_pages_needs_a_key(
    app: FastAPI, service: FakeService, key: str | None
) -> None:
    routes = routes_of(app)
    assert len(routes) > 40
    async with connect(app, key) as client:
        for method, path in [*routes, ("GET", "/unknown"), ("POST", "/v1/unknown")]:
            response = await client.request(method, path)
            if path in OPEN_PATHS:
                assert response.status_code < 400, path
                continue
            if path.startswith(playground.PREFIX):  # the page's files
                assert response.status_code == 404, path
                continue
            assert response.status_code == 401, (method, path)
            assert response.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                assert "Authorization: " in response.text
    assert not service.requests


async def test_an_error_has_the_dialects_shape(app: FastAPI) -> None:
    async with connect(app, "rl-unknown") as client:
        error = (await client.post("/v1/chat/completions")).json()["error"]
        assert error["code"] == "invalid_api_key"
        assert "unknown key" in error["message"]
        assert (
            "missing key"
            in (await client.post("/v1/caption", headers={"Authorization": ""})).json()["detail"]
        )
        assert "rl-unknown" not in error["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {ANN}"},
        {"Authorization": f"bearer  {ANN} "},
        {"X-Moondream-Auth": ANN},
        {"X-API-Key": ANN},
        {"X-API-Key": ANN, "Authorization": "Basic eDp5"},
        {"X-Moondream-Auth": "wrong", "Authorization": f"Bearer {ANN}"},
    ],
)
async def test_a_key_comes_in_the_headers_of_each_client(
    app: FastAPI, headers: dict[str, str]
) -> None:
    async with connect(app, None, **headers) as client:
        response = await client.post("/v1/caption", json={"image_url": DATA_URL})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v1/caption", {ANN, READER, ROOT}),
        ("GET", "/v1/models", {ANN, READER, ROOT}),
        ("GET", "/vram_status", {ANN, READER, ROOT}),
        ("GET", "/api/v1/jobs", {ANN, ROOT}),
        ("POST", "/caption/generate", {ANN, ROOT}),
        ("GET", "/caption/stats", {ANN, ROOT}),
        ("GET", "/v1/files", {ANN, ROOT}),
        ("GET", "/v1/batches", {ANN, ROOT}),
        ("POST", "/clear_vram", {ROOT}),
        ("GET", "/api/v1/plugins", {ANN, READER, ROOT}),
    ],
)
async def test_a_key_may_do_what_its_scopes_say(
    app: FastAPI, method: str, path: str, allowed: set[str]
) -> None:
    for key in (ANN, READER, ROOT):
        async with connect(app, key) as client:
            response = await client.request(method, path)
        assert (response.status_code == 403) is (key not in allowed), (key, response.text)
        if key not in allowed:
            assert "lacks the scope" in response.text


async def test_the_jobs_of_a_key_are_nobody_elses(app: FastAPI) -> None:
    async with connect(app, ANN) as ann, connect(app, BOB) as bob, connect(app, ROOT) as root:
        job_id = (await ann.post("/api/v1/jobs", json=JOB)).json()["id"]
        path = f"/api/v1/jobs/{job_id}"
        for other in (bob, root):
            for method, route in [
                ("GET", path),
                ("PUT", path),
                ("DELETE", path),
                ("POST", f"{path}/cancel"),
                ("GET", f"{path}/events"),
                ("GET", f"{path}/deliveries"),
                ("POST", f"{path}/deliveries/1/redeliver"),
                ("GET", f"/caption/job/{job_id}"),
            ]:
                response = await other.request(method, route)
                assert response.status_code == 404, (method, route, response.text)
            assert (await other.get("/api/v1/jobs")).json()["jobs"] == []
            assert (await other.get(f"/api/v1/jobs?ids={job_id}")).json()["jobs"] == []
        assert [job["id"] for job in (await ann.get("/api/v1/jobs")).json()["jobs"]] == [job_id]
        assert (await ann.post(f"{path}/cancel")).json()["status"] == "canceled"


async def test_two_keys_may_choose_the_same_idempotency_key(app: FastAPI) -> None:
    headers = {"Idempotency-Key": "one"}
    async with connect(app, ANN) as ann, connect(app, BOB) as bob:
        first = (await ann.post("/api/v1/jobs", json=JOB, headers=headers)).json()
        again = (await ann.post("/api/v1/jobs", json=JOB, headers=headers)).json()
        other = (await bob.post("/api/v1/jobs", json=JOB, headers=headers)).json()
    assert first["id"] == again["id"]
    assert first["id"] != other["id"]


async def test_the_files_of_a_key_are_nobody_elses(app: FastAPI) -> None:
    upload: Any = {"file": ("a.jsonl", json.dumps(LINE).encode())}
    batch = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    async with connect(app, ANN) as ann, connect(app, BOB) as bob:
        response = await ann.post("/v1/files", files=upload, data={"purpose": "batch"})
        file_id = response.json()["id"]
        for method, route in [
            ("GET", f"/v1/files/{file_id}"),
            ("GET", f"/v1/files/{file_id}/content"),
            ("DELETE", f"/v1/files/{file_id}"),
        ]:
            assert (await bob.request(method, route)).status_code == 404
        assert (await bob.get("/v1/files")).json()["data"] == []
        stolen = await bob.post("/v1/batches", json={**batch, "input_file_id": file_id})
        assert stolen.status_code in (400, 404)
        own = await ann.post("/v1/batches", json={**batch, "input_file_id": file_id})
        assert own.status_code == 200, own.text
        batch_id = own.json()["id"]
        assert (await bob.get(f"/v1/batches/{batch_id}")).status_code == 404
        assert (await bob.post(f"/v1/batches/{batch_id}/cancel")).status_code == 404
        assert (await bob.get("/v1/batches")).json()["data"] == []
        assert (await ann.get(f"/v1/files/{file_id}/content")).status_code == 200


async def test_a_browser_reads_the_refusal_and_asks_first_without_a_key(app: FastAPI) -> None:
    origin = "http://localhost:3000"
    async with connect(app, None, Origin=origin) as client:
        response = await client.post("/v1/caption")
        assert response.headers["access-control-allow-origin"] == origin
        preflight = await client.options(
            "/v1/caption",
            headers={
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization",
            },
        )
        assert preflight.status_code == 200


@pytest.mark.parametrize(
    ("protocols", "is_refused"),
    [("", True), ("raylens-key.rl-unknown", True), (f"raylens, raylens-key.{ANN}", False)],
)
async def test_a_websocket_brings_its_key_as_a_subprotocol(
    app: FastAPI, protocols: str, is_refused: bool
) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"sec-websocket-protocol", protocols.encode())]
    await app({"type": "websocket", "path": "/ws", "headers": headers}, receive, send)
    refusals = [message for message in sent if "Authorization" in message.get("reason", "")]
    assert bool(refusals) is is_refused


async def test_the_pipeline_of_a_key_is_nobody_elses(app: FastAPI) -> None:
    load = {"pipeline_id": "moondream", "load_params": {"question": "Whose cat is this?"}}
    path = "/api/v1/pipeline/status"
    async with connect(app, None, **{"X-API-Key": ANN}) as ann:
        assert (await ann.post("/api/v1/pipeline/load", json=load)).status_code == 200
        assert "Whose cat" in (await ann.get(path)).text
    async with connect(app, None, **{"X-API-Key": BOB}) as bob:
        assert "Whose cat" not in (await bob.get(path)).text
    async with connect(app, ANN) as ann:
        assert "Whose cat" in (await ann.get(path)).text
