from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from raylens.api.openai import PATH
from raylens.core.errors import DeadlineExceeded, Overloaded
from raylens.core.types import Delta, Detect, Grounding, Location, Point, Reasoning
from tests.unit.raylens.api.conftest import TEXT_TASKS, FakeService, chat, image


def events(response: httpx.Response) -> list[Any]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


async def test_a_completion_holds_its_logprobs(client, service: FakeService) -> None:
    service.words = ("", "two ")
    answer = (await client.post(PATH, json=chat("hi", logprobs=True, top_logprobs=1, n=2))).json()
    alternative = {"token": "0", "logprob": -0.5, "bytes": [48]}
    content = [
        {"token": "\ufffd", "logprob": -0.5, "bytes": [0xC3], "top_logprobs": [alternative]},
        {"token": "two ", "logprob": -0.5, "bytes": list(b"two "), "top_logprobs": [alternative]},
    ]
    assert [choice["logprobs"] for choice in answer["choices"]] == [
        {"content": content, "refusal": None}
    ] * 2


async def test_a_chunk_holds_the_logprobs_of_its_text(client, service: FakeService) -> None:
    service.words = ("two ", "", "circles")
    body = chat("hi", logprobs=True, stream=True, stream_options={"include_usage": True})
    *chunks, last = events(await client.post(PATH, json=body))
    choices = [chunk["choices"][0] for chunk in chunks]
    contents = [choice["delta"].get("content") for choice in choices]
    assert contents == ["", "two ", "", "circles", None]
    tokens = [
        choice["logprobs"] and [token["token"] for token in choice["logprobs"]["content"]]
        for choice in choices
    ]
    assert tokens == [None, ["two "], ["\ufffd"], ["circles"], None]
    assert choices[1]["logprobs"]["content"][0]["top_logprobs"] == []
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 10)


@pytest.mark.parametrize("logprob", [-math.inf, math.nan, -1e9])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_logprob_that_json_cannot_hold_becomes_the_lowest(
    client, service, logprob, stream
) -> None:
    service.logprob = logprob
    response = await client.post(PATH, json=chat("hi", logprobs=True, stream=stream))
    assert response.status_code == 200
    assert '"logprob":-9999.0' in response.text
    assert not {"NaN", "Infinity"} & set(response.text.replace(":", ",").split(","))


@pytest.mark.parametrize(
    "options", [{}, {"logprobs": True, "top_logprobs": 2}, {"n": 2, "logprobs": True}]
)
async def test_answers_match_openais_own_types(client, options) -> None:
    answer = (await client.post(PATH, json=chat("hi", **options))).json()
    completion = ChatCompletion.model_validate(answer, strict=True)
    contents = [choice.message.content for choice in completion.choices]
    assert contents == ["two red circles"] * options.get("n", 1)
    assert has_no_extras(completion)
    body = chat("hi", stream=True, stream_options={"include_usage": True}, **options)
    for event in events(await client.post(PATH, json=body)):
        assert has_no_extras(ChatCompletionChunk.model_validate(event, strict=True))


def has_no_extras(model: BaseModel) -> bool:
    """Return whether the type declares every field that was sent."""
    values: list[Any] = []
    for value in model.__dict__.values():
        values.extend(value if isinstance(value, list) else [value])
    children = [value for value in values if isinstance(value, BaseModel)]
    return not model.model_extra and all(has_no_extras(child) for child in children)


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


async def test_a_stream_sends_role_content_finish_reason_and_usage_in_order(client) -> None:
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


async def test_a_stream_holds_usage_only_if_requested(client) -> None:
    chunks = events(await client.post(PATH, json=chat("hi", stream=True)))
    assert not any("usage" in chunk for chunk in chunks)


async def test_an_error_before_the_first_delta_keeps_its_status(
    client, service: FakeService
) -> None:
    service.error = Overloaded("full", "model", 3, 4, 2.5)
    for stream in (True, False):
        response = await client.post(PATH, json=chat("hi", stream=stream))
        assert response.status_code == 503
        assert response.headers["retry-after"] == "3"
        error = response.json()["error"]
        assert error == {
            "message": "full",
            "type": "server_error",
            "param": "model",
            "code": "overloaded",
        }


async def test_a_stream_that_ends_early_ends_with_an_error(client, service, monkeypatch) -> None:
    async def generate(request: Any, pictures: Any) -> AsyncGenerator[Delta, None]:
        yield Delta("two ")

    monkeypatch.setattr(service, "generate", generate)
    response = await client.post(PATH, json=chat("hi", stream=True))
    assert "ended early" in response.text
    assert "[DONE]" not in response.text


async def test_an_error_in_a_stream_is_an_event(client, service: FakeService) -> None:
    service.error = DeadlineExceeded("too late")
    service.before_error = 2
    response = await client.post(PATH, json=chat("hi", stream=True))
    last = json.loads(response.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == "deadline_exceeded"
    assert "[DONE]" not in response.text
    assert service.closed == 1


async def test_models_are_listed_and_found_by_name_or_alias(client) -> None:
    models = (await client.get("/v1/models")).json()
    assert [model["id"] for model in models["data"]] == ["smolvlm", "other"]
    for name in ("small", "smolvlm2_500m_video", "smolvlm"):
        assert (await client.get(f"/v1/models/{name}")).json()["id"] == "smolvlm"
    assert (await client.get("/v1/models/org/other")).json()["id"] == "other"
    assert (await client.get("/v1/models/nothing")).status_code == 404


def grounding_chat(task: str, *, text: str = "cat", **options: Any) -> dict[str, Any]:
    return chat(image(), {"type": "text", "text": text}, raylens={"task": task, **options})


@pytest.mark.parametrize(
    ("task_name", "task", "content"),
    [
        (
            "detect",
            Detect("cat"),
            '{"objects":[{"x_min":0.1,"y_min":0.2,"x_max":0.3,"y_max":0.4},'
            '{"x_min":0.5,"y_min":0.5,"x_max":1.0,"y_max":1.0}]}',
        ),
        ("point", Point("cat"), '{"points":[{"x":0.2,"y":0.3},{"x":0.75,"y":0.75}]}'),
    ],
)
async def test_findings_are_json_in_the_content(
    client, service: FakeService, task_name, task, content
) -> None:
    service.tasks = {"smolvlm": (*TEXT_TASKS, "detect", "point")}
    answer = (await client.post(PATH, json=grounding_chat(task_name))).json()
    assert answer["choices"][0]["message"]["content"] == content
    assert service.requests[0].task == task
    *chunks, last = events(
        await client.post(PATH, json={**grounding_chat(task_name), "stream": True})
    )
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == content
    assert last["choices"][0]["finish_reason"] == "stop"


async def test_the_object_can_be_named_apart_from_the_text(client, service: FakeService) -> None:
    service.tasks = {"other": (*TEXT_TASKS, "detect", "point")}
    await client.post(
        PATH, json=grounding_chat("detect", text="look!", object="dog", max_objects=3)
    )
    assert service.requests[0].task == Detect("dog", 3)
    assert service.requests[0].model == "other"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (chat("cat", raylens={"task": "detect"}), "messages: expected exactly one picture"),
        (
            chat(image(), image(), raylens={"task": "detect", "object": "cat"}),
            "messages: expected exactly one picture",
        ),
        (chat(image(), raylens={"task": "detect"}), "raylens.object: missing"),
        (grounding_chat("segment"), "raylens.task"),
        ({**grounding_chat("detect"), "n": 2}, "n: not supported together with raylens"),
        (
            {**grounding_chat("point"), "logprobs": True},
            "logprobs: not supported together with raylens",
        ),
        (
            {**grounding_chat("point"), "response_format": {"type": "json_object"}},
            "response_format: not supported together with raylens",
        ),
        (grounding_chat("detect"), "detect is not supported by smolvlm"),
        (
            chat("hi", reasoning=True, response_format={"type": "json_object"}),
            "response_format: not supported together with reasoning",
        ),
    ],
)
async def test_an_impossible_grounding_request_is_refused(
    client, service: FakeService, body, message
) -> None:
    response = await client.post(PATH, json=body)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]
    assert service.requests == []


async def test_a_message_holds_its_reasoning(client, service: FakeService) -> None:
    service.reasoning = Reasoning("I see it", (Grounding(2, 5, (Location(0.25, 0.5),)),))
    service.tasks = {"smolvlm": (*TEXT_TASKS, "reason")}
    reasoning_fields = {
        "reasoning": "I see it",
        "reasoning_details": {
            "grounding": [{"start_idx": 2, "end_idx": 5, "points": [[0.25, 0.5]]}]
        },
    }
    completion = (await client.post(PATH, json=chat("hi", reasoning=True))).json()
    assert completion["choices"][0]["message"] == {
        "role": "assistant",
        "content": "two red circles",
        "refusal": None,
        **reasoning_fields,
    }
    assert service.requests[0].task.reasoning  # type: ignore[union-attr]
    chunks = events(await client.post(PATH, json=chat("hi", reasoning=True, stream=True)))
    assert chunks[-1]["choices"][0]["delta"] == reasoning_fields
