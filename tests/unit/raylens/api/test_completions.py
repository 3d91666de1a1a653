from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import openai
import pytest

from raylens.api.completions import PATH
from raylens.core.errors import Overloaded
from raylens.core.types import Completion, Delta
from tests.unit.raylens.api.conftest import FakeService
from tests.unit.raylens.api.test_openai import events


@pytest.fixture
def openai_client(client: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        api_key="key", base_url="http://localhost/v1", http_client=client, max_retries=0
    )


async def test_a_text_is_continued(openai_client, service: FakeService) -> None:
    completion = await openai_client.completions.create(
        model="smolvlm", prompt="I see ", logprobs=1, stop=["x"]
    )
    (choice,) = completion.choices
    assert (choice.text, choice.finish_reason) == ("two red circles", "stop")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["two ", "red ", "circles"]
    assert choice.logprobs.text_offset == [0, 4, 8]
    assert choice.logprobs.top_logprobs == [{"0": -0.5}] * 3
    assert completion.usage is not None
    assert completion.usage.total_tokens == 10
    (request,) = service.requests
    assert request.task == Completion("I see ")
    assert (request.sampling.max_tokens, request.sampling.stop) == (16, ("x",))


async def test_several_prompts_have_their_own_choices(openai_client, service) -> None:
    completion = await openai_client.completions.create(model="", prompt=["a", "b"], n=2, echo=True)
    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    texts = [choice.text for choice in completion.choices]
    assert texts == ["atwo red circles"] * 2 + ["btwo red circles"] * 2
    assert completion.usage.prompt_tokens == 14
    assert completion.usage.completion_tokens == 12
    assert len({request.id for request in service.requests}) == 2


async def test_a_stream_sends_text_and_then_the_reason(client, service) -> None:
    body = {"prompt": ["a", "b"], "echo": True, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip
    *chunks, last = events(await client.post(PATH, json=body))
    for index in (0, 1):
        choices = [chunk["choices"][0] for chunk in chunks]
        own = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["text"] for choice in own) == "ab"[index] + "two red circles"
        assert [choice["finish_reason"] for choice in own] == [None, None, None, "stop"]
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 20)


async def test_every_chunk_tells_its_place_and_the_usage_so_far(client, service) -> None:
    body = {"prompt": "a", "logprobs": 1, "stream": True,
            "stream_options": {"continuous_usage_stats": True}}  # fmt: skip
    chunks = events(await client.post(PATH, json=body))
    logprobs = [chunk["choices"][0]["logprobs"] for chunk in chunks[:3]]
    assert [piece["text_offset"] for piece in logprobs] == [[0], [4], [8]]
    assert all(chunk["usage"] for chunk in chunks)


async def test_a_stream_that_ends_early_ends_with_an_error(client, service, monkeypatch) -> None:
    async def generate(request: Any, pictures: Any) -> AsyncGenerator[Delta, None]:
        yield Delta("two ")

    monkeypatch.setattr(service, "generate", generate)
    response = await client.post(PATH, json={"prompt": "a", "stream": True})
    assert "ended early" in response.text
    assert "[DONE]" not in response.text


@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_keeps_its_status(client, service, stream) -> None:
    service.error = Overloaded("full", "model", 3, 4, 2.5)
    response = await client.post(PATH, json={"prompt": "hi", "stream": stream})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "overloaded"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "prompt", "required"),
        ({"prompt": [1, 2]}, "prompt", "expected a text"),
        ({"prompt": ["a"] * 65}, "prompt", "at most 64"),
        ({"prompt": "x" * 3000}, "prompt", "the limit is 2000"),
        ({"prompt": "x", "suffix": "y"}, "suffix", "not supported"),
        ({"prompt": "x", "best_of": 2}, "best_of", "not supported"),
        ({"prompt": "x", "echo": True, "logprobs": 1}, "echo", "together with logprobs"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens", "or equal to 1"),
        ({"prompt": "x", "frobnicate": 1}, "frobnicate", "unknown parameter"),
    ],
)
async def test_an_invalid_request_is_refused(client, service, body, param, message) -> None:
    response = await client.post(PATH, json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert message in error["message"]
    assert service.requests == []
