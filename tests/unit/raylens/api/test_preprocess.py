from __future__ import annotations

import json
import time

import pytest

from raylens.core.errors import UnsupportedMedia
from raylens.core.recipe import AUTO, ENHANCED
from tests.unit.raylens.api.conftest import DATA_URL, PICTURE, FakeService, chat, image


async def test_the_picture_its_geometry_and_its_steps(client, service: FakeService) -> None:
    service.warnings = ("denoise: skipped",)
    response = await client.post(
        "/v1/preprocess", json={"image_url": DATA_URL, "recipe": "enhanced"}
    )
    assert response.json() == {
        "model": "smolvlm",
        "image_url": "data:image/jpeg;base64,anBlZw==",
        "geometry": {"original": [16, 12], "processed": [8, 6], "to_original": [1, 0, 0, 0, 1, 0]},
        "steps": [{"name": "decode", "did": "PNG", "ms": 12.5}],
        "warnings": ["denoise: skipped"],
    }
    assert service.recipes == [ENHANCED]
    assert service.images == [PICTURE]


async def test_an_upload_and_the_picture_alone(client, service: FakeService) -> None:
    response = await client.post(
        "/v1/preprocess",
        files={"file": PICTURE},
        data={"recipe": json.dumps({"size": [64, 48]})},
        headers={"Accept": "image/jpeg"},
    )
    assert (response.headers["content-type"], response.content) == ("image/jpeg", b"jpeg")
    assert service.recipes[0].size == (64, 48)


async def test_a_models_own_settings_hold_until_a_request_changes_them(
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
    own, named, first = service.recipes
    assert (own.denoise.method, own.smart_crop, own.size) == ("nlm", True, (640, 640))
    assert (named.smart_crop, named.size) == (False, (640, 640))
    assert first == AUTO
    waits = [deadline - before for deadline in service.deadlines]
    assert waits == [pytest.approx(seconds, abs=1) for seconds in (7, 7, 3)]


@pytest.mark.parametrize("choice", ["enhanced", {"name": "enhanced"}])
async def test_every_dialect_takes_a_recipe(client, service: FakeService, choice) -> None:
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


@pytest.mark.parametrize("nothing", ["", "null"])
async def test_a_forms_empty_recipe_is_none(client, service: FakeService, nothing) -> None:
    response = await client.post("/v1/caption", files={"file": PICTURE}, data={"recipe": nothing})
    assert response.status_code == 200
    assert service.requests[0].recipe == AUTO


async def test_pictures_go_by_the_names_of_their_fields(client, service: FakeService) -> None:
    await client.post("/v1/chat/completions", json=chat(image(), "and", image()))
    await client.post("/v1/caption", json={"image_url": DATA_URL})
    await client.post("/v1/caption", files={"file": PICTURE})
    url = "messages.0.content.{}.image_url.url".format
    assert service.fields == [url(0), url(2), "image_url", "file"]


async def test_without_one_the_models_holds_and_so_does_its_deadline(
    client, service: FakeService
) -> None:
    before = time.time()
    for model in ("smolvlm", "other"):
        await client.post("/v1/chat/completions", json=chat("?", image(), model=model, recipe=None))
    first, second = service.requests
    assert first.recipe == AUTO
    assert second.recipe.smart_crop
    assert first.deadline - before == pytest.approx(20, abs=1)
    assert second.deadline - before == pytest.approx(7, abs=1)


@pytest.mark.parametrize(
    ("recipe", "field", "words"),
    [
        ("nope", "recipe", "there are: plain, auto, enhanced, mine"),
        (
            {"denoise": {"enabled": "maybe"}},
            "recipe.denoise.enabled",
            "true, false or 'auto' is needed",
        ),
        ({"size": [8, 8]}, "recipe.size.0", "16"),
        ([1], "recipe", "a recipe's name, or an object"),
        (5, "recipe", "a recipe's name, or an object"),
        ("{not json", "recipe", "not JSON"),
        ("[1]", "recipe", "a recipe's name, or an object"),
    ],
)
async def test_a_bad_recipe_is_refused_in_every_dialect(
    client, service: FakeService, recipe, field, words
) -> None:
    chatted = await client.post("/v1/chat/completions", json=chat("?", image(), recipe=recipe))
    assert chatted.status_code == 400
    assert chatted.json()["error"]["param"] == field
    assert words in chatted.json()["error"]["message"]
    captioned = await client.post("/v1/caption", json={"image_url": DATA_URL, "recipe": recipe})
    assert (captioned.status_code, words in captioned.json()["detail"]) == (400, True)
    shown = await client.post("/v1/preprocess", json={"image_url": DATA_URL, "recipe": recipe})
    assert (shown.status_code, words in shown.json()["detail"]) == (422, True)
    assert not service.requests
    assert not service.recipes


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 422, "image_url: a picture is needed"),
        ({"image_url": DATA_URL, "colour": 1}, 422, "colour"),
        ({"image_url": DATA_URL, "model": "nope"}, 404, "not served here"),
        ({"image_url": "http://a/b.png"}, 422, "not fetched"),
        ([], 422, "body"),
    ],
)
async def test_bad_input_is_explained(client, body, status, words) -> None:
    response = await client.post("/v1/preprocess", json=body)
    assert response.status_code == status
    assert words in response.json()["detail"]


async def test_an_error_of_the_graph_keeps_its_status(client, service: FakeService) -> None:
    service.error = UnsupportedMedia("image: this is a PDF document")
    response = await client.post("/v1/preprocess", json={"image_url": DATA_URL})
    assert (response.status_code, response.json()) == (
        415,
        {"detail": "image: this is a PDF document"},
    )
    shown = await client.get("/openapi.json")
    recipe = shown.json()["paths"]["/v1/preprocess"]["post"]["requestBody"]["content"][
        "application/json"
    ]["schema"]
    assert "sigma_color" in json.dumps(recipe["properties"]["recipe"])
