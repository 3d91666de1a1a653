"""A vision service whose requests give way to interactive ones."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from raylens.core.ports import VisionService
from raylens.core.recipe import Recipe
from raylens.core.types import (
    Caller,
    Delta,
    MediaFile,
    ModelInfo,
    PictureFile,
    Priority,
    ProcessedPicture,
    VisionRequest,
)


class BackgroundService(VisionService):
    """Passes each request on with the priority of jobs."""

    def __init__(self, service: VisionService) -> None:
        self._service = service

    async def generate(
        self, request: VisionRequest, pictures: Sequence[MediaFile]
    ) -> AsyncGenerator[Delta, None]:
        request = replace(request, priority=Priority.JOB)
        async with aclosing(self._service.generate(request, pictures)) as deltas:
            async for delta in deltas:
                yield delta

    async def preprocess(
        self, picture: PictureFile, recipe: Recipe, caller: Caller
    ) -> ProcessedPicture:
        caller = replace(caller, priority=Priority.JOB)
        return await self._service.preprocess(picture, recipe, caller)

    async def input_size(self, model: str, size: tuple[int, int]) -> tuple[int, int]:
        return await self._service.input_size(model, size)

    async def model_info(self, name: str) -> ModelInfo:
        return await self._service.model_info(name)
