from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from raylens.api.app import create_app
from raylens.api.pipelines import LoadedPipeline, LocalDefaults
from raylens.core.errors import Overloaded
from raylens.core.types import Detect, Query
from tests.unit.raylens.api.conftest import CONFIG, CurrentService, FakeService

LOAD = "/api/v1/pipeline/load"
STATUS = "/api/v1/pipeline/status"


@pytest.fixture
def shared_app(current_service: CurrentService) -> FastAPI:
    """One for each test: an application remembers the pipelines that were loaded."""
    return create_app(current_service, CONFIG)


async def test_the_schemas_have_settings_with_hints(client: httpx.AsyncClient) -> None:
    (pipeline,) = (await client.get("/api/v1/pipelines/schemas")).json()["pipelines"].values()
    assert (pipeline["id"], pipeline["plugin_name"]) == ("moondream", "raylens")
    assert {"name", "description", "version"} < pipeline.keys()
    properties = pipeline["config_schema"]["properties"]
    assert properties["temperature"] == {
        "type": "number",
        "minimum": 0.0,
        "maximum": 1.0,
        "default": 0.5,
        "title": "Temperature",
        "description": properties["temperature"]["description"],
        "ui": {
            "order": 3,
            "category": "configuration",
            "label": "Temperature",
            "request": "settings.temperature",
            "features": ["caption", "query"],
        },
    }
    assert properties["question"]["ui"]["category"] == "input"
    assert properties["compile_model"]["ui"]["is_load_param"] is True


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"pipeline_id": "moondream"}, "loaded"),
        ({"pipeline_ids": ["moondream"]}, "Pipeline loading initiated successfully"),
    ],
)
async def test_both_forms_load_a_pipeline(
    client: httpx.AsyncClient, service: FakeService, body: dict[str, Any], message: str
) -> None:
    assert (await client.get(STATUS)).json() == {
        "status": "not_loaded",
        "pipeline_id": None,
        "load_params": None,
        "error": None,
    }
    params = {"feature": "query", "question": "How many?", "compile_model": True}
    response = await client.post(LOAD, json={**body, "load_params": params})
    assert response.json() == {"message": message}
    status = (await client.get(STATUS)).json()
    assert (status["status"], status["pipeline_id"]) == ("loaded", "moondream")
    assert status["load_params"]["max_objects"] == 10
    assert params.items() <= status["load_params"].items()
    assert service.requests[0].task == Query("How many?")


async def test_loading_starts_from_the_defaults_each_time(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    await client.post(LOAD, json={"pipeline_id": "moondream", "load_params": {"max_objects": 3}})
    await client.post(LOAD, json={"pipeline_id": "moondream", "load_params": None})
    assert (await client.get(STATUS)).json()["load_params"]["max_objects"] == 10
    assert [request.task for request in service.requests] == [
        Detect("person", 3),
        Detect("person", 10),
    ]


async def test_each_key_has_a_pipeline_of_its_own(client: httpx.AsyncClient) -> None:
    mine, yours = ({"Authorization": f"Bearer {key}"} for key in ("mine", "yours"))
    await client.post(LOAD, json={"pipeline_id": "moondream"}, headers=mine)
    assert (await client.get(STATUS, headers=mine)).json()["status"] == "loaded"
    assert (await client.get(STATUS, headers=yours)).json()["status"] == "not_loaded"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "pipeline_id: 0 pipelines; expected one"),
        ({"pipeline_ids": []}, "pipeline_ids: 0 pipelines; expected one"),
        ({"pipeline_ids": ["moondream", "x"]}, "pipeline_ids: 2 pipelines; expected one"),
        ({"pipeline_id": "x"}, "pipeline_id: unknown pipeline 'x'; known: moondream"),
        ({"pipeline_ids": ["x"]}, "pipeline_ids.0: unknown pipeline 'x'"),
        ({"pipeline_id": "moondream", "load_params": {"font_scale": 9}},
         "load_params.font_scale: "),
        ({"pipeline_id": "moondream", "load_params": {"question": "x" * 2001}},
         "load_params.question: "),
        ({"pipeline_id": "moondream", "load_params": {"x": 9}}, "load_params.x: no such setting"),
    ],
)  # fmt: skip
async def test_what_can_not_be_loaded_is_refused(
    client: httpx.AsyncClient, body: dict[str, Any], message: str
) -> None:
    response = await client.post(LOAD, json=body)
    assert response.status_code == 422
    assert response.json()["detail"].startswith(message)
    assert (await client.get(STATUS)).json()["status"] == "not_loaded"


async def test_a_model_that_does_not_answer_is_an_error(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    service.error = Overloaded("full", "model", retry_after=1)
    assert (await client.post(LOAD, json={"pipeline_id": "moondream"})).status_code == 503
    status = (await client.get(STATUS)).json()
    assert (status["status"], status["error"]) == ("error", "full")


async def test_after_a_failure_the_last_settings_that_worked_remain(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    body = {"pipeline_id": "moondream", "load_params": {"max_objects": 3}}
    await client.post(LOAD, json=body)
    service.error = Overloaded("full", "model", retry_after=1)
    await client.post(LOAD, json={"pipeline_id": "moondream", "load_params": {"max_objects": 9}})
    status = (await client.get(STATUS)).json()
    assert (status["status"], status["load_params"]["max_objects"]) == ("error", 3)
    service.error = None
    await client.post(LOAD, json={"pipeline_id": "moondream"})
    status = (await client.get(STATUS)).json()
    assert (status["status"], status["error"]) == ("loaded", None)


async def test_a_key_is_the_same_in_both_headers(client: httpx.AsyncClient) -> None:
    mine = {"X-Moondream-Auth": "mine"}
    await client.post(LOAD, json={"pipeline_id": "moondream"}, headers=mine)
    status = await client.get(STATUS, headers={"Authorization": "Bearer mine"})
    assert status.json()["status"] == "loaded"


async def test_plugins_are_listed_and_can_not_be_changed(client: httpx.AsyncClient) -> None:
    listing = (await client.get("/api/v1/plugins")).json()
    assert listing["total"] == 1
    assert listing["failed_plugins"] == []
    assert listing["plugins"][0]["pipelines"] == ["moondream"]
    for response in (
        await client.post("/api/v1/plugins", json={"package": "x"}),
        await client.delete("/api/v1/plugins/scope-moondream"),
    ):
        assert response.status_code == 403
        assert "they come with its environment or its image" in response.json()["detail"]


async def test_the_oldest_clients_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raylens.api.pipelines.MAX_CLIENTS", 2)
    defaults = LocalDefaults()
    loaded = LoadedPipeline("moondream", {})
    for client in ("a", "b", "a", "c"):
        await defaults.put(client, loaded)
    assert [await defaults.get(client) is not None for client in "abc"] == [True, False, True]
