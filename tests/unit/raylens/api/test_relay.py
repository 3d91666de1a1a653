"""The API over one WebSocket, as Scope's frontend calls it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.responses import Response

from raylens.api import relay
from raylens.api.app import create_app
from raylens.api.draining import WebSocketDrainMiddleware
from raylens.api.shared import Shared
from raylens.core.config import AppConfig
from testing.asgi_socket import AsgiSocket, connected
from tests.unit.raylens.api.conftest import CONFIG, DATA_URL, PICTURE, FakeService
from tests.unit.raylens.api.test_frame_socket import (
    Drain,
    GatedService,
    keyed,
    receive_stop,
    with_settings,
)

PATH = "/api/v1/relay"


@pytest.fixture
def app(service: FakeService) -> FastAPI:
    return create_app(service, CONFIG)


@pytest.fixture
async def socket(app: FastAPI) -> AsyncIterator[AsgiSocket]:
    async with connected(app, PATH) as socket:
        ready = await socket.receive()
        assert ready["type"] == "ready"
        assert len(ready["connection_id"]) == 8
        yield socket


async def call(socket: AsgiSocket, message: dict[str, Any]) -> dict[str, Any]:
    socket.send(message)
    return await socket.receive()


async def api(socket: AsgiSocket, method: str, path: Any, body: Any = None) -> dict[str, Any]:
    message = {"type": "api", "request_id": "r1", "method": method, "path": path}
    answer = await call(socket, message if body is None else {**message, "body": body})
    assert answer["type"] == "api_response"
    assert answer["request_id"] == "r1"
    return answer


async def test_messages_beside_requests(socket: AsgiSocket) -> None:
    user = {"type": "set_user_id", "user_id": "u1"}
    assert await call(socket, user) == {"type": "user_id_set", "user_id": "u1"}
    assert await call(socket, {"type": "ping"}) == {"type": "pong"}
    numbered = await call(socket, {"type": "ping", "request_id": 7})
    assert numbered == {"type": "pong", "request_id": 7}
    unknown = await call(socket, {"type": "fly", "request_id": "x"})
    assert unknown == {
        "type": "error",
        "error": "Unknown message type: fly",
        "code": "invalid_request",
        "status": 400,
        "field": "type",
        "request_id": "x",
    }


@pytest.mark.parametrize("message", ["{", "[]", "3", b"\x00", "[" * 100_000])
async def test_what_is_no_message_is_an_error(socket: AsgiSocket, message: str | bytes) -> None:
    socket.send(message)
    error = await socket.receive()
    assert error["type"] == "error"
    assert "JSON" in error["error"] or "20000 values" in error["error"]
    assert (await call(socket, {"type": "ping"}))["type"] == "pong"


async def test_requests_are_those_of_http(socket: AsgiSocket, service: FakeService) -> None:
    schemas = await api(socket, "GET", "/api/v1/pipelines/schemas")
    assert schemas["status"] == 200
    assert "moondream" in schemas["data"]["pipelines"]
    body = {"pipeline_ids": ["moondream"], "load_params": {"feature": "caption"}}
    loaded = await api(socket, "post", "/api/v1/pipeline/load", body)
    assert loaded["data"] == {"message": "Pipeline loading initiated successfully"}
    status = await api(socket, "GET", "/api/v1/pipeline/status")
    assert status["data"]["status"] == "loaded"
    caption = await api(socket, "POST", "/v1/caption", {"image_url": DATA_URL})
    assert caption["data"]["caption"] == "two red circles"
    query = await api(socket, "GET", "/api/v1/pipelines/schemas?x=1")
    assert query["status"] == 200


async def test_errors_of_http_have_their_status_and_a_sentence(socket: AsgiSocket) -> None:
    wrong = await api(socket, "POST", "/v1/caption", {"image_url": 3})
    assert wrong["status"] == 400
    assert wrong["error"].startswith("image_url:")
    assert wrong["data"]["detail"] == wrong["error"]
    missing = await api(socket, "GET", "/api/v1/nothing")
    assert missing["status"] == 404
    openai = await api(socket, "POST", "/v1/chat/completions", {"messages": []})
    assert openai["error"].startswith("messages:")


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_plugins_cant_be_installed(socket: AsgiSocket, method: str) -> None:
    path = "/api/v1/plugins" if method == "POST" else "/api/v1/plugins/x"
    answer = await api(socket, method, path, {"package": "x"})
    assert answer["status"] == 403
    assert "not available" in answer["error"]
    assert (await api(socket, "GET", "/api/v1/plugins"))["status"] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/docs",
        "/metrics",
        "/-/healthz",
        "/api/v1/relay",
        "/api/v1/../../docs",
        "/api/v1/%2e%2e/%2e%2e/docs",
        "//elsewhere.example/v1/models",
        "http://elsewhere.example/v1/models",
        "v1/models",
        "",
        None,
        3,
        "/v1/models\r\nX-API-Key: x",
        "/clear_vram",
    ],
)
async def test_other_paths_are_refused(socket: AsgiSocket, path: Any) -> None:
    answer = await api(socket, "GET", path)
    assert answer["status"] in (400, 404)
    assert "data" not in answer
    assert "is not relayed" in answer["error"]


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "OPTIONS", "", "x" * 1000])
async def test_other_methods_are_refused(socket: AsgiSocket, method: str) -> None:
    answer = await api(socket, method, "/v1/models")
    assert answer["status"] == 400
    assert "Unsupported method" in answer["error"]


async def test_streams_of_events_are_refused(socket: AsgiSocket) -> None:
    answer = await api(socket, "GET", "/api/v1/jobs/x/events")
    assert answer["status"] == 400
    assert "events" in answer["error"]


async def test_bodies_may_be_binary(app: FastAPI, service: FakeService) -> None:
    form = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n\r\n" + PICTURE + b"\r\n--b--\r\n"
    )
    body = {
        "_base64_content": base64.b64encode(form).decode(),
        "_content_type": "multipart/form-data; boundary=b",
    }

    @app.get("/v1/picture")
    async def picture() -> Response:
        return Response(PICTURE, media_type="image/png")

    async with connected(app, PATH) as socket:
        await socket.receive()
        caption = await api(socket, "POST", "/v1/caption", body)
        assert caption["data"]["caption"] == "two red circles"
        assert service.pictures == [PICTURE]
        answer = await api(socket, "GET", "/v1/picture")
        assert base64.b64decode(answer["_base64_content"]) == PICTURE
        assert answer["_content_type"] == "image/png"
        assert answer["_content_length"] == len(PICTURE)
        for content in ("!", 3, None):
            wrong = await api(socket, "POST", "/v1/caption", {"_base64_content": content})
            assert wrong["status"] == 400
            assert "base64" in wrong["error"]


async def test_an_answer_that_is_too_long_is_an_error(
    socket: AsgiSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "MAX_ANSWER_BYTES", 100)
    answer = await api(socket, "GET", "/api/v1/pipelines/schemas")
    assert answer["status"] == 413
    assert "more than 100 bytes" in answer["error"]
    assert "data" not in answer


async def test_requests_run_beside_each_other() -> None:
    service = GatedService()
    async with connected(create_app(service, CONFIG), PATH) as socket:
        await socket.receive()
        slow = {"type": "api", "request_id": 1, "method": "POST", "path": "/v1/caption"}
        socket.send({**slow, "body": {"image_url": DATA_URL}})
        await service.begun.get()
        fast = {"type": "api", "request_id": 2, "method": "GET", "path": "/v1/models"}
        assert (await call(socket, fast))["request_id"] == 2
        service.gate.release()
        assert (await socket.receive())["request_id"] == 1


async def test_requests_beyond_the_limit_are_refused_at_once() -> None:
    service = GatedService()
    limits = {**CONFIG.limits.model_dump(exclude_unset=True), "max_in_flight": 64}
    async with connected(create_app(service, with_settings(limits=limits)), PATH) as socket:
        await socket.receive()
        slow = {"type": "api", "method": "POST", "path": "/v1/caption"}
        for number in range(17):
            socket.send({**slow, "request_id": number, "body": {"image_url": DATA_URL}})
        refused = await socket.receive()
        assert (refused["request_id"], refused["status"]) == (16, 429)
        assert "16 requests of this connection" in refused["error"]


@pytest.mark.parametrize(
    "body",
    [
        {"_base64_content": "AAAA", "_content_type": "image/é"},
        {"text": "half a character: \ud800"},
    ],
)
async def test_every_request_is_answered(socket: AsgiSocket, body: dict[str, Any]) -> None:
    answer = await api(socket, "POST", "/v1/caption", body)
    assert answer["status"] >= 400
    assert (await call(socket, {"type": "ping", "request_id": "\ud800"}))["type"] == "pong"


async def test_too_much_json_is_refused_before_it_is_parsed(socket: AsgiSocket) -> None:
    error = await call(socket, {"type": "ping", "values": [{}] * 30_000})
    assert error["type"] == "error"
    assert "20000" in error["error"]


async def test_a_server_that_gets_other_keys_keeps_relays_to_them(
    service: FakeService, tmp_path: Path
) -> None:
    file = tmp_path / "keys.yaml"
    config = with_settings(**keyed("camera"))
    shared = Shared(config)
    app = create_app(service, config, shared=shared)
    async with connected(app, PATH, {"x-api-key": "key-of-camera"}) as socket:
        await socket.receive()
        broken = with_settings(auth={"keys_file": str(file)})
        shared.configure(broken)
        with pytest.raises(ValueError, match="keys"):
            create_app(service, broken, shared=shared)
        shared.configure(config)
        assert (await api(socket, "GET", "/v1/models"))["status"] == 200
        changed = with_settings(**keyed("other"))
        shared.configure(changed)
        shared.publish(create_app(service, changed, shared=shared))
        assert (await api(socket, "GET", "/v1/models"))["status"] == 401


async def test_a_disconnect_cancels_its_requests() -> None:
    service = GatedService()
    async with connected(create_app(service, CONFIG), PATH) as socket:
        await socket.receive()
        slow = {"type": "api", "method": "POST", "path": "/v1/caption"}
        socket.send({**slow, "body": {"image_url": DATA_URL}})
        await service.begun.get()
    assert service.closed == 1


async def test_requests_have_the_keys_and_limits_of_their_connection(
    service: FakeService,
) -> None:
    limits = {"client_limits": {"requests_per_minute": 1}}
    app = create_app(service, with_settings(**keyed("camera"), **limits))
    async with connected(app, PATH) as socket:
        assert "missing key" in (await socket.receive())["error"]
        assert await socket.receive_close() == 4401
    for headers, protocols in (
        ({"x-api-key": "key-of-camera"}, ()),
        ({}, ("raylens-key.key-of-camera",)),
    ):
        async with connected(app, PATH, headers, protocols) as socket:
            await socket.receive()
            answer = await api(socket, "POST", "/v1/caption", {"image_url": DATA_URL})
            assert answer["status"] == (200 if headers else 429)
    (request,) = service.requests
    assert request.client == "camera"


async def test_a_relay_of_a_server_that_drains_ends_its_requests() -> None:
    service, drain = GatedService(), Drain()
    app = create_app(service, CONFIG, shared=Shared(CONFIG, draining=drain))
    async with connected(app, PATH) as socket:
        await socket.receive()
        slow = {"type": "api", "request_id": 1, "method": "POST", "path": "/v1/caption"}
        socket.send({**slow, "body": {"image_url": DATA_URL}})
        await service.begun.get()
        drain.begin()
        await asyncio.sleep(0.01)
        socket.send({**slow, "request_id": 2})
        assert socket.received.empty()
        service.gate.release()
        answer = await socket.receive()
        assert (answer["request_id"], answer["status"]) == (1, 200)
        assert (await receive_stop(socket))["type"] == "error"
    assert len(service.requests) == 1


async def test_a_relay_of_a_server_that_drains_ends_its_signaling(app: FastAPI) -> None:
    begun, may_end, drain = asyncio.Event(), asyncio.Event(), Drain()

    @app.get("/api/v1/webrtc/ice-servers")
    async def ice_servers() -> dict[str, Any]:
        begun.set()
        await may_end.wait()
        return {"iceServers": []}

    async with connected(WebSocketDrainMiddleware(app, drain), PATH) as socket:
        await socket.receive()
        for _ in range(2):
            socket.send({"type": "get_ice_servers"})
        await begun.wait()
        drain.begin()
        await asyncio.sleep(0.01)
        assert socket.received.empty()
        may_end.set()
        assert [(await socket.receive())["status"] for _ in range(2)] == [200, 200]
        await receive_stop(socket)


def with_bytes(max_unfinished_bytes: int) -> AppConfig:
    """Return settings in which messages beyond so many bytes can't wait for answers."""
    limits = CONFIG.limits.model_dump(exclude_unset=True)
    limits |= {"max_in_flight": 64, "max_unfinished_bytes": max_unfinished_bytes}
    return with_settings(limits=limits)


def caption(number: int, size: int) -> dict[str, Any]:
    """Return a request of about so many bytes."""
    request = {"type": "api", "request_id": number, "method": "POST", "path": "/v1/caption"}
    return {**request, "body": {"image_url": DATA_URL}, "padding": "x" * size}


async def test_the_connection_that_holds_the_most_gives_way() -> None:
    service = GatedService()
    app = create_app(service, with_bytes(10_000))
    async with (
        connected(app, PATH) as large,
        connected(app, PATH, client="192.0.2.2") as small,
    ):
        for socket in (large, small):
            await socket.receive()
        large.send(caption(1, 6000))
        await service.begun.get()
        small.send(caption(1, 1000))
        await service.begun.get()
        small.send(caption(2, 3000))
        error = await large.receive()
        assert (error["status"], error["code"]) == (503, "overloaded")
        assert "too large beside those of others" in error["error"]
        assert await large.receive_close() == 4503
        await service.begun.get()
        for _ in range(2):
            service.gate.release()
        assert {(await small.receive())["status"] for _ in range(2)} == {200}
    assert service.closed == 3


async def test_a_request_that_is_answered_holds_nothing(service: FakeService) -> None:
    app = create_app(service, with_bytes(10_000))
    async with connected(app, PATH) as socket:
        await socket.receive()
        for number in range(5):
            assert (await call(socket, caption(number, 6000)))["status"] == 200
        for _ in range(5):  # refused, because this application has no WebRTC
            offer = {"type": "offer", "sdp": "x" * 6000}
            assert (await call(socket, offer))["type"] == "error"
        socket.send(caption(6, 12_000))
        assert "too large" in (await socket.receive())["error"]


async def test_webrtc_goes_through_the_relay(app: FastAPI) -> None:
    seen: list[Any] = []

    @app.get("/api/v1/webrtc/ice-servers")
    async def ice_servers() -> dict[str, Any]:
        return {"iceServers": [{"urls": "stun:192.0.2.1"}]}

    @app.post("/api/v1/webrtc/offer")
    async def offer(body: dict[str, Any]) -> Any:
        seen.append(body)
        if body["sdp"] == "bad":
            return Response('{"detail": "sdp: no"}', 400, media_type="application/json")
        return {"sdp": "answer", "type": "answer", "sessionId": "s-1"}

    @app.patch("/api/v1/webrtc/offer/{session_id}")
    async def candidates(session_id: str, body: dict[str, Any]) -> Response:
        seen.append((session_id, body))
        return Response(status_code=204)

    async with connected(app, PATH) as socket:
        await socket.receive()
        servers = await call(socket, {"type": "get_ice_servers", "request_id": "a"})
        assert servers == {
            "type": "ice_servers",
            "request_id": "a",
            "status": 200,
            "data": {"iceServers": [{"urls": "stun:192.0.2.1"}]},
        }
        candidate = {"candidate": "candidate:1 …", "sdpMid": "0", "sdpMLineIndex": 0}
        early = await call(socket, {"type": "icecandidate", "candidate": candidate})
        assert early["error"] == "No session ID available for ICE candidate"
        failed = await call(socket, {"type": "offer", "sdp": "bad"})
        assert failed == {
            "type": "error",
            "error": "Offer failed: 400",
            "status": 400,
            "detail": "sdp: no",
        }
        parameters = {"feature": "detect"}
        message = {"type": "offer", "sdp": "good", "initialParameters": parameters}
        answer = await call(socket, {**message, "request_id": "b", "user_id": "u"})
        assert answer == {
            "type": "answer",
            "request_id": "b",
            "sdp": "answer",
            "sdp_type": "answer",
            "sessionId": "s-1",
        }
        added = await call(socket, {"type": "icecandidate", "candidate": candidate})
        assert added == {"type": "icecandidate_ack", "status": "ok"}
        ended = await call(socket, {"type": "icecandidate", "sessionId": "s", "candidate": None})
        assert ended == {"type": "icecandidate_ack", "status": "end_of_candidates"}
    assert seen[1] == {"sdp": "good", "type": "offer", "initialParameters": parameters}
    assert seen[2] == ("s-1", {"candidates": [candidate]})
