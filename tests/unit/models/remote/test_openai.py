"""The runtime ``openai`` against a raylens server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, cast

import httpx
import openai
import pytest
from pydantic import ValidationError

from models.remote.openai import OpenAIRuntime
from raylens.core.config import ModelConfig, RemoteConfig
from raylens.core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    ModelNotLoaded,
    Overloaded,
    RaylensError,
    UnsupportedTask,
)
from raylens.core.types import (
    Caption,
    Chat,
    Delta,
    Detect,
    Findings,
    FinishReason,
    ImagePart,
    Length,
    Location,
    Message,
    PixelLimits,
    Point,
    Query,
    Region,
    Role,
    SamplingParams,
    TextPart,
    Tool,
    ToolCall,
    ToolCallDelta,
    Tools,
    Usage,
    VideoPart,
    VisionRequest,
)
from testing.pictures import random_pixels
from tests.unit.models.remote.conftest import PICTURE, generate, request
from tests.unit.raylens.api.conftest import FakeService


@pytest.fixture
async def make(url: str) -> AsyncIterator[Callable[..., OpenAIRuntime]]:
    clients: list[openai.AsyncOpenAI] = []

    def make(family: str | None = "smolvlm", base_url: str = url, **options: Any) -> OpenAIRuntime:
        remote = {"base_url": base_url, "model": "smolvlm"}
        config = ModelConfig.model_validate(
            {"name": "far", "family": family, "runtime": "openai", "remote": remote, **options}
        )
        clients.append(openai.AsyncOpenAI(api_key="k", base_url=base_url, max_retries=0))
        return OpenAIRuntime(config, config.remote, clients[-1])

    yield make
    for client in clients:
        await client.close()


@pytest.fixture
def make_with() -> Callable[..., OpenAIRuntime]:
    """Makes a runtime whose server is a function from requests to responses."""

    def make_with(
        respond: Callable[[httpx.Request], httpx.Response], api_key: str = "k"
    ) -> OpenAIRuntime:
        remote = {"base_url": "http://llm.test/v1", "model": "llama3"}
        config = ModelConfig.model_validate({"name": "far", "runtime": "openai", "remote": remote})
        client = openai.AsyncOpenAI(
            api_key=api_key,
            base_url=config.remote.base_url,
            max_retries=0,
            http_client=cast(Any, httpx.AsyncClient(transport=httpx.MockTransport(respond))),
        )
        return OpenAIRuntime(config, config.remote, client)

    return make_with


async def test_an_answer_is_streamed_and_ends_with_its_usage(make, service: FakeService) -> None:
    deltas = await generate(make(), request(Caption(Length.SHORT)))
    assert [delta.text for delta in deltas] == ["two ", "red ", "circles", ""]
    assert deltas[-1] == Delta(
        finish_reason=FinishReason.STOP, usage=Usage(7, 3), findings=Findings()
    )
    (received,) = service.requests
    assert isinstance(received.task, Chat)
    assert received.task.messages[0].parts[1] == TextPart(
        "Caption this image in one short sentence."
    )
    assert len(service.pictures) == 1


async def test_sampling_parameters_are_passed_on(make, service: FakeService) -> None:
    sampling = SamplingParams(
        max_tokens=9,
        temperature=0.5,
        top_p=0.8,
        top_k=5,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        seed=4,
        stop=("x",),
        n=2,
        logprobs=1,
        json_schema='{"type":"object"}',
        min_tokens=2,
        stop_token_ids=(7, 8),
        logit_bias=((5, -1.5),),
    )
    vision_request = VisionRequest("r", "far", Query("?"), time.time() + 20, sampling)
    deltas = await generate(make(), vision_request)
    assert service.requests[0].sampling == sampling
    assert [delta.index for delta in deltas if delta.finish_reason] == [0, 1]
    assert deltas[0].logprobs[0].top[0].text == "0"
    assert sum(delta.usage.completion_tokens for delta in deltas if delta.usage) == 6


async def test_a_conversation_is_passed_on(make, service: FakeService) -> None:
    chat = Chat(
        (
            Message(Role.SYSTEM, (TextPart("short"),)),
            Message(Role.USER, (TextPart("look"), ImagePart(0), ImagePart(1))),
            Message(Role.ASSISTANT, (TextPart("a cat"),)),
            Message(Role.USER, (TextPart("where?"),)),
        )
    )
    await generate(make(), request(chat), pictures=2)
    assert service.requests[0].task == chat


def tool(name: str) -> Tool:
    function = {"name": name, "parameters": {"type": "object"}}
    definition = json.dumps({"type": "function", "function": function})
    return Tool(name, '{"type": "object"}', definition)


TOOLS = Tools((tool("look_up"), tool("add")))


@pytest.mark.parametrize("required", [(), ("look_up",), ("look_up", "add")])
@pytest.mark.parametrize("parallel", [True, False])
async def test_tools_are_passed_on_and_their_calls_come_back(
    make, service: FakeService, required: tuple[str, ...], parallel: bool
) -> None:
    service.words = ("I ", "look.")
    service.tool_calls = (
        ToolCallDelta(0, "look_up", '{"word"'),
        ToolCallDelta(0, None, ': "red"}'),
        ToolCallDelta(1, "add", "{}"),
    )
    tools = replace(TOOLS, required=required, parallel=parallel)
    question = Message(Role.USER, (TextPart("What is red?"),))
    deltas = await generate(make(), request(Chat((question,), tools=tools)), pictures=0)

    received = service.requests[0].tools
    assert received is not None
    assert received.required == required
    assert received.parallel is parallel
    assert [function.name for function in received.functions] == ["look_up", "add"]
    assert "".join(delta.text for delta in deltas) == "I look."
    assert tuple(call for delta in deltas for call in delta.tool_calls) == service.tool_calls
    assert deltas[-1].finish_reason is FinishReason.TOOL_CALLS


def call(index: int, call_id: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    return {
        "index": index,
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


CALLS = {
    "from 1": [call(1, "a", "f", '{"x":'), call(1, None, None, "1}"), call(2, "b", "g", "{}")],
    "all alike": [call(0, "a", "f", '{"x":1}'), call(0, "b", "g", "{}")],
    "without ids": [call(0, None, "f", '{"x":1}'), call(0, None, "g", "{}")],
    "names repeated": [
        call(0, "a", "f", '{"x":'), call(0, "a", "f", "1}"), call(1, "b", "g", "{}"),
    ],
    "interleaved": [
        call(0, "a", "f", '{"x":'), call(1, "b", "g", "{}"), call(0, None, None, "1}"),
    ],
}  # fmt: skip


def chunks_of(calls: list[dict[str, Any]]) -> bytes:
    deltas: list[dict[str, Any]] = [{"tool_calls": [piece]} for piece in calls]
    choices: list[dict[str, Any]] = [
        {"index": 0, "delta": delta, "finish_reason": None} for delta in deltas
    ]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    events = (json.dumps({**head, "choices": [choice]}) for choice in choices)
    return "".join(f"data: {event}\n\n" for event in events).encode()


@pytest.mark.parametrize("numbering", CALLS)
async def test_calls_are_told_apart_however_the_server_numbers_them(make_with, numbering) -> None:
    content = chunks_of(CALLS[numbering])
    headers = {"content-type": "text/event-stream"}
    runtime = make_with(lambda _: httpx.Response(200, headers=headers, content=content))
    deltas = await generate(runtime, request(Query("?")))
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for piece in (piece for delta in deltas for piece in delta.tool_calls):
        if piece.name is not None:
            assert piece.index not in names
            names[piece.index] = piece.name
        arguments[piece.index] = arguments.get(piece.index, "") + piece.arguments
    assert names == {0: "f", 1: "g"}
    assert arguments == {0: '{"x":1}', 1: "{}"}
    assert deltas[-1].finish_reason is FinishReason.TOOL_CALLS


async def test_a_call_without_a_name_is_a_failure(make_with) -> None:
    content = chunks_of([call(0, "a", None, "{}")])
    headers = {"content-type": "text/event-stream"}
    runtime = make_with(lambda _: httpx.Response(200, headers=headers, content=content))
    with pytest.raises(ModelFailed, match="without a name"):
        await generate(runtime, request(Query("?")))


async def test_a_result_with_a_picture_is_refused(make) -> None:
    result = Message(Role.TOOL, (TextPart("look"), ImagePart(0)))
    with pytest.raises(UnsupportedTask, match="in a user's messages only"):
        await generate(make(), request(Chat((result,))))


async def test_a_history_with_tool_calls_is_passed_on(make, service: FakeService) -> None:
    chat = Chat(
        (
            Message(Role.USER, (TextPart("What is red?"),)),
            Message(Role.ASSISTANT, (), (ToolCall("look_up", '{"word": "red"}'),)),
            Message(Role.TOOL, (TextPart("a colour"),)),
        ),
        tools=TOOLS,
    )
    await generate(make(), request(chat), pictures=0)
    received = service.requests[0].task
    assert isinstance(received, Chat)
    assert received.messages == chat.messages


async def test_limits_of_pixels_and_the_start_of_an_answer_are_passed_on(
    make, service: FakeService
) -> None:
    chat = Chat(
        (
            Message(Role.USER, (TextPart("What is this?"), ImagePart(0))),
            Message(Role.ASSISTANT, (TextPart("It is a "),)),
        ),
        pixel_limits=PixelLimits(max_pixels=50_000),
        template_variables={"add_vision_id": True},
    )
    await generate(make(), request(chat))
    received = service.requests[0].task
    assert isinstance(received, Chat)
    assert received.continues_answer
    assert received.template_variables == {"add_vision_id": True}
    assert received.pixel_limits == PixelLimits(max_pixels=50_000)


async def test_a_video_is_refused(make) -> None:
    chat = Chat((Message(Role.USER, (VideoPart((0, 1)),)),))
    with pytest.raises(UnsupportedTask, match="videos are not supported"):
        await generate(make(), request(chat), pictures=2)


@pytest.mark.parametrize(
    ("task", "text", "findings"),
    [
        (
            Detect("cat"),
            '[{"bbox_2d": [0, 0, 140, 70]}]',
            Findings(regions=(Region(0, 0, 0.5, 0.5),)),
        ),
        (
            Detect("cat", 1),
            "[[0, 0, 28, 14], [0, 0, 140, 70]]",
            Findings(regions=(Region(0, 0, 0.1, 0.1),)),
        ),
        (Point("cat"), '[{"point_2d": [70, 35]}]', Findings(locations=(Location(0.25, 0.25),))),
    ],
)
async def test_findings_are_parsed_from_qwens_text(
    make, service: FakeService, task, text: str, findings: Findings
) -> None:
    service.words = (text,)
    deltas = await generate(make("qwen2_5_vl"), request(task))
    assert deltas[-1].findings == findings


async def test_a_picture_that_cannot_be_resized_to_whole_tokens_is_refused(make) -> None:
    deltas = make("qwen2_5_vl").generate(request(Caption()), [random_pixels(4, 1000)])
    with pytest.raises(InvalidRequest, match="one side is 250 times the other; the limit is 200"):
        await anext(deltas)


async def test_other_families_cannot_detect(make) -> None:
    with pytest.raises(UnsupportedTask, match="model: detect is not supported"):
        await generate(make(), request(Detect("cat")))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Overloaded("full", "model", retry_after=7), Overloaded("", None, None, None, 7)),
        (ModelFailed("broken"), ModelFailed("")),
        (InvalidRequest("max_tokens: too many"), InvalidRequest("")),
    ],
)
async def test_a_servers_error_becomes_a_raylens_error(
    make, service: FakeService, error, expected
) -> None:
    service.error = error
    with pytest.raises(RaylensError) as raised:
        await generate(make(), request(Caption()))
    assert type(raised.value) is type(expected)
    assert raised.value.retry_after == expected.retry_after


async def test_an_unreachable_or_silent_server_is_an_error(
    make, closed_url: str, silent_url: str
) -> None:
    with pytest.raises(ModelNotLoaded):
        await generate(make(base_url=closed_url), request(Caption()))
    with pytest.raises(DeadlineExceeded):
        await generate(make(base_url=silent_url), request(Caption(), seconds=0.3))


async def test_an_answer_that_ends_early_is_an_error(make, service: FakeService) -> None:
    service.error = ModelFailed("broken")
    service.before_error = 1
    with pytest.raises(ModelFailed):
        await generate(make(), request(Caption()))


async def test_slots_are_limited_and_freed(make) -> None:
    runtime = make(max_batch_size=1, max_waiting=1)
    first = runtime.generate(request(Caption()), [PICTURE])
    await anext(first)
    waiting = asyncio.create_task(generate(runtime, request(Caption(), seconds=0.2)))
    await asyncio.sleep(0.05)
    assert runtime.gauges.running == 1
    assert runtime.gauges.waiting == 1
    with pytest.raises(Overloaded, match="2 requests are running or waiting; the limit is 2"):
        runtime.check_capacity(request(Caption()))
    with pytest.raises(DeadlineExceeded):
        await waiting
    await first.aclose()
    assert runtime.gauges.running == 0
    assert runtime.gauges.waiting == 0
    assert len(await generate(runtime, request(Caption()))) == 4


async def test_a_model_without_a_family_answers_text_and_leaves_pictures_to_its_server(
    make, service: FakeService
) -> None:
    runtime = make(family=None)
    assert runtime.tasks == {"caption", "query", "chat"}
    deltas = await generate(runtime, request(Query("Is it?")), pictures=0)
    assert "".join(delta.text for delta in deltas) == "two red circles"
    await generate(runtime, request(Caption()))
    assert len(service.pictures) == 1
    with pytest.raises(UnsupportedTask, match="model: detect is not supported"):
        await generate(runtime, request(Detect("cat")))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (301, ModelFailed),
        (400, InvalidRequest),
        (401, ModelFailed),
        (404, ModelFailed),
        (429, Overloaded),
        (500, ModelFailed),
        (502, ModelNotLoaded),
        (503, Overloaded),
        (504, DeadlineExceeded),
    ],
)
async def test_a_status_becomes_an_error(
    make_with: Callable[..., OpenAIRuntime], status: int, expected: type[RaylensError]
) -> None:
    runtime = make_with(lambda _: httpx.Response(status, headers={"Retry-After": "7"}))
    with pytest.raises(RaylensError) as raised:
        await generate(runtime, request(Caption()))
    assert type(raised.value) is expected
    if expected is Overloaded:
        assert raised.value.retry_after == 7


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"data: <html>\n\n",
        b"data: {}\n\n",
        b'data: {"choices": [{}]}\n\n',
        b'data: {"choices": []}\n\n',
    ],
)
async def test_a_body_other_than_a_chat_completion_is_a_failure(
    make_with: Callable[..., OpenAIRuntime], content: bytes
) -> None:
    runtime = make_with(lambda _: httpx.Response(200, content=content))
    with pytest.raises(ModelFailed):
        await generate(runtime, request(Caption()))


async def test_a_key_that_no_header_can_hold_stays_secret(
    make_with: Callable[..., OpenAIRuntime],
) -> None:
    runtime = make_with(lambda _: httpx.Response(200), api_key="k\u00e9y\u2026")
    with pytest.raises(ModelFailed) as raised:
        await generate(runtime, request(Caption()))
    assert "k\u00e9y" not in raised.value.message


@pytest.mark.parametrize("base_url", ["llm.test", "ftp://llm.test", "http://", "http:///v1"])
def test_an_invalid_base_url_is_refused(base_url: str) -> None:
    with pytest.raises(ValidationError, match="base_url"):
        RemoteConfig(base_url=base_url)
