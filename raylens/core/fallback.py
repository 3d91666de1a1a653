"""Other models that answer while the one that was asked can't."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from raylens.core.config import AppConfig
from raylens.core.errors import InvalidRequest, ModelNotLoaded, Overloaded, RaylensError
from raylens.core.ports import VisionService
from raylens.core.types import Delta, MediaFile, VisionRequest, required_capability

logger = logging.getLogger(__name__)


class FallbackService:
    """Passes a request on to its model's ``fallback`` if the model is not loaded or is full.

    Everything else of :class:`VisionService` is the service's own.
    """

    def __init__(self, service: VisionService, config: AppConfig) -> None:
        self._service = service
        self._models = {model.name: model for model in config.models}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)

    async def generate(
        self, request: VisionRequest, pictures: Sequence[MediaFile]
    ) -> AsyncGenerator[Delta, None]:
        """As :meth:`VisionService.generate`. If no other model answers either, the error is that of
        the model that was asked."""
        first_error: RaylensError | None = None
        for candidate in self._candidates(request):
            has_begun = False
            try:
                if not await self._can_try(candidate, request):
                    continue
                async with aclosing(self._service.generate(candidate, pictures)) as deltas:
                    async for delta in deltas:
                        if not has_begun and candidate is not request:
                            delta = replace(delta, model=candidate.model)
                        has_begun = True
                        yield delta
                return
            except (ModelNotLoaded, Overloaded, InvalidRequest) as error:
                # A fallback may refuse what the model that was asked would have taken.
                is_own = isinstance(error, InvalidRequest) or error.field != "model"
                if has_begun or (candidate is request and is_own):
                    raise
                first_error = first_error or error
                logger.info("%s can't answer: %s", candidate.model, error)
        assert first_error is not None
        raise first_error

    def _candidates(self, request: VisionRequest) -> list[VisionRequest]:
        """Return the request to each model that may answer it, the request itself first."""
        others = [self._models[name] for name in self._models[request.model].fallback]
        return [request] + [
            replace(request, model=model.name, recipe=request.recipe.within(model.max_image_size))
            for model in others
        ]

    async def _can_try(self, candidate: VisionRequest, request: VisionRequest) -> bool:
        """Return whether a model does the request's task. Raises ``ModelNotLoaded``.

        Without this question, a request would wait for a model until its deadline.
        """
        if candidate is request and not self._models[request.model].fallback:
            return True
        try:
            info = await self._service.model_info(candidate.model)
        except ModelNotLoaded as error:
            if candidate is request and error.on_demand is not None:
                return True  # the request loads it
            raise
        return candidate is request or required_capability(request.task) in info.tasks
