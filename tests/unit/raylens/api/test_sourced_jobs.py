"""Jobs whose pictures are in a source: the VLM node's own request, against a folder."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from raylens.api.app import create_app
from raylens.core.config import AppConfig
from raylens.jobs.queue import JobQueue
from tests.unit.raylens.api.test_jobs import (
    PATH,
    check_media,
    event_loop_policy,
    look_up,
    model,
    parts,
    queue,
    submit,
    wait_until_ended,
    webhook_client,
)
from tests.unit.raylens.jobs.conftest import FakeService, serving

__all__ = ["event_loop_policy", "model", "parts", "queue", "webhook_client"]

FIRST = b"\x89PNG first"
SECOND = b"\x89PNG second"
REQUEST = {
    "job_type": "task_timing_v1",
    "query": {"ids": []},
    "domain_id": "",
    "input": {
        "prompt": "Analyze this image for task completion",
        "webhook_url": "",
        "vlm_prompt": "Describe what you see in this image",
    },
}
"""As the node's documentation has it."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "1.png").write_bytes(FIRST)
    (tmp_path / "shop" / "2.png").write_bytes(SECOND)
    return tmp_path


@pytest.fixture
async def http(
    model: FakeService, queue: JobQueue, folder: Path
) -> AsyncIterator[httpx.AsyncClient]:
    config = AppConfig.model_validate(
        {
            "models": [{"name": "moondream", "family": "moondream"}],
            "limits": {"max_image_bytes": 100},
            "jobs": {"max_images": 3, "picture_source": {"url": str(folder), "max_bytes": 150}},
        }
    )
    app = create_app(model, config, queue, check_media=check_media, look_up=look_up)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


async def test_the_nodes_own_request_asks_about_every_picture(
    model: FakeService, http: httpx.AsyncClient, queue: JobQueue
) -> None:
    job = await submit(http, REQUEST)
    assert (job["query"], job["domain_id"]) == ({"ids": []}, None)
    async with serving(queue):
        done = await wait_until_ended(http, job["id"])
    assert done["status"] == "succeeded", done["error"]
    assert set(model.pictures) == {FIRST, SECOND}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"query": {"ids": ["2.png", "1.png"]}, "domain_id": "shop"}, [SECOND, FIRST]),
        ({"query": {"ids": ["shop/2.png"]}}, [SECOND]),
        ({"domain_id": "shop"}, [FIRST, SECOND]),
    ],
)
async def test_ids_select_pictures_in_their_order(
    model: FakeService,
    http: httpx.AsyncClient,
    queue: JobQueue,
    body: dict[str, Any],
    expected: list[bytes],
) -> None:
    job = await submit(http, {"job_type": "batch", "input": {"prompt": "x"}, **body})
    async with serving(queue):
        done = await wait_until_ended(http, job["id"])
    assert done["status"] == "succeeded", done["error"]
    assert sorted(model.pictures) == sorted(expected)
    assert len(done["output"]["results"]) == len(expected)


async def test_a_type_that_takes_one_picture_takes_one_id(
    model: FakeService, http: httpx.AsyncClient, queue: JobQueue
) -> None:
    job = await submit(http, {"job_type": "caption", "query": {"ids": ["shop/2.png"]}})
    async with serving(queue):
        await wait_until_ended(http, job["id"])
    assert model.pictures == [SECOND]


async def test_a_domain_with_a_jobs_own_pictures_is_only_returned(
    model: FakeService, http: httpx.AsyncClient, queue: JobQueue
) -> None:
    image = base64.b64encode(FIRST).decode()
    body = {"job_type": "caption", "input": {"image": image}, "domain_id": "x", "query": {"a": 1}}
    job = await submit(http, body)
    assert (job["query"], job["domain_id"]) == ({"a": 1}, "x")
    question = {"job_type": "query", "input": {"question": "Why?"}, "domain_id": "shop"}
    await submit(http, question)
    async with serving(queue):
        await wait_until_ended(http, job["id"])
    assert model.pictures == [FIRST]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"query": {"ids": ["3.png"]}}, 422, "query.ids.0: there is no picture '3.png'"),
        ({"query": {"ids": "1.png"}}, 422, "query.ids: expected a list of ids of pictures"),
        ({"query": {"ids": ["a"] * 4}}, 422, "query.ids: 4 ids; the limit is 3"),
        ({"query": {"ids": ["a", "a"]}}, 422, "query.ids: an id is given twice"),
        ({"query": {"ids": [], "x": 1}, "domain_id": "mall"}, 422, "domain_id: there is no domain"),
        ({"domain_id": "../etc"}, 422, "domain_id: expected a relative path"),
        (
            {"job_type": "caption", "query": {"ids": ["shop/1.png", "shop/2.png"]}},
            422,
            "query.ids: 2 pictures; jobs of this type take one",
        ),
        (
            {"job_type": "chat", "input": {"messages": []}, "query": {"ids": ["shop/1.png"]}},
            422,
            "query.ids: not supported by jobs of this type",
        ),
        (
            {
                "job_type": "batch",
                "input": {"images": [base64.b64encode(FIRST).decode()]},
                "query": {"ids": ["shop/1.png"]},
            },
            422,
            "query.ids: expected either ids or pictures in input, not both",
        ),
    ],
)
async def test_what_names_no_pictures_is_refused(
    http: httpx.AsyncClient, body: dict[str, Any], status: int, message: str
) -> None:
    response = await http.post(PATH, json={"job_type": "batch", "input": {}, **body})
    assert message in response.json()["detail"]
    assert response.status_code == status


async def test_files_over_the_limits_or_without_pictures_are_refused(
    http: httpx.AsyncClient, folder: Path
) -> None:
    shop = folder / "shop"
    (shop / "1.png").write_bytes(FIRST.ljust(101))
    response = await http.post(PATH, json=REQUEST)
    assert response.status_code == 413
    (shop / "1.png").write_bytes(FIRST.ljust(90))
    (shop / "2.png").write_bytes(SECOND.ljust(90))
    response = await http.post(PATH, json=REQUEST)
    assert (response.status_code, "over 150 bytes" in response.json()["detail"]) == (413, True)
    (shop / "2.png").write_bytes(b"no picture")
    body = {"job_type": "caption", "query": {"ids": ["shop/2.png"]}}
    response = await http.post(PATH, json=body)
    assert response.json()["detail"] == "query.ids.0: not a picture"


async def test_a_repeated_request_does_not_look_for_its_pictures_again(
    http: httpx.AsyncClient, folder: Path
) -> None:
    headers = {"idempotency_key": "k-1"}
    first = await submit(http, REQUEST, **headers)
    for path in folder.rglob("*.png"):
        path.unlink()
    assert await submit(http, REQUEST, **headers) == first
    other = {**REQUEST, "priority": 5}
    response = await http.post(PATH, json=other, headers={"Idempotency-Key": "k-1"})
    assert response.status_code == 409
    new = await http.post(PATH, json=REQUEST, headers={"Idempotency-Key": "k-2"})
    assert new.status_code == 422
