"""How a job asks the graph: the same requests as everybody's, at a job's priority."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from raylens.core.catalog import Catalog
from raylens.core.config import AppConfig
from raylens.core.errors import InvalidRequest, ModelFailed
from raylens.core.ports import VisionService
from raylens.core.recipe import Recipe, choose
from raylens.core.types import (
    Findings,
    FinishReason,
    PictureFile,
    Priority,
    SamplingParams,
    Task,
    VisionRequest,
)
from raylens.core.wire import Body, Text


class SamplingOptions(Body):
    """Sampling, as the Moondream dialect names it."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Annotated[int, Field(ge=1)] | None = None


class Options(Body):
    """What the input of every type of job may say: who answers, and how."""

    model: Text | None = None
    recipe: str | dict[str, Any] | None = None
    settings: SamplingOptions = SamplingOptions()


@dataclass(frozen=True)
class ResolvedOptions:
    """Options, resolved."""

    model: str
    recipe: Recipe
    sampling: SamplingParams


@dataclass(frozen=True)
class Answer:
    text: str
    model: str
    findings: Findings
    warnings: tuple[str, ...]


class InferenceClient:
    """Makes requests of tasks, and waits for their answers."""

    def __init__(self, service: VisionService, config: AppConfig) -> None:
        self._service = service
        self._config = config
        self._catalog = Catalog(config)
        self._named_recipes = config.named_recipes()

    def resolve(self, options: Options) -> ResolvedOptions:
        """Raises ``UnknownModel``, and ``InvalidRequest`` for a recipe or a setting that can't be
        had."""
        model = self._catalog.models[self._catalog.resolve(options.model, "jobs")]
        limit, asked = self._config.limits.max_tokens, options.settings.max_tokens
        if asked is not None and asked > limit:
            raise InvalidRequest(
                f"settings.max_tokens: {asked}; the limit is {limit}", "settings.max_tokens", limit
            )
        defaults, temperature = self._config.defaults, options.settings.temperature
        recipe = choose(options.recipe, self._config.recipe_of(model), self._named_recipes)
        sampling = SamplingParams(
            max_tokens=asked or defaults.max_tokens,
            temperature=defaults.temperature if temperature is None else temperature,
            top_p=options.settings.top_p,
        )
        return ResolvedOptions(model.name, recipe.within(model.max_image_size), sampling)

    async def ask(
        self,
        identity: str,
        deadline: float,
        options: ResolvedOptions,
        task: Task,
        pictures: Sequence[PictureFile],
    ) -> Answer:
        """The whole answer. Raises any of :mod:`raylens.core.errors`."""
        request = VisionRequest(
            id=identity,
            model=options.model,
            task=task,
            deadline=deadline,
            sampling=options.sampling,
            recipe=options.recipe,
            priority=Priority.JOB,
            stream=False,
        )
        async with aclosing(self._service.generate(request, pictures)) as deltas:
            whole = [delta async for delta in deltas]
        if not whole or whole[-1].finish_reason in (None, FinishReason.ABORT):
            raise ModelFailed("the answer ended early")
        warnings = tuple(warning for delta in whole for warning in delta.warnings)
        return Answer(
            "".join(delta.text for delta in whole),
            options.model,
            whole[-1].findings or Findings(),
            warnings,
        )


def greedy(options: ResolvedOptions) -> ResolvedOptions:
    """The same with the most likely tokens: for boxes, points and yes or no."""
    return replace(options, sampling=replace(options.sampling, temperature=0.0))
