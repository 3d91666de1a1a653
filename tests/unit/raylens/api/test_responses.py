from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response

from raylens.api.responses import PATH
from raylens.api.responses_input import ITEM_BYTES, RecentItems
from raylens.core.errors import DeadlineExceeded, Overloaded
from raylens.core.types import (
    Chat,
    Delta,
    Detail,
    FinishReason,
    ImagePart,
    Message,
    Reasoning,
    Role,
    TextPart,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from tests.unit.raylens.api.conftest import DATA_URL, FakeService

LOOK = {
    "type": "function",
    "name": "look",
    "description": "Looks.",
    "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    "strict": True,
}
CALL = (
    ToolCallDelta(0, "look"),
    ToolCallDelta(0, arguments='{"at":'),
    ToolCallDelta(0, None, "1}"),
)


@pytest.fixture
def openai_client(client: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        api_key="key", base_url="http://localhost/v1", http_client=client, max_retries=0
    )


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the events of a stream; each one's name is its type."""
    parsed = []
    for text in response.text.strip().split("\n\n"):
        name, data = text.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        parsed.append(event)
    assert [event["sequence_number"] for event in parsed] == list(range(len(parsed)))
    return parsed


async def test_input_becomes_a_chat(client, service: FakeService) -> None:
    body = {
        "instructions": "be brief",
        "input": [
            {"role": "developer", "content": "be kind"},
            {"type": "message", "role": "user", "content": [
                {"type": "input_text", "text": "look"},
                {"type": "input_image", "image_url": DATA_URL, "detail": "low", "file_id": None},
            ]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
             "content": [{"type": "output_text", "text": "I look.", "annotations": [],
                          "logprobs": None}]},
            {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "look",
             "arguments": "{}", "status": "completed"},
            {"type": "function_call", "call_id": "call_2", "name": "read", "arguments": ""},
            {"type": "function_call_output", "call_id": "call_2",
             "output": [{"type": "input_text", "text": "a square"}]},
            {"type": "function_call_output", "call_id": "call_1", "output": "a circle"},
        ],
        "tools": [LOOK],
        "tool_choice": "required",
        "max_output_tokens": 9,
        "store": False,
        "previous_response_id": None,
        "include": ["reasoning.encrypted_content"],
        "reasoning": {"effort": None, "summary": "auto"},
        "truncation": "auto",
        "text": {"verbosity": "medium"},
    }  # fmt: skip
    response = await client.post(PATH, json=body)
    assert response.status_code == 200, response.text
    (request,) = service.requests
    assert isinstance(request.task, Chat)
    assert request.task.messages == (
        Message(Role.SYSTEM, (TextPart("be brief"),)),
        Message(Role.SYSTEM, (TextPart("be kind"),)),
        Message(Role.USER, (TextPart("look"), ImagePart(0, Detail.LOW))),
        Message(
            Role.ASSISTANT,
            (TextPart("I look."),),
            (ToolCall("look", "{}"), ToolCall("read", "{}")),
        ),
        Message(Role.TOOL, (TextPart("a circle"),)),
        Message(Role.TOOL, (TextPart("a square"),)),
    )
    assert request.task.tools is not None
    assert request.task.tools.required == ("look",)
    assert request.sampling.max_tokens == 9
    assert service.picture_fields == ["input.1.content.1.image_url"]


async def test_an_answer_is_a_message(openai_client, service: FakeService) -> None:
    service.warnings = ("denoise was skipped",)
    response = await openai_client.responses.create(model="smolvlm", input="hi")
    assert response.output_text == "two red circles"
    assert (response.status, response.error, response.store) == ("completed", None, False)
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.total_tokens) == (7, 10)
    assert response.model_extra is not None
    assert response.model_extra["warnings"] == ["denoise was skipped"]
    (message,) = response.output
    assert message.id.startswith("msg_")
    assert Response.model_validate(response.model_dump(), strict=False)


async def test_a_schema_is_part_of_the_text(openai_client, service) -> None:
    schema = {"type": "object", "properties": {}}
    text: Any = {"format": {"type": "json_schema", "name": "a", "schema": schema, "strict": True}}
    response = await openai_client.responses.create(input="hi", text=text)
    assert json.loads(service.requests[0].sampling.json_schema) == schema
    assert response.text.format.type == "json_schema"


async def test_a_call_is_an_item(openai_client, service) -> None:
    service.words = ()
    service.tool_calls = (*CALL, ToolCallDelta(1, "look", "{}"))
    response = await openai_client.responses.create(input="hi", tools=[LOOK])
    assert [(item.type, item.name, item.arguments) for item in response.output] == [
        ("function_call", "look", '{"at":1}'),
        ("function_call", "look", "{}"),
    ]
    assert len({item.call_id for item in response.output}) == 2
    assert response.tools[0].name == "look"


async def test_a_stream_has_openais_events_in_their_order(client, service) -> None:
    service.tool_calls = CALL
    body = {"input": "hi", "stream": True, "tools": [LOOK]}
    response = await client.post(PATH, json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    sent = events(response)
    assert [event["type"].removeprefix("response.") for event in sent] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 3,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        *["function_call_arguments.delta"] * 2,
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert sent[0]["response"]["status"] == "in_progress"
    assert sent[0]["response"]["output"] == []
    assert [event.get("output_index") for event in sent[2:-1]] == [0] * 8 + [1] * 5
    assert sent[7]["text"] == "two red circles"
    assert sent[10]["item"]["arguments"] == ""
    assert sent[-3]["arguments"] == '{"at":1}'
    final = sent[-1]["response"]
    assert [item["status"] for item in final["output"]] == ["completed"] * 2
    assert {event["item_id"] for event in sent[3:9]} == {final["output"][0]["id"]}


async def test_openais_client_reads_the_stream(openai_client, service) -> None:
    async with openai_client.responses.stream(model="smolvlm", input="hi") as stream:
        kind = "response.output_text.delta"
        deltas = [event.delta async for event in stream if event.type == kind]
        final = await stream.get_final_response()
    assert "".join(deltas) == final.output_text == "two red circles"


async def test_logprobs_are_part_of_the_text(openai_client, service) -> None:
    response = await openai_client.responses.create(
        input="hi", include=["message.output_text.logprobs"], top_logprobs=2
    )
    content = response.output[0].content[0]
    assert [token.token for token in content.logprobs] == ["two ", "red ", "circles"]
    assert len(content.logprobs[0].top_logprobs) == 2


async def test_calls_have_no_logprobs(client, openai_client, service, monkeypatch) -> None:
    token = TokenLogprob("x", b"x", -0.5)
    deltas = [
        Delta(logprobs=(token,)),
        Delta(tool_calls=(ToolCallDelta(0, "look", "{"),), logprobs=(token,)),
        Delta(tool_calls=(ToolCallDelta(0, None, "}"),), logprobs=(token,)),
        Delta(finish_reason=FinishReason.TOOL_CALLS, usage=Usage(1, 3)),
    ]

    async def generate(request: Any, pictures: Any) -> AsyncGenerator[Delta, None]:
        for delta in deltas:
            yield delta

    monkeypatch.setattr(service, "generate", generate)
    options = {"input": "hi", "include": ["message.output_text.logprobs"]}
    response = await openai_client.responses.create(**options)
    assert [item.type for item in response.output] == ["function_call"]
    assert response.output[0].arguments == "{}"
    *_, last = events(await client.post(PATH, json={**options, "stream": True}))
    assert [item["arguments"] for item in last["response"]["output"]] == ["{}"]


async def test_thoughts_are_an_item_behind_the_answer(client, openai_client, service) -> None:
    service.tasks = {"smolvlm": ("chat", "reason")}
    service.reasoning = Reasoning("I see two.")
    options = {"input": "hi", "reasoning": {"effort": "low"}}
    response = await openai_client.responses.create(**options)
    assert [item.type for item in response.output] == ["message", "reasoning"]
    assert response.output[1].summary[0].text == "I see two."
    *sent, last = events(await client.post(PATH, json={**options, "stream": True}))
    done = [event for event in sent if event["type"] == "response.output_item.done"]
    assert [event["output_index"] for event in done] == [0, 1]
    assert [event["item"] for event in done] == last["response"]["output"]


@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_before_the_first_delta_keeps_its_status(client, service, stream) -> None:
    service.error = Overloaded("full", "model", 3, 4, 2.5)
    response = await client.post(PATH, json={"input": "hi", "stream": stream})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "overloaded"


async def test_a_later_error_is_an_event(client, service) -> None:
    service.error, service.before_error = DeadlineExceeded("too late", "deadline"), 2
    *_, last = events(await client.post(PATH, json={"input": "hi", "stream": True}))
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "too late"}


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "input", "required"),
        ({"input": 5}, "input", "string or a list"),
        ({"input": [{"type": "reasoning"}]}, "input", "at least one message"),
        ({"input": ["hi", {"type": "item_reference", "id": "a"}]}, "input.1.id", "not remembered"),
        ({"input": [{"id": "a"}]}, "input.0.id", "not remembered"),
        ({"input": [{"content": "hi"}]}, "input.0.role", "required"),
        ({"input": None}, "input", "required"),
        ({"input": [{"type": "item_reference", "id": "a"}] * 1025}, "input", "the limit is 1024"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": [{"type": "x"}]}]},
         "input.0.output.0", "not supported"),
        ({"input": [{"type": "web_search_call"}]}, "input.0.type", "expected 'message'"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": 5}]},
         "input.0.arguments", "string"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": 5}]}]},
         "input.0.content.0.image_url", "string"),
        ({"input": [{"role": "user"}, {"type": "function_call_output", "call_id": "a",
                    "output": [{"type": "input_image", "image_url": "ftp://a"}]}]},
         "input.1.output.0.image_url", "ftp: URLs"),
        ({"input": "hi", "text": {"verbosity": "low"}}, "text.verbosity", "'medium'"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]},
         "input.0.content.0", "'input_image' of Responses"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input.0.role", "'user'"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
         "input.0.content.0", "image_url"),
        ({"input": "hi", "store": True}, "store", "not stored"),
        ({"input": "hi", "previous_response_id": "resp_1"}, "previous_response_id", "whole"),
        ({"input": "hi", "background": True}, "background", "not supported"),
        ({"input": "hi", "conversation": "conv_1"}, "conversation", "not supported"),
        ({"input": "hi", "frobnicate": 1}, "frobnicate", "unknown parameter"),
        ({"input": "hi", "max_output_tokens": 0}, "max_output_tokens", "or equal to 1"),
        ({"input": "hi", "tools": [{"type": "web_search"}]}, "tools.0.type", "only 'function'"),
        ({"input": "hi", "text": {"format": {"type": "grammar"}}}, "text.format.type", "'text'"),
        ({"input": "hi", "text": {"format": {"type": "json_schema", "name": "a",
                                             "schema": {"const": "x" * 300}}}},
         "text.format", "the limit is 200"),
        ({"input": "hi", "instructions": "x" * 3000}, "instructions", "the limit is 2000"),
        ({"input": "hi", "metadata": {"a": "\ud800"}}, "metadata", "surrogate"),
        ({"input": "hi", "metadata": {"a": math.nan}}, "metadata", "valid JSON"),
        ({"input": "hi", "tools": [{"name": "f", "\ud800": 1}]}, "tools", "surrogate"),
        ({"input": "hi", "tool_choice": {"a": math.inf}}, "tool_choice", "valid JSON"),
    ],
)  # fmt: skip
async def test_an_invalid_request_is_refused(client, service, body, param, message) -> None:
    headers = {"content-type": "application/json"}
    response = await client.post(PATH, content=json.dumps(body), headers=headers)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert message in error["message"]
    assert service.requests == []


async def test_a_reference_stands_for_the_item_of_a_recent_answer(
    client, service: FakeService
) -> None:
    service.tool_calls = CALL
    first = (await client.post(PATH, json={"input": "Look."})).json()
    service.tool_calls = ()
    references = [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
    call_id = first["output"][-1]["call_id"]
    output = {"type": "function_call_output", "call_id": call_id, "output": "a circle"}
    without_type = [{"id": item["id"]} for item in first["output"]]
    for items in (references, without_type, first["output"]):
        body = {"input": [{"role": "user", "content": "Look."}, *items, output]}
        response = await client.post(PATH, json=body)
        assert response.status_code == 200, response.text
    tasks = [request.task for request in service.requests[1:]]
    assert tasks == [tasks[-1]] * 3
    assert isinstance(tasks[0], Chat)
    assert tasks[0].messages[1].tool_calls == (ToolCall("look", '{"at":1}'),)


async def test_the_items_of_an_answer_that_is_not_stored_are_not_remembered(client) -> None:
    first = (await client.post(PATH, json={"input": "Look.", "store": False})).json()
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    response = await client.post(PATH, json={"input": [reference]})
    assert response.status_code == 400
    assert '"store": false' in response.json()["error"]["message"]


def test_the_oldest_items_are_forgotten_first() -> None:
    recent = RecentItems(max_bytes=2 * ITEM_BYTES + 200)
    for number in range(5):
        recent.remember([{"id": f"msg_{number}", "text": "x" * 20}])
    known = [number for number in range(5) if recent.get(f"msg_{number}")]
    assert known == [3, 4]
    assert recent.get(["msg_4"]) is None


async def test_a_references_item_has_no_log_probabilities(client, service: FakeService) -> None:
    body = {"input": "Look.", "include": ["message.output_text.logprobs"], "top_logprobs": 20}
    first = (await client.post(PATH, json=body)).json()
    recent = RecentItems()
    recent.remember(first["output"])
    (item,) = first["output"]
    assert item["content"][0]["logprobs"]
    remembered = recent.get(item["id"])
    assert remembered is not None
    assert remembered["content"] == [{"type": "output_text", "text": item["content"][0]["text"]}]
