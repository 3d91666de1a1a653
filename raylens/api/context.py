"""What every route needs to make a request of what it parsed."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from fastapi import Request

from raylens.api.media import Media
from raylens.core.catalog import Catalog
from raylens.core.config import AppConfig
from raylens.core.errors import InvalidRequest, ModelNotLoaded
from raylens.core.ports import VisionService
from raylens.core.recipe import Choice, Recipe, choose
from raylens.core.types import ModelInfo, SamplingParams, Task, VisionRequest

TIMEOUT_HEADER = "X-Request-Timeout"
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


@dataclass(frozen=True)
class Context:
    """The application's parts, made once by ``create_app``."""

    service: VisionService
    config: AppConfig
    catalog: Catalog
    media: Media

    def request(
        self,
        http: Request,
        model: str,
        task: Task,
        sampling: SamplingParams,
        recipe: Choice,
        stream: bool = False,
    ) -> VisionRequest:
        """A request with its id and its deadline, counted from its first line.

        Raises ``InvalidRequest`` for a bad ``X-Request-Timeout`` or recipe.
        """
        return VisionRequest(
            id=http.state.request_id,
            model=model,
            task=task,
            deadline=self.deadline(http, model),
            sampling=sampling,
            recipe=self.recipe(model, recipe),
            stream=stream,
        )

    def recipe(self, model: str, choice: Choice) -> Recipe:
        """The model's recipe, with what the request chose. Raises ``InvalidRequest``, which names
        the field."""
        recipe = choose(choice, self._recipes[model], self._named_recipes)
        return recipe.within(self.catalog.models[model].max_image_size)

    @cached_property
    def _named_recipes(self) -> dict[str, Recipe]:
        return self.config.named_recipes()

    @cached_property
    def _recipes(self) -> dict[str, Recipe]:
        return {name: self.config.recipe_of(model) for name, model in self.catalog.models.items()}

    def deadline(self, http: Request, model: str) -> float:
        """Seconds since the epoch. Raises ``InvalidRequest`` for a bad ``X-Request-Timeout``."""
        given = http.headers.get(TIMEOUT_HEADER)
        if given is not None:
            seconds = self._seconds(given)
        else:
            seconds = (
                self.catalog.models[model].expected_response_time or self.config.defaults.timeout_s
            )
        received_at: float = http.state.received_at
        return received_at + seconds

    def check_text(self, length: int, field: str) -> None:
        """Raises ``InvalidRequest`` for more text than any context holds: reading it would cost
        seconds."""
        _check_limit(field, length, self.config.limits.max_text_chars, " characters")

    async def model_infos(self, names: Iterable[str]) -> dict[str, ModelInfo | ModelNotLoaded]:
        """What each of these models is, or why that can't be told: one that is down hides no other."""

        async def ask(name: str) -> ModelInfo | ModelNotLoaded:
            try:
                return await self.service.model_info(name)
            except ModelNotLoaded as error:
                return error

        names = list(names)
        return dict(zip(names, await asyncio.gather(*map(ask, names)), strict=True))

    def sampling(
        self,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int | None = None,
        stop: tuple[str, ...] = (),
        n: int = 1,
        logprobs: int | None = None,
        json_schema: str | None = None,
    ) -> SamplingParams:
        """Sampling parameters with the configured defaults. Raises ``InvalidRequest`` over a limit."""
        limits, defaults = self.config.limits, self.config.defaults
        if max_tokens is None:
            max_tokens = defaults.max_tokens
        _check_limit("max_tokens", max_tokens, limits.max_tokens)
        _check_limit("n", n, limits.max_answers)
        _check_limit("stop", len(stop), limits.max_stop_strings)
        _check_limit(
            "response_format",
            len((json_schema or "").encode()),
            limits.max_schema_bytes,
            " bytes of schema",
        )
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=defaults.temperature if temperature is None else temperature,
            top_p=1.0 if top_p is None else top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
            stop=stop,
            n=n,
            logprobs=logprobs,
            json_schema=json_schema,
        )

    def _seconds(self, given: str) -> float:
        longest = self.config.defaults.max_timeout_s
        seconds = float(given) if _NUMBER.fullmatch(given) else math.nan
        if not 0 < seconds <= longest:
            raise InvalidRequest(
                f"{TIMEOUT_HEADER}: {given[:32]!r}; a number of seconds over 0 and up to {longest:g} is needed",
                TIMEOUT_HEADER,
                longest,
            )
        return seconds


def _check_limit(field: str, actual: int, limit: int, unit: str = "") -> None:
    if actual > limit:
        raise InvalidRequest(f"{field}: {actual}{unit}; the limit is {limit}", field, limit, actual)
