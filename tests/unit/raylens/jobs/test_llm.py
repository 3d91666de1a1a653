from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence

import pytest

from raylens.core.config import AppConfig
from raylens.core.errors import Overloaded
from raylens.core.logs import current_request_id
from raylens.core.ports import VisionService
from raylens.core.recipe import Recipe
from raylens.core.types import (
    Caller,
    Chat,
    Delta,
    FinishReason,
    MediaFile,
    Message,
    ModelInfo,
    PictureFile,
    Priority,
    ProcessedPicture,
    Role,
    TextPart,
    VisionRequest,
)
from raylens.jobs.inference import InferenceClient
from raylens.jobs.llm import ServedLanguageModel, make_llm

MODELS = [
    {"name": "moondream", "family": "moondream"},
    {
        "name": "llama3:latest",
        "runtime": "openai",
        "remote": {"base_url": "http://llm.test/v1", "model": "llama3"},
    },
]


class FakeService(VisionService):
    def __init__(self, error: Exception | None = None) -> None:
        self.requests: list[VisionRequest] = []
        self._error = error

    async def generate(
        self, request: VisionRequest, pictures: Sequence[MediaFile]
    ) -> AsyncGenerator[Delta, None]:
        assert not pictures
        self.requests.append(request)
        if self._error is not None:
            raise self._error
        yield Delta("Yes.", finish_reason=FinishReason.STOP)

    async def preprocess(
        self, picture: PictureFile, recipe: Recipe, caller: Caller
    ) -> ProcessedPicture:
        raise NotImplementedError

    async def model_info(self, name: str) -> ModelInfo:
        raise NotImplementedError


def llm_over(service: FakeService) -> ServedLanguageModel:
    config = AppConfig.model_validate({"models": MODELS})
    return ServedLanguageModel(InferenceClient(service, config), "llama3:latest")


async def test_the_llm_gets_a_greedy_chat_at_a_job_s_priority() -> None:
    service = FakeService()
    deadline = time.time() + 60
    assert await llm_over(service).complete("Is it?", deadline) == "Yes."
    (request,) = service.requests
    assert request.task == Chat((Message(Role.USER, (TextPart("Is it?"),)),))
    assert request.model == "llama3:latest"
    assert request.deadline == deadline
    assert request.sampling.temperature == 0
    assert request.priority is Priority.JOB


async def test_the_request_has_the_job_s_id() -> None:
    service = FakeService()
    token = current_request_id.set("job-7")
    try:
        await llm_over(service).complete("?", time.time() + 60)
    finally:
        current_request_id.reset(token)
    await llm_over(service).complete("?", time.time() + 60)
    first, second = service.requests
    assert first.id == "job-7"
    assert second.id not in ("-", "job-7")


async def test_an_error_of_the_vision_service_is_the_job_s_to_handle() -> None:
    with pytest.raises(Overloaded):
        await llm_over(FakeService(Overloaded("busy"))).complete("?", time.time() + 60)


def test_there_is_no_llm_unless_one_is_configured() -> None:
    inference = InferenceClient(FakeService(), AppConfig.model_validate({"models": MODELS}))
    assert make_llm(None, inference) is None
    assert isinstance(make_llm("moondream", inference), ServedLanguageModel)
