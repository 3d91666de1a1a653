"""The official clients, unchanged, and whether the answers are right."""

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

from benchmarks.pocket_grounding import matched_boxes, matched_points
from models.pocket.scenes import LENGTHS, ask_count, questions
from testing.scenes import drawn

ENOUGH = 0.9
"""Share of exact answers in these few scenes; ``benchmarks/pocket.py`` measures the real one."""


@pytest.fixture(scope="module")
def gpt(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def dream(server: str) -> Any:
    return moondream.vl(endpoint=f"{server}/v1")


def ask(url: str, text: str, **more: Any) -> list[Any]:
    picture = {"type": "image_url", "image_url": {"url": url, **more}}
    return [{"role": "user", "content": [{"type": "text", "text": text}, picture]}]


def test_openai_answers_are_right_at_every_detail(gpt: openai.OpenAI) -> None:
    right = total = 0
    for seed in range(8):
        scene, _, url = drawn(seed)
        asked = [(q.text, q.answer) for q in questions(scene, random.Random(seed))]
        for detail in ("low", "auto", "high"):
            for text, answer in [*asked, ("Describe this image.", scene.caption())]:
                reply = gpt.chat.completions.create(
                    model="smolvlm", messages=ask(url, text, detail=detail)
                )
                right += reply.choices[0].message.content == answer
                total += 1
    assert right / total >= ENOUGH, f"{right} of {total}"


def test_detail_sets_how_many_tokens_a_picture_takes(gpt: openai.OpenAI) -> None:
    _, _, url = drawn(3, max_side=200)
    used = {}
    for detail in ("low", "auto", "high"):
        reply = gpt.chat.completions.create(model="smolvlm", messages=ask(url, "?", detail=detail))
        assert reply.usage is not None
        used[detail] = reply.usage.prompt_tokens
    assert used["low"] == used["auto"] < used["high"]


def test_an_openai_stream_says_the_same_as_a_whole_answer(gpt: openai.OpenAI) -> None:
    _, _, url = drawn(1)
    messages = ask(url, "Describe this image in detail.")
    whole = gpt.chat.completions.create(model="smolvlm", messages=messages)
    stream = gpt.chat.completions.create(
        model="smolvlm", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 8
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "stop"
    assert chunks[-1].usage == whole.usage


def test_sampling_parameters_are_each_requests_own(gpt: openai.OpenAI) -> None:
    _, _, url = drawn(2)
    messages = ask(url, "Describe this image.")

    def say(messages: Any = messages, **options: Any) -> list[str | None]:
        reply = gpt.chat.completions.create(model="smolvlm", messages=messages, **options)
        return [choice.message.content for choice in reply.choices]

    (full,) = say()
    assert full is not None
    words = full.split()
    assert say(max_tokens=2)[0] != full
    assert say(stop=f" {words[1]}") == [words[0]]
    # Without a picture the model knows no answer, and draws from many.
    unsure = [{"role": "user", "content": "hi"}]
    wild: dict[str, Any] = {"messages": unsure, "temperature": 2.0, "max_tokens": 12, "n": 3}
    assert say(seed=5, **wild) == say(seed=5, **wild) != say(seed=6, **wild)
    assert len(set(say(seed=5, **wild))) > 1


def test_log_probabilities_are_those_of_the_answers_tokens(gpt: openai.OpenAI) -> None:
    _, _, url = drawn(2)
    messages = ask(url, "Describe this image.")
    plain = gpt.chat.completions.create(model="smolvlm", messages=messages)
    told = gpt.chat.completions.create(
        model="smolvlm", messages=messages, logprobs=True, top_logprobs=3
    )
    choice = told.choices[0]
    assert choice.message.content == plain.choices[0].message.content
    assert plain.choices[0].logprobs is None
    assert choice.logprobs is not None
    assert choice.logprobs.content
    tokens = choice.logprobs.content
    assert (
        b"".join(bytes(token.bytes or ()) for token in tokens).decode().strip()
        == choice.message.content
    )
    for token in tokens:
        assert token.token == token.top_logprobs[0].token  # greedy
        assert 0 >= token.logprob == token.top_logprobs[0].logprob >= token.top_logprobs[2].logprob


@pytest.mark.parametrize("model", ["moondream", "smolvlm", "qwen2.5-vl", "cramped"])
def test_answers_follow_a_json_schema(gpt: openai.OpenAI, model: str) -> None:
    """Whatever the model would rather say: one of these has learned nothing."""
    color = {"enum": ["red", "green", "blue"]}
    schema = {
        "type": "object",
        "properties": {"color": color},
        "required": ["color"],
        "additionalProperties": False,
    }
    wanted: Any = {
        "type": "json_schema",
        "json_schema": {"name": "shape", "schema": schema, "strict": True},
    }
    _, _, url = drawn(3)
    messages = ask(url, "What color is the circle?")
    reply = gpt.chat.completions.create(
        model=model, messages=messages, response_format=wanted, n=2, temperature=1, seed=1
    )
    assert len(reply.choices) == 2
    for choice in reply.choices:
        assert choice.finish_reason == "stop"
        answer = json.loads(choice.message.content or "")
        assert list(answer) == ["color"]
        assert answer["color"] in color["enum"]
    wanted["json_schema"]["schema"] = {"type": "no such type"}
    with pytest.raises(openai.BadRequestError, match="response_format"):
        gpt.chat.completions.create(model=model, messages=messages, response_format=wanted)


def test_a_penalty_keeps_tokens_from_coming_again(gpt: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "a"}]

    def tokens(**options: Any) -> list[str]:
        reply = gpt.chat.completions.create(
            model="cramped", messages=messages, max_tokens=40, logprobs=True, **options
        )
        logprobs = reply.choices[0].logprobs
        assert logprobs is not None
        return [token.token for token in logprobs.content or ()]

    free = tokens()
    for options in (
        {"frequency_penalty": 2.0},
        {"presence_penalty": 2.0},
        {"extra_body": {"repetition_penalty": 5.0}},
    ):
        held = tokens(**options)
        assert len(free) == len(held) == 40
        assert len(set(held)) > len(set(free)), options


def test_openai_lists_models(gpt: openai.OpenAI) -> None:
    assert [model.id for model in gpt.models.list()] == [
        "moondream",
        "smolvlm",
        "qwen2.5-vl",
        "cramped",
    ]
    for alias in ("smolvlm2_500m_video", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"):
        assert gpt.models.retrieve(alias).id == "smolvlm"
    for alias in ("vikhyatk/moondream2", "moondream2", "moondream3-preview", "moondream:1.8b"):
        assert gpt.models.retrieve(alias).id == "moondream"
    assert gpt.models.retrieve("Qwen/Qwen2.5-VL-3B-Instruct").id == "qwen2.5-vl"


def test_openai_errors_are_openais(gpt: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.NotFoundError, match="gpt-4o"):
        gpt.chat.completions.create(model="gpt-4o", messages=messages)
    with pytest.raises(openai.BadRequestError, match="logit_bias: not supported"):
        gpt.chat.completions.create(model="smolvlm", messages=messages, logit_bias={"5": 10})
    with pytest.raises(openai.BadRequestError, match="top_logprobs: logprobs should be true"):
        gpt.chat.completions.create(model="smolvlm", messages=messages, top_logprobs=2)


def test_moondream_captions_and_answers_are_right(dream: Any) -> None:
    right = total = 0
    for seed in range(20, 28):
        scene, data, _ = drawn(seed)
        picture = Image.open(io.BytesIO(data))
        for length in LENGTHS:
            right += dream.caption(picture, length=length)["caption"] == scene.caption(length)
            right += "".join(
                dream.caption(picture, length=length, stream=True)["caption"]
            ) == scene.caption(length)
        count = ask_count(scene)
        right += dream.query(picture, count.text)["answer"] == count.answer
        right += "".join(dream.query(picture, count.text, stream=True)["answer"]) == count.answer
        total += 8
    assert right / total >= ENOUGH, f"{right} of {total}"


def test_moondream_settings_and_text_only_queries(dream: Any) -> None:
    _, data, _ = drawn(4)
    picture = Image.open(io.BytesIO(data))
    short = dream.caption(picture, settings={"max_tokens": 1, "temperature": 0, "top_p": 0.5})[
        "caption"
    ]
    assert short in ("a", "an")
    assert isinstance(
        dream.query(question="How many shapes are there?", settings={"max_tokens": 3})["answer"],
        str,
    )


def test_moondream_chat(dream: Any) -> None:
    _, _, url = drawn(5)
    messages = ask(url, "Describe this image.")
    reply = dream.chat(messages)
    assert reply["message"]["content"] == "".join(dream.chat(messages, stream=True)["message"])
    assert reply["finish_reason"] == "stop"
    assert len(reply["message"]["content"]) > 10


@pytest.mark.parametrize("model", [None, "qwen2.5-vl"])
def test_moondream_finds_boxes_and_points(server: str, model: str | None) -> None:
    dream: Any = moondream.vl(endpoint=f"{server}/v1", model=model)
    found = right = 0
    for seed in range(6):
        scene, data, _ = drawn(seed)
        picture = Image.open(io.BytesIO(data))
        boxes = [tuple(box.values()) for box in dream.detect(picture, "shape")["objects"]]
        points = [tuple(point.values()) for point in dream.point(picture, "shape")["points"]]
        assert all(0 <= side <= 1 for place in (*boxes, *points) for side in place)
        right += matched_boxes(scene.boxes("shape"), boxes, 0.6) + matched_points(
            scene.boxes("shape"), points
        )
        found += 2 * len(scene.shapes)
        assert len(dream.detect(picture, "shape", settings={"max_objects": 1})["objects"]) == 1
    assert right / found >= ENOUGH, f"{right} of {found}"


def test_moondream_thinks_about_what_it_sees_and_about_places(dream: Any) -> None:
    right = total = 0
    for seed in range(40, 48):
        scene, data, _ = drawn(seed)
        picture = Image.open(io.BytesIO(data))
        answer = dream.query(picture, "How many shapes are there?", reasoning=True)
        points = [
            tuple(point) for part in answer["reasoning"]["grounding"] for point in part["points"]
        ]
        right += answer["answer"] == str(len(scene.shapes))
        right += matched_points(scene.boxes("shape"), points) == len(points) == len(scene.shapes)
        for shape, box in zip(scene.shapes, scene.boxes("shape"), strict=True):
            said = dream.query(picture, "What color is this?", spatial_refs=[list(box)])["answer"]
            right += said == shape.color
        total += 2 + len(scene.shapes)
    assert right / total >= 0.8, f"{right} of {total}"


def test_an_openai_client_gets_boxes_and_thoughts(gpt: openai.OpenAI) -> None:
    scene, _, url = drawn(3)
    wanted = {"raylens": {"task": "detect", "object": "shape"}}
    reply = gpt.chat.completions.create(
        model="moondream", messages=ask(url, "find them"), extra_body=wanted
    )
    boxes = [
        tuple(box.values()) for box in json.loads(reply.choices[0].message.content or "")["objects"]
    ]
    assert matched_boxes(scene.boxes("shape"), boxes, 0.6) == len(scene.shapes)
    thoughtful = gpt.chat.completions.create(
        model="moondream",
        messages=ask(url, "How many shapes are there?"),
        extra_body={"reasoning": True},
    )
    assert thoughtful.choices[0].message.content == str(len(scene.shapes))
    assert thoughtful.choices[0].message.reasoning  # type: ignore[attr-defined]


def test_moondream_says_what_a_model_cant(server: str, dream: Any) -> None:
    _, data, _ = drawn(6)
    picture = Image.open(io.BytesIO(data))
    small = moondream.vl(endpoint=f"{server}/v1", model="smolvlm")
    calls = (
        (small.detect, "these can: moondream, qwen2.5-vl"),
        (small.point, "these can: moondream, qwen2.5-vl"),
        (dream.segment, "segment"),
    )
    for method, words in calls:
        with pytest.raises(urllib.error.HTTPError) as caught:
            method(picture, "circle")
        assert caught.value.code == 400
        assert words.encode() in caught.value.read()


def test_curl_uploads_a_picture(server: str, tmp_path: Any) -> None:
    scene, data, _ = drawn(7)
    path = tmp_path / "scene"
    path.write_bytes(data)
    command = ["curl", "-s", f"{server}/v1/caption", "-F", f"file=@{path}", "-F", "length=normal"]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    reply = httpx.post(
        f"{server}/v1/caption", files={"file": data}, data={"length": "normal"}
    ).json()
    assert answer.startswith('{"caption":"')
    assert reply["caption"] in answer
    assert len(reply["caption"].split()) >= len(scene.caption("short").split())


def test_the_api_page_and_health_are_served(server: str) -> None:
    assert httpx.get(f"{server}/docs").status_code == 200
    health = httpx.get(f"{server}/health").json()
    assert health["status"] == "healthy"
    assert health["models"]["smolvlm"]["tasks"] == ["caption", "chat", "query"]
    places = ["caption", "chat", "detect", "point", "query"]
    assert health["models"]["qwen2.5-vl"]["tasks"] == places
    assert health["models"]["moondream"]["tasks"] == [*places, "reason"]
    assert httpx.get(f"{server}/ready").json() == {"status": "ready"}
