"""The parts that every route shares, and how a route turns a parsed body into a request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from fastapi import Request

from raylens.api.media import Media
from raylens.api.request_body import TIMEOUT_HEADER, parse_timeout
from raylens.core.catalog import Catalog
from raylens.core.config import AppConfig
from raylens.core.errors import InvalidRequest, ModelNotLoaded
from raylens.core.fairness import current_client
from raylens.core.ports import VisionService
from raylens.core.recipe import Choice, Recipe, choose
from raylens.core.types import MediaFile, ModelInfo, SamplingParams, Task, Tools, VisionRequest
from raylens.core.wire import MediaUrl

Result = TypeVar("Result")
CheckMedia = Callable[[MediaFile], None]
"""Checks the header of a picture or video file without decoding it.

Raises ``InvalidRequest``, ``PayloadTooLarge`` or
``UnsupportedMedia``.
"""


@dataclass(frozen=True)
class Context:
    """The application's parts, created once by ``create_app``."""

    service: VisionService
    config: AppConfig
    catalog: Catalog
    media: Media
    check_media: CheckMedia

    def build_request(
        self,
        http: Request,
        model: str,
        task: Task,
        sampling: SamplingParams,
        recipe: Choice,
        stream: bool = False,
    ) -> VisionRequest:
        """Return a request with the id of ``http`` and its deadline.

        Raises ``InvalidRequest`` if ``X-Request-Timeout`` or the recipe is invalid.
        """
        deadline = self.compute_deadline(http, model)
        request_id: str = http.state.request_id
        return self.new_request(request_id, deadline, model, task, sampling, recipe, stream)

    def new_request(
        self,
        request_id: str,
        deadline: float,
        model: str,
        task: Task,
        sampling: SamplingParams,
        recipe: Choice,
        stream: bool = False,
    ) -> VisionRequest:
        """Return a request of the current client. Raises ``InvalidRequest`` if the recipe is
        invalid."""
        return VisionRequest(
            id=request_id,
            model=model,
            task=task,
            deadline=deadline,
            sampling=sampling,
            recipe=self.resolve_recipe(model, recipe),
            stream=stream,
            client=current_client.get(),
        )

    def resolve_recipe(self, model: str, choice: Choice) -> Recipe:
        """Return the model's recipe with the request's changes.

        Raises ``InvalidRequest`` with the field's name if ``choice`` is invalid.
        """
        recipe = choose(choice, self._model_recipes[model], self._named_recipes)
        return recipe.within(self.catalog.models[model].max_image_size)

    @cached_property
    def _named_recipes(self) -> dict[str, Recipe]:
        return self.config.named_recipes()

    @cached_property
    def _model_recipes(self) -> dict[str, Recipe]:
        return {name: self.config.recipe_of(model) for name, model in self.catalog.models.items()}

    def compute_deadline(self, http: Request, model: str) -> float:
        """Return the request's deadline, in seconds since the epoch.

        It counts from the arrival of the request's first line. Raises ``InvalidRequest`` if
        ``X-Request-Timeout`` is invalid.
        """
        received_at: float = http.state.received_at
        header = http.headers.get(TIMEOUT_HEADER)
        if header is not None:
            return received_at + parse_timeout(header, self.config.defaults.max_timeout_s)
        return received_at + self.timeout_of(model)

    def timeout_of(self, model: str) -> float:
        """Return how long a request to a model may take, in seconds, if it doesn't say so."""
        return self.catalog.models[model].expected_response_time or self.config.defaults.timeout_s

    def fetch_deadline(self, http: Request) -> float:
        """Return the time by which the request's pictures must be downloaded.

        Without ``X-Request-Timeout`` it is the longest deadline that the request may get: its model
        isn't known yet.
        """
        received_at: float = http.state.received_at
        header = http.headers.get(TIMEOUT_HEADER)
        return received_at + parse_timeout(header, self.config.defaults.max_timeout_s)

    async def read_media(
        self, http: Request, urls: Sequence[MediaUrl], field: str, accept_base64: bool = False
    ) -> list[MediaFile]:
        """Return the pictures and videos of URLs, which are downloaded at the same time.

        ``field`` is the request's name of all of them. With ``accept_base64``, raw base64 and paths
        stand for them, too. Raises what :meth:`raylens.api.media.Media.read` raises, and
        ``InvalidRequest`` if there are too many.
        """
        self.media.check_count(urls, field)
        deadline = self.fetch_deadline(http)
        return await gather(self.media.read(url, deadline, accept_base64) for url in urls)

    def check_text_length(self, length: int, field: str) -> None:
        """Refuse text that no model's context can hold before seconds are spent on tokenizing it.

        Raises ``InvalidRequest`` if ``length``, in characters, is over the limit.
        """
        _check_limit(field, length, self.config.limits.max_text_chars, " characters")

    def check_prompt_text(self, tools: Tools | None, variables: Any = None) -> None:
        """Refuse tools, or values for a chat template, whose text is over the limit.

        Raises ``InvalidRequest``.
        """
        functions = tools.functions if tools else ()
        self.check_text_length(sum(len(function.definition) for function in functions), "tools")
        if variables:
            self.check_text_length(len(json.dumps(variables)), "chat_template_kwargs")

    async def fetch_model_infos(
        self, names: Iterable[str]
    ) -> dict[str, ModelInfo | ModelNotLoaded]:
        """Return each model's info by name, or its error if it is down.

        A model that is down leaves the other models' infos intact.
        """

        async def fetch(name: str) -> ModelInfo | ModelNotLoaded:
            try:
                return await self.service.model_info(name)
            except ModelNotLoaded as error:
                return error

        names = list(names)
        infos = await asyncio.gather(*map(fetch, names))
        return dict(zip(names, infos, strict=True))

    def build_sampling(
        self,
        *,
        max_tokens: int | None = None,
        capped: bool = False,
        min_tokens: int = 0,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int | None = None,
        stop: tuple[str, ...] = (),
        stop_token_ids: tuple[int, ...] = (),
        logit_bias: tuple[tuple[int, float], ...] = (),
        n: int = 1,
        logprobs: int | None = None,
        json_schema: str | None = None,
        tools: Tools | None = None,
        schema_field: str = "response_format",
        section: str = "",
    ) -> SamplingParams:
        """Return sampling parameters, with the configured defaults for unset ones.

        With ``capped``, an answer without ``max_tokens`` gets what is left, of which only the
        default is guaranteed, and a value over the limit counts as the limit. ``schema_field`` is
        the request's name of ``json_schema``, and ``section`` what precedes the names of the other
        parameters there, such as ``settings.``.

        Raises ``InvalidRequest`` if a parameter is over its limit.
        """
        limits = self.config.limits
        defaults = self.config.defaults
        guaranteed_tokens = None
        if max_tokens is None:
            max_tokens = defaults.max_tokens
            if capped:
                guaranteed_tokens = max_tokens
                max_tokens = limits.max_tokens
        if capped:
            max_tokens = min(max_tokens, limits.max_tokens)
        functions = tools.functions if tools else ()
        tool_bytes = sum(len(function.parameters.encode()) for function in functions)
        schema_bytes = len((json_schema or "").encode())
        _check_limit(f"{section}max_tokens", max_tokens, limits.max_tokens)
        _check_limit(f"{section}min_tokens", min_tokens, max_tokens)
        _check_limit(f"{section}n", n, limits.max_answers)
        _check_limit(f"{section}stop", len(stop), limits.max_stop_strings)
        _check_limit(schema_field, schema_bytes, limits.max_schema_bytes, " bytes of schema")
        _check_limit("tools", tool_bytes, limits.max_schema_bytes, " bytes of schemas")
        return SamplingParams(
            max_tokens=max_tokens,
            guaranteed_tokens=guaranteed_tokens,
            min_tokens=min_tokens,
            temperature=defaults.temperature if temperature is None else temperature,
            top_p=1.0 if top_p is None else top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
            stop=stop,
            stop_token_ids=stop_token_ids,
            logit_bias=logit_bias,
            n=n,
            logprobs=logprobs,
            json_schema=json_schema,
        )


async def gather(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Return the results of coroutines that run together. The first error cancels the others."""
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _check_limit(field: str, actual: int, limit: int, unit: str = "") -> None:
    if actual > limit:
        raise InvalidRequest(f"{field}: {actual}{unit}; the limit is {limit}", field, limit, actual)
