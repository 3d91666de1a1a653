"""JSON, tools, Responses and Ollama's API give right answers through the whole graph."""

from __future__ import annotations

import base64
import json
from typing import Any

import ollama
import openai
import pytest

from models.pocket.scenes import CELLS, Scene
from testing.pictures import encode_picture, random_pixels
from testing.scenes import draw_scene
from tests.serve.test_clients import make_messages

MODELS = ("moondream", "smolvlm", "qwen2.5-vl")
MIN_EXACT = 0.8
"""Share of exact answers for these few scenes; ``benchmarks.pocket`` measures the accuracy."""
SEEDS = range(40, 50)
DESCRIBE = "Describe the picture as JSON."
SHAPE = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("shape", "color", "position")},
    "required": ["shape", "color", "position"],
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"count": {"type": "integer"}, "shapes": {"type": "array", "items": SHAPE}},
    "required": ["count", "shapes"],
}
TOOL: Any = {"type": "function", "function": {"name": "scene", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


def expected(scene: Scene) -> dict[str, Any]:
    shapes = [
        {"shape": shape.kind, "color": shape.color, "position": CELLS[shape.cell]}
        for shape in scene.shapes
    ]
    return {"count": len(shapes), "shapes": shapes}


@pytest.mark.parametrize("model", MODELS)
def test_a_schema_is_filled_in_rightly(client: openai.OpenAI, model: str) -> None:
    response_format: Any = {
        "type": "json_schema",
        "json_schema": {"name": "scene", "schema": SCHEMA},
    }
    exact = 0
    for seed in SEEDS:
        scene, _, url = draw_scene(seed)
        reply = client.chat.completions.create(
            model=model, messages=make_messages(url, DESCRIBE), response_format=response_format
        )
        assert reply.choices[0].finish_reason == "stop"
        answer = json.loads(reply.choices[0].message.content or "")
        assert set(answer) == {"count", "shapes"}
        exact += answer == expected(scene)
    assert exact / len(SEEDS) >= MIN_EXACT, exact


@pytest.mark.parametrize("model", ["moondream", "smolvlm", "qwen2.5-vl"])
def test_a_forced_call_follows_its_parameters(client: openai.OpenAI, model: str) -> None:
    other: Any = {"type": "function", "function": {"name": "other"}}
    _, _, url = draw_scene(41)
    messages = make_messages(url, DESCRIBE)
    call: Any = {
        "model": model,
        "messages": messages,
        "tools": [TOOL, other],
        "tool_choice": {"type": "function", "function": {"name": "scene"}},
        "max_tokens": 200,
    }
    reply = client.chat.completions.create(**call)
    (tool_call,) = reply.choices[0].message.tool_calls or []
    assert tool_call.type == "function"
    assert tool_call.function.name == "scene"
    assert reply.choices[0].message.content is None
    deltas = [
        delta
        for chunk in client.chat.completions.create(stream=True, **call)
        for delta in chunk.choices[0].delta.tool_calls or []
    ]
    pieces = [delta.function.arguments or "" for delta in deltas if delta.function]
    assert "".join(pieces) == tool_call.function.arguments
    assert len(pieces) > 2
    if reply.choices[0].finish_reason == "tool_calls":
        assert set(json.loads(tool_call.function.arguments)) == {"count", "shapes"}


def test_any_of_several_calls_can_be_required(client: openai.OpenAI) -> None:
    other: Any = {"type": "function", "function": {"name": "other"}}
    _, _, url = draw_scene(42)
    for model in ("moondream", "smolvlm", "qwen2.5-vl"):
        reply = client.chat.completions.create(
            model=model,
            messages=make_messages(url, DESCRIBE),
            tools=[TOOL, other],
            tool_choice="required",
            max_tokens=300,
        )
        (tool_call,) = reply.choices[0].message.tool_calls or []
        assert tool_call.type == "function"
        assert tool_call.function.name in ("scene", "other")


@pytest.mark.parametrize("model", ["moondream", "smolvlm", "qwen2.5-vl"])
def test_tools_that_may_be_called_leave_the_answer_right(client: openai.OpenAI, model: str) -> None:
    scene, _, url = draw_scene(43)
    reply = client.chat.completions.create(
        model=model, messages=make_messages(url, "How many shapes are there?"), tools=[TOOL]
    )
    assert reply.choices[0].message.content == str(len(scene.shapes))


@pytest.mark.parametrize("model", ["moondream", "smolvlm", "qwen2.5-vl"])
def test_an_answer_is_continued(client: openai.OpenAI, model: str) -> None:
    right = 0
    for seed in range(44, 54):
        scene, _, url = draw_scene(seed)
        words = scene.caption().split()
        begun = " ".join(words[:3])
        messages = [
            *make_messages(url, "Describe this image."),
            {"role": "assistant", "content": begun},
        ]
        reply = client.chat.completions.create(model=model, messages=messages)
        right += f"{begun}{reply.choices[0].message.content}" == scene.caption()
    assert right >= 8


def test_responses_answer_and_stream(client: openai.OpenAI) -> None:
    scene, _, url = draw_scene(45)
    question: Any = [
        {
            "role": "user",
            "content": [
                {"type": "input_image", "image_url": url},
                {"type": "input_text", "text": "Describe this image."},
            ],
        }
    ]
    response = client.responses.create(model="smolvlm", input=question)
    assert response.output_text == scene.caption()
    with client.responses.stream(model="smolvlm", input=question) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert stream.get_final_response().output_text == "".join(deltas) == scene.caption()
    history: Any = [*question, *response.output, {"role": "user", "content": "How many?"}]
    assert client.responses.create(model="smolvlm", input=history).status == "completed"


def test_a_text_is_continued(client: openai.OpenAI) -> None:
    completion = client.completions.create(
        model="smolvlm", prompt="One shape on a gray", max_tokens=4, temperature=0
    )
    assert completion.choices[0].text.startswith(" background")


def test_ollamas_client_gets_right_answers(server: str) -> None:
    with ollama.Client(server) as client:
        scene, data, _ = draw_scene(46)
        message = {"role": "user", "content": "How many shapes are there?", "images": [data]}
        answer = client.chat(model="smolvlm", messages=[message])
        assert answer.message.content == str(len(scene.shapes))
        message["content"] = "Describe this image."
        parts = list(client.chat(model="smolvlm:latest", messages=[message], stream=True))
        assert "".join(part.message.content or "" for part in parts) == scene.caption()
        assert parts[-1].done
        assert {model.model for model in client.list().models} >= {"smolvlm:latest"}


def test_a_picture_that_a_model_refuses_is_named_as_it_was_sent(client: openai.OpenAI) -> None:
    data = base64.b64encode(encode_picture(random_pixels(2000, 8))).decode()
    _, _, scene = draw_scene(1)
    urls = (scene, f"data:image/png;base64,{data}")
    parts: Any = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": DESCRIBE}, *parts]}]
    with pytest.raises(openai.BadRequestError, match="times the other; the limit is 200") as caught:
        client.chat.completions.create(model="qwen2.5-vl", messages=messages)
    assert caught.value.param == "messages.0.content.2.image_url.url"
