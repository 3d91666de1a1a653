from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest

from raylens.api.openai import PATH
from raylens.core.types import Chat, Detail, ImagePart, Role, SamplingParams, TextPart, VideoPart
from tests.unit.raylens.api.conftest import PICTURE, FakeService, chat, image

SCHEMA = {"type": "object", "properties": {"z": {"const": "é"}, "a": {"type": "integer"}}}


def json_schema(schema: Any, **options: Any) -> dict[str, Any]:
    """Return a response format."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **options}}


async def test_a_chat_becomes_a_request(client, service: FakeService) -> None:
    body = chat(
        "look", image(detail="high"), image(), "well", model="small", max_tokens=9,
        temperature=0.5, top_p=0.9, seed=4, stop=["a", "b"], n=2, user="me",
    )  # fmt: skip
    body["messages"].insert(0, {"role": "developer", "content": "be brief"})
    before = time.time()
    response = await client.post(
        PATH, json=body, headers={"X-Request-ID": "abc", "X-Request-Timeout": "12.5"}
    )
    assert response.status_code == 200
    assert response.headers["x-request-id"] == "abc"
    (request,) = service.requests
    assert (request.id, request.model, len(service.pictures)) == ("abc", "smolvlm", 2)
    assert before + 12.5 <= request.deadline <= time.time() + 12.5
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (9, 0.5, 0.9)
    assert (sampling.seed, sampling.stop, sampling.n) == (4, ("a", "b"), 2)
    assert isinstance(request.task, Chat)
    system, user = request.task.messages
    assert (system.role, system.parts) == (Role.SYSTEM, (TextPart("be brief"),))
    assert user.parts == (
        TextPart("look"),
        ImagePart(0, Detail.HIGH),
        ImagePart(1, Detail.AUTO),
        TextPart("well"),
    )
    assert service.pictures == [PICTURE, PICTURE]


async def test_a_video_is_its_frames(client, service: FakeService) -> None:
    url = image()["image_url"]["url"]
    video = {"type": "video", "video": [url, url], "fps": 1.5}
    assert (await client.post(PATH, json=chat("look", image(), video))).status_code == 200
    (request,) = service.requests
    assert isinstance(request.task, Chat)
    (message,) = request.task.messages
    assert message.parts == (TextPart("look"), ImagePart(0, Detail.AUTO), VideoPart((1, 2), 1.5))
    assert service.pictures == [PICTURE] * 3


async def test_vllms_parameters_become_sampling_parameters(client, service: FakeService) -> None:
    options = {
        "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.2, "presence_penalty": -2,
        "frequency_penalty": 0.5, "logprobs": True, "top_logprobs": 20,
    }  # fmt: skip
    assert (await client.post(PATH, json=chat("hi", **options))).status_code == 200
    (request,) = service.requests
    expected = {**options, "logprobs": 20}
    del expected["top_logprobs"]
    assert {name: getattr(request.sampling, name) for name in expected} == expected


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "top_k": -1,
            "min_p": 0,
            "repetition_penalty": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0,
        },
        {
            "top_k": None,
            "min_p": None,
            "repetition_penalty": None,
            "presence_penalty": None,
            "frequency_penalty": None,
        },
        {"logprobs": False, "top_logprobs": 0, "response_format": {"type": "text"}},
        {"logprobs": None, "top_logprobs": None, "response_format": None},
    ],
)
async def test_neutral_values_leave_sampling_unchanged(
    client, service: FakeService, options
) -> None:
    assert (await client.post(PATH, json=chat("hi", **options))).status_code == 200
    assert service.requests[0].sampling == SamplingParams(max_tokens=50)


@pytest.mark.parametrize(
    ("response_format", "schema"),
    [
        ({"type": "json_object"}, '{"type":"object"}'),
        (
            json_schema(SCHEMA, strict=True, description="of a picture"),
            '{"type":"object","properties":{"z":{"const":"é"},"a":{"type":"integer"}}}',
        ),
        (json_schema({}, strict=None), "{}"),
    ],
)
async def test_a_response_format_becomes_a_schema_with_its_keys_in_order(
    client, service, response_format, schema
) -> None:
    response = await client.post(PATH, json=chat("hi", response_format=response_format))
    assert response.status_code == 200
    assert service.requests[0].sampling.json_schema == schema


async def test_a_schema_that_is_nested_too_deep_is_refused(client) -> None:
    head = (
        '{"messages": [{"role": "user", "content": "x"}], "response_format": '
        '{"type": "json_schema", "json_schema": {"name": "a", "schema": '
    )
    for depth in (800, 900, 950, 990, 50_000):
        content = head + '{"not":' * depth + "{}" + "}" * depth + "}}}"
        response = await client.post(
            PATH, content=content, headers={"content-type": "application/json"}
        )
        assert response.status_code in (400, 413)


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"messages": []}, 400, "messages", "at least 1 item"),
        ({}, 400, "messages", "required"),
        ({"messages": [{"role": "user", "content": []}]}, 400, "messages.0.content", "at least 1"),
        ({"messages": [{"role": "user", "content": None}]}, 400,
         "messages.0.content", "string or a list"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages.0.role", "'user'"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "messages", "user"),
        (chat("x", model="gpt-9"), 404, "model", "smolvlm"),
        (chat("x", temperature=3), 400, "temperature", "less than or equal to 2"),
        (chat("x", top_p=0), 400, "top_p", "greater than 0"),
        (chat("x", max_tokens=101), 400, "max_tokens", "the limit is 100"),
        (chat("x", max_tokens=0), 400, "max_tokens", "greater than or equal to 1"),
        (chat("x", n=99), 400, "n", "the limit is 8"),
        (chat("x", stop=list("abcde")), 400, "stop", "the limit is 4"),
        (chat("x", logit_bias={"5": 1}), 400, "logit_bias", "logit_bias: not supported"),
        (chat("x", top_k=-2), 400, "top_k", "greater than or equal to -1"),
        (chat("x", top_k=2**31), 400, "top_k", "less than 2147483648"),
        (chat("x", top_k=1.5), 400, "top_k", "valid integer"),
        (chat("x", min_p=1.1), 400, "min_p", "less than or equal to 1"),
        (chat("x", min_p=-0.1), 400, "min_p", "greater than or equal to 0"),
        (chat("x", min_p=math.nan), 400, "min_p", "less than or equal to 1"),
        (chat("x", repetition_penalty=0), 400, "repetition_penalty", "0.01"),
        (chat("x", repetition_penalty=10.5), 400, "repetition_penalty", "less than or equal to 10"),
        (chat("x", presence_penalty=2.1), 400, "presence_penalty", "less than or equal to 2"),
        (chat("x", presence_penalty=-2.1), 400, "presence_penalty", "greater than or equal to -2"),
        (chat("x", frequency_penalty=2.1), 400, "frequency_penalty", "less than or equal to 2"),
        (chat("x", frequency_penalty="1"), 400, "frequency_penalty", "valid number"),
        (chat("x", logprobs=2), 400, "logprobs", "valid boolean"),
        (chat("x", logprobs=True, top_logprobs=21), 400,
         "top_logprobs", "less than or equal to 20"),
        (chat("x", logprobs=True, top_logprobs=-1), 400,
         "top_logprobs", "greater than or equal to 0"),
        (chat("x", top_logprobs=1), 400, "top_logprobs", "expected logprobs to be true"),
        (chat("x", logprobs=False, top_logprobs=1), 400,
         "top_logprobs", "expected logprobs to be true"),
        (chat("x", tools=[{"type": "function"}]), 400, "tools", "tools: not supported"),
        (chat("x", response_format="json"), 400, "response_format", "valid dictionary"),
        (chat("x", response_format={"type": "grammar"}), 400, "response_format", "'json_schema'"),
        (chat("x", response_format={"type": "json_schema"}), 400,
         "response_format.json_schema", "required"),
        (chat("x", response_format=json_schema(None)), 400,
         "response_format.json_schema.schema", "valid dictionary"),
        (chat("x", response_format=json_schema({}, name=None)), 400,
         "response_format.json_schema.name", "valid string"),
        (chat("x", response_format=json_schema({}, other=1)), 400,
         "response_format.json_schema.other", "permitted"),
        (chat("x", response_format=json_schema({"const": "é" * 95})), 400, "response_format",
         "202 bytes of schema; the limit is 200"),
        (chat("x", response_format=json_schema({"const": math.inf})), 400,
         "response_format", "expected a schema that is valid JSON"),
        (chat("x", response_format=json_schema({"const": "\ud800"})), 400,
         "response_format", "expected a schema that is valid JSON"),
        (chat("x", frobnicate=1), 400, "frobnicate", "frobnicate: unknown parameter"),
        (chat("x", image(detail="ultra")), 400, "messages.0.content.1.image_url.detail", "'low'"),
        (chat("x", {"type": "input_audio", "input_audio": {}}), 400,
         "messages.0.content.1", "image_url"),
        (chat("x", image("https://example.com/a.png")), 400,
         "messages.0.content.1.image_url.url", "data URL"),
        (chat("x", {"type": "video", "video": ["a"]}), 400,
         "messages.0.content.1.video", "at least 2"),
        (chat("x", {"type": "video", "video": ["a"] * 3}), 400,
         "messages.0.content.1.video.0", "data URL"),
        (chat("x", {"type": "video", "video": ["a"] * 3, "fps": 0}), 400,
         "messages.0.content.1.video.fps", "0.01"),
        (chat("x", image("/etc/passwd")), 400, "messages.0.content.1.image_url.url", "data URL"),
        (chat("x", image("data:image/png;base64,@@@")), 400,
         "messages.0.content.1.image_url.url", "base64"),
        (chat("x", image("data:image/png;base64," + "A" * 30_000)), 413,
         "messages.0.content.1.image_url.url", "20000"),
        (chat("x", *[image()] * 4), 400, "messages", "the limit is 3"),
        (chat(*[""] * 1025), 400, "messages.0.content", "at most 1024 items"),
        (chat("x", n=True), 400, "n", "valid integer"),
        ([], 400, "body", "expected a JSON object"),
        (chat("x" * 2001), 400, "messages", "2001 characters; the limit is 2000"),
        (chat("\ud800"), 400, "messages.0.content.0.text", "surrogate"),
        (chat("x", image("\ud800:x")), 400, "messages.0.content.1.image_url.url", "surrogate"),
        (chat("x", stop="\ud800"), 400, "stop.0", "surrogate"),
        (chat("x", image("data:image/png,abc")), 400,
         "messages.0.content.1.image_url.url", "base64"),
        ({"messages": [{"role": "user", "content": [{"type": "q" * 3000}]}]}, 400,
         "messages.0.content.0", "tag"),
        ({"messages": [{"role": "user", "content": "x", "k" * 3000: 1}]}, 400,
         "messages.0." + "k" * 149, "permitted"),
    ],
)  # fmt: skip
async def test_an_invalid_request_is_refused_with_the_fields_name_and_its_limit(
    client, service, body, status, param, message
) -> None:
    content = json.dumps(body).encode()
    response = await client.post(
        PATH, content=content, headers={"content-type": "application/json"}
    )
    assert response.status_code == status
    error = response.json()["error"]
    assert error["param"] == param
    assert message in error["message"]
    assert len(error["message"]) < 500
    assert error["type"] == "invalid_request_error"
    assert service.requests == []


@pytest.mark.parametrize("value", ["soon", "0", "-1", "31", "nan", "inf", "1_0", "1e1"])
async def test_an_invalid_timeout_is_refused(client, value) -> None:
    response = await client.post(PATH, json=chat("hi"), headers={"X-Request-Timeout": value})
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message.startswith(f"X-Request-Timeout: {value!r}; expected a number of seconds")
    assert message.endswith("the limit is 30")


async def test_neutral_values_of_unsupported_parameters_are_accepted(client) -> None:
    body = chat("hi", tools=[], tool_choice="none", logit_bias={}, modalities=["text"], seed=None)
    assert (await client.post(PATH, json=body)).status_code == 200


async def test_an_image_url_can_be_a_bare_string(client, service: FakeService) -> None:
    part = {"type": "image_url", "image_url": image()["image_url"]["url"]}
    assert (await client.post(PATH, json=chat("hi", part))).status_code == 200
    assert service.pictures == [PICTURE]
