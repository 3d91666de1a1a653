"""Pictures by web address and by path, in every dialect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from raylens.api.app import create_app
from raylens.core.config import AppConfig
from tests.unit.raylens.api.conftest import CONFIG, PICTURE, FakeService, chat, image
from tests.unit.raylens.net.fake_dns import FakeDns
from tests.unit.raylens.net.servers import listening, serving

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n%s" % (
    len(PICTURE),
    PICTURE,
)


def connect(service: FakeService, **settings: Any) -> httpx.AsyncClient:
    config = AppConfig.model_validate(CONFIG.model_dump(exclude_unset=True) | settings)
    app = create_app(service, config, look_up=FakeDns("127.0.0.1").look_up)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


@pytest.fixture
async def http(service: FakeService) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(service, fetch={"allow": ["pictures.example"]}) as client:
        yield client


def requests(url: str) -> list[tuple[str, dict[str, Any], str]]:
    """Return a request with a picture for every dialect: path, body, and field of the picture."""
    part = {"type": "input_image", "image_url": url}
    return [
        ("/v1/chat/completions", chat("x", image(url)), "messages.0.content.1.image_url.url"),
        (
            "/v1/responses",
            {"input": [{"role": "user", "content": [part]}]},
            "input.0.content.0.image_url",
        ),
        ("/v1/caption", {"image_url": url}, "image_url"),
        ("/v1/preprocess", {"image_url": url}, "image_url"),
    ]


DIALECTS = range(len(requests("")))


@pytest.mark.parametrize("number", DIALECTS)
async def test_a_picture_comes_from_its_web_address(
    service: FakeService, http: httpx.AsyncClient, number: int
) -> None:
    async with listening(ANSWER) as (port, heads):
        path, body, _ = requests(f"http://pictures.example:{port}/cat.png")[number]
        response = await http.post(path, json=body)
    assert response.status_code == 200
    assert service.pictures == [PICTURE]
    assert len(heads) == 1


@pytest.mark.parametrize("number", DIALECTS)
async def test_an_error_names_the_field_and_not_the_address(
    http: httpx.AsyncClient, number: int
) -> None:
    path, body, field = requests("http://metadata.example/")[number]
    response = await http.post(path, json=body)
    assert response.status_code == (422 if path == "/v1/preprocess" else 400)
    message = f"{field}: metadata.example leads to an address that is not public"
    assert message in response.text
    assert "127.0.0.1" not in response.text


async def test_pictures_of_a_request_are_downloaded_together(
    service: FakeService, http: httpx.AsyncClient
) -> None:
    everyone_is_here = asyncio.Barrier(3)

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await everyone_is_here.wait()
        writer.write(ANSWER)
        await writer.drain()

    async with serving(respond) as port:
        pictures = [image(f"http://pictures.example:{port}/{number}.png") for number in range(3)]
        response = await http.post("/v1/chat/completions", json=chat("x", *pictures))
    assert response.status_code == 200
    assert service.pictures == [PICTURE] * 3


async def test_a_download_ends_at_the_requests_deadline(http: httpx.AsyncClient) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(hold) as port:
        body = {"image_url": f"http://pictures.example:{port}/"}
        headers = {"X-Request-Timeout": "0.1"}
        response = await http.post("/v1/caption", json=body, headers=headers)
    assert response.status_code == 504
    assert "the deadline passed before image_url was downloaded" in response.text


async def test_downloads_can_be_turned_off(service: FakeService) -> None:
    async with connect(service, fetch={"mode": "off"}) as http:
        response = await http.post("/v1/caption", json={"image_url": "https://example.com/"})
    assert response.status_code == 400
    assert response.json()["detail"].startswith("image_url: this server downloads nothing")


async def test_a_file_comes_from_the_media_folder_only(
    service: FakeService, tmp_path: Path
) -> None:
    root = tmp_path / "media"
    root.mkdir()
    (root / "a cat.png").write_bytes(PICTURE)
    (tmp_path / "secret.png").write_bytes(PICTURE)
    async with connect(service, media_root=str(root)) as http:
        for name, status in (("media/a%20cat.png", 200), ("secret.png", 400), ("none.png", 400)):
            url = f"file://{tmp_path}/{name}"
            response = await http.post("/v1/caption", json={"image_url": url})
            assert response.status_code == status
    assert service.pictures == [PICTURE]
    assert response.json() == {"detail": "image_url: not a file in the folder media_root"}
    async with connect(service) as http:
        url = f"file://{root}/a%20cat.png"
        response = await http.post("/v1/caption", json={"image_url": url})
    assert response.status_code == 400
    assert "its configuration has no media_root" in response.json()["detail"]
