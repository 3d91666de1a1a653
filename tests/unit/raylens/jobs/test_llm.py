from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import httpx
import pytest

from raylens.core.config import AppConfig, LlmConfig
from raylens.core.errors import DeadlineExceeded, ModelFailed, Overloaded, RaylensError
from raylens.core.recipe import Recipe
from raylens.core.types import (
    Chat,
    Delta,
    FinishReason,
    Message,
    ModelInfo,
    PictureFile,
    ProcessedPicture,
    Role,
    TextPart,
    VisionRequest,
)
from raylens.jobs.inference import InferenceClient
from raylens.jobs.llm import GraphLlm, ServerLlm, make_llm

CONFIG = LlmConfig(model="small", base_url="http://llm.test/v1/", api_key_env="KEY_OF_TEST")
ANSWER = {"choices": [{"message": {"role": "assistant", "content": "Yes."}}]}
Handler = Callable[[httpx.Request], httpx.Response]


class FakeService:
    def __init__(self) -> None:
        self.requests: list[VisionRequest] = []

    async def generate(
        self, request: VisionRequest, pictures: Sequence[PictureFile]
    ) -> AsyncGenerator[Delta, None]:
        self.requests.append(request)
        yield Delta("Yes.", finish_reason=FinishReason.STOP)

    async def preprocess(
        self, picture: PictureFile, recipe: Recipe, deadline: float, identity: str
    ) -> ProcessedPicture:
        raise NotImplementedError

    async def model_info(self, name: str) -> ModelInfo:
        raise NotImplementedError


def _inference(service: FakeService) -> InferenceClient:
    models = [{"name": "moondream", "family": "moondream"}, {"name": "words", "family": "smolvlm"}]
    return InferenceClient(service, AppConfig.model_validate({"models": models}))


def _soon() -> float:
    return time.time() + 60


async def _error(handler: Handler, deadline: float | None = None) -> RaylensError:
    with pytest.raises(RaylensError) as caught:
        await ServerLlm(CONFIG, httpx.MockTransport(handler), {}).complete("?", deadline or _soon())
    return caught.value


def _raising(error: type[httpx.HTTPError]) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        raise error("secret")

    return handler


async def test_a_server_is_asked_in_openais_words() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=ANSWER)

    llm = ServerLlm(CONFIG, httpx.MockTransport(handler), {"KEY_OF_TEST": " k1\n"})
    assert await llm.complete("Is it?", _soon()) == "Yes."
    assert str(seen[0].url) == "http://llm.test/v1/chat/completions"
    assert seen[0].headers["Authorization"] == "Bearer k1"
    messages = [{"role": "user", "content": "Is it?"}]
    assert json.loads(seen[0].content) == {"model": "small", "messages": messages, "temperature": 0}


@pytest.mark.parametrize("config", [CONFIG, CONFIG.model_copy(update={"api_key_env": None})])
async def test_no_key_is_sent_where_none_is_configured_or_set(config) -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=ANSWER)

    await ServerLlm(config, httpx.MockTransport(handler), {"OPENAI_API_KEY": "other"}).complete(
        "?", _soon()
    )
    assert "Authorization" not in seen[0].headers


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_a_busy_or_broken_server_may_be_asked_again(status) -> None:
    error = await _error(lambda request: httpx.Response(status, headers={"Retry-After": "7"}))
    assert isinstance(error, Overloaded)
    assert (error.retryable, error.retry_after) == (True, 7.0)


async def test_a_retry_after_that_is_no_number_counts_as_a_second() -> None:
    error = await _error(
        lambda request: httpx.Response(
            429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
        )
    )
    assert error.retry_after == 1.0


@pytest.mark.parametrize("raised", [httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadError])
async def test_a_server_that_cannot_be_reached_may_be_asked_again(raised) -> None:
    error = await _error(_raising(raised))
    assert isinstance(error, Overloaded)
    assert "secret" not in error.message


async def test_an_answer_that_takes_past_the_deadline_is_late() -> None:
    async def slow(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        return httpx.Response(200, json=ANSWER)

    llm = ServerLlm(CONFIG, httpx.MockTransport(slow), {})
    for deadline in (time.time() + 0.05, time.time() - 5):
        with pytest.raises(DeadlineExceeded):
            await llm.complete("?", deadline)
    assert isinstance(await _error(_raising(httpx.ReadTimeout)), DeadlineExceeded)


@pytest.mark.parametrize("status", [301, 400, 401, 404])
async def test_a_refusal_is_final_and_no_redirect_is_followed(status) -> None:
    error = await _error(
        lambda request: httpx.Response(status, headers={"Location": "http://elsewhere.test/"})
    )
    assert isinstance(error, ModelFailed)
    assert str(status) in error.message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
        b"[" * 9999,
    ],
)
async def test_an_answer_of_another_shape_is_a_failure(content) -> None:
    assert isinstance(
        await _error(lambda request: httpx.Response(200, content=content)), ModelFailed
    )


async def test_a_key_that_no_header_takes_is_not_told() -> None:
    llm = ServerLlm(
        CONFIG, httpx.MockTransport(_raising(httpx.ReadError)), {"KEY_OF_TEST": "kéy\u2026"}
    )
    with pytest.raises(ModelFailed) as caught:
        await llm.complete("?", _soon())
    assert "k\xe9y" not in caught.value.message


async def test_a_base_url_that_is_none_is_a_failure() -> None:
    for url in ("llm.test", "http://llm.test:port", "ftp://llm.test"):
        with pytest.raises(ModelFailed):
            await ServerLlm(LlmConfig(model="small", base_url=url), environment={}).complete(
                "?", _soon()
            )


async def test_a_model_of_the_graph_is_asked_in_a_greedy_chat_without_pictures() -> None:
    service, deadline = FakeService(), _soon()
    assert await GraphLlm(_inference(service), "words").complete("Is it?", deadline) == "Yes."
    (request,) = service.requests
    assert request.task == Chat((Message(Role.USER, (TextPart("Is it?"),)),))
    assert (request.model, request.deadline, request.sampling.temperature) == (
        "words",
        deadline,
        0.0,
    )


@pytest.mark.parametrize(
    ("config", "kind"),
    [(None, type(None)), (LlmConfig(model="words"), GraphLlm), (CONFIG, ServerLlm)],
)
def test_the_configuration_decides_who_is_asked(config: LlmConfig | None, kind: type[Any]) -> None:
    assert type(make_llm(config, _inference(FakeService()))) is kind
