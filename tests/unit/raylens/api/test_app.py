from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

import httpx
import pytest

from raylens.api.app import create_app
from raylens.api.live_app import LiveApp
from raylens.api.shared import Shared
from raylens.core.live_settings import apply_settings
from raylens.core.types import Delta, FinishReason, MediaFile, Usage, VisionRequest
from tests.unit.raylens.api.conftest import CONFIG, DATA_URL, FakeService, chat


async def test_a_missing_request_id_is_generated(client, service: FakeService) -> None:
    first, second = [await client.post("/v1/chat/completions", json=chat("hi")) for _ in range(2)]
    assert first.headers["x-request-id"] == service.requests[0].id
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


@pytest.mark.parametrize("request_id", ["x" * 129, "a b"])
async def test_an_unprintable_or_long_request_id_is_refused(client, request_id) -> None:
    response = await client.get("/live", headers={"X-Request-ID": request_id})
    assert response.status_code == 400
    assert response.json()["detail"] == "X-Request-ID: expected 1 to 128 visible ASCII characters"


async def test_a_body_over_the_limit_is_refused(client) -> None:
    url = "data:image/png;base64," + "A" * 50_000
    response = await client.post("/v1/caption", json={"image_url": url})
    assert response.status_code == 413
    assert "the limit is 40000 bytes" in response.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/caption", "/v1/chat/completions"])
async def test_a_body_without_a_content_length_is_counted_while_it_arrives(client, path) -> None:
    async def chunks():
        for _ in range(50):
            yield b"x" * 1000

    response = await client.post(
        path, content=chunks(), headers={"content-type": "application/json"}
    )
    assert response.status_code == 413


@pytest.mark.parametrize("path", ["/v1/caption", "/v1/chat/completions"])
async def test_a_stalled_body_is_a_time_out(client, path) -> None:
    async def stalling():
        yield b"{"
        await asyncio.sleep(5)

    response = await client.post(
        path, content=stalling(), headers={"content-type": "application/json"}
    )
    assert response.status_code == 408
    assert "body: no data received; the limit is 0.2 seconds" in response.text


async def test_requests_over_the_limit_are_refused_and_health_checks_pass(
    client, service: FakeService
) -> None:
    released = asyncio.Event()

    async def generate_when_released(request, images):
        await released.wait()
        yield Delta("x", 0, FinishReason.STOP, Usage(1, 1))

    service.generate = generate_when_released  # type: ignore[method-assign]
    in_flight = [
        asyncio.ensure_future(client.post("/v1/chat/completions", json=chat("hi")))
        for _ in range(6)
    ]
    await asyncio.sleep(0.1)
    refusal = await client.post("/v1/caption", json={"image_url": DATA_URL})
    assert (refusal.status_code, refusal.headers["retry-after"]) == (503, "1")
    assert refusal.json() == {"detail": "6 requests are in flight; the limit is 6"}
    assert (await client.get("/health")).status_code == 200
    released.set()
    responses = await asyncio.gather(*in_flight)
    assert [response.status_code for response in responses] == [200] * 6


async def test_no_post_is_redirected(client) -> None:
    assert (await client.post("/v1/caption/", json={})).status_code == 404


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        ("http://localhost:3000", True),
        ("http://127.0.0.1", True),
        ("http://evil.example", False),
        ("http://localhost.evil.example", False),
    ],
)
async def test_only_pages_of_this_machine_pass_the_cors_preflight(
    client, origin, is_allowed
) -> None:
    header_names = "authorization, x-moondream-auth, idempotency-key, content-type, x-stainless-os"
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": header_names,
    }
    response = await client.options("/v1/chat/completions", headers=headers)
    assert (response.headers.get("access-control-allow-origin") == origin) is is_allowed
    assert (response.status_code == 200) is is_allowed


async def test_health_shows_the_state_of_each_model(client, service: FakeService) -> None:
    health = (await client.get("/health")).json()
    assert (health["status"], health["model_loaded"], health["device"]) == ("healthy", True, "cpu")
    assert health["active_model"] == "smolvlm"
    assert health["timestamp"].endswith("+00:00")
    model = health["models"]["smolvlm"]
    assert (model["max_pictures"], model["frames_as_pictures"]) == (8, 4)
    assert (await client.get("/ready")).status_code == 200
    service.loaded = frozenset({"other"})
    health = (await client.get("/health")).json()
    assert (health["status"], health["model_loaded"], health["device"]) == ("degraded", False, None)
    ready = await client.get("/ready")
    assert ready.status_code == 503
    assert ready.json()["waiting_for"] == ["smolvlm"]
    assert (await client.get("/live")).status_code == 200


async def test_a_model_that_is_loaded_on_demand_keeps_the_server_ready(
    client, service: FakeService
) -> None:
    service.loaded = frozenset({"other"})
    service.on_demand = {"smolvlm": "loading for 3 s"}
    ready = await client.get("/ready")
    assert ready.status_code == 200
    assert ready.json() == {"status": "ready", "on_demand": {"smolvlm": "loading for 3 s"}}
    response = await client.post("/v1/chat/completions", json=chat("hi", model="smolvlm"))
    assert response.status_code == 200  # the request waits for it
    service.loaded = frozenset()
    ready = await client.get("/ready")
    assert ready.status_code == 503
    assert ready.json()["waiting_for"] == ["other"]
    assert ready.json()["on_demand"] == {"smolvlm": "loading for 3 s"}


async def test_an_unexpected_error_has_the_dialects_shape_and_hides_its_message(
    client, service: FakeService
) -> None:
    service.error = KeyError("secret")  # type: ignore[assignment]
    chat_response = await client.post("/v1/chat/completions", json=chat("hi"))
    caption_response = await client.post("/v1/caption", json={"image_url": DATA_URL})
    assert chat_response.status_code == caption_response.status_code == 500
    assert chat_response.json()["error"]["code"] == "internal_error"
    assert "secret" not in chat_response.text + caption_response.text


async def test_the_api_page_describes_every_route(client) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path in (
        "/v1/chat/completions",
        "/v1/models",
        "/v1/caption",
        "/v1/query",
        "/health",
        "/ready",
        "/live",
    ):
        assert path in paths
    content = paths["/v1/caption"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}
    settings = content["application/json"]["schema"]["properties"]["settings"]["anyOf"][0]
    assert settings["properties"]["top_p"]
    assert (await client.get("/docs")).status_code == 200


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/chat/completions", "/v1/chat/completions? (add /v1 to the base URL)"),
        ("/models", "/v1/models? (add /v1 to the base URL)"),
        ("/v1/v1/chat/completions", "/v1/chat/completions?"),
        ("/openai/v1/chat/completions", "/v1/chat/completions?"),
        ("/v1/chat/completion", "/v1/chat/completions?"),
        ("/api/v1/chat/completions", "/v1/chat/completions?"),
        ("/tags", "/api/tags? (add /api to the base URL)"),
        ("/v1/embeddings/x/y/z", "see /docs"),
    ],
)
async def test_an_unknown_route_names_the_nearest_in_openais_shape(client, path, hint) -> None:
    response = await client.post(path)
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["code"] == "not_found"
    assert error["message"].startswith(f"no route POST {path}; ")
    assert error["message"].endswith(hint)


async def test_a_wrong_method_names_the_right_one(client) -> None:
    response = await client.get("/v1/chat/completions")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("path", "shape"),
    [("/v1/responses", "error"), ("/v1/caption", "detail"), ("/api/tags", "error")],
)
async def test_an_error_under_a_prefix_has_its_dialects_shape(service, path, shape) -> None:
    app = create_app(service, CONFIG)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, root_path="/vlm")
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost/vlm") as client:
        response = await client.delete(path)
        assert response.status_code == 405
        assert set(response.json()) == {shape}
        assert (await client.get("/live")).json() == {"status": "alive"}
        response = await client.post("/chat/completions")
        assert response.json()["error"]["message"] == (
            "no route POST /vlm/chat/completions; did you mean /vlm/v1/chat/completions?"
            " (add /v1 to the base URL)"
        )


@pytest.mark.parametrize("path", ["/", "/api/tags", "/api/version", "/api/ps", "/v1/models"])
async def test_clients_can_ask_whether_there_is_a_server(client, path) -> None:
    assert (await client.head(path)).status_code == 200
    assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/responses", "/v1/caption", "/api/chat"]
)
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"a": "\xe9"}', "byte 7 is not UTF-8"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "a number is too long"),
        (b"[" * 20_000, "nested too deep"),
        (b"{", "at character 1"),
    ],
)  # fmt: skip
async def test_a_body_that_is_no_json_is_refused_with_the_reason(
    client, path, body, reason
) -> None:
    response = await client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert "body: not valid JSON (" in response.text
    assert reason in response.text


class GatedService(FakeService):
    """Answers once its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.was_asked = asyncio.Event()
        self.gate = asyncio.Event()

    async def generate(
        self, request: VisionRequest, pictures: Sequence[MediaFile]
    ) -> AsyncGenerator[Delta, None]:
        self.was_asked.set()
        await self.gate.wait()
        yield Delta("late", 0, FinishReason.STOP, Usage(1, 1))


async def test_requests_in_an_exchanged_application_count_for_the_limits_of_the_next() -> None:
    service = GatedService()
    shared = Shared(CONFIG)
    live = LiveApp(create_app(service, CONFIG, shared=shared))
    body = chat("hi", model="smolvlm")
    transport = httpx.ASGITransport(cast(Any, live))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        before = [asyncio.create_task(http.post("/v1/chat/completions", json=body))]
        await asyncio.wait_for(service.was_asked.wait(), 5)
        changed = apply_settings(CONFIG, {"limits": {"max_in_flight": 1}})
        shared.configure(changed)
        live.current = create_app(service, changed, shared=shared)
        refused = await http.post("/v1/chat/completions", json=body)
        service.gate.set()
        assert [(await each).status_code for each in before] == [200]
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
    assert refused.status_code == 503
    assert "the limit is 1" in refused.text


def test_downloads_are_kept_unless_their_settings_change() -> None:
    shared = Shared(CONFIG)
    fetcher = shared.fetcher
    shared.configure(apply_settings(CONFIG, {"limits": {"max_images": 2}}))
    assert shared.fetcher is fetcher
    shared.configure(apply_settings(CONFIG, {"fetch": {"mode": "off"}}))
    assert shared.fetcher is not fetcher


async def test_an_exchanged_application_ends_the_requests_that_it_began() -> None:
    service = GatedService()
    live = LiveApp(create_app(service, CONFIG))
    body = chat("hi", model="smolvlm")
    transport = httpx.ASGITransport(cast(Any, live))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        before = asyncio.create_task(http.post("/v1/chat/completions", json=body))
        await asyncio.wait_for(service.was_asked.wait(), 5)
        live.current = create_app(
            service, apply_settings(CONFIG, {"limits": {"max_text_chars": 1}})
        )
        refused = await http.post("/v1/chat/completions", json=body)
        service.gate.set()
        answer = (await before).json()
    assert answer["choices"][0]["message"]["content"] == "late"
    assert refused.status_code == 400
    assert "2 characters; the limit is 1" in refused.text
