"""Bodies as clients send them: data URLs, forms, compression, Content-Types."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest

from tests.unit.raylens.api.conftest import DATA_URL, PICTURE, FakeService

TEXT = base64.b64encode(PICTURE).decode()
JSON = {"content-type": "application/json"}

DATA_URLS = {
    "plain": DATA_URL,
    "upper case": f"DATA:IMAGE/PNG;BASE64,{TEXT}",
    "no type": f"data:;base64,{TEXT}",
    "nothing but base64": f"data:;base64,{TEXT}",
    "parameters": f"data:image/png;name=a.png;charset=utf-8;base64,{TEXT}",
    "spaces": f" data: image/png ; base64 ,{TEXT}",
    "line breaks": f"data:image/png;base64,{TEXT[:20]}\r\n {TEXT[20:]}\n",
    "line breaks in the head": f" \x01\ndata:image/png;\nbase\t64,{TEXT}",
    "line breaks without base64": "data:image/\npng," + quote(PICTURE, safe="") + "\r\n",
    "no padding": f"data:image/png;base64,{TEXT.rstrip('=')}",
    "URL-safe": f"data:image/png;base64,{base64.urlsafe_b64encode(PICTURE).decode()}",
    "percent-encoded": f"data:image/png;base64,{quote(TEXT, safe='')}",
    "percent-encoded throughout": "data:image/png;base64,"
    + "".join(f"%{ord(c):02x}" for c in TEXT),
    "a fragment": f"{DATA_URL}#top",
    "no base64": f"data:image/png,{quote(PICTURE, safe='')}",
    "no base64 in lower case": "data:image/png," + "".join(f"%{byte:02x}" for byte in PICTURE),
}


@pytest.mark.parametrize("name", DATA_URLS)
async def test_data_urls_are_read_as_browsers_do(client, service: FakeService, name) -> None:
    response = await client.post("/v1/caption", json={"image_url": DATA_URLS[name]})
    assert response.status_code == 200, response.text
    assert service.pictures == [PICTURE]


@pytest.mark.parametrize("url", ["data:image/png;base64,", "data:,", "data:image/png;base64,#x"])
async def test_an_empty_picture_is_empty(client, service, url) -> None:
    response = await client.post("/v1/caption", json={"image_url": url})
    assert response.status_code == 400
    assert response.json()["detail"] == "image_url: the picture is empty (0 bytes)"
    response = await client.post("/v1/caption", files={"file": b""})
    assert response.json()["detail"] == "file: the picture is empty (0 bytes)"


async def test_a_large_percent_encoded_picture_is_over_the_limit(client) -> None:
    url = "data:image/png;base64," + "%41" * 12_000
    assert (await client.post("/v1/caption", json={"image_url": url})).status_code == 200
    for url in ("data:image/png;base64," + "A" * 30_000, "data:image/png," + "a" * 30_000):
        response = await client.post("/v1/caption", json={"image_url": url})
        assert response.status_code == 413
        assert "the limit is 20000 bytes" in response.json()["detail"]


@pytest.mark.parametrize("piece_bytes", [1, 10**6])
@pytest.mark.parametrize(
    "encoding", ["gzip", "x-gzip", "GZIP", "deflate", "deflate without a header", "deflate of gzip"]
)
async def test_a_compressed_body_is_unpacked(client, service, encoding, piece_bytes) -> None:
    body = json.dumps({"image_url": DATA_URL}).encode()
    # A gzip file may consist of several members.
    packed = gzip.compress(body[:20]) + gzip.compress(body[20:])
    if encoding in ("deflate", "deflate without a header"):
        packed = zlib.compress(body)
    if encoding.endswith("header"):
        packed = packed[2:-4]

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(packed), piece_bytes):
            yield packed[start : start + piece_bytes]

    headers = {**JSON, "content-encoding": encoding.split()[0]}
    response = await client.post("/v1/caption", content=pieces(), headers=headers)
    assert response.status_code == 200, response.text
    assert service.pictures == [PICTURE]


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (gzip.compress(bytes(10**7)), 413, "the limit is 40000 bytes"),
        (gzip.compress(b'{"image_url": "x"}')[:-9], 400, "cut off"),
        (gzip.compress(b'{"image_url": "x"}') + b"more", 400, "unpacking it failed"),
        (gzip.compress(b"") * 1001, 400, "over 1000 members"),
        (b'{"image_url": "x"}', 400, "unpacking it failed"),
        (b"", 400, "cut off"),
    ],
)
async def test_a_bad_compressed_body_is_refused(client, content, status, message) -> None:
    headers = {**JSON, "content-encoding": "gzip"}
    response = await client.post("/v1/caption", content=content, headers=headers)
    assert response.status_code == status
    assert message in response.json()["detail"]


async def test_other_encodings_are_refused(client) -> None:
    for path, key in (("/v1/caption", "detail"), ("/v1/chat/completions", "error")):
        response = await client.post(path, content=b"x", headers={"content-encoding": "br"})
        assert response.status_code == 415
        assert "Content-Encoding: 'br'; expected gzip, deflate or none" in str(response.json()[key])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/caption", "/v1/responses"])
async def test_curls_own_content_type_is_named(client, path) -> None:
    body = json.dumps({"image_url": DATA_URL, "messages": []})
    headers = {"content-type": "application/x-www-form-urlencoded"}
    response = await client.post(path, content=body, headers=headers)
    assert response.status_code == 400
    assert "curl's default for -d; add -H 'Content-Type: application/json'" in response.text
    assert TEXT[:20] not in response.text


async def test_another_content_type_is_named(client) -> None:
    headers = {"content-type": "text/plain"}
    response = await client.post("/v1/chat/completions", content=b"{}", headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["message"].endswith("application/json; got text/plain")


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.5, "max_tokens": 9}, {"temperature": 0.5, "max_tokens": 9, "variant": "x"}],
)
async def test_a_form_may_send_settings_as_json(client, service, settings) -> None:
    for data in (
        {"settings": json.dumps(settings)},
        {"settings": json.dumps(settings | {"max_tokens": 3}), "max_tokens": "9"},
    ):
        response = await client.post("/v1/caption", files={"file": PICTURE}, data=data)
        assert response.status_code == 200, response.text
        sampling = service.requests[-1].sampling
        assert (sampling.temperature, sampling.max_tokens) == (0.5, 9)


@pytest.mark.parametrize("text", ["{", "[]", "5"])
async def test_settings_that_are_no_object_are_refused(client, text) -> None:
    response = await client.post("/v1/caption", files={"file": PICTURE}, data={"settings": text})
    assert response.status_code == 400
    assert response.json()["detail"].startswith("settings: ")


async def test_null_and_empty_values_count_as_absent(client, service) -> None:
    body = {"image_url": DATA_URL, "settings": None, "model": "", "recipe": None, "stream": None}
    for settings in (None, {}, {"temperature": None, "max_tokens": None, "junk": 1}):
        response = await client.post("/v1/caption", json={**body, "settings": settings})
        assert response.status_code == 200, response.text
    assert len({request.sampling for request in service.requests}) == 1
