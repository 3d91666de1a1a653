from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest

from raylens.api.middleware import WAITED_HEADER
from raylens.api.openai import PATH
from raylens.core.types import Chat, Detail, ImagePart, Role, SamplingParams, TextPart, VideoPart
from tests.unit.raylens.api.conftest import PICTURE, FakeService, chat, image

SCHEMA = {"type": "object", "properties": {"z": {"const": "é"}, "a": {"type": "integer"}}}


def json_schema(schema: Any, **options: Any) -> dict[str, Any]:
    """Return a response format."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **options}}


def tool(name: str, *schema: dict[str, Any], **others: Any) -> dict[str, Any]:
    """Return a tool; without a schema, its function takes no arguments."""
    parameters = {"parameters": schema[0]} if schema else {}
    return {"type": "function", "function": {"name": name, **parameters, **others}}


def named(name: str) -> dict[str, Any]:
    """Return the choice of one tool."""
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("waited", "seconds"),
    [("2.500", 2.5), ("-2.500", 0.0), ("2.5e9", 0.0), ("nan", 0.0), ("99999.000", 0.0)],
)
async def test_a_deadline_includes_the_wait_in_the_proxy(
    client, service: FakeService, waited: str, seconds: float
) -> None:
    before = time.time()
    headers = {"X-Request-Timeout": "12.5", WAITED_HEADER: waited}
    response = await client.post(PATH, json=chat("hi"), headers=headers)
    assert response.status_code == 200
    (request,) = service.requests
    assert before + 12.5 - seconds <= request.deadline <= time.time() + 12.5 - seconds


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
    sampling = service.requests[0].sampling
    assert sampling == SamplingParams(max_tokens=100, guaranteed_tokens=50)


@pytest.mark.parametrize(
    ("response_format", "schema"),
    [
        ({"type": "json_object"}, '{"type":"object"}'),
        (
            json_schema(SCHEMA, strict=True, description="of a picture"),
            '{"type":"object","properties":{"z":{"const":"é"},"a":{"type":"integer"}}}',
        ),
        (json_schema({}, strict=None), '{"type":"object"}'),
        (json_schema(None, name=None, other=1), '{"type":"object"}'),
        ({"type": "json_object", "value": {"const": 1}}, '{"const":1}'),
        ({"type": "json_object", "schema": {"const": 1}}, '{"const":1}'),
        ({"type": "json", "value": {"const": 1}}, '{"const":1}'),
        ({"type": "json_schema", "schema": {"const": 1}}, '{"const":1}'),
        ({"type": "json_schema", "json_schema": {"type": "string"}}, '{"type":"string"}'),
        ({"json_schema": {"schema": {"const": 1}}}, '{"const":1}'),
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
        ({"messages": []}, 400, "messages", "required"),
        ({}, 400, "messages", "required"),
        ({"messages": [{"role": "user", "content": 5}]}, 400,
         "messages.0.content", "string or a list"),
        ({"messages": [{"content": "x"}]}, 400, "messages.0.role", "required"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages.0.role", "'user'"),
        (chat("x", model="gpt-9"), 404, "model", "smolvlm"),
        (chat("x", temperature=3), 400, "temperature", "less than or equal to 2"),
        (chat("x", top_p=-0.1), 400, "top_p", "greater than or equal to 0"),
        (chat("x", max_completion_tokens=0), 400, "max_completion_tokens", "or equal to 1"),
        (chat("x", min_tokens=101), 400, "min_tokens", "the limit is 100"),
        (chat("x", min_tokens=6, max_tokens=5), 400, "min_tokens", "the limit is 5"),
        (chat("x", max_tokens=0), 400, "max_tokens", "greater than or equal to 1"),
        (chat("x", n=99), 400, "n", "the limit is 8"),
        (chat("x", stop=["a"] * 65), 400, "stop", "the limit is 64"),
        (chat("x", logit_bias={"5": 101}), 400, "logit_bias.5", "less than or equal to 100"),
        (chat("x", logit_bias={"a": 1}), 400, "logit_bias.a", "valid integer"),
        (chat("x", logit_bias={"-1": 1}), 400, "logit_bias.-1", "greater than or equal"),
        (chat("x", stop_token_ids=[-1]), 400, "stop_token_ids.0", "greater than or equal to 0"),
        (chat("x", ignore_eos=True), 400, "ignore_eos", "ignore_eos: not supported"),
        (chat("x", skip_special_tokens=False), 400, "skip_special_tokens", "not supported"),
        (chat("x", modalities=["audio"]), 400, "modalities", "not supported"),
        (chat("x", continue_final_message=True), 400, "continue_final_message", "assistant"),
        (chat("x", mm_processor_kwargs={"min_pixels": 0}), 400,
         "mm_processor_kwargs.min_pixels", "greater than or equal to 1"),
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
        (chat("x", tools=[{"type": "function"}]), 400, "tools.0.name", "letters"),
        (chat("x", tools=[{"type": "web_search"}]), 400, "tools.0.type", "only 'function'"),
        (chat("x", tools=["f"]), 400, "tools.0", "expected an object"),
        (chat("x", tools={"f": 1}), 400, "tools", "expected a list"),
        (chat("x", tools=[tool("a b")]), 400, "tools.0.function.name", "letters"),
        (chat("x", tools=[tool("f"), tool("f")]), 400, "tools", "used twice"),
        (chat("x", tools=[tool("f", parameters=[1])]), 400,
         "tools.0.function.parameters", "JSON schema"),
        (chat("x", tools=[tool("f", {"const": math.nan})]), 400,
         "tools.0.function.parameters", "valid JSON"),
        (chat("x", tools=[tool("f", {"const": "x" * 200})]), 400, "tools",
         "bytes of schemas; the limit is 200"),
        (chat("x", tools=[tool("f")], tool_choice="g"), 400, "tool_choice", '"required"'),
        (chat("x", tools=[tool("f")], tool_choice=named("g")), 400, "tool_choice", "'g'"),
        (chat("x", tools=[tool("f")], tool_choice={"type": "allowed_tools", "tools": 5}), 400,
         "tool_choice", "tool_choice.tools: expected a list"),
        (chat("x", tools=[tool("f")],
              tool_choice={"type": "allowed_tools", "mode": "required",
                           "tools": [{"function": "x"}]}), 400,
         "tool_choice", "no such tool"),
        (chat("x", tool_choice="required"), 400, "tool_choice", "no such tool"),
        (chat("x", tool_choice=named("g")), 400, "tool_choice", "no such tool"),
        (chat("x", tools=[tool("f")], reasoning=True), 400, "tools", "reasoning"),
        (chat("x", functions=[{"name": "f"}]), 400, "functions", "not supported"),
        (chat("x", response_format="json"), 400, "response_format", "an object with a type"),
        (chat("x", response_format={"type": "grammar"}), 400,
         "response_format.type", "'json_schema'"),
        (chat("x", response_format={"type": "json_schema"}), 400,
         "response_format.json_schema", "required"),
        (chat("x", response_format=json_schema(5)), 400,
         "response_format.json_schema.schema", "JSON schema"),
        (chat("x", response_format={"type": "json_schema", "json_schema": {"a": 1}}), 400,
         "response_format.json_schema.schema", "required"),
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
        (chat("x", image("ftp://example.com/a.png")), 400,
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
        ({"messages": [{"role": "user", "content": [{"type": "q" * 3000}]}]}, 400,
         "messages.0.content.0", "not supported; expected 'text', 'image_url'"),
        (chat({"type": ["text"], "text": "x"}), 400, "messages.0.content.0", "type is a text"),
        (chat("x", chat_template_kwargs={"a": "\ud800"}), 400, "chat_template_kwargs.a",
         "surrogate"),
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


@pytest.mark.parametrize("value", ["soon", "0", "-1", "31", "nan", "inf", "1_0", "1e2"])
async def test_an_invalid_timeout_is_refused(client, value) -> None:
    response = await client.post(PATH, json=chat("hi"), headers={"X-Request-Timeout": value})
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message.startswith(f"X-Request-Timeout: {value!r}; expected a number of seconds")
    assert message.endswith("the limit is 30")


async def test_neutral_values_of_unsupported_parameters_are_accepted(client) -> None:
    body = chat("hi", tools=[], tool_choice="none", logit_bias={}, modalities=["text"], seed=None)
    assert (await client.post(PATH, json=body)).status_code == 200


@pytest.mark.parametrize(("sent", "detail"), [("original", Detail.HIGH), ("low", Detail.LOW)])
async def test_a_picture_has_a_detail(client, service: FakeService, sent, detail) -> None:
    response = await client.post(PATH, json=chat("x", image(detail=sent)))
    assert response.status_code == 200
    task = service.requests[0].task
    assert isinstance(task, Chat)
    assert task.messages[0].parts[1] == ImagePart(0, detail)


async def test_an_image_url_can_be_a_bare_string(client, service: FakeService) -> None:
    part = {"type": "image_url", "image_url": image()["image_url"]["url"]}
    assert (await client.post(PATH, json=chat("hi", part))).status_code == 200
    assert service.pictures == [PICTURE]
