"""Sends the inference requests of jobs, which differ from interactive ones only in priority.

That priority is :class:`raylens.core.types.Priority`. It is not the ``priority`` of a job, which
orders the queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from raylens.core.catalog import Catalog
from raylens.core.config import AppConfig
from raylens.core.errors import InvalidRequest, ModelFailed, RaylensError
from raylens.core.fairness import current_client
from raylens.core.ports import VisionService
from raylens.core.recipe import Recipe, choose
from raylens.core.types import (
    Findings,
    FinishReason,
    MediaFile,
    Priority,
    SamplingParams,
    Task,
    VisionRequest,
)
from raylens.core.wire import Body, Text


class SamplingOptions(Body):
    """Sampling parameters, named as in the Moondream API."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Annotated[int, Field(ge=1)] | None = None


class InferenceOptions(Body):
    """The options in every job's input: model, preprocessing recipe and sampling."""

    model: Text | None = None
    recipe: str | dict[str, Any] | None = None
    settings: SamplingOptions = SamplingOptions()


@dataclass(frozen=True)
class ResolvedOptions:
    """:class:`InferenceOptions` with the defaults of the configuration filled in."""

    model: str
    recipe: Recipe
    sampling: SamplingParams


@dataclass(frozen=True)
class Answer:
    """A complete answer. ``warnings`` are those of the picture's preprocessing."""

    text: str
    model: str
    findings: Findings
    warnings: tuple[str, ...]


class InferenceClient:
    """Sends tasks to the vision service, and collects the answers."""

    def __init__(self, service: VisionService, config: AppConfig) -> None:
        self._service = service
        self._config = config

    def resolve(self, options: InferenceOptions) -> ResolvedOptions:
        """Fill in the defaults of the configuration.

        Raises ``UnknownModel``, or ``InvalidRequest`` if the recipe or a sampling option is
        invalid.
        """
        # Not kept: the configuration of a job queue may change.
        catalog = Catalog(self._config)
        model = catalog.models[catalog.resolve(options.model, "jobs")]
        sampling = self._resolve_sampling(options.settings)
        named_recipes = self._config.named_recipes()
        recipe = choose(options.recipe, self._config.recipe_of(model), named_recipes)
        return ResolvedOptions(model.name, recipe.within(model.max_image_size), sampling)

    def _resolve_sampling(self, settings: SamplingOptions) -> SamplingParams:
        defaults = self._config.defaults
        limit = self._config.limits.max_tokens
        if settings.max_tokens is not None and settings.max_tokens > limit:
            field = "settings.max_tokens"
            message = f"{field}: {settings.max_tokens}; the limit is {limit}"
            raise InvalidRequest(message, field, limit)
        temperature = settings.temperature
        return SamplingParams(
            max_tokens=settings.max_tokens or defaults.max_tokens,
            temperature=defaults.temperature if temperature is None else temperature,
            top_p=settings.top_p,
        )

    async def ask(
        self,
        request_id: str,
        deadline: float,
        options: ResolvedOptions,
        task: Task,
        files: Sequence[MediaFile],
    ) -> Answer:
        """Return the complete answer to a task.

        ``deadline`` is in seconds since the epoch, on this machine's clock. Raises any of
        :mod:`raylens.core.errors`, with its ``model``.
        """
        request = VisionRequest(
            id=request_id,
            model=options.model,
            task=task,
            deadline=deadline,
            sampling=options.sampling,
            recipe=options.recipe,
            priority=Priority.JOB,
            stream=False,
            client=current_client.get(),
        )
        try:
            async with aclosing(self._service.generate(request, files)) as stream:
                deltas = [delta async for delta in stream]
        except RaylensError as error:
            error.model = options.model
            raise
        if not deltas or deltas[-1].finish_reason in (None, FinishReason.ABORT):
            raise ModelFailed("the answer ended early")
        text = "".join(delta.text for delta in deltas)
        findings = deltas[-1].findings or Findings()
        warnings = tuple(warning for delta in deltas for warning in delta.warnings)
        return Answer(text, options.model, findings, warnings)


def with_greedy_sampling(options: ResolvedOptions) -> ResolvedOptions:
    """Return the options with temperature 0, for reproducible answers."""
    return replace(options, sampling=replace(options.sampling, temperature=0.0))
