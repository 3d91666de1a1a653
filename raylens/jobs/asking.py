"""How a job asks the graph: the same requests as everybody's, at a job's priority."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from raylens.catalog import Catalog
from raylens.config import AppConfig
from raylens.errors import InvalidRequest, ModelFailed
from raylens.ports import VisionService
from raylens.recipe import Recipe, choose
from raylens.types import FinishReason, Found, PictureFile, Priority, SamplingParams, Task, VisionRequest
from raylens.wire import Body, Text


class Settings(Body):
    """Sampling, as the Moondream dialect names it."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Annotated[int, Field(ge=1)] | None = None


class Options(Body):
    """What the input of every type of job may say: who answers, and how."""

    model: Text | None = None
    recipe: str | dict[str, Any] | None = None
    settings: Settings = Settings()


@dataclass(frozen=True)
class Plan:
    """Options, resolved."""

    model: str
    recipe: Recipe
    sampling: SamplingParams


@dataclass(frozen=True)
class Answer:
    text: str
    model: str
    found: Found
    warnings: tuple[str, ...]


class Asker:
    """Makes requests of tasks, and waits for their answers."""

    def __init__(self, service: VisionService, config: AppConfig) -> None:
        self._service = service
        self._config = config
        self._catalog = Catalog(config)
        self._named_recipes = config.named_recipes()

    def plan(self, options: Options) -> Plan:
        """Raises ``UnknownModel``, and ``InvalidRequest`` for a recipe or a setting that can't be had."""
        model = self._catalog.models[self._catalog.resolve(options.model, "jobs")]
        limit, asked = self._config.limits.max_tokens, options.settings.max_tokens
        if asked is not None and asked > limit:
            raise InvalidRequest(f"settings.max_tokens: {asked}; the limit is {limit}", "settings.max_tokens", limit)
        defaults, temperature = self._config.defaults, options.settings.temperature
        recipe = choose(options.recipe, self._config.recipe_of(model), self._named_recipes)
        sampling = SamplingParams(
            max_tokens=asked or defaults.max_tokens,
            temperature=defaults.temperature if temperature is None else temperature,
            top_p=options.settings.top_p,
        )
        return Plan(model.name, recipe.within(model.max_image_size), sampling)

    async def ask(
        self, identity: str, deadline: float, plan: Plan, task: Task, pictures: Sequence[PictureFile]
    ) -> Answer:
        """The whole answer. Raises any of :mod:`raylens.errors`."""
        request = VisionRequest(
            id=identity,
            model=plan.model,
            task=task,
            deadline=deadline,
            sampling=plan.sampling,
            recipe=plan.recipe,
            priority=Priority.JOB,
            stream=False,
        )
        async with aclosing(self._service.generate(request, pictures)) as deltas:
            whole = [delta async for delta in deltas]
        if not whole or whole[-1].finish_reason in (None, FinishReason.ABORT):
            raise ModelFailed("the answer ended early")
        warnings = tuple(warning for delta in whole for warning in delta.warnings)
        return Answer("".join(delta.text for delta in whole), plan.model, whole[-1].found or Found(), warnings)


def greedy(plan: Plan) -> Plan:
    """The same with the most likely tokens: for boxes, points and yes or no."""
    return replace(plan, sampling=replace(plan.sampling, temperature=0.0))
