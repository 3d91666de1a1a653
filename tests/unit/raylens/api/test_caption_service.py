from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from raylens.api.caption_service import ACTIVITIES, HOW_MANY, UNUSUAL, parse_count
from raylens.core.errors import Overloaded
from raylens.core.types import Caption, Detect, Length, Query
from tests.unit.raylens.api.conftest import DATA_URL, PICTURE, FakeService

BASE64 = base64.b64encode(PICTURE).decode()
ANSWER = "two red circles"


@pytest.mark.parametrize(
    ("path", "key", "length"),
    [
        ("/caption", "caption", Length.NORMAL),
        ("/describe", "description", Length.LONG),
        ("/describe/file", "description", Length.LONG),
    ],
)
class TestDescriptions:
    @pytest.mark.parametrize("image_data", [BASE64, DATA_URL])
    async def test_a_picture_has_a_caption(
        self,
        client: httpx.AsyncClient,
        service: FakeService,
        path: str,
        key: str,
        length: Length,
        image_data: str,
    ) -> None:
        body = {"image_data": image_data, "prompt": "", "length": None}
        answer = (await client.post(path, json=body)).json()
        assert 0 <= answer.pop("processing_time") < 10
        assert answer == {key: ANSWER, "model": "smolvlm"}
        assert service.pictures == [PICTURE]
        assert service.requests[0].task == Caption(length)

    async def test_a_prompt_is_answered_and_a_length_is_kept(
        self,
        client: httpx.AsyncClient,
        service: FakeService,
        path: str,
        key: str,
        length: Length,
    ) -> None:
        body = {"image_data": BASE64, "prompt": "How many?", "model": "other"}
        assert (await client.post(path, json=body)).json()["model"] == "other"
        await client.post(path, json={"image_data": BASE64, "length": "short"})
        assert [request.task for request in service.requests] == [
            Query("How many?"),
            Caption(Length.SHORT),
        ]

    async def test_an_uploaded_file_is_the_picture(
        self,
        client: httpx.AsyncClient,
        service: FakeService,
        path: str,
        key: str,
        length: Length,
    ) -> None:
        files = {"file": ("a.png", PICTURE, "image/png")}
        response = await client.post(path, files=files, data={"prompt": "How many?"})
        assert response.json()[key] == ANSWER
        assert service.pictures == [PICTURE]
        assert service.picture_fields == ["file"]
        assert service.requests[0].task == Query("How many?")

    @pytest.mark.parametrize(
        ("body", "status", "message"),
        [
            ({}, 422, "image_data: missing; expected a picture"),
            ({"image_data": ""}, 422, "image_data: missing; expected a picture"),
            ({"image_data": "no base64!"}, 422, "image_data: invalid base64"),
            ({"image_data": BASE64, "length": "huge"}, 422, "length: "),
            ({"image_data": BASE64, "prompt": "a" * 2001}, 422, "prompt: 2001 characters"),
            ({"image_data": BASE64, "model": "none"}, 404, "model: unknown model 'none'"),
            ({"image_data": "A" * 30_000}, 413, "image_data: a picture of"),
        ],
    )
    async def test_errors_name_the_field(
        self,
        client: httpx.AsyncClient,
        path: str,
        key: str,
        length: Length,
        body: dict[str, Any],
        status: int,
        message: str,
    ) -> None:
        response = await client.post(path, json=body)
        assert response.status_code == status
        assert response.json()["detail"].startswith(message)


class TestSurveillance:
    async def test_a_model_that_detects_counts(
        self, client: httpx.AsyncClient, service: FakeService
    ) -> None:
        service.tasks = {"smolvlm": ("caption", "query", "detect")}
        answer = (await client.post("/surveillance", json={"image_data": BASE64})).json()
        assert 0 <= answer.pop("processing_time") < 10
        boxes = [
            {"x_min": 0.1, "y_min": 0.2, "x_max": 0.3, "y_max": 0.4},
            {"x_min": 0.5, "y_min": 0.5, "x_max": 1.0, "y_max": 1.0},
        ]
        assert answer == {
            "summary": ANSWER,
            "people": {"count": 2, "objects": boxes},
            "vehicles": {"count": 2, "objects": boxes},
            "activities": {"description": ANSWER},
            "unusual": {"found": True, "description": ANSWER},
            "model": "smolvlm",
        }
        assert [request.task for request in service.requests] == [
            Caption(),
            Detect("person"),
            Detect("vehicle"),
            Query(ACTIVITIES),
            Query(UNUSUAL),
        ]
        assert len({request.id for request in service.requests}) == 5
        assert set(service.pictures) == {PICTURE}

    async def test_a_model_that_can_not_detect_answers_questions_and_says_so(
        self, client: httpx.AsyncClient, service: FakeService
    ) -> None:
        answer = (await client.post("/surveillance", json={"image_data": BASE64})).json()
        assert answer["people"] == {"count": 2, "description": ANSWER}
        assert answer["vehicles"] == {"count": 2, "description": ANSWER}
        assert answer["warnings"] == [
            "people, vehicles: counted by questions, because smolvlm can't detect"
        ]
        tasks = [request.task for request in service.requests]
        assert Query(HOW_MANY.format("people")) in tasks
        assert not any(isinstance(task, Detect) for task in tasks)

    async def test_the_model_that_answers_counts(
        self, client: httpx.AsyncClient, service: FakeService
    ) -> None:
        service.tasks = {"smolvlm": ("caption", "query", "detect"), "other": ("caption", "query")}
        service.answers_as = "other"
        answer = (await client.post("/surveillance", json={"image_data": BASE64})).json()
        assert answer["people"] == {"count": 2, "description": ANSWER}
        assert answer["warnings"] == [
            "people, vehicles: counted by questions, because other can't detect"
        ]

    @pytest.mark.parametrize(
        ("description", "found"),
        [
            ("No, nothing.", False),
            ("None", False),
            ("There is nothing unusual or suspicious in this image.", False),
            ("There is not anything unusual in this image.", False),
            ("The image does not appear to show anything suspicious.", False),
            ("There isn't anything unusual.", False),
            ("Now a man climbs a fence with a knife.", True),
            ("Northern wall is on fire.", True),
            ("Yes, a man without shoes climbs a fence.", True),
        ],
    )
    async def test_a_denial_is_understood(
        self, client: httpx.AsyncClient, service: FakeService, description: str, found: bool
    ) -> None:
        service.words = (description,)
        answer = (await client.post("/surveillance", json={"image_data": BASE64})).json()
        assert answer["unusual"] == {"found": found, "description": description}

    async def test_an_error_is_the_answer(
        self, client: httpx.AsyncClient, service: FakeService
    ) -> None:
        service.error = Overloaded("full", "model", retry_after=3)
        response = await client.post("/surveillance", json={"image_data": BASE64})
        assert (response.status_code, response.headers["Retry-After"]) == (503, "3")
        assert response.json() == {"detail": "full"}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3", 3), ("There are 12 people.", 12), ("Two people", 2), ("None.", 0), ("No cars", 0),
        ("many", None), ("", None), ("someone", None), ("No, there are 3 people.", 3),
        ("There are 1,200 people.", 1200), ("A dozen people", 12), ("Zero", 0), ("No.", None),
    ],
)  # fmt: skip
def test_a_count_is_the_first_number(text: str, number: int | None) -> None:
    assert parse_count(text) == number


async def test_the_model_is_described(client: httpx.AsyncClient) -> None:
    assert (await client.get("/model/info?model=other")).json() == {
        "model": "other",
        "family": "smolvlm",
        "checkpoint": "pocket",
        "device": "cpu",
        "dtype": "float32",
        "tasks": ["caption", "chat", "query"],
        "parameters": 1234,
        "max_image_size": 640,
        "queue": {"capacity": 50, "workers": 2},
    }
    response = await client.get("/model/info?model=none")
    assert response.status_code == 404
