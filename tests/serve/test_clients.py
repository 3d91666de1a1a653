"""The official clients, unmodified, get right answers."""

from __future__ import annotations

import io
import json
import random
import subprocess
import urllib.error
from typing import Any

import httpx
import moondream
import openai
import pytest
from PIL import Image

from models.pocket.scenes import LENGTHS, ask_count, questions
from testing.grounding import count_matching_boxes, count_matching_points
from testing.scenes import draw_scene

MIN_ACCURACY = 0.9
"""Fraction of exact answers for these few scenes; ``benchmarks/pocket.py`` measures the accuracy
itself."""


@pytest.fixture(scope="module")
def openai_client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def moondream_client(server: str) -> Any:
    return moondream.vl(endpoint=f"{server}/v1")


def make_messages(url: str, text: str, **options: Any) -> list[Any]:
    """Return one user message with a text and a picture."""
    picture = {"type": "image_url", "image_url": {"url": url, **options}}
    return [{"role": "user", "content": [{"type": "text", "text": text}, picture]}]


def test_openai_answers_are_right_at_every_detail(openai_client: openai.OpenAI) -> None:
    right = total = 0
    for seed in range(8):
        scene, _, url = draw_scene(seed)
        expected = [(item.text, item.answer) for item in questions(scene, random.Random(seed))]
        expected.append(("Describe this image.", scene.caption()))
        for detail in ("low", "auto", "high"):
            for text, answer in expected:
                reply = openai_client.chat.completions.create(
                    model="smolvlm", messages=make_messages(url, text, detail=detail)
                )
                right += reply.choices[0].message.content == answer
                total += 1
    assert right / total >= MIN_ACCURACY, f"{right} of {total}"


def test_detail_sets_the_number_of_image_tokens(openai_client: openai.OpenAI) -> None:
    _, _, url = draw_scene(3, max_side=200)
    prompt_tokens = {}
    for detail in ("low", "auto", "high"):
        reply = openai_client.chat.completions.create(
            model="smolvlm", messages=make_messages(url, "?", detail=detail)
        )
        assert reply.usage is not None
        prompt_tokens[detail] = reply.usage.prompt_tokens
    assert prompt_tokens["low"] == prompt_tokens["auto"] < prompt_tokens["high"]


def test_an_openai_stream_equals_the_completion(openai_client: openai.OpenAI) -> None:
    _, _, url = draw_scene(1)
    messages = make_messages(url, "Describe this image in detail.")
    completion = openai_client.chat.completions.create(model="smolvlm", messages=messages)
    stream = openai_client.chat.completions.create(
        model="smolvlm", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(filter(None, pieces)) == completion.choices[0].message.content
    assert sum(map(bool, pieces)) > 1  # of several tokens each: they come within milliseconds
    assert chunks[-2].choices[0].finish_reason == completion.choices[0].finish_reason == "stop"
    assert chunks[-1].usage == completion.usage


def test_each_request_has_its_own_sampling_parameters(openai_client: openai.OpenAI) -> None:
    _, _, url = draw_scene(2)
    messages = make_messages(url, "Describe this image.")

    def complete(messages: Any = messages, **options: Any) -> list[str | None]:
        reply = openai_client.chat.completions.create(model="smolvlm", messages=messages, **options)
        return [choice.message.content for choice in reply.choices]

    (full,) = complete()
    assert full is not None
    words = full.split()
    assert complete(max_tokens=2)[0] != full
    assert complete(stop=f" {words[1]}") == [words[0]]
    # Without a picture, no answer is likely: samples vary.
    text_only = [{"role": "user", "content": "hi"}]
    hot: dict[str, Any] = {"messages": text_only, "temperature": 2.0, "max_tokens": 12, "n": 3}
    assert complete(seed=5, **hot) == complete(seed=5, **hot) != complete(seed=6, **hot)
    assert len(set(complete(seed=5, **hot))) > 1


def test_logprobs_match_the_tokens_of_the_answer(openai_client: openai.OpenAI) -> None:
    _, _, url = draw_scene(2)
    messages = make_messages(url, "Describe this image.")
    plain = openai_client.chat.completions.create(model="smolvlm", messages=messages)
    completion = openai_client.chat.completions.create(
        model="smolvlm", messages=messages, logprobs=True, top_logprobs=3
    )
    choice = completion.choices[0]
    assert choice.message.content == plain.choices[0].message.content
    assert plain.choices[0].logprobs is None
    assert choice.logprobs is not None
    assert choice.logprobs.content
    tokens = choice.logprobs.content
    text = b"".join(bytes(token.bytes or ()) for token in tokens).decode()
    assert text.strip() == choice.message.content
    for token in tokens:
        assert token.token == token.top_logprobs[0].token  # greedy
        assert 0 >= token.logprob == token.top_logprobs[0].logprob >= token.top_logprobs[2].logprob


@pytest.mark.parametrize("model", ["moondream", "smolvlm", "qwen2.5-vl", "cramped"])
def test_answers_follow_a_json_schema(openai_client: openai.OpenAI, model: str) -> None:
    """The schema binds any model, even one with random weights."""
    color = {"enum": ["red", "green", "blue"]}
    schema = {
        "type": "object",
        "properties": {"color": color},
        "required": ["color"],
        "additionalProperties": False,
    }
    response_format: Any = {
        "type": "json_schema",
        "json_schema": {"name": "shape", "schema": schema, "strict": True},
    }
    _, _, url = draw_scene(3)
    messages = make_messages(url, "What color is the circle?")
    reply = openai_client.chat.completions.create(
        model=model, messages=messages, response_format=response_format, n=2, temperature=1, seed=1
    )
    assert len(reply.choices) == 2
    for choice in reply.choices:
        assert choice.finish_reason == "stop"
        answer = json.loads(choice.message.content or "")
        assert list(answer) == ["color"]
        assert answer["color"] in color["enum"]
    response_format["json_schema"]["schema"] = {"type": "no such type"}
    with pytest.raises(openai.BadRequestError, match="response_format"):
        openai_client.chat.completions.create(
            model=model, messages=messages, response_format=response_format
        )


def test_a_penalty_reduces_repetition(openai_client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "a"}]

    def tokens(**options: Any) -> list[str]:
        reply = openai_client.chat.completions.create(
            model="cramped", messages=messages, max_tokens=40, logprobs=True, **options
        )
        logprobs = reply.choices[0].logprobs
        assert logprobs is not None
        return [token.token for token in logprobs.content or ()]

    unpenalized = tokens()
    for options in (
        {"frequency_penalty": 2.0},
        {"presence_penalty": 2.0},
        {"extra_body": {"repetition_penalty": 5.0}},
    ):
        penalized = tokens(**options)
        assert len(unpenalized) == len(penalized) == 40
        assert len(set(penalized)) > len(set(unpenalized)), options


def test_openai_lists_models(openai_client: openai.OpenAI) -> None:
    assert [model.id for model in openai_client.models.list()] == [
        "moondream",
        "smolvlm",
        "qwen2.5-vl",
        "cramped",
    ]
    for alias in ("smolvlm2_500m_video", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"):
        assert openai_client.models.retrieve(alias).id == "smolvlm"
    for alias in ("vikhyatk/moondream2", "moondream2", "moondream3-preview", "moondream:1.8b"):
        assert openai_client.models.retrieve(alias).id == "moondream"
    assert openai_client.models.retrieve("Qwen/Qwen2.5-VL-3B-Instruct").id == "qwen2.5-vl"


def test_openai_errors_have_openais_types(openai_client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.NotFoundError, match="gpt-4o"):
        openai_client.chat.completions.create(model="gpt-4o", messages=messages)
    with pytest.raises(openai.BadRequestError, match="verbosity: not supported"):
        openai_client.chat.completions.create(model="smolvlm", messages=messages, verbosity="high")
    with pytest.raises(openai.BadRequestError, match="top_logprobs: expected logprobs to be true"):
        openai_client.chat.completions.create(model="smolvlm", messages=messages, top_logprobs=2)


def test_moondream_captions_and_answers_are_right(moondream_client: Any) -> None:
    right = total = 0
    for seed in range(20, 28):
        scene, data, _ = draw_scene(seed)
        picture = Image.open(io.BytesIO(data))
        for length in LENGTHS:
            caption = moondream_client.caption(picture, length=length)["caption"]
            chunks = moondream_client.caption(picture, length=length, stream=True)["caption"]
            right += caption == scene.caption(length)
            right += "".join(chunks) == scene.caption(length)
        count = ask_count(scene)
        answer = moondream_client.query(picture, count.text)["answer"]
        chunks = moondream_client.query(picture, count.text, stream=True)["answer"]
        right += answer == count.answer
        right += "".join(chunks) == count.answer
        total += 8
    assert right / total >= MIN_ACCURACY, f"{right} of {total}"


def test_moondream_settings_and_text_only_queries(moondream_client: Any) -> None:
    _, data, _ = draw_scene(4)
    picture = Image.open(io.BytesIO(data))
    settings = {"max_tokens": 1, "temperature": 0, "top_p": 0.5}
    assert moondream_client.caption(picture, settings=settings)["caption"] in ("a", "an")
    question = "How many shapes are there?"
    reply = moondream_client.query(question=question, settings={"max_tokens": 3})
    assert isinstance(reply["answer"], str)


def test_moondream_chat(moondream_client: Any) -> None:
    _, _, url = draw_scene(5)
    messages = make_messages(url, "Describe this image.")
    reply = moondream_client.chat(messages)
    assert reply["message"]["content"] == "".join(
        moondream_client.chat(messages, stream=True)["message"]
    )
    assert reply["finish_reason"] == "stop"
    assert len(reply["message"]["content"]) > 10


@pytest.mark.parametrize("model", [None, "qwen2.5-vl"])
def test_moondream_finds_boxes_and_points(server: str, model: str | None) -> None:
    client: Any = moondream.vl(endpoint=f"{server}/v1", model=model)
    right = total = 0
    for seed in range(6):
        scene, data, _ = draw_scene(seed)
        picture = Image.open(io.BytesIO(data))
        expected = scene.boxes("shape")
        boxes = [tuple(box.values()) for box in client.detect(picture, "shape")["objects"]]
        points = [tuple(point.values()) for point in client.point(picture, "shape")["points"]]
        for coordinates in (*boxes, *points):
            assert all(0 <= coordinate <= 1 for coordinate in coordinates)
        right += count_matching_boxes(expected, boxes, 0.6)
        right += count_matching_points(expected, points)
        total += 2 * len(scene.shapes)
        limited = client.detect(picture, "shape", settings={"max_objects": 1})
        assert len(limited["objects"]) == 1
    assert right / total >= MIN_ACCURACY, f"{right} of {total}"


def test_moondream_reasons_with_grounding_and_reads_spatial_refs(moondream_client: Any) -> None:
    right = total = 0
    for seed in range(40, 48):
        scene, data, _ = draw_scene(seed)
        picture = Image.open(io.BytesIO(data))
        answer = moondream_client.query(picture, "How many shapes are there?", reasoning=True)
        points = [
            tuple(point) for part in answer["reasoning"]["grounding"] for point in part["points"]
        ]
        right += answer["answer"] == str(len(scene.shapes))
        right += (
            count_matching_points(scene.boxes("shape"), points) == len(points) == len(scene.shapes)
        )
        for shape, box in zip(scene.shapes, scene.boxes("shape"), strict=True):
            reply = moondream_client.query(picture, "What color is this?", spatial_refs=[list(box)])
            right += reply["answer"] == shape.color
        total += 2 + len(scene.shapes)
    assert right / total >= 0.8, f"{right} of {total}"


def test_an_openai_client_gets_boxes_and_reasoning(openai_client: openai.OpenAI) -> None:
    scene, _, url = draw_scene(3)
    extension = {"raylens": {"task": "detect", "object": "shape"}}
    reply = openai_client.chat.completions.create(
        model="moondream", messages=make_messages(url, "find them"), extra_body=extension
    )
    objects = json.loads(reply.choices[0].message.content or "")["objects"]
    boxes = [tuple(box.values()) for box in objects]
    assert count_matching_boxes(scene.boxes("shape"), boxes, 0.6) == len(scene.shapes)
    reply = openai_client.chat.completions.create(
        model="moondream",
        messages=make_messages(url, "How many shapes are there?"),
        extra_body={"reasoning": True},
    )
    assert reply.choices[0].message.content == str(len(scene.shapes))
    assert reply.choices[0].message.reasoning  # type: ignore[attr-defined]


def test_moondream_names_the_models_that_support_a_task(server: str, moondream_client: Any) -> None:
    _, data, _ = draw_scene(6)
    picture = Image.open(io.BytesIO(data))
    smolvlm = moondream.vl(endpoint=f"{server}/v1", model="smolvlm")
    calls = (
        (smolvlm.detect, "supported by: moondream, qwen2.5-vl"),
        (smolvlm.point, "supported by: moondream, qwen2.5-vl"),
        (moondream_client.segment, "segment: not supported"),
    )
    for method, message in calls:
        with pytest.raises(urllib.error.HTTPError) as caught:
            method(picture, "circle")
        assert caught.value.code == 400
        assert message.encode() in caught.value.read()


def test_curl_uploads_a_picture(server: str, tmp_path: Any) -> None:
    scene, data, _ = draw_scene(7)
    path = tmp_path / "scene"
    path.write_bytes(data)
    command = ["curl", "-s", f"{server}/v1/caption", "-F", f"file=@{path}", "-F", "length=normal"]
    stdout = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    reply = httpx.post(
        f"{server}/v1/caption", files={"file": data}, data={"length": "normal"}
    ).json()
    assert stdout.startswith('{"caption":"')
    assert reply["caption"] in stdout
    assert len(reply["caption"].split()) >= len(scene.caption("short").split())


def test_the_api_page_and_health_are_served(server: str) -> None:
    assert httpx.get(f"{server}/docs").status_code == 200
    health = httpx.get(f"{server}/health").json()
    assert health["status"] == "healthy"
    assert health["models"]["smolvlm"]["tasks"] == ["caption", "chat", "completion", "query"]
    tasks = ["caption", "chat", "completion", "detect", "point", "query"]
    assert health["models"]["qwen2.5-vl"]["tasks"] == tasks
    assert health["models"]["moondream"]["tasks"] == [*tasks, "reason"]
    assert httpx.get(f"{server}/ready").json() == {"status": "ready"}
