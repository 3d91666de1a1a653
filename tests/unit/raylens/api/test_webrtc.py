"""Signalling of WebRTC sessions, in Scope's format."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from raylens.api.app import create_app
from raylens.core.errors import Overloaded, UnknownSession
from raylens.realtime.ports import SessionAnswer, SessionClient, SessionOffer, WebRtcService
from tests.unit.raylens.api.conftest import CONFIG, FakeService
from tests.unit.raylens.api.test_frame_socket import keyed, with_settings

SERVERS = [{"urls": ["stun:192.0.2.1"]}]


@dataclass
class FakeWebRtc(WebRtcService):
    """Records what it is asked."""

    offers: list[tuple[SessionOffer, SessionClient]] = field(default_factory=list)
    candidates: list[tuple[str, list[Any], SessionClient]] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    error: Exception | None = None

    async def ice_servers(self, client: SessionClient) -> list[dict[str, Any]]:
        return SERVERS

    async def offer(self, offer: SessionOffer, client: SessionClient) -> SessionAnswer:
        if self.error is not None:
            raise self.error
        self.offers.append((offer, client))
        return SessionAnswer("v=0 answer", "answer", "replica-1")

    async def add_candidates(
        self, session_id: str, candidates: Sequence[Any], client: SessionClient
    ) -> None:
        if session_id != "replica-1":
            raise UnknownSession(f"there is no session {session_id!r}")
        self.candidates.append((session_id, list(candidates), client))

    async def state(self, session_id: str, client: SessionClient) -> dict[str, Any]:
        return {"sessionId": session_id, "status": "connected"}

    async def close(self, session_id: str, client: SessionClient) -> None:
        self.closed.append(session_id)


@pytest.fixture
def webrtc() -> FakeWebRtc:
    return FakeWebRtc()


@pytest.fixture
async def client(service: FakeService, webrtc: FakeWebRtc) -> AsyncIterator[httpx.AsyncClient]:
    service.tasks = {"smolvlm": ("caption", "query", "detect", "point", "chat")}
    transport = httpx.ASGITransport(create_app(service, CONFIG, webrtc=webrtc))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost/api/v1") as http:
        yield http


async def test_a_session_from_offer_to_end(client: httpx.AsyncClient, webrtc: FakeWebRtc) -> None:
    servers = await client.get("/webrtc/ice-servers")
    assert servers.json() == {"iceServers": SERVERS}
    body = {
        "sdp": "v=0",
        "type": "offer",
        "initialParameters": {"feature": "caption"},
        "user_id": None,
        "connection_info": {"gpu_type": "x"},
    }
    answer = await client.post("/webrtc/offer", json=body)
    assert answer.json() == {"sdp": "v=0 answer", "type": "answer", "sessionId": "replica-1"}
    candidate = {"candidate": "candidate:1 …", "sdpMid": "0", "sdpMLineIndex": 0}
    added = await client.patch("/webrtc/offer/replica-1", json={"candidates": [candidate]})
    assert (added.status_code, added.content) == (204, b"")
    state = await client.get("/webrtc/offer/replica-1")
    assert state.json() == {"sessionId": "replica-1", "status": "connected"}
    ended = await client.delete("/webrtc/offer/replica-1")
    assert (ended.status_code, ended.content) == (204, b"")
    ((offer, _),) = webrtc.offers
    assert offer == SessionOffer("v=0", "offer", "moondream", {"feature": "caption"})
    assert webrtc.candidates[0][:2] == ("replica-1", [candidate])
    assert webrtc.closed == ["replica-1"]


async def test_sessions_begin_with_the_settings_of_the_loaded_pipeline(
    client: httpx.AsyncClient, webrtc: FakeWebRtc
) -> None:
    body = {"pipeline_ids": ["moondream"], "load_params": {"feature": "point", "max_objects": 3}}
    assert (await client.post("/pipeline/load", json=body)).status_code == 200
    all_parameters: list[dict[str, Any] | None] = [
        {},
        {"pipeline_ids": ["moondream"], "max_objects": 4},
        {"pipeline_ids": ["other"], "speed": 1},
        None,
    ]
    for parameters in all_parameters:
        offer = {"sdp": "v=0", "type": "offer", "initialParameters": parameters}
        assert (await client.post("/webrtc/offer", json=offer)).status_code == 200
    first, changed, other, absent = (made for made, _ in webrtc.offers)
    assert first.parameters["feature"] == "point"
    assert (first.parameters["max_objects"], changed.parameters["max_objects"]) == (3, 4)
    assert (other.pipeline_id, other.parameters) == ("other", {"speed": 1})
    assert absent == first


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "sdp"),
        ({"sdp": ""}, "sdp"),
        ({"sdp": 3}, "sdp"),
        ({"sdp": "v=0", "initialParameters": [1]}, "initialParameters"),
    ],
)
async def test_a_bad_offer_names_its_field(
    client: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    answer = await client.post("/webrtc/offer", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(field)


async def test_errors_of_sessions(client: httpx.AsyncClient, webrtc: FakeWebRtc) -> None:
    missing = await client.patch("/webrtc/offer/gone", json={"candidates": []})
    assert missing.status_code == 404
    assert "no session 'gone'" in missing.json()["detail"]
    webrtc.error = Overloaded("live video is away", None, retry_after=5)
    away = await client.post("/webrtc/offer", json={"sdp": "v=0"})
    assert (away.status_code, away.headers["Retry-After"]) == (503, "5")


async def test_a_session_belongs_to_a_key(service: FakeService, webrtc: FakeWebRtc) -> None:
    app = create_app(service, with_settings(**keyed("camera")), webrtc=webrtc)
    transport = httpx.ASGITransport(app, client=("192.0.2.7", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        path = "/api/v1/webrtc/offer"
        assert (await http.post(path, json={"sdp": "v=0"})).status_code == 401
        headers = {"X-API-Key": "key-of-camera"}
        assert (await http.post(path, json={"sdp": "v=0"}, headers=headers)).status_code == 200
    ((_, client),) = webrtc.offers
    assert client == SessionClient("camera", "camera", "192.0.2.7")


async def test_without_live_video_there_are_no_routes(service: FakeService) -> None:
    transport = httpx.ASGITransport(create_app(service, CONFIG))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        assert (await http.get("/api/v1/webrtc/ice-servers")).status_code == 404
