"""The line that each request leaves in the log."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from raylens.api.access_log import AccessRecord, RequestMetrics
from raylens.api.app import create_app
from raylens.core.config import AppConfig
from raylens.core.errors import ModelFailed
from raylens.core.keys import hash_key
from raylens.core.logs import JsonFormatter, RequestIdFilter
from raylens.core.types import Timings, ToolCallDelta
from tests.unit.raylens.api.conftest import CONFIG, DATA_URL, FakeService, chat, image

SECRETS = ("rl-ann", "What is it?", DATA_URL[-40:], "two red circles")


class Lines(logging.Handler):
    """Keeps what is logged, as JSON and as text."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.objects: list[dict[str, Any]] = []
        self.addFilter(RequestIdFilter())

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
        self.objects.append(json.loads(JsonFormatter().format(record)))


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Lines()
    logger = logging.getLogger("raylens.access")
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield handler
    logger.removeHandler(handler)


async def send(
    service: FakeService, path: str, body: dict[str, Any], **headers: str
) -> httpx.Response:
    keys = [{"name": "ann", "hash": hash_key("rl-ann")}]
    settings = {**CONFIG.model_dump(exclude_unset=True), "auth": {"keys": keys}}
    app = create_app(service, AppConfig.model_validate(settings))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=("10.1.2.3", 5))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        headers = {"X-API-Key": "rl-ann", **headers}
        return await client.post(path, json=body, headers=headers)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_line_says_who_asked_which_model(
    service: FakeService, lines: Lines, stream: bool
) -> None:
    body = chat("What is it?", image(), stream=stream)
    await send(service, "/v1/chat/completions", body, **{"X-Request-ID": "id-7"})
    (line,) = lines.objects
    assert line.pop("seconds") > 0
    assert line.pop("first_token_s") >= 0
    assert line.pop("time").endswith("+00:00")
    assert line.pop("message") == lines.texts[0]
    assert line == {
        "level": "INFO",
        "logger": "raylens.access",
        "request_id": "id-7",
        "method": "POST",
        "path": "/v1/chat/completions",
        "client": "10.1.2.3",
        "status": 200,
        "key": "ann",
        "model": "smolvlm",
        "task": "chat",
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "timings": None,
        "route": "/v1/chat/completions",
    }
    assert lines.texts[0].startswith("POST /v1/chat/completions 200 0.")
    assert lines.texts[0].endswith(" key=ann model=smolvlm task=chat tokens=7+3")
    assert not [secret for secret in SECRETS if secret in str(lines.objects)]


async def test_a_prompt_with_several_answers_counts_once(
    service: FakeService, lines: Lines
) -> None:
    await send(service, "/v1/chat/completions", chat("What is it?", image(), n=3))
    (line,) = lines.objects
    assert (line["prompt_tokens"], line["completion_tokens"]) == (7, 9)


async def test_several_calls_of_a_model_add_up(service: FakeService, lines: Lines) -> None:
    await send(service, "/v1/completions", {"prompt": ["a", "b"], "model": "smolvlm"})
    (line,) = lines.objects
    assert len(service.requests) == 2
    assert (line["prompt_tokens"], line["completion_tokens"]) == (14, 6)


async def test_an_answer_that_repeats_its_usage_counts_once(
    service: FakeService, lines: Lines
) -> None:
    service.tool_calls = (ToolCallDelta(0, "f"), ToolCallDelta(0, arguments="{}"))
    await send(service, "/v1/chat/completions", chat("What is it?", image()))
    (line,) = lines.objects
    assert (line["prompt_tokens"], line["completion_tokens"]) == (7, 3)


async def test_the_tokens_before_an_error_count(service: FakeService, lines: Lines) -> None:
    service.error, service.before_error = ModelFailed("broken"), 2
    await send(service, "/v1/chat/completions", chat("What is it?", image()))
    (line,) = lines.objects
    assert line["completion_tokens"] == 2


async def test_a_request_with_an_invalid_id_leaves_a_line(
    service: FakeService, lines: Lines
) -> None:
    response = await send(service, "/v1/caption", {}, **{"X-Request-ID": "a b"})
    assert response.status_code == 400
    assert "X-Request-ID" in response.json()["detail"]
    (line,) = lines.objects
    assert line["status"] == 400
    assert line["request_id"] == response.headers["X-Request-ID"] != "a b"


async def test_refused_requests_leave_a_line_too(service: FakeService, lines: Lines) -> None:
    await send(service, "/v1/caption", {}, **{"X-API-Key": "rl-wrong"})
    await send(service, "/v1/caption", {}, Host="evil.example")
    await send(service, "/v1/caption", {"image_url": "nonsense"})
    assert [line["status"] for line in lines.objects] == [401, 421, 400]
    assert [line["key"] for line in lines.objects] == [None, None, "ann"]
    assert "rl-wrong" not in str(lines.objects)


async def test_a_path_forges_no_line(service: FakeService, lines: Lines) -> None:
    await send(service, "/v1/x%0aPOST%20/v1/caption%20200%1b[2J", {})
    assert "\n" not in lines.texts[0]
    assert "\x1b" not in lines.texts[0]


async def test_what_is_polled_leaves_none(client: httpx.AsyncClient, lines: Lines) -> None:
    for path in ("/live", "/ready", "/health", "/api/v1/status"):
        await client.get(path)
    assert lines.texts == []


async def test_an_unexpected_error_is_a_500(service: FakeService, lines: Lines) -> None:
    service.words = (None,)  # type: ignore[assignment]
    response = await send(service, "/v1/caption", {"image_url": DATA_URL})
    assert response.status_code == 500
    assert [line["status"] for line in lines.objects] == [500]


class TestTiming:
    @pytest.mark.parametrize("stream", [False, True])
    async def test_the_stages_are_told_on_request(
        self, service: FakeService, lines: Lines, stream: bool
    ) -> None:
        service.timings = Timings(preprocess=0.001, queue=0.25, prefill=0.5, decode=1.5)
        body = chat(image(), stream=stream)
        told = await send(service, "/v1/chat/completions", body, **{"X-Server-Timing": "1"})
        stages = dict(entry.split(";dur=") for entry in told.headers["Server-Timing"].split(", "))
        assert stages.pop("total") != ""
        assert stages == {
            "preprocess": "1.0",
            "queue": "250.0",
            "prefill": "500.0",
            "decode": "1500.0",
        }
        silent = await send(service, "/v1/chat/completions", body)
        assert "Server-Timing" not in silent.headers
        assert lines.objects[0]["timings"]["prefill"] == 0.5

    async def test_an_answer_names_its_model_in_a_header(self, service: FakeService) -> None:
        response = await send(service, "/v1/query", {"image_url": DATA_URL, "question": "What?"})
        assert response.headers["X-Raylens-Model"] == "smolvlm"


class Recorder(RequestMetrics):
    def __init__(self) -> None:
        self.records: list[AccessRecord] = []

    def record(self, record: AccessRecord) -> None:
        self.records.append(record)


async def test_metrics_get_the_routes_template(service: FakeService) -> None:
    recorder = Recorder()
    app = create_app(service, CONFIG, metrics=recorder)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        await client.get("/v1/models/smolvlm")
        await client.post("/v1/chat/completions", json=chat(image()))
        await client.get("/made/up/by/a/stranger")
        await client.post("/v1/caption", json={}, headers={"Host": "evil.example"})
    assert [(record.route, record.status) for record in recorder.records] == [
        ("/v1/models/{name:path}", 200),
        ("/v1/chat/completions", 200),
        ("", 404),
        ("/v1/caption", 421),
    ]
    answered = recorder.records[1]
    assert (answered.model, answered.task, answered.prompt_tokens > 0) == ("smolvlm", "chat", True)
