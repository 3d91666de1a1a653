"""Conversations as clients send them back, and tools."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from raylens.api.openai import PATH
from raylens.core.types import (
    Chat,
    ImagePart,
    Message,
    PixelLimits,
    Role,
    TextPart,
    ToolCall,
    ToolCallDelta,
    Tools,
)
from tests.unit.raylens.api.conftest import PICTURE, FakeService, chat, image
from tests.unit.raylens.api.test_openai import events
from tests.unit.raylens.api.test_openai_request import named, tool

BASE64 = base64.b64encode(PICTURE).decode()
CALLS = [
    {"id": "call_1", "type": "function", "index": 0,
     "function": {"name": "look", "arguments": '{"at": "top"}', "parsed_arguments": {"at": "top"}}}
]  # fmt: skip
LOOK = tool("look", {"type": "object", "properties": {"at": {"type": "string"}}})
READ = tool("read", description="Reads.")


async def send(client: httpx.AsyncClient, service: FakeService, body: dict[str, Any]) -> Chat:
    """Send a chat, and return what the model got."""
    response = await client.post(PATH, json=body)
    assert response.status_code == 200, response.text
    task = service.requests[-1].task
    assert isinstance(task, Chat)
    return task


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ({"content": "two"}, "two"),
        ({"content": "two", "refusal": None, "annotations": [], "audio": None}, "two"),
        ({"content": "two", "function_call": None, "tool_calls": None}, "two"),
        ({"content": "two", "tool_calls": [], "parsed": {"n": 2}, "name": "bot"}, "two"),
        ({"content": "two", "reasoning": "hm", "reasoning_content": "hm",
          "reasoning_details": [{"type": "reasoning.text"}]}, "two"),
        ({"content": "two", "provider_specific_fields": {"a": 1}, "id": "msg_1",
          "annotations": [{"type": "url_citation"}], "cache_control": {"type": "x"}}, "two"),
        ({"content": [{"type": "text", "text": "two", "annotations": []}]}, "two"),
        ({"content": ["two"]}, "two"),
        ({"content": {"type": "text", "text": "two"}}, "two"),
        ({"content": [{"text": "two"}]}, "two"),
        ({"content": [{"type": "output_text", "text": "two"}]}, "two"),
        ({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "two"}]},
         "two"),
        ({"content": [{"type": "refusal", "refusal": "no"}]}, "no"),
        ({"content": None, "refusal": "no"}, "no"),
        ({"content": None}, ""),
        ({"content": ""}, ""),
        ({"content": []}, ""),
        ({}, ""),
        ({"content": [None, {"type": "text", "text": "two"}], "tool_calls": [None]}, "two"),
        ({"content": "two", "function_call": {"name": "", "arguments": ""}}, "two"),
    ],
)  # fmt: skip
async def test_an_assistant_message_comes_back_as_anyone_wrote_it(
    client, service: FakeService, extra, text
) -> None:
    body = chat("well?")
    body["messages"][:0] = [
        {"role": "user", "content": "how many?"},
        {"role": "assistant", **extra},
    ]
    task = await send(client, service, body)
    assert [message.role for message in task.messages] == [Role.USER, Role.ASSISTANT, Role.USER]
    parts = [part for part in task.messages[1].parts if isinstance(part, TextPart)]
    assert "".join(part.text for part in parts) == text
    assert task.messages[1].tool_calls == ()


async def test_calls_and_their_results_come_back(client, service: FakeService) -> None:
    body = {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "developer", "content": [{"type": "text", "text": "be kind"}]},
            {"role": "user", "content": "look"},
            {"role": "assistant", "content": None, "tool_calls": CALLS},
            {"role": "tool", "tool_call_id": "call_1", "content": "a circle"},
            {"role": "assistant", "function_call": {"name": "look", "arguments": {"at": "top"}}},
            {"role": "function", "name": "look", "content": [{"type": "text", "text": "no"}]},
        ],
        "tools": [LOOK],
    }
    task = await send(client, service, body)
    assert task.messages[3:] == (
        Message(Role.ASSISTANT, (), (ToolCall("look", '{"at": "top"}'),)),
        Message(Role.TOOL, (TextPart("a circle"),)),
        Message(Role.ASSISTANT, (), (ToolCall("look", '{"at": "top"}'),)),
        Message(Role.TOOL, (TextPart("no"),)),
    )
    assert [message.role for message in task.messages[:2]] == [Role.SYSTEM] * 2
    assert not task.continues_answer


async def test_results_are_in_the_order_of_their_calls(client, service: FakeService) -> None:
    def calls(*ids: str) -> dict[str, Any]:
        function = {"name": "look", "arguments": "{}"}
        return {"role": "assistant", "tool_calls": [{"id": i, "function": function} for i in ids]}

    def result(call_id: str | None) -> dict[str, Any]:
        return {"role": "tool", "tool_call_id": call_id, "content": f"of {call_id}", "name": "look"}

    first_turn = [calls("a", "b", "c"), result("c"), result("a"), result("b")]
    # A call whose id was used before, and a result without one.
    second_turn = [calls("c", "a"), result("a"), result(None), result("c")]
    turns = [*first_turn, *second_turn, calls("d"), calls("e"), result("e"), result("d")]
    task = await send(client, service, {"messages": turns, "tools": [LOOK]})
    results = [message.parts[0] for message in task.messages if message.role is Role.TOOL]
    expected = ["a", "b", "c", "c", "a", None, "d", "e"]
    assert results == [TextPart(f"of {call_id}") for call_id in expected]


@pytest.mark.parametrize("role", ["system", "developer", "user", "tool"])
async def test_a_last_message_of_any_role_is_answered(client, service, role) -> None:
    task = await send(client, service, {"messages": [{"role": role, "content": "look"}]})
    assert not task.continues_answer


async def test_an_answer_continues_a_last_message_of_the_assistants(client, service) -> None:
    body = chat("look", continue_final_message=True, add_generation_prompt=False)
    body["messages"].append({"role": "assistant", "content": "a red"})
    assert (await send(client, service, body)).continues_answer
    body = chat("look")
    body["messages"].append({"role": "assistant", "content": ""})
    assert not (await send(client, service, body)).continues_answer


@pytest.mark.parametrize(
    "part",
    [
        image(detail=None),
        image(detail="", format="image/png"),
        {**image(), "cache_control": {"type": "ephemeral"}, "uuid": None},
        {"image_url": image()["image_url"]},
        {"type": "image", "image": image()["image_url"]["url"]},
        {"type": "input_image", "image_url": image()["image_url"]["url"], "detail": "auto"},
        {"text": None, "image_url": image()["image_url"]},
        {"text": "", "image": image()["image_url"]["url"], "video": []},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}},
        {"type": "image", "source": {"type": "url", "url": image()["image_url"]["url"]}},
        {"type": "image", "base64": BASE64, "mime_type": "image/png"},
        {"type": "image", "source_type": "base64", "data": BASE64, "mime_type": "image/png"},
        {"type": "image", "data": BASE64, "mimeType": "image/png"},
    ],
)
async def test_a_picture_comes_in_any_of_the_usual_parts(client, service, part) -> None:
    task = await send(client, service, chat("look", part))
    assert task.messages[0].parts == (TextPart("look"), ImagePart(0))
    assert service.pictures == [PICTURE]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"text": "hm", "image_url": "x"}, "expected a type: the part has both image_url and text"),
        ({"type": "image", "source": {"type": "file"}}, "expected the picture in image or url"),
        ({"type": "input_image", "file_id": "f"}, "expected the picture in image_url"),
    ],
)
async def test_a_picture_is_never_overlooked(client, part, message) -> None:
    response = await client.post(PATH, json=chat("look", part))
    assert response.status_code == 400
    assert response.json()["error"]["message"] == f"messages.0.content.1: {message}"


@pytest.mark.parametrize(
    "parameters",
    [
        dict.fromkeys(("temperature", "max_tokens", "stop", "tools", "response_format", "user",
                       "stream_options", "logit_bias", "reasoning", "mm_processor_kwargs",
                       "functions", "audio", "raylens", "recipe", "model", "frobnicate")),
        {"model": "", "stop": "", "user": "", "tools": [], "response_format": {}, "metadata": {},
         "functions": [], "prediction": {}, "recipe": "", "raylens": {}, "frobnicate": []},
        {"reasoning_effort": "none", "chat_template_kwargs": {}},
        {"skip_special_tokens": True, "include_stop_str_in_output": False, "ignore_eos": False},
        {"reasoning": {"effort": "none"}, "store": True, "service_tier": "auto", "n": 1.0},
        {"reasoning": {"enabled": False, "exclude": True}, "parallel_tool_calls": True},
        {"tool_choice": "none"}, {"tool_choice": "auto"}, {"best_of": 1, "echo": False},
        {"tool_choice": {"type": "none"}, "tools": [LOOK]}, {"tool_choice": {"type": "auto"}},
        {"enable_thinking": False, "thinking": {"type": "disabled"}, "tools": [None]},
        {"max_tokens": -1, "stop": [None, ""]},
    ],
)  # fmt: skip
async def test_what_changes_nothing_is_accepted(client, service, parameters) -> None:
    task = await send(client, service, chat("look", **parameters))
    assert task == Chat((Message(Role.USER, (TextPart("look"),)),))
    expected = service.requests[0].sampling
    await send(client, service, chat("look"))
    assert service.requests[-1].sampling == expected


async def test_a_top_p_of_zero_is_greedy(client, service) -> None:
    await send(client, service, chat("look", top_p=0, temperature=1))
    sampling = service.requests[0].sampling
    assert (sampling.temperature, sampling.top_p) == (0, 1)


async def test_a_long_answer_is_capped_to_the_limit(client, service) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        await send(client, service, chat("look", **{field: 100_000}))
        sampling = service.requests[-1].sampling
        assert (sampling.max_tokens, sampling.guaranteed_tokens) == (100, None)


async def test_variables_of_the_template_reach_the_model(client, service) -> None:
    task = await send(client, service, chat("look", chat_template_kwargs={"add_vision_id": True}))
    assert task.template_variables == {"add_vision_id": True}


async def test_vllms_parameters_reach_the_model(client, service) -> None:
    parameters = {
        "min_tokens": 3,
        "stop_token_ids": [5, 6],
        "logit_bias": {"7": -100, "8": 1.5},
        "mm_processor_kwargs": {"min_pixels": 784, "max_pixels": None},
    }
    task = await send(client, service, chat("look", **parameters))
    sampling = service.requests[0].sampling
    assert (sampling.min_tokens, sampling.stop_token_ids) == (3, (5, 6))
    assert sampling.logit_bias == ((7, -100.0), (8, 1.5))
    assert task.pixel_limits == PixelLimits(784)


async def test_bounds_of_pictures_have_transformers_names_too(client, service) -> None:
    options = {"size": {"shortest_edge": 784, "longest_edge": 1568}, "use_fast": True, "fps": 2}
    task = await send(client, service, chat("look", mm_processor_kwargs=options))
    assert task.pixel_limits == PixelLimits(784, 1568)


@pytest.mark.parametrize("effort", [{"reasoning_effort": "low"}, {"reasoning": {"effort": "high"}}])
async def test_an_effort_asks_for_reasoning(client, service, effort) -> None:
    service.tasks = {"smolvlm": ("chat", "reason")}
    assert (await send(client, service, chat("look", **effort))).reasoning


class TestTools:
    @pytest.mark.parametrize(
        ("choice", "required"),
        [
            (None, ()), ("auto", ()), ("required", ("look", "read")), ("any", ("look", "read")),
            (named("read"), ("read",)), ({"type": "function", "name": "read"}, ("read",)),
            ({"name": "read"}, ("read",)), ({"type": "required"}, ("look", "read")),
        ],
    )  # fmt: skip
    async def test_the_choice_says_which_must_be_called(
        self, client, service, choice, required
    ) -> None:
        task = await send(client, service, chat("look", tools=[LOOK, READ], tool_choice=choice))
        assert isinstance(task.tools, Tools)
        assert [function.name for function in task.tools.functions] == ["look", "read"]
        assert task.tools.required == required
        look, read = task.tools.functions
        assert json.loads(look.parameters) == LOOK["function"]["parameters"]
        assert json.loads(look.definition) == LOOK
        assert json.loads(read.definition)["function"]["description"] == "Reads."
        assert json.loads(read.parameters)["additionalProperties"] is False

    @pytest.mark.parametrize(
        "parameters", [None, {}, {"type": "object", "properties": None, "required": None},
                       {"type": None, "properties": {}}],
    )  # fmt: skip
    async def test_null_keywords_count_as_absent(self, client, service, parameters) -> None:
        task = await send(client, service, chat("look", tools=[tool("read", parameters)]))
        assert task.tools is not None
        schema = json.loads(task.tools.functions[0].parameters)
        assert schema == {"type": "object", "properties": {}, "additionalProperties": False}

    async def test_none_ignores_them(self, client, service) -> None:
        tools = [LOOK, {"type": "web_search"}]
        task = await send(client, service, chat("look", tools=tools, tool_choice="none"))
        assert task.tools is None

    @pytest.mark.parametrize("mode", ["auto", "required"])
    async def test_some_may_be_allowed(self, client, service, mode) -> None:
        allowed = {"mode": mode, "tools": [named("read")]}
        for choice in (
            {"type": "allowed_tools", "allowed_tools": allowed},
            {
                "type": "allowed_tools",
                "mode": mode,
                "tools": [{"type": "function", "name": "read"}],
            },
        ):
            task = await send(client, service, chat("look", tools=[LOOK, READ], tool_choice=choice))
            assert task.tools is not None
            assert [function.name for function in task.tools.functions] == ["read"]
            assert task.tools.required == (("read",) if mode == "required" else ())

    async def test_a_call_is_part_of_the_message(self, client, service) -> None:
        service.words = ()
        service.tool_calls = (
            ToolCallDelta(0, "look"),
            ToolCallDelta(0, arguments='{"at":'),
            ToolCallDelta(0, arguments=' "top"}'),
            ToolCallDelta(1, "read", "{}"),
        )
        response = await client.post(PATH, json=chat("look", tools=[LOOK, READ], n=2))
        completion = ChatCompletion.model_validate(response.json(), strict=True)
        for choice in completion.choices:
            assert choice.finish_reason == "tool_calls"
            assert choice.message.content is None
            calls: list[Any] = list(choice.message.tool_calls or [])
            assert [(call.function.name, call.function.arguments) for call in calls] == [
                ("look", '{"at": "top"}'),
                ("read", "{}"),
            ]
            assert len({call.id for call in calls}) == 2
            assert all(call.type == "function" and call.id.startswith("call_") for call in calls)

    async def test_a_stream_sends_the_arguments_in_pieces(self, client, service) -> None:
        service.words = ("I look. ",)
        service.tool_calls = (
            ToolCallDelta(0, "look"),
            ToolCallDelta(0, arguments='{"at":'),
            ToolCallDelta(0, arguments=' "top"}'),
        )
        response = await client.post(PATH, json=chat("look", tools=[LOOK], stream=True))
        chunks = [
            ChatCompletionChunk.model_validate(event, strict=True) for event in events(response)
        ]
        deltas = [chunk.choices[0].delta for chunk in chunks]
        calls = [delta.tool_calls[0] for delta in deltas if delta.tool_calls]
        assert [call.index for call in calls] == [0, 0, 0]
        assert calls[0].function is not None
        assert (calls[0].type, calls[0].function.name) == ("function", "look")
        assert calls[0].id is not None
        assert [call.id for call in calls[1:]] == [None, None]
        arguments = "".join((call.function and call.function.arguments) or "" for call in calls)
        assert arguments == '{"at": "top"}'
        assert "".join(delta.content or "" for delta in deltas) == "I look. "
        assert chunks[-1].choices[0].finish_reason == "tool_calls"

    @pytest.mark.parametrize(("choice", "content"), [("auto", ""), ("required", None)])
    async def test_a_stream_of_a_forced_call_begins_without_text(
        self, client, service, choice, content
    ) -> None:
        body = chat("look", tools=[LOOK], tool_choice=choice, stream=True)
        first = events(await client.post(PATH, json=body))[0]
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": content}

    async def test_every_chunk_can_have_the_usage_so_far(self, client, service) -> None:
        service.tool_calls = (ToolCallDelta(0, "look", "{}"),)
        options = {"continuous_usage_stats": True}
        body = chat("look", tools=[LOOK], stream=True, stream_options=options)
        *chunks, last = events(await client.post(PATH, json=body))
        assert all(isinstance(chunk["usage"]["completion_tokens"], int) for chunk in chunks)
        assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 3)
