from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx
import pytest

from raylens.api.app import create_app
from raylens.api.generate import GIB, PATH, summarize
from raylens.core.config import AppConfig
from raylens.core.errors import ModelFailed, ModelNotLoaded
from raylens.core.types import Chat, ImagePart, MemoryUsage, Message, Role, TextPart, VideoPart
from raylens.net.fetcher import Fetcher
from tests.unit.raylens.api.conftest import CONFIG, DATA_URL, PICTURE, FakeService

BASE64 = base64.b64encode(PICTURE).decode()


def ask(*content: Any, **options: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    return {"messages": [{"role": "user", "content": parts}], **options}


async def test_the_answer_has_every_documented_field(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    answer = (await client.post(PATH, json=ask("How many?"))).json()
    assert 0 <= answer.pop("processing_time") < 10
    assert answer == {
        "response": "two red circles",
        "usage": {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10},
    }
    (request,) = service.requests
    assert request.task == Chat((Message(Role.USER, (TextPart("How many?"),)),))
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p) == (0.7, 0.9)
    assert sampling.max_tokens == CONFIG.limits.max_tokens  # under the dialect's 512


WEB_PICTURE = {"type": "image", "image": "https://example.com/chart.png"}
QUESTION = {"type": "text", "text": "What does it show?"}
DOCUMENTED: list[tuple[dict[str, Any], tuple[Any, ...], int]] = [
    # What its documentation sends, the parts of the last message, and its limit on tokens.
    ({"messages": [{"role": "user", "content": "Hello"}]}, (TextPart("Hello"),), 100),
    (
        {"messages": [{"role": "user", "content": [WEB_PICTURE, QUESTION]}], "max_new_tokens": 64},
        (ImagePart(0), TextPart("What does it show?")),
        64,
    ),
    (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": f"data:image/jpeg;base64,{BASE64}"},
                        QUESTION,
                    ],
                }
            ],
            "max_new_tokens": 50,
        },
        (ImagePart(0), TextPart("What does it show?")),
        50,
    ),
    (
        {
            "messages": [
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hello!"},
                {"role": "user", "content": [WEB_PICTURE, QUESTION]},
            ]
        },
        (ImagePart(0), TextPart("What does it show?")),
        100,
    ),
    (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "video", "video": "https://example.com/clip.mp4"},
                        QUESTION,
                    ],
                }
            ],
            "max_new_tokens": 512,
            "temperature": 0.7,
            "top_p": 0.9,
        },
        (VideoPart((0,)), TextPart("What does it show?")),
        100,
    ),
]


@pytest.mark.parametrize(("body", "parts", "max_tokens"), DOCUMENTED)
async def test_the_documented_requests_are_answered_as_they_stand(
    client: httpx.AsyncClient,
    service: FakeService,
    monkeypatch: pytest.MonkeyPatch,
    body: dict[str, Any],
    parts: tuple[Any, ...],
    max_tokens: int,
) -> None:
    async def fetch(fetcher: Fetcher, url: str, *_: Any) -> bytes:
        assert url.startswith("https://example.com/")
        return PICTURE

    monkeypatch.setattr(Fetcher, "fetch", fetch)
    response = await client.post(PATH, json=body)
    answer = response.json()
    assert response.status_code == 200, answer
    assert isinstance(answer.pop("processing_time"), float)
    assert answer == {
        "response": "two red circles",
        "usage": {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10},
    }
    (request,) = service.requests
    assert isinstance(request.task, Chat)
    assert request.task.messages[-1].parts == parts
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (max_tokens, 0.7, 0.9)
    assert service.pictures == [PICTURE] * (len(parts) - 1)


async def test_options_are_kept(client: httpx.AsyncClient, service: FakeService) -> None:
    options = {"max_new_tokens": 9, "temperature": 0, "top_p": 0.5, "model": "other"}
    await client.post(PATH, json=ask("x", **options))
    await client.post(PATH, json=ask("x", top_p=0, max_new_tokens=None))
    first, second = service.requests
    assert (first.model, first.sampling.max_tokens) == ("other", 9)
    assert (first.sampling.temperature, first.sampling.top_p) == (0, 0.5)
    assert (second.sampling.temperature, second.sampling.top_p) == (0, 1)


async def test_a_conversation_is_continued(client: httpx.AsyncClient, service: FakeService) -> None:
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Of course!"},
        {"role": "user", "content": [{"type": "image", "image": DATA_URL}]},
    ]
    assert (await client.post(PATH, json={"messages": messages})).status_code == 200
    task = service.requests[0].task
    assert isinstance(task, Chat)
    assert [message.parts for message in task.messages] == [
        (TextPart("Hello"),),
        (TextPart("Of course!"),),
        (ImagePart(0),),
    ]


@pytest.mark.parametrize("picture", [DATA_URL, BASE64, "\n" + BASE64 + "\n"])
async def test_a_picture_comes_in_base64(
    client: httpx.AsyncClient, service: FakeService, picture: str
) -> None:
    body = ask({"type": "image", "image": picture}, "What's in this image?")
    assert (await client.post(PATH, json=body)).status_code == 200
    assert service.pictures == [PICTURE]


async def test_a_picture_comes_by_path_only_below_the_media_folder(
    service: FakeService, tmp_path: Path
) -> None:
    (tmp_path / "9j").mkdir()
    (tmp_path / "9j" / "a.png").write_bytes(PICTURE)
    config = AppConfig.model_validate(
        CONFIG.model_dump(exclude_unset=True) | {"media_root": str(tmp_path)}
    )
    transport = httpx.ASGITransport(create_app(service, config), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        for path in ("9j/a.png", f"{tmp_path}/9j/a.png", f"file://{tmp_path}/9j/a.png", BASE64):
            response = await http.post(PATH, json=ask({"type": "image", "image": path}))
            assert response.status_code == 200
        response = await http.post(PATH, json=ask({"type": "image", "image": "/etc/hostname"}))
    assert service.pictures == [PICTURE] * 4
    assert response.status_code == 400
    assert response.json()["detail"].startswith("messages.0.content.0.image: invalid base64")


async def test_frames_are_a_video(client: httpx.AsyncClient, service: FakeService) -> None:
    body = ask({"type": "video", "video": [DATA_URL, BASE64], "fps": 4}, "What moves?")
    assert (await client.post(PATH, json=body)).status_code == 200
    task = service.requests[0].task
    assert isinstance(task, Chat)
    assert task.messages[0].parts == (VideoPart((0, 1), 4), TextPart("What moves?"))


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "messages: Field required"),
        ({"messages": []}, 400, "messages: Field required"),
        (ask({"type": "image"}), 400, "messages.0.content.0: expected the picture"),
        (ask({"type": "image", "image": "!"}), 400, "messages.0.content.0.image: invalid base64"),
        (ask({"type": "sound"}), 400, "messages.0.content.0: parts of the type 'sound'"),
        (ask("x", max_new_tokens=0), 400, "max_new_tokens: "),
        (ask("x", temperature=3), 400, "temperature: "),
        (ask("x", top_p=2), 400, "top_p: "),
        (ask("x", max_tokens=5), 400, "max_tokens: Extra inputs"),
        (ask("x" * 2001), 400, "messages: 2001 characters; the limit is 2000"),
        (ask("x", model="none"), 404, "model: unknown model 'none'"),
    ],
)
async def test_errors_are_a_detail(
    client: httpx.AsyncClient, body: dict[str, Any], status: int, message: str
) -> None:
    response = await client.post(PATH, json=body)
    assert response.status_code == status
    assert response.json()["detail"].startswith(message)


@pytest.mark.parametrize(
    ("error", "status"), [(ModelNotLoaded("down", "model"), 503), (ModelFailed("broken"), 500)]
)
async def test_failures_have_the_documented_status(
    client: httpx.AsyncClient, service: FakeService, error: ModelFailed, status: int
) -> None:
    service.error = error
    response = await client.post(PATH, json=ask("x"))
    assert (response.status_code, response.json()) == (status, {"detail": error.message})


async def test_memory_is_shown_and_cleared(client: httpx.AsyncClient, service: FakeService) -> None:
    before = {
        "device": "cpu",
        "allocated_gb": 2.0,
        "reserved_gb": 3.0,
        "free_gb": 6.0,
        "total_gb": 8.0,
        "usage_percentage": 25.0,
        "replicas": 1,
    }
    assert (await client.get("/vram_status")).json() == before
    assert (await client.post("/clear_vram")).json() == {
        "message": "Caches cleared; 1 GB given back",
        "device": "cpu",
        "freed_gb": 1.0,
        "before": before,
        "after": {**before, "reserved_gb": 2.0},
    }


@pytest.mark.parametrize(("method", "path"), [("GET", "/vram_status"), ("POST", "/clear_vram")])
async def test_memory_that_nobody_reports_is_no_zero(
    client: httpx.AsyncClient,
    service: FakeService,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
) -> None:
    async def report_nothing() -> list[MemoryUsage]:
        return []

    monkeypatch.setattr(service, "memory_usage", report_nothing)
    response = await client.request(method, path)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "2")


async def test_a_replica_that_answers_once_gives_nothing_back(
    client: httpx.AsyncClient, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def report_two() -> list[MemoryUsage]:
        gone = MemoryUsage("cuda", "a", 24 * GIB, 9 * GIB, 9 * GIB, "gone")
        return [gone, MemoryUsage("cpu", "node", 8 * GIB, 2 * GIB, 3 * GIB)]

    monkeypatch.setattr(service, "memory_usage", report_two)
    answer = (await client.post("/clear_vram")).json()
    assert (answer["freed_gb"], answer["before"]["device"]) == (1.0, "cpu")


def test_a_shared_gpu_counts_once_and_processes_on_cpus_do_not_count() -> None:
    usages = [
        MemoryUsage("cuda", "a", 24 * GIB, 5 * GIB, 6 * GIB),
        MemoryUsage("cuda", "a", 24 * GIB, 7 * GIB, 8 * GIB),
        MemoryUsage("cuda:0", "b", 24 * GIB, 0, 0),
        MemoryUsage("cpu", "node", 64 * GIB, 9 * GIB, 9 * GIB),
    ]
    assert summarize(usages) == {
        "device": "cuda",
        "allocated_gb": 12,
        "reserved_gb": 14,
        "free_gb": 36,
        "total_gb": 48,
        "usage_percentage": 25,
        "replicas": 3,
    }
    assert summarize([])["usage_percentage"] == 0
