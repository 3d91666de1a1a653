from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from raylens.core.config import AppConfig
from raylens.core.errors import (
    InvalidRequest,
    ModelFailed,
    ModelNotLoaded,
    Overloaded,
    RaylensError,
)
from raylens.core.fallback import FallbackService
from raylens.core.ports import VisionService
from raylens.core.types import Delta, Detect, FinishReason, ModelInfo, Query, VisionRequest

MODELS: list[dict[str, Any]] = [
    {"name": "a", "family": "smolvlm", "fallback": ["b", "c"]},
    {"name": "b", "family": "smolvlm"},
    {"name": "c", "family": "moondream", "max_image_size": 100},
]
FULL = Overloaded("full", "model")
CONFIG = AppConfig.model_validate({"models": MODELS})


@dataclass
class Models(VisionService):
    """Models of which some are not loaded, and some raise an error."""

    not_loaded: set[str] = field(default_factory=set)
    errors: dict[str, RaylensError] = field(default_factory=dict)
    requests: list[VisionRequest] = field(default_factory=list)
    words_before_error: int = 0
    are_loaded_on_demand: bool = False

    async def generate(
        self, request: VisionRequest, pictures: Sequence[Any]
    ) -> AsyncGenerator[Delta, None]:
        self.requests.append(request)
        if request.model in self.errors:
            for _ in range(self.words_before_error):
                yield Delta("word ")
            raise self.errors[request.model]
        yield Delta(request.model)
        yield Delta("", 0, FinishReason.STOP)

    async def preprocess(self, *_: Any) -> Any: ...

    async def model_info(self, name: str) -> ModelInfo:
        if name in self.not_loaded:
            error = ModelNotLoaded("not loaded", "model")
            error.on_demand = "scaled to zero" if self.are_loaded_on_demand else None
            raise error
        tasks = ("query", "detect") if name == "c" else ("query",)
        return ModelInfo(name, "", None, "cpu", tasks)


async def ask(models: Models, model: str = "a", task: Any = None) -> list[Delta]:
    service = cast(VisionService, FallbackService(models, CONFIG))
    request = VisionRequest("id", model, task or Query("What?"), 1e12)
    async with aclosing(service.generate(request, [])) as deltas:
        return [delta async for delta in deltas]


async def test_a_model_that_can_answer_does() -> None:
    deltas = await ask(Models())
    assert [delta.text for delta in deltas] == ["a", ""]
    assert {delta.model for delta in deltas} == {None}


@pytest.mark.parametrize(
    "models", [Models(not_loaded={"a"}), Models(errors={"a": FULL})], ids=["not loaded", "full"]
)
async def test_the_first_other_model_answers_and_says_so(models: Models) -> None:
    deltas = await ask(models)
    assert [delta.text for delta in deltas] == ["b", ""]
    assert [delta.model for delta in deltas] == ["b", None]


async def test_a_model_that_was_scaled_to_zero_is_loaded_and_a_fallback_is_not() -> None:
    models = Models(not_loaded={"a", "b"}, are_loaded_on_demand=True)
    assert (await ask(models))[0].text == "a"
    models.errors["a"] = FULL
    assert (await ask(models))[0].model == "c"


async def test_the_next_one_answers_if_that_cant_either() -> None:
    models = Models(not_loaded={"a"}, errors={"b": FULL})
    assert (await ask(models))[0].model == "c"
    assert models.requests[-1].recipe.size is not None
    assert max(models.requests[-1].recipe.size) <= 100


async def test_a_model_that_cant_do_the_task_is_left_out() -> None:
    models = Models(not_loaded={"a"})
    assert (await ask(models, task=Detect("cat")))[0].model == "c"
    assert [request.model for request in models.requests] == ["c"]


async def test_a_fallback_that_refuses_the_request_is_passed_over() -> None:
    too_long = InvalidRequest("the prompt is too long", "messages")
    assert (await ask(Models(errors={"a": FULL, "b": too_long})))[0].model == "c"
    with pytest.raises(Overloaded, match="full"):
        await ask(Models(errors={"a": FULL, "b": too_long, "c": too_long}))
    with pytest.raises(InvalidRequest):
        await ask(Models(errors={"a": too_long}))


async def test_if_none_answers_the_error_is_that_of_the_model_that_was_asked() -> None:
    with pytest.raises(Overloaded, match="full"):
        await ask(Models(errors={"a": FULL}, not_loaded={"b", "c"}))


async def test_a_model_without_fallback_is_not_asked_whether_it_is_loaded() -> None:
    models = Models(not_loaded={"b"})
    assert (await ask(models, "b"))[0].text == "b"


@pytest.mark.parametrize(
    "error", [ModelFailed("broken"), Overloaded("the queue of the preprocessor is full", None)]
)
async def test_other_errors_are_not_mended(error: RaylensError) -> None:
    with pytest.raises(type(error), match=error.message):
        await ask(Models(errors={"a": error}))


async def test_an_answer_that_has_begun_is_not_begun_again() -> None:
    with pytest.raises(Overloaded):
        await ask(Models(errors={"a": FULL}, words_before_error=1))


@pytest.mark.parametrize("fallback", [["a"], ["x"], ["b", "a"]])
def test_a_fallback_must_be_another_model(fallback: list[str]) -> None:
    models = [{**MODELS[0], "fallback": fallback}, *MODELS[1:]]
    with pytest.raises(ValueError, match=r"models: a: fallback: '.'; expected the name"):
        AppConfig.model_validate({"models": models})
