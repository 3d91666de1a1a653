"""Errors and warnings name the field that the client has sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raylens.core.errors import InvalidRequest
from tests.unit.raylens.api.conftest import DATA_URL, FakeService

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]
LOOK = {"name": "look", "parameters": {"type": "object"}}


def error_of(field: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: it is wrong", field, 5, 6)


@pytest.mark.parametrize(
    ("path", "body", "theirs", "ours"),
    [
        (CHAT, {"messages": HELLO}, "response_format", "response_format"),
        (CHAT, {"messages": HELLO, "max_tokens": 9}, "max_tokens", "max_tokens"),
        (CHAT, {"messages": HELLO, "max_completion_tokens": 9}, "max_tokens",
         "max_completion_tokens"),
        ("/v1/responses", {"input": "hi"}, "response_format", "text.format"),
        ("/v1/responses", {"input": "hi"}, "messages", "input"),
        ("/v1/responses", {"input": "hi"}, "tools", "tools"),
        ("/v1/completions", {"prompt": "hi"}, "prompt", "prompt"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_a_models_error(
    client, service: FakeService, path, body, theirs, ours, stream
) -> None:
    service.error = error_of(theirs)
    response = await client.post(path, json={**body, "stream": stream})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, ours)
    assert error["message"] == f"{ours}: it is wrong"


@pytest.mark.parametrize(
    ("path", "body", "theirs", "ours"),
    [
        ("/api/chat", {"messages": HELLO}, "response_format", "format"),
        ("/api/chat", {"messages": HELLO}, "messages", "messages"),
        ("/api/generate", {"prompt": "hi"}, "messages", "prompt"),
    ],
)
async def test_a_models_error_in_ollamas_dialect(client, service, path, body, theirs, ours) -> None:
    service.error = error_of(theirs)
    response = await client.post(path, json={"model": "smolvlm", **body})
    assert response.json() == {"error": f"{ours}: it is wrong"}


@pytest.mark.parametrize(
    ("path", "body", "ours"),
    [
        (CHAT, {"messages": HELLO}, "response_format"),
        ("/v1/responses", {"input": "hi"}, "text.format"),
        ("/api/chat", {"model": "smolvlm", "messages": HELLO, "stream": False}, "format"),
    ],
)
async def test_a_models_warning(client, service: FakeService, path, body, ours) -> None:
    service.warnings = ("response_format: not enforced: uniqueItems", "image_url: too dark")
    response = await client.post(path, json=body)
    assert response.json()["warnings"] == [
        f"{ours}: not enforced: uniqueItems",
        service.warnings[1],
    ]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHAT, {"messages": HELLO, "reasoning": True}, "reasoning"),
        (CHAT, {"messages": HELLO, "reasoning": {"effort": "low"}}, "reasoning"),
        (CHAT, {"messages": HELLO, "reasoning_effort": "low"}, "reasoning_effort"),
        ("/v1/responses", {"input": "hi", "reasoning": {"effort": "low"}}, "reasoning.effort"),
    ],
)
async def test_the_field_that_asks_for_what_no_model_can(
    client, service: FakeService, path, body, field
) -> None:
    service.tasks = dict.fromkeys(service.loaded, ("chat",))
    response = await client.post(path, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, field)
    assert error["message"].startswith(f"{field}: reasoning is not supported by smolvlm")


def with_tool(**changes: Any) -> dict[str, Any]:
    return {"messages": HELLO, "tools": [{"type": "function", "function": {**LOOK, **changes}}]}


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        (with_tool(description="x" * 2000), "tools", "the limit is 2000"),
        (with_tool(description="\ud800"), "tools.0.function.description", "valid JSON"),
        ({"messages": HELLO, "chat_template_kwargs": {"a": "x" * 2000}}, "chat_template_kwargs",
         "the limit is 2000"),
        ({"messages": HELLO, "tools": [{"name": "f", "input_schema": {"type": "object"}}]},
         "tools.0.input_schema", "parameters"),
        ({**with_tool(), "tool_choice": {"type": "allowed_tools", "mode": "auto",
                                         "tools": [{"type": "function", "name": "other"}]}},
         "tool_choice", "'other' is none of the tools: look"),
        ({"messages": HELLO, "add_generation_prompt": False}, "add_generation_prompt",
         "expected the last message"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": "http://x/y"}]}]},
         "messages.0.content.0.image", ""),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
         "messages.0.content.0.image_url", ""),
    ],
)  # fmt: skip
async def test_an_invalid_chat(client, body, field, message) -> None:
    headers = {"content-type": "application/json"}  # httpx would refuse half a surrogate pair
    response = await client.post(CHAT, content=json.dumps(body), headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, field)
    assert message in error["message"]


async def test_a_generation_prompt_may_be_left_out_if_the_answer_goes_on(client) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "I am"}]
    body = {"messages": messages, "add_generation_prompt": False, "continue_final_message": True}
    assert (await client.post(CHAT, json=body)).status_code == 200


async def test_ollamas_raw_prompt_excludes_thoughts_and_pictures(client) -> None:
    for field, value in (("think", True), ("images", [DATA_URL])):
        body = {"model": "smolvlm", "prompt": "hi", "raw": True, field: value}
        response = await client.post("/api/generate", json=body)
        assert response.json() == {"error": f"{field}: not supported together with raw"}
