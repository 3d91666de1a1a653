"""Ollama's own Python client, and requests that other tools send."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import ollama
import pytest
from pydantic import BaseModel

from raylens.api.app import create_app
from raylens.core.errors import DeadlineExceeded, Overloaded
from raylens.core.types import (
    Chat,
    Completion,
    ImagePart,
    Message,
    Role,
    TextPart,
    ToolCall,
    ToolCallDelta,
)
from tests.unit.raylens.api.conftest import CONFIG, DATA_URL, PICTURE, FakeService


class Scene(BaseModel):
    count: int


@pytest.fixture
def ollama_client(service: FakeService) -> ollama.AsyncClient:
    return ollama.AsyncClient(
        "http://localhost", transport=httpx.ASGITransport(create_app(service, CONFIG))
    )


def task_of(service: FakeService) -> Chat:
    task = service.requests[-1].task
    assert isinstance(task, Chat)
    return task


async def test_a_chat_about_a_picture_is_answered(ollama_client, service: FakeService) -> None:
    answer = await ollama_client.chat(
        model="smolvlm",
        messages=[
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "look", "images": [PICTURE]},
        ],
        options={"temperature": 0.5, "num_predict": 7, "top_k": 4, "repeat_penalty": 1.2,
                 "stop": ["x"], "seed": 3, "num_ctx": 8192, "mirostat": 0},
        keep_alive="5m",
    )  # fmt: skip
    assert answer.message.content == "two red circles"
    assert (answer.done, answer.done_reason) == (True, "stop")
    assert (answer.prompt_eval_count, answer.eval_count) == (7, 3)
    assert answer.total_duration is not None
    assert answer.total_duration > 0
    assert task_of(service).messages == (
        Message(Role.SYSTEM, (TextPart("be brief"),)),
        Message(Role.USER, (ImagePart(0), TextPart("look"))),
    )
    assert service.pictures == [PICTURE]
    assert service.picture_fields == ["messages.1.images.0"]
    sampling = service.requests[0].sampling
    assert (sampling.temperature, sampling.max_tokens, sampling.top_k) == (0.5, 7, 4)
    assert (sampling.repetition_penalty, sampling.stop, sampling.seed) == (1.2, ("x",), 3)


async def test_a_chat_is_streamed_in_lines(ollama_client, service) -> None:
    stream = await ollama_client.chat(
        model="smolvlm:latest", messages=[{"role": "user", "content": "hi"}], stream=True
    )
    parts = [part async for part in stream]
    assert [part.message.content for part in parts] == ["two ", "red ", "circles", ""]
    assert [part.done for part in parts] == [False] * 3 + [True]
    assert parts[-1].eval_count == 3
    assert {part.model for part in parts} == {"smolvlm:latest"}


async def test_a_schema_is_the_format(ollama_client, service) -> None:
    await ollama_client.chat(
        model="smolvlm",
        messages=[{"role": "user", "content": "hi"}],
        format=Scene.model_json_schema(),
    )
    assert json.loads(service.requests[0].sampling.json_schema)["title"] == "Scene"
    await ollama_client.generate(model="smolvlm", prompt="hi", format="json")
    assert json.loads(service.requests[1].sampling.json_schema) == {"type": "object"}


@pytest.mark.parametrize("stream", [True, False])
async def test_warnings_are_in_the_last_line(client, service, stream) -> None:
    service.warnings = ("format: not enforced: uniqueItems",)
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": stream}
    *_, last = (await client.post("/api/chat", json=body)).text.splitlines()
    assert json.loads(last)["warnings"] == list(service.warnings)


async def test_a_call_is_sent_whole(ollama_client, service) -> None:
    def look(at: str) -> str:
        """Look.

        Args:
            at: Where.
        """
        return at

    service.words = ()
    service.tool_calls = (
        ToolCallDelta(0, "look"),
        ToolCallDelta(0, arguments='{"at": '),
        ToolCallDelta(0, arguments='"top"}'),
        ToolCallDelta(1, "look", "{}"),
    )
    messages: list[Any] = [{"role": "user", "content": "look"}]
    answer = await ollama_client.chat(model="smolvlm", messages=messages, tools=[look])
    calls = [(call.function.name, call.function.arguments) for call in answer.message.tool_calls]
    assert calls == [("look", {"at": "top"}), ("look", {})]
    tools = service.requests[0].tools
    assert tools is not None
    assert tools.functions[0].name == "look"
    stream = await ollama_client.chat(model="smolvlm", messages=messages, tools=[look], stream=True)
    parts = [part async for part in stream]
    streamed = [call for part in parts for call in part.message.tool_calls or ()]
    assert [(call.function.name, call.function.arguments) for call in streamed] == calls
    messages += [answer.message, {"role": "tool", "tool_name": "look", "content": "a circle"}]
    await ollama_client.chat(model="smolvlm", messages=messages)
    assert task_of(service).messages[1:] == (
        Message(Role.ASSISTANT, (), (ToolCall("look", '{"at": "top"}'), ToolCall("look", "{}"))),
        Message(Role.TOOL, (TextPart("a circle"),)),
    )


async def test_a_prompt_is_answered(ollama_client, service) -> None:
    answer = await ollama_client.generate(
        model="smolvlm",
        prompt="look",
        system="be brief",
        images=[base64.b64encode(PICTURE).decode()],
    )
    assert answer.response == "two red circles"
    assert [message.role for message in task_of(service).messages] == [Role.SYSTEM, Role.USER]
    assert service.picture_fields == ["images.0"]
    stream = await ollama_client.generate(model="smolvlm", prompt="hi", stream=True)
    assert [part.response async for part in stream] == ["two ", "red ", "circles", ""]


async def test_a_raw_prompt_is_continued(ollama_client, service) -> None:
    await ollama_client.generate(model="smolvlm", prompt="I see", raw=True)
    assert service.requests[0].task == Completion("I see")


async def test_without_a_prompt_a_model_is_loaded(ollama_client, service) -> None:
    assert (await ollama_client.generate(model="smolvlm")).done_reason == "load"
    assert (await ollama_client.chat(model="smolvlm")).done_reason == "load"
    assert service.requests == []


async def test_models_are_listed_and_shown(ollama_client, service) -> None:
    service.tasks = {"smolvlm": ("chat", "reason")}
    listed = await ollama_client.list()
    assert [model.model for model in listed.models] == ["smolvlm:latest", "other:latest"]
    shown = await ollama_client.show("smolvlm")
    assert set(shown.capabilities or ()) == {"completion", "vision", "tools", "thinking"}
    running = await ollama_client.ps()
    assert [model.model for model in running.models] == ["smolvlm:latest", "other:latest"]


async def test_the_version_is_ollamas(client) -> None:
    assert (await client.get("/api/version")).json()["version"].count(".") == 2


async def test_a_body_of_any_type_is_read(client, service) -> None:
    """curl's default type is that of a form."""
    message = {"role": "user", "content": "hi", "images": [DATA_URL]}
    body = json.dumps({"messages": [message], "options": None, "format": "", "tools": []})
    headers = {"content-type": "application/x-www-form-urlencoded"}
    response = await client.post("/api/chat", content=body, headers=headers)
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert [line["done"] for line in lines] == [False] * 3 + [True]
    assert service.pictures == [PICTURE]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/api/chat", {"model": "gpt-9"}, 404, "gpt-9"),
        ("/api/show", {"name": "gpt-9"}, 404, "gpt-9"),
        ("/api/chat", {"messages": [{"role": "wizard"}]}, 400, "messages.0.role"),
        ("/api/chat", {"messages": [{"role": "user", "images": ["@@"]}]}, 400,
         "messages.0.images.0: invalid base64"),
        ("/api/chat", {"messages": "hi"}, 400, "messages"),
        ("/api/chat", {"messages": [{"role": "user", "content": 5}]}, 400, "content: expected"),
        ("/api/chat", {"messages": [{"role": "user", "images": "aa"}]}, 400, "images: expected"),
        ("/api/chat", {"messages": [{"role": "assistant", "tool_calls": 5}]}, 400,
         "tool_calls: expected a list"),
        ("/api/generate", {"prompt": "a", "images": ["aa"] * 1024}, 400, "images: "),
        ("/api/generate", {"prompt": "a", "suffix": "b"}, 400, "suffix: not supported"),
        ("/api/generate", {"prompt": "a", "format": 5}, 400, "format"),
        ("/api/generate", {"prompt": "a", "raw": True, "images": ["aa"]}, 400, "images"),
        ("/api/generate", {"prompt": "a", "options": {"temperature": 9}}, 400,
         "options.temperature"),
        ("/api/generate", [], 400, "body"),
    ],
)  # fmt: skip
async def test_an_error_is_a_string(client, service, path, body, status, message) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == status
    assert message in response.json()["error"]
    assert service.requests == []


@pytest.mark.parametrize("body", [b"{", b"\xff", b'{"options": {"seed": ' + b"9" * 5000 + b"}}"])
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/show"])
async def test_a_body_that_is_not_json_is_refused(client, path, body) -> None:
    response = await client.post(path, content=body)
    assert response.status_code == 400
    assert "not valid JSON" in response.json()["error"]


async def test_an_error_keeps_its_status_or_ends_the_stream(client, service) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    service.error = Overloaded("full", "model", 3, 4, 2.5)
    assert (await client.post("/api/chat", json=body)).status_code == 503
    service.error, service.before_error = DeadlineExceeded("too late", "deadline"), 2
    response = await client.post("/api/chat", json=body)
    assert response.status_code == 200
    assert json.loads(response.text.splitlines()[-1]) == {"error": "too late"}
