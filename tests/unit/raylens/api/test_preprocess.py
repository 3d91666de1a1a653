from __future__ import annotations

import json
import time

import pytest

from raylens.core.errors import UnsupportedMedia
from raylens.core.recipe import AUTO, ENHANCED
from tests.unit.raylens.api.conftest import DATA_URL, PICTURE, FakeService, chat, image


async def test_the_answer_holds_the_picture_its_geometry_and_its_steps(
    client, service: FakeService
) -> None:
    service.warnings = ("denoise: skipped",)
    response = await client.post(
        "/v1/preprocess", json={"image_url": DATA_URL, "recipe": "enhanced"}
    )
    assert response.json() == {
        "model": "smolvlm",
        "image_url": "data:image/jpeg;base64,anBlZw==",
        "geometry": {
            "stored": [12, 16],
            "original": [16, 12],
            "processed": [8, 6],
            "model": [4, 3],
            "to_original": [1, 0, 0, 0, 1, 0],
        },
        "steps": [{"name": "decode", "did": "PNG", "ms": 12.5}],
        "warnings": ["denoise: skipped"],
    }
    assert service.recipes == [ENHANCED]
    assert service.pictures == [PICTURE]


async def test_an_upload_can_be_answered_with_the_jpeg_alone(client, service: FakeService) -> None:
    response = await client.post(
        "/v1/preprocess",
        files={"file": PICTURE},
        data={"recipe": json.dumps({"size": [64, 48]})},
        headers={"Accept": "image/jpeg"},
    )
    assert (response.headers["content-type"], response.content) == ("image/jpeg", b"jpeg")
    assert service.recipes[0].size == (64, 48)


async def test_a_models_recipe_and_deadline_apply_unless_the_request_changes_them(
    client, service: FakeService
) -> None:
    before = time.time()
    await client.post("/v1/preprocess", json={"image_url": DATA_URL, "model": "other"})
    await client.post(
        "/v1/preprocess", json={"image_url": DATA_URL, "model": "other", "recipe": "plain"}
    )
    await client.post(
        "/v1/preprocess", json={"image_url": DATA_URL}, headers={"X-Request-Timeout": "3"}
    )
    of_model, of_request, default = service.recipes
    assert (of_model.denoise.method, of_model.smart_crop) == ("nlm", True)
    assert of_model.size == (640, 640)
    assert (of_request.smart_crop, of_request.size) == (False, (640, 640))
    assert default == AUTO
    timeouts = [caller.deadline - before for caller in service.callers]
    assert timeouts == [pytest.approx(seconds, abs=1) for seconds in (7, 7, 3)]


@pytest.mark.parametrize("choice", ["enhanced", {"name": "enhanced"}])
async def test_every_dialect_accepts_a_recipe(client, service: FakeService, choice) -> None:
    bodies = {
        "/v1/chat/completions": chat("?", image()),
        "/v1/caption": {"image_url": DATA_URL},
        "/v1/query": {"image_url": DATA_URL, "question": "?"},
    }
    for path, body in bodies.items():
        assert (await client.post(path, json={**body, "recipe": choice})).status_code == 200
    form = {"recipe": json.dumps(choice) if isinstance(choice, dict) else choice}
    assert (await client.post("/v1/caption", files={"file": PICTURE}, data=form)).status_code == 200
    assert [request.recipe for request in service.requests] == [ENHANCED] * 4


@pytest.mark.parametrize("text", ["", "null"])
async def test_an_empty_recipe_in_a_form_is_absent(client, service: FakeService, text) -> None:
    response = await client.post("/v1/caption", files={"file": PICTURE}, data={"recipe": text})
    assert response.status_code == 200
    assert service.requests[0].recipe == AUTO


async def test_each_picture_carries_the_name_of_its_field(client, service: FakeService) -> None:
    await client.post("/v1/chat/completions", json=chat(image(), "and", image()))
    await client.post("/v1/caption", json={"image_url": DATA_URL})
    await client.post("/v1/caption", files={"file": PICTURE})
    url = "messages.0.content.{}.image_url.url".format
    assert service.picture_fields == [url(0), url(2), "image_url", "file"]


async def test_a_chat_uses_the_models_recipe_and_deadline(client, service: FakeService) -> None:
    before = time.time()
    for model in ("smolvlm", "other"):
        await client.post("/v1/chat/completions", json=chat("?", image(), model=model, recipe=None))
    first, second = service.requests
    assert first.recipe == AUTO
    assert second.recipe.smart_crop
    assert first.deadline - before == pytest.approx(20, abs=1)
    assert second.deadline - before == pytest.approx(7, abs=1)


@pytest.mark.parametrize(
    ("recipe", "field", "message"),
    [
        ("nope", "recipe", "known: plain, auto, enhanced, mine"),
        (
            {"denoise": {"enabled": "maybe"}},
            "recipe.denoise.enabled",
            "expected true, false or 'auto'",
        ),
        ({"size": [8, 8]}, "recipe.size.0", "16"),
        ([1], "recipe", "expected a recipe's name or an object"),
        (5, "recipe", "expected a recipe's name or an object"),
        ("{not json", "recipe", "not valid JSON"),
        ("[1]", "recipe", "expected a recipe's name or an object"),
    ],
)
async def test_an_invalid_recipe_is_refused_in_every_dialect(
    client, service: FakeService, recipe, field, message
) -> None:
    response = await client.post("/v1/chat/completions", json=chat("?", image(), recipe=recipe))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert message in response.json()["error"]["message"]
    for path, status in (("/v1/caption", 400), ("/v1/preprocess", 422)):
        response = await client.post(path, json={"image_url": DATA_URL, "recipe": recipe})
        assert response.status_code == status
        assert message in response.json()["detail"]
    assert not service.requests
    assert not service.recipes


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 422, "image_url: missing; expected a picture"),
        ({"image_url": DATA_URL, "colour": 1}, 422, "colour"),
        ({"image_url": DATA_URL, "model": "nope"}, 404, "model: unknown model"),
        ({"image_url": "ftp://a/b.png"}, 422, "ftp: URLs are not supported"),
        ([], 422, "body"),
    ],
)
async def test_an_invalid_request_is_refused_with_the_fields_name(
    client, body, status, message
) -> None:
    response = await client.post("/v1/preprocess", json=body)
    assert response.status_code == status
    assert message in response.json()["detail"]


async def test_an_error_of_the_graph_keeps_its_status(client, service: FakeService) -> None:
    service.error = UnsupportedMedia("image: this is a PDF document")
    response = await client.post("/v1/preprocess", json={"image_url": DATA_URL})
    assert response.status_code == 415
    assert response.json() == {"detail": "image: this is a PDF document"}


async def test_the_api_page_describes_the_recipe(client) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    content = paths["/v1/preprocess"]["post"]["requestBody"]["content"]
    schema = content["application/json"]["schema"]
    assert "sigma_color" in json.dumps(schema["properties"]["recipe"])
