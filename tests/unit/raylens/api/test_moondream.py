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
from tests.unit.raylens.api.conftest import DATA_URL, PICTURE, TEXT_TASKS, FakeService

QUERY = {"image_url": DATA_URL, "question": "?"}
DETECT = {"image_url": DATA_URL, "object": "cat"}
REASONING = Reasoning("I see it", (Grounding(2, 5, (Location(0.25, 0.5),)),))
REASONING_JSON = {
    "text": "I see it",
    "grounding": [{"start_idx": 2, "end_idx": 5, "points": [[0.25, 0.5]]}],
}
GROUNDING_TASKS = (*TEXT_TASKS, "detect", "point")


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
    assert request.sampling.temperature == 0.3
    assert request.sampling.top_p == 0.8
    assert request.sampling.max_tokens == 5
    assert request.model == "smolvlm"


async def test_a_caption_of_an_upload(client, service: FakeService) -> None:
    response = await client.post(
        "/v1/caption",
        files={"file": ("a.png", PICTURE, "image/png")},
        data={"length": "long", "max_tokens": "4"},
    )
    assert response.json() == {"caption": "two red circles"}
    assert service.pictures == [PICTURE]
    assert service.requests[0].task == Caption(Length.LONG)
    assert service.requests[0].sampling.max_tokens == 4


@pytest.mark.parametrize("image", [{}, {"image_url": DATA_URL}])
async def test_null_means_absent_and_media_types_ignore_case(
    client, image, service: FakeService
) -> None:
    body = {"question": "?", "settings": None, "stream": None, "image_url": None, **image}
    assert (await client.post("/v1/query", json=body)).status_code == 200
    request = client.build_request(
        "POST", "/v1/query", files={"file": PICTURE}, data={"question": "?"}
    )
    content_type = request.headers["content-type"].replace("multipart/form", "Multipart/Form")
    request.headers["content-type"] = content_type
    assert (await client.send(request)).status_code == 200
    request.headers["content-type"] += "; charset=undefined"
    assert (await client.send(request)).status_code in (200, 400)


@pytest.mark.parametrize("image", [{}, {"image_url": DATA_URL}])
async def test_a_query_with_and_without_a_picture(client, service: FakeService, image) -> None:
    response = await client.post("/v1/query", json={"question": "how many?", **image})
    assert response.json() == {"answer": "two red circles"}
    assert service.requests[0].task == Query("how many?")
    assert len(service.pictures) == len(image)


@pytest.mark.parametrize("path", ["/v1/caption", "/v1/query"])
async def test_a_stream_is_lines_of_chunks(client, path) -> None:
    body = {"image_url": DATA_URL, "stream": True}
    if path == "/v1/query":
        body["question"] = "?"
    lines = [line for line in (await client.post(path, json=body)).text.splitlines() if line]
    assert [json.loads(line.removeprefix("data: ")) for line in lines] == [
        {"chunk": "two "},
        {"chunk": "red "},
        {"chunk": "circles"},
        {"completed": True},
    ]


async def test_a_stream_that_fails_is_never_completed(client, service: FakeService) -> None:
    service.error = ModelFailed("broken")
    service.before_error = 1
    text = (await client.post("/v1/caption", json={"image_url": DATA_URL, "stream": True})).text
    assert "completed" not in text
    assert '"detail":"broken"' in text


async def test_preprocessing_warnings_are_passed_on(client, service: FakeService) -> None:
    service.warnings = ("a", "b")
    answer = (await client.post("/v1/caption", json={"image_url": DATA_URL})).json()
    assert answer["warnings"] == ["a", "b"]
    text = (await client.post("/v1/caption", json={"image_url": DATA_URL, "stream": True})).text
    assert text.endswith('data: {"completed":true,"warnings":["a","b"]}\n\n')


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("caption", {}, 400, "image_url: missing; expected a picture"),
        ("caption", {"image_url": DATA_URL, "length": "huge"}, 400,
         "length: Input should be 'short', 'normal'"),
        ("caption", {"image_url": DATA_URL, "settings": {"temperature": 9}}, 400,
         "settings.temperature"),
        ("caption", {"image_url": DATA_URL, "colour": 1}, 400, "colour"),
        ("caption", {"image_url": DATA_URL, "model": "x" * 999}, 404, "model: unknown model"),
        ("caption", {"image_url": "ftp://a/b.png"}, 400, "ftp: URLs are not supported"),
        ("caption", [], 400, "body"),
        ("query", {"image_url": DATA_URL}, 400, "question: Field required"),
        ("query", {"question": "?", "spatial_refs": [[0.5, 0.5]]}, 400,
         "spatial_refs: the picture is missing"),
        ("query", {**QUERY, "spatial_refs": [[0.5]]}, 400,
         "spatial_refs.0: 1 numbers; expected 2 for a point or 4 for a box"),
        ("query", {**QUERY, "spatial_refs": [[0, 0], [0.5, 0, 0.5, 1]]}, 400,
         "spatial_refs.1: expected a box of positive area"),
        ("query", {**QUERY, "spatial_refs": [[0.5, 1.5]]}, 400,
         "spatial_refs.0.1: Input should be less than"),
        ("query", {**QUERY, "spatial_refs": [[0, 0]] * 65}, 400,
         "spatial_refs: List should have at most 64"),
        ("detect", {**DETECT, "settings": {"max_objects": 1001}}, 400, "settings.max_objects"),
        ("detect", DETECT, 400,
         "model: detect is not supported by smolvlm; no served model supports it"),
        ("point", DETECT, 400, "point is not supported"),
        ("point", {**DETECT, "stream": True}, 400, "stream: not supported"),
        ("detect", {**DETECT, "stream": True}, 400, "stream: not supported"),
        ("point", {**DETECT, "spatial_refs": [[0.5, 0.5]]}, 400, "spatial_refs: not supported"),
        ("detect", {**DETECT, "spatial_refs": [[0.5, 0.5]]}, 400, "spatial_refs: not supported"),
        ("detect", {**DETECT, "object": ""}, 400, "object: Field required"),
        ("point", {**DETECT, "object": "x" * 2001}, 400,
         "object: 2001 characters; the limit is 2000"),
        ("detect", {**DETECT, "settings": {"max_objects": 0}}, 400, "settings.max_objects"),
        ("detect", {**DETECT, "model": "nope"}, 404, "model: unknown model"),
        ("detect", {"object": "cat"}, 400, "image_url: missing; expected a picture"),
        ("segment", DETECT, 400, "segment: not supported"),
    ],
)  # fmt: skip
async def test_an_invalid_request_is_refused_with_the_fields_name(
    client, service: FakeService, path, body, status, message
) -> None:
    response = await client.post(f"/v1/{path}", json=body)
    assert response.status_code == status
    assert message in response.json()["detail"]
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
    assert "not valid JSON" in response.json()["detail"]


async def test_a_file_and_a_url_together_are_refused(client) -> None:
    response = await client.post(
        "/v1/caption", files={"file": PICTURE}, data={"image_url": DATA_URL}
    )
    assert response.status_code == 400
    assert "expected either file or image_url" in response.json()["detail"]


async def test_an_error_of_the_graph_keeps_its_status(client, service: FakeService) -> None:
    service.error = UnsupportedMedia("image: not a picture")
    response = await client.post("/v1/caption", json={"image_url": DATA_URL})
    assert (response.status_code, response.json()) == (415, {"detail": "image: not a picture"})


async def test_boxes_are_detected(client, service: FakeService) -> None:
    service.tasks = {"smolvlm": GROUNDING_TASKS}
    body = {
        **DETECT,
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
    assert service.pictures == [PICTURE]
    assert service.closed == 1


async def test_points_of_an_uploaded_picture(client, service: FakeService) -> None:
    service.tasks = {"smolvlm": GROUNDING_TASKS}
    service.warnings = ("denoise was skipped",)
    response = await client.post(
        "/v1/point", files={"file": PICTURE}, data={"object": "cat", "max_objects": "1"}
    )
    points = [{"x": 0.2, "y": 0.3}, {"x": 0.75, "y": 0.75}]
    assert response.json() == {"points": points, "warnings": ["denoise was skipped"]}
    assert service.requests[0].task == Point("cat", max_objects=1)
    assert service.requests[0].sampling == SamplingParams(max_tokens=50)


async def test_reasoning_comes_with_the_answer(client, service: FakeService) -> None:
    service.reasoning = REASONING
    service.tasks = {"smolvlm": (*TEXT_TASKS, "reason")}
    body = {**QUERY, "reasoning": True, "spatial_refs": [[0.1, 0.2], [0.1, 0.2, 0.3, 0.4]]}
    answer = (await client.post("/v1/query", json=body)).json()
    assert answer == {"reasoning": REASONING_JSON, "answer": "two red circles"}
    refs = (Location(0.1, 0.2), Region(0.1, 0.2, 0.3, 0.4))
    assert service.requests[0].task == Query("?", reasoning=True, spatial_refs=refs)
    stream = (await client.post("/v1/query", json={**body, "stream": True})).text
    end = json.loads(stream.splitlines()[-2].removeprefix("data: "))
    assert end == {"completed": True, "reasoning": REASONING_JSON}


async def test_reasoning_goes_to_a_model_that_supports_it(client, service: FakeService) -> None:
    refusal = await client.post("/v1/query", json={**QUERY, "reasoning": True})
    assert (refusal.status_code, service.requests) == (400, [])
    message = "model: reasoning is not supported by smolvlm; no served model supports it"
    assert refusal.json()["detail"] == message
    service.tasks = {"other": (*TEXT_TASKS, "reason")}
    await client.post("/v1/query", json={**QUERY, "reasoning": True})
    assert service.requests[0].model == "other"


async def test_a_form_holds_spatial_refs_as_json(client, service: FakeService) -> None:
    form = {"question": "?", "spatial_refs": "[[0.1, 0.2], [0.1, 0.2, 0.3, 0.4]]"}
    assert (await client.post("/v1/query", files={"file": PICTURE}, data=form)).status_code == 200
    refs = (Location(0.1, 0.2), Region(0.1, 0.2, 0.3, 0.4))
    assert service.requests[0].task == Query("?", spatial_refs=refs)
    response = await client.post(
        "/v1/query", files={"file": PICTURE}, data={**form, "spatial_refs": "here"}
    )
    assert "spatial_refs: expected a list of points and boxes" in response.json()["detail"]


@pytest.mark.parametrize(("path", "key"), [("detect", "objects"), ("point", "points")])
async def test_empty_findings_are_an_answer_and_missing_findings_an_error(
    client, service: FakeService, path, key
) -> None:
    service.tasks = {"smolvlm": GROUNDING_TASKS}
    service.regions = service.locations = ()
    assert (await client.post(f"/v1/{path}", json=DETECT)).json() == {key: []}
    service.regions = service.locations = None
    assert (await client.post(f"/v1/{path}", json=DETECT)).status_code == 500


@pytest.mark.parametrize(
    ("supporting", "down", "requested", "selected"),
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
async def test_an_unnamed_model_resolves_to_one_that_supports_the_task(
    client, service, supporting, down, requested, selected
) -> None:
    service.tasks = dict.fromkeys(supporting.split(), GROUNDING_TASKS)
    service.loaded -= {down}
    assert (await client.post("/v1/detect", json={**DETECT, "model": requested})).status_code == 200
    assert service.requests[0].model == selected


@pytest.mark.parametrize(
    ("supporting", "down", "requested", "status", "message"),
    [
        (
            "other",
            "",
            "smolvlm",
            400,
            "model: point is not supported by smolvlm; supported by: other",
        ),
        (
            "",
            "",
            "small",
            400,
            "model: point is not supported by smolvlm; no served model supports it",
        ),
        (
            "",
            "other",
            "smolvlm",
            400,
            "model: point is not supported by smolvlm; no loaded model supports it",
        ),
        ("smolvlm", "other", "other", 503, "other is down"),
        ("", "other", None, 503, "other is down"),
        ("", "smolvlm", None, 503, "smolvlm is down"),
        ("", "smolvlm other", None, 503, "smolvlm is down"),
    ],
)
async def test_a_refused_task_names_the_models_that_support_it(
    client, service, supporting, down, requested, status, message
) -> None:
    service.tasks = dict.fromkeys(supporting.split(), GROUNDING_TASKS)
    service.loaded -= set(down.split())
    response = await client.post("/v1/point", json={**DETECT, "model": requested})
    assert (response.status_code, response.json()["detail"]) == (status, message)
    assert response.headers.get("retry-after") == ("2" if status == 503 else None)
    assert service.requests == []


@pytest.mark.parametrize(
    ("path", "requested", "selected"),
    [
        ("caption", None, "smolvlm"),  # its family makes captions
        ("detect", None, "other"),  # its family finds no objects
        ("detect", "smolvlm", "smolvlm"),  # whose replica refuses what it can't do
    ],
)
async def test_a_model_that_was_scaled_to_zero_is_loaded_by_a_request(
    client, service: FakeService, path, requested, selected
) -> None:
    service.tasks = {"other": GROUNDING_TASKS}
    service.loaded -= {"smolvlm"}
    service.on_demand = {"smolvlm": "scaled to zero"}
    body = {"image_url": DATA_URL, "model": requested}
    if path == "detect":
        body["object"] = "cat"
    response = await client.post(f"/v1/{path}", json=body)
    assert response.status_code == 200, response.text
    assert service.requests[0].model == selected
    health = (await client.get("/health")).json()
    assert (health["status"], health["model_loaded"]) == ("healthy", False)


@pytest.mark.parametrize("path", ["detect", "point"])
async def test_an_error_of_a_grounding_task_keeps_its_status(
    client, service: FakeService, path
) -> None:
    service.tasks = {"smolvlm": GROUNDING_TASKS}
    service.error = UnsupportedMedia("image: not a picture")
    response = await client.post(f"/v1/{path}", json=DETECT)
    assert (response.status_code, response.json()) == (415, {"detail": "image: not a picture"})
    assert service.closed == 1


@pytest.mark.parametrize("content_type", ["image/png", "application/x-www-form-urlencoded"])
async def test_a_bare_picture_is_refused_with_its_content_type(client, content_type) -> None:
    headers = {"Content-Type": content_type}
    response = await client.post("/v1/caption", content=PICTURE + b"&" * 40, headers=headers)
    assert response.status_code == 400
    assert response.json()["detail"].startswith(
        f"body: expected JSON with Content-Type: application/json; got {content_type}"
    )


async def test_a_form_is_told_the_field_of_its_picture(client) -> None:
    response = await client.post("/v1/caption", data={"length": "short"}, files={"image": PICTURE})
    assert response.json() == {"detail": "image: expected the picture in the field file"}
    form = {"length": (None, "short")}
    response = await client.post("/v1/caption", files=form)
    assert response.json() == {"detail": "file: missing; expected a picture"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"settings": {"max_tokens": 101}}, "settings.max_tokens: 101; the limit is 100"),
        ({"settings": [1]}, "settings: expected an object"),
        ({"question": "?", "spatial_refs": [[0.5, 0.5], [0.5, 400]]}, "spatial_refs.1.1: "),
    ],
)
async def test_a_limit_is_said_in_the_senders_terms(client, fields, message) -> None:
    path = "/v1/query" if "question" in fields else "/v1/caption"
    response = await client.post(path, json={"image_url": DATA_URL, **fields})
    assert response.status_code == 400
    assert response.json()["detail"].startswith(message)


@pytest.mark.parametrize("path", ["/v1/caption", "/v1/query"])
async def test_a_stream_counts_tokens_if_it_is_asked_to(client, path) -> None:
    body = {"image_url": DATA_URL, "stream": True}
    if path == "/v1/query":
        body["question"] = "?"
    options = {"stream_options": {"include_usage": True}}
    text = (await client.post(path, json={**body, **options})).text
    end = json.loads(text.strip().splitlines()[-1].removeprefix("data: "))
    assert end == {"completed": True, "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    assert "usage" not in (await client.post(path, json=body)).text
