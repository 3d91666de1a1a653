from __future__ import annotations

import asyncio

import pytest

from raylens.core.types import Delta, FinishReason, Usage
from tests.unit.raylens.api.conftest import DATA_URL, FakeService, chat


async def test_an_id_is_made_where_none_is_given(client, service: FakeService) -> None:
    first, second = [await client.post("/v1/chat/completions", json=chat("hi")) for _ in range(2)]
    assert first.headers["x-request-id"] == service.requests[0].id
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


@pytest.mark.parametrize("identity", ["x" * 129, "a b"])
async def test_an_unprintable_or_long_id_is_refused(client, identity) -> None:
    response = await client.get("/live", headers={"X-Request-ID": identity})
    assert response.status_code == 400
    assert "128" in response.json()["detail"]


async def test_a_body_over_the_limit_is_refused(client) -> None:
    big = "data:image/png;base64," + "A" * 50_000
    response = await client.post("/v1/caption", json={"image_url": big})
    assert response.status_code == 413
    assert "the limit is 40000 bytes" in response.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/caption", "/v1/chat/completions"])
async def test_a_body_without_a_length_is_counted_as_it_comes(client, path) -> None:
    async def pieces():
        for _ in range(50):
            yield b"x" * 1000

    response = await client.post(
        path, content=pieces(), headers={"content-type": "application/json"}
    )
    assert response.status_code == 413


@pytest.mark.parametrize("path", ["/v1/caption", "/v1/chat/completions"])
async def test_a_body_that_stops_coming_is_given_up(client, path) -> None:
    async def stalled():
        yield b"{"
        await asyncio.sleep(5)

    response = await client.post(
        path, content=stalled(), headers={"content-type": "application/json"}
    )
    assert response.status_code == 408
    assert "nothing of it came" in response.text


async def test_a_full_server_says_so_and_still_tells_its_health(
    client, service: FakeService
) -> None:
    held = asyncio.Event()

    async def hold(request, images):
        await held.wait()
        yield Delta("x", 0, FinishReason.STOP, Usage(1, 1))

    service.generate = hold  # type: ignore[method-assign]
    taken = [
        asyncio.ensure_future(client.post("/v1/chat/completions", json=chat("hi")))
        for _ in range(6)
    ]
    await asyncio.sleep(0.1)
    refused = await client.post("/v1/caption", json={"image_url": DATA_URL})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json() == {"detail": "6 requests are in flight; the limit is 6"}
    assert (await client.get("/health")).status_code == 200
    held.set()
    assert [response.status_code for response in await asyncio.gather(*taken)] == [200] * 6


async def test_no_post_is_redirected(client) -> None:
    assert (await client.post("/v1/caption/", json={})).status_code == 404


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [("http://localhost:3000", True), ("http://127.0.0.1", True), ("http://evil.example", False),
     ("http://localhost.evil.example", False)],
)  # fmt: skip
async def test_browsers_of_this_machine_may_call(client, origin, allowed) -> None:
    wanted = "authorization, x-moondream-auth, idempotency-key, content-type, x-stainless-os"
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": wanted,
    }
    response = await client.options("/v1/chat/completions", headers=headers)
    assert (response.headers.get("access-control-allow-origin") == origin) is allowed
    assert (response.status_code == 200) is allowed


async def test_health_tells_the_state_of_each_model(client, service: FakeService) -> None:
    health = (await client.get("/health")).json()
    assert (health["status"], health["model_loaded"], health["device"]) == ("healthy", True, "cpu")
    assert health["active_model"] == "smolvlm"
    assert health["timestamp"].endswith("+00:00")
    assert (await client.get("/ready")).status_code == 200
    service.loaded = frozenset({"other"})
    health = (await client.get("/health")).json()
    assert (health["status"], health["model_loaded"], health["device"]) == ("degraded", False, None)
    ready = await client.get("/ready")
    assert ready.status_code == 503
    assert ready.json()["waiting_for"] == ["smolvlm"]
    assert (await client.get("/live")).status_code == 200


async def test_an_unforeseen_error_has_a_shape_and_tells_nothing(
    client, service: FakeService
) -> None:
    service.error = KeyError("secret")  # type: ignore[assignment]
    chatted = await client.post("/v1/chat/completions", json=chat("hi"))
    captioned = await client.post("/v1/caption", json={"image_url": DATA_URL})
    assert chatted.status_code == captioned.status_code == 500
    assert chatted.json()["error"]["code"] == "internal_error"
    assert "secret" not in chatted.text + captioned.text


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
    assert content["application/json"]["schema"]["properties"]["settings"]["properties"]["top_p"]
    assert (await client.get("/docs")).status_code == 200


async def test_an_unknown_route_has_the_shape_of_its_dialect(client) -> None:
    assert (await client.get("/nothing")).json() == {"detail": "Not Found"}
    assert (await client.get("/v1/chat/nothing")).json()["error"]["code"] == "not_found"
    assert (await client.get("/v1/chat/completions")).status_code == 405
