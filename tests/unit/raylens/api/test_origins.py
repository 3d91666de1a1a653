"""What web pages of strangers send through a browser is refused."""

from __future__ import annotations

import socket
from typing import Any

import httpx
import pytest

from raylens.api.app import create_app
from raylens.core.config import AppConfig
from tests.unit.raylens.api.conftest import CONFIG, DATA_URL, FakeService

PATH = "/v1/caption"
BODY = {"image_url": DATA_URL}


async def send(
    service: FakeService,
    headers: dict[str, str],
    method: str = "POST",
    path: str = PATH,
    **settings: Any,
) -> httpx.Response:
    config = AppConfig.model_validate(CONFIG.model_dump(exclude_unset=True) | settings)
    transport = httpx.ASGITransport(create_app(service, config))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        body = BODY if method == "POST" else None
        return await client.request(method, path, headers=headers, json=body)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "localhost.",
        "127.0.0.1:8000",
        "[::1]:8000",
        "192.168.1.7",
        "203.0.113.9:80",
        "app.localhost",
        "host.docker.internal:8000",
        "raylens-serve-svc.default.svc.cluster.local:8000",
        socket.gethostname(),
        "vision.example.com",
        "a.b.example.org",
    ],
)
async def test_a_name_of_this_server_is_answered(service: FakeService, host: str) -> None:
    names = ["vision.example.com", "*.example.org"]
    response = await send(service, {"Host": host}, allowed_hosts=names)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "example.org",
        "vision.example.com.evil.example",
        "evil.example#.localhost",
        "localhost@evil.example",
        "[evil]",
        "",
    ],
)
async def test_another_name_is_not_ours(service: FakeService, host: str) -> None:
    names = ["vision.example.com", "*.example.org"]
    for path in (PATH, "/v1/chat/completions", "/api/v1/jobs", "/docs"):
        response = await send(service, {"Host": host}, path=path, allowed_hosts=names)
        assert response.status_code == 421
        assert "is no name of this server" in response.text
        assert "allowed_hosts" in response.text
    assert not service.requests


async def test_any_name_is_ours_if_the_configuration_says_so(service: FakeService) -> None:
    assert (await send(service, {"Host": "any.example"}, allowed_hosts=["*"])).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/live"])
async def test_a_probe_may_use_any_name(service: FakeService, path: str) -> None:
    response = await send(service, {"Host": "pod-7.example"}, "GET", path)
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("origin", "settings", "status"),
    [
        ("http://localhost:3000", {}, 200),
        ("http://localhost", {}, 200),
        ("https://evil.example", {}, 403),
        ("null", {}, 403),
        ("http://localhost.evil.example", {}, 403),
        ("https://app.example", {"cors_origins": ["https://app.example"]}, 200),
        ("http://localhost:3000", {"cors_origins": ["https://app.example"]}, 403),
        ("https://evil.example", {"cors_origins": ["*"]}, 200),
    ],
)
async def test_a_page_may_post_only_from_an_allowed_origin(
    service: FakeService, origin: str, settings: dict[str, Any], status: int
) -> None:
    """A form, or a POST of plain text, needs no preflight."""
    headers = {"Origin": origin, "Content-Type": "text/plain", "Host": "127.0.0.1:8000"}
    response = await send(service, headers, **settings)
    assert response.status_code == status, response.text
    assert len(service.requests) == (status == 200)
    assert (await send(service, headers, "GET", "/live", **settings)).status_code == 200


async def test_this_servers_own_pages_may_post(service: FakeService) -> None:
    headers = {"Origin": "http://192.168.1.7:8000", "Host": "192.168.1.7:8000"}
    assert (await send(service, headers)).status_code == 200


@pytest.mark.parametrize("method", ["DELETE", "PUT"])
async def test_a_page_may_not_change_jobs(service: FakeService, method: str) -> None:
    headers = {"Origin": "https://evil.example"}
    response = await send(service, headers, method, "/api/v1/jobs/1")
    assert response.status_code == 403
    assert "cors_origins" in response.json()["detail"]


@pytest.mark.parametrize(
    "headers", [{"host": "evil.example"}, {"host": "localhost", "origin": "https://evil.example"}]
)
async def test_a_websocket_is_closed(service: FakeService, headers: dict[str, str]) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def record(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": "/api/v1/ws",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    await create_app(service, CONFIG)(scope, receive, record)
    assert [message["type"] for message in sent] == ["websocket.close"]
