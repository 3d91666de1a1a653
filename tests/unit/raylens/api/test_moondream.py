from __future__ import annotations

import json

import pytest

from raylens.errors import ModelFailed, UnsupportedMedia
from raylens.types import Caption, Length, Query
from tests.unit.raylens.api.conftest import DATA_URL, PICTURE, FakeService


async def test_a_caption(client, service: FakeService) -> None:
    body = {"image_url": DATA_URL, "length": "short", "settings": {"temperature": 0.3, "top_p": 0.8, "max_tokens": 5}}
    response = await client.post("/v1/caption", json=body)
    assert response.json() == {"caption": "two red circles"}
    (request,) = service.requests
    assert request.task == Caption(Length.SHORT)
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.max_tokens) == (0.3, 0.8, 5)
    assert request.model == "smolvlm"


async def test_a_caption_of_an_upload(client, service: FakeService) -> None:
    response = await client.post(
        "/v1/caption", files={"file": ("a.png", PICTURE, "image/png")}, data={"length": "long", "max_tokens": "4"}
    )
    assert response.json() == {"caption": "two red circles"}
    assert service.images == [PICTURE]
    assert service.requests[0].task == Caption(Length.LONG)
    assert service.requests[0].sampling.max_tokens == 4


@pytest.mark.parametrize("image", [{}, {"image_url": DATA_URL}])
async def test_null_is_absent_and_media_types_have_no_case(client, image, service: FakeService) -> None:
    body = {"question": "?", "settings": None, "stream": None, "image_url": None, **image}
    assert (await client.post("/v1/query", json=body)).status_code == 200
    files, data = {"file": PICTURE}, {"question": "?"}
    sent = client.build_request("POST", "/v1/query", files=files, data=data)
    sent.headers["content-type"] = sent.headers["content-type"].replace("multipart/form", "Multipart/Form")
    assert (await client.send(sent)).status_code == 200
    sent.headers["content-type"] += "; charset=undefined"
    assert (await client.send(sent)).status_code in (200, 400)


@pytest.mark.parametrize("image", [{}, {"image_url": DATA_URL}])
async def test_a_query_with_and_without_a_picture(client, service: FakeService, image) -> None:
    response = await client.post("/v1/query", json={"question": "how many?", **image})
    assert response.json() == {"answer": "two red circles"}
    assert service.requests[0].task == Query("how many?")
    assert len(service.images) == len(image)


@pytest.mark.parametrize("path", ["/v1/caption", "/v1/query"])
async def test_streams_are_lines_that_the_client_reads(client, path) -> None:
    body = {"image_url": DATA_URL, "stream": True} | ({"question": "?"} if path.endswith("query") else {})
    lines = [line for line in (await client.post(path, json=body)).text.splitlines() if line]
    assert [json.loads(line.removeprefix("data: ")) for line in lines] == [
        {"chunk": "two "},
        {"chunk": "red "},
        {"chunk": "circles"},
        {"completed": True},
    ]


async def test_a_broken_stream_is_never_completed(client, service: FakeService) -> None:
    service.error, service.before_error = ModelFailed("broken"), 1
    text = (await client.post("/v1/caption", json={"image_url": DATA_URL, "stream": True})).text
    assert "completed" not in text
    assert '"detail":"broken"' in text


async def test_warnings_of_preprocessing_are_passed_on(client, service: FakeService) -> None:
    service.warnings = ("a", "b")
    assert (await client.post("/v1/caption", json={"image_url": DATA_URL})).json()["warnings"] == ["a", "b"]
    text = (await client.post("/v1/caption", json={"image_url": DATA_URL, "stream": True})).text
    assert text.endswith('data: {"completed":true,"warnings":["a","b"]}\n\n')


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("caption", {}, 400, "image_url: a picture is needed"),
        ("caption", {"image_url": DATA_URL, "length": "huge"}, 400, "length: Input should be 'short', 'normal'"),
        ("caption", {"image_url": DATA_URL, "settings": {"temperature": 9}}, 400, "settings.temperature"),
        ("caption", {"image_url": DATA_URL, "colour": 1}, 400, "colour"),
        ("caption", {"image_url": DATA_URL, "model": "x" * 999}, 404, "not served here"),
        ("caption", {"image_url": "http://a/b.png"}, 400, "http: URLs are not fetched"),
        ("caption", [], 400, "body"),
        ("query", {"image_url": DATA_URL}, 400, "question: Field required"),
        ("query", {"question": "?", "reasoning": True}, 400, "reasoning: not supported"),
        ("detect", {"image_url": DATA_URL, "object": "cat"}, 400, "smolvlm can't detect; no model that"),
        ("point", {"image_url": DATA_URL, "object": "cat"}, 400, "can't point"),
        ("segment", {"image_url": DATA_URL, "object": "cat"}, 400, "segment"),
    ],
)  # fmt: skip
async def test_bad_input_is_explained(client, service: FakeService, path, body, status, words) -> None:
    response = await client.post(f"/v1/{path}", json=body)
    assert response.status_code == status
    assert words in response.json()["detail"]
    assert len(response.json()["detail"]) < 400
    assert service.requests == []


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 20_000, b'{"settings": ' + b"9" * 5000 + b"}"])
async def test_a_body_that_is_not_json_is_refused(client, content) -> None:
    response = await client.post("/v1/caption", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert len(response.text) < 300
    assert "not JSON" in response.json()["detail"]


async def test_a_file_and_a_url_at_once_are_refused(client) -> None:
    response = await client.post("/v1/caption", files={"file": PICTURE}, data={"image_url": DATA_URL})
    assert response.status_code == 400
    assert "either" in response.json()["detail"]


async def test_an_error_of_the_graph_keeps_its_status(client, service: FakeService) -> None:
    service.error = UnsupportedMedia("image: not a picture")
    response = await client.post("/v1/caption", json={"image_url": DATA_URL})
    assert (response.status_code, response.json()) == (415, {"detail": "image: not a picture"})
