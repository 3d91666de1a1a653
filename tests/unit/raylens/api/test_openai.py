from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest

from raylens.errors import DeadlineExceeded, Overloaded
from raylens.types import Chat, Detail, ImagePart, Role, TextPart
from tests.unit.raylens.api.conftest import PICTURE, FakeService, chat, image

PATH = "/v1/chat/completions"


def events(response: httpx.Response) -> list[Any]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


async def test_a_chat_becomes_a_request(client, service: FakeService) -> None:
    body = chat(
        "look", image(detail="high"), image(), "well", model="small", max_tokens=9, temperature=0.5, top_p=0.9,
        seed=4, stop=["a", "b"], n=2, user="me",
    )  # fmt: skip
    body["messages"].insert(0, {"role": "developer", "content": "be brief"})
    before = time.time()
    response = await client.post(PATH, json=body, headers={"X-Request-ID": "abc", "X-Request-Timeout": "12.5"})
    assert response.status_code == 200
    assert response.headers["x-request-id"] == "abc"
    (request,) = service.requests
    assert (request.id, request.model, len(service.images)) == ("abc", "smolvlm", 2)
    assert before + 12.5 <= request.deadline <= time.time() + 12.5
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (9, 0.5, 0.9)
    assert (sampling.seed, sampling.stop, sampling.n) == (4, ("a", "b"), 2)
    assert isinstance(request.task, Chat)
    system, user = request.task.messages
    assert (system.role, system.parts) == (Role.SYSTEM, (TextPart("be brief"),))
    assert user.parts == (TextPart("look"), ImagePart(0, Detail.HIGH), ImagePart(1, Detail.AUTO), TextPart("well"))
    assert service.images == [PICTURE, PICTURE]


async def test_an_answer_has_openais_shape(client, service: FakeService) -> None:
    service.warnings = ("denoise was skipped",)
    answer = (await client.post(PATH, json=chat("hi", image(), n=2))).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "smolvlm"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert all(choice["message"]["content"] == "two red circles" for choice in answer["choices"])
    assert all(choice["finish_reason"] == "stop" for choice in answer["choices"])
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 6, "total_tokens": 13}
    assert answer["warnings"] == ["denoise was skipped"]
    assert service.closed == 1


async def test_a_stream_has_role_content_reason_and_usage_in_this_order(client) -> None:
    body = chat("hi", image(), stream=True, stream_options={"include_usage": True})
    response = await client.post(PATH, json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events(response)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas[0]["role"] == "assistant"
    assert [delta["content"] for delta in deltas[1:-1]] == ["two ", "red ", "circles"]
    assert deltas[-1] == {}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * 4 + ["stop"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 10
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_usage_stands_in_a_stream_only_where_it_is_asked_for(client) -> None:
    chunks = events(await client.post(PATH, json=chat("hi", stream=True)))
    assert not any("usage" in chunk for chunk in chunks)


async def test_an_error_before_the_first_delta_keeps_its_status(client, service: FakeService) -> None:
    service.error = Overloaded("full", "model", 3, 4, 2.5)
    for stream in (True, False):
        response = await client.post(PATH, json=chat("hi", stream=stream))
        assert response.status_code == 503
        assert response.headers["retry-after"] == "3"
        error = response.json()["error"]
        assert error == {"message": "full", "type": "server_error", "param": "model", "code": "overloaded"}


async def test_an_error_in_a_stream_is_an_event(client, service: FakeService) -> None:
    service.error, service.before_error = DeadlineExceeded("too late"), 2
    response = await client.post(PATH, json=chat("hi", stream=True))
    last = json.loads(response.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == "deadline_exceeded"
    assert "[DONE]" not in response.text
    assert service.closed == 1


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ({"messages": []}, 400, "messages", "at least 1 item"),
        ({}, 400, "messages", "required"),
        ({"messages": [{"role": "user", "content": []}]}, 400, "messages.0.content", "at least 1"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "messages.0.content", "string or a list"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages.0.role", "'user'"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "messages", "user"),
        (chat("x", model="gpt-9"), 404, "model", "smolvlm"),
        (chat("x", temperature=3), 400, "temperature", "less than or equal to 2"),
        (chat("x", top_p=0), 400, "top_p", "greater than 0"),
        (chat("x", max_tokens=101), 400, "max_tokens", "the limit is 100"),
        (chat("x", max_tokens=0), 400, "max_tokens", "greater than or equal to 1"),
        (chat("x", n=99), 400, "n", "the limit is 8"),
        (chat("x", stop=list("abcde")), 400, "stop", "the limit is 4"),
        (chat("x", logprobs=True), 400, "logprobs", "logprobs: not supported"),
        (chat("x", tools=[{"type": "function"}]), 400, "tools", "tools: not supported"),
        (chat("x", response_format={"type": "json_object"}), 400, "response_format", "response_format: not supported"),
        (chat("x", frobnicate=1), 400, "frobnicate", "frobnicate: no such parameter"),
        (chat("x", image(detail="ultra")), 400, "messages.0.content.1.image_url.detail", "'low'"),
        (chat("x", {"type": "input_audio", "input_audio": {}}), 400, "messages.0.content.1", "image_url"),
        (chat("x", image("https://example.com/a.png")), 400, "messages.0.content.1.image_url.url", "data URL"),
        (chat("x", image("/etc/passwd")), 400, "messages.0.content.1.image_url.url", "data URL"),
        (chat("x", image("data:image/png;base64,@@@")), 400, "messages.0.content.1.image_url.url", "base64"),
        (chat("x", image("data:image/png;base64," + "A" * 30_000)), 413, "messages.0.content.1.image_url.url", "20000"),
        (chat("x", *[image()] * 4), 400, "messages", "the limit is 3"),
        (chat("x", n=True), 400, "n", "valid integer"),
        ([], 400, "body", "a JSON object is needed"),
        (chat("x" * 2001), 400, "messages", "2001 characters; the limit is 2000"),
        (chat("\ud800"), 400, "messages.0.content.0.text", "surrogate"),
        (chat("x", image("\ud800:x")), 400, "messages.0.content.1.image_url.url", "surrogate"),
        (chat("x", stop="\ud800"), 400, "stop.0", "surrogate"),
        (chat("x", image("data:image/png,abc")), 400, "messages.0.content.1.image_url.url", "base64"),
        ({"messages": [{"role": "user", "content": [{"type": "q" * 3000}]}]}, 400, "messages.0.content.0", "tag"),
        ({"messages": [{"role": "user", "content": "x", "k" * 3000: 1}]}, 400, "messages.0." + "k" * 149, "permitted"),
    ],
)  # fmt: skip
async def test_bad_input_names_the_field_and_the_limit(client, service, body, status, param, words) -> None:
    content = json.dumps(body).encode()
    response = await client.post(PATH, content=content, headers={"content-type": "application/json"})
    assert response.status_code == status
    error = response.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
    assert len(error["message"]) < 500
    assert error["type"] == "invalid_request_error"
    assert service.requests == []


@pytest.mark.parametrize("value", ["soon", "0", "-1", "31", "nan", "inf", "1_0", "1e1"])
async def test_a_bad_timeout_is_refused(client, value) -> None:
    response = await client.post(PATH, json=chat("hi"), headers={"X-Request-Timeout": value})
    assert response.status_code == 400
    assert "X-Request-Timeout" in response.json()["error"]["message"]


async def test_what_asks_for_nothing_is_accepted(client) -> None:
    body = chat("hi", frequency_penalty=0, logprobs=False, tools=[], response_format={"type": "text"}, seed=None)
    assert (await client.post(PATH, json=body)).status_code == 200


async def test_a_bare_string_is_an_image_url(client, service: FakeService) -> None:
    part = {"type": "image_url", "image_url": image()["image_url"]["url"]}
    assert (await client.post(PATH, json=chat("hi", part))).status_code == 200
    assert service.images == [PICTURE]


async def test_models_are_listed_and_found_by_alias(client) -> None:
    listed = (await client.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["smolvlm", "other"]
    for name in ("small", "smolvlm2_500m_video", "smolvlm"):
        assert (await client.get(f"/v1/models/{name}")).json()["id"] == "smolvlm"
    assert (await client.get("/v1/models/org/other")).json()["id"] == "other"
    assert (await client.get("/v1/models/nothing")).status_code == 404
