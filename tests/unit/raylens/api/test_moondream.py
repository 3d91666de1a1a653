from __future__ import annotations

import json

import pytest

from raylens.core.errors import ModelFailed, UnsupportedMedia
from raylens.core.types import (
    Caption,
    Detect,
    Grounding,
    Length,
    Location,
    Point,
    Query,
    Reasoning,
    Region,
    SamplingParams,
)
from tests.unit.raylens.api.conftest import DATA_URL, PICTURE, TALKS, FakeService

ASK = {"image_url": DATA_URL, "question": "?"}
CAT = {"image_url": DATA_URL, "object": "cat"}
THOUGHTS = Reasoning("I see it", (Grounding(2, 5, (Location(0.25, 0.5),)),))
THOUGHTS_AS_JSON = {
    "text": "I see it",
    "grounding": [{"start_idx": 2, "end_idx": 5, "points": [[0.25, 0.5]]}],
}
FINDS = (*TALKS, "detect", "point")


async def test_a_caption(client, service: FakeService) -> None:
    body = {
        "image_url": DATA_URL,
        "length": "short",
        "settings": {"temperature": 0.3, "top_p": 0.8, "max_tokens": 5},
    }
    response = await client.post("/v1/caption", json=body)
    assert response.json() == {"caption": "two red circles"}
    (request,) = service.requests
    assert request.task == Caption(Length.SHORT)
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.max_tokens) == (
        0.3,
        0.8,
        5,
    )
    assert request.model == "smolvlm"


async def test_a_caption_of_an_upload(client, service: FakeService) -> None:
    response = await client.post(
        "/v1/caption",
        files={"file": ("a.png", PICTURE, "image/png")},
        data={"length": "long", "max_tokens": "4"},
    )
    assert response.json() == {"caption": "two red circles"}
    assert service.images == [PICTURE]
    assert service.requests[0].task == Caption(Length.LONG)
    assert service.requests[0].sampling.max_tokens == 4


@pytest.mark.parametrize("image", [{}, {"image_url": DATA_URL}])
async def test_null_is_absent_and_media_types_have_no_case(
    client, image, service: FakeService
) -> None:
    body = {"question": "?", "settings": None, "stream": None, "image_url": None, **image}
    assert (await client.post("/v1/query", json=body)).status_code == 200
    files, data = {"file": PICTURE}, {"question": "?"}
    sent = client.build_request("POST", "/v1/query", files=files, data=data)
    sent.headers["content-type"] = sent.headers["content-type"].replace(
        "multipart/form", "Multipart/Form"
    )
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
    body = {"image_url": DATA_URL, "stream": True} | (
        {"question": "?"} if path.endswith("query") else {}
    )
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
    assert (await client.post("/v1/caption", json={"image_url": DATA_URL})).json()["warnings"] == [
        "a",
        "b",
    ]
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
        ("query", {"question": "?", "spatial_refs": [[0.5, 0.5]]}, 400, "spatial_refs: there is no picture"),
        ("query", {**ASK, "spatial_refs": [[0.5]]}, 400, "spatial_refs.0: 1 numbers; a point has 2, and a box 4"),
        ("query", {**ASK, "spatial_refs": [[0, 0], [0.5, 0, 0.5, 1]]}, 400, "spatial_refs.1: a box is x_min"),
        ("query", {**ASK, "spatial_refs": [[0.5, 1.5]]}, 400, "spatial_refs.0.1: Input should be less than"),
        ("query", {**ASK, "spatial_refs": [[0, 0]] * 65}, 400, "spatial_refs: List should have at most 64"),
        ("detect", {**CAT, "settings": {"max_objects": 1001}}, 400, "settings.max_objects"),
        ("detect", CAT, 400, "smolvlm can't detect; no model that is served here can"),
        ("point", CAT, 400, "can't point"),
        ("point", {**CAT, "stream": True}, 400, "stream: not supported"),
        ("detect", {**CAT, "stream": True}, 400, "stream: not supported"),
        ("point", {**CAT, "spatial_refs": [[0.5, 0.5]]}, 400, "spatial_refs: not supported"),
        ("detect", {**CAT, "spatial_refs": [[0.5, 0.5]]}, 400, "spatial_refs: not supported"),
        ("detect", {**CAT, "object": ""}, 400, "object: Value should have at least 1"),
        ("point", {**CAT, "object": "x" * 2001}, 400, "object: 2001 characters; the limit is 2000"),
        ("detect", {**CAT, "settings": {"max_objects": 0}}, 400, "settings.max_objects"),
        ("detect", {**CAT, "model": "nope"}, 404, "not served here"),
        ("detect", {"object": "cat"}, 400, "image_url: a picture is needed"),
        ("segment", CAT, 400, "segment"),
    ],
)  # fmt: skip
async def test_bad_input_is_explained(
    client, service: FakeService, path, body, status, words
) -> None:
    response = await client.post(f"/v1/{path}", json=body)
    assert response.status_code == status
    assert words in response.json()["detail"]
    assert len(response.json()["detail"]) < 400
    assert service.requests == []


@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe", b"[" * 20_000, b'{"settings": ' + b"9" * 5000 + b"}"]
)
async def test_a_body_that_is_not_json_is_refused(client, content) -> None:
    response = await client.post(
        "/v1/caption", content=content, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert len(response.text) < 300
    assert "not JSON" in response.json()["detail"]


async def test_a_file_and_a_url_at_once_are_refused(client) -> None:
    response = await client.post(
        "/v1/caption", files={"file": PICTURE}, data={"image_url": DATA_URL}
    )
    assert response.status_code == 400
    assert "either" in response.json()["detail"]


async def test_an_error_of_the_graph_keeps_its_status(client, service: FakeService) -> None:
    service.error = UnsupportedMedia("image: not a picture")
    response = await client.post("/v1/caption", json={"image_url": DATA_URL})
    assert (response.status_code, response.json()) == (415, {"detail": "image: not a picture"})


async def test_boxes_are_detected(client, service: FakeService) -> None:
    service.tasks = {"smolvlm": FINDS}
    body = {
        **CAT,
        "spatial_refs": [],
        "stream": False,
        "settings": {"temperature": 0.3, "max_tokens": 9},
    }
    boxes = [
        {"x_min": 0.1, "y_min": 0.2, "x_max": 0.3, "y_max": 0.4},
        {"x_min": 0.5, "y_min": 0.5, "x_max": 1.0, "y_max": 1.0},
    ]
    assert (await client.post("/v1/detect", json=body)).json() == {"objects": boxes}
    (request,) = service.requests
    assert request.task == Detect("cat")
    assert request.sampling == SamplingParams(max_tokens=9, temperature=0.3)
    assert service.images == [PICTURE]
    assert service.closed == 1


async def test_points_are_found_in_an_upload(client, service: FakeService) -> None:
    service.tasks, service.warnings = {"smolvlm": FINDS}, ("denoise was skipped",)
    response = await client.post(
        "/v1/point", files={"file": PICTURE}, data={"object": "cat", "max_objects": "1"}
    )
    points = [{"x": 0.2, "y": 0.3}, {"x": 0.75, "y": 0.75}]
    assert response.json() == {"points": points, "warnings": ["denoise was skipped"]}
    assert service.requests[0].task == Point("cat", max_objects=1)
    assert service.requests[0].sampling == SamplingParams(max_tokens=50)


async def test_thoughts_are_told_beside_the_answer(client, service: FakeService) -> None:
    service.reasoning, service.tasks = THOUGHTS, {"smolvlm": (*TALKS, "reason")}
    body = {**ASK, "reasoning": True, "spatial_refs": [[0.1, 0.2], [0.1, 0.2, 0.3, 0.4]]}
    answer = (await client.post("/v1/query", json=body)).json()
    assert answer == {"reasoning": THOUGHTS_AS_JSON, "answer": "two red circles"}
    places = (Location(0.1, 0.2), Region(0.1, 0.2, 0.3, 0.4))
    assert service.requests[0].task == Query("?", reasoning=True, spatial_refs=places)
    streamed = (await client.post("/v1/query", json={**body, "stream": True})).text
    end = json.loads(streamed.splitlines()[-2].removeprefix("data: "))
    assert end == {"completed": True, "reasoning": THOUGHTS_AS_JSON}


async def test_reasoning_goes_to_a_model_that_can(client, service: FakeService) -> None:
    refused = await client.post("/v1/query", json={**ASK, "reasoning": True})
    assert (refused.status_code, service.requests) == (400, [])
    assert "smolvlm can't reason; no model that is served here can" in refused.json()["detail"]
    service.tasks = {"other": (*TALKS, "reason")}
    await client.post("/v1/query", json={**ASK, "reasoning": True})
    assert service.requests[0].model == "other"


async def test_a_form_holds_findings_as_json(client, service: FakeService) -> None:
    form = {"question": "?", "spatial_refs": "[[0.1, 0.2], [0.1, 0.2, 0.3, 0.4]]"}
    assert (await client.post("/v1/query", files={"file": PICTURE}, data=form)).status_code == 200
    places = (Location(0.1, 0.2), Region(0.1, 0.2, 0.3, 0.4))
    assert service.requests[0].task == Query("?", spatial_refs=places)
    response = await client.post(
        "/v1/query", files={"file": PICTURE}, data={**form, "spatial_refs": "here"}
    )
    assert "spatial_refs: a list of points and boxes is needed" in response.json()["detail"]


@pytest.mark.parametrize(("path", "key"), [("detect", "objects"), ("point", "points")])
async def test_nothing_found_is_an_answer_and_no_answer_is_an_error(
    client, service: FakeService, path, key
) -> None:
    service.tasks, service.regions, service.locations = {"smolvlm": FINDS}, (), ()
    assert (await client.post(f"/v1/{path}", json=CAT)).json() == {key: []}
    service.regions = service.locations = None
    assert (await client.post(f"/v1/{path}", json=CAT)).status_code == 500


@pytest.mark.parametrize(
    ("able", "down", "named", "answers"),
    [
        ("smolvlm other", "", None, "smolvlm"),
        ("smolvlm other", "", "org/other", "other"),
        ("other", "", None, "other"),
        ("other", "", "", "other"),
        ("other", "smolvlm", None, "other"),
        ("smolvlm", "other", None, "smolvlm"),
        ("other", "smolvlm", "other", "other"),
        ("smolvlm", "other", "small", "smolvlm"),
    ],
)
async def test_where_none_is_named_a_model_that_can_answers(
    client, service, able, down, named, answers
) -> None:
    service.tasks = dict.fromkeys(able.split(), FINDS)
    service.loaded -= {down}
    assert (await client.post("/v1/detect", json={**CAT, "model": named})).status_code == 200
    assert service.requests[0].model == answers


@pytest.mark.parametrize(
    ("able", "down", "named", "status", "words"),
    [
        ("other", "", "smolvlm", 400, "model: smolvlm can't point; these can: other"),
        ("", "", "small", 400, "model: smolvlm can't point; no model that is served here can"),
        ("", "other", "smolvlm", 400, "model: smolvlm can't point; no model that is up can"),
        ("smolvlm", "other", "other", 503, "other is down"),
        ("", "other", None, 503, "other is down"),
        ("", "smolvlm", None, 503, "smolvlm is down"),
        ("", "smolvlm other", None, 503, "smolvlm is down"),
    ],
)
async def test_a_model_that_cant_says_which_can(
    client, service, able, down, named, status, words
) -> None:
    service.tasks = dict.fromkeys(able.split(), FINDS)
    service.loaded -= set(down.split())
    response = await client.post("/v1/point", json={**CAT, "model": named})
    assert (response.status_code, response.json()["detail"]) == (status, words)
    assert response.headers.get("retry-after") == ("2" if status == 503 else None)
    assert service.requests == []


@pytest.mark.parametrize("path", ["detect", "point"])
async def test_an_error_while_finding_keeps_its_status(client, service: FakeService, path) -> None:
    service.tasks, service.error = {"smolvlm": FINDS}, UnsupportedMedia("image: not a picture")
    response = await client.post(f"/v1/{path}", json=CAT)
    assert (response.status_code, response.json()) == (415, {"detail": "image: not a picture"})
    assert service.closed == 1
